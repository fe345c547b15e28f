"""Cross-entropy of a language model's last layer, without its logits.

    x = hidden · weightᵀ,   loss = 1/n · Σ_i (log Σ_j exp(x_ij) - x_i,target)   over the n rows with target ≠ -100

    p_ij = (softmax(x_i)_j - [j = target_i]) / n,   dhidden = p · weight,   dweight = pᵀ · hidden

The logits of 8192 tokens and a vocabulary of 128k are 2 GB in bfloat16, and torch holds them several times over.
Where no gradient is wanted nothing of them is stored: each tile of the product gives two numbers a row
(linear_cross_entropy_gemm.py; the idea of Cut Cross-Entropy, https://arxiv.org/abs/2411.09009). Where one is, both
gradients are formed in the forward pass, chunk of rows by chunk (Liger-Kernel, https://arxiv.org/abs/2410.10989): the
exponentials of one chunk are stored, normalised in place, and multiplied twice. That is 6 N·V·H operations; to
store nothing in training too, backward would compute every logit twice more, 10 N·V·H.

dweight is summed over chunks in the weight's own type, in place: a fp32 sum would take twice the weight's memory and
as much again for the result. Each chunk after the first rounds once more, so C chunks of random sign leave an
error of about sqrt(C/2) times that of rounding the result, which is unavoidable. Backward multiplies both gradients
by the gradient of the loss in place; a second backward through one loss is therefore an error.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from bench.kernels.cross_entropy import DTYPES, IGNORE_INDEX, scale_in_place
from bench.kernels.linear_cross_entropy_gemm import logits, product
from bench.kernels.op import Op, Shape, processors

LN_2 = tl.constexpr(0.6931471805599453)  # a kernel may read no plain global


def reference(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk_rows: int | None = None
) -> torch.Tensor:
    """(N, H), (V, H), (N,) int64 -> mean loss of the rows that are not ignored, in at least fp32."""
    x = F.linear(hidden, weight)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.cross_entropy(wide, targets, ignore_index=IGNORE_INDEX)


@triton.jit
def _normalise(
    exp_ptr, targets_ptr, peak_ptr, total_ptr, right_ptr, loss_ptr, V, exp_stride, shares,
    HAS_GRAD: tl.constexpr, IGNORE: tl.constexpr, SHARES: tl.constexpr, SHARE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row)
    counted = target != IGNORE
    share = tl.arange(0, SHARES)
    peaks = tl.load(peak_ptr + row * shares + share, share < shares, other=float("-inf"))
    totals = tl.load(total_ptr + row * shares + share, share < shares, other=0)
    peak = tl.max(peaks, 0)
    lse = peak + tl.log2(tl.sum(totals * tl.exp2(peaks - peak), 0))
    # a target outside the vocabulary makes the loss NaN
    right = tl.load(right_ptr + row, counted & (target >= 0) & (target < V), other=float("nan"))
    tl.store(loss_ptr + row, tl.where(counted, (lse - right) * LN_2, 0.0))
    if HAS_GRAD:
        # from the unrounded logit: where the model is sure of its target this is a small difference
        own = tl.exp2(right - lse) - 1
        exp_ptr += row * exp_stride
        for first in range(0, shares, BLOCK // SHARE):
            part = first + tl.arange(0, BLOCK // SHARE)
            tops = tl.load(peak_ptr + row * shares + part, part < shares, other=float("-inf"))
            factor = tl.where(counted, tl.exp2(tops - lse), 0.0)
            col = part[:, None] * SHARE + tl.arange(0, SHARE)[None, :]
            # an ignored row is not read, but its gradient must be written, as zeros
            p = tl.load(exp_ptr + col, (col < V) & counted, other=0).to(tl.float32) * factor[:, None]
            p = tl.where(col == target, own, p)
            tl.store(exp_ptr + col, p.to(exp_ptr.dtype.element_ty), col < V)


def _normalised(
    exp: torch.Tensor | None, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, loss: torch.Tensor
) -> None:
    """Loss of each row into `loss`, n times the gradient of the logits into `exp` (rows, V)."""
    peak, total, right, share = logits(hidden, weight, targets, exp)
    shares = peak.shape[1]
    _normalise[(len(loss),)](
        exp, targets, peak, total, right, loss, len(weight), 0 if exp is None else exp.stride(0), shares,
        HAS_GRAD=exp is not None, IGNORE=IGNORE_INDEX, SHARES=triton.next_power_of_2(shares), SHARE=share,
        BLOCK=4096, num_warps=8,
    )  # fmt: skip


def _chunk_rows(rows: int, width: int, device: torch.device) -> int:
    """Rows whose logits are held at once: about a quarter, 1024 to 4096, in whole waves of dhidden's tiles.

    More rows read and write dweight less often and multiply longer sums; their exponentials take more memory.
    """
    fitting = min(max(rows // 4, 1024), 4096)
    # tiles of 128 x 256, one a multiprocessor: 16 x 8 of the 132 of an H100 at H = 4096
    across = triton.cdiv(width, 256)
    wave = max(1, processors(device) // across) * 128
    waves = max(1, fitting // wave)
    return max(1, waves * processors(device) // across) * 128


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk_rows: int | None
    ) -> torch.Tensor:
        (rows, width), vocabulary, device = hidden.shape, len(weight), hidden.device
        count = (targets != IGNORE_INDEX).sum()
        loss = torch.empty(rows, dtype=torch.float32, device=device)
        if not any(ctx.needs_input_grad):
            _normalised(None, hidden, weight, targets, loss)
            return loss.sum() / count
        chunk = min(rows, chunk_rows or _chunk_rows(rows, width, device))
        # rows of whole 128 bytes: TMA wants multiples of 16, and none then shares a cache line with the next
        padded = triton.cdiv(vocabulary, 64) * 64
        exp = torch.empty((chunk, padded), dtype=hidden.dtype, device=device)[:, :vocabulary]
        contiguous = torch.contiguous_format
        dhidden = torch.empty_like(hidden, memory_format=contiguous) if ctx.needs_input_grad[0] else None
        dweight = torch.empty_like(weight, memory_format=contiguous) if ctx.needs_input_grad[1] else None
        for first in range(0, rows, chunk):
            part = slice(first, min(first + chunk, rows))
            p = exp[: part.stop - first]
            _normalised(p, hidden[part], weight, targets[part], loss[part])
            if dhidden is not None:
                product("dhidden", p, weight, dhidden[part], count, added=False)
            if dweight is not None:
                product("dweight", p, hidden[part], dweight, count, added=first > 0)
        ctx.save_for_backward(dhidden, dweight)
        # no counted row gives 0 / 0 = NaN, as F.cross_entropy does
        return loss.sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        dhidden, dweight = ctx.saved_tensors
        for gradient in (dhidden, dweight):
            if gradient is not None:
                scale_in_place(gradient, factor)
        return dhidden, dweight, None, None


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk_rows: int | None = None
) -> torch.Tensor:
    """(N, H), (V, H), (N,) int64 -> scalar fp32. Holds both gradients, and `chunk_rows` rows of logits in passing."""
    if hidden.dtype not in DTYPES or weight.dtype != hidden.dtype:
        raise ValueError(
            f"linear_cross_entropy: want float32/16 or bfloat16 for both, got {hidden.dtype}, {weight.dtype}"
        )
    if (
        hidden.dim() != 2
        or weight.dim() != 2
        or hidden.shape[1] != weight.shape[1]
        or targets.shape != hidden.shape[:1]
    ):
        raise ValueError(
            f"linear_cross_entropy: want (N, H), (V, H), (N,), got {hidden.shape}, {weight.shape}, {targets.shape}"
        )
    if hidden.numel() == 0 or weight.numel() == 0:
        raise ValueError("linear_cross_entropy: no dimension may be empty")
    if targets.dtype != torch.int64 or not targets.is_contiguous():
        raise ValueError(f"linear_cross_entropy: targets must be dense int64, got {targets.dtype}")
    if hidden.stride(1) != 1 or weight.stride(1) != 1:
        raise ValueError("linear_cross_entropy: the last dimension must be contiguous")
    if not (hidden.device == weight.device == targets.device):
        raise ValueError("linear_cross_entropy: hidden, weight and targets must be on one device")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"linear_cross_entropy: chunk_rows must be positive, got {chunk_rows}")
    if not torch.is_grad_enabled():
        # a Function sees only that the weight is a parameter, not that no gradient is wanted now
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, targets, chunk_rows)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """Logits of a few units, as a trained model's; every seventh row ignored where `ragged`."""
    rows, vocabulary, width = shape["N"], shape["V"], shape["H"]
    hidden = torch.randn((rows, width), device=device, generator=generator)
    weight = torch.randn((vocabulary, width), device=device, generator=generator) * (3 * width**-0.5)
    targets = torch.randint(vocabulary, (rows,), device=device, generator=generator)
    if shape.get("ragged"):
        targets[::7] = IGNORE_INDEX
    kwargs = {"hidden": hidden.to(dtype), "weight": weight.to(dtype), "targets": targets}
    return kwargs | ({"chunk_rows": shape["chunk_rows"]} if "chunk_rows" in shape else {})


