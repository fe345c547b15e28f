"""What was imported is priced and enters a claim: each measurement once, each sweep by its best load."""

import datetime
import json
import subprocess

import pytest

from bench import derive
from bench.claim import ratio
from bench.import_results import IMPORTED
from bench.importers import landing
from bench.price import cost, imports, throughput
from bench.report import kernels, sources
from bench.report.material import gather
from bench.results import append
from tests.import_samples import API_ROW, KERNELS
from tests.import_samples_mlperf import SUMMARY, loadgen, mllog

TODAY = datetime.date(2026, 11, 22)
LOADS = {64: 990.0, 8: 400.0, 256: 1200.0}  # concurrency: output tokens/s a GPU


@pytest.fixture
def land(tmp_path):
    """Writes a file of another tool and imports it; the path of what landed."""

    def landed(content, name="results.json", **given):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return landing.land(path, None, landing.Given(**given), tmp_path / "imports").path

    return landed


def load(concurrency, rate):
    metrics = API_ROW["metrics"] | {"output_tput_per_gpu": rate, "input_tput_per_gpu": 2000.0 - rate}
    return API_ROW | {"conc": concurrency, "metrics": metrics, "run_url": f"https://example.org/runs/{concurrency}"}


def rows_of(*paths):
    notes = []
    return [row for row in throughput.throughput([], notes, imports=paths) if row["row"].startswith("import:")], notes


def test_an_import_is_a_throughput_row_with_its_load_in_words(land):
    path = land([load(64, 990.0)])
    (row,), notes = rows_of(path)
    assert row["row"] == f"import:{path.stem}/1" and row["basis"] == "imported" and not notes
    assert (row["gpu"], row["model"], row["n_gpus"]) == ("b200_sxm_180gb", "gpt_oss_120b", 8)
    assert row["workload"] == "InferenceX 1024 in, 1024 out, tp8 ep8, concurrency 64"
    assert set(row) == set(throughput.COLUMNS) and row["backend"] == "engine engine:1.0"


def test_its_price_charges_every_gpu_once(land):
    """USD per GPU hour x 8 GPUs over the system's rate; a node is neither taken for a GPU nor paid for eight times."""
    (row,), _ = rows_of(land([load(64, 990.0)]))
    made = [c for c in cost.costs([row], TODAY) if c["x_token_kind"] == "output" and c["x_term"] == "on_demand"]
    share = cost.Utilisation.load().inference.value
    assert made
    for priced in made:
        per_gpu_s = 990.0 * share
        assert priced["x_usd_per_million_tokens"] == pytest.approx(
            priced["x_usd_per_gpu_hour"] / 3600 / per_gpu_s * 1e6
        )


def test_a_rate_that_holds_idle_time_is_charged_no_more_of_it(land):
    given = {"gpu": "b200_sxm_180gb", "num_gpus": 8, "model": "llama_3_1_405b", "as_of": "2026", "source": "x"}
    (server,), _ = rows_of(land(loadgen("Server"), "log.txt", **given))
    (offline,), _ = rows_of(land(loadgen("Offline"), "log.txt", **given))
    assert server["flags"] == "open_loop" and cost.Utilisation.load().of(server) == 1.0
    assert offline["flags"] is None and cost.Utilisation.load().of(offline) < 1.0


def test_a_published_server_rate_is_charged_as_an_imported_one():
    rows = [row for row in throughput.published() if "MLPerf inference" in row["workload"]]
    shares = {row["row"].rpartition("_")[2]: cost.Utilisation.load().of(row) for row in rows}
    assert shares["server"] == 1.0 and shares["offline"] < 1.0


def test_of_a_sweep_the_best_load_alone_enters_a_claim_and_all_are_priced(land):
    rows, _ = rows_of(land([load(*pair) for pair in LOADS.items()]))
    assert [row["flags"] for row in rows] == ["below_best", "below_best", None]
    found, refused = ratio.rates(rows, {})
    assert [source.tokens_per_gpu_s for rate in found for source in rate.sources] == pytest.approx([2 * 1200.0])
    assert refused == {"of a load below the best of its sweep": 2}
    assert {c["x_row"] for c in cost.costs(rows, TODAY)} == {row["row"] for row in rows}


def test_other_lengths_or_another_engine_are_another_sweep(land):
    rows = [load(64, 990.0), load(64, 400.0) | {"isl": 8192}, load(64, 300.0) | {"image": "engine:2.0"}]
    assert [row["flags"] for row in rows_of(land(rows))[0]] == [None, None, None]


def test_runs_of_training_are_no_sweep_and_adapters_say_so(land):
    given = {"gpu": "b200_sxm_180gb", "num_gpus": 8, "precision": "fp8", "source": "x"}
    slow = land(mllog(step_s=0.6), "result_1.txt", **given)
    adapters = land(mllog().replace("llama31_8b", "llama2_70b_lora"), "result_2.txt", **given, model="llama_3_1_70b")
    rows, _ = rows_of(land(mllog(), "result_0.txt", **given), slow, adapters)
    assert [row["flags"] for row in rows] == [None, None, None]
    found, refused = ratio.rates(rows, {})
    assert [len(rate.sources) for rate in found] == [2] and sum(refused.values()) == 1
    assert rows[2]["workload"].endswith("adapters of rank 16")


