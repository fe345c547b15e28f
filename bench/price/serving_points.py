"""Load points of serving as the money and the report read them: which cell each is of, and which of them stand.

A point is usable where it has a steady window and nothing makes it void; it keeps its promises where at least 95% of
its requests did. The best point of a cell is the one with the most output tokens a second among those that keep them
and whose queue did not rise.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench import runs, serving_results
from bench.config import CONFIGS, load_all
from bench.workload import Workload

Row = Mapping[str, Any]
Points = list[dict[str, Any]]
IDENTITY = ("run", "model", "workload", "backend", "precision", "device", "gpu", "device_name")


def load_points(run: Path) -> Points:
    """Every row of a run's points.csv with its cell's identity, `row` (<run>/<cell>) and `traffic`. ResultsError."""
    return [{**point, "traffic": traffic_of(point["workload"])} for point in _identified(run, "points")]


def load_classes(run: Path) -> Points:
    """Every row of a run's classes.csv, likewise, under the class's own `traffic`. Raises ResultsError."""
    return _identified(run, "classes")


def _identified(run: Path, table: str) -> Points:
    """The table's rows with their cells' identity; those of a cell that never got its row are left out."""
    rows = serving_results.read(run, table)
    cells = {cell["cell"]: cell for cell in runs.read_cells(run)} if rows else {}
    found = []
    for row in rows:
        if cell := cells.get(row["cell"]):
            own = {name: cell[name] for name in IDENTITY} | {"run": run.name, "row": f"{run.name}/{row['cell']}"}
            found.append({**row, **own})
    return found


@functools.cache
def traffic_of(workload: str) -> str:
    """The class of traffic a workload serves; a workload no file describes is one itself."""
    known = load_all(Workload).get(workload)
    if known and known.serving:
        return known.serving.traffic
    named = workload.removeprefix("serve_")
    return named if (CONFIGS / "traffic" / f"{named}.toml").is_file() else workload


def usable(point: Row) -> bool:
    """Whether its numbers may be used."""
    return bool(point["window_s"]) and not point["void"]


def is_closed(point: Row) -> bool:
    """Whether as many requests as given were kept in flight, rather than sent at a rate."""
    return point["rate_per_s"] is None


def is_saturated(point: Row) -> bool:
    """Whether its queue rose through the window."""
    return point["saturated"] == "True"


def keeps(point: Row) -> bool:
    """Whether its requests kept their promises."""
    return (point["slo_attainment"] or 0.0) >= serving_results.KEPT


def sustained_per_s(points: Iterable[Row]) -> float | None:
    """The most requests a second that any point of a cell completed with its queue not rising."""
    rates = [p["requests_per_s"] for p in points if usable(p) and not is_saturated(p) and p["requests_per_s"]]
    return max(rates, default=None)


def best(points: Iterable[Row]) -> Row | None:
    """The point of a cell that keeps its promises at the most output tokens a second; None where none does."""
    kept = [p for p in points if usable(p) and not is_saturated(p) and keeps(p) and p["output_tokens_per_s"]]
    return max(kept, key=lambda p: float(p["output_tokens_per_s"]), default=None)


def standing(points: Iterable[Row]) -> Row | None:
    """The point whose cost stands for the cell: keeping promises first, then closed loop, then the most tokens.

    Closed-loop points are all billed at the fleet's utilisation, so that costs of classes compare.
    """
    rated = [p for p in points if usable(p) and p["output_tokens_per_s"]]

    def rank(point: Row) -> tuple[bool, bool, bool, float]:
        promised = keeps(point) or point["slo_ttft_s"] is None
        return promised, not is_saturated(point), is_closed(point), point["output_tokens_per_s"]

    return max(rated, key=rank, default=None)
