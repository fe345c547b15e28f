"""Break-even: how many tokens must be served for each token trained before serving costs more.

The FLOP identity says 3 (6·N FLOPs a trained token, 2·N a served one). Dollars differ from FLOPs by r, the cost of a
useful FLOP served over one trained, and by rho, R&D compute over the final run: D1 tips at 3 / r, D2 at 3·rho / r.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.report.material import Material, Rows, claim_id
from bench.report.numbers import BLANK, interval, number
from bench.report.page import Figure, Layout, Link, Row, Section, Table, Text, text
from bench.report.sources import few, row_links
from bench.report.theme import BLACK, BLUE, GREEN, PURPLE, VERMILION
from bench.report.words import definition, definition_text, phrase, prose

IDENTITY = 3.0  # 6·N·D_tr = 2·N·D_inf
HEADLINE = "headline r"  # the subject of the mixture of all pairs
EMPTY = "No break-even was computed: no trained and served rate of one model on one GPU."
MARKS = ((BLUE, "circle"), (VERMILION, "square"), (GREEN, "triangle-up"), (PURPLE, "diamond"))


def pairs(material: Material) -> dict[str, Rows]:
    """Break-even findings by what they are about, one a definition; the mixture the verdicts rest on leads."""
    found: dict[tuple[Any, ...], Rows] = {}
    for row in material.of_kind("break_even"):
        if row["p50"] is not None and row["basis"] != "modelled":
            found.setdefault((row["subject"], row["rests_on"]), []).append(row)
    labels: dict[str, Rows] = {}
    for (subject, _), rows in sorted(found.items(), key=lambda item: item[0][0] != HEADLINE):  # stable
        label = "All pairs together" if subject == HEADLINE else prose(subject)
        while label in labels:  # two pairs of the same name, served in different ways
            label += " (another)"
        labels[label] = rows
    return labels


def chart(material: Material, layout: Layout) -> Any:
    """Interval and median for each pair and definition, beside the identity, on a log axis."""
    import altair as alt

    wide = layout.width > 500
    values = [
        {
            "subject": lines(label, 2 if wide else 3),
            "definition": definition(row["definition"]),
            **{key: row[key] for key in ("p10", "p50", "p90")},
        }
        for label, rows in pairs(material).items()
        for row in rows
    ]
    found = [row for rows in pairs(material).values() for row in rows]
    used = list(dict.fromkeys(row["definition"] for row in found))
    marks = MARKS[: len(used)]
    scale = [definition(name) for name in used]
    extent = 235 if wide else 150

    def x(end: str) -> Any:
        axis = alt.X(f"{end}:Q", title="served tokens per trained token").scale(type="log")
        return axis.axis(format="~g", tickCount=6)

    y = alt.Y("subject:N", title=None, sort=[value["subject"] for value in values])
    y = y.axis(labelExpr="split(datum.label, '|')", labelFontSize=10, minExtent=extent, maxExtent=extent)
    base = alt.Chart().encode(
        y=y,
        yOffset=alt.YOffset("definition:N"),
        color=alt.Color("definition:N", title=None).scale(domain=scale, range=[m[0] for m in marks]),
    )
    bars = base.mark_rule(strokeWidth=2).encode(x=x("p10"), x2="p90:Q")
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=x("p50"),
        shape=alt.Shape("definition:N", title=None).scale(domain=scale, range=[m[1] for m in marks]),
        tooltip=["subject:N", "definition:N", *(alt.Tooltip(f"{e}:Q", format=".3g") for e in ("p10", "p50", "p90"))],
    )
    identity = alt.Data(values=[{"at": IDENTITY, "said": "FLOP identity: 3"}])
    line = alt.Chart(identity).mark_rule(strokeDash=[4, 3], color=BLACK).encode(x="at:Q")
    label = alt.Chart(identity).mark_text(align="left", dx=4, dy=-2, baseline="bottom", fontSize=10)
    label = label.encode(x="at:Q", y=alt.value(0), text="said:N")
    layers = alt.layer(bars, dots, line, label, data=alt.Data(values=values))
    return layers.properties(width=layout.width - extent, height=alt.Step(15 if wide else 20))


def lines(label: str, most: int) -> str:
    """A label broken for an axis by |: model and GPU, then precisions and traffic; on a phone the GPU apart too."""
    where, *rest = re.split(r", (?=\w+ trained)", label, maxsplit=1)
    parts = [*(where.split(" on ") if most > 2 else [where]), *rest]
    return "|".join(part for part in parts if part)


def table(material: Material) -> Table:
    """One row a pair, by workload class, a column a definition: where it tips, and the factor over the identity."""
    found = pairs(material)
    keys = list(dict.fromkeys(row["definition"] for rows in found.values() for row in rows))
    made = []
    for label, rows in sorted(found.items(), key=lambda item: item[1][0]["workload_class"] or ""):  # stable
        first, by = rows[0], {row["definition"]: row for row in rows}
        cells = [tips_at(by[key]) if key in by else BLANK for key in keys]
        rests = few(row_links(first["rests_on"], material), f"#{claim_id(first)}")
        where = f"{phrase(first['model'])} on {phrase(first['gpu'])}" if first["model"] else label
        sides = [first[name] or BLANK for name in ("workload_class", "precision_trained", "precision_served")]
        made.append(Row((where, *sides, *cells, added(first), first["basis"] or BLANK, rests or BLANK)))
    columns = ("model and GPU", "class", "trained", "served", *(f">{definition(key)} tips at" for key in keys))
    columns = (*columns, ">over the identity", "basis", "rests on")
    note = text("Over the identity: the first definition's median over 3: what measurement adds.")
    return Table(
        "Served tokens per trained token, median and 80% interval", columns, tuple(made), empty=EMPTY, note=note
    )


def added(row: Mapping[str, Any]) -> str:
    """Median over the identity."""
    return BLANK if row["over_identity"] is None else f"{number(row['over_identity'])} x {number(IDENTITY)}"


def modelled(material: Material) -> Table:
    """Pairs with a modelled side, a row a GPU and class: lowest to highest median over its models."""
    found: dict[tuple[str, str], dict[str, Rows]] = {}
    for row in material.of_kind("break_even"):
        if row["basis"] == "modelled" and row["p50"] is not None:
            where = found.setdefault((row["gpu"], row["workload_class"]), {})
            where.setdefault(row["definition"], []).append(row)
    keys = list(dict.fromkeys(key for by in found.values() for key in by))
    made = []
    for (gpu, traffic), by in found.items():
        ends = [sorted(row["p50"] for row in by[key]) if key in by else [] for key in keys]
        cells = [interval(one[0], one[-1], number) if one else BLANK for one in ends]
        first = sorted(row["over_identity"] for row in by[keys[0]]) if keys[0] in by else []
        over = interval(first[0], first[-1], number) if first else BLANK
        models = len({row["model"] for rows in by.values() for row in rows})
        made.append(Row((phrase(gpu), traffic, str(models), *cells, over)))
    columns = ("GPU", "class", ">models", *(f">{definition(key)} tips at" for key in keys), ">over the identity")
    return Table(
        "GPUs with a modelled side: lowest to highest median over the models",
        columns,
        tuple(made),
        empty="No pair has a modelled side.",
        note=text("No verdict rests on these. Each model, with interval and precision: claims.csv, kind break_even."),
    )


def tips_at(row: dict[str, Any]) -> Text:
    """Median and interval, leading to the finding."""
    link = Link(number(row["p50"]), f"#{claim_id(row)}")
    return text(link, f" ({interval(row['p10'], row['p90'], number)})")


def section(material: Material) -> Section:
    """The chart and the table."""
    found = pairs(material)
    keys = dict.fromkeys(row["definition"] for rows in found.values() for row in rows)
    figure = Figure(
        "break_even",
        "Served tokens per trained token at which serving costs more",
        "For each model and GPU, median and 80% interval under each definition, beside the FLOP identity of 3.",
        lambda layout: chart(material, layout),
    )
    means = [definition_text(row, material.files) for rows in [*found.values()][:1] for row in rows]
    said = "; ".join(f"{definition(key)}: {words}" for key, words in zip(keys, means, strict=False) if words)
    return Section(
        id="break-even",
        title="Break-even",
        text=(
            text(
                "Counting FLOPs, serving overtakes the final run at 3 served tokens per trained one. Counting dollars"
                " it tips where the cost of a useful FLOP served and trained puts it.",
                f" {said}." if said else "",
            ),
        ),
        figures=(figure,) if found else (),
        tables=(table(material), modelled(material)),
    )
