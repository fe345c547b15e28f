"""xFormers' split-K decoding kernel in Triton (BSD-3-Clause, written against 0.0.35, distribution xformers)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.peers.found import lacking, need

PACKAGE = "xformers"


def why_not() -> str | None:
    """None where it can run. Its C extension is not needed."""
    return lacking("xformers")


def decode_attention(inputs: dict[str, Any]) -> Callable[[], Any]:
    """One query a sequence over a padded or paged cache."""
    from xformers.ops.fmha import attn_bias, triton_splitk
    from xformers.ops.fmha.common import Inputs

    for name in ("window", "sinks", "k_scale", "v_dim"):
        need(inputs.get(name) is None, f"no {name} here")
    q, k, v, lengths = (inputs[name] for name in ("q", "k_cache", "v_cache", "lengths"))
    table, scale = inputs.get("block_table"), inputs.get("scale")
    need(table is None or k.shape[1] % triton_splitk.FwOp.BLOCK_N == 0, "pages must be multiples of its block")
    batch, heads, d = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    padding = k.shape[1] if table is None else k.shape[1] * table.shape[1]
    bias: Any = attn_bias.BlockDiagonalPaddedKeysMask.from_seqlens(
        [1] * batch, padding, lengths.tolist(), device=q.device
    )
    if table is not None:
        bias = bias.make_paged(table, k.shape[1], attn_bias.PagedBlockDiagonalPaddedKeysMask)
    # grouped heads: (1, tokens, key heads, query heads of each, d), the cache expanded along them without a copy
    query = q.view(1, batch, kv_heads, group, d)
    keys, values = (x.reshape(1, -1, kv_heads, 1, d).expand(-1, -1, -1, group, -1) for x in (k, v))

    def thunk() -> Any:
        given = Inputs(query=query, key=keys, value=values, attn_bias=bias, scale=scale)
        out, _ = triton_splitk.FwOp.apply(given, needs_gradient=False)
        return out.reshape(batch, heads, d)

    return thunk


OPS = {"decode_attention": decode_attention}
