"""Run by torchrun in tests/test_parallel.py: a few training steps on every rank, and rank 0 prints what came out."""

import dataclasses
import json
import os

import torch
from torch.distributed.tensor import DTensor

from bench.architecture import Model
from bench.config import load
from bench.measure.ranks import joined
from bench.model.parallel import mean_over_ranks
from bench.workload import Workload
from bench.workloads.train_step import TrainStep
from tests.architectures import shrunk

STEPS, TOKENS = 3, 24
CPU = torch.device("cpu")
DENSE = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 96, "vocab": 98}
PACKED = {"document_tokens_median": 7.0, "document_tokens_sigma": 0.8}
# case -> (model, its sizes, what the workload has beyond the common)
CASES = {
    "data": ("llama_3_2_1b", DENSE | {"tie_embeddings": True}, {}),
    "data, packed, checkpointed": ("qwen3_8b", DENSE, PACKED | {"checkpointing": "full"}),
    "data, bf16": ("llama_3_2_1b", DENSE, {"precision": "bf16", "optimizer_states": "bf16"}),
    "data, adapters": ("llama_3_1_8b", DENSE, {"lora_rank": 2}),
    "data, experts": ("gpt_oss_20b", {"layers": 2}, {}),
    "tensor": ("llama_3_1_8b", DENSE, {"tensor_parallel": 2}),
    "tensor, packed, tied": ("llama_3_2_1b", DENSE, PACKED | {"tensor_parallel": 2}),
}


def job(case: str, ranks: int, world: dict[str, int] | None) -> TrainStep:
    """The case on this rank: four sequences a step between all data ranks, however many there are."""
    key, sizes, options = CASES[case]
    options = options if world else options | {"tensor_parallel": 1}
    replicas = ranks // options.get("tensor_parallel", 1)
    common = {"key": "w", "phase": "train_step", "precision": "fp32", "input_tokens": TOKENS, "source": "test"}
    workload = Workload(**common | {"batch_size": 2 // replicas, "gradient_accumulation": 2} | options)
    model = shrunk(load(Model, key), **sizes)
    made = TrainStep(
        device="cpu",
        backend="reference",
        model=dataclasses.asdict(model),
        workload=dataclasses.asdict(workload),
        layers=model.layers,
        world=world,
    )
    made.prepare()
    rows = torch.randint(model.vocab, (4, TOKENS + 1), generator=torch.Generator().manual_seed(1))
    replica = world["rank"] // workload.tensor_parallel if world else 0
    own = rows.chunk(replicas)[replica]
    made.data = own.view(2, -1, TOKENS + 1)
    made.optimiser.learning_rate = 1e-2
    return made


def watched_tables(made: TrainStep) -> set[str]:
    """The dtypes in which layers get their rotary tables, as they come."""
    ops, found = made.model_under_test.ops, set()
    rope = ops.rope
    ops.rope = lambda q, k, cos, sin: (found.add(str(cos.dtype)), rope(q, k, cos, sin))[1]
    return found


def losses(made: TrainStep) -> list[float]:
    """The step's loss over all sequences, at each step."""
    found = []
    for _ in range(STEPS):
        made.step()
        found.append(float(mean_over_ranks(made.last_loss) if made.world else made.last_loss))
    return found


def norms(made: TrainStep) -> dict[str, float]:
    """The norm of every weight; of a tensor-parallel one over the ranks that share it."""
    found = {}
    for name, weight in made.model_under_test.named_parameters():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        found[name] = float(whole.detach().double().norm())
    return found


def main() -> None:
    """Every case on these ranks; also that each counts the work of all."""
    world = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"]), "group": "test"}
    out = {}
    with joined(world, "cpu"):
        for case in CASES:
            made = job(case, world["world_size"], world)
            tables = watched_tables(made)
            out[case] = {"losses": losses(made), "norms": norms(made), "flops": made.flops}
            out[case]["tables"] = sorted(tables)
            out[case]["tokens"] = made.tokens_per_step
    if world["rank"] == 0:
        print(json.dumps(out))


if __name__ == "__main__":
    main()
