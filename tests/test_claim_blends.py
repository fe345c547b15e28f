"""The blend claim: verdicts follow from outcomes, the value of a lost hour is the one at which costs meet."""

from __future__ import annotations

import csv
import datetime
import shutil

import numpy as np
import pytest
from answers import whole

from bench import config
from bench.claim import blends
from bench.claim.spec import Claim
from bench.price import cost
from bench.price.throughput import published

TODAY = datetime.date(2026, 11, 28)
KEY = "multi_cloud"
CLAIM = config.load(Claim, KEY)


@pytest.fixture(scope="module")
def rows():
    return blends.answer(CLAIM)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    copy = tmp_path / "configs"
    shutil.copytree(config.CONFIGS, copy)
    monkeypatch.setattr(config, "CONFIGS", copy)
    return copy


def verdicts(rows):
    return {row["subject"]: row for row in rows if row["kind"] == "verdict"}


def test_each_comparison_has_its_verdicts_and_they_follow_from_the_draws(rows):
    world, found = blends.World.of(CLAIM), verdicts(rows)
    tails = ("_cheaper", "_more_available", "_fewer_blackouts", "")
    assert set(found) == {f"{item.name}{tail}" for item in CLAIM.blend for tail in tails}
    for item in CLAIM.blend:
        left, right = (world.outcome(key, item.year) for key in (item.left, item.right))
        cheaper, steadier = left.total < right.total, left.lost_hours < right.lost_hours
        assert found[f"{item.name}_cheaper"]["probability"] == pytest.approx(cheaper.mean())
        assert found[f"{item.name}_more_available"]["probability"] == pytest.approx(steadier.mean())
        assert found[item.name]["probability"] == pytest.approx((cheaper & steadier).mean())
        assert found[item.name]["p50"] == pytest.approx(np.median(left.total - right.total))
        assert all(found[f"{item.name}{tail}"]["definition"] == "contract" for tail in tails)


def test_what_the_claim_says_today(rows):
    """Two clouds cost more, and end blackouts; whether they lose less serving depends on how fast it fails over."""
    found = verdicts(rows)
    assert found["two_clouds_beat_one_cheaper"]["verdict"] == "fails"
    assert found["two_clouds_beat_one_more_available"]["verdict"] == "undecided"
    assert found["two_clouds_beat_one_fewer_blackouts"]["verdict"] == "holds"
    swings = {row["subject"]: row for row in rows if row["kind"] == "sensitivity"}
    moved = swings["two_clouds_beat_one_more_available: failover_hours"]
    assert moved["p10"] > 0.9 > moved["p50"] > 0.6 > moved["p90"]


def test_at_the_value_found_both_cost_the_same(rows):
    """Give each draw its own value of a lost hour: where the first loses less serving, the costs meet."""
    world = blends.World.of(CLAIM)
    (row,) = (r for r in rows if r["subject"] == "two_clouds_beat_one: value of a lost serving hour")
    low, high = (
        blends.World(CLAIM, world.book, world.outages, world.x | {"usd_per_lost_serving_hour": np.full(10_000, v)}, {})
        for v in (row["p10"], row["p90"])
    )
    steadier = world.outcome("two_clouds", 2030).lost_hours < world.outcome("one_cloud", 2030).lost_hours
    for other, expected in ((low, 0.1), (high, 0.9)):
        cheaper = other.outcome("two_clouds", 2030).total < other.outcome("one_cloud", 2030).total
        assert cheaper[steadier].mean() == pytest.approx(expected, abs=0.002)
    assert f"{steadier.mean():.0%} of draws" in row["note"]
    assert row["threshold"] < row["p10"] / 20  # an hour is worth a few dollars, not hundreds


def test_portfolios_are_told_part_by_part_in_the_year_compared(rows):
    told = [r for r in rows if r["kind"] == "blend" and r["definition"] == "two_clouds"]
    subjects = {(r["subject"], r["year"]) for r in told}
    assert {year for _, year in subjects} == {2026, 2028, 2030}
    assert {subject for subject, year in subjects if year == 2026} == set(blends.PATH)
    (manager,) = (r for r in told if r["subject"] == "manager")
    assert manager["p10"] > 0 and "multi-cloud manager" in manager["note"]
    (one_cloud,) = (r for r in rows if r["definition"] == "one_cloud" and r["subject"] == "manager")
    assert one_cloud["p90"] == 0
    assert all(r["evidence"] for r in told)


def test_a_portfolio_of_ones_own_is_one_file_and_a_line_of_the_claim(folder):
    text = (folder / "portfolios" / "two_clouds.toml").read_text()
    (folder / "portfolios" / "mine.toml").write_text(text.replace('"aws"', '"oracle"').replace("aws =", "oracle ="))
    path = folder / "claims" / f"{KEY}.toml"
    path.write_text(path.read_text().replace('left = "two_clouds"', 'left = "mine"').replace("10_000", "1_000"))
    found = blends.answer(config.load(Claim, KEY))
    assert {r["definition"] for r in found if r["kind"] == "blend"} >= {"mine"}
    assert verdicts(found)["two_clouds_beat_one_cheaper"]["unit"] == "mine / one_cloud"


def test_before_its_prices_were_known_a_portfolio_is_compared_with_nothing(folder):
    path = folder / "portfolios" / "two_clouds.toml"
    path.write_text(path.read_text().replace("as_of = 2026-08-14", "as_of = 2026-11-20"))
    found = blends.answer(CLAIM, datetime.date(2026, 11, 19))
    assert not [s for s in verdicts(found) if s.startswith("two_clouds_beat_one")]
    assert verdicts(found)["stargate_75_beats_one"]["verdict"]
    (said,) = (r for r in found if r["kind"] == "finding" and r["subject"] == "two_clouds_beat_one")
    assert "no such prices were known on 2026-11-19" in said["note"]
    assert {r["kind"] for r in blends.answer(CLAIM, datetime.date(2025, 1, 1))} == {"finding"}


def test_every_system_of_the_question_has_a_row():
    """Azure, AWS, Google Cloud, Oracle, Stargate in costs; Maia and a multi-cloud manager in claims."""
    priced = cost.costs(published(), TODAY)
    assert {"azure", "aws", "gcp", "oracle", "stargate"} <= {row["x_provider"] for row in priced}
    found = whole()
    (maia,) = (
        r for r in found if r["kind"] == "price" and (r["subject"] or "").startswith("Azure's owner cost per Maia")
    )
    assert maia["basis"] == "modelled" and 1.5 < maia["p50"] < 3.5
    assert [r for r in found if r["claim"] == KEY and r["subject"] == "manager"]
    cheaper = verdicts([r for r in found if r["claim"] == "custom_silicon"])["maia_cheaper_by_owner_cost"]
    assert (cheaper["basis"], cheaper["definition"]) == ("modelled", "owner")
    assert "proxy" in cheaper["note"] and "maker's sentence alone" in cheaper["note"]


def test_findings_are_rows_of_the_schema_in_a_fixed_order(rows):
    again = blends.answer(CLAIM)
    assert blends.answer(CLAIM) == again
    with (config.CONFIGS / "evidence.csv").open(newline="") as file:
        known = {row["id"] for row in csv.DictReader(file)}
    for row in rows:
        assert set(filter(None, (row["evidence"] or "").split(";"))) <= known
