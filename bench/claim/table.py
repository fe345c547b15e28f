"""claims.csv: every claim file answered, one finding a row, and the verdict in one sentence.

The folder configs/claims is the list of claims. Worlds are drawn once and shared, so the table kind
reads the very draws the share kind answered from. Same rows, same configs: same bytes.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import config
from bench.claim import blends, engine, growth, history, prices, printed, routes, spec
from bench.claim.ratio import Row
from bench.claim.spec import Claim
from bench.claim.verdict import Finding, finding
from bench.claim.world import World, world

ORDER = (
    "verdict",
    "share",
    "break_even",
    "printed",
    "price",
    "blend",
    "route",
    "finding",
    "sobol",
    "flip",
    "sensitivity",
)


def claims(
    rows: Sequence[Row], as_of: datetime.date, own: Sequence[Path] = (), modelled: Sequence[Row] = ()
) -> list[Finding]:
    """Every finding of every claim file and of the user's `own`, in results.CLAIMS columns, sorted.

    `rows` are throughput rows (measured and imported); `modelled` ones have break-evens and enter no verdict. Raises
    config.ConfigError.
    """
    files = spec.claims(own)
    places = {path.stem: path for path in own}
    worlds: dict[str, World] = {}
    for key, claim in files.items():
        named = claim.share_claim if claim.kind == "table" else key
        if claim.kind in ("share", "table") and named not in worlds:
            worlds[str(named)] = world(_share_claim(files, claim, places), rows, modelled)
    result = []
    for key, claim in files.items():
        if claim.kind == "share":
            answered = engine.answer(worlds[key])
            result += answered + engine.moves(worlds[key], answered)
        elif claim.kind == "table":
            result += printed.answer(claim, worlds[str(claim.share_claim)])
        elif claim.kind == "blend":
            result += blends.answer(claim, as_of)
        elif claim.kind == "price":
            result += prices.answer(claim, as_of)
        elif claim.kind == "growth":
            result += growth.answer(claim)
        elif claim.kind == "routes":
            result += routes.answer(claim, _share_claim(files, claim, places), rows, as_of)
        else:
            result += history.answer(claim, as_of)
        result.append(finding(claim, "finding", subject="question", note=_question(claim, as_of)))
    return sorted(result, key=_place)


def _share_claim(files: Mapping[str, Claim], claim: Claim, places: Mapping[str, Path]) -> Claim:
    if claim.kind == "share":
        return claim
    named = files.get(str(claim.share_claim))
    if named is None or named.kind != "share":
        expected = f"the key of a share claim, got {claim.share_claim!r}"
        place = places.get(claim.key, f"configs/claims/{claim.key}.toml")
        raise config.ConfigError(f"{place}: share_claim: expected {expected}")
    return named


def _question(claim: Claim, as_of: datetime.date) -> str:
    return f"{claim.question} Answered as of {as_of.isoformat()}, seed {claim.seed}."


def _place(row: Finding) -> tuple[Any, ...]:
    key = (row["claim"], ORDER.index(row["kind"]), row["definition"] or "", row["subject"] or "")
    return (*key, row["year"] or 0)


def verdict_line(found: Sequence[Finding]) -> str:
    """The leading verdict, a line each: interval, other definitions, grounds, what flips it."""
    claim = _leading()
    if claim is None or claim.headline is None:
        return "No claim with a headline is configured."
    rows = [row for row in found if row["claim"] == claim.key]
    statement, definition = claim.headline.statement, claim.headline.definition
    text = next(item.text for item in claim.statement if item.name == statement)
    verdicts = [r for r in rows if r["kind"] == "verdict" and r["subject"] == statement]
    first = next((row for row in verdicts if row["definition"] == definition), None)
    if first is None:
        return f"{text[0].upper()}{text[1:]}: no verdict, nothing to rest on was found."
    leading = (
        f"{text[0].upper()}{text[1:]}: {first['verdict']} by {_shown(definition)} "
        f"(P {first['probability']:.2f}; share {first['p50']:.2f}, "
        f"80% interval {first['p10']:.2f} to {first['p90']:.2f})"
    )
    others = _others([row for row in verdicts if row is not first])
    lines = [leading, f"Other definitions: {'; '.join(others)}", _rests(rows), _flips(rows, definition, statement)]
    return "\n".join(f"{line[0].upper()}{line[1:]}." for line in lines)


def own_lines(found: Sequence[Finding], own: Sequence[Path]) -> list[str]:
    """The verdicts of the user's own files, a line each."""
    keys = [path.stem for path in own]
    rows = [row for row in found if row["claim"] in keys and row["kind"] == "verdict"]
    return [
        f"{row['claim']}: {_shown(row['subject'])}"
        + "".join(f", {_shown(row[name])}" for name in ("definition", "year") if row[name])
        + f": {row['verdict']}"
        + (f" (P {row['probability']:.2f})" if row["probability"] is not None else "")
        for row in rows
    ]


def _shown(name: object) -> str:
    """A key as a person reads it."""
    return str(name).replace("_", " ")


def _leading() -> Claim | None:
    """The share claim whose headline has the lowest order."""
    places = {c.key: (c.headline.order, c.key) for c in config.load_all(Claim).values() if c.headline}
    return config.load(Claim, min(places, key=lambda key: places[key])) if places else None


def _others(verdicts: Sequence[Finding]) -> list[str]:
    """ "holds by D1 and D4", a part for each verdict there is."""
    return [
        f"{word} by {', '.join(map(_shown, names))}"
        for word in ("holds", "undecided", "fails")
        if (names := [row["definition"] for row in verdicts if row["verdict"] == word])
    ]


def _rests(rows: Sequence[Finding]) -> str:
    """What r rests on, where throughput enters; public evidence elsewhere."""
    named = (row for row in rows if row["kind"] == "finding" and row["subject"] == "r")
    r = next(named, None)
    if r is None or r["p50"] is None:
        return "rests on public evidence alone: no trained and served rate of one model on one GPU"
    names = sorted({row["definition"] for row in rows if row["kind"] == "break_even"})
    return (
        f"rests on {r['basis'].replace('+', ' and ')} rows where throughput enters ({', '.join(map(_shown, names))}: "
        f"{len(r['rests_on'].split(';'))} rows, r {r['p50']:.2f}, 80% interval {r['p10']:.2f} to "
        f"{r['p90']:.2f}), on public evidence elsewhere"
    )


def _flips(rows: Sequence[Finding], definition: str, statement: str) -> str:
    """What would change the leading verdict: of what moves it most, the first that can."""
    asked = ("flip", definition, statement)
    found = [row for row in rows if (row["kind"], row["definition"], str(row["subject"]).split(":")[0]) == asked]
    found.sort(key=lambda row: (row["verdict"] is None, -(row["total_order"] or 0)))  # stable
    if not found:
        return "nothing tried would flip it"
    note = _shown(found[0]["note"])
    return f"it would flip: {note}" if found[0]["verdict"] else note
