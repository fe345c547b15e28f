"""Launch parameters and choices from tables, and the tuner that writes them: everything but the timing itself."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

from bench import tune
from bench.kernels import best, tuning
from bench.kernels.op import discover

GPU = torch.device("cuda")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROW = {
    "device_name": "GPU A",
    "triton": triton.__version__,
    "kernel": "swiglu.forward",
    "key": "8192x14336",
    "change": '{"BLOCK": 2048}',
    "default_us": "10",
    "tuned_us": "8",
    "date": "2026-11-22",
}


def table(path: Path, *rows: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty project on a machine with GPU A."""
    monkeypatch.setattr(tuning, "ROOT", tmp_path)
    monkeypatch.setattr(best, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "GPU A")
    for cached in (tuning._table, best.choices):
        cached.cache_clear()
    yield tmp_path
    for cached in (tuning._table, best.choices):
        cached.cache_clear()


def tuned(**other: Any) -> dict[str, Any]:
    asked = {"kernel": "swiglu.forward", "key": (8192, 14336), "device": GPU} | other
    return tuning.tuned(default={"BLOCK": 1024, "num_warps": 4}, **asked)


def test_without_a_table_the_heuristic_stands(project: Path) -> None:
    assert tuned() == {"BLOCK": 1024, "num_warps": 4}


def test_tensors_of_another_gpu_than_the_current_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert tuned(device=torch.device("cuda:0"))["BLOCK"] == 1024
    with pytest.raises(ValueError, match=r"^swiglu\.forward: tensors on cuda:1, the current device is cuda:0"):
        tuned(device=torch.device("cuda:1"))


def test_a_row_changes_what_it_names(project: Path) -> None:
    table(project / "configs/tuning/a.csv", ROW)
    assert tuned() == {"BLOCK": 2048, "num_warps": 4}
    assert tuned(key=(8192, 8192)) == {"BLOCK": 1024, "num_warps": 4}
    assert tuned(device=torch.device("cpu")) == {"BLOCK": 1024, "num_warps": 4}


@pytest.mark.parametrize("other", [{"device_name": "GPU B"}, {"triton": "1.0"}, {"kernel": "swiglu.backward"}])
def test_rows_of_another_gpu_compiler_or_kernel_do_not_count(project: Path, other: dict[str, str]) -> None:
    table(project / "configs/tuning/a.csv", ROW | other)
    assert tuned()["BLOCK"] == 1024


def test_the_users_own_row_goes_first(project: Path) -> None:
    table(project / "configs/tuning/a.csv", ROW)
    table(project / "results/local/tuning.csv", ROW | {"change": '{"BLOCK": 512}'})
    assert tuned()["BLOCK"] == 512


def test_trying_and_asked(project: Path) -> None:
    with tuning.asked() as keys, tuning.trying("swiglu.forward", {"BLOCK": 64}):
        assert tuned(device=torch.device("cpu"))["BLOCK"] == 64
    assert keys == {"swiglu.forward": (8192, 14336)}
    assert tuned()["BLOCK"] == 1024


# --- backend best ---------------------------------------------------------------------------------------


def test_a_key_tells_calls_apart() -> None:
    reference = discover()["rms_norm"].reference
    x, w = torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.bfloat16)
    assert best.key_of(reference, (x, w, 1e-5), {}) == "2x4.bfloat16 4.bfloat16 eps=1e-05"
    assert best.key_of(reference, (x,), {"weight": w, "eps": 1e-5, "residual": None}).endswith("eps=1e-05")
    # the model's (1, 2, 4) are the tuner's (2, 4)
    assert best.key_of(reference, (x[None], w, 1e-5), {}) == best.key_of(reference, (x, w, 1e-5), {})
    assert best.key_of(reference, (x, w.requires_grad_(), 1e-5), {}).endswith(" grad")


