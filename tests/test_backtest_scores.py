"""The back-test's scores against numbers made by hand, and what the report says of them."""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np
import pytest

from bench import config
from bench.claim import evidence
from bench.claim.backtest import answer, spec
from bench.claim.backtest.forecasts import Forecast
from bench.claim.backtest.outcomes import Outcome, outcomes
from bench.claim.backtest.scores import Score, binomial, crps, pinball, score, skill
from bench.price.history import history
from bench.report.backtest import ratios, section
from bench.report.material import gather

TODAY = datetime.date(2026, 11, 22)
EVE = datetime.date(2026, 1, 1)
FILE = spec.load()


# ---------------------------------------------------------------- scores


def test_pinball_by_hand():
    # y above all three: 2 x 0.1, 1 x 0.5, and below q90 by 1: 1 x 0.1
    assert pinball((1.0, 2.0, 4.0), (0.1, 0.5, 0.9), 3.0) == pytest.approx((0.2 + 0.5 + 0.1) / 3)
    assert pinball((2.0,), (0.9,), 1.0) == pytest.approx(0.1)


def test_crps_by_hand_and_of_the_normal():
    assert crps(np.array([0.0, 0.0]), 3.0) == 3.0  # a point: the absolute error
    assert crps(np.array([1.0, 0.0]), 0.0) == pytest.approx(0.5 - 0.25)  # E|X-y| 1/2, E|X-X'| 1/2
    x = np.random.default_rng(1).standard_normal(200_000)
    # Gneiting and Raftery 2007: CRPS(N(0,1), 0) = 2 phi(0) - 1/sqrt(pi)
    assert crps(x, 0.0) == pytest.approx(2 / np.sqrt(2 * np.pi) - 1 / np.sqrt(np.pi), abs=2e-3)


def forecast(draws, name="a", cluster="c", **more):
    said = {"text": "", "organisation": "", "scale": "log", "unit": "x", "period": ""}
    return Forecast(id=name, cluster=cluster, **said, draws=draws, **more)


def test_a_calibrated_forecaster_covers_80_percent_and_its_pit_is_flat():
    rng = np.random.default_rng(7)
    found = []
    for number in range(2000):
        mean = rng.normal(0, 3)
        y = np.exp(rng.normal(mean, 0.5))
        draws = np.exp(rng.normal(mean, 0.5, 1000))
        found.append(score(forecast(draws, f"{number}"), Outcome(float(y), (float(y),), ())))
    share = np.mean([one.inside for one in found])
    assert share == pytest.approx(0.8, abs=0.03)
    assert np.histogram([one.pit for one in found], 5, (0, 1))[0] == pytest.approx(400, abs=70)
    low, high = binomial(share * 2000, 2000)
    assert low < 0.8 < high


def test_scores_are_on_the_targets_scale_and_naive_answers_get_the_same_spread():
    draws = np.exp(np.random.default_rng(3).normal(0, 0.1, 20_000))
    one = score(forecast(draws, no_change=float(np.exp(0.3)), last_growth=1.0), Outcome(float(np.exp(0.3)), (1.0,), ()))
    at_the_middle = crps(np.log(draws) - np.median(np.log(draws)), 0.0)
    assert one.no_change == pytest.approx(at_the_middle, rel=1e-6)  # it hit: the spread alone is paid for
    assert one.crps == pytest.approx(one.last_growth, abs=2e-3) and one.crps > 5 * one.no_change
    assert not one.inside and one.inside_any and one.pit > 0.99  # another source says 1.0


def scores_of(count, clusters, ours=1.0, naive=2.0):
    return [
        Score(f"{i}", f"c{i % clusters}", False, True, True, True, 0.5, 0.1, ours, naive, None) for i in range(count)
    ]


@pytest.mark.parametrize(("count", "clusters", "claimed"), [(4, 4, False), (5, 5, True), (40, 4, False)])
def test_below_five_targets_or_clusters_no_skill_is_claimed(count, clusters, claimed):
    found = skill(scores_of(count, clusters), "no_change", FILE.least_scored, 1)
    assert (found.targets, found.clusters) == (count, clusters)
    assert (found.value is not None) is claimed
    if claimed:
        assert found.value == found.low == found.high == pytest.approx(0.5)
    row = next(
        r for r in answer.summaries(FILE, scores_of(count, clusters)) if r["subject"] == "skill against no change"
    )
    assert (answer.NONE in row["note"]) is not claimed and row["targets"] == count
    assert ("p50" in row) is claimed


