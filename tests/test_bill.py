"""The bill of a serving GPU's time: known costs are found again, parts sum to it, hand-computed figures."""

import json

import numpy as np
import pytest

from bench import results, serving_results
from bench.price import bill

PREFILL, DECODE, KEY = 20e-6, 150e-6, 2e-9  # seconds


def steps(rng: np.random.Generator, count: int = 400, noise: float = 0.0, once: float = 0.0) -> list[dict]:
    made = []
    for _ in range(count):
        prefill = int(rng.integers(0, 2048)) if rng.random() < 0.3 else 0
        decode = int(rng.integers(1, 64))
        decode_keys = decode * int(rng.integers(200, 2000))
        keys = decode_keys + 3 * prefill
        duration = (once + PREFILL * prefill + DECODE * decode + KEY * keys) * (1 + noise * rng.normal())
        made.append(
            {"duration_s": duration, "prefill_tokens": prefill, "decode_sequences": decode, "kv_tokens": keys}
            | {"decode_kv_tokens": decode_keys, "cached_blocks": 250, "lookup_s": 0.0}
        )
    return made


def point(**changes) -> dict:
    return {
        "n_gpus": 2,
        "busy_share": 0.8,
        "input_tokens_per_s": 5000.0,
        "cached_input_tokens_per_s": 2000.0,
        "output_tokens_per_s": 1000.0,
        "requests_per_s": 4.0,
        "kv_cache_bytes": 40_000_000_000,
        "kv_cache_blocks": 1000,
        **changes,
    }


def test_known_costs_are_found_again():
    found = bill.fitted(steps(np.random.default_rng(0), noise=0.02))
    assert found == pytest.approx((PREFILL, DECODE, KEY), rel=0.2)
    assert bill.fitted(steps(np.random.default_rng(0))) == pytest.approx((PREFILL, DECODE, KEY), rel=1e-6)


def test_no_part_is_paid_to_do_work():
    """A decode that gets cheaper with its batch would give a negative coefficient: least squares alone allows it."""
    made = [
        {"duration_s": 0.01 - 1e-5 * n, "prefill_tokens": 0, "decode_sequences": n, "kv_tokens": 900 * n}
        for n in range(1, 60)
    ]
    assert min(bill.fitted(made)) >= 0


def test_a_bill_by_hand():
    made = steps(np.random.default_rng(1))
    found = bill.bill(point(), made, 80e9)
    prompts = sum(PREFILL * s["prefill_tokens"] + KEY * 3 * s["prefill_tokens"] for s in made)
    answers = sum(DECODE * s["decode_sequences"] + KEY * s["decode_kv_tokens"] for s in made)
    kept = 40e9 / 80e9 * 250 / 1000
    assert found["cached_input_share"] == pytest.approx(kept)
    assert found["input_share"] == pytest.approx((1 - kept) * prompts / (prompts + answers), rel=1e-6)
    assert found["residual"] == pytest.approx(0, abs=1e-6)
    # two GPUs, 3,000 uncached input tokens a second
    assert found["gpu_s_per_million_input_tokens"] == pytest.approx(2e6 / 3000 * found["input_share"])
    assert found["gpu_s_per_million_cached_input_tokens"] == pytest.approx(2e6 / 2000 * kept)
    assert found["gpu_s_per_million_output_tokens_whole"] == 2000
    assert found["gpu_s_per_request"] == 0.5


@pytest.mark.parametrize("once", [0.0, 0.004])
def test_parts_sum_to_the_time_that_is_paid(once):
    """Whatever the fit leaves, idle time included: what all tokens of a second cost is n_gpus seconds."""
    one = point()
    found = bill.bill(one, steps(np.random.default_rng(2), noise=0.1, once=once), 80e9)
    rates = {"input": 3000, "cached_input": 2000, "output": 1000}
    paid = sum(found[f"gpu_s_per_million_{name}_tokens"] * rate / 1e6 for name, rate in rates.items())
    assert paid == pytest.approx(2)
    assert (abs(found["residual"]) > 0.02) == (once > 0), "what every step costs stays in the residual"


def test_without_cached_tokens_nothing_is_charged_for_the_cache():
    found = bill.bill(point(cached_input_tokens_per_s=0.0), steps(np.random.default_rng(3)), 80e9)
    assert found["cached_input_share"] == 0 and found["gpu_s_per_million_cached_input_tokens"] is None
    assert found["input_share"] + found["output_share"] == pytest.approx(1)


def test_looking_up_is_charged_to_cached_tokens():
    made = steps(np.random.default_rng(4))
    busy = sum(step["duration_s"] for step in made)
    slow = [step | {"lookup_s": 0.01 * busy / len(made)} for step in made]
    without, with_it = (bill.bill(point(), each, None)["cached_input_share"] for each in (made, slow))
    assert without == 0 and with_it == pytest.approx(0.01 * 0.8)


def test_a_run_folder_is_billed_point_by_point(tmp_path):
    run = tmp_path / "20260101T000000_serving_h100_sxm_80gb_00000000"
    run.mkdir()
    (run / "environment.json").write_text(json.dumps({"device_memory_bytes": 80e9}))
    ids = {"cell": "m/serve_chat/triton"}
    steady = {"window_start_s": 5.0, "window_s": 10.0}
    made = [{**ids, "point": name, **point(**steady)} for name in ("concurrency=1", "concurrency=8")]
    made.append({**ids, "point": "rate=9", **point(**steady, void="Little's law")})
    made.append({**ids, "point": "rate=10", **point(window_s=None)})
    results.write(run / "points.csv", serving_results.POINTS, made)
    drawn = steps(np.random.default_rng(5), 50)
    taken = [{**ids, "point": one["point"], "start_s": 6.0, **s} for one in made for s in drawn]
    # prompts read while the server filled up, and after it was counted: nobody's of the window
    outside = {"prefill_tokens": 10**6, "decode_sequences": 0, "kv_tokens": 10**6, "decode_kv_tokens": 0}
    outside |= {"duration_s": 9.0, "cached_blocks": 0, "lookup_s": 0.0}
    taken += [{**ids, "point": one["point"], "start_s": at_s, **outside} for one in made for at_s in (1.0, 16.0)]
    results.write(run / "steps.csv", serving_results.STEPS, taken)
    found = bill.bills(run)
    assert [row["point"] for row in found] == ["concurrency=1", "concurrency=8"]
    assert set(found[0]) == set(bill.COLUMNS)
    whole = bill.bill(point(**steady), drawn, 80e9)
    assert found[0]["input_share"] == pytest.approx(whole["input_share"], rel=1e-4)
    assert found[0]["fit_error"] == pytest.approx(0, abs=1e-4)
    assert bill.bills(tmp_path) == []
