"""Who is due when: arrivals, users who come one after another, and turns that wait for the one before.

Open loop: a request is due at its `arrival_s`. Closed loop: requests without one are users, so many at a time; a user
leaves when the last turn of the session has ended, so that thinking between turns holds the place. A later turn is due
`think_s` after the one before has ended, however it ended.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from bench.traffic.records import Planned


class Dues:
    """The requests of a plan that were not sent yet."""

    def __init__(self, planned: Sequence[Planned], concurrency: int | None):
        self._later: dict[int, list[Planned]] = {}
        for one in planned:
            if one.after is not None:
                self._later.setdefault(one.after, []).append(one)
        first = [one for one in planned if one.after is None]
        self._users = iter([one for one in first if one.arrival_s is None])
        self._due = [(one.arrival_s, one.number, one) for one in first if one.arrival_s is not None]
        heapq.heapify(self._due)
        self._user: dict[int, int] = {}  # request -> its user's first request
        self._turns: dict[int, int] = {}  # of each user here: turns not ended
        for _ in range(concurrency or 0):
            self._next_user(0.0)

    @property
    def next_s(self) -> float | None:
        """When the next request is due, of those whose time is known."""
        return self._due[0][0] if self._due else None

    def take(self) -> tuple[float, Planned]:
        """The next request, and when it is due."""
        due_s, _, one = heapq.heappop(self._due)
        return due_s, one

    def ended(self, number: int, at_s: float) -> None:
        """A request has ended: its later turns get their time; where its user has none left, the next one comes."""
        turns = self._later.get(number, [])
        for one in turns:
            heapq.heappush(self._due, (at_s + one.think_s, one.number, one))
        user = self._user.pop(number, None)
        if user is None:
            return
        self._user |= dict.fromkeys((one.number for one in turns), user)
        self._turns[user] += len(turns) - 1
        if not self._turns[user]:
            del self._turns[user]
            self._next_user(at_s)

    def _next_user(self, at_s: float) -> None:
        one = next(self._users, None)
        if one is not None:
            self._turns[one.number], self._user[one.number] = 1, one.number
            heapq.heappush(self._due, (at_s, one.number, one))
