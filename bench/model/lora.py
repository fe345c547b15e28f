"""Low-rank adapters on a frozen base (LoRA, Hu et al. 2021, arXiv 2106.09685).

    y = x · weightᵀ + alpha / rank · (x · Aᵀ) · Bᵀ,   A (rank, K),  B (N, rank),  weight frozen

Every projection of attention and of dense or shared MLPs has its own pair, as the paper's successors train them
(QLoRA, arXiv 2305.14314, section 4); projections packed side by side (query, key, value; gate, up) keep a pair each.
Routers and routed experts stay as they are. B starts as small random numbers instead of zeros: with zeros A would get
no gradient in the first step, and data is never zeros here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bench.model.mlp import Mixture
from bench.model.parts import Linear, initialise

SMALL = 0.05  # of B beside weights that keep a variance


class LowRank(nn.Module):
    """Adds its product to y (..., N): one pair a part, the parts' inner products made as one."""

    def __init__(self, ops: SimpleNamespace, linear: Linear, rank: int, alpha: float):
        super().__init__()
        self.ops, self.rank, self.scale = ops, rank, alpha / rank
        like: dict[str, Any] = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.inner = nn.Parameter(torch.empty(len(linear.parts) * rank, linear.weight.shape[1], **like))
        self.outer = nn.ParameterList(nn.Parameter(torch.empty(part, rank, **like)) for part in linear.parts)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        low = (self.ops.matmul(x, self.inner) * self.scale).split(self.rank, dim=-1)
        added = [self.ops.matmul(part, outer) for part, outer in zip(low, self.outer, strict=True)]
        return y + (added[0] if len(added) == 1 else torch.cat(added, -1))


def projections(module: nn.Module) -> list[Linear]:
    """Projections of attention and of dense or shared MLPs in a layer or a whole model."""
    routers = {part.router for part in module.modules() if isinstance(part, Mixture)}
    return [part for part in module.modules() if isinstance(part, Linear) and part not in routers]


def adapt(module: nn.Module, rank: int, alpha: float) -> None:
    """Freeze every weight of a layer or model and give its projections adapters, which alone are trained."""
    for number, linear in enumerate(projections(module)):
        if linear.adapter is None:
            linear.adapter = LowRank(linear.ops, linear, rank, alpha)
            initialise(linear.adapter, 7000 + number, 1)
            with torch.no_grad():
                for outer in linear.adapter.outer:
                    outer.mul_(SMALL)
    trained = {w for part in module.modules() if isinstance(part, LowRank) for w in part.parameters()}
    for weight in module.parameters():
        weight.requires_grad_(weight in trained)
