"""How measurement enters a claim: r, the price of a useful FLOP served over one trained.

A trained token costs 6N useful FLOPs, a served one 2N (N = active parameters). On the same GPU,
model and price per GPU-hour, N and the price cancel:

    r = (price / (3600 served 2N)) / (price / (3600 trained 6N)) = 3 trained / served

with `trained` and `served` in computed tokens per GPU-second, input and output alike. (Attention's
own FLOPs are left out on both sides, tokens read from a cache are not computed.) A `serve` row
gives `served` directly: output-only rates times (input + output) / output. Prefill and decode rows
are mixed at w inputs computed per output: a request takes w / prefill + 1 / decode GPU-seconds.

Who enters: measured before imported before modelled, within one (gpu, model, precision, phase). Of
measured rows the fastest configuration counts, as a payer would run it: workload, backend (a public
implementation as well as ours), batch and number of GPUs are the payer's to choose; the rate is per
GPU. How tokens spread over a mixture's experts is not: the rates under uniform and under skewed
(Zipf) routing count alike, each of its own fastest configuration. Uniform alone would flatter
training, for real data never routes evenly; skewed alone would charge it with what our own serving
rows, of random weights, do not pay. The router's own choice, of random weights too, counts as uniform.
Imported rows are other people's choices, so all of them count alike; of an imported sweep of loads the best alone
is a choice, the others (flag `below_best`) are points of its frontier. Modelled rows would rank last; by default claims
are given none (bench/modelled/rows.py says why).

Who never enters: CPU rows, models under 0.5e9 parameters, slices without a two-depth fit; adapters on
a frozen base (LoRA), whose trained token costs 4N and not 6N; steps of reinforcement learning, which
are mostly inference. What exchange between GPUs costs is in a rate only where it ran on several.

Noise: a row's own 95% interval, and the spread between runs and devices (5% a side; the runs' own
where there are 3 runs on 2 devices).

Headline: every pair of the best basis there is (measured, else imported, else modelled), as a
mixture: equal weight for every (gpu, model), inside it for every precision pair and workload class,
inside that for every row. No single row decides.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from bench import config
from bench.architecture import Model
from bench.claim.priors import Array, Seed, normals
from bench.price.imports import BELOW_BEST
from bench.price.throughput import IDLE_INCLUDED
from bench.results import BASES

Row = Mapping[str, Any]
PHASES = ("train_step", "prefill", "decode", "serve")
CHOSEN = ("workload", "backend", "batch_size", "n_gpus")  # a configuration: what whoever pays decides
MIN_PARAMS = 0.5e9  # smaller models are launch-bound: their ratio says nothing about large ones
SPREAD = 0.05  # sd of ln rate between runs and devices; judgement, MLPerf training's median is 3.6%
MIN_RUNS, MIN_DEVICES = 3, 2  # from here on the runs' own spread counts
CASE, TRAINING, SERVING = STREAMS = ("r: case", "r: training", "r: serving")  # the pair drawn, and either side's noise
DRAWN = ("r", "r_training_busy", "r_serving_busy")  # what draw() answers
INTERVAL = 2 * 1.96  # a row's low..high is a 95% interval, in sd


@dataclass(frozen=True)
class Source:
    """One rate: computed tokens per GPU-second, sd of its logarithm, and the rows behind it."""

    tokens_per_gpu_s: float
    sd: float
    holds_idle: bool  # taken over time that contains idling: no availability or load on top
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Rate:
    """The rates of one phase on one GPU, all of one basis; `traffic`: class of serve rows."""

    gpu: str
    model: str
    precision: str
    phase: str
    traffic: str
    basis: str
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Pair:
    """Trained and served rates of one GPU and model. `serve`: (serve,) or (prefill, decode)."""

    train: Rate
    serve: tuple[Rate, ...]
    traffic: str

    @property
    def basis(self) -> str:
        """The weaker basis of its sides."""
        return max((rate.basis for rate in (self.train, *self.serve)), key=BASES.index)

    @property
    def rows(self) -> tuple[str, ...]:
        """The throughput rows it rests on."""
        rates = (self.train, *self.serve)
        return tuple(row for rate in rates for source in rate.sources for row in source.rows)

    @property
    def name(self) -> str:
        """llama_3_1_8b on h100_sxm_80gb, bf16 trained, fp8 served, chat."""
        return (
            f"{self.train.model} on {self.train.gpu}, {self.train.precision} trained, "
            f"{self.serve[0].precision} served, {self.traffic}"
        )


@dataclass(frozen=True)
class Mix:
    """Draws of one workload class: input tokens computed per output token."""

    traffic: str
    computed_input: Array


def refusal(row: Row, models: Mapping[str, Model]) -> str | None:
    """Why a throughput row never enters a claim about GPUs, or None."""
    model = models.get(str(row.get("model")))
    measured = str(row.get("layers_measured") or "")
    if row.get("device") == "cpu" or row.get("gpu") in (None, "", "cpu"):
        return "without a GPU"
    if model is None or model.total_params < MIN_PARAMS:
        return "of a model under 0.5B parameters or without a config"
    if not row.get("precision"):
        return "of a precision nobody told"
    if row["phase"] not in PHASES:
        return f"of phase {row['phase']} (neither pre-training nor serving)"
    if row.get("lora_rank"):
        return "of adapters on a frozen base (a trained token costs 4N and not 6N)"
    if measured not in ("", str(row.get("layers") or model.layers)) and "+" not in measured:
        return "of a slice without a two-depth fit"
    if not row.get("system_tokens_per_s") or not row.get("n_gpus"):
        return "without a rate"
    if "above_datasheet" in _flags(row):
        return "above the datasheet"
    if BELOW_BEST in _flags(row):
        return "of a load below the best of its sweep"
    if row["phase"] == "serve" and _served_per_counted(row) is None:
        return "without the lengths to count input and output"
    return None


def _flags(row: Row) -> set[str]:
    return set(str(row.get("flags") or "").split("+"))


def _lengths(row: Row) -> tuple[float, float]:
    """Computed tokens in and out of a request."""
    spared = float(row.get("cached_input_tokens") or 0)
    return float(row.get("input_tokens") or 0) - spared, float(row.get("output_tokens") or 0)


def _served_per_counted(row: Row) -> float | None:
    """Input and output tokens per counted token of a serve row, from the row's own lengths."""
    if row["token_kind"] == "total":
        return 1.0
    inputs, outputs = _lengths(row)
    counted = {"output": outputs, "input": inputs}.get(str(row["token_kind"]), 0.0)
    return (inputs + outputs) / counted if inputs and outputs and counted else None