def test_skill_resamples_clusters_not_targets():
    many = [Score(f"{i}", "one lab", False, True, True, True, 0.5, 0.1, 1.0, 3.0, None) for i in range(100)]
    few = [Score(f"x{i}", f"c{i}", False, True, True, True, 0.5, 0.1, 3.0, 1.0, None) for i in range(5)]
    found = skill([*many, *few], "no_change", 5, 1)
    assert found.clusters == 6 and found.value > 0.5
    assert found.low < -1  # a sample without the one lab: the interval must know it


def test_the_interval_of_coverage_counts_clusters():
    # Clopper and Pearson 1934: 8 of 10 -> 0.444 to 0.975
    assert binomial(8, 10) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert binomial(0, 5)[0] == 0.0 and binomial(5, 5)[1] == 1.0
    row = answer.summaries(FILE, scores_of(40, 10))[0]
    assert (row["p10"], row["p90"]) == binomial(10, 10) and row["clusters"] == 10


def test_coverage_is_told_without_naive_priors_too():
    wide = [replace(one, naive=True) for one in scores_of(4, 4)]
    narrow = [replace(one, inside=False) for one in scores_of(1, 1)] + scores_of(1, 1)
    rows = {r["subject"]: r for r in answer.summaries(FILE, [*wide, *narrow])}
    assert rows[answer.COVERAGE]["p50"] == pytest.approx(5 / 6)
    assert rows[answer.FIRM]["p50"] == 0.5 and rows[answer.FIRM]["targets"] == 2
    assert answer.summaries(FILE, wide)[1]["p50"] is None


# ---------------------------------------------------------------- on the page


def page(rows):
    """The section of these rows."""
    return section(gather([], [], [], [], {"backtest": rows}, TODAY))


def test_the_section_says_how_it_went():
    rows = answer.backtest([], TODAY)
    found = page(rows)
    cells = [row.cells for row in found.tables[0].rows]
    assert [line[0] for line in cells] == [f"{cutoff}" for cutoff in FILE.cutoffs]
    assert cells[0][7] == "no skill claimed (13 in 4)"
    targets = [row for row in rows if (row["cutoff"], row["kind"]) == (f"{EVE}", "target")]
    outside = [row for row in targets if row["inside"] == "no"]
    words = str(found.text)
    assert f"held {len(targets) - len(outside)} of {len(targets)} outcomes" in words
    assert "not shown to do better than naive answers" in words and "not shown to be too narrow or too wide" in words
    missed = "".join(str(part) for part in found.bullets[0])
    assert missed.count("came out") == len(outside) and "OpenAI serving USD 2025 (came out below)" in missed
    assert found.figures[0].name != found.id  # both are anchors of one page
    assert page([]) is None


def test_a_section_with_nothing_scored_and_one_that_is_too_narrow():
    rows = answer.backtest([], FILE.cutoffs[0])
    found = page(rows)
    assert "Nothing has come true yet" in str(found.text) and not found.figures and not found.bullets
    narrow = [
        {**r, "p90": 0.7} if r["subject"] == "coverage of the 80% interval" else r for r in answer.backtest([], TODAY)
    ]
    assert "they are too narrow" in str(page(narrow).text)


def test_a_share_is_drawn_as_odds():
    row = {"subject": "a_share", "scale": "logit", "outcome": 0.5, "p10": 0.5, "p50": 0.75, "p90": 0.9, "inside": "yes"}
    assert ratios(row) == {"target": "A share", "outcome": "inside", "p10": 1.0, "p50": 3.0, "p90": pytest.approx(9.0)}


def test_an_outcome_counts_from_its_first_publication_not_from_a_retelling():
    assert "epoch.ai" in (config.CONFIGS / "evidence.csv").read_text().split("\nE194,")[1].splitlines()[0]
    found = [outcomes(FILE, evidence.figures(), history(TODAY), cutoff, TODAY) for cutoff in FILE.cutoffs]
    assert ["quality_price_fall_2025" in one for one in found] == [True, False, False]  # out on 12 March 2025
