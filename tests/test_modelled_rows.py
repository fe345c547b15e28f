"""Modelled rows fill cells nobody measured, are priced and shown with their error, and enter no claim."""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import config, derive, results
from bench.config import Gpu
from bench.modelled import rows, show
from bench.price.book import providers
from bench.price.cost import costs
from bench.price.throughput import COLUMNS, throughput
from bench.report import modelled as section
from bench.report import offers
from bench.report.material import gather
from bench.report.page import as_text

TODAY = datetime.date(2026, 11, 28)


@pytest.fixture(scope="module")
def made():
    """Known rows, known and modelled rows, and the model."""
    known = throughput([])
    return known, *derive.with_modelled(derive.Derivation([], Path(), TODAY), known, [])


def modelled(made):
    return [row for row in made[1] if row["basis"] == "modelled"]


def test_no_modelled_row_stands_beside_a_better_one_of_its_cell(made):
    known, every, _ = made
    assert every[: len(known)] == known  # after measured and imported
    taken = {rows.cell_of(row) for row in known}
    cells = [rows.cell_of(row) for row in modelled(made)]
    assert cells and not taken & set(cells) and len(set(cells)) == len(cells)
    assert ("h100_sxm_80gb", "llama_3_1_8b", "fp8", "serve") in taken


def test_they_are_of_priced_gpus_and_of_models_with_a_rate_somewhere(made):
    gpus, models = {row["gpu"] for row in modelled(made)}, {row["model"] for row in modelled(made)}
    assert gpus <= rows.priced(providers().values()) and {"a100_sxm_80gb", "b300_sxm_288gb", "maia_200_216gb"} <= gpus
    assert models <= {row["model"] for row in made[0]}


def test_every_one_has_an_interval_and_says_its_error(made):
    for row in modelled(made):
        assert set(row) == set(COLUMNS)
        assert 0 < row["low"] < row["system_tokens_per_s"] < row["high"], row["row"]
        assert re.search(r"left-one-GPU-out error \d+%, p90 \d+%", row["workload"]), row["row"]
        peak = config.load(Gpu, row["gpu"]).peak_flops_per_s[row["precision"]]
        assert row["system_tokens_per_s"] / row["n_gpus"] < peak  # tokens, not FLOPs
        assert ("unseen_generation" in row["flags"]) == row["gpu"].startswith("maia"), row["row"]
        assert not row["gpu"].startswith("mi300x"), "nobody fitted a kernel of another maker"


def test_training_gets_the_nodes_its_state_needs(made):
    by = {(row["gpu"], row["model"]): row for row in modelled(made) if row["phase"] == "train_step"}
    assert by["h100_sxm_80gb", "qwen3_8b"]["n_gpus"] == 8
    needed = 18 * 405.85e9
    for gpu, memory in (("a100_pcie_80gb", 80e9), ("b300_sxm_288gb", 288e9)):
        n = by[gpu, "llama_3_1_405b"]["n_gpus"]
        assert 0.8 * memory * n >= needed > 0.8 * memory * n / 2


def test_they_are_priced_with_their_interval(made):
    row = next(r for r in modelled(made) if r["gpu"] == "maia_200_216gb" and r["phase"] == "serve")
    priced = costs([row], TODAY)
    assert {cost["x_token_kind"] for cost in priced} == {"output", "total"}
    for cost in priced:
        assert cost["x_basis"] == "modelled" and cost["x_provider"] == "maia"
        low, high = cost["x_usd_per_million_tokens_low"], cost["x_usd_per_million_tokens_high"]
        assert low < cost["x_usd_per_million_tokens"] < high


def test_no_verdict_sees_a_modelled_row(monkeypatch, tmp_path):
    seen, beside = [], []

    def claims(given, as_of, own, modelled):
        seen.extend(given)
        beside.append({row["basis"] for row in modelled})
        return []

    monkeypatch.setattr("bench.claim.table.claims", claims)
    job = derive.Derivation([], tmp_path, TODAY)
    derived = derive.derive(job)
    derive.claim(job)
    assert seen and not [row["row"] for row in seen if row["basis"] == "modelled"]
    assert beside == [{"modelled"}, {"modelled"}]  # for break-evens that no verdict rests on
    assert any(row["basis"] == "modelled" for row in derived.throughput)
    assert any(row["x_basis"] == "modelled" for row in derived.costs)


def test_a_modelled_rate_is_never_the_headline(made):
    rich = [row for row in made[1] if row["gpu"] in ("a100_sxm_80gb", "h100_sxm_80gb")]
    assert offers.headline(costs(rich, TODAY)) == offers.headline(costs([r for r in rich if r in made[0]], TODAY))
    assert offers.headline(costs(modelled(made)[:4], TODAY)) is None


