"""PyTorch's own fused ops (BSD-3-Clause, written against torch 2.11): what a model gets that installs nothing else.

Ops whose reference is already torch's fastest eager form (attention, matmul, SwiGLU) have no entry: the row
`reference` is theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from bench.kernels.quant_matmul import dequantize
from bench.peers.found import need


def why_not() -> str | None:
    """torch runs wherever we do."""
    return None


def rms_norm(inputs: dict[str, Any]) -> Callable[[], Any]:
    """The add, then the fused norm."""
    x, weight, eps, residual = (inputs[name] for name in ("x", "weight", "eps", "residual"))

    def thunk() -> Any:
        h = x if residual is None else x + residual
        return F.rms_norm(h, weight.shape, weight, eps), h

    return thunk


def cross_entropy(inputs: dict[str, Any]) -> Callable[[], Any]:
    """On the logits as they are: sums in fp32 inside, no fp32 copy of the logits."""
    logits, targets = inputs["logits"], inputs["targets"]
    return lambda: F.cross_entropy(logits, targets)


def linear_cross_entropy(inputs: dict[str, Any]) -> Callable[[], Any]:
    """The product, then the loss on 16-bit logits."""
    hidden, weight, targets = (inputs[name] for name in ("hidden", "weight", "targets"))
    return lambda: F.cross_entropy(F.linear(hidden, weight), targets)


def adamw(inputs: dict[str, Any]) -> Callable[[], Any]:
    """The fused update of torch.optim.AdamW, called as that calls it.

    It wants one dtype: 16-bit gradients of fp32 masters are widened first and 16-bit copies written after, by foreach
    calls, as optimisers with master weights do in plain torch.
    """
    params, grads, avgs, sqs = (inputs[name] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"))
    need(not inputs.get("stochastic"), "no stochastic rounding")
    copies, narrow = inputs.get("copies"), grads[0].dtype != params[0].dtype
    wide = [torch.empty_like(x) for x in params] if narrow else grads
    steps = [inputs["step"].float()] * len(params)
    beta1, beta2 = inputs.get("betas", (0.9, 0.95))
    options = {"lr": inputs["lr"], "beta1": beta1, "beta2": beta2, "eps": inputs.get("eps", 1e-8)}
    options |= {"weight_decay": inputs.get("weight_decay", 0.1), "amsgrad": False, "maximize": False}

    def thunk() -> Any:
        if narrow:
            torch._foreach_copy_(wide, grads)
        torch._fused_adamw_(params, wide, avgs, sqs, [], steps, **options)
        if copies is None:
            return params, avgs, sqs
        torch._foreach_copy_(copies, params)
        return params, avgs, sqs, copies

    return thunk


def quant_matmul(inputs: dict[str, Any]) -> Callable[[], Any]:
    """The product with weights that were never quantised: what fewer bits are held against."""
    x = inputs["x"]
    wide = dequantize(inputs["weight"], inputs["scale"], inputs.get("zero")).to(x.dtype)
    return lambda: F.linear(x, wide)


OPS = {
    "quant_matmul": quant_matmul,
    "rms_norm": rms_norm,
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
    "adamw": adamw,
}
