"""The price kind: is one supply of GPU-hours cheaper than another, at one level of price?

    P = share of draws with usd_per_gpu_hour(left) < usd_per_gpu_hour(right)
    saving of the bill = moved x (1 - left / right)

A GPU-hour has three prices. Retail: what a list says. Contract: what a large buyer agreed to.
Owner: what it costs whoever builds it (capital, power, operations). They differ by a factor of ten
for the same chip, so only like is held against like; retail against owner cost is refused, not
warned about. A delivery asks the other half: whether that much capacity would be there in time.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.special import logit, ndtr

from bench import config
from bench.claim.influence import Factor, Member, Question, influence, parameters
from bench.claim.priors import Array, Kept, Seed, draw, normals, triangular
from bench.claim.sections import Booked, Comparison, Delivery, Side
from bench.claim.spec import Claim
from bench.claim.verdict import Finding, counted, finding, ids, quantiles, verdict
from bench.config import ConfigError
from bench.price import book, owned

Standing = tuple[tuple[book.Owned, ...], tuple[book.Price, ...]]  # machines and prices of the book on a day


class LevelError(ConfigError):
    """Prices of two levels: no verdict can rest on that. Exit code 2, as for any config."""


def answer(claim: Claim, as_of: datetime.date = datetime.date.max) -> list[Finding]:
    """Every finding of a price claim, at the prices that stand at `as_of`. Raises LevelError.

    A side whose price was not known then has a finding that says so, and no comparison.
    """
    draws = draw(claim.parameters, claim.correlation, claim.draws, claim.seed)
    sides = {side.name: side for side in claim.side}
    found = {key: price(side, draws, claim.draws, claim.seed, as_of) for key, side in sides.items()}
    prices = {key: values for key, values in found.items() if values is not None}
    result = [_price(claim, sides[key], values) for key, values in prices.items()]
    unknown = [side for key, side in sides.items() if key not in prices]
    result += [finding(claim, "finding", subject=s.text, note=f"no such price was known on {as_of}") for s in unknown]
    for comparison in claim.comparison:
        left, right = sides[comparison.left], sides[comparison.right]
        if not {left.name, right.name} <= set(prices):
            continue
        ratio = price_ratio(left, right, prices)
        result += _compared(claim, comparison, left, right, ratio, draws[comparison.moved])
    result += [_delivered(claim, delivery, draws) for delivery in claim.delivery]
    rows = {row["subject"]: row for row in result if row["kind"] == "verdict"}
    return result + influence(question(claim, rows, as_of))


def question(claim: Claim, rows: Mapping[str, Finding], as_of: datetime.date) -> Question:
    """What moves which side is cheaper (-ln of the ratio), and whether enough arrives (log-odds of its part)."""
    comparisons = [item for item in claim.comparison if item.name in rows]
    sides = {s.name: s for s in claim.side if any(s.name in (c.left, c.right) for c in comparisons)}
    names = [name for side in sides.values() for name in (*side.multiply, *side.divide)]
    names += [name for item in claim.delivery for name in (item.planned, item.delivered, item.other, item.share)]
    kept = Kept()
    standing = {key: _standing(side.booked, as_of) for key, side in sides.items() if side.booked}

    def from_book(key: str, side: Side, count: int, scores: Mapping[str, Array]) -> Array:
        if side.booked is None:
            return np.ones(count)
        make = functools.partial(_drawn, side.booked, standing[key], count, scores)
        found = kept.of(f"{key} booked", [scores[factor.name] for factor in of_book[key]], make)
        assert found is not None, "a side without a price has no verdict"
        return found

    def margins(scores: Mapping[str, Array]) -> dict[str, Array]:
        count = len(next(iter(scores.values())))
        values = {name: kept.value(claim.parameters, name, scores) for name in names}
        usd = {key: _scaled(side, from_book(key, side, count, scores), values) for key, side in sides.items()}
        made = {item.name: -np.log(price_ratio(sides[item.left], sides[item.right], usd)) for item in comparisons}
        for item in claim.delivery:
            odds = values[item.planned] * values[item.delivered] / values[item.other]
            made[item.name] = np.log(odds) - logit(values[item.share])
        return made

    of_book = {key: book_factors(side.booked, standing[key]) for key, side in sides.items() if side.booked}
    book_inputs = {factor.name: factor for found in of_book.values() for factor in found}
    factors = [*parameters(claim, names), *book_inputs.values()]
    return Question(claim, factors, margins, rows, claim)


def book_factors(asked: Booked, standing: Standing) -> list[Factor]:
    """A factor for each input of an owner's annuity that is a range, and for a price of the book that is one."""
    spans: dict[str, tuple[str, tuple[float, float, float], tuple[str, ...]]] = {}
    machines, rows = standing
    for machine in machines[:1]:
        own = owned.streams(machine)
        for name, span in machine.ranges.items():
            spans[own[name]] = (span.unit, (span.low, span.value, span.high), span.evidence)
    if rows and not machines:
        spans[_stream(asked)] = ("USD per GPU-hour", _triangle(rows), ())
    return [
        Factor(name, (name,), (Member(name, unit, at(ends), cited),))
        for name, (unit, ends, cited) in spans.items()
        if ends[0] < ends[2]
    ]


def at(ends: tuple[float, float, float]) -> Callable[[float], float]:
    """The value of a triangle at a standard-normal score."""
    return lambda z: float(triangular(ends, np.array([ndtr(z)]))[0])


def price(side: Side, draws: Mapping[str, Array], count: int, seed: Seed, as_of: datetime.date) -> Array | None:
    """USD per GPU-hour, shape (count,), or None where it was not known then. Raises ConfigError."""
    value = booked(side.booked, count, seed, as_of) if side.booked else np.ones(count)
    return None if value is None else _scaled(side, value, draws)


