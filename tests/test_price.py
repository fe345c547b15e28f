"""The arithmetic of a token's price: by hand, by property, and what may never be priced."""

from __future__ import annotations

import datetime
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import results
from bench.price import cost, market
from bench.price.book import CpuPrice, Price, Provider, Range
from bench.price.throughput import COLUMNS

DAY = datetime.date(2026, 11, 22)
SOURCE = "https://example.org/prices"
H100 = "h100_sxm_80gb"
money = st.floats(0.01, 1e3)
rates = st.floats(0.1, 1e9)
shares = st.floats(0.01, 1.0)
counts = st.integers(1, 4096)


def price(**changes):
    """A plausible H100 price."""
    fields = {
        "region": "eastus",
        "sku": "8xH100",
        "gpu": H100,
        "gpu_count": 8,
        "includes": "instance",
        "term": "on_demand",
        "usd_per_gpu_hour": 4.0,
        "as_of": datetime.date(2026, 11, 1),
        "source": SOURCE,
    }
    return Price(**(fields | changes))


def provider(*prices, **changes):
    return Provider(key="here", name="Here", kind="neocloud", price=prices, **changes)


def row(**changes):
    """A measured training row on four H100s."""
    fields = {
        "row": "run/cell",
        "basis": "measured",
        "phase": "train_step",
        "model": "llama_3_1_8b",
        "precision": "bf16",
        "device": "cuda",
        "gpu": H100,
        "n_gpus": 4,
        "token_kind": "trained",
        "system_tokens_per_s": 40_000.0,
    }
    return dict.fromkeys(COLUMNS) | fields | changes


def utilisation(inference=0.5, training=0.8):
    def span(value):
        return Range(low=value, value=value, high=value, unit="fraction", source=SOURCE)

    return cost.Utilisation(inference=span(inference), training=span(training))


def one(priced_row, *prices, **changes):
    return cost.costs([priced_row], DAY, [provider(*prices)], utilisation(**changes))


# ---------------------------------------------------------------- the formula


def test_one_row_both_ways_by_hand():
    # 4 GPUs at 4 USD: 16 USD an hour. 40,000 tokens/s for 3600 s, 80% of the time: 115.2e6 tokens. 16/115.2 = 0.138889.
    # The instance of 8 paid whole: 32 USD an hour for the same tokens, 0.277778.
    (priced,) = one(row(), price())
    assert priced["x_usd_per_million_tokens"] == pytest.approx(16 / 115.2)
    assert priced["x_usd_per_million_tokens_whole_instance"] == pytest.approx(32 / 115.2)
    assert priced["PricingQuantity"] == pytest.approx(4 / 115.2)  # GPU hours per million tokens
    assert priced["EffectiveCost"] == priced["x_usd_per_million_tokens"]
    assert priced["x_utilisation"] == 0.8
    assert set(market.finished([priced], [], DAY)[0]) == set(results.COSTS)


@given(money, counts, rates, shares)
def test_linear_in_price_and_gpus_inverse_in_rate_and_share(usd, n, rate, share):
    base = cost.usd_per_million_tokens(usd, n, rate, share)
    assert cost.usd_per_million_tokens(2 * usd, n, rate, share) == pytest.approx(2 * base)
    assert cost.usd_per_million_tokens(usd, 3 * n, rate, share) == pytest.approx(3 * base)
    assert cost.usd_per_million_tokens(usd, n, 2 * rate, share) == pytest.approx(base / 2)
    assert cost.usd_per_million_tokens(usd, n, rate, share / 2) == pytest.approx(2 * base)
    assert base > 0


@given(counts, st.integers(1, 72))
def test_whole_instances_cover_the_share_with_less_than_one_to_spare(n, sold):
    paid = cost.whole_instances(n, sold)
    assert paid >= n
    assert paid % sold == 0
    assert paid - n < sold


@given(money, st.integers(1, 64), rates, st.sampled_from([1, 4, 8, 72]))
def test_whole_instance_never_undercuts_the_share(usd, n, rate, sold):
    made = one(row(n_gpus=n, system_tokens_per_s=rate), price(usd_per_gpu_hour=usd, gpu_count=sold))
    share, whole = (made[0][f"x_usd_per_million_tokens{tail}"] for tail in ("", "_whole_instance"))
    assert whole >= share * (1 - 1e-12)
    assert (whole == pytest.approx(share)) == (n % sold == 0)


@pytest.mark.parametrize(
    ("rate", "share", "message"),
    [
        (0.0, 0.5, "system_tokens_per_s: expected a positive rate, got 0.0"),
        (-1.0, 0.5, "system_tokens_per_s: expected a positive rate, got -1.0"),
        (math.nan, 0.5, "system_tokens_per_s: expected a positive rate, got nan"),
        (1.0, 0.0, "utilisation: expected a share in (0, 1], got 0.0"),
        (1.0, 1.5, "utilisation: expected a share in (0, 1], got 1.5"),
    ],
)
def test_nonsense_is_refused(rate, share, message):
    with pytest.raises(ValueError) as caught:
        cost.usd_per_million_tokens(1.0, 1, rate, share)
    assert str(caught.value) == message


