"""One table from run folders and published figures; slices only through a fit over depths."""

from __future__ import annotations

import datetime
import json
import shutil

import pytest

from bench import config, results
from bench.price import cost
from bench.price import throughput as t

A, B, LAYERS, TOKENS = 0.020, 0.005, 32, 16_384  # step time = A + B * layers, s


def cell(**changes):
    fields = {
        "run": "r1",
        "cell": "llama_3_1_8b/train_2k/compile",
        "suite": "quick",
        "phase": "train_step",
        "model": "llama_3_1_8b",
        "workload": "train_2k",
        "backend": "compile",
        "precision": "bf16",
        "device": "cuda",
        "gpu": "h100_sxm_80gb",
        "n_gpus": 1,
        "batch_size": 8,
        "input_tokens": 2048,
        "layers": LAYERS,
        "layers_measured": LAYERS,
        "status": "ok",
        "token_kind": "trained",
        "tokens_per_step": TOKENS,
        "step_s_median": 0.17,
        "step_s_low": 0.169,
        "step_s_high": 0.171,
        "step_s_last_third": 0.18,
        "system_tokens_per_s": 91_000.0,
        "system_tokens_per_s_low": 90_000.0,
        "system_tokens_per_s_high": 92_000.0,
    }
    return fields | changes


def slice_of(depth, noise=0.0, **changes):
    step = A + B * depth + noise
    return cell(
        cell=f"llama_3_1_8b/train_2k/compile/{depth}",
        layers_measured=depth,
        step_s_median=step * 0.9,  # burst: must not be what is fitted
        step_s_last_third=step,
        step_s_low=step * 0.89,
        step_s_high=step * 0.91,
        system_tokens_per_s=None,
        system_tokens_per_s_low=None,
        system_tokens_per_s_high=None,
        **changes,
    )


@pytest.fixture
def run(tmp_path):
    """Writes a run folder as the measuring half does, and gives its measured rows and the notes."""

    def write(*cells, environment=None):
        folder = tmp_path / "20261122T000000_quick_h100_abcdef01"
        folder.mkdir(exist_ok=True)
        (folder / "cells.csv").unlink(missing_ok=True)
        results.append(folder / "cells.csv", results.CELLS, cells)
        (folder / "environment.json").write_text(json.dumps(environment or {}))
        notes: list[str] = []
        rows = [row for row in t.throughput([folder], notes) if row["basis"] == "measured"]
        return rows, notes

    return write


def test_a_measured_cell_is_a_row(run):
    rows, notes = run(cell(flags="unsteady"))
    (row,) = rows
    assert row["row"] == "20261122T000000_quick_h100_abcdef01/llama_3_1_8b/train_2k/compile"
    assert (row["system_tokens_per_s"], row["low"], row["high"]) == (91_000.0, 90_000.0, 92_000.0)
    assert (row["gpu"], row["n_gpus"], row["token_kind"], row["flags"]) == ("h100_sxm_80gb", 1, "trained", "unsteady")
    assert row["layers_measured"] is None and row["vcpus"] is None and row["source"] is None
    assert set(row) == set(t.COLUMNS)
    assert not notes


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "incorrect"},
        {"status": "timeout"},
        {"phase": "kernel"},
        {"phase": "ceiling"},
        {"system_tokens_per_s": None},
    ],
)
def test_what_is_no_throughput_is_no_row(run, changes):
    assert run(cell(**changes)) == ([], [])


def test_cpu_rows_carry_the_vcpus_of_the_host(run):
    cpu = {"device": "cpu", "gpu": "cpu"}
    rows, _ = run(cell(**cpu), cell(cell="other"), environment={"cpu_count": 12})
    assert [row["vcpus"] for row in rows] == [12, None]


def test_two_depths_recover_the_line(run):
    rows, notes = run(slice_of(8), slice_of(16))
    (row,) = rows
    assert row["system_tokens_per_s"] == pytest.approx(TOKENS / (A + B * LAYERS), rel=1e-4)
    assert row["low"] < row["system_tokens_per_s"] < row["high"]
    assert row["layers_measured"] == "8+16 of 32"
    assert row["flags"] == "two_depth_fit"
    assert row["row"].endswith("/llama_3_1_8b/train_2k/compile/8+16")
    assert not notes


