"""Keys in words: what a definition counts as training, what a statement says, price levels, terms, parameters.

Definitions and statements carry their own words in configs/claims; a key no file explains is shown with its underscores
turned into spaces, so a new claim reads well before anybody touches this file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from bench.architecture import Model
from bench.claim.spec import Claim
from bench.config import Gpu, load_all
from bench.price.portfolio import Portfolio
from bench.report.numbers import BLANK

TERMS: Mapping[str, str] = {
    "on_demand": "on demand",
    "spot": "spot",
    "capacity_block": "capacity block",
    "reserved_1y": "reserved 1 year",
    "reserved_3y": "reserved 3 years",
    "contract": "contract",
    "owned": "owned",
}
LEVELS: Mapping[str, str] = {
    "retail": "retail: list prices anybody pays",
    "contract": "contract: commitments for years",
    "owner": "owner's cost, projected: what the machine costs its owner",
}
BLENDED = {  # what is asked of two portfolios
    "_cheaper": "cheaper, expected loss included",
    "_more_available": "less serving lost",
    "_fewer_blackouts": "fewer hours with less than half of serving",
    "": "cheaper and less serving lost",
}
VIEWS = ("by kernel type", "by purpose")
Files = Mapping[str, Claim]
_KEPT = {
    **{"gpu": "GPU", "mfu": "MFU", "rd": "R&D", "usd": "USD", "flop": "FLOP", "it": "IT", "gw": "GW"},
    **{"rl": "RL", "moe": "MoE", "lora": "LoRA"},
    **{"openai": "OpenAI", "anthropic": "Anthropic", "azure": "Azure", "stargate": "Stargate", "oracle": "Oracle"},
}


@functools.cache
def names() -> Mapping[str, str]:
    """Models, GPUs and portfolios by key, as their config files call them."""
    found: dict[str, Model | Gpu | Portfolio] = {**load_all(Model), **load_all(Gpu), **load_all(Portfolio)}
    return {key: item.name.removeprefix("NVIDIA ") for key, item in found.items()}


def phrase(key: str | None) -> str:
    """A key in words: `serving_growth_2027` -> serving growth 2027; words stay as they are."""
    if not key:
        return BLANK
    if key in names():
        return names()[key]
    if " " in key or "/" in key:
        return key
    words = " ".join(_KEPT.get(word.lower(), word) for word in key.split("_"))
    return re.sub(r"\b(20\d\d) (20\d\d)\b", r"\1–\2", words)


def prose(note: str | None) -> str:
    """A note with the keys in it turned into words."""
    return re.sub(r"\b[a-z][a-z0-9]*(?:_[a-z0-9]+)+\b", lambda key: phrase(key[0]), note or "") or BLANK


def parts(subject: str | None) -> tuple[str, str]:
    """A finding's subject as (statement, rest): `leads, by kernel type`, `leads: rho` or `leads`."""
    whole = subject or ""
    for view in VIEWS:
        if whole.endswith(f", {view}"):
            return whole.removesuffix(f", {view}"), view
    name, _, rest = whole.partition(": ")
    return name, rest


def definition(key: str | None) -> str:
    """D2_top_down -> D2 top down."""
    return phrase(key)


def definition_text(row: Mapping[str, Any], files: Files) -> str:
    """What the definition of a finding counts, as its claim file says."""
    claim = files.get(row["claim"])
    found = claim.definitions.get(row["definition"] or "") if claim else None
    return found.text if found else ""


def statement(row: Mapping[str, Any], files: Files) -> str:
    """What a verdict is about, as its claim file says."""
    name, rest = parts(row["subject"])
    claim = files.get(row["claim"])
    texts: dict[str, str] = {}
    if claim:
        texts |= {item.name: item.text for item in claim.statement}
        texts |= {item.name: item.text for item in claim.comparison}
        texts |= {item.name: item.text for item in claim.delivery}
        texts |= {item.name: item.text for item in claim.period}
        texts |= {item.name: item.text for item in claim.growth}
        for item in claim.blend:
            texts |= {f"{item.name}{tail}": f"{item.text}: {said}" for tail, said in BLENDED.items()}
    words = texts.get(name) or phrase(name)
    return f"{words} ({rest})" if rest else words
