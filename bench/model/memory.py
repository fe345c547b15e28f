"""How much device memory a cell will need, so that a model too large for the device is cut before it fails.

Estimates for planning; what a cell really used is measured. tests/test_memory.py holds them against the peak of the
same step run on tensors without memory. Of a training step they are

    weights, masters, averages, sums  +  one layer at work  +  what forward kept or all gradients, whichever is more

because backward frees a layer's activations as it makes that layer's gradients: the two never exist whole together.
Per trained parameter: the working copy and its gradient, and where that copy is 16 bits wide also an fp32 master and
two averages of Adam (Rajbhandari et al. 2020, arXiv 1910.02054), and summed gradients in fp32 where micro-batches
accumulate. Sharding (FSDP) divides all that. What forward keeps depends on the backend: our kernels keep what backward
reads and never the logits; op by op torch keeps fp32 copies in every norm, and the logits several times over.
"""

from __future__ import annotations

from bench.architecture import Model
from bench.model import accounting, answers
from bench.workload import TRAINING, Workload

HEADROOM = 0.85  # of device memory: allocator fragments, library workspaces, the float64 check
LOGIT_ROWS = 4096  # of logits that linear_cross_entropy.py holds at most, or a few more to fill a wave of tiles
RL_ROWS = 2048  # and grpo.py, in whatever backend
OP_BY_OP_LOGIT = 12  # bytes: log-probabilities in fp32, their gradient and that of the logits


def subject_of(model: Model, workload: Workload) -> Model:
    """The model as one GPU has it: whole, or an expert-parallel slice. Raises ValueError."""
    return model if workload.expert_parallel == 1 else model.expert_slice(workload.expert_parallel)


def needed_bytes(model: Model, workload: Workload, shards: int = 1, *, backend: str = "reference") -> float:
    """Peak memory of one of `shards` devices, roughly. Backends other than `triton` are taken to run op by op."""
    model = subject_of(model, workload)
    if workload.phase not in TRAINING:
        return _inference(model, workload)
    fused, width, tokens = backend == "triton", _width(workload), _tokens(workload)
    kept = tokens * _kept(model, workload.checkpointing, fused) * width + _logits(model, workload, fused)
    again, own, passing = (tokens * part * width for part in _at_work(model, workload.checkpointing, fused))
    gradients = _trained(model, workload) * (width if shards == 1 else 4) / shards
    # the embedding's gradient comes last, when no layer is at work; where it is tied, beside the head's
    table = 0 if workload.lora_rank else model.vocab * model.hidden * width / shards
    before, after = (0, table) if model.tie_embeddings else (table, 0)
    update = 0 if fused else _largest(model) * (4 + (8 if workload.optimizer_states == "bf16" else 0)) / shards
    moments = (kept + again + passing, gradients - before + own + passing, gradients + max(after, update))
    return _resident(model, workload, shards) + max(moments)


def _trained(model: Model, workload: Workload) -> int:
    """Parameters that have a gradient."""
    rank = workload.lora_rank
    return accounting.adapter_params(model, rank) if rank else accounting.total_params(model)


def _resident(model: Model, workload: Workload, shards: int) -> float:
    """Bytes that stay from step to step."""
    params, trained, width = accounting.total_params(model), _trained(model, workload), _width(workload)
    stays = ((params if workload.lora_rank else 0) * width + trained * _state_bytes(workload, shards)) / shards
    if shards > 1:  # two layers gathered; and sums that are reduced with the last micro-batch alone stay whole
        stays += 2 * params / model.layers * width + (4 * trained if workload.gradient_accumulation > 1 else 0)
    return stays + (_rollout_cache(model, workload) if workload.phase == "rl_step" else 0)


def _inference(model: Model, workload: Workload) -> float:
    """Weights, cache, and what passes through one layer: its larger half, and a few tensors of the stream's width.

    Of a serving engine the least cache: one request of full length. It takes what is left (bench/serving/build.py).
    """
    slots = workload.batch_size * (workload.input_tokens + workload.output_tokens)
    tokens = workload.batch_size * (workload.input_tokens if workload.phase == "prefill" else 1)
    if workload.serving:
        slots, tokens = workload.serving.max_model_len, workload.serving.max_num_batched_tokens
    feed = _feed(model, True) + model.top_k * (model.hidden + (model.ffn_expert or 0))
    passing = tokens * (max(_attention(model, True), feed) + 8 * model.hidden)
    cache = slots * accounting.kv_bytes_per_token(model, workload.precision)
    return (accounting.total_params(model) + passing) * _width(workload) + cache


def _width(workload: Workload) -> int:
    """Bytes of a weight and of an activation."""
    return accounting.BYTES["bf16" if workload.precision == "fp8" else workload.precision]


def _tokens(workload: Workload) -> int:
    """Tokens of a micro-batch."""
    if workload.phase == "rl_step":
        return answers.capacity(workload)
    return workload.batch_size * workload.input_tokens


def _state_bytes(workload: Workload, shards: int) -> int:
    """Bytes a trained parameter keeps from step to step. Sharded weights are fp32 and their own masters."""
    states = 2 * accounting.BYTES[workload.optimizer_states]
    if shards > 1 or _width(workload) == 4:
        return 4 + states
    several = workload.gradient_accumulation > 1 or workload.phase == "rl_step"
    return _width(workload) + 4 + states + (4 if several else 0)


