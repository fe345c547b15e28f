"""Throughput rows for cells nobody measured: basis `modelled`, for the models and GPUs that the report prices.

A cell is (gpu, model, precision, phase). It gets a row where a model has a measured or imported rate on some GPU, a
price says what the GPU costs, and no measured or imported row has the same cell. Two phases carry a whole bill:
training, on as many nodes as hold the weights and the optimiser's state, and serving at the maximum load of 1,000
tokens in and 1,000 out, on the 1 to 8 GPUs that give the most a GPU and hold 16 sequences. One precision each, the
narrowest down to fp8.

Such rows are priced and shown and enter no claim. r is about what a payer gets on machines somebody ran; the model was
fitted on those very rows, so its rates would vote for what they were made from, and many times over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench import config
from bench.architecture import Model
from bench.config import Gpu
from bench.model import accounting
from bench.modelled.accuracy import Modelled, Prediction
from bench.modelled.points import model_of, point
from bench.modelled.roofline import FEW, GENERATIONS, peak
from bench.modelled.work import STATE_BYTES, Cell
from bench.price.book import Provider
from bench.price.throughput import COLUMNS, Row

PHASES = ("train_step", "serve")
INPUT, OUTPUT = 1000.0, 1000.0  # tokens of a served request
SEQUENCE = 8192.0  # of a training step
SHARE = 0.8  # of a device's memory that weights and states may fill in training
MOST_GPUS = 4096
LEAST_SEQUENCES = 16  # at once: whose weights leave room for fewer, takes more GPUs


def modelled(known: Iterable[Row], book: Iterable[Provider], model: Modelled) -> list[Row]:
    """The rows, sorted by GPU, model and phase; none where nothing is published, for then nothing says how wrong."""
    if not model.checked:
        return []
    known = [row for row in known if row["device"] == "cuda" and row["phase"] in PHASES]
    taken = {cell_of(row) for row in known}
    wanted = sorted({row["model"] for row in known if row["model"] in config.keys(Model)})
    made = []
    for key in sorted(priced(book)):
        gpu = config.load(Gpu, key)
        if gpu.architecture not in GENERATIONS:
            continue  # another maker's: nothing here says how its kernels do
        for name in wanted:
            for phase in PHASES:
                precision = precision_of(gpu)
                if (key, name, precision, phase) not in taken:
                    found = best(gpu, name, precision, phase, model)
                    made += [_row(*found)] if found else []
    return made


def cell_of(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """(gpu, model, precision, phase): what a better basis outranks."""
    return row["gpu"], row["model"], row["precision"], row["phase"]


def priced(book: Iterable[Provider]) -> set[str]:
    """GPUs an hour of which has a price as an instance, or an owner's cost."""
    sold = [price.gpu for provider in book for price in provider.price if price.includes == "instance"]
    return {*sold, *(own.gpu for provider in book for own in provider.owned)}


def precision_of(gpu: Gpu) -> str:
    """fp8 where the data sheet has it, else bf16."""
    return "fp8" if "fp8" in gpu.peak_flops_per_s else "bf16"


def cells(gpu: Gpu, name: str, precision: str, phase: str) -> list[Cell]:
    """What is tried: one training cell, serving on one replica of 1 to 8 GPUs."""
    model = model_of(name)
    if phase == "serve":
        return [
            Cell(
                model=name,
                gpu=gpu.key,
                n_gpus=size,
                precision=precision,
                phase=phase,
                input_tokens=INPUT,
                output_tokens=OUTPUT,
                tensor_parallel=size,
            )
            for size in (1, 2, 4, 8)
        ]
    needed, nodes = STATE_BYTES * accounting.total_params(model), FEW
    while SHARE * gpu.memory_bytes * nodes < needed and nodes < MOST_GPUS:
        nodes *= 2
    tokens = min(SEQUENCE, float(model.max_positions))
    return [Cell(model=name, gpu=gpu.key, n_gpus=nodes, precision=precision, phase=phase, input_tokens=tokens)]


def best(gpu: Gpu, name: str, precision: str, phase: str, model: Modelled) -> tuple[Cell, Prediction] | None:
    """The cell with the highest rate a GPU; None where none fits, or the data sheet has no such peak."""
    try:
        peak(gpu, precision)
    except KeyError:
        return None
    tried = [
        point(f"modelled:{gpu.key}", "node", "check", cell, 1.0, "") for cell in cells(gpu, name, precision, phase)
    ]
    tried = [one for one in tried if one.plans]
    found = [(one.cell, guess) for one, guess in zip(tried, model.predict(tried), strict=True)]
    found = [(cell, guess) for cell, guess in found if phase != "serve" or guess.batch >= LEAST_SEQUENCES]
    return max(found, key=lambda one: one[1].tokens_per_s / one[0].n_gpus, default=None)


def _row(cell: Cell, found: Prediction) -> Row:
    served = cell.phase == "serve"
    said = "maximum load, 1,000 in and 1,000 out" if served else "pretraining"
    flags = "modelled+unseen_generation" if found.unseen_generation else "modelled"
    return (
        dict.fromkeys(COLUMNS)
        | {name: getattr(cell, name) for name in ("phase", "model", "gpu", "n_gpus", "precision", "input_tokens")}
        | {
            "row": f"modelled:{cell.gpu}/{cell.model}/{cell.phase}/{cell.precision}",
            "basis": "modelled",
            "workload": f"{said}; left-one-GPU-out error {found.error.median:.0%}, p90 {found.error.p90:.0%}",
            "backend": "roofline model",
            "device": "cuda",
            "token_kind": "output" if served else "trained",
            "output_tokens": cell.output_tokens,
            "system_tokens_per_s": found.tokens_per_s,
            "low": found.low,
            "high": found.high,
            "batch_size": round(found.batch) if served else None,
            "flags": flags,
        }
    )
