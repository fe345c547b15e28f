"""Goodput search against queues and servers whose best rate is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from bench.points.intervals import wilson
from bench.points.point import SLO, Point
from bench.points.search import STEP, Outcome, contradicts, goodput_search, judge
from bench.points.summarise import summarise
from tests.queue_model import exponential, in_flight, late, open_loop

LIMIT_S = 1.5  # of the wait, in service times


def best_rate(places: int) -> float:
    """Arrivals per second at which 5% wait longer than the limit in M/M/c, service of a second."""
    low, high = 0.01, float(places)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if late(middle, LIMIT_S, places, 1.0) > 0.05 else (middle, high)
    return low


def queue(places, seed, slo):
    calls = iter(range(1000))

    def measure(rate, requests):
        records = open_loop(rate, requests, exponential(1.0), places, seed=(seed, next(calls)))
        return summarise(records, in_flight(records, 1.0), rate_per_s=rate, slo=slo)

    return measure


def drawn(attainment, seed, *, tpot=1.0):
    """A server whose requests keep the TTFT promise with probability attainment(rate), each by itself."""
    rng = np.random.default_rng(seed)

    def measure(rate, requests):
        columns = {}
        for name, share in (("ttft", rng.binomial(requests, attainment(rate)) / requests), ("tpot", tpot)):
            low, high = wilson(share, requests)
            columns |= {f"{name}_attainment": share}
            columns |= {f"{name}_attainment_low": low, f"{name}_attainment_high": high}
        return Point(n_gpus=1, **columns)

    return measure


def knee(rate):
    """Exactly 95% at 10 requests per second."""
    return 1 / (1 + (rate / 10) ** 8 / 19)


@pytest.mark.parametrize("places", [4, 16])
def test_the_rate_found_is_that_of_the_queue(places):
    truth = best_rate(places)
    for seed in range(2):  # over 60 seeds: all within a tenth at 8,192 requests, 95% (4 places) and all (16) at 4,096
        measure = queue(places, seed, SLO(LIMIT_S + 0.05, 10))
        found = goodput_search(measure, places / 4, places * 1.2, most_requests=4096)
        assert found.rate_per_s == pytest.approx(truth, rel=0.1)


def test_in_19_of_20_seeds_the_rate_found_is_within_a_tenth_and_few_trials_do():
    found = [goodput_search(drawn(knee, seed), 1, 100) for seed in range(200)]
    rates = np.array([f.rate_per_s for f in found])
    assert np.mean(np.abs(rates / 10 - 1) <= 0.1) >= 0.95
    halvings = math.ceil(math.log2(math.log(100) / math.log(STEP)))
    decided = [sum(trial.counted is not None for trial in f.trials) for f in found]
    assert np.median(decided) <= 2 + halvings + 1 and max(decided) <= 2 * (2 + halvings)


def test_noise_cannot_make_the_search_swing():
    for seed in range(100):
        found = goodput_search(drawn(knee, seed), 1, 100, requests=64, most_requests=512)
        failed = [t.rate_per_s for t in found.trials if t.counted is Outcome.FAILED]
        assert failed == sorted(set(failed), reverse=True)  # nothing is tried at or above what has failed
        assert found.rate_per_s < found.above_per_s == failed[-1] <= STEP * found.rate_per_s
        last = [t for t in found.trials if t.rate_per_s == found.rate_per_s][-1]
        assert last.requests == 512 and last.counted is Outcome.PASSED


def test_a_pass_that_only_a_short_trial_gives_is_withdrawn():
    """A queue beyond 10 per second that takes more than 1,000 requests to show."""
    short, long = drawn(lambda rate: 1.0 if rate < 20 else 0.0, 0), drawn(lambda rate: 1.0 if rate < 10 else 0.9, 0)
    found = goodput_search(lambda rate, requests: (long if requests > 1000 else short)(rate, requests), 1, 100)
    assert 10 / STEP <= found.rate_per_s <= 10
    withdrawn = [n for n, t in enumerate(found.trials) if "in a longer trial TTFT" in t.reason]
    assert withdrawn and all(found.trials[n].counted is Outcome.FAILED for n in withdrawn)
    assert min(t.requests for t in found.trials[withdrawn[0] + 1 :]) >= 1024  # trusts 512 no more
    everywhere = drawn(lambda rate: 0.9, 0)
    found = goodput_search(lambda rate, requests: (everywhere if requests > 1000 else short)(rate, requests), 1, 10)
    assert found.rate_per_s is None and "in a longer trial" in found.reason
    assert contradicts(replace(short(1, 8), saturated=True)) == "the queue rises"


def test_a_server_that_never_meets_the_slo_has_no_rate_and_a_reason():
    found = goodput_search(queue(4, 0, SLO(0.01, 10)), 0.5, 8)
    assert found.rate_per_s is None and "TTFT SLO met by at most" in found.reason
    assert [trial.rate_per_s for trial in found.trials] == [0.5]
    found = goodput_search(drawn(lambda rate: 1.0, 0, tpot=0.5), 1, 100)
    assert found.rate_per_s is None and "TPOT" in found.reason


def test_a_server_that_always_meets_it_says_that_nothing_higher_was_tried():
    found = goodput_search(drawn(lambda rate: 1.0, 0), 1, 100)
    assert (found.rate_per_s, found.above_per_s) == (100, None) and "highest rate tried" in found.reason


def test_an_undecided_rate_is_measured_longer_and_then_counts_as_failed_saying_so():
    found = goodput_search(drawn(lambda rate: 0.95, 3), 1, 100, requests=100, most_requests=800)
    assert [trial.requests for trial in found.trials] == [100, 200, 400, 800]
    assert [trial.counted for trial in found.trials] == [None, None, None, Outcome.FAILED]
    assert found.rate_per_s is None and "undecided after 800 requests" in found.reason


def test_neither_a_rising_queue_nor_a_void_point_passes():
    good = drawn(lambda rate: 1.0, 0)(1.0, 500)
    assert judge(good)[0] is Outcome.PASSED
    assert judge(replace(good, saturated=True)) == (Outcome.UNDECIDED, "the queue rises")
    assert judge(replace(good, void=("client_lag: late",)))[0] is Outcome.UNDECIDED
    assert judge(Point(n_gpus=1, flags=("too_few_requests",))) == (Outcome.UNDECIDED, "too_few_requests")


@pytest.mark.parametrize("low, high, step", [(0, 1, 1.1), (2, 1, 1.1), (1, 2, 1.0)])
def test_a_search_that_could_not_end_is_refused(low, high, step):
    with pytest.raises(ValueError, match="expected 0 < low < high"):
        goodput_search(drawn(knee, 0), low, high, step=step)