def flops(shape: Shape) -> int:
    """One product. The gradient's two, formed in the same call where it is asked for, make 6 N·V·H in all."""
    return 2 * shape["N"] * shape["V"] * shape["H"]


def least_bytes(shape: Shape, element: int) -> int:
    """Read the hidden states, the weight and the targets once; write a loss for each row."""
    return (shape["N"] + shape["V"]) * shape["H"] * element + 12 * shape["N"]


def backward_bytes(shape: Shape, element: int) -> int:
    """Read the same matrices again, write their gradients."""
    return 2 * (shape["N"] + shape["V"]) * shape["H"] * element


OP = Op(
    reference=reference,
    triton=linear_cross_entropy,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_train": {"N": 8192, "V": 128256, "H": 4096},
        "llama_3_2_1b_train": {"N": 16384, "V": 128256, "H": 2048},
        "qwen3_0_6b_train": {"N": 8192, "V": 151936, "H": 1024},
    },
    test_shapes={
        "one_chunk": {"N": 40, "V": 512, "H": 64},
        "chunks": {"N": 70, "V": 600, "H": 72, "chunk_rows": 48, "ragged": 1},
        "odd": {"N": 19, "V": 301, "H": 33, "chunk_rows": 11, "ragged": 1},
    },
    flops=flops,
    bytes=least_bytes,
    backward_flops=lambda shape: 2 * flops(shape),
    backward_bytes=backward_bytes,
    differentiable=("hidden", "weight"),
    # each fits the shared memory of sm_90 beside its epilogue
    candidates={
        "linear_cross_entropy.logits": (
            {"num_stages": 3},
            {"K": 128, "num_stages": 2},
            {"M": 256, "N": 128, "num_stages": 3},
            {"M": 256, "N": 128},
            {"N": 128, "K": 128, "num_stages": 3},
        ),
        "linear_cross_entropy.dhidden": (
            {"num_stages": 3},
            {"K": 128, "num_stages": 2},
            {"M": 256, "N": 128},
            {"N": 128, "K": 128, "num_stages": 3},
            {"N": 128, "num_stages": 4, "num_warps": 4},
        ),
        "linear_cross_entropy.dweight": (
            {"M": 256, "N": 128},
            {"N": 128, "K": 128},
            {"N": 128, "num_stages": 4},
            {"N": 128, "num_stages": 4, "num_warps": 4},
        ),
    },
)
