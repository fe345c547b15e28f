"""The goals of training (configs/training_goals.csv) against what one GPU reached.

A goal is held against backend triton on one GPU, in the newest run of each device that has it, at the largest part of
the model there is a value for: the whole, a fit over two depths, else the deepest slice, and the row says which. Ratios
are taken within that run. A cell of ours that failed misses its goals; one faster than the data sheet allows is void
and counts for nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config import CONFIGS
from bench.report.numbers import BLANK, number, percent_tenths
from bench.report.page import Row, Table, trimmed
from bench.report.training_cells import Cell, Cells, alike, depth, extent, is_slice, name, where
from bench.report.utilisation import Utilisation, step_s
from bench.report.words import phrase

OURS = "triton"
MEASURES = ("mfu_datasheet", "mfu_measured", "speed", "memory")
BACKENDS = ("compile", "reference")
NOT_MEASURED = "not measured"
FAILED = ("incorrect", "error", "crashed", "timeout", "oom")
Uses = Mapping[str, Utilisation]


@dataclass(frozen=True)
class Goal:
    """One line of configs/training_goals.csv. `memory` is met from below, all others from above."""

    workload: str
    model: str
    measure: str  # one of MEASURES
    against: str | None  # of speed and memory: a backend, best_peer, or another workload of ours
    goal: float
    stretch: float | None
    why: str

    def met(self, value: float) -> bool:
        """Whether the goal holds."""
        return value <= self.goal if self.measure == "memory" else value >= self.goal


@dataclass(frozen=True)
class Found:
    """What one goal came to on one device: a value and the cell behind it; a cell that failed; or nothing."""

    goal: Goal
    cell: Cell | None = None
    value: float | None = None

    @property
    def verdict(self) -> tuple[str, str]:
        """In words, and the row's tone."""
        if self.value is None:
            failed = self.cell is not None and self.cell["status"] in FAILED
            return (f"missed: {self.cell['status']}", "fails") if failed and self.cell else (NOT_MEASURED, "undecided")
        if self.goal.met(self.value):
            return "met", "holds"
        return f"missed by {abs(1 - self.value / self.goal.goal):.0%}", "fails"


def goals(path: Path | None = None) -> list[Goal]:
    """configs/training_goals.csv; none where it is absent."""
    path = path or CONFIGS / "training_goals.csv"
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            Goal(**{k: float(v) if v and k in ("goal", "stretch") else v or None for k, v in row.items()})  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]


def find(goal: Goal, cells: Cells, use: Uses) -> list[Found]:
    """The goal in the newest run of each device that has it; one blank where none does."""
    asked = (goal.workload, goal.model, OURS, "cuda", 1)
    columns = ("workload", "model", "backend", "device", "n_gpus")
    tried = [cell for cell in cells if cell["status"] in ("ok", *FAILED)]  # unavailable says nothing of a goal
    ours = [cell for cell in tried if tuple(cell[column] for column in columns) == asked]
    newest = {cell["device_name"]: cell["run"] for cell in sorted(ours, key=lambda cell: str(cell["run"]))}
    timed = {alike(cell): cell for cell in cells if step_s(cell) and use[name(cell)].mark != "void"}
    found = []
    for device, run in newest.items():
        here = [cell for cell in ours if (cell["device_name"], cell["run"]) == (device, run)]
        found.append(best(goal, sorted(here, key=extent, reverse=True), timed, use))
    return found or [Found(goal)]


def best(goal: Goal, ours: Cells, timed: Mapping[tuple[Any, ...], Cell], use: Uses) -> Found:
    """The goal at the largest part of the model it has a value at; else a cell of ours that failed; else nothing."""
    for cell in ours:
        value = value_of(goal, cell, timed, use) if timed.get(alike(cell)) is cell else None
        if value is not None:
            return Found(goal, cell, value)
    return Found(goal, next((cell for cell in ours if cell["status"] in FAILED), None))


def value_of(goal: Goal, cell: Cell, timed: Mapping[tuple[Any, ...], Cell], use: Uses) -> float | None:
    """The goal's quantity at one of our cells: a share, or ours over theirs in memory, theirs over ours in time."""
    if goal.measure in ("mfu_datasheet", "mfu_measured"):
        share: float | None = getattr(use[name(cell)], goal.measure).share
        return share
    column = "peak_memory_bytes" if goal.measure == "memory" else "step_s_last_third"
    ours, theirs = cell[column], least(goal, cell, timed, column)
    if not (ours and theirs):
        return None
    return float(ours / theirs if goal.measure == "memory" else theirs / ours)


def least(goal: Goal, cell: Cell, timed: Mapping[tuple[Any, ...], Cell], column: str) -> float | None:
    """What ours is held against in the same run: the best of the peers there, another backend, another workload."""
    if goal.against == "best_peer":
        mates = [c for c in timed.values() if alike(c, backend="") == alike(cell, backend="")]
        return min((c[column] for c in mates if c["backend"].startswith("peer:") and c[column]), default=None)
    differs = "backend" if goal.against in BACKENDS else "workload"
    other = timed.get(alike(cell, **{differs: goal.against}))
    return other[column] if other else None


def held_against(goal: Goal) -> str:
    """What a goal is about, as people say it."""
    shares = {"mfu_datasheet": "MFU, data sheet", "mfu_measured": "MFU, measured matmul peak"}
    others = {"best_peer": "the best peer", "compile": "torch.compile", "reference": "eager torch"}
    what = "peak memory" if goal.measure == "memory" else "speed"
    return shares.get(goal.measure) or f"{what} over {others.get(goal.against or '', str(goal.against))}"


def line(found: Found) -> Row:
    """One goal as a row of the page."""
    goal, cell = found.goal, found.cell
    shown = percent_tenths if goal.measure.startswith("mfu") else number
    least_or_most = "≤" if goal.measure == "memory" else "≥"
    verdict, tone = found.verdict
    return Row(
        (
            goal.workload,
            phrase(goal.model),
            held_against(goal),
            f"{least_or_most} {shown(goal.goal)}",
            shown(goal.stretch),
            shown(found.value),
            depth(cell) if cell and (found.value is not None or is_slice(cell)) else BLANK,
            where(cell) if cell else BLANK,
            verdict,
        ),
        tone=tone,
    )


def goals_table(lines: list[Found]) -> Table:
    """Every goal with what came of it."""
    columns = ("workload", "model", "held against", ">goal", ">stretch", ">reached", "at", "GPU", "verdict")
    return trimmed(Table("Goals of training", columns, tuple(line(found) for found in lines)))


def summary(lines: list[Found]) -> str:
    """How many goals were measured, and how many of them are met."""
    tried = [found for found in lines if found.cell is not None]
    open_ = len(lines) - len(tried)
    if not tried:
        return "No GPU has run the training workloads yet: every goal below stands unmeasured, and nothing is claimed."
    met = sum(found.value is not None and found.goal.met(found.value) for found in tried)
    return f"{met} of {len(tried)} goals measured are met; {open_} are not measured."
