"""r: who enters, how rates are counted, and that a hand computation gives the same number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.claim import ratio

DRAWS, SEED = 20_000, 1


def row(name, phase, rate, **other):
    """A throughput row in the form of bench.price.throughput."""
    kind = {"train_step": "trained", "rl_step": "trained", "prefill": "input", "decode": "output", "serve": "output"}[
        phase
    ]
    return {
        "row": name,
        "basis": "imported",
        "phase": phase,
        "model": "llama_3_1_8b",
        "workload": phase,
        "backend": "any",
        "precision": "bf16",
        "device": "cuda",
        "gpu": "h100_sxm_80gb",
        "n_gpus": 1,
        "token_kind": kind,
        "system_tokens_per_s": rate,
        "low": None,
        "high": None,
        "batch_size": None,
        "input_tokens": 300.0,
        "output_tokens": 100.0,
        "layers": 32,
        "layers_measured": None,
        "source": "",
        "flags": None,
        **other,
    }


TRAIN, SERVE = row("published:t", "train_step", 8000.0), row("published:s", "serve", 4000.0)


def pairs_of(rows, classes=("chat",), computed=None):
    found, _ = ratio.rates(rows, computed or {})
    return ratio.pairs(found, classes)


def r_of(rows, mixes=(), computed=None):
    return ratio.draw(pairs_of(rows, computed=computed), mixes, DRAWS, SEED)["r"]


def test_output_tokens_are_converted_by_the_rows_own_lengths():
    # 4000 output tokens/s with 300 in and 100 out are 16000 tokens/s: r = 3 x 8000 / 16000
    assert np.median(r_of([TRAIN, SERVE])) == pytest.approx(1.5, rel=0.01)
    total = row("published:s", "serve", 16000.0, token_kind="total")
    assert np.median(r_of([TRAIN, total])) == pytest.approx(1.5, rel=0.01)


def test_rates_are_per_gpu():
    rows = [row("published:t", "train_step", 64000.0, n_gpus=8), SERVE]
    assert np.array_equal(r_of(rows), r_of([TRAIN, SERVE]))


def test_noise_is_five_per_cent_a_side_and_the_rows_own_interval():
    assert np.log(r_of([TRAIN, SERVE])).std() == pytest.approx(np.hypot(0.05, 0.05), rel=0.02)
    wide = row("published:s", "serve", 4000.0, low=4000 * np.exp(-0.196), high=4000 * np.exp(0.196))
    expected = np.sqrt(0.05**2 + 0.05**2 + 0.1**2)
    assert np.log(r_of([TRAIN, wide])).std() == pytest.approx(expected, rel=0.02)


def test_prefill_and_decode_are_mixed_by_time_per_request():
    prefill, decode = row("published:p", "prefill", 30000.0), row("published:d", "decode", 5000.0)
    mix = ratio.Mix("chat", np.full(DRAWS, 4.0))
    seconds = 4 / 30000 + 1 / 5000  # a request of 4 inputs and 1 output
    r = np.median(r_of([TRAIN, prefill, decode], [mix]))
    assert r == pytest.approx(3 * 8000 * seconds / 5, rel=0.01)
    slow = row("published:d", "decode", 2500.0)
    ratio_of_r = r_of([TRAIN, prefill, slow], [mix]) / r_of([TRAIN, prefill, decode], [mix])
    assert ratio_of_r == pytest.approx((4 / 30000 + 2 / 5000) / seconds, rel=1e-12)


@given(st.floats(1e2, 1e6), st.floats(1e2, 1e6), st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)  # the first example reads every model's file
def test_r_scales_with_training_and_falls_with_serving(trained, served, factor):
    def middle(t, s):
        chosen = pairs_of([row("published:t", "train_step", t), row("published:s", "serve", s)])
        return np.median(ratio.draw(chosen, (), 1000, SEED)["r"])

    assert middle(trained * factor, served) == pytest.approx(factor * middle(trained, served))
    assert middle(trained, served * factor) == pytest.approx(middle(trained, served) / factor)


def test_cached_tokens_are_not_computed():
    r = r_of([TRAIN, SERVE], computed={"published:s": 0.5})
    assert r == pytest.approx(2 * r_of([TRAIN, SERVE]))


def test_measured_outranks_imported_of_the_same_gpu_model_precision_and_phase():
    measured = row("run/cell", "train_step", 4000.0, basis="measured")
    other = row("published:fp8", "train_step", 9000.0, precision="fp8")
    found, _ = ratio.rates([TRAIN, measured, other, SERVE], {})
    trained = {rate.precision: rate for rate in found if rate.phase == "train_step"}
    assert trained["bf16"].sources[0].rows == ("run/cell",)
    assert trained["fp8"].sources[0].rows == ("published:fp8",)  # another precision: not outranked


def test_modelled_rows_speak_only_where_nobody_else_does():
    modelled = row("model:t", "train_step", 1.0, basis="modelled")
    assert "model:t" not in pairs_of([TRAIN, SERVE, modelled])[0].rows
    assert pairs_of([SERVE, modelled])[0].basis == "modelled"


def test_measured_rows_outrank_imported_ones_of_the_same_key_and_no_others():
    """Three measured rows of one GPU must not silence what is known of the others (DESIGN, claims)."""
    other = {"gpu": "h200_sxm_141gb", "basis": "measured"}
    measured = [row("run/t", "train_step", 1e4, **other), row("run/s", "serve", 1e4, **other)]
    found = pairs_of([TRAIN, SERVE, *measured])
    assert ratio.basis_of(found) == "measured+imported" and len(found) == 2
    assert ratio.basis_of(pairs_of([TRAIN, SERVE])) == "imported" and ratio.basis_of([]) == ""


def test_a_pair_never_crosses_gpus_or_models():
    assert pairs_of([TRAIN, row("published:s", "serve", 1.0, gpu="h200_sxm_141gb")]) == []
    assert pairs_of([TRAIN, row("published:s", "serve", 1.0, model="qwen3_8b")]) == []


def test_of_measured_rows_the_fastest_configuration_counts_over_its_runs():
    runs = [row(f"run{i}/a", "train_step", rate, basis="measured") for i, rate in enumerate((90.0, 100.0, 110.0))]
    slow = row("run0/b", "train_step", 95.0, basis="measured", backend="reference")
    found, _ = ratio.rates([*runs, slow], {})
    (source,) = found[0].sources
    assert source.tokens_per_gpu_s == 100 and len(source.rows) == 3
    assert source.sd == pytest.approx(ratio.SPREAD)  # three runs, but the devices are not known


def test_a_public_implementation_counts_where_it_is_the_fastest():
    ours = row("run/a", "train_step", 90.0, basis="measured", backend="triton")
    peer = row("run/b", "train_step", 100.0, basis="measured", backend="peer:liger")
    found, _ = ratio.rates([ours, peer], {})
    assert found[0].sources[0].rows == ("run/b",)


def test_another_number_of_gpus_is_another_configuration():
    """Two GPUs at less a GPU than one: the rate of one counts, never a median over both."""
    one = row("run0/a", "train_step", 100.0, basis="measured")
    two = row("run1/a", "train_step", 160.0, basis="measured", n_gpus=2)
    found, _ = ratio.rates([one, two], {})
    (source,) = found[0].sources
    assert (source.tokens_per_gpu_s, source.rows) == (100.0, ("run0/a",))


def routed(name, rate, zipf, **other):
    workload = "pretrain_moe_zipf" if zipf else "pretrain_moe_uniform"
    fields = {"model": "gpt_oss_20b", "basis": "measured", "workload": workload, "routing_zipf": zipf}
    return row(name, "train_step", rate, **{**fields, **other})


def test_uniform_and_skewed_routing_count_alike():
    """Routing is nobody's choice: the faster of the two must not speak alone, nor the slower."""
    train = [routed("run/uniform", 8000.0, 0.0), routed("run/zipf", 4000.0, 0.5)]
    serve = row("published:s", "serve", 4000.0, model="gpt_oss_20b")
    found, _ = ratio.rates([*train, serve], {})
    sources = next(rate.sources for rate in found if rate.phase == "train_step")
    assert [source.rows for source in sources] == [("run/uniform",), ("run/zipf",)]
    r = r_of([*train, serve])  # 3 x 8000 / 16000 and 3 x 4000 / 16000
    assert np.mean(r > 1.1) == pytest.approx(0.5, abs=0.02)
    assert np.median(r[r > 1.1]) == pytest.approx(1.5, rel=0.01)
    assert np.median(r[r < 1.1]) == pytest.approx(0.75, rel=0.01)


