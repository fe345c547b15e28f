"""Modelled GPUs: how wrong the model is about a GPU it has not seen, and what it says of cells nobody measured.

Reads results/accuracy.csv's rows (bench/modelled/accuracy.py) and the modelled rows of the throughput table. Every
modelled number stands beside the error of such numbers for a GPU left out; none of them enters a claim.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.modelled.accuracy import GOAL
from bench.report.material import Material, Rows
from bench.report.numbers import BLANK, count, interval, number, percent_tenths
from bench.report.page import Figure, Layout, Row, Section, Table, Text, text
from bench.report.roofline import PHASES, decades
from bench.report.theme import GREY
from bench.report.words import phrase

EMPTY = "No accuracy was computed: this report was made without the model."
ORDER = ("train_step", "serve", "prefill", "decode")
# DeepSeek's day (deepseek-ai/open-infra-index, day 6): tokens computed in prefill, decoded, and mean nodes of 8 GPUs.
DAY, NODES = {"prefill": 608e9 - 342e9, "decode": 168e9}, 226.75
NODE, SECONDS = 8, 86400.0


def errors(rows: Rows) -> tuple[float, float] | None:
    """Median and 90th percentile of the absolute errors, or None."""
    sizes = [abs(row["error"]) for row in rows]
    return (float(np.median(sizes)), float(np.quantile(sizes, 0.9))) if sizes else None


def goal(found: tuple[float, float]) -> str:
    """met, or by how much it was missed."""
    missed = [
        f"{name} by {100 * (value - GOAL[name]):.1f} points"
        for name, value in zip(("median", "p90"), found, strict=True)
        if value > GOAL[name]
    ]
    return f"missed: {', '.join(missed)}" if missed else "met"


def error_row(name: str, rows: Rows, judged: bool = True) -> list[Row]:
    """One line of the accuracy table, or none."""
    found = errors(rows)
    if found is None:
        return []
    verdict = goal(found) if judged else BLANK
    return [Row((name, count(len(rows)), percent_tenths(found[0]), percent_tenths(found[1]), verdict))]


def accuracy_table(material: Material) -> Table:
    """By phase, by GPU, by what the row was for."""
    node = [row for row in material.accuracy if row["tier"] == "node"]
    rows = error_row("one node, every phase", node)
    for phase in ORDER:
        rows += error_row(f"one node, {phrase(phase)}", [row for row in node if row["phase"] == phase])
    for key in sorted({row["gpu"] for row in node}):
        rows += error_row(f"one node, {phrase(key)}", [row for row in node if row["gpu"] == key])
    rows += error_row("one node, checked and never fitted", [row for row in node if row["use"] == "check"])
    rows += error_row("training on several nodes", [r for r in material.accuracy if r["tier"] == "cluster"], False)
    columns = ("published points of a GPU left out", ">points", ">median error", ">p90 error", "goal")
    note = text(
        f"Absolute error of the rate; goal on one node: median {GOAL['median']:.0%}, p90 {GOAL['p90']:.0%}. All rows of"
        " a GPU leave the fit before its points are predicted. A GPU whose generation has no other row takes the"
        " efficiencies of the nearest older generation, else of the nearest newer (accuracy.csv: stands_on)."
    )
    return Table("Accuracy on GPUs left out", columns, tuple(rows), empty=EMPTY, note=note, id="accuracy")


def fleet_table(material: Material) -> Table:
    """Production and many-node points: within 30% or not."""
    rows = tuple(
        Row(
            (
                phrase(row["row"].removeprefix("point:fleet_")),
                f"{count(row['n_gpus'])} × {phrase(row['gpu'])}",
                number(row["published_tokens_per_s"] / row["n_gpus"]),
                number(row["left_out_tokens_per_s"] / row["n_gpus"]),
                f"{100 * row['error']:+.0f}%",
                "yes" if abs(row["error"]) <= GOAL["fleet"] else "no",
            )
        )
        for row in material.accuracy
        if row["tier"] == "fleet"
    )
    columns = ("fleet", "GPUs", ">published tokens/s a GPU", ">modelled", ">error", f"within {GOAL['fleet']:.0%}")
    return Table("Fleets: DeepSeek's serving, and SGLang's on 96 H100", columns, rows, empty=EMPTY, note=day(material))


def day(material: Material) -> Text:
    """DeepSeek's day: the nodes that its tokens would keep busy at the modelled rates, beside those it had."""
    by = {row["row"]: row["left_out_tokens_per_s"] / row["n_gpus"] * NODE for row in material.accuracy}
    rates = [by.get(f"point:fleet_deepseek_{phase}") for phase in DAY]
    if None in rates:
        return ()
    nodes = [tokens / SECONDS / (rate or 1.0) for tokens, rate in zip(DAY.values(), rates, strict=True)]
    return text(
        f"DeepSeek's day of 27 February 2025: {sum(nodes):.0f} nodes modelled ({nodes[0]:.0f} in prefill,"
        f" {nodes[1]:.0f} in decode), {NODES:g} published: {100 * (sum(nodes) / NODES - 1):+.0f}%."
    )


