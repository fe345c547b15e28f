"""The run folder of a session: the one PERF_RUN names, else a new one; finished when the session ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.perf import cases, ceilings, machine
from tests.perf.journal import ROOT, Journal, new_folder, setting


@pytest.fixture(scope="session")
def journal(request: pytest.FixtureRequest) -> Iterator[Journal]:
    """The session's run folder, with a row for every peer that cannot run here."""
    if not machine.CUDA:
        torch.set_num_threads(1)  # on a busy host two threads mostly wait for each other; nothing is claimed of a CPU
    named = setting("PERF_RUN", "")
    folder = Path(named) if named else new_folder(ROOT / "results", machine.facts(cases.PEERS))
    journal = Journal(folder)
    known, gpu = journal.finished(), machine.gpu()
    for case, row in cases.absent(cases.chosen(), cases.with_compile()).items():
        if case.key not in known:
            journal.append(case.key, row)
    yield journal
    journal.derive(gpu, ceilings.sizes())