def traffic_of(row: Row) -> str:
    """Workload class of a serve row by input per output token: under 1, under 8, or more."""
    inputs, outputs = _lengths(row)
    if not inputs or not outputs:
        return "fleet mix"
    return "generation" if inputs < outputs else "chat" if inputs < 8 * outputs else "long input"


def rates(rows: Sequence[Row], computed: Mapping[str, float]) -> tuple[list[Rate], Counter[str]]:
    """The rates that may enter, sorted, and how many rows were refused for which reason.

    `computed`: row -> computed part of its counted tokens, for rows that count cached ones.
    """
    models = config.load_all(Model)
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    refused: Counter[str] = Counter()
    for row in rows:
        reason = refusal(row, models)
        refused.update([reason] if reason else [])
        key = tuple(str(row[name]) for name in ("gpu", "model", "precision", "phase"))
        groups[key] += [] if reason else [row]
    found = []
    for key, members in groups.items():
        basis = min((str(row["basis"]) for row in members), key=BASES.index, default="")
        classes: dict[str, list[Row]] = defaultdict(list)
        for row in members:
            if row["basis"] == basis:
                classes[traffic_of(row) if row["phase"] == "serve" else ""].append(row)
        for traffic, same in classes.items():
            gpu, model, precision, phase = key
            sources = _sources(same, computed)
            found.append(Rate(gpu, model, precision, phase, traffic, basis, sources))
    return sorted(found, key=lambda r: (r.model, r.gpu, r.phase, r.precision, r.traffic)), refused


def _sources(rows: Sequence[Row], computed: Mapping[str, float]) -> tuple[Source, ...]:
    """Imported rows: each its own. Measured ones: the fastest configuration of each routing, over its runs."""
    configurations: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        apart = (row.get("routing_zipf") or 0.0) if row["basis"] == "measured" else row["row"]
        configurations[apart, *(row.get(name) for name in CHOSEN)].append(row)
    fastest: dict[Any, Source] = {}
    for (apart, *_), runs in configurations.items():
        source = _source(runs, computed)
        if apart not in fastest or source.tokens_per_gpu_s > fastest[apart].tokens_per_gpu_s:
            fastest[apart] = source
    return tuple(sorted(fastest.values(), key=lambda source: source.rows))


