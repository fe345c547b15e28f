"""Cross-entropy over a large vocabulary, with its gradient computed in the forward pass.

    loss = 1/n · Σ_i (log Σ_j exp(x_ij) - x_i,target)      over the n rows whose target is not -100
    dloss/dx_ij = (softmax(x_i)_j - [j = target_i]) / n

One program owns one row and runs over it twice: once for the maximum and the sum of exponentials together (online
softmax, Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867), once for the gradient. A row of 128k logits fits
neither registers nor shared memory, so the second reading is meant for the L2 cache: one program a multiprocessor
holds 132 rows, 34 MB, in an H100's 50 MB. No softmax matrix is ever stored. Computing the gradient at once follows
Liger-Kernel (https://arxiv.org/abs/2410.10989), which writes it over the logits; here it goes to a buffer of its own,
so the caller's logits stay what they were, and backward multiplies that buffer by the gradient of the loss in place.
A second backward through one loss is therefore an error. `linear_cross_entropy` spares the logits altogether.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from bench.kernels.op import Op, Shape, processors
from bench.kernels.tuning import tuned

IGNORE_INDEX = -100  # PyTorch's default, and what data collators write
LOG2_E = tl.constexpr(1.4426950408889634)  # the hardware's exponential is base 2
LN_2 = tl.constexpr(0.6931471805599453)
# float64 is for the reference: the kernel computes in fp32 whatever it reads
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(N, V), (N,) int64 -> mean loss of the rows that are not ignored, in at least fp32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, targets, ignore_index=IGNORE_INDEX)


@triton.jit
def _row(
    logits_ptr, target, scale, loss_ptr, grad_ptr, V: tl.constexpr, HAS_GRAD: tl.constexpr, IGNORE: tl.constexpr,
    RUNS: tl.constexpr, RUN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    counted = target != IGNORE
    at = tl.arange(0, RUNS)[:, None] * RUN + tl.arange(0, RUN)[None, :]
    # a maximum and a sum for each run of RUN, which one thread loads at once: threads meet only after the last run.
    # Finite, so that a chunk of -inf logits (a masked part of the vocabulary) does not make -inf + inf
    peak = tl.full((RUNS,), -3e38, tl.float32)
    total = tl.zeros((RUNS,), tl.float32)
    # an ignored row's loop has no step
    for first in tl.range(0, tl.where(counted, V, 0), RUNS * RUN, num_stages=STAGES):
        x = tl.load(logits_ptr + first + at, first + at < V, other=float("-inf"), eviction_policy="evict_last")
        x = x.to(tl.float32) * LOG2_E
        # the sum so far is carried over to the new maximum: every exponent stays at or below 0
        new_peak = tl.maximum(peak, tl.max(x, 1))
        total = total * tl.exp2(peak - new_peak) + tl.sum(tl.exp2(x - new_peak[:, None]), 1)
        peak = new_peak
    top = tl.max(peak, 0)
    lse = top + tl.log2(tl.where(counted, tl.sum(total * tl.exp2(peak - top), 0), 1.0))
    # a target outside the vocabulary makes the loss NaN, never a read of foreign memory
    right = tl.load(logits_ptr + target, counted & (target >= 0) & (target < V), other=float("nan")).to(tl.float32)
    tl.store(loss_ptr, tl.where(counted, lse * LN_2 - right, 0.0))
    if HAS_GRAD:
        # an ignored row is walked as well, unread: its gradient must be written, as zeros
        for first in tl.range(0, V, RUNS * RUN, num_stages=STAGES):
            mask = first + at < V
            x = tl.load(logits_ptr + first + at, mask & counted, other=float("-inf"), eviction_policy="evict_first")
            grad = tl.exp2(x.to(tl.float32) * LOG2_E - lse) - tl.where(first + at == target, 1.0, 0.0)
            grad = tl.where(counted, grad * scale, 0.0)
            # streamed past the cache, which keeps what is still to be read
            tl.store(grad_ptr + first + at, grad.to(grad_ptr.dtype.element_ty), mask, cache_modifier=".cs")


@triton.jit
def _forward(
    logits_ptr, targets_ptr, count_ptr, loss_ptr, grad_ptr, rows, row_stride,
    V: tl.constexpr, HAS_GRAD: tl.constexpr, IGNORE: tl.constexpr,
    RUNS: tl.constexpr, RUN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # the count is a tensor on the device: reading it on the host would stall every training step
    scale = 1 / tl.load(count_ptr).to(tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        # 64 bits: 16k rows of 152k columns pass 2³¹
        far = tl.cast(row, tl.int64)
        _row(
            logits_ptr + far * row_stride, tl.load(targets_ptr + row), scale, loss_ptr + row, grad_ptr + far * V,
            V, HAS_GRAD, IGNORE, RUNS, RUN, STAGES,
        )  # fmt: skip


@triton.jit
def _scale(grad_ptr, factor_ptr, size, BLOCK: tl.constexpr):
    factor = tl.load(factor_ptr)
    # the usual loss.backward() brings 1: nothing to do, found out without asking the host
    if factor != 1.0:
        for first in range(tl.program_id(0).to(tl.int64) * BLOCK, size, tl.num_programs(0) * BLOCK):
            place = first + tl.arange(0, BLOCK)
            grad = tl.load(grad_ptr + place, place < size, other=0).to(tl.float32) * factor
            tl.store(grad_ptr + place, grad.to(grad_ptr.dtype.element_ty), place < size)


def scale_in_place(gradient: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply a dense gradient by a scalar on the device; autograd then refuses to hand it out again."""
    block, size = 4096, gradient.numel()
    programs = min(triton.cdiv(size, block), 8 * processors(gradient.device))
    _scale[(programs,)](gradient, factor, size, BLOCK=block, num_warps=8)
    torch.autograd.graph.increment_version(gradient)


