"""Traces that say which prompts begin alike: Mooncake's requests and WEKA's coding-agent sessions.

Both give a prompt as ids of its blocks (512 and 64 tokens), where equal ids from the start on mean equal tokens, so
that a prompt shares with an earlier one as many blocks as their lists begin alike. Tokens past the last equal block
count as new.

Mooncake rounds its stamps to 3 s; as they are they would be bursts that nobody sent, so the requests of one stamp are
spread at random until the next. Its session is our reading: a request belongs to the session of the one it shares
most with, unless they share only what over half of all prompts begin with. WEKA's users are sessions by themselves:
each request follows the answer to the one before it, after the time its user thought; a `subagent` is a session of its
own begun after the request before it. Ids may stand as runs: start, length, start, length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.config import ConfigError
from bench.traffic.records import Planned

Blocks = NDArray[np.int64]
Documents = Iterable[tuple[str, object]]
SLOT_S = 3.0
MOONCAKE_BLOCK_TOKENS = 512


def mooncake(documents: Documents, seed: int) -> list[Planned]:
    """Requests in an open loop, their order kept inside each stamp."""
    rows: list[tuple[float, int, int, list[int]]] = []
    for where, value in documents:
        row = _fields(where, value, {"timestamp": float, "input_length": int, "output_length": int, "hash_ids": list})
        if rows and row["timestamp"] < rows[-1][0]:
            raise ConfigError(f"{where}: timestamp: expected one that rises, got {row['timestamp']}")
        rows.append((row["timestamp"], row["input_length"], row["output_length"], row["hash_ids"]))
    times = _spread(np.array([row[0] for row in rows]) / 1000, np.random.default_rng(seed))
    common = common_blocks([row[3] for row in rows])
    holder: dict[int, int] = {}  # block: the last request whose prompt has it
    found: list[Planned] = []
    for number, (_, inputs, outputs, blocks) in enumerate(rows):
        known = next((i for i, block in enumerate(blocks) if block not in holder), len(blocks))
        parent = holder[blocks[known - 1]] if known else None
        continues = parent is not None and known > common
        shared = 0 if parent is None else min(known * MOONCAKE_BLOCK_TOKENS, inputs - 1, found[parent].input_tokens)
        found.append(
            Planned(
                number=number,
                input_tokens=max(1, inputs),
                output_tokens=max(1, outputs),
                arrival_s=float(times[number]),
                session=found[parent].session if parent is not None and continues else number,
                prefix_of=parent if shared > 0 else None,
                shared_tokens=max(0, shared),
            )
        )
        holder.update(dict.fromkeys(blocks, number))
    return found


def common_blocks(prompts: list[list[int]]) -> int:
    """How many leading blocks more than half of the prompts have alike."""
    depth = 0
    while True:
        here = Counter(blocks[depth] for blocks in prompts if len(blocks) > depth)
        if not here or here.most_common(1)[0][1] * 2 <= len(prompts):
            return depth
        depth += 1


def _spread(stamps: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Times spread evenly at random over the slot that each stamp begins, in order; the first slot starts at 0."""
    slots = np.rint((stamps - stamps[:1]) / SLOT_S)
    return np.sort((slots + rng.random(len(stamps))) * SLOT_S)


def weka(documents: Documents) -> list[Planned]:
    """Requests in a closed loop, session after session."""
    found: list[Planned] = []
    for session, (where, value) in enumerate(documents):
        trace = _fields(where, value, {"block_size": int, "requests": list})
        _weka_session(where, trace, session * 1000, found)
    return found


def _weka_session(where: str, trace: dict[str, Any], session: int, found: list[Planned]) -> None:
    """Appends the requests of one user, then of each subagent, to `found`."""
    chains: list[tuple[list[Any], int | None, float]] = [(trace["requests"], None, 0.0)]
    seen: list[tuple[int, Blocks]] = []
    for own, (requests, after, think_s) in enumerate(chains):  # grows by the subagents met on the way
        before_end_s: float | None = None
        for i, value in enumerate(requests):
            place = f"{where}: requests[{i}]" if own == 0 else f"{where}: subagent {own}: requests[{i}]"
            if isinstance(value, dict) and value.get("type") == "subagent":
                start = _fields(place, value, {"t": float, "requests": list})
                pause = 0.0 if before_end_s is None else max(0.0, start["t"] - before_end_s)
                chains.append((start["requests"], after, pause))
                continue
            row = _fields(place, value, {"t": float, "in": int, "out": int})
            blocks = _ids(place, value)
            parent, known = longest_shared(blocks, seen)
            shared = min(known * trace["block_size"], row["in"] - 1)
            shared = shared if parent is None else min(shared, found[parent].input_tokens)
            if before_end_s is not None:
                think_s = float(value["think_time"]) if "think_time" in value else max(0.0, row["t"] - before_end_s)
            number = len(found)
            found.append(
                Planned(
                    number=number,
                    input_tokens=max(1, row["in"]),
                    output_tokens=max(1, row["out"]),
                    session=session + own,
                    prefix_of=parent if shared > 0 else None,
                    shared_tokens=max(0, shared),
                    after=after,
                    think_s=think_s if after is not None else 0.0,
                )
            )
            seen.append((number, blocks))
            after, before_end_s = number, row["t"] + float(value.get("api_time", 0.0))


def longest_shared(blocks: Blocks, seen: list[tuple[int, Blocks]]) -> tuple[int | None, int]:
    """(request, blocks): the latest of the earlier prompts that begins alike for longest, and for how many blocks."""
    parent, best = None, 0
    for number, other in reversed(seen):
        if min(len(blocks), len(other)) > best and blocks[best] == other[best]:
            both = min(len(blocks), len(other))
            differ = np.flatnonzero(blocks[:both] != other[:both])
            alike = int(differ[0]) if len(differ) else both
            if alike > best:
                parent, best = number, alike
        if best == len(blocks):
            break
    return parent, best


def _ids(where: str, value: dict[str, Any]) -> Blocks:
    if isinstance(value.get("hash_ids"), list):
        return np.array(value["hash_ids"], dtype=np.int64)
    runs = value.get("hash_rle")
    if not isinstance(runs, list) or len(runs) % 2:
        raise ConfigError(f"{where}: hash_ids: expected a list of block ids")
    pieces = [np.arange(start, start + length) for start, length in _pairs(runs)]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def _pairs(flat: list[int]) -> Iterator[tuple[int, int]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _fields(where: str, value: object, wanted: dict[str, type]) -> dict[str, Any]:
    """The fields of a JSON object, their types held; a whole number passes for a float."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected an object with {', '.join(wanted)}, got {str(value)[:40]}")
    for name, kind in wanted.items():
        got = value.get(name)
        right = isinstance(got, int | float if kind is float else kind) and not isinstance(got, bool)
        if not right or (isinstance(got, int) and got < 0):
            raise ConfigError(f"{where}: {name}: expected {kind.__name__}, got {str(got)[:40]}")
    return {name: value[name] for name in wanted}
