"""What every format has in common: what the user adds, keys for names, ids, and the file the rows land in.

A format is one file of this folder that has NAME, ABOUT, GIVES, `sniff(document)` and `read(document, given)`; the
folder listing is the registry. `read` answers a `Sheet`: rows in the columns of IMPORTED as far as the file tells
them, already whole-deployment tokens/s, s and J, and a count of what was left out and why. Here the rest is settled:
an option stands in for what the file does not say, and never against it; a GPU or model no table knows keeps its
words and a blank key. Every record of the input is a row or is counted with its reason.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import config, results
from bench.architecture import Model
from bench.import_results import IMPORTED, IMPORTED_KERNELS, KERNELS_SUFFIX
from bench.importers import names
from bench.importers.document import Document, Refused

Row = dict[str, Any]
HERE = Path(__file__).resolve().parent
_COST = re.compile(r'"([^"]*(?:cost|usd|price)[^"]*)"\s*:\s*-?[0-9]', re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user says, because the file does not. `gpu` and `model` are keys."""

    gpu: str | None = None
    num_gpus: int | None = None
    model: str | None = None
    precision: str | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    workload: str | None = None
    software: str | None = None
    as_of: str | None = None
    source: str | None = None
    commit: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("gpu", config.keys(config.Gpu)),
            ("model", config.keys(Model)),
            ("precision", config.PRECISIONS),
        ):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise Refused(f"--{name}: expected one of {', '.join(allowed)}, got {value!r}")
        for name in ("num_gpus", "input_tokens", "output_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise Refused(f"--{name.replace('_', '-')}: expected a positive number, got {value}")


@dataclass
class Sheet:
    """What a format read: rows, or timings of kernels; and how many records were left out for which reason."""

    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    kernels: bool = False


@dataclass(frozen=True)
class Landed:
    """One file imported: where its rows stand and what to tell the user."""

    path: Path
    format: str
    rows: list[Row]
    left_out: Counter[str]
    remarks: list[str]


def formats() -> dict[str, ModuleType]:
    """Every format by name: the files of this folder that have a NAME."""
    stems = sorted(path.stem for path in HERE.glob("*.py") if "\nNAME = " in path.read_text(encoding="utf-8"))
    modules = [importlib.import_module(f"bench.importers.{stem}") for stem in stems]
    return {module.NAME: module for module in modules}


def land(path: Path, name: str | None, given: Given, folder: Path) -> Landed:
    """Read a file and write its rows into `folder`. Raises Refused, and then nothing is written."""
    document = Document.of(path)
    module = recognise(document, name)
    sheet: Sheet = module.read(document, given)
    if not sheet.rows:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(sheet.left_out.items()))
        raise Refused(f"{path}: nothing to import: {why or 'no results in it'}")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)[:60]
    base = f"{module.NAME}_{stem}_{document.sha256[:8]}"
    own = {"format": module.NAME, "file": path.name, "sha256": document.sha256}
    settle = _settled_kernel if sheet.kernels else _settled
    rows = [
        settle(row, given, f"{path}: {row.get('record') or row.get('name')}") | own | {"id": f"import:{base}/{number}"}
        for number, row in enumerate(sheet.rows, start=1)
    ]
    _complete(path, rows, ("as_of", "source") if sheet.kernels else ("n_gpus", "as_of", "source"))
    remarks = _remarks(document, rows)
    if not sheet.kernels:
        _one_name(path, rows, given)
        remarks += _unknown(rows)
    columns, suffix = (IMPORTED_KERNELS, KERNELS_SUFFIX) if sheet.kernels else (IMPORTED, ".csv")
    written = folder / f"{base}{suffix}"
    results.write(written, columns, [{key: row.get(key) for key in columns} for row in rows])
    return Landed(written, module.NAME, rows, sheet.left_out, remarks)


def recognise(document: Document, name: str | None) -> ModuleType:
    """The format a file has; `name` says which one to expect. Raises Refused, telling what was expected."""
    known = formats()
    if name is not None and name not in known:
        raise Refused(f"--format: expected one of {', '.join(known)}, got {name!r}")
    found = [module for key, module in known.items() if module.sniff(document) and name in (None, key)]
    if len(found) == 1:
        return found[0]
    start = document.text.strip()[:40].replace("\n", " ")
    if name is not None:
        raise Refused(f"{document.path}: not {name}: expected {known[name].ABOUT}; it starts with {start!r}")
    expected = "; ".join(f"{key} ({module.ABOUT})" for key, module in known.items())
    raise Refused(f"{document.path}: no known format; it starts with {start!r}; expected one of: {expected}")


