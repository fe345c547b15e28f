"""The attention block of a layer: grouped-query attention, and multi-head latent attention (MLA).

Grouped (Ainslie et al. 2023, arXiv 2305.13245), with what a model adds to it: QK-norm (Qwen3, 2505.09388), a sliding
window, sinks and biases (gpt-oss, 2508.10925), chunks and layers without positions (Llama 4).

    latent:  c = norm(x · Dᵀ),  [k_nope | v] = c · Uᵀ,  k = [k_nope | rope(x · Rᵀ)],  q likewise through its own latent

(DeepSeek-V2, arXiv 2405.04434, section 2.1). The cache then holds c and the rotated part alone; decoding absorbs the
up-projections into the query and the output, so that scores and values are computed in the latent space.

`enter` and `leave` stand where tensor parallelism needs its two collectives (parallel.py); they do nothing otherwise.
Shapes: x (B, T, H) -> (B, T, H); n heads, d head_dim, c kv_lora_rank, r qk_rope_head_dim.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bench.architecture import LayerKind, Model
from bench.model.cache import Cache, KVCache
from bench.model.parts import Linear, Norm, Tokens


def same(x: Tensor) -> Tensor:
    """x itself."""
    return x


class Grouped(nn.Module):
    """Multi-head or grouped-query attention."""

    def __init__(self, model: Model, kind: LayerKind, ops: SimpleNamespace, place: dict[str, Any]):
        super().__init__()
        self.ops, self.kind, self.d = ops, kind, model.head_dim
        self.heads, self.kv_heads = model.heads, model.kv_heads
        query, key, bias = model.heads * model.head_dim, model.kv_heads * model.head_dim, model.attention_bias
        self.qkv = Linear(ops, model.hidden, (query, key, key), place, bias)
        self.out = Linear(ops, query, (model.hidden,), place, bias)
        self.sinks = nn.Parameter(torch.empty(model.heads, **place)) if model.attention_sinks else None
        self.query_norm = Norm(ops, model, model.head_dim, place) if model.qk_norm else None
        self.key_norm = Norm(ops, model, model.head_dim, place) if model.qk_norm else None
        self.enter = self.leave = same

    def project(self, x: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, T, n, d), k and v (B, T, n_kv, d), rotated where the layer has positions."""
        packed = self.qkv(self.enter(x)).unflatten(-1, (-1, self.d))
        q, k, v = packed.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q)[0], self.key_norm(k)[0]
        if self.kind.rotary:
            q, k = self.ops.rope(q, k, tokens.cos, tokens.sin)
        return q, k, v

    def forward(self, x: Tensor, tokens: Tokens, cache: KVCache | None, index: int, slots: Tensor | None) -> Tensor:
        """From position 0; writes keys and values into layer `index` of the cache where there is one."""
        q, k, v = self.project(x, tokens)
        if cache is not None and slots is not None:
            cache.append(self.ops, index, k.flatten(0, 1), v.flatten(0, 1), slots)
        ends = tokens.chunks if self.kind.chunk and tokens.chunks is not None else tokens.documents
        options: dict[str, Any] = {"window": self.kind.window, "sinks": self.sinks, "cu_seqlens": ends}
        options = {name: value for name, value in options.items() if value is not None}
        return self.leave(self.out(self.ops.attention(q, k, v, **options).flatten(2)))

    def decode(self, x: Tensor, tokens: Tokens, cache: Cache, index: int, slots: Tensor) -> Tensor:
        """Tokens x (B, T, H) that see what the cache says they see; their keys and values are appended first."""
        q, k, v = (part.flatten(0, 1) for part in self.project(x, tokens))
        cache.append(self.ops, index, k, v, slots)
        options: dict[str, Any] = {"window": self.kind.window, "sinks": self.sinks}
        options = {name: value for name, value in options.items() if value is not None}
        attended = cache.attend(self.ops, index, q, bool(self.kind.chunk), **options)
        return self.leave(self.out(attended.flatten(1))).view(x.shape)


