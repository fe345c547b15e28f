"""Roofline: what each cell reached, against what this run measured as its ceiling and what the datasheet promises.

    attainable FLOP/s = min(peak_flops_per_s, intensity * bytes_per_s),  intensity = flops_per_step / bytes_per_step

(Williams, Waterman, Patterson, CACM 2009.) Both axes are logarithmic; rates are per GPU, or per CPU host.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bench.report.material import Material, row_id
from bench.report.numbers import BLANK, percent_tenths, scaled
from bench.report.page import Cell, Figure, Layout, Link, Row, Section, Table, text
from bench.report.theme import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION
from bench.report.utilisation import (
    Ceiling,
    Use,
    ceilings,
    device_of,
    is_matmul,
    rate,
    utilisation,
)
from bench.report.words import phrase

PHASES = {
    "train_step": (BLUE, "square"),
    "rl_step": (ORANGE, "triangle-down"),
    "prefill": (VERMILION, "triangle-up"),
    "decode": (GREEN, "circle"),
    "serve": (PURPLE, "diamond"),
    "kernel": (BLACK, "cross"),
}
DASHES = {"measured in this run": [1, 0], "datasheet": [5, 4]}
MARGIN = 8.0  # a roof is drawn this factor beyond the outermost cell


def points(material: Material) -> list[dict[str, Any]]:
    """One point a measured cell with FLOPs, bytes and a time: intensity and rate per GPU."""
    found = []
    for cell in newest(material):
        reached, moved = rate(cell, "flops_per_step"), cell["bytes_per_step"]
        if reached and moved and drawn(cell):
            found.append(
                {
                    "panel": panel(cell),
                    "cell": cell["cell"],
                    "phase": cell["phase"],
                    "backend": cell["backend"],
                    "intensity": cell["flops_per_step"] / moved,
                    "flops_per_s": reached,
                    "said": f"{scaled(reached, 'FLOP/s')}",
                }
            )
    return found


def panel(cell: Mapping[str, Any]) -> str:
    """Cells share a panel when they share a roof: device and precision."""
    return f"{cell['device_name'] or cell['gpu'] or 'unknown device'}, {cell['precision']}"


def drawn(cell: Mapping[str, Any]) -> bool:
    """Whether a cell is a point of the chart: known work in a known time."""
    return bool(rate(cell, "flops_per_step") and cell["bytes_per_step"] and cell["phase"] in PHASES)


def newest(material: Material) -> list[Mapping[str, Any]]:
    """The cells of each panel's newest run with a point: a roof is one run's and says nothing about another's cells."""
    last: dict[str, str] = {}
    for cell in filter(drawn, material.cells):
        last[panel(cell)] = max(last.get(panel(cell), ""), str(cell["run"]))
    return [cell for cell in material.cells if cell["run"] == last.get(panel(cell))]


