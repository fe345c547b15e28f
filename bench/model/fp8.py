"""Training in 8-bit floating point (e4m3, Micikevicius et al. 2022, arXiv 2209.05433): the layers' projections.

    y = q(x) · q(w)ᵀ,   dx = q(dy) · q(wᵀ)ᵀ,   dw = q(dyᵀ) · q(xᵀ)ᵀ,   q(a) = round(a / scale)

All three products are in fp8. A scale makes the largest magnitude the largest e4m3 number, of each row of an operand
(`rowwise`) or of all of it (`tensorwise`), found anew every time (dynamic scaling). torchao's recipes of these names
do the same but for details that change no speed: its tensorwise one keeps dy in e5m2, its rowwise one rounds scales
to powers of two. The head, routers, experts, adapters, norms and attention stay in bf16, and so does the weight
itself. A projection whose sizes are no multiples of 16, which the tensor cores ask for, stays in bf16 too.

The tensor cores want contiguous depth, so backward's products need transposed copies. With one scale a tensor the
transpose of q is q of the transpose, so it is the fp8 bytes that are turned; each row's own scale is another one once
the rows are columns, so there the 16-bit tensor is turned and quantised again. Bytes moved for each element of

                  x                      dy                     w
    tensorwise    5 + 2, keeps 1         5 + 2                  5 + 5 + 2
    rowwise       3 + 4 + 3, keeps 2     3 + 4 + 3              3 + 4 + 3

where 5 and 3 are a quantisation (tensorwise reads twice), 4 and 2 turn 16 and 8 bits, and `keeps` lies in memory from
forward to backward. The weight is quantised again in backward: a kept copy would be a byte a parameter, unsharded.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.model.lora import projections

STEP = 16  # what the tensor cores want every size of an fp8 product to be a multiple of


def use_fp8(module: nn.Module, scaling: str) -> None:
    """Let the projections of a layer or model multiply in fp8. `scaling`: rowwise | tensorwise."""
    for linear in projections(module):
        outer, inner = linear.weight.shape
        if outer % STEP == 0 and inner % STEP == 0:
            linear.multiply = _multiply(linear.ops, scaling == "rowwise")


def _multiply(ops: SimpleNamespace, rowwise: bool) -> Callable[..., Tensor]:
    def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.flatten(0, -2)
        # the number of tokens is the depth of dw; rows of zeros change no scale and no sum
        short = -rows.shape[0] % STEP
        padded = nn.functional.pad(rows, (0, 0, 0, short)) if short else rows.contiguous()
        y = Fp8Linear.apply(padded, weight, ops, rowwise)[: rows.shape[0]].view(*x.shape[:-1], -1)
        return y if bias is None else y + bias

    return multiply


class Fp8Linear(torch.autograd.Function):
    """x (M, K) · weightᵀ, weight (N, K), all three multiples of 16, by the ops `quantize_fp8` and `matmul_fp8`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ops: SimpleNamespace, rowwise: bool) -> Tensor:
        (q, scale), (q_weight, scale_weight) = ops.quantize_fp8(x, rowwise), ops.quantize_fp8(weight, rowwise)
        ctx.ops, ctx.rowwise = ops, rowwise
        for_x, for_weight = ctx.needs_input_grad[:2]
        kept = (None, None) if not for_weight else (x, None) if rowwise else (q, scale)
        ctx.save_for_backward(*kept, weight if for_x else None)
        return ops.matmul_fp8(q, q_weight, scale, scale_weight, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, scale, weight = ctx.saved_tensors
        ops, rowwise, dy = ctx.ops, ctx.rowwise, dy.contiguous()
        for_x, for_weight = ctx.needs_input_grad[:2]
        dx = dw = None
        q_dy, scale_dy = ops.quantize_fp8(dy, rowwise) if for_x or not rowwise else (None, None)
        if for_x:
            source = (weight, None) if rowwise else ops.quantize_fp8(weight, False)
            q_weight, scale_weight = _turned(ops, *source)
            dx = ops.matmul_fp8(q_dy, q_weight, scale_dy, scale_weight, dy.dtype)
        if for_weight:
            q_across, scale_across = _turned(ops, *((dy, None) if rowwise else (q_dy, scale_dy)))
            q_along, scale_along = _turned(ops, x, scale)
            dw = ops.matmul_fp8(q_across, q_along, scale_across, scale_along, dy.dtype)
        return dx, dw, None, None


def _turned(ops: SimpleNamespace, a: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """q(aᵀ) and its scales: of fp8 numbers with their one scale, or, without a scale, by rows of 16-bit ones."""
    across = a.t().contiguous()
    return ops.quantize_fp8(across, True) if scale is None else (across, scale)
