"""What one load was, as whoever drove it saw it: its requests, how many were open when, and what else was told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from bench.points.steps import Step
from bench.traffic.records import Record


@dataclass
class Course:
    """One load point. Seconds since its start."""

    records: list[Record] = field(default_factory=list)
    # (when, requests sent and not ended), counted apart from the records: Little's law holds the two together
    in_flight: list[tuple[float, int]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)  # of an engine that tells them
    end_s: float = 0.0
    interrupted: bool = False  # by Ctrl-C: what was open is cut, and no further load is wanted
    max_num_seqs: int | None = None  # requests the engine runs at once, where it says
    joules: Callable[[float, float], float | None] = lambda start_s, end_s: None  # of the boards, between two instants
    board: dict[str, Any] = field(default_factory=dict)  # columns of the cell's row about the boards
    notes: list[str] = field(default_factory=list)  # what a reader should know, a line each
    beside: dict[str, Any] = field(default_factory=dict)  # columns of points.csv that no record shows


def counted(changes: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """(when, how many are in flight from then on), from (when, how many more)."""
    ordered = sorted(changes)
    return list(zip((at_s for at_s, _ in ordered), accumulate(by for _, by in ordered), strict=True))
