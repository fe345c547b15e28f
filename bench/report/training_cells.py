"""Training cells as the report reads them: which were timed, and the whole models that slices of them stand for.

A slice (fewer layers than the model has) has times and no rate. Two depths of one cell make a line, and its value at
the model's depth is a cell here like any other: the rate is that of the throughput row (bench/price/throughput.py),
FLOPs, bytes and energy lie on the same kind of line, memory is not known. A share of the experts gives no such row.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from bench.report.material import Material, row_id
from bench.report.numbers import count
from bench.report.page import Link
from bench.report.utilisation import Utilisation, ceilings, device_of, step_s, utilisation
from bench.report.words import phrase

PHASES = ("train_step", "rl_step")
Cell = Mapping[str, Any]
Cells = list[Cell]
# What two cells share that differ in one thing: compared within one run, on one device, at one depth.
SAME = ("run", "device_name", "n_gpus", "model", "workload", "backend")
# Sums over layers, so that they lie on a line over the depth as the step time does.
SUMS = ("flops_per_step", "flops_per_step_unhalved", "bytes_per_step", "energy_joules_per_step")


def trained(material: Material) -> Cells:
    """Cells of training phases, whatever came of them."""
    return [cell for cell in material.cells if cell["phase"] in PHASES]


def name(cell: Cell) -> str:
    """The throughput row's name: run and cell."""
    return f"{cell['run']}/{cell['cell']}"


def is_slice(cell: Cell) -> bool:
    """Whether fewer layers ran than the model has; a fit is no slice."""
    ran, layers = cell["layers_measured"], cell["layers"]
    return isinstance(ran, int) and bool(layers) and ran < layers


def extent(cell: Cell) -> float:
    """Layers that ran, endless for a whole model: cells of one extent compare, and the larger says more."""
    return float(cell["layers_measured"]) if is_slice(cell) else math.inf


def alike(cell: Cell, **changed: Any) -> tuple[Any, ...]:
    """What two cells must share to be compared: all but the columns changed."""
    return (extent(cell), *(changed.get(column, cell[column]) for column in SAME))


def fits(material: Material) -> Cells:
    """The whole model wherever two depths of it were timed, as a cell whose `layers_measured` names the depths."""
    rates = {row["row"]: row for row in material.throughput}
    groups: dict[tuple[Any, ...], Cells] = {}
    for cell in trained(material):
        if step_s(cell) and is_slice(cell):
            groups.setdefault(tuple(cell[column] for column in SAME), []).append(cell)
    found = []
    for cells in groups.values():
        depths = "+".join(f"{n}" for n in sorted({cell["layers_measured"] for cell in cells}))
        key = f"{cells[0]['model']}/{cells[0]['workload']}/{cells[0]['backend']}/{depths}"
        if row := rates.get(f"{cells[0]['run']}/{key}"):
            found.append(fitted(cells, row, key))
    return found


def fitted(cells: Cells, row: Mapping[str, Any], key: str) -> Cell:
    """The whole model as a cell: the row's rate, and the sums that the slices' lines give at its depth."""
    first = cells[0]
    rate, tokens = row["system_tokens_per_s"], first["tokens_per_step"]
    unknown = ("step_s_median", "peak_memory_bytes", "exposed_communication_s", "rollout_s_median", "scoring_s_median")
    return {
        **first,
        **dict.fromkeys(unknown),
        **{column: at_depth(cells, column, first["layers"]) for column in SUMS},
        **{"cell": key, "layers_measured": row["layers_measured"], "step_s_last_third": tokens / rate},
        "system_tokens_per_s": rate,
    }


def at_depth(cells: Cells, column: str, layers: int) -> float | None:
    """A column's value at `layers` on the least-squares line over the cells' depths; None where one lacks it."""
    values = [cell[column] for cell in cells]
    if None in values:
        return None
    line = statistics.linear_regression([float(cell["layers_measured"]) for cell in cells], values)
    return line.intercept + line.slope * layers


def shares(material: Material, cells: Iterable[Cell]) -> dict[str, Utilisation]:
    """MFU of each cell, by its name."""
    tops = ceilings(material.cells)
    return {
        name(cell): utilisation(cell, tops.get(device_of(cell)), material.gpus.get(cell["gpu"] or "")) for cell in cells
    }


def standing(cells: Iterable[Cell]) -> Cells:
    """One cell for each device, number of GPUs, model, workload and backend: of its newest run the largest extent.

    In the order in which each first stands among `cells`.
    """
    best: dict[tuple[Any, ...], Cell] = {}
    for cell in cells:
        key = tuple(cell[column] for column in SAME if column != "run")
        if key not in best or rank(cell) > rank(best[key]):
            best[key] = cell
    return list(best.values())


def rank(cell: Cell) -> tuple[str, float]:
    """Newer runs first (run folders are named by date), then the larger part of the model."""
    return str(cell["run"]), extent(cell)


def depth(cell: Cell) -> str:
    """Which part of the model ran: whole, 8 of 32 layers, fit of 8+16 of 32 layers, 1/16 of the experts."""
    ran = cell["layers_measured"]
    parts = [f"{ran} of {cell['layers']} layers"] if is_slice(cell) else []
    parts += [f"fit of {ran} layers"] if isinstance(ran, str) else []
    parts += [f"1/{cell['expert_parallel']} of the experts"] if (cell["expert_parallel"] or 1) > 1 else []
    return ", ".join(parts) or "whole"


def where(cell: Cell) -> str:
    """8 × H100 SXM 80GB; a CPU by its own name."""
    named = phrase(cell["gpu"]) if cell["gpu"] not in (None, "cpu") else f"{cell['device_name'] or 'a CPU'}"
    gpus = cell["n_gpus"] or 1
    return f"{count(gpus)} × {named}" if cell["device"] == "cuda" or gpus > 1 else named


def what(cell: Cell) -> str:
    """Llama-3.1-8B, pretrain_dense_8b."""
    return f"{phrase(cell['model'])}, {cell['workload']}"


def linked(cell: Cell) -> Link:
    """The cell's name, leading to its row."""
    return Link(what(cell), f"#{row_id(name(cell))}")
