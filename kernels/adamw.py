"""AdamW over all parameters of a model in one launch (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101).

    m = β1·m + (1 - β1)·g,   v = β2·v + (1 - β2)·g²
    p = p·(1 - lr·λ) - lr · m/(1 - β1ᵗ) / (sqrt(v/(1 - β2ᵗ)) + eps)

in place, t counting updates from 1. Parameters are fp32 masters, whose 16-bit `copies` for the model are written in
the same pass, or 16-bit themselves. Then an update smaller than half the distance to the next number would be lost;
with `stochastic` a bfloat16 parameter is rounded up with the probability that keeps its mean: 16 random bits are
added below the last bit kept (Philox, keyed by `seed`, counted by element, chunk and t).

The kernel finds its tensors in a table of addresses on the device, one launch for all that share their dtypes. The
table is built once for a set of addresses and kept; that first call copies from the host, so it must come before a
CUDA graph is captured, and the gradients must then keep their addresses (`zero_grad(set_to_none=False)`). t lives
on the device, and lr may, so that a replayed graph counts on.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl

from bench.kernels.op import Op, Shape
from bench.kernels.tuning import tuned

CHUNK = 65536  # elements one program updates: so many that finding its tensor costs nothing
# float64 is for the reference: the kernel computes in fp32 whatever it reads
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Tensors = list[torch.Tensor]


def reference(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, step: torch.Tensor, *,
    lr: float | torch.Tensor, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
    copies: Tensors | None = None, stochastic: bool = False, seed: int = 0,
) -> tuple[Tensors, ...]:  # fmt: skip
    """One update of every tensor in place, in at least fp32. Rounds to the nearest, `stochastic` or not."""
    count, copied = step.double(), [None] * len(params) if copies is None else copies
    for p, g, m, v, copy in zip(params, grads, exp_avgs, exp_avg_sqs, copied, strict=True):
        wide, grad, avg, sq = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (p, g, m, v))
        avg = betas[0] * avg + (1 - betas[0]) * grad
        sq = betas[1] * sq + (1 - betas[1]) * grad.square()
        mean, spread = avg / (1 - betas[0] ** count), (sq / (1 - betas[1] ** count)).sqrt()
        wide = wide * (1 - lr * weight_decay) - lr * mean / (spread + eps)
        for kept, value in ((p, wide), (m, avg), (v, sq), (copy, wide)):
            if kept is not None:
                kept.copy_(value)
    return (params, exp_avgs, exp_avg_sqs) if copies is None else (params, exp_avgs, exp_avg_sqs, copies)


@triton.jit
def _random16(seed, step, chunk, first, BLOCK: tl.constexpr):
    """BLOCK numbers of 16 bits: eight from the 128 bits of each Philox counter."""
    # step, chunk and element have a word each: no two of them, and no two seeds, share a counter under one key
    a, b, c, d = tl.philox(seed, first // 8 + tl.arange(0, BLOCK // 8), chunk, step, 0)
    words = tl.join(tl.join(a, b), tl.join(c, d))
    return tl.reshape(tl.join(words & 0xFFFF, (words >> 16) & 0xFFFF), (BLOCK,))


@triton.jit
def _block(
    param, grad, avg, sq, copy, place, mask, seed, step, chunk, first,
    beta1, rest1, beta2, rest2, keep, rate, correction, eps,
    HAS_COPY: tl.constexpr, STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    g = tl.load(grad + place, mask).to(tl.float32)
    m = beta1 * tl.load(avg + place, mask).to(tl.float32) + rest1 * g
    v = beta2 * tl.load(sq + place, mask).to(tl.float32) + rest2 * g * g
    p = keep * tl.load(param + place, mask).to(tl.float32) - rate * m / (tl.sqrt(v * correction) + eps)
    tl.store(avg + place, m.to(avg.dtype.element_ty), mask)
    tl.store(sq + place, v.to(sq.dtype.element_ty), mask)
    if STOCHASTIC:
        bits = p.to(tl.int32, bitcast=True) + _random16(seed, step, chunk, first, BLOCK).to(tl.int32)
        rounded = (bits & -65536).to(tl.float32, bitcast=True)
        # NaN is all ones: adding to it would carry into the sign
        p = tl.where(p == p, rounded, p)
    tl.store(param + place, p.to(param.dtype.element_ty), mask)
    if HAS_COPY:
        tl.store(copy + place, p.to(copy.dtype.element_ty), mask)


@triton.jit
def _update(
    table_ptr, count, step_ptr, lr, seed, base, param_ptr, grad_ptr, avg_ptr, sq_ptr, copy_ptr,
    beta1, rest1, log1, beta2, rest2, log2, eps, decay,
    LR_ON_DEVICE: tl.constexpr, ALIGNED: tl.constexpr, HAS_COPY: tl.constexpr, STOCHASTIC: tl.constexpr,
    TENSORS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # rows of the table: first chunk, elements, then an address of each kind; its first row answers whose chunk this is
    tensor = tl.arange(0, TENSORS)
    starts = tl.load(table_ptr + tensor, tensor < count, other=0x7FFFFFFFFFFF)
    table_ptr += tl.sum((starts <= tl.program_id(0)).to(tl.int32), 0) - 1
    size = tl.load(table_ptr + count)
    # only the dtypes of the pointers handed over are used
    param = tl.load(table_ptr + 2 * count).to(param_ptr.dtype)
    grad = tl.load(table_ptr + 3 * count).to(grad_ptr.dtype)
    avg = tl.load(table_ptr + 4 * count).to(avg_ptr.dtype)
    sq = tl.load(table_ptr + 5 * count).to(sq_ptr.dtype)
    copy = param
    if HAS_COPY:
        copy = tl.load(table_ptr + 6 * count).to(copy_ptr.dtype)
    if ALIGNED:
        # bytes, as the launcher saw: an address read from memory says nothing of itself to the compiler
        param, grad, avg = tl.multiple_of(param, 16), tl.multiple_of(grad, 16), tl.multiple_of(avg, 16)
        sq, copy = tl.multiple_of(sq, 16), tl.multiple_of(copy, 16)
    step = tl.load(step_ptr)
    rate = tl.load(lr) if LR_ON_DEVICE else lr
    keep = 1 - rate * decay
    # 1 - βᵗ cancels where β is near 1: in float64, once a program
    rate /= (1 - tl.exp2(step.to(tl.float64) * log1)).to(tl.float32)
    correction = 1 / (1 - tl.exp2(step.to(tl.float64) * log2)).to(tl.float32)
    first = (tl.program_id(0) - tl.load(table_ptr)) * CHUNK
    last = tl.minimum(first + CHUNK, size)
    # whole blocks need no mask, and so keep their wide loads whatever the tensor's size
    whole = first + (last - first) // BLOCK * BLOCK
    update, chunk = step.to(tl.int32), base + tl.program_id(0)
    for start in range(first, whole, BLOCK):
        _block(
            param, grad, avg, sq, copy, start + tl.arange(0, BLOCK), None, seed, update, chunk,
            (start - first).to(tl.int32),
            beta1, rest1, beta2, rest2, keep, rate, correction, eps, HAS_COPY, STOCHASTIC, BLOCK,
        )  # fmt: skip
    if whole < last:
        place = whole + tl.arange(0, BLOCK)
        _block(
            param, grad, avg, sq, copy, place, place < last, seed, update, chunk,
            (whole - first).to(tl.int32),
            beta1, rest1, beta2, rest2, keep, rate, correction, eps, HAS_COPY, STOCHASTIC, BLOCK,
        )  # fmt: skip


_captured: list[torch.Tensor] = []  # tables that a CUDA graph reads for as long as it lives


@functools.lru_cache(maxsize=64)
def _table(device: torch.device, sizes: tuple[int, ...], *addresses: tuple[int, ...]) -> tuple[torch.Tensor, int]:
    """First chunk, size and addresses of every tensor, on the device; and the number of chunks."""
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + triton.cdiv(size, CHUNK))
    table = torch.tensor([starts[:-1], sizes, *addresses], dtype=torch.int64)
    return table.to(device), starts[-1]


def _launch(
    kinds: list[Any], step: torch.Tensor, lr: float | torch.Tensor, constants: tuple[float, ...],
    stochastic: bool, seed: int, base: int,
) -> int:  # fmt: skip
    """One launch for tensors that share their dtypes: parameters, gradients, both averages, copies or None.

    Its random numbers count chunks from `base`. Returns the chunk after its last."""
    params, copies = kinds[0], kinds[-1]
    addresses = [tuple(x.data_ptr() for x in tensors) for tensors in kinds if tensors is not None]
    aligned = all(address % 16 == 0 for row in addresses for address in row)
    table, chunks = _table(params[0].device, tuple(x.numel() for x in params), *addresses)
    if table.is_cuda and torch.cuda.is_current_stream_capturing():
        _captured.append(table)
    # 16 bytes of the widest tensor a thread; 16-bit ones beside fp32 follow its layout with 8, none is rearranged
    widest = max(tensors[0].element_size() for tensors in kinds if tensors is not None)
    config = {"BLOCK": 256 * 16 // widest, "num_warps": 8}
    key = (*(str(tensors[0].dtype).removeprefix("torch.") for tensors in kinds if tensors is not None),)
    config = tuned("adamw.update", key, config, params[0].device)
    _update[(chunks,)](
        table, len(params), step, lr, seed, base if stochastic else 0,
        *(None if tensors is None else tensors[0] for tensors in kinds),
        *constants, LR_ON_DEVICE=isinstance(lr, torch.Tensor), ALIGNED=aligned, HAS_COPY=copies is not None,
        STOCHASTIC=stochastic, TENSORS=triton.next_power_of_2(len(params)), CHUNK=CHUNK, **config,
    )  # fmt: skip
    return base + chunks


def _check(kinds: dict[str, Tensors | None], scalars: dict[str, torch.Tensor]) -> None:
    """Raise ValueError unless the lists belong together and every tensor is dense."""
    params = kinds["params"]
    if not params:
        raise ValueError("adamw: params must hold at least one tensor")
    for name, tensors in kinds.items():
        if tensors is None:
            continue
        if len(tensors) != len(params):
            raise ValueError(f"adamw: {len(params)} params, {len(tensors)} {name}")
        for x, param in zip(tensors, params, strict=True):
            if x.dtype not in DTYPES:
                raise ValueError(f"adamw: want float32/16 or bfloat16 {name}, got {x.dtype}")
            if x.shape != param.shape or x.device != params[0].device:
                raise ValueError(f"adamw: {name} have a {x.shape} on {x.device} beside a param of {param.shape}")
            if x.numel() == 0 or not x.is_contiguous():
                raise ValueError(f"adamw: {name} must be contiguous and not empty, got {x.shape}, {x.stride()}")
    for name, x in scalars.items():
        if x.dtype != torch.float32 or x.numel() != 1 or x.device != params[0].device:
            raise ValueError(f"adamw: {name} must be one float32 beside the params, got {x.dtype}, {x.shape}")


def adamw(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, exp_avg_sqs: Tensors, step: torch.Tensor, *,
    lr: float | torch.Tensor, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
    copies: Tensors | None = None, stochastic: bool = False, seed: int = 0,
) -> tuple[Tensors, ...]:  # fmt: skip
    """One update in place, a launch for each combination of dtypes. `step`, () fp32: the update's number, from 1."""
    kinds = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "copies": copies}
    _check(kinds, {"step": step} | ({"lr": lr} if isinstance(lr, torch.Tensor) else {}))
    if stochastic and any(x.dtype != torch.bfloat16 for x in params):
        raise ValueError("adamw: stochastic rounding is for bfloat16 params")
    if not all(0 < beta < 1 for beta in betas):
        raise ValueError(f"adamw: betas must lie between 0 and 1, got {betas}")
    # 1 - β and log β from the host's float64: in fp32, 1 - 0.999 would be off by 2e-5
    constants = (*(c for beta in betas for c in (beta, 1 - beta, math.log2(beta))), eps, weight_decay)
    lists = [kinds[name] for name in kinds]
    groups: dict[tuple[torch.dtype, ...], list[int]] = {}
    for index in range(len(params)):
        groups.setdefault(tuple(x[index].dtype for x in lists if x is not None), []).append(index)
    base = 0
    for members in groups.values():
        kept = [None if x is None else [x[i] for i in members] for x in lists]
        base = _launch(kept, step, lr, constants, stochastic, seed, base)
    # the kernel wrote past autograd: a graph that saved one of these must hear of it
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs, *(copies or ())])
    return (params, exp_avgs, exp_avg_sqs) if copies is None else (params, exp_avgs, exp_avg_sqs, copies)


