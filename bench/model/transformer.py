"""The model under test: a dense Llama / Qwen decoder, written once for training, prefill and decode.

    h = embed(tokens)
    each layer:  h += attention(rms_norm(h));  h += swiglu_mlp(rms_norm(h))
    logits = rms_norm(h) @ head                                     (Llama 3, arXiv 2407.21783)

Rotary positions (arXiv 2104.09864), grouped-query attention (2305.13245), SwiGLU (2002.05202), tied or untied
head, optional QK-norm (Qwen3, 2505.09388). Every op comes from the namespace `ops` (see kernels/op.py), so the
model has no `if` on the backend. It knows no clock and no batch policy. Weights are random, scaled so that
activations keep a variance near 1 at every depth; speed does not depend on their values, correctness does.

Shapes: B sequences, T tokens, S cache slots, H hidden, n heads, d head_dim, V vocabulary.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bench.config import Model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


class KVCache:
    """Keys and values of every layer in slots (B, S, n_kv, d), and how many slots of each sequence are filled."""

    def __init__(self, model: Model, layers: int, batch: int, slots: int, dtype: torch.dtype, device: torch.device):
        shape = (batch, slots, model.kv_heads, model.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        self.first = torch.arange(batch, device=device)[:, None] * slots

    def slots(self, positions: Tensor) -> Tensor:
        """Positions (B or 1, T) -> places (B · T,) in the cache seen as one row of slots, as kv_append wants them."""
        return (self.first + positions).flatten()


class Layer(nn.Module):
    """One decoder layer: its weights, the query/key/value projection and the MLP."""

    ops: SimpleNamespace

    def __init__(self, model: Model, ops: SimpleNamespace, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.model, self.ops = model, ops
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
        ffn = model.ffn or 0
        self.attention_norm = nn.Parameter(torch.ones(model.hidden, **place))
        self.qkv = nn.Parameter(torch.empty(query + 2 * key, model.hidden, **place))
        self.out = nn.Parameter(torch.empty(model.hidden, query, **place))
        self.mlp_norm = nn.Parameter(torch.ones(model.hidden, **place))
        self.gate_up = nn.Parameter(torch.empty(2 * ffn, model.hidden, **place))
        self.down = nn.Parameter(torch.empty(model.hidden, ffn, **place))
        if model.qk_norm:
            self.query_norm = nn.Parameter(torch.ones(model.head_dim, **place))
            self.key_norm = nn.Parameter(torch.ones(model.head_dim, **place))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, H) -> rotated q (B, T, n, d), rotated k and v (B, T, n_kv, d)."""
        m = self.model
        packed = self.ops.matmul(x, self.qkv).unflatten(-1, (-1, m.head_dim))
        q, k, v = packed.split((m.heads, m.kv_heads, m.kv_heads), dim=2)
        if m.qk_norm:
            q, _ = self.ops.rms_norm(q, self.query_norm, m.norm_eps)
            k, _ = self.ops.rms_norm(k, self.key_norm, m.norm_eps)
        q, k = self.ops.rope(q, k, cos, sin)
        return q, k, v

    def mlp(self, x: Tensor) -> Tensor:
        """x (..., H) -> (..., H)."""
        return self.ops.matmul(self.ops.swiglu(self.ops.matmul(x, self.gate_up)), self.down)


