"""Each phase does the work it counts: steps run, training trains, decoding advances and wraps."""

import dataclasses

import pytest
import torch

from bench import results
from bench.architecture import Model
from bench.config import load, load_all
from bench.kernels.op import discover
from bench.measure import cell
from bench.measure.cell import resolve
from bench.model import accounting
from bench.workload import Workload
from bench.workloads.train_step import TrainStep

MODEL = dataclasses.replace(
    load(Model, "tiny_15m"), layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=97
)


def make(phase, layers=2, backend="reference", **sizes):
    workload = Workload(key="w", phase=phase, source="test", **{"precision": "fp32", **sizes})
    build = resolve(f"bench.workloads.{phase}:build")
    if phase in ("kernel", "ceiling"):
        return build(device="cpu", workload=dataclasses.asdict(workload), backend="reference")
    model, request = dataclasses.asdict(MODEL), dataclasses.asdict(workload)
    return build(device="cpu", model=model, workload=request, backend=backend, layers=layers)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_steps_lower_the_loss_of_the_batch_they_repeat(precision):
    job = make("train_step", batch_size=2, input_tokens=16, gradient_accumulation=2, precision=precision)
    job.prepare()

    def loss():
        with torch.no_grad():
            return float(sum(job.loss(b[:, :-1], b[:, 1:]) for b in job.data))

    before = loss()
    for _ in range(20):
        job.step()
    assert loss() < before - 0.05
    assert job.tokens_per_step == 64


def test_the_bf16_copy_is_its_fp32_master_rounded():
    job = make("train_step", batch_size=1, input_tokens=8, precision="bf16")
    job.prepare()
    start = [master.clone() for master in job.optimiser.masters]
    for _ in range(3):
        job.step()
    for weight, master, old in zip(job.optimiser.copies, job.optimiser.masters, start, strict=True):
        assert master.dtype is torch.float32 and torch.equal(weight, master.bfloat16())
        assert not torch.equal(master, old)


