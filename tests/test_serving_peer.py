"""transformers' continuous batching as a peer of phase serve: its tokens, a thread that dies, what it refuses."""

import dataclasses
import importlib.util
import math
import threading

import numpy as np
import pytest
import torch

from bench import config, plan
from bench.config import Group, Suite
from bench.measure.cell import run
from bench.peers.serve import found
from bench.peers.serve import transformers as peer
from bench.peers.train import found as training
from bench.peers.train.families import package
from bench.points.ladder import Ladder, row
from bench.serving.request import Request
from bench.traffic.records import CUT, OK, Planned
from bench.workload import Serving, Workload
from bench.workloads.serve import build
from tests.architectures import MODELS, shrunk

if importlib.util.find_spec("transformers") is None:
    pytest.skip("extra peers is not installed", allow_module_level=True)

CPU = torch.device("cpu")
MODEL = dataclasses.replace(shrunk(MODELS["llama_3_1_8b"], layers=2), vocab=211)
OPTIONS = {
    "traffic": "fixed_1k_1k",
    "length_scale": 1 / 64,
    "max_model_len": 400,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "concurrencies": (3,),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small take a thread; and a peer that leaves its own behind would keep pytest from ending."""
    before = torch.get_num_threads()
    yield torch.set_num_threads(1)
    torch.set_num_threads(before)
    assert not [t for t in threading.enumerate() if "_run_generation_loop" in t.name]


def workload(precision: str = "fp32", **changes) -> Workload:
    return Workload(phase="serve", precision=precision, serving=Serving(**OPTIONS | changes), source="a test")


def arguments(**changes) -> dict:
    asked = {"model": dataclasses.asdict(MODEL), "workload": dataclasses.asdict(workload(**changes))}
    return {**asked, "backend": "peer:transformers", "layers": 2}


def served(**changes):
    """The phase's subject, prepared; nobody watches a board."""
    subject = build(device="cpu", **arguments(**changes))
    subject.prepare()
    subject.watch = lambda run: (run(), (lambda start, end: None, {}))[1]
    return subject


def planned(*lengths: tuple[int, int]) -> list[Planned]:
    return [Planned(number, *each) for number, each in enumerate(lengths)]


# ---------------------------------------------------------------- what it computes


def test_a_cell_has_its_points_and_says_what_ran(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # which refuses to be timed; nothing here is a kernel of ours
    answer = run("bench.workloads.serve:build", arguments(), "cpu", 2.0)
    assert answer["status"] == "ok", answer.get("reason")
    (point,) = answer["tables"]["points"]
    assert point["point"] == "concurrency=3" and not answer["tables"]["steps"]
    assert point["output_tokens_ratio"] == 1 and 2.5 < point["in_flight_mean"] < 3.05
    assert answer["cached_input_tokens"] is None, "it does not tell"
    assert answer["ops_ran"].startswith("transformers=") and "attention=sdpa" in answer["ops_ran"]
    assert 0 <= answer["check_error"] <= answer["check_tolerance"]


def test_batched_tokens_are_those_it_generates_one_request_at_a_time():
    module = peer.module_of(MODEL, workload(), CPU, "sdpa")
    engine = peer.Engine(module, workload().serving)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, MODEL.vocab, n, dtype=np.int32) for n in (300, 40, 7, 90)]
    asked = [Request(number, prompt, 20 - 3 * number) for number, prompt in enumerate(prompts)]
    answers = peer._answers(engine, asked)
    module.generation_config.eos_token_id = None  # else its own configuration's token ends an answer
    settings = package().GenerationConfig(do_sample=False, pad_token_id=0)
    for one in asked:
        tokens = torch.tensor(one.prompt[None], dtype=torch.int64)
        alone = module.generate(tokens, generation_config=settings, max_new_tokens=one.max_tokens, use_cache=True)
        assert answers[one.number] == alone[0, len(one.prompt) :].tolist(), one.number


def test_a_closed_loop_serves_planned_lengths_and_a_deadline_cuts():
    subject = served()
    asked = planned((30, 5), (90, 12), (7, 1), (64, 9), (20, 20), (33, 4))
    course = subject.serve(asked, 1, concurrency=3, until_s=math.inf, limit_s=30)
    assert [(r.status, r.output_tokens, len(r.token_s)) for r in course.records] == [
        (OK, one.output_tokens, one.output_tokens) for one in asked
    ]
    # those that end in one step end in the gauge at its last token, when others have come in their place
    assert max(count for _, count in course.in_flight) in (3, 4) and course.max_num_seqs == 4
    for record in course.records:
        assert record.sent_s <= record.first_token_s == record.token_s[0] <= record.token_s[-1] == record.end_s
    cut = subject.serve(planned(*[(10, 380)] * 6), 1, concurrency=3, until_s=math.inf, limit_s=0.4)
    assert {r.status for r in cut.records} == {CUT} and len(cut.records) == 3
    again = subject.serve(planned((300, 3), (300, 2)), 1, concurrency=2, until_s=math.inf, limit_s=30)
    assert [(r.status, r.output_tokens) for r in again.records] == [(OK, 3), (OK, 2)]


@pytest.mark.parametrize("name", ["qwen3_8b", "gpt2_124m"])
def test_the_check_passes_what_is_right(name):
    model = shrunk(MODELS[name], layers=2, max_positions=1024)
    for precision in ("fp32", "bf16"):
        error, tolerance, shape = peer.check(model, workload(precision), CPU)
        assert 0 <= error <= tolerance / 3 and "prompts=640,520+9,37" in shape


