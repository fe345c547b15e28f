"""What a load point costs: the split of its GPU time (bill.py) at the median price of a GPU-hour.

    usd = GPU-seconds * usd_per_hour / 3600 / utilisation

One row a usable load point and level of price: `retail` takes prices on demand, `contract` reservations and negotiated
prices. The median is over providers and terms, each by the median over its regions. A closed-loop point was measured
on a machine kept busy, so it is billed at the fleet's utilisation (configs/pricing.toml), as in cost.py. An open-loop
point contains its idle time: it is billed at 1, and `load_factor` says how far below the best sustained rate it ran.

Parts are prices of each kind's own tokens: together they make the bill. "Whole" is the bill over the output tokens
alone. A server that told no steps has no parts. A CPU is priced per vCPU and its rows are illustrative.
"""

from __future__ import annotations

import datetime
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import runs as run_folders
from bench.price import bill
from bench.price.book import CpuPrice, Price, Provider, providers, standing
from bench.price.cost import SECONDS_PER_HOUR, Utilisation, sells
from bench.price.serving_assumptions import Use, uses
from bench.price.serving_points import Points, is_closed, load_points, sustained_per_s, usable

LEVELS = {"retail": ("on_demand",), "contract": ("reserved_1y", "reserved_3y", "contract")}
KINDS = ("input", "cached_input", "output")
_BILL = {name: column for name, column in bill.COLUMNS.items() if name not in ("row", "point")}

COLUMNS: dict[str, tuple[str, str]] = {
    "row": ("s", "<run>/<cell>"),
    "point": ("s", "load point"),
    "level": ("s", "retail (on demand) or contract; blank: no price of this GPU is known"),
    "traffic": ("s", "class of traffic"),
    "model": ("s", "model key"),
    "workload": ("s", "workload key"),
    "backend": ("s", "backend"),
    "precision": ("s", "precision"),
    "gpu": ("s", "GPU key, or cpu"),
    "n_gpus": ("i", "GPUs of the deployment"),
    "concurrency": ("i", "closed loop: requests kept in flight"),
    "rate_per_s": ("f", "open loop: requests offered per second"),
    "load_factor": ("f", "open loop: what was offered in the window over the best sustained rate of the cell"),
    "utilisation": ("f", "share of paid time that does the work: 1 where the point contains its idle time"),
    **_BILL,
    "offers": ("i", "prices the median is over"),
    "usd_per_hour": ("f", "median price of one GPU-hour, or of an hour of all the host's vCPUs"),
    **{f"usd_per_million_{kind}_tokens": ("f", f"{kind.replace('_', ' ')} tokens, their part") for kind in KINDS},
    "usd_per_million_output_tokens_whole": ("f", "output tokens, carrying the whole bill"),
    "usd_per_request": ("f", "one request, all its tokens"),
    "requests_per_user_month": ("f", "configs/serving_use.toml"),
    "usd_per_user_month": ("f", "as many requests"),
    "illustrative": ("s", "yes on a CPU: shows the arithmetic"),
}


def serving_costs(
    runs: Sequence[Path],
    as_of: datetime.date,
    book: Iterable[Provider] | None = None,
    utilisation: Utilisation | None = None,
) -> list[dict[str, Any]]:
    """Rows of COLUMNS for every usable load point of the runs. Raises ResultsError."""
    book = standing(providers().values() if book is None else book, as_of)
    share = (utilisation or Utilisation.load()).inference.value
    use = uses()
    made = []
    for run in runs:
        points = load_points(run)
        if not points:
            continue
        vcpus = run_folders.read_environment(run).get("cpu_count")
        bills = {(one["row"], one["point"]): one for one in bill.bills(run)}
        cells: dict[str, Points] = defaultdict(list)
        for point in points:
            cells[point["row"]].append(point)
        for mates in cells.values():
            most = sustained_per_s(mates)
            for point in filter(usable, mates):
                split = bills.get((point["row"], point["point"])) or undivided(point)
                hours = hourly(book, point, vcpus)
                made += _priced(point, split, hours, 1.0 if not is_closed(point) else share, most, use)
    return made


def undivided(point: Mapping[str, Any]) -> dict[str, Any]:
    """The bill of a point whose server told no steps: whole, without parts."""
    gpus, output, requests = point["n_gpus"], point["output_tokens_per_s"], point["requests_per_s"]
    return dict.fromkeys(_BILL) | {
        "gpu_s_per_million_output_tokens_whole": gpus / output * bill.MILLION if output else None,
        "gpu_s_per_request": gpus / requests if requests else None,
    }


def hourly(book: Iterable[Provider], point: Mapping[str, Any], vcpus: int | None) -> dict[str, tuple[float, int]]:
    """Median USD an hour and the number of prices behind it, by level; levels without a price are left out.

    `book` holds what stands that day (book.standing); `gpu_only` prices count for nothing.
    """
    row = {"gpu": None, **point, "vcpus": vcpus}
    regions: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for provider in book:
        prices: list[Price | CpuPrice] = [*provider.price, *provider.cpu_price]
        for price in prices:
            if sells(price, row):
                usd = price.usd_per_vcpu_hour * row["vcpus"] if isinstance(price, CpuPrice) else price.usd_per_gpu_hour
                regions[provider.key, price.term][price.region].append(usd)
    offers = {key: statistics.median(map(statistics.median, found.values())) for key, found in regions.items()}
    found = {level: [usd for (_, term), usd in offers.items() if term in terms] for level, terms in LEVELS.items()}
    return {level: (statistics.median(each), len(each)) for level, each in found.items() if each}


def _priced(
    point: Mapping[str, Any],
    split: Mapping[str, Any],
    hours: Mapping[str, tuple[float, int]],
    utilisation: float,
    most: float | None,
    use: Mapping[str, Use],
) -> list[dict[str, Any]]:
    """A row for each level, or one without a price."""
    rate, month = point["rate_per_s"], use.get(point["traffic"])
    same = {name: point[name] for name in COLUMNS if name in point} | {name: split[name] for name in _BILL}
    same |= {
        "load_factor": (point["offered_per_s"] or rate) / most if rate and most else None,
        "utilisation": utilisation,
        "requests_per_user_month": month.requests_per_month if month else None,
        "illustrative": "yes" if point["device"] == "cpu" else None,
    }
    blank = dict.fromkeys(COLUMNS) | same
    priced = [
        blank | _usd(blank, usd, utilisation) | {"level": level, "offers": offers}
        for level, (usd, offers) in hours.items()
    ]
    return priced or [blank]


def _usd(row: Mapping[str, Any], usd_per_hour: float, utilisation: float) -> dict[str, Any]:
    """The columns in dollars."""

    def usd(gpu_s: float | None) -> float | None:
        return None if gpu_s is None else gpu_s * usd_per_hour / SECONDS_PER_HOUR / utilisation

    request, month = usd(row["gpu_s_per_request"]), row["requests_per_user_month"]
    names = [f"million_{kind}_tokens" for kind in KINDS] + ["million_output_tokens_whole"]
    return {
        "usd_per_hour": usd_per_hour,
        **{f"usd_per_{name}": usd(row[f"gpu_s_per_{name}"]) for name in names},
        "usd_per_request": request,
        "usd_per_user_month": request * month if request is not None and month else None,
    }
