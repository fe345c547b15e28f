"""A figure of MLPerf's is never shown without its result and the words MLCommons asks for."""

from __future__ import annotations

import csv
import datetime
import re

import pytest
import report_rows as made

from bench import config, derive, results
from bench.import_results import IMPORTED, VERIFIED
from bench.price import break_even_api, day_costs, market
from bench.price.cost import costs
from bench.price.quoted import claims_quoted, quote, quotes
from bench.price.throughput import published, throughput
from bench.report import build, terminal
from bench.report.material import gather, row_id

DAY = datetime.date(2026, 11, 28)
A, B = f"MLPerf result 5.1-0083: {VERIFIED}", f"MLPerf result 5.1-0015: {VERIFIED}"


def test_a_note_that_asks_for_it_has_a_quote():
    assert quote(f"{VERIFIED}; result 5.1-0083; per system") == A
    assert (
        quote(f"{VERIFIED}; per system; the result of it", "https://x.org/r")
        == f"MLPerf result https://x.org/r: {VERIFIED}"
    )
    assert quote("result 5.1-0083") is None and quote(None) is None


def test_several_are_said_once():
    assert quotes([A, None, B, A]) == f"MLPerf results 5.1-0015, 5.1-0083: {VERIFIED}"
    assert quotes([A]) == A and quotes([None]) is None
    assert quotes([quotes([A, B]), A]) == quotes([A, B])


def test_every_published_row_of_mlperf_names_its_result():
    with open(config.CONFIGS / "published.csv", newline="") as file:
        results = re.compile(r"mlcommons/\w+/(tree|blob)/\w+/(summary_results|.*/results/)")
        rows = [row for row in csv.DictReader(file) if results.search(row["source"]) or "MLPerf" in row["workload"]]
    assert len(rows) >= 30
    for row in rows:
        assert re.search(rf"{VERIFIED}; result (\d\.\d-\d{{4}}|[\w.-]+/[\w.-]+/\w+);", row["note"]), row["id"]


@pytest.fixture(scope="module")
def rows():
    return published()


@pytest.fixture(scope="module")
def mlperf(rows):
    """Throughput rows that came from MLPerf, by their workload."""
    return {row["row"] for row in rows if "MLPerf" in row["workload"]}


def test_costs_and_both_tables_of_the_market_carry_it(rows, mlperf):
    some = [row for row in rows if row["model"] == "llama_3_1_405b"]
    priced = market.finished(costs(some, DAY), some, DAY)
    assert {row["x_row"] for row in priced if row["x_quote"]} == mlperf & {row["row"] for row in some}
    assert all(VERIFIED in row["x_quote"] for row in priced if row["x_row"] in mlperf)
    for found in (break_even_api.break_evens(some, DAY), day_costs.day_costs(some, DAY)):
        assert found and all(bool(row["quote"]) == (row["row"] in mlperf) for row in found)


def test_an_imported_row_carries_it_with_its_energy(tmp_path):
    note = f"{VERIFIED}; result 5.1-0099; per system; energy: 700 W at the wall over the rate"
    rate = {"phase": "serve", "model": "llama_3_1_8b", "gpu": "h100_sxm_80gb", "n_gpus": 1, "token_kind": "output"}
    rate |= {
        "system_tokens_per_s": 1000.0,
        "workload": "w",
        "as_of": "2025-09",
        "source": "https://example.org",
        "note": note,
    }
    rate |= {"id": "import:x/1", "energy_joules_per_token": 0.7, "energy_boundary": "node", "format": "mlperf_summary"}
    results.write(tmp_path / "x.csv", IMPORTED, [rate])
    (row,) = [one for one in throughput([], imports=[tmp_path / "x.csv"]) if one["row"] == "import:x/1"]
    assert row["quote"] == f"MLPerf result 5.1-0099: {VERIFIED}"
    assert (row["energy_joules_per_token"], row["energy_boundary"]) == (0.7, "node")


def test_findings_carry_it(rows, mlperf):
    name = "published:mlperf_infer_8b_h100x1_fp8_offline"
    found = claims_quoted([{"rests_on": f"other; {name}"}, {"rests_on": "other"}, {"rests_on": None}], rows)
    assert name in mlperf and [row["quotes"] for row in found] == [A, None, None]


def test_the_derivation_hands_it_on(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(
        "bench.claim.table.claims", lambda *_: [{"rests_on": "published:mlperf_infer_8b_h100x1_fp8_offline"}]
    )
    job = derive.Derivation([], tmp_path, DAY)
    assert derive.claims_of(job, rows, [])[0]["quotes"] == A
    some = [row for row in rows if row["row"].endswith("8b_h100x1_fp8_offline")]
    assert {row["x_quote"] for row in derive.costs_of(job, some, [])} == {A}


def test_the_terminal_says_it_of_costs_and_of_verdicts(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "verdict_line", lambda claims: "The verdict.")
    claims = [row | {"quotes": B} for row in made.claims()]
    terminal.show(claims, [row | {"x_quote": A} for row in made.costs()], [])
    said = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(f"rate, {A}") for line in said) >= 2 and f"Verdicts rest on {B}" in said


def test_a_section_that_shows_such_a_row_ends_in_its_quote(rows, mlperf):
    """Every section of the page, whatever it shows: text, notes, cells and anchors."""
    some = [row for row in rows if row["model"] == "llama_3_1_8b" and row["row"] in mlperf]
    priced = market.finished(costs(some, DAY), some, DAY)
    tables = market.market(some, DAY, derive.book_of(derive.Derivation([], config.CONFIGS, DAY, True)))
    material = gather([], priced, made.claims(), some, tables, DAY)
    page = build.assembled(material)
    anchors = {row_id(name) for name in mlperf}
    shown = 0
    for section in page.sections:
        said = repr(section)
        names = [a for a in anchors if f"#{a}'" in said or f"id='{a}'" in said]
        assert bool(names) == any(VERIFIED in repr(run) and "MLPerf result" in repr(run) for run in section.after), (
            section.id
        )
        shown += bool(names)
    assert shown >= 4, "costs, buying, a day, sources at least"
