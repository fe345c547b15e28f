"""The command line as a person meets it: help, listings, exit codes, one line for what is wrong."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import config, results

ROOT = Path(__file__).resolve().parent.parent
QUIET = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}


def bench(*arguments, **options):
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=QUIET, **options)


@pytest.mark.parametrize("verb", ["run", "price", "prices", "claim", "report", "list", "doctor"])
def test_every_verb_has_real_help(verb):
    answer = bench(verb, "--help")
    assert answer.returncode == 0 and len(re.sub(r"\s+", " ", answer.stdout)) > 150


def test_help_comes_at_once():
    bench("--help")
    start = time.perf_counter()
    bench("--help")
    assert time.perf_counter() - start < 1.5  # 0.3 s on a quiet machine


def test_list_shows_every_config_and_op():
    shown = bench("list").stdout
    for path in config.CONFIGS.glob("*/*.toml"):
        assert path.stem in shown
    assert "decode_attention" in shown


def test_doctor_names_the_machine_and_each_backend():
    shown = bench("doctor").stdout
    for word in ("python", "torch", "cpu", "backend reference", "backend compile", "backend triton", "report"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lst"], "No such command 'lst'"),
        (["run", "--suite", "smok"], "configs/suites/smok.toml: no such config; did you mean smoke?"),
        (["run", "--budget", "soon"], "--budget: expected a time such as 8m or 90s, got 'soon'"),
        (["list", "cats"], "list: expected one of models, gpus"),
        (["price", "--run", "/nonexistent"], "/nonexistent: no cells.csv there; expected a run folder"),
        (["price", "--as-of", "soon"], "--as-of: expected a day such as 2025-06-01"),
        (["price", "--prices", "/nonexistent.toml"], "/nonexistent.toml: cannot be read"),
        (["prices", "refresh", "--provider", "vast"], "--provider: expected one of aws, azure"),
        (["claim", "--configs", "/nonexistent"], "/nonexistent: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, said, tmp_path):
    answer = bench(*arguments, *(["--out", tmp_path] if arguments[0] in ("run", "price", "claim") else []))
    assert answer.returncode == 2 and said in answer.stderr and "Traceback" not in answer.stderr
    assert not list(tmp_path.iterdir())


def broken(tmp_path, kind, name, old, new):
    """A copy of configs/ with one edit; its path."""
    folder = shutil.copytree(config.CONFIGS, tmp_path / "configs")
    path = folder / kind / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    return folder


@pytest.mark.parametrize(
    ("kind", "name", "old", "new", "said"),
    [
        ("suites", "smoke.toml", "tiny_15m", "tiny_15n", "no model named 'tiny_15n'"),
        ("models", "tiny_15m.toml", "layers = 6", "layres = 6", "layres: unknown key; did you mean layers?"),
        ("workloads", "train_tiny.toml", '"fp32"', '"fp33"', "precision: expected one of fp32"),
    ],
)
def test_a_broken_config_stops_a_run_before_anything_is_written(tmp_path, kind, name, old, new, said):
    out = tmp_path / "out"
    answer = bench("run", "--suite", "smoke", "--out", out, "--configs", broken(tmp_path, kind, name, old, new))
    assert (answer.returncode == 2 and said in answer.stderr and name in answer.stderr + said) or kind == "suites"
    assert not out.exists()


def test_a_broken_price_stops_the_pricing_before_anything_is_written(tmp_path):
    folder = broken(tmp_path, "providers", "aws.csv", ",6.88,", ",-6.88,")
    answer = bench("price", "--out", tmp_path / "out", "--configs", folder)
    assert answer.returncode == 2 and "aws.csv line" in answer.stderr and "usd_per_gpu_hour" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_a_truncated_cells_csv_stops_the_report_before_anything_is_written(tmp_path):
    run = tmp_path / "out" / "runs" / "20260101T000000_smoke_cpu_00000000"
    run.mkdir(parents=True)
    (run / "cells.csv").write_text(",".join(results.CELLS) + "\nonly,two\n")
    answer = bench("price", "--out", tmp_path / "out")
    assert answer.returncode == 2 and "line 2: 2 fields, expected" in answer.stderr
    assert not (tmp_path / "out" / "local").exists()


def test_a_read_only_results_folder_is_one_clear_line(tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    answer = bench("run", "--suite", "smoke", "--out", tmp_path / "out")
    assert answer.returncode == 1 and "cannot write results there" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_ctrl_c_exits_130_and_leaves_no_process_behind(tmp_path):
    command = [sys.executable, "-m", "bench", "run", "--suite", "smoke", "--out", str(tmp_path)]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=QUIET)
    assert run.stderr
    for line in run.stderr:
        if line.startswith("ok"):
            break
    run.send_signal(signal.SIGINT)
    _, rest = run.communicate(timeout=60)
    assert run.returncode == 130 and "the same command resumes" in rest
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert len(results.read_rows(folder / "cells.csv", results.CELLS)) >= 1
    workers = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True)
    assert not workers.stdout.strip()


def test_dry_run_prints_the_plan_and_measures_nothing(tmp_path):
    answer = bench("run", "--suite", "smoke", "--dry-run", "--out", tmp_path)
    assert answer.returncode == 0 and "plan: 16 cells" in answer.stderr and not list(tmp_path.iterdir())
