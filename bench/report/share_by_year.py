"""Serving's share of compute by year: a fan (80% band and median) for each definition of "training".

    share = serving / (serving + X);  overtakes above 1/2, dominates from 2/3

Definitions are small panels with one scale, because the point of the figure is that they disagree.
"""

from __future__ import annotations

from typing import Any

from bench.report.material import Material, Rows, claim_id
from bench.report.numbers import percent
from bench.report.page import Figure, Layout, Link, Row, Section, Table, text
from bench.report.theme import BLACK, BLUE
from bench.report.words import VIEWS, definition

LINES = (("1/2: overtakes", 0.5, [1, 0]), ("2/3: dominates", 2 / 3, [4, 3]))


def series(material: Material, view: str = "by purpose") -> dict[str, Rows]:
    """Share rows by definition, in one view; rows without a view belong to every view."""
    panels: dict[str, Rows] = {}
    for row in material.of_kind("share"):
        known = row["year"] is not None and row["p50"] is not None
        if known and (row["subject"] in (view, None) or row["subject"] not in VIEWS):
            panels.setdefault(definition(row["definition"]), []).append(row)
    return panels


def chart(material: Material, layout: Layout) -> Any:
    """Small multiples: band p10 to p90, median with points, the two thresholds as rules."""
    import altair as alt

    panels = series(material)
    values = [
        {"panel": name, **{key: row[key] for key in ("year", "p10", "p50", "p90")}}
        for name, rows in panels.items()
        for row in rows
    ]
    years = sorted({value["year"] for value in values})
    # Two panels a row up to four definitions, three beyond; one on a phone.
    columns = min(layout.columns + (layout.columns > 1 and len(panels) > 4), len(panels))
    width = (layout.width - 55) // columns - 20
    x = alt.X("year:Q", title=None).scale(domain=[years[0], years[-1]], nice=False)
    x = x.axis(format="d", values=years if layout.columns > 1 else years[::2], grid=False)

    def y(end: str) -> Any:
        axis = alt.Y(f"{end}:Q", title="serving's share").scale(domain=[0, 1])
        return axis.axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])

    band = alt.Chart().mark_area(color=BLUE, opacity=0.22).encode(x=x, y=y("p10"), y2="p90:Q")
    edges = [
        alt.Chart().mark_line(color=BLUE, strokeWidth=0.7, opacity=0.7).encode(x=x, y=y(end)) for end in ("p10", "p90")
    ]
    tips = ["year:Q", *(alt.Tooltip(f"{end}:Q", format=".0%") for end in ("p10", "p50", "p90"))]
    middle = alt.Chart().mark_line(color=BLUE, strokeWidth=2, point={"size": 36, "color": BLUE})
    middle = middle.encode(x=x, y=y("p50"), tooltip=tips)
    # One mark a panel, not one a row: forty rules on top of each other print as a black bar.
    each = alt.Chart().transform_aggregate(rows="count()", groupby=["panel"])
    rules = [
        each.mark_rule(color=BLACK, strokeWidth=1, strokeDash=dash).encode(y=alt.datum(at)) for _, at, dash in LINES
    ]
    labels = [
        each.mark_text(align="left", dx=4, dy=-6, fontSize=10).encode(
            x=alt.value(0), y=alt.datum(at), text=alt.value(said)
        )
        for said, at, _ in LINES
    ]
    fan = alt.layer(band, *edges, *rules, middle, *labels).properties(width=width, height=165)
    facet = alt.Facet("panel:N", title=None, sort=list(panels))
    return fan.facet(data=alt.Data(values=values), facet=facet, columns=columns)


def table(material: Material, view: str, title: str) -> Table:
    """The same numbers: median and 80% interval by year, one row a definition."""
    panels = series(material, view)
    years = sorted({row["year"] for rows in panels.values() for row in rows})
    rows = []
    for name, found in panels.items():
        by_year = {row["year"]: row for row in found}
        cells = [
            text(
                Link(percent(row["p50"]), f"#{claim_id(row)}"),
                f" ({percent(row['p10']).removesuffix('%')}–{percent(row['p90'])})",
            )
            if (row := by_year.get(year))
            else text("–")
            for year in years
        ]
        rows.append(Row((name, *cells)))
    columns = ("serving against", *(f">{year}" for year in years))
    return Table(title, columns, tuple(rows), empty="No share was drawn.")


def section(material: Material) -> Section:
    """The fan and its numbers."""
    figure = Figure(
        "share_by_year",
        "Serving's share of compute spend by year: median and 80% interval",
        "One panel for each definition of training; a band from the 10th to the 90th percentile, the median as a line,"
        " thresholds at one half and two thirds.",
        lambda layout: chart(material, layout),
    )
    tables = [table(material, "by purpose", "Median and 80% interval, by purpose: what the GPU-hour was paid for")]
    if any(row["subject"] == "by kernel type" for row in material.of_kind("share")):
        title = "The same by kernel type: the inference-type part of R&D (rollouts, synthetic data) counts as inference"
        tables.append(table(material, "by kernel type", title))
    return Section(
        id="share",
        title="Serving's share by year",
        text=(
            text(
                "share = serving ÷ (serving + training). The definitions differ in what counts as training; the claim"
                " is decided for each apart."
            ),
        ),
        figures=(figure,) if series(material) else (),
        tables=tuple(tables),
    )