def test_our_optimiser_moves_the_weights_as_torchs_does():
    """Backend triton's whole step, interpreted: forward, backward, AdamW, against torch's."""
    ours, torchs = (
        make("train_step", batch_size=1, input_tokens=8, gradient_accumulation=2, backend=backend)
        for backend in ("triton", "reference")
    )
    for job in (ours, torchs):
        job.prepare()
        for _ in range(3):
            job.step()
    for a, b in zip(ours.optimiser.copies, torchs.optimiser.copies, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_accumulating_micro_batches_is_one_step_over_all_of_them():
    parts = make("train_step", batch_size=1, input_tokens=8, gradient_accumulation=4)
    whole = make("train_step", batch_size=4, input_tokens=8)
    for job in (parts, whole):
        job.prepare()
    whole.data = parts.data.flatten(0, 1)[None]
    parts.step()
    whole.step()
    for a, b in zip(parts.optimiser.copies, whole.optimiser.copies, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_weight_without_a_gradient_is_an_error_not_a_skipped_update():
    job = make("train_step", batch_size=1, input_tokens=8, precision="bf16")
    job.prepare()
    job.optimiser.weights.append(torch.zeros(3, requires_grad=True))
    with pytest.raises(RuntimeError, match="got no gradient"):
        job.step()


def test_prefill_fills_the_cache_it_was_given():
    job = make("prefill", batch_size=3, input_tokens=11)
    job.prepare()
    job.step()
    assert job.kv.lengths.tolist() == [11] * 3 and job.kv.keys[1].abs().sum() > 0
    assert (job.tokens_per_step, job.token_kind) == (33, "input")


def test_decode_holds_a_steady_batch_of_spread_contexts():
    job = make("decode", batch_size=4, input_tokens=5, output_tokens=8)
    job.prepare()
    assert job.filled == [6, 8, 10, 12]
    before = [keys.clone() for keys in job.kv.keys]
    for _ in range(3):
        job.step()
        assert job.kv.lengths.tolist() == [7, 9, 11, 13]  # appended one; set back before the next step
    for old, new in zip(before, job.kv.keys, strict=True):
        changed = (old != new).flatten(2).any(-1)
        assert changed.nonzero().tolist() == [[b, n] for b, n in enumerate(job.filled)]


def test_decode_counts_the_contexts_it_runs_at():
    job = make("decode", batch_size=4, input_tokens=5, output_tokens=8)
    each = [accounting.decode(job.slice, 1, filled + 1, "fp32").flops for filled in job.filled]
    assert job.flops == pytest.approx(sum(each))


@pytest.mark.parametrize("phase", ["train_step", "prefill", "decode"])
def test_each_phase_passes_its_own_check_and_counts_its_slice(phase):
    job = make(phase, batch_size=2, input_tokens=9, output_tokens=2, layers=1)
    error, tolerance, shape = job.check()
    assert error < tolerance and "layers=2 batch=2 tokens=9" in shape
    whole = make(phase, batch_size=2, input_tokens=9, output_tokens=2)
    assert 0 < job.flops < whole.flops and 0 < job.bytes < whole.bytes


@pytest.mark.parametrize(
    ("op", "shape", "flops", "moved"),
    [("copy", "4096", 0, 8192), ("read", "4096", 0, 4096), ("matmul", "32x16x8", 8192, 4 * (256 + 128 + 512))],
)
def test_ceilings_do_what_they_count(op, shape, flops, moved):
    job = make("ceiling", op=op, shape=shape)
    error, tolerance, _ = job.check()
    assert error <= tolerance and (job.flops, job.bytes) == (flops, moved)
    job.step()


def test_a_ceiling_that_computes_something_else_fails_its_check(monkeypatch):
    job = make("ceiling", op="matmul", shape="32x16x8")
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out.copy_(a @ b * 1.01))
    error, tolerance, _ = job.check()
    assert error > tolerance


@pytest.mark.parametrize("op", sorted(discover()))
def test_a_kernel_cell_runs_any_op_and_rotates_its_inputs(op):
    job = make("kernel", op=op, shape=next(iter(discover()[op].test_shapes)))
    error, tolerance, _ = job.check()
    assert error <= tolerance
    job.prepare()
    assert len(job.sets) > 1 and job.turn == 0
    job.step()
    assert job.turn == 1


def test_an_op_or_shape_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no op attention with a shape huge"):
        make("kernel", op="attention", shape="huge")
    with pytest.raises(ValueError, match="op must be copy, read or matmul"):
        make("ceiling", op="sing", shape="3")


def test_every_shipped_kernel_and_ceiling_workload_builds():
    for workload in load_all(Workload).values():
        if workload.phase in ("kernel", "ceiling"):
            build = resolve(f"bench.workloads.{workload.phase}:build")
            assert build(device="cpu", workload=dataclasses.asdict(workload), backend="reference").bytes > 0


# ---------------------------------------------------------------- what a cell's row says of them


def row_of(phase, model=MODEL, backend="reference", **sizes):
    workload = Workload(key="w", phase=phase, source="test", **{"precision": "fp32", **sizes})
    arguments = {"model": dataclasses.asdict(model), "workload": dataclasses.asdict(workload), "backend": backend}
    return cell.run(f"bench.workloads.{phase}:build", arguments | {"layers": model.layers}, "cpu", 0.3)


@pytest.fixture
def timed(monkeypatch):
    """As in a worker: nothing interpreted."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_an_rl_steps_parts_are_in_its_row_and_make_up_the_step(timed):
    sizes = {"prompts": 2, "rollouts": 2, "input_tokens": 8, "output_tokens": 12, "answer_tokens_quantiles": (6, 12)}
    row = row_of("rl_step", **sizes)
    assert row["status"] == "ok", row
    parts = row["rollout_s_median"] + row["scoring_s_median"]
    assert 0 < row["scoring_s_median"] < row["rollout_s_median"] < parts < 1.5 * row["step_s_median"]
    assert "update_s_median" not in row and set(row) - {"step_s"} <= set(results.CELLS)


def test_drawn_routings_imbalance_is_in_the_row_of_a_mixture_and_of_nothing_else(timed):
    sizes = {"batch_size": 1, "input_tokens": 16, "routing_zipf": 1.0}
    moe = dataclasses.replace(load(Model, "tiny_moe"), layers=2, vocab=97)
    mixture, dense = (row_of("train_step", model, **sizes) for model in (moe, MODEL))
    assert mixture["status"] == dense["status"] == "ok", (mixture, dense)
    assert mixture["expert_load"] > 1.5 and "expert_load" not in dense


@pytest.mark.parametrize("packed", [{}, {"document_tokens_median": 7, "document_tokens_sigma": 0.5}])
def test_a_peer_takes_the_same_step_on_its_own_model(timed, packed):
    pytest.importorskip("transformers", reason="extra peers is not installed")
    sizes = {"batch_size": 2, "input_tokens": 24, "gradient_accumulation": 2, **packed}
    row = row_of("train_step", backend="peer:transformers", **sizes)
    assert row["status"] == "ok", row
    assert row["ops_ran"].startswith("transformers=") and row["tokens_per_step"] == 96
    ours, theirs = (make("train_step", backend=backend, **sizes) for backend in ("reference", "peer:transformers"))
    assert ours.flops == theirs.flops
    theirs.prepare()
    losses = []
    for _ in range(12):
        theirs.step()
        losses.append(float(theirs.last_loss))
    assert losses[-1] < losses[0] - 0.05


def test_each_data_rank_has_sequences_and_documents_of_its_own():
    packed = {"document_tokens_median": 7, "document_tokens_sigma": 0.5}
    sizes = {"batch_size": 2, "input_tokens": 24, "gradient_accumulation": 2, "tensor_parallel": 2, **packed}
    workload = Workload(key="w", phase="train_step", precision="fp32", source="test", **sizes)
    request = {"model": dataclasses.asdict(MODEL), "workload": dataclasses.asdict(workload), "layers": 2}
    ranks = [
        TrainStep(device="cpu", backend="reference", world={"rank": rank, "world_size": 4}, **request)
        for rank in range(4)
    ]
    assert ranks[0].lengths == ranks[1].lengths != ranks[2].lengths == ranks[3].lengths  # neighbours share a replica
    assert ranks[0].seed == ranks[1].seed != ranks[2].seed
    every = ranks[0].lengths + ranks[2].lengths
    assert {(job.tokens_per_step, job.flops) for job in ranks} == {(2 * 4 * 24, ranks[0].flops)}
    cost = accounting.train_step(MODEL, 2, 24, 2, "fp32", documents=every, replicas=2)
    assert ranks[0].flops == cost.flops
