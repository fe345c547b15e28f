"""The growth kind: a hand-computed probability, correlations at their ends, and what stands beside is no verdict."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace

import pytest

from bench import config
from bench.claim import growth, table
from bench.claim.priors import Correlation, Prior
from bench.claim.sections import Growth
from bench.claim.spec import Claim

KEY = "efficiency_outruns_demand"
CLAIM = config.load(Claim, KEY)
Z90 = 1.2815515655446004


def phi(z):
    return 0.5 * math.erfc(-z / math.sqrt(2))


def lognormal(middle, factor):
    return Prior(
        distribution="lognormal", p10=middle / factor, p50=middle, p90=middle * factor, unit="x a year", source="test"
    )


def claim_of(correlation):
    return replace(
        CLAIM,
        years=(2026, 2028, 2030),
        parameters={"fall": lognormal(2.5, 1.5), "near": lognormal(3.0, 2.0), "far": lognormal(2.0, 2.0)},
        correlation=correlation,
        growth=(
            Growth(
                name="g",
                text="g",
                left={"2026": "fall"},
                right={"2026": "near", "2030": "far"},
                unit="x",
                note="test",
            ),
        ),
    )


def pair(value, **ends):
    return tuple(Correlation(a="fall", b=b, value=value, source="test", **ends) for b in ("near", "far"))


def by_year(rows, kind, subject):
    return {r["year"]: r for r in rows if (r["kind"], r["subject"]) == (kind, subject)}


@pytest.mark.parametrize("value", [0.0, 0.6])
def test_the_probability_is_the_hand_computed_one(value):
    found = by_year(growth.answer(claim_of(pair(value))), "verdict", "g")
    fall, demand = math.log(1.5) / Z90, math.log(2.0) / Z90
    sd = math.sqrt(fall**2 + demand**2 - 2 * value * fall * demand)
    for year, other in ((2026, 3.0), (2030, 2.0)):
        assert found[year]["probability"] == pytest.approx(phi(math.log(2.5 / other) / sd), abs=0.006)
        assert found[year]["p50"] == pytest.approx(other / 2.5, rel=0.01)
    assert found[2028]["p50"] == pytest.approx(math.sqrt(6.0) / 2.5, rel=0.01)  # half way in logarithms


def test_a_correlation_with_a_range_is_answered_at_both_ends():
    rows = growth.answer(claim_of(pair(0.5, low=0.1, high=0.6)))
    base = by_year(growth.answer(claim_of(pair(0.1))), "verdict", "g")
    low, high = (by_year(rows, "sensitivity", f"g: correlation {value:g}") for value in (0.1, 0.6))
    assert low[2026]["probability"] == base[2026]["probability"]
    assert set(high) == {2026, 2028, 2030} and high[2030]["probability"] > low[2030]["probability"] > 0.5
    assert not [r for r in growth.answer(claim_of(pair(0.5))) if "correlation" in r["subject"]]


def test_the_price_of_a_capability_is_beside_and_never_a_verdict():
    rows = growth.answer(CLAIM)
    beside = by_year(rows, "finding", f"{KEY}: beside, no verdict")
    verdicts = by_year(rows, "verdict", KEY)
    assert set(beside) == set(verdicts) == set(CLAIM.years) == {2026, 2027, 2028, 2029, 2030}
    for year in CLAIM.years:
        assert beside[year]["verdict"] is None and beside[year]["note"].startswith("not for spend")
        assert beside[year]["probability"] > verdicts[year]["probability"]
        assert "E194" in beside[year]["evidence"] and verdicts[year]["threshold"] == 1
    assert verdicts[2026]["verdict"] == "fails"  # 7 against 2.5
    # without what is beside, no verdict moves
    growths = tuple(replace(item, beside={}, beside_note="") for item in CLAIM.growth)
    read = {name: CLAIM.parameters[name] for name in growths[0].parameters}
    alone = replace(CLAIM, growth=growths, parameters=read)
    assert by_year(growth.answer(alone), "verdict", KEY) == verdicts


def test_its_verdicts_count_their_judgements():
    (row,) = (r for r in growth.answer(CLAIM) if r["kind"] == "verdict" and r["year"] == 2026)
    assert (row["priors"], row["judged"]) == (3, 2)


def test_it_stands_in_claims_csv():
    rows = table.claims([], datetime.date(2026, 11, 22))
    assert len([r for r in rows if r["claim"] == KEY and r["kind"] == "verdict"]) == 5


def test_what_would_flip_the_last_years_verdict_is_named_with_its_value():
    """With the decline held, it holds where 90% of demand growth lies below it: at that prior's p90."""
    rows = growth.answer(config.load(Claim, "efficiency_outruns_demand"))
    (index,) = [row for row in rows if row["kind"] == "sobol"]
    assert index["year"] == 2030 and index["total_order"] == pytest.approx(1.0)  # all three move together
    flips = {row["subject"].partition(": ")[2]: row for row in rows if row["kind"] == "flip"}
    assert flips["cost_per_token_decline"]["threshold"] == pytest.approx(3.5, rel=0.02)
    assert flips["cost_per_token_decline"]["verdict"] == "holds"
    assert flips["token_demand_growth_2026"]["threshold"] is None, "2026 says nothing about 2030"
