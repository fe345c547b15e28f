"""The kernels of `sampling`: see there for what they compute and in which order they run."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _scale(temperature_ptr, row, HAS_TEMPERATURE: tl.constexpr):
    """log2(e) / temperature, so that exp2 does the rest; temperature 0 leaves only the largest logit a mass."""
    scale = tl.full((), 1.4426950408889634, tl.float32)
    if HAS_TEMPERATURE:
        # finite: the largest logit's own exponent is 0 · scale
        scale = scale / tl.maximum(tl.load(temperature_ptr + row), 1e-30)
    return scale


@triton.jit
def _chunk(logits_ptr, row, row_stride, V: tl.constexpr, CHUNK: tl.constexpr):
    """Logits of this program's piece of the row, in fp32; -inf beyond its end."""
    col = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    return tl.load(logits_ptr + row * row_stride + col, col < V, other=float("-inf")).to(tl.float32)


@triton.jit
def _whole(survey_ptr, row, scale, C: tl.constexpr, CHUNKS: tl.constexpr):
    """Largest logit of the row, and by chunk: the mass relative to it and the smallest finite logit."""
    chunk = tl.arange(0, CHUNKS)
    place = survey_ptr + row * (3 * C) + chunk
    peaks = tl.load(place, chunk < C, other=float("-inf"))
    peak = tl.max(peaks, 0)
    mass = tl.load(place + C, chunk < C, other=0) * tl.exp2((peaks - peak) * scale)
    return peak, mass, tl.load(place + 2 * C, chunk < C, other=float("inf"))


