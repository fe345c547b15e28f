"""Pricing and the share claim at three sizes each: `pytest tests/perf/test_money_perf.py --benchmark-only`.

Nothing of a GPU: `make perf`, which times kernels, leaves these out. Figures that are kept: tests/perf/money.py.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.perf.money import SIZES, task

pytestmark = pytest.mark.skipif("PERF_RUN" in os.environ, reason="a run of kernels")


@pytest.mark.parametrize("part", [100, 10, 1])
@pytest.mark.parametrize("name", ["price", "claim", "claim_and_sobol"])
def test_money(benchmark: Any, name: str, part: int) -> None:
    run = task(name, SIZES[name] // part)
    assert benchmark.pedantic(run, rounds=3, warmup_rounds=1) > 0
