"""PyTorch's weight-only linear ops, tinygemm for int4 (BSD-3-Clause, written against torch 2.11).

torchao's int4 (tile-packed) and gpt-fast run on the same kernel. Weights are packed again from our layout, exactly:
scale · (q - zero) = scale · (q - 8) + scale · (8 - zero), the form tinygemm has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.kernels.quant_matmul import GROUP, unpack
from bench.peers.found import Unsupported, need

INNER_K_TILES = 8  # as torchao has it: K in steps of 1024


def why_not() -> str | None:
    """Both kinds of device have it."""
    return None


def _int4(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Callable[[], Any]:
    q = unpack(weight)
    middle = torch.zeros_like(scale) if zero is None else scale * (8 - zero.to(scale.dtype))
    constants = torch.stack((scale, middle), -1).transpose(0, 1).contiguous().to(x.dtype)
    if not x.is_cuda:
        need(len(q) % 16 == 0, "N must be a multiple of 16")
        packed = torch._convert_weight_to_int4pack_for_cpu(q.int(), 1)
        return lambda: torch._weight_int4pack_mm_for_cpu(x, packed, GROUP, constants)
    need(x.dtype == torch.bfloat16, f"bfloat16 only, not {x.dtype}")
    need(q.shape[1] % (128 * INNER_K_TILES) == 0 and len(q) % 8 == 0, "K must be a multiple of 1024, N of 8")
    packed = torch._convert_weight_to_int4pack((q[:, ::2] << 4 | q[:, 1::2]).contiguous(), INNER_K_TILES)
    return lambda: torch._weight_int4pack_mm(x, packed, GROUP, constants)


def quant_matmul(inputs: dict[str, Any]) -> Callable[[], Any]:
    """int4 in groups of 128, or int8 with a scale a row."""
    x, weight, scale = (inputs[name] for name in ("x", "weight", "scale"))
    need(x.dim() == 2, "x must be a matrix")
    if weight.dtype == torch.int32:
        return _int4(x, weight, scale, inputs.get("zero"))
    if weight.dtype == torch.int8:
        scales = scale.flatten().to(x.dtype)
        return lambda: torch._weight_int8pack_mm(x, weight, scales)
    raise Unsupported("no fp8 weights")


OPS = {"quant_matmul": quant_matmul}
