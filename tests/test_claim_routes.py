"""Two routes to one spending: hand-computed dollars, nothing shared, and what explains the gap does close it."""

from __future__ import annotations

import datetime
import shutil
from dataclasses import replace

import numpy as np
import pytest
from answers import whole
from test_claim_ratio import SERVE, row

from bench import config, results
from bench.architecture import Model
from bench.claim import hardware, ratio, routes
from bench.claim.hardware import Case
from bench.claim.priors import Prior
from bench.claim.spec import Claim
from bench.claim.walk import Walk, explained
from bench.config import ConfigError
from bench.price.throughput import published

TODAY = datetime.date(2026, 11, 22)
KEY, RATES = "serving_by_two_routes", "inference_overtakes_training"
CLAIM = config.load(Claim, KEY)
N = 50e9
FIXED = {
    "tokens_per_day": 1e12,
    "token_growth": 1.0,
    "input_output_ratio": 3.0,
    "cache_hit_share": 0.5,
    "active_parameters": N,
    "load": 0.5,
    "tokens_per_gpu_growth": 2.0,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    copy = tmp_path / "configs"
    shutil.copytree(config.CONFIGS, copy)
    monkeypatch.setattr(config, "CONFIGS", copy)
    return copy / "claims"


def bottom(rows, prices, **other):
    """The bottom-up side of a comparison whose inputs are single numbers, in the year after the rates'."""
    item = replace(CLAIM.compared[1], year=2026, at=2026.0, surfaces=None)
    values = {**FIXED, **other}
    draws = {getattr(item, role): np.full(4000, value) for role, value in values.items()}
    found = hardware.cases(ratio.rates(rows, {})[0], prices)
    machine = hardware.draw(found, prices, routes.inputs(item, draws), 4000, 1)
    return routes.Bottom(item, draws, machine, 2025)


def test_a_year_of_tokens_costs_what_a_hand_computes():
    """1e12 tokens a day, of each 4 (3 in, half of them cached, 1 out) 2.5 computed; 16,000 a GPU-second at 8B."""
    side = bottom([SERVE], {"h100_sxm_80gb": (2.0, 2.0, 2.0)})
    size = config.load(Model, "llama_3_1_8b").active_matmul_params
    gpu_seconds = 1e12 * 365 * 2.5 / 4 * (N / size) / 16_000 / 2 / 0.5
    assert np.median(side.usd()) == pytest.approx(gpu_seconds / 3600 * 2.0, rel=0.01)


def test_output_counts_and_other_surfaces_multiply():
    side = bottom([SERVE], {"h100_sxm_80gb": (2.0, 2.0, 2.0)})
    out = replace(side, item=replace(side.item, counts="output"))
    assert np.median(out.usd() / side.usd()) == pytest.approx(4)
    wide = replace(side, item=replace(side.item, surfaces="s"), draws={**side.draws, "s": np.full(4000, 1.5)})
    assert np.median(wide.usd() / side.usd()) == pytest.approx(1.5)


def test_a_rate_that_holds_its_idle_time_is_not_charged_for_it_again():
    price = {"h100_sxm_80gb": (2.0, 2.0, 2.0)}
    idle = bottom([{**SERVE, "flags": "idle_included"}], price)
    assert ratio.rates([{**SERVE, "flags": "idle_included"}], {})[0][0].sources[0].holds_idle
    assert np.median(bottom([SERVE], price).usd() / idle.usd()) == pytest.approx(2)


def test_prefill_and_decode_are_mixed_by_the_traffic():
    rows = [row("published:p", "prefill", 40_000.0), row("published:d", "decode", 2_000.0)]
    (case,) = hardware.cases(ratio.rates(rows, {})[0], {"h100_sxm_80gb": (2.0, 2.0, 2.0)})
    drawn = hardware.draw([case], {"h100_sxm_80gb": (2.0, 2.0, 2.0)}, np.full(4000, 1.5), 4000, 1)
    seconds = (1.5 / 40_000 + 1 / 2_000) / 2.5
    flop = 2 * config.load(Model, "llama_3_1_8b").active_matmul_params
    assert np.median(drawn.flop_per_gpu_s) == pytest.approx(flop / seconds, rel=0.01)


def test_every_gpu_and_model_weighs_the_same_however_many_rows_it_has():
    def case(gpu, seconds):
        return Case(gpu, "llama_3_1_8b", "imported", seconds, (0, 0), 0.0, False, ("r",))

    found = [*[case("h100_sxm_80gb", 1.0)] * 9, case("b200_sxm_180gb", 0.1)]
    prices = {"h100_sxm_80gb": (1.0, 1.0, 1.0), "b200_sxm_180gb": (5.0, 5.0, 5.0)}
    drawn = hardware.draw(found, prices, np.ones(20_000), 20_000, 1)
    assert np.mean(drawn.usd_per_gpu_hour == 5.0) == pytest.approx(0.5, abs=0.02)


def test_a_gpu_without_a_price_of_the_term_is_left_out_and_named():
    assert hardware.cases(ratio.rates([SERVE], {})[0], {"b200_sxm_180gb": (1.0, 1.0, 1.0)}) == []
    rows = routes.answer(CLAIM, config.load(Claim, RATES), [SERVE], datetime.date(2024, 1, 1))
    assert "no served rate on a GPU with a price" in " ".join(r["note"] for r in rows if r["kind"] == "finding")
    assert {r["subject"] for r in rows if r["kind"] == "route"} == {"top-down", "share, top-down"}


def test_prices_are_those_of_the_term_and_of_instances_alone():
    prices = hardware.contract_prices(CLAIM.served, TODAY)
    assert prices["h800_sxm_80gb"] == prices["h100_sxm_80gb"]
    low, middle, high = prices["gb200_nvl72_186gb"]  # the market's 2.60 and Stargate's 3.56 to 4.57
    assert (low, high) == (2.6, 4.566) and middle == pytest.approx((2.6 + 3.805) / 2)


def test_a_gpu_without_its_host_is_no_price_of_a_served_hour(folder):
    path = folder.parent / "providers" / "coreweave.csv"
    line = next(line for line in path.read_text().splitlines() if ",instance,contract," in line)
    before = hardware.contract_prices(CLAIM.served, TODAY)
    path.write_text(
        path.read_text() + line.replace(",instance,contract,2,1.75,2.25", ",gpu_only,contract,0.1,0.05,0.2") + "\n"
    )
    assert ",gpu_only,contract,0.1" in path.read_text()
    assert hardware.contract_prices(CLAIM.served, TODAY) == before


@pytest.mark.parametrize("growth", [0.5, 1.0, 1.0 + 1e-12, 7.0])
@pytest.mark.parametrize("start", [-1.4, -0.79, 0.0, 0.9])
def test_the_mean_over_a_year_is_the_integral(growth, start):
    t = start + (np.arange(100_000) + 0.5) / 100_000
    assert routes.year_mean(np.array([growth]), start)[0] == pytest.approx(np.mean(growth**t), rel=1e-6)


# ---------------------------------------------------------------- independence


def test_the_two_routes_share_no_parameter_and_no_public_figure():
    down = {name for item in CLAIM.compared for name in item.top_down}
    up = {name for item in CLAIM.compared for name in item.bottom_up}
    assert down and up and not down & up
    figures = [{key for name in names for key in CLAIM.parameters[name].evidence} for names in (down, up)]
    assert figures[0] and figures[1] and not figures[0] & figures[1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('load = "serving_load"', 'load = "openai_serving_2025"', "no parameter on both sides, got ['openai_serving"),
        ('evidence = ["E137"]', 'evidence = ["E137", "E076"]', "no public figure behind both sides, got ['E076']"),
        ('a = "token_growth"', 'a = "openai_serving_2025"', "correlation: expected none between the two sides"),
        ('a = "token_growth"', 'a = "openai_rd_2025"', "correlation: expected none between the two sides"),
        ('counts = "output"', 'counts = "outputs"', "did you mean output?"),
        ("at = 2025.79", "at = 2019", "a year within three of 2025"),
        ('h800_sxm_80gb = "h100', 'h800_sxm_80gb = "h101', "name of a GPU"),
    ],
)  # fmt: skip
def test_a_file_whose_routes_meet_does_not_load(folder, old, new, message):
    text = (folder / f"{KEY}.toml").read_text()
    assert old in text
    (folder / f"{KEY}.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        config.load(Claim, KEY)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def lines(rows, **where):
    return [results.line(results.CLAIMS, r) for r in rows if all(r[k] == v for k, v in where.items())]


def test_rates_move_the_tokens_route_alone_and_spending_the_other_alone():
    share = config.load(Claim, RATES)
    rows = routes.answer(CLAIM, share, [SERVE], TODAY)
    faster = routes.answer(CLAIM, share, [{**SERVE, "system_tokens_per_s": 8000.0}], TODAY)
    assert lines(rows, route="top_down") == lines(faster, route="top_down") != []
    usd = [[r for r in found if r["subject"] == "bottom-up"] for found in (rows, faster)]
    assert all(b["p50"] == pytest.approx(a["p50"] / 2, rel=1e-9) for a, b in zip(*usd, strict=True))
    (api,) = (r for r in rows if (r["subject"], r["definition"], r["year"]) == ("bottom-up", "OpenAI", 2025))
    assert (api["priors"], api["judged"]) == (7, 4)  # of eight inputs the count of October 2025 is one number
    prior = CLAIM.parameters["openai_serving_2025"]
    dearer = {**CLAIM.parameters, "openai_serving_2025": replace(prior, p50=9e9)}
    other = routes.answer(replace(CLAIM, parameters=dearer), share, [SERVE], TODAY)
    assert lines(rows, route="bottom_up") == lines(other, route="bottom_up") != []
    assert lines(rows, route="top_down") != lines(other, route="top_down")


# ---------------------------------------------------------------- what explains the gap


def prior(**numbers):
    return Prior(**numbers, unit="x", source="test")


def test_the_assumption_that_closes_most_is_named_with_the_value_that_closes_all():
    wide = prior(distribution="lognormal", p10=1, p50=2, p90=8)
    slight = prior(distribution="lognormal", p10=1.8, p50=2, p90=2.2)
    gap = lambda value: 0.1 * value / 2  # noqa: E731
    best = explained([Walk.of_prior("slight", slight, gap), Walk.of_prior("wide", wide, gap)], 0.1)
    assert best.name == "wide" and best.closes == pytest.approx(1 - np.log(0.4) / np.log(0.1))
    assert (
        best.closed_at == pytest.approx(20, rel=1e-3) and "within its prior" in best.told and "to be 20," in best.told
    )
    (only,) = [explained([Walk.of_prior("slight", slight, gap)], 0.1)]
    assert only.closed_at == pytest.approx(20, rel=1e-3) and "outside its prior (" in only.told
    assert only.closes < 0.5 and "not most: " in only.told, "4% of a gap is not most of it"


def test_an_assumption_that_passes_one_on_its_way_closes_all_and_a_share_never_passes_one():
    over = prior(distribution="lognormal", p10=1, p50=2, p90=200)
    assert explained([Walk.of_prior("over", over, lambda v: 0.1 * v / 2)], 0.1).closes == 1
    load = prior(distribution="logitnormal", p10=0.4, p50=0.5, p90=0.6)
    best = explained([Walk.of_prior("load", load, lambda v: 4 * 0.5 / v)], 4.0)
    assert best.closed_at is None and "no value of it" in best.told


def test_real_rows_every_wide_gap_is_explained_and_the_value_named_closes_it():
    share, rows = config.load(Claim, RATES), published()
    found = [r for r in routes.answer(CLAIM, share, rows, TODAY) if r["kind"] == "route"]
    apart = {(r["definition"], r["year"]): r for r in found if r["subject"] == "disagreement"}
    assert set(apart) == {(item.organisation, item.year) for item in CLAIM.compared}
    why = {(r["definition"], r["year"]): r for r in found if r["subject"].startswith("explained: ")}
    assert set(why) == {key for key, r in apart.items() if not 0.5 <= r["p50"] <= 2}
    for (organisation, year), r in why.items():
        name = r["subject"].removeprefix("explained: ")
        if name not in CLAIM.parameters or r["threshold"] is None:
            continue
        held = Prior(distribution="fixed", value=r["threshold"], unit="x", source="test")
        changed = replace(CLAIM, parameters={**CLAIM.parameters, name: held})
        again = routes.answer(changed, share, rows, TODAY)
        (closed,) = (
            a for a in again if (a["subject"], a["definition"], a["year"]) == ("disagreement", organisation, year)
        )
        assert closed["p50"] == pytest.approx(1, rel=0.01), (organisation, year, name)


def test_two_routes_stand_in_claims_csv_with_their_shares():
    rows = [r for r in whole() if r["claim"] == KEY and r["kind"] == "route"]
    shares = [r for r in rows if r["unit"] == "serving / (serving + X)"]
    assert {r["subject"] for r in shares} == {"share, top-down", "share, bottom-up"}
    assert all(0 < r["p10"] <= r["p50"] <= r["p90"] < 1 for r in shares)
    (openai,) = (r for r in shares if (r["definition"], r["year"], r["route"]) == ("OpenAI", 2024, "top_down"))
    assert openai["p50"] == pytest.approx(2.0 / 7.0, abs=0.005)
