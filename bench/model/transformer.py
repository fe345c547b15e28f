"""The model under test: a decoder of any architecture in configs/models, for training, prefill and decode.

    h = embed(tokens);  each layer (layer.py);  logits = norm(h) @ head              (Llama 3, arXiv 2407.21783)

Every op comes from the namespace `ops` (see kernels/op.py), so the model has no `if` on the backend. It knows no
clock and no batch policy. Weights are random (parts.py: initialise); speed does not depend on their values, apart
from where a router sends tokens (routing.py), correctness does.

Shapes: B sequences, T tokens, S cache slots, H hidden, n heads, d head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bench.architecture import Model
from bench.model import documents
from bench.model.cache import Cache, KVCache
from bench.model.layer import Layer
from bench.model.parts import Norm, Tokens, initialise

# fp8 is what the layers' projections multiply in (fp8.py); everything else is bf16 then
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,
    "fp64": torch.float64,
}


class Transformer(nn.Module):
    """The decoder with the layers of numbers `layers` (all, by default; fewer: a slice or a check).

    `finish` is called with each layer once its weights are drawn, and with the whole model last: where parallel.py
    shards, so that no GPU ever holds more than one whole layer.
    """

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
        layers: int | Sequence[int] | None = None,
        seed: int = 0,
        checkpointing: str = "none",
        finish: Callable[[nn.Module], None] = lambda module: None,
    ):
        super().__init__()
        self.model, self.ops = model, ops
        place: dict[str, Any] = {"dtype": DTYPES[precision], "device": device}
        numbers = range(model.layers) if layers is None else range(layers) if isinstance(layers, int) else layers
        kinds = model.kinds
        self.layers = nn.ModuleList()
        for number in numbers:
            layer = Layer(model, kinds[number], ops, place, checkpointing)
            initialise(layer, seed * 1000 + number + 1, len(numbers))
            finish(layer)
            self.layers.append(layer)
        self.embedding = nn.Parameter(torch.empty(model.vocab, model.hidden, **place))
        learned = model.rope_theta is None
        self.positions = nn.Parameter(torch.empty(model.max_positions, model.hidden, **place)) if learned else None
        self.norm = Norm(ops, model, model.hidden, place)
        self.head = self.embedding if model.tie_embeddings else nn.Parameter(torch.empty_like(self.embedding))
        outer = nn.ParameterDict({"embedding": self.embedding})
        outer.update({"positions": self.positions} if learned else {})
        outer.update({} if model.tie_embeddings else {"head": self.head})
        initialise(outer, seed * 1000, len(numbers))
        if model.rope_theta is not None:
            # rope_scaling is recorded in the config and not applied: it changes angles, never the work
            width = model.qk_rope_head_dim if model.attention == "mla" else model.head_dim
            steps = torch.arange(0, width or 0, 2, device=device, dtype=torch.float64) / (width or 1)
            angles = torch.outer(torch.arange(max_tokens, device=device), model.rope_theta**-steps)
            self.register_buffer("cos", angles.cos().float(), persistent=False)
            self.register_buffer("sin", angles.sin().float(), persistent=False)
        self.loss_of: Callable[..., Tensor] | None = None  # None: the op; parallel.py shares it out
        finish(self)

    @property
    def stack(self) -> list[Layer]:
        """The layers, from the first."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def described(
        self, batch: int, length: int, lengths: list[list[int]] | None = None, routing: Tensor | None = None
    ) -> Tokens:
        """What layers are told of `batch` sequences of `length` tokens, packed with documents of `lengths` if given."""
        device, chunk = self.embedding.device, self.model.attention_chunk
        places = torch.arange(length, device=device)[None] if lengths is None else documents.positions(lengths, device)
        cut = lengths or [[length]] * batch
        chunked = chunk is not None and any(row > chunk for rows in cut for row in rows)
        return Tokens(
            positions=places,
            cos=None if self.model.rope_theta is None else self.cos[places],
            sin=None if self.model.rope_theta is None else self.sin[places],
            documents=None if lengths is None else documents.ends(lengths, device),
            chunks=documents.ends(cut, device, chunk) if chunked else None,
            routing=routing,
        )

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens (B, T) -> (B, T, H)."""
        h = nn.functional.embedding(tokens, self.embedding)
        return h if self.positions is None else h + nn.functional.embedding(positions, self.positions)

    def hidden(self, tokens: Tensor, given: Tokens | None = None, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) from position 0 -> normed hidden states (B, T, H); fills the cache where one is given."""
        given = given or self.described(*tokens.shape)
        slots = None if cache is None else cache.slots(torch.arange(tokens.shape[1], device=tokens.device)[None])
        update, residual = self.embed(tokens, given.positions), None
        for index, layer in enumerate(self.layers):
            update, residual = layer(update, residual, given, cache, index, slots)
        x, _ = self.norm(update, residual)
        if cache is not None:
            cache.lengths.fill_(tokens.shape[1])
        return x

    def forward(self, tokens: Tensor, given: Tokens | None = None) -> Tensor:
        """tokens (B, T) -> logits (B, T, V)."""
        return self.ops.matmul(self.hidden(tokens, given), self.head)

    def loss(self, tokens: Tensor, targets: Tensor, given: Tokens | None = None) -> Tensor:
        """Mean cross-entropy in nats of targets (B, T) given tokens (B, T); target -100 is left out."""
        hidden = self.hidden(tokens, given)
        loss_of = self.loss_of or self.ops.linear_cross_entropy
        return loss_of(hidden.flatten(0, 1), self.head, targets.flatten())

    @torch.no_grad()
    def prefill(self, tokens: Tensor, cache: KVCache, given: Tokens | None = None) -> Tensor:
        """tokens (B, T) into an empty cache -> logits of the last position (B, V)."""
        return self.ops.matmul(self.hidden(tokens, given, cache)[:, -1], self.head)

    @torch.no_grad()
    def decode(self, tokens: Tensor, cache: KVCache, routing: Tensor | None = None) -> Tensor:
        """One token a sequence, tokens (B,), at position cache.lengths -> logits (B, V); appends to the cache.

        Nothing here waits for the device, so a CUDA graph can replay it while lengths grow.
        """
        position = cache.lengths.long()[:, None]
        slots = cache.slots(position)
        cache.lengths += 1
        return self.cached(tokens[:, None], position, cache, slots, routing)

    @torch.no_grad()
    def cached(
        self,
        tokens: Tensor,
        positions: Tensor,
        cache: Cache,
        slots: Tensor,
        routing: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, T) at positions (B, T), appended at slots (B · T,) -> logits of all, or of `rows`, (N, V).

        What each token sees, the cache says: a sequence of one token each, or pieces of several sequences.
        """
        rotary = self.model.rope_theta is not None
        cos, sin = (self.cos[positions], self.sin[positions]) if rotary else (None, None)
        given = Tokens(positions=positions, cos=cos, sin=sin, routing=routing)
        update, residual = self.embed(tokens, positions), None
        for index, layer in enumerate(self.stack):
            update, residual = layer.decode(update, residual, given, cache, index, slots)
        x, _ = self.norm(update, residual)
        x = x.flatten(0, 1)
        return self.ops.matmul(x if rows is None else x[rows], self.head)
