"""Timing logic on a clock that does not tick by itself: no test here sleeps or measures anything real."""

import math
import types

import numpy as np
import pytest

from bench.measure import cell
from bench.measure.clock import LEAST_SAMPLES, measure
from bench.measure.energy import Board
from bench.measure.energy import summarise as summarise_board
from bench.measure.statistics import bootstrap_median, order_interval, settled, summarise


class Replay:
    """A timer that plays recorded step times and keeps its own clock."""

    def __init__(self, first: float, recorded):
        self.first, self.recorded, self.clock, self.calls = first, iter(recorded), 0.0, 0
        self.groups = []

    def now(self) -> float:
        return self.clock

    def step(self) -> None:
        """The untimed first call; the timed ones take their time from the recording."""
        self.calls += 1
        if self.calls == 1:
            self.clock += self.first

    def times(self, step, samples, group):
        self.groups.append(group)
        spans = [next(self.recorded) for _ in range(samples)]
        self.clock += sum(spans) * group
        return spans


def forever(*head, then):
    yield from head
    while True:
        yield from then


def test_compile_and_warm_up_are_reported_apart_and_not_sampled():
    timer = Replay(9.0, forever(5, 5, 5, 3, 3, 3, then=[1.0]))
    timing = measure(timer.step, timer, 60)
    assert timing.compile_s == 9.0
    assert timing.warmup_s == 15 + 9 + 3 + 3  # windows of 5, 3, 1 and 1: the last two agree
    assert set(timing.samples) == {1.0}


def test_sampling_stops_once_the_interval_is_narrow_but_not_before_a_third_of_the_budget():
    timer = Replay(0, forever(then=[0.1]))
    timing = measure(timer.step, timer, 30)
    assert 10 <= timing.sampling_s <= 14
    assert len(timing.samples) == timing.steps


def test_noise_is_sampled_until_the_budget_ends():
    timer = Replay(0, forever(then=[0.1, 0.3, 0.2, 0.5]))
    timing = measure(timer.step, timer, 30)
    assert 30 <= timing.sampling_s < 34
    assert "wide_interval" in summarise(timing.samples).flags


def test_a_step_longer_than_the_budget_still_gets_its_least_samples():
    timer = Replay(50, forever(then=[50.0]))
    assert len(measure(timer.step, timer, 6).samples) == LEAST_SAMPLES


def test_warm_up_gives_up_at_half_the_budget_on_a_step_that_never_settles():
    timer = Replay(0, forever(then=[1, 1, 1, 2, 2, 2]))
    timing = measure(timer.step, timer, 20)
    assert 10 < timing.warmup_s < 20


def test_short_steps_are_timed_in_groups():
    timer = Replay(0, forever(then=[1e-5]))
    measure(timer.step, timer, 0.5)
    assert timer.groups[-1] == 100


def test_median_interval_and_thirds():
    samples = [3.0] * 10 + [2.0] * 10 + [1.0] * 10
    summary = summarise(samples)
    assert (summary.first_third, summary.median, summary.last_third) == (3.0, 2.0, 1.0)
    assert summary.low <= summary.median <= summary.high
    assert summary.flags == ["wide_interval", "unsteady"]
    assert summarise([1.0] * 30).flags == []
    assert bootstrap_median([4.0]) == (4.0, 4.0)
    with pytest.raises(ValueError, match="positive"):
        summarise([1.0, 0.0])


def test_the_interval_covers_the_true_median_about_95_times_in_100():
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        low, high = bootstrap_median(generator.lognormal(0, 0.3, 41), seed=trial)
        hits += low <= 1.0 <= high
    assert 180 <= hits <= 199


def test_the_sustained_interval_is_that_of_the_last_third():
    """Money uses the last third, so its interval must come from there: narrower samples, wider interval."""
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        summary = summarise(list(generator.lognormal(0, 0.02, 60)))
        hits += summary.last_low <= 1.0 <= summary.last_high
    assert hits >= 174


def test_the_stop_rules_interval_needs_no_resampling_and_covers_too():
    generator = np.random.default_rng(6)
    hits = sum(
        low <= 1.0 <= high for low, high in (order_interval(generator.lognormal(0, 0.3, 41)) for _ in range(200))
    )
    assert 180 <= hits <= 200
    assert order_interval([2.0]) == (2.0, 2.0)


def test_a_clock_that_still_drifts_is_not_settled():
    assert settled([1.0] * 9) and not settled([1.0] * 6 + [1.2] * 3)
    timer = Replay(0, (0.1 * (1 + n / 50) for n in range(10**6)))
    assert measure(timer.step, timer, 20).sampling_s >= 20


