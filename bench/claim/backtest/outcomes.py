"""What came true: which targets count for a cut-off, and the figure that later evidence showed.

A target counts where what resolves it was published on the cut-off or later by any reading of its date, no other
source of it was out before, and its period did not end long before (a figure of last year still unreported is a
nowcast, one of years ago is history). The newest price of a window stands for its last month.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.claim.backtest.forecasts import YEAR, Forecast, Rows, month_after
from bench.claim.backtest.readings import Figures, before, value
from bench.claim.backtest.spec import Backtest, Reading, Target
from bench.price.known import first_day, last_day, surely_before


@dataclass(frozen=True)
class Outcome:
    """A target's figure; `readings` holds it and those of sources that contradict it."""

    value: float
    readings: tuple[float, ...]
    evidence: tuple[str, ...]


def outcomes(
    spec: Backtest, table: Figures, prices: Rows, cutoff: datetime.date, as_of: datetime.date
) -> dict[str, Outcome]:
    """Outcomes by target, of those that count for the cut-off and were known by `as_of`."""
    known = before(table, as_of + datetime.timedelta(days=1))
    found: dict[str, Outcome] = {}
    for target in spec.target:
        if counts(spec, target, table, cutoff) and (result := _read(target, known)):
            found[target.id] = result
    low, high = (month_after(cutoff, n) for n in (spec.prices.ahead_months, spec.prices.horizon_months))
    window: dict[str, dict[str, Any]] = {}
    for row in sorted(prices, key=lambda row: row["month"]):
        if low <= row["month"] <= high and surely_before(row["month"], as_of) and _sold(spec, row):
            window["/".join((row["provider"], row["gpu"], row["term"]))] = row
    for key, row in window.items():
        price = row["usd_per_gpu_hour"]
        found[key] = Outcome(price, (price,), (f"price_history:{key}",))
    return found


def _sold(spec: Backtest, row: dict[str, Any]) -> bool:
    return row["provider"] not in spec.prices.leave_out


def _read(target: Target, known: Figures) -> Outcome | None:
    first = value(target.resolved, known)
    if first is None:
        return None
    read = [(target.resolved, first), *((r, v) for r in target.also if (v := value(r, known)) is not None)]
    cited = dict.fromkeys(name for reading, _ in read for name in reading.ids)
    return Outcome(first, tuple(number for _, number in read), tuple(cited))


def counts(spec: Backtest, target: Target, table: Figures, cutoff: datetime.date) -> bool:
    """Whether the target was open on the eve of the cut-off."""
    end = last_day(target.period[-1])
    if end is None or end < _back(cutoff, spec.nowcast_months) or not _published_from(target.resolved, table, cutoff):
        return False
    past = before(table, cutoff)
    return all(value(reading, past) is None for reading in (target.resolved, *target.also))


def _published_from(reading: Reading, table: Figures, cutoff: datetime.date) -> bool:
    """Whether the last of a reading's figures to come out surely came out on the cut-off or later."""
    days = [first_day(table[name].published) for name in reading.ids if name in table]
    return len(days) == len(reading.ids) and max(day or datetime.date.min for day in days) >= cutoff


def _back(cutoff: datetime.date, months: int) -> datetime.date:
    """The first day of the month so many before a cut-off's."""
    year, month = divmod(cutoff.year * YEAR + cutoff.month - 1 - months, YEAR)
    return datetime.date(year, month + 1, 1)


def scored(made: Sequence[Forecast], found: Mapping[str, Outcome]) -> list[tuple[Forecast, Outcome]]:
    """Forecasts that exist and came true one way or another."""
    return [(one, found[one.id]) for one in made if one.draws is not None and one.id in found]
