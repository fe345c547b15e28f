"""Training peers: other people's whole models under our workload, one file each, as backend `peer:<file>`.

A peer file has `why_not(model, workload, device) -> str | None` (one line where it cannot run) and
`build(model, workload, device, layers)`, which answers a Network: the same architecture with random weights in the
workload's precision. Optional: `untouched(model)`, a context in which nothing is patched. `bench.config` lists them.

Checked against float64 like ours, and as strictly, but a peer's weights are its own: the truth is transformers' eager
module with the same weights in float64 (norms, softmax of routers and the loss stay in fp32 there, as transformers
forces them to), attending by a mask where documents are packed. Each mixture has as many experts there as a token
meets, so that every token meets all of them: rounding may tie what float64 tells apart, and another expert chosen is no
error of the arithmetic.

    error = || value - truth || / || truth ||     the largest: of the loss, or of a parameter's gradient
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from bench import config
from bench.architecture import Model
from bench.kernels.op import relative_error
from bench.peers.found import Whole
from bench.workload import Workload

# As bench.model.oracle has them for gradients. transformers' own eager modules show at most 2e-6, 9.6e-3 and 3.6e-2
# here, over its eight families.
TOLERANCE = {"fp32": 2e-5, "fp16": 1.2e-2, "bf16": 5e-2}
BATCH, TOKENS = 2, 320
MOST_WORDS = 1.5e9  # weights of both embedding tables; beyond, their float64 twins and gradients would not fit


class Given(Protocol):
    """What a batch is, beside its tokens: bench.model.parts.Tokens."""

    @property
    def positions(self) -> Tensor:
        """(1 or B, T), each token's place in its document."""

    @property
    def documents(self) -> Tensor | None:
        """cu_seqlens of the packed documents, int32 (n + 1,)."""


class Network(Protocol):
    """What a training step needs of a peer's model."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every weight, once."""

    def loss(self, tokens: Tensor, targets: Tensor, given: Given | None = None) -> Tensor:
        """Mean cross-entropy in nats of targets (B, T) given tokens (B, T); target -100 is left out."""

    def described(self) -> str:
        """Version and settings, for the row."""


PEERS = Whole("train", "training", config.training_peers)
peer, unknown, why_not = PEERS.peer, PEERS.unknown, PEERS.why_not


def network(backend: str, model: Model, workload: Workload, device: torch.device, layers: int) -> Network:
    """The peer's model with its weights on the device."""
    made: Network = peer(backend).build(model, workload, device, layers)
    return made


def reduced(model: Model) -> Model:
    """The architecture to check: its first layers up to one of each kind, two at least; see the top of this file."""
    model = model.sliced(min(model.layers, max(2, max(model.distinct_layers) + 1)))
    if model.experts:
        model = dataclasses.replace(model, experts=model.top_k, router_groups=1, router_top_groups=1)
    if 2 * model.vocab * model.hidden > MOST_WORDS:
        model = dataclasses.replace(model, vocab=min(model.vocab, 16384))
    return model


def check(
    backend: str,
    model: Model,
    workload: Workload,
    device: torch.device,
    describe: Callable[[int, int], Given | None] = lambda batch, length: None,
) -> tuple[float, float, str]:
    """Relative error against float64, the tolerance, and the shape checked.

    `describe` gives what a batch of that many sequences of that many tokens is: its packing, or None.
    """
    file, small, length = peer(backend), reduced(model), min(TOKENS, workload.input_tokens)
    generator = torch.Generator().manual_seed(2)
    data = torch.randint(small.vocab, (BATCH, length + 1), generator=generator).to(device)
    given = describe(BATCH, length)
    theirs: Network = file.build(small, workload, device, small.layers)
    loss = _differentiated(theirs, data, given)
    with getattr(file, "untouched", lambda model: nullcontext())(small):
        exact: Network = peer("peer:transformers").truth(small, workload, device, small.layers)
        with torch.no_grad():
            for wide, narrow in zip(exact.parameters(), theirs.parameters(), strict=True):
                wide.copy_(narrow)
        truth = _differentiated(exact, data, given)
    torch.compiler.reset()  # what was compiled for this shape must not make the timed one a dynamic one
    error = _worst([relative_error(loss, truth), *_gradients_apart(theirs, exact)])
    shape = [f"layers={small.layers}", *_cut(small, model), f"batch={BATCH}", f"tokens={length}"]
    return error, workload.tolerance or TOLERANCE[workload.precision], " ".join(shape)


def _differentiated(network: Network, data: Tensor, given: Given | None) -> Tensor:
    """The loss of data (B, T + 1), after its backward."""
    loss = network.loss(data[:, :-1], data[:, 1:], given)
    loss.backward()
    return loss.detach()


def _gradients_apart(theirs: Network, exact: Network) -> Iterator[float]:
    """Relative error of each parameter's gradient; NaN where it got none."""
    for narrow, wide in zip(theirs.parameters(), exact.parameters(), strict=True):
        if narrow.grad is None or wide.grad is None:
            yield float("nan")
        else:
            yield relative_error(narrow.grad, wide.grad)


def _worst(errors: list[float]) -> float:
    """The largest error; NaN where one is NaN, which max() could pass over."""
    return float(torch.tensor(errors).max())


def _cut(small: Model, model: Model) -> list[str]:
    """What the check has fewer of, in words."""
    names = [name for name in ("experts", "vocab") if getattr(small, name) != getattr(model, name)]
    return [f"{name}={getattr(small, name)}" for name in names]
