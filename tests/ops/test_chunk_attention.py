"""chunk_attention: its formula written out a second time, what its launcher refuses, what is particular to it."""

import math
from typing import Any

import pytest
import torch

from bench.kernels import chunk_attention_forward
from bench.kernels.chunk_attention import FP8, OP
from bench.kernels.decode_attention import OP as DECODE
from bench.kernels.op import assume, relative_error, widened
from tests.ops.harness import CUDA, DEVICE, check, check_formula, f32, run

# name -> (new tokens, keys) of each sequence: at, before and behind the edges of pages, of key tiles and of row tiles
FIXED = {
    "ragged": ((1, 1), (16, 16), (17, 48), (40, 120)),
    "page64": ((1, 64), (33, 65), (45, 150)),
    "narrow_window": ((1, 48), (50, 97), (17, 150)),
    "window": ((1, 301), (33, 333), (17, 400)),
    "gpt_oss": ((1, 129), (17, 128), (9, 200)),
}


def int32(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)


def brute_chunk_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor, cu_seqlens: torch.Tensor,
    block_table: torch.Tensor, *, max_query: int, window: int | None = None, sinks: torch.Tensor | None = None,
    k_scale: float = 1.0, v_scale: float = 1.0, scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    out, (heads, d), size = torch.zeros_like(q), q.shape[1:], k_cache.shape[1]
    edges, table = cu_seqlens.tolist(), block_table.tolist()
    for b, length in enumerate(lengths.tolist()):
        at = [(table[b][key // size], key % size) for key in range(length)]
        k = torch.stack([k_cache[page, row] for page, row in at]) * k_scale
        v = torch.stack([v_cache[page, row] for page, row in at]) * v_scale
        run_length = edges[b + 1] - edges[b]
        assert 1 <= run_length <= max_query
        for j in range(run_length):
            position = length - run_length + j
            seen = slice(max(0, position + 1 - (window or length)), position + 1)
            for h in range(heads):
                head = h // (heads // k_cache.shape[2])
                weight = ((k[seen, head] @ q[edges[b] + j, h]) * (1 / math.sqrt(d) if scale is None else scale)).exp()
                total = weight.sum() + (0 if sinks is None else sinks[h].exp())
                out[edges[b] + j, h] = (weight / total) @ v[seen, head]
    return out


@pytest.mark.parametrize("shape", ["first", "fp8", "odd", "gpt_oss", "narrow_window"])
def test_reference_is_the_formula(shape: str) -> None:
    check_formula(OP, brute_chunk_attention, shape)


def call(**changes: Any) -> dict[str, Any]:
    """A call that is right but for `changes`: 3 and 1 new tokens behind 2 and 4."""
    given = {"q": f32(4, 2, 16), "k_cache": f32(2, 16, 2, 16), "v_cache": f32(2, 16, 2, 16), "max_query": 3}
    given |= {"lengths": int32(5, 5), "cu_seqlens": int32(0, 3, 4), "block_table": int32(0, 1).view(2, 1)}
    return given | changes


REFUSED = {
    "q of four": call(q=f32(1, 4, 2, 16)),
    "no tokens": call(q=f32(0, 2, 16)),
    "groups": call(q=f32(4, 3, 16)),
    "head dim": call(q=f32(4, 2, 24), k_cache=f32(2, 16, 2, 24), v_cache=f32(2, 16, 2, 24)),
    "head dim of the cache": call(q=f32(4, 2, 32)),
    "mixed": call(v_cache=f32(2, 16, 2, 16).half()),
    "cache of another dtype": call(q=f32(4, 2, 16).half()),
    "cache stride": call(v_cache=f32(2, 2, 16, 16).transpose(1, 2)),
    "page of 24": call(k_cache=f32(2, 24, 2, 16), v_cache=f32(2, 24, 2, 16)),
    "page of 8": call(k_cache=f32(2, 8, 2, 16), v_cache=f32(2, 8, 2, 16)),
    "lengths int64": call(lengths=int32(5, 5).long()),
    "lengths of another batch": call(lengths=int32(5, 5, 5)),
    "cu_seqlens int64": call(cu_seqlens=int32(0, 3, 4).long()),
    "cu_seqlens without the end": call(cu_seqlens=int32(0, 3)),
    "every other length": call(lengths=int32(5, 0, 5, 0)[::2]),
    "table int64": call(block_table=int32(0, 1).view(2, 1).long()),
    "table of another batch": call(block_table=int32(0).view(1, 1)),
    "table by columns": call(block_table=int32(0, 1, 0, 1).view(2, 2).t()),
    "max_query of none": call(max_query=0),
    "max_query past all tokens": call(max_query=5),
    "max_query that cannot hold them": call(max_query=1),
    "window of none": call(window=0),
    "scale of none": call(scale=0.0),
    "sinks of another size": call(sinks=f32(3)),
    "scales of no fp8": call(k_scale=f32(), v_scale=f32()),
    "fp8 without scales": call(k_cache=f32(2, 16, 2, 16).to(FP8), v_cache=f32(2, 16, 2, 16).to(FP8)),
    "q by columns": call(q=f32(4, 16, 2).transpose(1, 2)),
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_launcher_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^chunk_attention: ") as caught:
        OP.triton(**arguments)
    assert "\n" not in str(caught.value)


def test_the_call_the_refusals_change_is_right() -> None:
    assert torch.equal(OP.triton(**call()), f32(4, 2, 16))


def fixed(shape: str, sizes: tuple[tuple[int, int], ...], generator: torch.Generator) -> dict[str, Any]:
    """Inputs of a test shape with these (new tokens, keys) in place of drawn ones."""
    kwargs = OP.inputs(OP.test_shapes[shape], torch.float32, DEVICE, generator)
    runs, lengths = zip(*sizes, strict=True)
    cu_seqlens = int32(0, *runs).cumsum(0).int()
    q = torch.randn((sum(runs), *kwargs["q"].shape[1:]), device=DEVICE, generator=generator)
    return kwargs | {"q": q, "lengths": int32(*lengths), "cu_seqlens": cu_seqlens, "max_query": max(runs)}


@pytest.mark.parametrize(("shape", "sizes"), FIXED.items(), ids=FIXED)
def test_only_visible_positions_of_pages_are_read(
    shape: str, sizes: tuple[tuple[int, int], ...], generator: torch.Generator
) -> None:
    """NaN wherever nothing is visible: in pages, behind lengths, before windows; past its end the table names NaN."""
    kwargs = fixed(shape, sizes, generator)
    truth = run(OP.reference, widened(kwargs))
    table, size = kwargs["block_table"], kwargs["k_cache"].shape[1]
    for cache in ("k_cache", "v_cache"):
        clean = kwargs[cache]
        # one page more, which no sequence owns
        kwargs[cache] = clean.new_full((len(clean) + 1, *clean.shape[1:]), math.nan)
        for b, (new, length) in enumerate(sizes):
            first = max(0, length - new + 1 - kwargs.get("window", length))
            for position in range(first, length):
                page, row = int(table[b, position // size]), position % size
                kwargs[cache][page, row] = clean[page, row]
    for b, (_, length) in enumerate(sizes):
        table[b, -(-length // size) :] = len(clean)
    check(run(OP.triton, kwargs), truth, OP.tolerance[torch.float32])


@pytest.mark.parametrize("tile", [(64, 64), (16, 128)], ids=str)
def test_any_tile_gives_the_same(
    tile: tuple[int, int], generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of a GPU and others, across the edges of runs, windows and pages."""
    sizes = {"M": tile[0], "N": tile[1]}
    monkeypatch.setattr(chunk_attention_forward, "tuned", lambda kernel, key, default, device: default | sizes)
    for shape in ("page64", "window"):
        kwargs = fixed(shape, FIXED[shape], generator)
        check(run(OP.triton, kwargs), run(OP.reference, widened(kwargs)), OP.tolerance[torch.float32])


def test_new_tokens_one_by_one_are_decoding(generator: torch.Generator) -> None:
    """Runs of one token are what decode_attention does, sinks and all."""
    kwargs = fixed("gpt_oss", ((1, 1), (1, 129), (1, 200)), generator)
    others = {name: value for name, value in kwargs.items() if name not in ("cu_seqlens", "max_query")}
    check(run(OP.triton, kwargs), run(DECODE.reference, widened(others)), OP.tolerance[torch.float32])


def test_a_slice_of_a_packed_projection_and_of_the_caches(generator: torch.Generator) -> None:
    """q of the projection of q, k and v as it lies there; a layer's caches as slices of one allocation."""
    kwargs = fixed("ragged", ((1, 1), (2, 20), (3, 3), (5, 40)), generator)
    expected = OP.triton(**kwargs)
    tokens, heads, d = kwargs["q"].shape
    packed = torch.full((tokens, heads + 4, d), math.nan, device=DEVICE)
    packed[:, 1 : heads + 1] = kwargs["q"]
    both = torch.stack((kwargs["k_cache"], kwargs["v_cache"]), 1)
    views = {"q": packed[:, 1 : heads + 1], "k_cache": both[:, 0], "v_cache": both[:, 1]}
    assert torch.equal(OP.triton(**kwargs | views), expected)


def test_runs_and_keys_of_none_are_no_nan(generator: torch.Generator) -> None:
    """Padding of a captured batch: an empty run has no row, a sequence without keys is zero."""
    kwargs = fixed("ragged", ((3, 20), (0, 0), (5, 0), (7, 30)), generator)
    out, kept = OP.triton(**kwargs), fixed_like(kwargs, (0, 3))
    assert not out[3:8].any()
    check({"output 0": out[[0, 1, 2, *range(8, 15)]]}, run(OP.reference, widened(kept)), OP.tolerance[torch.float32])


def fixed_like(kwargs: dict[str, Any], sequences: tuple[int, ...]) -> dict[str, Any]:
    """The call with these sequences alone."""
    edges, index = kwargs["cu_seqlens"].tolist(), list(sequences)
    q = torch.cat([kwargs["q"][edges[b] : edges[b + 1]] for b in sequences])
    runs = [edges[b + 1] - edges[b] for b in sequences]
    fewer = {"lengths": kwargs["lengths"][index], "block_table": kwargs["block_table"][index]}
    return kwargs | fewer | {"q": q, "cu_seqlens": int32(0, *runs).cumsum(0).int(), "max_query": max(runs)}


def test_fp8_takes_queries_of_any_size(generator: torch.Generator) -> None:
    """Products are in fp16: rows of q are brought into its range, the largest and the smallest."""
    kwargs = OP.inputs(OP.test_shapes["fp8"], torch.float16, DEVICE, generator)
    kwargs["q"] *= torch.tensor([1e-4, 1.0, 30.0, 1.0], device=DEVICE)[:, None].half()
    kwargs["q"][1] *= 1e-3
    kwargs["k_scale"] *= 0.01
    error = relative_error(OP.triton(**kwargs), OP.reference(**widened(kwargs)))
    assert error <= OP.tolerance[torch.float16]


@pytest.mark.skipif(CUDA, reason="a GPU is of one architecture")
def test_fp8_caches_want_sm_90(generator: torch.Generator) -> None:
    kwargs = OP.inputs(OP.test_shapes["fp8"], torch.float16, DEVICE, generator)
    with assume(80), pytest.raises(ValueError, match=r"^chunk_attention: .*sm_90[^\n]*$"):
        OP.triton(**kwargs)


def test_counts_are_those_of_the_pairs() -> None:
    """FLOPs and bytes counted one pair and one key at a time."""
    for shape in (OP.test_shapes["behind"], OP.test_shapes["narrow_window"]):
        window, pairs, keys = shape.get("window", shape["S"]), 0, set()
        for position in range(shape["S"] - shape["T"], shape["S"]):
            seen = range(max(0, position - window + 1), position + 1)
            pairs += len(seen)
            keys |= set(seen)
        assert OP.flops(shape) == 2 * 2 * shape["B"] * shape["nq"] * shape["d"] * pairs
        elements = 2 * len(keys) * shape["nkv"] * shape["d"] + 2 * shape["T"] * shape["nq"] * shape["d"]
        assert OP.bytes(shape, 2) == shape["B"] * elements * 2


@pytest.mark.skipif(not CUDA, reason="needs a CUDA device: CUDA graphs")
@pytest.mark.parametrize("shape", ["ragged", "fp8", "gpt_oss"])
def test_chunks_replay_in_a_cuda_graph(shape: str, generator: torch.Generator) -> None:
    """Longer sequences and other runs in a captured graph: both are read on the device, at replay."""
    kwargs = OP.inputs(OP.test_shapes[shape], torch.bfloat16, DEVICE, generator)
    OP.triton(**kwargs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = OP.triton(**kwargs)
    kwargs["lengths"].fill_(111)
    kwargs["cu_seqlens"][1:-1] += (kwargs["cu_seqlens"].diff()[1:] > 1).cumprod(0).int()
    graph.replay()
    assert torch.equal(out, OP.triton(**kwargs))
