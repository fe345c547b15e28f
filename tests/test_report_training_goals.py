"""The goals of training: met, missed by how much, open; which run, which depth, which peer they are held against."""

from __future__ import annotations

import pytest
import report_rows as made

from bench import config
from bench.architecture import Model
from bench.report import training_goals
from bench.report.training_cells import depth, fits, shares
from bench.report.training_goals import Found, Goal, find, goals
from bench.workload import Workload

SHORT = "llama_3_2_1b/pretrain_short"
DENSE = "llama_3_1_8b/pretrain_dense_8b"
MFU = Goal("pretrain_short", "llama_3_2_1b", "mfu_datasheet", None, 0.45, 0.55, "")


def reached(goal: Goal, *cells, folder=None) -> list[Found]:
    """What the goal comes to with these cells, and with fits of them where there is a folder to write a run into."""
    given = made.material(*cells, folder=folder)
    every = [*given.cells, *fits(given)]
    return find(goal, [c for c in every if c["phase"] != "ceiling"], shares(given, every))


# ---------------------------------------------------------------- the file


def test_the_shipped_goals_name_things_that_exist():
    shipped = goals()
    workloads, suite = config.load_all(Workload), (config.CONFIGS / "suites" / "training.toml").read_text()
    assert len(shipped) >= 12
    for goal in shipped:
        assert goal.measure in training_goals.MEASURES, goal
        assert goal.workload in workloads and goal.model in config.keys(Model), goal
        assert f'"{goal.workload}"' in suite and f'"{goal.model}"' in suite, goal
        known = (None, "best_peer", *training_goals.BACKENDS, *workloads)
        assert goal.against in known and (goal.against is None) == goal.measure.startswith("mfu"), goal
        worse = goal.stretch is not None and goal.stretch < goal.goal
        assert goal.why and not worse, goal


@pytest.mark.parametrize(
    ("workload", "measure", "goal", "stretch"),
    [
        ("pretrain_short", "mfu_datasheet", 0.45, 0.55),
        ("pretrain_short", "mfu_measured", 0.55, 0.65),
        ("pretrain_dense_8b", "mfu_datasheet", 0.42, 0.50),
        ("pretrain_dense_8b_fp8", "speed", 1.2, 1.3),
        ("pretrain_moe_uniform", "mfu_datasheet", 0.45, None),
    ],
)
def test_the_goals_are_those_that_were_set(workload, measure, goal, stretch):
    found = [g for g in goals() if (g.workload, g.measure) == (workload, measure)]
    assert found and all((g.goal, g.stretch) == (goal, stretch) for g in found)


def test_a_missing_goals_file_is_no_goals(tmp_path):
    assert goals(tmp_path / "none.csv") == []


# ---------------------------------------------------------------- met, missed, not measured


def test_a_goal_is_met_or_missed_by_how_much():
    (met,) = reached(MFU, made.trained(f"{SHORT}/triton"))
    assert met.value == pytest.approx(0.5) and met.verdict == ("met", "holds")
    slow = made.trained(f"{SHORT}/triton", step_s_last_third=1.25)
    (missed,) = reached(MFU, slow)
    assert missed.value == pytest.approx(0.4) and missed.verdict == ("missed by 11%", "fails")


def test_the_measured_peak_is_that_of_the_run():
    goal = Goal("pretrain_short", "llama_3_2_1b", "mfu_measured", None, 0.55, 0.65, "")
    (found,) = reached(goal, made.ceiling(), made.trained(f"{SHORT}/triton"))
    assert found.value == pytest.approx(0.5 / 0.8) and found.verdict[0] == "met"
    assert reached(goal, made.ceiling(run="another"), made.trained(f"{SHORT}/triton"))[0].value is None
    assert reached(goal, made.ceiling(precision="fp8"), made.trained(f"{SHORT}/triton"))[0].value is None


@pytest.mark.parametrize(
    "cell",
    [
        made.trained(f"{SHORT}/compile"),
        made.trained(f"{SHORT}/peer:liger"),
        made.trained(f"{DENSE}/triton"),
        made.trained(f"{SHORT}/triton", n_gpus=8),
        made.trained(f"{SHORT}/triton", device="cpu", gpu="cpu"),
        made.trained(f"{SHORT}/triton", status="unavailable", step_s_last_third=None),
        made.trained(f"{SHORT}/triton", step_s_last_third=0.4),  # faster than the data sheet: void
    ],
)
def test_what_says_nothing_about_a_goal_leaves_it_open(cell):
    (found,) = reached(MFU, cell)
    assert found.value is None and found.verdict == ("not measured", "undecided")


@pytest.mark.parametrize("status", ["oom", "incorrect", "timeout", "crashed", "error"])
def test_a_cell_of_ours_that_failed_misses_its_goals(status):
    failed = made.trained(f"{SHORT}/triton", status=status, step_s_median=None, step_s_last_third=None)
    (found,) = reached(MFU, failed)
    assert found.verdict == (f"missed: {status}", "fails")


def test_the_newest_run_of_each_device_counts():
    old = made.trained(f"{SHORT}/triton", run="20260101", step_s_last_third=2.0)
    other = made.trained(f"{SHORT}/triton", device_name="another H100")
    for cells in ((old, made.trained(f"{SHORT}/triton"), other), (other, made.trained(f"{SHORT}/triton"), old)):
        found = reached(MFU, *cells)
        assert [one.value for one in found] == [pytest.approx(0.5)] * 2
    later = made.trained(f"{SHORT}/triton", run="20270101", status="unavailable", step_s_last_third=None)
    assert reached(MFU, made.trained(f"{SHORT}/triton"), later)[0].value == pytest.approx(0.5)


