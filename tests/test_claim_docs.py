"""docs/claims.md: its example runs as it stands, its keys are the dataclasses' keys, its options work."""

from __future__ import annotations

import dataclasses
import datetime
import re
import subprocess
import sys
import tomllib
import typing

import pytest
from answers import whole

from bench import results
from bench.claim import table
from bench.claim.spec import KINDS, Claim, claims
from bench.config import ConfigError, build
from bench.price.throughput import published

PAGE = (results.ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
TODAY = datetime.date(2026, 11, 22)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(EXAMPLE)
    return path


def sections():
    """Section of a claim file -> its dataclass, from the fields of Claim alone."""
    found = {"file": Claim}
    for name, hint in typing.get_type_hints(Claim).items():
        kinds = [k for k in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(k)]
        found.update((name, kind) for kind in kinds)
    return found


def test_the_example_runs_as_it_stands_and_is_the_smallest(mine):
    rows = [r for r in table.claims([], TODAY, [mine]) if r["claim"] == "my"]
    (verdict,) = (r for r in rows if r["kind"] == "verdict")
    assert verdict["verdict"] == "undecided" and 0.5 < verdict["probability"] < 0.9
    assert (verdict["priors"], verdict["judged"]) == (3, 1)
    whole = tomllib.loads(EXAMPLE)
    for key in whole:
        smaller = {name: value for name, value in whole.items() if name != key}
        with pytest.raises((ConfigError, ValueError, KeyError)):
            claim = build(Claim, smaller, "my.toml: ")
            assert claim.statement and claim.years


def test_the_documented_keys_are_those_of_the_dataclasses():
    table_of = PAGE.split("## Keys")[1]
    told = {m[1]: m[2] for m in re.finditer(r"^\| (\w+) \| (.*) \|$", table_of, re.MULTILINE)}
    told.pop("section")
    kinds = sections()
    assert set(told) == set(kinds)
    for name, kind in kinds.items():
        fields = {f.name: f for f in dataclasses.fields(kind) if f.init and (kind is not Claim or f.name != "key")}
        needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
        bold = set(re.findall(r"\*\*(\w+)\*\*", told[name]))
        assert set(told[name].replace("*", "").split()) == set(fields), name
        assert bold == needed, name


def test_the_documented_kinds_and_their_sections_are_those_that_are_read():
    told = re.findall(r"^\| `(\w+)` \| .* \| `([\w ]+)` \|$", PAGE, re.MULTILINE)
    assert {kind: tuple(names.split()) for kind, names in told} == KINDS
    assert len(PAGE.splitlines()) <= 90


def test_own_claims_leave_every_other_row_as_it_was(mine):
    rows = published()
    before = [results.line(results.CLAIMS, r) for r in whole()]
    after = [results.line(results.CLAIMS, r) for r in table.claims(rows, TODAY, [mine]) if r["claim"] != "my"]
    assert before == after


def test_a_file_named_as_one_of_ours_is_refused(mine):
    same = mine.rename(mine.with_name("multi_cloud.toml"))
    with pytest.raises(ConfigError, match=r"multi_cloud.toml: multi_cloud is a claim already; rename the file"):
        claims([same])


def bench(*arguments):
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    return subprocess.run(command, cwd=results.ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("year = 2027", "year = 2037", "my.toml: statement.year: expected a year of the claim, got 2037"),
        ("p10 = 0.35", "p10 = 0.55", "my.toml: parameters.share_2026.p10: expected p10 <= p50 <= p90"),
        ("seed = 1\n", "", "my.toml: seed: missing; expected int"),
        ("seed = 1", "seeed = 1", "my.toml: seeed: unknown key; did you mean seed?"),
        (", judgement = true", "", "my.toml: parameters.training_growth.judgement: expected true where"),
        ('kind = "share"', 'kind = "table"', "my.toml: printed: expected present in a claim of kind table"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_with_file_key_and_expectation(mine, old, new, message):
    assert old in EXAMPLE
    mine.write_text(EXAMPLE.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        claims([mine])
    assert message in str(caught.value) and "\n" not in str(caught.value) and str(mine) in str(caught.value)


def test_the_command_line_takes_a_file_from_anywhere_and_says_its_verdict(mine, tmp_path):
    answer = bench("claim", "--claims", mine, "--out", tmp_path / "out")
    assert answer.returncode == 0, answer.stderr
    assert "my: leads, ours, 2027: undecided (P 0." in answer.stdout
    rows = results.read_rows(tmp_path / "out" / "local" / "claims.csv", results.CLAIMS)
    assert [r for r in rows if r["claim"] == "my" and r["kind"] == "verdict"]


def test_the_command_line_refuses_in_one_line_and_writes_nothing(mine, tmp_path):
    out = tmp_path / "out"
    mine.write_text(EXAMPLE.replace("holds_at = 0.9", "holds_at = 9"))
    for arguments, said in (
        (["--claims", mine], "my.toml: decision.holds_at: expected 0 <= fails_at < holds_at <= 1"),
        (["--claims", tmp_path / "none.toml"], "none.toml: cannot be read"),
        (["--claims", mine, "--tracked"], "--claims: expected without --tracked"),
    ):
        answer = bench("claim", *arguments, "--out", out)
        assert answer.returncode == 2 and said in answer.stderr and "Traceback" not in answer.stderr
        assert not out.exists()
