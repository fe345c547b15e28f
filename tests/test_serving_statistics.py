"""Statistics of a load point against a server whose truth is known (queue_model.py)."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest

from bench.points import validity, window
from bench.points.point import SLO, Load, Point
from bench.points.steps import Step, summarise_steps
from bench.points.summarise import steady_window, summarise
from bench.points.window import Window
from bench.traffic.records import Record
from tests.queue_model import closed_loop, constant, exponential, heavy, in_flight, open_loop


def record(number, due, first=None, end=None, tokens=10, **more):
    made = Record(number, due, due, 100, 10, output_tokens=tokens, first_token_s=first, end_s=end)
    for name, value in more.items():
        setattr(made, name, value)
    return made


# window and rates


def test_closed_window_runs_from_c_first_tokens_to_all_but_c_ended():
    records = closed_loop(4, 40, constant(1.0), seed=0)
    found = steady_window(records, 4)
    assert found.start_s == pytest.approx(0.05)  # all four began at 0 and make a token each 0.05 s
    assert found.end_s == pytest.approx(9.0)  # ten rounds of a second; the last four run in the tenth
    assert len(window.members(records, found)) == 36  # of the first burst none, of the last all
    records[2].first_token_s = 0.3
    assert steady_window(records, 4).start_s == 0.3
    assert steady_window(records[:8], 4) is None and steady_window(records[:3], 4) is None


def test_open_window_warms_up_for_two_turnovers_and_ends_with_the_last_arrival():
    records = [record(n, due=n, first=n + 4.5, end=n + 9.5) for n in range(60)]  # ten in flight at once
    found = steady_window(records)
    assert found == Window(19 + 4.5, 59)


def test_a_request_that_never_ended_does_not_end_the_window_and_a_failed_one_does():
    records = closed_loop(4, 40, constant(1.0), seed=0)
    for cut in records[-4:]:
        cut.status, cut.end_s, cut.first_token_s = "cut", None, None
    assert steady_window(records, 4).end_s == pytest.approx(9.0)
    records[35].status, records[35].end_s, records[35].token_s = "closed", None, [8.2]
    assert steady_window(records, 4).end_s == pytest.approx(9.0)  # three others still end then


def test_a_request_that_is_cut_is_in_flight_to_the_end():
    records = answered()
    records[10].status, records[10].end_s, records[10].first_token_s = "cut", None, None
    samples = [(t, c + (t >= 10)) for t, c in in_flight(answered(), 0.05)]
    found = Window(5.0, 95.0)
    assert validity.littles_law_ratio(records, samples, found) == pytest.approx(1, abs=0.01)
    records[10].status = "closed"
    assert validity.littles_law_ratio(records, samples, found) > 1.5


def test_gaps_belong_to_the_window_they_end_in():
    told = record(0, 0.0, first=1.0, end=4.0, token_s=[1.0, 1.5, 3.0, 3.2])
    assert window.gaps([told, record(1, 0.0, first=2.0, end=2.5)], Window(1.2, 3.1))[0].tolist() == [0.5, 1.5]
    assert window.gaps([told, told, record(1, 0.0, first=2.0, end=2.5)], Window(1.2, 3.1))[1] == 2, "of two answers"


def test_too_few_requests_give_a_flag_and_no_numbers():
    records = closed_loop(4, 10, constant(1.0), seed=0)
    point = summarise(records, in_flight(records), concurrency=4, slo=SLO(1, 1), energy_joules=5.0)
    assert point.flags == ("too_few_requests",)
    assert (point.requests, point.requests_completed) == (10, 10)
    known = {f.name for f in fields(Load)} | {"flags", "void"}
    assert all(getattr(point, f.name) is None for f in fields(Point) if f.name not in known)


def test_only_tokens_that_arrive_inside_count_however_many_came_in_a_piece():
    told = record(0, 0.0, first=1.0, end=4.0, tokens=8, token_s=[1.0, 2.0, 3.0, 4.0])  # pieces of two
    plain = record(1, 0.0, first=1.0, end=4.0, tokens=4)  # no pieces told: 1, 2, 3, 4
    failed = record(2, 0.0, first=2.0, end=3.0, tokens=100, status="closed", token_s=[2.0, 3.0])
    times, tokens = window.output_events([told, plain, failed])
    inside = Window(1.5, 3.5)
    assert tokens[inside.holds(times)].sum() == 2 * 2 + 2
    assert window.rate(times, tokens, inside, 8).per_s == pytest.approx(6 / 2.0)


def test_rates_of_a_steady_server_are_exact():
    records = closed_loop(8, 240, constant(1.0), seed=0, told=True)
    point = summarise(records, in_flight(records), concurrency=8, n_gpus=2)
    assert point.output_tokens_per_s == pytest.approx(8 * 20, rel=0.01)
    assert point.output_tokens_per_s_per_gpu == pytest.approx(80, rel=0.01)
    assert point.input_tokens_per_s == pytest.approx(800, rel=0.05)
    assert point.cached_input_tokens_per_s == pytest.approx(0.4 * point.input_tokens_per_s)
    assert point.total_tokens_per_s == pytest.approx(point.input_tokens_per_s + point.output_tokens_per_s)
    assert point.interactivity_tokens_per_s == pytest.approx(20)
    assert point.itl_s_p95 == pytest.approx(0.05)
    assert point.itl_s_p99 is None, "thousands of gaps, but of fewer than 368 answers"
    assert point.void == () and point.saturated is None
    records[100].cached_tokens = None
    assert summarise(records, in_flight(records), concurrency=8).cached_input_tokens_per_s is None


def test_the_interval_of_a_rate_covers_the_truth():
    hits = 0
    for seed in range(60):
        records = closed_loop(16, 400, exponential(1.0), seed)
        found = window.closed_window(records, 16)
        times, tokens, _ = window.input_events(records)
        rate = window.rate(times, tokens, found, window.parts(found, 0.7))
        hits += rate.low <= 1600 <= rate.high
    assert hits >= 0.9 * 60


# Little's law, saturation, the client

LOADS = {
    "M/M/4 at 70%": lambda seed: (open_loop(2.8, 500, exponential(1.0), 4, seed), None),
    "M/M/1 at 95%": lambda seed: (open_loop(0.95, 500, exponential(1.0), 1, seed), None),
    "heavy tail, open": lambda seed: (open_loop(12.0, 500, heavy(1.0), 16, seed), None),
    "constant, closed": lambda seed: (closed_loop(8, 120, constant(1.0), seed), 8),
    "few long requests, closed": lambda seed: (closed_loop(16, 100, heavy(10.0), seed), 16),
}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("period_s", [None, 0.1])
def test_littles_law_holds_where_nothing_is_lost(load, period_s):
    ratios = []
    for seed in range(30):
        records, concurrency = LOADS[load](seed)
        found = steady_window(records, concurrency)
        if found is not None:
            ratios.append(validity.littles_law_ratio(records, in_flight(records, period_s), found))
    assert len(ratios) >= 28 and None not in ratios
    assert np.abs(np.array(ratios) - 1).max() < 0.05


def without_a_tenth(records, concurrency, seed):
    rng = np.random.default_rng(seed)
    left = [r for r in records if rng.random() > 0.1]
    return summarise(left, in_flight(records, 1.0), concurrency=concurrency)


@pytest.mark.parametrize("load", ["M/M/4 at 70%", "M/M/1 at 95%", "constant, closed"])
def test_dropping_a_tenth_of_completions_voids_the_point(load):
    for seed in range(12):
        records, concurrency = LOADS[load](seed)
        if concurrency:
            records = closed_loop(8, 480, constant(1.0), seed)
        point = without_a_tenth(records, concurrency, seed)
        assert len(point.void) == 1 and point.void[0].startswith("littles_law")
        assert point.window_s > 0 and point.output_tokens_per_s > 0  # a void point keeps its numbers


def test_dropping_a_tenth_of_very_uneven_completions_voids_the_point_once_there_are_thousands():
    ratios = [without_a_tenth(closed_loop(16, 3000, heavy(1.0), seed), 16, seed).littles_law_ratio for seed in range(5)]
    assert min(ratios) > 1.05


def test_littles_law_is_unknown_without_samples_through_the_window():
    records = closed_loop(8, 240, constant(1.0), seed=0)
    samples = in_flight(records, 0.1)
    bunched = samples[:1] * 100 + samples[10::10] + samples[-1:]  # many samples, few of them in the window
    for few in ([], samples[::40], samples[20:], samples[: len(samples) // 2], bunched):
        point = summarise(records, few, concurrency=8)
        assert point.littles_law_ratio is None and "littles_law_unknown" in point.flags


def rises(rate, places, seed, requests=1000):
    records = open_loop(rate, requests, exponential(1.0), places, seed)
    return validity.saturated(records, in_flight(records, 1.0), steady_window(records))


def test_a_queue_in_balance_is_not_called_saturated():
    assert sum(rises(0.7 * 4, 4, seed) for seed in range(100)) <= 5


def test_a_queue_beyond_capacity_is():
    assert sum(rises(1.15 * 4, 4, seed) for seed in range(100)) >= 95


def test_a_rising_queue_is_flagged_on_the_point_and_its_rate_not_reached():
    records = open_loop(6.0, 600, exponential(1.0), 4, seed=0)
    point = summarise(records, in_flight(records), rate_per_s=6.0)
    assert point.saturated and {"saturated", "below_requested_rate", "dependent_requests"} <= set(point.flags)
    assert point.achieved_rate_ratio == pytest.approx(4 / 6, abs=0.08)


@pytest.mark.parametrize("lag, voids", [(0.005, False), (0.03, True)])
def test_a_late_client_voids_the_point(lag, voids):
    records = closed_loop(8, 800, constant(20.0), seed=0, token_s=1.0)  # TTFT of a second
    for number in range(100, 800, 50):  # one in fifty is late
        records[number].sent_s += lag
    point = summarise(records, in_flight(records), concurrency=8)
    assert point.client_lag_ratio == pytest.approx(lag)
    assert any(reason.startswith("client_lag") for reason in point.void) == voids


def test_a_client_that_sends_too_slowly_is_flagged():
    records = open_loop(20.0, 1000, exponential(0.2), 64, seed=0)
    steady = summarise(records, in_flight(records), rate_per_s=20.0)
    assert "below_requested_rate" not in steady.flags
    for one in records:
        late_s = 0.15 * one.scheduled_s
        one.sent_s, one.first_token_s, one.end_s = (t + late_s for t in (one.sent_s, one.first_token_s, one.end_s))
    slow = summarise(records, in_flight(records), rate_per_s=20.0)
    assert "below_requested_rate" in slow.flags and slow.void


# goodput, statuses, engine, row


def answered(count=100):
    """One a second; TTFT 0.1 s, TPOT 0.05 s; never more than one at once."""
    return [record(n, due=n, first=n + 0.1, end=n + 0.1 + 9 * 0.05) for n in range(count)]


def test_goodput_counts_requests_that_keep_every_promise():
    records = answered(102)
    for slow in records[10:20]:
        slow.first_token_s, slow.end_s = slow.first_token_s + 0.3, slow.end_s + 0.3
    for slow in records[15:35]:
        slow.end_s += 0.9
    records[50].status = "timeout"
    records[51].output_tokens, records[51].end_s = 1, records[51].first_token_s
    point = summarise(records, in_flight(records), slo=SLO(0.2, 0.1))
    due = point.window_requests
    assert due == 102 - 2  # the first two make the warm-up
    assert point.ttft_attainment == pytest.approx((due - 10 - 1) / due)
    assert point.tpot_attainment == pytest.approx((due - 20 - 1) / due)
    assert point.slo_attainment == pytest.approx((due - 25 - 1) / due)
    assert point.goodput_requests_per_s == pytest.approx((due - 26) / point.window_s)
    assert point.slo_attainment_low < point.slo_attainment < point.slo_attainment_high
    assert summarise(records, in_flight(records)).slo_attainment is None


def test_statuses_are_counted_and_cut_requests_are_no_failures():
    records = answered()
    records[3].status = records[4].status = "timeout"
    records[5].status = "http_429"
    records[99].status, records[99].end_s = "cut", None
    for short in records[60:65]:
        short.output_tokens = 5
    point = summarise(records, in_flight(answered()))
    assert (point.requests_completed, point.requests_failed, point.requests_cut) == (96, 3, 1)
    assert point.failed_by_status == "http_429=1+timeout=2"
    assert {"failed_requests", "cut_requests", "short_outputs"} <= set(point.flags)
    assert point.output_tokens_ratio == pytest.approx(1 - 25 / (10 * (point.window_requests - 4)))


def test_nothing_answered_is_no_rate_of_zero():
    records = [record(n, due=n, first=0.1 if n == 0 else None, status="closed") for n in range(40)]
    point = summarise(records, [(t / 2, 0) for t in range(100)], energy_joules=9.0)
    assert {"short_window", "saturation_unknown", "client_lag_unknown"} <= set(point.flags)
    assert point.output_tokens_per_s is None and point.energy_joules_per_output_token is None
    assert point.ttft_s_p50 is None and point.interactivity_tokens_per_s is None


def test_prefill_is_charged_what_it_adds_to_a_step():
    steps, at, prompt = [], 0.0, 0.0
    for number in range(400):
        tokens = 512 if number % 4 == 0 else 0
        sequences = 0 if number % 40 == 0 else number % 16 + 1
        taken = tokens * 1e-4 + (0.01 + 0.001 * sequences if sequences else 0)
        steps.append(Step(at, taken, tokens, sequences))
        at, prompt = at + 1.25 * taken, prompt + tokens * 1e-4
    found = summarise_steps(steps, Window(0.0, at))
    assert found.prefill_share == pytest.approx(prompt / (at / 1.25), rel=1e-6)
    assert found.busy_share == pytest.approx(0.8)
    mean = sum(s.duration_s * s.decode_sequences for s in steps) / sum(s.duration_s for s in steps)
    assert found.decode_sequences == pytest.approx(mean)
    mixed = [replace(s, prefill_tokens=1, decode_sequences=4) for s in steps]
    assert summarise_steps(mixed, Window(0.0, at)).prefill_share is None
    assert summarise_steps(steps, Window(at, at + 1)) is None


def test_energy_and_occupancy_are_of_the_window():
    records = closed_loop(8, 240, constant(1.0), seed=0)
    found = steady_window(records, 8)
    steps = [Step(0.05 * n, 0.05, 0, 8) for n in range(600)]
    joules = 400 * found.seconds
    point = summarise(records, in_flight(records), concurrency=8, steps=steps, max_num_seqs=16, energy_joules=joules)
    assert point.energy_joules_per_output_token == pytest.approx(400 / point.output_tokens_per_s)
    assert point.energy_joules_per_total_token == pytest.approx(400 / point.total_tokens_per_s)
    assert (point.batch_occupancy, point.busy_share, point.prefill_share) == pytest.approx((0.5, 1.0, 0.0))


def test_a_row_holds_plain_finite_values_or_none():
    records = open_loop(2.8, 800, exponential(1.0), 4, seed=3, told=True)
    samples = in_flight(records)
    point = summarise(
        records, samples, rate_per_s=2.8, slo=SLO(2, 1), steps=[Step(0.0, 500.0, 0, 3)], energy_joules=1e4
    )
    row = point.row()
    assert list(row) == [f.name for f in fields(Point)] and list(row)[:3] == ["n_gpus", "concurrency", "rate_per_s"]
    assert {type(value) for value in row.values()} <= {int, float, str, bool, type(None)}
    assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    assert row["e2e_s_p99"] is not None and row["ttft_s_p95_low"] <= row["ttft_s_p95"]
    late = replace(point, void=("littles_law", "client_lag"), flags=("saturated", "cut_requests")).row()
    assert (late["void"], late["flags"]) == ("littles_law; client_lag", "saturated+cut_requests")
