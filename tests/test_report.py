"""The report before it is HTML: numbers for people, utilisation, what is shown of many rows, and Markdown."""

import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import report_rows as made

from bench.config import CONFIGS, Gpu, load
from bench.report import build, cost_by_provider, sensitivity, share_by_year, terminal
from bench.report.drawing import ReportUnavailable
from bench.report.first_screen import linked, section, sentence, unit_of
from bench.report.material import Material, address, claim_id, gather, row_id
from bench.report.numbers import bare, chance, count, interval, number, percent, scaled, usd, value_of
from bench.report.offers import chosen, headline, offers
from bench.report.page import Link, Page, Row, Section, Table, as_text, dangling, ids
from bench.report.utilisation import ceilings, device_of, utilisation
from bench.report.words import phrase

ROOT = Path(__file__).resolve().parent.parent


def material(**changed) -> Material:
    rows = {"cells": made.cells(), "costs": made.costs(), "claims": made.claims(), "throughput": []} | changed
    return gather(**rows, provenance=made.provenance(), as_of=made.AS_OF)


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(1234.5), "1,230"),
        (number(0.012345), "0.0123"),
        (number(9.996), "10.0"),
        (number(3.2e12), "3.20e12"),
        (number(0.0), "0"),
        (usd(0.0123456), "$0.0123"),
        (usd(2.345), "$2.35"),
        (usd(6.5e10), "$65.0bn"),
        (usd(-4.2), "-$4.20"),
        (percent(0.5634), "56%"),
        (percent(0.999), ">99%"),
        (percent(0.0), "0%"),
        (chance(0.0), "<1%"),
        (chance(1.0), ">99%"),
        (count(12345.2), "12,345"),
        (scaled(4.1e13, "FLOP/s"), "41.0 TFLOP/s"),
        (scaled(0.0123, "s"), "12.3 ms"),
        (scaled(250.0, "s"), "250 s"),
        (interval(0.38, 0.73, percent), "38–73%"),
        (interval(0.64, 0.997, percent), "64% to >99%"),
        (interval(-0.2, 0.1, percent), "-20% to 10%"),
        (interval(0.3, 0.41, usd), "$0.300–0.410"),
        (interval(2.0, 2.001, number), "2.00"),
        (bare(2030.0, "year"), "2030"),
        (bare(0.5, "serving / (serving + X)"), "50%"),
        (value_of(2.5, "USD per GPU-hour"), "$2.50 per GPU-hour"),
        (value_of(0.3, "fraction of revenue"), "30% of revenue"),
        (value_of(6.667, "x per year"), "6.67 x per year"),
    ],
)
def test_numbers_are_for_people(shown, expected):
    assert shown == expected


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
@pytest.mark.parametrize("show", [number, usd, percent, chance, count])
def test_missing_is_a_dash(show, missing):
    assert show(missing) == "–"
    assert scaled(missing, "s") == value_of(missing, "USD") == interval(missing, 1.0, show) == "–"


# ---------------------------------------------------------------- utilisation


def used(**changed):
    gpu = load(Gpu, "h100_sxm_80gb")
    rows = [
        made.cell("none/matmul_bf16/reference", "ceiling", precision="bf16", gpu=gpu.key, flops_per_step=1.2e15),
        made.cell("none/copy_2gib/reference", "ceiling", precision="bf16", gpu=gpu.key, bytes_per_step=4e12),
    ]
    base = {"precision": "bf16", "device": "cuda", "gpu": gpu.key, "flops_per_step": 8e14, "bytes_per_step": 2e12}
    cell = made.cell("m/train/compile", "train_step", **{**base, "flops_per_step_unhalved": 9e14, **changed})
    return utilisation(cell, ceilings(rows).get(device_of(cell)), gpu), gpu


def test_mfu_and_mbu_are_what_a_hand_computes():
    found, gpu = used()
    peak, stream = gpu.peak_flops_per_s["bf16"], gpu.hbm_bytes_per_s
    assert found.mfu_datasheet.share == pytest.approx(8e14 / (2.0 * peak))
    assert found.mfu_datasheet_unhalved.share == pytest.approx(9e14 / (2.0 * peak))
    assert found.mfu_measured.share == pytest.approx(4e14 / 6e14)
    assert found.mbu_datasheet.share == pytest.approx(1e12 / stream)
    assert found.mbu_measured.share == pytest.approx(1e12 / 2e12)
    assert found.mark == ""


def test_mfu_is_per_gpu():
    assert used(n_gpus=8)[0].mfu_datasheet.share == pytest.approx(used()[0].mfu_datasheet.share / 8)


