"""Sobol indices against functions whose indices are known, and through a claim: sets, inert inputs, break-evens."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
from answers import whole
from scipy.special import logit, ndtr

from bench import config, results
from bench.claim import engine, sobol
from bench.claim.influence import influence
from bench.claim.priors import Z90, Correlation, together
from bench.claim.sobol import Index, indices, unsettled
from bench.claim.spec import Claim
from bench.claim.world import world

SEED = 20261122

SMALL = """
kind = "share"
question = "test?"
source = "test"
years = [2024, 2025]
draws = 20_000
seed = 3
headline = { statement = "leads", definition = "D2" }
decision = { holds_at = 0.9, fails_at = 0.1, thresholds = { half = 0.5 } }
[[statement]]
name = "leads"
text = "serving leads"
year = 2025
threshold = "half"
source = "test"
[definitions.D2]
text = "test"
method = "growth"
first_year = 2024
note = "test"
use = { base_share = "base" }
by_year = { serving = { 2025 = "serves", 2026 = "later" }, other = { 2025 = "trains", 2026 = "later" } }
[parameters]
base = { distribution = "logitnormal", p10 = 0.3, p50 = 0.5, p90 = 0.7, unit = "fraction", source = "test" }
serves = { distribution = "lognormal", p10 = 0.5, p50 = 1, p90 = 2, unit = "x", source = "test" }
trains = { distribution = "lognormal", p10 = 0.5, p50 = 1, p90 = 2, unit = "x", source = "test" }
later = { distribution = "lognormal", p10 = 0.5, p50 = 1, p90 = 2, unit = "x", source = "test" }
[[correlation]]
a = "serves"
b = "trains"
value = 0.6
source = "test"
"""
SD_BASE, SD_GROWTH = float(logit(0.7)) / Z90, math.log(2) / Z90
OF_PAIR = 2 * SD_GROWTH**2 * (1 - 0.6)  # variance of ln serves - ln trains


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """What moves the small claim, by kind and parameter."""
    copy = tmp_path / "configs"
    shutil.copytree(config.CONFIGS, copy)
    monkeypatch.setattr(config, "CONFIGS", copy)
    (copy / "claims" / "small.toml").write_text(SMALL)
    drawn = world(config.load(Claim, "small"), [])
    rows = engine.moves(drawn, engine.answer(drawn))
    assert rows == engine.moves(drawn, engine.answer(drawn))  # the same seed, the same rows
    return {(row["kind"], row["subject"].partition(": ")[2]): row for row in rows}


def ishigami(z):
    x, y, w = (np.pi * (2 * ndtr(z[name]) - 1) for name in "abc")
    return {"y": np.sin(x) + 7 * np.sin(y) ** 2 + 0.1 * w**4 * np.sin(x)}


def test_the_indices_of_ishigamis_function():
    found = {one.factor: one for one in indices({name: (name,) for name in "abc"}, ishigami, SEED, 4096)["y"]}
    expected = {"a": (0.3139, 0.5576), "b": (0.4424, 0.4424), "c": (0.0, 0.2437)}  # Ishigami & Homma 1990
    for name, (first, total) in expected.items():
        assert found[name].first == pytest.approx(first, abs=0.02)
        assert found[name].total == pytest.approx(total, abs=0.02)
        assert abs(found[name].first - first) < 2 * found[name].first_interval < 0.2
        assert abs(found[name].total - total) < 2 * found[name].total_interval < 0.2


def test_a_set_counts_all_its_members_do_and_an_inert_input_nothing():
    def linear(z):
        return {"sum": 2 * z["a"] + z["b"] + 3 * z["c"] + 0 * z["d"], "product": z["a"] * z["b"] + 0 * z["c"]}

    found = indices({"a + b": ("a", "b"), "c": ("c",), "d": ("d",)}, linear, SEED)
    by = {one.factor: one for one in found["sum"]}
    assert [one.factor for one in found["sum"]] == ["c", "a + b", "d"]  # largest first
    assert by["a + b"].total == pytest.approx(5 / 14, abs=0.02) == by["a + b"].first
    assert by["c"].total == pytest.approx(9 / 14, abs=0.03)
    assert (by["d"].first, by["d"].total, by["d"].total_interval) == (0, 0, 0)
    whole = found["product"][0]  # inside a set, interaction is first order
    assert whole.factor == "a + b" and abs(whole.first - 1) < 2 * whole.first_interval < 0.3
    apart = indices({name: (name,) for name in "abcd"}, linear, SEED)["product"]
    assert {one.factor: round(one.first, 1) + 0.0 for one in apart[:2]} == {"a": 0.0, "b": 0.0}
    assert all(one.total == pytest.approx(1, abs=0.1) for one in apart[:2])


def test_what_does_not_vary_has_none_and_what_is_not_finite_is_refused():
    def odd(z):
        return {"flat": np.full_like(z["a"], 0.1), "y": z["a"]}

    found = indices({"a": ("a",)}, odd, SEED)
    assert found == {"flat": [], "y": [Index("a", 1.0, 0.0, 1.0, 0.0)]}
    with pytest.raises(ValueError, match="y: expected finite values, got 1 "):
        indices({"a": ("a",)}, lambda z: {"y": np.where(z["a"] == z["a"].max(), np.inf, 0.0)}, SEED)


def test_a_place_is_settled_where_intervals_do_not_overlap():
    ranked = [Index(name, 0, 0, total, 0.05) for name, total in (("a", 0.6), ("b", 0.3), ("c", 0.25), ("d", 0.01))]
    assert [unsettled(ranked, place) for place in range(4)] == [None, "c", "b", None]


def test_what_moves_together_is_one_set_even_through_a_third():
    pairs = [
        Correlation(a=a, b=b, value=v, source="t") for a, b, v in (("a", "b", 0.5), ("c", "b", 0.5), ("d", "e", 0))
    ]
    assert together(["a", "b", "c", "d", "e"], pairs) == [("c", "a", "b"), ("d",), ("e",)]
    assert together(["a", "c"], pairs) == [("a",), ("c",)]


def test_a_correlated_pair_is_one_factor_with_the_variance_of_both(moved):
    pair, base = moved["sobol", "serves + trains"], moved["sobol", "base"]
    assert pair["total_order"] == pytest.approx(OF_PAIR / (OF_PAIR + SD_BASE**2), abs=0.02)  # 0.57 if independent
    assert base["total_order"] == pytest.approx(1 - OF_PAIR / (OF_PAIR + SD_BASE**2), abs=0.03)
    assert ("sobol", "serves") not in moved and ("sobol", "later") not in moved  # inert in 2025: no row
    assert base["note"] == "1 of 3 factors, N = 1024, intervals 95%: its place is settled"
    assert 0 < base["total_order_interval"] < 0.1 and base["definition"] == "D2" and base["year"] == 2025


def test_each_parameter_of_a_set_has_its_break_even_the_others_as_drawn(moved):
    at = Z90 * math.hypot(SD_BASE, SD_GROWTH)  # P = 0.9 or 0.1 where ln serves is 1.28 sd of all the rest
    for name, distance, said in (
        ("serves", at, "above"),
        ("trains", at, "below"),
        ("base", Z90 * OF_PAIR**0.5, "above"),
    ):
        flip = moved["flip", name]
        odds = logit(flip["threshold"]) if name == "base" else math.log(flip["threshold"])
        assert abs(odds) == pytest.approx(distance, rel=0.05), name
        holds = (odds > 0) == (said == "above")
        assert flip["verdict"] == ("holds" if holds else "fails"), name
    flip = moved["flip", "serves"]
    assert flip["total_order"] == moved["sobol", "serves + trains"]["total_order"]
    swing = moved["sensitivity", "serves"]
    assert swing["p10"] < 0.3 < swing["p50"] < 0.7 < swing["p90"]


def test_every_claim_with_parameters_names_what_moves_it_and_where_it_would_flip(monkeypatch):
    rows = whole()
    kinds = {key: claim.kind for key, claim in config.load_all(Claim).items()}
    for key, kind in kinds.items():
        mine = [row for row in rows if row["claim"] == key]
        verdicts = [row for row in mine if row["verdict"] and row["kind"] in ("verdict", "printed")]
        assert bool([row for row in mine if row["kind"] == "sobol"]) == (kind not in ("history", "routes")), (
            key
        )  # routes are walked: routes.py
        if kind in ("price", "blend"):
            moved = {row["subject"].partition(": ")[0] for row in mine if row["kind"] == "sobol"}
            assert moved == {row["subject"] for row in verdicts}
        for row in (row for row in mine if row["kind"] == "sobol"):
            same = [r for r in mine if r["kind"] == "flip" and r["total_order"] == row["total_order"]]
            place = int(row["note"].split(" ")[0])
            assert bool(same) == (place <= 3), row["subject"]
            assert results.line(results.CLAIMS, row)
    assert sobol.SAMPLES == 1024
    assert influence  # one function answers for all kinds