@triton.jit
def _survey(
    logits_ptr, temperature_ptr, survey_ptr, row_stride,
    HAS_TEMPERATURE: tl.constexpr, V: tl.constexpr, CHUNK: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    # 64 bits: 16k rows of 152k columns pass 2³¹
    row = tl.program_id(0).to(tl.int64)
    scale = _scale(temperature_ptr, row, HAS_TEMPERATURE)
    x = _chunk(logits_ptr, row, row_stride, V, CHUNK)
    # finite, so that a chunk of -inf alone does not make -inf + inf
    peak = tl.maximum(tl.max(x, 0), -3e38)
    place = survey_ptr + row * (3 * C) + tl.program_id(1)
    tl.store(place, peak)
    tl.store(place + C, tl.sum(tl.exp2((x - peak) * scale), 0))
    tl.store(place + 2 * C, tl.min(tl.where(x > float("-inf"), x, float("inf")), 0))


@triton.jit
def _share(top_p_ptr, row):
    """top_p of the row, above 0: nothing at all would reach a share of 0, and it is to keep the largest logit."""
    return tl.maximum(tl.load(top_p_ptr + row), 1e-30)


@triton.jit
def _weigh(
    logits_ptr, temperature_ptr, top_p_ptr, survey_ptr, pivot_ptr, above_ptr, row_stride,
    HAS_TEMPERATURE: tl.constexpr, HAS_K: tl.constexpr, HAS_P: tl.constexpr,
    V: tl.constexpr, CHUNK: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, PIVOTS: tl.constexpr,
):  # fmt: skip
    """How many logits of the chunk, and how much mass, lie at or above each of a few pivots."""
    row = tl.program_id(0).to(tl.int64)
    scale = _scale(temperature_ptr, row, HAS_TEMPERATURE)
    x = _chunk(logits_ptr, row, row_stride, V, CHUNK)
    peak, mass, floors = _whole(survey_ptr, row, scale, C, CHUNKS)
    low = tl.minimum(tl.min(floors, 0), peak)
    if HAS_P and not HAS_K:
        # V tokens below this one have less than 1 - p of the mass: none of them bounds the nucleus
        p = _share(top_p_ptr, row)
        tail = tl.maximum(1 - p, 1e-30) * tl.sum(mass, 0) / V
        low = tl.where(p < 1, tl.maximum(low, peak + tl.minimum(tl.log2(tail), 0.0) / scale), low)
    j = tl.arange(0, PIVOTS)
    pivot = low + (peak - low) * (j.to(tl.float32) / PIVOTS)
    # stored once, for everyone: computed anew it might come out a bit different
    if tl.program_id(1) == 0:
        tl.store(pivot_ptr + row * PIVOTS + j, pivot)
    weight = tl.exp2((x - peak) * scale)
    place = above_ptr + (row * C + tl.program_id(1)) * (2 * PIVOTS)
    # one pivot after the other: all at once take registers from the programs beside this one
    for n in tl.static_range(PIVOTS):
        # 1 or 0 as a number: comparison, multiply-add and add are then all that an element costs
        inside = (x >= _at(pivot, j, n)).to(tl.float32)
        tl.store(place + n, tl.sum(inside * weight, 0))
        tl.store(place + PIVOTS + n, tl.sum(inside, 0))


@triton.jit
def _at(values, j, index):
    """values[index] of a vector, 0 beyond its end."""
    return tl.sum(tl.where(j == index, values, 0.0), 0)


@triton.jit
def _wanted(top_k_ptr, row, V: tl.constexpr):
    """top_k of the row in fp32; 0 or less, or more than V, is all."""
    k = tl.load(top_k_ptr + row)
    return tl.where((k <= 0) | (k > V), V, k).to(tl.float32)


@triton.jit
def _gather(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, survey_ptr, pivot_ptr, above_ptr,
    bracket_ptr, segment_ptr, list_ptr, row_stride,
    HAS_TEMPERATURE: tl.constexpr, HAS_K: tl.constexpr, HAS_P: tl.constexpr,
    V: tl.constexpr, CHUNK: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, PIVOTS: tl.constexpr,
    ROOM: tl.constexpr,
):  # fmt: skip
    """Choose the two neighbouring pivots the threshold lies between; list the logits between them, densely."""
    row, own = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x = _chunk(logits_ptr, row, row_stride, V, CHUNK)
    j = tl.arange(0, PIVOTS)
    chunk = tl.arange(0, CHUNKS)
    place = above_ptr + (row * C + chunk[:, None]) * (2 * PIVOTS) + j[None, :]
    masses = tl.load(place, (chunk < C)[:, None], other=0)
    counts = tl.load(place + PIVOTS, (chunk < C)[:, None], other=0)
    mass, count = tl.sum(masses, 0), tl.sum(counts, 0)
    pivot = tl.load(pivot_ptr + row * PIVOTS + j)
    # the number of the last pivot that still leaves enough above it; the first one always does
    first, last = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    if HAS_K:
        first = tl.sum(((count >= _wanted(top_k_ptr, row, V)) & (j > 0)).to(tl.int32), 0)
        last = first
    if HAS_P:
        p = _share(top_p_ptr, row)
        if HAS_K:
            # the mass of the top k is known as yet to lie above that of the next pivot
            total = _at(mass, j, first + 1)
        else:
            scale = _scale(temperature_ptr, row, HAS_TEMPERATURE)
            total = tl.sum(_whole(survey_ptr, row, scale, C, CHUNKS)[1], 0)
        nucleus = tl.sum(((mass >= p * total) & (j > 0)).to(tl.int32), 0)
        last = tl.maximum(first, tl.where(p < 1, nucleus, 0))
        if not HAS_K:
            first = last
    low = _at(pivot, j, first)
    high = tl.where(last + 1 < PIVOTS, _at(pivot, j, last + 1), float("inf"))
    # by chunk: mass and number at or above `high`, and how many are listed
    mass_above = tl.sum(tl.where(j[None, :] == last + 1, masses, 0.0), 1)
    above = tl.sum(tl.where(j[None, :] == last + 1, counts, 0.0), 1)
    listed = tl.sum(tl.where(j[None, :] == first, counts, 0.0), 1) - above
    start = tl.sum(tl.where(chunk < own, listed, 0.0), 0).to(tl.int32)
    # places by group of what one thread loads at once, so that the long scan has few steps
    GROUP: tl.constexpr = 128 // list_ptr.dtype.element_ty.primitive_bitwidth
    x = tl.reshape(x, (CHUNK // GROUP, GROUP))
    inside = (x >= low) & (x < high)
    number = tl.sum(inside.to(tl.int32), 1)
    position = (start + tl.cumsum(number, 0) - number)[:, None] + tl.cumsum(inside.to(tl.int32), 1) - 1
    tl.store(list_ptr + row * ROOM + position, x.to(list_ptr.dtype.element_ty), inside)
    if own == 0:
        tl.store(bracket_ptr + row * 3, low)
        tl.store(bracket_ptr + row * 3 + 1, high)
        tl.store(bracket_ptr + row * 3 + 2, tl.sum(above, 0))
        tl.store(segment_ptr + row * (2 * C) + chunk, mass_above, chunk < C)
        tl.store(segment_ptr + row * (2 * C) + C + chunk, listed, chunk < C)


@triton.jit
def _key(x, SHIFT: tl.constexpr):
    """The place of a float among all of its type: an integer that grows with it. SHIFT drops bits always 0."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT).to(tl.int64)


@triton.jit
def _value(key, SHIFT: tl.constexpr):
    """The least fp32 number with this key."""
    bits = (key << SHIFT).to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _listed(list_ptr, at, begin, end, TILE: tl.constexpr):
    """A tile of the list, -inf outside [begin, end). The load has no mask: the list has room, and stays 128 bits."""
    slot = tl.multiple_of(at, 16) + tl.arange(0, TILE)
    x = tl.load(list_ptr + slot).to(tl.float32)
    return slot, tl.where((slot >= begin) & (slot < end), x, float("-inf"))


@triton.jit
def _sum_from(
    list_ptr, n, threshold, peak, scale,
    BY_MASS: tl.constexpr, WAYS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Mass, or number, of the listed logits at or above each of WAYS thresholds."""
    # every thread its own sums: added up over threads once, not once a tile
    got = tl.zeros((WAYS, TILE), tl.float32)
    for at in tl.range(0, n, TILE, num_stages=4):
        _, x = _listed(list_ptr, at, 0, n, TILE)
        inside = (x[None, :] >= threshold[:, None]).to(tl.float32)
        if BY_MASS:
            inside *= tl.exp2((x - peak) * scale)[None, :]
        got += inside
    return tl.sum(got, 1)


@triton.jit
def _search(
    list_ptr, n, low, high, target, peak, scale,
    BY_MASS: tl.constexpr, SHIFT: tl.constexpr, WAYS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Largest key above which the listed logits reach the target; `low` is known to, `high` not to."""
    j = tl.arange(0, WAYS)
    while high - low > 1:
        step = (high - low + WAYS - 1) // WAYS
        got = _sum_from(list_ptr, n, _value(low + step * j, SHIFT), peak, scale, BY_MASS, WAYS, TILE)
        # steps past `high` do not count
        steps = ((high - low + step - 1) // step).to(tl.int32)
        best = tl.sum(((got >= target) & (j > 0) & (j < steps)).to(tl.int32), 0).to(tl.int64)
        low, high = low + step * best, tl.minimum(low + step * (best + 1), high)
    return low


@triton.jit
def _add_listed(
    mass, list_ptr, listed, threshold, peak, scale,
    C: tl.constexpr, CHUNKS: tl.constexpr, FEW: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Mass by chunk with that of the listed logits at or above the threshold added, a few chunks at a time."""
    chunk = tl.arange(0, CHUNKS)
    ends = tl.cumsum(listed, 0)
    for first in range(0, C, FEW):
        own = chunk[:, None] == (first + tl.arange(0, FEW))[None, :]
        end = tl.sum(tl.where(own, ends[:, None], 0), 0)
        begin = end - tl.sum(tl.where(own, listed[:, None], 0), 0)
        # chunks lie in order; those beyond the last one are empty
        right = tl.max(end, 0)
        left = tl.sum(tl.where(chunk < first, listed, 0), 0)
        got = tl.zeros((FEW, TILE), tl.float32)
        for at in tl.range(left // 16 * 16, right, TILE, num_stages=4):
            slot, x = _listed(list_ptr, at, left, right, TILE)
            weight = tl.where(x >= threshold, tl.exp2((x - peak) * scale), 0.0)
            inside = (slot[None, :] >= begin[:, None]) & (slot[None, :] < end[:, None])
            got += tl.where(inside, weight[None, :], 0.0)
        mass += tl.sum(tl.where(own, tl.sum(got, 1)[None, :], 0.0), 1)
    return mass


@triton.jit
def _draw(
    logits_ptr, uniform_ptr, temperature_ptr, top_k_ptr, top_p_ptr, survey_ptr, bracket_ptr, segment_ptr, list_ptr,
    token_ptr, row_stride,
    HAS_TEMPERATURE: tl.constexpr, HAS_K: tl.constexpr, HAS_P: tl.constexpr, SHIFT: tl.constexpr,
    V: tl.constexpr, CHUNK: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, ROOM: tl.constexpr,
    WAYS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The exact threshold from the list; the chunk, then the token, in which the cumulative mass passes uniform."""
    row = tl.program_id(0).to(tl.int64)
    scale = _scale(temperature_ptr, row, HAS_TEMPERATURE)
    uniform = tl.load(uniform_ptr + row)
    if HAS_TEMPERATURE:
        uniform = tl.where(tl.load(temperature_ptr + row) > 0, uniform, 0.0)
    peak, mass, _ = _whole(survey_ptr, row, scale, C, CHUNKS)
    chunk = tl.arange(0, CHUNKS)
    threshold = tl.full((), float("-inf"), tl.float32)
    if HAS_K or HAS_P:
        total = tl.sum(mass, 0)
        list_ptr += row * ROOM
        mass = tl.load(segment_ptr + row * (2 * C) + chunk, chunk < C, other=0)
        listed = tl.load(segment_ptr + row * (2 * C) + C + chunk, chunk < C, other=0).to(tl.int32)
        n, above = tl.sum(listed, 0), tl.sum(mass, 0)
        low = _key(tl.load(bracket_ptr + row * 3), SHIFT)
        # a value below `high` may share its key where bits were dropped
        high = _key(tl.load(bracket_ptr + row * 3 + 1), SHIFT) + 1
        if HAS_K:
            k = _wanted(top_k_ptr, row, V)
            target = k - tl.load(bracket_ptr + row * 3 + 2)
            top = tl.where(k < V, high, low + 1)
            low = _search(list_ptr, n, low, top, target, peak, scale, False, SHIFT, WAYS, TILE)
        if HAS_P:
            if HAS_K:
                bound = _value(low + tl.arange(0, 1), SHIFT)
                total = above + tl.sum(_sum_from(list_ptr, n, bound, peak, scale, True, 1, TILE), 0)
            p = _share(top_p_ptr, row)
            top = tl.where(p < 1, high, low + 1)
            low = _search(list_ptr, n, low, top, p * total - above, peak, scale, True, SHIFT, WAYS, TILE)
        threshold = _value(low, SHIFT)
        mass = _add_listed(mass, list_ptr, listed, threshold, peak, scale, C, CHUNKS, WAYS // 2, TILE)
    # rounding may put the target at the very end: the last chunk with mass takes it
    target = uniform * tl.sum(mass, 0)
    passed = tl.sum((tl.cumsum(mass, 0) <= target).to(tl.int32), 0)
    chosen = tl.minimum(passed, tl.max(tl.where(mass > 0, chunk, 0), 0))
    rest = target - tl.sum(tl.where(chunk < chosen, mass, 0.0), 0)
    col = chosen * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits_ptr + row * row_stride + col, col < V, other=float("-inf")).to(tl.float32)
    weight = tl.where(x >= threshold, tl.exp2((x - peak) * scale), 0.0)
    hit = (tl.cumsum(weight, 0) > rest) & (weight > 0)
    # and so may the last token with mass in it
    token = tl.minimum(tl.min(tl.where(hit, col, V), 0), tl.max(tl.where(weight > 0, col, 0), 0))
    tl.store(token_ptr + row, token.to(tl.int64))
