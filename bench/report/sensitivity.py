"""Tornado: how far each parameter alone moves P(claim), held at its 10th and at its 90th percentile.

Only the leading statement is drawn, one panel a definition; every statement stands in the findings. A bar that crosses
a dashed line changes the verdict by itself. Which parameters move it most, Sobol indices say (movers.py); the bars add
in which direction, and how far in P.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.report import movers
from bench.report.first_screen import unit_of, verdicts
from bench.report.material import Material, Rows, claim_id
from bench.report.numbers import BLANK, chance, percent
from bench.report.page import Figure, Layout, Link, Row, Section, Table, Text, text
from bench.report.theme import BLACK, BLUE
from bench.report.words import definition, parts, phrase, prose, statement

ENDS = (("p10", "circle", "white"), ("p90", "circle", BLUE))  # of the parameter: open and filled
TOP = 6  # bars a panel: those below are too short to read
LIMITS = (0.1, 0.9)  # of the decision rule, where no claim file states them


def spread(row: Mapping[str, Any]) -> float:
    """How far the parameter moves the result."""
    return abs((row["p90"] or 0.0) - (row["p10"] or 0.0))


def leading(material: Material) -> Rows:
    """Sensitivity rows of the leading statement."""
    lead = next(iter(verdicts(material.claims, material.files)), None)
    return [
        row
        for row in material.of_kind("sensitivity")
        if lead and row["claim"] == lead["claim"] and parts(row["subject"])[0] in (lead["subject"], row["subject"])
    ]


def panels(material: Material) -> dict[str, Rows]:
    """Parameters by definition, the widest first; definitions in the order of the verdict table.

    Of the organisation the leading verdict is about, and of the industry; other firms' rows stand among the findings.
    """
    shown = verdicts(material.claims, material.files)
    about = {None, "industry", shown[0].get("organisation") if shown else None}
    found: dict[str, Rows] = {row["definition"]: [] for row in shown}
    for row in (row for row in leading(material) if row.get("organisation") in about):
        if row["unit"] == "probability" and row["p10"] is not None and row["p90"] is not None:
            found.setdefault(row["definition"], []).append(row)
    return {key: sorted(rows, key=spread, reverse=True)[:TOP] for key, rows in found.items() if rows}


def limits(material: Material) -> tuple[float, float]:
    """P at or below which the leading claim fails, and at or above which it holds."""
    claim = material.files.get(next(iter(leading(material)), {}).get("claim", ""))
    return (claim.decision.fails_at, claim.decision.holds_at) if claim else LIMITS


def chart(material: Material, layout: Layout) -> Any:
    """Bars around P as drawn, widest on top, one panel a definition; the decision's limits as dashed lines."""
    import altair as alt

    extent = 245 if layout.columns > 1 else 150
    width = layout.width // layout.columns - extent - 12
    grid = []
    for key, rows in panels(material).items():
        values = [{"name": named(r, material), **ends(r)} for r in rows]
        values = [{**value, "said": value["name"].replace("|", ": ")} for value in values]
        y = alt.Y("name:N", title=None, sort=[value["name"] for value in values])
        y = y.axis(
            labelExpr="split(datum.label, '|')",
            labelLimit=extent - 10,
            minExtent=extent,
            maxExtent=extent,
            labelFontSize=10,
        )
        x = alt.X("p10:Q", title="P(claim)").scale(domain=[0, 1]).axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])
        base = alt.Chart(alt.Data(values=values))
        tips = [
            alt.Tooltip("said:N", title="parameter, p10 to p90"),
            *(alt.Tooltip(f"{end}:Q", format=".0%") for end in ("p10", "p50", "p90")),
        ]
        bars = base.mark_bar(height=11, color=BLUE, opacity=0.75).encode(x=x, x2="p90:Q", y=y, tooltip=tips)
        ticks = base.mark_tick(color=BLACK, thickness=2, size=15).encode(x="p50:Q", y=y)
        once = alt.Chart(alt.Data(values=[{}]))
        rules = [
            once.mark_rule(strokeDash=[4, 3], color=BLACK, opacity=0.7).encode(x=alt.datum(at))
            for at in limits(material)
        ]
        tips_of = [
            base.mark_point(
                shape=shape, filled=True, fill=fill, stroke=BLUE, strokeWidth=1.5, size=45, opacity=1
            ).encode(x=f"{end}:Q", y=y)
            for end, shape, fill in ENDS
        ]
        panel = alt.layer(bars, *rules, ticks, *tips_of)
        grid.append(panel.properties(title=definition(key), width=width, height=alt.Step(28)))
    return alt.concat(*grid, columns=layout.columns, spacing=14)


def named(row: Mapping[str, Any], material: Material) -> str:
    """The parameter, and behind | its 10th and 90th percentile in its unit."""
    found = re.findall(r"at its p[19]0 \(([^)]*)\)", row["note"] or "")
    values = ["0" if abs(float(value)) < 1e-9 else value for value in found]  # a sampled zero is -1e-17
    name, unit = phrase(parts(row["subject"])[1] or row["subject"]), unit_of(row, material.files)
    return f"{name}|{' to '.join(values)} {unit.partition(',')[0]}".rstrip(" |")


def ends(row: Mapping[str, Any]) -> dict[str, Any]:
    """The three numbers of a row."""
    return {end: row[end] for end in ("p10", "p50", "p90")}


def section(material: Material) -> Section:
    """The tornado and the verdict at other limits."""
    found = panels(material)
    lead = next(iter(verdicts(material.claims, material.files)), None)
    about = statement(lead, material.files) if lead else ""
    fails_at, holds_at = limits(material)
    figure = Figure(
        "sensitivity",
        f"What moves P: {about}",
        "Horizontal bars, widest on top, one for each parameter, from P with the parameter at its 10th percentile"
        " (open circle) to P with it at its 90th (filled circle); dashed lines where the verdict changes.",
        lambda layout: chart(material, layout),
    )
    return Section(
        id="what-moves-it",
        title="Sensitivity",
        text=(
            text(
                "Each bar holds one parameter at its 10th percentile (open circle) and at its 90th (filled circle) and"
                " draws the rest; under its name stand both values and the unit. The claim"
                f" fails at P ≤ {percent(fails_at)} and holds at P ≥ {percent(holds_at)} (dashed); the black tick is P"
                " as drawn. Shown are the parameters of the three factors that move the verdict most."
            ),
            text(movers.SAID),
        ),
        figures=(figure,) if found else (),
        tables=(*movers.tables(material), other_limits(material)),
        after=(text("The numbers of the figure: ", Link("findings, sensitivity", "#findings"), "."),),
    )


def other_limits(material: Material) -> Table:
    """The leading verdicts at other thresholds of the share and of P: a row a definition, a column a limit."""
    rows = [row for row in leading(material) if row["unit"] != "probability"]
    limits = list(dict.fromkeys(prose(parts(row["subject"])[1]) for row in rows))
    found: dict[str, dict[str, Text]] = {}
    for row in rows:
        shown = text(f"{row['verdict'] or BLANK}, P ", Link(chance(row["probability"]), f"#{claim_id(row)}"))
        found.setdefault(definition(row["definition"]), {})[prose(parts(row["subject"])[1])] = shown
    made = tuple(Row((name, *(by.get(limit, (BLANK,)) for limit in limits))) for name, by in found.items())
    return Table("The verdict at other limits", ("training means", *limits), made, empty="No other limit was tried.")
