"""The key-value cache of every layer, in slots, as decoding reads it.

Shapes: B sequences, S slots, n_kv heads, d head_dim; latent attention (MLA) has one cache of width c + r and no values.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.architecture import Model

PAGE = 16  # positions in one page of a chunked layer's cache; a chunk is a whole number of them


class Cache(Protocol):
    """What a layer asks of any cache: to keep new tokens, and to let queries see what is visible to them."""

    def append(self, ops: SimpleNamespace, index: int, k: Tensor, v: Tensor | None, slots: Tensor) -> None: ...

    def attend(self, ops: SimpleNamespace, index: int, q: Tensor, chunked: bool, **options: Any) -> Tensor: ...


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

    def append(self, ops: SimpleNamespace, index: int, k: Tensor, v: Tensor | None, slots: Tensor) -> None:
        """Keys and values (N, n_kv, d) of N tokens into layer `index`."""
        ops.kv_append(k, v, self.keys[index], self.values[index], slots)

    def attend(self, ops: SimpleNamespace, index: int, q: Tensor, chunked: bool, **options: Any) -> Tensor:
        """q (B, n, d), one token a sequence, against layer `index` -> (B, n, d of the values)."""
        keys, values, lengths = self.keys[index], self.values[index], self.lengths
        if chunked and self.chunk:
            options["block_table"], lengths = self.pages()
            keys, values = self.paged(index)
        attended: Tensor = ops.decode_attention(q, keys, values, lengths, **options)
        return attended

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
