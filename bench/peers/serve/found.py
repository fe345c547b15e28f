"""Serving peers: other people's engines under our traffic, one file each, as backend `peer:<file>` of phase serve.

A peer file has `why_not(model, workload, device) -> str | None` (one line where it cannot run),
`build(model, workload, device, layers)`, which answers an engine around the same architecture with random weights in
the workload's precision, and `check(model, workload, device)`, which answers (error, tolerance, shape) as a workload's
check does. `bench.config` lists the files. One loop drives our engine and theirs, and says what an engine is
(bench/serving/embedded.py: Driven); a peer's has also `described()`: version and settings, for the row.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from bench import config
from bench.peers.found import Whole


class Asked(Protocol):
    """What a request is: bench.serving.request.Request."""

    number: int
    prompt: np.ndarray  # int32 token ids
    max_tokens: int


PEERS = Whole("serve", "serving", config.serving_peers)
peer, unknown, why_not = PEERS.peer, PEERS.unknown, PEERS.why_not
