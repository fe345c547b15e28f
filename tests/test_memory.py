"""Planned memory against the peak of the same step on tensors without memory, and which shapes get a cell.

On torch's `meta` device every tensor has a size and none has bytes: a step of a model of any size runs in a second on
a laptop, launches left out, and a ledger of the storages that are alive gives its peak to the byte. What it does not
see is what HEADROOM is for: the allocator's fragments, library workspaces.
"""

import contextlib
import dataclasses
import weakref
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from bench import plan
from bench.config import Suite, load
from bench.kernels.linear_cross_entropy import _chunk_rows
from bench.kernels.op import ARCHITECTURES, assume, discover
from bench.kernels.op import load as load_ops
from bench.model import grpo, memory
from bench.workload import Workload
from bench.workloads.prefill import Prefill
from bench.workloads.train_step import TrainStep
from tests.architectures import MODELS

META = torch.device("meta")
SPARE = 0.25e9  # bytes a plan may lack: GPT-2 is so narrow that the kernel holds more rows of its logits
SHAPES = [key for key in MODELS if not key.startswith("tiny_")]
CARDS = {"H100": 80e9, "H200": 141e9}


class Ledger(TorchDispatchMode):
    """Bytes of the storages alive that were made inside it, and the most there ever were since `peak` was set."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def _drop(self, storage: int) -> None:
        self.now -= self.alive.pop(storage)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if not isinstance(leaf, torch.Tensor) or leaf.device != META:
                continue
            storage = leaf.untyped_storage()
            if storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._drop, storage._cdata)
        self.peak = max(self.peak, self.now)
        return out


@contextlib.contextmanager
def nowhere():
    """Kernels are not launched and weights not drawn; launchers choose as for an H100. Yields a ledger."""
    skip = patch.object(InterpretedFunction, "run", lambda *a, **k: None)
    drawn = patch("bench.model.transformer.initialise"), patch("bench.model.lora.initialise")
    launched = patch.object(JITFunction, "run", lambda *a, **k: None)
    with skip, launched, drawn[0], drawn[1], assume(90), Ledger() as ledger:
        yield ledger


def slice_of(key: str, workload: Workload, turns: int = 2):
    """A model and how many layers of it: few, so that what layers keep weighs beside weights and gradients."""
    model = MODELS[key]
    return model, min(model.layers, model.first_dense_layers + turns * model.period)


def request(model, workload, layers, backend="triton"):
    asked = {"model": dataclasses.asdict(model), "workload": dataclasses.asdict(workload)}
    return {"device": "meta", "backend": backend, "layers": layers} | asked


def one_step(model, workload, layers, backend="triton") -> tuple[int, int]:
    """Bytes that forward leaves behind, and the step's peak."""
    with nowhere() as ledger:
        job = TrainStep(**request(model, workload, layers, backend))
        if backend == "reference":  # where there is no device, torch takes the attention that stores all scores
            with patch("bench.model.subject.load", lambda _: reference_ops()):
                job.prepare()
        else:
            job.prepare()
        before, ledger.peak, kept = ledger.now, ledger.now, []
        loss = job.loss
        job.loss = lambda *arguments: (loss(*arguments), kept.append(ledger.now - before))[0]
        job.step()
        return kept[0], ledger.peak


def reference_ops():
    """Torch's own ops, with an attention that, like the one it has on a GPU, stores no scores."""
    ops = load_ops("reference")
    ops.attention = discover()["attention"].triton
    return ops


def assert_planned(need: float, peak: int) -> None:
    """Enough, and not much more."""
    assert 0.98 * peak - SPARE <= need <= 1.15 * peak


# key -> training workload that keeps much beside what it trains
FAMILIES = {
    "llama_3_1_8b": "pretrain_dense_8b",
    "llama_3_2_1b": "pretrain_short",
    "qwen3_0_6b": "train_4k",
    "gpt2_124m": "pretrain_1k",
    "gpt_oss_20b": "pretrain_moe_uniform",
    "qwen3_30b_a3b": "pretrain_moe_uniform",
    "mixtral_8x7b": "pretrain_1k",
    "deepseek_v3": "pretrain_moe_share",
    "llama_4_maverick": "pretrain_moe_share",
}
MODES = ("none", "selective", "full")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("key", FAMILIES)
def test_what_our_kernels_keep_and_the_steps_peak_are_as_planned(key, mode):
    workload = dataclasses.replace(load(Workload, FAMILIES[key]), checkpointing=mode)
    model, layers = slice_of(key, workload)
    kept, peak = one_step(model, workload, layers)
    part = memory.subject_of(model.sliced(layers), workload)
    tokens = workload.batch_size * workload.input_tokens
    head = 2 * model.vocab * model.hidden  # its gradient is made in forward, in bf16
    planned = 2 * tokens * memory._kept(part, mode, fused=True)
    if len({kind.moe for kind in part.kinds}) == 1:
        first = 2 * tokens * model.hidden  # with full checkpointing the first layer has no stream yet to keep
        assert planned == pytest.approx(kept - head, rel=0.05, abs=first)
    else:  # of two kinds of feed-forward block the larger is counted for both
        assert 0.99 <= planned / (kept - head) <= 1.5
    assert_planned(memory.needed_bytes(model.sliced(layers), workload, backend="triton"), peak)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("key", FAMILIES)