def hours_table(material: Material) -> Table:
    """GPU-hours of model cards over the hours their training steps would take."""
    rows = tuple(
        Row(
            (
                phrase(row["model"]),
                phrase(row["gpu"]),
                number(row["published_tokens_per_s"] / row["n_gpus"]),
                number(row["left_out_tokens_per_s"] / row["n_gpus"]),
                f"{row['overhead']:.2f}",
            )
        )
        for row in material.accuracy
        if row["tier"] == "hours"
    )
    columns = ("model card", "GPU", ">tokens/s a GPU by its hours", ">of a step, modelled", ">overhead factor")
    note = text(
        "Overhead factor: published GPU-hours over those of the training steps alone. Restarts, evaluation, further"
        " stages and other runs are in a card's hours; below 1 the model is too slow there."
    )
    return Table("GPU-hours of model cards", columns, rows, empty=EMPTY, note=note)


def rates_table(material: Material) -> Table:
    """Modelled rates, a row a GPU and model: both phases with their intervals."""
    by: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in material.throughput:
        if row["basis"] == "modelled":
            by.setdefault((row["gpu"], row["model"]), {})[row["phase"]] = row
    rows = tuple(
        Row(
            (
                phrase(gpu),
                phrase(model),
                *(cell for phase in ("train_step", "serve") for cell in rate(found.get(phase))),
            )
        )
        for (gpu, model), found in sorted(by.items())
    )
    columns = (
        *("GPU", "model", ">trained tokens/s a GPU", ">95% interval", "on", ">error"),
        *(">output tokens/s a GPU", ">95% interval", "on", ">error"),
    )
    note = text(
        "Only cells that no measured or imported row has. Trained: sequences of 8,192. Output: at the maximum load,"
        " 1,000 tokens in and 1,000 out, with the vendor's own software. Error: median, and 90th percentile, of such"
        " rates for a GPU left out; of a generation left out where marked †. The rates are priced in costs.csv."
    )
    return Table("Modelled rates", columns, rows, empty="No cell is modelled.", note=note, id="modelled-rates")


def rate(row: Mapping[str, Any] | None) -> tuple[str, str, str, str]:
    """Rate a GPU, its interval, precision and number of GPUs, and the error of such rates."""
    if row is None:
        return (BLANK,) * 4
    each = row["n_gpus"]
    error = re.search(r"error (\S+), p90 (\S+)", row["workload"] or "")
    mark = " †" if "unseen_generation" in (row["flags"] or "") else ""
    return (
        number(row["system_tokens_per_s"] / each),
        interval(row["low"] / each, row["high"] / each, number),
        f"{count(each)}, {row['precision']}",
        f"{error[1]} ({error[2]}){mark}" if error else BLANK,
    )


def numbers_table(material: Material) -> Table:
    """The fitted efficiencies."""
    rows = tuple(Row((name, number(value))) for name, value in sorted(material.efficiencies.items()))
    return Table(
        "What was fitted",
        ("number", ">value"),
        rows,
        empty=EMPTY,
        note=text("bench/modelled/roofline.py says of what."),
    )


