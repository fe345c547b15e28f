"""Our architectures as configurations of transformers' own classes (Apache-2.0, tested with 5.23).

`FAMILIES` says which features of a Model each class has: those it cannot be without, and those it can take. A Model
belongs to the one family that has all of its features. Nothing is loaded or downloaded: weights are drawn at random.
Rotary scaling is left out as ours leaves it out (it changes angles, never the work), and so is dropout.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.architecture import Model

Settings = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Classes named <name>Config and <classes> of transformers, and what of an architecture they express."""

    name: str
    module: str  # of transformers.models, also Liger's key
    classes: str
    needs: frozenset[str]
    may: frozenset[str]
    settings: Callable[[Model], Settings]
    flash: bool = True  # whether it takes a flash-attention package
    flex: bool = True  # and torch's flex_attention
    sdpa: bool = True  # and torch's scaled_dot_product_attention
    routed: bool = True  # whether its experts see the tokens sent to them alone
    masks: bool = True  # whether its masks end where positions start again


def features(m: Model) -> frozenset[str]:
    """What tells an architecture from Llama's."""
    present = {
        "layernorm": m.norm == "layernorm",
        "gelu": m.mlp == "gelu",
        "learned_positions": m.rope_theta is None,
        "latent": m.attention == "mla",
        "qk_norm": m.qk_norm,
        "attention_bias": m.attention_bias,
        "mlp_bias": m.mlp_bias,
        "sinks": m.attention_sinks,
        "window": bool(m.sliding_window),
        "chunk": bool(m.attention_chunk),
        "no_rope": bool(m.no_rope_every),
        "experts": bool(m.experts),
        "shared_experts": bool(m.shared_experts),
        "dense_layers": bool(m.first_dense_layers) or m.moe_every > 1,
        "limit": m.swiglu_limit is not None,
        "sigmoid": m.scoring == "sigmoid",
        "router_bias": m.router_bias,
        "weights_as_scored": not m.router_normalise,
        "router_scale": m.router_scale != 1,
        "router_groups": m.router_groups > 1,
        "router_on_input": m.router_on_input,
        "tied": m.tie_embeddings,
    }
    return frozenset(name for name, holds in present.items() if holds)


def _shared(m: Model) -> Settings:
    """What every family but GPT-2 calls by the same name."""
    return {
        "vocab_size": m.vocab,
        "hidden_size": m.hidden,
        "intermediate_size": m.ffn,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "num_key_value_heads": m.kv_heads,
        "head_dim": m.head_dim,
        "max_position_embeddings": m.max_positions,
        "rms_norm_eps": m.norm_eps,
        "tie_word_embeddings": m.tie_embeddings,
        "attention_dropout": 0.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": m.rope_theta},
    }


def _llama(m: Model) -> Settings:
    return _shared(m) | {"attention_bias": m.attention_bias, "mlp_bias": m.mlp_bias}


def _qwen3(m: Model) -> Settings:
    return _shared(m) | {"attention_bias": m.attention_bias}


def _qwen3_moe(m: Model) -> Settings:
    return _shared(m) | {
        "intermediate_size": m.ffn or m.ffn_expert,  # of dense layers, where there are any
        "attention_bias": m.attention_bias,
        "num_experts": m.experts,
        "num_experts_per_tok": m.top_k,
        "moe_intermediate_size": m.ffn_expert,
        "norm_topk_prob": m.router_normalise,
        "mlp_only_layers": [index for index, kind in enumerate(m.kinds) if not kind.moe],
    }


def _mixtral(m: Model) -> Settings:
    return _shared(m) | {
        "intermediate_size": m.ffn_expert,
        "num_local_experts": m.experts,
        "num_experts_per_tok": m.top_k,
    }


def _gpt_oss(m: Model) -> Settings:
    return _shared(m) | {
        "intermediate_size": m.ffn_expert,
        "num_local_experts": m.experts,
        "num_experts_per_tok": m.top_k,
        "swiglu_limit": m.swiglu_limit,
        "sliding_window": m.sliding_window,
        "layer_types": ["sliding_attention" if kind.window else "full_attention" for kind in m.kinds],
    }


