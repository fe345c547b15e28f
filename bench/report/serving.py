"""Serving: what each class of traffic reached under each load, what its tokens cost, against its goals.

Throughput and interactivity pull against each other, so a class has a frontier and no single number; what a token costs
depends on how much of the machine the load leaves idle. A class is quoted where it keeps its promises (SLO).
"""

from __future__ import annotations

from bench.report.material import Material, Rows
from bench.report.numbers import BLANK, count, interval, number, percent, scaled
from bench.report.page import Row, Section, Table, Text, text, trimmed
from bench.report.serving_cells import (
    KEPT,
    SATURATED,
    STEADY,
    VOID,
    Point,
    by_cell,
    by_series,
    key,
    linked,
    loaded,
    named,
    newest,
    on_gpu,
    states,
)
from bench.report.serving_charts import figures
from bench.report.serving_goals import find, goals, goals_table, summary
from bench.report.serving_money import bill_tables, factors_table, mix_tables, priced, scenario_table, use_table
from bench.report.words import phrase


def point_tables(points: Rows) -> list[Table]:
    """A table a series: every load point, void ones with the reason."""
    columns = ("traffic", "load", ">output tokens/s", ">a user", ">TTFT p50", ">TTFT p95", ">TPOT p50", ">TPOT p95")
    more = (">SLO kept", ">goodput, requests/s", ">prefill share", ">batch full", ">Little's ratio", "remarks")
    known = states(points)
    tables = []
    for mates in by_series(points).values():
        rows = tuple(point_row(point, known.get(key(point), "")) for point in mates)
        cpu = ", a tiny model: says nothing about GPUs" if mates[0]["device"] == "cpu" else ""
        tables.append(trimmed(Table(f"Load points: {named(mates[0])}{cpu}", (*columns, *more), rows)))
    return tables


def point_row(point: Point, state: str) -> Row:
    """One load point."""
    rate = point["output_tokens_per_s"]
    ends = interval(point["output_tokens_per_s_low"], point["output_tokens_per_s_high"], number)
    latencies = (f"{name}_{p}" for name in ("ttft_s", "tpot_s") for p in ("p50", "p95"))
    return Row(
        (
            linked(point),
            loaded(point),
            number(rate) + (f" ({ends})" if rate and ends != BLANK else ""),
            number(point["interactivity_tokens_per_s"]),
            *(scaled(point[name], "s") for name in latencies),
            percent(point["slo_attainment"]),
            number(point["goodput_requests_per_s"]),
            percent(point["prefill_share"]),
            percent(point["batch_occupancy"]),
            number(point["littles_law_ratio"]),
            remarks(point, state),
        ),
        tone={VOID: "void", KEPT: "holds"}.get(state, ""),
    )


def remarks(point: Point, state: str) -> str:
    """Why a point is void or to be read with care, and whether it is the one that counts."""
    parts = [f"void: {point['void']}"] if point["void"] else []
    parts += [state] if state in (KEPT, SATURATED) else []
    flags = [flag for flag in (point["flags"] or "").split("+") if flag and flag != state]
    parts += [flag.replace("_", " ") for flag in flags]
    parts += [f"search: {point['search']}"] if point["search"] else []
    parts += [f"failed: {point['failed_by_status'].replace('+', ', ')}"] if point["failed_by_status"] else []
    return "; ".join(parts) or BLANK


def class_tables(points: Rows, classes: Rows) -> list[Table]:
    """A table a mix: what each of its classes saw under each load."""
    columns = ("load", "class", ">requests", ">output tokens/s", ">TTFT p50", ">TTFT p95", ">TPOT p50", ">TPOT p95")
    tables = []
    for mates in by_cell(points).values():
        seen = {(key(row), row["traffic"]): row for row in classes if row["row"] == mates[0]["row"]}
        names = sorted({name for _, name in seen})
        rows = [
            class_row(point, seen[key(point), name]) for point in mates for name in names if (key(point), name) in seen
        ]
        if rows:
            title = f"{phrase(mates[0]['traffic'])} by class: {named(mates[0])}"
            tables.append(trimmed(Table(title, (*columns, ">SLO kept"), tuple(rows))))
    return tables


def class_row(point: Point, seen: Point) -> Row:
    """One class under one load."""
    latencies = (f"{name}_{p}" for name in ("ttft_s", "tpot_s") for p in ("p50", "p95"))
    return Row(
        (
            loaded(point),
            phrase(seen["traffic"]),
            count(seen["window_requests"]),
            number(seen["output_tokens_per_s"]),
            *(scaled(seen[name], "s") for name in latencies),
            percent(seen["slo_attainment"]),
        )
    )


def explained(points: Rows) -> tuple[Text, ...]:
    """How to read what follows; nothing where there is no point."""
    if not points:
        return ()
    known = states(points)
    steady = sum(state in (STEADY, KEPT, SATURATED) for state in known.values())
    return (
        text(
            f"{len(points)} load points, {steady} of them usable: a point without a steady window has no numbers, and"
            " one that breaks Little's law or whose client lagged is void. Closed loop keeps so many requests in"
            " flight; open loop sends at a rate, whatever comes back. SLO kept: the share of requests within the"
            " promised TTFT and TPOT."
        ),
        text(
            "A closed-loop point is billed at the fleet's utilisation; an open-loop point contains its idle time and is"
            " billed at 1, its load factor being the rate over the best one sustained. Input, cached input and output"
            " are parts of one bill; the whole bill over output tokens alone stands beside them. Cached input pays for"
            " look-up and for the memory that kept it."
        ),
    )


def section(material: Material) -> Section:
    """The frontier and the cost against load; goals, points, bills, requests and mixes, what is left out."""
    points = newest(material)
    costs = priced(material)
    lines = [find(goal, material) for goal in goals()]
    after = scenario_table(points, costs)
    mixed = mix_tables(points, costs)
    return Section(
        id="serving",
        title="Serving",
        text=((summary(lines, list(on_gpu(points))),), *explained(points)),
        figures=figures(material),
        tables=(
            goals_table(lines),
            *point_tables(points),
            *class_tables(points, material.classes),
            *bill_tables(points, costs),
            *mixed,
            *((use_table(),) if mixed else ()),
            factors_table(),
            *((after,) if after.rows else ()),
        ),
    )
