"""Every claim on the published rows, answered once a process for all tests that only read it."""

from __future__ import annotations

import datetime
import functools
from typing import Any

from bench.claim import influence, table
from bench.price.throughput import published

TODAY = datetime.date(2026, 11, 22)
FEW = 64  # of Sobol's N where a test asks for something else than the indices
indices = influence.indices


def few(factors: Any, results: Any, seed: int, samples: int) -> Any:
    """Sobol indices of few draws."""
    return indices(factors, results, seed, min(samples, FEW))


def whole() -> list[dict[str, Any]]:
    """The findings; not to be changed."""
    return _whole(influence.indices is few)


@functools.cache
def _whole(of_few: bool) -> list[dict[str, Any]]:
    return table.claims(published(), TODAY)
