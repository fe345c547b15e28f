"""The published points behind the model, how wrong it is on them, and on results that stand in no config."""

from __future__ import annotations

import statistics

import pytest

from bench import config, results
from bench.modelled import accuracy, points
from bench.modelled.accuracy import GOAL, Summary
from bench.modelled.roofline import peak
from bench.modelled.work import Cell
from bench.modelled_results import ACCURACY, POINTS
from bench.price.throughput import published, throughput


@pytest.fixture(scope="module")
def model() -> accuracy.Modelled:
    return accuracy.build(throughput([]))


POINTS_FILE = config.CONFIGS / "validation" / "points.csv"
ROWS = results.read_rows(POINTS_FILE, POINTS)


# ---------------------------------------------------------------- the table


def test_every_figure_has_a_public_source_and_says_what_ran():
    assert len(ROWS) >= 100
    for row in ROWS:
        assert row["source"].startswith("https://") and row["workload"] and row["software"] and row["as_of"], row["id"]
        assert row["note"] or row["use"] == "fit", row["id"]
        assert (row["token_kind"] == "trained") == (row["phase"] == "train_step"), row["id"]
        assert row["tier"] in ("node", "cluster") or row["use"] == "check", row["id"]
        if row["phase"] == "serve":
            assert row["input_tokens"] and row["output_tokens"], row["id"]


def test_nodes_are_nodes_and_all_named_gpus_have_points_of_both_sides():
    node = [row for row in ROWS if row["tier"] == "node"]
    assert all(row["n_gpus"] <= 8 for row in node if row["phase"] == "train_step")
    for phase, wanted in (
        ("train_step", {"a100_sxm_80gb", "h100_sxm_80gb", "b200_sxm_180gb", "b300_sxm_288gb", "gb300_nvl72_288gb"}),
        ("serve", {"a100_sxm_80gb", "l40s_pcie_48gb", "h100_sxm_80gb", "h200_sxm_141gb", "b200_sxm_180gb"}),
    ):
        assert wanted <= {row["gpu"] for row in node if row["phase"] == phase}, phase


def test_no_point_repeats_a_row_that_is_fitted_already():
    def key(row):
        names = ("phase", "model", "gpu", "n_gpus", "precision", "system_tokens_per_s")
        return tuple(row[name] for name in names)

    fitting = {key(row) for row in published() if points.refusal(row) is None}
    assert fitting and not [row["id"] for row in ROWS if key(row) in fitting]


def test_no_point_beats_the_machine():
    """Decoded, trained and prefilled tokens by their matmuls alone, against the data sheet."""
    for point in points.validation():
        active = point.model.active_matmul_params - point.model.vocab * point.model.hidden
        passes = 4 if point.cell.lora_rank else 6 if point.cell.phase == "train_step" else 2
        flops = passes * active * point.tokens_per_s / point.cell.n_gpus
        if point.cell.phase == "serve":
            flops *= 1 + point.cell.input_tokens / point.cell.output_tokens
        assert 0 < flops / peak(point.gpu, point.cell.precision) < 0.75, point.row


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "a friend"}, "source: expected the address of the figure"),
        ({"use": "maybe"}, "use: expected one of fit, check"),
        ({"tier": "galaxy"}, "tier: expected one of node, cluster"),
        ({"software": None}, "software: blank"),
        ({"system_tokens_per_s": 0.0}, "expected a positive rate"),
        ({"gpu": "b200_sxm_18gb"}, "did you mean b200_sxm_180gb"),
        ({"precision": "fp4", "gpu": "a100_sxm_80gb"}, "expected a peak of fp4"),
    ],
)
def test_a_point_that_makes_no_sense_is_one_line(tmp_path, monkeypatch, change, said):
    for name in ("gpus", "models"):
        (tmp_path / name).symlink_to(config.CONFIGS / name)
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    first = next(row for row in ROWS if row["model"] == "llama_3_1_8b")
    results.write(tmp_path / "validation" / "points.csv", POINTS, [first | change])
    with pytest.raises((results.ResultsError, config.ConfigError), match=said):
        points.validation()


def test_which_throughput_rows_fit():
    rows = {row["row"]: row for row in published()}
    fits = rows["published:trtllm_8b_h100_1000_1000_fp8"]
    assert points.refusal(fits) is None
    assert points.refusal(rows["published:deepseek_day_output"]) == "with idle time in it, or above the datasheet"
    assert points.refusal(rows["published:mlenergy_8b_h100_bf16"]) == "without the lengths of both sides"
    assert points.refusal(rows["published:vllm_8b_h100_decode_fp8"]) == "without its batch"
    assert points.refusal(rows["published:mlperf_infer_8b_h200x8_fp8_server"]) == "under a promise of latency"
    assert points.refusal(fits | {"basis": "modelled"}) == "of no GPU with a config"
    measured = fits | {"basis": "measured", "row": "run/a"}
    (best,) = points.of_rows([measured, measured | {"row": "run/b", "system_tokens_per_s": 2e4}])
    assert best.row == "run/b"  # of one cell the fastest configuration, as a payer would run it