def test_op_by_op_the_peak_is_as_planned(key, mode):
    workload = dataclasses.replace(load(Workload, FAMILIES[key]), checkpointing=mode)
    model, layers = slice_of(key, workload)
    _, peak = one_step(model, workload, layers, "reference")
    assert_planned(memory.needed_bytes(model.sliced(layers), workload), peak)


@pytest.mark.parametrize("change", [{"lora_rank": 16}, {"precision": "fp8"}, {"gradient_accumulation": 2}, {}])
def test_what_the_step_trains_with_is_in_the_plan(change):
    workload = dataclasses.replace(load(Workload, "pretrain_dense_8b"), **change)
    model, layers = slice_of("llama_3_1_8b", workload, turns=4)
    _, peak = one_step(model, workload, layers)
    assert_planned(memory.needed_bytes(model.sliced(layers), workload, backend="triton"), peak)


@pytest.mark.parametrize("key", SHAPES)
def test_a_prefills_peak_is_as_planned(key):
    workload = load(Workload, "prefill_1k")
    model, layers = slice_of(key, workload)
    with nowhere() as ledger:
        job = Prefill(**request(model, workload, layers))
        job.prepare()
        ledger.peak = ledger.now
        job.step()
    assert_planned(memory.needed_bytes(model.sliced(layers), workload), ledger.peak)


def test_the_ledger_counts_what_lives_and_forgets_what_died():
    with Ledger() as ledger:
        kept = torch.empty(1000, device=META)
        view = kept[10:]
        passing = kept + 1
        del passing
        assert (ledger.now, ledger.peak, len(view)) == (4000, 8000, 990)


def test_rows_of_logits_are_no_more_than_the_kernels_hold():
    for arch in ARCHITECTURES:
        with assume(arch):
            rows = [_chunk_rows(tokens, width, META) for tokens in (1024, 8192) for width in (1024, 2048, 4096, 16384)]
        assert max(rows) <= 1.2 * memory.LOGIT_ROWS
    assert grpo.CHUNK == memory.RL_ROWS


def test_a_reinforcement_step_holds_every_answers_cache():
    workload, model = load(Workload, "rl_rollout"), MODELS["llama_3_2_1b"]
    fewer = dataclasses.replace(workload, rollouts=8)
    slots = 8 * 8 * (208 + 4096)  # 8 prompts with 8 answers fewer
    assert memory._rollout_cache(model, workload) - memory._rollout_cache(model, fewer) == slots * 32768
    assert memory.depths(model, workload, 80e9, backend="triton") == [16]


def test_shards_divide_what_stays_and_not_what_a_rank_works_on():
    workload, model = load(Workload, "pretrain_dense_8b"), MODELS["llama_3_1_8b"]
    one, eight = (memory.needed_bytes(model, workload, shards) for shards in (1, 8))
    # fp32 weights, which are their own masters, fp32 gradients and bf16 averages: 12 bytes a parameter
    assert eight > 12 * model.total_params / 8 and eight < one / 3
    several = dataclasses.replace(workload, gradient_accumulation=2)
    assert memory.needed_bytes(model, several, 8) - eight == pytest.approx(4 * model.total_params)


# ---------------------------------------------------------------- slices


def test_what_does_not_fit_is_sliced_at_two_depths():
    model, train = MODELS["llama_3_1_8b"], load(Workload, "train_4k")
    assert memory.depths(model, train, 1e12) == [32]
    shallow, deep = memory.depths(model, train, 80e9)
    assert 0 < shallow < deep < 32 and shallow == deep // 2
    assert memory.needed_bytes(model.sliced(deep), train) <= memory.HEADROOM * 80e9
    assert memory.needed_bytes(model.sliced(deep + 1), train) > memory.HEADROOM * 80e9
    assert memory.depths(MODELS["llama_3_1_405b"], train, 24e9) == []
    assert memory.depths(model, train, 80e9, backend="triton")[1] > deep  # no logits, no fp32 copies


def test_less_than_a_turn_of_the_pattern_stands_alone_and_has_a_mixture_in_it():
    maverick, prompt = MODELS["llama_4_maverick"], load(Workload, "prefill_1k")
    assert maverick.period == 4 and memory.depths(maverick, prompt, 80e9) == [3]
    assert memory.depths(maverick, prompt, 20e9) == []  # a dense layer fits: it would stand for nothing


# ---------------------------------------------------------------- every shape


def test_suite_shapes_names_every_model_for_prefill_and_for_training():
    groups = load(Suite, "shapes").groups
    for phase in ("prefill", "train_step"):
        named = {
            model
            for group in groups
            for model in group.models
            if any(load(Workload, workload).phase == phase for workload in group.workloads)
        }
        assert named == set(SHAPES), phase


@pytest.mark.parametrize("card", CARDS)
def test_every_shape_runs_forward_and_trains(card):
    planned = plan.cells(load(Suite, "shapes"), CARDS[card])
    for phase in ("prefill", "train_step"):
        run = {cell.model.key for cell in planned if cell.workload.phase == phase and not cell.unavailable}
        assert run == set(SHAPES), phase
    # one layer of the 405B with gradients and averages is more than 80 GB: there it trains by adapters alone
    left_out = {cell.key for cell in planned if cell.unavailable}
    assert left_out == ({"llama_3_1_405b/pretrain_1k/triton"} if card == "H100" else set())
