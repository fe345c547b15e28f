"""What the whole model launches in the cells of suites `quick` and `training`, recorded with no GPU: an op's own shapes
miss some.

The first norm has no residual, decoding calls with one token, the last position has a matmul of its own: a model's
calls are more than its ops' listed shapes. One layer of each kind is enough, layers of a kind launch alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace
from unittest.mock import patch

import torch

from bench.architecture import Model
from bench.config import Suite, load
from bench.kernels.op import Op
from bench.model.cache import KVCache
from bench.model.transformer import DTYPES, Transformer
from bench.workload import Workload
from bench.workloads.train_step import TrainStep
from tests.aot.compile_check import Launch, recorded_launches

META = torch.device("meta")
SUITES = ("quick", "training")
PHASES = ("train_step", "prefill", "decode")


def cells() -> list[tuple[Model, Workload]]:
    """Model and workload of every cell that these suites run on backend triton."""
    groups = [group for suite in SUITES for group in load(Suite, suite).groups if "triton" in group.backends]
    found = [
        (load(Model, model), load(Workload, workload))
        for group in groups
        for model in group.models
        for workload in group.workloads
    ]
    return [(model, workload) for model, workload in found if workload.phase in PHASES]


@contextlib.contextmanager
def without_numbers():
    """Weights on tensors without memory stay as they are: there is nothing to draw."""
    with patch("bench.model.transformer.initialise"), patch("bench.model.lora.initialise"):
        yield


def record(ops: dict[str, Op], model: Model, workload: Workload, arch: int) -> list[Launch]:
    """Every launch of one step of the cell at a layer of each kind, on tensors without memory."""
    if workload.precision == "fp8" and arch < 90:
        return []  # no fp8 tensor cores
    slots = workload.input_tokens + workload.output_tokens + 1
    batch, length = workload.batch_size, workload.input_tokens
    sides = SimpleNamespace(**{name: op.triton for name, op in ops.items()})
    tokens = torch.zeros((batch, length + 1), dtype=torch.int64, device=META)
    arguments = {"model": dataclasses.asdict(model), "workload": dataclasses.asdict(workload)}
    with recorded_launches(arch) as made, without_numbers():
        job = TrainStep(device="meta", backend="triton", layers=model.layers, **arguments)
        layers = job.model.distinct_layers
        network = Transformer(
            job.model, sides, precision=workload.precision, device=META, max_tokens=slots, layers=layers
        )
        if workload.phase == "train_step":
            job.adjust(network)
            given = network.described(batch, length, job.documents(batch, length), job.routing(batch * length))
            network.loss(tokens[:, :-1], tokens[:, 1:], given).backward()
            return made
        cache = KVCache(job.model, len(layers), batch, slots, DTYPES[workload.precision], META)
        if workload.phase == "prefill":
            network.prefill(tokens[:, :-1], cache)
        else:
            network.decode(tokens[:, 0], cache)
    return made


def op_of(launch: Launch, ops: dict[str, Op]) -> str:
    """The op whose file, or whose further file (attention_backward), holds the kernel."""
    stem = launch.kernel.__module__.rsplit(".", 1)[-1]
    return max((name for name in ops if stem == name or stem.startswith(f"{name}_")), key=len)
