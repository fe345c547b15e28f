"""Cross-entropy over a large vocabulary, with its gradient computed in the forward pass.

    loss = 1/n · Σ_i (log Σ_j exp(x_ij) - x_i,target)      over the n rows whose target is not -100
    dloss/dx_ij = (softmax(x_i)_j - [j = target_i]) / n

One program owns one row and runs over it twice in chunks: once for the maximum and the sum of
exponentials together (online softmax, Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867), once for
the gradient, when the row mostly comes from the L2 cache. No softmax matrix is ever stored. Computing
the gradient at once follows Liger-Kernel (https://arxiv.org/abs/2410.10989), which writes it over the logits;
here it goes to a buffer of its own, so the caller's logits stay what they were, and backward multiplies
that buffer by the gradient of the loss in place. A second backward through one loss is therefore an error.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from bench.kernels.op import Compile, Op, Shape

IGNORE_INDEX = -100  # PyTorch's default, and what data collators write
BLOCK = 4096
WARPS = 8  # 16 elements of a chunk a thread
# float64 is for the reference: the kernel computes in fp32 whatever it reads
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(N, V), (N,) int64 -> mean loss of the rows that are not ignored, in at least fp32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, targets, ignore_index=IGNORE_INDEX)


@triton.jit
def _forward(
    logits_ptr, targets_ptr, count_ptr, loss_ptr, grad_ptr, row_stride,
    V: tl.constexpr, HAS_GRAD: tl.constexpr, IGNORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # 64 bits: 16k rows of 152k columns pass 2³¹
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    grad_ptr += row * V
    target = tl.load(targets_ptr + row)
    counted = target != IGNORE
    # finite, so that a chunk of -inf logits (a masked part of the vocabulary) does not make -inf + inf
    peak = tl.full((), -3e38, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    # an ignored row's loop has no step
    for first in range(0, tl.where(counted, V, 0), BLOCK):
        col = first + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + col, col < V, other=float("-inf")).to(tl.float32)
        # the sum so far is carried over to the new maximum: every exponent stays at or below 0
        new_peak = tl.maximum(peak, tl.max(x, 0))
        total = total * tl.exp(peak - new_peak) + tl.sum(tl.exp(x - new_peak), 0)
        peak = new_peak
    total = tl.where(counted, total, 1.0)
    known = counted & (target >= 0) & (target < V)
    right = tl.load(logits_ptr + target, known, other=float("nan")).to(tl.float32)
    # a target outside the vocabulary makes the loss NaN, never a read of foreign memory
    tl.store(loss_ptr + row, tl.where(counted, peak + tl.log(total) - right, 0.0))
    if HAS_GRAD:
        # the count is a tensor on the device: reading it on the host would stall every training step
        scale = 1 / tl.load(count_ptr).to(tl.float32)
        # an ignored row is walked as well: its gradient must be written, as zeros
        for first in range(0, V, BLOCK):
            col = first + tl.arange(0, BLOCK)
            mask = col < V
            x = tl.load(logits_ptr + col, mask & counted, other=float("-inf")).to(tl.float32)
            grad = (tl.exp(x - peak) / total - tl.where(col == target, 1.0, 0.0)) * scale
            grad = tl.where(counted, grad, 0.0)
            tl.store(grad_ptr + col, grad.to(grad_ptr.dtype.element_ty), mask)


@triton.jit
def _scale(grad_ptr, factor_ptr, V: tl.constexpr, BLOCK: tl.constexpr):
    factor = tl.load(factor_ptr)
    # the usual loss.backward() brings 1: nothing to do, found out without asking the host
    if factor != 1.0:
        grad_ptr += tl.program_id(0).to(tl.int64) * V
        for first in range(0, V, BLOCK):
            col = first + tl.arange(0, BLOCK)
            grad = tl.load(grad_ptr + col, col < V, other=0).to(tl.float32) * factor
            tl.store(grad_ptr + col, grad.to(grad_ptr.dtype.element_ty), col < V)


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
        _forward[(rows,)](
            logits, targets, count, loss, grad, logits.stride(0),
            V=vocabulary, HAS_GRAD=wanted, IGNORE=IGNORE_INDEX, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        if wanted:
            ctx.save_for_backward(grad)
        # no counted row gives 0 / 0 = NaN, as F.cross_entropy does
        return loss.sum() / count

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,) = ctx.saved_tensors
        rows, vocabulary = grad.shape
        _scale[(rows,)](grad, factor, V=vocabulary, BLOCK=BLOCK, num_warps=WARPS)
        # autograd now refuses to hand out the buffer again, scaled as it is
        torch.autograd.graph.increment_version(grad)
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
    return _CrossEntropy.apply(logits, targets)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Logits as wide as a trained model's (a few units); every seventh row ignored where `ragged`."""
    size = (shape["N"], shape["V"])
    logits = 3 * torch.randn(size, device=device, generator=generator)
    targets = torch.randint(shape["V"], size[:1], device=device, generator=generator)
    if shape.get("ragged"):
        targets[::7] = IGNORE_INDEX
    return {"logits": logits.to(dtype), "targets": targets}


def flops(shape: Shape) -> int:
    """Maximum, subtraction, exp, sum for the loss; subtraction, exp, two products for the gradient."""
    return 8 * shape["N"] * shape["V"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read the logits once, write the gradient once (the second reading is left to the cache)."""
    return 2 * shape["N"] * shape["V"] * element


def compiles() -> list[Compile]:
    """Both vocabularies with gradient, one without (the evaluation of a model)."""
    forward = {"logits_ptr": "*bf16", "targets_ptr": "*i64", "count_ptr": "*i64"}
    forward |= {"loss_ptr": "*fp32", "grad_ptr": "*bf16", "row_stride": "i32"}
    fixed = {"IGNORE": IGNORE_INDEX, "BLOCK": BLOCK}
    entries = [
        Compile(
            _forward, forward, fixed | {"V": vocabulary, "HAS_GRAD": grad}, WARPS,
            divisible=("row_stride",),
        )
        for vocabulary, grad in ((128256, True), (151936, True), (128256, False))
    ]  # fmt: skip
    scale = {"grad_ptr": "*bf16", "factor_ptr": "*fp32"}
    return entries + [Compile(_scale, scale, {"V": size, "BLOCK": BLOCK}, WARPS) for size in (128256, 151936)]


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
    compiles=compiles,
    differentiable=("logits",),
)
