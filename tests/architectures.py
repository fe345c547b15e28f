"""Architectures cut down to widths a test can afford; what makes each what it is stays."""

import dataclasses

from bench.architecture import Model
from bench.config import load_all

MODELS = load_all(Model)


def shrunk(model: Model, **changes) -> Model:
    """The same architecture with tiny widths and 8 layers; parameter counts are left as they were, and wrong."""
    mla, mha = model.attention == "mla", model.attention == "mha"
    sizes = {"layers": 8, "heads": 4, "kv_heads": 2 if model.attention == "gqa" else 4, "head_dim": 16}
    # hidden is not heads · head_dim, so that one is never taken for the other; GPT-2 has no choice
    sizes |= {"hidden": 64 if mha else 48, "vocab": 97, "max_positions": 512}
    if model.ffn:
        sizes["ffn"] = 80
    if model.experts:
        sizes |= {"experts": 16, "top_k": min(model.top_k, 4), "ffn_expert": 32}
    if model.router_groups > 1:
        sizes |= {"router_groups": 4, "router_top_groups": 2}
    if mla:
        sizes |= {"q_lora_rank": 40, "kv_lora_rank": 32, "head_dim": 32}
        sizes |= {"qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}
    if model.sliding_window:
        sizes["sliding_window"] = 5
    if model.attention_chunk:
        sizes["attention_chunk"] = 16
    return dataclasses.replace(model, **sizes | changes)


def _alike(model: Model) -> Model:
    """Cut down, and without what a test of structure does not see: names, counts, constants of norms and angles."""
    plain = {"key": "", "name": "", "source": "", "note": "", "total_params": 0, "active_matmul_params": 0}
    constants = {"norm_eps": 0.0, "rope_theta": model.rope_theta and 1.0, "rope_scaling": None}
    return dataclasses.replace(shrunk(model), **plain, **constants)


# one key for each structure: models that differ in size alone are the same once cut down
DISTINCT = list({_alike(model): key for key, model in MODELS.items()}.values())
