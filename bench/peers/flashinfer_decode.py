"""FlashInfer's decode attention (Apache-2.0, written against 0.6.6, distribution flashinfer-python).

What a serving engine does once a batch (planning, page tables, reading lengths) stands outside the timed call. It
builds its kernels with nvcc and ninja when they are first asked for, which is not timed either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.peers.found import lacking, need

PACKAGE = "flashinfer-python"
WORKSPACE_BYTES = 128 << 20  # as its documentation advises
PAGE = 16  # a contiguous cache is cut into pages of this many positions, in order


def why_not() -> str | None:
    """None where it can run."""
    return lacking("flashinfer")


def _pages(cache: torch.Tensor, table: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The cache as (pages, page, heads, d), each sequence's page numbers, and the page size."""
    if table is not None:
        return cache, table, cache.shape[1]
    need(cache.shape[1] % PAGE == 0, f"a contiguous cache must be a multiple of {PAGE} long")
    paged = cache.view(-1, PAGE, *cache.shape[2:])
    return paged, torch.arange(len(paged), device=cache.device).view(cache.shape[0], -1), PAGE


def _indices(table: torch.Tensor, lengths: torch.Tensor, page: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Its page table in compressed rows: where each sequence's pages begin, the pages, what the last one holds."""
    counts = (lengths + page - 1) // page
    used = torch.arange(table.shape[1], device=table.device) < counts[:, None]
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return offsets.int(), table[used].int(), (lengths - (counts - 1) * page).int()


def _latent(inputs: dict[str, Any]) -> Callable[[], Any]:
    import flashinfer

    q, cache, lengths, width = (inputs[name] for name in ("q", "k_cache", "lengths", "v_dim"))
    cache, table, page = _pages(cache, inputs.get("block_table"))
    offsets, indices, _ = _indices(table, lengths, page)
    batch, heads, d = q.shape
    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper(workspace, backend="auto")
    ends = torch.arange(batch + 1, device=q.device, dtype=torch.int32)
    scale = inputs.get("scale") or d**-0.5
    rest = (heads, width, d - width, page, False, scale, q.dtype, cache.dtype)
    wrapper.plan(ends, offsets, indices, lengths.int(), *rest)
    parts = [x[..., slice(*cut)] for cut in ((0, width), (width, d)) for x in (q, cache[:, :, 0])]
    return lambda: wrapper.run(parts[0], parts[2], parts[1], parts[3])


def decode_attention(inputs: dict[str, Any]) -> Callable[[], Any]:
    """Paged, windowed, fp8 cache, or latent."""
    import flashinfer

    if inputs.get("v_dim") is not None:
        return _latent(inputs)
    need(inputs.get("sinks") is None, "no attention sinks without a kernel of one's own")
    q, lengths, window = inputs["q"], inputs["lengths"], inputs.get("window")
    k, table, page = _pages(inputs["k_cache"], inputs.get("block_table"))
    v = inputs["v_cache"].view(k.shape)
    heads, kv_heads, d = q.shape[1], k.shape[2], q.shape[2]
    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
    # its documentation: tensor cores from a group of 4 query heads on
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=heads >= 4 * kv_heads)
    wrapper.plan(
        *_indices(table, lengths, page), heads, kv_heads, d, page,
        window_left=-1 if window is None else window - 1,
        q_data_type=q.dtype, kv_data_type=k.dtype, sm_scale=inputs.get("scale"),
    )  # fmt: skip
    scales = {name: float(inputs[name]) for name in ("k_scale", "v_scale") if inputs.get(name) is not None}
    return lambda: wrapper.run(q, (k, v), **scales)


OPS = {"decode_attention": decode_attention}
