"""The feed-forward block of a layer: dense, or a mixture of experts.

    dense:    y = down · swiglu([gate | up] · x),  or  down · gelu(up · x)          (arXiv 2002.05202)
    mixture:  y = Σ_j w_j · expert_j(x) + shared(x),  the k best experts of the router   (arXiv 1701.06538)

Shapes: x (B, T, H) -> (B, T, H); E experts, F their width. `enter` and `leave` as in attention.py.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bench.architecture import Model
from bench.model.attention import same
from bench.model.parts import Linear, Tokens


class Dense(nn.Module):
    """The MLP every token goes through; `width` is its inner one."""

    def __init__(self, model: Model, width: int, ops: SimpleNamespace, place: dict[str, Any]):
        super().__init__()
        self.ops, self.gated = ops, model.mlp == "swiglu"
        inner = (width, width) if self.gated else (width,)
        self.up = Linear(ops, model.hidden, inner, place, model.mlp_bias)
        self.down = Linear(ops, width, (model.hidden,), place, model.mlp_bias)
        self.enter = self.leave = same

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        h = self.up(self.enter(x))
        h = self.ops.swiglu(h) if self.gated else nn.functional.gelu(h, approximate="tanh")
        return self.leave(self.down(h))


class Mixture(nn.Module):
    """Routed experts, and those that every token shares."""

    def __init__(self, model: Model, ops: SimpleNamespace, place: dict[str, Any]):
        super().__init__()
        self.ops, self.model = ops, model
        width = model.ffn_expert or 0
        sigmoid = model.scoring == "sigmoid"
        self.router = Linear(ops, model.hidden, (model.experts,), place, model.router_bias and not sigmoid)
        # steers the choice and has no gradient (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)
        correction = torch.zeros(model.experts, device=place["device"]) if model.router_bias and sigmoid else None
        self.register_buffer("correction", correction)
        self.gate_up = nn.Parameter(torch.empty(model.experts, 2 * width, model.hidden, **place))
        self.down = nn.Parameter(torch.empty(model.experts, model.hidden, width, **place))
        biased = model.mlp_bias
        self.gate_up_bias = nn.Parameter(torch.empty(model.experts, 2 * width, **place)) if biased else None
        self.down_bias = nn.Parameter(torch.empty(model.experts, model.hidden, **place)) if biased else None
        shared = model.shared_experts * width
        self.shared = Dense(model, shared, ops, place) if shared else None

    def route(self, x: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """x (N, H) -> weights (N, k) fp32 or wider, experts (N, k) int32."""
        m, logits = self.model, self.router(x)
        if tokens.routing is not None:
            logits = logits + tokens.routing
        return self.ops.router(
            logits,
            m.top_k,
            scoring=m.scoring,
            normalise=m.router_normalise,
            scale=m.router_scale,
            bias=self.correction,
            groups=m.router_groups,
            top_groups=m.router_top_groups,
        )

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        rows = x.flatten(0, -2)
        weights, experts = self.route(rows, tokens)
        given = rows
        if self.model.router_on_input:  # one expert a token: its input is scaled
            given, weights = rows * weights.to(rows.dtype), torch.ones_like(weights)
        biases: dict[str, Any] = {}
        if self.gate_up_bias is not None:
            biases = {"gate_up_bias": self.gate_up_bias, "down_bias": self.down_bias}
        if self.model.swiglu_limit is not None:
            biases["limit"] = self.model.swiglu_limit
        y = self.ops.moe(given, self.gate_up, self.down, experts, weights, **biases).view(x.shape)
        return y if self.shared is None else y + self.shared(x, tokens)
