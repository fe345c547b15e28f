"""Our model against transformers' own classes: the same weights give the same logits and the same gradients.

Each family says how our parameters are laid out in theirs; the same layout carries weights there and gradients to
compare. Rotary scaling, Llama 4's temperature of layers without positions and its norm of queries and keys, and all
dropout are switched off in their settings: the first two are not in our model, Maverick has no such norm.
"""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.architecture import Model
from bench.config import load
from bench.kernels.op import load as load_ops
from bench.kernels.op import relative_error
from bench.model.attention import Latent
from bench.model.layer import Layer
from bench.model.mlp import Mixture
from bench.model.transformer import Transformer
from tests.architectures import shrunk

TOLERANCE = 1e-4  # relative, by norm: of the logits, and of each parameter's gradient
Read = Callable[[Tensor], Tensor]  # of one of our parameters: its value, or its gradient


def network(model: Model) -> Transformer:
    """Ours, with every bias, sink and gain random, so that none is left out unseen."""
    ours = Transformer(model, load_ops("reference"), precision="fp32", device=torch.device("cpu"), max_tokens=64)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif parameter.dim() == 1 or name.endswith("_bias"):
                parameter.normal_(0, 0.5, generator=generator)
        for name, buffer in ours.named_buffers():
            if name.endswith("correction"):
                buffer.normal_(0, 0.2, generator=generator)
    return ours


# ---------------------------------------------------------------- layouts: ours -> theirs


def paired(rows: Tensor, width: int) -> Tensor:
    """Rows of heads (n · width, ...) whose rotated halves lie apart -> the pairs side by side."""
    return rows.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)


def interleaved(gate_up: Tensor) -> Tensor:
    """[gate | up] of each expert (E, 2F, ...) -> gate and up by turns."""
    return gate_up.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def attention(layer: Layer, model: Model, read: Read) -> dict[str, Tensor]:
    """Grouped-query attention; Llama 4 turns neighbouring channels, ours and the others turn halves."""
    block, out = layer.attention, {}
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    for kind in ("weight", "bias") if model.attention_bias else ("weight",):
        parts = read(getattr(block.qkv, kind)).split((query, key, key))
        for name, rows in zip("qkv", parts, strict=True):
            turned = model.no_rope_every and name in "qk"
            out[f"self_attn.{name}_proj.{kind}"] = paired(rows, model.head_dim) if turned else rows
        out[f"self_attn.o_proj.{kind}"] = read(getattr(block.out, kind))
    if model.qk_norm:
        out["self_attn.q_norm.weight"] = read(block.query_norm.weight)
        out["self_attn.k_norm.weight"] = read(block.key_norm.weight)
    if model.attention_sinks:
        out["self_attn.sinks"] = read(block.sinks)
    return out


def latent(layer: Layer, model: Model, read: Read) -> dict[str, Tensor]:
    """Multi-head latent attention; theirs turns neighbouring channels (rope_interleave)."""
    block, turned = layer.attention, model.qk_rope_head_dim
    per_head = read(block.up_query.weight).unflatten(0, (model.heads, -1))
    plain, rotary = per_head.split((model.qk_nope_head_dim, turned), dim=1)
    rotary = paired(rotary.flatten(0, 1), turned).unflatten(0, (model.heads, -1))
    c, shared = read(block.down_key.weight).split((model.kv_lora_rank, turned))
    out = {
        "q_a_proj": read(block.down_query.weight),
        "q_a_layernorm": read(block.query_norm.weight),
        "q_b_proj": torch.cat((plain, rotary), 1).flatten(0, 1),
        "kv_a_proj_with_mqa": torch.cat((c, paired(shared, turned))),
        "kv_a_layernorm": read(block.key_norm.weight),
        "kv_b_proj": read(block.up_key.weight),
        "o_proj": read(block.out.weight),
    }
    return {f"self_attn.{name}.weight": tensor for name, tensor in out.items()}


def dense(name: str, mlp: torch.nn.Module, read: Read) -> dict[str, Tensor]:
    gate, up = read(mlp.up.weight).chunk(2)
    parts = {"gate_proj": gate, "up_proj": up, "down_proj": read(mlp.down.weight)}
    return {f"{name}.{part}.weight": tensor for part, tensor in parts.items()}


