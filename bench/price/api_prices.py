"""What a token costs to buy: list prices of APIs (configs/api_prices.csv), a seller and a model a row, each dated.

A list price is what a customer pays; what serving costs the seller nobody publishes. `model` is a key of
configs/models where the weights are the ones we measure, blank for closed models. As with GPU prices old rows stay, and
of each product (seller, name it is sold under) the newest known on a day stands.

    usd per request = (uncached input * p_input + cached input * p_cached + output * p_output) / 1e6

A seller without a price for cached input charges it as input.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from bench import config, results
from bench.architecture import Model
from bench.config import ConfigError
from bench.price.known import first_day

TOKENS = 1e6
CONFIDENCES = ("high", "medium", "low")
COLUMNS: dict[str, tuple[str, str]] = {
    "seller": ("s", "whose API"),
    "sold_as": ("s", "the model, as the seller names it"),
    "model": ("s", "model key; blank where no config has these weights"),
    "usd_per_million_input_tokens": ("f", "list price"),
    "usd_per_million_cached_input_tokens": ("f", "read from the seller's cache; blank: as input"),
    "usd_per_million_output_tokens": ("f", "list price"),
    "as_of": ("s", "day (or month) it was seen: YYYY-MM-DD"),
    "source": ("s", "what was read"),
    "source_url": ("s", "full address of the figure"),
    "retrieved": ("s", "day we read it"),
    "confidence": ("s", ", ".join(CONFIDENCES)),
    "note": ("s", "caveats"),
}
_NEEDED = (
    *("seller", "sold_as", "usd_per_million_input_tokens", "usd_per_million_output_tokens"),
    *("as_of", "source", "source_url", "retrieved", "confidence"),
)


@dataclass(frozen=True, kw_only=True)
class ApiPrice:
    """One product of one seller on one day, in USD per million tokens."""

    seller: str
    sold_as: str
    model: str | None
    input: float
    cached_input: float | None
    output: float
    as_of: str
    source_url: str
    confidence: str

    @property
    def seen(self) -> datetime.date:
        """The first day the date can mean."""
        day = first_day(self.as_of)
        assert day is not None
        return day

    def usd(self, input_tokens: float, cached_input_tokens: float, output_tokens: float) -> float:
        """USD for so many tokens; `cached_input_tokens` are some of `input_tokens`. Raises ValueError if more."""
        if cached_input_tokens > input_tokens:
            raise ValueError(f"cached_input_tokens: expected at most {input_tokens}, got {cached_input_tokens}")
        cached = self.input if self.cached_input is None else self.cached_input
        paid = (input_tokens - cached_input_tokens) * self.input + cached_input_tokens * cached
        return (paid + output_tokens * self.output) / TOKENS


def listed() -> list[ApiPrice]:
    """Every row of configs/api_prices.csv. Raises ConfigError or ResultsError, naming file and line."""
    path = config.CONFIGS / "api_prices.csv"
    rows = results.read_rows(path, COLUMNS) if path.is_file() else []
    models, found, seen = config.keys(Model), [], set()
    for number, row in enumerate(rows, start=2):
        where = f"configs/api_prices.csv line {number}"
        for name in _NEEDED:
            if row[name] is None:
                raise ConfigError(f"{where}: {name}: blank; every API price has one")
        for name in ("as_of", "retrieved"):
            if not (day := first_day(row[name])) or day > datetime.date.today():
                raise ConfigError(f"{where}: {name}: expected a date not after today, got {row[name]!r}")
        if row["model"] and row["model"] not in models:
            raise ConfigError(f"{where}: model: expected a key of configs/models, got {row['model']!r}")
        if row["confidence"] not in CONFIDENCES:
            raise ConfigError(f"{where}: confidence: expected one of {', '.join(CONFIDENCES)}")
        if not row["source_url"].startswith("https://"):
            raise ConfigError(f"{where}: source_url: expected the full address of the figure")
        prices = {kind: row[f"usd_per_million_{kind}_tokens"] for kind in ("input", "cached_input", "output")}
        for kind, usd in prices.items():
            if usd is not None and usd <= 0:
                raise ConfigError(f"{where}: usd_per_million_{kind}_tokens: expected a positive price, got {usd}")
        if prices["cached_input"] is not None and prices["cached_input"] > prices["input"]:
            raise ConfigError(f"{where}: usd_per_million_cached_input_tokens: expected at most the price of input")
        product = (row["seller"], row["sold_as"], row["as_of"])
        if product in seen:
            raise ConfigError(f"{where}: expected one price a product and day; twice: {', '.join(product)}")
        seen.add(product)
        named = {name: row[name] for name in ("seller", "sold_as", "model", "as_of", "source_url", "confidence")}
        found.append(ApiPrice(**named, **prices))
    return found


def standing_api(as_of: datetime.date) -> list[ApiPrice]:
    """Of each product the newest price known at `as_of`, by seller and name."""
    newest: dict[tuple[str, str], ApiPrice] = {}
    for price in sorted(listed(), key=lambda one: one.seen):
        if price.seen <= as_of:
            newest[price.seller, price.sold_as] = price
    return [newest[key] for key in sorted(newest)]
