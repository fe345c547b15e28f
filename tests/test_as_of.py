"""A report of an old day: what was not known then is not in it; and whose prices a derivation rests on."""

from __future__ import annotations

import datetime

import pytest

from bench import derive, options, results
from bench.config import ConfigError
from bench.derive import Derivation
from bench.modelled.points import newest
from bench.price import snapshot
from bench.price.book import Price, providers
from bench.price.known import first_day, known
from bench.price.throughput import published
from bench.report import build, first_screen, readme
from bench.report.drawing import ReportUnavailable
from bench.report.material import gather

THEN = datetime.date(2025, 6, 1)
OWN = """\
name = "Contoso agreement"
kind = "neocloud"

[[price]]
region = "anywhere"
sku = "8xH100, signed"
gpu = "h100_sxm_80gb"
gpu_count = 8
includes = "instance"
term = "contract"
usd_per_gpu_hour = 1.23
as_of = 2025-05-01
source = "our agreement no. 4711"
"""


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2025-02-21", "2025-02-21"),
        ("2025-02", "2025-02-01"),
        ("2025", "2025-01-01"),
        ("v5.1 2025-09", "2025-09-01"),
        ("2025-2026", "2025-01-01"),
        ("24.07", "2024-07-01"),
        ("26.04.01", "2026-04-01"),
        ("v1.0", None),
        ("", None),
        (None, None),
    ],
)
def test_dates_as_sources_print_them(text, day):
    assert first_day(text) == (day and datetime.date.fromisoformat(day))
    assert known(text, THEN) == (day is None or day <= "2025-06-01")


def test_a_day_is_a_day_and_not_after_today():
    assert options.day(None) is None and options.day("2025-06-01") == THEN
    for text in ("soon", "2025-06", "2999-01-01"):
        with pytest.raises(ConfigError, match=r"--as-of: expected a day such as 2025-06-01, not after today"):
            options.day(text)


def test_prices_and_rates_of_later_days_vanish(tmp_path):
    job = Derivation.of(tmp_path, None, False, THEN)
    said = derive.price(job)
    costs = results.read_rows(tmp_path / "local" / "costs.csv", results.COSTS)
    assert f"no modelled rates: some of what they are fitted on came on {newest()} or bears no date" in said
    assert newest() > THEN
    assert "prices are older than 90 days (spot: 14 days) at 2025-06-01" in said
    assert {row["x_provider"] for row in costs} == {"aws", "azure", "gcp"}
    assert max(row["x_price_as_of"] for row in costs) <= "2025-06-01"
    assert {row["x_usd_per_gpu_hour"] for row in costs if row["SkuId"] == "p5.48xlarge"} == {12.29}
    rates = {row["row"] for row in published(THEN)}
    assert {row["x_row"] for row in costs} <= rates < {row["row"] for row in published()}
    assert not any("trtllm" in name for name in rates), "TensorRT-LLM 1.0 came in September 2025"


def test_the_report_says_its_day_and_what_it_knew_too_early(tmp_path):
    job = Derivation.of(tmp_path, None, False, THEN)
    made = derive.derive(job)
    material = gather(made.cells, made.costs, made.claims, made.throughput, {"warnings": made.warnings}, THEN)
    page = build.assemble(material)
    assert page.subtitle.startswith("Evaluated as of 1 June 2025. Prices dated 18 December 2023 to 22 May 2025")
    (late,) = [line for line in made.warnings if "hindsight" in line]
    assert "public figures behind the claims were published after 2025-06-01" in late
    assert all(known(row["published"], THEN) for row in material.evidence.values())
    assert {row["id"] for row in material.evidence.values()} < {f"E{number:03}" for number in range(1000)}
    assert max(row["month"] for row in material.history) == "2025-05"
    judged = {
        r["subject"]: r["verdict"] for r in made.claims if r["claim"] == "competition_lowers_prices" and r["verdict"]
    }
    assert judged["h100_list_prices_fell_in_2026"] == "undecided", "nobody knew"
    assert not build.dangling(page)