def test_above_the_measured_ceiling_is_flagged_and_above_the_datasheet_void():
    assert used(flops_per_step=1.5e15)[0].mark == "above_measured_ceiling"
    assert used(flops_per_step=1e17)[0].mark == "void"
    assert used(bytes_per_step=1e15)[0].mbu_datasheet.mark == "void"


@pytest.mark.parametrize(
    ("changed", "which", "reason"),
    [
        ({"flops_per_step": None}, "mfu_datasheet", "no FLOP count"),
        ({"bytes_per_step": None}, "mbu_measured", "no byte count"),
        ({"status": "oom"}, "mfu_datasheet", "no sustained step time"),
        ({"precision": "fp4"}, "mfu_datasheet", "no fp4 peak in configs/gpus/h100_sxm_80gb.toml"),
        ({"precision": "fp8"}, "mfu_measured", "no fp8 matmul ceiling in this run"),
        ({"run": "another"}, "mbu_measured", "no copy ceiling in this run"),
    ],
)
def test_a_missing_share_says_why(changed, which, reason):
    found = getattr(used(**changed)[0], which)
    assert (found.share, found.reason) == (None, reason)


def test_a_cpu_has_measured_ceilings_only():
    cells = made.cells()
    found = utilisation(cells[2], ceilings(cells)[device_of(cells[2])], None)
    assert found.mfu_measured.share == pytest.approx(0.25) and found.mbu_measured.share == pytest.approx(0.25)
    assert found.mfu_datasheet.share is None and "a CPU has none" in found.mfu_datasheet.reason


# ---------------------------------------------------------------- what is shown of many rows


def test_an_offer_is_the_regional_median_with_its_range():
    found = offers(chosen(made.costs(), "serving", headline(made.costs())))
    azure = next(offer for offer in found if offer["provider"] == "Azure")
    per_hour = 8 * 1e6 / (3600 * 4e4 * 0.5)
    assert (azure["low"], azure["median"], azure["high"]) == pytest.approx((4 * per_hour, 5 * per_hour, 6 * per_hour))
    assert azure["regions"] == 3
    assert [offer["level"] for offer in found] == ["retail", "retail", "contract", "owner"]


def test_the_hour_shown_is_the_one_of_the_token_cost():
    rows = chosen(made.costs(), "serving", headline(made.costs()))
    east = next(row for row in rows if row["RegionId"] == "east")
    more = [{**east, "SkuId": f"{n}", "x_gpu_count": 1} for n in range(3)]  # the cheap region sells many sizes
    azure = next(offer for offer in offers([*rows, *more]) if offer["provider"] == "Azure")
    assert azure["hour"] == 5.0
    assert azure["median"] == pytest.approx(azure["hour"] * 8 * 1e6 / (3600 * 4e4 * 0.5))
    assert azure["whole"] is None and cost_by_provider.costs_of(azure, brief=False)[1] == "– (sizes differ)"
    assert next(offer for offer in offers(rows) if offer["provider"] == "Azure")["whole"] is not None


def test_an_owners_cost_is_marked_projected_and_azures_a_proxy():
    costs = [{**row, "x_provider": "azure"} if row["x_level"] == "owner" else row for row in made.costs()]
    for rows, said in ((made.costs(), "owner, projected"), (costs, "owner, projected (proxy: Stargate's machines")):
        shown = cost_by_provider.table(headline(rows), material(costs=rows))
        assert [row.cells[2] for row in shown.rows if f"{row.cells[2]}".startswith(said)]


def test_a_cpu_cell_has_one_line_with_the_median_of_its_offers():
    cpu = made.costs()[-1]
    rows = [{**cpu, "x_usd_per_million_tokens": cost} for cost in (0.01, 0.02, 0.09)]
    (line,) = cost_by_provider.cpu_table(material(costs=rows)).rows
    assert line.cells[2] == "3" and line.cells[4:] == ("$0.0200", "$0.0100–0.0900")


def test_illustrative_cpu_rows_never_stand_with_gpu_prices():
    assert headline(made.costs()) == ("llama_3_1_8b", "h100_sxm_80gb")
    only = [cost for cost in made.costs() if cost["x_illustrative"]]
    assert headline(only) is None and chosen(only, "training", headline(only)) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://a.org/b/c", Link("a.org", "https://a.org/b/c")),
        ("https://github.com/o/r/blob/1/x.go", Link("o/r", "https://github.com/o/r/blob/1/x.go")),
        ("github:o/r:x/y.go", Link("o/r", "https://github.com/o/r/blob/HEAD/x/y.go")),
        ("o/r@1a2:x/y.go", Link("o/r", "https://github.com/o/r/blob/1a2/x/y.go")),
        ("public GitHub file 1 (address not shown)", "public GitHub file 1 (address not shown)"),
        ("", "–"),
    ],
)
def test_a_source_is_a_link_where_it_can_be(source, expected):
    assert address(source) == expected


