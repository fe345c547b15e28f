"""Other people's whole models as training backends: what they compute and refuse, and that a wrong one is found out."""

import dataclasses
import importlib.metadata
import importlib.util
from types import SimpleNamespace

import pytest
import torch

from bench import config
from bench.kernels import op
from bench.kernels.op import relative_error
from bench.model import documents
from bench.model.parts import Tokens
from bench.peers.train import families, found, transformers_compile
from bench.peers.train import transformers as eager
from bench.workload import Workload
from tests.architectures import MODELS, shrunk
from tests.test_parity import laid_out
from tests.test_parity import network as ours_of

if importlib.util.find_spec("transformers") is None:
    pytest.skip("extra peers is not installed", allow_module_level=True)

CPU = torch.device("cpu")
TOKENS = 48
# one model a family, tiny; every kind of layer comes at least once
SMALL = {
    "Llama": shrunk(MODELS["llama_3_2_1b"], layers=2),
    "Qwen3": shrunk(MODELS["qwen3_8b"], layers=2),
    "Qwen3Moe": shrunk(MODELS["qwen3_30b_a3b"], layers=2),
    "Mixtral": shrunk(MODELS["mixtral_8x7b"], layers=2),
    "GptOss": shrunk(MODELS["gpt_oss_20b"], layers=2),
    "DeepseekV3": shrunk(MODELS["deepseek_v3"], layers=2, first_dense_layers=1),
    "Llama4Text": shrunk(MODELS["llama_4_maverick"], layers=4),
    "GPT2": shrunk(MODELS["gpt2_124m"], layers=2),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small take a thread; two that wait for each other on a busy machine take fifty times longer."""
    before = torch.get_num_threads()
    yield torch.set_num_threads(1)
    torch.set_num_threads(before)


def workload(**changes) -> Workload:
    given = {"phase": "train_step", "precision": "fp32", "input_tokens": TOKENS, "source": "a test"}
    return Workload(**given | changes)


def packed(batch: int, length: int) -> Tokens:
    """Documents of about 12 tokens."""
    rows = documents.packed(batch, length, 12, 1.0)
    return Tokens(documents.positions(rows, CPU), None, None, documents.ends(rows, CPU))


def whole(batch: int, length: int) -> Tokens:
    return Tokens(torch.arange(length)[None], None, None)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets (2, TOKENS)."""
    drawn = torch.randint(97, (2, TOKENS + 1), generator=torch.Generator().manual_seed(4))
    return drawn[:, :-1], drawn[:, 1:].clone()


# ---------------------------------------------------------------- the registry


def test_the_folder_listing_is_the_registry(tmp_path, monkeypatch):
    assert config.training_peers() == ("peer:liger", "peer:transformers", "peer:transformers_compile")
    (tmp_path / "mine.py").write_text("import torch\n\n\ndef build(model, workload, device, layers):\n    ...\n")
    (tmp_path / "found.py").write_text("def network():\n    ...\n")
    monkeypatch.setattr(config, "PEERS", tmp_path)
    assert config.training_peers() == ("peer:mine",)
    config.Group(workloads=("a",), backends=("peer:mine",))
    with pytest.raises(ValueError, match="backends"):
        config.Group(workloads=("a",), backends=("peer:liger",))
    with pytest.raises(ValueError, match="no training peer 'peer:liger'"):
        found.peer("peer:liger")


def test_every_architecture_has_one_family():
    for model in MODELS.values():
        fitting = [f.name for f in families.FAMILIES if f.needs <= families.features(model) <= f.may]
        assert len(fitting) == 1, model.key
    assert [eager.known(model).name for model in SMALL.values()] == list(SMALL)
    assert families.family_of(dataclasses.replace(SMALL["Qwen3"], mlp="gelu")) is None


# ---------------------------------------------------------------- what they compute


@pytest.mark.parametrize("describe", [whole, packed])
@pytest.mark.parametrize("name", SMALL)
def test_loss_and_gradients_are_those_of_our_model_with_the_same_weights(name, describe):
    """So reduction, left-out targets, shifts, documents and positions mean the same."""
    model, layout = SMALL[name], name.removesuffix("Text")
    ours, theirs = ours_of(model), eager.build(model, workload(), CPU, model.layers)
    theirs.module.load_state_dict(laid_out(ours, layout, lambda parameter: parameter.detach()), strict=True)
    tokens, targets = data()
    targets[0, 3:9] = -100
    rows = documents.packed(2, TOKENS, 12, 1.0) if describe is packed else None
    loss = ours.loss(tokens, targets, ours.described(2, TOKENS, rows))
    loss.backward()
    got = theirs.loss(tokens, targets, describe(2, TOKENS))
    got.backward()
    assert relative_error(got, loss) <= 1e-5
    gradients = laid_out(ours, layout, lambda parameter: parameter.grad)
    for parameter_name, parameter in theirs.module.named_parameters():
        assert relative_error(parameter.grad, gradients[parameter_name]) <= 1e-4, parameter_name
    if describe is packed:
        assert relative_error(theirs.loss(tokens, targets).detach(), loss.detach()) > 1e-4
    targets[0, 3:9] = 0
    assert relative_error(theirs.loss(tokens, targets, describe(2, TOKENS)).detach(), loss.detach()) > 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SMALL)
