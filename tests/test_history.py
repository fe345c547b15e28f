"""Prices over time: a strict table, one product a series; and whether they fell, by hand and by period."""

from __future__ import annotations

import datetime
import math
import shutil

import numpy as np
import pytest

from bench import config, results
from bench.claim import history as judged
from bench.claim.sections import Period
from bench.claim.spec import Claim
from bench.price.history import COLUMNS, changes, history, name_of, series

KEY = "competition_lowers_prices"
H100 = "h100_sxm_80gb"
GOOD = {
    **{"month": "2024-01", "provider": "aws", "gpu": H100, "term": "on_demand", "usd_per_gpu_hour": 10.0},
    **{"n": 1, "what": "p5 us-east-1", "source": "https://example.org"},
}


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Replaces the shipped history by these rows, in a copy of configs/."""
    copy = shutil.copytree(config.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(config, "CONFIGS", copy)

    def write(*rows):
        results.write(copy / "price_history.csv", COLUMNS, [GOOD | row for row in rows])

    return write


def moved(provider, *prices, months=("2024-01", "2026-01")):
    return [{"provider": provider, "month": m, "usd_per_gpu_hour": usd} for m, usd in zip(months, prices, strict=True)]


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"month": "2024"}, "month: expected YYYY-MM, got '2024'"),
        ({"month": "2024-13"}, "month: expected YYYY-MM, got '2024-13'"),
        ({"gpu": "h100"}, "gpu: expected one of a100_pcie_80gb"),
        ({"term": "36mo"}, "term: expected one of on_demand, spot"),
        ({"usd_per_gpu_hour": -1.0}, "usd_per_gpu_hour: expected a positive price, got -1.0"),
        ({"source": "a site"}, "source: expected the full address of the figure, got 'a site'"),
        ({"source": None}, "source: blank; every month has one"),
        ({}, "expected one price a month; twice: aws, h100_sxm_80gb, on_demand, 2024-01"),
        ({"month": "2024-02", "what": "p5 in India"}, "what: expected 'p5 us-east-1', one product a series"),
    ],
)
def test_a_bad_month_is_one_line(told, change, message):
    told({}, change)
    with pytest.raises(config.ConfigError) as caught:
        history()
    assert str(caught.value).startswith(f"configs/price_history.csv line 3: {message}")


def test_the_shipped_history_is_sourced_and_short():
    rows = history()
    assert 300 < len(rows) <= 600
    assert rows[0]["month"] == "2023-06" and rows[-1]["month"] == "2026-08"
    assert all(0.3 < row["usd_per_gpu_hour"] < 40 and row["n"] >= 1 for row in rows)
    assert {row["source"].split("/")[2] for row in rows} == {"github.com", "newsletter.semianalysis.com"}
    h100 = {provider for provider, gpu, term in series(rows) if (gpu, term) == (H100, "on_demand")}
    assert len(h100) >= 20 and h100 >= {"aws", "azure", "gcp", "lambda_labs", "coreweave", "nebius", "crusoe"}


def test_known_turns_are_in_the_history():
    """What the sources say by themselves: AWS in June 2025, Google's spot in 2026, the rental index."""
    usd = {(r["provider"], r["term"], r["month"]): r["usd_per_gpu_hour"] for r in history() if r["gpu"] == H100}
    assert (usd["aws", "on_demand", "2025-04"], usd["aws", "on_demand", "2025-06"]) == (12.29, 6.88)
    assert usd["gcp", "spot", "2025-10"] == pytest.approx(2.55, abs=0.01)
    assert usd["gcp", "spot", "2026-07"] == pytest.approx(6.33, abs=0.01)
    assert (usd["SemiAnalysis index", "contract", "2025-10"], usd["SemiAnalysis index", "contract", "2026-03"]) == (
        1.7,
        2.35,
    )


def test_a_seller_is_named_by_its_file_or_by_itself():
    assert (name_of("aws"), name_of("Hyperstack")) == ("Amazon Web Services", "Hyperstack")


# ---------------------------------------------------------------- changes


def test_a_change_is_a_logarithm_a_year(told):
    told(*moved("aws", 12.0, 3.0))
    (change,) = changes(history(), H100, "on_demand", "2023-06", "2026-08", 12)
    assert change.months == 24
    assert change.log == pytest.approx(math.log(1 / 4)) and change.log_per_year == pytest.approx(math.log(1 / 2))


