"""What `make perf` is made of: the schema and what follows from its rows, the timer's arithmetic, the driver."""

import math
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import kernel_results as kr
from bench.peers.found import Peer, Unsupported
from bench.results import ResultsError, append
from tests.perf import __main__ as driver
from tests.perf import cases, ceilings, machine, running, timing
from tests.perf.journal import Journal, new_folder
from tests.perf.warm import warm

FACTS = {"gpu": "cpu", "source_hash": "0123abcd", "device_name": "a CPU", "torch": "2", "triton": "3"}


def row(op: str, implementation: str, time_s: float | None, **more: Any) -> dict[str, Any]:
    status = "ok" if time_s else "error"
    known = {"run": "r", "op": op, "part": "forward", "shape": "s", "dtype": "bf16", "status": status}
    return dict.fromkeys(kr.KERNELS) | known | {"implementation": implementation, "time_s": time_s} | more


# copy: 2e9 bytes in 1 ms = 2 TB/s. cuBLAS: 1e12 flops in 2 ms = 500 TFLOP/s, and 100 at a small size.
RUN = [
    row("copy", "torch", 1e-3, part="ceiling", bytes=2e9),
    row("cublas", "torch", 2e-3, part="ceiling", shape=kr.LARGE_MATMUL, flops=1e12),
    row("cublas", "torch", 1e-3, part="ceiling", shape="1x2x3", flops=1e11),
    row("cublas", "torch fp8", 1e-3, part="ceiling", shape=kr.LARGE_MATMUL, dtype="fp8", flops=1e12),
    row("rms_norm", "triton", 1e-4, flops=1e6, bytes=1e8),
    row("rms_norm", "peer:liger", 2e-4, flops=1e6, bytes=1e8),
    row("rms_norm", "reference", None),
    row("matmul", "triton", 2e-3, flops=1e11, bytes=1e6),
]


# ---------------------------------------------------------------- what follows from the rows


@pytest.mark.parametrize(
    ("flops", "traffic", "limit"),
    [(1e12, 1e6, "compute"), (1e6, 1e9, "memory"), (1e6, 1e6, "launch"), (None, 1e6, None), (1e6, None, None)],
)
def test_the_bound_is_the_largest_term(flops: float | None, traffic: float | None, limit: str | None) -> None:
    assert kr.bound(flops, traffic, 500e12, 2e12) == limit


def test_no_ceiling_no_bound() -> None:
    assert kr.bound(1e12, 1e6, None, 2e12) is None and kr.bound(1e12, 1e6, 500e12, None) is None


def test_fractions_are_of_the_ceilings_of_the_same_run() -> None:
    norm = kr.derived(RUN)[4]
    assert norm["bytes_per_s"] == pytest.approx(1e12) and norm["fraction_of_copy"] == pytest.approx(0.5)
    assert norm["fraction_of_cublas"] == pytest.approx(1e10 / 500e12)
    assert norm["bound"] == "memory" and norm["fraction_of_peak_flops"] is None


def test_a_matmul_is_held_against_cublas_at_its_own_size() -> None:
    large = kr.derived(RUN)[-1]
    own = kr.derived(RUN, {("matmul", "s"): "1x2x3"})[-1]
    assert large["fraction_of_cublas"] == pytest.approx(0.1) and own["fraction_of_cublas"] == pytest.approx(0.5)


def test_precisions_do_not_share_a_ceiling() -> None:
    rows = [*RUN, row("matmul_fp8", "triton", 1e-3, dtype="fp8", flops=5e11, bytes=1e6)]
    assert kr.derived(rows)[-1]["fraction_of_cublas"] == pytest.approx(0.5)
    fp16 = kr.derived([*RUN, row("matmul", "x", 1e-3, dtype="fp16", flops=5e11, bytes=1e6)])[-1]
    assert fp16["fraction_of_cublas"] is None and fp16["bound"] is None


def test_ratios_are_to_triton_at_the_same_op_part_and_shape() -> None:
    rows = [*RUN, row("rms_norm", "peer:liger", 2e-4, part="forward_backward")]
    ratios = [found["ratio_to_triton"] for found in kr.derived(rows)]
    assert ratios[4:7] == [1, pytest.approx(2), None] and ratios[-1] is None


def test_peaks_of_the_data_sheet() -> None:
    norm = kr.derived(RUN, peaks={"bf16": 1e15}, bandwidth=4e12)[4]
    assert norm["fraction_of_peak_bandwidth"] == pytest.approx(0.25)
    assert norm["fraction_of_peak_flops"] == pytest.approx(1e-5)


def test_deriving_twice_changes_nothing() -> None:
    once = kr.derived(RUN)
    assert kr.derived(once) == once


