"""What is written is what is read; a damaged CSV is named by file, line and column."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import results, runs
from bench.results import CELLS, SAMPLES, ResultsError

HEADER = ",".join(SAMPLES)


@given(st.floats(1e-12, 1e15), st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20))
def test_a_row_comes_back_as_it_was(tmp_path_factory, number, cell):
    path = tmp_path_factory.mktemp("r") / "samples.csv"
    results.append(path, SAMPLES, [{"cell": cell, "sample": 3, "step_s": number}])
    (row,) = results.read_rows(path, SAMPLES)
    assert row["cell"] == (cell or None) and row["sample"] == 3
    assert row["step_s"] == pytest.approx(number, rel=5e-6)


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, -math.inf])
def test_missing_is_blank_never_zero_or_inf(missing):
    assert results.text(missing) == ""


def test_an_unknown_field_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(KeyError, match="not a column: colour"):
        results.append(tmp_path / "x.csv", SAMPLES, [{"colour": 1}])
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty; expected a header line"),
        ("cell,colour\n", "line 1: unknown column 'colour'; expected cell, sample, step_s"),
        (HEADER + "\na,0\n", "line 2: 2 fields, expected 3: malformed or cut off"),
        (HEADER + "\na,0,1.5\nb,x,1\n", "line 3: sample: expected a count, got 'x'"),
        (HEADER + "\na,0,fast\n", "line 2: step_s: expected a number, got 'fast'"),
        (HEADER + "\na,0,nan\n", "line 2: step_s: expected a finite number or blank, got 'nan'"),
        (HEADER + "\na,0,1.5", "line 2: no newline at its end: cut off"),
        (HEADER + ",cell\n", "line 1: column 'cell' stands twice"),
        (HEADER + '\n"a,0,1\n', "cannot be read as CSV"),
    ],
)
def test_a_malformed_or_truncated_csv_is_named(tmp_path, content, message):
    path = tmp_path / "samples.csv"
    path.write_text(content)
    with pytest.raises(ResultsError) as caught:
        results.read_rows(path, SAMPLES)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_file_from_before_a_column_was_added_reads_as_blank(tmp_path):
    path = tmp_path / "samples.csv"
    path.write_text("cell,sample\na,1\n")
    assert results.read_rows(path, SAMPLES) == [{"cell": "a", "sample": 1, "step_s": None}]


def test_frame_types(tmp_path):
    table = results.frame([dict.fromkeys(CELLS) | {"cell": "a", "samples": 3, "step_s_median": 0.5}], CELLS)
    assert str(table["samples"].dtype) == "Int64" and str(table["step_s_median"].dtype) == "float64"


def test_every_column_has_a_type_and_a_meaning():
    for columns in (CELLS, SAMPLES, results.PUBLISHED, results.COSTS, results.CLAIMS):
        assert all(kind in "sif" and meaning for kind, meaning in columns.values())


def test_columns_are_only_ever_appended():
    """Run folders are never edited: what they hold is the beginning of today's columns, in the same order."""
    names = list(CELLS)
    headers = [path.open().readline().strip().split(",") for path in results.RUNS.glob("*/cells.csv")]
    assert headers and all(names[: len(header)] == header for header in headers)
    added = ["tensor_parallel", "exposed_communication_s", "lora_rank", "routing_zipf"]
    at = names.index("scoring_s_median") + 1
    assert names[at : at + 4] == added and [CELLS[name][0] for name in added] == ["i", "f", "i", "f"]


def test_a_uniform_routing_is_written_as_zero_and_not_as_missing(tmp_path):
    results.append(tmp_path / "cells.csv", CELLS, [GOOD | {"routing_zipf": 0.0}, GOOD | {"cell": "b"}])
    assert [row["routing_zipf"] for row in runs.read_cells(tmp_path)] == [0.0, None]


GOOD = {
    "run": "r",
    "cell": "a",
    "phase": "prefill",
    "workload": "w",
    "backend": "reference",
    "device": "cpu",
    "status": "ok",
    "step_s_median": 1.0,
    "step_s_last_third": 1.0,
}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD | {"status": "banana"}], "line 2: status: expected one of ok, oom"),
        ([GOOD, GOOD], "line 3: cell: a stands twice"),
        ([GOOD | {"phase": None}], "line 2: phase: blank"),
        ([GOOD | {"tokens_per_step": -4}], "line 2: tokens_per_step: expected no negative number, got -4"),
        ([GOOD | {"step_s_last_third": None}], "line 2: step_s_last_third: expected a positive time"),
        ([GOOD | {"step_s_median": 0.0}], "line 2: step_s_median: expected a positive time"),
    ],
)
def test_a_cell_that_cannot_be_is_named(tmp_path, rows, message):
    results.append(tmp_path / "cells.csv", CELLS, rows)
    with pytest.raises(ResultsError) as caught:
        runs.read_cells(tmp_path)
    assert message in str(caught.value)


def test_a_good_cell_and_a_failed_one_are_read(tmp_path):
    failed = GOOD | {"cell": "b", "status": "oom", "step_s_median": None, "step_s_last_third": None}
    results.append(tmp_path / "cells.csv", CELLS, [GOOD, failed])
    assert [row["cell"] for row in runs.read_cells(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_an_environment_that_is_not_one_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "environment.json").write_text(content)
    with pytest.raises(ResultsError, match=r"environment.json"):
        runs.read_environment(tmp_path)
