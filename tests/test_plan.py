"""What is planned for several GPUs, for a CPU without bf16 and for other people's models."""

import dataclasses
import json

import pytest

from bench import config, journal, plan, run
from bench.architecture import Model
from bench.config import Group, Suite
from bench.model import memory
from bench.workload import Workload
from tests.test_run import Recorded, measure


def planned(models, workloads, backends=("reference",), **options):
    group = Group(models=models, workloads=workloads, backends=backends)
    return plan.cells(Suite(key="s", device="cuda", budget_s=1, about="", groups=(group,)), 80e9, **options)


@pytest.mark.parametrize(
    ("model", "workload", "changes", "ranks", "reason"),
    [
        ("llama_3_2_1b", "pretrain_short", {}, 8, None),
        ("llama_3_2_1b", "pretrain_short", {"tensor_parallel": 2}, 8, None),
        ("llama_3_2_1b", "pretrain_short", {"tensor_parallel": 2}, 1, "tensor_parallel = 2 needs 2 GPUs"),
        ("llama_3_2_1b", "pretrain_short", {"tensor_parallel": 3}, 8, "tensor_parallel = 3 does not divide 8 GPUs"),
        (
            "qwen3_8b",
            "pretrain_short",
            {"tensor_parallel": 2},
            8,
            "tensor_parallel needs a dense model without QK-norm",
        ),
        ("gpt2_124m", "pretrain_1k", {"tensor_parallel": 2}, 8, "tensor_parallel needs a dense model without QK-norm"),
        ("gpt_oss_20b", "pretrain_moe_share", {}, 8, "a share of the experts stands for one GPU of many"),
        ("llama_3_2_1b", "rl_rollout", {}, 2, "phase rl_step runs on one GPU"),
        ("llama_3_2_1b", "decode_b1_1k", {}, 2, "phase decode runs on one GPU"),
    ],
)
def test_what_several_gpus_can_run_together(monkeypatch, model, workload, changes, ranks, reason):
    changed = dataclasses.replace(config.load(Workload, workload), **changes)
    real = plan._named
    monkeypatch.setattr(
        plan, "_named", lambda kind, key, where: changed if kind is Workload else real(kind, key, where)
    )
    found = planned((model,), (workload,), ranks=ranks)
    if reason:
        assert [cell.unavailable for cell in found] and reason in found[0].unavailable
    else:
        assert {(cell.n_gpus, cell.unavailable) for cell in found} == {(ranks, None)}
        assert found[0].columns()["tensor_parallel"] == changed.tensor_parallel


def test_sharded_training_fits_where_one_gpu_needs_a_slice():
    alone = planned(("llama_3_1_8b",), ("pretrain_dense_8b",))
    assert all(cell.is_part for cell in alone)
    (whole,) = planned(("llama_3_1_8b",), ("pretrain_dense_8b",), ranks=8)
    assert not whole.is_part and whole.n_gpus == 8


def test_a_cpu_without_bf16_trains_in_fp32_and_its_rows_say_so():
    workloads = ("pretrain_short_tiny", "pretrain_dense_fp8_tiny", "rl_rollout_tiny")
    has, lacks = (planned(("tiny_15m",), workloads, bf16=bf16) for bf16 in (True, False))
    assert [cell.columns()["precision"] for cell in has] == ["bf16", "fp8", "bf16"]
    assert [cell.columns()["precision"] for cell in lacks] == ["fp32", "fp8", "fp32"]
    assert [cell.workload.working_precision for cell in lacks] == ["fp32"] * 3


def test_a_suite_without_cuda_hands_over_to_its_twin():
    class Machine(Recorded):
        def call(self, target, arguments, limit_s):
            return self.answers[target]

    cuda = "bench.measure.device:has_cuda"
    assert run.suite_for("training", Machine({cuda: False})).key == "training_tiny"
    assert run.suite_for("training", Machine({cuda: True})).key == "training"
    assert run.suite_for("auto", Machine({cuda: False})).key == "smoke"


