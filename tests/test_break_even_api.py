"""Renting against buying: list prices on a day, the staircase by brute force, a published day's revenue."""

from __future__ import annotations

import datetime
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_price import DAY, provider, row
from test_price import price as hour

from bench import config
from bench.config import ConfigError
from bench.price import api_prices
from bench.price.api_prices import ApiPrice, listed, standing_api
from bench.price.break_even_api import COLUMNS, break_even, break_evens
from bench.price.cost import Utilisation
from bench.price.rentals import Rental, middle, rentals

SHARE = Utilisation.load().inference.value
HEADER = ",".join(api_prices.COLUMNS)
LINE = "Seller,big,llama_3_1_8b,0.2,0.1,0.4,2026-01-02,a page,https://example.org/a,2026-11-28,high,"


def api(**changes):
    fields = {
        "seller": "A",
        "sold_as": "big",
        "model": "llama_3_1_8b",
        "input": 1.0,
        "cached_input": 0.5,
        "output": 4.0,
    }
    fields |= {"as_of": "2026-10-01", "source_url": "https://example.org/a", "confidence": "high"}
    return ApiPrice(**(fields | changes))


def serves(**changes):
    """1,000 output tokens/s on four H100s: 10 requests/s of 300 in (100 of them cached) and 100 out."""
    mix = {"input_tokens": 300.0, "cached_input_tokens": 100.0, "output_tokens": 100.0}
    return row(**{"phase": "serve", "token_kind": "output", "system_tokens_per_s": 1000.0, **mix, **changes})


def table(tmp_path, monkeypatch, *lines):
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama_3_1_8b.toml").touch()
    (tmp_path / "api_prices.csv").write_text("\n".join((HEADER, *lines)) + "\n")


def test_deepseeks_theoretical_revenue_of_a_day():
    """608e9 tokens in, 342e9 of them from the cache, 168e9 out at R1's list prices: 562,027 USD as published."""
    (r1,) = [p for p in standing_api(DAY) if p.sold_as.startswith("deepseek-reasoner")]
    assert r1.usd(608e9, 342e9, 168e9) == pytest.approx(562_027, rel=2e-4)


def test_a_seller_without_a_price_for_cached_input_charges_it_as_input():
    assert api(cached_input=None).usd(300, 100, 100) == pytest.approx((300 * 1.0 + 100 * 4.0) / 1e6)
    assert api().usd(300, 100, 100) == pytest.approx((200 * 1.0 + 100 * 0.5 + 100 * 4.0) / 1e6)
    with pytest.raises(ValueError, match="cached_input_tokens: expected at most 300"):
        api().usd(300, 301, 1)


def test_the_newest_list_price_known_stands(tmp_path, monkeypatch):
    later = LINE.replace("0.4,2026-01-02", "0.3,2026-06")
    table(tmp_path, monkeypatch, later, LINE, LINE.replace("big", "small"))
    day = datetime.date
    assert [(p.sold_as, p.output) for p in standing_api(day(2026, 5, 31))] == [("big", 0.4), ("small", 0.4)]
    assert [(p.sold_as, p.output) for p in standing_api(day(2026, 6, 1))] == [("big", 0.3), ("small", 0.4)]
    assert standing_api(day(2026, 1, 1)) == []


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("llama_3_1_8b", "llama_9", "model: expected a key of configs/models, got 'llama_9'"),
        ("2026-01-02", "soon", "as_of: expected a date not after today, got 'soon'"),
        ("2026-01-02", "2099-01-02", "as_of: expected a date not after today"),
        ("https://example.org/a", "a page", "source_url: expected the full address"),
        (",0.4,", ",-1,", "usd_per_million_output_tokens: expected a positive price, got -1.0"),
        (",0.4,", ",,", "usd_per_million_output_tokens: blank"),
        ("0.1", "0.3", "cached_input_tokens: expected at most the price of input"),
        ("high", "sure", "confidence: expected one of high, medium, low"),
    ],
)
def test_a_list_price_that_cannot_be_checked_does_not_load(tmp_path, monkeypatch, was, now, said):
    table(tmp_path, monkeypatch, LINE.replace(was, now))
    with pytest.raises(ConfigError, match=r"configs/api_prices\.csv line 2: ") as caught:
        listed()
    assert said in str(caught.value)


def test_one_product_has_one_price_a_day(tmp_path, monkeypatch):
    table(tmp_path, monkeypatch, LINE, LINE)
    with pytest.raises(ConfigError, match="line 3: expected one price a product and day; twice: Seller, big"):
        listed()


def rent(load, c, k):
    return math.ceil(load / k) * c


@given(st.floats(0.01, 10), st.floats(0.1, 100), st.floats(0.001, 10))
def test_the_staircase_by_brute_force(c, k, p):
    """Never: dearer at every full unit. Else: not cheaper before the first load, cheaper after the last one."""
    found = break_even(c, k, p)
    steps = range(1, 60)
    if found.first is None:
        assert found.missing_factor >= 1 and found.always is None
        assert all(rent(n * k * (1 - 1e-9), c, k) >= n * k * p * (1 - 1e-6) for n in steps)
        better = break_even(c / (found.missing_factor * 1.01), k, p)
        assert better.first is not None, "so many times cheaper is enough"
        return
    assert rent(found.first * 0.999, c, k) > found.first * 0.999 * p
    assert rent(min(found.first * 1.001, k), c, k) <= found.first * 1.001 * p * (1 + 1e-6)
    assert found.always >= found.first
    loads = [found.always * (1 + 1e-6), *(n * k * (1 + 1e-9) for n in range(found.units, found.units + 60))]
    assert all(rent(load, c, k) <= load * p * (1 + 1e-6) for load in loads if load > found.always)
    if found.first < found.always < 1e4 * k:  # just before it there is a load at which buying is cheaper
        before = found.always * (1 - 1e-6)
        assert rent(before, c, k) > before * p


