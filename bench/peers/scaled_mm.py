"""PyTorch's fp8 matmul, cuBLASLt or CUTLASS underneath (BSD-3-Clause, written against torch 2.11).

Fast accumulation is on, as inference has it: sums stay in the tensor core's own precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.peers.found import lacking


def why_not() -> str | None:
    """None where it can run: fp8 tensor cores begin with sm_89."""
    reason = lacking()
    if reason:
        return reason
    return None if torch.cuda.get_device_capability() >= (8, 9) else "needs fp8 tensor cores (sm_89 or newer)"


def matmul_fp8(inputs: dict[str, Any]) -> Callable[[], Any]:
    """One scale a tensor or a row; the weight transposed, which is a view."""
    x, weight, x_scale, weight_scale = (inputs[name] for name in ("x", "weight", "x_scale", "weight_scale"))
    rows = x.view(-1, x.shape[-1])
    scales = (x_scale.view(-1, 1), weight_scale.view(1, -1)) if x_scale.dim() else (x_scale, weight_scale)
    dtype = inputs.get("dtype", torch.bfloat16)
    size = (*x.shape[:-1], weight.shape[0])
    return lambda: torch._scaled_mm(rows, weight.t(), *scales, out_dtype=dtype, use_fast_accum=True).view(size)


OPS = {"matmul_fp8": matmul_fp8}
