"""Pricing and claims are linear in their size and stay in memory; results/money_speed.csv records how fast they are."""

from __future__ import annotations

import time

import pytest

from bench import results
from bench.money_results import MONEY_SPEED
from bench.report import speed
from tests.perf.money import isolated, task


@pytest.mark.parametrize(("name", "small"), [("price", 2_000), ("claim", 20_000)])
def test_ten_times_the_size_costs_less_than_fourteen_times(name, small):
    runs, best = [task(name, size) for size in (small, 10 * small)], [float("inf")] * 2
    for _ in range(4):  # turn by turn: what else runs on the machine strikes both
        for place, run in enumerate(runs):
            begin = time.process_time()
            run()
            best[place] = min(best[place], time.process_time() - begin)
    assert best[1] / best[0] < 14, best


def test_a_tenth_of_the_goals_sizes_takes_less_than_a_third_of_their_memory():
    for name, size in (("price", 10_000), ("claim", 100_000)):
        assert isolated(name, size, 1)["peak_bytes"] < 2e9 / 3, name


def test_what_is_recorded_is_held_against_every_goal():
    rows = results.read_rows(results.ROOT / "results" / "money_speed.csv", MONEY_SPEED)
    assert all(found.row for found in speed.held(rows))
    slow = [row | {"seconds": 50.0, "peak_bytes": 1.0} for row in rows]
    shown = {(found.goal.task, found.goal.measure): found.verdict for found in speed.held([*rows, *slow])}
    assert shown["price", "seconds"] == "missed by 900%" and shown["claim", "peak_bytes"] == "met"
    assert {found.verdict for found in speed.held([])} == {"not measured"}
