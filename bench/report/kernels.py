"""The kernels against their goals: how near each op comes to the machine's limits and to the best public kernels.

Every ratio is taken within one run on one GPU, and a goal is held against the worst of its shapes. Where no GPU has
run them yet the goals stand with a blank beside them; what the compiler made of every kernel, known without a GPU,
stands below (results/kernels/aot_*.csv).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bench.config import CONFIGS
from bench.report.material import Material, Rows, address
from bench.report.numbers import BLANK, count, scaled
from bench.report.page import Row, Section, Table, trimmed

NOT_MEASURED = "not measured"
FAILED = ("incorrect", "error", "crashed", "timeout", "oom")


@dataclass(frozen=True)
class Goal:
    """One line of configs/kernel_goals.csv. `measure` `memory` is met from below, all others from above."""

    op: str
    part: str
    shapes: str
    measure: str
    goal: float | None
    stretch: float | None
    why: str

    def worse(self, value: float, other: float) -> bool:
        """Whether `value` is further from the goal than `other`."""
        return value > other if self.measure == "memory" else value < other

    def met(self, value: float) -> bool:
        """Whether the goal holds (the stretch, where there is no goal)."""
        bar = self.goal if self.goal is not None else self.stretch
        assert bar is not None
        return value <= bar if self.measure == "memory" else value >= bar


@dataclass(frozen=True)
class Found:
    """What one goal came to: its worst shape, or nothing."""

    goal: Goal
    value: float | None = None
    row: Mapping[str, Any] | None = None  # the Triton row behind the value


def goals(path: Path | None = None) -> list[Goal]:
    """configs/kernel_goals.csv; none where it is absent."""
    path = path or CONFIGS / "kernel_goals.csv"
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            Goal(**{k: (float(v) if v else None) if k in ("goal", "stretch") else v for k, v in row.items()})  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]


def value_of(measure: str, ours: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> float | None:
    """One goal's quantity at one shape. `others`: rows of the same run and shape by implementation."""

    def over(name: str, column: str = "time_s") -> float | None:
        theirs, mine = others.get(name, {}).get(column), ours.get(column)
        return theirs / mine if theirs and mine else None

    if measure in ("fraction_of_copy", "fraction_of_cublas", "flops_per_s"):
        return ours.get(measure)
    if measure == "memory":
        memory = over("reference", "peak_memory_bytes")
        return 1 / memory if memory else None
    if measure == "best_peer":
        speeds = [speed for name in others if name.startswith("peer:") and (speed := over(name)) is not None]
        return min(speeds, default=None)
    return over(measure)


def find(goal: Goal, rows: Rows) -> list[Found]:
    """The goal in the newest run of each GPU: its worst shape there, one where ours failed first of all.

    One blank where no GPU measured it.
    """
    matching = [row for row in rows if row["op"] == goal.op and row["part"] == goal.part]
    matching = [row for row in matching if fnmatch(str(row["shape"]), goal.shapes)]
    # run folders are named by their date
    newest = {row["device_name"]: row["run"] for row in sorted(matching, key=lambda row: str(row["run"]))}
    places: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in matching:
        if row["run"] == newest[row["device_name"]]:
            places.setdefault((row["device_name"], row["shape"]), {})[row["implementation"]] = row
    worst: dict[str, Found] = {}
    for (device, _), others in places.items():
        ours = others.get("triton")
        if ours and ours["status"] in FAILED:
            worst[device] = Found(goal, None, ours)
        elif ours and ours["status"] == "ok":
            timed = {name: row for name, row in others.items() if row["status"] == "ok"}
            value = value_of(goal.measure, ours, timed)
            known = worst.get(device)
            if value is not None and (known is None or (known.value is not None and goal.worse(value, known.value))):
                worst[device] = Found(goal, value, ours)
    return list(worst.values()) or [Found(goal)]