def roofs(material: Material, marks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The roof lines, three corners each, wide enough for the cells under them."""
    tops = ceilings(material.cells)
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in newest(material):
        under = [mark["intensity"] for mark in marks if mark["panel"] == panel(cell)]
        top, gpu = tops.get(device_of(cell)), material.gpus.get(str(cell["gpu"]))
        precision = str(cell["precision"])
        if under and top and top.bytes_per_s and precision in top.flops_per_s:
            best = (top.flops_per_s[precision], top.bytes_per_s)
            lines[panel(cell), "measured in this run"] = corners(*best, under)
        if under and gpu and precision in gpu.peak_flops_per_s:
            promised = (gpu.peak_flops_per_s[precision], gpu.hbm_bytes_per_s)
            lines[panel(cell), "datasheet"] = corners(*promised, under)
    return [{"panel": where, "roof": roof, **corner} for (where, roof), line in lines.items() for corner in line]


def corners(peak: float, stream: float, under: list[float]) -> list[dict[str, Any]]:
    """A roof as points (intensity, FLOP/s): the bandwidth slope, the ridge, the flat peak."""
    ridge = peak / stream
    low, high = min(*under, ridge) / MARGIN, max(*under, ridge) * MARGIN
    ends = ((low, low * stream), (ridge, peak), (high, peak))
    return [{"intensity": x, "flops_per_s": y, "corner": n} for n, (x, y) in enumerate(ends)]


def decades(values: list[float]) -> list[float]:
    """The powers of ten around some values: an axis."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**n for n in range(low, high + 1)]


def chart(material: Material, layout: Layout) -> Any:
    """Cells as shapes by phase, roofs as lines: solid measured, dashed datasheet; one panel a device and precision."""
    import altair as alt

    marks = points(material)
    lines = roofs(material, marks)
    # a panel with no roof says nothing; the table below the chart still holds its cells
    names = sorted({corner["panel"] for corner in lines} or {mark["panel"] for mark in marks})
    columns = min(layout.columns, len(names))
    # One legend for all panels: a panel that lacks a phase must not hand its colour to the next one.
    phases = [phase for phase in PHASES if any(mark["phase"] == phase for mark in marks)]
    dashes = [key for key in DASHES if any(corner["roof"] == key for corner in lines)]
    parts = []
    for name in names:
        dots = [mark for mark in marks if mark["panel"] == name]
        roof = [corner for corner in lines if corner["panel"] == name]
        parts.append(one_panel(alt, name, dots, roof, layout.width // columns - 60, phases, dashes))
    return alt.concat(*parts, columns=columns, spacing=20)


def one_panel(
    alt: Any,
    name: str,
    dots: list[dict[str, Any]],
    roof: list[dict[str, Any]],
    width: int,
    phases: list[str],
    dashes: list[str],
) -> Any:
    """One device and precision; `phases` and `dashes` of all panels together."""
    across = decades([mark["intensity"] for mark in (*dots, *roof)])
    up = decades([mark["flops_per_s"] for mark in (*dots, *roof)])
    x = alt.X("intensity:Q", title="arithmetic intensity, FLOP per byte").axis(format="~g", values=across)
    y = alt.Y("flops_per_s:Q", title="FLOP/s").axis(format="~s", values=up)
    x = x.scale(type="log", domain=[across[0], across[-1]], nice=False)
    y = y.scale(type="log", domain=[up[0], up[-1]], nice=False)
    said, looks = [phrase(phase) for phase in phases], [PHASES[phase] for phase in phases]
    line = alt.Chart(alt.Data(values=roof)).mark_line(color=GREY, strokeWidth=1.5)
    line = line.encode(
        x=x,
        y=y,
        order="corner:Q",
        strokeDash=alt.StrokeDash("roof:N", title=None).scale(domain=dashes, range=[DASHES[key] for key in dashes]),
    )
    values = [{**mark, "phase": phrase(mark["phase"])} for mark in dots]
    shapes = alt.Chart(alt.Data(values=values)).mark_point(filled=True, size=80, opacity=0.9)
    shapes = shapes.encode(
        x=x,
        y=y,
        color=alt.Color("phase:N", title=None).scale(domain=said, range=[look[0] for look in looks]),
        shape=alt.Shape("phase:N", title=None).scale(domain=said, range=[look[1] for look in looks]),
        tooltip=["cell:N", "backend:N", alt.Tooltip("said:N", title="rate")],
    )
    layers = alt.layer(line, shapes) if roof else alt.layer(shapes)
    return layers.properties(title=name, width=width, height=min(250, width))


def shown(use: Use) -> Cell:
    """A share with one decimal and its mark, or a dash; the reason stands in its own column."""
    share = percent_tenths(use.share)
    if use.mark == "above_measured_ceiling":
        return f"{share} †"
    return f"{share} void" if use.mark else share


def utilisation_row(cell: Mapping[str, Any], material: Material, top: Ceiling | None) -> Row:
    """One cell's MFU and MBU, with the reasons of what is missing said once."""
    used = utilisation(cell, top, material.gpus.get(str(cell["gpu"])))
    uses = [used.mfu_datasheet, used.mfu_datasheet_unhalved, used.mfu_measured, used.mbu_datasheet, used.mbu_measured]
    reasons = dict.fromkeys(use.reason for use in uses if use.reason)
    where = row_id(f"{cell['run']}/{cell['cell']}")
    return Row(
        (
            Link(cell["cell"], f"#{where}"),
            scaled(rate(cell, "flops_per_step"), "FLOP/s"),
            scaled(rate(cell, "bytes_per_step"), "B/s"),
            *(shown(use) for use in uses),
            "; ".join(reasons) or BLANK,
        ),
        tone="void" if used.mark == "void" else "",
    )


def ceiling_rows(material: Material) -> tuple[Row, ...]:
    """The ceilings by device: the rate and the cell that reached it."""
    found = []
    for (run, _, name), top in ceilings(material.cells).items():
        for precision, peak in sorted(top.flops_per_s.items()):
            cell = top.flops_cell[precision]
            link = Link(cell, f"#{row_id(f'{run}/{cell}')}")
            found.append(Row((f"{name}", f"matmul, {precision}", scaled(peak, "FLOP/s"), link)))
        if top.bytes_per_s:
            link = Link(top.bytes_cell, f"#{row_id(f'{run}/{top.bytes_cell}')}")
            found.append(Row((f"{name}", "memory stream", scaled(top.bytes_per_s, "B/s"), link)))
    return tuple(found)


def section(material: Material) -> Section:
    """The chart where there is a cell to draw, the utilisation table, the measured ceilings."""
    tops = ceilings(material.cells)
    timed = [c for c in material.cells if c["phase"] in PHASES and c["status"] == "ok"]
    seen = any(is_matmul(c) for c in material.cells if c["phase"] == "ceiling")
    figure = Figure(
        "roofline",
        "Roofline: cells of each machine's newest run, under the ceilings of that run",
        "Each measured cell by arithmetic intensity and rate, under the measured ceiling"
        " (solid) and the datasheet's (dashed), on logarithmic axes.",
        lambda layout: chart(material, layout),
    )
    return Section(
        id="mfu",
        title="Roofline, MFU and MBU",
        text=(
            text(
                "MFU = FLOPs a step ÷ (sustained step time × peak). FLOPs are the model's own, causal attention counted"
                " halved; the unhalved convention (PaLM, torchtitan) stands beside it. Measured ceilings are the"
                " best matmul and the best copy of the same run",
                "." if seen else "; none was measured here.",
                " † marks a cell above the measured ceiling; above the datasheet it is void.",
            ),
        ),
        figures=(figure,) if points(material) else (),
        tables=(
            Table(
                "Utilisation of cells measured",
                (
                    "cell",
                    ">FLOP/s",
                    ">bytes/s",
                    ">MFU",
                    ">MFU unhalved",
                    ">MFU of measured",
                    ">MBU",
                    ">MBU of measured",
                    "why blank",
                ),
                tuple(utilisation_row(cell, material, tops.get(device_of(cell))) for cell in timed),
                empty="No cell with a number: nothing was measured on this machine.",
            ),
            Table(
                "Measured ceilings",
                ("device", "ceiling", ">rate", "cell"),
                ceiling_rows(material),
                empty="No ceiling cell was measured.",
            ),
        ),
    )
