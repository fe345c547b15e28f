"""Adapters: the dense weight they stand for, in float64; what is trained and what is left alone."""

import pytest
import torch
from torch.func import functional_call

from bench.kernels.op import load as load_ops
from bench.model import oracle
from bench.model.layer import Layer
from bench.model.lora import LowRank, adapt, projections
from bench.model.mlp import Mixture
from bench.model.parts import Linear
from bench.model.transformer import Transformer
from tests.architectures import MODELS, shrunk
from tests.test_workloads import make

CPU = torch.device("cpu")
RANK, ALPHA = 3, 5.0
FAMILIES = ["llama_3_1_8b", "gpt_oss_20b", "deepseek_v3", "gpt2_124m"]


def network(key: str, adapted: bool = True, **options) -> Transformer:
    model = shrunk(MODELS[key])
    place = {"precision": "fp64", "device": CPU, "max_tokens": 32, "layers": model.distinct_layers}
    net = Transformer(model, load_ops("reference"), **place, **options)
    if adapted:
        adapt(net, RANK, ALPHA)
    return net


def loss(net: Transformer) -> torch.Tensor:
    tokens = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))
    return net.loss(tokens[:, :-1], tokens[:, 1:])


def adapters(net: Transformer) -> dict[str, Linear]:
    return {name: part for name, part in net.named_modules() if isinstance(part, Linear) and part.adapter is not None}


@pytest.mark.parametrize("key", FAMILIES)
def test_an_adapted_model_is_the_one_with_the_dense_weight(key):
    """W + alpha / rank · B A for each packed part: the same loss, and gradients of A and B through W."""
    net, plain = network(key), network(key, adapted=False)
    found = loss(net)
    found.backward()
    dense, pairs = dict(plain.named_parameters()), {}
    for name, part in adapters(net).items():
        inner = part.adapter.inner.detach().clone().requires_grad_()
        outers = [outer.detach().clone().requires_grad_() for outer in part.adapter.outer]
        each = [outer @ a for outer, a in zip(outers, inner.split(RANK), strict=True)]
        dense[f"{name}.weight"] = part.weight.detach() + ALPHA / RANK * torch.cat(each)
        pairs[name] = [inner, *outers]
    wrapped = functional_call(_Loss(plain), {f"net.{name}": value for name, value in dense.items()}, ())
    wrapped.backward()
    torch.testing.assert_close(found, wrapped, rtol=1e-12, atol=0)
    for name, part in adapters(net).items():
        ours = [part.adapter.inner, *part.adapter.outer]
        for mine, theirs in zip(ours, pairs[name], strict=True):
            assert theirs.grad.abs().max() > 0
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-15, msg=name)
    assert abs(float((found - loss(plain)).detach())) > 1e-6  # the adapters do something


class _Loss(torch.nn.Module):
    def __init__(self, net: Transformer):
        super().__init__()
        self.net = net

    def forward(self) -> torch.Tensor:
        return loss(self.net)


@pytest.mark.parametrize("key", FAMILIES)
def test_adapters_alone_are_trained(key):
    net = network(key)
    loss(net).backward()
    trained = {id(w) for part in net.modules() if isinstance(part, LowRank) for w in part.parameters()}
    for name, weight in net.named_parameters():
        assert weight.requires_grad == (weight.grad is not None) == (id(weight) in trained), name
        assert id(weight) not in trained or bool(weight.grad.any()), name
    assert trained


@pytest.mark.parametrize("key", FAMILIES)
def test_every_projection_but_routers_and_routed_experts_has_a_pair_a_part(key):
    net = network(key)
    mixtures = [part for part in net.modules() if isinstance(part, Mixture)]
    assert all(part.router.adapter is None for part in mixtures)
    left_out = {part.router for part in mixtures}
    linears = {part for part in net.modules() if isinstance(part, Linear)} - left_out
    assert linears == set(projections(net)) and all(part.adapter is not None for part in linears)
    for part in linears:
        assert part.adapter.inner.shape == (RANK * len(part.parts), part.weight.shape[1])
        assert [tuple(outer.shape) for outer in part.adapter.outer] == [(width, RANK) for width in part.parts]
    model, layer = net.model, net.stack[-1]
    if model.attention != "mla":
        query, key_width = model.heads * model.head_dim, model.kv_heads * model.head_dim
        assert layer.attention.qkv.parts == (query, key_width, key_width)
    if model.shared_experts:
        assert layer.mlp.shared.up.parts == (32, 32) and layer.mlp.shared.up.adapter is not None
    elif not model.experts:
        assert len(layer.mlp.up.parts) == (2 if model.mlp == "swiglu" else 1)