def test_a_peer_is_asked_whether_it_can_run_this_very_cell(tmp_path):
    group = Group(models=("tiny_15m",), workloads=("pretrain_short_tiny",), backends=("peer:transformers",))
    suite = Suite(key="smoke", device="cpu", budget_s=100, about="", groups=(group,))

    class Machine(Recorded):
        def call(self, target, arguments, limit_s):
            if target == "bench.peers.train.found:why_not":
                assert arguments["model"]["key"] == "tiny_15m" and arguments["workload"]["key"] == "pretrain_short_tiny"
                return "transformers is not installed"
            return super().call(target, arguments, limit_s)

    outcome, _ = measure(suite, tmp_path, Machine())
    (row,) = outcome.measured
    assert (row["status"], row["reason"]) == ("unavailable", "transformers is not installed")


def test_a_run_on_two_gpus_is_another_run_than_on_one(tmp_path):
    suite = dataclasses.replace(config.load(Suite, "smoke"), groups=config.load(Suite, "smoke").groups[:1])
    outcome, _ = measure(suite, tmp_path, Recorded())
    facts = json.loads((outcome.folder / "environment.json").read_text())
    assert journal.find(tmp_path / "runs", facts) == outcome.folder
    assert journal.find(tmp_path / "runs", facts | {"n_gpus": 2}) is None


def test_slices_of_one_model_have_the_same_depths_with_every_backend():
    ours, torchs = (planned(("llama_3_1_8b",), ("pretrain_dense_8b",), (name,)) for name in ("triton", "compile"))
    deeper = [cell.layers for cell in ours]
    assert deeper != [cell.layers for cell in torchs]  # alone, each as deep as it can
    both = planned(("llama_3_1_8b",), ("pretrain_dense_8b",), ("triton", "compile"))
    assert [cell.layers for cell in both if cell.backend == "triton"] == [cell.layers for cell in torchs]
    assert [cell.layers for cell in both if cell.backend == "compile"] == [cell.layers for cell in torchs]


def test_what_fits_whole_stays_whole_beside_a_backend_that_needs_slices():
    model, workload = config.load(Model, "llama_3_1_8b"), config.load(Workload, "pretrain_dense_8b")
    ours, torchs = (memory.needed_bytes(model, workload, backend=name) for name in ("triton", "compile"))
    between = (ours + torchs) / 2 / memory.HEADROOM
    found = plan._depths(model, workload, {"triton", "compile"}, between, 1)
    assert found["triton"] == [32] and found["compile"][-1] < 32


def test_a_suite_can_share_matrices_over_ranks():
    group = Group(models=("llama_3_2_1b",), workloads=("pretrain_short", "decode_b1_1k"), backends=("reference",))
    suite = Suite(key="s", device="cuda", budget_s=1, about="", groups=(group,), tensor_parallel=2)
    train, decode = plan.cells(suite, 80e9, 4)
    assert train.key.endswith("/tensor=2") and train.columns()["tensor_parallel"] == 2 and not train.unavailable
    assert decode.workload.tensor_parallel == 1


def test_skew_and_fp8_are_measured_at_the_depths_of_what_they_are_held_against():
    found = plan.cells(config.load(Suite, "training"), 85e9)
    depths = {}
    for cell in found:
        if cell.model and cell.backend == "triton":
            depths.setdefault((cell.model.key, cell.workload.key), []).append(cell.layers)
    for model in ("gpt_oss_20b", "qwen3_30b_a3b"):
        assert depths[model, "pretrain_moe_uniform"] == depths[model, "pretrain_moe_zipf"]
    assert depths["llama_3_1_8b", "pretrain_dense_8b"] == depths["llama_3_1_8b", "pretrain_dense_8b_fp8"]
    assert sum(cell.estimate_s for cell in found) < config.load(Suite, "training").budget_s