def _scaled(side: Side, value: Array, draws: Mapping[str, Array]) -> Array:
    for name in side.multiply:
        value = value * draws[name]
    for name in side.divide:
        value = value / draws[name]
    return value


def booked(asked: Booked, count: int, seed: Seed, as_of: datetime.date = datetime.date.max) -> Array | None:
    """Draws of a price of the book: the owner's annuity, or a triangle over the rows' ranges; None: not known then.

    Raises ConfigError where the book never had such a price.
    """
    return _drawn(asked, _standing(asked, as_of), count, seed)


def _drawn(asked: Booked, standing: Standing, count: int, seed: Seed) -> Array | None:
    machines, rows = standing
    if machines:
        return owned.draws(machines[0], count, seed)
    if not rows:
        return None
    low, middle, high = _triangle(rows)
    if low == high:
        return np.full(count, middle)
    return triangular((low, middle, high), np.asarray(ndtr(normals(_stream(asked), count, seed))))


def _stream(asked: Booked) -> str:
    return f"price: {asked.provider} {asked.gpu} {asked.term}"


def _triangle(rows: Sequence[book.Price]) -> tuple[float, float, float]:
    """Lowest, median and highest of some prices, their own ranges included."""
    low = min(row.low or row.usd_per_gpu_hour for row in rows)
    high = max(row.high or row.usd_per_gpu_hour for row in rows)
    return low, float(np.median(sorted(row.usd_per_gpu_hour for row in rows))), high


def _standing(asked: Booked, as_of: datetime.date) -> Standing:
    """Machines and prices of the book that stand on a day. Raises ConfigError where it never had one."""
    path = config.CONFIGS / book.Provider.FOLDER / f"{asked.provider}.toml"
    seller = book.provider(path)
    machines = [row for row in seller.owned if row.gpu == asked.gpu and asked.term == "owned"]
    rows = [row for row in seller.price if (row.gpu, row.term, row.includes) == (asked.gpu, asked.term, "instance")]
    if not machines and not rows:
        raise ConfigError(f"{book.shown(path)}: price: expected {asked.gpu} at {asked.term}")
    return book.newest(machines, as_of), book.newest(rows, as_of)


def price_ratio(left: Side, right: Side, prices: Mapping[str, Array]) -> Array:
    """left / right, draw by draw. Raises LevelError where the two are of different levels."""
    if left.level != right.level:
        raise LevelError(
            f"side: {left.name} is a {left.level} price and {right.name} a {right.level} price; "
            "expected one level: retail, contract and owner cost are never held against each other"
        )
    return prices[left.name] / prices[right.name]


def _cited(claim: Claim, *sides: Side) -> Finding:
    """The evidence behind the sides: of their parameters, and of the inputs of an owner's annuity in the book."""
    names = [name for side in sides for name in (*side.multiply, *side.divide)]
    modelled = False
    cited = [claim.parameters[name].evidence for name in names]
    for asked in (side.booked for side in sides if side.booked):
        machines = [m for m in config.load(book.Provider, asked.provider).owned if m.gpu == asked.gpu]
        cited += [span.evidence for machine in machines for span in machine.ranges.values()]
        modelled |= asked.term == "owned" and any(machine.modelled for machine in machines)
    return {"basis": "modelled" if modelled else "evidence", "evidence": ids(*cited), **counted(claim, names)}


def _price(claim: Claim, side: Side, values: Array) -> Finding:
    names = [*side.multiply, *side.divide]
    sources = "; ".join(f"{name}: {claim.parameters[name].source}" for name in names)
    if side.booked:
        asked = side.booked
        sources = f"price book: {asked.provider}, {asked.term}; {sources}"
    proxy = "a proxy, no such price is public; " if side.proxy else ""
    return finding(
        claim,
        "price",
        **_cited(claim, side),
        **quantiles(values),
        definition=side.level,
        subject=side.text,
        unit=side.unit,
        note=f"{proxy}{sources}",
    )


def _compared(
    claim: Claim, comparison: Comparison, left: Side, right: Side, ratio: Array, moved: Array
) -> list[Finding]:
    probability = float(np.mean(ratio < 1))
    proxies = [side.text for side in (left, right) if side.proxy]
    proxy = f"; proxy: {', '.join(proxies)}" if proxies else ""
    where = {**_cited(claim, left, right), "definition": left.level, "note": f"{comparison.note}{proxy}"}
    held = finding(
        claim,
        "verdict",
        **where,
        **quantiles(ratio),
        subject=comparison.name,
        unit=f"{left.name} / {right.name}",
        threshold=1.0,
        probability=probability,
        verdict=verdict(probability, claim.decision),
    )
    saving = finding(
        claim,
        "price",
        **where,
        **quantiles(moved * (1 - ratio)),
        subject=f"{comparison.name}: saving",
        unit="part of the bill",
        threshold=0.0,
    )
    return [held, saving]


def _delivered(claim: Claim, item: Delivery, draws: Mapping[str, Array]) -> Finding:
    arrives = draws[item.planned] * draws[item.delivered]
    part = arrives / (arrives + draws[item.other])
    needed = draws[item.share]
    probability = float(np.mean(part >= needed))
    cited = [item.planned, item.delivered, item.other, item.share]
    return finding(
        claim,
        "verdict",
        basis="evidence",
        evidence=ids(*(claim.parameters[name].evidence for name in cited)),
        **counted(claim, cited),
        **quantiles(part),
        definition="delivery",
        subject=item.name,
        year=item.year,
        unit="part of capacity",
        threshold=float(np.median(needed)),
        probability=probability,
        verdict=verdict(probability, claim.decision),
        note=f"{item.text}: {item.note}",
    )
