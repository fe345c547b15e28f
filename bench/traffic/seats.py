"""The users of a closed loop, met as a steady server would meet them: in the middle of their sessions and answers.

Users who all begin at once with a first turn and a whole answer are no steady load: short answers end first, contexts
are those of beginnings, and a class of long sessions has fewer of the requests than its share. A renewal process is
stationary from its first moment if it begins with what is left of an interval that was drawn in proportion to its
length. So each seat begins inside a request drawn by how long it holds the seat, for which its output tokens stand, at
a uniform place in it: what was already answered counts as prompt, the rest of its session follows. When that has ended
the next user comes, from the beginning.

What a first request had in common with earlier ones is not in the cache yet: it is read anew, before the window begins.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from bench.traffic.records import Planned


def seated(pool: Sequence[Planned], users: int, most: int, most_input_tokens: float, seed: int) -> list[Planned]:
    """Requests of a closed loop of so many users, from a pool of whole sessions: the seats first, then who follows.

    At most `most` requests of `most_input_tokens` together, but for each seat its first one; sessions are cut to an
    equal part of these, and to two turns at least.
    """
    rng = np.random.default_rng([seed, 7])
    later: dict[int, list[Planned]] = defaultdict(list)
    for one in pool:
        if one.after is not None:
            later[one.after].append(one)
    turns = max(2, most // users)
    held = np.array([one.output_tokens for one in pool], dtype=float)
    found: list[Planned] = []
    budget = most_input_tokens
    for at in rng.choice(len(pool), users, p=held / held.sum()):
        first = pool[at]
        done = int(rng.random() * first.output_tokens)
        left = {"input_tokens": first.input_tokens + done, "output_tokens": first.output_tokens - done}
        begun = dataclasses.replace(first, **left, prefix_of=None, shared_tokens=0, after=None, think_s=0.0)
        budget -= _taken([begun, *_rest(first, later, turns)], found, {})
    place: dict[int, int] = {}  # in the pool: here
    for one in pool:
        if one.after is not None:
            continue
        chain = [one, *_rest(one, later, turns)]
        if len(found) >= most or budget < sum(each.input_tokens for each in chain):
            break
        budget -= _taken(chain, found, place)
    return found


def _rest(one: Planned, later: dict[int, list[Planned]], turns: int) -> list[Planned]:
    """The turns that follow, in order, `turns` at most with this one."""
    rest: list[Planned] = []
    waiting = list(later.get(one.number, []))
    while waiting and len(rest) < turns - 1:
        turn = waiting.pop(0)
        rest.append(turn)
        waiting += later.get(turn.number, [])
    return rest


def _taken(chain: Sequence[Planned], found: list[Planned], place: dict[int, int]) -> int:
    """Append a session under numbers of its own, which `place` learns; its input tokens.

    A prompt begins as an earlier one where that one is here too.
    """
    begin = len(found)
    place |= {one.number: begin + index for index, one in enumerate(chain)}
    for one in chain:
        parent = place.get(-1 if one.prefix_of is None else one.prefix_of)
        found.append(
            dataclasses.replace(
                one,
                number=place[one.number],
                session=begin,
                arrival_s=None,
                prefix_of=parent,
                shared_tokens=0 if parent is None else one.shared_tokens,
                after=place.get(-1 if one.after is None else one.after),
            )
        )
    return sum(one.input_tokens for one in chain)