def test_keys_read_as_words():
    assert phrase("rd_compute_usd_growth_2028_2030") == "R&D compute USD growth 2028–2030"
    assert phrase("llama_3_1_8b") == "Llama-3.1-8B" and phrase("two words") == "two words"


# ---------------------------------------------------------------- the first screen


def test_every_number_of_the_verdict_is_a_link_to_its_row():
    run = sentence(material())
    outside = "".join(part for part in run if isinstance(part, str))
    assert re.findall(r"\d+", outside.replace("2030", "").replace("80% interval", "")) == []
    assert "".join(p if isinstance(p, str) else p.text for p in run) == (
        "Leads by 2030: holds, P >99%, serving's share 90% (80% interval 80–99%)."
    )
    assert {part.href for part in run if isinstance(part, Link)} == {f"#{claim_id(made.claims()[0])}"}


def test_first_screen_links_exist_and_numbers_are_links():
    page = build.assemble(material())
    known = set(ids(page))
    first = page.sections[0]
    for table in first.tables:
        for line in table.rows:
            for name, cell in zip(table.columns, line.cells, strict=True):
                for part in as_text(cell):
                    if name.startswith(">") and part != "–":
                        assert isinstance(part, Link) and part.href[1:] in known
    for run in (*first.text, *first.bullets, *first.after):
        assert all(part.href[1:] in known for part in run if isinstance(part, Link))


def test_it_says_that_no_gpu_was_measured():
    said = "".join(p if isinstance(p, str) else p.text for p in section(material()).text[1])
    assert said.startswith("No GPU was measured: every GPU row is imported, and only a CPU was measured here.")
    assert "Throughput enters only D1 (the headline), D2, from 0 measured, 2 imported and 0 modelled" in said
    assert said.endswith(
        "D3, D4 rest on public evidence alone (6 public figures in all) and do not depend on throughput."
    )
    gpu = [*made.cells(), made.cell("m/train/compile", "train_step", device="cuda", gpu="h100_sxm_80gb")]
    assert "No GPU" not in str(section(material(cells=gpu)).text)


def test_numbers_in_prose_are_linked_and_years_are_not():
    rows = [made.claims()[0]]
    found = [part.text for part in linked("by 2030 below 0.975x, P 66%, $20.0bn, D2", rows) if isinstance(part, Link)]
    assert found == ["0.975x", "66%", "$20.0bn"]


def test_what_would_flip_it_and_the_other_claims_are_said():
    first = section(material())
    flat = "".join(p if isinstance(p, str) else p.text for run in (*first.bullets, *first.after) for p in run)
    assert "undecided with R&D growth below 0.975 x a year." in flat
    limits = "only the cost of capital differs; proxy: b stands for c"
    assert f"cheaper undecided (P 40%; a / b 0.800–1.30; {limits})" in flat


def test_a_printed_year_shows_both_verdicts_and_every_figure_of_the_same_number():
    shown = next(table for table in section(material()).tables if table.caption == "printed table")
    said = ["".join(p if isinstance(p, str) else p.text for p in as_text(cell)) for cell in shown.rows[0].cells]
    dollars = ["$20.0bn", "$88.0bn ($65.0bn–110bn)", "fails, P <1%"]
    assert said == ["2027", *dollars, "words", "45% (32–60%)", "fails, P 3%"] and len(shown.rows) == 1
    note = "".join(p if isinstance(p, str) else p.text for p in shown.note)
    assert note == (
        "Words by D1. The same numbers are in print as 2027 $20.0bn: cash burn projected for 2027 and cash flow 2027,"
        " forecast of Q1-2025 (-$20.0bn)."
    )
    assert [part.href for part in shown.note if isinstance(part, Link)][1:] == ["#E002", "#E011"]


def test_the_unit_of_a_parameter_is_the_claim_files():
    files = material().files
    name = "rd_compute_usd_growth_2028_2030"
    row = {"claim": "inference_overtakes_training", "subject": f"leads_by_2030: {name}", "unit": "other"}
    assert unit_of(row, files) == files[row["claim"]].parameters[name].unit != "other"


def test_the_tornado_says_which_end_is_which_in_units():
    row = next(row for row in made.claims() if row["kind"] == "sensitivity")
    assert sensitivity.named(row | {"unit": "x a year"}, material()).endswith("|0.9 to 1.8 x a year")
    zero = row | {"unit": "x, of it", "note": "P with a at its p10 (-1.39e-17), as drawn, at its p90 (2)"}
    assert sensitivity.named(zero, material()).endswith("|0 to 2 x")
    assert "10th percentile (open circle) and at its 90th (filled circle)" in str(sensitivity.section(material()).text)


