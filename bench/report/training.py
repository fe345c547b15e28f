"""Training: what each workload reached, against its goals, its peers and torch.compile, and what others published.

Step times compare within one run on one GPU; scaling alone compares the newest run of several GPUs with that of one.
The cost of skewed routing is the step time under Zipf over that under uniform routing. An RL step's rollouts and
scoring are inference booked as training: the claim's two views differ by it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from bench.price.cost import regional
from bench.report.material import Material, Rows, address, row_id
from bench.report.numbers import count, number, percent_tenths, scaled, usd
from bench.report.offers import priced
from bench.report.page import Cell as Shown
from bench.report.page import Link, Row, Section, Table, Text, text, trimmed
from bench.report.roofline import shown
from bench.report.training_cells import (
    SAME,
    Cell,
    Cells,
    depth,
    extent,
    fits,
    is_slice,
    linked,
    name,
    shares,
    standing,
    trained,
    where,
)
from bench.report.training_goals import find, goals, goals_table, summary
from bench.report.training_rl import booking, rl_cells, rl_table
from bench.report.utilisation import Utilisation, step_s
from bench.report.words import phrase

# What cells under skewed and under uniform routing share.
SHAPE = ("phase", "precision", "batch_size", "input_tokens", "expert_parallel")


def cells_tables(cells: Cells, timed: Cells, use: Mapping[str, Utilisation], costs: Rows) -> list[Table]:
    """A table for each device and number of GPUs, in it a row for each of `cells`. `timed`: slices as well."""
    devices = dict.fromkeys(where(cell) for cell in cells)
    here = {device: [cell for cell in cells if where(cell) == device] for device in devices}
    return [cells_table(device, found, timed, use, costs) for device, found in here.items()] or [
        Table("Training workloads", (), (), empty="No training cell has a number.")
    ]


def cells_table(device: str, cells: Cells, timed: Cells, use: Mapping[str, Utilisation], costs: Rows) -> Table:
    """What each training workload reached on one kind of device."""
    rows = tuple(cell_row(cell, timed, use[name(cell)], costs) for cell in cells)
    columns = ("workload", "backend", "depth", ">tokens/s a GPU", ">MFU", ">MFU unhalved", ">MFU of measured")
    more = (">peak memory a GPU", ">energy a token", ">USD per million tokens")
    return trimmed(
        Table(f"Training on {device}, newest run of each", (*columns, *more), rows, note=remarks(cells, use))
    )


def remarks(cells: Cells, use: Mapping[str, Utilisation]) -> Text:
    """What a reader of some cells must know: why a peak is blank, whose memory a fit shows, which tokens count."""
    reasons = dict.fromkeys(use[name(cell)].mfu_measured.reason for cell in cells)
    blank = "; ".join(reason for reason in reasons if reason)
    marked = any(use[name(cell)].mfu_measured.mark == "above_measured_ceiling" for cell in cells)
    holds = {
        f"MFU of measured is blank where there is {blank}.": bool(blank),
        "† above the ceiling measured in the run: that measurement was no ceiling.": marked,
        "* Of the deepest slice behind the fit.": any(isinstance(cell["layers_measured"], str) for cell in cells),
        "An RL step's tokens are those of its answers.": any(cell["phase"] == "rl_step" for cell in cells),
        "LoRA trains adapters alone: about 4 FLOPs a parameter and token, not 6.": any(c["lora_rank"] for c in cells),
    }
    return (" ".join(said for said, true in holds.items() if true),) if any(holds.values()) else ()


def cell_row(cell: Cell, timed: Cells, mfu: Utilisation, costs: Rows) -> Row:
    """One workload: rate and memory a GPU, MFU, energy and money a token."""
    tokens, rate, energy = cell["tokens_per_step"], cell["system_tokens_per_s"], cell["energy_joules_per_step"]
    return Row(
        (
            linked(cell),
            cell["backend"],
            depth(cell),
            number(rate / (cell["n_gpus"] or 1) if rate else None),
            shown(mfu.mfu_datasheet),
            shown(mfu.mfu_datasheet_unhalved),
            shown(mfu.mfu_measured),
            memory(cell, timed),
            scaled(energy / tokens if energy and tokens else None, "J"),
            usd(cost_of(name(cell), costs)),
        ),
        tone="void" if mfu.mark == "void" else "",
    )


def memory(cell: Cell, timed: Cells) -> str:
    """Peak memory; of a fit, that of the deepest slice behind it, marked."""
    if not isinstance(cell["layers_measured"], str):
        return scaled(cell["peak_memory_bytes"], "B")
    slices = [c for c in timed if is_slice(c) and all(c[column] == cell[column] for column in SAME)]
    return f"{scaled(max(slices, key=extent)['peak_memory_bytes'], 'B')} *"


def cost_of(row: str, costs: Rows) -> float | None:
    """USD per million tokens of one throughput row: the median provider's retail price on demand."""
    rows = [r for r in priced(costs) if (r["x_row"], r["x_level"], r["x_term"]) == (row, "retail", "on_demand")]
    each = [offer["median"] for offer in regional(rows)]
    return statistics.median(each) if each else None


