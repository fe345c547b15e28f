"""What a forecaster of the day says about each target: draws, and the two naive answers beside them.

    value(T) = rate(B) x  mean of g^t over T / mean of g^t over B  (x T's length where it is a sum)

B is the newest figure of the same quantity that was out, g its yearly growth; or the forecast is a rebuilt parameter
as it stands. Naive answers: `no_change` (g = 1), `last_growth` (g between the organisation's own two newest figures).
Only what the caller hands in is read: figures and prices from before the cut-off.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.claim.backtest.readings import Figures, Span, is_flow, middle, rate, span, span_of, value
from bench.claim.backtest.rebuild import BACK, THERE, Rebuilt, rebuild, spread
from bench.claim.backtest.spec import Backtest, Reading, Target
from bench.claim.priors import Array, draw
from bench.price.history import Change, series
from bench.price.known import surely_before

Rows = Sequence[dict[str, Any]]
YEAR = 12  # months


@dataclass(frozen=True)
class Forecast:
    """One target as forecast on the eve of a cut-off. `draws` is None where there was nothing to start from."""

    id: str
    text: str
    organisation: str
    cluster: str
    scale: str
    unit: str
    period: str
    draws: Array | None
    naive: bool = False  # rests on a naive prior: its growth or all of it
    evidence: tuple[str, ...] = ()
    no_change: float | None = None
    last_growth: float | None = None


def prices_before(rows: Rows, cutoff: datetime.date, leave_out: Sequence[str]) -> list[dict[str, Any]]:
    """Months of the price history that were over before a day."""
    return [r for r in rows if surely_before(r["month"], cutoff) and r["provider"] not in leave_out]


def price_changes(spec: Backtest, rows: Rows) -> list[float]:
    """The yearly change, in x a year, of every series known long enough."""
    found = [Change(*key, line[0], line[-1]) for key, line in sorted(series(rows).items())]
    return [float(np.exp(one.log_per_year)) for one in found if one.months >= spec.prices.least_months]


def rules(spec: Backtest, table: Figures, prices: Rows) -> dict[str, Rebuilt | None]:
    """Every parameter rebuilt from what was out."""
    changes = price_changes(spec, prices)
    return {name: rebuild(rule, spec.naive, table, changes) for name, rule in spec.parameters.items()}


def forecasts(spec: Backtest, table: Figures, prices: Rows, cutoff: datetime.date) -> list[Forecast]:
    """Every target's forecast from the figures and prices of before `cutoff`, whether or not it can be scored."""
    priors = rules(spec, table, prices)
    drawn = draw({n: found.prior for n, found in priors.items() if found}, (), spec.draws, spec.seed)
    figures = [_figure(spec, target, table, priors, drawn) for target in spec.target]
    return figures + _prices(spec, prices, priors, drawn, cutoff)


def growth_between(g: Array | float, start: Span, end: Span) -> Array:
    """Mean rate over `end` per mean rate over `start` under exponential growth of g (x a year)."""
    log = np.log(np.asarray(g, dtype=float))
    origin = middle(start)
    return _mean(log, end, origin) / _mean(log, start, origin)


def _mean(log: Array, period: Span, origin: float) -> Array:
    """Mean of exp(log t) over a period, t from `origin`; sinh(x) / x about the period's middle."""
    x = log * (period[1] - period[0]) / 2
    bulge = np.where(np.abs(x) < 1e-6, 1.0, np.sinh(x) / np.where(x == 0, 1.0, x))
    return np.asarray(np.exp(log * (middle(period) - origin)) * bulge)


def newest(readings: Sequence[Reading], table: Figures) -> list[list[tuple[Reading, float]]]:
    """Known readings by the end of their period, the newest first; those of one end together."""
    groups: dict[float, list[tuple[Reading, float]]] = {}
    for reading in readings:
        if (number := value(reading, table)) is not None:
            groups.setdefault(span_of(reading, table)[1], []).append((reading, number))
    return [groups[end] for end in sorted(groups, reverse=True)]


