"""What a workload measures: one model at one depth on one device and backend, with the data it is fed.

The workloads (bench/workloads) differ in their step and their counts; how the model is built, fed and checked is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.config import Model, Workload
from bench.kernels.best import ran
from bench.kernels.op import compiled, load
from bench.model.accounting import Cost
from bench.model.memory import sliced
from bench.model.transformer import DTYPES, KVCache, Transformer

ErrorOf = Callable[[Model, str, str, torch.device, int], tuple[float, str]]


class Subject:
    """`layers` may be fewer than the model's; `slice` is the architecture at that depth, for counting."""

    flops: float
    flops_unhalved: float
    bytes: float

    def __init__(self, device: str, model: dict[str, Any], workload: dict[str, Any], backend: str, layers: int):
        self.device, self.backend, self.layers = torch.device(device), backend, layers
        self.model, self.workload = Model(**model), Workload(**workload)
        self.slice = sliced(self.model, layers)

    def counts(self, cost: Cost) -> None:
        """Take over FLOPs and bytes of a step."""
        self.flops, self.flops_unhalved, self.bytes = cost.flops, cost.flops_unhalved, cost.bytes

    def network(self, max_tokens: int) -> Transformer:
        """The model with its weights on the device, for positions below `max_tokens`."""
        return Transformer(
            self.model,
            load(self.backend),
            precision=self.workload.precision,
            device=self.device,
            max_tokens=max_tokens,
            layers=self.layers,
        )

    def cache(self, slots: int) -> KVCache:
        """An empty KV cache for the batch."""
        dtype = DTYPES[self.workload.precision]
        return KVCache(self.model, self.layers, self.workload.batch_size, slots, dtype, self.device)

    def tokens(self, *shape: int) -> torch.Tensor:
        """Random tokens, the same every time."""
        generator = torch.Generator().manual_seed(3)
        return torch.randint(self.model.vocab, shape, generator=generator).to(self.device)

    def compiled(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step` as the backend runs it."""
        return compiled(self.backend, step)

    def ops_ran(self) -> str | None:
        """See measure/cell.py."""
        return ran()

    def against_float64(self, error_of: ErrorOf, tolerance: Mapping[str, float]) -> tuple[float, float, str]:
        """Error of the backend by one of oracle.py's measures, the tolerance, and the shape checked."""
        w = self.workload
        error, shape = error_of(self.model, self.backend, w.precision, self.device, w.input_tokens)
        return error, w.tolerance or tolerance[w.precision], shape