class Transformer(nn.Module):
    """The decoder with `layers` layers (fewer than the architecture's: a slice for the two-depth fit)."""

    ops: SimpleNamespace
    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        model: Model,
        ops: SimpleNamespace,
        *,
        precision: str,
        device: torch.device,
        max_tokens: int,
        layers: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        if model.not_runnable:
            raise ValueError(f"{model.key}: {model.not_runnable}")
        assert model.rope_theta is not None
        self.model, self.ops = model, ops
        dtype = DTYPES[precision]
        self.embedding = nn.Parameter(torch.empty(model.vocab, model.hidden, dtype=dtype, device=device))
        self.layers = nn.ModuleList(Layer(model, ops, dtype, device) for _ in range(layers or model.layers))
        self.norm = nn.Parameter(torch.ones(model.hidden, dtype=dtype, device=device))
        tied = self.embedding if model.tie_embeddings else nn.Parameter(torch.empty_like(self.embedding))
        self.head = tied
        self.initialise(seed)
        # rope_scaling is recorded in the config and not applied: it changes angles, never the work.
        steps = torch.arange(0, model.head_dim, 2, device=device, dtype=torch.float64) / model.head_dim
        angles = torch.outer(torch.arange(max_tokens, device=device), model.rope_theta**-steps)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Normal weights of variance 1 / fan_in; what writes to the residual stream shrinks by sqrt(2 L)."""
        generator = torch.Generator(device=self.embedding.device).manual_seed(seed)
        residual = 1 / math.sqrt(2 * len(self.layers))
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                shrink = residual if name.endswith(("out", "down")) else 1.0
                weight.normal_(0.0, shrink / math.sqrt(weight.shape[1]), generator=generator)

    @property
    def stack(self) -> list[Layer]:
        """The layers, from the first."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) from position 0 -> normed hidden states (B, T, H); fills the cache where one is given."""
        length = tokens.shape[1]
        cos, sin = self.cos[None, :length], self.sin[None, :length]
        slots = None if cache is None else cache.slots(torch.arange(length, device=tokens.device)[None])
        update, residual = nn.functional.embedding(tokens, self.embedding), None
        for index, layer in enumerate(self.stack):
            x, residual = self.ops.rms_norm(update, layer.attention_norm, self.model.norm_eps, residual)
            q, k, v = layer.project(x, cos, sin)
            if cache is not None:
                self.ops.kv_append(k.flatten(0, 1), v.flatten(0, 1), cache.keys[index], cache.values[index], slots)
            update = self.ops.matmul(self.ops.attention(q, k, v).flatten(2), layer.out)
            x, residual = self.ops.rms_norm(update, layer.mlp_norm, self.model.norm_eps, residual)
            update = layer.mlp(x)
        x, _ = self.ops.rms_norm(update, self.norm, self.model.norm_eps, residual)
        if cache is not None:
            cache.lengths.fill_(length)
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> logits (B, T, V)."""
        return self.ops.matmul(self.hidden(tokens), self.head)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of targets (B, T) given tokens (B, T); target -100 is left out."""
        return self.ops.linear_cross_entropy(self.hidden(tokens).flatten(0, 1), self.head, targets.flatten())

    @torch.no_grad()
    def prefill(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """tokens (B, T) into an empty cache -> logits of the last position (B, V)."""
        return self.ops.matmul(self.hidden(tokens, cache)[:, -1], self.head)

    @torch.no_grad()
    def decode(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """One token a sequence, tokens (B,), at position cache.lengths -> logits (B, V); appends to the cache.

        Nothing here waits for the device, so a CUDA graph can replay it while lengths grow.
        """
        position = cache.lengths.long()
        slots = cache.slots(position[:, None])
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]
        cache.lengths += 1
        update, residual = nn.functional.embedding(tokens, self.embedding)[:, None], None
        for index, layer in enumerate(self.stack):
            x, residual = self.ops.rms_norm(update, layer.attention_norm, self.model.norm_eps, residual)
            q, k, v = layer.project(x, cos, sin)
            self.ops.kv_append(k[:, 0], v[:, 0], cache.keys[index], cache.values[index], slots)
            attended = self.ops.decode_attention(q[:, 0], cache.keys[index], cache.values[index], cache.lengths)
            update = self.ops.matmul(attended.flatten(1), layer.out)[:, None]
            x, residual = self.ops.rms_norm(update, layer.mlp_norm, self.model.norm_eps, residual)
            update = layer.mlp(x)
        x, _ = self.ops.rms_norm(update, self.norm, self.model.norm_eps, residual)
        return self.ops.matmul(x[:, 0], self.head)
