"""Today's prices through gpuhunt (github.com/dstackai/gpuhunt, MPL-2.0; extra `prices`): into a dated snapshot.

gpuhunt publishes a catalogue a provider; GPUHUNT_CATALOG_DIR names a folder of `<provider>.csv` to use without network.
It knows on demand and spot, an instance's price an hour, a GPU's name and memory; no reservation. Its names say no form
factor, so H100 and A100 are told apart by the instance they are sold in (FORMS), and what cannot be told is left out.
Vast (no form factor at all) and Crusoe (figures typed into gpuhunt, some of them estimates) are not taken from there.

One provider's trouble is one line: it keeps its prices of the last snapshot, with their date.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.config import ConfigError
from bench.price import snapshot
from bench.price.book import Price

NAMES = {  # ours -> gpuhunt's
    **{"aws": "aws", "azure": "azure", "gcp": "gcp", "oracle": "oci"},
    **{"lambda_labs": "lambdalabs", "nebius": "nebius", "runpod": "runpod"},
}
GPUS: dict[str, tuple[float, str]] = {  # gpuhunt's name -> its memory, GiB, and our key
    "H100NVL": (94, "h100_nvl_94gb"),
    "H200": (141, "h200_sxm_141gb"),
    "H200NVL": (141, "h200_nvl_141gb"),
    "B200": (180, "b200_sxm_180gb"),
    "B300": (270, "b300_sxm_288gb"),
    "GB200": (186, "gb200_nvl72_186gb"),
    "GB300": (270, "gb300_nvl72_288gb"),
    "L40S": (48, "l40s_pcie_48gb"),
    "MI300X": (192, "mi300x_oam_192gb"),
}
FORMS = (  # name, memory, gpuhunt's provider, instance, our key
    ("A100", 80, "aws", r"p4de\.", "a100_sxm_80gb"),
    ("A100", 80, "azure", r"Standard_ND", "a100_sxm_80gb"),
    ("A100", 80, "azure", r"Standard_NC", "a100_pcie_80gb"),
    ("A100", 80, "gcp", r"a2-ultragpu-", "a100_sxm_80gb"),
    ("A100", 80, "lambdalabs", r".*_a100_80gb_sxm4", "a100_sxm_80gb"),
    ("A100", 80, "oci", r"BM\.GPU\.A100-v2\.", "a100_sxm_80gb"),
    ("A100", 80, "runpod", r"NVIDIA A100-SXM4", "a100_sxm_80gb"),
    ("A100", 80, "runpod", r"NVIDIA A100 80GB PCIe", "a100_pcie_80gb"),
    ("H100", 80, "aws", r"p5\.", "h100_sxm_80gb"),
    ("H100", 80, "azure", r"Standard_ND", "h100_sxm_80gb"),
    ("H100", 80, "gcp", r"a3-(high|mega)gpu-", "h100_sxm_80gb"),
    ("H100", 80, "lambdalabs", r".*_h100_sxm5", "h100_sxm_80gb"),
    ("H100", 80, "lambdalabs", r".*_h100_pcie", "h100_pcie_80gb"),
    ("H100", 80, "nebius", r"gpu-h100-sxm", "h100_sxm_80gb"),
    ("H100", 80, "oci", r"BM\.GPU\.H100\.", "h100_sxm_80gb"),
    ("H100", 80, "runpod", r"NVIDIA H100 80GB HBM3", "h100_sxm_80gb"),
    ("H100", 80, "runpod", r"NVIDIA H100 PCIe", "h100_pcie_80gb"),
)
SAME_MEMORY = 0.08  # sellers print 262 to 288 GB for one GPU


class NothingRefreshed(Exception):
    """No provider answered: the snapshots stay as they are. Exit code 1."""


def refresh(asked: Sequence[str] | None, folder: Path, today: datetime.date | None = None) -> str:
    """Write `folder`/<today>.csv; what came of each provider, a line each. Raises ConfigError or NothingRefreshed."""
    for key in asked or ():
        if key not in NAMES:
            raise ConfigError(f"--provider: expected one of {', '.join(NAMES)}, got {key!r}")
    today = today or datetime.datetime.now(datetime.UTC).date()
    last = snapshot.newest(folder, today)
    prices = snapshot.read(last) if last else {}
    catalogue, lines, fetched = opened(), [], 0
    for key in asked or NAMES:
        try:
            found, version = fetch(catalogue, NAMES[key], today)
        except Exception as error:  # whatever one provider's catalogue does, the others go on
            lines.append(f"{key}: failed ({said(error)}); {kept(prices.get(key, ()))}")
            continue
        prices[key] = found
        fetched += 1
        lines.append(f"{key}: {len(found)} prices, catalogue {version}")
    if not fetched:
        raise NothingRefreshed("; ".join(lines))
    path = folder / f"{today}.csv"
    snapshot.write(path, prices)
    return "\n".join([*lines, f"{path}: {sum(map(len, prices.values()))} prices"])


def opened() -> Any:
    """gpuhunt's catalogue, loaded; what could not be loaded fails provider by provider. Raises ModuleNotFoundError."""
    try:
        import gpuhunt
    except ModuleNotFoundError:
        how = "pip install gpuhunt, or make setup EXTRAS=dev,prices"
        raise ModuleNotFoundError(f"gpuhunt is not installed here: {how}", name="gpuhunt") from None
    logging.getLogger("gpuhunt").setLevel(logging.CRITICAL)  # a traceback for every provider: we say it in a line
    catalogue = gpuhunt.Catalog(balance_resources=False, auto_reload=False)
    if "GPUHUNT_CATALOG_DIR" not in os.environ:
        try:
            catalogue.load()
        except gpuhunt.GPUHuntError as error:
            raise NothingRefreshed(f"gpuhunt: {said(error)}; the snapshots stay as they are") from None
    return catalogue


