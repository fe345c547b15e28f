"""The goals of serving (configs/serving_goals.csv) against what one H100 80 GB reached.

Steps (decode, prefill) are held against the ceilings of their own run: a share of the roofline is the larger of the
shares of its two lines. Serving goals take load points of the newest run; a void point counts for nothing. Verdicts are
those of the training goals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config import CONFIGS
from bench.price.serving_points import is_closed, usable
from bench.report.material import Material, Rows
from bench.report.numbers import number, percent_tenths
from bench.report.page import Row, Table, trimmed
from bench.report.training_cells import Cell, Cells, is_slice, name, shares, where
from bench.report.training_goals import FAILED, NOT_MEASURED, OURS, Found, Goal
from bench.report.training_goals import goals as read
from bench.report.utilisation import Utilisation, step_s
from bench.report.words import phrase

GPU = "h100_sxm_80gb"
STREAMS = 2000  # of the client's goal
CONCURRENCY = 64  # of the goals in output tokens a second
BELOW = ("host_share", "client_lag")
SHARES = ("mbu_measured", "mfu_measured", "roofline", *BELOW)
MEASURES = (*SHARES, "output_rate", "output_tokens_per_s")


@dataclass(frozen=True)
class ServingGoal(Goal):
    """One line of configs/serving_goals.csv. host_share and client_lag are met from below, all others from above."""

    def met(self, value: float) -> bool:
        return value <= self.goal if self.measure in BELOW else value >= self.goal


def goals(path: Path | None = None) -> list[ServingGoal]:
    """configs/serving_goals.csv; none where it is absent."""
    return [ServingGoal(**vars(goal)) for goal in read(path or CONFIGS / "serving_goals.csv")]


def find(goal: ServingGoal, material: Material) -> Found:
    """The goal in the newest run on an H100 that has it; the client's in what was last measured of it."""
    if goal.measure == "client_lag":
        held = [row for row in material.client_load if row["transport"] == "ours" and row["shards"] == 1]
        held = [row for row in held if row["streams"] > 0.98 * STREAMS and row["failed_by_status"] == "none"]
        return Found(goal, None, held[-1]["client_lag_ratio"] if held else None)
    asked = (goal.workload, goal.model, OURS, "cuda", GPU, 1)
    columns = ("workload", "model", "backend", "device", "gpu", "n_gpus")
    ours = [c for c in material.cells if tuple(c[column] for column in columns) == asked]
    ours = [c for c in ours if c["status"] in ("ok", *FAILED) and not is_slice(c)]
    if not ours:
        return Found(goal)
    cell = max(ours, key=lambda c: str(c["run"]))
    return Found(goal, cell, value_of(goal, cell, material))


def value_of(goal: ServingGoal, cell: Cell, material: Material) -> float | None:
    """The goal's quantity at one of our cells; None where the run does not show it."""
    if goal.measure in ("mbu_measured", "mfu_measured", "roofline"):
        return share_of(goal.measure, shares(material, [cell])[name(cell)]) if step_s(cell) else None
    points = points_of(cell, material.points)
    if goal.measure == "host_share":
        closed = [p for p in points if is_closed(p) and p["busy_share"] is not None]
        fullest = max(closed, key=lambda p: int(p["concurrency"]), default=None)
        return 1 - fullest["busy_share"] if fullest else None
    rate = rate_of(points)
    if goal.measure == "output_tokens_per_s" or rate is None:
        return rate
    mates = [c for c in material.cells if c["run"] == cell["run"] and c["backend"] == goal.against]
    mates = [c for c in mates if (c["workload"], c["model"]) == (cell["workload"], cell["model"])]
    theirs = rate_of(points_of(mates[0], material.points)) if mates else None
    return rate / theirs if theirs else None


def share_of(measure: str, use: Utilisation) -> float | None:
    """A share of a measured ceiling; None where the cell is void or a ceiling it needs was not measured."""
    if use.mark == "void":
        return None
    flops, moved = use.mfu_measured.share, use.mbu_measured.share
    if measure == "roofline":
        return None if flops is None or moved is None else max(flops, moved)
    return flops if measure == "mfu_measured" else moved


def points_of(cell: Cell, points: Rows) -> Rows:
    """The usable points of one cell."""
    return [point for point in points if point["row"] == name(cell) and usable(point)]


def rate_of(points: Rows) -> float | None:
    """Output tokens a second at the goals' concurrency."""
    found = [p["output_tokens_per_s"] for p in points if is_closed(p) and p["concurrency"] == CONCURRENCY]
    return found[0] if found else None


def held_against(goal: Goal) -> str:
    """What a goal is about, as people say it."""
    said: Mapping[str, str] = {
        "mbu_measured": "MBU, measured copy or read",
        "mfu_measured": "MFU, measured matmul peak",
        "roofline": "roofline, measured ceilings",
        "output_rate": f"output tokens/s at {CONCURRENCY} over transformers' continuous batching",
        "output_tokens_per_s": f"output tokens/s at {CONCURRENCY}, ML.ENERGY's vLLM",
        "host_share": "time no step ran, most requests at once",
        "client_lag": "load generator's lag, 2,000 streams a core",
    }
    return said[goal.measure]


def line(found: Found) -> Row:
    """One goal as a row of the page."""
    goal, cell = found.goal, found.cell
    show = percent_tenths if goal.measure in SHARES else number
    verdict, tone = found.verdict
    cells: tuple[Any, ...] = (
        goal.workload,
        phrase(goal.model),
        held_against(goal),
        f"{'≤' if goal.measure in BELOW else '≥'} {show(goal.goal)}",
        show(goal.stretch),
        show(found.value),
        where(cell) if cell else "a CPU" if found.value is not None else "–",
        goal.why,
        verdict,
    )
    return Row(cells, tone=tone)


def goals_table(lines: list[Found]) -> Table:
    """Every goal with what came of it."""
    columns = ("workload", "model", "held against", ">goal", ">stretch", ">reached", "GPU", "why", "verdict")
    return trimmed(Table("Goals of serving, on one H100 80 GB", columns, tuple(line(found) for found in lines)))


def summary(lines: list[Found], served: Cells) -> str:
    """How many goals were measured and met; that no GPU has served yet, where none has."""
    tried = [found for found in lines if found.verdict[0] != NOT_MEASURED]
    met = sum(found.value is not None and found.goal.met(found.value) for found in tried)
    goals_said = f"{met} of {len(tried)} goals measured are met; {len(lines) - len(tried)} are not measured."
    if served:
        return goals_said
    none = "No GPU has run the serving workloads yet: nothing is drawn, and nothing is claimed."
    return f"{none} {goals_said}" if tried else f"{none} Every goal stands unmeasured."