def test_best_takes_what_the_table_says_and_triton_elsewhere(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = {side: (lambda x, side=side: side) for side in best.SIDES}
    op = replace(discover()["swiglu"], reference=sides["reference"], triton=sides["triton"])
    small, large = (SimpleNamespace(device=GPU) for _ in range(2))
    monkeypatch.setattr(best, "tensors", lambda values: values)
    monkeypatch.setattr(best, "key_of", lambda function, args, kwargs: "small" if args[0] is small else "large")
    row = {"device_name": "GPU A", "op": "swiglu", "key": "small", "choice": "reference"}
    chosen = best.Best("swiglu", op)
    assert chosen(small) == "triton"  # no table
    table(project / "configs/best.csv", row)
    best.choices.cache_clear()
    best.ran()
    assert (chosen(small), chosen(large)) == ("reference", "triton")
    assert best.ran() == "swiglu=reference+triton"
    assert best.ran() is None


def test_an_unknown_choice_is_refused(project: Path) -> None:
    table(project / "configs/best.csv", {"device_name": "GPU A", "op": "swiglu", "key": "k", "choice": "cublas"})
    with pytest.raises(ValueError, match=r"best\.csv: choice: expected triton or reference, got 'cublas'"):
        best.choices("GPU A")


# --- the tuner ------------------------------------------------------------------------------------------


def test_the_fastest_right_candidate_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {None: 10.0, 1: 9.9, 2: 7.0, 3: 5.0, 4: 8.0}

    def chosen() -> int | None:
        return tuning.tuned("k", (), {"n": None}, torch.device("cpu"))["n"]

    def triton_side(**_: Any) -> torch.Tensor:
        if chosen() == 5:
            raise RuntimeError("out of resource: shared memory")
        return torch.full((2,), 2.0 if chosen() == 3 else 1.0)  # candidate 3 is fastest, and wrong

    def run(*candidates: int) -> tune.Run:
        changed = {"k": tuple({"n": n} for n in candidates)}
        op = replace(discover()["swiglu"], triton=triton_side, candidates=changed, differentiable=())
        return tune.Run(op, "triton", {})

    monkeypatch.setattr(tune, "seconds", lambda step: times[chosen()])
    assert tune.faster(run(1, 2, 3, 4, 5), "k", 1e-2) == ({"n": 2}, 10.0, 7.0)
    assert tune.faster(run(1), "k", 1e-2) is None  # one percent is within the noise


def test_a_wrong_result_in_place_or_a_wrong_choice_is_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> bool:
        return tuning.tuned("k", (), {"n": 0}, torch.device("cpu"))["n"] == 1

    def write(x: torch.Tensor) -> torch.Tensor:
        return x.fill_(9.0 if wrong() else 1.0)

    def choose(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([7 if wrong() else 3])

    monkeypatch.setattr(tune, "seconds", lambda step: 1.0 if wrong() else 2.0)
    for side, mutates in ((write, ("x",)), (choose, ())):
        op = replace(
            discover()["swiglu"], triton=side, mutates=mutates, differentiable=(), candidates={"k": ({"n": 1},)}
        )
        assert tune.faster(tune.Run(op, "triton", {"x": torch.zeros(2)}), "k", 1e-2) is None


def test_merging_replaces_rows_of_the_same_key_and_keeps_the_others(tmp_path: Path) -> None:
    path, key = tmp_path / "tuning.csv", ("device_name", "triton", "kernel", "key")
    tune.merge(path, [ROW, ROW | {"key": "other"}], key)
    tune.merge(path, [ROW | {"change": '{"BLOCK": 1}'}], key)
    with path.open() as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["key"], row["change"]) for row in rows] == [
        ("other", ROW["change"]),
        (ROW["key"], '{"BLOCK": 1}'),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can tune")
def test_a_machine_without_a_gpu_is_told_so_in_one_line() -> None:
    with pytest.raises(tune.TuneError, match=r"^tune needs a CUDA device"):
        tune.tune(None, None, print)


@pytest.mark.parametrize("name", discover())
def test_every_candidate_is_of_a_kernel_that_asks(name: str) -> None:
    """A candidate of a kernel that never asks would never be tried. Small shapes take every kernel's path."""
    op = discover()[name]
    with tuning.asked() as keys:
        for shape in op.test_shapes.values():
            kwargs = op.inputs(shape, torch.float16, DEVICE, torch.Generator(DEVICE).manual_seed(0))
            tune.Run(op, "triton", op.trained(kwargs))()
    assert set(op.candidates) <= set(keys)