def test_the_fastest_configuration_is_sought_within_each_routing():
    rows = [
        routed("run/uniform", 8000.0, 0.0),
        routed("run/uniform_compile", 9000.0, 0.0, backend="compile"),
        routed("run/own", 8500.0, None, workload="train_4k"),  # of random weights: nearly uniform
        routed("run/zipf", 4000.0, 0.5),
        routed("run/zipf_compile", 3000.0, 0.5, backend="compile"),
    ]
    found, _ = ratio.rates(rows, {})
    assert [source.rows for source in found[0].sources] == [("run/uniform_compile",), ("run/zipf",)]


def test_three_runs_on_two_devices_bring_their_own_spread():
    rates = (90.0, 100.0, 110.0)
    runs = [
        row(f"run{i}/a", "train_step", rate, basis="measured", device_uuid=f"GPU-{i % 2}")
        for i, rate in enumerate(rates)
    ]
    found, _ = ratio.rates(runs, {})
    assert found[0].sources[0].sd == pytest.approx(np.log(rates).std(ddof=1))


def test_all_imported_rows_of_one_kind_count_alike():
    rows = [TRAIN, SERVE, row("published:s2", "serve", 8000.0)]
    (pair,) = pairs_of(rows)
    assert len(pair.serve[0].sources) == 2
    r = ratio.draw([pair], (), DRAWS, SEED)["r"]
    assert np.mean(r > 1.1) == pytest.approx(0.5, abs=0.02)  # half near 1.5, half near 0.75


