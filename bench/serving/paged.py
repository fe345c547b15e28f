"""The paged cache on the device, and what the tokens of one step see of it.

Keys and values of a layer are (blocks, block_size, n_kv, d); which blocks belong to a request, in the order of its
tokens, a block table says (PagedAttention, arXiv 2309.06180). A step has tokens that decode, one a request, and
pieces of prompts: each kind has its own op. Latent attention (MLA) has decoding's op alone, so there every token of
a piece is a query with a length of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from bench.architecture import Model

FP8 = torch.float8_e4m3fn


@dataclass
class View:
    """One step: D tokens that decode, then pieces of other requests laid end to end."""

    decodes: int
    lengths: Tensor  # (B,) int32: keys each request has, its new ones included; those that decode first
    table: Tensor  # (B, pages) int32
    ends: Tensor | None = None  # (B - D + 1,) int32: where the pieces begin and end, from 0; None: there are none
    longest: int = 0  # tokens of the longest piece
    token_lengths: Tensor | None = None  # latent attention: (N,) int32, keys each token sees
    token_table: Tensor | None = None  # latent attention: (N, pages) int32


class PagedCache:
    """`kv_dtype`: that of the model, or e4m3 with one scale for all (random weights give keys of size 1)."""

    def __init__(self, model: Model, layers: int, blocks: int, size: int, kv_dtype: torch.dtype, device: torch.device):
        latent = model.attention == "mla"
        width = (model.kv_lora_rank or 0) + (model.qk_rope_head_dim or 0) if latent else model.head_dim
        shape = (blocks, size, 1 if latent else model.kv_heads, width)
        self.latent = latent
        self.keys = [torch.zeros(shape, dtype=kv_dtype, device=device) for _ in range(layers)]
        self.values = [None if latent else torch.zeros(shape, dtype=kv_dtype, device=device) for _ in range(layers)]
        one = torch.ones((), dtype=torch.float32, device=device)
        self.scales = {"k_scale": one, "v_scale": one} if kv_dtype == FP8 else {}
        self.view: View | None = None

    @property
    def bytes(self) -> int:
        """Memory of all layers."""
        return sum(part.nbytes for part in (*self.keys, *self.values) if part is not None)

    def append(self, ops: SimpleNamespace, index: int, k: Tensor, v: Tensor | None, slots: Tensor) -> None:
        """Keys and values (N, n_kv, d) into layer `index`; slot = block · block_size + place, -1 is padding."""
        ops.kv_append(k, v, self.keys[index], self.values[index], slots, **self.scales)

    def attend(self, ops: SimpleNamespace, index: int, q: Tensor, chunked: bool, **options: Any) -> Tensor:
        """q (N, n, d) of all tokens of the step against layer `index` -> (N, n, d of the values)."""
        view = self.view
        assert view is not None and not chunked
        keys, values = self.keys[index], self.values[index]
        options |= self.scales
        if self.latent:
            attended: Tensor = ops.decode_attention(
                q, keys, None, view.token_lengths, block_table=view.token_table, **options
            )
            return attended
        d = view.decodes
        parts = []
        if d:
            table = view.table[:d]
            parts.append(ops.decode_attention(q[:d], keys, values, view.lengths[:d], block_table=table, **options))
        if view.ends is not None:
            rest = (view.lengths[d:], view.ends, view.table[d:])
            parts.append(ops.chunk_attention(q[d:], keys, values, *rest, max_query=view.longest, **options))
        return torch.cat(parts) if len(parts) > 1 else parts[0]