def test_three_depths_are_fitted_by_least_squares(run):
    # Errors that sum to zero and do not tilt the line leave a + b * L where it was: +d, -2d, +d at 8, 16, 24.
    rows, _ = run(slice_of(8, 1e-3), slice_of(16, -2e-3), slice_of(24, 1e-3))
    (row,) = rows
    assert row["system_tokens_per_s"] == pytest.approx(TOKENS / (A + B * LAYERS), rel=1e-4)
    assert row["layers_measured"] == "8+16+24 of 32"


def test_the_fit_s_interval_follows_the_rows_intervals():
    def fitted(width):
        rows = [
            {"layers_measured": n, "step_s_last_third": A + B * n, "step_s_low": 0.1, "step_s_high": 0.1 + width}
            for n in (8, 16)
        ]
        return t.fit(rows, LAYERS)

    low, value, high = fitted(0.0)
    assert (low, value, high) == pytest.approx((A + B * LAYERS,) * 3)
    low, value, high = fitted(0.002)
    # value = 3 y16 - 2 y8, so its standard deviation is sqrt(13) of a row's, and a row's 95% interval is 0.002 wide.
    assert high - low == pytest.approx(13**0.5 * 0.002, rel=0.05)
    wide = fitted(0.02)
    assert wide[2] - wide[0] > 5 * (high - low)


def test_one_depth_is_refused_with_a_note(run):
    rows, notes = run(slice_of(8), cell(cell="whole", workload="other"))
    assert [row["workload"] for row in rows] == ["other"]
    name = "20261122T000000_quick_h100_abcdef01/llama_3_1_8b/train_2k/compile"
    assert notes == [f"{name}: left out: 8 of 32 layers measured, a fit needs two depths"]


def test_a_failed_depth_is_no_second_depth(run):
    rows, notes = run(slice_of(8), slice_of(16, status="oom"))
    assert not rows and len(notes) == 1


@pytest.mark.parametrize("change", [{"precision": "fp8"}, {"batch_size": 4}, {"backend": "triton"}, {"gpu": None}])
def test_depths_of_different_cells_never_make_a_line(run, change):
    rows, notes = run(slice_of(8), slice_of(16, **change))
    assert not rows and len(notes) == 2


def test_slices_stand_back_where_the_whole_model_was_measured(run):
    rows, notes = run(slice_of(8), slice_of(16), cell())
    (row,) = rows
    assert row["system_tokens_per_s"] == 91_000.0 and row["layers_measured"] is None
    assert not notes


def test_a_share_of_the_experts_is_no_row_at_any_depth(run):
    rows, notes = run(cell(cell="whole", expert_parallel=16), slice_of(8, expert_parallel=16), slice_of(16))
    assert not rows
    shares = [note for note in notes if note.endswith("left out: a share of the experts, no exchange between GPUs")]
    assert len(shares) == 2
    assert [row["row"].rsplit("/", 1)[1] for row in run(cell(expert_parallel=1))[0]] == ["compile"]


def test_rows_say_what_was_trained(run):
    """Adapters and RL steps are rows, to be priced; what keeps them out of r stands in the row."""
    lora = {"workload": "finetune_lora", "lora_rank": 16}
    rows, notes = run(
        cell(cell="lora", **lora),
        cell(cell="rl", phase="rl_step", workload="rl_rollout"),
        cell(cell="zipf", workload="pretrain_moe_zipf", routing_zipf=0.5),
        cell(cell="even", workload="pretrain_moe_uniform", routing_zipf=0.0),
        *(slice_of(n, model="qwen3_8b", **lora) for n in (8, 16)),
    )
    found = {row["row"].partition("/")[2]: row for row in rows}
    assert not notes and len(rows) == 5
    assert found["lora"]["lora_rank"] == 16 and found["rl"]["lora_rank"] is None
    assert found["qwen3_8b/finetune_lora/compile/8+16"]["lora_rank"] == 16
    assert found["rl"]["phase"] == "rl_step" and found["rl"]["token_kind"] == "trained"
    assert (found["zipf"]["routing_zipf"], found["even"]["routing_zipf"]) == (0.5, 0.0)


