"""The serving section: points of every kind, charts of GPUs alone, bills, mixes, scenarios, goals."""

from __future__ import annotations

import csv

import pytest
import report_rows
import serving_rows as made
from report_rows import words

from bench import derive
from bench.price import serving_assumptions
from bench.price.serving_cost import COLUMNS
from bench.report import build, serving, serving_charts, serving_money
from bench.report.page import Layout, dangling, ids
from bench.report.serving_cells import KEPT, NBSP, SATURATED, STEADY, VOID

ON_H100 = "Llama-3.1-8B, bf16, triton on 1 × H100 SXM 80 GB"
CPU = "tiny_15m/serve_chat_tiny/reference"
NONE = {"window_s": None, "output_tokens_per_s": None, "interactivity_tokens_per_s": None, "requests_per_s": None}


def ladder(cell=made.CHAT):
    """Steady, best, promises broken, saturated, void, and one without a window."""
    return [
        made.closed(1, cell),
        made.closed(8, cell),
        made.closed(32, cell, slo_attainment=0.5),
        made.opened(40.0, cell),
        made.opened(300.0, cell, saturated="True", flags="saturated+cut_requests", slo_attainment=0.2),
        made.closed(64, cell, void="littles_law: 1.3"),
        made.closed(128, cell, **NONE, flags="too_few_requests"),
    ]


def tables(given):
    """The section's tables by caption."""
    return {table.caption: table for table in serving.section(given).tables}


def shown(table):
    """A table's rows by column, spaces that do not break as plain ones."""
    return [{column: cell.replace(NBSP, " ") for column, cell in row.items()} for row in report_rows.shown(table)]


@pytest.fixture
def ladders(tmp_path):
    return made.material(tmp_path, [made.served()], ladder())


# ---------------------------------------------------------------- points


def test_a_mix_is_told_by_class_too(tmp_path):
    cell = "llama_3_1_8b/serve_chat_2023/triton"
    load = made.closed(8, cell)
    parts = [made.of_class("chat", load, window_requests=500, output_tokens_per_s=700.0)]
    parts += [made.of_class("completion", load, window_requests=300, output_tokens_per_s=100.0, slo_attainment=0.5)]
    given = made.material(tmp_path, [made.served(cell)], [load], classes=parts)
    chat, completion = shown(tables(given)[f"chat 2023 by class: {ON_H100}"])
    assert (chat["load"], chat["class"], chat["requests"], chat["output tokens/s"]) == (
        "8 at once",
        "chat",
        "500",
        "700",
    )
    assert (completion["class"], completion["SLO kept"]) == ("completion", "50%")


def test_what_a_server_did_not_tell_is_said(tmp_path):
    cell = "llama_3_1_8b/serve_chat/endpoint"
    given = made.material(
        tmp_path, [made.served(cell, precision=None, n_gpus=8)], [made.closed(8, cell, n_gpus=8)], False
    )
    assert "Load points: Llama-3.1-8B, precision not told, endpoint on 8 × H100 SXM 80 GB" in tables(given)


def test_a_point_shows_what_it_did_and_what_it_is_worth(ladders):
    rows = {row["load"]: row for row in shown(tables(ladders)[f"Load points: {ON_H100}"])}
    assert list(rows) == ["1 at once", "8 at once", "32 at once", "64 at once", "128 at once", "40.0/s", "300/s"]
    best = rows["8 at once"]
    assert best["output tokens/s"] == "800 (760–840)" and best["remarks"] == KEPT
    assert (best["TTFT p50"], best["TPOT p95"], best["SLO kept"]) == ("50.0 ms", "20.0 ms", "99%")
    assert (best["prefill share"], best["batch full"], best["Little's ratio"]) == ("40%", "25%", "1.01")
    assert rows["300/s"]["remarks"] == "saturated; cut requests"
    assert rows["64 at once"]["remarks"] == "void: littles_law: 1.3"
    assert rows["128 at once"]["output tokens/s"] == "–" and rows["128 at once"]["remarks"] == "too few requests"
    assert rows["1 at once"]["remarks"] == "–"


def test_a_trial_of_a_search_and_failures_are_told(tmp_path):
    trial = made.opened(5.0, point="rate=5 trial=0", search="found", failed_by_status="timeout=3+closed=1")
    (row,) = shown(tables(made.material(tmp_path, [made.served()], [trial]))[f"Load points: {ON_H100}"])
    assert row["load"] == "5.00/s, trial"
    assert row["remarks"] == f"{KEPT}; search: found; failed: timeout=3, closed=1"


def test_only_the_newest_run_of_a_series_is_shown(tmp_path):
    old = "20260101T000000_serving_h100_sxm_80gb_deadbeef"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    older = made.material(tmp_path / "a", [made.served(run=old)], [made.closed(2)]).points
    newer = made.material(tmp_path / "b", [made.served()], [made.closed(1)])
    newer.points.extend(older)
    assert [row["load"] for row in shown(tables(newer)[f"Load points: {ON_H100}"])] == ["1 at once"]


