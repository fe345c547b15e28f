"""What `moe` means, in plain PyTorch: a loop over the experts; in bfloat16 sorted rows and torch's grouped products.

The loop is the specification and the float64 oracle. Nobody trains through it: its shapes depend on the data, so that
torch.compile cannot take it whole and each expert waits for the host. `grouped` is what torch's users run, backends
`reference` and `compile` therefore too: the same formula on rows sorted by expert (torch.nn.functional.grouped_mm).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

SLOPE = 1.702  # of gpt-oss: sigmoid(1.702 g) is near the normal distribution function


def reference(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, *,
    gate_up_bias: torch.Tensor | None = None, down_bias: torch.Tensor | None = None, limit: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """x (T, H), gate_up (E, 2F, H), down (E, H, F), experts (others than 0..E-1 skipped), weights (T, k) -> (T, H)."""
    if x.dtype == torch.bfloat16:
        return grouped(x, gate_up, down, experts, weights, gate_up_bias, down_bias, limit)
    y = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    for e in range(gate_up.shape[0]):
        token, choice = (experts == e).nonzero(as_tuple=True)
        h = F.linear(x[token], gate_up[e], None if gate_up_bias is None else gate_up_bias[e])
        out = F.linear(activated(h, limit), down[e], None if down_bias is None else down_bias[e])
        y = y.index_add(0, token, (weights[token, choice, None] * out).to(y.dtype))
    return y.to(x.dtype)


def activated(h: torch.Tensor, limit: float | None) -> torch.Tensor:
    """(..., 2F) -> (..., F)."""
    gate, up = h.chunk(2, -1)
    if limit is None:
        return F.silu(gate) * up
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(SLOPE * gate)


def grouped(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    limit: float | None,
) -> torch.Tensor:
    """As `reference`; no shape depends on the data and nothing waits for the device."""
    count, k = gate_up.shape[0], experts.shape[1]
    chosen = experts.flatten().long()
    valid = ((chosen >= 0) & (chosen < count)).view(-1, k)
    chosen = torch.where(valid.flatten(), chosen, count - 1)  # computed like any other, and weighed with nothing
    order = chosen.argsort(stable=True)
    loads = torch.zeros(count, dtype=torch.int64, device=x.device).scatter_add(0, chosen, torch.ones_like(chosen))
    offs = loads.cumsum(0).int()
    h = F.grouped_mm(x[order // k], gate_up.transpose(1, 2), offs=offs)
    h = h if gate_up_bias is None else h + gate_up_bias[chosen[order]]
    out = F.grouped_mm(activated(h, limit), down.transpose(1, 2), offs=offs)
    out = out if down_bias is None else out + down_bias[chosen[order]]
    y = out[order.argsort()].view(-1, k, x.shape[1]).to(torch.float32) * (weights * valid)[..., None]
    return y.sum(1).to(x.dtype)
