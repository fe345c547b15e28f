"""PyTorch's flex_attention, compiled (BSD-3-Clause, written against torch 2.11): masks as Python functions.

The block mask is made once, untimed, as a trainer makes it once a batch. Attention sinks follow from the log-sum-exp
it returns: o · sigmoid(lse - sink), as Hugging Face's gpt-oss does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.peers.found import lacking, need

COMPILES = True
why_not = lacking


def attention(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Causal, windowed, over documents, with sinks."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    window, sinks, offsets, scale = (inputs.get(name) for name in ("window", "sinks", "cu_seqlens", "scale"))
    shape = q.shape
    if offsets is not None:
        q, k, v = (x.flatten(0, 1)[None] for x in (q, k, v))
    length = q.shape[1]
    token = torch.arange(length, device=q.device)
    document = torch.zeros_like(token) if offsets is None else torch.searchsorted(offsets, token, right=True)

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        seen = query >= key
        if window is not None:
            seen = seen & (query - key < window)
        return seen if offsets is None else seen & (document[query] == document[key])

    mask = create_block_mask(visible, None, None, length, length, device=q.device)
    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def thunk() -> Any:
        heads = (x.transpose(1, 2) for x in (q, k, v))
        out = compiled(*heads, block_mask=mask, scale=scale, enable_gqa=True, return_lse=sinks is not None)
        if sinks is not None:
            out, lse = out
            out = (out * torch.sigmoid(lse - sinks.float()[:, None])[..., None]).to(q.dtype)
        return out.transpose(1, 2).reshape(shape)

    return thunk


def decode_attention(inputs: dict[str, Any]) -> Callable[[], Any]:
    """One query over a contiguous cache (its flex-decoding kernel); lengths are read by the mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    for name in ("block_table", "k_scale", "sinks", "v_dim"):
        need(inputs.get(name) is None, f"no {name} here")
    q, k, v, lengths = (inputs[name] for name in ("q", "k_cache", "v_cache", "lengths"))
    window = inputs.get("window")

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        seen = key < lengths[batch]
        return seen if window is None else seen & (key >= lengths[batch] - window)

    mask = create_block_mask(visible, q.shape[0], None, 1, k.shape[1], device=q.device)
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    scale = inputs.get("scale")
    return lambda: compiled(q[:, :, None], k, v, block_mask=mask, scale=scale, enable_gqa=True)[:, :, 0]


OPS = {"attention": attention, "decode_attention": decode_attention}
