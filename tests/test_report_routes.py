"""The report's routes and priors: what claims.csv says, with the judgement told."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest
import report_rows as made

from bench import config
from bench.claim import growth, routes
from bench.claim.spec import Claim
from bench.price.throughput import published
from bench.report import first_screen, priors, terminal
from bench.report import routes as shown
from bench.report.material import gather
from bench.report.page import as_text

TODAY = datetime.date(2026, 11, 22)
CLAIM = config.load(Claim, "serving_by_two_routes")


def words(cell):
    return "".join(getattr(part, "text", part) for part in as_text(cell))


def material(rows):
    return gather([], [], rows, [], {}, made.AS_OF)


@pytest.fixture(scope="module")
def found():
    return routes.answer(CLAIM, config.load(Claim, "inference_overtakes_training"), published(), TODAY)


def test_each_organisation_and_year_is_a_line_with_both_figures_and_what_explains_them(found):
    section = shown.section(material(found))
    table, reasons = section.tables
    lines = {(words(row.cells[0]), row.cells[1]): [words(cell) for cell in row.cells] for row in table.rows}
    assert set(lines) == {(item.organisation, str(item.year)) for item in CLAIM.compared}
    openai = lines["OpenAI", "2025"]
    assert openai[2].startswith("$8.4") and "bn" in openai[2]
    apart = {(r["definition"], str(r["year"])): r for r in found if r["subject"] == "disagreement"}
    why = {(words(row.cells[0]), row.cells[1]): words(row.cells[2]) for row in reasons.rows}
    assert set(why) == {key for key, row in apart.items() if not 0.5 <= row["p50"] <= 2}
    assert all("explains mo" in said for said in why.values())
    said = words(section.text[0])
    assert f"In {sum(not 0.5 <= r['p50'] <= 2 for r in apart.values())} of {len(apart)} comparisons" in said


def test_within_a_factor_of_two_nothing_is_explained(found):
    near = [
        {**r, "p50": 0.8} if r["subject"] == "disagreement" else r for r in found if "explained" not in r["subject"]
    ]
    section = shown.section(material(near))
    assert "In 0 of 6 comparisons" in words(section.text[0]) and "1.25 times below" in words(section.text[0])
    assert len(section.tables) == 1


def test_without_routes_there_is_no_section():
    assert shown.section(material([])) is None


def test_every_prior_stands_once_with_its_flag():
    section = priors.section(material([]))
    rows = {row.cells[0]: row for row in section.tables[1].rows}
    claims = config.load_all(Claim)
    assert {words(name) for name in rows} >= {"rho", "serving load"}
    drawn = {(n, p) for c in claims.values() for n, p in c.parameters.items() if p.distribution != "fixed"}
    assert len(section.tables[1].rows) == len(drawn)
    judged = sum(p.judgement for _, p in drawn)
    assert f"{judged} of {len(drawn)} priors" in words(section.text[0])
    assert rows["rho"].cells[4] == "" and rows["serving load"].cells[4] == "judgement"
    assert rows["rho"].cells[1:3] == ("4.40 to 10.4", "8.00")


def test_judgements_are_counted_per_verdict():
    rows = growth.answer(config.load(Claim, "efficiency_outruns_demand"))
    (row,) = priors.section(material(rows)).tables[0].rows
    assert row.cells == ("efficiency outruns demand", "–", "3", "2")
    more = [*rows, {**rows[0], "priors": 4, "judged": 3}]
    (row,) = priors.section(material(more)).tables[0].rows
    assert row.cells[2:] == ("3–4", "2–3")


def test_a_growth_is_one_line_with_a_verdict_a_year():
    claim = config.load(Claim, "efficiency_outruns_demand")
    rows = growth.answer(claim)
    lead = {**rows[0], "claim": "inference_overtakes_training", "kind": "verdict", "subject": "leads_by_2030"}
    page = material([lead, *rows])
    (line,) = first_screen.others(page)
    said = words(line)
    assert said.startswith(claim.question) and said.endswith(").")
    assert [word for word in said.split() if word.isdigit()] == ["2026", "2027", "2028", "2029", "2030"]
    lines = terminal.grouped([r for r in rows if r["kind"] == "verdict"], page.files)
    assert [line[0] for line in lines[0][1:]] == [f"  {year}" for year in claim.years]


def test_a_change_of_a_prior_changes_its_line():
    files = config.load_all(Claim)
    claim = files["efficiency_outruns_demand"]
    wider = replace(claim.parameters["cost_per_token_decline"], p90=4.4)
    changed = replace(claim, parameters={**claim.parameters, "cost_per_token_decline": wider})
    page = replace(material([]), files={claim.key: changed})
    (row,) = (row for row in priors.prior_rows(page) if row.cells[0] == "cost per token decline")
    assert row.cells[1] == "1.70 to 4.40" and row.cells[-1] == "efficiency outruns demand"
