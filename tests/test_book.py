"""The price book refuses what is not a fact, in one line that names file, key and expectation."""

from __future__ import annotations

import datetime
import shutil
import time

import pytest

from bench import config, results
from bench.price import book, cost
from bench.price.book import LISTED, Price, Provider, is_stale, providers, staleness, standing
from bench.price.serving_cost import hourly
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
        book.provider(folder / "new.toml")
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
            'source = " "',
            "source: expected the full address of the figure; of a price of your own, what it is",
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
            "term: expected one of on_demand, spot, capacity_block, reserved_1y, reserved_3y, contract, owned, "
            "got '36mo'",
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
    nothing = (
        "price: expected at least one [[price]], [[cpu_price]] or [[owned]] table, or a CSV of that stem beside it"
    )
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


# ---------------------------------------------------------------- many prices: a CSV beside the TOML

HEAD = GOOD.split("[[price]]")[0]
LINE = {
    **{"region": "eu-1", "sku": "8xH100", "gpu": "h100_sxm_80gb", "gpu_count": "8", "includes": "instance"},
    **{"term": "on_demand", "usd_per_gpu_hour": "2.5", "as_of": "2026-11-01", "source": "https://example.org/prices"},
}


def beside(folder, *changes):
    """new.toml without prices, and new.csv with a line for each change."""
    (folder / "new.toml").write_text(HEAD)
    results.write(folder / "new.csv", LISTED, [LINE | change for change in changes])
    return book.provider(folder / "new.toml")


def test_prices_stand_in_a_csv_beside_the_toml_too(folder):
    made = beside(folder, {}, {"term": "contract", "low": "2.0", "high": "3.0", "note": "a range"})
    (folder / "new.csv").unlink()
    (folder / "new.toml").write_text(GOOD)
    assert made.price[0] == book.provider(folder / "new.toml").price[0]
    assert (made.price[1].low, made.price[1].high, made.price[1].note) == (2.0, 3.0, "a range")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": "h100"}, "line 3: gpu: expected a key of configs/gpus, got 'h100'"),
        ({"term": "36mo"}, "line 3: term: expected one of on_demand, spot, capacity_block, reserved_1y, reserved_3y"),
        ({"as_of": "2026-11"}, "line 3: as_of: expected a date, YYYY-MM-DD, got '2026-11'"),
        ({"as_of": ""}, "line 3: as_of: expected a date, YYYY-MM-DD, got None"),
        ({"source": ""}, "line 3: source: missing; expected str"),
        ({"usd_per_gpu_hour": "0"}, "line 3: usd_per_gpu_hour: expected a positive price, got 0.0"),
        ({"usd_per_gpu_hour": "cheap"}, "line 3: usd_per_gpu_hour: expected a number, got 'cheap'"),
        ({}, ": price: expected one price an offer and day; twice: eu-1, 8xH100, h100_sxm_80gb, instance, on_demand"),
    ],
)
def test_a_bad_line_is_one_line_naming_it(folder, change, message):
    with pytest.raises((config.ConfigError, results.ResultsError)) as caught:
        beside(folder, {}, change)
    said = str(caught.value)
    assert "providers/new.csv" in said and message in said and "\n" not in said


def test_a_csv_without_its_toml_is_refused(folder):
    (folder / "orphan.csv").write_text(",".join(LISTED) + "\n")
    with pytest.raises(config.ConfigError, match=r"orphan\.csv: expected orphan\.toml beside it"):
        providers()


# ---------------------------------------------------------------- the user's own


def test_own_prices_stand_beside_ours_and_are_marked(tmp_path):
    path = tmp_path / "contoso.toml"
    path.write_text(GOOD.replace('"on_demand"', '"contract"'))
    mine = providers([path])["contoso"]
    assert mine.name == "New Cloud (contoso.toml)" and mine.key == "contoso"
    assert set(providers([path])) == {*providers(), "contoso"}


def test_a_bad_own_file_names_itself(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace('"on_demand"', '"36mo"'))
    with pytest.raises(config.ConfigError, match=rf"^{path}: price\[0\]\.term: expected one of"):
        providers([path])
    with pytest.raises(config.ConfigError, match=r"absent\.toml: cannot be read"):
        providers([tmp_path / "absent.toml"])
    ours = tmp_path / "aws.toml"
    ours.write_text(GOOD)
    with pytest.raises(config.ConfigError, match=r"aws\.toml: aws is a provider already; rename the file"):
        providers([ours])


