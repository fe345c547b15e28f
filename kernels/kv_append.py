"""Write the keys and values of new tokens into the key-value cache, in place.

    k_cache[slot // block_size, slot % block_size] = k,  and v alike, for every token with slot >= 0

The cache is (blocks, block_size, nkv, d): pages of a paged cache (https://arxiv.org/abs/2309.06180), whose
`slots` are vLLM's slot mapping, or one block of S positions a sequence. A slot of -1 is padding: nothing is written.
An fp8 cache holds value / scale, saturated to the largest e4m3 number (https://arxiv.org/abs/2209.05433).
Multi-head latent attention has one cache: v and v_cache are None.

A head of a token is cut into chunks of a power of two, and a program copies a tile of chunks, of keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from bench.kernels.op import ARCHITECTURES, Op, Shape, architecture
from bench.kernels.tuning import tuned

# float64 is for the reference: the kernel divides in fp32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FP8 = torch.float8_e4m3fn
FP8_MAX = tl.constexpr(448.0)  # the largest finite e4m3 number


def _put(x: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    if scale is not None:
        # rounded to fp8 whatever the cache's dtype: the oracle's cache is float64
        wide = x.to(torch.promote_types(x.dtype, torch.float32)) / scale
        x = wide.clamp(-FP8_MAX.value, FP8_MAX.value).to(FP8)
    # padding repeats the token of the largest slot, so that no shape depends on data
    token = torch.where(slots < 0, slots.argmax(), torch.arange(len(slots), device=slots.device))
    slot = slots[token]
    at = slot.clamp_min(0)
    block, row = at // cache.shape[1], at % cache.shape[1]
    # where all is padding, slot 0 keeps what it has
    cache[block, row] = torch.where((slot < 0)[:, None, None], cache[block, row], x[token].to(cache.dtype))
    return cache


def reference(
    k: torch.Tensor, v: torch.Tensor | None, k_cache: torch.Tensor, v_cache: torch.Tensor | None,
    slots: torch.Tensor, k_scale: torch.Tensor | None = None, v_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """k, v (N, nkv, d), caches (blocks, block_size, nkv, d), slots (N,) all different but for -1 -> the caches."""
    values = None if v is None or v_cache is None else _put(v, v_cache, slots, v_scale)
    return _put(k, k_cache, slots, k_scale), values


@triton.jit
def _store(x, cache_ptr, mask, scale_ptr):
    # an fp8 cache has a scale
    if scale_ptr is not None:
        # IEEE division, as the reference divides; what is too large saturates: e4m3 has no infinity
        x = tl.clamp(tl.div_rn(x.to(tl.float32), tl.load(scale_ptr)), -FP8_MAX, FP8_MAX)
        # to nearest even here and not in the cast, because the interpreter's cast truncates. 2^e of x, or 2⁻⁶ where
        # e4m3 is subnormal; added, 1.5 · 2^(e + 20) leaves no bit of x below 2^(e - 3), the last that e4m3 keeps
        power = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        magic = tl.maximum(power, 0.015625) * 1572864.0
        x = (x + magic) - magic
    tl.store(cache_ptr, x.to(cache_ptr.dtype.element_ty), mask)


@triton.jit
def _append(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, k_scale_ptr, v_scale_ptr, ROWS, BLOCK_SIZE,
    k_stride_n, k_stride_h, v_stride_n, v_stride_h, cache_stride_b, cache_stride_s, cache_stride_h,
    NKV: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    token, part = row // (NKV * CHUNKS), row % (NKV * CHUNKS)
    head, chunk = (part // CHUNKS).to(tl.int64), part % CHUNKS
    slot = tl.load(slots_ptr + token, row < ROWS, other=-1)
    # padding is neither read nor written
    mask = (slot >= 0)[:, None]
    # slots are counted in 32 bits, elements in 64: a cache of 2M slots x 8 heads x 128 is 2³¹
    slot = slot.to(tl.int32)
    block, place = (slot // BLOCK_SIZE).to(tl.int64), (slot % BLOCK_SIZE).to(tl.int64)
    dim = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    cache = (block * cache_stride_b + place * cache_stride_s + head * cache_stride_h)[:, None] + dim
    wide = token.to(tl.int64)
    k = tl.load(k_ptr + (wide * k_stride_n + head * k_stride_h)[:, None] + dim, mask, other=0)
    if v_ptr is not None:
        v = tl.load(v_ptr + (wide * v_stride_n + head * v_stride_h)[:, None] + dim, mask, other=0)
        _store(v, v_cache_ptr + cache, mask, v_scale_ptr)
    _store(k, k_cache_ptr + cache, mask, k_scale_ptr)


def _check(
    k: torch.Tensor, v: torch.Tensor | None, k_cache: torch.Tensor, v_cache: torch.Tensor | None, slots: torch.Tensor,
    k_scale: torch.Tensor | None, v_scale: torch.Tensor | None,
) -> None:  # fmt: skip
    def refuse(condition: bool, message: str) -> None:
        if condition:
            raise ValueError(f"kv_append: {message}")

    refuse((v is None) != (v_cache is None), "v and v_cache go together")
    v, v_cache = (k, k_cache) if v is None or v_cache is None else (v, v_cache)
    refuse(k.dim() != 3 or k_cache.dim() != 4 or k.shape != v.shape, "want k, v (N, nkv, d) of one shape")
    refuse(k.numel() == 0 or k_cache.numel() == 0, "nothing may be empty")
    refuse(k_cache.shape[2:] != k.shape[1:], f"{k.shape} does not fit a cache {k_cache.shape}")
    same = k_cache.shape == v_cache.shape and k_cache.stride() == v_cache.stride()
    refuse(not same, "the caches must have one shape and the same strides")
    refuse(k.dtype not in DTYPES or v.dtype != k.dtype, f"want float32/16 or bfloat16, got {k.dtype}, {v.dtype}")
    scaled = k_cache.dtype == FP8
    refuse(not scaled and k_cache.dtype != k.dtype, f"a cache of {k_cache.dtype} for keys of {k.dtype}")
    refuse(scaled and architecture(k.device) < 90, "float8_e4m3fn caches need sm_90 or newer")
    refuse(k_cache.dtype != v_cache.dtype, f"caches of {k_cache.dtype} and {v_cache.dtype}")
    scales = (k_scale,) if v is k else (k_scale, v_scale)
    refuse(any((s is not None) != scaled for s in scales), "scales go with float8_e4m3fn caches, and only with them")
    refuse(any(s is not None and (s.dim() or s.dtype != torch.float32) for s in scales), "scales must be float32 ()")
    refuse(slots.shape != k.shape[:1] or slots.dtype != torch.int64, f"slots must be int64 (N,), got {slots.dtype}")
    refuse(not slots.is_contiguous(), "slots must be contiguous")
    refuse(any(x.stride(-1) != 1 for x in (k, v, k_cache)), "the last dimension must be contiguous")
    refuse(k_cache.shape[0] * k_cache.shape[1] >= 2**31, "slots must fit 32 bits")
    others = (v, k_cache, v_cache, slots, *scales)
    refuse(any(x is not None and x.device != k.device for x in others), "all tensors must be on one device")


def _config(rows: int, chunk: int, element: int, device: torch.device) -> dict[str, Any]:
    # 8 KiB of keys a program: four 128-bit words a thread; fewer rows where there are few, for more programs
    default = {"BLOCK_R": max(1, min(8192 // (chunk * element), triton.next_power_of_2(rows))), "num_warps": 4}
    return tuned("kv_append.append", (min(rows, 65536).bit_length(), chunk, element), default, device)


@torch.no_grad()
def kv_append(
    k: torch.Tensor, v: torch.Tensor | None, k_cache: torch.Tensor, v_cache: torch.Tensor | None,
    slots: torch.Tensor, k_scale: torch.Tensor | None = None, v_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """As `reference`. k and v may be slices of a packed projection; no host read, so safe in a CUDA graph."""
    _check(k, v, k_cache, v_cache, slots, k_scale, v_scale)
    tokens, heads, width = k.shape
    # the largest power of two that divides d: 576 is nine chunks of 64
    chunk = min(width & -width, 1024)
    rows = tokens * heads * (width // chunk)
    config = _config(rows, chunk, k.element_size(), k.device)
    _append[(triton.cdiv(rows, config["BLOCK_R"]),)](
        k, v, k_cache, v_cache, slots, k_scale, v_scale, rows, k_cache.shape[1],
        *k.stride()[:2], *(k if v is None else v).stride()[:2], *k_cache.stride()[:3],
        NKV=heads, CHUNKS=width // chunk, CHUNK=chunk, **config,
    )  # fmt: skip
    # autograd does not see what a kernel writes: a graph that saved a cache must refuse to go backward
    for cache in (k_cache, v_cache):
        if cache is not None:
            torch.autograd.graph.increment_version(cache)
    return k_cache, v_cache


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> dict[str, Any]:
    """k and v are slices of one packed projection; slots in random order; the cache has a quarter more than it needs.

    Where `padded`, every third token is padding.
    """
    tokens, nkv, d, size = (shape[key] for key in ("N", "nkv", "d", "block_size"))
    latent = shape.get("latent")

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, device=device, generator=generator)

    blocks = triton.cdiv(5 * tokens, 4 * size)
    slots = torch.randperm(blocks * size, device=device, generator=generator)[:tokens]
    if shape.get("padded"):
        slots[::3] = -1
    # the queries of a packed projection stand before them
    packed = draw(tokens, (1 if latent else 2) * nkv + 4, d).to(dtype)
    kind = FP8 if shape.get("fp8") else dtype
    given: dict[str, Any] = {"k": packed[:, 4 : 4 + nkv], "v": None if latent else packed[:, 4 + nkv :]}
    given |= {"k_cache": draw(blocks, size, nkv, d).to(kind), "slots": slots}
    given["v_cache"] = None if latent else draw(blocks, size, nkv, d).to(kind)
    if shape.get("fp8"):
        # small enough that some values saturate
        names = ("k_scale",) if latent else ("k_scale", "v_scale")
        given |= {name: 0.004 + 0.01 * torch.rand((), device=device, generator=generator) for name in names}
    return given


def flops(shape: Shape) -> int:
    """A division an element where the cache is fp8; otherwise nothing but copies, counted as one an element."""
    return shape["N"] * shape["nkv"] * shape["d"] * (1 if shape.get("latent") else 2)


def least_bytes(shape: Shape, element: int) -> int:
    """Read k and v, write as much to the cache, read 8 bytes of slot a token."""
    elements = shape["N"] * shape["nkv"] * shape["d"] * (1 if shape.get("latent") else 2)
    return elements * (element + (1 if shape.get("fp8") else element)) + 8 * shape["N"]


def _architectures(shape: Shape) -> tuple[int, ...]:
    return (90, 100) if shape.get("fp8") else ARCHITECTURES


OP = Op(
    reference=reference,
    triton=kv_append,
    inputs=inputs,
    shapes={
        "llama_3_1_8b_prefill": {"N": 8192, "nkv": 8, "d": 128, "block_size": 16},
        "llama_3_1_8b_prefill_fp8": {"N": 8192, "nkv": 8, "d": 128, "block_size": 16, "fp8": 1},
        "llama_3_1_8b_decode": {"N": 64, "nkv": 8, "d": 128, "block_size": 4096},
        "gpt_oss_20b_prefill": {"N": 8192, "nkv": 8, "d": 64, "block_size": 16},
        "deepseek_v3_mla_prefill": {"N": 8192, "nkv": 1, "d": 576, "block_size": 64, "latent": 1},
    },
    test_shapes={
        "paged": {"N": 40, "nkv": 2, "d": 64, "block_size": 16},
        "padded": {"N": 31, "nkv": 4, "d": 32, "block_size": 16, "padded": 1},
        "fp8": {"N": 33, "nkv": 2, "d": 64, "block_size": 16, "padded": 1, "fp8": 1},
        "latent": {"N": 20, "nkv": 1, "d": 576, "block_size": 32, "latent": 1},
        "latent_fp8": {"N": 20, "nkv": 1, "d": 80, "block_size": 32, "latent": 1, "fp8": 1},
        "odd": {"N": 7, "nkv": 3, "d": 36, "block_size": 5},
    },
    flops=flops,
    bytes=least_bytes,
    mutates=("k_cache", "v_cache"),
    candidates={
        "kv_append.append": ({"BLOCK_R": 16}, {"BLOCK_R": 64}, {"BLOCK_R": 16, "num_warps": 2}, {"num_warps": 8})
    },
    architectures=_architectures,
)
