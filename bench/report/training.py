"""Training: what each workload reached, against its goals, its peers and torch.compile in the same run.

A slice (fewer layers than the model) has an MFU and no rate; so has an expert-parallel share, whose exchange between
GPUs nobody measured. Ratios are taken within one run on one GPU. The cost of skewed routing is the step time under
Zipf over that under uniform routing; an RL step's rollouts and scoring are inference, booked as training.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config import CONFIGS
from bench.report.material import Material, row_id
from bench.report.numbers import BLANK, count, number, percent, percent_tenths, scaled
from bench.report.page import Row, Section, Table, trimmed
from bench.report.utilisation import Utilisation, ceilings, device_of, step_s, utilisation

PHASES = ("train_step", "rl_step")
NOT_MEASURED = "not measured"
Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """One line of configs/training_goals.csv. `memory` is met from below, all others from above."""

    workload: str
    model: str
    measure: str  # mfu_datasheet, mfu_measured, speed, memory
    against: str | None  # of speed and memory: a backend, best_peer, or a workload (then of bf16 over it)
    goal: float
    stretch: float | None
    why: str


def goals(path: Path | None = None) -> list[Goal]:
    """configs/training_goals.csv; none where it is absent."""
    path = path or CONFIGS / "training_goals.csv"
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [
            Goal(**{k: float(v) if v and k in ("goal", "stretch") else v or None for k, v in row.items()})  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]


def trained(material: Material) -> list[Cell]:
    """Cells of training phases."""
    return [cell for cell in material.cells if cell["phase"] in PHASES]


def used(material: Material) -> dict[str, Utilisation]:
    """MFU of every training cell, by run and cell."""
    tops = ceilings(material.cells)
    return {
        name(cell): utilisation(cell, tops.get(device_of(cell)), material.gpus.get(cell["gpu"] or ""))
        for cell in trained(material)
    }


def name(cell: Cell) -> str:
    """The row's name, run and cell."""
    return f"{cell['run']}/{cell['cell']}"


def depth(cell: Cell) -> str:
    """Which part of the model ran: whole, 8 of 32 layers, 1/16 of the experts."""
    layers, ran = cell["layers"], cell["layers_measured"]
    parts = [f"{ran} of {layers} layers"] if ran and layers and ran < layers else []
    parts += [f"1/{cell['expert_parallel']} of the experts"] if (cell["expert_parallel"] or 1) > 1 else []
    return ", ".join(parts) or "whole"


def alike(cell: Cell, **changed: Any) -> tuple[Any, ...]:
    """What two cells must share to be compared: all but the columns changed."""
    same = ("run", "device_name", "n_gpus", "model", "layers_measured", "workload", "backend")
    return tuple(changed.get(column, cell[column]) for column in same)


def cells_table(cells: Iterable[Cell], use: Mapping[str, Utilisation]) -> Table:
    """One row a training cell that has a number."""
    rows = []
    for cell in cells:
        seconds = step_s(cell)
        if not seconds:
            continue
        mfu, gpus, tokens = use[name(cell)], cell["n_gpus"] or 1, cell["tokens_per_step"]
        rate, energy = cell["system_tokens_per_s"], cell["energy_joules_per_step"]
        rows.append(
            Row(
                (
                    f"{cell['model']}, {cell['workload']}",
                    cell["backend"],
                    depth(cell),
                    f"{count(gpus)} x {cell['gpu'] or cell['device_name']}",
                    number(rate / gpus if rate else None),
                    percent_tenths(mfu.mfu_datasheet.share),
                    percent_tenths(mfu.mfu_datasheet_unhalved.share),
                    percent_tenths(mfu.mfu_measured.share),
                    scaled(cell["peak_memory_bytes"], "B"),
                    scaled(energy / tokens if energy and tokens else None, "J"),
                    number(cell["expert_load"]),
                    scaled(cell["exposed_communication_s"], "s"),
                ),
                id=row_id(f"training {name(cell)}"),
            )
        )
    columns = ("workload", "backend", "depth", "GPUs", ">tokens/s a GPU", ">MFU", ">MFU, unhalved")
    more = (">MFU of measured peak", ">peak memory", ">energy a token", ">busiest expert / mean", ">only communicating")
    return trimmed(Table("Training workloads", (*columns, *more), tuple(rows)))


