"""Renting or buying, a day's load and carbon as the report shows them."""

from __future__ import annotations

import datetime

import pytest
import report_rows as made
from report_rows import shown, words

from bench.import_results import VERIFIED
from bench.price import break_even_api, day_costs, market
from bench.price.book import providers
from bench.price.cost import costs
from bench.price.throughput import published
from bench.report import api_prices, build, day
from bench.report import carbon as carbon_section
from bench.report.material import gather
from bench.report.page import dangling

DAY = datetime.date(2026, 11, 28)


@pytest.fixture(scope="module")
def material():
    rows = [row for row in published() if row["model"] in ("llama_3_1_8b", "mixtral_8x7b")]
    priced = market.finished(costs(rows, DAY), rows, DAY)
    return gather([], priced, [], rows, market.market(rows, DAY, list(providers().values())), DAY)


def test_a_model_stands_at_two_rentals_against_two_sellers(material):
    lines = shown(api_prices.table(material))
    assert [line["model and GPU"][:9] for line in lines if line["model and GPU"]] == ["Llama-3.1", "Mixtral-8"]
    assert len({line["a unit"] for line in lines[:4]}) == 2 and len({line["bought from"] for line in lines[:4]}) == 2
    best = api_prices.lines(material)[0]
    same = [r for r in material.break_even_api if r["row"] == best["row"] and r["term"] == "on_demand"]
    sure = [r for r in same if r["api_confidence"] != "low"]
    assert sure and len(sure) < len(same), "prices nobody tells the page of stay in the file"
    assert best["rent_usd_per_request"] == min(row["rent_usd_per_request"] for row in same)
    assert best["buy_usd_per_request"] == min(row["buy_usd_per_request"] for row in sure)


def test_batch_work_stands_back_where_a_model_has_another_row(material):
    workloads = {row["model"]: row["workload"] for row in api_prices.lines(material)}
    assert "Offline" not in workloads["llama_3_1_8b"] and "Offline" in workloads["mixtral_8x7b"], "its only row"
    assert "Offline" in words(shown_cell(material)), "and it says so"


def shown_cell(material):
    return next(row.cells[1] for row in api_prices.table(material).rows if "Mixtral" in str(row.cells[0]))


def test_never_says_how_much_is_missing(material):
    row = api_prices.lines(material)[0]
    dear = row | {"answer": "never", "missing_factor": 2.5, "first_share": None}
    changed = gather([], [], [], [], {"break_even_api": [dear]}, DAY)
    assert shown(api_prices.table(changed))[0]["cheaper from"] == "never: 2.50 times too dear"
    assert "renting is never cheaper in 1," in words(api_prices.section(changed).text[0])


def test_a_days_lines_add_up_as_shown_and_the_headline_leads(material):
    rows = day.shown(material)
    assert len({row["row"] for row in rows}) == 1 and rows[0]["model"] == "llama_3_1_8b"
    lines = day.lines(rows)
    assert [row["fleet"] for row in lines[:4]] == ["static", "autoscaled", "perfect", "reserved_base"]
    based = [r for r in rows if r["fleet"] == "reserved_base" and (r["curve"], r["mean_units"]) == lines_key(lines[0])]
    assert lines[3]["usd_per_million_tokens"] == min(row["usd_per_million_tokens"] for row in based)
    first = shown(day.table(rows, material))[0]
    parts = [float(first[name].removeprefix("$")) for name in ("usage", "idle", "start-up")]
    assert sum(parts) == pytest.approx(float(first["together"].removeprefix("$")), rel=0.01)


def lines_key(row):
    return row["curve"], row["mean_units"]


def test_carbon_stands_by_region_with_how_its_energy_is_known(material):
    table = carbon_section.section(material).tables[0]
    lines = shown(table)
    grids = [float(line["gCO2e/kWh"]) for line in lines]
    assert len(lines) >= 5 and grids == sorted(grids)
    said = words(table.note)
    assert "Serving: " in said and "Training: " in said and "modelled (rated power of the boards" in said
    row = next(r for r in material.costs if r["x_g_co2e_per_million_tokens"])
    with_meter = row | {"x_energy_basis": "imported"}
    assert "imported (metered)" in words(carbon_section.energy(with_meter, material))


def test_nothing_to_show_is_no_section():
    bare = gather(made.cells(), made.costs(), made.claims(), [], made.provenance(), DAY)
    assert api_prices.section(bare) is day.section(bare) is carbon_section.section(bare) is None


def test_the_page_holds_all_three_and_leads_nowhere_wrong(material):
    page = build.assembled(material)
    sections = {section.id: section for section in page.sections}
    assert {"rent-or-buy", "a-day", "carbon"} <= set(sections) and dangling(page) == []
    assert VERIFIED in words(sections["rent-or-buy"].after[-1]), "Mixtral's row is MLPerf's"


def test_the_files_have_the_columns_they_say(tmp_path, material):
    facts = {"break_even_api": material.break_even_api[:3], "day_costs": material.day_costs[:3]}
    for path in market.write(tmp_path, facts):
        assert len(path.read_text().splitlines()) == 4
    assert market.FILES == ("break_even_api.csv", "day_costs.csv")
    assert set(material.break_even_api[0]) == set(break_even_api.COLUMNS)
    assert set(material.day_costs[0]) == set(day_costs.COLUMNS)
