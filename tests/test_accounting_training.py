"""FLOPs of every training workload against torch's flop counter, and against pairs of tokens counted one by one.

The counter sees each product that the reference ops make, forward and backward, and is exact. Where it sees other work
than the convention counts (bench/model/accounting.py), the difference is stated, exactly too:

    masks          packed documents and chunks lie end to end in one sequence: all B · T tokens are multiplied with all,
                   (B · T)², and masked after. The unhalved convention counts B · T²
    LoRA           nothing before the first layer is trained, so what reads the embedding makes no gradient of its
                   input. 4 P + 6 P_lora counts one
    checkpointing  what is computed again is never counted: steps run without, and what it adds is a test of its own

Windows, sinks, grouped and latent attention, routers, experts and shared experts, adapters and fp8 differ in nothing.
Workloads are found, not listed: with the models that suites give them, or with tiny ones. Large models run on tensors
without memory, a few layers of their real width, in bf16, where torch's grouped products multiply the experts' rows;
the counter is told what those are. Tiny ones run on a CPU, where `moe` is a loop over the experts that tokens went to.
"""

import contextlib
import dataclasses
from dataclasses import dataclass, field
from unittest.mock import patch

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from bench.architecture import Model
from bench.config import Suite, load, load_all
from bench.model import accounting
from bench.workload import Workload
from bench.workloads.train_step import TrainStep
from tests.architectures import DISTINCT, MODELS, shrunk

STEPS = {key: workload for key, workload in load_all(Workload).items() if workload.phase == "train_step"}


def cells() -> list[tuple[str, str]]:
    """(model, workload) of every training step that a suite has; a workload that none has, with a tiny model."""
    groups = [group for suite in load_all(Suite).values() for group in suite.groups]
    found = [(model, key) for group in groups for key in group.workloads if key in STEPS for model in group.models]
    for key in STEPS.keys() - {key for _, key in found}:
        mixture = STEPS[key].routing_zipf is not None or STEPS[key].expert_parallel > 1
        found.append(("tiny_moe" if mixture else "tiny_15m", key))
    return sorted(set(found))


# ---------------------------------------------------------------- what is seen of a step


@dataclass
class Attention:
    """One call of the op: FLOPs of a pair of tokens, and how many pairs by three ways of counting."""

    a_pair: int  # q · k and p · v, all heads
    made: int  # by the reference op
    unhalved: int
    visible: int | None  # None where the tensors have no memory to look at


@dataclass
class Seen:
    total: int = 0  # of torch's counter
    attention: int = 0  # of it, batched products
    calls: list[Attention] = field(default_factory=list)

    def forward(self, kind: str) -> int:
        """FLOPs of attention's forward with pairs counted that way."""
        return sum(call.a_pair * getattr(call, kind) for call in self.calls)


def visible(batch: int, length: int, window: int | None, ends: torch.Tensor | None) -> int:
    """Pairs that the call's own arguments leave unmasked, from the mask itself."""
    token = torch.arange(batch * length)
    document = token // length if ends is None else torch.searchsorted(ends, token, right=True)
    age = token[:, None] - token
    mask = (age >= 0) & (document[:, None] == document)
    return int((mask if window is None else mask & (age < window)).sum())


def noting(attention, calls: list[Attention]):
    """The op, with a note of each call."""

    def noted(q, k, v, *, window=None, sinks=None, cu_seqlens=None, scale=None):
        batch, length, heads, width = q.shape
        known = cu_seqlens is None or cu_seqlens.device.type != "meta"
        calls.append(
            Attention(
                a_pair=2 * heads * (width + v.shape[3]),
                made=batch * length**2 if cu_seqlens is None else (batch * length) ** 2,
                unhalved=batch * length**2,
                visible=visible(batch, length, window, cu_seqlens) if known and batch * length <= 1024 else None,
            )
        )
        return attention(q, k, v, window=window, sinks=sinks, cu_seqlens=cu_seqlens, scale=scale)

    return noted


def grouped_flops(a: tuple[int, ...], b: tuple[int, ...], *rest, **options) -> int:
    """Rows (M, K) by each group's matrix (G, K, N), or sums of K in groups (M, K) by (K, N): either way each once."""
    return 2 * a[0] * a[1] * b[-1]


def made(model: Model, workload: Workload, device: str, layers: int | None = None) -> TrainStep:
    asked = {"model": dataclasses.asdict(model), "workload": dataclasses.asdict(workload)}
    return TrainStep(device=device, backend="reference", layers=layers or model.layers, **asked)


def watched(job: TrainStep) -> Seen:
    """One step but for the optimiser, which multiplies no matrices."""
    seen = Seen()
    with contextlib.ExitStack() as stack:
        if job.device.type == "meta":
            for module in ("transformer", "lora"):
                stack.enter_context(patch(f"bench.model.{module}.initialise"))
        job.prepare()
        ops = job.model_under_test.ops
        ops.attention = noting(ops.attention, seen.calls)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # the counter sees nothing in a CPU's fused attention
        mapping = {torch.ops.aten._grouped_mm: grouped_flops}
        counter = stack.enter_context(FlopCounterMode(display=False, custom_mapping=mapping))
        for batch, given in zip(job.data, job.given, strict=True):
            job.loss(batch[:, :-1], batch[:, 1:], given).backward()
    seen.total = counter.get_total_flops()
    seen.attention = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(op))
    return seen


