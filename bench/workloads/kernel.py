"""One op alone, forward as training runs it, at a real model's shape: how near a kernel comes to the machine's limits.

Inputs rotate over sets that together pass the cache, so a kernel is never timed on data it just left there.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from bench.kernels.best import ran
from bench.kernels.op import compiled, discover, load, output_errors, owned, widened
from bench.model.transformer import DTYPES
from bench.workload import Workload

CACHE_BYTES = 256 << 20  # more than twice the largest last-level cache of the GPUs in configs/gpus
MOST_SETS = 16


class Kernel:
    """See measure/cell.py for what these names mean. Moves no tokens of a deployment."""

    tokens_per_step = None
    token_kind = None

    def __init__(self, device: str, workload: dict[str, Any], backend: str, **_: Any):
        self.device, self.backend, self.workload = torch.device(device), backend, Workload(**workload)
        w = self.workload
        ops = discover()
        if w.op not in ops or w.shape not in {**ops[w.op].shapes, **ops[w.op].test_shapes}:
            raise ValueError(f"kernel {w.key}: no op {w.op} with a shape {w.shape}")
        self.op = ops[w.op]
        self.shape = {**self.op.test_shapes, **self.op.shapes}[w.shape]
        self.dtype = DTYPES[w.precision]
        self.call = compiled(backend, getattr(load(backend), w.op))
        self.flops = self.flops_unhalved = float(self.op.flops(self.shape))
        self.bytes = float(self.op.bytes(self.shape, self.dtype.itemsize))

    def _inputs(self, seed: int) -> dict[str, Any]:
        generator = torch.Generator(device=self.device).manual_seed(seed)
        # the form training runs: what backward needs is computed and written
        return self.op.trained(self.op.inputs(self.shape, self.dtype, self.device, generator))

    @torch.no_grad()
    def check(self) -> tuple[float, float, str]:
        inputs = self._inputs(1)
        truth = None if self.op.error else self.op.reference(**widened(inputs))
        error = max(output_errors(self.op, inputs, self.call(**owned(self.op, inputs)), truth))
        return error, self.op.tolerance[self.dtype], f"{self.workload.op} {self.workload.shape}"

    def ops_ran(self) -> str | None:
        """See measure/cell.py."""
        return ran()

    def prepare(self) -> None:
        sets = min(MOST_SETS, max(1, math.ceil(CACHE_BYTES / max(self.bytes, 1.0))))
        self.sets = [self._inputs(seed) for seed in range(sets)]
        self.turn = 0

    def step(self) -> None:
        self.call(**self.sets[self.turn])
        self.turn = (self.turn + 1) % len(self.sets)


build = Kernel
