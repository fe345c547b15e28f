"""The back-test: nothing from after a cut-off enters, priors by rule, and what may resolve a target."""

from __future__ import annotations

import csv
import datetime
from dataclasses import replace

import numpy as np
import pytest

from bench import config, results
from bench.claim import evidence
from bench.claim.backtest import answer, readings, spec
from bench.claim.backtest.forecasts import forecasts, growth_between, prices_before, rules
from bench.claim.backtest.outcomes import outcomes
from bench.claim.backtest.rebuild import rebuild, spread
from bench.claim.backtest.spec import Naive, Reading, Rule
from bench.claim.backtest.verdicts import claim_of, verdicts
from bench.config import ConfigError
from bench.price.history import history
from bench.price.known import last_day, surely_before

TODAY = datetime.date(2026, 11, 22)
EVE = datetime.date(2026, 1, 1)
FILE = spec.load()
TABLE = evidence.figures()
PRICES = history(TODAY)


def made(table=None, prices=None, cutoff=EVE):
    """Every forecast of a cut-off, as bytes by target."""
    known = readings.before(TABLE if table is None else table, cutoff)
    past = prices_before(PRICES if prices is None else prices, cutoff, FILE.prices.leave_out)
    found = forecasts(FILE, known, past, cutoff)
    return {f.id: (None if f.draws is None else f.draws.tobytes(), f.no_change, f.last_growth, f.naive) for f in found}


# ---------------------------------------------------------------- what was out


@pytest.mark.parametrize(
    ("text", "last", "out"),
    [
        ("2025-12-31", "2025-12-31", True),
        ("2026-01-01", "2026-01-01", False),  # on the day itself is not before it
        ("2025-12", "2025-12-31", True),
        ("2026-01", "2026-01-31", False),
        ("2025", "2025-12-31", True),
        ("2024-02", "2024-02-29", True),
        ("2025-2026", "2026-12-31", False),  # the latest reading
        ("25.12", "2025-12-31", True),
        ("n/d", None, False),
        ("", None, False),
        (None, None, False),
    ],
)
def test_a_date_is_read_as_its_last_day_and_no_date_is_no_evidence(text, last, out):
    assert last_day(text) == (last and datetime.date.fromisoformat(last))
    assert surely_before(text, EVE) is out


def test_a_year_or_a_month_inside_the_cutoffs_own_is_not_out():
    july = datetime.date(2025, 7, 1)
    assert not surely_before("2025", july) and not surely_before("2025-07", july) and surely_before("2025-06", july)


@pytest.mark.parametrize(
    ("figure", "target"),
    [("E035", "openai_serving_usd_2025"), ("E119", "google_tokens_2026_05"), ("E104", "industry_inference_share_2025")],
)
def test_a_figure_published_a_day_later_never_enters(figure, target):
    on_the_eve = {**TABLE, figure: replace(TABLE[figure], published="2025-12-31")}
    a_day_later = {**TABLE, figure: replace(TABLE[figure], published="2026-01-01")}
    without = {key: one for key, one in TABLE.items() if key != figure}
    assert made(on_the_eve)[target] != made(without)[target]
    assert made(a_day_later) == made(without)
    assert made({**TABLE, figure: replace(TABLE[figure], published="n/d")}) == made(without)


@pytest.mark.parametrize("cutoff", FILE.cutoffs)
def test_forecasts_are_the_same_bytes_without_anything_that_came_later(cutoff):
    past = {key: one for key, one in TABLE.items() if surely_before(one.published, cutoff)}
    prices = [row for row in PRICES if row["month"] < f"{cutoff:%Y-%m}"]
    assert len(past) < len(TABLE) and len(prices) < len(PRICES)
    assert made(past, prices, cutoff) == made(cutoff=cutoff)
    changed = {k: one if k in past else replace(one, value=(one.value or 1) * 7) for k, one in TABLE.items()}
    dearer = [row if row in prices else {**row, "usd_per_gpu_hour": 99.0} for row in PRICES]
    assert made(changed, dearer, cutoff) == made(cutoff=cutoff)
    claim = claim_of(FILE)
    then = [
        verdicts(FILE, claim, readings.before(table, cutoff), prices_before(PRICES, cutoff, FILE.prices.leave_out))
        for table in (past, TABLE, changed)
    ]
    assert then[0] == then[1] == then[2]


