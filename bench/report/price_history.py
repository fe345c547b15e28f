"""What a GPU-hour has cost over time, and whether competition lowered it: the verdict of each period, a line a seller.

A line is one product of one seller in one region (configs/price_history.csv). Sellers are not averaged: their list
changes from month to month, and an average would move with it.
"""

from __future__ import annotations

from typing import Any

from bench.price.history import Change, name_of, series
from bench.report.first_screen import sentence_case
from bench.report.material import Material, Rows, address, claim_id, history_id
from bench.report.numbers import BLANK, chance, percent, usd
from bench.report.page import Figure, Layout, Link, Row, Section, Table, Text, text
from bench.report.theme import COLOURS, GREY, PALE, SHAPES
from bench.report.words import TERMS, phrase, statement

CLAIM = "competition_lowers_prices"
SHOWN = "h100_sxm_80gb"  # the GPU that most sellers have had for longest
PANELS = ("on_demand", "spot", "contract")
OTHERS = "others"


def chart(rows: Rows, layout: Layout) -> Any:
    """A panel a term, a line a seller; the longest known in colour with a shape, the rest in grey."""
    import altair as alt

    mine = [row for row in rows if row["gpu"] == SHOWN and row["term"] in PANELS]
    spans = {key: Change(*key, line[0], line[-1]).months for key, line in series(mine).items()}
    longest = sorted(spans, key=lambda key: (-spans[key], key))
    named = list(dict.fromkeys(name_of(provider) for provider, _, _ in longest))[: len(COLOURS)]
    values = [
        {
            "month": f"{row['month']}-15",  # mid-month: no time zone moves it into another
            "usd": row["usd_per_gpu_hour"],
            "seller": name_of(row["provider"]),
            "shown": name_of(row["provider"]) if name_of(row["provider"]) in named else OTHERS,
            "panel": TERMS[row["term"]],
        }
        for found in series(mine).values()
        for row in turns(found)
    ]
    domain = [*named, OTHERS]
    colours, shapes = ([*each[: len(named)], last] for each, last in ((COLOURS, GREY), (SHAPES, "circle")))
    low, high = min(v["usd"] for v in values) / 1.15, max(v["usd"] for v in values) * 1.15
    y = alt.Y("usd:Q", title="USD per GPU-hour").scale(type="log", domain=[low, high], nice=False)
    base = alt.Chart().encode(
        x=alt.X("month:T", title=None).axis(format="%b %Y", tickCount=5, labelAngle=0, gridColor=PALE),
        y=y.axis(format="$~g", values=[1, 2, 3, 5, 8, 12]),
        color=alt.Color("shown:N", title=None).scale(domain=domain, range=colours),
        detail="seller:N",
    )
    lines = base.mark_line(strokeWidth=1.5)
    dots = base.mark_point(filled=True, size=28, opacity=1).encode(
        shape=alt.Shape("shown:N", title=None).scale(domain=domain, range=shapes),
        tooltip=["seller:N", alt.Tooltip("month:T", format="%B %Y"), alt.Tooltip("usd:Q", format="$.2f")],
    )
    panels = [TERMS[term] for term in PANELS if any(row["term"] == term for row in mine)]
    columns = len(panels) if layout.columns > 1 else 1
    width = (layout.width - 60) // columns - 20
    facet = alt.Facet("panel:N", title=None, sort=panels)
    both = alt.layer(lines, dots).properties(width=width, height=260)
    return both.facet(data=alt.Data(values=values), facet=facet, columns=columns)


def turns(found: Rows) -> Rows:
    """A series without the months inside a stretch of one price: the same steps in fewer points."""
    usd_each = [row["usd_per_gpu_hour"] for row in found]
    ends = {0, len(found) - 1}
    return [
        r for i, r in enumerate(found) if i in ends or usd_each[i] != usd_each[i - 1] or usd_each[i] != usd_each[i + 1]
    ]


def table(rows: Rows) -> Table:
    """The series that are judged: first and last price, the change between them."""
    lines = [line(key, found) for key, found in sorted(series(rows).items(), key=lambda item: (item[0][1:], item[0]))]
    columns = ("seller", "an hour of", "term", "product", ">first", ">last", ">change", "source of the last")
    return Table("Prices over time, one product of one seller a line", columns, tuple(lines), empty="No history.")


def line(key: tuple[str, str, str], found: Rows) -> Row:
    """One series."""
    provider, gpu, term = key
    first, last = found[0], found[-1]
    told = [f"{usd(row['usd_per_gpu_hour'])} ({row['month']})" for row in (first, last)]
    moved = last["usd_per_gpu_hour"] / first["usd_per_gpu_hour"] - 1
    change = BLANK if len(found) == 1 else f"{'+' if moved > 0 else ''}{percent(moved)}"
    cells = (name_of(provider), phrase(gpu), TERMS[term], last["what"], *told, change, address(last["source"]))
    return Row(cells, id=history_id(f"{provider}/{gpu}/{term}"))


def judged_of(material: Material) -> Rows:
    """The history of every GPU that a claim has a period for."""
    gpus = {period.gpu for claim in material.files.values() for period in claim.period}
    return [row for row in material.history if row["gpu"] in gpus]


def judged(material: Material) -> tuple[Text, ...]:
    """The verdict of each period, linked to its finding."""
    claim = material.files.get(CLAIM)
    order = [period.name for period in claim.period] if claim else []
    rows = [row for row in material.of_kind("verdict") if row["claim"] == CLAIM and row["subject"] in order]
    return tuple(
        text(
            f"{sentence_case(statement(row, material.files))}: ",
            Link(f"{row['verdict']}, P {chance(row['probability'])}", f"#{claim_id(row)}"),
            f"; {row['note']}.",
        )
        for row in sorted(rows, key=lambda row: order.index(row["subject"]))
    )


def section(material: Material) -> Section:
    """The verdicts, the chart, every series."""
    rows = judged_of(material)
    drawn = any(row["gpu"] == SHOWN and row["term"] in PANELS for row in rows)
    figure = Figure(
        "price_history",
        f"USD per hour of an {phrase(SHOWN)}, by seller",
        "A panel for each term, a line for each seller on a logarithmic axis; list prices of the large clouds stand far"
        " above those of the others and hardly move.",
        lambda layout: chart(rows, layout),
    )
    more = len(series(material.history)) - len(series(rows))
    early = len({row["provider"] for row in rows if row["month"] < "2026" and row["term"] == "on_demand"})
    return Section(
        id="history",
        title="Prices over time",
        text=(
            text(
                "The articles say that competition can pressure prices. A price falls where the median change over"
                f" sellers is below zero in most resamplings of the sellers. Before 2026 only {early} are known here,"
                " all of them large: what smaller sellers asked then is not in these figures."
                f" configs/price_history.csv holds {more} series of other GPUs."
            ),
        ),
        bullets=judged(material),
        figures=(figure,) if drawn else (),
        tables=(table(rows),),
    )
