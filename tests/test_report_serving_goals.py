"""The goals of serving: met, missed, open; one H100, our kernels, the ceilings and the peer of the same run."""

from __future__ import annotations

import pytest
import report_rows
import serving_rows as made

from bench import config, results, serving_results
from bench.architecture import Model
from bench.report import serving_goals
from bench.report.serving_goals import find, goals
from bench.workload import Workload


def steps(name, **values):
    """A step of a phase without traffic that takes 1 s, in the same run as two ceilings."""
    cell = report_rows.trained(f"llama_3_1_8b/{name}/triton", phase=name.partition("_")[0], run=made.RUN)
    return {**cell, **values}


def ceilings(run=made.RUN):
    """800 TFLOP/s and 3 TB/s."""
    stream = report_rows.ceiling(
        0.0, run=run, workload="copy_2gib", cell="none/copy_2gib/reference", bytes_per_step=3e12
    )
    return [report_rows.ceiling(800e12, run=run, bytes_per_step=1.0), stream]


def reached(workload, tmp_path, cells=(), points=(), measure=None):
    """What the goal of a workload comes to."""
    (goal,) = [g for g in goals() if g.workload == workload and measure in (None, g.measure)]
    return find(goal, made.material(tmp_path, list(cells), list(points)))


# No workload of a suite: tests/perf measures it, results/client_load.csv records it.
APART = {"client_load"}


def test_the_shipped_goals_name_things_that_exist():
    suite = (config.CONFIGS / "suites" / "serving.toml").read_text()
    assert len(goals()) == 8 and goals(config.CONFIGS / "none.csv") == []
    for goal in goals():
        assert goal.measure in serving_goals.MEASURES and goal.why, goal
        assert goal.model in (None, *config.keys(Model)), goal
        if goal.workload not in APART:
            assert goal.workload in config.keys(Workload) and f'"{goal.workload}"' in suite, goal


@pytest.mark.parametrize(
    ("workload", "goal"),
    [
        *(("decode_b1_1k", 0.78), ("decode_b64_2k", 0.8), ("decode_b192_2k", 0.8), ("prefill_8k", 0.65)),
        *(("serve_1k_1k", 3.0), ("serve_chat", 0.05), ("client_load", 0.02)),
    ],
)
def test_the_goals_are_those_that_were_set(workload, goal):
    assert [g.goal for g in goals() if g.workload == workload] == [goal]
    assert next(g.goal for g in goals() if g.workload == "serve_lm_arena") == round(0.9 * 5147.15)


def test_a_step_is_held_against_the_ceilings_of_its_run(tmp_path):
    cells = [*ceilings(), steps("decode_b1_1k", flops_per_step=1e12, bytes_per_step=2.4e12)]
    found = reached("decode_b1_1k", tmp_path, cells)
    assert found.value == pytest.approx(0.8) and found.verdict == ("met", "holds")


def test_the_roofline_is_the_larger_of_its_two_lines_and_needs_both(tmp_path):
    step = steps("decode_b192_2k", flops_per_step=552e12, bytes_per_step=1.5e12)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = reached("decode_b192_2k", tmp_path / "a", [*ceilings(), step])
    assert found.value == pytest.approx(0.69) and found.verdict[0] == "missed by 14%"
    assert reached("decode_b192_2k", tmp_path / "b", [ceilings()[0], step]).value is None


@pytest.mark.parametrize("other", [{"gpu": "h200_sxm_141gb"}, {"n_gpus": 2}, {"backend": "compile"}])
def test_goals_are_of_one_h100_and_our_kernels(tmp_path, other):
    cells = [*ceilings(), steps("prefill_8k", **other)]
    assert reached("prefill_8k", tmp_path, cells).verdict == ("not measured", "undecided")


def test_the_host_is_what_no_step_ran_at_the_most_requests_at_once(tmp_path):
    points = [
        made.closed(1, busy_share=0.2),
        made.closed(64, busy_share=0.96),
        made.closed(99, void="x", busy_share=0.1),
    ]
    found = reached("serve_chat", tmp_path, [made.served()], points)
    assert found.value == pytest.approx(0.04) and found.verdict[0] == "met"


def test_the_rate_is_held_against_the_peer_of_the_run(tmp_path):
    names = [f"llama_3_1_8b/serve_1k_1k/{backend}" for backend in ("triton", "peer:transformers")]
    points = [
        made.closed(64, names[0]),
        made.closed(64, names[1], output_tokens_per_s=1600.0),
        made.closed(8, names[0]),
    ]
    found = reached("serve_1k_1k", tmp_path, [made.served(name) for name in names], points)
    assert found.value == pytest.approx(4.0) and found.verdict[0] == "met"


def test_a_rate_without_its_point_is_not_measured(tmp_path):
    name = "llama_3_1_8b/serve_lm_arena/triton"
    found = reached("serve_lm_arena", tmp_path, [made.served(name)], [made.closed(8, name)])
    assert found.value is None and found.verdict[0] == "not measured"
    assert serving_goals.summary([found], [{}]) == "0 of 0 goals measured are met; 1 are not measured."


def test_the_client_is_held_against_what_was_last_recorded_of_it_on_one_core(tmp_path):
    held = {"transport": "ours", "shards": 1, "streams": 1999.0, "failed_by_status": "none", "client_lag_ratio": 0.03}
    rows = [{**held, "client_lag_ratio": 0.5}, held]
    rows += [{**held, "client_lag_ratio": 0.001, **other} for other in ({"shards": 2}, {"streams": 500.0})]
    (goal,) = [goal for goal in goals() if goal.workload == "client_load"]
    found = find(goal, made.material(tmp_path, [], [], client_load=rows))
    assert found.value == 0.03 and found.verdict[0] == "missed by 50%"
    assert "a CPU" in serving_goals.line(found).cells
    recorded = results.read_rows(results.ROOT / "results" / "client_load.csv", serving_results.CLIENT_LOAD)
    assert recorded and find(goal, made.material(tmp_path, [], [], client_load=recorded)).value