def line(found: Found) -> Row:
    """One goal as a row of the page."""
    goal, row = found.goal, found.row or {}
    if found.value is None:
        verdict, tone = (f"missed: {row['status']}", "fails") if row else (NOT_MEASURED, "undecided")
    elif goal.goal is None:
        verdict, tone = "stretch reached" if goal.met(found.value) else "stretch not reached", "undecided"
    else:
        met = goal.met(found.value)
        missed = f"missed by {abs(1 - found.value / goal.goal):.0%}"
        verdict, tone = ("met", "holds") if met else (missed, "fails")
    return Row(
        (
            goal.op,
            goal.part.replace("_", " + "),
            words(goal.measure),
            figure(goal.goal),
            figure(goal.stretch),
            figure(found.value),
            str(row.get("shape") or goal.shapes),
            str(row.get("device_name") or BLANK),
            str(row.get("bound") or BLANK),
            verdict,
        ),
        tone=tone,
    )


def figure(value: float | None) -> str:
    """A ratio with two digits behind the point, a rate in TFLOP/s."""
    if value is None:
        return BLANK
    return f"{value / 1e12:.0f} TFLOP/s" if value > 1e9 else f"{value:.2f}"


def words(measure: str) -> str:
    """What a goal is held against, as people say it."""
    fixed = {
        "fraction_of_copy": "share of the run's copy",
        "fraction_of_cublas": "share of cuBLAS",
        "flops_per_s": "rate",
        "memory": "peak memory over torch's",
        "reference": "speed over torch's own",
        "best_peer": "speed over the best peer",
    }
    return fixed.get(measure, f"speed over {measure.removeprefix('peer:')}")


def compiled_table(tables: Mapping[str, Rows]) -> Table:
    """One row a table of what the compiler made of the kernels, by architecture and Triton."""
    lines = []
    for name, rows in sorted(tables.items()):
        _, arch, version = name.split("_", 2)
        spills = [row for row in rows if int(row["spill_bytes"])]
        lines.append(
            Row(
                (
                    arch.replace("sm", "sm_"),
                    version,
                    count(len({(row["op"], row["kernel"]) for row in rows})),
                    count(len(rows)),
                    count(max(int(row["registers"]) for row in rows)),
                    count(max(int(row["shared_bytes"]) for row in rows)),
                    count(len(spills)),
                )
            )
        )
    columns = ("architecture", "Triton", ">kernels", ">specialisations", ">most registers a thread")
    return Table(
        "What the compiler makes of every kernel at the shapes of real models, found with no GPU",
        (*columns, ">most shared memory, bytes a program", ">specialisations that spill"),
        tuple(lines),
        empty="No table has been made: `make aot`.",
    )


def imported_table(rows: Rows) -> Table:
    """Timings of other people's kernels, as imported: no check, no ceiling of the same run, so no goal."""
    lines = [
        Row(
            (
                row["name"],
                row["parameters"] or BLANK,
                row["device_name"] or BLANK,
                scaled(row["time_s_median"], "s"),
                count(row["rounds"]) if row["rounds"] else BLANK,
                row["as_of"] or BLANK,
                address(row["source"]),
            )
        )
        for row in rows
    ]
    columns = ("benchmark", "parameters", "device", ">time of a call", ">rounds", ">as of", "source")
    return Table("Imported timings: measured by others, held against nothing", columns, tuple(lines))


def section(material: Material) -> Section:
    """Goals with what came, and the compiler's tables."""
    lines = [found for goal in goals() for found in find(goal, material.kernels)]
    held = [found for found in lines if found.goal.goal is not None]
    measured = [found for found in held if found.row is not None]
    met = sum(found.value is not None and found.goal.met(found.value) for found in measured)
    said = (
        f"{met} of {len(measured)} goals measured are met; {len(held) - len(measured)} are not measured."
        if measured
        else "No GPU has run the kernels yet: every goal below stands unmeasured, and nothing is claimed."
    )
    columns = ("op", "part", "held against", ">goal", ">stretch", ">worst", "at shape", "GPU", "bound", "verdict")
    return Section(
        id="kernels",
        title="Kernels against the roofline",
        text=(
            (said,),
            ("Ratios are taken within one run on one GPU: ours (backend triton) against its ceilings and peers.",),
        ),
        tables=(
            trimmed(Table("Goals of each op", columns, tuple(line(found) for found in lines))),
            compiled_table(material.compiled),
            *([imported_table(material.imported_kernels)] if material.imported_kernels else []),
        ),
    )
