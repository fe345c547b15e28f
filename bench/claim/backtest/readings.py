"""What a table of figures says: sums of products, rates, growth between two figures.

Every function takes the table it may read. A forecast is handed the figures that were out before its cut-off and
nothing else (`before`), so what came later cannot enter by any route.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence

from bench.claim.backtest.spec import Reading, constant
from bench.claim.evidence import Figure
from bench.price.known import first_day, last_day, surely_before

Figures = Mapping[str, Figure]
Span = tuple[float, float]
DAYS = 365.2425  # a year's days


def before(table: Figures, cutoff: datetime.date) -> dict[str, Figure]:
    """The figures published before a day by any reading of their dates; undated ones are none of them."""
    return {key: figure for key, figure in table.items() if surely_before(figure.published, cutoff)}


def value(reading: Reading, table: Figures) -> float | None:
    """The number; None where the table lacks one of its figures."""
    if not all(key in table and table[key].value is not None for key in reading.ids):
        return None
    top = _sum(reading.of, table)
    return top / _sum(reading.over, table) if reading.over else top


def _sum(products: Sequence[Sequence[str]], table: Figures) -> float:
    return sum(math.prod(_token(token, table) for token in product) for product in products)


def _token(token: str, table: Figures) -> float:
    number = constant(token)
    return number if number is not None else float(table[token].value or 0.0)


def span(start: str, end: str) -> Span:
    """A period in years since 0: "2025", "2025" -> (2025.0, 2026.0), to a day. Raises ValueError where undated."""
    first, last = first_day(start), last_day(end)
    if first is None or last is None:
        raise ValueError(f"period: expected dates, got {start!r} to {end!r}")
    return first.toordinal() / DAYS, (last.toordinal() + 1) / DAYS


def span_of(reading: Reading, table: Figures) -> Span:
    """The period of a reading's first figure."""
    figure = table[reading.of[0][0]]
    return span(figure.start, figure.end)


def is_flow(unit: str) -> bool:
    """Whether a figure is a sum over its period (dollars spent) and not a rate or a stock."""
    return unit == "USD"


def rate(amount: float, unit: str, period: Span) -> float:
    """A figure as a rate: a sum over its period a year, everything else as it stands."""
    return amount / (period[1] - period[0]) if is_flow(unit) else amount


def middle(period: Span) -> float:
    """The middle of a period, in years."""
    return (period[0] + period[1]) / 2


def yearly_growth(older: Figure, newer: Figure) -> float | None:
    """Growth in x a year between the middles of two figures' periods; None where there is none."""
    spans = [span(figure.start, figure.end) for figure in (older, newer)]
    years = middle(spans[1]) - middle(spans[0])
    if not older.value or not newer.value or years <= 0:
        return None
    rates = [rate(float(f.value or 0), f.unit, period) for f, period in zip((older, newer), spans, strict=True)]
    return (rates[1] / rates[0]) ** (1 / years)
