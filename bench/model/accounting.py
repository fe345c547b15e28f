"""Parameters, FLOPs and bytes of one step, counted from the architecture alone. FMA = 2 FLOPs.

Forward over t tokens from scratch: 2 * P_mm * t + attention, P_mm = parameters multiplied once per token
(LM head in, embedding look-up out: Kaplan et al. 2020, arXiv 2001.08361, eq. 2.2, exact instead of 6ND).
Attention over a sequence of T: 2 * L * n_q * (d_qk + d_v) * pairs, where pairs = T^2 unhalved (PaLM app. B,
arXiv 2204.02311; torchtitan) or T(T+1)/2 unmasked pairs halved (FlashAttention's convention, exact).
Documents packed into a sequence attend within themselves: halved pairs are theirs, unhalved still T^2.
Training = 3 x forward (forward, gradient of activations, gradient of weights); recomputation is never counted.
With adapters (LoRA, arXiv 2106.09685) frozen weights have no gradient: 4 * P for 6 * P, which counts the gradient of
the embedding's output too, though nothing there is trained.
Decode of one token at context c (the token itself included): attention pairs = c.

Bytes are the least device-memory traffic: every weight read once a step, the KV cache read once, and in
training what mixed-precision Adam must read and write. Norms, rotary, softmax and routing are FLOP-negligible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.architecture import LayerKind, Model

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
# of weights alone; fp4: 4 bits and an 8-bit scale for every 16 of them (NVFP4; OCP's MXFP4 has one for 32)
WEIGHT_BYTES = {**BYTES, "fp4": 0.5625}
Documents = Sequence[Sequence[int]]  # lengths of the documents packed into each sequence


@dataclass(frozen=True)
class Cost:
    """FLOPs of one step, causal attention halved and not, and its least memory traffic in bytes."""

    flops: float
    flops_unhalved: float
    bytes: float


# ---------------------------------------------------------------- parameters


def _attention_weights(m: Model) -> int:
    """Projection weights of one attention layer."""
    if m.attention == "mla":  # DeepSeek-V2, arXiv 2405.04434: low-rank query and key-value paths
        assert m.q_lora_rank and m.kv_lora_rank and m.qk_nope_head_dim and m.qk_rope_head_dim and m.v_head_dim
        query = m.hidden * m.q_lora_rank + m.q_lora_rank * m.heads * (m.qk_nope_head_dim + m.qk_rope_head_dim)
        down = m.hidden * (m.kv_lora_rank + m.qk_rope_head_dim)
        up = m.kv_lora_rank * m.heads * (m.qk_nope_head_dim + m.v_head_dim)
        return query + down + up + m.heads * m.v_head_dim * m.hidden
    return 2 * m.hidden * m.heads * m.head_dim + 2 * m.hidden * m.kv_heads * m.head_dim


def _mlp_matrices(m: Model) -> int:
    return 3 if m.mlp == "swiglu" else 2


def _dense_mlp(m: Model) -> int:
    return _mlp_matrices(m) * m.hidden * (m.ffn or 0)


def _expert(m: Model) -> int:
    return _mlp_matrices(m) * m.hidden * (m.ffn_expert or 0)


def _moe(m: Model) -> int:
    """Weights of one mixture that a token meets: router, its experts, the shared ones."""
    return m.hidden * m.experts + (m.top_k + m.shared_experts) * _expert(m)


def layer_matmul_params(m: Model) -> int:
    """Weights of all layers that one token is multiplied with: active experts only."""
    dense = (m.layers - m.moe_layers) * _dense_mlp(m)
    return m.layers * _attention_weights(m) + dense + m.moe_layers * _moe(m)


def matmul_params(m: Model) -> int:
    """Weights one token is multiplied with: active experts only, LM head once whether tied or not."""
    return layer_matmul_params(m) + m.vocab * m.hidden


def adapter_params(m: Model, rank: int) -> int:
    """Adapters of `rank` on every projection of attention and dense or shared MLP: rank x (inputs + outputs) each."""
    if m.attention == "mla":
        assert m.q_lora_rank and m.kv_lora_rank and m.qk_nope_head_dim and m.qk_rope_head_dim and m.v_head_dim
        sides = [(m.hidden, m.q_lora_rank), (m.q_lora_rank, m.heads * (m.qk_nope_head_dim + m.qk_rope_head_dim))]
        sides += [(m.hidden, m.kv_lora_rank), (m.hidden, m.qk_rope_head_dim)]
        sides += [(m.kv_lora_rank, m.heads * (m.qk_nope_head_dim + m.v_head_dim))]
        sides += [(m.heads * m.v_head_dim, m.hidden)]
    else:
        query, key = m.heads * m.head_dim, m.kv_heads * m.head_dim
        sides = [(m.hidden, query), (m.hidden, key), (m.hidden, key), (query, m.hidden)]
    attention = sum(inner + outer for inner, outer in sides)
    dense, shared = (_mlp_matrices(m) * (m.hidden + width) for width in (m.ffn or 0, _shared_width(m)))
    mixtures = m.moe_layers * shared if m.shared_experts else 0
    return rank * (m.layers * attention + (m.layers - m.moe_layers) * dense + mixtures)


def _shared_width(m: Model) -> int:
    return m.shared_experts * (m.ffn_expert or 0)


def layer_vectors(m: Model, *, active: bool) -> int:
    """Biases, QK-norm and latent-norm gains and sinks of all layers: in the counts, in no matmul.

    The shapes file counts them as matmul parameters (biases of active experts only); FLOPs here do not.
    """
    layer = 2 * m.head_dim if m.qk_norm else 0
    if m.attention == "mla":
        layer += (m.q_lora_rank or 0) + (m.kv_lora_rank or 0)
    if m.attention_bias:
        layer += (m.heads + 2 * m.kv_heads) * m.head_dim + m.hidden
    if m.attention_sinks:
        layer += m.heads
    total = m.layers * layer
    if m.mlp_bias:  # one bias a matrix: of the inner width, the last one of the outer
        inner = _mlp_matrices(m) - 1
        experts = m.top_k if active else m.experts
        total += (m.layers - m.moe_layers) * (inner * (m.ffn or 0) + m.hidden)
        total += m.moe_layers * experts * (inner * (m.ffn_expert or 0) + m.hidden)
    return total + (m.moe_layers * m.experts if m.router_bias else 0)


def total_params(m: Model) -> int:
    """Every parameter, all experts; the embedding counted once where it is tied to the head."""
    idle = m.moe_layers * (m.experts - m.top_k) * _expert(m)
    embedding = 0 if m.tie_embeddings else m.vocab * m.hidden
    norms = (2 * m.layers + 1) * m.hidden * (2 if m.norm == "layernorm" else 1)
    positions = 0 if m.rope_theta else m.max_positions * m.hidden
    return matmul_params(m) + idle + embedding + norms + positions + layer_vectors(m, active=False)


# ---------------------------------------------------------------- FLOPs


def _score_width(m: Model) -> int:
    """Multiply-adds per head for one query-key pair: scores over d_qk, values over d_v."""
    if m.attention == "mla":
        return (m.qk_nope_head_dim or 0) + (m.qk_rope_head_dim or 0) + (m.v_head_dim or 0)
    return 2 * m.head_dim


def causal_pairs(tokens: int, window: int | None = None) -> int:
    """Unmasked query-key pairs of one causal sequence; each query sees itself and at most `window` keys."""
    if window is None or tokens <= window:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window


def layer_pairs(kind: LayerKind, tokens: int) -> int:
    """Unmasked pairs of one document of `tokens` in a layer of this kind: within its window or chunks."""
    if not kind.chunk:
        return causal_pairs(tokens, kind.window)
    whole, rest = divmod(tokens, kind.chunk)
    return whole * causal_pairs(kind.chunk, kind.window) + causal_pairs(rest, kind.window)


def attention_flops(m: Model, tokens: int, *, halved: bool, documents: Sequence[int] | None = None) -> int:
    """Forward attention (scores and values, no projections) of one sequence of `tokens`, all layers."""
    per_pair = 2 * m.heads * _score_width(m)
    if not halved:
        return per_pair * m.layers * tokens * tokens
    return per_pair * sum(layer_pairs(kind, n) for kind in m.kinds for n in documents or [tokens])


def forward_flops(
    m: Model, batch: int, tokens: int, *, halved: bool, last_only: bool = False, documents: Documents | None = None
) -> int:
    """Forward over `batch` sequences. `last_only`: the LM head runs on the last position alone (prefill)."""
    skipped = 2 * m.vocab * m.hidden * (tokens - 1) if last_only else 0
    rows = documents or [[tokens]]
    attention = sum(attention_flops(m, tokens, halved=halved, documents=row) for row in rows)
    attention *= 1 if documents else batch
    return batch * (2 * matmul_params(m) * tokens - skipped) + attention


# ---------------------------------------------------------------- the three phases


def kv_bytes_per_token(m: Model, precision: str) -> int:
    """KV cache of one token, every layer, before any window caps it."""
    width = BYTES[precision]
    if m.attention == "mla":
        return m.layers * ((m.kv_lora_rank or 0) + (m.qk_rope_head_dim or 0)) * width
    return 2 * m.layers * m.kv_heads * m.head_dim * width


def expert_params(m: Model) -> int:
    """Weights of all routed experts, without routers and shared experts."""
    return m.moe_layers * m.experts * _expert(m)


def active_expert_params(m: Model) -> int:
    """Weights of the routed experts that one token meets."""
    return m.moe_layers * m.top_k * _expert(m)


def touched(m: Model, tokens: float) -> float:
    """Share of the experts of a layer that uniform routing of `tokens` touches, 1 - (1 - k/E)^tokens; 0 without."""
    return 1 - (1 - m.top_k / m.experts) ** tokens if m.experts else 0.0


def _weight_bytes_read(m: Model, tokens: int, precision: str) -> float:
    """Weights one forward pass reads: all that are dense, and the experts that its tokens touch."""
    resident = float(total_params(m) - (0 if m.tie_embeddings else m.vocab * m.hidden))
    return (resident - expert_params(m) * (1 - touched(m, tokens))) * WEIGHT_BYTES[precision]


def train_step(
    m: Model,
    batch: int,
    tokens: int,
    accumulation: int,
    precision: str,
    *,
    documents: Documents | None = None,
    lora_rank: int | None = None,
    optimizer_states: str = "fp32",
    replicas: int = 1,
) -> Cost:
    """One optimiser step over `accumulation` micro-batches of `batch` sequences, `documents` of each of them.

    Bytes: each micro-batch reads the weights twice (forward, backward) and writes gradients once; AdamW with
    fp32 master weights and states then moves 28 bytes a parameter (reads g, p, m, v; writes p, m, v), 30 where
    a 16-bit working copy is written too, 8 less with bf16 states. Weights and gradients of fp8 training are 16-bit.
    Activations come on top and depend on the implementation: not counted. Frozen weights are read and no more.
    `replicas` data-parallel ranks do this each on their own sequences (`documents` are those of all), and update once
    between them.
    """
    precision = "bf16" if precision == "fp8" else precision
    sequences = replicas * accumulation * batch
    adapters = adapter_params(m, lora_rank) if lora_rank else 0
    trained = adapters or total_params(m)
    # forward and gradient of activations for all, gradient of weights for those trained
    frozen = 2.0 * matmul_params(m) * tokens * sequences if adapters else 0.0

    def flops(halved: bool) -> float:
        forward = forward_flops(m, sequences, tokens, halved=halved, documents=documents)
        return 3.0 * (forward + 2 * adapters * tokens * sequences) - frozen

    per_micro = 2 * _weight_bytes_read(m, batch * tokens, precision) + trained * BYTES[precision]
    update = (28.0 if precision == "fp32" else 30.0) - (8.0 if optimizer_states == "bf16" else 0.0)
    moved = replicas * accumulation * per_micro + update * trained
    return Cost(flops(True), flops(False), moved)


def prefill(m: Model, batch: int, tokens: int, precision: str) -> Cost:
    """A prompt of `tokens` from an empty cache, logits of the last position only. Writes the KV cache once."""
    return Cost(
        flops=float(forward_flops(m, batch, tokens, halved=True, last_only=True)),
        flops_unhalved=float(forward_flops(m, batch, tokens, halved=False, last_only=True)),
        bytes=_weight_bytes_read(m, batch * tokens, precision) + batch * tokens * kv_bytes_per_token(m, precision),
    )


def decode_attention_flops(m: Model, context: float) -> float:
    """Attention of one decoded token at `context`, itself included, all layers.

    MLA decodes with absorbed weights: scores and values run in the latent space (DeepSeek-V2, section 2.1).
    """
    width = _score_width(m)
    if m.attention == "mla":
        width = 2 * (m.kv_lora_rank or 0) + (m.qk_rope_head_dim or 0)
    return 2.0 * m.heads * width * sum(_seen(kind, context) for kind in m.kinds)


def cache_bytes_read(m: Model, context: float, precision: str) -> float:
    """Keys and values one decoded token reads at `context`: what a sequence of that length has in the cache."""
    return kv_bytes_per_token(m, precision) * sum(_seen(kind, context) for kind in m.kinds) / m.layers


def decode(m: Model, batch: int, context: float, precision: str) -> Cost:
    """One token for each of `batch` sequences whose mean context, the new token included, is `context`."""
    flops = batch * (2.0 * matmul_params(m) + decode_attention_flops(m, context))
    cache = cache_bytes_read(m, context, precision)
    return Cost(flops, flops, _weight_bytes_read(m, batch, precision) + batch * cache)


def _seen(kind: LayerKind, context: float) -> float:
    """Keys that the last of `context` positions sees."""
    if kind.chunk:
        context = (context - 1) % kind.chunk + 1
    return min(context, kind.window or context)
