"""Claim files: a new one is only a TOML, a wrong one is one line; the table and price kinds."""

from __future__ import annotations

import csv
import datetime
import shutil

import numpy as np
import pytest
from answers import whole

from bench import config
from bench.claim import evidence, prices, table
from bench.claim.evidence import figures
from bench.claim.sections import Booked, Side
from bench.claim.spec import Claim
from bench.config import ConfigError
from bench.price.throughput import published

TODAY = datetime.date(2026, 11, 22)
REAL = config.CONFIGS / "claims"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of configs/ that a test may change."""
    copy = tmp_path / "configs"
    shutil.copytree(config.CONFIGS, copy)
    monkeypatch.setattr(config, "CONFIGS", copy)
    return copy / "claims"


def refusal(folder, file, old, new):
    text = (REAL / f"{file}.toml").read_text()
    assert old in text
    (folder / f"{file}.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        config.load(Claim, file)
    message = str(caught.value)
    assert "\n" not in message and f"configs/claims/{file}.toml" in message
    return message


UNREAD = '[parameters]\nunread = { distribution = "fixed", value = 1, unit = "x", source = "s" }'
A, B, C, D = "inference_overtakes_training", "compute_cost_table", "stargate_cheaper", "multi_cloud"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (A, "rho]\ndistribution", "rho]\ndistrbution", "unknown key; did you mean distribution?"),
        (A, 'multiple = "rho"', 'multiple = "roh"', "name of a parameter, got 'roh'; did you mean rho?"),
        (A, 'evidence = ["E188"]', 'evidence = ["E9188"]', "an id of configs/evidence.csv, got 'E9188'"),
        (A, "p10 = 4.4\np50 = 8\n", "p10 = 8.4\np50 = 8\n", "parameters.rho.p10: expected p10 <= p50 <= p90"),
        (A, 'source = "training servers operational"\n', "", "source: missing"),
        (A, 'definition = "D3"', 'definition = "D33"', "name of a definition, got 'D33'; did you mean D3?"),
        (A, 'threshold = "dominates"', 'threshold = "dominate"', "did you mean dominates?"),
        (A, 'method = "surveys"', 'method = "survey"', "did you mean surveys?"),
        (A, 'test = "at_least"', 'test = "atleast"', "did you mean at_least?"),
        (A, "year = 2027", "year = 2037", "a year of the claim, got 2037"),
        (A, 'a = "token_demand_growth_2026"', 'a = "demand"', "name of a parameter, got 'demand'"),
        (A, 'kind = "share"', 'kind = "shares"', "did you mean share?"),
        (A, "[parameters.rho]", f"{UNREAD}\n[parameters.rho]", "nothing reads ['unread']"),
        (B, 'share_claim = "inference_overtakes_training"\n', "", "share_claim: expected present"),
        (B, 'compute_usd = "compute_usd_2024"\n', "", "a parameter wherever usd is given"),
        (C, 'level = "contract"', 'level = "contrat"', "did you mean contract?"),
        (C, 'right = "azure_contract"', 'right = "azure_contrct"', "did you mean azure_contract?"),
        (C, 'level = "contract"', 'level = "contract"\nunit = "USD"', "expected sides of one unit"),
        (D, 'left = "two_clouds"', 'left = "two_cloud"', "got 'two_cloud'; did you mean two_clouds?"),
        (D, 'failover_hours = "failover_hours"\n', "", "a parameter for each of urgent_share"),
        (D, 'failover_hours = "fail', 'failover_hour = "fail', "name of a portfolio assumption, got 'failover_hour'"),
        (D, 'movable_share = "mov', 'movable_share = "moo', "name of a parameter, got 'mooable_share'"),
    ],
)  # fmt: skip
def test_a_wrong_claim_is_one_line_naming_file_key_and_expectation(folder, file, old, new, message):
    assert message in refusal(folder, file, old, new)


def test_every_claim_loads_and_every_number_has_a_source():
    claims = config.load_all(Claim)
    assert set(claims) >= {A, B, C, D}
    assert {claim.kind for claim in claims.values()} == {
        "share",
        "table",
        "price",
        "history",
        "blend",
        "growth",
        "routes",
    }
    for claim in claims.values():
        for name, prior in claim.parameters.items():
            cited = bool(prior.evidence) or "judgement" in prior.source or prior.distribution == "fixed"
            assert (
                cited or "http" in prior.source or "github.com" in prior.source or prior.source.startswith("no reason")
            ), name


@pytest.mark.parametrize("file", [A, B, C, D])
def test_a_dropped_in_claim_of_any_kind_needs_only_its_toml(folder, file):
    before = {file, A} if file == B else {file}
    for path in folder.glob("*.toml"):
        if path.stem not in before:
            path.unlink()
    shutil.copy(folder / f"{file}.toml", folder / "another.toml")
    rows = table.claims(published(), TODAY)
    assert {row["claim"] for row in rows} == {*before, "another"}
    verdicts = [row for row in rows if row["claim"] == "another" and row["verdict"]]
    assert len(verdicts) == len([row for row in rows if row["claim"] == file and row["verdict"]])


def test_a_table_that_names_no_share_claim_is_one_line(folder):
    text = (folder / f"{B}.toml").read_text()
    (folder / f"{B}.toml").write_text(text.replace(f'share_claim = "{A}"', 'share_claim = "nobody"'))
    with pytest.raises(ConfigError, match="the key of a share claim, got 'nobody'"):
        table.claims([], TODAY)


# ---------------------------------------------------------------- evidence


def test_sums_are_written_as_ids():
    assert evidence.share([["E030"]], [["E028", "E183"]]) == pytest.approx(1.8 / (1.8 + 5.0 * 0.096))
    with pytest.raises(ValueError, match="figures with a value"):
        evidence.total([["E241"]])


def test_printed_dollars_are_found_again_as_burn_or_loss():
    for usd, year, key in ((5e9, 2024, "E001"), (9e9, 2025, "E015"), (14e9, 2026, "E027"), (20e9, 2027, "E002")):
        assert key in {figure.key for figure in evidence.same_number(usd, year, "OpenAI")}
    assert figures()["E002"].unit == "USD"


# ---------------------------------------------------------------- the table kind


def test_no_printed_dollar_figure_is_compute_cost():
    rows = [r for r in whole() if r["claim"] == B and r["kind"] == "printed"]
    dollars = {r["year"]: r for r in rows if r["subject"].endswith("dollars")}
    assert sorted(dollars) == [2024, 2025, 2026, 2027]
    for year, at_least in ((2024, 1.3), (2025, 1.7), (2026, 3.0), (2027, 3.2)):
        assert dollars[year]["verdict"] == "fails"
        assert dollars[year]["p10"] / dollars[year]["threshold"] > at_least
    words = {(r["year"], r["definition"]) for r in rows if r["subject"].endswith("words")}
    assert {(2024, "D1"), (2026, "D2_plan"), (2027, "D2_plan"), (2030, "D4")} - words == {(2026, "D2_plan")}


# ---------------------------------------------------------------- the price kind


def side(name, level):
    return Side(name=name, text=name, level=level, multiply=("p",))


@pytest.mark.parametrize(("left", "right"), [("retail", "owner"), ("contract", "owner"), ("retail", "contract")])
def test_prices_of_two_levels_are_never_compared(left, right):
    with pytest.raises(prices.LevelError, match="never held against each other"):
        prices.price_ratio(side("a", left), side("b", right), {"a": np.ones(1), "b": np.ones(1)})
    assert issubclass(prices.LevelError, ConfigError)


def test_a_claim_that_compares_retail_with_owner_cost_does_not_load(folder):
    booked = 'booked = { provider = "azure", gpu = "gb200_nvl72_186gb", term = "on_demand" }\nlevel = "retail"'
    old = 'level = "contract"\nproxy = true'
    text = (folder / f"{C}.toml").read_text().replace(old, booked)
    (folder / f"{C}.toml").write_text(text.replace('left = "stargate_contract"', 'left = "stargate_owner"', 1))
    with pytest.raises(ConfigError, match="prices of one level, never owner against retail"):
        config.load(Claim, C)


def test_the_level_of_a_booked_price_is_the_level_of_its_term():
    with pytest.raises(ValueError, match="owner, the level of owned prices"):
        Side(name="a", text="a", level="retail", booked=Booked(provider="stargate", gpu="x", term="owned"))


def test_a_booked_price_is_drawn_from_the_book_and_a_missing_one_is_one_line():
    contract = prices.booked(Booked(provider="stargate", gpu="gb200_nvl72_186gb", term="contract"), 10_000, 1)
    assert 3.5 < contract.min() < contract.max() < 4.6
    owner = prices.booked(Booked(provider="stargate", gpu="gb200_nvl72_186gb", term="owned"), 10_000, 1)
    assert 1.5 < np.median(owner) < 5
    with pytest.raises(ConfigError, match="expected h100_sxm_80gb at spot"):
        prices.booked(Booked(provider="stargate", gpu="h100_sxm_80gb", term="spot"), 10, 1)


def test_a_price_that_was_not_known_then_is_compared_with_nothing():
    """Stargate's machines are priced since May 2026: before, the contract alone can be judged."""
    rows = prices.answer(config.load(Claim, C), datetime.date(2026, 5, 13))
    subjects = {row["subject"] for row in rows if row["kind"] == "verdict"}
    assert subjects == {"stargate_cheaper_by_contract", "stargate_75_percent_by_2030"}
    notes = [row["note"] for row in rows if row["kind"] == "finding"]
    assert notes == ["no such price was known on 2026-05-13"] * 2
    assert "stargate_cheaper_by_owner_cost" in {row["subject"] for row in prices.answer(config.load(Claim, C))}


