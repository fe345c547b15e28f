"""Kernel goals held against measured rows: worst shape, right direction, blank where nothing was measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.report import kernels
from bench.report.kernels import NOT_MEASURED, Found, Goal, find, line

GOAL = Goal("swiglu", "forward", "*_train", "peer:liger", 1.0, 1.3, "")


def row(implementation: str, time_s: float, shape: str = "a_train", **other: object) -> dict[str, object]:
    common = {"run": "r", "device_name": "GPU A", "op": "swiglu", "part": "forward", "status": "ok", "bound": "memory"}
    return common | {"implementation": implementation, "time_s": time_s, "shape": shape} | other


def test_the_shipped_goals_name_ops_and_shapes_that_exist() -> None:
    from fnmatch import fnmatch

    from bench.kernels.op import discover
    from bench.peers import found

    ops = discover()
    shipped = kernels.goals()
    assert len(shipped) > 20
    for goal in shipped:
        assert any(fnmatch(shape, goal.shapes) for shape in ops[goal.op].shapes), goal
        assert goal.goal is not None or goal.stretch is not None
        peer = goal.measure.removeprefix("peer:")
        # Marlin ships inside a serving engine's own extension: no file of bench/peers loads it yet
        if goal.measure.startswith("peer:") and peer != "marlin":
            assert goal.op in found.discover()[peer].ops, goal
        assert goal.part in ("forward", "backward", "forward_backward")
        if goal.part == "backward":
            assert ops[goal.op].backward_flops is not None, f"{goal.op}: its backward is never timed by itself"


def test_every_op_has_a_goal() -> None:
    from bench.kernels.op import names

    parts = {"router", "quantize_fp8"}  # of moe, and of fp8 training
    assert {goal.op for goal in kernels.goals()} >= set(names()) - parts


def test_the_worst_shape_decides() -> None:
    rows = [
        row("triton", 1.0),
        row("peer:liger", 2.0),
        row("triton", 1.0, "b_train"),
        row("peer:liger", 0.9, "b_train"),
    ]
    (found,) = find(GOAL, rows)
    assert found.value == pytest.approx(0.9) and found.row is not None and found.row["shape"] == "b_train"
    assert line(found).cells[-1] == "missed by 10%"
    assert line(find(GOAL, rows[:2])[0]).cells[-1] == "met"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("triton", 1.0)],  # the peer is not there
        [row("peer:liger", 1.0)],  # we are not
        [row("triton", 1.0), row("peer:liger", 2.0, status="incorrect")],
        [row("triton", 1.0, "a_decode"), row("peer:liger", 2.0, "a_decode")],  # no shape of the goal's
        [row("triton", 1.0), row("peer:liger", 2.0, run="another")],  # never across runs
    ],
)
def test_what_was_not_measured_is_blank(rows: list[dict[str, object]]) -> None:
    (found,) = find(GOAL, rows)
    assert found == Found(GOAL)
    assert line(found).cells[-1] == NOT_MEASURED and line(found).cells[5] == "–"


def test_a_shape_where_ours_failed_misses_the_goal_whatever_the_others_say() -> None:
    rows = [row("triton", 1.0), row("peer:liger", 2.0), row("triton", 0.0, "b_train", status="incorrect")]
    for order in (rows, rows[::-1]):
        (found,) = find(GOAL, order)
        assert line(found).cells[-1] == "missed: incorrect"


def test_the_newest_run_of_a_gpu_counts() -> None:
    old = [row("triton", 1.0, run="20260101"), row("peer:liger", 0.5, run="20260101")]
    new = [row("triton", 1.0, run="20260201"), row("peer:liger", 2.0, run="20260201")]
    assert find(GOAL, new + old)[0].value == pytest.approx(2.0)


def test_a_stretch_without_a_goal_is_never_missed() -> None:
    rows = [row("triton", 1.0), row("peer:liger", 2.0)]
    assert line(find(replace(GOAL, goal=None, stretch=3.0), rows)[0]).cells[-1] == "stretch not reached"
    assert line(find(replace(GOAL, goal=None, stretch=1.5), rows)[0]).cells[-1] == "stretch reached"


def test_memory_is_met_from_below() -> None:
    goal = replace(GOAL, measure="memory", goal=0.2, stretch=None)
    rows = [row("triton", 1.0, peak_memory_bytes=1), row("reference", 1.0, peak_memory_bytes=10)]
    (found,) = find(goal, rows)
    assert found.value == pytest.approx(0.1) and line(found).cells[-1] == "met"
    rows[0]["peak_memory_bytes"] = 5
    assert line(find(goal, rows)[0]).cells[-1] == "missed by 150%"


def test_columns_and_the_best_peer() -> None:
    rows = [row("triton", 1.0, fraction_of_copy=0.85), row("peer:a", 2.0), row("peer:b", 0.5)]
    assert find(replace(GOAL, measure="fraction_of_copy"), rows)[0].value == 0.85
    assert find(replace(GOAL, measure="best_peer"), rows)[0].value == 0.5


def test_each_gpu_is_its_own_line() -> None:
    rows = [row(name, 1.0, device_name=gpu) for name in ("triton", "peer:liger") for gpu in ("GPU A", "GPU B")]
    assert len(find(GOAL, rows)) == 2


def test_the_compilers_tables_are_summed_up() -> None:
    compiled = {"op": "swiglu", "kernel": "forward", "registers": "32", "shared_bytes": "0", "spill_bytes": "0"}
    table = kernels.compiled_table({"aot_sm90_3.7.1": [compiled, compiled | {"registers": "64", "spill_bytes": "8"}]})
    assert table.rows[0].cells == ("sm_90", "3.7.1", "1", "2", "64", "0", "1")


def test_a_missing_goals_file_is_no_goals(tmp_path: Path) -> None:
    assert kernels.goals(tmp_path / "none.csv") == []