def test_the_section_shows_errors_against_the_goal_and_every_modelled_rate(made):
    def said(table):
        return [" | ".join("".join(map(str, as_text(cell))) for cell in row.cells) for row in table.rows]

    point = {
        "tier": "node",
        "use": "fit",
        "phase": "serve",
        "gpu": "l40s_pcie_48gb",
        "model": "llama_3_1_8b",
        "n_gpus": 2,
    }
    point |= {"published_tokens_per_s": 100.0, "left_out_tokens_per_s": 140.0, "error": 0.4, "overhead": None}
    fleet = point | {"tier": "fleet", "row": "point:fleet_x", "error": -0.1, "left_out_tokens_per_s": 90.0}
    hours = point | {"tier": "hours", "row": "point:hours_x", "overhead": 1.4}
    accuracy = [{**point, "row": "point:a"}, {**point, "row": "point:b", "error": 0.2}, fleet, hours]
    given = {"accuracy": accuracy, "efficiencies": {"link": 0.5}}
    material = gather([], [], [], made[1], given, TODAY)
    errors = said(section.accuracy_table(material))
    assert errors[0] == "one node, every phase | 2 | 30.0% | 38.0% | missed: median by 20.0 points, p90 by 13.0 points"
    assert said(section.fleet_table(material)) == ["x | 2 × L40S PCIe 48 GB | 50.0 | 45.0 | -10% | yes"]
    assert said(section.hours_table(material))[0].endswith("1.40")
    shown = said(section.rates_table(material))
    assert len(shown) == len({(row["gpu"], row["model"]) for row in modelled(made)})
    assert all(re.search(r"\d+% \(\d+%\)", line) for line in shown)
    assert all("†" in line for line in shown if "Maia" in line)
    given["accuracy"] = [*accuracy, {**point, "row": "point:c", "use": "check", "error": 0.7}]
    (opening,) = section.said(gather([], [], [], made[1], given, TODAY))
    assert "points that only check it are 70.0% off" in "".join(map(str, opening))
    assert section.section(gather([], [], [], [], {}, TODAY)).text[0] == (section.EMPTY,)


def test_the_tracked_accuracy_is_that_of_the_tracked_configs(made):
    """results/accuracy.csv, as `make report` writes it from the committed runs."""
    from bench.modelled.accuracy import rows_of
    from bench.modelled_results import ACCURACY

    tracked = results.read_rows(results.ROOT / "results" / "accuracy.csv", ACCURACY)
    fresh = {row["row"]: row["left_out_tokens_per_s"] for row in rows_of(made[2])}
    assert {row["row"]: row["left_out_tokens_per_s"] for row in tracked} == pytest.approx(fresh, rel=1e-5)


def test_without_a_published_rate_nothing_is_modelled(monkeypatch, tmp_path):
    for name in ("gpus", "models", "providers"):
        (tmp_path / name).symlink_to(config.CONFIGS / name)
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    every, model = derive.with_modelled(derive.Derivation([], Path(), TODAY), [], [])
    assert (every, model.checked) == ([], ())
    with pytest.raises(config.ConfigError, match="none to fit"):
        show.prediction(model, show.cell_of(["gpu=h100_sxm_80gb"]))


# ---------------------------------------------------------------- the command


def test_what_is_asked_is_read_strictly():
    asked = show.cell_of(["gpu=a100_sxm_80gb", "n_gpus=2", "batch=8", "recompute=yes"])
    assert (asked.precision, asked.n_gpus, asked.batch, asked.recompute) == ("bf16", 2, 8.0, True)
    assert show.cell_of(["gpu=h100_sxm_80gb"]).precision == "fp8"
    for words, message in (
        (["gpus=3"], "gpus=3: expected NAME=VALUE, NAME one of model, gpu"),
        (["model=llama_3_1_8b"], "gpu=...: missing"),
        (["gpu=h100_sxm_80gb", "phase=sleep"], "phase=sleep: expected one of train_step"),
        (["gpu=h100_sxm_80gb", "n_gpus=many"], "expected numbers for counts"),
        (["gpu=h100_sxm_80gb", "n_gpus=0"], "expected positive numbers"),
    ):
        with pytest.raises(config.ConfigError, match=re.escape(message)):
            show.cell_of(words)


def test_a_prediction_and_the_errors_are_said(made):
    model = made[2]
    told = show.prediction(model, show.cell_of(["gpu=h200_sxm_141gb", "model=qwen3_8b"]))
    assert re.search(r"[\d,]+ output tokens/s on 1 h200_sxm_141gb: [\d,]+ a GPU, 95% interval", told)
    assert re.search(r"error of \d+ such predictions for a GPU left out: median \d+\.\d%, p90 \d+\.\d%", told)
    with pytest.raises(config.ConfigError, match="does not fit 80 GB"):
        show.prediction(model, show.cell_of(["gpu=h100_sxm_80gb", "model=llama_3_1_405b"]))
    with pytest.raises(
        config.ConfigError, match=r"gpu=mi300x_oam_192gb: expected a generation of sm_80, .* got gfx942"
    ):
        show.prediction(model, show.cell_of(["gpu=mi300x_oam_192gb"]))
    lines = "\n".join(show.errors(model))
    assert re.search(r"one node +\d+ points +median +\d+\.\d% +p90 +\d+\.\d% +goal met", lines)
    assert "point:fleet_deepseek_decode" in lines and "point:hours_llama_3_1_405b" in lines
    assert re.match(r"\d+ modelled rates; error on one node of a GPU left out: training", show.brief(model, 7))


def test_the_verb_answers_and_refuses():
    def bench(*words):
        return subprocess.run(
            [sys.executable, "-m", "bench", "predict", *words], cwd=results.ROOT, capture_output=True, text=True
        )

    answer = bench("gpu=b200_sxm_180gb", "model=llama_3_1_70b", "precision=fp4")
    assert answer.returncode == 0 and "such predictions for a GPU left out" in answer.stdout
    refused = bench("gpu=b20")
    assert refused.returncode == 2 and refused.stderr.startswith("error: configs/gpus/b20.toml: no such config")
