"""Cost per million tokens by provider and term, for one stated model and GPU.

    usd_per_million_tokens = usd_per_gpu_hour * n_gpus * 1e6 / (3600 * system_tokens_per_s * utilisation)

One throughput row under many prices: every point of a figure has the same rate, so only price and term differ. A panel
holds one level (retail, contract, owner): prices of different levels are never set side by side as if one could choose.
"""

from __future__ import annotations

import statistics
from typing import Any

from bench.report import idle
from bench.report.material import Material, Rows
from bench.report.numbers import BLANK, interval, number, usd
from bench.report.offers import SIDES, Shown, all_tokens, chosen, headline, offers
from bench.report.page import Figure, Layout, Link, Row, Section, Table, Text, text, trimmed
from bench.report.sources import dated, row_links
from bench.report.theme import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from bench.report.words import LEVELS, TERMS, phrase

ALL_TOKENS = "serving, tokens in and out"
PROXIES = {("azure", "owner"): "proxy: Stargate's machines with a hyperscaler's capital"}
MARKS = {
    "on_demand": (BLUE, "circle"),
    "spot": (VERMILION, "triangle-up"),
    "capacity_block": (SKY, "stroke"),
    "reserved_1y": (GREEN, "square"),
    "reserved_3y": (PURPLE, "diamond"),
    "contract": (ORANGE, "triangle-down"),
    "owned": (BLACK, "cross"),
}


def chart(rows: Rows, layout: Layout) -> Any:
    """A panel a level, a line a provider, a shape a term; the rule spans its regions."""
    import altair as alt

    found = offers(rows)
    terms = [term for term in MARKS if any(offer["term"] == term for offer in found)]
    said = [TERMS[term] for term in terms]
    low, high = min(o["low"] for o in found) / 1.25, max(o["high"] for o in found) * 1.25
    extent = 180 if layout.width > 500 else 110

    def x(end: str) -> Any:
        axis = alt.X(f"{end}:Q", title="USD per million tokens")
        axis = axis.scale(type="log", domain=[low, high], nice=False)
        return axis.axis(format="$~g", tickCount=6)

    parts = []
    for level in dict.fromkeys(offer["level"] for offer in found):
        values = [{**o, "term": TERMS[o["term"]], "said": usd(o["median"])} for o in found if o["level"] == level]
        y = alt.Y("provider:N", title=None, sort=list(dict.fromkeys(v["provider"] for v in values)))
        base = alt.Chart(alt.Data(values=values)).encode(
            y=y.axis(labelLimit=extent - 10, minExtent=extent, maxExtent=extent, grid=True),
            color=alt.Color("term:N", title=None).scale(domain=said, range=[MARKS[t][0] for t in terms]),
        )
        spans = base.mark_rule(strokeWidth=2, opacity=0.6).encode(x=x("low"), x2="high:Q")
        dots = base.mark_point(filled=True, size=75, opacity=1).encode(
            x=x("median"),
            shape=alt.Shape("term:N", title=None).scale(domain=said, range=[MARKS[t][1] for t in terms]),
            tooltip=["provider:N", "term:N", alt.Tooltip("said:N", title="median"), alt.Tooltip("regions:Q")],
        )
        title = f"{LEVELS[level][0].upper()}{LEVELS[level][1:]}"
        parts.append(alt.layer(spans, dots).properties(title=title, width=layout.width - extent, height=alt.Step(20)))
    return alt.vconcat(*parts, spacing=16)


def subject(side: str, rows: Rows, material: Material) -> Text:
    """Which throughput row the costs of one side stand on, in one sentence."""
    row = rows[0]
    bill = "the whole bill" if row["x_carries"] == "whole_bill" else "this phase's part of the bill"
    return text(
        f"{side.capitalize()}: {number(row['x_system_tokens_per_s'])} {phrase(row['x_token_kind'])} tokens/s on"
        f" {row['x_n_gpus']} {'GPU' if row['x_n_gpus'] == 1 else 'GPUs'}, {row['x_precision']}, {row['x_basis']}, at"
        f" utilisation {number(row['x_utilisation'], 2)}; its token price carries {bill} (row ",
        row_links(row["x_row"], material),
        "). ",
    )


def table(shown: Shown | None, material: Material) -> Table:
    """The numbers of one model and GPU: a row an offer, a column a side; the price of the hour leads to its source."""
    columns: dict[str, Rows] = {}
    notes = []
    for side in SIDES:
        rows = chosen(material.costs, side, shown)
        if rows:
            kind = phrase(rows[0]["x_token_kind"])
            columns[f"{side}, {kind} tokens" if kind != "trained" else side] = rows
            notes.append(subject(side, rows, material))
            if rows[0]["x_token_kind"] == "output" and (both := all_tokens(material.costs, rows)):
                columns[ALL_TOKENS] = both
    made = {name: {(o["level"], o["provider"], o["term"]): o for o in offers(rows)} for name, rows in columns.items()}
    lines = [
        offer_row({name: made[name].get(key) for name in columns})
        for key in dict.fromkeys(k for f in made.values() for k in f)
    ]
    heads = [f">{head}" for name in columns for head in (name, "instance paid whole")]
    named = f"{phrase(shown[0])} on {phrase(shown[1])}" if shown else "no GPU row"
    return trimmed(
        Table(
            f"USD per million tokens: {named}",
            ("provider", "term", "level", ">per GPU-hour", *heads, ">regions"),
            tuple(lines),
            empty="No GPU row could be priced.",
            note=text(*notes),
        )
    )


