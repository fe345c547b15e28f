"""From a class of traffic to the requests of one measurement.

Lengths are drawn, multiplied by `scale` (so that a tiny model on a CPU can follow the shape of real traffic) and
fitted into the model's context. Three things are said of what the fitting did, for nothing may be lost unseen:
how many requests were clipped, how many tokens that lost, how many sessions it ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from bench.traffic.records import Planned
from bench.traffic.traffic import Sessions, Traffic

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Requests in the order planned: a request comes after those it names."""

    requests: list[Planned]
    clipped: int = 0  # requests
    lost_tokens: int = 0  # by clipping
    ended_sessions: int = 0  # by the context, before their time
    classes: Mapping[str, Plan] = field(default_factory=dict)  # of a mix: each class's own plan, by key

    @property
    def clipped_share(self) -> float:
        """Of the requests."""
        return self.clipped / len(self.requests)

    @property
    def lost_token_share(self) -> float:
        """Of the tokens drawn for these requests."""
        planned = sum(r.input_tokens + r.output_tokens for r in self.requests)
        return self.lost_tokens / (planned + self.lost_tokens)

    @property
    def ended_session_share(self) -> float:
        """Of the sessions begun; what they would still have asked for is not counted as lost."""
        return self.ended_sessions / len({(r.traffic, r.session) for r in self.requests})