def _rollout_cache(model: Model, workload: Workload) -> float:
    """Keys and values of every answer and, once more, of every prompt."""
    longest = workload.input_tokens + max(answers.answer_tokens(workload))
    slots = workload.prompts * (workload.rollouts * longest + workload.input_tokens)
    return slots * accounting.kv_bytes_per_token(model, workload.precision)


def _largest(model: Model) -> int:
    """Elements of the largest parameter: torch's optimiser widens one after the other."""
    experts = model.experts * 2 * (model.ffn_expert or 0) * model.hidden
    return max(model.vocab * model.hidden, 2 * (model.ffn or 0) * model.hidden, experts)


# ---------------------------------------------------------------- activations


def _logits(model: Model, workload: Workload, fused: bool) -> float:
    """Bytes of the logits that exist at once, and of the head's gradient where it is made beside them."""
    head = 0 if workload.lora_rank else model.vocab * model.hidden * _width(workload)
    if workload.phase == "rl_step":
        return min(RL_ROWS, _tokens(workload)) * model.vocab * (OP_BY_OP_LOGIT + _width(workload)) + head
    if fused:
        return min(LOGIT_ROWS, _tokens(workload)) * model.vocab * _width(workload) + head
    return _tokens(workload) * model.vocab * OP_BY_OP_LOGIT


def _norms(fused: bool) -> int:
    """Elements kept for each one normed: itself and its norm; op by op two fp32 copies and the norm."""
    return 2 if fused else 5


def _attention(model: Model, fused: bool) -> int:
    """Elements one token keeps in an attention block: norm, projections, rotated query and key, output, log-sum-exp."""
    n = model.heads
    if model.attention == "mla":
        c, rotary, nope = model.kv_lora_rank or 0, model.qk_rope_head_dim or 0, model.qk_nope_head_dim or 0
        low = (model.q_lora_rank or 0) + c
        value = model.v_head_dim or 0
        heads = n * (2 * (nope + rotary) + nope + 2 * value)  # query, key, up-projected key and value, output
        return _norms(fused) * (model.hidden + low) + rotary + heads + 2 * n
    query, key = n * model.head_dim, model.kv_heads * model.head_dim
    packed, rotated = query + 2 * key, (query + key if model.rope_theta else 0)
    normed = 4 * (query + key) if model.qk_norm and not fused else 0
    return _norms(fused) * model.hidden + packed + normed + rotated + query + 2 * n


def _feed(model: Model, fused: bool) -> int:
    """Elements one token keeps in a feed-forward block, the kind that keeps more.

    A dense one keeps gate, up and their product, op by op silu(gate) too. An expert keeps gate and up alone; op by op
    also its input, its output and that in fp32, the product, and what a clamp makes of it.
    """
    gated = 2 if model.mlp == "gelu" else 3 if fused else 4
    dense = gated * (model.ffn or 0) if model.moe_layers < model.layers else 0
    routed = 0
    if model.moe_layers:
        one = model.ffn_expert or 0
        chosen = 2 * one if fused else 4 * model.hidden + (8 if model.swiglu_limit else 4) * one
        scaled = model.hidden if model.router_on_input else 0
        routed = model.top_k * chosen + gated * model.shared_experts * one + scaled
    return _norms(fused) * model.hidden + max(dense, routed)


def _kept(model: Model, checkpointing: str, fused: bool) -> int:
    """Elements one token keeps from forward to backward: a layer's, times the layers, and the last norm's."""
    layer = {
        "none": _attention(model, fused) + _feed(model, fused),
        "selective": _attention(model, fused) + model.hidden,  # and the update that the MLP begins with
        "full": 2 * model.hidden,  # update and stream
    }
    return model.layers * layer[checkpointing] + _norms(fused) * model.hidden


def _at_work(model: Model, checkpointing: str, fused: bool) -> tuple[int, int, int]:
    """Elements one token has in the layer that backward is in: computed again, all of its own, gradients."""
    attention, feed = _attention(model, fused), _feed(model, fused)
    again = {"none": 0, "selective": feed, "full": attention + feed}
    return again[checkpointing], attention + feed, feed + model.top_k * (model.hidden + (model.ffn_expert or 0))


# ---------------------------------------------------------------- slices


def depths(
    model: Model, workload: Workload, memory_bytes: float, shards: int = 1, *, backend: str = "reference"
) -> list[int]:
    """The layer counts to measure: the whole model where it fits, else two slices for the fit a + b * layers.

    A slice is what every slice begins with (first dense layers) and whole turns of the layers' pattern. Where only
    one slice fits, or fewer than four layers, or not even a turn, it stands alone: it has an MFU and gives no rate.
    A mixture's slice has a mixture in it. Empty: nothing fits.
    """

    def fits(layers: int) -> bool:
        part = model.sliced(layers)
        if model.experts and not part.moe_layers:
            return False
        return needed_bytes(part, workload, shards, backend=backend) <= HEADROOM * memory_bytes

    if fits(model.layers):
        return [model.layers]
    if workload.serving:  # a slice has no prices, and traffic no meaning for it
        return []
    first = model.first_dense_layers
    possible = [n for n in range(first + model.period, model.layers, model.period) if fits(n)]
    if not possible:
        return [n for n in range(first + 1, first + model.period) if fits(n)][-1:]
    deepest = possible[-1]
    turns = (deepest - first) // model.period
    if deepest < 4 or turns < 2:
        return [deepest]
    return [first + turns // 2 * model.period, deepest]