def test_a_series_published_after_its_months_is_left_out():
    sold = {row["provider"] for row in prices_before(PRICES, EVE, FILE.prices.leave_out)}
    assert "aws" in sold and "SemiAnalysis index" not in sold
    assert "SemiAnalysis index" in {row["provider"] for row in prices_before(PRICES, EVE, ())}


# ---------------------------------------------------------------- priors by rule

NAIVE = {"growth": Naive(scale="log", unit="x", p10=1, p50=10**0.5, p90=10, reason="wide")}
GROWTH = Rule(pairs=(("E118", "E119"),), width=2.0, naive="growth", scale="log", unit="x", source="tokens")


def test_growth_is_between_the_middles_of_two_periods():
    found = rebuild(GROWTH, NAIVE, {key: TABLE[key] for key in ("E118", "E119")})
    months = (
        datetime.date(
            2025,
            10,
            16,
        )
        - datetime.date(2025, 7, 16)
    ).days  # both have 31 days
    expected = (1.3e15 / 9.8e14) ** (365.2425 / months)
    assert not found.naive and found.prior.evidence == ("E118", "E119")
    assert found.prior.numbers == pytest.approx((expected / 2, expected, expected * 2))


def test_a_sum_over_nine_months_grows_from_a_sum_over_a_year_as_rates():
    per_year = 8.67 / (273 / 365.2425), 3.767 / (366 / 365.2425)
    years = (273 / 2 + 366 / 2) / 365.2425
    found = readings.yearly_growth(TABLE["E034"], TABLE["E035"])
    assert found == pytest.approx((per_year[0] / per_year[1]) ** (1 / years))


def test_without_figures_the_naive_prior_stands_and_without_one_there_is_nothing():
    found = rebuild(GROWTH, NAIVE, {"E118": TABLE["E118"]})
    assert (
        found.naive and found.prior.numbers == (1, 10**0.5, 10) and found.prior.source.startswith("naive judgement: ")
    )
    assert rebuild(replace(GROWTH, naive=None), NAIVE, {}) is None


def test_sources_that_disagree_widen_a_prior_up_to_the_naive_one():
    def half(numbers, widest=np.inf):
        p10, _, p90 = spread(numbers, "log", 1.25, "x", "s", (), widest).numbers
        return np.log(p90 / p10) / 2

    assert half([3.0]) == half([3.0, 3.0]) == pytest.approx(np.log(1.25))  # agreement never narrows
    # t(0.9, 2) = 1.8856; ln 1, 2, 4 has s = ln 2; predictive for one more: sqrt(1 + 1/3)
    assert half([1.0, 2.0, 4.0]) == pytest.approx(1.88562 * np.log(2) * np.sqrt(4 / 3), rel=1e-4)
    assert half([1.0, 100.0], widest=0.7) == pytest.approx(0.7)


def test_readings_are_sums_of_products_with_plain_numbers():
    of = Reading(of=(("E090",), ("-1", "E090", "E091")), over=(("E090",), ("-1", "E090", "E091"), ("E089",)))
    assert of.ids == ("E090", "E091", "E089")
    assert readings.value(of, TABLE) == pytest.approx(95.5 / (95.5 + 1145))
    assert readings.value(of, {"E090": TABLE["E090"]}) is None


def test_growth_within_a_year_is_integrated():
    half, year = readings.span("2025-01", "2025-06"), readings.span("2025", "2025")
    g, h = 4.0, 181 / 365  # x in 365.2425 days
    g_year = g ** (365 / 365.2425)
    by_hand = ((g_year - 1) / np.log(g_year)) / ((g_year**h - 1) / (h * np.log(g_year)))
    assert float(growth_between(g, half, year)) == pytest.approx(by_hand, rel=1e-9)
    assert float(growth_between(1.0, half, year)) == 1.0