def test_adapters_and_rl_steps_are_priced_with_the_availability_of_training(run):
    rows, _ = run(
        cell(),
        cell(cell="lora", workload="finetune_lora", lora_rank=16),
        cell(cell="rl", phase="rl_step", workload="rl_rollout"),
        cell(cell="decode", phase="decode", token_kind="output"),
    )
    made = cost.costs(rows, datetime.date(2026, 11, 22))
    shares = {row["x_workload" if row["x_phase"] != "decode" else "x_phase"]: row["x_utilisation"] for row in made}
    book = cost.Utilisation.load()
    assert shares == {
        **dict.fromkeys(("train_2k", "finetune_lora", "rl_rollout"), book.training.value),
        "decode": book.inference.value,
    }
    assert book.training.value != book.inference.value
    assert {row["x_token_kind"] for row in made if row["x_phase"] == "rl_step"} == {"trained"}


def test_a_line_that_gives_no_time_is_refused(run):
    falling = slice_of(16) | {"step_s_last_third": 0.001, "step_s_low": 0.001, "step_s_high": 0.001}
    rows, notes = run(slice_of(8), falling)
    assert not rows
    assert notes[0].endswith("left out: 8+16 of 32 layers do not give a positive step time")


def test_published_rows_are_imported():
    rows = {row["row"]: row for row in t.published()}
    day = rows["published:deepseek_day_output"]
    assert day["basis"] == "imported" and day["flags"] == "idle_included"
    saturated = rows["published:torchtitan_8b_h100x8_bf16"]
    assert saturated["flags"] is None and saturated["source"].startswith("https://")
    assert saturated["backend"] == "torchtitan" and saturated["device"] == "cuda"
    assert all(set(row) == set(t.COLUMNS) for row in rows.values())


def test_a_configs_folder_without_published_figures_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    assert t.published() == []


def test_a_malformed_run_is_one_line(tmp_path):
    (tmp_path / "cells.csv").write_text("run,colour\nr,red\n")
    with pytest.raises(results.ResultsError, match="line 1: unknown column 'colour'"):
        t.throughput([tmp_path])
    (tmp_path / "cells.csv").unlink()
    results.append(tmp_path / "cells.csv", results.CELLS, [cell()])
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(results.ResultsError, match=r"environment\.json: cannot be read as JSON"):
        t.throughput([tmp_path])


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ({"flops_per_step": 0.99 * 989.4e12 * 0.18}, True),
        ({"flops_per_step": 1.01 * 989.4e12 * 0.18}, False),
        ({"bytes_per_step": 0.99 * 3.35e12 * 0.18}, True),
        ({"bytes_per_step": 1.01 * 3.35e12 * 0.18}, False),
    ],
)
def test_faster_than_the_data_sheet_is_void(run, counts, kept):
    rows, notes = run(cell(**counts))
    assert bool(rows) is kept
    assert kept or (len(notes) == 1 and "void, left out" in notes[0] and "the data sheet of h100_sxm_80gb" in notes[0])


PUBLISHED = {
    "id": "a",
    "phase": "serve",
    "model": "llama_3_1_8b",
    "gpu": "h100_sxm_80gb",
    "n_gpus": 1,
    "precision": "fp8",
    "token_kind": "output",
    "system_tokens_per_s": 10.0,
    "workload": "w",
    "software": "s",
    "as_of": "2026",
    "source": "https://example.com",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system_tokens_per_s": -5.0}, "system_tokens_per_s: expected a positive number, got -5.0"),
        ({"system_tokens_per_s": 0.0}, "system_tokens_per_s: expected a positive number"),
        ({"source": None}, "source: blank; every published row has one"),
        ({"gpu": "h100_foo"}, "gpu: expected one of a100_pcie_80gb"),
        ({"model": "llama_9"}, "model: expected one of deepseek_v3"),
        ({"phase": "trainstep"}, "phase: expected one of train_step"),
        ({"phase": "rl_step"}, "phase: expected one of train_step, prefill"),
        ({"token_kind": "foo"}, "token_kind: expected one of trained"),
        ({}, "id: a stands twice"),
    ],
)
def test_a_published_row_that_cannot_be_is_one_line(tmp_path, monkeypatch, change, message):
    shutil.copytree(config.CONFIGS, tmp_path / "configs", ignore=shutil.ignore_patterns("published.csv"))
    monkeypatch.setattr(config, "CONFIGS", tmp_path / "configs")
    results.append(tmp_path / "configs/published.csv", results.PUBLISHED, [PUBLISHED, PUBLISHED | change])
    with pytest.raises(results.ResultsError) as caught:
        t.published()
    assert f"published.csv: line 3: {message}" in str(caught.value)