def _sizes(shape: Shape) -> list[tuple[int, ...]]:
    """Parameters of a Llama-like model: embedding (tied), and in each layer its projections and two norms."""
    hidden, ffn, kv = shape["hidden"], shape["ffn"], shape["kv"]
    square, narrow, wide = (hidden, hidden), (kv, hidden), (ffn, hidden)
    layer = [square, narrow, narrow, square, wide, wide, (hidden, ffn), (hidden,), (hidden,)]
    outer = [(shape["vocab"], hidden), (hidden,)] if shape.get("vocab") else []
    return [*outer, *(layer * shape["layers"]), *([(1,)] if shape.get("single") else [])]


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """The third update of a run: fp32 parameters and averages with copies in `dtype` where `master`, else all in it.

    Gradients of unit size: their squares fit float16. `unaligned` ones start one element into their memory.
    """
    sizes, kept = _sizes(shape), torch.float32 if shape["master"] else dtype

    def draw(scale: float, dtype: torch.dtype, offset: int = 0) -> Tensors:
        flat = [torch.randn(math.prod(s) + offset, device=device, generator=generator) for s in sizes]
        return [(scale * x).to(dtype)[offset:].view(s) for x, s in zip(flat, sizes, strict=True)]

    params = draw(0.02, kept)
    return {
        "params": params,
        "grads": draw(1, dtype, shape.get("unaligned", 0)),
        "exp_avgs": draw(0.1, kept),
        "exp_avg_sqs": [x.square_() for x in draw(1, kept)],
        "step": torch.full((), 3.0, device=device),
        "lr": torch.full((), 1e-3, device=device) if shape.get("lr_on_device") else 1e-3,
        "copies": [torch.empty_like(x, dtype=dtype) for x in params] if shape["master"] else None,
        "stochastic": bool(shape.get("stochastic")) and kept == torch.bfloat16,
    }


