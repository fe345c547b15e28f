"""The money of serving: each point's bill by kind of token, a request's cost by class and mix, and what is left out.

Rows are those of results/serving.csv (bench/price/serving_cost.py). A class is quoted at its standing point: the one
that keeps its promises, closed loop before open, at the most tokens a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench.price.serving_assumptions import Scenario, mixes, scenarios, uses
from bench.price.serving_points import keeps, standing
from bench.report.material import Material, Rows, address
from bench.report.numbers import BLANK, count, interval, number, percent, percent_tenths, usd
from bench.report.page import Cell, Link, Row, Table, text, trimmed
from bench.report.serving_cells import Point, by_cell, by_series, key, linked, loaded, named, on_gpu
from bench.report.words import phrase

Costs = Mapping[tuple[str, str, str], Mapping[str, Any]]
LEVELS = ("retail", "contract")


def priced(material: Material) -> Costs:
    """Rows of serving.csv by cell, point and level; a row without a price has level ""."""
    return {(row["row"], row["point"], row["level"] or ""): row for row in material.serving}


def of(costs: Costs, point: Point, level: str) -> Mapping[str, Any] | None:
    """The cost of a point at one level."""
    return costs.get((*key(point), level))


def dollars(costs: Costs, point: Point, level: str, column: str) -> float | None:
    """One figure of it."""
    row = of(costs, point, level)
    value: float | None = row[column] if row else None
    return value


def bill_tables(points: Rows, costs: Costs) -> list[Table]:
    """A table a series: who pays for the GPU's time, and what that makes of a million tokens of each kind."""
    columns = ("traffic", "load", ">uncached input", ">cached input", ">output", ">not explained", ">load factor")
    more = (">$/M input", ">$/M cached", ">$/M output", ">$/M output, whole bill")
    ends = (">the same, contract", ">1,000 requests", ">a user-month")
    tables = []
    for mates in by_series(points).values():
        rows = [bill_row(point, costs) for point in mates if bill_of(point, costs)]
        cpu = mates[0]["device"] == "cpu"
        paid = "an hour of all its vCPUs, which shows the arithmetic" if cpu else "a GPU-hour"
        hour = next((row["usd_per_hour"] for p in mates if (row := of(costs, p, "retail"))), None)
        price = ("Dollars at ", Link(usd(hour), "#prices"), f" for {paid}: the median retail price on demand.")
        caption = f"The bill by kind of token: {named(mates[0])}"
        note = text(
            "Shares of the time paid for. Not explained: busy time the fit of step times left, before parts are scaled"
            " to the bill. ",
            price if hour else "No price is known.",
        )
        if rows:
            tables.append(trimmed(Table(caption, (*columns, *more, *ends), tuple(rows), note=note)))
    return tables


def thousand(cost: float | None) -> float | None:
    """What a thousand of something cost."""
    return None if cost is None else 1000 * cost


def bill_of(point: Point, costs: Costs) -> Mapping[str, Any] | None:
    """The row of a point that its shares are taken from: retail, else contract, else without a price."""
    return next((row for level in (*LEVELS, "") if (row := of(costs, point, level))), None)


def bill_row(point: Point, costs: Costs) -> Row:
    """One point's bill."""
    row = bill_of(point, costs)
    assert row is not None

    def retail(column: str) -> str:
        return usd(dollars(costs, point, "retail", column))

    return Row(
        (
            linked(point),
            loaded(point),
            *(percent_tenths(row[f"{kind}_share"]) for kind in ("input", "cached_input", "output")),
            percent_tenths(row["residual"]),
            percent(row["load_factor"]),
            *(retail(f"usd_per_million_{kind}_tokens") for kind in ("input", "cached_input", "output")),
            retail("usd_per_million_output_tokens_whole"),
            usd(dollars(costs, point, "contract", "usd_per_million_output_tokens_whole")),
            usd(thousand(dollars(costs, point, "retail", "usd_per_request"))),
            retail("usd_per_user_month"),
        )
    )


def classes(points: Iterable[Point]) -> dict[str, Point]:
    """The standing point of each class of traffic of one series."""
    found = {}
    for mates in by_cell(points).values():
        if top := standing(mates):
            found[top["traffic"]] = top
    return found