def _deepseek_v3(m: Model) -> Settings:
    settings = _shared(m) | {
        "n_routed_experts": m.experts,
        "num_experts_per_tok": m.top_k,
        "moe_intermediate_size": m.ffn_expert,
        "n_shared_experts": m.shared_experts,
        "first_k_dense_replace": m.first_dense_layers,
        "norm_topk_prob": m.router_normalise,
        "routed_scaling_factor": m.router_scale,
        "n_group": m.router_groups,
        "topk_group": m.router_top_groups,
        "num_mtp_layers": 0,  # modules that predict further tokens: no part of the counts
    }
    latent = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    settings |= {name: getattr(m, name) for name in latent}
    del settings["head_dim"]
    return settings


def _llama4(m: Model) -> Settings:
    return _shared(m) | {
        "intermediate_size": m.ffn_expert,
        "intermediate_size_mlp": m.ffn or m.ffn_expert,
        "num_local_experts": m.experts,
        "num_experts_per_tok": m.top_k,
        "moe_layers": [index for index, kind in enumerate(m.kinds) if kind.moe],
        "no_rope_layers": [int(kind.rotary) for kind in m.kinds],
        "attention_chunk_size": m.attention_chunk,
        "use_qk_norm": False,
        "attn_temperature_tuning": False,
    }


def _gpt2(m: Model) -> Settings:
    return {
        "vocab_size": m.vocab,
        "n_positions": m.max_positions,
        "n_embd": m.hidden,
        "n_layer": m.layers,
        "n_head": m.heads,
        "n_inner": m.ffn,
        "layer_norm_epsilon": m.norm_eps,
        "activation_function": "gelu_pytorch_tanh",  # torch's one kernel for what gelu_new spells out in eight
        "tie_word_embeddings": m.tie_embeddings,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def _family(
    name: str, module: str, needs: str, may: str, settings: Callable[[Model], Settings], **options: Any
) -> Family:
    classes = options.pop("classes", f"{name}ForCausalLM")
    wanted = frozenset(needs.split())
    return Family(name, module, classes, wanted, wanted | frozenset(may.split()), settings, **options)


FAMILIES = (
    _family("Llama", "llama", "", "attention_bias mlp_bias tied", _llama),
    _family("Qwen3", "qwen3", "qk_norm", "attention_bias tied", _qwen3),
    _family(
        "Qwen3Moe", "qwen3_moe", "qk_norm experts", "dense_layers weights_as_scored attention_bias tied", _qwen3_moe
    ),
    _family("Mixtral", "mixtral", "experts", "tied", _mixtral),
    _family(
        "GptOss",
        "gpt_oss",
        "experts attention_bias mlp_bias sinks window limit router_bias",
        "tied",
        _gpt_oss,
        flash=False,  # the packages its users install have no sinks
        sdpa=False,
        masks=False,  # github.com/huggingface/transformers/pull/39997
    ),
    _family(
        "DeepseekV3",
        "deepseek_v3",
        "latent experts sigmoid router_bias shared_experts",
        "dense_layers weights_as_scored router_scale router_groups tied",
        _deepseek_v3,
    ),
    _family(
        "Llama4Text",
        "llama4",
        "experts sigmoid router_on_input weights_as_scored shared_experts",
        "dense_layers chunk no_rope tied",
        _llama4,
        classes="Llama4ForCausalLM",
        flash=False,
        routed=False,  # one product over every expert and every token, weighted by 0 where a token was sent elsewhere
    ),
    _family(
        "GPT2",
        "gpt2",
        "layernorm gelu learned_positions attention_bias mlp_bias",
        "tied",
        _gpt2,
        classes="GPT2LMHeadModel",
        flex=False,
    ),
)


def family_of(model: Model) -> Family | None:
    """The family whose classes compute this architecture, or None where transformers has none of the eight."""
    found = features(model)
    return next((family for family in FAMILIES if family.needs <= found <= family.may), None)


def package() -> Any:
    """transformers, off the network and without its advice to people who load checkpoints. May raise anything."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: nothing here comes from a hub
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    return transformers


def configured(family: Family, model: Model) -> Any:
    """The configuration of transformers for this architecture.

    Weights start with a standard deviation of 1 / sqrt(hidden), as ours: activations then stay near 1 at every width,
    so that each part has its share in the loss, and a check sees it.
    """
    settings = family.settings(model) | {"initializer_range": model.hidden**-0.5, "use_cache": False}
    return getattr(package(), f"{family.name}Config")(**settings)


def classes(family: Family) -> Any:
    """The class of the whole model with its loss."""
    return getattr(package(), family.classes)
