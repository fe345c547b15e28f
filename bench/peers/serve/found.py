"""Serving peers: other people's engines under our traffic, one file each, as backend `peer:<file>` of phase serve.

A peer file has `why_not(model, workload, device) -> str | None` (one line where it cannot run),
`build(model, workload, device, layers)`, which answers an engine around the same architecture with random weights in
the workload's precision, and `check(model, workload, device)`, which answers (error, tolerance, shape) as a workload's
check does. `bench.config` lists the files. One loop drives our engine and theirs, and says what an engine is
(bench/serving/embedded.py: Driven); a peer's has also `described()`: version and settings, for the row.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
import torch

from bench import config
from bench.architecture import Model
from bench.peers.found import one_line
from bench.workload import Workload


class Asked(Protocol):
    """What a request is: bench.serving.request.Request."""

    number: int
    prompt: np.ndarray  # int32 token ids
    max_tokens: int


def peer(backend: str) -> Any:
    """The file of backend `peer:<file>`. Raises ValueError where there is none."""
    if reason := unknown(backend):
        raise ValueError(reason)
    return importlib.import_module(f"bench.peers.serve.{backend.removeprefix('peer:')}")


def unknown(backend: str) -> str | None:
    """Why no file serves as this backend, or None."""
    known = config.serving_peers()
    return None if backend in known else f"no serving peer {backend!r}; known: {', '.join(known)}"


def why_not(backend: str, model: dict[str, Any], workload: dict[str, Any], device: str) -> str | None:
    """Why this cell cannot run here, at most 200 characters, or None.

    Whatever another project's import does is a reason.
    """
    asked = Model(**model), Workload(**workload), torch.device(device)
    try:
        reason: str | None = unknown(backend) or peer(backend).why_not(*asked)
    except (Exception, SystemExit) as error:
        reason = f"does not import: {one_line(error)}"
    return reason and reason[:200]