def mix_tables(points: Rows, costs: Costs) -> list[Table]:
    """A table a series: what a request of each class costs, and the mean request of each mix."""
    known = mixes()
    heads = tuple(f">share of {phrase(name)}" for name in known)
    columns = ("requests of", "at", ">utilisation", ">1,000 requests", ">the same, contract", ">a user-month", *heads)
    tables = []
    for mates in by_series(points).values():
        stand = {name: p for name, p in classes(mates).items() if bill_of(p, costs)}
        rows = [class_row(name, point, costs, [mix.shares for mix in known.values()]) for name, point in stand.items()]
        at = {level: requests(stand, costs, level) for level in LEVELS}
        for mix in known.values():
            lacking = [phrase(traffic) for traffic in mix.shares if traffic not in at["retail"]]
            remark = f"no cost of {', '.join(lacking)}" if lacking else "weighted by shares of the requests"
            means = [usd(thousand(mix.mean(at[level]))) for level in LEVELS]
            rows.append(Row((f"mix {phrase(mix.key)}", remark, BLANK, *means, BLANK, *[BLANK] * len(known))))
        broken = any(point["slo_ttft_s"] and not keeps(point) for point in stand.values())
        note = "* No point kept its promises: the fastest steady one." if broken else ""
        cpu = " A tiny model on a CPU: it says nothing about a GPU's cost." if mates[0]["device"] == "cpu" else ""
        if stand:
            caption = f"What a request costs: {named(mates[0])}"
            tables.append(trimmed(Table(caption, columns, tuple(rows), note=text((note + cpu).strip()))))
    return tables


def requests(stand: Mapping[str, Point], costs: Costs, level: str) -> dict[str, float]:
    """USD a request by class, those that have a price."""
    each = {name: dollars(costs, point, level, "usd_per_request") for name, point in stand.items()}
    return {name: cost for name, cost in each.items() if cost is not None}


def class_row(name: str, point: Point, costs: Costs, shares: list[dict[str, float]]) -> Row:
    """One class at its standing point, with its share of each mix."""
    broken = point["slo_ttft_s"] and not keeps(point)
    row = bill_of(point, costs) or {}
    return Row(
        (
            linked(point),
            loaded(point) + (" *" if broken else ""),
            percent(row.get("utilisation")),
            *(usd(thousand(dollars(costs, point, level, "usd_per_request"))) for level in LEVELS),
            usd(dollars(costs, point, "retail", "usd_per_user_month")),
            *(percent(share.get(name)) for share in shares),
        )
    )


def use_table() -> Table:
    """How many requests a user-month holds."""
    rows = [Row((phrase(use.traffic), count(use.requests_per_month), sourced(use.source))) for use in uses().values()]
    return Table("Requests a user makes in a month", ("traffic", ">requests", "where from"), tuple(rows))


def sourced(source: str) -> Cell:
    """Words with the address in them, if there is one, as a link."""
    before, found, rest = source.partition("https://")
    if not found:
        return source
    place = rest.split(" ")[0].rstrip(");,")
    return text(before, address(f"https://{place}"), rest.removeprefix(place))


def factors_table() -> Table:
    """The published factors behind the scenarios, a row each."""
    rows = [
        Row(
            (
                phrase(scenario.key) if end == "low" else "",
                end,
                number(figure.factor),
                figure.said,
                address(figure.source),
                figure.seen.isoformat(),
            )
        )
        for scenario in scenarios()
        for end, figure in scenario.figures.items()
    ]
    notes = [f"{phrase(one.key).capitalize()}: {one.note}." for one in scenarios()]
    columns = ("left out", "end", ">throughput, with / without", "what was measured", "source", ">read")
    return Table("Left out here, and what others publish about it", columns, tuple(rows), note=(" ".join(notes),))


def scenario_table(points: Rows, costs: Costs) -> Table:
    """USD per million output tokens, whole bill, of each class on GPUs: now, and after each scenario's factor."""
    rows = []
    for mates in by_series(on_gpu(points)).values():
        for name, point in classes(mates).items():
            cost = dollars(costs, point, "retail", "usd_per_million_output_tokens_whole")
            if cost is None:
                continue
            part = dollars(costs, point, "retail", "output_share")
            after = [cost_after(scenario, cost, part) for scenario in scenarios()]
            rows.append(Row((linked(point), named(point), loaded(point), usd(cost), *after)))
            assert name == point["traffic"]
    heads = tuple(f">with {phrase(scenario.key)}" for scenario in scenarios())
    return Table(
        "USD per million output tokens if it were built: estimates",
        ("traffic", "on", "at", ">now, whole bill", *heads),
        tuple(rows),
        note=(
            "Median retail price. Value, and range from the high factor to the low one. Each alone: nobody publishes"
            " both together on one load.",
        ),
    )


def cost_after(scenario: Scenario, cost: float, output_share: float | None) -> str:
    """A cost under a scenario, with its range."""
    made = {end: scenario.cost_after(cost, output_share, f.factor) for end, f in scenario.figures.items()}
    if made["value"] is None:
        return BLANK
    return f"{usd(made['value'])} ({interval(made['high'], made['low'], usd)})"
