"""How decode attention's work is shared out over the GPU, and how the pieces of a sequence are put together again.

The cache of a batch is one row of blocks of BLOCK_S positions, sequence after sequence. SLICES programs a head
cut that row into equal parts, wherever the sequences end (stream-K, https://arxiv.org/abs/2301.03598, as lean
attention uses it, https://arxiv.org/abs/2405.10480): slice i takes the blocks

    floor(i · total / SLICES) ... floor((i + 1) · total / SLICES) - 1.

So no length, however unlike the others, leaves multiprocessors idle; and the grid depends on shapes alone, while
the lengths that decide the cuts are read on the device. A sequence that lies within one slice is finished there.
Of the others every slice keeps at most two: the end of one begun before it (place 0 of the slice's two) and the
beginning of one that goes on (place 1), each a normalised o and its log-sum-exp to base 2. They are combined as

    o = Σ_i 2^(lse_i - max) · o_i / Σ_i 2^(lse_i - max).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from bench.kernels.op import processors

# below every score and finite: a row that sees nothing gets o = 0 and not NaN
LOWEST = tl.constexpr(-1e30)
LOG2_E = tl.constexpr(1.4426950408889634)
UNLIMITED = tl.constexpr(2**31 - 1)  # a window that hides nothing
UNCUT_BLOCKS = 4  # shorter sequences are read sooner than their pieces would be combined


@triton.jit
def block_count(length, window, BLOCK_S: tl.constexpr):
    """Blocks of the visible part. At least one, so that a sequence without positions still writes its zeros."""
    return tl.maximum(tl.cdiv(tl.minimum(length, window), BLOCK_S), 1)


@triton.jit
def _blocks(lengths_ptr, BATCH, window, BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr):
    sequence = tl.arange(0, BLOCK_B)
    length = tl.load(lengths_ptr + sequence, sequence < BATCH, other=0)
    return tl.where(sequence < BATCH, block_count(length, window, BLOCK_S), 0)


@triton.jit
def my_blocks(
    lengths_ptr, BATCH, window, SLICES, CUT: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr
):  # fmt: skip
    """Of this program's slice: its first sequence, one past its last, the first block of the first, all its blocks.

    Sequences after the first are entered at their block 0.
    """
    part = tl.program_id(1)
    if not CUT:
        return part, part + 1, part * 0, block_count(tl.load(lengths_ptr + part), window, BLOCK_S)
    blocks = _blocks(lengths_ptr, BATCH, window, BLOCK_S, BLOCK_B)
    total = tl.sum(blocks, 0)
    # 64 bits: 1M positions x 256 sequences x 132 slices
    start = (part.to(tl.int64) * total // SLICES).to(tl.int32)
    stop = ((part + 1).to(tl.int64) * total // SLICES).to(tl.int32)
    end = tl.cumsum(blocks, 0)
    passed = end <= start
    sequence = tl.sum(passed.to(tl.int32), 0)
    past = sequence + (start < stop).to(tl.int32) + tl.sum(((end > start) & (end < stop)).to(tl.int32), 0)
    return sequence, past, start - tl.sum(tl.where(passed, blocks, 0), 0), stop - start


@triton.jit
def cache_rows(table_ptr, b, s, place, used, stride_b, stride_s, PAGE_BITS: tl.constexpr, ALIGNED: tl.constexpr):
    """Where in the cache the positions s + place of sequence b begin; table_ptr is its row of the block table."""
    if PAGE_BITS and ALIGNED and place.shape[0] <= (1 << PAGE_BITS):
        # all of the tile in one page: what differs between rows fits 32 bits
        page = tl.load(table_ptr + (s >> PAGE_BITS)).to(tl.int64)
        return page * stride_b + ((s & ((1 << PAGE_BITS) - 1)) + place) * stride_s
    position = s + place
    if PAGE_BITS:
        # the table past a sequence's end may hold anything: it is not read
        page = tl.load(table_ptr + (position >> PAGE_BITS), used, other=0).to(tl.int64)
        return page * stride_b + (position & ((1 << PAGE_BITS) - 1)) * stride_s
    # 64 bits: a cache of 1M positions x 8 heads x 128 is 2^30 elements a sequence
    return b.to(tl.int64) * stride_b + position.to(tl.int64) * stride_s


@triton.jit
def store_piece(
    acc, peak, total, o_ptr, part_ptr, lse_ptr, b, head, mask, whole, first, v_scale, NQ,
    D: tl.constexpr,
):  # fmt: skip
    """acc, all D columns or the first of them: of a whole sequence to o, of a piece to its slice's place."""
    out = acc * (v_scale / tl.where(total > 0, total, 1.0))[:, None]
    tile = head[:, None] * D + tl.arange(0, acc.shape[1])[None, :]
    if whole:
        tl.store(o_ptr + b.to(tl.int64) * NQ * D + tile, out.to(o_ptr.dtype.element_ty), mask[:, None])
    else:
        place = (tl.program_id(1) * 2 + (first == 0).to(tl.int32)).to(tl.int64) * NQ
        tl.store(lse_ptr + place + head, peak + tl.log2(total), mask)
        tl.store(part_ptr + place * D + tile, out.to(part_ptr.dtype.element_ty), mask[:, None])


