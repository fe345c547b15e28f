"""The model is a real model: it learns, its three ways of computing agree, and its check sees a wrong op."""

import dataclasses
import math
from collections import Counter

import pytest
import torch

from bench.architecture import Model
from bench.config import load
from bench.kernels.op import load as load_ops
from bench.model import oracle
from bench.model.cache import KVCache
from bench.model.transformer import Transformer

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
    narrow = {"hidden": 128, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn": 384}
    model = dataclasses.replace(load(Model, "tiny_15m"), vocab=256, layers=2, **narrow)
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
        net.ops.attention = lambda q, k, v: torch.zeros_like(q)
        blind = net.loss(batch[:, :-1], batch[:, 1:]).item()
    print(f"unigram entropy {entropy:.3f}, trained {trained:.3f}, without attention {blind:.3f} nats")
    assert trained < entropy
    assert blind > trained + 0.3


@pytest.mark.parametrize("check", [oracle.gradient_error, oracle.prefill_error, oracle.decode_error])
@pytest.mark.parametrize(
    ("backend", "qk_norm"),
    [("reference", False), ("reference", True), ("triton", False), ("triton", True), ("best", True)],
)
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
