"""What a measured cell's boards took for each token its rate counts, where NVML told it.

A step knows its own joules and tokens. A serving cell's rate is that of one load point, whose energy stands in
points.csv, over the same window.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import serving_results


def metered(run: Path, cell: Mapping[str, Any]) -> dict[str, Any]:
    """`energy_joules_per_token` and `energy_boundary` of a cell; both blank where nothing was metered."""
    joules = _of_point(run, cell) if cell["phase"] == "serve" else _of_step(cell)
    return {"energy_joules_per_token": joules, "energy_boundary": "gpu" if joules else None}


def _of_step(cell: Mapping[str, Any]) -> float | None:
    joules, tokens = cell["energy_joules_per_step"], cell["tokens_per_step"]
    return joules / tokens if joules and tokens else None


def _of_point(run: Path, cell: Mapping[str, Any]) -> float | None:
    column = f"energy_joules_per_{cell['token_kind']}_token"
    points = serving_results.read(run, "points") if cell["point"] else []
    point = next((p for p in points if (p["cell"], p["point"]) == (cell["cell"], cell["point"])), {})
    return point.get(column) or None