def _elements(shape: Shape) -> int:
    return sum(math.prod(size) for size in _sizes(shape))


def flops(shape: Shape) -> int:
    """Three for each average; two divisions, a root, an add; decay, step and their sum. 14 in all."""
    return 14 * _elements(shape)


def least_bytes(shape: Shape, element: int) -> int:
    """Read parameter, gradient and both averages; write all but the gradient, and the copy."""
    kept = 4 if shape["master"] else element
    return _elements(shape) * (6 * kept + element + (element if shape["master"] else 0))


OP = Op(
    reference=reference,
    triton=adamw,
    inputs=inputs,
    shapes={
        "llama_3_2_1b": {"layers": 16, "hidden": 2048, "ffn": 8192, "kv": 512, "vocab": 128256, "master": 1},
        "llama_3_1_8b_layer": {"layers": 1, "hidden": 4096, "ffn": 14336, "kv": 1024, "master": 1, "lr_on_device": 1},
        "llama_3_2_1b_bf16": dict(layers=16, hidden=2048, ffn=8192, kv=512, vocab=128256, master=0, stochastic=1),
    },
    test_shapes={
        "masters": {"layers": 1, "hidden": 64, "ffn": 80, "kv": 16, "vocab": 1030, "master": 1, "lr_on_device": 1},
        "alike": {"layers": 2, "hidden": 32, "ffn": 80, "kv": 8, "master": 0},
        "odd": {"layers": 1, "hidden": 33, "ffn": 71, "kv": 5, "master": 1, "single": 1, "unaligned": 1},
    },
    flops=flops,
    bytes=least_bytes,
    mutates=("params", "exp_avgs", "exp_avg_sqs", "copies"),
    candidates={
        "adamw.update": (
            {"num_warps": 4},
            {"BLOCK": 512, "num_warps": 4},
            {"BLOCK": 2048},
            {"BLOCK": 2048, "num_warps": 16},
            {"BLOCK": 4096, "num_warps": 16},
        )
    },
)
