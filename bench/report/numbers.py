"""Numbers for people: three significant digits, a unit, and an en dash where a value is missing.

CSVs keep base units and 6 digits; only this file rounds. Missing is never shown as 0 or nan, and a real 0 is "0".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

BLANK = "–"
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"))
# Units of results/claims.csv and configs/evidence.csv that are shares of 1.
SHARES = ("fraction", "share", "probability", "serving /", "part of")
_SMALL = (*_PREFIXES, (1e-6, "µ"), (1e-9, "n"))


def known(value: float | None) -> bool:
    """Whether there is a finite number to show."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 3) -> str:
    """A plain number: 1234.5 -> 1,230; 0.01234 -> 0.0123; 3e12 -> 3.00e12; None -> –."""
    if value is None or not math.isfinite(value):
        return BLANK
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded)))
    if exponent >= 9 or exponent < -4:
        return f"{rounded:.{digits - 1}e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return f"{rounded:,.{max(digits - 1 - exponent, 0)}f}"


def usd(value: float | None) -> str:
    """US dollars, three significant digits: $0.0123, $2.35, $1,230, $65.0bn. Raises nothing."""
    if value is None or not math.isfinite(value):
        return BLANK
    for size, name in ((1e12, "tn"), (1e9, "bn"), (1e6, "m")):
        if abs(value) >= size:
            return f"{'-' if value < 0 else ''}${number(abs(value) / size)}{name}"
    return f"{'-' if value < 0 else ''}${number(abs(value))}"


def percent(value: float | None) -> str:
    """A share of 1 as whole percent; below one or above 99 it says so rather than round to certainty."""
    if value is None or not math.isfinite(value):
        return BLANK
    if 0 < value < 0.01:
        return "<1%"
    if 0.99 < value < 1:
        return ">99%"
    return f"{100 * value:.0f}%"


def chance(value: float | None) -> str:
    """A probability that is a share of draws: never 0% or 100%, which no number of draws shows."""
    if value is None or not math.isfinite(value):
        return BLANK
    return "<1%" if value < 0.005 else ">99%" if value > 0.995 else f"{100 * value:.0f}%"


def percent_tenths(value: float | None) -> str:
    """A share of 1 with one decimal: MFU and MBU."""
    return f"{100 * value:.1f}%" if value is not None and math.isfinite(value) else BLANK


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return f"{round(value):,}" if value is not None and math.isfinite(value) else BLANK


def scaled(value: float | None, unit: str) -> str:
    """A quantity with an SI prefix: 4.1e13, "FLOP/s" -> 41.0 TFLOP/s; 0.0123, "s" -> 12.3 ms."""
    if value is None or not math.isfinite(value):
        return BLANK
    for size, prefix in _SMALL if unit == "s" else _PREFIXES[:-1]:
        if abs(value) >= size * 0.9995 and not (unit == "s" and size > 1):
            return f"{number(value / size)} {prefix}{unit}"
    return f"{number(value)} {unit}"


def interval(low: float | None, high: float | None, show: Callable[[float | None], str]) -> str:
    """Two ends: 38–73%, $0.30–0.41, 1,250–1,310; one value where both print alike; – where one is missing."""
    if low is None or high is None or not (known(low) and known(high)):
        return BLANK
    first, last = show(low), show(high)
    if first == last:
        return first
    if low < 0 or first[0] in "<>" or last[0] in "<>":  # a dash beside these signs reads badly
        return f"{first} to {last}"
    if first.endswith("%") and last.endswith("%"):
        first = first[:-1]
    return f"{first}–{last.removeprefix('$') if first.startswith('$') else last}"


def bare(value: float | None, unit: str | None) -> str:
    """A value as its unit wants it, the unit left out where a column says it: 56%, $2.35, 2030, 0.41."""
    unit = (unit or "").lower()
    if unit.startswith(SHARES):
        return percent(value)
    if unit.startswith("usd"):
        return usd(value)
    if unit == "year" and value is not None:
        return f"{value:.0f}"
    return number(value)


def interval_in(row: Mapping[str, Any]) -> str:
    """p10 to p90 as the row's unit wants them."""
    unit = row["unit"]
    return interval(row["p10"], row["p90"], lambda value: bare(value, unit))


def value_of(value: float | None, unit: str | None) -> str:
    """A value with its unit: $65.0bn, $2.35 per GPU-h, 56%, 6.67 x per year."""
    if value is None or not math.isfinite(value):
        return BLANK
    shown, unit = bare(value, unit), unit or ""
    if unit.upper().startswith("USD"):
        rest = unit[3:].strip(" /_").removeprefix("per ")
        return f"{shown} per {rest}" if rest else shown
    if shown.endswith("%"):
        return f"{shown} {unit.partition(' ')[2]}".strip() if unit.startswith("fraction") else shown
    return shown if unit in ("year", "ratio") else f"{shown} {unit}".strip()
