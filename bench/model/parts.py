"""What layers are made of: a linear projection, a norm, and what a layer is told about its tokens.

A projection's weight holds several outputs side by side where one product makes them (query, key and value; gate and
up): `parts` are their widths. `multiply` is how it multiplies: the op `matmul`, or fp8.py's. An adapter (lora.py) adds
its low-rank product. Weights start as normal numbers of variance 1 / fan_in; what writes to the residual stream
shrinks by sqrt(2 L), so that activations keep a variance near 1 at every depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bench.architecture import Model


@dataclass(frozen=True)
class Tokens:
    """What a layer is told about the tokens it runs on: B sequences of T."""

    positions: Tensor  # (1 or B, T), each token's place in its document
    cos: Tensor | None  # rotary tables there (1 or B, T, d / 2); None: learned positions
    sin: Tensor | None
    documents: Tensor | None = None  # cu_seqlens of the documents packed into them, int32 (n + 1,)
    chunks: Tensor | None = None  # the same, cut further at every chunk, for layers that attend within chunks
    routing: Tensor | None = None  # (B · T, E), added to the router's logits: see routing.py


class Linear(nn.Module):
    """y = x · weightᵀ + bias, x (..., K), weight (N, K)."""

    def __init__(self, ops: SimpleNamespace, inner: int, parts: tuple[int, ...], place: dict[str, Any], bias: bool):
        super().__init__()
        self.ops, self.parts = ops, parts
        self.weight = nn.Parameter(torch.empty(sum(parts), inner, **place))
        self.bias = nn.Parameter(torch.empty(sum(parts), **place)) if bias else None
        self.multiply: Callable[..., Tensor] | None = None  # None: ops.matmul
        self.adapter: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = (self.multiply or self.ops.matmul)(x, self.weight, self.bias)
        return y if self.adapter is None else self.adapter(x, y)


class Norm(nn.Module):
    """RMSNorm by the op, or LayerNorm by torch, of x (..., H) and, where given, the residual stream it is added to."""

    def __init__(self, ops: SimpleNamespace, model: Model, width: int, place: dict[str, Any]):
        super().__init__()
        self.ops, self.eps = ops, model.norm_eps
        self.weight = nn.Parameter(torch.ones(width, **place))
        self.shift = nn.Parameter(torch.zeros(width, **place)) if model.norm == "layernorm" else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(normed sum, sum)."""
        if self.shift is None:
            normed, total = self.ops.rms_norm(x, self.weight, self.eps, residual)
            return normed, total
        total = x if residual is None else x + residual
        return nn.functional.layer_norm(total, (total.shape[-1],), self.weight, self.shift, self.eps), total


@torch.no_grad()
def initialise(module: nn.Module, seed: int, depth: int) -> None:
    """Fill a module's weights, the same for every precision; `depth` is the model's number of layers."""
    first = next(module.parameters(), None)
    if first is None:
        return
    generator = torch.Generator(device=first.device).manual_seed(seed)
    for name, weight in module.named_parameters():
        owner, _, kind = name.rpartition(".")
        if kind == "shift" or (kind == "weight" and weight.dim() == 1):
            continue  # norms start at one and zero
        scale = 1 / math.sqrt(weight.shape[-1]) if weight.dim() > 1 else 0.02
        if owner.endswith(("out", "down")) or kind == "down":
            scale /= math.sqrt(2 * depth)
        # drawn in fp32, one expert at a time where there are many: the same numbers for every precision
        for rows in weight if weight.dim() == 3 else (weight,):
            drawn = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
            rows.copy_(drawn.normal_(0.0, scale, generator=generator))
