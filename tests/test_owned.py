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


def points(**values):
    """Ranges of no width."""
    return {name: Range(low=v, value=v, high=v, unit="", source=SOURCE) for name, v in values.items()}


def epoch(it_life, it_share=0.67, rate=0.07):
    """Epoch's gigawatt as an owner of the price book: 38e9 USD, 0.9e9 USD of operations, of which 0.6e9 is energy.

    It prints neither split nor rate: IT 67% lies within the sources' 58 to 73%; energy is 0.6e9 / (1e6 kW 8760 h).
    """
    inputs = points(
        capex_usd_per_gw=38e9,
        it_share=it_share,
        gpus_per_gw=400e3,
        it_life_years=it_life,
        facility_life_years=14.0,
        cost_of_capital=rate,
        operations_usd_per_gw_year=0.3e9,
        power_kw_per_gpu=2.5,
        pue=1.0,
        electricity_usd_per_kwh=0.6e9 / (1e6 * 8760),
    )
    return dataclasses.replace(providers()["stargate"].owned[0], **inputs)


def usd_per_gw_year(own):
    return owned.price(own).usd_per_gpu_hour * 400e3 * owned.HOURS_PER_YEAR


@pytest.mark.parametrize(("it_life", "published"), [(3.0, 12e9), (5.0, 8.5e9), (7.0, 7e9)])
def test_epoch_cost_of_one_gigawatt(it_life, published):
    assert usd_per_gw_year(epoch(it_life)) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("it_share", [0.6, 0.7])
@pytest.mark.parametrize("rate", [0.065, 0.08])
def test_epoch_does_not_hang_on_what_it_leaves_unsaid(it_share, rate):
    """Any sourced share of IT and a rate of 6.5 to 8% give its 8.5e9 within 10%."""
    assert usd_per_gw_year(epoch(5.0, it_share, rate)) == pytest.approx(8.5e9, rel=0.1)


def test_epoch_straight_line_needs_a_cost_of_capital_or_no_facility():
    # Straight line with nothing but IT is 8.5e9 exactly; with the sources' IT shares it is 6.4 to 7.2e9.
    def straight(it_share):
        capex = owned.crf(0.0, 5.0) * it_share + owned.crf(0.0, 14.0) * (1 - it_share)
        return 38e9 * capex + 0.9e9

    assert straight(1.0) == pytest.approx(8.5e9)
    assert straight(0.576) == pytest.approx(6.43e9, rel=0.01)
    assert straight(0.727) == pytest.approx(7.17e9, rel=0.01)
    at_no_interest = {name: span.value for name, span in epoch(5.0, 0.727).ranges.items()} | {"cost_of_capital": 0.0}
    hourly = owned.usd_per_gpu_hour(at_no_interest)
    assert hourly * 400e3 * owned.HOURS_PER_YEAR == pytest.approx(straight(0.727))


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
    ranges = points(
        capex_usd_per_gw=40e9,
        it_share=0.6,
        gpus_per_gw=400e3,
        it_life_years=5.0,
        facility_life_years=10.0,
        cost_of_capital=0.1,
        operations_usd_per_gw_year=0.3e9,
        power_kw_per_gpu=2.0,
        pue=1.2,
        electricity_usd_per_kwh=0.08,
    )
    (own,) = providers()["stargate"].owned
    made = owned.price(dataclasses.replace(own, **ranges))
    assert made.usd_per_gpu_hour == pytest.approx(2.82758, rel=1e-5)
    assert (made.low, made.high) == pytest.approx((made.usd_per_gpu_hour,) * 2)


def test_machines_per_gpu_in_a_building_or_in_colocation_by_hand():
    # 40,000 USD at CRF(10%, 5) = 0.263797 is 10,551.9 a year; operations 0.3e9 / 1e6 kW * 1.5 kW = 450; energy
    # 1.5 * 1.2 * 0.08 = 0.144 USD an hour. A building of 15,000 USD/kW: 22,500 * CRF(10%, 10) = 0.162745 is 3,661.8;
    # rent of 200 USD/kW-month: 200 * 12 * 1.5 = 3,600.
    common = points(
        it_usd_per_gpu=40e3,
        it_life_years=5.0,
        cost_of_capital=0.1,
        operations_usd_per_gw_year=0.3e9,
        power_kw_per_gpu=1.5,
        pue=1.2,
        electricity_usd_per_kwh=0.08,
    )
    (own,) = (o for o in providers()["own_hyperscaler"].owned if o.gpu == "h100_sxm_80gb")
    built = dataclasses.replace(own, **common, **points(facility_usd_per_kw=15e3, facility_life_years=10.0))
    assert owned.price(built).usd_per_gpu_hour == pytest.approx((10551.9 + 450 + 3661.8) / 8760 + 0.144, rel=1e-5)
    no_building = {"facility_usd_per_kw": None, "facility_life_years": None}
    rented = dataclasses.replace(own, **common, **no_building, **points(colocation_usd_per_kw_month=200.0))
    assert owned.price(rented).usd_per_gpu_hour == pytest.approx((10551.9 + 450 + 3600) / 8760 + 0.144, rel=1e-5)
    hourly = owned.parts(owned.inputs(rented, 1))
    assert {name: float(usd[0]) for name, usd in hourly.items()} == pytest.approx(
        {"machines": 10551.9 / 8760, "housing": 3600 / 8760, "operations": 450 / 8760, "energy": 0.144}, rel=1e-5
    )


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


def test_maia_costs_what_the_claim_makes_of_azures_gb200():
    """At the peaks of all ranges, 30% more per dollar, a Maia doing 0.94 of a GB200 (7 of 8 TB/s, 5 of 5 PFLOP/s)."""
    (maia,) = providers()["maia"].owned
    (gb200,) = providers()["azure"].owned
    usd = [owned.usd_per_gpu_hour({name: span.value for name, span in own.ranges.items()}) for own in (maia, gb200)]
    assert usd[1] * 0.94 / usd[0] == pytest.approx(1.30, rel=0.01)
    assert maia.modelled and "modelled" in maia.ranges["it_usd_per_gpu"].note


def test_every_owner_cites_its_sources():
    for provider in providers().values():
        for own in provider.owned:
            made = owned.price(own)
            assert 1 < made.low < made.usd_per_gpu_hour < made.high < 5, (provider.key, own.gpu)
            assert set(own.apart) <= set(own.ranges)
