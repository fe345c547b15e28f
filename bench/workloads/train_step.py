"""One optimiser step: forward, backward, AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101).

In bf16 the working copy is bf16 and an fp32 master, fp32 summed gradients and fp32 states stand behind it (mixed
precision as in Micikevicius et al. 2018, arXiv 1710.03740, and Megatron-LM). Gradient accumulation sums
`gradient_accumulation` micro-batches before the update. The update is torch's fused AdamW for backends `reference` and
`compile`, and the op `adamw`, which writes the working copy in the same pass, for `triton` and `best`.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.kernels.op import load
from bench.model import accounting, oracle
from bench.model.subject import Subject

LEARNING_RATE, BETAS, WEIGHT_DECAY = 1e-4, (0.9, 0.95), 0.1  # Llama 2's, arXiv 2307.09288


class TrainStep(Subject):
    """See measure/cell.py for what these names mean. Tokens a step: batch x tokens x accumulation."""

    token_kind = "trained"

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        w = self.workload
        sizes = (w.batch_size, w.input_tokens, w.gradient_accumulation)
        self.tokens_per_step = w.batch_size * w.input_tokens * w.gradient_accumulation
        self.counts(accounting.train_step(self.slice, *sizes, w.precision))

    def check(self) -> tuple[float, float, str]:
        return self.against_float64(oracle.gradient_error, oracle.GRADIENT_TOLERANCE)

    def prepare(self) -> None:
        w = self.workload
        network = self.network(w.input_tokens)
        self.weights: list[torch.Tensor] = list(network.parameters())
        self.mixed = w.precision != "fp32"
        self.masters = [p.detach().float() for p in self.weights] if self.mixed else self.weights
        self.fused = self.backend in ("triton", "best")
        if self.fused:
            self.adamw = load(self.backend).adamw
            self.states = [[torch.zeros_like(master) for master in self.masters] for _ in range(2)]
            self.count = torch.zeros((), device=self.device)
        else:
            self.optimiser = torch.optim.AdamW(
                self.masters, LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY, fused=self.device.type == "cuda"
            )
        if self.mixed:
            for master in self.masters:
                master.grad = torch.zeros_like(master)
        self.loss = self.compiled(network.loss)
        self.data = self.tokens(w.gradient_accumulation, w.batch_size, w.input_tokens + 1)

    def step(self) -> None:
        for batch in self.data:
            loss = self.loss(batch[:, :-1], batch[:, 1:]) / len(self.data)
            loss.backward()
            if self.mixed:
                with torch.no_grad():
                    torch._foreach_add_(_gradients(self.masters), _gradients(self.weights))
                for weight in self.weights:
                    weight.grad = None
        self._update()
        if self.mixed:  # kept and zeroed: their addresses stand in the op's table
            torch._foreach_zero_(_gradients(self.masters))
        else:
            for weight in self.weights:
                weight.grad = None

    @torch.no_grad()
    def _update(self) -> None:
        if not self.fused:
            self.optimiser.step()
            if self.mixed:
                torch._foreach_copy_(self.weights, self.masters)
            return
        self.count += 1
        self.adamw(
            self.masters,
            _gradients(self.masters),
            *self.states,
            self.count,
            lr=LEARNING_RATE,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            copies=self.weights if self.mixed else None,
        )


def _gradients(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each weight's gradient; one that is missing is an error, not a skipped update."""
    found = [weight.grad for weight in weights if weight.grad is not None]
    if len(found) < len(weights):
        raise RuntimeError(f"{len(weights) - len(found)} of {len(weights)} weights got no gradient")
    return found


build = TrainStep