def test_the_table_names_what_limits_us_and_how_others_compare() -> None:
    absent = row("moe", "peer:x", None, part=None, shape=None, status="unavailable", reason="x is not installed")
    lines = kr.table(kr.derived([*RUN, absent]))
    norm = next(line for line in lines if line.startswith("rms_norm"))
    assert "100 us" in norm and "0.50 copy" in norm and "liger 2.00" in norm and "reference error" in norm
    assert lines[-1] == "peer:x: x is not installed"


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5 s"), (0.00105, "1.05 ms"), (1.234e-5, "12.3 us")])
def test_times_for_people(value: float, shown: str) -> None:
    assert kr.seconds(value) == shown


# ---------------------------------------------------------------- the file


def test_rows_are_read_back(tmp_path: Path) -> None:
    append(tmp_path / "kernels.csv", kr.KERNELS, kr.derived(RUN))
    assert [kr.key_of(found) for found in kr.read_kernels(tmp_path)] == [kr.key_of(made) for made in RUN]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"status": "fine"}, "status"),
        ({"part": "sideways"}, "part"),
        ({"timer": "watch"}, "timer"),
        ({"time_s": None}, "time_s"),
        ({"time_s": -1.0}, "no negative"),
        ({"status": "oom"}, "a row that is oom has none"),
        ({"implementation": None}, "every row has both"),
    ],
)
def test_a_row_that_is_none_is_refused(tmp_path: Path, damage: dict[str, Any], said: str) -> None:
    append(tmp_path / "kernels.csv", kr.KERNELS, [RUN[4] | damage])
    with pytest.raises(ResultsError, match=said):
        kr.read_kernels(tmp_path)


def test_a_case_stands_once(tmp_path: Path) -> None:
    append(tmp_path / "kernels.csv", kr.KERNELS, [RUN[4], RUN[4]])
    with pytest.raises(ResultsError, match="stands twice"):
        kr.read_kernels(tmp_path)


# ---------------------------------------------------------------- timing


def test_input_sets_together_pass_the_cache() -> None:
    assert timing.sets(0) == timing.MOST_SETS and timing.sets(1e9) == 1
    if timing.CUDA:
        assert timing.sets(100 << 20) * (100 << 20) >= timing.CACHE_BYTES


@pytest.mark.parametrize("rotating", [1, 3, 16])
@pytest.mark.parametrize("call_s", [0.0, 3e-6, 1e-4, 1.0])
def test_a_round_is_whole_rotations_and_long_enough(call_s: float, rotating: int) -> None:
    calls = timing.calls_for(call_s, rotating)
    assert calls % rotating == 0
    assert calls * call_s >= timing.TARGET_S or calls >= timing.MOST_CALLS


def test_rounds_keep_to_the_budget() -> None:
    assert timing.rounds_for(0.01, 0.3) == 30
    assert timing.rounds_for(10, 0.3) == timing.LEAST_ROUNDS and timing.rounds_for(0, 0.3) == timing.MOST_ROUNDS


@pytest.mark.skipif(timing.CUDA, reason="on a GPU the calls are captured")
def test_a_round_on_a_cpu_calls_every_set_in_turn() -> None:
    seen: list[int] = []
    round_ = timing.prepared([lambda number=number: seen.append(number) for number in range(3)])
    seen.clear()
    round_.run()
    assert round_.timer == "host" and len(seen) == round_.calls and seen[:4] == [0, 1, 2, 0]