def test_runs_of_later_days_are_left_out_unless_they_are_named(tmp_path):
    for day in ("20250531", "20261122"):
        (tmp_path / "runs" / f"{day}T000000_smoke_cpu_00000000").mkdir(parents=True)
    early, late = sorted((tmp_path / "runs").iterdir())
    for run in (early, late):
        (run / "cells.csv").write_text("")
    assert Derivation.of(tmp_path, None, False).runs == [early, late]
    assert Derivation.of(tmp_path, None, False, THEN).runs == [early]
    assert Derivation.of(tmp_path, [late], False, THEN).runs == [late]


def test_the_public_date_moves_with_the_public_files(tmp_path, monkeypatch):
    def no_drawing(*_):
        raise ReportUnavailable("not here")

    updated = []
    monkeypatch.setattr(readme, "update", lambda path, claims: updated.append(path))
    monkeypatch.setattr(build, "report", no_drawing)
    (tmp_path / "as_of").write_text("2026-11-28\n")
    (tmp_path / "runs").mkdir()
    derive.report(Derivation.of(tmp_path, None, True, THEN))
    assert (tmp_path / "as_of").read_text() == "2025-06-01\n" and updated
    assert Derivation.of(tmp_path, None, True).as_of == THEN


# ---------------------------------------------------------------- whose prices


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "contoso.toml"
    path.write_text(OWN)
    return path


def test_own_prices_are_priced_beside_ours_and_marked(tmp_path, own):
    derive.price(Derivation.of(tmp_path, None, False, prices=[own]))
    costs = results.read_rows(tmp_path / "local" / "costs.csv", results.COSTS)
    mine = [row for row in costs if row["x_provider"] == "contoso"]
    assert {row["ProviderName"] for row in mine} == {"Contoso agreement (contoso.toml)"}
    assert {(row["x_usd_per_gpu_hour"], row["x_level"]) for row in mine} == {(1.23, "contract")}
    aws = [row for row in costs if row["SkuId"] == "p5.48xlarge" and row["RegionId"] == "us-east-1"]
    assert {row["x_row"] for row in mine} == {row["x_row"] for row in aws}


def test_the_public_files_take_no_prices_of_a_user_nor_of_a_snapshot(tmp_path, own):
    (tmp_path / "as_of").write_text("2026-11-28\n")
    (tmp_path / "runs").mkdir()
    with pytest.raises(ConfigError, match=r"^--prices: expected without --tracked"):
        Derivation.of(tmp_path, None, True, prices=[own])
    fresh = Price(
        region="us-east-1",
        sku="p5.48xlarge",
        gpu="h100_sxm_80gb",
        gpu_count=8,
        includes="instance",
        term="on_demand",
        usd_per_gpu_hour=5.0,
        as_of=datetime.date(2026, 11, 20),
        source="https://example.org",
    )

    def asked(job):
        (aws,) = [seller for seller in derive.book_of(job) if seller.key == "aws"]
        return {p.usd_per_gpu_hour for p in aws.price if (p.gpu, p.term) == (fresh.gpu, fresh.term)}

    for folder in (tmp_path / "local" / "prices", tmp_path / "prices"):
        snapshot.write(folder / "2026-11-20.csv", {"aws": [fresh]})
    assert asked(Derivation.of(tmp_path, None, False)) == {5.0}
    assert 6.88 in asked(Derivation.of(tmp_path, None, True)) and 5.0 not in asked(Derivation.of(tmp_path, None, True))
    assert 6.88 in asked(Derivation.of(tmp_path, None, False, datetime.date(2026, 11, 19))), "not there yet"


def test_the_documented_file_of_prices_of_ones_own_is_read(tmp_path):
    page = (results.ROOT / "docs" / "importing.md").read_text(encoding="utf-8")
    path = tmp_path / "ours.toml"
    path.write_text(page.split("## Prices of your own")[1].split("```toml\n")[1].split("```")[0])
    (price,) = providers([path])["ours"].price
    assert (price.usd_per_gpu_hour, price.level, price.source) == (2.10, "contract", "agreement no. 4711")


def test_the_first_screen_says_that_priors_are_todays():
    late = "101 of 118 public figures behind the claims were published after 2025-06-01: hindsight"
    material = gather([], [], [], [], {"warnings": ["another", late]}, THEN)
    assert late in first_screen.hindsight(material) and "priors are those of today" in first_screen.hindsight(material)
    assert first_screen.hindsight(gather([], [], [], [], {"warnings": ["another"]}, THEN)) == ""