def _figure(
    spec: Backtest, target: Target, table: Figures, priors: Mapping[str, Rebuilt | None], drawn: Mapping[str, Array]
) -> Forecast:
    said: dict[str, Any] = {
        name: getattr(target, name) for name in ("id", "text", "organisation", "cluster", "scale", "unit")
    }
    said["period"] = " to ".join(dict.fromkeys((target.period[0], target.period[-1])))
    if target.parameter:
        found = priors[target.parameter]
        if found is None:
            return Forecast(**said, draws=None)
        own = [r for r in spec.parameters[target.parameter].readings if _whose(r, table) == target.organisation]
        same = [number for _, number in (newest(own, table) or [[]])[0]]
        stood = _middle(same, target.scale) if same else None
        cited = found.prior.evidence
        return Forecast(**said, draws=drawn[target.parameter], naive=found.naive, evidence=cited, no_change=stood)
    groups = newest(target.base, table)
    if not groups:
        return Forecast(**said, draws=None)
    return _carried(spec, target, table, groups, priors, drawn, said)


def _carried(
    spec: Backtest,
    target: Target,
    table: Figures,
    groups: list[list[tuple[Reading, float]]],
    priors: Mapping[str, Rebuilt | None],
    drawn: Mapping[str, Array],
    said: dict[str, Any],
) -> Forecast:
    """The newest figure carried on by growth."""
    ahead = span(target.period[0], target.period[-1])
    bases = [(_mean_rate(group, table, target), span_of(group[0][0], table)) for group in groups]
    (rates, start) = bases[0]
    length = ahead[1] - ahead[0] if is_flow(target.unit) else 1.0
    cited = tuple(dict.fromkeys(name for reading, _ in groups[0] for name in reading.ids))
    prior = spread(rates, target.scale, spec.base_width, target.unit, "newest figures", cited)
    name = f"base:{target.id}"
    level = draw({name: prior}, (), spec.draws, spec.seed)[name] * length
    stood = prior.p50 * length if prior.p50 is not None else None
    growth = priors[target.growth] if target.growth else None
    if target.growth and growth is None:
        return Forecast(**said, draws=None)
    last = None
    if len(bases) > 1 and target.growth and stood is not None:
        older, when = bases[1]
        years = middle(start) - middle(when)
        g = (_middle(rates, target.scale) / _middle(older, target.scale)) ** (1 / years)
        last = stood * float(growth_between(g, start, ahead))
    moved = growth_between(drawn[target.growth], start, ahead) if target.growth else 1.0
    return Forecast(
        **said,
        draws=np.asarray(level * moved),
        naive=bool(growth and growth.naive),
        evidence=tuple(dict.fromkeys((*cited, *(growth.prior.evidence if growth else ())))),
        no_change=stood,
        last_growth=last,
    )


def _mean_rate(group: list[tuple[Reading, float]], table: Figures, target: Target) -> list[float]:
    return [rate(number, target.unit, span_of(reading, table)) for reading, number in group]


def _middle(numbers: Sequence[float], scale: str) -> float:
    return float(BACK[scale](np.mean(THERE[scale](np.asarray(numbers, dtype=float)))))


def _whose(reading: Reading, table: Figures) -> str | None:
    figure = table.get(reading.of[0][0])
    return figure.organisation if figure else None


def month_after(cutoff: datetime.date, months: int) -> str:
    """The month so many after the cut-off's own."""
    years, month = divmod(cutoff.month - 1 + months, YEAR)
    return f"{cutoff.year + years}-{month + 1:02d}"


def _prices(
    spec: Backtest,
    rows: Rows,
    priors: Mapping[str, Rebuilt | None],
    drawn: Mapping[str, Array],
    cutoff: datetime.date,
) -> list[Forecast]:
    """Each series' last price carried on by the yearly change of prices; its own last year as `last_growth`."""
    rule = priors[spec.prices.growth]
    until = month_after(cutoff, spec.prices.horizon_months)
    found = []
    for key, line in sorted(series(rows).items()):
        last = line[-1]
        years = span(until, until)[0] - span(last["month"], last["month"])[0]
        if last["month"] < month_after(cutoff, -YEAR) or rule is None:
            continue  # a price nobody saw for a year is no price of the day
        price = last["usd_per_gpu_hour"]
        year_ago = [r for r in line if month_after(cutoff, -YEAR - 1) <= r["month"] < last["month"]]
        own = Change(*key, year_ago[0], last) if year_ago else None
        found.append(
            Forecast(
                id="/".join(key),
                text=f"USD per hour of {key[1]}, {key[2]}, at {key[0]}",
                organisation=key[0],
                cluster=f"prices of {key[0]}",
                scale="log",
                unit="USD per GPU-hour",
                period=until,
                draws=np.asarray(price * drawn[spec.prices.growth] ** years),
                naive=rule.naive,
                evidence=("price_history:" + "/".join(key),),
                no_change=price,
                last_growth=float(price * np.exp(own.log_per_year * years)) if own else None,
            )
        )
    return found