# ---------------------------------------------------------------- charts


def test_the_frontier_joins_points_in_order_of_load_and_marks_each(ladders):
    marks = {(mark["loop"], mark["order"]): mark for mark in serving_charts.frontier(ladders)}
    assert [order for loop, order in marks if loop == "closed loop"] == [1, 8, 32, 64]
    states = {order: mark["state"] for (_, order), mark in marks.items()}
    assert states == {1: STEADY, 8: KEPT, 32: STEADY, 64: VOID, 40.0: STEADY, 300.0: SATURATED}
    assert (marks["closed loop", 8]["x"], marks["closed loop", 8]["y"]) == (pytest.approx(100 / 1.5), 800)


def test_the_frontier_is_per_gpu(tmp_path):
    given = made.material(tmp_path, [made.served(n_gpus=4)], [made.closed(8, n_gpus=4)])
    (mark,) = serving_charts.frontier(given)
    assert mark["y"] == 200 and mark["series"][-1] == "4 × H100 SXM 80 GB"


def test_cost_against_load_holds_open_loop_points_at_retail(ladders):
    marks = serving_charts.against_load(ladders)
    assert [mark["x"] for mark in marks] == [40.0, 300.0]
    costs = {row["point"]: row for row in ladders.serving if row["level"] == "retail"}
    assert [mark["y"] for mark in marks] == [
        costs[p]["usd_per_million_output_tokens_whole"] for p in ("rate=40", "rate=300")
    ]


def test_every_panel_gives_shapes_and_colours_the_same_meaning(tmp_path):
    pytest.importorskip("altair")
    other = "llama_3_1_8b/serve_batch/triton"
    cells = [made.served(), made.served(other), made.served("llama_3_1_8b/serve_chat/reference", backend="reference")]
    points = [*ladder(), made.closed(4, other), made.closed(4, "llama_3_1_8b/serve_chat/reference")]
    given = made.material(tmp_path, cells, points)
    figure = serving.section(given).figures[0]
    assert figure.title == "Throughput against interactivity: Llama-3.1-8B, bf16, 1 × H100 SXM 80 GB"
    panels = figure.draw(Layout(width=910, columns=2)).to_dict()["concat"]
    assert [panel["title"] for panel in panels] == ["batch", "chat"]
    scales = [
        [layer["encoding"][name]["scale"] for name in ("color", "shape")] for p in panels for layer in p["layer"][1:]
    ]
    assert all(scale == scales[0] for scale in scales)
    assert scales[0][0]["domain"] == ["reference", "triton"] and set(scales[0][1]["domain"]) == {
        STEADY,
        KEPT,
        SATURATED,
        VOID,
    }


def test_a_cpu_is_tabled_and_never_drawn(tmp_path):
    given = made.material(tmp_path, [made.on_cpu()], [made.closed(1, CPU), made.opened(4.0, CPU)])
    section = serving.section(given)
    assert section.figures == ()
    assert words(section.text[0]).startswith("No GPU has run the serving workloads yet")
    captions = [table.caption for table in section.tables]
    assert "Load points: tiny 15M, fp32, reference on AMD EPYC, a tiny model: says nothing about GPUs" in captions
    assert not any(caption.startswith("USD per million output tokens if") for caption in captions)
    assert "a GPU's cost" in words(tables(given)["What a request costs: tiny 15M, fp32, reference on AMD EPYC"].note)


# ---------------------------------------------------------------- money


def test_the_bill_by_kind_of_token(ladders):
    table = tables(ladders)[f"The bill by kind of token: {ON_H100}"]
    rows = {row["load"]: row for row in shown(table)}
    assert list(rows) == ["1 at once", "8 at once", "32 at once", "40.0/s", "300/s"], "void points have no bill"
    row = rows["8 at once"]
    assert (row["uncached input"], row["cached input"], row["output"]) == ("45.0%", "10.0%", "45.0%")
    cost = next(r for r in ladders.serving if r["point"] == "concurrency=8" and r["level"] == "retail")
    assert row["$/M output"] == serving_money.usd(cost["usd_per_million_output_tokens"])
    assert row["1,000 requests"] == serving_money.usd(1000 * cost["usd_per_request"])
    assert rows["40.0/s"]["load factor"] == "12%"  # 320 were sustained
    assert row["load factor"] == "–"


