"""One table of throughput: what was measured here, and what others published.

Rows come from run folders (cells.csv: basis `measured`), from configs/published.csv and from what `bench import` landed
(both basis `imported`). Only whole models are rows. A slice (fewer layers than the model has) never stands for the
model; two or more depths of the same cell do, by a fit of the step time to the depth:

    step time = a + b * layers        least squares over the sustained medians, evaluated at the model's depth

a holds what a step costs once (embedding, LM head, optimizer launch), b what each layer adds; identical layers make it
a line. The interval is Monte Carlo: each median is redrawn from a normal as wide as its own 95% interval, the line is
fitted again, and the middle 95% of the results is kept.

Not every trained token is one of pre-training. An RL step (phase `rl_step`) counts the tokens of its answers, adapters
(`lora_rank`) leave their base frozen: both are priced, neither ever stands for pre-training (bench/claim/ratio.py). A
share of the experts (`expert_parallel`) is no row at all: the exchange between GPUs that it needs was not in its step.

Two words decide how a row is billed. `flags` holds `idle_included` (or the measuring side's `open_loop`) where the
rate was taken over time that already contains idling: a published row says "idle included" in its workload, or that it
is of MLPerf's Server or Interactive, whose requests arrive at random.
"""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import config, results
from bench import runs as run_folders
from bench.architecture import Model
from bench.price.imports import imported, load_of
from bench.price.known import known
from bench.price.metered import metered
from bench.price.quoted import quote

Row = dict[str, Any]
PUBLISHED_PHASES = ("train_step", "prefill", "decode", "serve")
PHASES = ("train_step", "rl_step", "prefill", "decode", "serve")
IDLE_INCLUDED = ("idle_included", "open_loop")
OPEN_LOOP = re.compile(r"MLPerf inference .*\b(Server|Interactive),")  # as `bench import` flags them
ADAPTERS = "adapters of rank"  # in the workload of an imported row that trained adapters alone
DRAWS = 4000
SEED = 20261122

COLUMNS: dict[str, tuple[str, str]] = {
    "row": ("s", "<run>/<cell>, published:<id> or import:<file>/<number>"),
    "basis": ("s", "measured, imported or modelled"),
    "phase": ("s", ", ".join(PHASES)),
    "model": ("s", "model key"),
    "workload": ("s", "workload key, or what ran in one phrase"),
    "backend": ("s", "backend, or software and version"),
    "precision": ("s", "precision of the matmuls"),
    "device": ("s", "cpu or cuda"),
    "gpu": ("s", "GPU key; cpu on a CPU; blank for a GPU no config names: never priced"),
    "n_gpus": ("i", "GPUs of the deployment"),
    "device_uuid": ("s", "device of a measured row: spread between devices needs at least two"),
    "vcpus": ("i", "vCPUs of the host; CPU rows only"),
    "token_kind": ("s", "which tokens the rate counts"),
    "system_tokens_per_s": ("f", "sustained rate of the whole deployment"),
    "low": ("f", "its 95% interval, low end; blank on most imported rows"),
    "high": ("f", "and its high end"),
    "batch_size": ("i", "sequences a step"),
    "input_tokens": ("f", "tokens in, a request (sequence length in training)"),
    "output_tokens": ("f", "tokens out, a request"),
    "cached_input_tokens": ("f", "of the tokens in, those a prefix cache spared; blank: none, or not told"),
    "layers": ("i", "layers of the model; blank on imported rows"),
    "layers_measured": ("s", "blank, or the depths of a fit: 8+16 of 32"),
    "source": ("s", "address of the figure; blank on measured rows"),
    "flags": ("s", "two_depth_fit, idle_included, below_best and the row's own, joined by +"),
    "lora_rank": ("i", "rank of the adapters, which alone were trained; blank: the whole model was"),
    "energy_joules_per_token": (
        "f",
        "of the deployment, for each token the rate counts; blank: not metered",
    ),
    "energy_boundary": ("s", "what was metered: gpu (the boards) or node (the wall)"),
    "quote": ("s", "what must be said wherever the row is shown: MLPerf's result, and that ours is derived"),
    "routing_zipf": ("f", "exponent experts were drawn with; 0 uniform; blank: the router's own, and imported rows"),
}
# What two depths of one cell share; everything else is the depth.
_SAME = (
    *("phase", "model", "workload", "backend", "precision", "device", "gpu", "n_gpus"),
    *("batch_size", "input_tokens", "output_tokens", "layers", "token_kind", "tokens_per_step"),
)