@pytest.mark.skipif(not timing.CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize(("reads_back", "timer"), [(False, "cuda_graph"), (True, "synchronised")])
def test_calls_are_captured_where_they_may_be(reads_back: bool, timer: str) -> None:
    x = torch.ones(1000, device="cuda")
    with timing.stream():
        round_ = timing.prepared([lambda: (x + 1).sum().item() if reads_back else x + 1])
        round_.run()
    assert round_.timer == timer and bool(round_.reason) == reads_back


# ---------------------------------------------------------------- cases and rows


def test_every_op_has_cases_and_no_case_stands_twice() -> None:
    found = cases.cases(list(cases.OPS), with_compile=True)
    assert len(set(found)) == len(found) and {case.op for case in found} == set(cases.OPS)
    assert {case.implementation for case in found} >= {"reference", "compile"}


def test_peers_that_no_case_runs_have_a_row_for_each_op_they_would_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(made: dict[str, Any]) -> Any:
        return lambda: None

    ops = {"rope": nothing, "moe": nothing}
    peers = [
        Peer("here", None, ops),
        Peer("broken", "does not import: OSError"),
        Peer("elsewhere", "needs a CUDA device", ops),
        Peer("slow", None, ops, compiles=True),
    ]
    monkeypatch.setattr(cases, "PEERS", {peer.name: peer for peer in peers})
    rows = cases.absent(["rms_norm", "rope"], with_compile=False)
    assert {(case.op, case.implementation, row["status"]) for case, row in rows.items()} == {
        ("", "peer:broken", "unavailable"),
        ("rope", "peer:elsewhere", "unavailable"),
        ("rope", "peer:slow", "skipped"),
    }
    assert {case.implementation for case in cases.cases(["rope"], with_compile=False)} >= {"peer:here", "reference"}
    assert {case.implementation for case in cases.cases(["rope"], with_compile=True)} >= {"peer:slow", "compile"}
    assert not any("slow" in case.implementation for case in cases.absent(["rope"], with_compile=True))


def test_the_small_shape_with_the_same_options_is_the_nearest() -> None:
    small = {"plain": {"B": 1}, "window": {"B": 1, "window": 3}, "packed": {"B": 1, "documents": 2}}
    assert cases.nearest({"B": 64, "window": 128}, small) == "window"
    assert cases.nearest({"B": 64}, small) == "plain"


def test_a_wrong_implementation_is_incorrect_and_not_timed() -> None:
    case = next(case for case in cases.cases(["swiglu"], False) if case.part == "forward_backward")
    right = cases.implementation(cases.Case(case.op, case.part, case.shape, "reference"))
    assert (cases.check(case, right).error or 0) < 1e-2

    def wrong(made: dict[str, Any]) -> Any:
        return lambda: right(made)() * 1.1

    with pytest.raises(cases.Incorrect, match="relative error"):
        cases.check(case, wrong)
    with pytest.raises(cases.Incorrect, match="shape"):
        cases.check(case, lambda made: lambda: right(made)()[None])
    with pytest.raises(cases.Incorrect, match="relative error nan"):
        cases.check(case, lambda made: lambda: right(made)() * math.nan)
    with pytest.raises(Unsupported, match="forward only"):
        cases.check(case, lambda made: lambda: right(made)().detach())


def test_a_backward_that_may_run_once_is_not_timed_alone() -> None:
    case = cases.Case("swiglu", "backward", next(iter(cases.shapes(cases.OPS["swiglu"]))), "reference")
    made = cases.inputs(case, 0)
    assert cases.step(case, cases.implementation(case)(made), made)()[0].shape == made["gate_up"].shape

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x.clone())
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            (kept,) = ctx.saved_tensors
            torch.autograd.graph.increment_version(kept)
            return gradient * 2

    with pytest.raises(Unsupported, match="no second backward"):
        cases.step(case, lambda: Once.apply(made["gate_up"]), made)


def test_counts_of_both_parts_are_their_sums_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(part: str, **backward: Any) -> Any:
        op = SimpleNamespace(**vars(cases.OPS["swiglu"]) | {"backward_flops": None, "backward_bytes": None} | backward)
        monkeypatch.setitem(cases.OPS, "swiglu", op)
        return cases.counts(cases.Case("swiglu", part, next(iter(cases.shapes(op))), "reference"))

    flops, moved = counted("forward")
    assert counted("forward_backward") == (None, None)
    assert counted("forward_backward", backward_bytes=lambda *_: 7) == (None, moved + 7)
    assert counted("forward_backward", backward_flops=lambda _: 5, backward_bytes=lambda *_: 7) == (
        flops + 5,
        moved + 7,
    )
    assert counted("backward", backward_flops=lambda _: 5) == (5, None)


def test_where_float64_does_not_fit_the_check_runs_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in cases.cases(["rms_norm"], False) if case.implementation == "reference")
    asked: list[str] = []

    def check_at(case: cases.Case, prepare: Any, name: str, size: Any) -> cases.Check:
        asked.append(name)
        if len(asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cases.Check(0.0, 1e-5, name)

    monkeypatch.setattr(cases, "_check_at", check_at)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(cases, "nearest", lambda size, smaller: next(iter(smaller)))
    first = next(iter(cases.OPS["rms_norm"].test_shapes))
    assert cases.check(case, lambda made: lambda: None).at == first
    assert asked == [case.shape, first]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Unsupported("no sinks"), "unavailable", "no sinks"),
        (cases.Incorrect("relative error 1"), "incorrect", "relative error 1"),
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "oom", "OutOfMemoryError: CUDA out of memory."),
        (MemoryError(), "oom", "MemoryError"),
        (RuntimeError("no kernel\nmore"), "error", "RuntimeError: no kernel"),
    ],
)
def test_whatever_happens_is_a_status(error: Exception, status: str, reason: str) -> None:
    def plan() -> running.Plan:
        raise error

    assert running._row(None, plan) == {"status": status, "reason": reason}