def test_the_mean_request_of_a_mix_is_weighted(tmp_path):
    cells = [f"llama_3_1_8b/serve_{name}/triton" for name in ("chat", "completion")]
    points = [made.closed(8, cells[0]), made.closed(16, cells[1])]
    table = tables(made.material(tmp_path, [made.served(cell) for cell in cells], points))[
        f"What a request costs: {ON_H100}"
    ]
    rows = {row["requests of"]: row for row in shown(table)}
    chat, completion, mix = (rows[name]["1,000 requests"] for name in ("chat", "completion", "mix chat 2023"))
    share = serving_assumptions.mixes()["chat_2023"].shares["chat"]
    expected = share * float(chat[1:]) + (1 - share) * float(completion[1:])
    assert float(mix[1:]) == pytest.approx(expected, rel=0.01) and chat != completion
    assert rows["mix agent 2026"]["1,000 requests"] == "–"
    assert rows["mix agent 2026"]["at"] == "no cost of agentic, long chat, reasoning"


def test_a_class_that_keeps_no_promise_is_marked(tmp_path):
    given = made.material(tmp_path, [made.served()], [made.closed(8, slo_attainment=0.1)])
    table = tables(given)[f"What a request costs: {ON_H100}"]
    assert shown(table)[0]["at"] == "8 at once *" and words(table.note).startswith("* No point kept its promises")


def test_what_is_left_out_has_a_source_each_and_a_cost_after_it(ladders):
    found = tables(ladders)
    factors = found["Left out here, and what others publish about it"]
    assert len(factors.rows) == 6 and all(not isinstance(row.cells[4], str) for row in factors.rows)
    (row,) = shown(found["USD per million output tokens if it were built: estimates"])
    now = next(r for r in ladders.serving if r["point"] == "concurrency=8" and r["level"] == "retail")
    whole, known = now["usd_per_million_output_tokens_whole"], serving_assumptions.scenarios()
    after = whole * (1 - now["output_share"] + now["output_share"] / known[0].value.factor)
    assert row["with speculative decoding"].startswith(serving_money.usd(after))
    assert row["with prefill decode disaggregation"].startswith(serving_money.usd(whole / known[1].value.factor))


def test_a_server_without_steps_and_a_gpu_without_price_are_shown(tmp_path):
    endpoint = made.served("llama_3_1_8b/serve_chat/endpoint", gpu=None, device_name="A new GPU")
    given = made.material(tmp_path, [endpoint], [made.closed(8, endpoint["cell"])], told=False)
    found = tables(given)
    caption = next(name for name in found if name.startswith("The bill"))
    (row,) = shown(found[caption])
    assert "output" not in row and "$/M output, whole bill" not in row and row["load"] == "8 at once"
    assert words(found[caption].note).endswith("No price is known.")
    page = build.assemble(given)
    assert dangling(page) == []


# ---------------------------------------------------------------- the section, the page and the file


def test_nothing_measured_says_so_and_keeps_every_goal():
    section = serving.section(report_rows.material())
    assert words(section.text[0]) == (
        "No GPU has run the serving workloads yet: nothing is drawn, and nothing is claimed."
        " Every goal stands unmeasured."
    )
    assert {row["verdict"] for row in shown(section.tables[0])} == {"not measured"}
    assert len(section.text) == 1 and [table.caption[:8] for table in section.tables] == ["Goals of", "Left out"]


def test_the_page_with_every_kind_of_point_has_no_loose_end(tmp_path):
    other = "llama_3_1_8b/serve_batch/triton"
    no_promise = {"slo_ttft_s": None, "slo_tpot_s": None, "slo_attainment": None}
    h200 = {"gpu": "h200_sxm_141gb", "device_name": "NVIDIA H200", "run": f"{made.RUN}2"}
    failed = made.served("llama_3_1_8b/serve_reasoning/triton", status="oom", system_tokens_per_s=None)
    cells = [made.served(), made.served(other), made.on_cpu(), failed, report_rows.ceiling(800e12, run=made.RUN)]
    points = [*ladder(), made.closed(8, other, **no_promise), *ladder(CPU)]
    given = made.material(tmp_path, cells, points)
    (tmp_path / "more").mkdir()
    more = made.material(tmp_path / "more", [made.served(**h200)], ladder())
    given.points.extend(more.points)
    given.serving.extend(more.serving)
    given.cells.extend(more.cells)
    page = build.assemble(given)
    assert dangling(page) == [] and len(ids(page)) == len(set(ids(page)))
    body = build.markdown(page)
    assert "H200" in body and "None" not in body and "nan" not in body.lower().split()


def test_derive_writes_what_the_points_cost(tmp_path):
    made.folder(tmp_path, [made.served()], ladder())
    job = derive.Derivation([tmp_path / made.RUN], tmp_path / "out", made.AS_OF)
    facts = derive.serving_facts(job)
    assert len(facts["points"]) == 7 and len(facts["serving"]) == 10, "five usable points at two levels"
    with open(derive.write_serving(job, facts["serving"]), newline="", encoding="utf-8") as file:
        assert csv.DictReader(file).fieldnames == list(COLUMNS)
    assert "serving.csv" in derive.COMPARED