def throughput(
    runs: Sequence[Path],
    notes: list[str] | None = None,
    as_of: datetime.date = datetime.date.max,
    imports: Sequence[Path] = (),
) -> list[Row]:
    """Every throughput row, as dicts with the keys of COLUMNS: measured, published and imported ones.

    Of the last two kinds those known at `as_of`. One line for each slice left out, and each file of imports of which
    rows were, is appended to `notes`. Raises ResultsError for a malformed CSV.
    """
    notes = [] if notes is None else notes
    rows = [row for run in runs for row in _measured(run, notes)]
    theirs = published(as_of)
    others = [row | {"id": row["row"]} for row in theirs]
    return rows + theirs + [_landed(row) for row in imported(imports, others, notes, as_of)]


def published(as_of: datetime.date = datetime.date.max) -> list[Row]:
    """The rows of configs/published.csv that were there at `as_of`."""
    path = config.CONFIGS / "published.csv"
    rows = results.read_rows(path, results.PUBLISHED) if path.is_file() else []
    allowed: dict[str, Sequence[str]] = {"phase": PUBLISHED_PHASES, "token_kind": results.TOKEN_KINDS}
    allowed |= {"precision": config.PRECISIONS, "model": config.keys(Model), "gpu": config.keys(config.Gpu)}
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        where = f"{path}: line {number}"
        for name in ("id", "workload", "software", "as_of", "source", *allowed):
            if not row[name]:
                raise results.ResultsError(f"{where}: {name}: blank; every published row has one")
        for name, values in allowed.items():
            if row[name] not in values:
                raise results.ResultsError(f"{where}: {name}: expected one of {', '.join(values)}, got {row[name]!r}")
        for name in ("system_tokens_per_s", "n_gpus"):
            if not row[name] or row[name] <= 0:
                raise results.ResultsError(f"{where}: {name}: expected a positive number, got {row[name]}")
        if row["id"] in seen:
            raise results.ResultsError(f"{where}: id: {row['id']} stands twice")
        seen.add(row["id"])
    return [_imported(row) for row in rows if known(row["as_of"], as_of)]


def _landed(row: Mapping[str, Any]) -> Row:
    """A row of results/imports as a throughput row; its workload says the load, and whether adapters were trained."""
    same = {name: row[name] for name in COLUMNS if name in row}
    adapters = f", {ADAPTERS} {row['lora_rank']}" if row["lora_rank"] else ""
    own = {"row": row["id"], "basis": "imported", "backend": row["software"], "device": "cuda"}
    own |= {"low": row["system_tokens_per_s_low"], "high": row["system_tokens_per_s_high"]}
    own |= {"quote": quote(row["note"], row["source"])}
    return dict.fromkeys(COLUMNS) | same | own | {"workload": f"{row['workload']}{load_of(row)}{adapters}"}


def _imported(row: Mapping[str, Any]) -> Row:
    same = {name: row[name] for name in COLUMNS if name in results.PUBLISHED}
    workload = row["workload"] or ""
    idle = "idle_included" if "idle included" in workload else "open_loop" if OPEN_LOOP.match(workload) else None
    return (
        dict.fromkeys(COLUMNS)
        | same
        | {
            "row": f"published:{row['id']}",
            "basis": "imported",
            "backend": row["software"],
            "device": "cuda",
            "flags": idle,
            "quote": quote(row["note"], row["source"]),
        }
    )


def _measured(run: Path, notes: list[str]) -> list[Row]:
    """The rows of one run folder; slices of one cell become one fitted row or a note."""
    cells = run_folders.read_cells(run)
    machine = _machine(run)
    cells = [c for c in cells if c["status"] == "ok" and c["phase"] in PHASES and not _void(run, c, notes)]
    shares = [c for c in cells if (c["expert_parallel"] or 1) > 1]
    notes += [f"{run.name}/{c['cell']}: left out: a share of the experts, no exchange between GPUs" for c in shares]
    cells = [c for c in cells if c not in shares]
    slices: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    rows = []
    for cell in cells:
        if _is_slice(cell):
            slices[tuple(cell[name] for name in _SAME)].append(cell)
        elif cell["system_tokens_per_s"]:
            rows.append(_whole(run, cell, machine))
    whole = {tuple(c[name] for name in _SAME) for c in cells if not _is_slice(c)}
    for same, group in slices.items():
        if same not in whole:  # the whole model was measured too: no fit needed
            fitted = _fitted(run, group, machine, notes)
            rows += [fitted] if fitted else []
    return rows


def _machine(run: Path) -> Row:
    """Which device the run was on, and the host's vCPUs: columns of environment.json that prices and noise need."""
    facts = run_folders.read_environment(run)
    count = facts.get("cpu_count")
    return {"vcpus": count if isinstance(count, int) else None, "device_uuid": facts.get("device_uuid")}