def skew_table(cells: list[Cell]) -> Table:
    """Step time under skewed routing over that under uniform routing, same run and backend."""
    by = {alike(cell): cell for cell in cells if step_s(cell)}
    rows = []
    for cell in by.values():
        if "zipf" not in cell["workload"]:
            continue
        even = by.get(alike(cell, workload=cell["workload"].replace("zipf", "uniform")))
        skewed_s, even_s = step_s(cell), step_s(even) if even else None
        if even and skewed_s and even_s:
            rows.append(
                Row(
                    (
                        str(cell["model"]),
                        str(cell["backend"]),
                        str(cell["gpu"] or cell["device_name"]),
                        number(even["expert_load"]),
                        number(cell["expert_load"]),
                        number(skewed_s / even_s),
                    )
                )
            )
    columns = (
        "model",
        "backend",
        "GPU",
        ">busiest / mean, uniform",
        ">busiest / mean, Zipf",
        ">step time, Zipf / uniform",
    )
    return Table("The cost of skewed routing", columns, tuple(rows))


def rl_table(cells: list[Cell]) -> Table:
    """An RL step's time by part: what is inference work booked as training."""
    rows = []
    for cell in cells:
        seconds, rollout, scoring = cell["step_s_median"], cell["rollout_s_median"], cell["scoring_s_median"]
        if cell["phase"] != "rl_step" or not (seconds and rollout and scoring):
            continue
        rows.append(
            Row(
                (
                    f"{cell['model']}, {cell['workload']}",
                    str(cell["backend"]),
                    str(cell["gpu"] or cell["device_name"]),
                    scaled(seconds, "s"),
                    percent(rollout / seconds),
                    percent(scoring / seconds),
                    percent(max(0.0, 1 - (rollout + scoring) / seconds)),
                    percent((rollout + scoring) / seconds),
                )
            )
        )
    columns = ("workload", "backend", "GPU", ">step", ">rollout", ">scoring", ">update", ">inference work")
    return Table("A reinforcement-learning step by part", columns, tuple(rows))


def scaling_table(cells: list[Cell]) -> Table:
    """Tokens/s a GPU on several GPUs over that on one of the same kind, newest run of each."""
    newest: dict[tuple[Any, ...], Cell] = {}
    for cell in sorted(cells, key=lambda cell: str(cell["run"])):
        if cell["system_tokens_per_s"]:
            newest[alike(cell, run=None, device_name=cell["gpu"] or cell["device_name"])] = cell
    rows = []
    for key, cell in newest.items():
        gpus = cell["n_gpus"] or 1
        one = newest.get((key[0], key[1], 1, *key[3:]))
        if gpus > 1:
            each = cell["system_tokens_per_s"] / gpus
            rows.append(
                Row(
                    (
                        f"{cell['model']}, {cell['workload']}",
                        str(cell["backend"]),
                        f"{count(gpus)} x {key[1]}",
                        count(cell["tensor_parallel"] or 1),
                        number(each),
                        percent_tenths(each / one["system_tokens_per_s"]) if one else BLANK,
                        scaled(cell["exposed_communication_s"], "s"),
                        percent_tenths((cell["exposed_communication_s"] or 0) / cell["step_s_median"])
                        if cell["exposed_communication_s"] is not None
                        else BLANK,
                    )
                )
            )
    columns = ("workload", "backend", "GPUs", ">tensor parallel", ">tokens/s a GPU", ">efficiency against 1")
    return Table("Scaling", (*columns, ">only communicating", ">of the step"), tuple(rows))


