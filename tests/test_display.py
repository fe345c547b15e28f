"""What a person sees: whole lines in a pipe and in a terminal, whatever a cell did."""

import io

import pytest
from rich.console import Console

from bench import config, plan
from bench.config import Suite
from bench.display import Display, rate, seconds

OK = {
    "status": "ok",
    "step_s_median": 0.5,
    "step_s_low": 0.49,
    "step_s_high": 0.51,
    "step_s_last_third": 0.5,
    "flags": "throttled+unsteady",
}
TOKENS = OK | {"system_tokens_per_s": 2048.4, "token_kind": "trained", "tokens_per_step": 1024}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (TOKENS, "2,048 trained tokens/s ± 2.0%  [throttled, unsteady]"),
        (OK | {"tokens_per_step": 9, "layers_measured": 3, "layers": 32}, "500 ms a step of 3 of 32 layers ± 2.0%"),
        (OK | {"flops_per_step": 1e12, "bytes_per_step": 1e9}, "2 TFLOP/s"),
        (OK | {"flops_per_step": 0.0, "bytes_per_step": 1e9}, "2 GB/s"),
        ({"status": "oom", "reason": "CUDA out of memory"}, "oom: CUDA out of memory"),
    ],
)
def test_a_row_in_one_phrase(row, said):
    assert rate(row).startswith(said)


@pytest.mark.parametrize(
    ("value", "said"), [(None, "–"), (3e-5, "30 µs"), (0.25, "250 ms"), (61, "61 s"), (525, "8.75 min")]
)
def test_times_for_people(value, said):
    assert seconds(value) == said


@pytest.mark.parametrize("terminal", [True, False])
def test_every_cell_is_one_whole_line(tmp_path, terminal):
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=terminal, width=120, soft_wrap=True, no_color=True))
    suite = config.load(Suite, "smoke")
    cells = plan.cells(suite, 24e9)
    display.planned(suite, cells, set(), tmp_path)
    for cell in cells:
        display.started(cell)
        display.ended(cell, TOKENS)
    display.close()
    lines = [line for line in out.getvalue().splitlines() if "ok " in line]
    assert len(lines) == len(cells)
    for cell, line in zip(cells, lines, strict=True):
        assert cell.key in line and "2,048 trained tokens/s" in line


def test_a_finished_run_says_that_nothing_is_left(tmp_path):
    out = io.StringIO()
    suite = config.load(Suite, "smoke")
    cells = plan.cells(suite, 24e9)
    Display(Console(file=out)).planned(suite, cells, {cell.key for cell in cells}, tmp_path)
    assert "nothing left to measure" in out.getvalue()