# ---------------------------------------------------------------- peers and other backends


SPEED = Goal("pretrain_short", "llama_3_2_1b", "speed", "best_peer", 1.0, None, "")
MEMORY = Goal("pretrain_short", "llama_3_2_1b", "memory", "best_peer", 1.0, None, "")


def test_the_best_peer_is_the_fastest_in_time_and_the_smallest_in_memory():
    cells = [
        made.trained(f"{SHORT}/triton", peak_memory_bytes=30),
        made.trained(f"{SHORT}/peer:liger", step_s_last_third=0.9, peak_memory_bytes=40),
        made.trained(f"{SHORT}/peer:transformers", step_s_last_third=1.5, peak_memory_bytes=20),
        made.trained(f"{SHORT}/compile", step_s_last_third=0.1, peak_memory_bytes=1),  # no peer
    ]
    assert reached(SPEED, *cells)[0].value == pytest.approx(0.9)
    assert reached(SPEED, *cells)[0].verdict[0] == "missed by 10%"
    assert reached(MEMORY, *cells)[0].value == pytest.approx(1.5)
    assert reached(MEMORY, *cells)[0].verdict == ("missed by 50%", "fails")
    assert reached(MEMORY, *cells[:2])[0].verdict == ("met", "holds")


@pytest.mark.parametrize(
    "change",
    [
        {"run": "20260101"},
        {"device_name": "another H100"},
        {"n_gpus": 8},
        {"status": "incorrect"},
        {"workload": "pretrain_dense_8b"},
        {"layers_measured": 8},
    ],
)
def test_a_peer_compares_within_one_run_and_at_one_depth_alone(change):
    peer = made.trained(f"{SHORT}/peer:liger", **change)
    assert reached(SPEED, made.trained(f"{SHORT}/triton"), peer)[0].value is None


def test_speed_over_compile_and_of_fp8_over_bf16():
    ours, theirs = made.trained(f"{SHORT}/triton"), made.trained(f"{SHORT}/compile", step_s_last_third=1.2)
    goal = Goal("pretrain_short", "llama_3_2_1b", "speed", "compile", 1.0, None, "")
    assert reached(goal, ours, theirs)[0].value == pytest.approx(1.2)
    fast = made.trained(f"{DENSE}_fp8/triton", precision="fp8", step_s_last_third=0.8)
    goal = Goal("pretrain_dense_8b_fp8", "llama_3_1_8b", "speed", "pretrain_dense_8b", 1.2, 1.3, "")
    assert reached(goal, fast, made.trained(f"{DENSE}/triton"))[0].value == pytest.approx(1.25)
    assert reached(goal, fast, made.trained(f"{DENSE}/compile"))[0].value is None


# ---------------------------------------------------------------- two depths


def test_goals_take_the_fit_and_memory_the_deepest_slice(tmp_path):
    peer = f"{DENSE}/peer:liger"
    cells = [
        made.sliced(f"{DENSE}/triton", 8, peak_memory_bytes=10),
        made.sliced(f"{DENSE}/triton", 16, peak_memory_bytes=18),
        made.sliced(peer, 8, peak_memory_bytes=20),
        made.sliced(peer, 16, peak_memory_bytes=36),
    ]
    goal = Goal("pretrain_dense_8b", "llama_3_1_8b", "mfu_datasheet", None, 0.42, 0.5, "")
    (found,) = reached(goal, *cells, folder=tmp_path)
    assert found.cell is not None and depth(found.cell) == "fit of 8+16 of 32 layers"
    assert found.value == pytest.approx(0.5, rel=1e-4)
    memory = Goal("pretrain_dense_8b", "llama_3_1_8b", "memory", "best_peer", 1.0, None, "")
    (found,) = reached(memory, *cells)
    assert found.cell is not None and depth(found.cell) == "16 of 32 layers" and found.value == pytest.approx(0.5)
    # where the peer has no room for the deeper one, they meet at the other
    failed = {"status": "oom", "step_s_last_third": None}
    assert reached(memory, *cells[:3], {**cells[3], **failed})[0].value == pytest.approx(0.5)
    row = training_goals.line(reached(memory, *cells)[0]).cells
    assert row[3:7] == ("≤ 1.00", "–", "0.500", "16 of 32 layers")


def test_fits_over_different_depths_compare(tmp_path):
    """fp8 and bf16 need different memory, so their slices differ; the whole models do not."""
    fast = f"{DENSE}_fp8/triton"
    cells = [made.sliced(f"{DENSE}/triton", n) for n in (8, 16)]
    for layers in (10, 20):
        cell = made.sliced(fast, layers, precision="fp8")
        cells.append({**cell, "step_s_last_third": 0.8 * cell["step_s_last_third"]})
    goal = Goal("pretrain_dense_8b_fp8", "llama_3_1_8b", "speed", "pretrain_dense_8b", 1.2, 1.3, "")
    assert reached(goal, *cells, folder=tmp_path)[0].value == pytest.approx(1.25, rel=1e-3)
    assert reached(goal, *cells)[0].value is None  # slices of different depths do not
