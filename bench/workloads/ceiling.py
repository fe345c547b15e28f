"""What this machine can do at best, measured in the same run: a large copy, a large read, a large matmul.

`shape` is sizes joined by x: bytes for copy and read, M x N x K for matmul. MFU and MBU are held against the
best of these and against the datasheet. Random data, never zeros: zeros ran 13% faster on one H200.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from bench.kernels.op import relative_error
from bench.model.transformer import DTYPES
from bench.workload import Workload

TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 2e-3}
CHECKED_ROWS = 16


class Ceiling:
    """See measure/cell.py for what these names mean. Moves no tokens."""

    tokens_per_step = None
    token_kind = None

    def __init__(self, device: str, workload: dict[str, Any], backend: str, **_: Any):
        self.device, self.workload = torch.device(device), Workload(**workload)
        w = self.workload
        if w.op not in ("copy", "read", "matmul") or not w.shape:
            raise ValueError(f"ceiling {w.key}: op must be copy, read or matmul with a shape, got {w.op} {w.shape}")
        self.sizes = [int(size) for size in w.shape.split("x")]
        self.dtype = DTYPES[w.precision]
        if w.op == "matmul":
            m, n, k = self.sizes
            width = self.dtype.itemsize
            self.flops, self.bytes = 2.0 * m * n * k, float(width * (m * k + k * n + m * n))
        else:
            self.flops, self.bytes = 0.0, float(self.sizes[0] * (2 if w.op == "copy" else 1))
        self.flops_unhalved = self.flops

    def _random(self, *shape: int) -> torch.Tensor:
        generator = torch.Generator(device=self.device).manual_seed(0)
        return torch.randn(*shape, dtype=self.dtype, device=self.device, generator=generator)

    def prepare(self) -> None:
        if self.workload.op == "matmul":
            m, n, k = self.sizes
            self.a, self.b = self._random(m, k), self._random(n, k).t()
            self.out = torch.empty(m, n, dtype=self.dtype, device=self.device)
        else:
            self.a = self._random(self.sizes[0] // self.dtype.itemsize)
            self.out = torch.empty_like(self.a) if self.workload.op == "copy" else torch.empty(())

    def step(self) -> None:
        if self.workload.op == "matmul":
            torch.mm(self.a, self.b, out=self.out)
        elif self.workload.op == "copy":
            self.out.copy_(self.a)
        else:
            self.out = self.a.amax()  # a reduction writes next to nothing: a read-only stream

    def ops_ran(self) -> str | None:
        """No op of ours runs."""
        return None

    def check(self) -> tuple[float, float, str]:
        """At the full size: all of a copy, the maximum of a read, the first rows of a matmul."""
        self.prepare()
        if self.workload.op != "read":
            self.out.fill_(math.nan)
        self.step()
        if self.workload.op == "matmul":
            truth = self.a[:CHECKED_ROWS].double() @ self.b.double()
            error = relative_error(self.out[:CHECKED_ROWS], truth)
        elif self.workload.op == "copy":
            error = 0.0 if torch.equal(self.out, self.a) else math.inf
        else:
            error = relative_error(self.out, self.a.double().max())
        return error, TOLERANCE[self.workload.precision], f"{self.workload.op} {self.workload.shape}"


build = Ceiling
