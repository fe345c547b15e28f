"""The key-value cache of every layer, in slots, as decoding reads it.

Shapes: B sequences, S slots, n_kv heads, d head_dim; latent attention (MLA) has one cache of width c + r and no values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.architecture import Model

PAGE = 16  # positions in one page of a chunked layer's cache; a chunk is a whole number of them


class KVCache:
    """Keys and values (B, S, n_kv, d) of `layers` layers, and how many slots of each sequence are filled."""

    def __init__(self, model: Model, layers: int, batch: int, slots: int, dtype: torch.dtype, device: torch.device):
        chunk = model.attention_chunk
        if chunk and slots > chunk:  # read by pages then
            slots = -(-slots // PAGE) * PAGE
        latent = model.attention == "mla"
        width = (model.kv_lora_rank or 0) + (model.qk_rope_head_dim or 0) if latent else model.head_dim
        shape = (batch, slots, 1 if latent else model.kv_heads, width)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [None if latent else torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        self.first = torch.arange(batch, device=device)[:, None] * slots
        self.chunk = chunk if chunk and slots > chunk else None

    def slots(self, positions: Tensor) -> Tensor:
        """Positions (B or 1, T) -> places (B · T,) in the cache seen as one row of slots, as kv_append wants them."""
        return (self.first + positions).flatten()

    def pages(self) -> tuple[Tensor, Tensor]:
        """Where each sequence's last chunk lies: a block table (B, chunk / PAGE) and how much of it is filled (B,)."""
        assert self.chunk
        last = (self.lengths - 1).long()
        start = last // self.chunk * self.chunk
        page = torch.arange(self.chunk // PAGE, device=last.device)
        table = (self.first + start[:, None]) // PAGE + page
        return table.int(), (last - start + 1).int()

    def paged(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Keys and values of layer `index` as pages (blocks, PAGE, n_kv, d)."""
        keys, values = self.keys[index], self.values[index]
        shape = (-1, PAGE, *keys.shape[2:])
        return keys.view(shape), None if values is None else values.view(shape)
