"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) in mixed precision, as training steps update.

A 16-bit weight has an fp32 master behind it (Micikevicius et al. 2018, arXiv 1710.03740); fp32 weights are their own.
The two averages are fp32, or bf16 where memory decides: they move by 5 to 10% of their distance to the gradient a
step, and bf16 rounds to 0.4% (at β2 = 0.999 an average would stand still). Gradients of several micro-batches are
summed in fp32.
Backends `triton` and `best` update everything in one launch that writes the working copy too (op `adamw`), and on a
GPU so do other people's models (`peer:<name>`), so that a cell of theirs differs from ours by the model alone.
`compile` compiles the same formula, one pass a weight. `reference` takes torch's fused AdamW with what mixed precision
needs around it, one weight after the other, so that only one gradient at a time exists in fp32 as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from bench.kernels.op import load

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 1e-4, (0.9, 0.95), 1e-8, 0.1  # Llama 2's, arXiv 2307.09288
STATES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself: nothing is sharded."""
    return tensor


def one_pass(
    master: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, copy: Tensor | None, rate: float, *young: Tensor
) -> None:
    """AdamW of one weight, all (n,), in place. `young`: 1 - β1ᵗ and 1 - β2ᵗ, what averages of t numbers lack."""
    wide = gradient.float()
    m = BETAS[0] * mean.float() + (1 - BETAS[0]) * wide
    v = BETAS[1] * square.float() + (1 - BETAS[1]) * wide * wide
    step = (m / young[0]) / ((v / young[1]).sqrt() + EPSILON)
    moved = master * (1 - rate * WEIGHT_DECAY) - rate * step
    for kept, value in ((master, moved), (mean, m), (square, v), (copy, moved)):
        if kept is not None:
            kept.copy_(value)


class AdamW:
    """Updates those of `weights` that are trained.

    `local` gives the part of a tensor that lies on this device, where weights are sharded. With `sums`, call
    `gather()` after each micro-batch's backward.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        backend: str,
        *,
        states: str = "fp32",
        sums: bool = False,
        local: Callable[[Tensor], Tensor] = whole,
        learning_rate: float = LEARNING_RATE,
    ):
        self.learning_rate, self.local = learning_rate, local
        # a shard may be empty
        self.weights = [weight for weight in weights if weight.requires_grad and local(weight).numel()]
        if not self.weights:
            raise ValueError("nothing to train: no weight on this device asks for a gradient")
        self.copies = [local(weight.detach()) for weight in self.weights]
        self.mixed = any(copy.dtype != torch.float32 for copy in self.copies)
        self.masters = [copy.float() for copy in self.copies] if self.mixed else self.copies
        self.averages = [[torch.zeros_like(m, dtype=STATES[states]) for m in self.masters] for _ in range(2)]
        self.sums = [torch.zeros_like(master) for master in self.masters] if sums and self.mixed else None
        device = self.masters[0].device
        theirs = backend.startswith("peer:") and device.type == "cuda"
        self.op = load("triton" if theirs else backend).adamw if theirs or backend in ("triton", "best") else None
        self.one_pass = torch.compile(one_pass, dynamic=True, fullgraph=True) if backend == "compile" else None
        self.counts = [torch.zeros((), device=device) for _ in ([0] if self.op else self.masters)]

    def gradients(self) -> list[Tensor]:
        """Each weight's gradient; one that is missing is an error, not a skipped update."""
        found = [self.local(weight.grad) for weight in self.weights if weight.grad is not None]
        if len(found) < len(self.weights):
            raise RuntimeError(f"{len(self.weights) - len(found)} of {len(self.weights)} weights got no gradient")
        return found

    @torch.no_grad()
    def gather(self) -> None:
        """Add the gradients to their fp32 sums and drop them; nothing to do where there are no sums."""
        if self.sums is not None:
            torch._foreach_add_(self.sums, self.gradients())
            self._drop()

    @torch.no_grad()
    def update(self) -> None:
        """One step from the sums, or from the gradients, which are dropped."""
        gradients = self.gradients() if self.sums is None else self.sums
        if self.op is not None:
            self.counts[0] += 1
            copies = self.copies if self.mixed else None
            rates = {"lr": self.learning_rate, "betas": BETAS, "eps": EPSILON, "weight_decay": WEIGHT_DECAY}
            self.op(self.masters, gradients, *self.averages, self.counts[0], **rates, copies=copies)
        else:
            for index, gradient in enumerate(gradients):
                self._update_one(index, gradient)
        if self.sums is None:
            self._drop()
        else:
            torch._foreach_zero_(self.sums)

    def _update_one(self, index: int, gradient: Tensor) -> None:
        master, averages = self.masters[index], [kind[index] for kind in self.averages]
        if self.one_pass is not None:
            self.counts[index] += 1
            young = [1 - beta ** self.counts[index] for beta in BETAS]
            flat = [tensor.view(-1) for tensor in (master, *averages)] + [gradient.reshape(-1)]
            copy = self.copies[index].view(-1) if self.mixed else None
            given: list[Any] = [*flat, copy, self.learning_rate, *young]
            self.one_pass(*given)
            return
        wide = [average.float() for average in averages]
        torch_adamw(
            [master],
            [gradient.float()],
            [wide[0]],
            [wide[1]],
            [],
            [self.counts[index]],
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.learning_rate,
            weight_decay=WEIGHT_DECAY,
            eps=EPSILON,
            maximize=False,
        )
        for average, value in zip(averages, wide, strict=True):
            if average is not value:
                average.copy_(value)
        if self.mixed:
            self.copies[index].copy_(master)

    def _drop(self) -> None:
        for weight in self.weights:
            weight.grad = None