@dataclass(frozen=True)
class Columns:
    """Requests as columns, one entry a request, sorted by session and turn."""

    session: Counts
    turn: Counts
    input_tokens: Counts
    output_tokens: Counts
    shared_tokens: Counts
    gap_s: Array
    lost_tokens: Counts
    ended: NDArray[np.bool_]  # the last turn that the context allowed

    def pick(self, rows: slice | Counts) -> Columns:
        return Columns(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @staticmethod
    def joined(parts: Sequence[Columns]) -> Columns:
        names = Columns.__dataclass_fields__
        return Columns(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def plan(
    traffic: Traffic,
    count: int,
    seed: int,
    *,
    max_context: int | None = None,
    scale: float = 1.0,
    most_think_s: float | None = None,
) -> Plan:
    """`count` requests of the class.

    max_context: tokens of prompt and answer together. What is too long gives way, the longer of the two first, and
        neither below half of the context for the other's sake; a later turn that would pass it ends its session.
    most_think_s: longer pauses are cut to it. Real ones reach a night, which no measurement waits for.
    """
    if count < 1 or scale <= 0 or (max_context is not None and max_context < 2):
        raise ValueError(f"count {count}, scale {scale}, max_context {max_context}: expected 1, above 0, 2 or more")
    rng = np.random.default_rng([seed, crc32(traffic.key.encode())])
    limit = np.iinfo(np.int64).max if max_context is None else max_context
    known = traffic.sessions
    if known is None:
        drawn = traffic.tokens(traffic.input_tokens, rng.random(count))
        rows = _columns(np.arange(count), 0, drawn, traffic.outputs(drawn, rng), np.zeros(count), scale, limit)
    else:
        rows = _chains(traffic, known, count, rng, scale, limit)
    if known is not None and known.loop == "open":
        assert traffic.arrivals is not None
        rows = rows.pick(_placed(rows, count / traffic.arrivals.rate_per_s, rng))
    return Plan(
        _requests(traffic, rows, scale, most_think_s),
        clipped=int((rows.lost_tokens > 0).sum()),
        lost_tokens=int(rows.lost_tokens.sum()),
        ended_sessions=int(rows.ended.sum()),
    )


def clipped(input_tokens: Counts, output_tokens: Counts, limit: int) -> tuple[Counts, Counts]:
    """Both lengths, cut so that their sum is at most `limit`: the longer gives way, but not below half for it."""
    over = input_tokens + output_tokens > limit
    least_input = np.minimum(input_tokens, limit - limit // 2)
    fitted = np.maximum(limit - np.minimum(output_tokens, limit // 2), least_input)
    cut = np.where(over, np.minimum(input_tokens, fitted), input_tokens)
    return cut, np.where(over, np.minimum(output_tokens, limit - cut), output_tokens)


def _scaled(tokens: Array, scale: float) -> Counts:
    return np.maximum(1, np.rint(tokens * scale)).astype(np.int64)


def _columns(
    session: Counts, turn: int, inputs: Array, outputs: Array, gaps: Array, scale: float, limit: int
) -> Columns:
    """First turns, clipped."""
    wanted = _scaled(inputs, scale), _scaled(outputs, scale)
    got = clipped(*wanted, limit)
    none = np.zeros(len(session), dtype=np.int64)
    lost = wanted[0] + wanted[1] - got[0] - got[1]
    return Columns(session, none + turn, got[0], got[1], none, gaps, lost, none > 0)


def _chains(
    traffic: Traffic, known: Sessions, count: int, rng: np.random.Generator, scale: float, limit: int
) -> Columns:
    """Sessions, all drawn turn by turn at once, until there are `count` requests."""
    usual = traffic.requests / known.count
    parts: list[Columns] = []
    total = begun = 0
    while total < count:
        width = int((count - total) / usual) + 8
        here = np.arange(begun, begun + width)
        inputs = traffic.tokens(known.first_input_tokens, rng.random(width))
        rows = _columns(here, 0, inputs, traffic.outputs(inputs, rng), np.zeros(width), scale, limit)
        batch = [rows]
        for turn in range(1, count):
            stays = rng.random(len(here)) >= np.array(known.end_share)[traffic.bins(inputs)]
            here, before = here[stays], inputs[stays]
            inputs, shared = _next(traffic, known, before, rng)
            gaps = traffic.quantile(known.gap_s, rng.random(len(here)))
            sizes = _scaled(inputs, scale), _scaled(traffic.outputs(inputs, rng), scale)
            fits = (sizes[0] + sizes[1] <= limit) & (batch[-1].lost_tokens[stays] == 0)
            batch[-1].ended[np.flatnonzero(stays)[~fits]] = True
            kept = np.minimum(np.floor(shared * scale).astype(np.int64), sizes[0] - 1)
            none = np.zeros(len(here), dtype=np.int64)
            rows = Columns(here, none + turn, *sizes, kept, gaps, none, none > 0).pick(np.flatnonzero(fits))
            here, inputs = here[fits], inputs[fits]
            if not len(here):
                break
            batch.append(rows)
        drawn = Columns.joined(batch)
        parts.append(drawn.pick(np.lexsort((drawn.turn, drawn.session))))
        total += len(drawn.turn)
        begun += width
    return Columns.joined(parts).pick(slice(0, count))


def _next(traffic: Traffic, known: Sessions, before: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Input of the turn after one of `before` tokens, and how much of that one's prompt it begins with."""
    bins = traffic.bins(before)
    cut = rng.random(len(before)) < np.array(known.cut_share)[bins]
    kept = np.floor(before / known.block_tokens) * known.block_tokens
    grown = kept + traffic.tokens_of_bin(known.fresh_tokens, bins, rng.random(len(before)))
    other = traffic.tokens_of_bin(known.cut_input_tokens, bins, rng.random(len(before)))
    left = before * traffic.quantile(known.cut_kept_share, rng.random(len(before)))
    return np.where(cut, other, grown), np.where(cut, np.minimum(left, other), kept)


def _placed(rows: Columns, span_s: float, rng: np.random.Generator) -> Counts:
    """The order in which turns of sessions arrive, where each session begins at random inside the span and ends in it.

    Pauses count on the trace's clock, which another rate stretches; a session longer than the span is squeezed into it.
    """
    first = np.flatnonzero(np.diff(rows.session, prepend=-1))
    lengths = np.diff(np.append(first, len(rows.session)))
    since = np.cumsum(np.where(rows.turn == 0, 0.0, rows.gap_s))
    since -= np.repeat(since[first], lengths)
    whole = since[np.append(first[1:], len(since)) - 1]
    squeeze = np.minimum(1.0, span_s / np.maximum(whole, 1e-9))
    start = rng.random(len(first)) * np.maximum(0.0, span_s - whole)
    at = np.repeat(start, lengths) + since * np.repeat(squeeze, lengths)
    return np.lexsort((rows.turn, at))


def _requests(traffic: Traffic, rows: Columns, scale: float, most_think_s: float | None) -> list[Planned]:
    """The columns as requests: a later turn names the one before it in its session."""
    known = traffic.sessions
    everybody = 0 if known is None else int(known.shared_by_all_tokens * scale)
    closed = known is not None and known.loop == "closed"
    think = rows.gap_s if most_think_s is None else np.minimum(rows.gap_s, most_think_s)
    columns = (rows.session, rows.turn, rows.input_tokens, rows.output_tokens, rows.shared_tokens, think)
    last: dict[int, int] = {}
    found: list[Planned] = []
    lines = zip(*(column.tolist() for column in columns), strict=True)
    for number, (session, turn, inputs, outputs, shared, pause) in enumerate(lines):
        before = last.get(session) if turn else None
        last[session] = number
        common = min(everybody, inputs - 1, found[0].input_tokens) if found else 0
        follows = before is not None and shared > common
        found.append(
            Planned(
                number=number,
                input_tokens=inputs,
                output_tokens=outputs,
                session=session,
                prefix_of=before if follows else 0 if common else None,
                shared_tokens=shared if follows else common,
                after=before if closed else None,
                think_s=pause if closed and before is not None else 0.0,
                traffic=traffic.key,
            )
        )
    return found
