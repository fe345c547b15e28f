"""The definitions of serving's share of compute: which money stands beside serving, by which route.

    share = serving / (serving + X)        X = final training runs (D1), all R&D compute (D2),
                                           R&D as booked in accounts (D3), training capacity (D4)

Every route is one path of log-odds, ln(serving / X), over the years, so routes add up terms:

- `served_flop` (bottom-up): serving / X = r / 3 x (computed tokens per trained token) / multiple,
  from 6 FLOP a parameter and trained token, 2 a served one; r is the price ratio of a useful FLOP.
  Its tokens per trained token grow by demand x size / trained: served tokens, active parameters of
  the served mix, FLOPs of the final run (all times a year).
- `growth` (top-down): a share of a base year, then the growth of dollars on either side.
- `plan`: published yearly training sums and totals; serving grows by one factor that fits the
  total.
- `surveys`: outside estimates, one drawn per draw, joined linearly in log-odds.

Each definition may say whose compute it is about (organisation), by which accounting (D1 to D4) and by which route;
what no definition answers then, the claim file says why (coverage.py).

Only `served_flop` depends on r. To add a definition of these routes, edit a claim's TOML alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from bench.claim import evidence as evidence_table
from bench.claim.priors import Array
from bench.config import require

Draws = Mapping[str, Array]
# What a route reads: one parameter each | one parameter a year each | may also read.
ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "served_flop": (
        ("output_per_trained", "input_output_ratio", "cache_hit_share", "availability", "load"),
        ("demand", "size", "trained"),
        ("multiple",),
    ),
    "growth": (("base_share",), ("serving", "other"), ()),
    "plan": (("serving_first", "total", "training_total", "scenario"), ("training",), ("error",)),
    "surveys": (("choice", "drift", "error"), (), ()),
}

ACCOUNTINGS = ("D1", "D2", "D3", "D4")
ROUTES = ("bottom_up", "top_down", "plan", "surveys", "accounts")


def require_name(name: str, names: Iterable[str], key: str, what: str) -> None:
    """Raises ValueError("key: expected ..."), with the nearest name, where `name` is unknown."""
    near = difflib.get_close_matches(name, list(names), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    require(name in names, key, f"the name of a {what}, got {name!r}{hint}")


def _require_years(years: Iterable[str], key: str) -> None:
    wrong = [year for year in years if not re.fullmatch(r"20\d\d", year)]
    require(not wrong, key, f"years such as 2026, got {wrong}")


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One outside estimate of the share: year -> fraction."""

    name: str
    share: dict[str, float]
    evidence: tuple[str, ...]

    def __post_init__(self) -> None:
        inside = bool(self.share) and all(0 < value < 1 for value in self.share.values())
        require(inside, "share", "one year at least, each a fraction inside 0 and 1")
        _require_years(self.share, "share")
        evidence_table.require_known(self.evidence)


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One accounting. `use`: role -> parameter; `by_year`: role -> year -> parameter."""

    text: str
    method: str
    organisation: str = ""  # OpenAI, Anthropic, industry ...; with accounting and route, all three or none
    accounting: str = ""  # one of ACCOUNTINGS
    route: str = ""  # one of ROUTES: where its numbers come from
    first_year: int  # no figure before it: no row. served_flop, plan: the year the path starts from
    base_year: int | None = None  # growth: the year of base_share; None: first_year
    last_year: int | None = None  # plan: its horizon
    use: dict[str, str]
    by_year: dict[str, dict[str, str]] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)  # year -> parameter: a share stated outright
    ambiguous_year: int | None = None  # plan: the year whose training sum may be training + serving
    survey: tuple[Survey, ...] = ()
    inference_work: str | None = None  # parameter: part of X that runs inference kernels
    evidence: tuple[str, ...] = ()
    note: str

    def __post_init__(self) -> None:
        require_name(self.method, ROLES, "method", "method")
        told = {bool(part) for part in (self.organisation, self.accounting, self.route)}
        require(len(told) == 1, "organisation", "organisation, accounting and route, all three or none")
        if self.organisation:
            require_name(self.accounting, ACCOUNTINGS, "accounting", "accounting")
            require_name(self.route, ROUTES, "route", "route")
            bottom = "bottom_up, the route of served_flop, and of no other method"
            require((self.route == "bottom_up") == self.needs_rates, "route", bottom)
        single, yearly, optional = ROLES[self.method]
        for role in self.use:
            require_name(role, (*single, *optional), "use", f"role of {self.method}")
        missing = [role for role in single if role not in self.use]
        require(not missing, "use", f"a parameter for each of {', '.join(single)}; no {missing}")
        require(set(self.by_year) == set(yearly), "by_year", f"the roles {yearly or '(none)'}")
        for role, series in self.by_year.items():
            require(bool(series), f"by_year.{role}", "a year at least")
            _require_years(series, f"by_year.{role}")
        _require_years(self.known, "known")
        _require_years(map(str, filter(None, (self.first_year, self.base_year, self.last_year))), "first_year")
        require(self.method != "surveys" or bool(self.survey), "survey", "at least one")
        require(self.method != "plan" or self.last_year is not None, "last_year", "a plan's horizon")
        evidence_table.require_known(self.evidence)

    @property
    def needs_rates(self) -> bool:
        """Whether throughput enters, through r. Every other route rests on public figures alone."""
        return self.method == "served_flop"

    @property
    def parameters(self) -> list[str]:
        """The parameters of the share by purpose, in a fixed order, without r."""
        yearly = [name for series in self.by_year.values() for name in series.values()]
        return list(dict.fromkeys([*self.use.values(), *yearly, *self.known.values()]))


def share(definition: Definition, draws: Draws, years: Sequence[int]) -> Array:
    """Serving's share by purpose: shape (years, draws); NaN in years before the first figure."""
    route = {"served_flop": _served_flop, "growth": _growth, "plan": _plan, "surveys": _surveys}
    result = np.asarray(expit(route[definition.method](definition, draws, years)))
    for year, name in definition.known.items():
        if int(year) in years:
            result[list(years).index(int(year))] = draws[name]
    result[[year < definition.first_year for year in years]] = np.nan
    return result