class Workload:
    """A workload whose steps cost nothing: for the worker's side of a cell."""

    tokens_per_step, token_kind, flops, flops_unhalved, bytes = 10, "trained", 1.0, 2.0, 3.0
    error: float = 0.0
    fails: Exception | None = None

    def __init__(self, device, **_):
        self.prepared = False

    def check(self):
        return self.error, 0.1, "tiny"

    def prepare(self):
        if self.fails:
            raise self.fails
        self.prepared = True

    def ops_ran(self):
        """What ran since the last call: the check's ops are asked for once, and are not the cell's."""
        self.asked = getattr(self, "asked", 0) + 1
        return f"asked {self.asked}"

    def step(self):
        assert self.prepared


@pytest.fixture
def build(monkeypatch):
    """Registers a workload under a module name the worker can resolve."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    import sys

    def register(**attributes):
        module = types.ModuleType("fake_workload")
        module.build = type("Fake", (Workload,), attributes)
        monkeypatch.setitem(sys.modules, "fake_workload", module)
        return "fake_workload:build"

    return register


def test_a_good_cell_answers_columns_and_samples(build):
    row = cell.run(build(), {}, "cpu", 0.01)
    assert row["status"] == "ok" and len(row["step_s"]) == row["samples"] >= LEAST_SAMPLES
    assert row["system_tokens_per_s"] == pytest.approx(10 / row["step_s_last_third"])
    assert row["system_tokens_per_s_low"] <= row["system_tokens_per_s"] <= row["system_tokens_per_s_high"]
    assert row["setup_s"] >= 0
    assert row["ops_ran"] == "asked 2"


@pytest.mark.parametrize("error", [0.2, math.nan, math.inf])
def test_a_wrong_backend_gets_a_status_and_no_number(build, error):
    row = cell.run(build(error=error), {}, "cpu", 0.01)
    assert row["status"] == "incorrect" and "allowed 0.1" in row["reason"]
    assert "step_s_median" not in row and "system_tokens_per_s" not in row


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 3 GiB"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("CUDA error: an illegal memory access"), "error"),
    ],
)
def test_a_failure_is_a_status_with_its_reason(build, failure, status):
    row = cell.run(build(fails=failure), {}, "cpu", 0.01)
    assert row["status"] == status and type(failure).__name__ in row["reason"]


def test_interpreted_kernels_are_never_timed(build, monkeypatch):
    target = build()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert cell.run(target, {}, "cpu", 0.01)["status"] == "unavailable"


class FakeNvml:
    """A board that drew 500 W for as long as it was watched."""

    class NVMLError(Exception):
        pass

    def __init__(self, counter=True, reasons=0):
        self.counter, self.reasons, self.millijoules = counter, reasons, 1000.0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not self.counter:
            raise self.NVMLError
        before, self.millijoules = self.millijoules, 1000.0 + 5e6 / 2  # all of it drawn after the first reading
        return before

    def nvmlDeviceGetPowerUsage(self, handle):
        return 500_000

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return 1980

    def nvmlDeviceGetTemperature(self, handle, kind):
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.reasons


def watched(nvml, length):
    ticks = iter([0.0] + [length] * 1000)
    return Board(nvml, None, now=lambda: next(ticks)).watch(lambda: None)


def test_energy_comes_from_the_counter_with_clock_and_heat():
    reading = watched(FakeNvml(reasons=0x04 | 0x40), 10.0)
    assert (reading.energy_joules, reading.energy_source) == (2500.0, "counter")
    assert reading.sm_clock_hz == 1.98e9 and reading.temperature_c == 61
    assert reading.throttle_reasons == ["sw_power_cap", "hw_thermal_slowdown"]


def test_a_short_window_has_no_energy_and_says_why():
    reading = watched(FakeNvml(), 0.5)
    assert reading.energy_joules is None and "under 2 s" in reading.reason


def test_without_a_counter_power_is_integrated():
    poll = {"sm_clock_hz": None, "temperature_c": None, "reasons": 0}
    polls = [{**poll, "at": t, "power_w": w} for t, w in ((0, 100), (2, 300), (4, 300))]
    reading = summarise_board(polls, None, None, 4.0)
    assert (reading.energy_joules, reading.energy_source) == (1000.0, "power_integral")
    assert reading.sm_clock_hz is None


def test_a_silent_board_gives_blanks_with_a_reason():
    polls = [{"at": 0, "power_w": None, "sm_clock_hz": None, "temperature_c": None, "reasons": 0}]
    reading = summarise_board(polls, None, None, 4.0)
    assert reading.energy_joules is None and "neither" in reading.reason


def test_a_busy_host_is_seen_and_a_quiet_one_is_not(monkeypatch):
    monkeypatch.setattr(cell.machine, "cpu_count", lambda: 4)
    assert not cell.host_is_busy(100.0, 100.3, 1.0) and cell.host_is_busy(100.0, 100.5, 1.0)
    assert not cell.host_is_busy(None, 1.0, 1.0)
    first = cell._others_cpu_s(several=False)
    assert first is None or 0 <= first <= cell._others_cpu_s(several=False) + 0.05