@triton.jit
def _combine(
    part_ptr, lse_ptr, o_ptr, lengths_ptr, BATCH, window, NQ, SLICES,
    D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    head, b = tl.program_id(0), tl.program_id(1)
    blocks = _blocks(lengths_ptr, BATCH, window, BLOCK_S, BLOCK_B)
    sequence = tl.arange(0, BLOCK_B)
    total = tl.sum(blocks, 0)
    start = tl.sum(tl.where(sequence < b, blocks, 0), 0)
    stop = start + tl.sum(tl.where(sequence == b, blocks, 0), 0)
    # the slice of block x: the last i with floor(i · total / SLICES) <= x
    first = (((start + 1).to(tl.int64) * SLICES - 1) // total).to(tl.int32)
    last = ((stop.to(tl.int64) * SLICES - 1) // total).to(tl.int32)
    # one slice has finished it
    if first < last:
        dim, piece = tl.arange(0, D), tl.arange(0, BLOCK_P)
        acc = tl.zeros((D,), tl.float32)
        peak, weights = float("-inf"), 0.0
        for i in range(first, last + 1, BLOCK_P):
            at = i + piece
            # slices that fell empty, where slices outnumber blocks, stored nothing
            took = (at <= last) & ((at + 1).to(tl.int64) * total // SLICES > at.to(tl.int64) * total // SLICES)
            place = (at * 2 + (at == first).to(tl.int32)).to(tl.int64) * NQ + head
            lse = tl.load(lse_ptr + place, took, other=float("-inf"))
            part = tl.load(part_ptr + place[:, None] * D + dim[None, :], took[:, None], other=0)
            new_peak = tl.maximum(peak, tl.max(lse, 0))
            weight = tl.exp2(lse - new_peak)
            shrink = tl.exp2(peak - new_peak)
            acc = acc * shrink + tl.sum(part * weight[:, None], 0)
            weights = weights * shrink + tl.sum(weight, 0)
            peak = new_peak
        row = b.to(tl.int64) * NQ + head
        tl.store(o_ptr + row * D + dim, (acc / weights).to(o_ptr.dtype.element_ty))


def batch_block(batch: int) -> int:
    """Lengths a program holds at once: all, to a power of two; at least a warp's, so that batches share kernels."""
    return max(32, triton.next_power_of_2(batch))


class Share(NamedTuple):
    """How one call is cut. Uncut, every program takes one sequence and nothing is left to combine."""

    cut: bool
    slices: int
    part: torch.Tensor  # (slices, 2, nq, width) o of pieces, fp32
    lse: torch.Tensor  # (slices, 2, nq)


def share(columns: int, o: torch.Tensor, blocks: int, per_processor: int) -> Share:
    """The cut for o (B, nq, width), from shapes alone.

    blocks: what a sequence may have at most. columns: the programs that read every position, one a key head or a
    tile of query heads.
    """
    batch, heads, width = o.shape
    if blocks <= UNCUT_BLOCKS:
        return Share(False, batch, o, o)
    count = max(1, min(per_processor * processors(o.device) // columns, batch * blocks))
    # where it idles few programs: whole slices a sequence, or sequences a slice, so that equal lengths need fewer cuts
    even = count // batch * batch if count >= batch else triton.cdiv(batch, triton.cdiv(batch, count))
    count = even if 10 * even >= 9 * count else count
    part = torch.empty((count, 2, heads, width), dtype=torch.float32, device=o.device)
    return Share(True, count, part, torch.empty(part.shape[:3], dtype=torch.float32, device=o.device))


def combine(cut: Share, o: torch.Tensor, lengths: torch.Tensor, window: int, block_s: int) -> None:
    """Into o the sequences that were cut; the others are there already."""
    batch, heads, width = o.shape
    _combine[(heads, batch)](
        cut.part, cut.lse, o, lengths, batch, window, heads, cut.slices,
        # 16 KiB of partial results at a time
        D=width, BLOCK_S=block_s, BLOCK_B=batch_block(batch), BLOCK_P=max(4, 4096 // width), num_warps=4,
    )  # fmt: skip
