"""Run and resume on recorded answers: no torch, no clock, no sleeping. One test starts a real worker process."""

import dataclasses
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from bench import config, journal, plan, results, run
from bench.architecture import Model
from bench.config import ConfigError, Group, Suite
from bench.measure.worker import Worker, WorkerDied

FACTS = {
    "device": "cpu",
    "device_name": "Recorded CPU",
    "device_uuid": "cpu:recorded",
    "memory_bytes": 24 << 30,
    "torch": "2.13.0",
    "triton": "3.7.1",
}


class Silent:
    """A listener that remembers."""

    def __init__(self):
        self.rows, self.left_out, self.finished = [], [], None

    def planned(self, suite, cells, finished, folder):
        self.finished = finished

    def started(self, cell): ...

    def ended(self, cell, row):
        self.rows.append(row)

    def stopped(self, left_out, reason):
        self.left_out = left_out


class Recorded:
    """Answers like a worker, from a table of cell -> answer; counts how often it was replaced."""

    def __init__(self, answers=None, facts=FACTS):
        self.answers, self.facts, self.asked, self.stops = answers or {}, facts, [], 0

    def call(self, target, arguments, limit_s):
        if target.endswith(":describe"):
            return dict(self.facts)
        if target.endswith(":why_not"):
            return None
        key = arguments["arguments"]["workload"]["key"], arguments["arguments"]["backend"]
        self.asked.append(key)
        answer = self.answers.get(key, ok())
        if isinstance(answer, BaseException):
            raise answer
        return dict(answer)

    def stop(self):
        self.stops += 1


def ok(step_s=0.5):
    samples = [step_s] * 6
    named = ("median", "low", "high", "first_third", "last_third")
    return {
        "status": "ok",
        "samples": len(samples),
        "tokens_per_step": 1024,
        "token_kind": "trained",
        "system_tokens_per_s": 1024 / step_s,
        "step_s": samples,
        **{f"step_s_{name}": step_s for name in named},
    }


@pytest.fixture
def smoke() -> Suite:
    """Seven cells of suite smoke: three ceilings, three phases, one of another backend."""
    suite = config.load(Suite, "smoke")
    return dataclasses.replace(suite, groups=(*suite.groups[:2], suite.groups[-1]))


def measure(suite, out, worker, **options):
    listener = Silent()
    return run.run(suite, out, listener, worker=worker, **options), listener


def folders(out: Path) -> list[Path]:
    """The run folders, without lock files."""
    return [path for path in (out / "runs").iterdir() if path.is_dir()]


def cells_of(out: Path):
    (folder,) = folders(out)
    return results.read_rows(folder / "cells.csv", results.CELLS), results.read_rows(
        folder / "samples.csv", results.SAMPLES
    )


def test_a_run_writes_every_planned_cell_once_with_its_samples(smoke, tmp_path):
    outcome, listener = measure(smoke, tmp_path, Recorded())
    rows, samples = cells_of(tmp_path)
    planned = json.loads((outcome.folder / "environment.json").read_text())["plan"]
    assert [row["cell"] for row in rows] == planned == [row["cell"] for row in listener.rows]
    assert len(samples) == 6 * len(rows)
    assert {row["gpu"] for row in rows} == {"cpu"} and {row["run"] for row in rows} == {outcome.folder.name}


def test_a_second_run_resumes_and_measures_nothing(smoke, tmp_path):
    measure(smoke, tmp_path, Recorded())
    before = cells_of(tmp_path)
    worker = Recorded()
    outcome, listener = measure(smoke, tmp_path, worker)
    assert worker.asked == [] and outcome.measured == [] and len(listener.finished) == len(before[0])
    assert cells_of(tmp_path) == before


def test_fresh_starts_a_new_run(smoke, tmp_path, monkeypatch):
    first, _ = measure(smoke, tmp_path, Recorded())
    first.folder.rename(first.folder.with_name("20200101T000000_smoke_cpu_aaaaaaaa"))
    second, _ = measure(smoke, tmp_path, Recorded(), fresh=True)
    assert len(folders(tmp_path)) == 2 and second.measured


@pytest.mark.parametrize("name", ["device_uuid", "threads", "torch", "triton"])
def test_another_machine_or_version_is_another_run(smoke, tmp_path, name):
    first, _ = measure(smoke, tmp_path, Recorded())
    first.folder.rename(first.folder.with_name("20200101T000000_smoke_cpu_aaaaaaaa"))
    worker = Recorded(facts=FACTS | {name: "another"})
    measure(smoke, tmp_path, worker)
    assert worker.asked and len(folders(tmp_path)) == 2