def mixture(name: str, mlp: Mixture, family: str, read: Read) -> dict[str, Tensor]:
    """Experts and router; gpt-oss and Llama 4 store experts transposed, gpt-oss also gate and up by turns."""
    router = "gate" if family in ("Qwen3Moe", "Mixtral", "DeepseekV3") else "router"
    gate_up, down = read(mlp.gate_up), read(mlp.down)
    if family == "GptOss":
        gate_up = interleaved(gate_up)
    if family in ("GptOss", "Llama4"):
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    out = {"experts.gate_up_proj": gate_up, "experts.down_proj": down, f"{router}.weight": read(mlp.router.weight)}
    if family == "GptOss":
        out["experts.gate_up_proj_bias"] = interleaved(read(mlp.gate_up_bias))
        out |= {"experts.down_proj_bias": read(mlp.down_bias), "router.bias": read(mlp.router.bias)}
    if mlp.correction is not None:  # without a gradient
        out[f"{router}.e_score_correction_bias"] = mlp.correction
    if mlp.shared is not None:
        out |= dense("shared_expert" if family == "Llama4" else "shared_experts", mlp.shared, read)
    return {f"{name}.{part}": tensor for part, tensor in out.items()}


def gpt2(ours: Transformer, read: Read) -> dict[str, Tensor]:
    """GPT-2 stores its matrices (in, out)."""
    out = {"wte.weight": read(ours.embedding), "wpe.weight": read(ours.positions)}
    out |= {"ln_f.weight": read(ours.norm.weight), "ln_f.bias": read(ours.norm.shift)}
    for number, layer in enumerate(ours.stack):
        linears = {"attn.c_attn": layer.attention.qkv, "attn.c_proj": layer.attention.out}
        linears |= {"mlp.c_fc": layer.mlp.up, "mlp.c_proj": layer.mlp.down}
        for name, linear in linears.items():
            out |= {f"h.{number}.{name}.weight": read(linear.weight).T, f"h.{number}.{name}.bias": read(linear.bias)}
        for name, norm in {"ln_1": layer.attention_norm, "ln_2": layer.mlp_norm}.items():
            out |= {f"h.{number}.{name}.weight": read(norm.weight), f"h.{number}.{name}.bias": read(norm.shift)}
    return {f"transformer.{name}": tensor for name, tensor in out.items()} | {"lm_head.weight": read(ours.head)}


def laid_out(ours: Transformer, family: str, read: Read) -> dict[str, Tensor]:
    """Our parameters as `read` has them, under the names and in the layout of transformers' `family`."""
    if family == "GPT2":
        return gpt2(ours, read)
    model, mlp_name = ours.model, "feed_forward" if family == "Llama4" else "mlp"
    out = {"embed_tokens.weight": read(ours.embedding), "norm.weight": read(ours.norm.weight)}
    for number, layer in enumerate(ours.stack):
        part = latent if isinstance(layer.attention, Latent) else attention
        names = part(layer, model, read)
        if isinstance(layer.mlp, Mixture):
            names |= mixture(mlp_name, layer.mlp, family, read)
        else:
            names |= dense(mlp_name, layer.mlp, read)
        names["input_layernorm.weight"] = read(layer.attention_norm.weight)
        names["post_attention_layernorm.weight"] = read(layer.mlp_norm.weight)
        out |= {f"layers.{number}.{name}": tensor for name, tensor in names.items()}
    return {f"model.{name}": tensor for name, tensor in out.items()} | {"lm_head.weight": read(ours.head)}


# ---------------------------------------------------------------- settings: ours -> theirs


