"""Prices over time in the report: the verdict of each period, a chart of turns, a line for each series."""

from __future__ import annotations

import datetime

import report_rows as made

from bench import config
from bench.claim import history as judged
from bench.claim.spec import Claim
from bench.price.history import history
from bench.report import price_history
from bench.report.build import assemble
from bench.report.material import gather
from bench.report.page import Link, as_text, dangling
from bench.report.sources import row_links
from bench.report.theme import NARROW, WIDE

H100 = "h100_sxm_80gb"


def material(as_of=made.AS_OF, claims=None):
    found = judged.answer(config.load(Claim, price_history.CLAIM), as_of) if claims is None else claims
    return gather([], [], found, [], made.provenance(), as_of)


def point(provider, month, usd, gpu=H100, term="on_demand"):
    same = {"provider": provider, "month": month, "usd_per_gpu_hour": usd, "gpu": gpu, "term": term, "n": 1}
    return same | {"what": "a product", "source": "https://example.org/prices"}


def test_each_period_has_its_verdict_in_the_order_of_the_claim_file():
    found = material()
    lines = price_history.judged(found)
    assert len(lines) == len(found.files[price_history.CLAIM].period)
    words = ["".join(p.text if isinstance(p, Link) else p for p in line) for line in lines]
    assert words[0].startswith("The list price of an H100-hour fell from 2023 to 2026: undecided, P 25%; 3 sellers:")
    assert words[4].startswith("The spot price of an H100-hour fell in 2026: fails, P <1%; 3 sellers: 0 fell")
    assert all(isinstance(line[1], Link) for line in lines)
    assert not dangling(assemble(found))


def test_what_a_verdict_rests_on_leads_to_its_series():
    found = material()
    (verdict,) = [row for row in found.claims if row["subject"] == "h100_spot_prices_fell_in_2026"]
    links = [part for part in row_links(verdict["rests_on"], found) if isinstance(part, Link)]
    assert {link.text for link in links} == {"price of Nebius", "price of SF Compute", "price of Google Cloud"}
    rows = {row.id for row in price_history.section(found).tables[0].rows}
    assert {link.href.removeprefix("#") for link in links} <= rows


def test_a_series_is_a_line_with_its_change():
    rows = [point("aws", "2023-08", 12.29), point("aws", "2026-07", 6.88), point("Cudo", "2026-02", 2.5)]
    table = price_history.table(rows)
    cells = {
        row.id: ["".join(p.text if isinstance(p, Link) else p for p in as_text(cell)) for cell in row.cells]
        for row in table.rows
    }
    aws = cells["h-aws-h100-sxm-80gb-on-demand"]
    assert aws[0] == "Amazon Web Services" and aws[4:7] == ["$12.3 (2023-08)", "$6.88 (2026-07)", "-44%"]
    assert cells["h-cudo-h100-sxm-80gb-on-demand"][6] == "–", "one month is no change"


def test_a_chart_keeps_the_ends_of_every_stretch_of_one_price():
    line = [point("aws", f"2024-{month:02}", usd) for month, usd in enumerate([5, 5, 5, 4, 4, 3, 3, 3], start=1)]
    kept = [row["month"][-2:] for row in price_history.turns(line)]
    assert kept == ["01", "03", "04", "05", "06", "08"]
    assert price_history.turns(line[:1]) == line[:1]


def test_the_chart_has_a_panel_a_term_and_names_the_longest_series():
    spec = price_history.chart(history(), WIDE).to_dict()
    values = spec["data"]["values"]
    assert {value["panel"] for value in values} == {"on demand", "spot", "contract"}
    shown = {value["shown"] for value in values}
    assert {"Amazon Web Services", "Microsoft Azure", "Google Cloud", "others"} <= shown and len(shown) <= 8
    assert all(value["usd"] > 0 for value in values)
    assert price_history.chart(history(), NARROW).to_dict()["columns"] == 1


def test_an_old_day_has_an_old_chart_and_none_where_nothing_was_known():
    old = price_history.section(material(datetime.date(2025, 6, 1)))
    assert old.figures and len(old.tables[0].rows) < len(price_history.section(material()).tables[0].rows)
    assert not price_history.section(material(datetime.date(2020, 1, 1))).figures
