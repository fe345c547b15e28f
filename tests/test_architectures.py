"""Every architecture in configs/models runs, trains, and agrees with itself however it is computed."""

import dataclasses
import itertools

import pytest
import torch

from bench.architecture import Model
from bench.config import load
from bench.kernels.op import load as load_ops
from bench.model import documents, oracle, routing
from bench.model.cache import KVCache
from bench.model.transformer import Transformer
from tests.architectures import DISTINCT, MODELS, shrunk

CPU = torch.device("cpu")
MOE = [key for key, model in MODELS.items() if model.experts]


def network(model: Model, **options) -> Transformer:
    return Transformer(model, load_ops("reference"), precision="fp32", device=CPU, max_tokens=64, **options)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(97, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("key", DISTINCT)
def test_prefill_and_decode_give_the_logits_of_forward_and_every_weight_is_trained(key):
    """A layer of each kind, past its window and its chunks, in float64."""
    model = shrunk(MODELS[key])
    layers = model.distinct_layers
    net = network(model, layers=layers).double()
    data = tokens(2, 40)
    full = net(data)
    cache = KVCache(model, len(layers), 2, 40, torch.float64, CPU)
    steps = [net.prefill(data[:, :7], cache)] + [net.decode(data[:, i], cache) for i in range(7, 40)]
    torch.testing.assert_close(torch.stack(steps, 1), full[:, 6:], rtol=1e-9, atol=1e-9)
    net.loss(data[:, :-1], data[:, 1:]).backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("key", DISTINCT)
def test_packed_documents_are_as_if_alone(key):
    model = shrunk(MODELS[key])
    net = network(model, layers=model.distinct_layers).double()
    data = tokens(2, 40)
    packed = net(data, net.described(2, 40, [[10, 30], [25, 15]]))
    for row, (start, stop) in ((0, (0, 10)), (0, (10, 40)), (1, (0, 25)), (1, (25, 40))):
        alone = net(data[row : row + 1, start:stop])
        torch.testing.assert_close(packed[row : row + 1, start:stop], alone, rtol=1e-9, atol=1e-9)


# one layer of each kind
FAMILIES = {
    "llama_3_2_1b": {"layers": 1},
    "qwen3_0_6b": {"layers": 1},
    "gpt_oss_20b": {},
    "qwen3_30b_a3b": {"layers": 1},
    "llama_4_maverick": {"no_rope_every": 2},
    "gpt2_124m": {"layers": 1},
    "deepseek_v3": {"first_dense_layers": 1},
}


@pytest.mark.parametrize("key", FAMILIES)
def test_the_kernels_train_every_family(key):
    """Backend triton, interpreted: loss and gradients against float64."""
    sizes = {"vocab": 61, "hidden": 32, "heads": 2, "kv_heads": 1 if MODELS[key].attention == "gqa" else 2}
    sizes |= {"experts": 4, "top_k": min(2, MODELS[key].top_k), "ffn_expert": 16} if MODELS[key].experts else {}
    sizes |= {"router_groups": 2, "router_top_groups": 1} if MODELS[key].router_groups > 1 else {}
    model = shrunk(MODELS[key], **sizes | FAMILIES[key])
    error, _ = oracle.gradient_error(
        model, "triton", "fp32", CPU, 19, lengths=lambda batch, length: [[7, length - 7]] * batch
    )
    assert error < oracle.GRADIENT_TOLERANCE["fp32"]


# ---------------------------------------------------------------- layers and slices


def test_patterns_of_layers():
    deepseek, oss, llama4 = (MODELS[key] for key in ("deepseek_v3", "gpt_oss_20b", "llama_4_maverick"))
    assert [kind.moe for kind in deepseek.kinds[:5]] == [False, False, False, True, True] and deepseek.moe_layers == 58
    assert [kind.window for kind in oss.kinds[:4]] == [128, None, 128, None] and oss.period == 2
    assert [(kind.moe, kind.rotary, kind.chunk) for kind in llama4.kinds[:4]] == [
        (False, True, 8192),
        (True, True, 8192),
        (False, True, 8192),
        (True, False, None),
    ]
    assert llama4.period == 4 and llama4.distinct_layers == (0, 1, 3)


@pytest.mark.parametrize("key", MOE)
def test_a_share_of_the_experts_keeps_tokens_per_expert(key):
    model = MODELS[key]
    ranks = next(n for n in (16, 4, 2) if model.experts // n >= model.top_k)
    share = model.expert_slice(ranks)
    assert share.experts * ranks == model.experts and share.top_k == model.top_k
    _, load_of = routing.drawn(share, 512, 0.0, CPU)
    whole_tokens = 512 * ranks  # every rank brings as many
    assert load_of.sum() / share.experts == whole_tokens * model.top_k / model.experts
    with pytest.raises(ValueError, match="expert_parallel: expected"):
        model.expert_slice(2 * model.experts)


# ---------------------------------------------------------------- drawn routing


@pytest.mark.parametrize("key", ["gpt_oss_20b", "deepseek_v3", "llama_4_maverick"])
def test_tokens_go_where_the_draw_says(monkeypatch, key):
    model = shrunk(MODELS[key])
    net = network(model, layers=model.distinct_layers)
    forced, load_of = routing.drawn(model, 80, 1.0, CPU)
    met = []
    real = net.ops.moe
    net.ops.moe = lambda x, gate_up, down, experts, weights, **rest: (
        met.append(torch.bincount(experts.flatten(), minlength=model.experts))
        or real(x, gate_up, down, experts, weights, **rest)
    )
    net(tokens(2, 40), net.described(2, 40, None, forced))
    assert len(met) == sum(model.kinds[n].moe for n in model.distinct_layers)
    assert all(torch.equal(each, load_of) for each in met)


def test_skew_grows_with_the_exponent_and_uniform_is_nearly_even():
    model = MODELS["qwen3_30b_a3b"]
    loads = [routing.drawn(model, 4096, zipf, CPU)[1] for zipf in (0.0, 0.5, 1.0)]
    even, some, much = (routing.imbalance(load_of) for load_of in loads)
    assert even < 1.3 and 4 < some < 7 and much > some
    assert all(load_of.sum() == 4096 * 8 for load_of in loads)


# ---------------------------------------------------------------- documents


def test_documents_fill_their_sequences_and_are_lognormal():
    rows = documents.packed(200, 8192, 543, 1.21)
    assert all(sum(row) == 8192 and min(row) >= 1 for row in rows)
    whole = torch.tensor([n for row in rows for n in row[:-1]]).double()  # the last of each row is cut
    # long documents are more often the ones cut, so what is left is a little shorter than the corpus
    assert 400 < whole.median() < 600 and 0.9 < whole.log().std() < 1.25
    assert rows == documents.packed(200, 8192, 543, 1.21)


@pytest.mark.parametrize("sequences", [1, 2, 16])
def test_the_packing_drawn_is_as_uneven_as_usual(sequences):
    """Attention's work goes by the squares of lengths: two sequences at random are often half or twice the mean."""
    many = documents._drawn(4000, 8192, 543, 1.21, seed=12345)
    usual = documents.pairs(many) / 4000
    found = documents.pairs(documents.packed(sequences, 8192, 543, 1.21)) / sequences
    assert found == pytest.approx(usual, rel=0.06)  # 2% of the choice, and the noise of 4,000 sequences
    spread = [documents.pairs(documents._drawn(2, 8192, 543, 1.21, seed)) / 2 / usual for seed in range(50)]
    assert min(spread) < 0.7 and max(spread) > 1.3


def test_ends_are_cut_at_chunks_of_each_document():
    assert documents.ends([[5, 3], [8]], CPU).tolist() == [0, 5, 8, 16]
    assert documents.ends([[5, 3], [8]], CPU, 4).tolist() == [0, 4, 5, 8, 12, 16]
    assert documents.positions([[2, 3], [5]], CPU).tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]


# ---------------------------------------------------------------- checkpointing


@pytest.mark.parametrize("key", ["llama_3_1_8b", "gpt_oss_20b"])
def test_checkpointing_changes_what_is_kept_and_nothing_else(key):
    model = shrunk(MODELS[key], layers=4)
    data, kept, results = tokens(2, 33), {}, {}
    for mode in ("none", "selective", "full"):
        net = network(model, checkpointing=mode)
        sizes: dict[int, int] = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = net.loss(data[:, :-1], data[:, 1:])
        loss.backward()
        kept[mode] = sum(sizes.values())
        results[mode] = [loss, *(weight.grad for weight in net.parameters())]
    for mode in ("selective", "full"):
        for ours, plain in zip(results[mode], results["none"], strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)
    assert kept["full"] < kept["selective"] < kept["none"]


def test_bad_architectures_are_refused_with_the_key():
    with pytest.raises(ValueError, match="top_k: expected"):
        dataclasses.replace(load(Model, "gpt_oss_20b"), top_k=99)
    with pytest.raises(ValueError, match="kv_lora_rank: expected"):
        dataclasses.replace(load(Model, "deepseek_v3"), kv_lora_rank=None)
    for first, second in itertools.pairwise(("ffn", "mlp")):
        with pytest.raises(ValueError, match=f"{first}: expected"):
            dataclasses.replace(load(Model, "llama_3_1_8b"), **{first: None})
        with pytest.raises(ValueError, match=f"{second}: expected"):
            dataclasses.replace(load(Model, "llama_3_1_8b"), **{second: "relu"})