def test_transformers_passes_the_float64_check(name, precision):
    error, tolerance, shape = found.check("peer:transformers", SMALL[name], workload(precision=precision), CPU, packed)
    assert 0 < error <= tolerance == found.TOLERANCE[precision]
    assert shape.startswith("layers=") and shape.endswith("batch=2 tokens=48")


def forgets_documents(network: eager.Network) -> None:
    right = network.loss
    network.loss = lambda tokens, targets, given=None: right(tokens, targets)


def doubles_the_loss(network: eager.Network) -> None:
    """Not its gradients."""
    right = network.loss
    network.loss = lambda *batch: (loss := right(*batch)) + loss.detach()


def stretches_a_gradient(network: eager.Network) -> None:
    """By a tenth, of the smallest parameter."""
    min(network.parameters(), key=torch.numel).register_hook(lambda gradient: 1.1 * gradient)


def breaks_a_gradient(network: eager.Network) -> None:
    next(network.parameters()).register_hook(lambda gradient: gradient * float("nan"))


WRONG = (forgets_documents, doubles_the_loss, stretches_a_gradient, breaks_a_gradient)


@pytest.mark.parametrize("spoil", WRONG)
@pytest.mark.parametrize(("name", "precision"), [("Llama", "bf16"), ("GptOss", "bf16"), ("DeepseekV3", "fp32")])
def test_a_wrong_peer_fails_the_float64_check(name, precision, spoil, monkeypatch):
    right = eager.build
    monkeypatch.setattr(eager, "build", lambda *arguments: (spoil(network := right(*arguments)), network)[1])
    error, tolerance, _ = found.check("peer:transformers", SMALL[name], workload(precision=precision), CPU, packed)
    assert not error <= tolerance  # NaN is no pass


def test_the_check_cuts_what_float64_could_not_hold_and_takes_the_workload_s_tolerance():
    small = found.reduced(MODELS["deepseek_v3"])
    assert (small.layers, small.experts, small.router_groups, small.vocab) == (4, 8, 1, 16384)
    assert found.reduced(MODELS["llama_3_1_8b"]).vocab == MODELS["llama_3_1_8b"].vocab
    assert found.reduced(MODELS["gpt_oss_20b"]).layers == 2
    assert found.check("peer:transformers", SMALL["Llama"], workload(tolerance=0.03), CPU)[1] == 0.03


@pytest.mark.parametrize("name", SMALL)
def test_full_checkpointing_computes_layers_again_and_changes_no_gradient(name):
    model, tokens = SMALL[name], data()
    plain = eager.build(model, workload(), CPU, model.layers)
    full = eager.build(model, workload(checkpointing="full"), CPU, model.layers)
    ran = []
    layers = full.module.transformer.h if name == "GPT2" else full.module.model.layers
    for layer in layers:
        next(layer.children()).register_forward_hook(lambda *_: ran.append(1))
    losses = [network.loss(*tokens, packed(2, TOKENS)) for network in (plain, full)]
    assert len(ran) == len(layers)
    for loss in losses:
        loss.backward()
    assert len(ran) == 2 * len(layers)
    assert torch.equal(*losses)
    for one, other in zip(plain.parameters(), full.parameters(), strict=True):
        assert relative_error(other.grad, one.grad) <= 1e-6


@pytest.mark.skipif(op.why_not("compile") is not None, reason=str(op.why_not("compile")))
def test_compiled_layers_give_the_eager_loss_and_gradients():
    full = workload(checkpointing="full")
    networks = [peer.build(SMALL["Llama"], full, CPU, 2) for peer in (eager, transformers_compile)]
    losses = [network.loss(*data(), packed(2, TOKENS)) for network in networks]
    for loss in losses:
        loss.backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # one for both layers, one for the loss
    assert relative_error(losses[1].detach(), losses[0].detach()) <= 1e-6
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        assert relative_error(other.grad, one.grad) <= 1e-5
    torch.compiler.reset()


# ---------------------------------------------------------------- how they are set up


def test_a_flash_attention_package_is_told_where_documents_end():
    seen = {}

    def module(**arguments):
        seen.update(arguments)
        return SimpleNamespace(loss=torch.zeros(()))

    network = eager.Network(module, eager.known(SMALL["Llama"]), "flash_attention_2")
    tokens, targets = data()
    network.loss(tokens, targets, given := packed(2, TOKENS))
    assert seen["cu_seq_lens_q"] is seen["cu_seq_lens_k"] is given.documents
    assert seen["max_length_q"] == seen["max_length_k"] == int(given.documents.diff().max())
    assert seen["position_ids"] is given.positions and seen["use_cache"] is False
    seen.clear()
    network.loss(tokens, targets, whole(2, TOKENS))
    assert seen["cu_seq_lens_k"].tolist() == [0, TOKENS, 2 * TOKENS] and seen["max_length_k"] == TOKENS
    assert seen["cu_seq_lens_q"].dtype == torch.int32 and "position_ids" not in seen