def test_rows_without_a_key_stay_in_their_file(land):
    path = land([load(64, 990.0), load(64, 991.0) | {"hardware": "mi355x"}, load(64, 992.0) | {"model": "new"}])
    rows, notes = rows_of(path)
    assert len(rows) == 1
    assert notes == [f"{path.name}: rows left out: 1 of a GPU without a key, 1 of a model without a key"]


def test_a_figure_of_a_later_day_was_not_known(land):
    path = land([load(64, 990.0)])  # of 11 June 2026
    notes: list[str] = []
    for day, count in (("2026-06-10", 0), ("2026-06-11", 1)):
        rows = throughput.throughput([], notes, datetime.date.fromisoformat(day), [path])
        assert sum(row["row"].startswith("import:") for row in rows) == count
    assert notes == [f"{path.name}: rows left out: 1 of a later day"]


def test_a_precision_nobody_told_is_priced_and_in_no_claim(land):
    (row,), _ = rows_of(land([load(64, 990.0) | {"precision": "int4"}]))
    assert row["precision"] is None and cost.costs([row], TODAY)
    assert ratio.rates([row], {})[1] == {"of a precision nobody told": 1}


def test_a_measurement_counts_once_however_often_it_came(land):
    known = next(
        row for row in throughput.published() if row["row"] == "published:mlperf_infer_405b_b200x8_fp4_offline"
    )
    again = SUMMARY | {"Nodes": 1, "Performance_Result": known["system_tokens_per_s"]}
    rows, notes = rows_of(land([again, SUMMARY]), land([SUMMARY], "copy.json"))
    assert [row["system_tokens_per_s"] for row in rows] == [4000.0]
    assert len(notes) == 2 and all("1 measured once, imported already or published" in note for note in notes)


def test_ids_of_imports_and_published_rows_never_meet(land):
    rows = throughput.throughput([], imports=[land([SUMMARY]), land([load(64, 990.0)], "other.json")])
    assert len({row["row"] for row in rows}) == len(rows)
    assert not any(row["row"].startswith("import:") for row in throughput.published())


def test_the_interval_of_repeated_runs_reaches_the_price(tmp_path, land):
    path = land([load(64, 990.0)])
    (row,) = imports.imported([path], [], [])
    wide = tmp_path / "imports" / "wide.csv"
    append(wide, IMPORTED, [row | {"system_tokens_per_s_low": 7000.0, "system_tokens_per_s_high": 9000.0}])
    (made,), _ = rows_of(wide)
    assert (made["low"], made["high"]) == (7000.0, 9000.0)
    assert ratio.rates([made], {})[0][0].sources[0].sd > ratio.SPREAD


def test_the_public_derivation_takes_tracked_imports_only(tmp_path, land):
    public = land([load(64, 990.0)])
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "add", public.relative_to(tmp_path)], cwd=tmp_path, check=True)
    private = land([load(8, 400.0)], "private.json")
    kernels = land(KERNELS, "bench.json", source="x")
    (tmp_path / "runs").mkdir()
    (tmp_path / "as_of").write_text("2026-11-22\n")
    tracked = derive.Derivation.of(tmp_path, None, tracked=True)
    own = derive.Derivation.of(tmp_path, None, tracked=False)
    assert tracked.imports == (public,)
    assert set(own.imports) == {public, private, kernels} and set(imports.rates(own.imports)) == {public, private}
    facts = imports.facts(own.imports)
    assert len(facts["imports"]) == 2 and [row["device_name"] for row in facts["imported_kernels"]] == ["Board X"]


def test_costs_claims_and_report_of_this_machine_hold_imports(tmp_path, land):
    trained_too = SUMMARY | {"Accelerator": "NVIDIA H200-SXM-141GB", "weight_data_types": "fp8"}
    priced_only = SUMMARY | {"weight_data_types": "int4"}
    land([trained_too, priced_only])
    land(KERNELS, "bench.json", source="https://example.org/bench")
    job = derive.Derivation.of(tmp_path, None, tracked=False)
    made = derive.derive(job)
    cited, priced = (row["row"] for row in made.throughput if row["row"].startswith("import:"))
    assert {cited, priced} <= {row["x_row"] for row in made.costs}
    assert any(cited in (row["rests_on"] or "") for row in made.claims)
    facts = imports.facts(job.imports)
    material = gather(made.cells, made.costs, made.claims, made.throughput, facts, job.as_of)
    listed = {row.cells[0] for row in sources.published_table(material).rows}
    assert cited in listed and priced not in listed  # int4 is no precision of a claim
    assert "2 rates were imported from 1 files of other tools, 2 are priced in" in str(sources.imports_said(material))
    assert any("Imported timings" in table.caption for table in kernels.section(material).tables)
    bare = gather(made.cells, made.costs, made.claims, made.throughput, {}, job.as_of)
    assert sources.imports_said(bare) == () and len(kernels.section(bare).tables) == 2
