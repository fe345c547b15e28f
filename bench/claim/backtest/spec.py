"""configs/backtest.toml, read strictly: cut-offs, how priors are rebuilt, and what is forecast.

A `Reading` is arithmetic on public figures, written as ids: `of` over `over`, each a sum of products, a plain number
standing for itself. [["E039"]] over [["E039"], ["E041"]] is E039 / (E039 + E041). A `Rule` is a parameter somebody on
a cut-off's eve could have built, from what of its readings or pairs was out by then, or else its naive prior. A
`Target` is what came true: how it resolves, and the figures its forecast may start from.

Refused at reading: a target resolved by a projection, by a figure about a period that was not over when it was
published, or by an undated one. Nothing here computes a forecast.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass

from bench import config
from bench.claim import evidence as evidence_table
from bench.claim.definitions import require_name
from bench.claim.evidence import Figure
from bench.config import require
from bench.price.known import last_day

SCALES = ("log", "logit", "linear")  # where spreads are taken and scores counted
FILE = "backtest.toml"


def constant(token: str) -> float | None:
    """A token of a product as a plain number; None where it is an id."""
    try:
        return float(token)
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to read a quantity off public figures. Its period is that of its first figure."""

    of: tuple[tuple[str, ...], ...]
    over: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.ids) and constant(self.of[0][0]) is None, "of", "a sum of products that begins with an id")
        evidence_table.require_known(self.ids, "of")

    @property
    def ids(self) -> tuple[str, ...]:
        """Every figure it needs, in order, each once."""
        tokens = [token for product in (*self.of, *self.over) for token in product]
        return tuple(dict.fromkeys(token for token in tokens if constant(token) is None))


@dataclass(frozen=True, kw_only=True)
class Naive:
    """What somebody would say who has seen no figure: wide, stated, with a reason that needs no hindsight."""

    scale: str
    unit: str
    p10: float
    p50: float
    p90: float
    reason: str

    def __post_init__(self) -> None:
        require_name(self.scale, SCALES, "scale", "scale")
        require(self.p10 < self.p50 < self.p90, "p10", "p10 < p50 < p90")
        require(bool(self.reason.strip()), "reason", "why, without hindsight")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one parameter is rebuilt: the middle of `readings`, or of the yearly growth of `pairs` (older, newer figure).

    `width`: the least factor from the middle to p10 and p90 (of odds, where the scale is logit).
    """

    readings: tuple[Reading, ...] = ()
    pairs: tuple[tuple[str, ...], ...] = ()
    series: bool = False  # also the yearly change of every price series known for `least_months`
    width: float
    naive: str | None = None  # key of [naive]; None: without figures there is no forecast
    scale: str
    unit: str
    source: str  # why these figures

    def __post_init__(self) -> None:
        require_name(self.scale, SCALES, "scale", "scale")
        require(self.width > 1, "width", f"a factor above 1, got {self.width}")
        for pair in self.pairs:
            require(len(pair) == 2, "pairs", f"[older id, newer id], got {list(pair)}")
            evidence_table.require_known(pair, "pairs")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One quantity that later evidence showed. `cluster`: whatever moves together is one."""

    id: str
    text: str
    organisation: str
    cluster: str
    scale: str
    unit: str
    period: tuple[str, ...]  # one or two: its first and last month, quarter-end or year
    resolved: Reading
    also: tuple[Reading, ...] = ()  # other sources of the same quantity, where they contradict
    base: tuple[Reading, ...] = ()  # the same quantity earlier: the newest known one is carried on by `growth`
    growth: str | None = None  # a Rule
    parameter: str | None = None  # a Rule that is the forecast itself

    def __post_init__(self) -> None:
        require_name(self.scale, SCALES, "scale", "scale")
        require(len(self.period) in (1, 2), "period", "[first, last] or [one]")
        require(bool(self.base) != bool(self.parameter), "base", "either figures to start from or a parameter")
        require(bool(self.base) or self.growth is None, "growth", "figures to start from")
        table = evidence_table.figures()
        for key, readings in (("resolved", (self.resolved,)), ("also", self.also)):
            for name in (name for reading in readings for name in reading.ids):
                _admit(table[name], f"{key}: {name}")
        first = table[self.resolved.of[0][0]]
        same = (first.start, first.end) == (self.period[0], self.period[-1])
        require(same, "period", f"that of {first.key}, {first.start} to {first.end}, got {list(self.period)}")


def _admit(figure: Figure, key: str) -> None:
    """Raises ValueError where a figure may not resolve anything."""
    out, end = last_day(figure.published), last_day(figure.end)
    require(figure.kind != "projection", key, "a figure that was reported, leaked, stated or estimated, no projection")
    require(out is not None, key, "a figure with a date of publication")
    require(figure.value is not None, key, "a figure with a value")
    month = figure.start == figure.end and len(figure.end) > 4  # a rate of this month is one before the month is out
    over = month or (out is not None and end is not None and end <= out)
    require(over, key, f"a period that was over when it was published, got {figure.end}, {figure.published}")


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Targets of configs/price_history.csv: each series' newest price, `ahead_months` to `horizon_months` on."""

    horizon_months: int
    ahead_months: int
    least_months: int
    growth: str
    leave_out: tuple[str, ...] = ()  # sellers whose figures were published later than their months
    source: str

    def __post_init__(self) -> None:
        require(0 < self.ahead_months <= self.horizon_months, "ahead_months", "1 up to horizon_months")


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share claim on the eve of a cut-off: definitions that can be rebuilt, and the rule behind each parameter."""

    claim: str
    definitions: tuple[str, ...]
    use: dict[str, str]  # parameter of the claim -> Rule
    keep: tuple[str, ...] = ()  # parameters that hold no figure: today's stand
    source: str


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """The whole file."""

    cutoffs: tuple[datetime.date, ...]
    draws: int
    seed: int
    least_scored: int  # targets, and clusters, below which no skill is claimed
    base_width: float  # factor from a starting figure to p10 and p90: what sources differ by
    nowcast_months: int  # a period that ended longer before a cut-off is history, no target
    source: str
    naive: dict[str, Naive]
    parameters: dict[str, Rule]
    target: tuple[Target, ...]
    prices: Prices
    share: Share

    def __post_init__(self) -> None:
        require(self.cutoffs == tuple(sorted(set(self.cutoffs))) != (), "cutoffs", "days in order, each once")
        require(self.draws >= 1000, "draws", f"at least 1000, got {self.draws}")
        require(self.base_width > 1, "base_width", "a factor above 1")
        for key, name in self._reads():
            require_name(name, self.parameters, key, "parameter")
        for rule, prior in self.parameters.items():
            if prior.naive:
                require_name(prior.naive, self.naive, f"parameters.{rule}.naive", "naive prior")
                alike = self.naive[prior.naive].scale == prior.scale
                require(alike, f"parameters.{rule}.naive", f"a prior on the scale {prior.scale}")
        unread = sorted(set(self.parameters) - {name for _, name in self._reads()})
        require(not unread, "parameters", f"each to be read somewhere; nothing reads {unread}")
        names = [target.id for target in self.target]
        require(len(set(names)) == len(names), "target", "an id for each")

    def _reads(self) -> Iterator[tuple[str, str]]:
        for target in self.target:
            yield from ((f"target.{target.id}", name) for name in (target.growth, target.parameter) if name)
        yield "prices.growth", self.prices.growth
        yield from (("share.use", name) for name in self.share.use.values())


def load() -> Backtest:
    """configs/backtest.toml. Raises ConfigError."""
    return config.read(Backtest, config.CONFIGS / FILE)
