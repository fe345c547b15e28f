"""How peers are found: other people's implementations of our ops, one file each, by listing this folder.

A peer file has `why_not() -> str | None` (None where it can run here, else one line) and `OPS`: op name ->
`prepare(inputs) -> thunk`. `inputs` are the op's own; the thunk runs the peer's kernel and returns the outputs in the
op's own form, so that they can be held against float64 and differentiated. What a user would do once (packing a
weight, planning) stands in `prepare` and is not timed. `prepare` raises `Unsupported` for what the peer cannot do.
Optional: `PACKAGE`, the distribution whose version the row names; `UNCHECKED`, op -> why its outputs cannot be
compared with the oracle's; `COMPILES = True` where it runs torch.compile at every shape, which takes long.

A file that does not import is a peer with a reason, never an error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.architecture import Model
from bench.kernels.op import names
from bench.workload import Workload

Thunk = Callable[[], Any]
Prepare = Callable[[dict[str, Any]], Thunk]
FOLDER = Path(__file__).resolve().parent


class Unsupported(Exception):
    """The peer cannot do this shape, dtype or option; the message is the row's reason."""


@dataclass(frozen=True)
class Peer:
    """One file of the folder. `reason`: why it cannot run here, or None."""

    name: str
    reason: str | None
    ops: Mapping[str, Prepare] = field(default_factory=dict)
    unchecked: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None
    compiles: bool = False  # by torch.compile, at every shape: left out where that time is not given


def discover(folder: Path = FOLDER) -> dict[str, Peer]:
    """Every peer by name, those that cannot run included."""
    files = [path for path in sorted(folder.glob("*.py")) if path.stem not in ("__init__", "found")]
    return {path.stem: _load(path) for path in files}


def _load(path: Path) -> Peer:
    name = path.stem
    spec = importlib.util.spec_from_file_location(f"bench.peers.{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        unknown = sorted(set(module.OPS) - set(names()))
        return Peer(
            name,
            f"no op {unknown[0]!r} in kernels/" if unknown else module.why_not(),
            dict(module.OPS),
            dict(getattr(module, "UNCHECKED", {})),
            _version(getattr(module, "PACKAGE", None)),
            getattr(module, "COMPILES", False),
        )
    except (Exception, SystemExit) as error:  # whatever another project's import does
        sys.modules.pop(spec.name, None)
        return Peer(name, f"does not import: {one_line(error)}")


def _version(package: str | None) -> str | None:
    try:
        return importlib.metadata.version(package) if package else None
    except importlib.metadata.PackageNotFoundError:
        return None


def one_line(error: BaseException) -> str:
    """An error as a row's reason: its type and the first line it says, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200].rstrip(": ")


def lacking(*modules: str) -> str | None:
    """Why a peer that runs on CUDA and imports these cannot: a module that is not there, or no device. Else None."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return None if torch.cuda.is_available() else "needs a CUDA device"


def need(holds: bool, reason: str) -> None:
    """Raises Unsupported(reason) unless it holds."""
    if not holds:
        raise Unsupported(reason)


@dataclass(frozen=True)
class Whole:
    """Other people's whole models or engines: the files of one folder here, each a backend `peer:<file>`."""

    folder: str
    kind: str
    listed: Callable[[], Sequence[str]]  # the backends there are

    def peer(self, backend: str) -> Any:
        """The file of backend `peer:<file>`. Raises ValueError where there is none."""
        if reason := self.unknown(backend):
            raise ValueError(reason)
        return importlib.import_module(f"bench.peers.{self.folder}.{backend.removeprefix('peer:')}")

    def unknown(self, backend: str) -> str | None:
        """Why no file is this backend, or None."""
        known = self.listed()
        return None if backend in known else f"no {self.kind} peer {backend!r}; known: {', '.join(known)}"

    def why_not(self, backend: str, model: dict[str, Any], workload: dict[str, Any], device: str) -> str | None:
        """Why this cell cannot run here, at most 200 characters, or None.

        Whatever another project's import does is a reason.
        """
        asked = Model(**model), Workload(**workload), torch.device(device)
        try:
            reason: str | None = self.unknown(backend) or self.peer(backend).why_not(*asked)
        except (Exception, SystemExit) as error:
            reason = f"does not import: {one_line(error)}"
        return reason and reason[:200]