def _config(logits: torch.Tensor) -> dict[str, Any]:
    """Blocks of 16 elements a thread, runs of 16 bytes; the widest row takes a whole multiprocessor's threads."""
    vocabulary = logits.shape[1]
    block = min(max(triton.next_power_of_2(vocabulary), 2048), 16384)
    run = 16 // logits.element_size()
    config = {"RUNS": block // run, "RUN": run, "STAGES": 3, "num_warps": block // 512}
    return tuned("cross_entropy.forward", (triton.next_power_of_2(vocabulary),), config, logits.device)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows, vocabulary = logits.shape
        # evaluation asks for no gradient: no buffer, no second pass
        wanted = ctx.needs_input_grad[0]
        count = (targets != IGNORE_INDEX).sum()
        loss = torch.empty(rows, dtype=torch.float32, device=logits.device)
        contiguous = torch.contiguous_format
        grad = torch.empty_like(logits, memory_format=contiguous) if wanted else logits
        config = _config(logits)
        # 32 warps a multiprocessor: one wide row, or several short ones
        programs = min(rows, 32 // config["num_warps"] * processors(logits.device))
        _forward[(programs,)](
            logits, targets, count, loss, grad, rows, logits.stride(0),
            V=vocabulary, HAS_GRAD=wanted, IGNORE=IGNORE_INDEX, **config,
        )  # fmt: skip
        if wanted:
            ctx.save_for_backward(grad)
        # no counted row gives 0 / 0 = NaN, as F.cross_entropy does
        return loss.sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,) = ctx.saved_tensors
        scale_in_place(grad, factor)
        return grad, None


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(N, V), (N,) int64 -> scalar fp32. Keeps one buffer the size of the logits where they need grad."""
    if logits.dtype not in DTYPES:
        raise ValueError(f"cross_entropy: want float32/16 or bfloat16 logits, got {logits.dtype}")
    if logits.dim() != 2 or targets.shape != logits.shape[:1] or logits.numel() == 0:
        raise ValueError(f"cross_entropy: want (N, V) and (N,), got {logits.shape}, {targets.shape}")
    if targets.dtype != torch.int64 or not targets.is_contiguous():
        raise ValueError(f"cross_entropy: targets must be dense int64, got {targets.dtype}")
    if logits.stride(1) != 1:
        raise ValueError("cross_entropy: the vocabulary dimension must be contiguous")
    if logits.device != targets.device:
        raise ValueError(f"cross_entropy: logits on {logits.device}, targets on {targets.device}")
    # a Function sees only that its input has a gradient, not that none is wanted now
    return _CrossEntropy.apply(logits if torch.is_grad_enabled() else logits.detach(), targets)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Logits as wide as a trained model's (a few units); every seventh row ignored where `ragged`."""
    size = (shape["N"], shape["V"])
    logits = 3 * torch.randn(size, device=device, generator=generator)
    targets = torch.randint(shape["V"], size[:1], device=device, generator=generator)
    if shape.get("ragged"):
        targets[::7] = IGNORE_INDEX
    return {"logits": logits.to(dtype), "targets": targets}


def flops(shape: Shape) -> int:
    """Maximum, subtraction, exp, sum."""
    return 4 * shape["N"] * shape["V"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read the logits once, and the targets; write a loss for each row."""
    return shape["N"] * (shape["V"] * element + 12)


def backward_bytes(shape: Shape, element: int) -> int:
    """Write the gradient once: forward does, and reads the logits for it again, which is left to the cache."""
    return shape["N"] * shape["V"] * element


OP = Op(
    reference=reference,
    triton=cross_entropy,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_train": {"N": 8192, "V": 128256},
        "llama_3_2_1b_train": {"N": 4096, "V": 128256},
        "qwen3_0_6b_train": {"N": 8192, "V": 151936},
    },
    test_shapes={
        "one_chunk": {"N": 5, "V": 512},
        "chunks": {"N": 3, "V": 8192},
        "odd": {"N": 15, "V": 9001, "ragged": 1},
    },
    flops=flops,
    bytes=least_bytes,
    backward_flops=lambda shape: 4 * shape["N"] * shape["V"],
    backward_bytes=backward_bytes,
    differentiable=("logits",),
    # one stage loads into registers, without a barrier; more copy ahead into shared memory
    candidates={
        "cross_entropy.forward": (
            {"STAGES": 1},
            {"STAGES": 2},
            {"STAGES": 4},
            {"STAGES": 1, "num_warps": 16},
            {"STAGES": 3, "num_warps": 16},
        )
    },
)
