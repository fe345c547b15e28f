"""Rates that `bench import` landed (results/imports/*.csv), as the rest of the house may use them.

Four things are settled here, over all files together, and said in one line a file:

- A figure of a later day than the derivation's was not known then.
- A row without a GPU key or a model key stays in its file and goes no further: nothing prices it.
- The same measurement twice is one. configs/published.csv is kept by hand and stands before an import of the same
  figure (phase, GPU, model, number of GPUs, kind of tokens and rate to 6 digits); of two imports the first does.
- A sweep is one deployment under many loads. Every load is priced, because a frontier needs them all; for a claim
  whoever pays runs the best one, so the others are flagged `below_best`. Loads of one sweep share everything but the
  load: format, source, model, GPU, precision, number of GPUs, software, workload, and lengths to 2 digits.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.import_results import KERNELS_SUFFIX, read_imported, read_imported_kernels
from bench.price.known import known
from bench.results import text
from bench.runs import tracked_runs

Row = dict[str, Any]
BELOW_BEST = "below_best"
_FIGURE = ("phase", "gpu", "model", "n_gpus", "token_kind")
_SWEEP = ("format", "model", "gpu", "n_gpus", "precision", "token_kind", "software", "workload", "source")


def landed(out: Path, tracked: bool) -> tuple[Path, ...]:
    """Files in out/imports; of the public derivation those git tracks (where there is no git, every one)."""
    folder = out / "imports"
    names = tracked_runs(folder) if tracked and folder.is_dir() else None
    return tuple(sorted(path for path in folder.glob("*.csv") if names is None or path.name in names))


def rates(paths: Iterable[Path]) -> list[Path]:
    """The files of rates among them; the others are timings of kernels."""
    return [path for path in paths if not path.name.endswith(KERNELS_SUFFIX)]


def facts(paths: Sequence[Path]) -> dict[str, list[Row]]:
    """Every row of them, as the report takes it: `imports` and `imported_kernels`. Raises ResultsError."""
    kernels = [path for path in paths if path not in rates(paths)]
    return {
        "imports": [row for path in rates(paths) for row in read_imported(path)],
        "imported_kernels": [row for path in kernels for row in read_imported_kernels(path)],
    }


def imported(
    paths: Sequence[Path],
    others: Iterable[Mapping[str, Any]],
    notes: list[str],
    as_of: datetime.date = datetime.date.max,
) -> list[Row]:
    """Rows of IMPORTED that may be priced; `others`: published ones, which stand before them. Raises ResultsError."""
    seen = {figure(row): str(row["id"]) for row in others}
    found: list[Row] = []
    for path in rates(paths):
        reasons: Counter[str] = Counter()
        for row in read_imported(path):
            reason = _reason(row, seen) if known(row["as_of"], as_of) else "of a later day"
            if reason:
                reasons[reason] += 1
            else:
                seen[figure(row)] = row["id"]
                found.append(row)
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        notes += [f"{path.name}: rows left out: {why}"] if why else []
    return _best_flagged(found)


def figure(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What two rows of one measurement share."""
    return (*(str(row[name]) for name in _FIGURE), text(row["system_tokens_per_s"]))


def _reason(row: Row, seen: Mapping[tuple[str, ...], str]) -> str | None:
    if not row["gpu"]:
        return "of a GPU without a key"
    if not row["model"]:
        return "of a model without a key"
    return "measured once, imported already or published" if figure(row) in seen else None


def _best_flagged(rows: list[Row]) -> list[Row]:
    """The rows, each serving load slower than its sweep's best flagged."""
    best: dict[tuple[Any, ...], float] = {}
    for row in rows:
        best[_sweep(row)] = max(best.get(_sweep(row), 0.0), row["system_tokens_per_s"])
    for row in rows:
        if row["phase"] != "train_step" and row["system_tokens_per_s"] < best[_sweep(row)]:
            row["flags"] = "+".join(filter(None, (row["flags"], BELOW_BEST)))
    return rows


def _sweep(row: Mapping[str, Any]) -> tuple[Any, ...]:
    lengths = (f"{row[name]:.1e}" if row[name] is not None else "" for name in ("input_tokens", "output_tokens"))
    source = row["source"] if row["format"] != "inferencex" else ""  # each of its loads has an address of its own
    return (*(row[name] for name in _SWEEP if name != "source"), source, *lengths)


def load_of(row: Mapping[str, Any]) -> str:
    """The load of a row in words: ", concurrency 64", ", rate 2/s"; blank where none is told."""
    if row["rate_per_s"]:
        return f", rate {text(row['rate_per_s'])}/s"
    return f", concurrency {text(row['concurrency'])}" if row["concurrency"] else ""
