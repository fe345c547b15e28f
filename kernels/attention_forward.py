"""Forward kernel of `attention`, and what it shares with the backward kernels: tile loads, visibility, launch sizes.

Keys of a query tile are walked in up to three loops, so that only the edges of what is visible pay for a mask:

    0  the lower edge: keys some rows of the tile see and others, past their window or document, do not
    1  keys every row of the tile sees: no mask
    2  the diagonal

Without window and documents loop 0 is empty and left out; under a narrow window one masked loop does all. On sm_90
and sm_100 tiles are copied by the tensor memory accelerator (TMA) through descriptors made on the host; on sm_80, and
for memory that is not 16-byte aligned, through pointers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.kernels.op import architecture
from bench.kernels.tuning import tuned

LOG2_E = 1.4426950408889634
LOG2_E_DEVICE = tl.constexpr(LOG2_E)  # a kernel may read no plain global
LOWEST = tl.constexpr(-3.4028234663852886e38)  # of fp32; unlike -inf it may be subtracted from -inf


@triton.jit
def load_tile(
    source, b, head, first, stride_b, stride_t, stride_h, length,
    MASKED: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """BLOCK rows of D from row `first` of one head. Rows past the end are zeros: they add nothing to a product."""
    if TMA:
        # (B, heads, T, d): the copy itself bounds T, so a tile never runs into the next sequence
        value = source.load([b, head, first, 0]).reshape(BLOCK, D)
    else:
        # 64 bits only in the scalar, the tile's offsets stay cheap
        start = source + b.to(tl.int64) * stride_b + tl.cast(first, tl.int64) * stride_t
        start += tl.cast(head, tl.int64) * stride_h
        row = tl.arange(0, BLOCK)[:, None]
        mask = first + row < length if MASKED else None
        value = tl.load(start + row * stride_t + tl.arange(0, D)[None, :], mask, other=0 if MASKED else None)
    return value


@triton.jit
def store_tile(
    ptr, b, head, first, length, heads, value,
    BLOCK: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SKIP: tl.constexpr = 0,
):  # fmt: skip
    """`value` to columns SKIP to SKIP + D of rows of a contiguous (B, T, heads, WIDTH)."""
    row = tl.arange(0, BLOCK)[:, None]
    start = ptr + ((b.to(tl.int64) * length + first) * heads + head) * WIDTH + SKIP
    tile = start + row * heads * WIDTH + tl.arange(0, D)[None, :]
    tl.store(tile, value.to(ptr.dtype.element_ty), first + row < length)


@triton.jit
def lowest_key(row, starts_ptr, T, WINDOW: tl.constexpr, PACKED: tl.constexpr):
    """The first key each of these rows sees; it never falls from one row to the next."""
    low = row * 0
    if WINDOW:
        low = tl.maximum(row - WINDOW + 1, 0)
    if PACKED:
        low = tl.maximum(low, tl.load(starts_ptr + tl.minimum(row, T - 1)))
    return low


@triton.jit
def key_ranges(
    first, starts_ptr, T,
    M: tl.constexpr, N: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr, LOOPS: tl.constexpr,
):  # fmt: skip
    """Where the three loops over keys of the query tile at `first` begin, on multiples of N."""
    diagonal = first // N * N
    begin = first * 0
    full = begin
    if WINDOW or PACKED:
        begin = lowest_key(first, starts_ptr, T, WINDOW, PACKED) // N * N
        last = tl.minimum(first + M, T) - 1
        full = tl.minimum(tl.cdiv(lowest_key(last, starts_ptr, T, WINDOW, PACKED), N) * N, diagonal)
    if LOOPS == 1:
        diagonal = begin
    return begin, full, diagonal


@triton.jit
def _forward(
    q_in, k_in, v_in, q_tail_in, k_tail_in, o_ptr, lse_ptr, sinks_ptr, starts_ptr, scale, T, NQ,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h, v_stride_b, v_stride_t, v_stride_h,
    GROUP: tl.constexpr, D: tl.constexpr, TAIL: tl.constexpr, WINDOW: tl.constexpr, PACKED: tl.constexpr,
    SINKS: tl.constexpr, M: tl.constexpr, N: tl.constexpr, LOOPS: tl.constexpr, PRECISION: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    # heads side by side: those of one group read the same keys at the same time. The last rows, which see the
    # most keys, start first, so that the tail of the grid is short
    head, b = tl.program_id(0), tl.program_id(2)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * M
    row = first + tl.arange(0, M)
    q = load_tile(q_in, b, head, first, q_stride_b, q_stride_t, q_stride_h, T, True, M, D, TMA)
    if TAIL:
        q_tail = load_tile(q_tail_in, b, head, first, q_stride_b, q_stride_t, q_stride_h, T, True, M, TAIL, TMA)
    acc = tl.zeros((M, D), tl.float32)
    if SINKS:
        # a sink is a key that is always seen and has no value: the sum starts with it instead of with nothing
        sink = tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E_DEVICE
        peak = tl.zeros((M,), tl.float32) + tl.maximum(sink, LOWEST)
        total = tl.full((M,), 1.0, tl.float32)
    else:
        peak = tl.full((M,), LOWEST, tl.float32)
        total = tl.zeros((M,), tl.float32)
    low = lowest_key(row, starts_ptr, T, WINDOW, PACKED)
    begin, full, diagonal = key_ranges(first, starts_ptr, T, M, N, WINDOW, PACKED, LOOPS)
    for part in tl.static_range(3 - LOOPS, 3):
        start = begin if part == 0 else (full if part == 1 else diagonal)
        stop = full if part == 0 else (diagonal if part == 1 else tl.minimum(first + M, T))
        for n in range(start, stop, N):
            k = load_tile(k_in, b, head // GROUP, n, k_stride_b, k_stride_t, k_stride_h, T, part == 2, N, D, TMA)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            if TAIL:
                k_tail = load_tile(
                    k_tail_in, b, head // GROUP, n, k_stride_b, k_stride_t, k_stride_h, T, part == 2, N, TAIL, TMA
                )
                s = tl.dot(q_tail, tl.trans(k_tail), s, input_precision=PRECISION)
            key = n + tl.arange(0, N)[None, :]
            if part == 2:
                s = tl.where(row[:, None] >= key, s, float("-inf"))
            if part != 1 and (WINDOW or PACKED):
                s = tl.where(key >= low[:, None], s, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(s, 1) * scale)
            # the scale, log2(e) in it, and the maximum in one fused multiply-add
            p = tl.exp2(s * scale - new_peak[:, None])
            # what was summed under the old maximum is carried over to the new one
            shrink = tl.exp2(peak - new_peak)
            total = total * shrink + tl.sum(p, 1)
            v = load_tile(v_in, b, head // GROUP, n, v_stride_b, v_stride_t, v_stride_h, T, part == 2, N, D, TMA)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
            peak = new_peak
    # a row past the end may have seen no key
    total = tl.where(row < T, total, 1.0)
    tl.store(lse_ptr + (b.to(tl.int64) * NQ + head) * T + row, peak + tl.log2(total), row < T)
    store_tile(o_ptr, b, head, first, T, NQ, acc / total[:, None], M, D, D)


# (M queries, N keys, warps, stages) by architecture, kernel and head dimension (64: it or less; "tail": queries and
# keys are wider than values): the largest tiles that fit shared memory and for which ptxas spills nothing with
# Triton 3.6 and 3.7 (tests/aot). Forward at d = 64 takes narrower ones: under 128 registers two programs share a
# multiprocessor, one's exponentials under the other's products.
TILES = {
    80: {
        "forward": {"narrow": (64, 64, 4, 3), 64: (128, 64, 8, 3), 128: (128, 32, 8, 3), "tail": (64, 64, 8, 2)},
        "backward_kv": {"narrow": (64, 64, 8, 2), 64: (64, 128, 8, 2), 128: (64, 64, 8, 2), "tail": (64, 32, 8, 2)},
        "backward_q": {"narrow": (64, 32, 4, 2), 64: (128, 64, 8, 3), 128: (64, 64, 8, 2), "tail": (32, 64, 4, 2)},
    },
    90: {
        "forward": {"narrow": (64, 64, 4, 3), 64: (128, 64, 8, 3), 128: (128, 128, 8, 3), "tail": (128, 64, 8, 3)},
        "backward_kv": {"narrow": (64, 64, 4, 2), 64: (64, 128, 8, 2), 128: (64, 128, 8, 2), "tail": (64, 64, 8, 2)},
        "backward_q": {"narrow": (64, 64, 4, 2), 64: (128, 64, 8, 3), 128: (128, 128, 8, 2), "tail": (128, 64, 8, 2)},
    },
    100: {
        "forward": {"narrow": (64, 64, 4, 3), 64: (128, 64, 8, 3), 128: (128, 128, 8, 3), "tail": (128, 64, 8, 3)},
        "backward_kv": {"narrow": (64, 64, 4, 2), 64: (64, 128, 8, 2), 128: (64, 128, 8, 2), "tail": (64, 64, 8, 2)},
        "backward_q": {"narrow": (64, 64, 4, 2), 64: (128, 64, 8, 3), 128: (128, 64, 8, 3), "tail": (128, 64, 8, 2)},
    },
}
# a window no wider than this makes large tiles mostly masked; and one loop with a mask is then better than three of
# a tile or two each, which would never fill their pipelines
NARROW_WINDOW = 256


@dataclass(frozen=True)
class Call:
    """One call of the op: its tensors and what is visible, as every one of its kernels needs them."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    sinks: torch.Tensor | None
    starts: torch.Tensor | None  # first and past-the-last token of every token's document
    ends: torch.Tensor | None
    window: int  # 0: none
    scale: float

    def config(self, kernel: str) -> dict[str, Any]:
        """Constants and launch options: one shape always runs one program."""
        _, length, heads, width = self.q.shape
        d = self.v.shape[3]
        packed, group = self.starts is not None, heads // self.k.shape[2]
        narrow = 0 < self.window <= NARROW_WINDOW
        if self.q.dtype == torch.float32:
            # exact fp32 products run outside the tensor cores: for tests, not for speed
            tiles, precision = (32, 32, 4, 1), "ieee"
        else:
            size = "tail" if width > d else "narrow" if narrow else max(d, 64)
            tiles, precision = TILES[architecture(self.q.device)][kernel][size], "tf32"
        default: dict[str, Any] = dict(zip(("M", "N", "num_warps", "num_stages"), tiles, strict=True))
        possible = self._descriptors_possible()
        default["TMA"] = possible
        kind = "packed" if packed else "window" if self.window else "causal"
        config = tuned(f"attention.{kernel}", (width, group, kind, length.bit_length()), default, self.q.device)
        # a row of the table was measured with other memory
        config = config | {"TMA": config["TMA"] and possible}
        sizes: dict[str, Any] = {"GROUP": group, "D": d, "TAIL": width - d, "WINDOW": self.window, "PACKED": packed}
        sizes["PRECISION"] = precision
        if kernel != "backward_kv":
            sizes["LOOPS"] = 1 if narrow else 3 if packed or self.window else 2
        return sizes | config

    def _descriptors_possible(self) -> bool:
        """TMA wants Hopper, and addresses and strides in multiples of 16 bytes; fp32 tiles are not worth it."""
        if architecture(self.q.device) < 90 or self.q.dtype == torch.float32:
            return False
        return all(
            x.data_ptr() % 16 == 0
            and all(
                n == 1 or (s > 0 and s * x.element_size() % 16 == 0)
                for n, s in zip(x.shape[:3], x.stride()[:3], strict=True)
            )
            for x in (self.q, self.k, self.v)
        )

    def tails(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The columns of q and k past the value's width, or None."""
        d = self.v.shape[3]
        return (self.q[..., d:], self.k[..., d:]) if self.q.shape[3] > d else (None, None)

    def heads(self) -> tuple[torch.Tensor, torch.Tensor]:
        """q and k to the value's width."""
        d = self.v.shape[3]
        return self.q[..., :d], self.k[..., :d]

    def strides(self) -> tuple[int, ...]:
        return (*self.q.stride()[:3], *self.k.stride()[:3], *self.v.stride()[:3])


def source(x: torch.Tensor | None, block: int, config: Mapping[str, Any]) -> torch.Tensor | TensorDescriptor | None:
    """What a kernel loads tiles of `x` (B, T, heads, d) from: its descriptor, or the tensor. None of None."""
    if x is None or not config["TMA"]:
        return x
    x = x.transpose(1, 2)
    # nothing steps along a dimension of one, whose stride may be any number; a descriptor wants 16 bytes' multiple
    strides = [s if n > 1 else x.shape[3] for n, s in zip(x.shape[:3], x.stride()[:3], strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, block, x.shape[3]])


def launch_grid(x: int, y: int, z: int) -> tuple[int, int, int]:
    """The grid, where CUDA can launch it: y and z end at 65535."""
    if max(y, z) > 65535:
        raise ValueError(f"attention: at most 65535 sequences, heads and tiles of a sequence, got a grid {(x, y, z)}")
    return x, y, z


def forward(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """o (B, T, nq, d) and the base-2 log-sum-exp (B, nq, T) of the scores, sinks included."""
    batch, length, heads, _ = call.q.shape
    o = torch.empty((batch, length, heads, call.v.shape[3]), dtype=call.q.dtype, device=call.q.device)
    lse = torch.empty((batch, heads, length), dtype=torch.float32, device=call.q.device)
    config = call.config("forward")
    (q, k), (q_tail, k_tail) = call.heads(), call.tails()
    tiles = ((q, "M"), (k, "N"), (call.v, "N"), (q_tail, "M"), (k_tail, "N"))
    _forward[launch_grid(heads, triton.cdiv(length, config["M"]), batch)](
        *(source(x, config[rows], config) for x, rows in tiles),
        o, lse, call.sinks, call.starts, call.scale * LOG2_E, length, heads, *call.strides(),
        SINKS=call.sinks is not None, **config,
    )  # fmt: skip
    return o, lse
