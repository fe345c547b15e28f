"""A stable counting sort of a mixture's assignments by expert, on the device: two launches, one where they are few.

`_count` counts the experts of each chunk of assignments; `_place` sums the counts of the chunks before its own and
of the experts before each, and so knows where every assignment goes. No atomics: the order is always the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

CHUNK = 1024  # assignments of one program


@triton.jit
def _hot(experts_ptr, place, total, expert, E):
    """1 where assignment `place` chose `expert`; one past the last, or of an expert outside 0 to E - 1, chose none."""
    chosen = tl.load(experts_ptr + place, place < total, other=-1)
    return ((chosen[:, None] == expert) & (expert < E)).to(tl.int32)


@triton.jit
def _counted(experts_ptr, first, total, E, CHUNK: tl.constexpr, STEP: tl.constexpr, BLOCK_E: tl.constexpr):
    """How often each expert was chosen from assignment `first` on."""
    expert = tl.arange(0, BLOCK_E)[None, :]
    count = tl.zeros((1, BLOCK_E), tl.int32)
    for i in range(first, tl.minimum(first + CHUNK, total), STEP):
        count += tl.sum(_hot(experts_ptr, i + tl.arange(0, STEP), total, expert, E), 0)[None, :]
    return count


@triton.jit
def _count(experts_ptr, counts_ptr, total, E, CHUNK: tl.constexpr, STEP: tl.constexpr, BLOCK_E: tl.constexpr):
    expert = tl.arange(0, BLOCK_E)[None, :]
    count = _counted(experts_ptr, tl.program_id(0) * CHUNK, total, E, CHUNK, STEP, BLOCK_E)
    tl.store(counts_ptr + tl.program_id(0) * E + expert, count, expert < E)


@triton.jit
def _place(
    experts_ptr, counts_ptr, source_ptr, slot_ptr, offs_ptr, total, chunks, E,
    ALONE: tl.constexpr, CHUNK: tl.constexpr, STEP: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    expert = tl.arange(0, BLOCK_E)[None, :]
    rows = tl.zeros((1, BLOCK_E), tl.int32)
    before = tl.zeros((1, BLOCK_E), tl.int32)
    if ALONE:
        rows = _counted(experts_ptr, 0, total, E, CHUNK, STEP, BLOCK_E)
    else:
        # every program sums all counts again: a few KiB from the cache, and a launch less
        for c in range(0, chunks, STEP):
            chunk = c + tl.arange(0, STEP)[:, None]
            count = tl.load(counts_ptr + chunk * E + expert, (chunk < chunks) & (expert < E), other=0)
            rows += tl.sum(count, 0)[None, :]
            before += tl.sum(tl.where(chunk < tl.program_id(0), count, 0), 0)[None, :]
    ends = tl.cumsum(rows, 1)
    if tl.program_id(0) == 0:
        tl.store(offs_ptr + expert, ends, expert < E)
    # where the next assignment of each expert goes
    following = ends - rows + before
    first = tl.program_id(0) * CHUNK
    for i in range(first, tl.minimum(first + CHUNK, total), STEP):
        place = i + tl.arange(0, STEP)
        hot = _hot(experts_ptr, place, total, expert, E)
        # the place among those of the same expert in this step, from 0
        rank = tl.cumsum(hot, 0) - 1
        chosen = tl.sum(hot, 1) > 0
        position = tl.where(chosen, tl.sum(hot * (following + rank), 1), -1)
        tl.store(source_ptr + position, place, chosen)
        tl.store(slot_ptr + place, position, place < total)
        following += tl.sum(hot, 0)[None, :]


def sorted_by_expert(experts: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """experts (T, k) -> of each sorted row its assignment t · k + j, of each assignment its row, and where experts end.

    An assignment of an expert outside 0 to count - 1 has no row: its place is -1, and what `source` holds from
    offs[-1] on is not written.
    """
    total = experts.numel()
    chunks = triton.cdiv(total, CHUNK)
    block = triton.next_power_of_2(count)
    counts, source, slot, offs = (
        torch.empty(size, dtype=torch.int32, device=experts.device) for size in ((chunks, count), total, total, count)
    )
    # at most 8192 cells of the table assignment x expert at a time: 64 registers of 128 threads
    sizes = {"CHUNK": CHUNK, "STEP": max(1, min(256, 8192 // block)), "BLOCK_E": block}
    # one chunk, as in decoding, is counted where it is placed
    if chunks > 1:
        _count[(chunks,)](experts, counts, total, count, **sizes)
    _place[(chunks,)](experts, counts, source, slot, offs, total, chunks, count, ALONE=chunks == 1, **sizes)
    return source, slot, offs
