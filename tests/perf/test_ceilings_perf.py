"""The ceilings of a run: the first thing `make perf` measures, because every fraction is of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.perf import ceilings
from tests.perf.cases import Case, chosen
from tests.perf.journal import Journal
from tests.perf.running import attempt


@pytest.mark.parametrize(("case", "dtype"), ceilings.cases(chosen()), ids=str)
def test_ceiling(benchmark: Any, journal: Journal, case: Case, dtype: str) -> None:
    attempt(case, journal, benchmark, lambda: ceilings.plan(case, dtype))