def test_the_header_and_the_cost_table_say_how_old_the_prices_are():
    dated = "Prices dated 20 July 2026 to 1 October 2026, 3 of 4 older than 90 days (spot: 14 days)."
    page = build.assemble(material())
    assert page.subtitle.startswith(f"Evaluated as of 22 November 2026. {dated}")
    assert (dated,) in cost_by_provider.section(material()).text


def test_shares_by_year_are_short_enough_for_seven_years():
    cell = share_by_year.table(material(), "by purpose", "t").rows[0].cells[1]
    assert "".join(p if isinstance(p, str) else p.text for p in cell) == "90% (80–99%)"


# ---------------------------------------------------------------- the page and its Markdown


def test_every_link_leads_somewhere_and_every_anchor_is_one():
    page = build.assemble(material())
    assert dangling(page) == [] and len(ids(page)) == len(set(ids(page)))
    assert row_id(f"{made.RUN}/tiny_15m/train_tiny/reference") in ids(page) and "E039" in ids(page)


def test_a_link_that_leads_nowhere_stops_the_build():
    page = Page("t", "s", ("v",), (Section("a", "A", tables=(Table("c", ("x",), (Row((Link("1", "#no"),)),)),)),))
    assert dangling(page) == ["#no"]


def test_a_failed_cell_is_shown_with_its_reason():
    body = build.markdown(build.assemble(material()))
    (line,) = [line for line in body.splitlines() if "decode\\_tiny/triton" in line]
    assert "unavailable" in line and "no \\| GPU" in line


def test_markdown_has_the_same_columns_in_every_row_of_a_table():
    lines = build.markdown(build.assemble(material())).splitlines()
    for above, below in pairwise(lines):
        if above.startswith("|") and below.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", above)) == len(re.findall(r"(?<!\\)\|", below)), below


def test_a_cell_that_was_planned_and_not_measured_is_said():
    body = build.markdown(build.assemble(material()))
    assert "planned and not measured: tiny\\_15m/train\\_tiny/compile." in body


def test_blanks_are_dashes_never_nan_or_none():
    body = build.markdown(build.assemble(material()))
    assert not re.search(r"\b(nan|None|inf)\b", body)
    (line,) = [line for line in body.splitlines() if "decode\\_tiny/triton" in line]
    assert line.count("| – |") >= 1


def test_markdown_is_the_same_in_any_process():
    code = (
        "import sys; sys.path[:0] = ['.', 'tests']\n"
        "import report_rows as m\nfrom bench.report import build, material\n"
        "rows = (m.cells(), m.costs(), m.claims(), [])\n"
        "print(build.markdown(build.assemble(material.gather(*rows, m.provenance(), m.AS_OF))))"
    )
    made_twice = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert made_twice[0] == made_twice[1] and len(made_twice[0]) > 10_000


def test_nothing_at_all_still_makes_a_page():
    page = build.assemble(material(cells=[], costs=[], claims=[]))
    body = build.markdown(page)
    assert dangling(page) == [] and "No claim was tested." in body and "nothing was measured" in body


def test_missing_packages_are_named_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "altair", None)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ReportUnavailable) as error:
        build.report(tmp_path, [], [], [], [], {}, made.AS_OF)
    assert str(error.value).startswith(
        "the report needs altair, vl-convert-python: pip install altair vl-convert-python"
    )
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_importing_the_report_imports_neither_torch_nor_altair():
    code = (
        "import sys, bench.report.build, bench.report.terminal\n"
        "assert not {'torch', 'altair', 'vl_convert', 'jinja2', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_terminal_shows_verdict_table_costs_and_paths(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "verdict_line", lambda claims: "The verdict.")
    terminal.show(made.claims(), made.costs(), [Path("results/local/report/index.html")])
    out = capsys.readouterr().out
    assert out.startswith("The verdict.\n\n")
    assert re.search(r"leads by 2030\n.*\n? *D2 +undecided +66% +46% +56% +65% +imported", out)
    assert "serving, retail: " in out and "cheapest $0.333 (Lambda, on demand)" in out
    assert "serving, owner: " in out and "\x1b" not in out
    assert out.endswith("wrote results/local/report/index.html\n")


def test_a_terminal_without_rich_gets_plain_text(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    terminal.table([["a"] * len(terminal.COLUMNS)])
    assert capsys.readouterr().out.split("\n")[0].split() == [name for name in terminal.COLUMNS if name]


def test_evidence_and_published_tables_are_read_from_configs_by_default():
    found = gather([], [], [], [], {}, made.AS_OF)
    assert "E001" in found.evidence
    assert bool(found.published) == (CONFIGS / "published.csv").is_file()