def test_every_gpu_and_model_weighs_the_same_however_many_rows_it_has():
    many = [row(f"published:s{i}", "serve", 4000.0) for i in range(5)]
    other = [
        row("published:ot", "train_step", 8000.0, gpu="h200_sxm_141gb"),
        row("published:os", "serve", 400.0, gpu="h200_sxm_141gb"),
    ]
    r = ratio.draw(pairs_of([TRAIN, *many, *other]), (), DRAWS, SEED)["r"]
    assert np.mean(r > 5) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "cpu", "gpu": "cpu"}, "without a GPU"),
        ({"gpu": None}, "without a GPU"),
        ({"model": "gpt2_124m"}, "under 0.5B"),
        ({"model": "tiny_15m"}, "under 0.5B"),
        ({"model": "nobody"}, "without a config"),
        ({"layers_measured": 8}, "slice"),
        ({"precision": None}, "of a precision nobody told"),
        ({"system_tokens_per_s": None}, "without a rate"),
        ({"flags": "unsteady+above_datasheet"}, "above the datasheet"),
        ({"lora_rank": 16}, "4N and not 6N"),
        ({"lora_rank": 16, "layers_measured": "8+16 of 32", "basis": "measured"}, "4N and not 6N"),
        ({"phase": "rl_step", "basis": "measured"}, "of phase rl_step"),
    ],
)
def test_rows_that_never_enter(change, reason):
    found, refused = ratio.rates([{**TRAIN, **change}], {})
    assert found == []
    assert list(refused.values()) == [1] and reason in next(iter(refused))


@pytest.mark.parametrize("change", [{"lora_rank": 16}, {"phase": "rl_step"}])
def test_a_faster_row_that_trains_no_whole_model_changes_neither_r_nor_the_break_even(change):
    """Measured outranks imported, and the fastest counts: neither must let adapters or an RL step in."""
    other = row("run/x", "train_step", 1e6, basis="measured") | change
    assert np.array_equal(r_of([TRAIN, SERVE, other]), r_of([TRAIN, SERVE]))
    assert pairs_of([TRAIN, SERVE, other]) == pairs_of([TRAIN, SERVE])
    assert pairs_of([other, SERVE]) == []


def test_a_two_depth_fit_enters_and_a_serve_row_without_lengths_does_not():
    fit = {**TRAIN, "layers_measured": "8+16 of 32"}
    found, refused = ratio.rates([fit, {**SERVE, "input_tokens": None}], {})
    assert len(found) == 1 and sum(refused.values()) == 1


def test_rates_that_hold_their_idle_time_say_so():
    drawn = ratio.draw(pairs_of([{**TRAIN, "flags": "idle_included"}, SERVE]), (), 1000, SEED)
    assert set(drawn["r_training_busy"]) == {0.0} and set(drawn["r_serving_busy"]) == {1.0}


@pytest.mark.parametrize(
    ("inputs", "outputs", "traffic"),
    [(100, 200, "generation"), (300, 100, "chat"), (9000, 600, "long input"), (None, 100, "fleet mix")],
)
def test_traffic_is_read_off_the_lengths(inputs, outputs, traffic):
    assert ratio.traffic_of(row("x", "serve", 1.0, input_tokens=inputs, output_tokens=outputs)) == traffic
