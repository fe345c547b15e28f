"""One decoder layer:  h += attention(norm(h));  h += mlp(norm(h)),  the kinds of both chosen by the layer's kind.

The residual stream is handed on beside the update not yet added to it, so that adding and norming are one op.
Checkpointing (Chen et al. 2016, arXiv 1604.06174) computes parts of a layer again in backward instead of keeping them:
`full` the whole layer, `selective` its norm and MLP, whose inner activations are the largest; attention is kept.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.architecture import LayerKind, Model
from bench.model.attention import Grouped, Latent
from bench.model.cache import Cache, KVCache
from bench.model.mlp import Dense, Mixture
from bench.model.parts import Norm, Tokens


class Layer(nn.Module):
    """Update and residual (B, T, H) -> update and residual. The first layer's residual is None."""

    def __init__(self, model: Model, kind: LayerKind, ops: SimpleNamespace, place: dict[str, Any], checkpointing: str):
        super().__init__()
        self.checkpointing = checkpointing
        self.attention_norm = Norm(ops, model, model.hidden, place)
        self.attention = (Latent if model.attention == "mla" else Grouped)(model, kind, ops, place)
        self.mlp_norm = Norm(ops, model, model.hidden, place)
        self.mlp = Mixture(model, ops, place) if kind.moe else Dense(model, model.ffn or 0, ops, place)

    def forward(
        self,
        update: Tensor,
        residual: Tensor | None,
        tokens: Tokens,
        cache: KVCache | None = None,
        index: int = 0,
        slots: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """From position 0; fills layer `index` of the cache where there is one."""
        if self.checkpointing == "full" and self.training:
            return _again(self._body, update, residual, tokens)
        return self._body(update, residual, tokens, cache, index, slots)

    def _body(
        self,
        update: Tensor,
        residual: Tensor | None,
        tokens: Tokens,
        cache: KVCache | None = None,
        index: int = 0,
        slots: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        x, residual = self.attention_norm(update, residual)
        update = self.attention(x, tokens, cache, index, slots)
        if self.checkpointing == "selective" and self.training:
            return _again(self._feed, update, residual, tokens)
        return self._feed(update, residual, tokens)

    def _feed(self, update: Tensor, residual: Tensor | None, tokens: Tokens) -> tuple[Tensor, Tensor]:
        x, residual = self.mlp_norm(update, residual)
        return self.mlp(x, tokens), residual

    def decode(
        self, update: Tensor, residual: Tensor | None, tokens: Tokens, cache: Cache, index: int, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, H) that see what the cache says they see."""
        x, residual = self.attention_norm(update, residual)
        return self._feed(self.attention.decode(x, tokens, cache, index, slots), residual, tokens)


def _again(part: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
    """`part`, computed again in backward; nothing in it is random."""
    return checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=False)
