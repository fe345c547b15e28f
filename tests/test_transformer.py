"""The model is a real model: it learns, its three ways of computing agree, and it equals transformers'."""

import dataclasses
import math
from collections import Counter

import pytest
import torch

from bench.config import Model, load
from bench.kernels.op import load as load_ops
from bench.model import oracle
from bench.model.transformer import KVCache, Transformer

CPU = torch.device("cpu")


def small(**changes) -> Model:
    """A Llama / Qwen shape of a few thousand parameters."""
    sizes = {"layers": 2, "hidden": 48, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 96, "vocab": 61}
    return dataclasses.replace(load(Model, "tiny_15m"), **sizes | changes)


def network(model: Model, **options) -> Transformer:
    return Transformer(model, load_ops("reference"), precision="fp32", device=CPU, max_tokens=64, **options)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "tie_embeddings": False}, {"kv_heads": 4}])
def test_forward_prefill_and_decode_agree_at_every_position(changes):
    model = network(small(**changes)).double()
    tokens = torch.randint(61, (3, 12), generator=torch.Generator().manual_seed(0))
    full = model(tokens)
    cache = KVCache(model.model, 2, 3, 12, torch.float64, CPU)
    steps = [model.prefill(tokens[:, :5], cache)] + [model.decode(tokens[:, i], cache) for i in range(5, 12)]
    torch.testing.assert_close(torch.stack(steps, 1), full[:, 4:], rtol=1e-9, atol=1e-9)
    for length in range(1, 13):
        fresh = KVCache(model.model, 2, 3, 12, torch.float64, CPU)
        torch.testing.assert_close(model.prefill(tokens[:, :length], fresh), full[:, length - 1], rtol=1e-9, atol=1e-9)


def test_decode_keeps_sequences_of_different_length_apart():
    model = network(small()).double()
    tokens = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(1))
    full = model(tokens)
    cache = KVCache(model.model, 2, 2, 9, torch.float64, CPU)
    model.prefill(tokens[:, :8], cache)
    cache.lengths.copy_(torch.tensor([8, 4]))
    logits = model.decode(torch.stack((tokens[0, 8], tokens[1, 4])), cache)
    torch.testing.assert_close(logits[0], full[0, 8])
    torch.testing.assert_close(logits[1], full[1, 4])


def test_a_token_never_sees_the_future():
    model = network(small())
    tokens = torch.randint(61, (1, 10), generator=torch.Generator().manual_seed(2))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 61
    difference = (model(tokens) - model(changed)).abs().amax(-1)[0]
    assert difference[:7].max() == 0 and difference[7:].min() > 0


def test_activations_stay_near_unit_scale_at_every_depth():
    for depth in (1, 6, 24):
        model = network(small(layers=depth, hidden=256, ffn=512, vocab=997))
        logits = model(torch.randint(997, (2, 32), generator=torch.Generator().manual_seed(3)))
        assert 0.5 < logits.std() < 2


def test_it_learns_real_text_and_needs_its_attention(public_text):
    torch.manual_seed(0)
    model = dataclasses.replace(load(Model, "tiny_15m"), vocab=256)
    data = torch.tensor(list(public_text))
    counts = Counter(public_text)
    entropy = -sum(n / len(data) * math.log(n / len(data)) for n in counts.values())
    net = Transformer(model, load_ops("reference"), precision="fp32", device=CPU, max_tokens=128)
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, betas=(0.9, 0.95))
    for step in range(50):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 10)
        starts = torch.randint(len(data) - 129, (8,))
        batch = torch.stack([data[s : s + 129] for s in starts])
        loss = net.loss(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    batch = data[: 129 * 32].view(32, 129)
    with torch.no_grad():
        trained = net.loss(batch[:, :-1], batch[:, 1:]).item()
        for layer in net.layers:
            layer.ops = load_ops("reference")
        net.ops = load_ops("reference")
        net.ops.attention = lambda q, k, v: torch.zeros_like(q)
        blind = net.loss(batch[:, :-1], batch[:, 1:]).item()
    print(f"unigram entropy {entropy:.3f}, trained {trained:.3f}, without attention {blind:.3f} nats")
    assert trained < entropy
    assert blind > trained + 0.3


def hf_pair(model: Model, family: str):
    """transformers' model of the same shape with the same weights as ours, and ours."""
    transformers = pytest.importorskip("transformers", reason="extra peers is not installed")
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta}}
    settings = {
        "vocab_size": model.vocab,
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "attn_implementation": "eager",
    }
    config = getattr(transformers, f"{family}Config")(**settings, **rope)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).float()
    ours = network(model)
    with torch.no_grad():
        theirs.model.embed_tokens.weight.copy_(ours.embedding)
        theirs.lm_head.weight.copy_(ours.head)
        theirs.model.norm.weight.copy_(ours.norm.uniform_(0.5, 1.5))
        for mine, other in zip(ours.layers, theirs.model.layers, strict=True):
            for part, rows in hf_parts(mine, other):
                part.copy_(rows)
    return ours, theirs