# ---------------------------------------------------------------- the book on a day


def seen(day, usd=1.0, **changes):
    same = {"region": "r", "sku": "s", "gpu": "h100_sxm_80gb", "gpu_count": 8, "includes": "instance"}
    same |= {"term": "on_demand", "source": "https://example.org"}
    return Price(**(same | {"usd_per_gpu_hour": usd, "as_of": datetime.date.fromisoformat(day)} | changes))


def test_of_each_offer_the_newest_price_known_that_day_stands():
    old, new = seen("2023-08-21", 12.29), seen("2025-06-23", 6.88)
    other, later = seen("2025-01-01", 9.0, region="elsewhere"), seen("2026-01-01", 3.0, term="spot")
    shop = Provider(key="a", name="A", kind="neocloud", price=(new, old, other, later))

    def on(day):
        return [p for one in standing([shop], datetime.date.fromisoformat(day)) for p in one.price]

    assert on("2023-08-20") == []
    assert on("2025-06-22") == [old, other]
    assert on("2025-06-23") == [new, other]
    assert on("2026-11-28") == [new, other, later]


def test_nobody_medians_a_superseded_price():
    day = datetime.date(2026, 11, 1)
    shop = Provider(key="a", name="A", kind="neocloud", price=(seen("2023-08-21", 12.0), seen("2025-06-23", 6.0)))
    made = cost.costs(published(), day, [shop])
    assert {row["x_usd_per_gpu_hour"] for row in made} == {6.0}
    point = {"device": "cuda", "gpu": "h100_sxm_80gb"}
    assert hourly(standing([shop], day), point, None) == {"retail": (6.0, 1)}


def test_the_shipped_book_goes_back_to_june_2025():
    then = {p.key: p for p in standing(providers().values(), datetime.date(2025, 6, 1))}
    assert set(then) == {"aws", "azure", "gcp"}  # nobody else's prices are dated so early
    p5 = [p for p in then["aws"].price if p.sku == "p5.48xlarge"]
    assert [(p.usd_per_gpu_hour, p.region) for p in p5] == [(12.29, "us-east-1")]  # 6.88 came on 23 June
    (spot,) = [p for p in then["gcp"].price if (p.sku, p.region, p.term) == ("a3-highgpu-8g", "us-central1", "spot")]
    assert spot.usd_per_gpu_hour == pytest.approx(2.5487, rel=1e-3)  # 6.33 a year later


def test_loading_the_whole_book_is_quick():
    start = time.perf_counter()
    providers()
    assert time.perf_counter() - start < 1.0  # 0.08 s on a quiet machine


def test_a_file_dropped_in_is_found_and_prices_rows(folder):
    assert "new" not in providers()
    (folder / "new.toml").write_text(GOOD)
    found = providers()
    assert found["new"].name == "New Cloud"
    made = cost.costs(published(), datetime.date(2026, 11, 22), list(found.values()))
    mine = [row for row in made if row["x_provider"] == "new"]
    assert mine
    assert {row["x_gpu"] for row in mine} == {"h100_sxm_80gb"}
    assert {row["ProviderName"] for row in mine} == {"New Cloud"}


def test_staleness_is_one_line_for_all_prices():
    day = datetime.date(2026, 11, 22)

    def price(days, term="on_demand", sku="s"):
        return seen(f"{day - datetime.timedelta(days=days)}", term=term, sku=sku)

    fresh, old = price(90), price(91, sku="t")
    assert not is_stale(fresh, day) and is_stale(old, day)
    assert not is_stale(price(14, "spot"), day) and is_stale(price(15, "spot"), day)
    shops = [
        Provider(key="a", name="A", kind="neocloud", price=(fresh, old, price(400))),  # the last is superseded
        Provider(key="b", name="B", kind="neocloud", price=(price(15, "spot"),)),
    ]
    expected = "2 of 3 prices are older than 90 days (spot: 14 days) at 2026-11-22; the oldest is of 2026-08-23: a, b"
    assert staleness(shops, day) == expected
    assert staleness([Provider(key="a", name="A", kind="neocloud", price=(fresh,))], day) is None