# ---------------------------------------------------------------- accuracy


def test_the_goal_is_met_on_one_node_by_gpus_left_out(model):
    node = [one for one in model.checked if one.point.tier == "node"]
    for phase in ("train_step", "serve"):
        found = Summary.of(one for one in node if one.point.cell.phase == phase)
        assert found.median <= GOAL["median"] and found.p90 <= GOAL["p90"], (phase, found)
    assert Summary.of(node).met


def test_deepseek_s_serving_is_within_30_percent(model):
    by = {one.point.row: one.error for one in model.checked}
    for phase in ("prefill", "decode"):
        assert abs(by[f"point:fleet_deepseek_{phase}"]) <= GOAL["fleet"]


def test_a_number_says_how_wrong_such_numbers_were(model):
    asked = points.point("x", "node", "check", golden("a100_sxm_80gb", "bf16", 1, 500, 2000), 1.0, "")
    (found,) = model.predict([asked])
    errors = [one for one in model.checked if one.kind == ("serve", "node", "dense")]
    assert found.error.count == len(errors)
    sizes = [abs(one.error) for one in errors]
    assert found.error.median == pytest.approx(statistics.median(sizes))
    inside = [found.low <= found.tokens_per_s * one.point.tokens_per_s / one.left_out <= found.high for one in errors]
    assert sum(inside) / len(inside) == pytest.approx(0.95, abs=0.02)


def test_a_generation_nobody_measured_takes_the_errors_of_generations_left_out(model):
    maia = points.point("x", "node", "check", golden("maia_200_216gb", "fp8", 1, 1000, 1000), 1.0, "")
    near = points.point("x", "node", "check", golden("h100_pcie_80gb", "fp8", 1, 1000, 1000), 1.0, "")
    far, known = model.predict([maia, near])
    assert far.unseen_generation and not known.unseen_generation
    assert far.high / far.low > known.high / known.low


def test_accuracy_rows_hold_their_columns(model):
    rows = accuracy.rows_of(model)
    assert len(rows) == len(model.checked) and all(set(row) == set(ACCURACY) for row in rows)
    for row in rows:
        assert row["error"] == pytest.approx(row["left_out_tokens_per_s"] / row["published_tokens_per_s"] - 1)
        assert (row["overhead"] is not None) == (row["tier"] == "hours")
    l40s = {row["stands_on"] for row in rows if row["gpu"] == "l40s_pcie_48gb"}
    assert l40s == {"fp8 sm_90"}  # no older generation has fp8: the nearest newer one stands in
    assert {row["stands_on"] for row in rows if row["gpu"] == "a100_pcie_80gb"} == {""}


# ---------------------------------------------------------------- published results that stand in no config


def golden(gpu: str, precision: str, n_gpus: int, inputs: float, outputs: float | None, **more) -> Cell:
    phase = "serve" if outputs else "train_step"
    fields = {"model": "llama_3_1_8b", "tensor_parallel": n_gpus if outputs else None, **more}
    lengths = {"input_tokens": float(inputs), "output_tokens": outputs and float(outputs)}
    return Cell(gpu=gpu, precision=precision, n_gpus=n_gpus, phase=phase, **lengths, **fields)


# Tokens/s of the whole deployment, as printed. Serving: TensorRT-LLM's performance overviews of v0.14, v1.0; training:
# llm-foundry's table at 8c8dd48, sequences of 1,024 (7B: with activation checkpointing).
GOLDEN = [
    (golden("a100_sxm_80gb", "bf16", 1, 500, 2000), 3945.1912),
    (golden("h100_sxm_80gb", "bf16", 1, 500, 2000), 7498.3331),
    (golden("a100_sxm_80gb", "bf16", 4, 500, 2000, model="mixtral_8x7b"), 8930.3495),
    (golden("b200_sxm_180gb", "fp4", 1, 500, 2000, model="llama_3_1_70b"), 7762.0),
    (golden("h200_sxm_141gb", "fp8", 8, 500, 2000, model="llama_3_1_405b"), 4724.0),
    (golden("a100_sxm_80gb", "bf16", 8, 1024, None, model="mpt_7b", recompute=True, software="llm-foundry"), 34857.0),
    (golden("h100_sxm_80gb", "bf16", 8, 1024, None, model="mpt_3b", software="llm-foundry"), 216369.0),
]


def test_published_results_that_no_config_holds(model):
    def told(row):
        return row["model"], row["gpu"], row["precision"], row["input_tokens"], row["output_tokens"]

    known = {told(row) for row in (*ROWS, *published())}
    assert not known & {told(vars(one)) for one, _ in GOLDEN}
    asked = [points.point("golden", "node", "check", cell, rate, "") for cell, rate in GOLDEN]
    found = [guess.tokens_per_s / one.tokens_per_s - 1 for guess, one in zip(model.predict(asked), asked, strict=True)]
    errors = [abs(error) for error in found]
    assert statistics.median(errors) <= 0.10 and max(errors) <= 0.25, found
