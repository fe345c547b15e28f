"""One optimiser step: forward, backward, AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101).

In fp32 torch's AdamW updates the weights. In bf16 the working copy is bf16 and an fp32 master, fp32 summed
gradients and fp32 states stand behind it (mixed precision as in Micikevicius et al. 2018, arXiv 1710.03740, and
Megatron-LM). Gradient accumulation sums `gradient_accumulation` micro-batches before the update.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.config import Model, Workload
from bench.kernels.op import compiled, load
from bench.model import accounting, oracle
from bench.model.memory import sliced
from bench.model.transformer import Transformer

LEARNING_RATE = 1e-4


class TrainStep:
    """See measure/cell.py for what these names mean. Tokens a step: batch x tokens x accumulation."""

    token_kind = "trained"

    def __init__(self, device: str, model: dict[str, Any], workload: dict[str, Any], backend: str, layers: int):
        self.device, self.backend, self.layers = torch.device(device), backend, layers
        self.model, self.workload = Model(**model), Workload(**workload)
        w = self.workload
        self.tokens_per_step = w.batch_size * w.input_tokens * w.gradient_accumulation
        cost = accounting.train_step(
            sliced(self.model, layers), w.batch_size, w.input_tokens, w.gradient_accumulation, w.precision
        )
        self.flops, self.flops_unhalved, self.bytes = cost.flops, cost.flops_unhalved, cost.bytes

    def check(self) -> tuple[float, float, str]:
        w = self.workload
        error, shape = oracle.gradient_error(self.model, self.backend, w.precision, self.device, w.input_tokens)
        return error, w.tolerance or oracle.TOLERANCE[w.precision], shape

    def prepare(self) -> None:
        w = self.workload
        self.network = Transformer(
            self.model,
            load(self.backend),
            precision=w.precision,
            device=self.device,
            max_tokens=w.input_tokens,
            layers=self.layers,
        )
        self.weights: list[torch.Tensor] = list(self.network.parameters())
        self.mixed = w.precision != "fp32"
        self.masters = [p.detach().float() for p in self.weights] if self.mixed else self.weights
        fused = self.device.type == "cuda"
        self.optimiser = torch.optim.AdamW(self.masters, lr=LEARNING_RATE, fused=fused)
        if self.mixed:
            for master in self.masters:
                master.grad = torch.zeros_like(master)
        self.loss = compiled(self.backend, self.network.loss)
        generator = torch.Generator().manual_seed(3)
        shape = (w.gradient_accumulation, w.batch_size, w.input_tokens + 1)
        self.data = torch.randint(self.model.vocab, shape, generator=generator).to(self.device)

    def step(self) -> None:
        for batch in self.data:
            loss = self.loss(batch[:, :-1], batch[:, 1:]) / len(self.data)
            loss.backward()
            if self.mixed:
                with torch.no_grad():
                    torch._foreach_add_(_gradients(self.masters), _gradients(self.weights))
                for weight in self.weights:
                    weight.grad = None
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=not self.mixed)
        if self.mixed:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)


def _gradients(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each weight's gradient; one that is missing is an error, not a skipped update."""
    found = [weight.grad for weight in weights if weight.grad is not None]
    if len(found) < len(weights):
        raise RuntimeError(f"{len(weights) - len(found)} of {len(weights)} weights got no gradient")
    return found


build = TrainStep