def test_the_price_claim_answers_by_level_with_saving_and_delivery():
    rows = [r for r in table.claims([], TODAY) if r["claim"] == C]
    verdicts = {r["subject"]: r for r in rows if r["kind"] == "verdict"}
    contract = verdicts["stargate_cheaper_by_contract"]
    # D41: 3.56 to 4.57 USD per GB200-hour as contracted
    (stargate,) = [r for r in rows if r["kind"] == "price" and (r["subject"] or "").startswith("Stargate as OpenAI")]
    assert 3.4 < stargate["p10"] < stargate["p90"] < 4.7
    (saving,) = [r for r in rows if r["subject"] == "stargate_cheaper_by_contract: saving"]
    assert saving["p50"] == pytest.approx(0.75 * (1 - contract["p50"]), abs=1e-6)
    assert "proxy" in contract["note"] and contract["definition"] == "contract"
    assert verdicts["stargate_75_percent_by_2030"]["verdict"] == "fails"


def test_a_price_without_its_instance_is_no_price_of_the_book(folder):
    """gpu_only rows leave out the host: a comparison that names them finds nothing to compare."""
    path = folder.parent / "providers" / "oracle.csv"
    text = path.read_text()
    assert ",instance," in text
    asked = Booked(provider="oracle", gpu="h100_sxm_80gb", term="on_demand")
    assert prices.booked(asked, 1000, 0).mean() > 0
    path.write_text(text.replace(",instance,", ",gpu_only,"))
    with pytest.raises(ConfigError, match=r"oracle.toml: price: expected h100_sxm_80gb at on_demand"):
        prices.booked(asked, 1000, 0)


def test_every_verdict_names_what_it_stands_on():
    """Evidence ids or throughput rows: never neither, whatever the basis says."""
    for row in whole():
        if row["kind"] == "verdict":
            assert row["evidence"] or row["rests_on"], row["subject"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("source_url", "", "line 2: id and source_url: expected both"), ("value", "nan", "expected a finite number")],
)
def test_an_evidence_row_that_cannot_be_is_one_line(folder, column, value, message):
    path = folder.parent / "evidence.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0][column] = value
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ConfigError) as caught:
        figures()
    assert message in str(caught.value) and "\n" not in str(caught.value)
