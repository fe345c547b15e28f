"""Load points as the report shows them: the newest run of each series, in order of load, with their marks in words.

A series is one model and backend on one kind of deployment; under each class of traffic it has a ladder of loads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from bench.price.serving_points import best, is_closed, is_saturated, usable
from bench.report.material import Material, Rows, row_id
from bench.report.numbers import count, number
from bench.report.page import Link
from bench.report.training_cells import where
from bench.report.words import phrase

Point = Mapping[str, Any]
NBSP = "\u00a0"  # a load is one word: it never breaks over two lines of a cell
SAME = ("device_name", "gpu", "n_gpus", "model", "precision", "backend")
# What a point is drawn and tabled as, gravest last.
KEPT, STEADY, SATURATED, VOID = "best within its SLO", "steady", "saturated", "void (hollow)"


def newest(material: Material) -> Rows:
    """The points of the newest run of each series and workload, GPUs first, by class of traffic, then by load."""
    last: dict[tuple[Any, ...], str] = {}
    for point in material.points:
        key = (*series(point), point["workload"])
        last[key] = max(last.get(key, ""), point["run"])
    found = [p for p in material.points if p["run"] == last[(*series(p), p["workload"])]]
    return sorted(found, key=lambda p: (p["device"] != "cuda", str(series(p)), p["traffic"], p["workload"], load(p)))


def series(point: Point) -> tuple[Any, ...]:
    """What points that compare share."""
    return tuple(point[name] for name in SAME)


def load(point: Point) -> tuple[bool, float]:
    """Closed-loop points by concurrency, then open-loop points by rate."""
    open_ = not is_closed(point)
    return open_, (point["rate_per_s"] if open_ else point["concurrency"]) or 0.0


def by_series(points: Iterable[Point]) -> dict[tuple[Any, ...], list[Point]]:
    """Points by series."""
    found: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        found.setdefault(series(point), []).append(point)
    return found


def by_cell(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by cell."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point["row"], []).append(point)
    return found


def states(points: Iterable[Point]) -> dict[tuple[str, str], str]:
    """What each point is drawn as, by cell and point; points without a steady window are left out."""
    found: dict[tuple[str, str], str] = {}
    for mates in by_cell(points).values():
        top = best(mates)
        for point in mates:
            if not point["window_s"]:
                continue
            state = STEADY if usable(point) else VOID
            state = SATURATED if state == STEADY and is_saturated(point) else state
            found[key(point)] = KEPT if point is top else state
    return found


def key(point: Point) -> tuple[str, str]:
    """A point's name: cell and load."""
    return point["row"], point["point"]


def named(point: Point) -> str:
    """Whose point: Llama-3.1-8B, bf16, triton on 1 × H100 SXM 80 GB."""
    *what, on = identity(point)
    return f"{', '.join(what)} on {on}"


def identity(point: Point) -> tuple[str, ...]:
    """Model, precision, backend and deployment in words."""
    precision = point["precision"] or "precision not told"
    return phrase(point["model"]), str(precision), str(point["backend"]), where(point)


def loaded(point: Point) -> str:
    """The load in words: 8 at once; 0.5/s. A trial of a search says so."""
    said = (
        f"{count(point['concurrency'])}{NBSP}at{NBSP}once" if is_closed(point) else f"{number(point['rate_per_s'])}/s"
    )
    return f"{said}, trial" if "trial=" in point["point"] else said


def linked(point: Point) -> Link:
    """The class of traffic, leading to the row of the point's cell."""
    return Link(phrase(point["traffic"]), f"#{row_id(point['row'])}")


def per_gpu(point: Point) -> float | None:
    """Output tokens a second and GPU."""
    rate = point["output_tokens_per_s"]
    return rate / (point["n_gpus"] or 1) if rate else None


def on_gpu(points: Iterable[Point]) -> list[Point]:
    """Points measured on a GPU: what is drawn, and what goals and claims may rest on."""
    return [point for point in points if point["device"] == "cuda"]


def decades(values: list[float]) -> list[float]:
    """Powers of ten around some values, and halves and fifths between them where they span fewer than two."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1.0, 2.0, 5.0) if high - low <= 2 else (1.0,)
    return [step * 10.0**n for n in range(low, high + 1) for step in steps if step * 10.0**n <= 10.0**high]
