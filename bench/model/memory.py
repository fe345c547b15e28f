"""How much device memory a cell will need, so that a model too large for the device is cut before it fails.

Estimates for planning only; what a cell really used is measured. Training keeps, per parameter: the working
copy and its gradient, and where that copy is 16 bits wide also an fp32 master, gradient and two Adam states
(Rajbhandari et al. 2020, arXiv 1910.02054: 16 bytes; ours accumulates gradients in fp32: 20).
"""

from __future__ import annotations

import dataclasses

from bench.config import Model, Workload
from bench.model import accounting

HEADROOM = 0.85  # of device memory: allocator fragments, library workspaces, the float64 check


def sliced(model: Model, layers: int) -> Model:
    """The same architecture with fewer layers."""
    return dataclasses.replace(model, layers=layers)


def needed_bytes(model: Model, workload: Workload) -> float:
    """Peak device memory of one cell, roughly."""
    width = accounting.BYTES[workload.precision]
    tokens = workload.batch_size * workload.input_tokens
    params = accounting.total_params(model)
    if workload.phase == "train_step":
        state = 2 * width + (16 if width < 4 else 8)
        # kept for backward: about 10 tensors of width H, 4 of the MLP's and the query's a layer; logits twice, one fp32
        wide = 10 * model.hidden + 4 * (model.ffn or 0) + 2 * model.heads * model.head_dim
        activations = tokens * (model.layers * wide * width + model.vocab * (2 * width + 4))
        return params * state + activations
    slots = workload.batch_size * (workload.input_tokens + workload.output_tokens)
    passing = (tokens if workload.phase == "prefill" else workload.batch_size) * (
        8 * model.hidden + 3 * (model.ffn or 0)
    )
    return (params + passing) * width + slots * accounting.kv_bytes_per_token(model, workload.precision)


def depths(model: Model, workload: Workload, memory_bytes: float) -> list[int]:
    """The layer counts to measure: the whole model where it fits, else two slices for the fit a + b * layers.

    Empty where not even a slice of four layers fits: a fit over fewer says too little.
    """

    def fits(layers: int) -> bool:
        return needed_bytes(sliced(model, layers), workload) <= HEADROOM * memory_bytes

    if fits(model.layers):
        return [model.layers]
    deepest = max((n for n in range(1, model.layers) if fits(n)), default=0)
    return [deepest // 2, deepest] if deepest >= 4 else []
