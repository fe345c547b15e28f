"""A model's architecture as its TOML states it: numbers only, and which kind each of its layers is.

Most models repeat one layer. Others begin with dense layers (DeepSeek-V3), alternate windowed and full attention
(gpt-oss), or dense and routed feed-forward blocks and chunked and full attention (Llama 4): `Model.kinds` says, layer
by layer. A slice with fewer layers keeps the beginning, and `period` is how many layers one turn of the pattern has.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import ClassVar

from bench.config import require


@dataclass(frozen=True)
class LayerKind:
    """What tells one layer of a model from another."""

    moe: bool  # a routed feed-forward block; else a dense one
    window: int | None  # a query sees at most this many keys, itself among them
    chunk: int | None  # a query sees the keys of its own chunk of this many positions
    rotary: bool  # rotary positions; else none, or learned ones added to the embedding


@dataclass(frozen=True, kw_only=True)
class Model:
    """An architecture. Sizes are counts; `ffn` is the dense MLP's width, `ffn_expert` one expert's."""

    FOLDER: ClassVar[str] = "models"
    key: str = ""
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    ffn: int | None = None  # width of the dense MLP; None where every layer is MoE
    mlp: str = "swiglu"  # or gelu
    norm: str = "rmsnorm"  # or layernorm
    norm_eps: float = 1e-5
    attention: str = "gqa"  # mha | gqa | mla
    rope_theta: float | None = None  # None: learned positions
    rope_scaling: str | None = None
    max_positions: int
    tie_embeddings: bool
    qk_norm: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_sinks: bool = False
    sliding_window: int | None = None
    window_every: int | None = None  # the window holds on every n-th layer, from the first
    attention_chunk: int | None = None  # attention within chunks of this many positions, on rotary layers
    no_rope_every: int | None = None  # every n-th layer, from the n-th, has no positions and attends to everything
    experts: int = 0
    top_k: int = 0
    shared_experts: int = 0
    ffn_expert: int | None = None
    first_dense_layers: int = 0  # of a mixture of experts
    moe_every: int = 1  # every n-th layer, from the n-th, is a mixture; the others are dense
    swiglu_limit: float | None = None  # experts' activation clamped as gpt-oss has it
    scoring: str = "softmax"  # of the router: softmax | sigmoid
    router_bias: bool = False  # softmax: of the router's projection; sigmoid: added to the choice alone
    router_normalise: bool = True  # the chosen weights sum to 1 before router_scale
    router_scale: float = 1.0
    router_groups: int = 1
    router_top_groups: int = 1
    router_on_input: bool = False  # the weight multiplies the expert's input (Llama 4, top-1)
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    total_params: int  # as the shapes file states it; a test counts it again
    active_matmul_params: int  # multiplied once per token: LM head in, embedding look-up out
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "max_positions", "moe_every"):
            require(getattr(self, name) > 0, name, f"a positive count, got {getattr(self, name)}")
        require(self.heads % self.kv_heads == 0, "kv_heads", f"a divisor of heads = {self.heads}")
        for name, known in (
            ("attention", ("mha", "gqa", "mla")),
            ("mlp", ("swiglu", "gelu")),
            ("norm", ("rmsnorm", "layernorm")),
            ("scoring", ("softmax", "sigmoid")),
        ):
            require(getattr(self, name) in known, name, f"one of {', '.join(known)}, got {getattr(self, name)!r}")
        latent = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        for name in latent if self.attention == "mla" else ():
            require(bool(getattr(self, name)), name, "a positive count, which attention = mla needs")
        if self.experts:
            require(0 < self.top_k <= self.experts, "top_k", f"1 to experts = {self.experts}, got {self.top_k}")
            require(bool(self.ffn_expert), "ffn_expert", "a positive count where there are experts")
            require(not self.router_on_input or self.top_k == 1, "router_on_input", "top_k = 1")
        dense = [kind for kind in self.kinds if not kind.moe]
        require(not dense or bool(self.ffn), "ffn", "a positive count where a layer is dense")

    @functools.cached_property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Each layer's kind, from the first."""
        return tuple(self._kind(index) for index in range(self.layers))

    def _kind(self, index: int) -> LayerKind:
        moe = bool(self.experts) and index >= self.first_dense_layers and (index + 1) % self.moe_every == 0
        windowed = bool(self.sliding_window) and index % (self.window_every or 1) == 0
        rotary = self.rope_theta is not None and not (self.no_rope_every and (index + 1) % self.no_rope_every == 0)
        return LayerKind(
            moe=moe,
            window=self.sliding_window if windowed else None,
            chunk=self.attention_chunk if rotary else None,
            rotary=rotary,
        )

    @property
    def moe_layers(self) -> int:
        """How many layers are a mixture of experts."""
        return sum(kind.moe for kind in self.kinds)

    @property
    def period(self) -> int:
        """Layers in one turn of the pattern: slices grow by whole turns, so that step time is a line in the depth."""
        every = (self.window_every if self.sliding_window else 1, self.moe_every if self.experts else 1)
        return math.lcm(*(n or 1 for n in every), self.no_rope_every or 1)

    @property
    def distinct_layers(self) -> tuple[int, ...]:
        """The first layer of each kind: what a check has to run."""
        kinds = self.kinds
        return tuple(sorted(kinds.index(kind) for kind in set(kinds)))

    def sliced(self, layers: int) -> Model:
        """The same architecture with its first `layers` layers."""
        return dataclasses.replace(self, layers=layers)

    def expert_slice(self, ranks: int) -> Model:
        """What one of `ranks` expert-parallel GPUs holds: experts divided, top-k kept.

        With as many tokens a GPU, each expert then sees as many tokens as in the whole deployment. Raises ValueError.
        """
        require(self.experts % ranks == 0, "expert_parallel", f"a divisor of experts = {self.experts}, got {ranks}")
        left = self.experts // ranks
        require(left >= self.top_k, "expert_parallel", f"at least top_k = {self.top_k} experts a GPU, got {left}")
        # groups of experts stay where each has two or more left and the chosen groups have top_k between them
        a_group, rest = divmod(left, self.router_groups)
        grouped = rest == 0 and a_group > 1 and a_group * self.router_top_groups >= self.top_k
        groups = (self.router_groups, self.router_top_groups) if grouped else (1, 1)
        return dataclasses.replace(self, experts=left, router_groups=groups[0], router_top_groups=groups[1])
