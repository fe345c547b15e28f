"""Launch parameters measured on a GPU: a small table beside the heuristics, never a search at run time.

A launcher states what its heuristic chose and under which key; where the table has a row for this GPU, kernel and
key, that row's parameters replace the heuristic's. Committed tables stand in `configs/tuning/`, one a GPU; the
user's own, written by `python -m bench tune`, in `results/local/tuning.csv`, and goes before them.
A row counts only under the triton it was measured with: another compiler may make it spill or not fit.
Where there is no GPU no table is read: tests and ahead-of-time compiles see the heuristics.
"""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("device_name", "triton", "kernel", "key", "change", "default_us", "tuned_us", "date")

Key = tuple[int | str, ...]
_trying: dict[str, Mapping[str, Any]] = {}
_asked: dict[str, Key] | None = None


def tuned(kernel: str, key: Key, default: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """`default` with the changes the table has for `kernel` ("op.kernel") at `key` on this GPU.

    Every launch asks here, so here it is refused where Triton would start it on another GPU than the tensors'.
    """
    if device.type == "cuda" and device.index is not None and device.index != (here := torch.cuda.current_device()):
        raise ValueError(f"{kernel}: tensors on {device}, the current device is cuda:{here}: use torch.cuda.device")
    if _asked is not None:
        _asked[kernel] = key
    change = _trying.get(kernel)
    if change is None and device.type == "cuda":
        change = _table(torch.cuda.get_device_name(device)).get((kernel, text_of(key)))
    return {**default, **change} if change else default


def text_of(key: Key) -> str:
    """A key as the table writes it: its parts joined by x."""
    return "x".join(str(part) for part in key)


@functools.cache
def _table(device_name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(kernel, key) -> change, for one GPU by its exact name; later files replace earlier ones."""
    committed = sorted((ROOT / "configs" / "tuning").glob("*.csv"))
    ours = {"device_name": device_name, "triton": triton.__version__}.items()
    found = rows_of(*committed, ROOT / "results" / "local" / "tuning.csv")
    return {(row["kernel"], row["key"]): json.loads(row["change"]) for _, row in found if ours <= row.items()}


def rows_of(*paths: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Each row of those tables that are there, with its file."""
    for path in filter(Path.is_file, paths):
        with path.open(newline="", encoding="utf-8") as handle:
            yield from ((path, row) for row in csv.DictReader(handle))


@contextmanager
def trying(kernel: str, change: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block `kernel` is launched with `change`, whatever the table says."""
    _trying[kernel] = change
    try:
        yield
    finally:
        del _trying[kernel]


@contextmanager
def asked() -> Iterator[dict[str, Key]]:
    """Inside the block, the kernels that asked for their parameters, and under which key each did last."""
    global _asked
    before, _asked = _asked, {}
    try:
        yield _asked
    finally:
        _asked = before
