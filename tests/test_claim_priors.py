"""Priors: the draws have the quantiles that were stated, and nobody's draws depend on anybody else's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.claim.priors import Correlation, Prior, draw, quantile
from bench.config import ConfigError

SOURCE = {"unit": "x", "source": "judgement: a test", "judgement": True}
DRAWS, SEED = 100_000, 1


def prior(distribution, **numbers):
    return Prior(distribution=distribution, **numbers, **SOURCE)


@pytest.mark.parametrize(
    "stated",
    [
        prior("lognormal", p10=1.7, p50=2.5, p90=3.8),
        prior("lognormal", p10=4.4, p50=8, p90=10.4),
        prior("logitnormal", p10=0.40, p50=0.47, p90=0.58),
        prior("normal", p10=-1, p50=0, p90=3),
    ],
)
def test_draws_have_the_stated_quantiles(stated):
    values = draw({"a": stated}, (), DRAWS, SEED)["a"]
    assert np.quantile(values, [0.1, 0.5, 0.9]) == pytest.approx(stated.numbers, rel=0.02, abs=0.02)


@given(
    st.sampled_from(["lognormal", "logitnormal", "normal"]),
    st.lists(st.floats(0.01, 0.99), min_size=3, max_size=3).map(sorted),
)
def test_all_three_quantiles_are_met_exactly(distribution, numbers):
    stated = prior(distribution, **dict(zip(("p10", "p50", "p90"), numbers, strict=True)))
    z = np.array([-1.2815515655446004, 0.0, 1.2815515655446004])
    assert quantile(stated, z) == pytest.approx(numbers, rel=1e-9)


@given(st.floats(0, 10), st.floats(0.1, 10), st.floats(0.1, 10))
@settings(max_examples=20)
def test_a_triangle_stays_inside_its_ends_and_has_the_known_mean(low, rise, fall):
    stated = prior("triangular", low=low, mode=low + rise, high=low + rise + fall)
    values = draw({"a": stated}, (), 20_000, SEED)["a"]
    assert values.min() >= low and values.max() <= low + rise + fall
    assert values.mean() == pytest.approx(sum(stated.numbers) / 3, abs=0.03 * (rise + fall))


def test_uniform_fixed_and_clip():
    parameters = {
        "u": prior("uniform", low=2, high=4),
        "f": prior("fixed", value=7),
        "c": prior("lognormal", p10=1, p50=2, p90=4, clip=[1, 3]),
    }
    drawn = draw(parameters, (), DRAWS, SEED)
    assert drawn["u"].mean() == pytest.approx(3, abs=0.01)
    assert set(drawn["f"]) == {7.0}
    assert (drawn["c"].min(), drawn["c"].max()) == (1, 3)


def test_every_parameter_has_its_own_stream():
    a, b = prior("normal", p10=-1, p50=0, p90=1), prior("normal", p10=-1, p50=0, p90=1)
    alone = draw({"a": a}, (), 1000, SEED)["a"]
    beside = draw({"z": b, "a": a}, (), 1000, SEED)
    assert np.array_equal(alone, beside["a"])
    assert abs(np.corrcoef(beside["a"], beside["z"])[0, 1]) < 0.1
    assert not np.array_equal(alone, draw({"a": a}, (), 1000, SEED + 1)["a"])


def test_correlated_parameters_keep_their_quantiles():
    parameters = {n: prior("lognormal", p10=1, p50=2, p90=5) for n in "ab"}
    pair = Correlation(a="a", b="b", value=0.6, source="test")
    drawn = draw(parameters, [pair], DRAWS, SEED)
    scores = np.corrcoef(np.argsort(np.argsort(drawn["a"])), np.argsort(np.argsort(drawn["b"])))[0, 1]
    assert scores == pytest.approx(6 / np.pi * np.arcsin(0.3), abs=0.01)  # Spearman's rank of a normal copula
    assert np.quantile(drawn["b"], [0.1, 0.5, 0.9]) == pytest.approx([1, 2, 5], rel=0.02)


def test_correlations_that_contradict_each_other_are_one_line():
    parameters = {n: prior("normal", p10=-1, p50=0, p90=1) for n in "abc"}
    clash = [("a", "b", 0.9), ("b", "c", 0.9), ("a", "c", -0.9)]
    pairs = [Correlation(a=a, b=b, value=v, source="test") for a, b, v in clash]
    with pytest.raises(ConfigError, match="cannot all hold at once"):
        draw(parameters, pairs, 1000, SEED)


@pytest.mark.parametrize(
    ("distribution", "numbers", "message"),
    [
        ("lognormal", {"p10": 3, "p50": 2, "p90": 4}, "p10 <= p50 <= p90"),
        ("lognormal", {"p10": 0, "p50": 2, "p90": 4}, "a positive number"),
        ("logitnormal", {"p10": 0.1, "p50": 0.5, "p90": 1}, "inside 0 and 1"),
        ("lognormal", {"low": 1, "high": 2}, "to state p10, p50, p90"),
        ("uniform", {"low": 2, "high": 2}, "less than high"),
        ("fixed", {}, "to state value"),
        ("beta", {"p10": 0.1, "p50": 0.5, "p90": 0.9}, "one of lognormal"),
    ],
)
def test_a_prior_that_states_nonsense_is_refused(distribution, numbers, message):
    with pytest.raises(ValueError, match=message):
        prior(distribution, **numbers)


def test_a_source_and_known_evidence_are_required():
    with pytest.raises(ValueError, match="where the numbers come from"):
        Prior(distribution="fixed", value=1, unit="x", source=" ")
    with pytest.raises(ValueError, match=r"an id of configs/evidence\.csv, got 'E9999'"):
        Prior(distribution="fixed", value=1, unit="x", source="s", evidence=("E9999",))