def skew_table(timed: Cells) -> Table:
    """Step time under skewed routing over that under uniform routing: same run, device, backend, depth and shape."""

    def key(cell: Cell) -> tuple[Any, ...]:
        same = ("run", "device_name", "n_gpus", "model", "backend", *SHAPE)
        return (extent(cell), *(cell[column] for column in same))

    even = {key(cell): cell for cell in timed if cell["routing_zipf"] == 0}
    rows = []
    for cell in standing(cell for cell in timed if cell["routing_zipf"] and key(cell) in even):
        mate = even[key(cell)]
        ours, theirs = step_s(cell), step_s(mate)
        rows.append(
            Row(
                (
                    linked(cell),
                    str(cell["backend"]),
                    depth(cell),
                    where(cell),
                    number(mate["expert_load"]),
                    number(cell["expert_load"]),
                    number(ours / theirs if ours and theirs else None),
                )
            )
        )
    columns = ("workload", "backend", "depth", "GPUs", ">busiest expert / mean, uniform", ">the same, Zipf")
    return Table("The cost of skewed routing", (*columns, ">step time, Zipf / uniform"), tuple(rows))


def scaling_table(cells: Cells) -> Table:
    """Tokens/s a GPU on several GPUs over that on one of the same kind, newest run of each."""

    def key(cell: Cell, gpus: int) -> tuple[Any, ...]:
        return (cell["gpu"] or cell["device_name"], cell["model"], cell["workload"], cell["backend"], gpus)

    rated = {key(cell, cell["n_gpus"] or 1): cell for cell in cells if cell["system_tokens_per_s"]}
    rows = []
    for cell in rated.values():
        gpus, one = cell["n_gpus"] or 1, rated.get(key(cell, 1))
        if gpus == 1:
            continue
        each, waits = cell["system_tokens_per_s"] / gpus, cell["exposed_communication_s"]
        seconds = cell["step_s_median"]
        rows.append(
            Row(
                (
                    linked(cell),
                    str(cell["backend"]),
                    where(cell),
                    count(cell["tensor_parallel"]),
                    number(each),
                    percent_tenths(each / one["system_tokens_per_s"] if one else None),
                    scaled(waits, "s"),
                    percent_tenths(waits / seconds if waits is not None and seconds else None),
                )
            )
        )
    columns = ("workload", "backend", "GPUs", ">tensor parallel", ">tokens/s a GPU", ">of the rate on 1")
    return Table("More than one GPU", (*columns, ">only communicating", ">of the step"), tuple(rows))


def published_table(cells: Cells, material: Material) -> Table:
    """Training rates others published for the goals' models, ours of the same models between them."""
    models = {goal.model for goal in goals()}
    theirs = [row for row in material.published.values() if row["phase"] == "train_step" and row["model"] in models]
    lines: list[tuple[tuple[Any, ...], tuple[Shown, ...]]] = []
    for row in theirs:
        gpus = int(row["n_gpus"])
        rate, on = float(row["system_tokens_per_s"]) / gpus, f"{count(gpus)} × {phrase(row['gpu'])}"
        source = text(address(row["source"]), f", {row['software']}")
        lines.append(((row["model"], row["precision"], -rate), (on, number(rate), source)))
    known = {row["model"] for row in theirs}
    for cell in cells:
        pretraining = cell["phase"] == "train_step" and cell["device"] == "cuda" and not cell["lora_rank"]
        if pretraining and cell["model"] in known and cell["system_tokens_per_s"]:
            rate = cell["system_tokens_per_s"] / (cell["n_gpus"] or 1)
            here = text("measured here: ", Link(f"{cell['workload']}, {cell['backend']}", f"#{row_id(name(cell))}"))
            lines.append(((cell["model"], cell["precision"], -rate), (where(cell), number(rate), here)))
    rows = (Row((phrase(of[0]), of[1], *rest)) for of, rest in sorted(lines, key=lambda made: made[0]))
    return Table(
        "Beside what others published", ("model", "precision", "GPUs", ">tokens/s a GPU", "source"), tuple(rows)
    )


def section(material: Material) -> Section:
    """Goals, then every training workload, then what is asked of them: skew, RL, scaling, others' rates."""
    cells = [*trained(material), *fits(material)]
    timed = [cell for cell in cells if step_s(cell)]
    use, stand = shares(material, cells), standing(timed)
    lines = [found for goal in goals() for found in find(goal, cells, use)]
    steps = rl_cells(timed)
    more = (skew_table(timed), rl_table(steps), scaling_table(stand), published_table(stand, material))
    return Section(
        id="training",
        title="Training workloads",
        text=(
            (summary(lines),),
            (
                "MFU counts the FLOPs a step needs, causal attention halved and documents apart, never what is computed"
                " again; the unhalved column is PaLM's and torchtitan's convention. Where a model does not fit, two"
                " depths of it are fitted; a fit and a rate on one GPU hold no exchange between GPUs.",
            ),
            (
                "Only steps that train a whole model enter the ratio of training to serving: adapters (LoRA), a share"
                " of a mixture's experts and RL steps never do. Of a mixture the rates under uniform and under skewed"
                " routing count alike, for nobody chooses how tokens spread.",
            ),
            booking(steps, material),
        ),
        tables=(
            goals_table(lines),
            *cells_tables(stand, timed, use, material.costs),
            *(table for table in more if table.rows),
        ),
    )
