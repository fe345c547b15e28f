"""Sampling a token from logits: temperature, top-k, top-p, then a draw from what is left; no sort.

Top-p is nucleus sampling (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751), applied to what top-k kept.

    keep    = {x_j >= the k-th largest logit}                        ties at the threshold are all kept
    p_j     = exp(x_j / temperature) over keep, normalised
    nucleus = {x_j >= t},  t the largest logit with Σ_{x_j >= t} p_j >= top_p          ties again all kept
    token   = the first j in the order of the vocabulary whose cumulative mass in the nucleus exceeds
              uniform · (mass of the nucleus)

The random number comes from the caller, so the op is a function: same inputs, same token. A row with temperature 0
gets the first of its largest logits; top_k of 0 or less, or beyond V, and top_p of 1 or more leave all tokens in;
top_p of 0 or less leaves the largest.

Nothing is sorted. Both sets are cut by a threshold, and that is searched for, exactly, on the integers that order
floats as the floats themselves. Three passes over the row, by as many programs as there are chunks in the batch:

    survey   peak and mass of each chunk
    weigh    mass and number at or above each of PIVOTS values between the bounds the survey gave
    gather   the logits between the two pivots that enclose the threshold, written densely: a fraction of the row

and one program a row ends it (draw): the search in that list, the chunk and in it the token. Without top-k and top-p
only survey and draw run. Sums have one fixed order: no atomics.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton

from bench.kernels.op import Op, Shape, processors
from bench.kernels.sampling_search import _draw, _gather, _survey, _weigh
from bench.kernels.tuning import tuned

MAX_VOCABULARY = 1 << 20  # the partial sums of a row's chunks are one tile; Gemma's 262k fit four times
PIVOTS = 8
# dtype -> low bits that are 0 in every value widened to fp32
SHIFT = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}


def _inverse(temperature: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """1 / temperature as a column, finite also at 0, where it leaves a mass to the largest logit alone."""
    if temperature is None:
        return like.new_ones(len(like), 1)
    return (1 / temperature.to(like.dtype)).clamp_max(torch.finfo(like.dtype).max)[:, None]


def _point(uniform: torch.Tensor, temperature: torch.Tensor | None) -> torch.Tensor:
    """Where in the cumulative mass to draw, as a column; the first token of all where temperature is 0."""
    return (uniform if temperature is None else uniform * (temperature > 0))[:, None]


def _top_k_mass(values: torch.Tensor, inverse: torch.Tensor, top_k: torch.Tensor | None) -> torch.Tensor:
    """Mass, relative to the largest, of logits sorted downwards; 0 beyond the top k."""
    mass = ((values - values[:, :1]) * inverse).exp()
    if top_k is None:
        return mass
    vocabulary = values.shape[1]
    rank = torch.where((top_k <= 0) | (top_k > vocabulary), vocabulary, top_k).long() - 1
    return mass.masked_fill(values < values.gather(1, rank[:, None]), 0)


def reference(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    *,
    temperature: torch.Tensor | None = None,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B, V) and (B,) uniform in [0, 1) -> (B,) int64. temperature, top_k, top_p: (B,) or None."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values, order = wide.sort(-1, descending=True)
    mass = _top_k_mass(values, _inverse(temperature, wide), top_k)
    if top_p is not None:
        total = mass.cumsum(-1)
        # the first place where the cumulative mass is enough, the last one where all is kept
        short = (total < top_p[:, None] * total[:, -1:]) | (top_p >= 1)[:, None]
        last = short.sum(-1, keepdim=True).clamp_max(values.shape[1] - 1)
        mass = mass.masked_fill(values < values.gather(1, last), 0)
    total = torch.zeros_like(mass).scatter(1, order, mass).cumsum(-1)
    # rounding may put the target at the very end, which no token exceeds
    target = torch.minimum(
        _point(uniform, temperature) * total[:, -1:], torch.nextafter(total[:, -1:], total[:, :1] * 0)
    )
    return (total > target).int().argmax(-1)


def error(outputs: tuple[torch.Tensor, ...], inputs: dict[str, Any]) -> float:
    """How far top_p, and uniform in the cumulative mass, would have to move for this token to be the right one.

    The larger of the two moves, the least over all nuclei that have the token in them, the largest over rows.
    Near a boundary either neighbour is right but for rounding: this allows that, and no more. Infinite for a token
    outside the vocabulary or the top k, which are decided without rounding.
    """
    (tokens,) = outputs
    logits, temperature, top_p = inputs["logits"], inputs.get("temperature"), inputs.get("top_p")
    point, inverse = _point(inputs["uniform"], temperature)[:, 0], _inverse(temperature, logits)
    if tokens.shape != logits.shape[:1] or tokens.dtype != torch.int64:
        raise ValueError(f"sampling: tokens are {tuple(tokens.shape)} {tokens.dtype}")
    worst = 0.0
    for row, token in enumerate(tokens.tolist()):
        if not 0 <= token < logits.shape[1]:
            return math.inf
        values, order = logits[row : row + 1].sort(-1, descending=True)
        top_k = None if inputs.get("top_k") is None else inputs["top_k"][row : row + 1]
        mass = _top_k_mass(values, inverse[row : row + 1], top_k)[0]
        values, order = values[0], order[0]
        mass = mass / mass.sum()
        # one candidate a distinct logit: the nucleus that ends with it
        ends = torch.cat((values[1:] != values[:-1], torch.ones_like(values[:1], dtype=torch.bool)))
        total = mass.cumsum(0)[ends]
        own = mass[order == token]
        before = (mass * (order < token)).cumsum(0)[ends] / total
        outside = torch.maximum(before - point[row], point[row] - before - own / total)
        if top_p is None or top_p[row] >= 1:
            reach = (total < total[-1]).double()
        else:
            share = top_p[row].clamp_min(0)
            reach = torch.maximum(torch.cat((total.new_zeros(1), total[:-1])) - share, share - total)
        moved = torch.maximum(outside, reach).clamp_min(0)
        moved[(values[ends] > logits[row, token]) | (own <= 0)] = math.inf
        worst = max(worst, float(moved.min()))
    return worst


def _check(logits: torch.Tensor, uniform: torch.Tensor, filters: dict[str, torch.Tensor | None]) -> None:
    if logits.dtype not in SHIFT:
        raise ValueError(f"sampling: want float32/16 or bfloat16 logits, got {logits.dtype}")
    if logits.dim() != 2 or logits.numel() == 0 or logits.shape[1] > MAX_VOCABULARY:
        raise ValueError(f"sampling: want (B, V) logits, V at most {MAX_VOCABULARY}, got {tuple(logits.shape)}")
    if logits.stride(1) != 1:
        raise ValueError("sampling: the vocabulary dimension must be contiguous")
    for name, x in {"uniform": uniform, **filters}.items():
        dtype = torch.int32 if name == "top_k" else torch.float32
        if x is not None and (x.dtype != dtype or x.shape != logits.shape[:1] or not x.is_contiguous()):
            raise ValueError(f"sampling: {name} must be a dense ({len(logits)},) {dtype}, got {x.shape}, {x.dtype}")
        if x is not None and x.device != logits.device:
            raise ValueError(f"sampling: logits on {logits.device}, {name} on {x.device}")


def _chunk_size(batch: int, vocabulary: int, device: torch.device) -> int:
    """Logits of one program: 8192, or half where that would leave multiprocessors idle."""
    return 8192 if batch * triton.cdiv(vocabulary, 8192) >= 2 * processors(device) else 4096


def sampling(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    *,
    temperature: torch.Tensor | None = None,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `reference`, for (B,) float32 uniform, temperature and top_p and int32 top_k. Rows may have any stride.

    A row with no finite logit, or with NaN or +inf in it, gets some token of the vocabulary.
    """
    _check(logits, uniform, {"temperature": temperature, "top_k": top_k, "top_p": top_p})
    batch, vocabulary = logits.shape
    device, stride = logits.device, logits.stride(0)
    chunk = _chunk_size(batch, vocabulary, device)
    chunks = triton.cdiv(vocabulary, chunk)
    sizes = {"V": vocabulary, "CHUNK": chunk, "C": chunks, "HAS_TEMPERATURE": temperature is not None}
    filters = {"HAS_K": top_k is not None, "HAS_P": top_p is not None}
    padded = {"CHUNKS": triton.next_power_of_2(chunks)}
    key = (batch.bit_length(), vocabulary.bit_length(), logits.element_size())
    # 32 elements a thread: 128 bytes of fp32 in flight
    warps = chunk // 1024

    def floats(*size: int) -> torch.Tensor:
        return torch.empty((batch, *size), dtype=torch.float32, device=device)

    survey, token = floats(3, chunks), torch.empty(batch, dtype=torch.int64, device=device)
    # WAYS x 2 sums a thread: 16 warps have 128 registers each
    draw = tuned("sampling.draw", key, {"WAYS": 16, "TILE": 1024, "num_warps": 16}, device)
    config = tuned("sampling.survey", key, {"num_warps": warps}, device)
    _survey[(batch, chunks)](logits, temperature, survey, stride, **sizes, **config)
    bracket = segments = listed = None
    # how much of a row is listed only the device knows: all of it fits, and a tile beyond, which is read unmasked
    room = {"ROOM": triton.cdiv(vocabulary, 16) * 16 + draw["TILE"]}
    if any(filters.values()):
        pivots, above = floats(PIVOTS), floats(chunks, 2, PIVOTS)
        bracket, segments = floats(3), floats(2, chunks)
        listed = torch.empty((batch, room["ROOM"]), dtype=logits.dtype, device=device)
        config = tuned("sampling.weigh", key, {"num_warps": warps}, device)
        _weigh[(batch, chunks)](
            logits, temperature, top_p, survey, pivots, above, stride,
            **sizes, **filters, **padded, PIVOTS=PIVOTS, **config,
        )  # fmt: skip
        config = tuned("sampling.gather", key, {"num_warps": warps}, device)
        _gather[(batch, chunks)](
            logits, temperature, top_k, top_p, survey, pivots, above, bracket, segments, listed, stride,
            **sizes, **filters, **padded, **room, PIVOTS=PIVOTS, **config,
        )  # fmt: skip
    _draw[(batch,)](
        logits, uniform, temperature, top_k, top_p, survey, bracket, segments, listed, token, stride,
        **sizes, **filters, **padded, **room, SHIFT=SHIFT[logits.dtype], **draw,
    )  # fmt: skip
    return token


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Normal logits, by default as wide as a trained model's (a few units); every row its own parameters."""
    batch, vocabulary = shape["B"], shape["V"]

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch, device=device, generator=generator)

    logits = shape.get("width", 3) * torch.randn((batch, vocabulary), device=device, generator=generator)
    if shape.get("levels"):
        # few distinct values: long ties at every threshold
        logits = (logits * shape["levels"]).round() / shape["levels"]
    temperature, top_p = draw(0.5, 1.5), draw(0.5, 0.99)
    top_k = torch.randint(1, min(vocabulary, 100), (batch,), device=device, generator=generator, dtype=torch.int32)
    if shape.get("mixed"):
        # one greedy row, one that filters nothing
        temperature[0], top_p[-1], top_k[-1] = 0, 1, 0
    return {
        "logits": logits.to(dtype),
        "uniform": draw(0, 1).clamp_max(1 - 2**-24),
        "temperature": temperature,
        "top_k": top_k if shape.get("k") else None,
        "top_p": top_p if shape.get("p") else None,
    }


