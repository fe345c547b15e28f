"""The price book refuses what is not a fact, in one line that names file, key and expectation."""

from __future__ import annotations

import datetime
import shutil

import pytest

from bench import config
from bench.price import cost
from bench.price.book import Price, Provider, is_stale, providers, staleness
from bench.price.throughput import published

GOOD = """\
name = "New Cloud"
kind = "neocloud"

[[price]]
region = "eu-1"
sku = "8xH100"
gpu = "h100_sxm_80gb"
gpu_count = 8
includes = "instance"
term = "on_demand"
usd_per_gpu_hour = 2.5
as_of = 2026-11-01
source = "https://example.org/prices"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of configs/ that a test may change."""
    copy = tmp_path / "configs"
    shutil.copytree(config.CONFIGS, copy)
    monkeypatch.setattr(config, "CONFIGS", copy)
    return copy / "providers"


def refusal(folder, text):
    (folder / "new.toml").write_text(text)
    with pytest.raises(config.ConfigError) as caught:
        config.load(Provider, "new")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "usd_per_gpu_hour = 2.5",
            "usd_per_gpu_hr = 2.5",
            "usd_per_gpu_hr: unknown key; did you mean usd_per_gpu_hour?",
        ),
        ("gpu_count = 8", 'gpu_count = "8"', "gpu_count: expected int, got '8'"),
        ("as_of = 2026-11-01\n", "", "as_of: missing; expected date"),
        ("as_of = 2026-11-01", 'as_of = "2026-11"', "as_of: expected date, got '2026-11'"),
        ('source = "https://example.org/prices"\n', "", "source: missing; expected str"),
        (
            'source = "https://example.org/prices"',
            'source = "the site"',
            "source: expected the full address of the figure, got 'the site'",
        ),
        ("usd_per_gpu_hour = 2.5", "usd_per_gpu_hour = -2.5", "usd_per_gpu_hour: expected a positive price, got -2.5"),
        ("usd_per_gpu_hour = 2.5", "usd_per_gpu_hour = 0.0", "usd_per_gpu_hour: expected a positive price, got 0.0"),
        ("usd_per_gpu_hour = 2.5", "usd_per_gpu_hour = nan", "usd_per_gpu_hour: expected a finite number, got nan"),
        ("usd_per_gpu_hour = 2.5", "usd_per_gpu_hour = inf", "usd_per_gpu_hour: expected a finite number, got inf"),
        (
            'gpu = "h100_sxm_80gb"',
            'gpu = "h100_sxm_80"',
            "gpu: expected a key of configs/gpus (nearest: h100_sxm_80gb), got 'h100_sxm_80'",
        ),
        ("gpu_count = 8", "gpu_count = 0", "gpu_count: expected at least 1, got 0"),
        ('includes = "instance"', 'includes = "all"', "includes: expected one of instance, gpu_only"),
        (
            'term = "on_demand"',
            'term = "36mo"',
            "term: expected one of on_demand, spot, reserved_1y, reserved_3y, contract, owned, got '36mo'",
        ),
        ("as_of = 2026", "low = 3.0\nas_of = 2026", "low: expected 0 < low <= usd_per_gpu_hour <= high"),
        ("as_of = 2026", "high = 2.0\nas_of = 2026", "low: expected 0 < low <= usd_per_gpu_hour <= high"),
    ],
)
def test_bad_price_is_one_line(folder, old, new, message):
    assert old in GOOD
    assert refusal(folder, GOOD.replace(old, new, 1)) == f"configs/providers/new.toml: price[0].{message}"


def test_a_price_from_the_future_is_refused(folder):
    tomorrow = datetime.date.today() + datetime.timedelta(days=1)
    expected = f"as_of: expected a date not after today, {datetime.date.today()}, got {tomorrow}"
    message = refusal(folder, GOOD.replace("2026-11-01", f"{tomorrow}"))
    assert message == f"configs/providers/new.toml: price[0].{expected}"


