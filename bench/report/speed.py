"""How fast this project prices and answers, against configs/speed_goals.csv: figures of results/money_speed.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from bench.config import CONFIGS
from bench.report.material import Material, Rows
from bench.report.numbers import BLANK, count, number
from bench.report.page import Row, Section, Table, text
from bench.report.words import phrase

NOT_MEASURED = "not measured"
TONES = {"met": "holds", NOT_MEASURED: "undecided"}
UNITS = {"seconds": (1.0, "s"), "peak_bytes": (1e9, "GB")}


@dataclass(frozen=True)
class Goal:
    """One line of configs/speed_goals.csv: at most `most` of `measure` for a task of `size`."""

    task: str
    size: int
    measure: str
    most: float
    why: str


@dataclass(frozen=True)
class Held:
    """A goal and the last figure recorded of it."""

    goal: Goal
    row: dict[str, object] | None

    @property
    def value(self) -> float | None:
        return None if self.row is None else float(str(self.row[self.goal.measure]))

    @property
    def verdict(self) -> str:
        """met, missed by how much, or not measured."""
        if self.value is None:
            return NOT_MEASURED
        return "met" if self.value <= self.goal.most else f"missed by {self.value / self.goal.most - 1:.0%}"


def goals(path: Path | None = None) -> list[Goal]:
    """configs/speed_goals.csv."""
    with open(path or CONFIGS / "speed_goals.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [Goal(row["task"], int(row["size"]), row["measure"], float(row["most"]), row["why"]) for row in rows]


def held(rows: Rows) -> list[Held]:
    """Each goal with the newest figure at its task and size."""
    found = []
    for goal in goals():
        same = [row for row in rows if (row["task"], row["size"]) == (goal.task, goal.size)]
        found.append(Held(goal, same[-1] if same else None))
    return found


def section(material: Material) -> Section:
    """The goal table."""
    made = []
    for one in held(material.money_speed):
        scale, unit = UNITS[one.goal.measure]
        value = BLANK if one.value is None else f"{number(one.value / scale)} {unit}"
        when = str((one.row or {}).get("measured_at") or BLANK)[:10]
        where = f"{(one.row or {}).get('cpu_name')}, {(one.row or {}).get('cpu_count')} cores" if one.row else BLANK
        size = f"{count(one.goal.size)}: {one.goal.why}"
        most = f"{number(one.goal.most / scale)} {unit}"
        verdict = one.verdict
        cells = (phrase(one.goal.task), size, f"{value}", most, verdict, where, when)
        made.append(Row(cells, tone=TONES.get(verdict, "fails")))
    columns = ("task", "size", ">measured", ">at most", "verdict", "on", "measured")
    return Section(
        id="speed",
        title="How fast it answers",
        text=(
            text(
                "Pricing is timed into memory, without writing costs.csv; both are linear in their size"
                " (tests/perf/test_money_perf.py). Least of several repeats."
            ),
        ),
        tables=(Table("Speed of pricing and of the share claim", columns, tuple(made)),),
    )