def test_whatever_a_cell_does_the_run_goes_on_with_a_fresh_worker(smoke, tmp_path):
    worker = Recorded(
        {
            ("copy_256mib", "reference"): WorkerDied("timeout", "no answer within 9 s; the worker was killed"),
            ("read_256mib", "reference"): WorkerDied("crashed", "the worker process ended: killed by SIGSEGV"),
            ("train_tiny", "reference"): {"status": "oom", "reason": "CUDA out of memory"},
            ("prefill_tiny", "reference"): {"status": "incorrect", "reason": "relative error 3"},
        }
    )
    measure(smoke, tmp_path, worker)
    rows, samples = cells_of(tmp_path)
    assert [row["status"] for row in rows] == ["timeout", "crashed", "ok", "oom", "incorrect", "ok", "ok"]
    assert all(row["reason"] for row in rows if row["status"] != "ok")
    assert {s["cell"] for s in samples} == {row["cell"] for row in rows if row["status"] == "ok"}
    assert worker.stops == 4 + 1 + 1  # four failures, one change of backend, the end


def test_a_kill_between_any_two_writes_loses_and_doubles_nothing(smoke, tmp_path):
    """Cut the files at every point a kill could leave behind; the next run must complete them."""
    whole = tmp_path / "whole"
    measure(smoke, whole, Recorded())
    rows, _ = cells_of(whole)
    (folder,) = folders(whole)
    cells, samples = (folder / "cells.csv").read_bytes(), (folder / "samples.csv").read_bytes()
    lines, marks = cells.splitlines(keepends=True), samples.splitlines(keepends=True)
    cuts = []
    for done in range(len(rows)):
        written = b"".join(lines[: done + 1]) if done else b""
        taken = b"".join(marks[: 1 + 6 * done]) if done else b""
        after = b"".join(marks[: 1 + 6 * (done + 1)])
        cuts += [(written, taken), (written, after), (written, after[:-9]), (written + lines[done + 1][:40], after)]
    for number, (some_cells, some_samples) in enumerate(cuts):
        out = tmp_path / str(number)
        shutil.copytree(whole, out)
        (copied,) = folders(out)
        for name, content in (("cells.csv", some_cells), ("samples.csv", some_samples)):
            (copied / name).write_bytes(content) if content else (copied / name).unlink()
        measure(smoke, out, Recorded())
        again, again_samples = cells_of(out)
        assert [r["cell"] for r in again] == [r["cell"] for r in rows]
        assert len(again_samples) == 6 * len(rows)
        assert len({(s["cell"], s["sample"]) for s in again_samples}) == len(again_samples)


