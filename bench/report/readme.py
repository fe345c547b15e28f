"""The verdict table of the README, rewritten by `make report` so that it never says more than the results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.import_results import VERIFIED
from bench.report.material import Rows

BLOCK = re.compile(r"(<!-- verdict:[^>]*-->\n).*?(\n<!-- /verdict -->)", re.S)
STATEMENTS = ("dominates_by_2027", "leads_by_2030")
BLENDED = ("cheaper", "more_available", "fewer_blackouts")
ROUTES = ("route", "disagreement", "OpenAI")
MEANS = {
    "D1": "final training runs, from tokens and throughput",
    "D1_top_down": "final training runs, from dollars",
    "D1_anthropic": "Anthropic's final training runs, from dollars",
    "D1_industry": "final runs of open models' makers, as their over-training implies",
    "D2_bottom_up": "all research compute, from tokens and throughput",
    "D2_top_down": "all research compute at OpenAI, from dollars: the headline",
    "D2_plan": "the same, OpenAI's own plan of February 2026 at its word",
    "D2_plan_with_error": "the same plan, off by a factor of two either way at p10 and p90",
    "D2_anthropic": "all research compute at Anthropic",
    "D3": "research as booked in OpenAI's accounts",
    "D4": "the industry's training capacity",
}


def share(probability: float) -> str:
    """Two digits; never a certainty that draws cannot give."""
    return "< 0.01" if probability < 0.01 else "> 0.99" if probability > 0.99 else f"{probability:.2f}"


def said_of(row: Mapping[str, Any]) -> str:
    """A verdict in a sentence."""
    return f"{row['verdict']} (P {share(row['probability'])})"


def verdict_table(claims: Rows) -> str:
    """Two statements by every definition; Stargate and several clouds in a sentence each.

    Raises KeyError where a verdict is missing.
    """
    found = {(row["definition"], row["subject"]): row for row in claims if row["kind"] == "verdict"}

    def cell(definition: str, subject: str) -> str:
        row = found[definition, subject]
        low, middle, high = (f"{row[name]:.0%}" for name in ("p10", "p50", "p90"))
        return f"{row['verdict']} (P {share(row['probability'])}; {middle}, {low} to {high})"

    lines = ["| serving compared with | two thirds or more in 2027 | more than half in 2030 |", "| --- | --- | --- |"]
    for key, meaning in MEANS.items():
        cells = " | ".join(cell(key, subject) for subject in STATEMENTS)
        lines.append(f"| {key.replace('_', ' ')}: {meaning} | {cells} |")
    subjects = [
        ("contract", "stargate_cheaper_by_contract"),
        ("owner", "stargate_cheaper_by_owner_cost"),
        ("delivery", "stargate_75_percent_by_2030"),
    ]
    said = [said_of(found[key]) for key in subjects]
    several = [said_of(found["contract", f"two_clouds_beat_one_{asked}"]) for asked in BLENDED]
    most = [said_of(found["contract", f"three_clouds_and_stargate_beat_one_{asked}"]) for asked in BLENDED]
    lines += [
        "",
        f"Stargate cheaper than Azure, whose prices are proxies: contract against contract {said[0]}, owner's cost "
        f"against owner's cost {said[1]}; 75% of capacity from Stargate by 2030: {said[2]}.",
        f"Two clouds instead of one, spare and expected outages counted: cheaper {several[0]}, less serving lost "
        f"{several[1]}, fewer blackouts {several[2]}; three clouds and Stargate: {most[0]}, {most[1]}, {most[2]}.",
    ]
    apart = [row["p50"] for row in claims if (row["kind"], row["subject"], row["definition"]) == ROUTES]
    if apart:
        lines.append(
            f"OpenAI's serving, tokens times cost of a token: {min(apart):.0%} to {max(apart):.0%} of what is reported"
            " or planned for 2024 to 2026; the size of what is served, which nobody publishes, explains more of the gap"
            " than any other input."
        )
    if any(row["quotes"] for row in claims if row["kind"] == "verdict"):
        lines[-1] += f" D1 and D2 bottom up rest in part on MLPerf results (claims.csv, `quotes`): {VERIFIED}."
    return "\n".join(lines)


def update(path: Path, claims: Rows) -> None:
    """Put the table between the README's two marks. Raises ValueError where they are gone."""
    text = path.read_text(encoding="utf-8")
    if not BLOCK.search(text):
        raise ValueError(f"{path}: expected the marks <!-- verdict: ... --> and <!-- /verdict -->")
    table = verdict_table(claims)
    path.write_text(BLOCK.sub(lambda found: f"{found[1]}{table}{found[2]}", text), encoding="utf-8")
