"""What a workload measures: one model at one depth on one device and backend, with the data it is fed.

The workloads (bench/workloads) differ in their step and their counts; how the model is built, fed and checked is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.architecture import Model
from bench.kernels.best import ran
from bench.kernels.op import compiled, load
from bench.model import routing
from bench.model.accounting import Cost
from bench.model.cache import KVCache
from bench.model.memory import subject_of
from bench.model.transformer import DTYPES, Transformer
from bench.workload import Workload

ErrorOf = Callable[..., tuple[float, str]]


class Subject:
    """`layers` may be fewer than the model's; `slice` is the architecture at that depth, for counting.

    `model` is what one GPU has of it: with expert parallelism, its share of the experts.
    """

    flops: float
    flops_unhalved: float
    bytes: float
    columns: dict[str, Any]  # further columns of the row; see measure/cell.py

    def __init__(
        self,
        device: str,
        model: dict[str, Any],
        workload: dict[str, Any],
        backend: str,
        layers: int,
        world: dict[str, int] | None = None,
    ):
        self.device, self.backend, self.layers, self.world = torch.device(device), backend, layers, world
        self.workload = Workload(**workload)
        self.model = subject_of(Model(**model), self.workload)
        self.slice = self.model.sliced(layers)
        self.columns = {}

    def counts(self, cost: Cost) -> None:
        """Take over FLOPs and bytes of a step."""
        self.flops, self.flops_unhalved, self.bytes = cost.flops, cost.flops_unhalved, cost.bytes

    def network(self, max_tokens: int, **options: Any) -> Transformer:
        """The model with its weights on the device, for positions below `max_tokens`."""
        options = {"precision": self.workload.working_precision} | options
        return Transformer(
            self.model, load(self.backend), device=self.device, max_tokens=max_tokens, layers=self.layers, **options
        )

    def cache(self, slots: int, batch: int | None = None) -> KVCache:
        """An empty KV cache for the batch."""
        dtype = DTYPES[self.workload.precision]
        return KVCache(self.model, self.layers, batch or self.workload.batch_size, slots, dtype, self.device)

    def tokens(self, *shape: int, seed: int = 3) -> Tensor:
        """Random tokens, the same every time."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.model.vocab, shape, generator=generator).to(self.device)

    def routing(self, tokens: int) -> Tensor | None:
        """Drawn routing of `tokens` tokens, where the workload asks for it; how uneven it is becomes `expert_load`."""
        zipf = self.workload.routing_zipf
        if zipf is None or not self.slice.moe_layers:
            return None
        drawn, load_of = routing.drawn(self.model, tokens, zipf, self.device)
        self.columns["expert_load"] = routing.imbalance(load_of)  # tokens of the busiest expert over the mean
        return drawn

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
