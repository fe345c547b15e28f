"""What the whole model launches in the cells of suites `quick`, `training` and `shapes`, recorded with no GPU: an op's
own shapes miss some.

The first norm has no residual, decoding calls with one token, the last position has a matmul of its own: a model's
calls are more than its ops' listed shapes. One layer of each kind is enough, layers of a kind launch alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from unittest.mock import patch

import torch

from bench.architecture import Model
from bench.config import Suite, load
from bench.kernels.op import Op
from bench.model import answers, grpo
from bench.model.cache import KVCache
from bench.model.transformer import DTYPES, Transformer
from bench.workload import Workload
from bench.workloads.train_step import TrainStep
from tests.aot.compile_check import Launch, recorded_launches

META = torch.device("meta")
SUITES = ("quick", "training", "shapes")


def cells() -> list[tuple[Model, Workload]]:
    """Model and workload of every cell that these suites run on backend triton."""
    groups = [group for suite in SUITES for group in load(Suite, suite).groups if "triton" in group.backends]
    found = [
        (load(Model, model), load(Workload, workload))
        for group in groups
        for model in group.models
        for workload in group.workloads
    ]
    return [(model, workload) for model, workload in found if workload.phase in PARTS]


@contextlib.contextmanager
def without_numbers():
    """Weights on tensors without memory stay as they are: there is nothing to draw."""
    with patch("bench.model.transformer.initialise"), patch("bench.model.lora.initialise"):
        yield


def record(ops: dict[str, Op], model: Model, workload: Workload, arch: int) -> list[Launch]:
    """Every launch of one step of the cell at a layer of each kind, on tensors without memory."""
    if workload.precision == "fp8" and arch < 90:
        return []  # no fp8 tensor cores
    sides = SimpleNamespace(**{name: op.triton for name, op in ops.items()})
    arguments = {"model": dataclasses.asdict(model), "workload": dataclasses.asdict(workload)}
    with recorded_launches(arch) as made, without_numbers():
        job = TrainStep(device="meta", backend="triton", layers=model.layers, **arguments)
        network = Transformer(
            job.model,
            sides,
            precision=workload.precision,
            device=META,
            max_tokens=workload.input_tokens + workload.output_tokens + 1,
            layers=job.model.distinct_layers,
        )
        PARTS[workload.phase](network, job)
    return made


def drawn(*shape: int) -> torch.Tensor:
    """Tokens, as far as a launcher looks at them."""
    return torch.zeros(shape, dtype=torch.int64, device=META)


def cache(network: Transformer, job: TrainStep, batch: int) -> KVCache:
    slots = job.workload.input_tokens + job.workload.output_tokens + 1
    return KVCache(network.model, len(network.stack), batch, slots, DTYPES[job.workload.precision], META)


def train(network: Transformer, job: TrainStep) -> None:
    batch, length = job.workload.batch_size, job.workload.input_tokens
    job.adjust(network)
    given = network.described(batch, length, job.documents(batch, length), job.routing(batch * length))
    tokens = drawn(batch, length + 1)
    network.loss(tokens[:, :-1], tokens[:, 1:], given).backward()  # targets begin at the second: not 16-byte aligned


def prefill(network: Transformer, job: TrainStep) -> None:
    batch, length = job.workload.batch_size, job.workload.input_tokens
    network.prefill(drawn(batch, length), cache(network, job, batch))


def decode(network: Transformer, job: TrainStep) -> None:
    network.decode(drawn(job.workload.batch_size), cache(network, job, job.workload.batch_size))


def reinforce(network: Transformer, job: TrainStep) -> None:
    """Rollout, and one micro-batch scored and trained on: the head runs on a chunk of rows (grpo.py)."""
    w = job.workload
    batch, lengths = w.prompts * w.rollouts, answers.answer_tokens(w)
    network.prefill(drawn(w.prompts, w.input_tokens), cache(network, job, w.prompts))
    logits = network.decode(drawn(batch), cache(network, job, batch))
    network.ops.sampling(logits, torch.empty(batch, device=META))
    sizes = [w.input_tokens + length - 1 for length in lengths]
    documents = answers.documents(sizes, answers.packed(sizes, answers.capacity(w)))[0]
    given = network.described(1, sum(documents), [documents], job.routing(sum(documents)))
    hidden = network.hidden(drawn(1, sum(documents)), given)[0]
    hidden.backward(torch.empty_like(hidden))
    rows = hidden[: grpo.CHUNK].detach().requires_grad_()
    head = network.ops.matmul(rows, network.head)
    head.backward(torch.empty_like(head))
    with torch.no_grad():
        network.ops.matmul(rows, network.head)


PARTS: dict[str, Callable[[Transformer, TrainStep], None]] = {
    "train_step": train,
    "prefill": prefill,
    "decode": decode,
    "rl_step": reinforce,
}


def op_of(launch: Launch, ops: dict[str, Op]) -> str:
    """The op whose file, or whose further file (attention_backward), holds the kernel."""
    stem = launch.kernel.__module__.rsplit(".", 1)[-1]
    return max((name for name in ops if stem == name or stem.startswith(f"{name}_")), key=len)
