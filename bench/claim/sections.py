"""The sections of a claim file: what may stand in configs/claims/<key>.toml, and what it must obey.

Statements and definitions say what is true or false; a decision says from which probability on. The
rest belongs to one kind of claim: printed rows to `table`, sides, comparisons and deliveries to
`price`, periods to `history`, portfolios to `blend`, growths to `growth`, checks, workload classes and what is
unanswered to `share`; those of `routes` stand in route_sections.py. Each section
checks itself; spec.py checks that the sections fit each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from bench.claim import evidence as evidence_table
from bench.claim.definitions import ACCOUNTINGS, require_name
from bench.config import Gpu, keys, require
from bench.price.book import LEVELS as TERM_LEVELS
from bench.price.portfolio import Portfolio

TESTS = ("above", "at_least", "below", "rises")  # how a share is held against its threshold
VIEWS = ("by purpose", "by kernel type")
LEVELS = tuple(dict.fromkeys(TERM_LEVELS.values()))  # retail, contract, owner


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How a probability becomes a verdict, and which other limits the sensitivity rows show."""

    holds_at: float
    fails_at: float
    thresholds: dict[str, float] = field(default_factory=dict)
    also_holds_at: tuple[float, ...] = ()  # fails at one minus it
    also_thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        ordered = 0 <= self.fails_at < self.holds_at <= 1
        require(ordered, "holds_at", f"0 <= fails_at < holds_at <= 1, got {self.holds_at}")
        above = all(0.5 < limit <= 1 for limit in self.also_holds_at)
        require(above, "also_holds_at", f"above 0.5, at most 1, got {list(self.also_holds_at)}")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The share of `year` is above, at_least or below a threshold, or above the year before."""

    name: str
    text: str
    year: int
    test: str = "above"
    threshold: str = ""  # a name in decision.thresholds; none for "rises"
    definitions: tuple[str, ...] = ()  # none: all of the claim
    source: str
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_name(self.test, TESTS, "test", "test")
        evidence_table.require_known(self.evidence)


@dataclass(frozen=True, kw_only=True)
class Check:
    """A share computed from evidence alone, which the draws of that year should explain."""

    name: str
    definition: str
    year: int
    serving: tuple[tuple[str, ...], ...]  # sum of products of evidence ids
    other: tuple[tuple[str, ...], ...]
    text: str

    def __post_init__(self) -> None:
        products = (*self.serving, *self.other)
        whole = bool(self.serving) and bool(self.other) and all(products)
        require(whole, "serving", "a sum of products of evidence ids, and so for other")
        ids = [key for product in products for key in product]
        evidence_table.require_known(ids, "serving")
        without = [key for key in ids if evidence_table.figures()[key].value is None]
        require(not without, "serving", f"figures with a value, got {without}")


@dataclass(frozen=True, kw_only=True)
class Unanswered:
    """An accounting of an organisation that no definition answers, and why. No view: both; no years: all of them."""

    organisation: str
    accounting: str
    view: str = ""
    years: tuple[int, ...] = ()
    reason: str
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_name(self.accounting, ACCOUNTINGS, "accounting", "accounting")
        if self.view:
            require_name(self.view, VIEWS, "view", "view")
        require(bool(self.reason.strip()), "reason", "why nothing answers it")
        evidence_table.require_known(self.evidence)


@dataclass(frozen=True, kw_only=True)
class WorkloadClass:
    """A traffic mix for prefill and decode rows, which have no mix of their own: two parameters."""

    name: str
    input_output_ratio: str
    cache_hit_share: str


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A throughput row that counts tokens read from a cache: `computed` is the other part."""

    row: str
    computed: float
    source: str
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(0 < self.computed <= 1, "computed", f"a fraction, got {self.computed}")
        evidence_table.require_known(self.evidence)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The statement and definition the one-sentence verdict leads with; lowest order leads all."""

    statement: str
    definition: str
    order: int = 100


@dataclass(frozen=True, kw_only=True)
class Printed:
    """One row somebody printed: dollars said to be compute cost, words about the split, or both."""

    year: int
    usd: float | None = None
    compute_usd: str | None = None  # parameter: what compute cost that year, by the evidence
    words: str = ""
    test: str = ""
    threshold: str = ""
    source: str
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.usd is None or self.usd > 0, "usd", f"a positive sum, got {self.usd}")
        paired = (self.usd is None) == (self.compute_usd is None)
        require(paired, "compute_usd", "a parameter wherever usd is given, and only there")
        require(bool(self.words) == bool(self.test), "test", "a test wherever words are, only there")
        if self.words:
            require_name(self.test, TESTS, "test", "test")
        evidence_table.require_known(self.evidence)


@dataclass(frozen=True, kw_only=True)
class Booked:
    """A price of the price book: provider, GPU and term, all keys of configs."""

    provider: str
    gpu: str
    term: str

    def __post_init__(self) -> None:
        require_name(self.term, TERM_LEVELS, "term", "term")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One price at one level, USD per GPU-hour unless `unit` says so: booked x `multiply` / `divide` (parameters)."""

    name: str
    text: str
    level: str
    booked: Booked | None = None
    multiply: tuple[str, ...] = ()
    divide: tuple[str, ...] = ()
    proxy: bool = False  # stands in for a price nobody published
    unit: str = "USD per GPU-hour"

    def __post_init__(self) -> None:
        require_name(self.level, LEVELS, "level", "level")
        require(bool(self.booked or self.multiply), "multiply", "a booked price or parameters")
        if self.booked:
            level = TERM_LEVELS[self.booked.term]
            require(self.level == level, "level", f"{level}, the level of {self.booked.term} prices")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`left` is cheaper than `right`; `moved`: parameter, the part of the bill that moves."""

    name: str
    text: str
    left: str
    right: str
    moved: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """planned x delivered / (planned x delivered + other) reaches `share` by `year`: parameters."""

    name: str
    text: str
    year: int
    planned: str
    delivered: str
    other: str
    share: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Period:
    """Months in which a GPU's price under a term is said to have fallen, at sellers known for `least_months`."""

    name: str
    text: str
    gpu: str
    term: str
    since: str  # months: "2023-06"
    until: str
    least_months: int
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_name(self.term, TERM_LEVELS, "term", "term")
        require_name(self.gpu, keys(Gpu), "gpu", "GPU")
        for name in ("since", "until"):
            month = getattr(self, name)
            require(
                bool(re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", month)), name, f"a month such as 2023-06, got {month!r}"
            )
        require(self.since < self.until, "until", f"a month after {self.since}, got {self.until}")
        require(self.least_months >= 1, "least_months", f"at least 1, got {self.least_months}")
        evidence_table.require_known(self.evidence)


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Portfolio `left` costs less than portfolio `right` in `year`, and loses less serving."""

    name: str
    text: str
    left: str
    right: str
    year: int
    note: str

    def __post_init__(self) -> None:
        for name in (self.left, self.right):
            require_name(name, keys(Portfolio), "left", "portfolio")


@dataclass(frozen=True, kw_only=True)
class Growth:
    """In every year of the claim, `left` grows faster than `right`: year -> parameter, x a year, ln-linear between.

    `beside`: what others take for `left` and should not; its chance is shown and is no verdict.
    """

    name: str
    text: str
    left: dict[str, str]
    right: dict[str, str]
    unit: str  # of right / left
    beside: dict[str, str] = field(default_factory=dict)
    beside_note: str = ""
    note: str

    def __post_init__(self) -> None:
        for name in ("left", "right", "beside"):
            years = list(getattr(self, name))
            expected = "years such as 2026, each with a parameter"
            require(all(re.fullmatch(r"20\d\d", year) for year in years), name, f"{expected}, got {years}")
        require(bool(self.left) and bool(self.right), "left", "a parameter of one year at least, and so for right")
        require(bool(self.beside) == bool(self.beside_note), "beside_note", "why it is no verdict, with beside alone")

    @property
    def parameters(self) -> list[str]:
        """What the verdict reads; `beside` is not among it."""
        return list(dict.fromkeys([*self.left.values(), *self.right.values()]))
