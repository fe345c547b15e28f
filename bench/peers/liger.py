"""Liger-Kernel's Triton ops for training (BSD-2-Clause, written against 0.8.5, distribution liger-kernel).

In-place variants are switched off, because the harness calls an op again on the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.peers.found import lacking, need

PACKAGE = "liger-kernel"


def why_not() -> str | None:
    """None where it can run."""
    return lacking("liger_kernel")


def rms_norm(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Its fused add where there is a residual. Casting as it does by default."""
    from liger_kernel.ops import LigerFusedAddRMSNormFunction, LigerRMSNormFunction

    x, weight, eps, residual = (inputs[name] for name in ("x", "weight", "eps", "residual"))
    if residual is None:
        return lambda: (LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False), x)
    return lambda: LigerFusedAddRMSNormFunction.apply(x, residual, weight, eps, 0.0, "llama", False)


def rope(inputs: dict[str, Any]) -> Callable[[], Any]:
    """It copies inputs that are not dense and writes over those that are, which are copied here."""
    from liger_kernel.ops import LigerRopeFunction

    q, k = inputs["q"], inputs["k"]
    # the tables Hugging Face makes: both halves, in the model's dtype
    cos, sin = (torch.cat((inputs[name], inputs[name]), -1).to(q.dtype) for name in ("cos", "sin"))

    def thunk() -> Any:
        own = (x.clone() if x.is_contiguous() else x for x in (q, k))
        rotated = LigerRopeFunction.apply(*(x.transpose(1, 2) for x in own), cos, sin)
        return tuple(x.transpose(1, 2) for x in rotated)

    return thunk


def swiglu(inputs: dict[str, Any]) -> Callable[[], Any]:
    """The form that takes gate and up in one tensor."""
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    gate_up = inputs["gate_up"]
    return lambda: LigerFusedGateUpSiLUMulFunction.apply(gate_up, False)


def cross_entropy(inputs: dict[str, Any]) -> Callable[[], Any]:
    """It writes the gradient over the logits, so each call gets a copy: part of its time here, not of a trainer's."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    logits, targets = inputs["logits"], inputs["targets"]
    return lambda: liger_cross_entropy(logits.clone(), targets)


def linear_cross_entropy(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Chunks of tokens through cuBLAS; gradients made in the forward pass."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    hidden, weight, targets = (inputs[name] for name in ("hidden", "weight", "targets"))
    return lambda: liger_fused_linear_cross_entropy(hidden, weight, targets)


def moe(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Routing and both products fused; weights as (E, 2F, H) and (E, H, F)."""
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    x, gate_up, down, experts, weights = (inputs[name] for name in ("x", "gate_up", "down", "experts", "weights"))
    need(inputs.get("gate_up_bias") is None and inputs.get("limit") is None, "no biases and no clamped activation")
    experts = experts.int()
    return lambda: LigerFusedMoEFunction.apply(x, gate_up, down, experts, weights)


OPS = {
    "rms_norm": rms_norm,
    "rope": rope,
    "swiglu": swiglu,
    "cross_entropy": cross_entropy,
    "linear_cross_entropy": linear_cross_entropy,
    "moe": moe,
}