def test_an_interrupt_keeps_every_finished_row_and_resumes(smoke, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        measure(smoke, tmp_path, Recorded({("prefill_tiny", "reference"): KeyboardInterrupt()}))
    assert len(cells_of(tmp_path)[0]) == 4
    worker = Recorded()
    measure(smoke, tmp_path, worker)
    assert len(worker.asked) == 3 and len(cells_of(tmp_path)[0]) == 7


def test_a_budget_stops_cleanly_and_says_what_it_left_out(smoke, tmp_path):
    ticks = iter(range(0, 10_000, 10))
    short = dataclasses.replace(smoke, budget_s=60)
    outcome, listener = measure(short, tmp_path, Recorded(), clock=lambda: next(ticks))
    kept = {row["cell"] for row in outcome.measured}
    assert kept and listener.left_out == outcome.left_out
    assert kept.isdisjoint(cell.key for cell in outcome.left_out) and len(kept) + len(outcome.left_out) == 7
    measure(smoke, tmp_path, Recorded())
    assert len(cells_of(tmp_path)[0]) == 7


def test_two_processes_cannot_write_one_run(smoke, tmp_path):
    outcome, _ = measure(smoke, tmp_path, Recorded())
    with journal.Journal(outcome.folder), pytest.raises(journal.JournalError, match="another process"):
        measure(smoke, tmp_path, Recorded())


def test_a_full_disk_leaves_no_half_written_row(smoke, tmp_path, monkeypatch):
    path = tmp_path / "cells.csv"
    results.append(path, results.SAMPLES, [{"cell": "a", "sample": 0, "step_s": 1.0}])
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        results.append(path, results.SAMPLES, [{"cell": "b", "sample": 0, "step_s": 1.0}])
    assert path.read_bytes() == before
    with pytest.raises(journal.JournalError, match="cannot write results there: No space left on device"):
        measure(smoke, tmp_path, Recorded())


def test_a_results_folder_that_cannot_be_made_is_one_clear_error(smoke, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(journal.JournalError, match="cannot write results there"):
        measure(smoke, tmp_path / "file", Recorded())


def test_an_unknown_gpu_is_measured_and_its_key_left_blank(tmp_path):
    suite = dataclasses.replace(config.load(Suite, "quick"), groups=config.load(Suite, "quick").groups[:1])
    facts = FACTS | {"device": "cuda", "device_name": "NVIDIA H100", "device_memory_bytes": 80 * 10**9}
    outcome, _ = measure(suite, tmp_path, Recorded(facts=facts))
    assert {row["gpu"] for row in outcome.measured} == {None} and "_unknown_" in outcome.folder.name
    assert {row["gpu"] for row in cells_of(tmp_path)[0]} == {None}


def test_a_gpu_is_known_by_its_exact_name_only():
    assert plan.gpu_key("NVIDIA H100 80GB HBM3") == "h100_sxm_80gb"
    assert plan.gpu_key("NVIDIA H100") is None and plan.gpu_key("NVIDIA H100 80GB HBM3 MIG") is None


def test_a_slice_has_times_but_no_rate(tmp_path):
    group = Group(models=("llama_3_1_8b",), workloads=("train_4k",), backends=("triton",))
    suite = Suite(key="quick", device="cuda", budget_s=100, about="", groups=(group,))
    facts = FACTS | {"device_name": "NVIDIA H100 80GB HBM3", "device_memory_bytes": 80 * 10**9}
    outcome, _ = measure(suite, tmp_path, Recorded(facts=facts))
    shallow, deep = outcome.measured
    assert shallow["layers_measured"] < deep["layers_measured"] < deep["layers"] == 32
    assert all(row["system_tokens_per_s"] is None and row["step_s_median"] for row in outcome.measured)


def test_a_model_that_cannot_run_is_a_row_with_its_reason(tmp_path):
    group = Group(models=("mixtral_8x7b", "deepseek_v3"), workloads=("pretrain_moe_share",), backends=("reference",))
    suite = Suite(key="smoke", device="cpu", budget_s=100, about="", groups=(group,))
    outcome, _ = measure(suite, tmp_path, Recorded())
    divided, large = outcome.measured
    assert divided["status"] == large["status"] == "unavailable"
    assert "expert_parallel: expected a divisor of experts = 8, got 16" in divided["reason"]
    assert "not even a slice fits in 26 GB" in large["reason"]


def test_a_share_of_the_experts_has_times_but_no_rate(tmp_path):
    group = Group(models=("tiny_mla",), workloads=("pretrain_moe_share_tiny",), backends=("reference",))
    suite = Suite(key="smoke", device="cpu", budget_s=100, about="", groups=(group,))
    outcome, _ = measure(suite, tmp_path, Recorded())
    (row,) = outcome.measured
    assert row["expert_parallel"] == 4 and row["routing_zipf"] == 0
    assert row["system_tokens_per_s"] is None and row["step_s_median"]


def test_a_suite_that_names_nothing_real_is_refused_by_name():
    group = Group(models=("llama_9",), workloads=("prefill_tiny",), backends=("reference",))
    suite = Suite(key="smoke", device="cpu", budget_s=100, about="", groups=(group,))
    with pytest.raises(ConfigError, match=r"configs/suites/smoke.toml: groups\[0\].models: no model named 'llama_9'"):
        plan.cells(suite, 24e9)


def test_the_source_hash_follows_what_decides_a_measurement(smoke, monkeypatch, tmp_path):
    cells = plan.cells(smoke, 24e9)
    first = plan.source_hash(smoke.key, cells)
    assert first == plan.source_hash(smoke.key, cells) and len(first) == 8
    shutil.copytree(config.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(config, "CONFIGS", tmp_path / "configs")
    assert plan.source_hash(smoke.key, cells) == first
    with (tmp_path / "configs" / "models" / "tiny_15m.toml").open("a") as file:
        file.write("# changed\n")
    assert plan.source_hash(smoke.key, cells) != first


def test_a_dropped_in_model_workload_and_suite_are_found_and_planned(monkeypatch, tmp_path):
    shutil.copytree(config.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(config, "CONFIGS", tmp_path / "configs")
    folder = tmp_path / "configs"
    shutil.copy(folder / "models/tiny_15m.toml", folder / "models/mine.toml")
    shutil.copy(folder / "workloads/prefill_tiny.toml", folder / "workloads/my_prefill.toml")
    (folder / "suites/my_suite.toml").write_text(
        'device = "cpu"\nbudget_s = 90\nabout = "mine"\n[[groups]]\nmodels = ["mine"]\n'
        'workloads = ["my_prefill"]\nbackends = ["reference"]\n'
    )
    suite = config.load(Suite, "my_suite")
    assert "mine" in config.keys(Model)
    outcome, _ = measure(suite, tmp_path, Recorded())
    assert [row["cell"] for row in outcome.measured] == ["mine/my_prefill/reference"]


def test_a_real_worker_survives_faults_hangs_and_kills(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    worker = Worker()
    assert worker.call("os:getcwd", {}, 60) == str(plan.ROOT)
    with pytest.raises(WorkerDied, match="StatisticsError") as caught:
        worker.call("statistics:mean", {"data": []}, 60)
    assert caught.value.status == "error"
    with pytest.raises(WorkerDied) as caught:
        worker.call("os:_exit", {"status": 7}, 60)
    assert caught.value.status == "crashed" and "exit code 7" in caught.value.reason
    with pytest.raises(WorkerDied) as caught:
        worker.call("os:abort", {}, 60)
    assert "SIGABRT" in caught.value.reason
    with pytest.raises(WorkerDied) as caught:
        worker.call("signal:pause", {}, 2)
    assert caught.value.status == "timeout"
    assert worker.call("os:getcwd", {}, 60) == str(plan.ROOT)
    worker.stop()


def test_a_run_folder_packs_into_one_archive(smoke, tmp_path):
    outcome, _ = measure(smoke, tmp_path, Recorded())
    archive = journal.pack(outcome.folder, tmp_path / "packed")
    with tarfile.open(archive) as tar:
        names = {Path(name).name for name in tar.getnames()}
    assert {"environment.json", "cells.csv", "samples.csv"} <= names
    with pytest.raises(journal.JournalError, match=r"cannot be written"):
        journal.pack(outcome.folder, archive)


def test_a_committed_run_is_closed(smoke, tmp_path):
    """Somebody else's committed facts are never resumed, even on a machine of the same name."""
    first, _ = measure(smoke, tmp_path, Recorded())
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    first.folder.rename(first.folder.with_name("20200101T000000_smoke_cpu_aaaaaaaa"))
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    worker = Recorded()
    measure(smoke, tmp_path, worker)
    assert len(worker.asked) == 7 and len(folders(tmp_path)) == 2


def test_a_model_whose_stated_size_is_not_its_own_is_refused(monkeypatch, tmp_path, smoke):
    shutil.copytree(config.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(config, "CONFIGS", tmp_path / "configs")
    path = tmp_path / "configs/models/tiny_15m.toml"
    path.write_text(path.read_text().replace("total_params = 14357376", "total_params = 1000000000"))
    with pytest.raises(ConfigError, match=r"tiny_15m.toml: total_params: expected 14357376, which its sizes give"):
        plan.cells(smoke, 24e9)


def test_what_failed_for_a_reason_that_may_have_passed_is_tried_again(smoke, tmp_path):
    """A killed worker, a missing compiler, a hang: tried again by the next call; a wrong result or oom is not."""
    failures = {
        ("copy_256mib", "reference"): WorkerDied("crashed", "killed by SIGKILL"),
        ("read_256mib", "reference"): {"status": "unavailable", "reason": "no compiler"},
        ("train_tiny", "reference"): {"status": "oom", "reason": "CUDA out of memory"},
        ("prefill_tiny", "reference"): {"status": "incorrect", "reason": "relative error 3"},
    }
    measure(smoke, tmp_path, Recorded(failures))
    worker = Recorded()
    measure(smoke, tmp_path, worker)
    assert sorted(worker.asked) == [("copy_256mib", "reference"), ("read_256mib", "reference")]
    rows, samples = cells_of(tmp_path)
    assert len(rows) == len({row["cell"] for row in rows}) == 7 and {row["status"] for row in rows} >= {"ok", "oom"}
    assert len(samples) == 6 * 5


def test_a_cell_the_budget_cut_has_no_row_and_is_measured_later(smoke, tmp_path):
    late = WorkerDied("timeout", "no answer within 20 s; the worker was killed")
    short = dataclasses.replace(smoke, budget_s=60)
    outcome, _ = measure(short, tmp_path, Recorded({("prefill_tiny", "reference"): late}), clock=lambda: 0.0)
    assert [cell.workload.key for cell in outcome.left_out] == ["prefill_tiny", "decode_tiny", "train_tiny"]
    measure(smoke, tmp_path, Recorded())
    assert {row["status"] for row in cells_of(tmp_path)[0]} == {"ok"}