def by_kernel(share_by_purpose: Array, inference_work: Array) -> Array:
    """The second view: inference-type work inside X (rollouts, synthetic data) is inference."""
    return share_by_purpose + inference_work * (1 - share_by_purpose)


def _cumulative(series: Mapping[str, str], draws: Draws, years: Sequence[int], base: int) -> Array:
    """ln of growth since `base`, shape (years, draws), from growth rates (x a year) of named years.

    Years between named ones are interpolated in ln; beyond the ends the nearest named year holds.
    """
    named = sorted(int(year) for year in series)
    logs = [np.log(draws[series[str(year)]]) for year in named]
    since = {base: np.zeros_like(logs[0])}
    for year in range(base + 1, max(*years, base) + 1):
        since[year] = since[year - 1] + _between(named, logs, year)
    for year in range(base - 1, min(*years, base) - 1, -1):
        since[year] = since[year + 1] - _between(named, logs, year + 1)
    return np.stack([since[year] for year in years])


def growth_in(series: Mapping[str, str], draws: Draws, year: int) -> Array:
    """Growth of one year (x a year) from a series of named years, interpolated as every route does."""
    named = sorted(map(int, series))
    return np.asarray(np.exp(_between(named, [np.log(draws[series[str(known)]]) for known in named], year)))


def _between(named: Sequence[int], values: Sequence[Array], year: int) -> Array:
    if year <= named[0] or year >= named[-1]:
        return values[0 if year <= named[0] else -1]
    after = next(i for i, known in enumerate(named) if known >= year)
    weight = (year - named[after - 1]) / (named[after] - named[after - 1])
    return (1 - weight) * values[after - 1] + weight * values[after]


def _served_flop(definition: Definition, draws: Draws, years: Sequence[int]) -> Array:
    use = {role: draws[name] for role, name in definition.use.items()}
    computed = 1 + use["input_output_ratio"] * (1 - use["cache_hit_share"])  # per output token
    level = np.log(draws["r"] / 3 * use["output_per_trained"] * computed)
    # Rates of loaded systems are dearer by the idle share of either side; fleet averages hold it.
    level += draws["r_training_busy"] * np.log(use["availability"])
    level -= draws["r_serving_busy"] * np.log(use["load"])
    if "multiple" in use:
        level -= np.log(use["multiple"])
    grows = {
        role: _cumulative(series, draws, years, definition.first_year) for role, series in definition.by_year.items()
    }
    return level + grows["demand"] + grows["size"] - grows["trained"]


def _growth(definition: Definition, draws: Draws, years: Sequence[int]) -> Array:
    base = definition.base_year or definition.first_year
    serving = _cumulative(definition.by_year["serving"], draws, years, base)
    other = _cumulative(definition.by_year["other"], draws, years, base)
    return np.asarray(logit(draws[definition.use["base_share"]])) + serving - other


def _plan(definition: Definition, draws: Draws, years: Sequence[int]) -> Array:
    """A plan's sums are single numbers (fixed priors); only scenario and error are drawn."""
    one = {role: float(draws[name][0]) for role, name in definition.use.items()}
    first, last = definition.first_year, definition.last_year or definition.first_year
    span = np.arange(last - first + 1)
    serving_sum = (one["total"] - one["training_total"]) / one["serving_first"]
    growth = brentq(lambda g: float(np.sum(g**span)) - serving_sum, 0.01, 100.0)
    serving = one["serving_first"] * growth**span
    stated = definition.by_year["training"]
    training = np.zeros((len(span), len(draws[definition.use["scenario"]])))
    for year, name in stated.items():
        training[int(year) - first] = draws[name]
        if int(year) == definition.ambiguous_year:
            part = draws[definition.use["scenario"]] * serving[int(year) - first]
            training[int(year) - first] -= part
    open_years = [i for i in range(len(span)) if str(first + i) not in stated]
    training[open_years] = (one["training_total"] - training.sum(axis=0)) / max(len(open_years), 1)
    odds = np.log(serving[:, None] / training)
    if "error" in definition.use:
        odds = odds + np.log(draws[definition.use["error"]])
    path = np.full((len(years), odds.shape[1]), np.nan)
    for row, asked in enumerate(years):
        if first <= asked <= last:
            path[row] = odds[asked - first]
    return path


def _surveys(definition: Definition, draws: Draws, years: Sequence[int]) -> Array:
    """Inside a survey's years: linear in log-odds. Outside: drift a year. Then its method error."""
    inside, beyond = [], []
    for survey in definition.survey:
        known = sorted(int(year) for year in survey.share)
        points = [float(logit(survey.share[str(year)])) for year in known]
        inside.append(np.interp(years, known, points))
        beyond.append([max(0, y - known[-1]) - max(0, known[0] - y) for y in years])
    use = {role: draws[name] for role, name in definition.use.items()}
    last = len(definition.survey) - 1
    chosen = np.minimum((use["choice"] * (last + 1)).astype(int), last)
    drift = np.array(beyond, dtype=float)[chosen].T * use["drift"]
    return np.asarray(np.array(inside)[chosen].T + drift + use["error"])