def _void(run: Path, cell: Mapping[str, Any], notes: list[str]) -> bool:
    """Whether a cell is faster than its GPU's data sheet allows, or served what contradicts itself. Noted, left out."""
    if cell["phase"] == "serve" and "void" in (cell["flags"] or "").split("+"):
        notes.append(f"{run.name}/{cell['cell']}: void, left out: points.csv says why")
        return True
    step_s = _step_s(cell)
    if not step_s or not cell["gpu"] or cell["gpu"] == "cpu":
        return False
    gpu = config.load(config.Gpu, cell["gpu"])
    limits = [
        ("FLOP/s", cell["flops_per_step"], gpu.peak_flops_per_s.get(cell["precision"])),
        ("bytes/s", cell["bytes_per_step"], gpu.hbm_bytes_per_s),
    ]
    for unit, count, peak in limits:
        if count and peak and count / step_s > peak * cell["n_gpus"]:
            rate = f"{count / step_s:.3g} {unit}, the data sheet of {gpu.key} says {peak:.3g}"
            notes.append(f"{run.name}/{cell['cell']}: void, left out: {rate}")
            return True
    return False


def _is_slice(cell: Mapping[str, Any]) -> bool:
    measured, layers = cell["layers_measured"], cell["layers"]
    return bool(measured and layers and measured < layers)


def _whole(run: Path, cell: Mapping[str, Any], machine: Row) -> Row:
    same = {name: cell[name] for name in COLUMNS if name in results.CELLS}
    return (
        dict.fromkeys(COLUMNS)
        | same
        | {
            "row": f"{run.name}/{cell['cell']}",
            "basis": "measured",
            "vcpus": machine["vcpus"] if cell["device"] == "cpu" else None,
            "device_uuid": machine["device_uuid"],
            "low": cell["system_tokens_per_s_low"],
            "high": cell["system_tokens_per_s_high"],
            "layers_measured": None,  # the whole model
            **metered(run, cell),
        }
    )


def _fitted(run: Path, cells: list[Row], machine: Row, notes: list[str]) -> Row | None:
    """One row from the slices of one cell, or None with a note where they do not make a line."""
    first = cells[0]
    name = f"{run.name}/{first['model']}/{first['workload']}/{first['backend']}"
    depths = sorted({int(c["layers_measured"]) for c in cells})
    shown = f"{'+'.join(map(str, depths))} of {first['layers']}"
    cells = [c for c in cells if _step_s(c)]
    if len({c["layers_measured"] for c in cells}) < 2:
        notes.append(f"{name}: left out: {shown} layers measured, a fit needs two depths")
        return None
    low, step_s, high = fit(cells, first["layers"])
    tokens = first["tokens_per_step"]
    if not (tokens and step_s > 0 and low > 0):
        notes.append(f"{name}: left out: {shown} layers do not give a positive step time")
        return None
    flags = {flag for c in cells for flag in (c["flags"] or "").split("+") if flag}
    return _whole(run, first, machine) | {
        "row": f"{name}/{'+'.join(map(str, depths))}",
        "system_tokens_per_s": tokens / step_s,
        "low": tokens / high,
        "high": tokens / low,
        "layers_measured": shown,
        "flags": "+".join(["two_depth_fit", *sorted(flags)]),
        "energy_joules_per_token": None,  # of a slice, not of the model
        "energy_boundary": None,
    }


def _step_s(cell: Mapping[str, Any]) -> float | None:
    """The sustained step time; the median of all samples where the last third is blank."""
    value = cell["step_s_last_third"] or cell["step_s_median"]
    return float(value) if value else None


def fit(cells: Sequence[Mapping[str, Any]], layers: int) -> tuple[float, float, float]:
    """Step time in s of the whole model at `layers`, as (low, value, high) of its 95% interval."""
    x = np.array([[1.0, c["layers_measured"]] for c in cells])
    y = np.array([_step_s(c) for c in cells], dtype=float)
    # 95% of a normal lies within 1.96 standard deviations of its middle, on either side.
    spans = [(c["step_s_high"] or 0.0) - (c["step_s_low"] or 0.0) for c in cells]
    sd = np.array(spans) / (2 * 1.96)
    at = np.array([1.0, layers]) @ np.linalg.pinv(x)  # the fitted value is linear in y
    value = float(at @ y)
    redrawn = np.random.default_rng(SEED).normal(y, sd, (DRAWS, len(y))) @ at
    low, high = np.percentile(redrawn, (2.5, 97.5))
    return float(low), value, float(high)
