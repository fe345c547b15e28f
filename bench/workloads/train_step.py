"""One optimiser step: forward, backward, AdamW, over `gradient_accumulation` micro-batches.

What the step trains on and how is the workload's: documents packed into sequences, drawn routing of experts, adapters
on a frozen base (LoRA), fp8 projections, activation checkpointing, 16-bit optimiser states. On several GPUs the same
step runs sharded (parallel.py): each data-parallel rank has `batch_size` sequences a micro-batch of its own.
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
from bench.model.subject import Subject


class TrainStep(Subject):
    """See measure/cell.py for what these names mean. Tokens a step: batch x tokens x accumulation x data ranks."""

    token_kind = "trained"

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        w = self.workload
        replicas = (self.world["world_size"] if self.world else 1) // w.tensor_parallel
        sequences = w.batch_size * w.gradient_accumulation
        self.tokens_per_step = sequences * w.input_tokens * replicas
        self.lengths = self.documents(sequences, w.input_tokens)
        self.counts(
            accounting.train_step(
                self.slice,
                w.batch_size,
                w.input_tokens,
                w.gradient_accumulation,
                w.precision,
                documents=self.lengths,
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
            w.precision,
            self.device,
            w.input_tokens,
            adjust=self.adjust,
            lengths=self.documents,
            zipf=w.routing_zipf or 0.0,
        )
        return error, w.tolerance or oracle.GRADIENT_TOLERANCE[w.precision], shape

    def finish(self, module: nn.Module) -> None:
        """Adjust a layer once its weights are there, and the model last; then shard it where there are ranks."""
        self.adjust(module)
        if self.parallel:
            self.parallel.finish(module)

    def prepare(self) -> None:
        w = self.workload
        self.parallel = Parallel(self.world, w.tensor_parallel, w.precision, self.device) if self.world else None
        precision = "fp32" if self.parallel else w.precision  # sharded weights are fp32 and their own masters
        network = self.model_under_test = self.network(w.input_tokens, precision=precision, finish=self.finish)
        several = w.gradient_accumulation > 1
        self.optimiser = AdamW(
            list(network.parameters()),
            self.backend,
            states=w.optimizer_states,
            sums=several,
            local=self.parallel.local if self.parallel else whole,
        )
        self.loss = self.compiled(network.loss)
        rank = self.parallel.data_rank if self.parallel else 0
        self.data = self.tokens(w.gradient_accumulation, w.batch_size, w.input_tokens + 1, seed=3 + rank)
        routing = self.routing(w.batch_size * w.input_tokens)
        per = w.batch_size
        self.given = [
            network.described(per, w.input_tokens, self.lengths and self.lengths[i * per : (i + 1) * per], routing)
            for i in range(w.gradient_accumulation)
        ]

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


build = TrainStep