def first_inputs_gradient(job: TrainStep) -> int:
    """FLOPs of the gradient of the embedding's output, which LoRA does not need."""
    if job.workload.lora_rank is None:
        return 0
    block = job.model_under_test.stack[0].attention
    linears = [block.qkv] if hasattr(block, "qkv") else [block.down_query, block.down_key]
    sizes = sum(linear.weight.numel() + linear.adapter.inner.numel() for linear in linears)
    return 2 * job.tokens_per_step * sizes


def assert_counted(job: TrainStep, seen: Seen) -> None:
    """Both conventions' counts of the step are those of what was seen."""
    assert seen.attention == 3 * seen.forward("made") > 0
    products = seen.total - seen.attention
    assert job.flops_unhalved == products + 3 * seen.forward("unhalved") + first_inputs_gradient(job)
    if all(call.visible is not None for call in seen.calls):
        assert job.flops_unhalved - job.flops == 3 * (seen.forward("unhalved") - seen.forward("visible"))


# ---------------------------------------------------------------- every workload, every architecture


@pytest.mark.parametrize(("model", "workload"), cells())
def test_a_cells_flops_are_what_torchs_counter_sees(model, workload):
    plain = dataclasses.replace(STEPS[workload], checkpointing="none")
    real = model.startswith("tiny_") and plain.precision != "fp8"
    if real:  # a count does not depend on it, and a CPU is slow in bf16
        plain = dataclasses.replace(plain, precision="fp32")
    turns = MODELS[model].first_dense_layers + 2 * MODELS[model].period
    job = made(MODELS[model], plain, "cpu" if real else "meta", min(MODELS[model].layers, turns))
    seen = watched(job)
    assert len(seen.calls) == job.layers * plain.gradient_accumulation
    assert_counted(job, seen)


PACKED = {"document_tokens_median": 12.0, "document_tokens_sigma": 0.8}


@pytest.mark.parametrize("change", [{}, PACKED, PACKED | {"lora_rank": 3}], ids=["whole", "packed", "lora"])
@pytest.mark.parametrize("key", DISTINCT)
def test_every_architectures_flops_are_what_torchs_counter_sees(key, change):
    """Longer than its window and its chunks, so that each mask cuts something."""
    sizes = {"batch_size": 2, "input_tokens": 40}
    workload = Workload(phase="train_step", precision="fp32", source="", **sizes, **change)
    model = shrunk(MODELS[key])
    job = made(model, workload, "cpu", max(model.distinct_layers) + 2)
    assert job.flops < job.flops_unhalved
    assert_counted(job, watched(job))


def test_fp8_products_are_seen_on_a_gpu_too():
    """On a CPU they are fp32 products of the same sizes, on a GPU this one, which the counter knows."""
    assert torch.ops.aten._scaled_mm in flop_registry


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_what_checkpointing_computes_again_is_not_counted(mode):
    """Forward of each layer, or of its MLP, less the last product: backward needs its input alone."""
    model = MODELS["tiny_15m"]
    plain, again = (
        made(model, dataclasses.replace(STEPS["pretrain_dense_tiny"], checkpointing=each), "meta")
        for each in ("none", mode)
    )
    assert again.flops == plain.flops and again.flops_unhalved == plain.flops_unhalved
    tokens, (hidden, inner) = 1024, (384, 1280)
    computed_again = 2 * tokens * 6 * 2 * hidden * inner  # gate and up of six layers
    seen = watched(plain)
    if mode == "full":
        projections = 2 * hidden * hidden + 2 * hidden * 128
        computed_again += 2 * tokens * 6 * projections + seen.forward("made")
    assert watched(again).total - seen.total == computed_again


def test_several_gpus_do_as_many_times_the_work():
    model = MODELS["tiny_15m"]
    one, four = (accounting.train_step(model, 2, 64, 1, "bf16", replicas=n) for n in (1, 4))
    assert (four.flops, four.flops_unhalved) == (4 * one.flops, 4 * one.flops_unhalved)


def test_a_lora_step_reads_what_is_frozen_and_updates_adapters_alone():
    model, tokens = MODELS["tiny_15m"], 256
    # A and B of query, key, value, output, gate, up and down: rank times inputs and outputs
    sides = (384 + 384) + 2 * (384 + 128) + (384 + 384) + 2 * (384 + 1280) + (1280 + 384)
    adapters = 4 * 6 * sides
    assert accounting.adapter_params(model, 4) == adapters
    cost = accounting.train_step(model, 1, tokens, 2, "bf16", lora_rank=4, optimizer_states="bf16")
    assert cost.bytes == 2 * (2 * 2 * model.total_params + 2 * adapters) + 22 * adapters


def test_adapters_of_every_architecture_are_counted():
    """The parameters that are trained, on tensors without memory."""
    for key in MODELS:
        job = made(MODELS[key], dataclasses.replace(STEPS["finetune_lora"], checkpointing="none"), "meta", None)
        with patch("bench.model.transformer.initialise"), patch("bench.model.lora.initialise"):
            network = job.network(16)
            job.adjust(network)
        trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
        assert accounting.adapter_params(MODELS[key], 16) == trained, key


def test_the_cells_are_those_of_every_workload():
    assert {workload for _, workload in cells()} == set(STEPS) and len(load(Suite, "training").groups) > 5
