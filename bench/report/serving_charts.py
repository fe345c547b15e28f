"""Two charts of serving on GPUs: throughput against interactivity, and what a token costs against the load.

A panel holds one class of traffic, a line one series' closed-loop or open-loop points in order of load. Shape says what
a point is worth: hollow void, triangle saturated, diamond the one that keeps its SLO at the most tokens a second.
"""

from __future__ import annotations

from typing import Any

from bench.price.serving_points import is_closed, is_saturated
from bench.report.material import Material
from bench.report.numbers import number, usd
from bench.report.page import Figure, Layout
from bench.report.serving_cells import (
    KEPT,
    SATURATED,
    STEADY,
    VOID,
    decades,
    identity,
    key,
    load,
    loaded,
    newest,
    on_gpu,
    per_gpu,
    states,
)
from bench.report.theme import COLOURS
from bench.report.words import phrase

SHAPES = {STEADY: "circle", KEPT: "diamond", SATURATED: "triangle-up", VOID: "square"}
LOOPS = {"closed loop": [1, 0], "open loop": [4, 3]}
Marks = list[dict[str, Any]]


def frontier(material: Material) -> Marks:
    """Points on GPUs with a rate and an interactivity: y output tokens/s a GPU, x tokens/s a user."""
    points = on_gpu(newest(material))
    known = states(points)
    found = []
    for point in points:
        x, y = point["interactivity_tokens_per_s"], per_gpu(point)
        if x and y and key(point) in known:
            said = f"{number(y)} tokens/s a GPU, {number(x)} a user"
            found.append(mark(point, known[key(point)], x, y, said))
    return found


def against_load(material: Material) -> Marks:
    """Open-loop points on GPUs at retail prices: y USD a million output tokens, whole bill, x requests/s offered."""
    points = {key(point): point for point in on_gpu(newest(material)) if not is_closed(point)}
    known = states(on_gpu(newest(material)))
    found = []
    for row in material.serving:
        point, cost = points.get((row["row"], row["point"])), row["usd_per_million_output_tokens_whole"]
        if point and cost and row["level"] == "retail":
            found.append(mark(point, known[key(point)], point["rate_per_s"], cost, usd(cost)))
    return sorted(found, key=lambda made: (made["panel"], made["series"], made["x"]))


def mark(point: Any, state: str, x: float, y: float, said: str) -> dict[str, Any]:
    """One mark of a chart."""
    loop = "closed loop" if is_closed(point) else "open loop"
    place = {"panel": phrase(point["traffic"]), "series": identity(point), "loop": loop, "order": load(point)[1]}
    also = " (saturated)" if is_saturated(point) and state == VOID else ""
    return {**place, "x": x, "y": y, "state": state, "load": loaded(point), "said": said + also}


def told_apart(marks: Marks) -> tuple[str, Marks]:
    """What all series share, in words, and the marks with what tells theirs from the others."""
    known = list(dict.fromkeys(made["series"] for made in marks))
    differs = [len(set(parts)) > 1 for parts in zip(*known, strict=True)]
    shared = ", ".join(part for part, apart in zip(known[0], differs, strict=True) if not apart)

    def short(series: tuple[str, ...]) -> str:
        return ", ".join(part for part, apart in zip(series, differs, strict=True) if apart)

    return shared, [{**made, "series": short(made["series"])} for made in marks]


def chart(marks: Marks, layout: Layout, titles: tuple[str, str], log_x: bool) -> Any:
    """A panel a class; colours, dashes and shapes mean the same in all of them."""
    import altair as alt

    panels = list(dict.fromkeys(sorted(made["panel"] for made in marks)))
    columns = min(layout.columns, len(panels))
    width = layout.width // columns - 70
    parts = [one_panel(alt, name, marks, width, titles, log_x) for name in panels]
    return alt.concat(*parts, columns=columns, spacing=24)


def one_panel(alt: Any, name: str, marks: Marks, width: int, titles: tuple[str, str], log_x: bool) -> Any:
    """One class of traffic; the scales of colour, dash and shape are those of all panels."""
    here = [made for made in marks if made["panel"] == name]
    lines = list(dict.fromkeys(made["series"] for made in marks))
    shown = [state for state in SHAPES if any(made["state"] == state for made in marks)]
    loops = [loop for loop in LOOPS if any(made["loop"] == loop for made in marks)]
    across, up = decades([made["x"] for made in here]), decades([made["y"] for made in here])
    x = alt.X("x:Q", title=titles[0]).axis(format="~g", tickCount=6).scale(zero=True, nice=True)
    if log_x:
        ends = min(made["x"] for made in here) / 1.3, max(made["x"] for made in here) * 1.3
        x = x.scale(type="log", domain=ends, nice=False).axis(format="~g", values=across)
    y = alt.Y("y:Q", title=titles[1])
    ends = min(made["y"] for made in here) / 1.3, max(made["y"] for made in here) * 1.3
    y = y.scale(type="log", domain=ends, nice=False).axis(format="$~g" if "USD" in titles[1] else "~s", values=up)
    colour = alt.Color("series:N", title=None).scale(domain=lines, range=list(COLOURS[: len(lines)]))
    colour = colour.legend(None) if len(lines) == 1 else colour
    base = alt.Chart(alt.Data(values=here)).encode(x=x, y=y, color=colour)
    dash = alt.StrokeDash("loop:N", title=None).scale(domain=loops, range=[LOOPS[loop] for loop in loops])
    joined = base.mark_line(strokeWidth=1.5, opacity=0.6).encode(
        order="order:Q", detail=["series:N", "loop:N"], strokeDash=dash.legend(None) if len(loops) == 1 else dash
    )
    shape = alt.Shape("state:N", title=None).scale(domain=shown, range=[SHAPES[state] for state in shown])
    size = alt.condition(alt.datum.state == KEPT, alt.value(190), alt.value(65))
    tooltip = [*(["series:N"] if len(lines) > 1 else []), "load:N", "state:N", alt.Tooltip("said:N", title="reached")]
    dots = [
        base.transform_filter(which)
        .mark_point(filled=filled, opacity=1)
        .encode(shape=shape, size=size, tooltip=tooltip)
        for filled, which in ((True, alt.datum.state != VOID), (False, alt.datum.state == VOID))
    ]
    return alt.layer(joined, *dots).properties(title=name, width=width, height=min(240, width))


def figures(material: Material) -> tuple[Figure, ...]:
    """The charts that have points."""
    reached, cost = frontier(material), against_load(material)
    drawn: list[tuple[Marks, str, str, str, tuple[str, str], bool]] = [
        (
            reached,
            "serving_frontier",
            "Throughput against interactivity",
            "Output tokens a second and GPU against tokens a second and user, a panel for each class of traffic, points"
            " joined in order of load, void points hollow, saturated ones triangles.",
            ("tokens/s a user (1 / median TPOT)", "output tokens/s a GPU"),
            True,
        ),
        (
            cost,
            "serving_cost",
            "USD per million output tokens, whole bill, against load, at the median retail price",
            "Cost of a million output tokens, carrying the whole bill, against requests offered a second on a"
            " logarithmic axis, a panel for each class of traffic.",
            ("requests/s offered", "USD per million output tokens"),
            False,
        ),
    ]
    return tuple(figure(*one) for one in drawn if one[0])


def figure(marks: Marks, name: str, title: str, alt: str, titles: tuple[str, str], log_x: bool) -> Figure:
    """One chart; its title says what all series share."""
    shared, told = told_apart(marks)
    return Figure(name, f"{title}: {shared}", alt, lambda layout: chart(told, layout, titles, log_x))