def fetch(catalogue: Any, name: str, today: datetime.date) -> tuple[list[Price], str]:
    """Today's prices of one provider and the version of the catalogue they are from. Raises whatever gpuhunt does."""
    items = catalogue.query(provider=name, min_gpu_count=1)
    there = getattr(catalogue, "catalog", {}).get(name)
    if there:
        version, as_of = str(there.version), dated(str(there.version), today)
    else:
        file = Path(os.environ["GPUHUNT_CATALOG_DIR"]) / f"{name}.csv"
        as_of = datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.UTC).date()
        version = f"a local file of {as_of}"
    source = f"https://github.com/dstackai/gpuhunt (gpuhunt {release()}, catalogue {version})"
    found = prices_of(items, name, min(as_of, today), source)
    if not found:
        raise LookupError("no price of a GPU we know in its catalogue")
    return found, version


def prices_of(items: Iterable[Any], name: str, as_of: datetime.date, source: str) -> list[Price]:
    """Catalogue items as prices a GPU: the median where zones of a region, or offers of one kind, differ."""
    groups: dict[tuple[str, str, str, int, str], list[float]] = defaultdict(list)
    for item in items:
        gpu, community = gpu_key(item, name), name == "runpod" and "-" not in item.location
        if gpu and item.price > 0 and not community:  # RunPod's community cloud is somebody's machine: not compared
            region = re.sub(r"-[a-z]$", "", item.location) if name == "gcp" else item.location
            term = "spot" if item.spot else "on_demand"
            groups[region, item.instance_name, gpu, item.gpu_count, term].append(item.price / item.gpu_count)
    return [
        Price(
            region=region,
            sku=sku,
            gpu=gpu,
            gpu_count=count,
            includes="instance",
            term=term,
            usd_per_gpu_hour=statistics.median(usd),
            as_of=as_of,
            source=source,
        )
        for (region, sku, gpu, count, term), usd in sorted(groups.items())
    ]


def gpu_key(item: Any, name: str) -> str | None:
    """Our key of an item's GPU; None where it has none or its form factor cannot be told."""
    if item.gpu_name in GPUS:
        memory, key = GPUS[item.gpu_name]
        return key if close(item.gpu_memory, memory) else None
    for gpu, memory, seller, instance, key in FORMS:
        if (item.gpu_name, name) == (gpu, seller) and re.match(instance, item.instance_name):
            return key if close(item.gpu_memory, memory) else None
    return None


def close(memory: float | None, known: float) -> bool:
    """Whether a memory in GiB is that of a GPU, as sellers print it."""
    return memory is not None and abs(memory / known - 1) <= SAME_MEMORY


def dated(version: str, today: datetime.date) -> datetime.date:
    """The day of a catalogue's version (20261127-...); today where it says none."""
    try:
        return datetime.datetime.strptime(version[:8], "%Y%m%d").date()
    except ValueError:
        return today


def release() -> str:
    """The version of gpuhunt that is installed."""
    return metadata.version("gpuhunt")


def kept(prices: Sequence[Price]) -> str:
    """What stays of a provider that failed."""
    if not prices:
        return "no snapshot of it to keep"
    return f"keeps its last snapshot, {len(prices)} prices of {max(price.as_of for price in prices)}"


def said(error: Exception) -> str:
    """An error in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
