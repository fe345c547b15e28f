"""PyTorch's grouped matrix product, CUTLASS underneath (BSD-3-Clause, written against torch 2.11)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from bench.peers.found import lacking, need

why_not = lacking


def grouped_matmul(inputs: dict[str, Any]) -> Callable[[], Any]:
    """x (M, K) rows by expert, weight (E, N, K): multiplied transposed, which is a view."""
    x, weight, offs = (inputs[name] for name in ("x", "weight", "offs"))
    need(x.dtype == torch.bfloat16, f"bfloat16 only, not {x.dtype}")
    need(x.shape[1] % 8 == 0 and weight.shape[1] % 8 == 0, "rows must be multiples of 16 bytes")
    return lambda: torch._grouped_mm(x, weight.transpose(1, 2), offs=offs)


def moe(inputs: dict[str, Any]) -> Callable[[], Any]:
    """As Hugging Face's transformers runs experts on it: sort, gather, two products, scatter back."""
    x, gate_up, down, experts, weights = (inputs[name] for name in ("x", "gate_up", "down", "experts", "weights"))
    need(x.dtype == torch.bfloat16, f"bfloat16 only, not {x.dtype}")
    need(inputs.get("gate_up_bias") is None and inputs.get("limit") is None, "no biases and no clamped activation")
    count, k = gate_up.shape[0], experts.shape[1]

    def thunk() -> Any:
        chosen = experts.flatten()
        order = chosen.argsort()
        offs = torch.histc(chosen.float(), count, 0, count - 1).cumsum(0).int()
        h = torch._grouped_mm(x[order // k], gate_up.transpose(1, 2), offs=offs)
        gate, up = h.chunk(2, -1)
        out = torch._grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=offs)
        out = out * weights.flatten()[order, None].to(out.dtype)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return out[back].view(-1, k, x.shape[1]).sum(1)

    return thunk


OPS = {"moe": moe, "grouped_matmul": grouped_matmul}
