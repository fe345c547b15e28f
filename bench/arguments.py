"""What a person types after an option, as numbers. Wrong words are a ConfigError: one line, exit code 2."""

from __future__ import annotations

from bench.config import ConfigError


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


def budget_s(text: str) -> float:
    """Seconds in "90", "90s" or "8m". Raises ConfigError."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m") else (text, "s")
    try:
        value = float(number) * {"s": 1, "m": 60}[unit]
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"--budget: expected a time such as 8m or 90s, got {text!r}")
    return value