# ---------------------------------------------------------------- which share, which tokens, which part


@pytest.mark.parametrize(
    ("phase", "flags", "share"),
    [
        ("train_step", None, 0.8),
        ("prefill", None, 0.5),
        ("decode", "unsteady", 0.5),
        ("serve", None, 0.5),
        ("serve", "unsteady+open_loop", 1.0),
        ("train_step", "idle_included", 1.0),
    ],
)
def test_utilisation_enters_once_and_only_where_it_is_not_in_the_rate(phase, flags, share):
    (priced,) = one(row(phase=phase, flags=flags), price())
    assert priced["x_utilisation"] == share


def test_shipped_utilisation_has_sources():
    shipped = cost.Utilisation.load()
    assert (shipped.inference.low, shipped.inference.value, shipped.inference.high) == (0.4, 0.65, 0.82)
    assert (shipped.training.low, shipped.training.value, shipped.training.high) == (0.75, 0.8, 0.85)


def test_serving_is_priced_per_output_token_and_per_token():
    # 1000 in and 250 out: 5 tokens share what 1 output token carries alone.
    serve = row(phase="serve", token_kind="output", input_tokens=1000.0, output_tokens=250.0, low=36e3, high=44e3)
    output, total = one(serve, price())
    assert (output["x_token_kind"], total["x_token_kind"]) == ("output", "total")
    assert output["x_carries"] == total["x_carries"] == "whole_bill"
    assert output["x_usd_per_million_tokens"] == pytest.approx(5 * total["x_usd_per_million_tokens"])
    assert total["x_system_tokens_per_s"] == pytest.approx(200_000)
    assert output["x_usd_per_million_tokens_low"] == pytest.approx(output["x_usd_per_million_tokens"] * 40 / 44)
    assert output["x_usd_per_million_tokens_high"] == pytest.approx(output["x_usd_per_million_tokens"] * 40 / 36)
    back = one(serve | {"token_kind": "total", "system_tokens_per_s": 200_000.0}, price())
    assert [b["x_usd_per_million_tokens"] for b in back] == pytest.approx(
        [output["x_usd_per_million_tokens"], total["x_usd_per_million_tokens"]]
    )


def test_serving_without_lengths_is_priced_as_it_counts():
    (priced,) = one(row(phase="serve", token_kind="output", output_tokens=250.0), price())
    assert priced["x_token_kind"] == "output"


@pytest.mark.parametrize(
    ("phase", "carries"),
    [("prefill", "part"), ("decode", "part"), ("serve", "whole_bill"), ("train_step", "whole_bill")],
)
def test_what_the_price_carries(phase, carries):
    assert one(row(phase=phase), price())[0]["x_carries"] == carries


# ---------------------------------------------------------------- what is never priced


def test_only_instances_of_the_same_gpu_price_a_row():
    assert not one(row(), price(includes="gpu_only"))
    assert not one(row(), price(gpu="h100_pcie_80gb"))
    assert not one(row(gpu=None), price())
    assert not one(row(), price(as_of=DAY + datetime.timedelta(days=-1)))[1:]


def test_a_price_of_tomorrow_is_not_known_today():
    early = datetime.date(2026, 10, 31)
    assert not cost.costs([row()], early, [provider(price())], utilisation())


def test_cpu_rows_are_priced_by_vcpu_and_marked():
    cpu = CpuPrice(
        region="r",
        sku="c32",
        vcpus=32,
        term="on_demand",
        usd_per_hour=1.6,
        as_of=datetime.date(2026, 11, 1),
        source=SOURCE,
    )
    here = row(device="cpu", gpu="cpu", n_gpus=1, vcpus=8, phase="decode", system_tokens_per_s=100.0)
    (priced,) = cost.costs([here], DAY, [provider(price(), cpu_price=(cpu,))], utilisation())
    # 8 vCPUs at 0.05 USD: 0.4 USD an hour for 100 * 3600 * 0.5 = 180,000 tokens; 32 vCPUs whole: four times that.
    assert priced["x_usd_per_million_tokens"] == pytest.approx(0.4 / 0.18)
    assert priced["x_usd_per_million_tokens_whole_instance"] == pytest.approx(1.6 / 0.18)
    assert (priced["PricingUnit"], priced["ServiceName"]) == ("vCPU-Hours", "CPU instances")
    assert priced["x_illustrative"] == "yes"
    assert not cost.costs([here | {"vcpus": None}], DAY, [provider(price(), cpu_price=(cpu,))], utilisation())


def test_terms_map_to_levels_and_focus_categories():
    terms = ("on_demand", "spot", "reserved_1y", "reserved_3y", "contract", "owned")
    made = one(row(), *(price(term=term) for term in terms))
    assert [m["x_level"] for m in made] == ["retail", "retail", *["contract"] * 3, "owner"]
    assert [m["PricingCategory"] for m in made] == ["Standard", "Dynamic", *["Committed"] * 3, "Other"]
    assert [m["ListUnitPrice"] for m in made] == [4.0, None, None, None, None, None]
    assert [m["x_illustrative"] for m in made] == [None] * 6