def test_only_series_that_cover_the_months_count(told):
    short = moved("azure", 9.0, 3.0, months=("2025-08", "2026-01"))
    told(*moved("aws", 12.0, 3.0), *short, {"provider": "gcp"})
    rows = history()
    assert [c.provider for c in changes(rows, H100, "on_demand", "2023-06", "2026-08", 12)] == ["aws"]
    assert [c.provider for c in changes(rows, H100, "on_demand", "2023-06", "2026-08", 5)] == ["aws", "azure"]
    assert not changes(rows, H100, "on_demand", "2024-02", "2026-08", 1)[1:], "aws has one month of these"
    assert not changes(rows, H100, "spot", "2023-06", "2026-08", 1)


def test_later_months_were_not_there(told):
    told(*moved("aws", 12.0, 3.0))
    assert [row["month"] for row in history(datetime.date(2026, 1, 31))] == ["2024-01"]
    assert len(history(datetime.date(2026, 2, 1))) == 2


# ---------------------------------------------------------------- verdicts


def verdicts(as_of=datetime.date.max):
    return {row["subject"]: row for row in judged.answer(config.load(Claim, KEY), as_of)}


@pytest.mark.parametrize(
    ("prices", "verdict", "probability"),
    [
        ([(10, 5), (10, 6), (10, 7)], "holds", 1.0),
        ([(10, 11), (10, 12), (10, 13)], "fails", 0.0),
        ([(10, 10), (10, 10), (10, 10)], "fails", 0.0),  # what stands still does not fall
        ([(10, 5), (10, 10), (10, 10)], "undecided", 7 / 27),  # at least 2 of 3 draws are the first
        ([(10, 5), (10, 5), (10, 20)], "undecided", 20 / 27),
        ([(10, 5), (10, 5)], "undecided", None),  # too few to sample
        ([], "undecided", None),
    ],
)
def test_a_median_over_sellers_decides(told, prices, verdict, probability):
    sellers = ("aws", "azure", "gcp")
    told(*(row for seller, pair in zip(sellers, prices, strict=False) for row in moved(seller, *map(float, pair))))
    row = verdicts()["h100_list_prices_fell_2023_to_2026"]
    assert row["verdict"] == verdict
    assert row["probability"] == (pytest.approx(probability, abs=0.01) if probability is not None else None)
    if probability == 1.0:  # 10 to 5, 6 and 7 in two years: the median seller falls to 6/10
        assert row["p50"] == pytest.approx(math.sqrt(0.6) - 1)


def test_rises_are_told_with_falls(told):
    told(*moved("aws", 10.0, 5.0), *moved("azure", 10.0, 10.0), *moved("gcp", 10.0, 13.0), *moved("Cudo", 10.0, 9.0))
    note = verdicts()["h100_list_prices_fell_2023_to_2026"]["note"]
    assert note == (
        "4 sellers: 2 fell, 1 stood, 1 rose; furthest down Amazon Web Services -50% in 24 months;"
        " furthest up Google Cloud +30% in 24 months"
    )


def test_the_verdict_by_period():
    """Large clouds cut little or once, 2026 went up: the articles' sentence holds in no period that can be judged."""
    found = verdicts()
    assert {name: row["verdict"] for name, row in found.items()} == {
        "h100_list_prices_fell_2023_to_2026": "undecided",
        "h100_list_prices_fell_to_2025": "undecided",
        "h100_list_prices_fell_in_2026": "fails",
        "h100_spot_prices_fell_to_2025": "undecided",
        "h100_spot_prices_fell_in_2026": "fails",
        "h100_contract_prices_fell_since_2025": "undecided",
    }
    spot = found["h100_spot_prices_fell_in_2026"]
    assert spot["p10"] > 0 and "0 fell, 0 stood, 3 rose" in spot["note"]
    index = found["h100_contract_prices_fell_since_2025"]
    assert "furthest up SemiAnalysis index +38% in 5 months" in index["note"] and index["probability"] is None
    assert all(row["rests_on"].startswith("price_history:") for row in found.values())


def test_nothing_is_judged_before_it_happened():
    then = verdicts(datetime.date(2025, 6, 1))
    assert "0 fell, 3 stood, 0 rose" in then["h100_list_prices_fell_2023_to_2026"]["note"]  # AWS cut on 23 June
    assert np.isnan(then["h100_list_prices_fell_in_2026"]["p50"] or np.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"since": "2023"}, "since: expected a month such as 2023-06, got '2023'"),
        ({"until": "2023-01"}, "until: expected a month after 2023-06, got 2023-01"),
        ({"least_months": 0}, "least_months: expected at least 1, got 0"),
        ({"gpu": "h100"}, "gpu: expected"),
        ({"term": "36mo"}, "term: expected"),
    ],
)
def test_a_bad_period_is_one_line(change, message):
    good = {"name": "a", "text": "a", "gpu": H100, "term": "spot", "since": "2023-06", "until": "2026-08"}
    with pytest.raises(ValueError, match=message):
        Period(**(good | {"least_months": 1} | change))