def settings(m: Model, family: str) -> dict:
    if family == "GPT2":
        sizes = {"vocab_size": m.vocab, "n_positions": m.max_positions, "n_embd": m.hidden, "n_layer": m.layers}
        return sizes | {"n_head": m.heads, "n_inner": m.ffn, "layer_norm_epsilon": m.norm_eps}
    common = {
        "vocab_size": m.vocab,
        "hidden_size": m.hidden,
        "intermediate_size": m.ffn or m.ffn_expert,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads,
        "num_key_value_heads": m.kv_heads,
        "rms_norm_eps": m.norm_eps,
        "max_position_embeddings": m.max_positions,
        "tie_word_embeddings": m.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": m.rope_theta},
    }
    if m.attention != "mla":
        common["head_dim"] = m.head_dim
    if m.experts:
        common["num_experts_per_tok"] = m.top_k
    match family:
        case "GptOss":
            common |= {"num_local_experts": m.experts, "sliding_window": m.sliding_window}
            common |= {"swiglu_limit": m.swiglu_limit}
        case "Mixtral":
            common |= {"num_local_experts": m.experts}
        case "Qwen3Moe":
            common |= {"num_experts": m.experts, "moe_intermediate_size": m.ffn_expert}
            common |= {"norm_topk_prob": m.router_normalise}
        case "DeepseekV3":
            latent = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
            common |= {name: getattr(m, name) for name in latent}
            common |= {"n_routed_experts": m.experts, "moe_intermediate_size": m.ffn_expert}
            common |= {"n_shared_experts": m.shared_experts, "first_k_dense_replace": m.first_dense_layers}
            common |= {"n_group": m.router_groups, "topk_group": m.router_top_groups}
            common |= {"routed_scaling_factor": m.router_scale, "norm_topk_prob": m.router_normalise}
        case "Llama4":
            common |= {"intermediate_size": m.ffn_expert, "intermediate_size_mlp": m.ffn}
            common |= {"num_local_experts": m.experts, "interleave_moe_layer_step": m.moe_every}
            common |= {"attention_chunk_size": m.attention_chunk, "no_rope_layer_interval": m.no_rope_every}
            common |= {"attn_temperature_tuning": False, "use_qk_norm": False}
    return common


def peer(ours: Transformer, family: str) -> torch.nn.Module:
    """transformers' model with our weights; every one of theirs must be named."""
    transformers = pytest.importorskip("transformers", reason="extra peers is not installed")
    config_class = "Llama4TextConfig" if family == "Llama4" else f"{family}Config"
    config = getattr(transformers, config_class)(**settings(ours.model, family), attn_implementation="eager")
    config._experts_implementation = "eager"
    head = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    theirs = getattr(transformers, head)(config).float().eval()
    theirs.load_state_dict(laid_out(ours, family, lambda parameter: parameter.detach()), strict=True)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    return theirs


# every kind of layer comes at least once, windows and chunks are shorter than the sequence, and gpt-oss' clamp clamps
CASES = {
    "Llama": ("llama_3_2_1b", {"layers": 2, "tie_embeddings": False}),
    "Llama tied": ("llama_3_2_1b", {"layers": 2, "tie_embeddings": True}),
    "Qwen3": ("qwen3_8b", {"layers": 2, "tie_embeddings": False}),
    "Qwen3 tied": ("qwen3_0_6b", {"layers": 2, "tie_embeddings": True}),
    "GPT2": ("gpt2_124m", {"layers": 2}),
    "Mixtral": ("mixtral_8x7b", {"layers": 2}),
    "Qwen3Moe": ("qwen3_30b_a3b", {"layers": 2}),
    "GptOss": ("gpt_oss_20b", {"layers": 4, "swiglu_limit": 0.7}),
    "DeepseekV3": ("deepseek_v3", {"layers": 3, "first_dense_layers": 1}),
    "Llama4": ("llama_4_maverick", {"layers": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_equal_those_of_transformers(case):
    key, changes = CASES[case]
    family, model = case.split()[0], shrunk(load(Model, key), **changes)
    assert set(model.kinds) == set(dataclasses.replace(model, layers=8).kinds)
    ours = network(model)
    theirs = peer(ours, family)
    data = torch.randint(model.vocab, (2, 41), generator=torch.Generator().manual_seed(4))
    tokens, targets = data[:, :-1], data[:, 1:]
    logits = theirs(tokens).logits
    assert relative_error(ours(tokens), logits) <= TOLERANCE
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    ours_loss = ours.loss(tokens, targets)
    ours_loss.backward()
    assert relative_error(ours_loss, loss) <= TOLERANCE
    found = laid_out(ours, family, lambda parameter: parameter.grad)
    for name, parameter in theirs.named_parameters():
        assert parameter.grad.norm() > 0, name
        assert relative_error(found[name], parameter.grad) <= TOLERANCE, name
