"""What is typed on the command line, as values; a wrong one is one line that names the option."""

from __future__ import annotations

import datetime
from pathlib import Path

from bench import config
from bench.config import ConfigError


def use_configs(folder: Path | None) -> None:
    """Read configs from `folder` from now on. Raises ConfigError."""
    if folder is None:
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected a copy of configs/")
    config.CONFIGS = folder.resolve()


def numbers(option: str, text: str, *, whole: bool = False) -> tuple[float, ...]:
    """The positive numbers in "1,8,64". Raises ConfigError."""
    try:
        found = tuple(float(int(part) if whole else part) for part in text.split(",") if part.strip())
    except ValueError:
        found = (0.0,)
    if not all(0 < number < float("inf") for number in found):
        kind = "whole numbers" if whole else "numbers"
        raise ConfigError(f"{option}: expected positive {kind} such as 1,8, got {text!r}")
    return found


def budget(text: str) -> float:
    """Seconds in "90", "90s" or "8m". Raises ConfigError."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m") else (text, "s")
    try:
        value = float(number) * {"s": 1, "m": 60}[unit]
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"--budget: expected a time such as 8m or 90s, got {text!r}")
    return value


def day(text: str | None) -> datetime.date | None:
    """The day in "2025-06-01", not after today. Raises ConfigError."""
    if text is None:
        return None
    today = datetime.datetime.now(datetime.UTC).date()
    try:
        found = datetime.date.fromisoformat(text)
    except ValueError:
        found = datetime.date.max
    if found > today:
        raise ConfigError(f"--as-of: expected a day such as 2025-06-01, not after today, {today}, got {text!r}")
    return found
