"""kv_append: its formula written out a second time, what its launcher refuses, what is particular to it."""

from typing import Any

import pytest
import torch

from bench.kernels.kv_append import FP8, OP
from bench.kernels.op import assume
from tests.ops.harness import CUDA, DEVICE, check_formula, copied, f32, far_heads, long


def brute_kv_append(
    k: torch.Tensor, v: torch.Tensor | None, k_cache: torch.Tensor, v_cache: torch.Tensor | None,
    slots: torch.Tensor, k_scale: torch.Tensor | None = None, v_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    given = ((k, k_cache, k_scale), (v, v_cache, v_scale))
    for new, cache, scale in given:
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0 and new is not None and cache is not None:
                row = new[token] if scale is None else (new[token] / scale).clamp(-448, 448).to(FP8).to(cache.dtype)
                cache[slot // cache.shape[1], slot % cache.shape[1]] = row
    return tuple(cache for _, cache, _ in given if cache is not None)


@pytest.mark.parametrize("shape", OP.test_shapes)
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_kv_append, shape)


def call(**changes: Any) -> dict[str, Any]:
    """A call that is right but for `changes`."""
    given = {"k": f32(2, 2, 16), "v": f32(2, 2, 16), "k_cache": f32(3, 4, 2, 16), "v_cache": f32(3, 4, 2, 16)}
    return given | {"slots": torch.arange(2, device=DEVICE)} | changes


REFUSED = {
    "slots int32": call(slots=long(2).int()),
    "slots of another size": call(slots=long(3)),
    "v without cache": call(v_cache=None),
    "heads": call(k=f32(2, 1, 16), v=f32(2, 1, 16)),
    "mixed": call(k=f32(2, 2, 16).half()),
    "cache dtype": call(k_cache=f32(3, 4, 2, 16).half(), v_cache=f32(3, 4, 2, 16).half()),
    "cache strides": call(v_cache=f32(4, 3, 2, 16).transpose(0, 1)),
    "stride": call(k=f32(2, 16, 2).transpose(1, 2)),
    "fp8 without scales": call(k_cache=f32(3, 4, 2, 16).to(FP8), v_cache=f32(3, 4, 2, 16).to(FP8)),
    "scales of no fp8": call(k_scale=f32(), v_scale=f32()),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^kv_append: ") as caught:
        OP.triton(**arguments)
    assert "\n" not in str(caught.value)


def test_the_call_the_refusals_change_is_right() -> None:
    given = call(k=2 * f32(2, 2, 16))
    k_cache, v_cache = OP.triton(**given)
    assert k_cache is given["k_cache"] and v_cache is given["v_cache"]
    assert k_cache.sum() == k_cache.numel() + 64


@pytest.mark.parametrize("shape", OP.test_shapes)
@pytest.mark.parametrize("side", ["triton", "reference"])
def test_other_slots_keep_every_bit(shape: str, side: str, generator: torch.Generator) -> None:
    """Caches of every byte there is, NaN too; what no slot names must come out as it went in, and inputs too."""
    kwargs = OP.inputs(OP.test_shapes[shape], torch.float16, DEVICE, generator)
    caches = [name for name in OP.mutates if kwargs[name] is not None]
    for name in caches:
        kwargs[name].view(torch.uint8).random_(generator=generator)
    before = copied(kwargs)
    getattr(OP, side)(**kwargs)
    used = kwargs["slots"][kwargs["slots"] >= 0]
    other = torch.ones(kwargs["k_cache"].shape[:2].numel(), dtype=torch.bool, device=DEVICE)
    other[used] = False
    for name, value in kwargs.items():
        if name in caches:
            now, then = (x.view(torch.uint8).flatten(0, 1) for x in (value, before[name]))
            assert torch.equal(now[other], then[other]) and not torch.equal(now[~other], then[~other])
        elif value is not None:
            assert torch.equal(value, before[name])


@pytest.mark.parametrize("side", ["triton", "reference"])
def test_padding_alone_writes_nothing(side: str) -> None:
    given = call(slots=-long(2), k_cache=3 * f32(3, 4, 2, 16))
    k_cache, v_cache = getattr(OP, side)(**given)
    assert (k_cache == 3).all() and (v_cache == 1).all()


@pytest.mark.parametrize("side", ["triton", "reference"])
def test_fp8_rounds_to_nearest_even_and_saturates(side: str) -> None:
    """Every finite e4m3 number comes back; between two of them the even one; beyond the last the last."""
    grid = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    middle = (grid[1:] + grid[:-1]) / 2
    even = torch.where(torch.arange(126) % 2 == 0, grid[:-1], grid[1:])
    values = torch.cat((grid, middle, torch.tensor([500.0, 1e6, 0.0])))
    wanted = torch.cat((grid, even, torch.tensor([448.0, 448.0, 0.0])))
    k = torch.stack((values, -values))[:, None].to(DEVICE)
    cache = torch.zeros((1, 2, 1, 256), device=DEVICE).to(FP8)
    slots = torch.arange(2, device=DEVICE)
    out, _ = getattr(OP, side)(k / 4, None, cache, None, slots, torch.tensor(0.25, device=DEVICE))
    assert torch.equal(out[0, :, 0].float().cpu(), torch.stack((wanted, -wanted)))


def test_contiguous_caches_are_blocks_of_one_sequence(generator: torch.Generator) -> None:
    """(B, S, nkv, d) and slot b · S + position; k and v are slices of a packed projection."""
    batch, capacity = 3, 7
    packed = torch.randn((batch, 6, 16), device=DEVICE, generator=generator)
    k_cache, v_cache = (torch.zeros((batch, capacity, 2, 16), device=DEVICE) for _ in range(2))
    position = torch.tensor([0, 6, 3], device=DEVICE)
    sequence = torch.arange(batch, device=DEVICE)
    OP.triton(packed[:, 2:4], packed[:, 4:], k_cache, v_cache, sequence * capacity + position)
    assert torch.equal(k_cache[sequence, position], packed[:, 2:4])
    assert torch.equal(v_cache[sequence, position], packed[:, 4:])
    assert int((k_cache != 0).sum()) == batch * 32


@pytest.mark.parametrize("far", ["k", "k_cache"])
def test_offsets_of_heads_pass_32_bits(far: str, generator: torch.Generator) -> None:
    kwargs = OP.inputs({"N": 4, "nkv": 3, "d": 16, "block_size": 4, "latent": 1}, torch.float16, DEVICE, generator)
    wanted, _ = OP.reference(**copied(kwargs))
    out, _ = OP.triton(**kwargs | {far: far_heads(kwargs[far])})
    assert torch.equal(out, wanted)


def test_a_graph_that_saved_a_cache_refuses_to_go_backward() -> None:
    given = call()
    weight = torch.ones((), device=DEVICE, requires_grad=True)
    for name in OP.mutates:
        loss = (weight * given[name]).sum()
        OP.triton(**given)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.skipif(CUDA, reason="a GPU is of one architecture")
def test_fp8_caches_want_sm_90(generator: torch.Generator) -> None:
    kwargs = OP.inputs(OP.test_shapes["fp8"], torch.float16, DEVICE, generator)
    with assume(80), pytest.raises(ValueError, match=r"^kv_append: .*sm_90[^\n]*$"):
        OP.triton(**kwargs)


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device: CUDA graphs")
def test_append_replays_in_a_cuda_graph(generator: torch.Generator) -> None:
    """Other slots in a captured graph: they are read on the device, at replay."""
    kwargs = OP.inputs(OP.test_shapes["padded"], torch.bfloat16, DEVICE, generator)
    OP.triton(**kwargs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        OP.triton(**kwargs)
    kwargs["slots"].copy_(kwargs["slots"].flip(0))
    wanted = copied(kwargs)
    OP.reference(**wanted)
    graph.replay()
    assert torch.equal(kwargs["k_cache"], wanted["k_cache"]) and torch.equal(kwargs["v_cache"], wanted["v_cache"])
