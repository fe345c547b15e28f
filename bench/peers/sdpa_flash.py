"""FlashAttention-2 as PyTorch builds it in (BSD-3-Clause, written against torch 2.11).

Whole sequences through `scaled_dot_product_attention`; packed documents and windows through
`torch.nn.attention.varlen`, where this torch has them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.peers.found import lacking, need

why_not = lacking


def whole(backend: SDPBackend, inputs: dict[str, Any]) -> Callable[[], Any]:
    """Causal attention over whole sequences with one of torch's backends."""
    need(inputs.get("sinks") is None, "no attention sinks")
    q, k, v = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
    scale = inputs.get("scale")

    def thunk() -> Any:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)

    return thunk


def _varlen(inputs: dict[str, Any]) -> Callable[[], Any]:
    from torch.nn.attention import varlen

    varlen_attn: Any = varlen.varlen_attn  # its signature differs between versions
    q, k, v, offsets, window = (inputs[name] for name in ("q", "k", "v", "cu_seqlens", "window"))
    batch, length = q.shape[:2]
    known = inspect.signature(varlen_attn).parameters
    need("window_size" in known or window is None, "no sliding window in this torch")
    need("enable_gqa" in known or q.shape[2] == k.shape[2], "no grouped queries for packed documents in this torch")
    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in known else {}
    if "window_size" in known:
        # keys to the left of the query, none to its right
        options["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        options["is_causal"] = True
    if offsets is None:
        offsets = torch.arange(0, (batch + 1) * length, length, device=q.device, dtype=torch.int32)
    longest = int(offsets.diff().max())

    def thunk() -> Any:
        flat = (x.flatten(0, 1) for x in (q, k, v))
        return varlen_attn(*flat, offsets, offsets, longest, longest, **options).view(q.shape)

    return thunk


def attention(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Packed or windowed where the inputs say so."""
    if inputs.get("cu_seqlens") is None and inputs.get("window") is None:
        return whole(SDPBackend.FLASH_ATTENTION, inputs)
    need(inputs.get("sinks") is None, "no attention sinks")
    need(inputs.get("scale") is None, "no scale of its own for packed documents")
    return _varlen(inputs)


OPS = {"attention": attention}
