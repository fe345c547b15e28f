"""What the whole model launches in the cells of suite `quick`, recorded with no GPU: an op's own shapes miss some.

The first norm has no residual, decoding calls with one token, the last position has a matmul of its own: a model's
calls are more than its ops' listed shapes. One layer is enough, all layers launch alike.
"""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

import torch

from bench.config import Model, Suite, Workload, load
from bench.kernels.op import Op
from bench.model.transformer import DTYPES, KVCache, Transformer
from tests.aot.compile_check import Launch, recorded_launches

META = torch.device("meta")


def cells() -> list[tuple[Model, Workload]]:
    """Model and workload of every cell that suite `quick` runs on backend triton."""
    groups = [group for group in load(Suite, "quick").groups if group.models and "triton" in group.backends]
    return [
        (load(Model, model), load(Workload, workload))
        for group in groups
        for model in group.models
        for workload in group.workloads
    ]


def record(ops: dict[str, Op], model: Model, workload: Workload, arch: int) -> list[Launch]:
    """Every launch of one step of the cell at one layer, on tensors without memory."""
    slots = workload.input_tokens + workload.output_tokens + 1
    sides = SimpleNamespace(**{name: op.triton for name, op in ops.items()})
    tokens = torch.zeros((workload.batch_size, workload.input_tokens + 1), dtype=torch.int64, device=META)
    with recorded_launches(arch) as made, patch.object(Transformer, "initialise"):
        network = Transformer(model, sides, precision=workload.precision, device=META, max_tokens=slots, layers=1)
        cache = KVCache(model, 1, workload.batch_size, slots, DTYPES[workload.precision], META)
        if workload.phase == "train_step":
            network.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        elif workload.phase == "prefill":
            network.prefill(tokens[:, :-1], cache)
        else:
            network.decode(tokens[:, 0], cache)
    return made


def op_of(launch: Launch, ops: dict[str, Op]) -> str:
    """The op whose file, or whose further file (attention_backward), holds the kernel."""
    stem = launch.kernel.__module__.rsplit(".", 1)[-1]
    return max((name for name in ops if stem == name or stem.startswith(f"{name}_")), key=len)