@pytest.mark.parametrize(
    ("c", "first", "always", "units"),
    [(0.4, 4.0, 4.0, 1), (0.5, 5.0, 5.0, 1), (0.6, 6.0, 12.0, 2), (0.9, 9.0, 81.0, 9)],
)
def test_the_steps_by_hand(c, first, always, units):
    """A unit of 10 requests/s against 0.1 USD a request."""
    found = break_even(c, 10.0, 0.1)
    assert (found.first, found.always, found.units) == (pytest.approx(first), pytest.approx(always), units)


def test_never_names_what_is_missing():
    assert break_even(2.5, 10.0, 0.1).missing_factor == pytest.approx(2.5)
    assert break_even(1.0, 10.0, 0.1).missing_factor == pytest.approx(1.0), "equal is not cheaper"


def test_a_row_by_hand():
    """8 H100s of 4 USD hold two deployments of four: 20 requests/s times utilisation for 32 USD an hour."""
    (made,) = break_evens([serves()], DAY, [provider(hour())], [api()])
    assert set(made) <= set(COLUMNS)
    assert (made["instances_per_unit"], made["usd_per_unit_hour"]) == (1, 32.0)
    assert made["unit_requests_per_s"] == pytest.approx(20 * SHARE)
    assert made["rent_usd_per_request"] == pytest.approx(32 / 3600 / (20 * SHARE))
    assert made["buy_usd_per_request"] == pytest.approx(650e-6)
    first = 32 / 3600 / 650e-6
    assert made["answer"] == "never" and made["missing_factor"] == pytest.approx(first / (20 * SHARE))
    (made,) = break_evens([serves()], DAY, [provider(hour(usd_per_gpu_hour=1.0))], [api()])
    assert made["first_requests_per_s"] == pytest.approx(first / 4) and made["answer"] == "from"
    assert made["first_share"] == pytest.approx(first / 4 / (20 * SHARE))
    assert made["first_tokens_per_day"] == pytest.approx(first / 4 * 400 * 86400)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_tokens": None},
        {"phase": "decode"},
        {"flags": "idle_included"},
        {"flags": "open_loop"},
        {"flags": "unsteady+below_best"},
        {"device": "cpu", "gpu": "cpu"},
        {"model": "gpt2_124m"},
    ],
)
def test_what_has_no_break_even(changes):
    assert break_evens([serves(**changes)], DAY, [provider(hour())], [api()]) == []


def test_mlperfs_server_rate_is_one_a_deployment_can_serve():
    assert break_evens([serves(flags="open_loop", quote="MLPerf result 5.1-0001")], DAY, [provider(hour())], [api()])


def test_a_rate_of_all_tokens_is_the_same_requests():
    rows = [serves(), serves(token_kind="total", system_tokens_per_s=4000.0)]
    one, other = break_evens(rows, DAY, [provider(hour())], [api()])
    assert one["unit_requests_per_s"] == pytest.approx(other["unit_requests_per_s"])


def test_a_unit_is_whole_instances():
    small = Rental("p", "P", "on_demand", "retail", 8, 2.0, 1)
    assert (small.instances(16), small.replicas(16), small.usd_per_unit_hour(16)) == (2, 1, 32.0)
    assert (small.instances(12), small.replicas(12)) == (2, 1), "four GPUs left over are paid for"
    assert (small.instances(3), small.replicas(3)) == (1, 2)


def test_the_median_rental_is_by_what_a_replica_costs():
    """By the GPU-hour 8-GPU instances are cheapest; a deployment of one GPU that fills them too."""
    offers = [Rental("a", "A", "on_demand", "retail", 8, 2.0, 1), Rental("b", "B", "on_demand", "retail", 1, 3.0, 1)]
    assert middle(offers, 1, "retail").provider == "b", "the dearer of two"
    assert middle(offers, 8, "retail").provider == "b"
    assert middle([*offers, Rental("c", "C", "on_demand", "retail", 1, 2.5, 1)], 1, "retail").provider == "c"
    assert middle(offers, 1, "contract") is None


def test_single_gpus_hold_no_deployment_of_several():
    """Nothing says that eight of them share a node; one of two GPUs may stand on any instance that holds it."""
    ones, eights = hour(gpu_count=1, sku="1x"), hour()
    assert {r.gpu_count for r in rentals([provider(ones, eights)], serves())} == {8}
    assert {r.gpu_count for r in rentals([provider(ones, eights)], serves(n_gpus=1))} == {1, 8}


def test_regions_count_once_and_spot_is_a_term_of_its_own():
    book = [
        provider(
            *(hour(region="east", sku=f"s{n}", usd_per_gpu_hour=2.0) for n in range(3)),
            hour(region="west", usd_per_gpu_hour=6.0),
            hour(term="spot", usd_per_gpu_hour=1.0),
            hour(region="gpu", includes="gpu_only", usd_per_gpu_hour=0.1),
        )
    ]
    made = {line["term"]: line for line in break_evens([serves()], DAY, book, [api()])}
    assert made["on_demand"]["usd_per_unit_hour"] == 8 * 4.0 and made["spot"]["usd_per_unit_hour"] == 8.0


def test_every_listed_price_loads_and_open_models_have_several_sellers():
    sellers = {}
    for one in standing_api(DAY):
        sellers.setdefault(one.model, set()).add(one.seller)
    assert len(sellers["llama_3_1_8b"]) >= 5 and len(sellers["deepseek_v3"]) >= 5
    assert None in sellers, "closed models stand too"