def test_no_change_and_last_growth_by_hand():
    found = {f.id: f for f in forecasts(FILE, readings.before(TABLE, EVE), [], EVE)}
    spend, tokens = found["openai_cost_of_revenue_2025"], found["google_tokens_2026_05"]
    assert spend.no_change == pytest.approx(2.5e9 * 365 / 181) and spend.last_growth is None
    assert tokens.no_change == pytest.approx(1.3e15)
    days = (datetime.date(2026, 5, 16) - datetime.date(2025, 10, 16)).days
    assert tokens.last_growth == pytest.approx(1.3e15 * (1.3 / 0.98) ** (days / 92), rel=1e-3)


def test_what_fell_back_is_counted_by_cutoff():
    naive = [
        sum(one.naive for one in rules(FILE, readings.before(TABLE, c), prices_before(PRICES, c, ())).values() if one)
        for c in FILE.cutoffs
    ]
    assert naive == sorted(naive, reverse=True) and naive[0] > naive[-1] > 0
    rows = answer.backtest([], TODAY)
    for cutoff, count in zip(FILE.cutoffs, naive, strict=True):
        told = [r for r in rows if (r["cutoff"], r["kind"]) == (f"{cutoff}", "parameter")]
        assert sum(r["basis"] == "naive" for r in told) == count
        assert f"{count} of {len(told)} parameters on a naive prior" in answer.told(rows)


# ---------------------------------------------------------------- what resolves


def test_what_may_resolve_a_target(tmp_path):
    text = (config.CONFIGS / spec.FILE).read_text()
    old = 'resolved = { of = [["E039"]] }'
    assert text.count(old) == 1
    path = tmp_path / spec.FILE
    wrong = {
        "E021": "no projection",  # cash flow of 2025 in a forecast of 2026
        "E027": "no projection",
        "E104": "a period that was over when it was published",  # the year 2025, out in November 2025
        "E268": "a date of publication",
    }
    for figure, expected in wrong.items():
        path.write_text(text.replace(old, f'resolved = {{ of = [["{figure}"]] }}'))
        with pytest.raises(ConfigError, match=f"resolved: {figure}: expected .*{expected}"):
            config.read(spec.Backtest, path)
    path.write_text(
        text.replace(old, 'resolved = { of = [["E044"]] }').replace('["2025-01", "2025-12"]', '["2025"]', 99)
    )
    with pytest.raises(ConfigError, match="period: expected that of"):
        config.read(spec.Backtest, path)


def test_a_target_counts_only_where_it_was_open():
    of = {c: outcomes(FILE, TABLE, PRICES, c, TODAY) for c in FILE.cutoffs}
    first, second, last = (of[c] for c in FILE.cutoffs)
    assert "minimax_accounts_share_2025_q3" in second and "minimax_accounts_share_2025_q3" not in last  # out 2025-12
    assert "openai_serving_share_2024" in first and "openai_serving_share_2024" not in last
    assert last["openai_rd_compute_2025"].readings == (8.3e9, 10.59e9)
    early = {**TABLE, "E050": replace(TABLE["E050"], published="2025-12-31")}  # another source of it was out before
    assert "openai_rd_compute_2025" not in outcomes(FILE, early, PRICES, EVE, TODAY)
    vague = {
        **TABLE,
        "E092": replace(TABLE["E092"], published="2025"),
        "E093": replace(TABLE["E093"], published="2025"),
    }
    assert "minimax_accounts_share_2025_q3" not in outcomes(
        FILE, vague, PRICES, FILE.cutoffs[1], TODAY
    )  # before or after
    assert "minimax_accounts_share_2025_q3" in outcomes(FILE, vague, PRICES, FILE.cutoffs[0], TODAY)
    assert "openai_rd_compute_2025" not in outcomes(FILE, TABLE, PRICES, EVE, datetime.date(2026, 2, 19))
    assert "openai_rd_compute_2025" in outcomes(FILE, TABLE, PRICES, EVE, datetime.date(2026, 2, 20))


def test_history_is_no_target():
    near, far = datetime.date(2025, 12, 15), EVE  # 2024 ended twelve months before the first month, and more
    late = {
        key: replace(one, published="2026-03-01") if key in ("E034", "E028", "E030") else one
        for key, one in TABLE.items()
    }
    assert "openai_serving_share_2024" not in outcomes(FILE, late, PRICES, far, TODAY)
    assert "openai_serving_share_2024" in outcomes(FILE, late, PRICES, near, TODAY)


