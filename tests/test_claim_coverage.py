"""No silent holes: what no definition answers has a reason, and no reason outlives its hole."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from bench import config
from bench.claim import engine
from bench.claim.coverage import explains, holes
from bench.claim.definitions import ACCOUNTINGS
from bench.claim.sections import VIEWS
from bench.claim.spec import Claim
from bench.claim.world import world
from bench.config import ConfigError
from bench.price.throughput import published

KEY = "inference_overtakes_training"
CLAIM = config.load(Claim, KEY)


@pytest.fixture
def path(tmp_path, monkeypatch):
    copy = tmp_path / "configs"
    shutil.copytree(config.CONFIGS, copy)
    monkeypatch.setattr(config, "CONFIGS", copy)
    return copy / "claims" / f"{KEY}.toml"


def test_every_accounting_of_openai_anthropic_and_the_industry_is_answered_or_explained_in_every_year_and_view():
    """Shares drawn, not fields: what the engine prints is what counts as an answer."""
    rows = engine.answer(world(CLAIM, published()))
    answered = {(r["organisation"], r["accounting"], r["subject"], r["year"]) for r in rows if r["kind"] == "share"}
    for organisation in ("OpenAI", "Anthropic", "industry"):
        for accounting in ACCOUNTINGS:
            for view in VIEWS:
                for year in range(2024, 2031):
                    hole = (organisation, accounting, view, year)
                    explained = any(explains(reason, hole) for reason in CLAIM.unanswered)
                    assert (hole in answered) != explained, hole
    reasons = [r for r in rows if (r["subject"] or "").startswith("unanswered: ")]
    assert len(reasons) == len(CLAIM.unanswered) and all(r["note"] and r["accounting"] for r in reasons)


def test_each_organisation_is_answered_by_what_public_figures_carry():
    told = {(d.organisation, d.accounting, d.route) for d in CLAIM.definitions.values()}
    assert told == {
        ("OpenAI", "D1", "bottom_up"),
        ("OpenAI", "D1", "top_down"),
        ("OpenAI", "D2", "bottom_up"),
        ("OpenAI", "D2", "top_down"),
        ("OpenAI", "D2", "plan"),
        ("OpenAI", "D3", "accounts"),
        ("Anthropic", "D1", "plan"),
        ("Anthropic", "D2", "plan"),
        ("industry", "D1", "surveys"),
        ("industry", "D4", "surveys"),
    }


REASON = """[[unanswered]]
organisation = "OpenAI"
accounting = "D3"
years = [2024]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (REASON, REASON.replace("2024", "2025"), "a definition or a reason for D3 of OpenAI, by kernel type, in 2024"),
        (REASON, REASON.replace('"D3"', '"D2"'), "a definition or a reason for D3 of OpenAI"),
        (REASON, REASON.replace("years", 'view = "by kernel typ"\nyears'), "did you mean by kernel type?"),
        (
            'organisation = "industry"\naccounting = "D4"\nroute',
            'organisation = "world"\naccounting = "D4"\nroute',
            "D",
        ),
        ('accounting = "D3"\nroute = "accounts"', 'accounting = "D5"\nroute = "accounts"', "name of a accounting"),
        ('route = "accounts"', 'route = "account"', "did you mean accounts?"),
        ('route = "accounts"\n', "", "organisation, accounting and route, all three or none"),
        ('route = "accounts"', 'route = "bottom_up"', "bottom_up, the route of served_flop, and of no other method"),
        ('first_year = 2025\nnote = "booked', 'first_year = 2024\nnote = "booked', "D3 of OpenAI is answered there"),
    ],
)
def test_a_hole_without_a_reason_or_a_reason_without_a_hole_is_one_line(path, old, new, message):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        config.load(Claim, KEY)
    assert message in str(caught.value) and "\n" not in str(caught.value) and f"{KEY}.toml" in str(caught.value)


def test_a_definition_taken_away_leaves_a_hole():
    some = {key: d for key, d in CLAIM.definitions.items() if key != "D4"}
    left = holes(some, [], CLAIM.years)
    assert not any(
        o == "industry" and a == "D4" for o, a, _, _ in holes(CLAIM.definitions, [], (2026,)) if _ == VIEWS[0]
    )
    assert ("industry", "D4", "by purpose", 2026) in left


def test_a_plan_answers_nothing_beyond_its_horizon_nor_before_it_starts():
    plan = CLAIM.definitions["D2_plan"]
    left = holes({"plan": replace(plan, first_year=2026, last_year=2028)}, [], (2025, 2026, 2028, 2029))
    of_d2 = {(view, year) for _, accounting, view, year in left if accounting == "D2"}
    assert of_d2 == {(view, year) for view in VIEWS for year in (2025, 2029)}


def test_a_claim_that_names_no_organisation_has_nothing_to_cover():
    assert holes({}, [], (2026,)) == set()