def _settled(row: Mapping[str, Any], given: Given, where: str) -> Row:
    """The row with keys for its names and the user's words where the file has none."""
    gpu, gpu_note = names.gpu(row.get("gpu_name"))
    model, model_note = names.model(row.get("model_name"))
    made = {**row, "gpu": gpu, "model": model, "precision": names.precision(row.get("precision_name"))}
    for name, option in (
        ("gpu", "gpu"),
        ("model", "model"),
        ("precision", "precision"),
        ("n_gpus", "num_gpus"),
        ("input_tokens", "input_tokens"),
        ("output_tokens", "output_tokens"),
        ("as_of", "as_of"),
        ("source", "source"),
        ("software", "software"),
        ("commit", "commit"),
    ):
        made[name] = _either(made.get(name), getattr(given, option), f"{where}: {name}", option)
    made["workload"] = given.workload or row.get("workload")
    made["licence"] = given.licence
    notes = (row.get("note"), model_note, gpu_note if gpu else "")
    return made | {"note": "; ".join(note for note in notes if note) or None}


def _settled_kernel(row: Mapping[str, Any], given: Given, where: str) -> Row:
    made = {**row, "licence": given.licence}
    device = config.load(config.Gpu, given.gpu).name if given.gpu else None
    made["device_name"] = _either(row.get("device_name"), device, f"{where}: device_name", "gpu")
    for name in ("as_of", "source", "software", "commit"):
        made[name] = _either(row.get(name), getattr(given, name), f"{where}: {name}", name)
    return made


def _either(told: Any, said: Any, where: str, option: str) -> Any:
    """What the file tells, else what the user says; both must not differ."""
    if told is not None and said is not None and told != said:
        raise Refused(f"{where}: the file says {told}, --{option.replace('_', '-')} says {said}: leave the option out")
    return said if told is None else told


def _complete(path: Path, rows: Sequence[Row], needed: Sequence[str]) -> None:
    """Raises Refused where a row lacks what every row needs, naming all of it at once."""
    options = {"n_gpus": "num-gpus", "as_of": "as-of"}
    lacking = [name for name in needed if any(row.get(name) is None for row in rows)]
    for name in ("gpu", "model") if "n_gpus" in needed else ():
        lacking += [name] * any(row[name] is None and row.get(f"{name}_name") is None for row in rows)
    if lacking:
        wanted = ", ".join(f"--{options.get(name, name)}" for name in lacking)
        raise Refused(f"{path}: the file does not say {', '.join(lacking)}: give {wanted}")


def _one_name(path: Path, rows: Sequence[Row], given: Given) -> None:
    """An option stands for one unknown name, never for several. Raises Refused."""
    for name, lookup in (("gpu", names.gpu), ("model", names.model)):
        strange = {row.get(f"{name}_name") for row in rows if lookup(row.get(f"{name}_name"))[0] is None} - {None}
        if getattr(given, name) and len(strange) > 1:
            shown = ", ".join(sorted(map(str, strange))[:4])
            raise Refused(f"{path}: --{name} stands for one {name}, and the file names {len(strange)}: {shown}")


def _unknown(rows: Sequence[Row]) -> list[str]:
    """Lines about names without a key, and precisions nobody told."""
    lines = []
    for name in ("gpu", "model"):
        strange = Counter(row[f"{name}_name"] for row in rows if row[name] is None)
        lines += [
            f"no key for {name} {told!r}: {count} rows kept, never priced" for told, count in sorted(strange.items())
        ]
    blank = Counter(row.get("precision_name") for row in rows if row["precision"] is None)
    lines += [
        (f"no precision of ours for {told!r}" if told else "no precision told")
        + f": {count} rows kept, never in a claim; --precision says otherwise"
        for told, count in sorted(blank.items(), key=lambda item: item[0] or "")
    ]
    return lines


def _remarks(document: Document, rows: Sequence[Row]) -> list[str]:
    """What the user may not expect."""
    lines = []
    costs = sorted({found[:40] for found in _COST.findall(document.text)})
    if costs:
        lines.append(
            f"the file's own costs are not read ({', '.join(costs[:3])}): prices are those of configs/providers"
        )
    if any(row.get("commit") is None for row in rows):
        lines.append("no commit told: --commit says which version of the source this is")
    if any(row.get("licence") is None for row in rows):
        lines.append("no licence told: --licence says under which the figures may be passed on")
    return lines