def hf_parts(mine, other):
    """Pairs of (their weight, our rows) of one layer."""
    m = mine.model
    query, key = m.heads * m.head_dim, m.kv_heads * m.head_dim
    q, k, v = mine.qkv.split((query, key, key))
    gate, up = mine.gate_up.chunk(2)
    attention, mlp = other.self_attn, other.mlp
    pairs = [
        (attention.q_proj.weight, q),
        (attention.k_proj.weight, k),
        (attention.v_proj.weight, v),
        (attention.o_proj.weight, mine.out),
        (mlp.gate_proj.weight, gate),
        (mlp.up_proj.weight, up),
        (mlp.down_proj.weight, mine.down),
        (other.input_layernorm.weight, mine.attention_norm),
        (other.post_attention_layernorm.weight, mine.mlp_norm),
    ]
    if m.qk_norm:
        pairs += [(attention.q_norm.weight, mine.query_norm), (attention.k_norm.weight, mine.key_norm)]
    return pairs


@pytest.mark.parametrize(("family", "qk_norm"), [("Llama", False), ("Qwen3", True)])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_gradients_equal_those_of_transformers(family, qk_norm, tied):
    ours, theirs = hf_pair(small(qk_norm=qk_norm, tie_embeddings=tied, hidden=64), family)
    data = torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(4))
    tokens, targets = data[:, :-1], data[:, 1:]
    logits = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), logits, rtol=1e-4, atol=1e-4)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(ours.loss(tokens, targets), loss, rtol=1e-4, atol=1e-4)
    loss.backward()
    ours.loss(tokens, targets).backward()
    for mine, other in zip(ours.layers, theirs.model.layers, strict=True):
        for name in ("qkv", "gate_up", "out", "down"):
            assert getattr(mine, name).grad.norm() > 0
        with torch.no_grad():
            for parameter in mine.parameters():
                parameter.copy_(parameter.grad)
        for part, rows in hf_parts(mine, other):
            torch.testing.assert_close(rows.detach(), part.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.embedding.grad, theirs.model.embed_tokens.weight.grad, rtol=1e-4, atol=1e-4)


def test_a_shape_it_cannot_run_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="deepseek_v3: mixture of experts"):
        network(load(Model, "deepseek_v3"))


@pytest.mark.parametrize("check", [oracle.gradient_error, oracle.prefill_error, oracle.decode_error])
@pytest.mark.parametrize("backend", ["reference", "triton", "best"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_whole_model_on_each_backend_passes_the_check_its_cells_pass(check, backend, qk_norm):
    """On a CPU the Triton kernels run in the interpreter: slow, and the same arithmetic."""
    error, shape = check(small(qk_norm=qk_norm), backend, "fp32", CPU, 21)
    assert error < 1e-5 and "batch=2 tokens=21" in shape


def far_blind(q, k, v):
    """Attention that forgets every key more than 255 back, as a kernel with a wrong loop bound would."""
    length = q.shape[1]
    back = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    mask = (back >= 0) & (back < 256)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return attended.transpose(1, 2)


def first_sequence(op):
    """An attention that reads sequence 0's keys and values for every sequence, as a wrong batch stride would."""
    return lambda q, k, v, *rest: op(q, k[:1].expand_as(k), v[:1].expand_as(v), *rest)


class NoWeightGradient(torch.autograd.Function):
    """RMSNorm whose weight gets a gradient of zero."""

    @staticmethod
    def forward(ctx, weight):
        return weight.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


BROKEN = {
    "rope": lambda ops: {"rope": lambda q, k, cos, sin, op=ops.rope: op(q, k, cos, -sin)},
    "far keys": lambda ops: {"attention": far_blind},
    "batch of attention": lambda ops: {"attention": first_sequence(ops.attention)},
    "batch of decode": lambda ops: {"decode_attention": first_sequence(ops.decode_attention)},
    "late slots of decode": lambda ops: {
        "decode_attention": lambda q, k, v, n, op=ops.decode_attention: op(q, k, v, n.clamp(max=256))
    },
    "gradient of a gain": lambda ops: {
        "rms_norm": lambda x, w, *rest, op=ops.rms_norm: op(x, NoWeightGradient.apply(w), *rest)
    },
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_check_sees_a_wrong_op(monkeypatch, name, precision):
    """Faults a kernel can have that a short prompt, a batch of one or one number for all gradients would not show."""
    ops = load_ops("reference")
    for op, wrong in BROKEN[name](load_ops("reference")).items():
        setattr(ops, op, wrong)
    monkeypatch.setattr(oracle, "load", lambda backend: ops if backend == "broken" else load_ops(backend))
    checks = [(oracle.decode_error, oracle.TOLERANCE)]
    if "decode" not in name:
        checks = [(oracle.gradient_error, oracle.GRADIENT_TOLERANCE)]
    if name in ("far keys", "batch of attention"):
        checks.append((oracle.prefill_error, oracle.TOLERANCE))
    for check, tolerance in checks:
        error, _ = check(small(), "broken", precision, CPU, 4096)
        assert error > tolerance[precision]
