"""Shared by all tests: where there is no GPU, kernels run in Triton's interpreter, which is chosen at import."""

import os
import sys

import pytest

if "TRITON_AOT_TESTS" not in os.environ:
    # before numpy is imported: the interpreter's products are small, and threads make them ten times slower
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
        from bench.kernels.op import discover

        discover()  # now: a test that takes the variable away for a while must not be the first to import a kernel
    if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        # processes side by side: more threads than cores wait for each other most of the time
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))


@pytest.fixture
def public_text() -> bytes:
    """About 9 kB of public-domain English (tests/data/README.md)."""
    from pathlib import Path

    return (Path(__file__).parent / "data" / "public_domain.txt").read_bytes()


@pytest.fixture(autouse=True)
def few_draws_behind_indices(request, monkeypatch):
    """What Sobol indices are worth has a file of its own; everywhere else few draws will do."""
    influence = sys.modules.get("bench.claim.influence")
    if influence and request.path.name not in ("test_sobol.py", "test_money_speed.py"):
        from answers import few

        monkeypatch.setattr(influence, "indices", few)