def offer_row(found: dict[str, dict[str, Any] | None]) -> Row:
    """One offer under each column; the first that has it says where its price is from."""
    first = next(offer for offer in found.values() if offer)
    cells = [cell for name, offer in found.items() for cell in costs_of(offer, brief=name == ALL_TOKENS)]
    price = Link(usd(first["hour"]), f"#{first['anchor']}")
    level = f"{first['level']}, projected" if first["level"] == "owner" else first["level"]
    if proxy := PROXIES.get((first["key"], first["level"])):
        level += f" ({proxy})"
    return Row((first["provider"], TERMS[first["term"]], level, price, *cells, f"{first['regions']}"))


def costs_of(offer: dict[str, Any] | None, brief: bool) -> tuple[str, str]:
    """Median with its range, and the instance paid whole where that is another figure; `brief`: the median alone."""
    if offer is None or brief:
        return (usd(offer["median"]) if offer else BLANK, BLANK)
    median, whole = usd(offer["median"]), usd(offer["whole"])
    if offer["whole"] is None:
        whole = f"{BLANK} (sizes differ)"
    span = f" ({interval(offer['low'], offer['high'], usd)})" if offer["low"] < offer["high"] else ""
    return median + span, whole if whole != median else BLANK


def cpu_table(material: Material) -> Table:
    """CPU hosts: the arithmetic on CPU instance prices, a line a cell; never beside a GPU."""
    groups: dict[tuple[str, str], Rows] = {}
    for row in material.costs:
        if row["x_illustrative"]:
            groups.setdefault((row["x_row"], row["x_token_kind"]), []).append(row)
    rows = []
    for (name, kind), found in groups.items():
        usd_each = [row["x_usd_per_million_tokens"] for row in found]
        hour = statistics.median(row["x_usd_per_gpu_hour"] for row in found)
        middle, span = statistics.median(usd_each), interval(min(usd_each), max(usd_each), usd)
        where = Link(usd(hour), "#prices")
        rows.append(Row((row_links(name, material), phrase(kind), f"{len(found)}", where, usd(middle), span)))
    columns = (
        "row",
        "tokens",
        ">offers",
        ">median per vCPU-hour",
        ">median USD per million tokens",
        ">range of offers",
    )
    return Table("CPU rows, illustrative: they show the arithmetic and enter no claim", columns, tuple(rows))


def section(material: Material) -> Section:
    """Two figures and their table, the owner's cost where another GPU has it, then the CPU rows."""
    shown, owned = headline(material.costs), headline(material.costs, "owner")
    sides = {side: rows for side in SIDES if (rows := chosen(material.costs, side, shown))}
    tables = [table(shown, material)]
    if owned and owned != shown and not any(r["x_level"] == "owner" for rows in sides.values() for r in rows):
        tables.append(table(owned, material))
    if split := idle.table(shown, material):
        tables.append(split)
    if any(row["x_illustrative"] for row in material.costs):
        tables.append(cpu_table(material))
    said = f"Shown: {phrase(shown[0])} on {phrase(shown[1])}" if shown else "No GPU row could be priced"
    return Section(
        id="cost",
        title="Cost per million tokens",
        text=(
            text(
                f"{said}; costs.csv holds every other row. Points are medians over a provider's regions, lines"
                " their range. Only prices of one level stand in one panel. On the same GPU at the same price, price"
                " cancels from the training-to-serving ratio."
            ),
            *((text(words),) if (words := dated(material)) else ()),
        ),
        figures=tuple(figure(side, rows) for side, rows in sides.items()),
        tables=tuple(tables),
    )


def figure(side: str, rows: Rows) -> Figure:
    """The figure of one side."""
    first = rows[0]
    kind = {"trained": "trained", "total": "tokens, input and output together"}.get(first["x_token_kind"])
    what = (
        "million tokens trained"
        if kind == "trained"
        else f"million {kind or phrase(first['x_token_kind']) + ' tokens'}"
    )
    return Figure(
        f"cost_{side}",
        f"USD per {what}: {phrase(first['x_model'])} on {phrase(first['x_gpu'])}",
        f"Cost of {side} by provider on a logarithmic axis, a panel for each price level and a shape for each term.",
        lambda layout: chart(rows, layout),
    )
