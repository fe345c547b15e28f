"""Intervals and percentiles: against scipy, and against how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from bench.points.intervals import bootstrap_mean, effective_count, order_ranks, slope, student, wilson
from bench.points.percentiles import percentile
from tests.queue_model import exponential, open_loop


def test_intervals_agree_with_scipy():
    for kept, count in ((95, 100), (512, 512), (0, 30)):
        theirs = stats.binomtest(kept, count).proportion_ci(method="wilson")
        assert wilson(kept / count, count) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    for freedom in (5, 8, 15, 31):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=5e-4)
    x, y = np.arange(10.0), np.array([1, 3, 2, 5, 4, 6, 8, 7, 9, 9.5])
    line = stats.linregress(x, y)
    reach = stats.t.ppf(0.975, 8) * line.stderr
    assert slope(x, y) == pytest.approx((line.slope, line.slope - reach, line.slope + reach), rel=1e-3)


@pytest.mark.parametrize("count", [6, 72, 368, 5000])
@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.99])
def test_order_ranks_leave_no_more_than_a_fortieth_outside_and_could_not_be_closer(count, quantile):
    low, high = order_ranks(count, quantile)
    law = stats.binom(count, quantile)
    assert law.cdf(low - 1) <= 0.025 < law.cdf(low)
    assert law.sf(high - 1) <= 0.025 < law.sf(high - 2)


def test_order_ranks_of_millions_are_those_of_the_exact_binomial():
    low, high = order_ranks(1_000_000, 0.99)
    exact = stats.binom(1_000_000, 0.99).interval(0.95)
    assert (low, high) == pytest.approx(exact, abs=3)


def test_the_interval_of_a_few_sub_windows_covers_what_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        low, high = bootstrap_mean(rng.normal(10, 1, 8))
        hits += low <= 10 <= high
    assert hits >= 0.91 * 400  # read at 2.5% and 97.5% the same bootstrap covers 88%


def test_requests_that_wait_together_count_as_fewer():
    rng = np.random.default_rng(1)
    alone = [effective_count(rng.random(800) < 0.95) for _ in range(200)]
    assert np.mean(np.array(alone) == 800) > 0.9
    assert effective_count(np.repeat(rng.random(40) < 0.7, 50)) < 400
    assert effective_count(np.ones(800)) == 800


def test_attainment_in_a_queue_is_covered_better_than_independence_would():
    outcomes = np.array([r.ttft_s for r in open_loop(2.0, 60_500, exponential(1.0), 4, seed=7)])[500:]
    limit = np.quantile(outcomes, 0.95)
    naive = honest = 0
    for stretch in (outcomes <= limit).reshape(60, 1000):
        for count in (1000, effective_count(stretch)):
            low, high = wilson(stretch.mean(), count)
            inside = low <= 0.95 <= high
            naive, honest = naive + (inside and count == 1000), honest + (inside and count != 1000)
    assert naive <= 0.7 * 60 and naive + honest >= 0.85 * 60


@pytest.mark.parametrize("quantile, least", [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368)])
def test_no_percentile_without_the_samples_to_prove_it(quantile, least):
    samples = np.random.default_rng(0).random(least)
    assert percentile(samples[1:], quantile) is None
    assert percentile(samples, quantile) is not None


def test_percentile_intervals_cover_the_truth():
    rng = np.random.default_rng(2)
    for quantile in (0.5, 0.95):
        truth, hits = float(stats.norm.ppf(quantile)), 0
        for _ in range(300):
            found = percentile(rng.normal(size=200), quantile)
            high = math.inf if found.high is None else found.high
            assert found.low <= found.value <= high
            hits += found.low <= truth <= high
        assert hits >= 0.93 * 300


def test_an_interval_that_dependence_pushes_out_of_the_sample_is_open():
    found = percentile(np.repeat(np.random.default_rng(0).permutation(20), 20), 0.95)
    assert found.low is not None and found.high is None
