"""The sections of a `routes` claim: one spending, told twice, by inputs that nothing else connects.

Top-down, somebody reports what serving cost. Bottom-up, tokens are counted, and a token's cost comes from throughput
rows and the price book. A parameter or a public figure that stood on both sides would make them agree by itself, so a
file with one does not load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.claim.definitions import require_name
from bench.claim.priors import Correlation, Prior
from bench.config import Gpu, keys, require
from bench.price.book import LEVELS as TERM_LEVELS

COUNTS = ("all", "output")  # what a count of tokens holds


@dataclass(frozen=True, kw_only=True)
class Served:
    """How a served token is priced: prices of one term, the newest of each offer, and the year the rates are of."""

    term: str
    rates_year: int  # other years' rates follow by tokens_per_gpu_growth
    priced_as: dict[str, str] = field(default_factory=dict)  # a GPU nobody here sells -> the one whose price stands in
    note: str

    def __post_init__(self) -> None:
        require_name(self.term, TERM_LEVELS, "term", "term")
        for name in (*self.priced_as, *self.priced_as.values()):
            require_name(name, keys(Gpu), "priced_as", "GPU")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One organisation's serving in one year by both routes. Every field but the first five names a parameter."""

    organisation: str
    year: int
    at: float  # when tokens_per_day was counted, as a year: 2026.25
    counts: str = "all"  # what it counts: all tokens, cached ones too, or output alone
    note: str
    spending: str  # top-down: USD of serving in the year
    tokens_per_day: str
    token_growth: str  # x a year, around `at`
    surfaces: str | None = None  # all tokens per counted one, where some surfaces are not in the count
    input_output_ratio: str
    cache_hit_share: str
    active_parameters: str  # of the served mix
    load: str  # part of paid time that works, for rates of busy machines
    tokens_per_gpu_growth: str  # x a year, of the same GPU: rows of another year
    other: str  # X of the share, USD in the year: the same on both sides, and no part of either route

    def __post_init__(self) -> None:
        require_name(self.counts, COUNTS, "counts", "count of tokens")
        require(abs(self.at - self.year) < 3, "at", f"a year within three of {self.year}, got {self.at}")

    @property
    def top_down(self) -> list[str]:
        """The parameters of the spending reported."""
        return [self.spending]

    @property
    def bottom_up(self) -> list[str]:
        """The parameters of the tokens and of their cost."""
        names = [self.tokens_per_day, self.token_growth, self.surfaces, self.input_output_ratio, self.cache_hit_share]
        names += [self.active_parameters, self.load, self.tokens_per_gpu_growth]
        return [name for name in names if name]


def require_independent(
    items: Sequence[Compared], parameters: Mapping[str, Prior], correlations: Sequence[Correlation]
) -> None:
    """Raises ValueError where a parameter, a public figure or a correlation connects two routes of one file."""
    down = {name for item in items for name in item.top_down}
    up = {name for item in items for name in item.bottom_up}
    both = sorted(down & up)
    require(not both, "compared", f"no parameter on both sides, got {both}")
    figures = [{key for name in names for key in parameters[name].evidence} for names in (down, up)]
    shared = sorted(figures[0] & figures[1])
    require(not shared, "compared", f"no public figure behind both sides, got {shared}")
    others = {item.other for item in items}
    for pair in correlations:
        crosses = {pair.a, pair.b} & (down | others) and {pair.a, pair.b} & up
        require(not crosses, "correlation", f"none between the two sides, got {pair.a} and {pair.b}")