def test_the_check_shares_two_pages_and_finds_one_read_from_the_wrong_place(monkeypatch):
    cache = importlib.import_module("transformers.generation.continuous_batching.cache")
    allocator = cache.FullAttentionCacheAllocator
    search, read, matched = cache.PagedAttentionCache.search_prefix_match, allocator.get_read_indices, []

    def searched(self, *prompt):
        matched.append(search(self, *prompt))
        return matched[-1]

    def wrong(self, *asked):
        places = read(self, *asked)
        return [places[0], *places[:-1]]

    monkeypatch.setattr(cache.PagedAttentionCache, "search_prefix_match", searched)
    assert peer.check(MODEL, workload(), CPU)[0] < 1e-6
    assert matched == [0, 512, 0]
    monkeypatch.setattr(allocator, "get_read_indices", wrong)
    error, tolerance, _ = peer.check(MODEL, workload("bf16"), CPU)
    assert error > 3 * tolerance


# ---------------------------------------------------------------- what goes wrong


def test_a_thread_that_dies_fails_its_requests_and_the_next_load_has_another(monkeypatch):
    subject = served()
    runner, steps = subject.engine.manager.batch_processor.model_runner, []
    compute = runner.compute_batch

    def dies(*inputs):
        steps.append(None)
        if len(steps) > 5:
            raise MemoryError("CUDA out of memory.\nTried to allocate")
        compute(*inputs)

    monkeypatch.setattr(runner, "compute_batch", dies)
    ladder = Ladder(subject.options, subject.source, subject, 4.0)
    answer = row(ladder.climb(), 4.0)
    said = "no point has a steady window in 4 s; 3 requests: failed: transformers: MemoryError: CUDA out of memory."
    assert (answer["status"], answer["reason"]) == ("error", said)
    records = ladder.served[0].course.records
    assert len(records) == 3 and all(r.token_s and r.end_s for r in records), "sent, heard of, and over"
    monkeypatch.undo()
    course = subject.serve(planned((8, 4)), 1, concurrency=1, until_s=math.inf, limit_s=30)
    assert [r.status for r in course.records] == [OK]


def test_a_thread_that_is_not_there_is_noticed(monkeypatch):
    subject = served()
    monkeypatch.setattr(subject.engine.manager, "start", lambda: None)
    course = subject.serve(planned((8, 4), (8, 4)), 1, concurrency=1, until_s=math.inf, limit_s=30)
    assert [(r.status, r.reason) for r in course.records] == [("failed", "transformers: its thread has ended")]
    assert course.end_s < 5


# ---------------------------------------------------------------- the registry, and what it refuses


def asked(model, changed: Workload, backend: str = "peer:transformers", of=found) -> str | None:
    return of.why_not(backend, dataclasses.asdict(model), dataclasses.asdict(changed), "cpu")


def test_a_serving_cell_asks_the_serving_peers_and_a_training_cell_the_others(tmp_path, monkeypatch):
    assert config.serving_peers() == ("peer:transformers",)
    (tmp_path / "mine.py").write_text(
        "def build(model, workload, device, layers):\n    ...\n\n\ndef build(x):\n    ...\n"
    )
    group = Group(models=("tiny_15m",), workloads=("serve_1k_1k_tiny",), backends=("peer:transformers",))
    train = dataclasses.replace(group, workloads=("pretrain_short_tiny",))
    suite = Suite(key="s", device="cpu", budget_s=1, about="", groups=(group, train))
    assert [cell.possible("cpu")[0] for cell in plan.cells(suite, 8e9)] == [
        "bench.peers.serve.found:why_not",
        "bench.peers.train.found:why_not",
    ]
    assert asked(MODEL, workload(), "peer:liger") == "no serving peer 'peer:liger'; known: peer:transformers"
    monkeypatch.setattr(config, "SERVING_PEERS", tmp_path)
    Group(workloads=("a",), backends=("peer:mine", "peer:liger"))
    step = Workload(phase="train_step", precision="fp32", input_tokens=8, source="a test")
    assert asked(MODEL, step, "peer:mine", training).startswith("no training peer 'peer:mine'; known: peer:liger")
    with pytest.raises(ValueError, match="no serving peer 'peer:transformers'; known: peer:mine"):
        found.peer("peer:transformers")


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ("llama_3_1_8b", {}, None),
        ("llama_3_1_8b", {"precision": "fp8"}, "no fp8 in transformers' continuous batching"),
        ("qwen3_30b_a3b", {}, "its routers take no drawn routing"),
        ("llama_3_1_8b", {"quantization": "int4"}, "int4 weights belong to another package"),
        ("llama_3_1_8b", {"kv_cache_dtype": "fp8"}, "its cache is as wide as its weights"),
        ("llama_3_1_8b", {"temperature": 0.7}, "no temperature"),
    ],
)
def test_what_it_cannot_do_is_one_line(model, changes, said):
    reason = asked(MODELS[model], workload(**changes))
    assert reason is None if said is None else said in reason


def test_what_is_missing_or_broken_is_a_reason(monkeypatch):
    odd = dataclasses.replace(MODEL, attention_sinks=True)
    assert asked(odd, workload()).startswith("transformers has no architecture with exactly ")
    step = Workload(phase="train_step", precision="fp32", input_tokens=8, source="a test")
    assert asked(MODEL, step) == "a serving peer serves, no train_step"
    monkeypatch.setattr(peer, "classes", lambda family: (_ for _ in ()).throw(ImportError("x\n" + "y" * 400)))
    assert asked(MODEL, workload()) == "does not import: ImportError: x"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "psutil" else object())
    assert asked(MODEL, workload()).endswith("needs psutil, which is not installed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert asked(MODEL, workload()) == "transformers is not installed"