def _source(runs: Sequence[Row], computed: Mapping[str, float]) -> Source:
    per_gpu = [_per_gpu(row) * computed.get(str(row["row"]), 1.0) for row in runs]
    own = statistics.median(map(_own_sd, runs))
    return Source(
        tokens_per_gpu_s=statistics.median(per_gpu),
        sd=math.hypot(own, _spread(runs, per_gpu)),
        holds_idle=not _flags(runs[0]).isdisjoint(IDLE_INCLUDED),
        rows=tuple(sorted(str(row["row"]) for row in runs)),
    )


def _per_gpu(row: Row) -> float:
    counted = _served_per_counted(row) if row["phase"] == "serve" else 1.0
    return float(row["system_tokens_per_s"]) / float(row["n_gpus"]) * (counted or 1.0)


def _own_sd(row: Row) -> float:
    low, high = row.get("low"), row.get("high")
    return math.log(high / low) / INTERVAL if low and high else 0.0


def _spread(runs: Sequence[Row], per_gpu: Sequence[float]) -> float:
    names = {str(row["row"]).split("/")[0] for row in runs}
    devices = {row.get("device_uuid") for row in runs} - {None, ""}
    if len(names) < MIN_RUNS or len(devices) < MIN_DEVICES:
        return SPREAD
    return statistics.stdev(math.log(rate) for rate in per_gpu)


def pairs(found: Sequence[Rate], classes: Sequence[str]) -> list[Pair]:
    """Every trained rate with every served one of its GPU and model; prefill + decode per class."""
    result = []
    for train in (rate for rate in found if rate.phase == "train_step"):
        same = [r for r in found if (r.gpu, r.model) == (train.gpu, train.model)]
        result += [Pair(train, (rate,), rate.traffic) for rate in same if rate.phase == "serve"]
        for prefill in (rate for rate in same if rate.phase == "prefill"):
            decodes = [r for r in same if r.phase == "decode" and r.precision == prefill.precision]
            result += [Pair(train, (prefill, d), f"{c} by phase") for d in decodes for c in classes]
    return sorted(result, key=lambda pair: pair.name)


def basis_of(found: Sequence[Any]) -> str:
    """The bases of pairs, or of whatever else has one, best first: imported, or measured+imported."""
    return "+".join(sorted({one.basis for one in found}, key=BASES.index))


def draw(chosen: Sequence[Pair], mixes: Sequence[Mix], draws: int, seed: Seed) -> dict[str, Array]:
    """r and, per draw, whether either side still lacks its idle time (1) or holds it (0).

    `chosen` must not be empty. Each entry has shape (draws,).
    """
    members = Counter((pair.train.gpu, pair.train.model) for pair in chosen)
    cases: list[tuple[float, Pair, Source, tuple[Source, ...]]] = []
    for pair in chosen:
        inside = list(itertools.product(pair.train.sources, *(r.sources for r in pair.serve)))
        weight = 1 / members[pair.train.gpu, pair.train.model] / len(inside)
        cases += [(weight, pair, train, tuple(serve)) for train, *serve in inside]
    ends = np.cumsum([weight for weight, *_ in cases])
    u = ndtr(normals(CASE, draws, seed))
    which = np.searchsorted(ends[:-1] / ends[-1], u, side="right")

    def each(values: Sequence[float]) -> Array:
        return np.asarray(np.array(values, dtype=float)[which])

    inputs = np.zeros(draws)  # of a serve row: none apart, its rate counts them
    for mix in mixes:
        own = each([len(s) == 2 and p.traffic.startswith(mix.traffic) for _, p, _, s in cases])
        inputs = np.where(own > 0, mix.computed_input, inputs)
    first = each([1 / serve[0].tokens_per_gpu_s for *_, serve in cases])
    last = each([1 / serve[-1].tokens_per_gpu_s for *_, serve in cases])
    noise = each([train.sd for _, _, train, _ in cases]) * normals(TRAINING, draws, seed)
    spread = each([max(source.sd for source in serve) for *_, serve in cases])
    noise -= spread * normals(SERVING, draws, seed)
    trained = each([train.tokens_per_gpu_s for _, _, train, _ in cases])
    return {
        "r": 3 * trained * (inputs * first + last) / (inputs + 1) * np.exp(noise),
        "r_training_busy": each([not train.holds_idle for _, _, train, _ in cases]),
        "r_serving_busy": each([not serve[0].holds_idle for *_, serve in cases]),
    }
