"""A class of real requests as a small empirical model, distilled from a public trace into `configs/traffic/`.

Production traffic is neither one length nor a Poisson stream: lengths are long-tailed and depend on each other,
requests come in bursts, and later turns repeat earlier prompts. Three parts hold that:

- lengths: quantiles of the input, and of the output given the input's bin. Token counts between two known ones lie
  evenly by their logarithm: straight lines under a long tail would add up to 7% to its mean;
- arrivals: a doubly stochastic renewal process. Relative rates of consecutive slots say how the rate wanders, gamma
  gaps of coefficient of variation c how unevenly requests come inside a slot. With slots of n requests on average the
  index of dispersion over a slot is about c² + n var(relative rate);
- sessions: a Markov chain over the input's bins. A turn of p tokens is the last with the bin's `end_share`; else its
  next keeps p rounded down to whole blocks and adds `fresh_tokens`; or, with `cut_share` (a compaction, an edited
  history), keeps less. A chain with a trace's own starts, steps and ends visits the bins as often as the trace does,
  so that its lengths come out without being asked for.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bench.config import require

Array = NDArray[np.float64]
Rows = tuple[tuple[float, ...], ...]


def _rising(values: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in itertools.pairwise(values))


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """How requests of the class arrive, at the trace's own rate."""

    rate_per_s: float
    slot_s: float
    cv: float  # of the gaps inside a slot
    relative_rates: tuple[float, ...]  # of consecutive slots, mean 1; over and over

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "slot_s", "cv"):
            require(getattr(self, name) > 0, name, f"a positive number, got {getattr(self, name)}")
        holds = bool(self.relative_rates) and min(self.relative_rates) >= 0
        mean = sum(self.relative_rates) / max(1, len(self.relative_rates))
        require(
            holds and abs(mean - 1) < 0.01, "relative_rates", f"rates of mean 1, none below 0; their mean is {mean}"
        )


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """How requests follow each other. Lists of lists: one row a bin of the earlier turn's input."""

    count: int  # sessions in the trace
    loop: str  # open: turns come when the trace says; closed: a time of thought after the last answer
    block_tokens: int  # the trace tells shared prefixes in blocks of so many
    shared_by_all_tokens: int = 0  # every prompt begins with them
    first_input_tokens: tuple[float, ...]
    end_share: tuple[float, ...]
    cut_share: tuple[float, ...]  # of the turns that are not the last
    fresh_tokens: Rows
    cut_input_tokens: Rows  # the next input after a cut
    cut_kept_share: tuple[float, ...]  # of the earlier prompt
    gap_s: tuple[float, ...]  # open: between arrivals; closed: from the answer's end to the next request

    def __post_init__(self) -> None:
        require(self.loop in ("open", "closed"), "loop", f"open or closed, got {self.loop!r}")
        for name in ("count", "block_tokens"):
            require(getattr(self, name) >= 1, name, f"at least 1, got {getattr(self, name)}")
        for name in ("end_share", "cut_share"):
            require(all(0 <= s <= 1 for s in getattr(self, name)), name, "shares from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """One class of requests. Quantiles stand at `shares`; bin i of the input ends below `input_edges[i]`."""

    FOLDER: ClassVar[str] = "traffic"
    key: str = ""
    about: str
    trace: str
    address: str
    licence: str
    citation: str
    download: str
    files: dict[str, str]  # name of each file distilled: its sha256
    requests: int  # in the trace
    shares: tuple[float, ...]
    input_tokens: tuple[float, ...]
    input_edges: tuple[float, ...]
    output_tokens: Rows  # one row a bin of the input
    arrivals: Arrivals | None = None  # None: the trace has none
    sessions: Sessions | None = None  # None: no request is known to follow another

    def __post_init__(self) -> None:
        holds = len(self.shares) >= 2 and self.shares[0] == 0 and self.shares[-1] == 1 and _rising(self.shares)
        require(holds, "shares", "rising from 0 to 1")
        require(_rising(self.input_edges), "input_edges", "rising token counts")
        bins = len(self.input_edges) + 1
        self._quantiles("input_tokens", (self.input_tokens,))
        require(len(self.output_tokens) == bins, "output_tokens", f"a row for each of {bins} bins")
        self._quantiles("output_tokens", self.output_tokens)
        s = self.sessions
        if s is not None:
            for name in ("end_share", "cut_share", "fresh_tokens", "cut_input_tokens"):
                require(len(getattr(s, name)) == bins, f"sessions.{name}", f"one for each of {bins} bins")
            self._quantiles("sessions.fresh_tokens", s.fresh_tokens)
            self._quantiles("sessions.cut_input_tokens", s.cut_input_tokens)
            self._quantiles("sessions.first_input_tokens", (s.first_input_tokens,))
            for name in ("cut_kept_share", "gap_s"):
                self._quantiles(f"sessions.{name}", (getattr(s, name),), 0)
            require(s.loop == "closed" or self.arrivals is not None, "arrivals", "a table, for sessions in open loop")

    def _quantiles(self, name: str, rows: Rows, least: int = 1) -> None:
        holds = all(len(row) == len(self.shares) and _rising(row) and row[0] >= least for row in rows)
        require(holds, name, f"{len(self.shares)} rising numbers from {least} on, one at each of shares")

    @cached_property
    def _tables(self) -> tuple[Array, Array]:
        return np.array(self.shares), np.array(self.input_edges)

    def quantile(self, table: tuple[float, ...], share: Array) -> Array:
        """The value at each share, on straight lines between the table's."""
        return np.interp(share, self._tables[0], np.array(table))

    def tokens(self, table: tuple[float, ...], share: Array) -> Array:
        """The count at each share, on straight lines between the logarithms of the table's."""
        return np.exp(self.quantile(tuple(np.log(table).tolist()), share))

    def tokens_of_bin(self, table: Rows, bins: NDArray[np.int64], share: Array) -> Array:
        """The same, each from the row of its bin."""
        known, rows = self._tables[0], np.log(np.array(table))
        right = np.clip(np.searchsorted(known, share, side="right"), 1, len(known) - 1)
        part = (share - known[right - 1]) / (known[right] - known[right - 1])
        return np.exp(rows[bins, right - 1] * (1 - part) + rows[bins, right] * part)

    def bins(self, input_tokens: Array) -> NDArray[np.int64]:
        """The bin of each input length."""
        return np.searchsorted(self._tables[1], input_tokens, side="right")

    def outputs(self, input_tokens: Array, rng: np.random.Generator) -> Array:
        """A drawn output length for each input length."""
        return self.tokens_of_bin(self.output_tokens, self.bins(input_tokens), rng.random(len(input_tokens)))