@pytest.mark.parametrize(
    ("name", "installed", "whole_documents", "packed_ones"),
    [
        ("Llama", "", "sdpa", "flex_attention"),
        ("Llama", "2", "sdpa", "flash_attention_2"),
        ("Llama", "23", "flash_attention_3", "flash_attention_3"),
        ("GptOss", "23", "flex_attention", "flex_attention"),
        ("GPT2", "", "sdpa", "sdpa"),
    ],
)
def test_attention_is_the_fastest_there_is(name, installed, whole_documents, packed_ones, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    utils, cuda = families.package().utils, torch.device("cuda")
    for version in "23":
        monkeypatch.setattr(utils, f"is_flash_attn_{version}_available", lambda v=version: v in installed)
    family, packs = eager.known(SMALL[name]), {"document_tokens_median": 60.0, "document_tokens_sigma": 1.0}
    assert eager.attention_for(family, workload(precision="bf16"), cuda) == whole_documents
    assert eager.attention_for(family, workload(precision="bf16", **packs), cuda) == packed_ones


def test_the_row_says_version_attention_and_experts():
    version = f"transformers={importlib.metadata.version('transformers')}"
    llama, gpt_oss = (eager.build(SMALL[name], workload(), CPU, 2).described() for name in ("Llama", "GptOss"))
    assert (llama, gpt_oss) == (f"{version} attention=sdpa", f"{version} attention=eager experts=grouped_mm")


# ---------------------------------------------------------------- what they refuse


def asked(model, load, backend: str = "peer:transformers", device: str = "cuda") -> str | None:
    reason = found.why_not(backend, dataclasses.asdict(model), dataclasses.asdict(load), device)
    assert reason is None or (len(reason) <= 200 and "\n" not in reason)
    return reason


def test_the_workloads_of_training_run():
    cells = [("llama_3_2_1b", "pretrain_short"), ("llama_3_1_8b", "pretrain_dense_8b")]
    for model, key in cells:
        assert asked(MODELS[model], config.load(Workload, key)) is None, key


@pytest.mark.parametrize("key", ["pretrain_moe_uniform", "pretrain_moe_zipf"])
def test_mixtures_run_where_no_routing_is_drawn(key):
    """Their own routers are far from uniform, so neither workload is theirs."""
    load = config.load(Workload, key)
    assert "take no drawn routing" in (asked(MODELS["gpt_oss_20b"], load) or "")
    assert asked(MODELS["gpt_oss_20b"], dataclasses.replace(load, routing_zipf=None)) is None


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("llama_3_1_8b", {"precision": "fp8"}, "no fp8"),
        ("llama_3_1_8b", {"precision": "fp4"}, "no fp4"),
        ("llama_3_1_8b", {"checkpointing": "selective"}, "no selective checkpointing"),
        ("llama_3_1_8b", {"lora_rank": 16}, "adapters"),
        ("qwen3_30b_a3b", {"routing_zipf": 0.5}, "no drawn routing"),
        ("llama_3_1_8b", {"routing_zipf": 0.5}, None),  # no experts to route to
        ("llama_3_1_8b", {"tensor_parallel": 2}, "one GPU"),
        ("deepseek_v3", {"expert_parallel": 16}, None),
        ("llama_4_maverick", {}, "every expert for every token"),
        ("llama_3_1_8b", {"phase": "prefill"}, "no prefill"),
    ],
)
def test_what_it_cannot_do_is_one_line(model, changes, said):
    reason = asked(MODELS[model], workload(**changes))
    assert reason is None if said is None else said in reason


def test_what_is_unknown_missing_or_broken_is_a_reason(monkeypatch):
    odd = dataclasses.replace(MODELS["deepseek_v3"], qk_norm=True, attention_sinks=True, sliding_window=4)
    assert asked(odd, workload()).startswith("transformers has no architecture with exactly ")
    for error in (ImportError("cannot import name 'x'\n" + "y" * 400), SystemExit(3), RuntimeError("z" * 400)):
        monkeypatch.setattr(eager, "classes", lambda family, error=error: (_ for _ in ()).throw(error))
        assert asked(MODELS["llama_3_1_8b"], workload()).startswith(f"does not import: {type(error).__name__}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for backend in config.training_peers():
        assert asked(MODELS["llama_3_1_8b"], workload(), backend) == "transformers is not installed"
    monkeypatch.undo()
    monkeypatch.setattr(op, "why_not", lambda backend: f"{backend} needs a compiler")
    assert asked(MODELS["llama_3_1_8b"], workload(), "peer:transformers_compile") == "compile needs a compiler"
