"""What a cell has to do: FLOPs by kernel class, bytes of memory and of links, for each way to lay it out.

A plan says in what steps a rate is made. Training and prefill are one kind of step, decoding another; serving at its
maximum load is both: a request's prompt is computed once, and each of its answer's tokens shares a step with a batch,

    tokens/s = replicas * batch * output / (batch * t(prompt) + output * t(decode step))        (continuous batching)

The batch is the one that was told, or what memory holds at full length: MEMORY of the device less the weights, over
the cache of input + output tokens, at most MOST_SEQUENCES a GPU group (TensorRT-LLM's default). `n_gpus` GPUs are
replicas of `tensor_parallel` GPUs; where that was not told every power of two is a plan, and the fastest counts, as a
payer would choose. Tensor parallelism sums partial results over its GPUs twice a layer. A mixture of experts may split
its experts instead and keep attention whole on every GPU ("data-parallel attention"): tokens are then sent to experts.

Counts come from bench/model/accounting.py, the only home of the formulas. What is counted here beside them is traffic
of the least kind: VECTOR_* values read or written by norms, residuals, rotary, activation, a token and layer.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, fields

from bench.architecture import Model
from bench.config import Gpu
from bench.model import accounting

PHASES = ("train_step", "serve", "prefill", "decode")
MEMORY = 0.9  # of the device's, for weights and cache: what the engines take (vLLM's default; TensorRT-LLM 0.9 to 0.95)
MOST_SEQUENCES = 2048
ACTIVATION = 2  # bytes of an activation, bf16
VECTOR_HIDDEN, VECTOR_FFN = 10, 3  # values of the hidden and the inner width a forward pass moves, a token and layer
BACKWARD = 2.8  # a training step moves this many times as many: 28 of the hidden, 8 of the inner width
LOGITS_BYTES = 12  # of a vocabulary entry and trained token: log-probabilities, their gradient, the logits'
ROUTE_HIDDEN = 4  # copies of a token's hidden values that dispatch to and return from one expert read or write
TRAINING_PASSES = 3  # forward, gradient of activations, gradient of weights; a full recomputation adds a forward
STATE_BYTES = 18  # a trained parameter's weight, gradient, master and two averages (memory.py), for how many GPUs


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to time. Lengths as throughput rows have them; `batch` sequences at once, whole deployment."""

    model: str
    gpu: str
    n_gpus: int
    precision: str
    phase: str  # train_step, prefill, decode or serve
    input_tokens: float
    output_tokens: float | None = None
    batch: float | None = None
    tensor_parallel: int | None = None
    lora_rank: int | None = None
    recompute: bool = False
    software: str = ""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of one GPU. Matmul, experts and attention have FLOPs and bytes that overlap: the longer counts."""

    matmul_flops: float = 0.0
    weight_bytes: float = 0.0
    expert_flops: float = 0.0
    expert_bytes: float = 0.0
    head_flops: float = 0.0  # in bf16, whatever the precision
    attention_flops: float = 0.0  # in bf16
    cache_bytes: float = 0.0
    vector_bytes: float = 0.0
    route_bytes: float = 0.0
    link_bytes: float = 0.0
    layers: float = 0.0  # of a decode step: each costs a launch


AMOUNTS = tuple(field.name for field in fields(Step))


@dataclass(frozen=True)
class Plan:
    """seconds = times * t(once) + repeats * t(again); `tokens` of the whole deployment come of it."""

    once: Step
    times: float
    again: Step
    repeats: float
    tokens: float
    batch: float = 0.0
    tensor_parallel: int = 1


def plans(cell: Cell, model: Model, gpu: Gpu) -> list[Plan]:
    """Every way to run the cell; none where it does not fit the memory."""
    if cell.phase == "train_step":
        return [_training(cell, model)]
    sizes = [cell.tensor_parallel] if cell.tensor_parallel else _powers(cell.n_gpus)
    sizes = sizes if gpu.link_bytes_per_s else [size for size in sizes if size == 1]
    split = (False, True) if model.moe_layers else (False,)
    made = [_serving(cell, model, gpu, size, apart) for size in sizes for apart in split if size > 1 or not apart]
    return [plan for plan in made if plan]


def _powers(most: int) -> list[int]:
    """Powers of two that divide `most`, up to four nodes of eight."""
    return [size for size in (1, 2, 4, 8, 16, 32) if size <= most and most % size == 0]


def _vector_bytes(model: Model) -> float:
    """Bytes the elementwise kernels of a forward pass move, a token."""
    inner = (model.layers - model.moe_layers) * (model.ffn or 0)
    inner += model.moe_layers * (model.top_k + model.shared_experts) * (model.ffn_expert or 0)
    return ACTIVATION * (VECTOR_HIDDEN * model.hidden * model.layers + VECTOR_FFN * inner)


def _route_bytes(model: Model) -> float:
    """Bytes that sorting a token to its experts and back moves."""
    return float(ACTIVATION * ROUTE_HIDDEN * model.moe_layers * model.top_k * model.hidden)


def _training(cell: Cell, model: Model) -> Plan:
    """One sequence on one GPU; the others do the same. Adapters leave their base no gradient of weights."""
    tokens = int(cell.input_tokens)
    passes = TRAINING_PASSES + cell.recompute
    matrices = passes - bool(cell.lora_rank)
    experts = 2 * accounting.active_expert_params(model)
    dense = 2 * accounting.layer_matmul_params(model) - experts
    adapters = 2 * accounting.adapter_params(model, cell.lora_rank) if cell.lora_rank else 0
    step = Step(
        matmul_flops=float(tokens * (matrices * dense + TRAINING_PASSES * adapters)),
        expert_flops=float(tokens * matrices * experts),
        head_flops=float(tokens * (TRAINING_PASSES - bool(cell.lora_rank)) * 2 * model.vocab * model.hidden),
        attention_flops=float(passes * accounting.attention_flops(model, tokens, halved=True)),
        vector_bytes=tokens * (BACKWARD * _vector_bytes(model) + LOGITS_BYTES * model.vocab),
        route_bytes=tokens * TRAINING_PASSES * _route_bytes(model),
    )
    return Plan(step, 1.0, Step(), 0.0, float(tokens * cell.n_gpus))


def _serving(cell: Cell, model: Model, gpu: Gpu, size: int, apart: bool) -> Plan | None:
    """Replicas of `size` GPUs. `apart`: experts are split over them, everything else is on each."""
    replicas = cell.n_gpus / size
    output = cell.output_tokens or 0.0
    batch = _batch(cell, model, gpu, size, apart)
    if batch is None:
        return None
    link = _link_bytes(model, size, apart)
    if cell.phase == "prefill":
        prompts = (cell.batch or batch * replicas) / replicas
        step = _prompt(cell, model, size, link, prompts)
        return Plan(step, 1.0, Step(), 0.0, cell.input_tokens * prompts * replicas, prompts, size)
    decode = _decode(cell, model, size, apart, batch, link)
    if cell.phase == "decode":
        return Plan(Step(), 0.0, decode, 1.0, batch * replicas, batch, size)
    return Plan(_prompt(cell, model, size, link, 1.0), batch, decode, output, replicas * batch * output, batch, size)


def _batch(cell: Cell, model: Model, gpu: Gpu, size: int, apart: bool) -> float | None:
    """Sequences a replica decodes at once; None where not even one fits beside the weights."""
    bytes_each = accounting.WEIGHT_BYTES[cell.precision]
    experts = accounting.expert_params(model) * bytes_each
    rest = (accounting.total_params(model) - accounting.expert_params(model)) * bytes_each
    free = MEMORY * gpu.memory_bytes * size - experts - rest * (size if apart else 1)
    longest = cell.input_tokens + (cell.output_tokens or 0.0)
    copies = size if model.attention == "mla" and not apart else 1  # heads are shared out, the latent cache is not
    fits = free / (copies * accounting.cache_bytes_read(model, longest, cache_precision(cell.precision)))
    if fits < 1:
        return None
    told = cell.batch / (cell.n_gpus / size) if cell.batch else MOST_SEQUENCES * (size if apart else 1)
    return min(told, fits)


def cache_precision(precision: str) -> str:
    """Engines that quantise weights quantise the cache to fp8; others keep it in bf16."""
    return "fp8" if precision in ("fp8", "fp4") else "bf16"


def _link_bytes(model: Model, size: int, apart: bool) -> float:
    """Bytes one GPU sends for one token of the replica. Ring all-reduce: 2 (n - 1) / n of the values, twice a layer.

    Experts apart: a GPU's share of the tokens (1 / n) goes to top_k experts and returns.
    """
    if apart:
        sent = 2 * model.moe_layers * model.top_k * model.hidden * (size - 1) / size / size
    else:
        sent = 2 * model.layers * 2 * model.hidden * (size - 1) / size
    return ACTIVATION * sent


def _prompt(cell: Cell, model: Model, size: int, link: float, prompts: float) -> Step:
    """Prompts of one replica, on one of its GPUs; logits of the last position alone, weights read by who decodes."""
    tokens = cell.input_tokens * prompts
    experts = 2 * accounting.active_expert_params(model)
    dense = 2 * accounting.layer_matmul_params(model) - experts
    attention = accounting.attention_flops(model, int(cell.input_tokens), halved=True)
    return Step(
        matmul_flops=dense * tokens / size,
        expert_flops=experts * tokens / size,
        attention_flops=attention * prompts / size,
        vector_bytes=_vector_bytes(model) * tokens / size,
        route_bytes=_route_bytes(model) * tokens / size,
        link_bytes=link * tokens,
    )


def _decode(cell: Cell, model: Model, size: int, apart: bool, batch: float, link: float) -> Step:
    """One token for each of `batch` sequences of a replica, on one of its GPUs, at the mean context of the answer."""
    bytes_each = accounting.WEIGHT_BYTES[cell.precision]
    output = cell.output_tokens or 0.0
    contexts = [cell.input_tokens + output * share for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    width = cache_precision(cell.precision)
    cache = statistics.fmean(accounting.cache_bytes_read(model, at, width) for at in contexts)
    attention = statistics.fmean(accounting.decode_attention_flops(model, at) for at in contexts)
    experts = 2 * accounting.active_expert_params(model)
    embedding = 0 if model.tie_embeddings else model.vocab * model.hidden
    dense = accounting.total_params(model) - embedding - accounting.expert_params(model)
    copies = size if model.attention == "mla" and not apart else 1
    return Step(
        matmul_flops=(2 * accounting.layer_matmul_params(model) - experts) * batch / size,
        weight_bytes=dense * bytes_each / (1 if apart else size),
        expert_flops=experts * batch / size,
        expert_bytes=accounting.expert_params(model) * accounting.touched(model, batch) * bytes_each / size,
        head_flops=2 * model.vocab * model.hidden * batch / size,
        attention_flops=attention * batch / size,
        cache_bytes=cache * batch * copies / size,
        vector_bytes=_vector_bytes(model) * batch / size,
        route_bytes=_route_bytes(model) * batch / size,
        link_bytes=link * batch,
        layers=float(model.layers),
    )
