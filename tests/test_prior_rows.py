"""configs/prior_rows.csv: every prior that was worked out is used as it stands, or says why it is not."""

from __future__ import annotations

import csv

import pytest

from bench import config
from bench.claim.spec import Claim
from bench.price.book import Provider

CLAIMS = config.load_all(Claim)
with open(config.CONFIGS / "prior_rows.csv", newline="", encoding="utf-8") as file:
    ROWS = list(csv.DictReader(file))


def numbers(row):
    return [float(row[name]) for name in ("low", "middle", "high") if row[name]]


def test_none_is_missing_and_none_stands_twice():
    assert len(ROWS) == len({row["prior"] for row in ROWS}) == 39


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["prior"])
def test_a_prior_is_used_or_says_why_not(row):
    assert bool(row["used_by"]) != bool(row["why_not"])
    assert len(numbers(row)) == 3


@pytest.mark.parametrize("row", [row for row in ROWS if row["used_by"]], ids=lambda row: row["prior"])
def test_who_uses_it_states_its_numbers(row):
    for use in row["used_by"].split(";"):
        where, name = use.split(":")
        if where.startswith("providers/"):
            (own,) = config.load(Provider, where.removeprefix("providers/")).owned
            span = own.ranges[name]
            assert [span.low, span.value, span.high] == numbers(row), use
        elif "~" in name:
            a, b = name.split("~")
            (pair,) = [p for p in CLAIMS[where].correlation if {p.a, p.b} == {a, b}]
            low, middle, high = numbers(row)
            assert pair.value == middle and pair.judgement
            assert pair.low is None or [pair.low, pair.high] == [low, high]
        else:
            assert list(CLAIMS[where].parameters[name].numbers) == pytest.approx(numbers(row)), use


def test_tokens_and_their_cost_move_together_wherever_one_claim_draws_both():
    """Draws apart would let serving spending fall after 2028, which no source shows."""
    both = {"cost_per_token_decline", "tokens_per_gpu_growth"}
    found = 0
    for claim in CLAIMS.values():
        for cost in both & set(claim.parameters):
            demands = [n for n in claim.parameters if n.startswith(("token_demand_growth", "token_growth"))]
            assert demands
            for demand in demands:
                (pair,) = [p for p in claim.correlation if {p.a, p.b} == {cost, demand}]
                assert pair.value == 0.7
                found += 1
    assert found == 3
