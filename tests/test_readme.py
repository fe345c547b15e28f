"""The README says what the results say, names targets and verbs that exist, and stays short."""

import csv
import re
import subprocess
from pathlib import Path

import pytest

from bench import results

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MEANS = {
    "D1": "final training runs, from tokens and throughput",
    "D1_top_down": "final training runs, from dollars",
    "D2_bottom_up": "all research compute, from tokens and throughput",
    "D2_top_down": "all research compute at OpenAI, from dollars: the headline",
    "D2_plan": "the same, OpenAI's own plan of February 2026 at its word",
    "D2_plan_with_error": "the same plan, off by up to a factor of two",
    "D2_anthropic": "all research compute at Anthropic",
    "D3": "research as booked in OpenAI's accounts",
    "D4": "the industry's training capacity",
}


def verdict_table() -> str:
    """The table as results/claims.csv gives it."""
    with (ROOT / "results" / "claims.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "verdict"]

    def cell(definition: str, subject: str) -> str:
        (row,) = [r for r in rows if (r["definition"], r["subject"]) == (definition, subject)]
        low, middle, high = (f"{float(row[name]):.0%}" for name in ("p10", "p50", "p90"))
        return f"{row['verdict']} (P {float(row['probability']):.2f}; {middle}, {low} to {high})"

    lines = [
        "| serving compared with | two thirds or more in 2027 | more than half in 2030 |",
        "| --- | --- | --- |",
    ]
    for key, meaning in MEANS.items():
        found = [cell(key, subject) for subject in ("dominates_by_2027", "leads_by_2030")]
        lines.append(f"| {key.replace('_', ' ')}: {meaning} | {found[0]} | {found[1]} |")
    (contract,) = [r for r in rows if r["subject"] == "stargate_cheaper_by_contract"]
    (owner,) = [r for r in rows if r["subject"] == "stargate_cheaper_by_owner_cost"]
    (delivery,) = [r for r in rows if r["subject"] == "stargate_75_percent_by_2030"]
    said = [f"{r['verdict']} (P {float(r['probability']):.2f})" for r in (contract, owner, delivery)]
    lines += [
        "",
        f"Stargate cheaper than Azure: contract against contract {said[0]}, owner's cost against owner's cost "
        f"{said[1]}; 75% of capacity from Stargate by 2030: {said[2]}.",
    ]
    return "\n".join(lines)


def test_the_verdict_table_is_that_of_the_results():
    block = re.search(r"<!-- verdict:[^>]*-->\n(.*?)\n<!-- /verdict -->", README, re.S)
    assert block and block[1] == verdict_table(), f"README.md should say:\n{verdict_table()}"


def test_every_target_it_names_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_column_it_names_is_in_the_schema():
    known = {*results.CELLS, *results.COSTS, *results.CLAIMS, *results.SAMPLES}
    section = README.split("## Reading the CSVs")[1].split("## Adding things")[0]
    for name in re.findall(r"\b(?:x_\w+|\w+_s_\w+|\w+_per_\w+)\b", section):
        assert name in known, name
    for name in results.CELLS:
        assert name.split("_low")[0].split("_high")[0] in section or name in section, name


def test_it_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("name", ["README.md", "docs/design.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / name).parent.joinpath(link).exists(), link


def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("bench", "test", "lint", "report", "check-results", "perf", "aot", "wheels", "setup", "clean"):
        assert re.search(rf"^{target}\s+\S", shown, re.M), target
