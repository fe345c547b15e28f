"""What was known on a day: dates as sources print them, held against it.

    2025-02-21 · 2025-02 · 2025 · v5.1 2025-09 · 24.07 (a release, month by month) · v1.0 (no date)

A month or a year counts from its first day, and what has no date always: a report of an old day then holds a little too
much rather than too little.
"""

from __future__ import annotations

import calendar
import datetime
import re

_DAY = re.compile(r"(?<!\d)(20\d\d)(?:-(0[1-9]|1[0-2])(?!\d)(?:-(\d\d)(?!\d))?)?")
_RELEASE = re.compile(r"(\d\d)\.(0[1-9]|1[0-2])(?:\.\d+)?")


def first_day(text: str | None) -> datetime.date | None:
    """The first day a date in `text` can mean; None where it has none."""
    if found := _RELEASE.fullmatch(text or ""):
        return datetime.date(2000 + int(found[1]), int(found[2]), 1)
    if not (found := _DAY.search(text or "")):
        return None
    return datetime.date(int(found[1]), int(found[2] or 1), int(found[3] or 1))


def known(text: str | None, as_of: datetime.date) -> bool:
    """Whether what is dated so was there on `as_of`."""
    day = first_day(text)
    return day is None or day <= as_of


def last_day(text: str | None) -> datetime.date | None:
    """The last day a date in `text` can mean, of several the latest; None where it has none."""
    if found := _RELEASE.fullmatch(text or ""):
        return _end(2000 + int(found[1]), int(found[2]))
    days = [
        datetime.date(int(year), int(month), int(day)) if day else _end(int(year), int(month or 12))
        for year, month, day in _DAY.findall(text or "")
    ]
    return max(days, default=None)


def _end(year: int, month: int) -> datetime.date:
    return datetime.date(year, month, calendar.monthrange(year, month)[1])


def surely_before(text: str | None, day: datetime.date) -> bool:
    """Whether what is dated so was out before `day` by any reading of its date; what has none was not."""
    last = last_day(text)
    return last is not None and last < day
