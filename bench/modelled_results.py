"""The schemas of what stands behind modelled rows: configs/validation/points.csv and results/accuracy.csv."""

from __future__ import annotations

from bench.results import PUBLISHED

TIERS = ("node", "cluster", "fleet", "hours")

# Published rates that fit or check the model; never priced, never in a claim.
POINTS: dict[str, tuple[str, str]] = {
    **{name: PUBLISHED[name] for name in ("id", "phase", "model", "gpu", "n_gpus", "precision", "token_kind")},
    "tier": (
        "s",
        "node (up to 8 GPUs, or replicas of that); cluster (training on more); fleet (production, or many nodes at"
        " once); hours (GPU-hours of a model card, everything in them)",
    ),
    "use": ("s", "fit (enters the fit) or check (is only predicted)"),
    "system_tokens_per_s": PUBLISHED["system_tokens_per_s"],
    "input_tokens": PUBLISHED["input_tokens"],
    "output_tokens": PUBLISHED["output_tokens"],
    "batch_size": ("i", "sequences at once, whole deployment; blank: not told, as many as memory holds"),
    "tensor_parallel": ("i", "GPUs that share a replica; blank: not told, the fastest"),
    "lora_rank": ("i", "rank of the adapters, which alone were trained"),
    "recompute": ("s", "full: the forward pass runs twice"),
    **{name: PUBLISHED[name] for name in ("workload", "software", "as_of", "source", "note")},
}

ACCURACY: dict[str, tuple[str, str]] = {
    "row": ("s", "point:<id>, or the throughput row"),
    "tier": POINTS["tier"],
    "use": POINTS["use"],
    "phase": PUBLISHED["phase"],
    "model": PUBLISHED["model"],
    "gpu": PUBLISHED["gpu"],
    "n_gpus": PUBLISHED["n_gpus"],
    "precision": PUBLISHED["precision"],
    "input_tokens": PUBLISHED["input_tokens"],
    "output_tokens": PUBLISHED["output_tokens"],
    "published_tokens_per_s": ("f", "what the source says"),
    "left_out_tokens_per_s": ("f", "predicted by a fit without any row of this GPU"),
    "error": ("f", "left_out / published - 1"),
    "fitted_tokens_per_s": ("f", "the same from all rows that fit"),
    "stands_on": ("s", "generation whose matmul efficiency stood in, where the GPU's own had no row left"),
    "overhead": ("f", "hours alone: published GPU-hours over predicted ones"),
    "source": PUBLISHED["source"],
}
