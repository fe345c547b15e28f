"""A claim of one's own whose numbers cannot be what reads them is refused when it is read."""

from __future__ import annotations

import re

import pytest

from bench import config, results
from bench.claim.spec import Claim, claims
from bench.config import ConfigError, read

PAGE = (results.ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
SHARE = 'distribution = "logitnormal", p10 = 0.35, p50 = 0.4, p90 = 0.45'
GROWTH = 'distribution = "lognormal", p10 = 1.5, p50 = 2, p90 = 3'
PAIR = '[[correlation]]\na = "serving_growth"\nb = "{}"\nvalue = 0.5\nsource = "s"\n'
CHECK = '[[check]]\nname = "c"\ndefinition = "ours"\nyear = {}\nserving = [["{}"]]\nother = [["E028"]]\ntext = "t"\n'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (SHARE, 'distribution = "fixed", value = 40', "parameters.share_2026: expected a part of one, as defini"),
        (SHARE, 'distribution = "fixed", value = 1', "parameters.share_2026: expected a part of one"),
        (GROWTH, 'distribution = "fixed", value = 0', "parameters.serving_growth: expected a positive number"),
        (GROWTH, 'distribution = "normal", p10 = -1, p50 = 1, p90 = 3', "got -inf to inf (normal)"),
        ("p90 = 3,", "p90 = 3, clip = [3, 1],", "clip: expected [least, most], got [3.0, 1.0]"),
        ("half = 0.5", "half = 50", "decision.thresholds.half: expected a part of one, got 50"),
        ("fails_at = 0.1", "fails_at = 0.1\nalso_thresholds = [7.0]", "decision.thresholds: expected parts of one"),
        ("fails_at = 0.1", "fails_at = 0.1\nalso_holds_at = [1.5]", "also_holds_at: expected above 0.5, at most 1"),
        ("serving = { 2027 =", "serving = { soon =", "by_year.serving: expected years such as 2026, got ['soon']"),
        ("first_year = 2026", "first_year = 26", "first_year: expected years such as 2026, got ['26']"),
        ("years = [2026, 2027]", "years = [2027, 2026]", "years: expected in order, each once"),
        ("seed = 1\n", "seed = 1\ndraws = 100_000_000_000\n", "draws: expected 1000 to 10000000"),
        ("[parameters]", PAIR.format("serving_growth") + "[parameters]", "correlation: expected two parameters"),
        ("[parameters]", PAIR.format("training_growth") * 2 + "[parameters]", "correlation: expected two parameters"),
        ("[parameters]", CHECK.format(2040, "E030") + "[parameters]", "check.year: expected a year of the claim"),
        ("[parameters]", CHECK.format(2026, "E293") + "[parameters]", "serving: expected figures with a value"),
        (
            "[definitions.ours]",
            '[[statement]]\nname = "leads"\ntext = "t"\nyear = 2027\ntest = "rises"\nsource = "s"\n[definitions.ours]',
            "statement.name: expected each once",
        ),
    ],
)  # fmt: skip
def test_a_number_that_cannot_be_is_one_line(tmp_path, old, new, message):
    assert old in EXAMPLE
    path = tmp_path / "my.toml"
    path.write_text(EXAMPLE.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        claims([path])
    assert message in str(caught.value) and "my.toml: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("claim", "old", "new", "message"),
    [
        ("compute_cost_table", "tolerance = 0.25", "within = 0.25", "tolerance: expected above 0, wherever dollars"),
        ("compute_cost_table", "usd = 5e9", "usd = 0.0", "usd: expected a positive sum"),
        ("stargate_cheaper", "value = 8760", "value = 0", "parameters.hours_per_year: expected a positive number"),
        ("multi_cloud", "high = 0.95", "high = 1.95", "parameters.price_correlation: expected a part of one"),
        (
            "serving_by_two_routes",
            "value = 5.0e9",
            "value = 0",
            "parameters.openai_rd_2024: expected a positive number",
        ),
    ],
)
def test_so_it_is_in_the_other_kinds(tmp_path, claim, old, new, message):
    text = (config.CONFIGS / "claims" / f"{claim}.toml").read_text()
    assert old in text
    path = tmp_path / "my.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(Claim, path)
