"""Training in 8-bit floating point (e4m3, Micikevicius et al. 2022, arXiv 2209.05433): the layers' projections.

    y = q(x) · q(w)ᵀ,   dx = q(dy) · q(w),   dw = q(dy)ᵀ · q(x),   q scaled by the largest magnitude

of each row along the depth of its product (`rowwise`), or of the whole tensor (`tensorwise`), found anew every time
(dynamic scaling), all three products in fp8 with all operands in e4m3 as in torchao's two float8 recipes of these
names. Both operands of a product must have contiguous depth, so backward's are transposed copies. The head, routers,
experts, adapters, norms and attention stay in bf16, and so does the weight itself. A projection whose sizes are no
multiples of 16, which the tensor cores ask for, stays in bf16 too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bench.model.lora import projections

STEP = 16


def use_fp8(module: nn.Module, scaling: str) -> None:
    """Let the projections of a layer or model multiply in fp8. `scaling`: rowwise | tensorwise."""
    for linear in projections(module):
        outer, inner = linear.weight.shape
        if outer % STEP == 0 and inner % STEP == 0:
            linear.multiply = _multiply(linear.ops, scaling == "rowwise")


def _multiply(ops: Any, rowwise: bool) -> Callable[..., Tensor]:
    def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        """a (M, K) · bᵀ, b (N, K)."""
        (qa, scale_a), (qb, scale_b) = ops.quantize_fp8(a, rowwise), ops.quantize_fp8(b, rowwise)
        return ops.matmul_fp8(qa, qb, scale_a, scale_b, dtype)

    class Fp8Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return product(x, weight, x.dtype)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, dy: Tensor) -> Any:
            x, weight = ctx.saved_tensors
            dy, dx, dw = dy.contiguous(), None, None
            if ctx.needs_input_grad[0]:
                dx = product(dy, weight.t().contiguous(), x.dtype)
            if ctx.needs_input_grad[1]:
                # the depth is the number of tokens: the tensor cores want a multiple of 16 of those too
                short = -dy.shape[0] % STEP
                across, along = (nn.functional.pad(t.t(), (0, short)).contiguous() for t in (dy, x))
                dw = product(across, along, weight.dtype)
            return dx, dw

    def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.flatten(0, -2).contiguous()
        y = Fp8Linear.apply(rows, weight).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias

    return multiply