def flops(shape: Shape) -> int:
    """Subtraction, scale, exp, sum: 4 a logit; what the search adds is the method's, not the op's."""
    return 4 * shape["B"] * shape["V"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read the logits once, and the row's parameters; write the tokens."""
    return shape["B"] * (shape["V"] * element + 8 + 8 + 4 * (shape.get("k", 0) + shape.get("p", 0)))


OP = Op(
    reference=reference,
    triton=sampling,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_top_p": {"B": 128, "V": 128256, "p": 1},
        "v131072_top_p": {"B": 128, "V": 131072, "p": 1},
        "v131072_top_k": {"B": 128, "V": 131072, "k": 1},
        "v131072_both": {"B": 128, "V": 131072, "k": 1, "p": 1},
        "qwen3_one_row": {"B": 1, "V": 151936, "k": 1, "p": 1},
        "qwen3_temperature": {"B": 32, "V": 151936},
        "gpt_oss_both": {"B": 512, "V": 201088, "k": 1, "p": 1},
    },
    test_shapes={
        "odd": {"B": 3, "V": 37, "k": 1, "p": 1},
        "top_k": {"B": 4, "V": 1000, "k": 1},
        "top_p": {"B": 4, "V": 3000, "p": 1, "width": 1},
        "chunks": {"B": 3, "V": 17001, "k": 1, "p": 1, "mixed": 1},
        "temperature": {"B": 3, "V": 9001, "mixed": 1},
        "peaked": {"B": 4, "V": 2500, "p": 1, "width": 20},
        "ties": {"B": 4, "V": 2500, "k": 1, "p": 1, "levels": 1, "width": 1},
        "ties_top_p": {"B": 4, "V": 2500, "p": 1, "levels": 2},
    },
    flops=flops,
    bytes=least_bytes,
    candidates={
        "sampling.survey": ({"num_warps": 4}, {"num_warps": 16}),
        "sampling.weigh": ({"num_warps": 4}, {"num_warps": 16}),
        "sampling.gather": ({"num_warps": 4}, {"num_warps": 16}),
        "sampling.draw": (
            {"TILE": 1024, "num_warps": 8},
            {"TILE": 512, "num_warps": 8},
            {"TILE": 2048, "WAYS": 8},
            {"WAYS": 8},
        ),
    },
    error=error,
    # in probability mass, and so for every dtype: the kernels compute in fp32 on exactly the logits they are given
    tolerance=dict.fromkeys(SHIFT, 1e-5),
)
