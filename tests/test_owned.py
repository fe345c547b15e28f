"""An owner's GPU hour: the annuity by hand, and the public figures it must reproduce."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.price import owned
from bench.price.book import Range, providers

SOURCE = "https://example.org/figures"


def test_capital_recovery_factor():
    assert owned.crf(0.0, 5.0) == pytest.approx(0.2)
    assert owned.crf(0.10, 5.0) == pytest.approx(0.263797, rel=1e-5)  # any annuity table
    assert owned.crf(1e-7, 5.0) == pytest.approx(0.2, rel=1e-5)


@given(st.floats(0.001, 0.3), st.floats(1, 30))
def test_payments_repay_the_purchase(rate, years):
    # Present value of n equal payments of CRF is 1.
    assert owned.crf(rate, years) * (1 - (1 + rate) ** -years) / rate == pytest.approx(1)
    assert owned.crf(rate, years) > 1 / years


EPOCH = {"capex": 38e9, "operations": 0.9e9, "facility_life": 14.0}


@pytest.mark.parametrize(("it_life", "published"), [(3.0, 12e9), (5.0, 8.5e9), (7.0, 7e9)])
def test_epoch_cost_of_one_gigawatt(it_life, published):
    # Epoch prints no split and no rate; IT 67% of capex at 7% a year gives all three of its figures within 1%.
    year = owned.usd_per_gw_year(it_share=0.67, it_life=it_life, rate=0.07, **EPOCH)
    assert year == pytest.approx(published, rel=0.01)


def test_epoch_straight_line_needs_a_cost_of_capital_or_no_facility():
    # Straight line with nothing but IT is 8.5e9 exactly; with the sources' IT shares it is 6.4 to 7.2e9.
    def straight(it_share):
        return owned.usd_per_gw_year(it_share=it_share, it_life=5.0, rate=0.0, **EPOCH)

    assert straight(1.0) == pytest.approx(8.5e9)
    assert straight(0.576) == pytest.approx(6.43e9, rel=0.01)
    assert straight(0.727) == pytest.approx(7.17e9, rel=0.01)


def test_derived_d40_and_d41():
    def per_hour(usd_per_gw_year, gpus):
        return usd_per_gw_year / gpus / owned.HOURS_PER_YEAR

    racks = 35e9 / 5.9e6 * 72  # GB200 per GW, D38
    assert per_hour(7e9, racks) == pytest.approx(1.871, rel=1e-3)
    assert per_hour(8.5e9, racks) == pytest.approx(2.272, rel=1e-3)
    assert per_hour(12e9, racks) == pytest.approx(3.207, rel=1e-3)
    contract = 300e9 / 5 / 4.5
    assert per_hour(contract, racks) == pytest.approx(3.564, rel=1e-3)
    assert per_hour(contract, 400e3 / 1.2) == pytest.approx(4.566, rel=1e-3)
    (as_paid,) = providers()["stargate"].price
    assert (as_paid.low, as_paid.high) == pytest.approx((3.564, 4.566))
    assert as_paid.usd_per_gpu_hour == pytest.approx(per_hour(contract, 400e3), rel=1e-3)


def test_owner_cost_of_points_by_hand():
    # CRF(10%, 5) = 0.263797 and CRF(10%, 10) = 0.162745: 40e9 (0.6 * 0.263797 + 0.4 * 0.162745) + 0.3e9 = 9.23507e9 a
    # year over 400e3 * 8760 hours is 2.63558; energy 2 kW * 1.2 * 0.08 USD is 0.192 an hour.
    points = {
        "capex_usd_per_gw": 40e9,
        "it_share": 0.6,
        "gpus_per_gw": 400e3,
        "it_life_years": 5.0,
        "facility_life_years": 10.0,
        "cost_of_capital": 0.1,
        "operations_usd_per_gw_year": 0.3e9,
        "power_kw_per_gpu": 2.0,
        "pue": 1.2,
        "electricity_usd_per_kwh": 0.08,
    }
    ranges = {name: Range(low=v, value=v, high=v, unit="", source=SOURCE) for name, v in points.items()}
    (own,) = providers()["stargate"].owned
    made = owned.price(dataclasses.replace(own, **ranges))
    assert made.usd_per_gpu_hour == pytest.approx(2.82758, rel=1e-5)
    assert (made.low, made.high) == pytest.approx((made.usd_per_gpu_hour,) * 2)


def test_stargate_owner_cost_is_a_range_without_utilisation():
    (own,) = providers()["stargate"].owned
    made = owned.price(own)
    assert made == owned.price(own)  # seeded
    assert made.low < made.usd_per_gpu_hour < made.high
    assert (made.term, made.level, made.includes) == ("owned", "owner", "instance")
    assert 2.5 < made.low < made.high < 4.5
    low, high = owned.draws(own).min(), owned.draws(own).max()
    assert 1.9 < low < made.low
    assert made.high < high < 8


def test_owners_share_one_market_and_differ_only_in_what_is_declared_their_own():
    """Machines and power cost two owners the same draw by draw; a changed range must not tear them apart."""
    own = providers()["stargate"].owned[0]
    shared = dataclasses.replace(own, apart=())
    assert (owned.draws(shared) == owned.draws(dataclasses.replace(shared, owner="another"))).all()
    dearer = dataclasses.replace(own.capex_usd_per_gw, high=own.capex_usd_per_gw.high * 1.00002)
    moved = owned.draws(dataclasses.replace(own, capex_usd_per_gw=dearer))
    assert np.corrcoef(moved, owned.draws(own))[0, 1] > 0.9999
    other = owned.draws(dataclasses.replace(own, owner="another"))
    assert 0.5 < np.corrcoef(other, owned.draws(own))[0, 1] < 0.999