def test_a_lost_device_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "lost", lambda: True)

    def plan() -> running.Plan:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert running._row(None, plan)["status"] == "crashed"


def test_the_kernel_with_most_registers_stands_in_the_row() -> None:
    def kernel(name: str, registers: int | None) -> Any:
        metadata = SimpleNamespace(name=name, shared=1024)
        return SimpleNamespace(metadata=metadata, n_regs=registers, n_spills=2)

    found = machine.largest([kernel("small", 32), kernel("large", 255), kernel("never launched", None)])
    assert found == {"kernel": "large", "registers": 255, "shared_bytes": 1024, "spill_bytes": 8}
    assert machine.largest([]) == {}


def test_one_matmul_is_told_from_many() -> None:
    assert ceilings.size_of({"M": 1, "N": 2, "K": 3, "bias": 1}) == "1x2x3"
    assert ceilings.size_of({"M": 1, "N": 2, "K": 3, "E": 8}) is None and ceilings.size_of({"M": 1}) is None


# ---------------------------------------------------------------- the journal and the driver


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(new_folder(tmp_path, FACTS))


def test_rows_of_a_cpu_go_to_its_own_folder(tmp_path: Path) -> None:
    assert new_folder(tmp_path, FACTS).parent == tmp_path / "local" / "kernels"
    assert new_folder(tmp_path, FACTS | {"gpu": "h200_sxm_141gb"}).parent == tmp_path / "kernels"
    assert "_unknown_" in new_folder(tmp_path, FACTS | {"gpu": None}).name


def test_the_journal_knows_what_runs(journal: Journal) -> None:
    key = ("swiglu", "forward", "s", "triton")
    assert journal.running() is None and journal.seconds_running() == 0
    journal.start(key)
    assert journal.running() == key
    journal.append(key, {"status": "ok", "time_s": 1e-4})
    assert journal.running() is None and journal.finished() == {key}
    (filled,) = journal.derive(None, {})
    assert filled["device_name"] == "a CPU" and filled["ratio_to_triton"] == 1


CHILD = """
    import os, time
    from pathlib import Path
    import pytest
    from tests.perf.journal import Journal

    @pytest.mark.parametrize("name", ["first", "bad", "last"])
    def test_case(benchmark, name):
        journal = Journal(Path(os.environ["PERF_RUN"]))
        key = ("op", "forward", "s", name)
        if key in journal.finished():
            pytest.skip("has its row")
        journal.start(key)
        if name == "bad":
            {fault}
        benchmark.pedantic(lambda: None)
        journal.append(key, {{"status": "ok", "time_s": 1.0}})
"""


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("os._exit(9)", "crashed", "status 9"),
        ("os.abort()", "crashed", "status -6"),
        ("time.sleep(60)", "timeout", "no"),
    ],
)
def test_a_case_that_stops_its_process_costs_its_own_row(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, status: str, reason: str
) -> None:
    import os

    monkeypatch.setattr(driver, "CASE_LIMIT_S", 2.0)
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)  # the child is no worker of ours, and benchmarks do not run in one
    (tmp_path / "test_child.py").write_text(textwrap.dedent(CHILD.format(fault=fault)))
    driver._finish(tmp_path / "test_child.py", journal, os.environ | {"PERF_RUN": str(journal.folder)})
    rows = {found["implementation"]: found for found in journal.rows()}
    assert {name: found["status"] for name, found in rows.items()} == {"first": "ok", "bad": status, "last": "ok"}
    assert reason in rows["bad"]["reason"]


def test_a_process_that_cannot_start_ends_the_loop(journal: Journal, tmp_path: Path) -> None:
    import os

    (tmp_path / "test_child.py").write_text("import a_package_that_is_not_there\n")
    driver._finish(tmp_path / "test_child.py", journal, dict(os.environ))
    assert journal.rows() == []


def test_kernels_are_compiled_side_by_side_and_a_late_one_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **_: Any):
            started.append(command)
            self.code: int | None = None if command[-1] == "hangs" else 0

        def poll(self) -> int | None:
            return self.code

        def kill(self) -> None:
            self.code = -9

    monkeypatch.setattr(driver.subprocess, "Popen", Process)
    monkeypatch.setattr(driver, "WARM_LIMIT_S", 0.3)
    driver._warm(["rope", "hangs", "swiglu"])
    assert [command[-1] for command in started] == ["rope", "hangs", "swiglu"]


def test_warming_runs_every_case_of_one_implementation() -> None:
    found = cases.cases(["swiglu"], with_compile=False)
    assert warm("swiglu") == len({(case.part, case.shape) for case in found})
