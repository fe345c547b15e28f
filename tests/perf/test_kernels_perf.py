"""One benchmark an op, part, shape and implementation: `make perf`, or `pytest tests/perf --benchmark-only`.

On a GPU: bfloat16, the shapes of real models, Triton, the reference and every peer, as rows of
`results/kernels/<run>/kernels.csv`. On a CPU: the reference and the peers that run there at one small shape an op,
so that this machinery is exercised; those rows go to `results/local/kernels`. Settings: PERF_OPS (names joined by
commas), PERF_SECONDS (timed, a case), PERF_COMPILE=1 (torch.compile too, slow), PERF_RUN (a folder to go on with).
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.perf import cases
from tests.perf.cases import Case
from tests.perf.journal import Journal
from tests.perf.running import Plan, attempt
from tests.perf.timing import sets

CASES = cases.cases(cases.chosen(), cases.with_compile())


def plan(case: Case) -> Plan:
    """Check the implementation, then make the sets it is timed on."""
    prepare = cases.implementation(case)
    checked = cases.check(case, prepare)
    flops, moved = cases.counts(case)
    made = [cases.inputs(case, seed) for seed in range(sets(cases.traffic(case)))]
    peer = cases.PEERS.get(case.implementation.removeprefix("peer:"))
    row = {
        "dtype": cases.dtype_of(made[0]),
        "flops": flops,
        "bytes": moved,
        "check_error": checked.error,
        "check_tolerance": checked.tolerance,
        "checked_at": checked.at,
        "version": peer.version if peer else None,
    }
    return Plan([cases.step(case, prepare(one), one) for one in made], row)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(benchmark: Any, journal: Journal, case: Case) -> None:
    attempt(case, journal, benchmark, lambda: plan(case))
