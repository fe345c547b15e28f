"""MLPerf's units: samples are no tokens, a node is no system, a score is no rate. Numbers are made up."""

import pytest

from bench.importers import landing
from bench.importers.document import Document, Refused
from tests.import_samples import written
from tests.import_samples_mlperf import SUMMARY, loadgen, mllog

TRAINED = 16 * 8192 / 0.5  # tokens a step over its time


@pytest.fixture
def read(tmp_path):
    """Writes a sample and reads it by its format."""

    def sheet(content, **given):
        path = tmp_path / "sample"
        path.write_text(written(content))
        document = Document.of(path)
        return landing.recognise(document, None).read(document, landing.Given(**given))

    return sheet


def test_a_summary_is_output_tokens_of_the_whole_system(read):
    (row,) = read([SUMMARY]).rows
    assert (row["system_tokens_per_s"], row["n_gpus"]) == (4000.0, 16)  # 2 nodes of 8; the rate is not per node
    assert (row["input_tokens"], row["output_tokens"]) == (9428.64, 650.0)
    assert row["energy_joules_per_token"] == 5.0 and row["energy_boundary"] == "node"  # 20 kW for the system
    assert "derived, not verified by MLCommons; result 9.9-0001" in row["note"]
    assert row["flags"] is None and row["source"] == "https://example.org/results/box_x8"


def test_only_rates_of_tokens_that_were_measured_on_an_accelerator_are_rows(read):
    others = [
        SUMMARY | {"Performance_Units": "Samples/s", "Performance_Result": 6.15},
        SUMMARY | {"Performance_Units": "Queries/s"},
        SUMMARY | {"Performance_Units": "Latency (ms)", "Scenario": "SingleStream"},
        SUMMARY | {"inferred": 1},
        SUMMARY | {"Accelerator": "", "a#": ""},
    ]
    sheet = read([SUMMARY, *others])
    assert len(sheet.rows) == 1 and sum(sheet.left_out.values()) == len(others)
    assert sheet.left_out["in Samples/s, no rate of tokens"] == 1


@pytest.mark.parametrize(
    ("name", "changes", "count"),
    [
        ("AMD Instinct MI355X (x94)", {"Total Accelerators": 96, "Nodes": 12}, 94),  # the cluster's true number
        ("NVIDIA B200-SXM-180GB", {"Total Accelerators": 24, "Nodes": 1}, 24),
        ("One (x32), Other (x16)", {"Nodes": 6}, 48),
        ("NVIDIA B200-SXM-180GB", {"a#": ""}, None),
    ],
)
def test_accelerators_are_counted_over_the_system(read, name, changes, count):
    (row,) = read([SUMMARY | {"Accelerator": name} | changes]).rows
    assert row["n_gpus"] == count


def test_an_open_submission_runs_its_own_model_and_a_server_waits(read):
    pruned = SUMMARY | {"Category": "open", "UsedModel": "llama3.1-405b_pruned", "Scenario": "Server"}
    (row,) = read([pruned]).rows
    assert row["model_name"] == "llama3.1-405b_pruned" and row["flags"] == "open_loop"
    assert [r["flags"] for r in read([SUMMARY | {"Scenario": "Interactive"}]).rows] == ["open_loop"]


@pytest.mark.parametrize(("scenario", "flags"), [("Offline", None), ("Server", "open_loop")])
def test_a_log_is_read_in_tokens_and_not_in_samples(read, scenario, flags):
    (row,) = read(loadgen(scenario)).rows
    assert row["system_tokens_per_s"] == 2500.0 and row["output_tokens"] == 250.0  # not 10 samples a second
    assert row["flags"] == flags and row["requests_per_s"] == 10.0
    assert (row["ttft_s_p50"], row["tpot_s_p50"], row["e2e_s_p50"]) == pytest.approx((0.25, 0.12, 20.0))  # from ns


def test_a_run_that_is_invalid_or_measured_accuracy_is_left_out(read):
    assert read(loadgen().replace(": VALID", ": INVALID")).left_out == {"run whose result is INVALID, not VALID": 1}
    assert not read(loadgen().replace("PerformanceOnly", "AccuracyOnly")).rows


def test_training_counts_the_systems_batch_once(read):
    (row,) = read(mllog()).rows
    assert row["system_tokens_per_s"] == pytest.approx(TRAINED)  # gradient accumulation of 4 is in the batch already
    assert (row["phase"], row["token_kind"], row["input_tokens"]) == ("train_step", "trained", 8192)
    assert row["as_of"] == "2025-10-09" and row["lora_rank"] is None
    assert "3.667 minutes to the target" in row["note"]  # evaluation is in the score and not in the rate


@pytest.mark.parametrize("growing", [False, True])
def test_training_without_logged_steps_is_timed_by_its_blocks(read, growing):
    (row,) = read(mllog(tracked=False, growing=growing)).rows
    assert row["system_tokens_per_s"] == pytest.approx(TRAINED) and "in the blocks between" in row["note"]


def test_step_times_in_another_unit_are_found_out_by_the_logs_clock(read):
    (row,) = read(mllog(unit=1000.0)).rows
    assert row["system_tokens_per_s"] == pytest.approx(TRAINED)


def test_an_aborted_run_is_infinite_in_the_score_and_no_row(read):
    sheet = read(mllog(status="aborted"))
    assert not sheet.rows and sheet.left_out == {"run with status aborted, not success: infinite in MLPerf's score": 1}


def test_a_published_score_is_refused_for_it_holds_no_tokens(read):
    with pytest.raises(Refused, match="scores in minutes to a target, no rate of tokens"):
        read([{"submitter": "Nobody", "accelerators_count": 8, "llama31_8b": 75.5}])


def test_a_log_without_a_sequence_length_asks_for_it(read):
    with pytest.raises(Refused, match="max_sequence_length: missing; give --input-tokens"):
        read(mllog(length=None))
    (row,) = read(mllog(length=None), input_tokens=4096.0).rows
    assert row["system_tokens_per_s"] == pytest.approx(TRAINED / 2)


def test_adapters_are_told_from_pre_training(read):
    log = mllog().replace("llama31_8b", "llama2_70b_lora")
    assert read(log).rows[0]["lora_rank"] == 16


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"key": "run_start"', '"key": "run_begin"', "run_start: expected one, got 0"),
        ('"key": "global_batch_size"', '"key": "batch"', "global_batch_size: missing"),
        ('{"time_ms": 1760000000000, "event_type": "POINT_IN_TIME", "key": "run_start"', "{", "line 5: no JSON object"),
    ],
)
def test_a_log_that_is_not_whole_is_refused(read, old, new, said):
    with pytest.raises(Refused, match=said):
        read(mllog().replace(old, new))