def chart(material: Material, layout: Layout) -> Any:
    """Left-out predictions over published rates, both a GPU and logarithmic; the lines are equality and ±25%."""
    import altair as alt

    points = [row for row in material.accuracy if row["tier"] in ("node", "cluster", "fleet")]
    values = [
        {
            "row": row["row"],
            "what": f"{phrase(row['model'])} on {phrase(row['gpu'])}",
            "phase": phrase(row["phase"]),
            "published": row["published_tokens_per_s"] / row["n_gpus"],
            "modelled": row["left_out_tokens_per_s"] / row["n_gpus"],
            "error": row["error"],
        }
        for row in points
    ]
    ends = decades([value[key] for value in values for key in ("published", "modelled")])
    phases = [phase for phase in PHASES if any(row["phase"] == phase for row in points)]
    edge = alt.Scale(type="log", domain=[ends[0], ends[-1]], nice=False)
    axis = alt.Axis(format="~s", values=ends)
    lines = [
        {"x": end, "y": end * factor, "line": said}
        for said, factor in (("equal", 1.0), ("25% off", 1.25), ("25% below", 0.75))
        for end in (ends[0], ends[-1])
    ]
    said = alt.StrokeDash("line:N", legend=None).scale(
        domain=["equal", "25% off", "25% below"], range=[[1, 0], [4, 3], [4, 3]]
    )
    guide = alt.Chart(alt.Data(values=lines)).mark_line(color=GREY, strokeWidth=1, clip=True)
    guide = guide.encode(x=alt.X("x:Q", axis=axis, scale=edge), y=alt.Y("y:Q", axis=axis, scale=edge), strokeDash=said)
    dots = alt.Chart(alt.Data(values=values)).mark_point(filled=True, size=45, opacity=0.75, clip=True)
    domain, looks = [phrase(phase) for phase in phases], [PHASES[phase] for phase in phases]
    dots = dots.encode(
        x=alt.X("published:Q", title="published tokens/s a GPU", axis=axis, scale=edge),
        y=alt.Y("modelled:Q", title="modelled, this GPU left out", axis=axis, scale=edge),
        color=alt.Color("phase:N", title=None).scale(domain=domain, range=[look[0] for look in looks]),
        shape=alt.Shape("phase:N", title=None).scale(domain=domain, range=[look[1] for look in looks]),
        tooltip=["row:N", "what:N", alt.Tooltip("error:Q", format="+.0%")],
    )
    size = min(520, layout.width - 70)
    return alt.layer(guide, dots).properties(width=size, height=size)


def said(material: Material) -> tuple[Text, ...]:
    """What the model is, how wrong it was, and what it is not used for."""
    made = [row for row in material.throughput if row["basis"] == "modelled"]
    node = [row for row in material.accuracy if row["tier"] == "node"]
    parts = []
    for phase, name in (("train_step", "training"), ("serve", "serving")):
        found = errors([row for row in node if row["phase"] == phase])
        parts += [f"{name} {percent_tenths(found[0])} (p90 {percent_tenths(found[1])})"] if found else []
    if not parts:
        return (text(EMPTY),)
    checked = errors([row for row in node if row["use"] == "check"])
    flatters = " The model's form was settled while looking at these errors, which flatters them" + (
        f"; points that only check it are {percent_tenths(checked[0])} off (p90 {percent_tenths(checked[1])})."
        if checked
        else "."
    )
    return (
        text(
            "A roofline by kernel class with one efficiency for each kernel class, precision and GPU generation, fitted"
            f" on published rates, fills {count(len(made))} cells nobody measured. On one node its median error about a"
            f" GPU left out of the fit is {', '.join(parts)}.{flatters} Modelled rows are priced and shown, and"
            " enter no claim: they were fitted on the very rows the claims rest on."
        ),
    )


def section(material: Material) -> Section:
    """The chart and the tables."""
    figure = Figure(
        "modelled_accuracy",
        "Predicted and published, each GPU left out of its own fit",
        "Every published point: predicted tokens per second and GPU over the published one, both on log axes, with"
        " lines at equality and 25% off.",
        lambda layout: chart(material, layout),
    )
    tables: list[Callable[[Material], Table]] = [accuracy_table, fleet_table, hours_table, rates_table, numbers_table]
    return Section(
        id="modelled",
        title="Modelled GPUs",
        text=said(material),
        figures=(figure,) if material.accuracy else (),
        tables=tuple(make(material) for make in tables),
    )
