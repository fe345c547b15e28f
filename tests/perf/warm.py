"""Compile an op's kernels by launching them once: `python -m tests.perf.warm OP`, several ops at a time on many cores.

Triton keeps what it compiled on disk, so the processes that time it find it there. Nothing is timed or checked here
and what fails is left to them.
"""

from __future__ import annotations

import sys

from tests.perf import cases
from tests.perf.machine import lost
from tests.perf.timing import stream


def warm(op: str) -> int:
    """Launch every case of our own implementation; how many ran."""
    ran, found = 0, cases.cases([op], with_compile=False)
    for case in [case for case in found if case.implementation == found[0].implementation]:
        try:
            with stream():
                made = cases.inputs(case, 0)
                cases.step(case, cases.implementation(case)(made), made)()
            ran += 1
        except Exception:
            if lost():
                break
    return ran


if __name__ == "__main__":
    warm(sys.argv[1])
