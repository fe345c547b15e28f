"""Break-even as a law: a row a pair and definition, its model, GPU, precisions and class in columns, every basis."""

from __future__ import annotations

import math

import numpy as np
import pytest
import report_rows as made
from test_claim_ratio import SERVE, TRAIN, row
from test_claim_verdicts import KEY, found, text

from bench import config
from bench.claim import engine
from bench.claim.spec import Claim
from bench.claim.world import world
from bench.report import break_even, build, findings, movers
from bench.report.material import gather

B200 = {"gpu": "b200_sxm_180gb", "precision": "fp8"}
MEASURED = [{**one, "basis": "measured", "row": f"run/{one['row']}", "gpu": "a100_sxm_80gb"} for one in (TRAIN, SERVE)]
# 300 in and 100 out are class chat, 100 and 300 generation; modelled on a GPU nobody has, and beside a measured side
MODELLED = [
    row("modelled:b/train", "train_step", 16000.0, basis="modelled", low=12000.0, high=21000.0, **B200),
    row("modelled:b/serve", "serve", 9000.0, basis="modelled", low=8000.0, high=10000.0, **B200),
    row("modelled:a/serve", "serve", 3000.0, basis="modelled", precision="fp8", gpu="a100_sxm_80gb"),
    row("modelled:a/outranked", "serve", 1.0, basis="modelled", gpu="a100_sxm_80gb"),
]
KNOWN = [*MEASURED, TRAIN, SERVE, row("published:g", "serve", 2000.0, input_tokens=100.0, output_tokens=300.0)]
CLAIM = config.load(Claim, KEY)


@pytest.fixture(scope="module")
def rows():
    return engine.answer(world(CLAIM, KNOWN, MODELLED))


def law(rows, **where):
    return found(rows, "break_even", **where)


def test_a_pair_is_told_in_columns_and_beside_it_stands_the_identity(rows):
    columns = ("model", "gpu", "precision_trained", "precision_served", "workload_class")
    told = {tuple(r[name] for name in columns): r for r in law(rows, definition="D1") if r["model"]}
    a, b = ("llama_3_1_8b", "a100_sxm_80gb", "bf16"), ("llama_3_1_8b", "h100_sxm_80gb", "bf16", "bf16")
    assert {key: r["basis"] for key, r in told.items()} == {
        (*a, "bf16", "chat"): "measured",
        (*a, "fp8", "chat"): "modelled",
        (*b, "chat"): "imported",
        (*b, "generation"): "imported",
        ("llama_3_1_8b", "b200_sxm_180gb", "fp8", "fp8", "chat"): "modelled",
    }
    for r in told.values():
        assert r["threshold"] == 3 and r["p10"] < r["p50"] < r["p90"]
        assert r["over_identity"] == pytest.approx(r["p50"] / 3)
    (headline,) = law(rows, definition="D1", subject="headline r")
    assert headline["model"] is None and headline["over_identity"] == pytest.approx(headline["p50"] / 3)


def test_d1_is_three_over_r_as_paid_and_d2_rho_times_that(rows):
    # r = 3 x 8000 / (4000 x 4) = 1.5, as paid x 0.80 / 0.65 by the medians of availability and load
    where = {"gpu": "h100_sxm_80gb", "workload_class": "chat"}
    (d1,), (d2,) = (law(rows, definition=key, **where) for key in ("D1", "D2_bottom_up"))
    assert d1["p50"] == pytest.approx(3 / (1.5 * 0.80 / 0.65), rel=0.02)
    drawn = world(CLAIM, KNOWN)
    x = drawn.of([pair for pair in drawn.pairs if (pair.train.gpu, pair.traffic) == tuple(where.values())])
    tips = 3 * x["rho"] * x["serving_load"] / (x["r"] * x["training_availability"])
    assert d2["p50"] == pytest.approx(np.median(tips), rel=1e-9)


def test_the_interval_of_a_modelled_pair_holds_the_models_error(rows):
    (modelled,), (imported,) = (law(rows, definition="D1", gpu=gpu, workload_class="chat") for gpu in (
        "b200_sxm_180gb", "h100_sxm_80gb"
    ))  # fmt: skip
    wide, narrow = (math.log(r["p90"] / r["p10"]) for r in (modelled, imported))
    assert wide > narrow * 1.03 and "enters no verdict" in modelled["note"]


def test_no_verdict_and_no_r_rests_on_modelled_rows(rows):
    without = engine.answer(world(CLAIM, KNOWN))
    assert text(without) == text([r for r in rows if (r["kind"], r["basis"]) != ("break_even", "modelled")])
    alone = engine.answer(world(CLAIM, [], MODELLED))
    assert {r["basis"] for r in law(alone)} == {"modelled"} and not found(alone, "verdict", definition="D1")


# ---------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def material(rows):
    drawn = world(CLAIM, KNOWN, MODELLED)
    return gather([], [], [*rows, *engine.moves(drawn, rows)], KNOWN, made.provenance(), made.AS_OF)


def test_the_report_shows_every_class_with_the_factor_over_the_identity(material, rows):
    shown = made.shown(break_even.table(material))
    assert [line["class"] for line in shown] == ["–", "chat", "chat", "generation"]
    (d1,) = law(rows, definition="D1", gpu="a100_sxm_80gb", precision_served="bf16")
    assert shown[1]["over the identity"] == f"{d1['p50'] / 3:.3g} x 3.00" and shown[1]["served"] == "bf16"
    (a, b) = made.shown(break_even.modelled(material))
    assert (a["models"], b["models"]) == ("1", "1") and a["class"] == "chat"


def test_each_verdict_names_three_factors_with_interval_and_break_even(material):
    (table,) = movers.tables(material)
    lines = {line["verdict"]: line for line in made.shown(table)}
    assert set(lines) >= {"D1", "D2 top down", "D3", "D4"}
    first = lines["D2 top down"]["moves it most"]
    assert first.startswith("serving USD growth 2028–2030 + R&D compute USD growth 2028–2030: 0.") or "±" in first
    assert "holds above" in first and "x a year" in first
    for line in lines.values():
        said = [line[name] for name in movers.COLUMNS[1:]]
        indices = [float(cell.partition(": ")[2].removeprefix("≈ ")[:4]) for cell in said if cell != "–"]
        assert indices == sorted(indices, reverse=True) and indices
    assert any("≈" in cell for line in lines.values() for cell in line.values())


def test_many_rows_stay_in_the_csv_and_no_link_dangles(material):
    kept = {row["kind"] for row in material.claims if findings.listed_here(row)}
    assert "sobol" not in kept and "flip" in kept
    assert build.dangling(build.assemble(material)) == []