def test_bad_provider_is_one_line(folder):
    where = "configs/providers/new.toml: "
    kinds = "hyperscaler, neocloud, marketplace, self_built"
    assert refusal(folder, GOOD.replace("neocloud", "cloud")) == f"{where}kind: expected one of {kinds}, got 'cloud'"
    nothing = "price: expected at least one [[price]], [[cpu_price]] or [[owned]] table"
    assert refusal(folder, GOOD.split("[[price]]")[0]) == where + nothing
    known = "; known keys: name, kind, price, cpu_price, owned, note"
    assert refusal(folder, 'zzz = "3"\n' + GOOD) == f"{where}zzz: unknown key{known}"


RENT = """[owned.colocation_usd_per_kw_month]
low = 150.0
value = 195.0
high = 250.0
unit = "USD/kW-month"
source = "https://example.org/rent"

"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("low = 35e9", "low = 45e9", "owned[0].capex_usd_per_gw.value: expected 0 < low <= value <= high"),
        ('unit = "USD/GW"\n', "", "owned[0].capex_usd_per_gw.unit: missing; expected str"),
        ("high = 0.727", "high = 1.2", "owned[0].it_share: expected a share of capex, at most 1"),
        ("[owned.pue]", "[owned.pues]", "owned[0].pues: unknown key; did you mean pue?"),
        (
            "[owned.capex_usd_per_gw]",
            "[owned.it_usd_per_gpu]",
            "owned[0].it_share: expected a range with capex_usd_per_gw alone",
        ),
        ("[owned.pue]", f"{RENT}[owned.pue]", "owned[0].facility_life_years: expected a range, and none in colocation"),
        (
            "[owned.pue]",
            f"{RENT.replace('colocation_usd_per_kw_month', 'it_usd_per_gpu')}[owned.pue]",
            "owned[0].it_usd_per_gpu: expected a range for it or for capex_usd_per_gw, and not both",
        ),
        (
            'apart = ["cost_of_capital"]',
            'apart = ["interest"]',
            "owned[0].apart: expected names of ranges given here, got 'interest'",
        ),
    ],
)
def test_bad_owned_range_is_one_line(folder, old, new, message):
    text = (folder / "stargate.toml").read_text()
    assert old in text
    assert refusal(folder, text.replace(old, new, 1)) == f"configs/providers/new.toml: {message}"


def test_a_cpu_price_is_checked_too(folder):
    text = GOOD.split("[[price]]")[0] + (
        '[[cpu_price]]\nregion = "r"\nsku = "c32"\nvcpus = 32\nterm = "on_demand"\n'
        'usd_per_hour = -1.0\nas_of = 2026-11-01\nsource = "https://example.org"\n'
    )
    expected = "cpu_price[0].usd_per_hour: expected a positive price, got -1.0"
    assert refusal(folder, text) == f"configs/providers/new.toml: {expected}"


def test_a_file_dropped_in_is_found_and_prices_rows(folder):
    assert "new" not in providers()
    (folder / "new.toml").write_text(GOOD)
    book = providers()
    assert book["new"].name == "New Cloud"
    made = cost.costs(published(), datetime.date(2026, 11, 22), list(book.values()))
    mine = [row for row in made if row["x_provider"] == "new"]
    assert mine
    assert {row["x_gpu"] for row in mine} == {"h100_sxm_80gb"}
    assert {row["ProviderName"] for row in mine} == {"New Cloud"}


def test_staleness_is_one_line_for_all_prices():
    day = datetime.date(2026, 11, 22)

    def price(days, term="on_demand"):
        return Price(
            region="r",
            sku="s",
            gpu="h100_sxm_80gb",
            gpu_count=8,
            includes="instance",
            term=term,
            usd_per_gpu_hour=1.0,
            as_of=day - datetime.timedelta(days=days),
            source="https://example.org",
        )

    fresh, old = price(90), price(91)
    assert not is_stale(fresh, day) and is_stale(old, day)
    assert not is_stale(price(14, "spot"), day) and is_stale(price(15, "spot"), day)
    book = [
        Provider(key="a", name="A", kind="neocloud", price=(fresh, old)),
        Provider(key="b", name="B", kind="neocloud", price=(price(15, "spot"),)),
    ]
    expected = "2 of 3 prices are older than 90 days (spot: 14) at 2026-11-22; the oldest is of 2026-08-23: a, b"
    assert staleness(book, day) == expected
    assert staleness([Provider(key="a", name="A", kind="neocloud", price=(fresh,))], day) is None
