"""The money of the report: usage and idle side by side, owners beside published rates, portfolios."""

from __future__ import annotations

import report_rows as made
from report_rows import shown, words

from bench.claim import blends
from bench.claim.spec import Claim
from bench.config import load
from bench.report import build, idle, owners, portfolios
from bench.report.first_screen import one_line
from bench.report.material import gather
from bench.report.offers import headline
from bench.report.page import dangling
from bench.report.theme import NARROW, WIDE


def material(**changed):
    rows = {"cells": made.cells(), "costs": made.costs(), "claims": made.claims(), "throughput": []} | changed
    return gather(**rows, provenance=made.provenance(), as_of=made.AS_OF)


def split(row, used, idle_time, idle_gpus):
    """A cost row with its parts."""
    parts = {"x_usage_based_usd": used, "x_idle_time_usd": idle_time, "x_idle_gpus_usd": idle_gpus}
    idle_all = None if used is None else idle_time + idle_gpus
    whole = row["x_usd_per_million_tokens"] + idle_gpus
    return {**row, **parts, "x_idle_usd": idle_all, "x_allocation_based_usd": whole}


def test_a_bill_is_told_by_usage_and_by_allocation():
    costs = made.costs()
    with_parts = []
    for row in costs:
        usd = row["x_usd_per_million_tokens"]
        serves = row["x_phase"] == "serve"
        with_parts.append(split(row, usd / 2, usd / 2, 3 * usd) if serves else split(row, None, None, 0.0))
    table = idle.table(headline(with_parts), material(costs=with_parts))
    lines = [line for line in shown(table) if line["side"] == "serving"]
    assert [line["provider"] for line in lines] == ["Azure", "Coreweave", "Stargate"]  # the median of each level
    azure = lines[0]  # 5 USD at the median of three regions; 8 GPUs, 40,000 tokens/s, half the time: 0.556 USD
    assert (azure["usage-based"], azure["idle time"]) == ("$0.278", "$0.278")
    assert (azure["idle GPUs"], azure["allocation-based"], azure["idle part"]) == ("$1.67", "$2.22", "88%")
    (train,) = [line for line in shown(table) if line["side"] == "training" and line["provider"] == "Azure"]
    assert train["usage-based"] == train["idle part"] == "–"  # its rate contains idle time


def test_costs_without_parts_have_no_such_table():
    assert idle.table(headline(made.costs()), material()) is None


def test_owner_rates_stand_beside_ours_with_what_explains_them():
    rates, parts = owners.section(material()).tables
    lines = {(line["GPU"], line["owner"], line["theirs"]): line for line in shown(rates)}
    line = lines["GB200 NVL72, one GPU 186 GB", "hyperscaler", "$1.86"]
    assert line["ours / theirs"].startswith("1.7")
    assert line["what explains most of it"].startswith("purchase price of the machine")
    assert "(theirs)" in line["what explains most of it"] and "of the gap" in line["ours then"]
    h100 = lines["H100 SXM 80 GB", "hyperscaler", "$1.17"]
    assert "not published; the nearer end of our range" in h100["what explains most of it"]
    whole = {line["owner"]: line for line in shown(parts)}
    assert whole["Microsoft Maia"]["basis"] == "modelled from its maker's claim"
    assert whole["SoftBank Stargate"]["basis"] == "projected"


def test_portfolios_are_shown_with_verdicts_costs_and_a_chart_for_both_widths():
    claims = made.claims() + blends.answer(load(Claim, "multi_cloud"))
    page = material(claims=claims)
    section = portfolios.section(page)
    verdicts, costs, path = section.tables
    said = {line["statement"]: line["verdict"] for line in shown(verdicts)}
    assert said["Two clouds against one: cheaper, expected loss included"] == "fails"
    assert said["Two clouds against one: fewer hours with less than half of serving"] == "holds"
    rows = {line["portfolio"]: line for line in shown(costs)}
    assert set(rows) == {"One cloud", "Two clouds", "Three clouds and Stargate", "75% Stargate, as reported"}
    assert rows["Two clouds"]["spare"] == "10.0%" and rows["One cloud"]["spare"] == "0.0%"
    assert [line["portfolio"] for line in shown(path)] == [line["portfolio"] for line in shown(costs)]
    assert any("worth $" in words(line) for line in section.bullets)
    line = words(one_line("multi_cloud", page))
    assert "Two clouds against one: cheaper, expected loss included fails (P 1%); less serving lost undecided" in line
    assert line.endswith("Proxy: prices of aws, azure, gcp.")
    (figure,) = section.figures
    for layout in (WIDE, NARROW):
        spec = figure.draw(layout).to_dict()
        panels = spec["hconcat"] if layout == WIDE else spec["vconcat"]
        parts = panels[0]["data"]["values"]
        assert {value["part"] for value in parts} == {said for said, _ in portfolios.PARTS.values()}
    assert not dangling(build.assemble(page))


def test_without_a_blend_there_is_no_section():
    assert portfolios.section(material()) is None