def test_a_price_resolves_by_the_newest_month_of_its_window():
    row = {"provider": "p", "gpu": "h100_sxm_80gb", "term": "spot"}
    line = [{**row, "month": f"2026-{m:02d}", "usd_per_gpu_hour": float(m)} for m in (4, 5, 7, 8)]
    assert outcomes(FILE, {}, line, EVE, TODAY)["p/h100_sxm_80gb/spot"].value == 7.0
    assert outcomes(FILE, {}, line[:1], EVE, TODAY) == {}  # April is less than four months ahead
    assert outcomes(FILE, {}, line, EVE, datetime.date(2026, 7, 15))["p/h100_sxm_80gb/spot"].value == 5.0


# ---------------------------------------------------------------- the file


def test_the_table_is_whole_and_verdicts_stand_beside_todays(tmp_path):
    claimed = {"claim": FILE.share.claim, "kind": "verdict", "definition": "D3", "subject": "leads_by_2030"}
    rows = answer.backtest([{**claimed, "verdict": "fails", "probability": 0.07}], TODAY)
    path = tmp_path / "backtest.csv"
    results.write(path, results.BACKTEST, rows)
    with open(path, newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows) and list(read[0]) == list(results.BACKTEST)
    assert {r["cutoff"] for r in rows} == {f"{c}" for c in FILE.cutoffs}
    assert [r for r in rows if r["today_verdict"] == "fails"] and answer.told(rows).count("today fails, P 0.07") == 3
    for row in rows:
        cutoff = datetime.date.fromisoformat(row["cutoff"])
        for name in filter(None, (row["evidence"] or "").split(";")):
            assert name.startswith("price_history:") or surely_before(TABLE[name].published, cutoff), row
        for name in filter(None, (row["resolved_by"] or "").split(";")):
            assert name.startswith("price_history:") or TABLE[name].kind != "projection", row
    again = answer.backtest([{**claimed, "verdict": "fails", "probability": 0.07}], TODAY)
    assert rows == again


def test_a_cutoff_after_the_day_asked_is_not_there():
    rows = answer.backtest([], datetime.date(2025, 12, 1))
    assert {r["cutoff"] for r in rows} == {"2025-01-01", "2025-07-01"}


def test_surveys_and_definitions_of_a_later_day_could_not_be_asked():
    claim = claim_of(FILE)
    then = {c: verdicts(FILE, claim, readings.before(TABLE, c), []) for c in FILE.cutoffs}
    by = {c: {v.definition: v for v in found if v.statement == "leads_by_2030"} for c, found in then.items()}
    assert by[FILE.cutoffs[0]]["D4"].reason.startswith("no survey") and by[EVE]["D4"].probability is not None
    assert "E109" not in by[EVE]["D4"].evidence and "E104" in by[EVE]["D4"].evidence  # McKinsey came out later
    first = by[FILE.cutoffs[0]]["D2_top_down"]
    assert first.naive == first.parameters and first.probability == pytest.approx(0.5, abs=0.02)
    use = {name: rule for name, rule in FILE.share.use.items() if name != "accounts_share_2025"}
    cut = replace(FILE, share=replace(FILE.share, use=use))
    assert {v.reason for v in verdicts(cut, claim, TABLE, []) if v.definition == "D3"} == {
        "no rule for accounts_share_2025"
    }


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('naive = "price"', 'naive = "prices"', "naive: expected the name of a naive prior"),
        ('naive = "price"', 'naive = "share"', "naive: expected a prior on the scale log"),
        ('growth = "token_growth"', 'growth = "tokens"', "expected the name of a parameter"),
        ('of = [["E152"]]', 'of = [["E9152"]]', "of: expected an id of configs/evidence.csv"),
        ("draws = 20_000", "draws = 10", "draws: expected at least 1000"),
        ('scale = "linear"', 'scale = "cubic"', "scale: expected the name of a scale"),
        ("p10 = 0.1\n", "p10 = 0.6\n", "p10: expected p10 < p50 < p90"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, old, new, expected):
    text = (config.CONFIGS / spec.FILE).read_text()
    assert old in text
    (tmp_path / spec.FILE).write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as error:
        config.read(spec.Backtest, tmp_path / spec.FILE)
    assert expected in str(error.value) and "\n" not in str(error.value)
