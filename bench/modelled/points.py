"""Known rates of known cells: rows of the throughput table, and the points of configs/validation.

A throughput row fits the model where it says what ran: measured or imported, a GPU with a config, no idle time in it,
lengths of both sides for serving, its batch for prefill and decode, and the whole machine's speed rather than what a
promise of latency left of it (MLPerf's Server rows). Of measured rows of one cell the fastest counts. A validation
point says itself whether it fits or only checks. Models that stand only behind points are in configs/validation/models,
so that no suite has to run them.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench import config, results
from bench.architecture import Model
from bench.config import Gpu
from bench.modelled.roofline import FEW, peak
from bench.modelled.work import Cell, Plan, plans
from bench.modelled_results import POINTS, TIERS
from bench.price.known import first_day
from bench.price.throughput import IDLE_INCLUDED

Row = Mapping[str, Any]
USES = ("fit", "check")


@dataclass(frozen=True)
class Point:
    """A cell, its known rate in tokens/s, and where that came from."""

    row: str
    tier: str
    use: str
    cell: Cell
    tokens_per_s: float
    source: str
    gpu: Gpu
    model: Model
    plans: tuple[Plan, ...]


def folder() -> Path:
    """configs/validation."""
    return config.CONFIGS / "validation"


def model_of(key: str) -> Model:
    """A model of configs/models, or of configs/validation/models. Raises ConfigError."""
    return _model(config.CONFIGS, key)


@cache
def _model(configs: Path, key: str) -> Model:
    own = configs / "validation" / "models" / f"{key}.toml"
    return config.read(Model, own) if own.is_file() else config.load(Model, key)


@cache
def _gpu(configs: Path, key: str) -> Gpu:
    return config.load(Gpu, key)


def validation() -> list[Point]:
    """The points of configs/validation/points.csv. Raises ResultsError for one that makes no sense."""
    path = folder() / "points.csv"
    rows = results.read_rows(path, POINTS) if path.is_file() else []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        where = f"{path}: line {number}"
        for name in ("id", "tier", "use", "phase", "model", "gpu", "n_gpus", "precision", "software", "as_of"):
            if not row[name]:
                raise results.ResultsError(f"{where}: {name}: blank; every point has one")
        for name, known in (("tier", TIERS), ("use", USES), ("token_kind", results.TOKEN_KINDS)):
            if row[name] not in known:
                raise results.ResultsError(f"{where}: {name}: expected one of {', '.join(known)}, got {row[name]!r}")
        if not str(row["source"]).startswith("https://"):
            raise results.ResultsError(f"{where}: source: expected the address of the figure, got {row['source']!r}")
        if not row["system_tokens_per_s"] or row["system_tokens_per_s"] <= 0 or not row["input_tokens"]:
            raise results.ResultsError(f"{where}: expected a positive rate and input_tokens")
        if row["id"] in seen:
            raise results.ResultsError(f"{where}: id: {row['id']} stands twice")
        seen.add(row["id"])
    return [_point(f"point:{row['id']}", row["tier"], row["use"], row, str(row["software"])) for row in rows]


def newest() -> datetime.date:
    """The day of the newest dated point: before it the model would know too much."""
    path = folder() / "points.csv"
    days = [first_day(str(row["as_of"])) for row in (results.read_rows(path, POINTS) if path.is_file() else [])]
    return max((day for day in days if day), default=datetime.date.min)


def of_rows(rows: Iterable[Row]) -> list[Point]:
    """The throughput rows that fit, as points."""
    made: list[Point] = []
    fastest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if refusal(row):
            continue
        names = ("gpu", "model", "precision", "phase", "input_tokens", "output_tokens", "lora_rank", "n_gpus")
        key = tuple(row[name] for name in names) if row["basis"] == "measured" else (row["row"],)
        best = fastest.get(key)
        if best is None or row["system_tokens_per_s"] > best["system_tokens_per_s"]:
            fastest[key] = row
    for row in fastest.values():
        tier = "cluster" if row["phase"] == "train_step" and row["n_gpus"] > FEW else "node"
        made.append(_point(str(row["row"]), tier, "fit", row, str(row["backend"] or "")))
    return [point for point in made if point.plans]


def refusal(row: Row) -> str | None:
    """Why a throughput row does not fit the model, or None."""
    gpus = config.keys(Gpu)
    if row["basis"] == "modelled" or row["device"] == "cpu" or row["gpu"] not in gpus:
        return "of no GPU with a config"
    if row["phase"] not in ("train_step", "prefill", "decode", "serve") or not row["model"] or not row["precision"]:
        return f"of phase {row['phase']}, or without model and precision"
    if "server," in f"{row['workload']}".lower():
        return "under a promise of latency"
    if set((row["flags"] or "").split("+")) & {*IDLE_INCLUDED, "above_datasheet"}:
        return "with idle time in it, or above the datasheet"
    if row["phase"] == "serve" and (
        row["token_kind"] != "output" or not (row["input_tokens"] and row["output_tokens"])
    ):
        return "without the lengths of both sides"
    if row["phase"] in ("prefill", "decode") and not row["batch_size"]:
        return "without its batch"
    if not row["input_tokens"] or not row["system_tokens_per_s"] or not row["n_gpus"]:
        return "without lengths or rate"
    return None


def _point(name: str, tier: str, use: str, row: Row, software: str) -> Point:
    serves = row["phase"] == "serve" and row.get("basis") is not None  # a measured row's batch is a static one's
    cell = Cell(
        model=str(row["model"]),
        gpu=str(row["gpu"]),
        n_gpus=int(row["n_gpus"]),
        precision=str(row["precision"]),
        phase=str(row["phase"]),
        input_tokens=float(row["input_tokens"]),
        output_tokens=row["output_tokens"] and float(row["output_tokens"]),
        batch=row["batch_size"] and float(row["batch_size"]) if not serves else None,
        tensor_parallel=row.get("tensor_parallel"),
        lora_rank=row.get("lora_rank"),
        recompute=row.get("recompute") == "full",
        software=software,
    )
    return point(name, tier, use, cell, float(row["system_tokens_per_s"]), str(row["source"] or ""))


def point(name: str, tier: str, use: str, cell: Cell, tokens_per_s: float, source: str) -> Point:
    """A cell with its plans. Raises ConfigError for an unknown model or GPU, or a precision the GPU has not."""
    gpu = _gpu(config.CONFIGS, cell.gpu)
    try:
        peak(gpu, cell.precision)
    except KeyError:
        raise config.ConfigError(
            f"configs/gpus/{gpu.key}.toml: peak_flops_per_s: expected a peak of {cell.precision} for {name}"
        ) from None
    model = model_of(cell.model)
    return Point(name, tier, use, cell, tokens_per_s, source, gpu, model, tuple(plans(cell, model, gpu)))