def value_of(
    goal: Goal, cell: Cell, by: Mapping[tuple[Any, ...], Cell], use: Mapping[str, Utilisation]
) -> float | None:
    """The goal's quantity at one of our cells."""
    if goal.measure in ("mfu_datasheet", "mfu_measured"):
        found: float | None = getattr(use[name(cell)], goal.measure).share
        return found
    column = "peak_memory_bytes" if goal.measure == "memory" else "step_s_last_third"
    if goal.against == "best_peer":
        peers = [c for c in by.values() if alike(c, backend="") == alike(cell, backend="")]
        others = [c[column] for c in peers if c["backend"].startswith("peer:") and c[column]]
        theirs = min(others, default=None)
    else:
        key = {"backend" if goal.against in ("compile", "reference") else "workload": goal.against}
        other = by.get(alike(cell, **key))
        theirs = other[column] if other else None
    ours = cell[column]
    if not (theirs and ours):
        return None
    return float(ours / theirs if goal.measure == "memory" else theirs / ours)


def goals_table(cells: list[Cell], use: Mapping[str, Utilisation]) -> Table:
    """Every goal with the newest run of each GPU, or "not measured"."""
    by = {alike(cell): cell for cell in cells if step_s(cell)}
    rows = []
    for goal in goals():
        ours = [
            c for c in by.values() if (c["workload"], c["model"], c["backend"]) == (goal.workload, goal.model, "triton")
        ]
        ours = [c for c in ours if c["device"] == "cuda"]
        newest = {c["device_name"]: c for c in sorted(ours, key=lambda c: (str(c["run"]), c["layers_measured"] or 0))}
        rows += [goal_row(goal, cell, value_of(goal, cell, by, use)) for cell in newest.values()]
        rows += [] if newest else [goal_row(goal, None, None)]
    columns = ("workload", "model", "held against", ">goal", ">stretch", ">reached", "GPU", "verdict")
    return trimmed(Table("Goals of training", columns, tuple(rows)))


def goal_row(goal: Goal, cell: Cell | None, value: float | None) -> Row:
    """One goal as a row of the page."""
    if value is None:
        verdict, tone = NOT_MEASURED, "undecided"
    else:
        met = value <= goal.goal if goal.measure == "memory" else value >= goal.goal
        verdict, tone = ("met", "holds") if met else (f"missed by {abs(1 - value / goal.goal):.0%}", "fails")
    words = {"mfu_datasheet": "MFU, data sheet", "mfu_measured": "MFU, measured matmul peak"}
    others = {"best_peer": "the best peer's", "compile": "torch.compile's"}
    against = others.get(goal.against or "", f"{goal.against}'s")
    held = words.get(goal.measure, f"{'peak memory' if goal.measure == 'memory' else 'speed'} over {against}")
    shown = (number(goal.goal), number(goal.stretch), number(value))
    device = str(cell["device_name"]) if cell else BLANK
    return Row((goal.workload, goal.model, held, *shown, device, verdict), tone=tone)


def section(material: Material) -> Section:
    """Goals, then every training cell, then what is asked of it: skew, RL, scaling."""
    cells, use = trained(material), used(material)
    on_gpu = [cell for cell in cells if cell["device"] == "cuda" and step_s(cell)]
    said = (
        f"{len(on_gpu)} training cells were measured on GPUs."
        if on_gpu
        else "No GPU has run the training workloads yet: every goal below stands unmeasured."
    )
    more = [table for table in (skew_table(cells), rl_table(cells), scaling_table(cells)) if table.rows]
    return Section(
        id="training",
        title="Training workloads",
        text=(
            (said,),
            (
                "MFU counts the FLOPs a step needs, causal attention halved and documents apart, never what is computed"
                " again; the unhalved column is PaLM's and torchtitan's convention.",
            ),
        ),
        tables=(goals_table(cells, use), cells_table(cells, use), *more),
    )
