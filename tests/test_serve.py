"""The phase serve: the engine's check, a ladder of loads, what of it stands in which file."""

import dataclasses

import pytest
import torch

from bench import results, serving_results
from bench.architecture import Model
from bench.config import load
from bench.journal import Journal
from bench.measure.cell import run
from bench.serving import build as serving
from bench.workload import Serving, Workload
from bench.workloads.serve import Serve

SMALL = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 96, "vocab": 211}
OPTIONS = {
    "traffic": "chat",
    "length_scale": 1 / 32,
    "max_model_len": 128,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "concurrencies": (1, 3),
    "rate_shares": (0.5,),
    "ttft_slo_s": 5.0,
    "tpot_slo_s": 5.0,
}


def arguments(**changes) -> dict:
    model = dataclasses.replace(load(Model, "tiny_15m"), **SMALL)
    options = Serving(**OPTIONS | changes)
    workload = Workload(key="serve", phase="serve", precision="fp32", serving=options, source="test")
    return {
        "model": dataclasses.asdict(model),
        "workload": dataclasses.asdict(workload),
        "backend": "reference",
        "layers": 2,
    }


def test_a_cell_serves_its_ladder_and_every_file_takes_its_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # which refuses to be timed; nothing here is a kernel of ours
    answer = run("bench.workloads.serve:build", arguments(goodput_search=8), "cpu", 15.0)
    assert answer["status"] == "ok", (answer.get("reason"), answer.get("tables", {}).get("points"))
    tables = answer["tables"]
    names = [point["point"] for point in tables["points"]]
    assert names[:2] == ["concurrency=1", "concurrency=3"] and names[2].startswith("rate=")
    assert all("trial" in name for name in names[3:]) and len(names) > 3
    assert {point["search"] for point in tables["points"][3:]} <= {"found", "passed", "failed", "undecided"}
    one, three, _ = tables["points"][:3]
    assert one["output_tokens_per_s"] > 0 and three["in_flight_mean"] > 2 * one["in_flight_mean"]
    first = next(row for row in tables["requests"] if row["output_tokens"] > 2)
    assert first["ttft_s"] == first["first_token_s"] - first["scheduled_s"] and first["e2e_s"] > first["ttft_s"]
    assert 0 < first["itl_s_p50"] <= first["itl_s_max"] and first["tpot_s"] <= first["itl_s_max"]
    assert answer["point"] in names and answer["token_kind"] == "output"
    assert answer["system_tokens_per_s"] == next(
        point["output_tokens_per_s"] for point in tables["points"] if point["point"] == answer["point"]
    )
    facts = {"suite": "s", "gpu": "cpu", "source_hash": "00000000"}
    with Journal.open(tmp_path, facts) as journal:
        row = {name: value for name, value in answer.items() if name != "tables"}
        journal.append({"cell": "a", "phase": "serve", **row}, [], tables)
        for name in serving_results.TABLES:
            assert len(serving_results.read(journal.folder, name)) == len(tables[name])
            assert bool(tables[name]) == (name != "classes"), name  # which are a mix's
        # a kill between two files leaves rows beside a cell that never got its own
        results.append(journal.folder / "points.csv", serving_results.POINTS, [{"cell": "b", "point": "rate=1"}])
    with Journal.open(tmp_path, facts) as journal:
        assert len(serving_results.read(journal.folder, "points")) == len(names)


@pytest.mark.parametrize("changes", [{}, {"quantization": "int8"}, {"kv_cache_dtype": "fp8"}], ids=str)
def test_the_check_passes_what_is_right(changes):
    model = dataclasses.replace(load(Model, "tiny_15m"), **SMALL | {"hidden": 128})
    error, tolerance, _ = serving.served_error(
        model, "reference", "fp32", torch.device("cpu"), Serving(**OPTIONS | changes)
    )
    assert 0 < error < tolerance


def test_the_check_finds_a_wrong_block(monkeypatch):
    """Keys of the second block of a request written where the first one is."""
    place = serving.Runner._places
    monkeypatch.setattr(serving.Runner, "_places", lambda self, piece: place(self, piece) // 32 * 16)
    error, tolerance, _ = Serve(device="cpu", **arguments()).check()
    assert error > 10 * tolerance


def test_bad_options_are_one_line():
    for change, said in (
        ({"block_size": 24}, "block_size: expected a power of two from 16 on, got 24"),
        ({"concurrencies": ()}, "concurrencies: expected at least one load"),
        ({"tpot_slo_s": None}, "tpot_slo_s: expected ttft_slo_s and tpot_slo_s, or neither"),
    ):
        with pytest.raises(ValueError, match=f"^{said}"):
            Serving(**OPTIONS | change)
    with pytest.raises(ValueError, match=r"^serving: expected a \[serving\] table where the phase is serve"):
        Workload(phase="serve", precision="fp32", source="test")
