"""Which experts tokens go to, drawn instead of learned. A router with random weights spreads tokens by accident of its
initialisation and depth (the busiest of 128 experts got 2 to 14 times the mean), a trained one by what it learned; the
load of the busiest expert decides a step's time, so it has to be stated.

Expert e of rank r is drawn with popularity r^-zipf (0: uniform), k different ones a token; where a model routes to a
few groups of experts (DeepSeek-V3), groups are drawn first. The draw becomes numbers added to the router's logits, so
low that no other expert can win: the router's own product and top-k still run, and the weights of the chosen are the
router's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.architecture import Model

LEFT_OUT = -32.0  # beside logits of the order of 1


def drawn(model: Model, tokens: int, zipf: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """(routing (tokens, E) fp32 for parts.Tokens, load of each expert (E,)); the same every time."""
    generator = torch.Generator().manual_seed(4)
    popularity = torch.arange(1, model.experts + 1, dtype=torch.float64) ** -zipf
    popularity = popularity[torch.randperm(model.experts, generator=generator)].expand(tokens, -1)
    if model.router_groups > 1:
        grouped = popularity.unflatten(1, (model.router_groups, -1))
        groups = _without_replacement(grouped.sum(2), model.router_top_groups, generator)
        kept = torch.zeros(tokens, model.router_groups, dtype=torch.bool).scatter_(1, groups, True)
        popularity = grouped.where(kept[:, :, None], 0).flatten(1)
    chosen = _without_replacement(popularity, model.top_k, generator)
    routing = torch.full((tokens, model.experts), LEFT_OUT).scatter_(1, chosen, 0.0)
    return routing.to(device), torch.bincount(chosen.flatten(), minlength=model.experts)


def _without_replacement(popularity: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different columns of each row: the largest of log p + Gumbel noise (arXiv 1903.06059)."""
    uniform = torch.rand(popularity.shape, generator=generator, dtype=torch.float64)
    noise = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    return (popularity.log() + noise).topk(count, dim=-1).indices


def imbalance(load: Tensor) -> float:
    """Tokens of the busiest expert over the mean."""
    return float(load.max() / load.double().mean())