def test_a_contract_range_reaches_the_cost():
    (priced,) = one(row(), price(term="contract", low=3.0, high=6.0))
    middle = priced["x_usd_per_million_tokens"]
    assert priced["x_usd_per_million_tokens_low"] == pytest.approx(middle * 3 / 4)
    assert priced["x_usd_per_million_tokens_high"] == pytest.approx(middle * 6 / 4)
    (plain,) = one(row(), price())
    assert plain["x_usd_per_million_tokens_low"] is None


def test_regional_median_is_not_the_lowest_and_counts_a_region_once():
    sold = (("a", "one", 1.0), ("a", "two", 1.0), ("b", "one", 4.0), ("c", "one", 5.0))
    prices = [price(region=region, sku=sku, usd_per_gpu_hour=usd) for region, sku, usd in sold]
    made = one(row(), *prices)
    (summary,) = cost.regional(made)
    per_usd = made[0]["x_usd_per_million_tokens"]
    assert summary["median"] == pytest.approx(4 * per_usd)
    assert (summary["lowest"], summary["highest"]) == pytest.approx((per_usd, 5 * per_usd))
    assert summary["regions"] == 3


# ---------------------------------------------------------------- the wall


def test_pricing_never_imports_torch():
    code = (
        "import sys, datetime; import bench.price.cost as c, bench.price.throughput as t; "
        "c.costs(t.throughput([]), datetime.date(2026, 11, 22)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- usage, idle, allocation


def test_usage_and_idle_add_up_to_the_instance_paid_whole_by_hand():
    # 4 of 8 GPUs at 4 USD, 40,000 tokens/s, 80% of the time. A million tokens take 25 s: 4 * 25 / 3600 GPU-hours used,
    # 0.111111 USD. They are paid 31.25 s: 0.027778 more for their idle time; the other four GPUs as long: 0.138889.
    (made,) = one(row(), price())
    assert made["x_usage_based_usd"] == pytest.approx(4 * 4 * 25 / 3600)
    assert made["x_idle_time_usd"] == pytest.approx(4 * 4 * 6.25 / 3600)
    assert made["x_idle_gpus_usd"] == pytest.approx(4 * 4 * 31.25 / 3600)
    assert made["x_allocation_based_usd"] == pytest.approx(8 * 4 * 31.25 / 3600)


@given(money, st.integers(1, 64), rates, st.sampled_from([1, 4, 8, 72]), shares)
def test_the_row_itself_says_how_its_parts_come_about(usd, n, rate, sold, share):
    """From the other columns of the CSV line alone: rounded to six digits, as a reader has them."""
    (made,) = one(row(n_gpus=n, system_tokens_per_s=rate), price(usd_per_gpu_hour=usd, gpu_count=sold), training=share)
    line = {name: results._value(results.text(v), results.COSTS[name][0], name) for name, v in made.items()}
    hour, gpus = line["x_usd_per_gpu_hour"], line["x_n_gpus"]
    paid_h = 1e6 / line["x_system_tokens_per_s"] / 3600 / line["x_utilisation"]
    whole = math.ceil(gpus / line["x_gpu_count"]) * line["x_gpu_count"]
    assert line["x_usage_based_usd"] == pytest.approx(hour * gpus * paid_h * line["x_utilisation"], rel=1e-4)
    assert line["x_allocation_based_usd"] == pytest.approx(hour * whole * paid_h, rel=1e-4)
    total = line["x_usage_based_usd"] + line["x_idle_usd"]
    assert total == pytest.approx(line["x_allocation_based_usd"], rel=1e-4)
    parts = line["x_idle_time_usd"] + line["x_idle_gpus_usd"]
    assert parts == pytest.approx(line["x_idle_usd"], rel=1e-4, abs=1e-5 * line["x_allocation_based_usd"])


def test_how_much_was_used_is_blank_where_the_rate_contains_idle_time():
    (made,) = one(row(flags="idle_included"), price())
    assert made["x_usage_based_usd"] is made["x_idle_time_usd"] is made["x_idle_usd"] is None
    assert made["x_idle_gpus_usd"] == pytest.approx(made["x_allocation_based_usd"] / 2)


def test_focus_costs_follow_from_unit_price_and_quantity():
    terms = ("on_demand", "reserved_1y", "contract", "owned")
    made = one(row(), *(price(term=term) for term in terms))
    for priced in made:
        assert priced["ContractedCost"] == pytest.approx(priced["ContractedUnitPrice"] * priced["PricingQuantity"])
    assert made[0]["ListCost"] == pytest.approx(made[0]["ListUnitPrice"] * made[0]["PricingQuantity"])
    assert [m["ListCost"] for m in made[1:]] == [None] * 3
    assert [m["CommitmentDiscountType"] for m in made] == [None, "Reservation", "Contract", None]
