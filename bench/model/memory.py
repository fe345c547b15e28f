"""How much device memory a cell will need, so that a model too large for the device is cut before it fails.

Estimates for planning only; what a cell really used is measured. Training keeps, per trained parameter: the working
copy and its gradient, and where that copy is 16 bits wide also an fp32 master and two Adam states (Rajbhandari et al.
2020, arXiv 1910.02054), and summed gradients in fp32 where micro-batches accumulate. Sharding (FSDP) divides all that.
"""

from __future__ import annotations

from bench.architecture import Model
from bench.model import accounting
from bench.workload import TRAINING, Workload

HEADROOM = 0.85  # of device memory: allocator fragments, library workspaces, the float64 check


def subject_of(model: Model, workload: Workload) -> Model:
    """The model as one GPU has it: whole, or an expert-parallel slice. Raises ValueError."""
    return model if workload.expert_parallel == 1 else model.expert_slice(workload.expert_parallel)


def needed_bytes(model: Model, workload: Workload, shards: int = 1) -> float:
    """Peak memory of one of `shards` devices, roughly."""
    model = subject_of(model, workload)
    width = accounting.BYTES["bf16" if workload.precision == "fp8" else workload.precision]
    params = accounting.total_params(model)
    tokens = workload.batch_size * workload.input_tokens
    if workload.phase in TRAINING:
        trained = accounting.adapter_params(model, workload.lora_rank) if workload.lora_rank else params
        frozen = params if workload.lora_rank else 0
        state = (frozen * width + trained * _state_bytes(workload, width)) / shards
        gathered = 2 * params / model.layers * width if shards > 1 else 0
        logits = tokens * model.vocab * (2 * width + 4)
        return state + gathered + tokens * _kept(model, workload) * width + logits
    slots = workload.batch_size * (workload.input_tokens + workload.output_tokens)
    passing = (tokens if workload.phase == "prefill" else workload.batch_size) * (8 * model.hidden + 3 * _inner(model))
    return (params + passing) * width + slots * accounting.kv_bytes_per_token(model, workload.precision)


def _state_bytes(workload: Workload, width: int) -> int:
    """Bytes a trained parameter keeps from step to step, and its gradient."""
    states = 2 * accounting.BYTES[workload.optimizer_states]
    if width == 4:
        return 2 * width + states
    summed = 4 if workload.gradient_accumulation > 1 else 0
    return 2 * width + 4 + states + summed


def _inner(model: Model) -> int:
    """Width of the feed-forward block's inside, the wider kind."""
    routed = (model.top_k + model.shared_experts) * (model.ffn_expert or 0)
    return max(model.ffn or 0, routed)


def _kept(model: Model, workload: Workload) -> float:
    """Elements a token keeps for backward: about 10 tensors of width H, the query's and 4 of the MLP's a layer."""
    attention = 10 * model.hidden + 2 * model.heads * model.head_dim
    if model.attention == "mla":  # keys and values of every head
        attention += 3 * model.heads * model.head_dim
    mlp = 4 * _inner(model) + (model.top_k * model.hidden if model.experts else 0)
    match workload.checkpointing:
        case "full":  # the stream between layers, and one layer at work
            return 2 * model.layers * model.hidden + attention + mlp
        case "selective":
            return model.layers * attention + mlp
    return model.layers * (attention + mlp)


def depths(model: Model, workload: Workload, memory_bytes: float, shards: int = 1) -> list[int]:
    """The layer counts to measure: the whole model where it fits, else two slices for the fit a + b * layers.

    A slice is what every slice begins with (first dense layers) and whole turns of the layers' pattern. Where only
    one slice fits, or fewer than four layers, it stands alone: it has an MFU and gives no rate. Empty: nothing fits.
    """

    def fits(layers: int) -> bool:
        return needed_bytes(model.sliced(layers), workload, shards) <= HEADROOM * memory_bytes

    if fits(model.layers):
        return [model.layers]
    first = model.first_dense_layers
    possible = [n for n in range(first + model.period, model.layers, model.period) if fits(n)]
    if not possible:
        return []
    deepest = possible[-1]
    turns = (deepest - first) // model.period
    if deepest < 4 or turns < 2:
        return [deepest]
    return [first + turns // 2 * model.period, deepest]
