"""One optimiser step: forward, backward, AdamW, over `gradient_accumulation` micro-batches.

What the step trains on and how is the workload's: documents packed into sequences, drawn routing of experts, adapters
on a frozen base (LoRA), fp8 projections, activation checkpointing, 16-bit optimiser states. On several GPUs the same
step runs sharded (parallel.py): each data-parallel rank has `batch_size` sequences a micro-batch of its own. With a
backend `peer:<name>` the model is that project's (bench/peers/train); data, optimiser and counts stay these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.model import accounting, documents, oracle
from bench.model.fp8 import use_fp8
from bench.model.layer import Layer
from bench.model.lora import adapt
from bench.model.optimiser import AdamW, whole
from bench.model.parallel import Parallel
from bench.model.parts import Tokens
from bench.model.subject import Subject
from bench.peers.train import found as peers


class TrainStep(Subject):
    """See measure/cell.py for what these names mean. Tokens a step: batch x tokens x accumulation x data ranks."""

    token_kind = "trained"

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        w = self.workload
        size, rank = (self.world["world_size"], self.world["rank"]) if self.world else (1, 0)
        replicas, replica = size // w.tensor_parallel, rank // w.tensor_parallel
        sequences = w.batch_size * w.gradient_accumulation
        self.tokens_per_step = replicas * sequences * w.input_tokens
        packed = self.documents(replicas * sequences, w.input_tokens)
        self.lengths = packed and packed[replica * sequences : (replica + 1) * sequences]  # each rank's own
        self.seed = 3 + replica
        self.counts(
            accounting.train_step(
                self.slice,
                w.batch_size,
                w.input_tokens,
                w.gradient_accumulation,
                w.precision,
                documents=packed,
                lora_rank=w.lora_rank,
                optimizer_states=w.optimizer_states,
                replicas=replicas,
            )
        )

    def documents(self, sequences: int, tokens: int) -> list[list[int]] | None:
        """Lengths of the documents packed into each sequence, or None where each is one."""
        w = self.workload
        if w.document_tokens_median is None or w.document_tokens_sigma is None:
            return None
        return documents.packed(sequences, tokens, w.document_tokens_median, w.document_tokens_sigma)

    def adjust(self, module: nn.Module) -> None:
        """Adapters, fp8 and checkpointing as the workload says, in a layer or the whole model."""
        w = self.workload
        if w.lora_rank:
            adapt(module, w.lora_rank, w.lora_alpha)
        if w.precision == "fp8":
            use_fp8(module, w.fp8_scaling)
        for part in module.modules():
            if isinstance(part, Layer):
                part.checkpointing = w.checkpointing

    def check(self) -> tuple[float, float, str]:
        w = self.workload
        error, shape = oracle.gradient_error(
            self.model,
            self.backend,
            w.working_precision,
            self.device,
            w.input_tokens,
            adjust=self.adjust,
            lengths=self.documents,
            zipf=w.routing_zipf or 0.0,
        )
        return error, w.tolerance or oracle.GRADIENT_TOLERANCE[w.precision], shape

    def finish(self, module: nn.Module) -> None:
        """Adjust a layer once its weights are there, and the model last; then shard it where there are ranks.

        FSDP's gathers cannot be traced: with ranks each layer is compiled by itself, as torchtitan does.
        """
        self.adjust(module)
        if self.parallel:
            self.parallel.finish(module)
            if isinstance(module, Layer):
                setattr(module, "forward", self.compiled(module.forward))  # noqa: B010  a method, to mypy

    def prepare(self) -> None:
        w = self.workload
        shared = (w.tensor_parallel, w.working_precision, self.device)
        self.parallel = Parallel(self.world, *shared) if self.world else None
        self.make_model()
        several = w.gradient_accumulation > 1
        self.optimiser = AdamW(
            list(self.model_under_test.parameters()),
            self.backend,
            states=w.optimizer_states,
            sums=several,
            local=self.parallel.local if self.parallel else whole,
        )
        self.data = self.tokens(w.gradient_accumulation, w.batch_size, w.input_tokens + 1, seed=self.seed)
        per = w.batch_size
        self.given = [
            self.told(self.lengths and self.lengths[i * per : (i + 1) * per]) for i in range(w.gradient_accumulation)
        ]

    def make_model(self) -> None:
        """The model under test, and `loss` as the backend runs it."""
        w = self.workload
        precision = "fp32" if self.parallel else w.working_precision  # sharded weights are fp32 and their own masters
        self.model_under_test: Any = self.network(w.input_tokens, precision=precision, finish=self.finish)
        self.loss = self.model_under_test.loss if self.parallel else self.compiled(self.model_under_test.loss)
        self.drawn = self.routing(w.batch_size * w.input_tokens)

    def told(self, rows: list[list[int]] | None) -> Tokens:
        """What the model is told of one micro-batch with these documents."""
        w = self.workload
        tokens: Tokens = self.model_under_test.described(w.batch_size, w.input_tokens, rows, self.drawn)
        return tokens

    def step(self) -> None:
        last = len(self.data) - 1
        self.last_loss = torch.zeros((), device=self.device)
        for index, (batch, given) in enumerate(zip(self.data, self.given, strict=True)):
            if self.parallel:
                self.parallel.sync(self.model_under_test, index == last)
            loss = self.loss(batch[:, :-1], batch[:, 1:], given) / len(self.data)
            loss.backward()
            self.last_loss += loss.detach()
            self.optimiser.gather()
        self.optimiser.update()


class PeerStep(TrainStep):
    """The same step on another project's model. Its routers route as they will, for no choice can be handed to them."""

    def check(self) -> tuple[float, float, str]:
        def told(batch: int, length: int) -> Tokens:
            return self._told(self.documents(batch, length), length)

        return peers.check(self.backend, self.model, self.workload, self.device, told)

    def make_model(self) -> None:
        self.model_under_test = peers.network(self.backend, self.model, self.workload, self.device, self.layers)
        self.loss = self.model_under_test.loss

    def told(self, rows: list[list[int]] | None) -> Tokens:
        """Positions, and where the documents end."""
        return self._told(rows, self.workload.input_tokens)

    def _told(self, rows: list[list[int]] | None, length: int) -> Tokens:
        if rows is None:
            return Tokens(torch.arange(length, device=self.device)[None], None, None)
        return Tokens(documents.positions(rows, self.device), None, None, documents.ends(rows, self.device))

    def ops_ran(self) -> str | None:
        """The other project's version and settings."""
        return str(self.model_under_test.described()) if hasattr(self, "model_under_test") else None


def build(backend: str, **arguments: Any) -> TrainStep:
    """Ours, or with backend `peer:<name>` another project's."""
    kind = PeerStep if backend.startswith("peer:") else TrainStep
    return kind(backend=backend, **arguments)