class Latent(nn.Module):
    """Multi-head latent attention."""

    def __init__(self, model: Model, kind: LayerKind, ops: SimpleNamespace, place: dict[str, Any]):
        super().__init__()
        self.ops, self.kind, self.heads = ops, kind, model.heads
        self.nope, self.rotary = model.qk_nope_head_dim or 0, model.qk_rope_head_dim or 0
        self.value, self.latent = model.v_head_dim or 0, model.kv_lora_rank or 0
        query, heads = model.q_lora_rank or 0, model.heads
        self.scale = (self.nope + self.rotary) ** -0.5
        self.down_query = Linear(ops, model.hidden, (query,), place, False)
        self.query_norm = Norm(ops, model, query, place)
        self.up_query = Linear(ops, query, (heads * (self.nope + self.rotary),), place, False)
        self.down_key = Linear(ops, model.hidden, (self.latent, self.rotary), place, False)
        self.key_norm = Norm(ops, model, self.latent, place)
        self.up_key = Linear(ops, self.latent, (heads * (self.nope + self.value),), place, False)
        self.out = Linear(ops, heads * self.value, (model.hidden,), place, False)

    def project(self, x: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q_nope (B, T, n, nope), rotated q (B, T, n, r), latent (B, T, c), rotated key (B, T, 1, r)."""
        q = self.up_query(self.query_norm(self.down_query(x))[0]).unflatten(-1, (self.heads, -1))
        q_nope, q_rotary = q.split((self.nope, self.rotary), dim=-1)
        latent, k_rotary = self.down_key(x).split((self.latent, self.rotary), dim=-1)
        latent, _ = self.key_norm(latent)
        q_rotary, k_rotary = self.ops.rope(q_rotary, k_rotary.unsqueeze(2), tokens.cos, tokens.sin)
        return q_nope, q_rotary, latent, k_rotary

    def forward(self, x: Tensor, tokens: Tokens, cache: KVCache | None, index: int, slots: Tensor | None) -> Tensor:
        """From position 0; writes the latent and the rotated key into layer `index` of the cache."""
        q_nope, q_rotary, latent, k_rotary = self.project(x, tokens)
        if cache is not None and slots is not None:
            row = torch.cat((latent.unsqueeze(2), k_rotary), -1).flatten(0, 1)
            cache.append(self.ops, index, row, None, slots)
        k_nope, v = self.up_key(latent).unflatten(-1, (self.heads, -1)).split((self.nope, self.value), dim=-1)
        q = torch.cat((q_nope, q_rotary), -1)
        k = torch.cat((k_nope, k_rotary.expand(-1, -1, self.heads, -1)), -1)
        options = {} if tokens.documents is None else {"cu_seqlens": tokens.documents}
        return self.out(self.ops.attention(q, k, v, scale=self.scale, **options).flatten(2))

    def decode(self, x: Tensor, tokens: Tokens, cache: Cache, index: int, slots: Tensor) -> Tensor:
        """Tokens x (B, T, H) that see what the cache says they see, with the up-projections absorbed."""
        q_nope, q_rotary, latent, k_rotary = (part.flatten(0, 1) for part in self.project(x, tokens))
        row = torch.cat((latent, k_rotary[:, 0]), -1)[:, None]  # (N, 1, c + r): one key head
        cache.append(self.ops, index, row, None, slots)
        up = self.up_key.weight.unflatten(0, (self.heads, -1))  # (n, nope + v, c)
        absorbed = torch.einsum("bnd,ndc->bnc", q_nope, up[:, : self.nope])
        q = torch.cat((absorbed, q_rotary), -1)
        o = cache.attend(self.ops, index, q, False, scale=self.scale, v_dim=self.latent)  # (N, n, c)
        o = torch.einsum("bnc,nvc->bnv", o, up[:, self.nope :])
        return self.out(o.flatten(1)).view(x.shape)
