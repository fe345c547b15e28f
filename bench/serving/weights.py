"""Weight-only quantisation of a network's projections: weights in 8 or 4 bits, activations as they are.

Decoding reads every weight for a few tokens, so fewer bits are less time (GPTQ, arXiv 2210.17323; AWQ, 2306.00978; here
rounded to nearest, as random weights have nothing to calibrate on). Head, embedding, routers, experts, and the
up-projection that latent attention absorbs stay as they are; so does a projection whose depth is no whole number
of groups.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from bench.kernels.quant_matmul import GROUP, dequantize, quantize
from bench.model.attention import Latent
from bench.model.lora import projections


@torch.no_grad()
def quantise(network: nn.Module, kind: str, *, keep: bool = False) -> int:
    """Quantise in place to int4, int8 or fp8; the number of projections that changed.

    `keep`: leave in `weight` what the quantised numbers stand for, for a twin to compare with; else its memory goes.
    """
    absorbed = {part.up_key for part in network.modules() if isinstance(part, Latent)}
    changed = 0
    for linear in projections(network):
        if linear in absorbed or linear.weight.shape[1] % GROUP:
            continue
        weight, scale = quantize(linear.weight, kind)
        linear.multiply = _multiply(linear.ops, weight, scale)
        stands = dequantize(weight, scale).to(linear.weight.dtype) if keep else linear.weight[:0].clone()
        linear.weight = nn.Parameter(stands, requires_grad=False)
        changed += 1
    return changed


def _multiply(ops: SimpleNamespace, weight: Tensor, scale: Tensor) -> Callable[..., Tensor]:
    def multiply(x: Tensor, _: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = ops.quant_matmul(x.contiguous(), weight, scale)
        return y if bias is None else y + bias

    return multiply