def test_a_part_is_adapted_by_its_own_pair_alone():
    """Query, key and value lie side by side; changing one pair changes one slice of the output."""
    net = network("llama_3_1_8b")
    linear = net.stack[0].attention.qkv
    x = torch.randn(4, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = linear(x)
    with torch.no_grad():
        linear.adapter.outer[1].mul_(2)
        linear.adapter.inner[2 * RANK :].mul_(2)
    changed = (linear(x) != before).any(0).split(linear.parts)
    assert [bool(part.any()) for part in changed] == [False, True, True]


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("key", ["llama_3_1_8b", "gpt_oss_20b"])
def test_checkpointing_gives_the_same_gradients(key, mode):
    plain, saving = network(key), network(key, checkpointing=mode)
    for net in (plain, saving):
        loss(net).backward()
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)


def test_adapting_a_layer_and_then_the_model_adapts_once():
    """As a training step does it: each layer as it is made, the model last."""
    net = network("llama_3_1_8b", adapted=False, finish=lambda module: adapt(module, RANK, ALPHA))
    once = {name: part.adapter for name, part in adapters(net).items()}
    adapt(net, RANK, ALPHA)
    assert len(once) == 4 * len(net.stack)
    assert all(part.adapter is once[name] for name, part in adapters(net).items())
    assert not net.embedding.requires_grad and not net.norm.weight.requires_grad


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_gradients_of_a_backend_against_float64(backend):
    """Interpreted, the kernels multiply slices of the packed inner product."""
    model = shrunk(MODELS["llama_3_1_8b"], vocab=61, hidden=32, heads=2, kv_heads=1)
    limit = oracle.GRADIENT_TOLERANCE["fp32"]
    change = {"adjust": lambda net: adapt(net, RANK, ALPHA)}
    error, _ = oracle.gradient_error(model, backend, "fp32", CPU, 11, **change)
    assert error < limit


def test_the_check_catches_a_scale_that_is_not_alpha_over_rank(monkeypatch):
    model = shrunk(MODELS["llama_3_1_8b"], vocab=61, hidden=32, heads=2, kv_heads=1)
    real = oracle.twin

    def other(net: Transformer) -> Transformer:
        twin = real(net)
        for part in twin.modules():
            if isinstance(part, LowRank):
                part.scale *= RANK
        return twin

    monkeypatch.setattr(oracle, "twin", other)
    error, _ = oracle.gradient_error(model, "reference", "fp32", CPU, 11, adjust=lambda net: adapt(net, RANK, ALPHA))
    assert error > 100 * oracle.GRADIENT_TOLERANCE["fp32"]


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_training_step_moves_the_adapters_and_leaves_the_base_as_it_is(precision):
    sizes = {"batch_size": 1, "input_tokens": 16, "gradient_accumulation": 2, "checkpointing": "full"}
    job = make("train_step", precision=precision, lora_rank=4, lora_alpha=8.0, **sizes)
    job.prepare()
    net = job.model_under_test
    pairs = {id(w) for part in net.modules() if isinstance(part, LowRank) for w in part.parameters()}
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    assert {id(weight) for weight in job.optimiser.weights} == pairs
    losses = []
    job.optimiser.learning_rate = 1e-2
    for _ in range(6):
        job.step()
        losses.append(float(job.last_loss))
    assert losses[-1] < losses[0] - 0.1
    for name, weight in net.named_parameters():
        assert torch.equal(weight, before[name]) == (id(weight) not in pairs), name
    assert all(part.checkpointing == "full" for part in net.modules() if isinstance(part, Layer))
