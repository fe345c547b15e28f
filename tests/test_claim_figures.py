"""Figures worked out by hand before any of this was written (derived.csv) come out of the claim files again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import config
from bench.claim import engine
from bench.claim.definitions import by_kernel, share
from bench.claim.evidence import share as of
from bench.claim.priors import draw
from bench.claim.spec import Claim
from bench.claim.world import world
from bench.price.throughput import published

KEY = "inference_overtakes_training"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("D02 in dollars", 0.7895),
        ("D02 from tokens", 0.7895),
        ("D03", 0.4908),
        ("D03 from tokens", 0.4908),
        ("D04", 0.2811),
        ("D22", 0.6000),
    ],
)
def test_checks_reproduce_the_derived_figures_and_the_draws_explain_them(name, expected):
    rows = engine.answer(world(config.load(Claim, KEY), published()))
    (check,) = [row for row in rows if row["subject"] == f"check {name}"]
    assert check["threshold"] == pytest.approx(expected, abs=5e-5)
    assert check["p10"] <= check["threshold"] <= check["p90"]


@pytest.mark.parametrize(
    ("year", "low", "high"),  # D11 to D15
    [
        (2026, 0.3059, 0.3059),
        (2027, 0.2583, 0.2583),
        (2028, 0.2309, 0.3003),
        (2029, 0.3111, 0.3444),
        (2030, 0.4202, 0.4575),
    ],
)
def test_the_plan_is_reconstructed_between_its_two_readings(year, low, high):
    claim = config.load(Claim, KEY)
    draws = draw(claim.parameters, claim.correlation, 1000, claim.seed)
    shares = share(claim.definitions["D2_plan"], draws, [year])[0]
    assert shares.min() == pytest.approx(low, abs=1e-3) and shares.max() == pytest.approx(high, abs=1e-3)


def test_surveys_state_what_the_evidence_says():
    surveys = config.load(Claim, KEY).definitions["D4"].survey
    stated = {s.name.split(",")[0]: s.share for s in surveys}
    assert stated["McKinsey"]["2025"] == pytest.approx(of([["E109"]], [["E110"]]), abs=1e-3)
    assert stated["McKinsey"]["2030"] == pytest.approx(of([["E111"]], [["E112"]]), abs=1e-3)
    assert stated["Gartner"]["2026"] == pytest.approx(of([["E106"]], [["E107"]]), abs=1e-3)


def test_by_kernel_type_moves_the_inference_part_of_x():
    assert by_kernel(np.array([0.4]), np.array([0.25])) == pytest.approx([0.4 + 0.25 * 0.6])


@given(st.floats(0, 1), st.floats(0, 1))
def test_by_kernel_type_is_a_share_and_never_less(s, q):
    moved = by_kernel(np.array([s]), np.array([q]))[0]
    assert s - 1e-12 <= moved <= 1 + 1e-12
