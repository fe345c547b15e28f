"""A fleet through a day: never below its load, static >= autoscaled >= perfect, lines that add up, published points."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_break_even_api import serves
from test_price import DAY, provider
from test_price import price as hour

from bench import config
from bench.config import ConfigError
from bench.price.day_costs import COLUMNS, day_costs
from bench.price.fleet import autoscaled, base_of, needed, perfect, reserved_base, static
from bench.price.load_curve import Autoscaler, LoadCurve, Setting, Sizes

days = st.lists(st.floats(0, 300), min_size=24, max_size=24).filter(lambda day: max(day) > 0.01)
targets, delays = st.floats(0.2, 1), st.floats(0, 1800)


def scaler(target=0.8, least=1, delay=300.0, start=600.0, sizes=(1.0, 10.0, 100.0)):
    said = {"source": "made up"}
    values = {"target_utilisation": target, "minimum_units": least, "scale_down_delay_s": delay, "start_s": start}
    named = {name: Setting(value=float(value), **said) for name, value in values.items()}
    return Autoscaler(**named, fleet_sizes=Sizes(value=tuple(sizes), **said))


@given(days, targets, delays, delays)
def test_never_below_demand_and_between_its_bounds(loads, target, delay, start):
    policy = scaler(target, 1, delay, start)
    day, held = autoscaled(loads, policy), static(loads, policy)
    for hour_of, load in enumerate(loads):
        for units, _ in day.segments[3 * hour_of : 3 * hour_of + 3]:
            assert units * target >= load * (1 - 1e-6) and units >= 1
    assert held.paid >= day.paid - 1e-9
    assert day.paid >= perfect(loads) - 1e-9 * day.paid
    assert sum(seconds for _, seconds in day.segments) == pytest.approx(86400)


@given(days, targets, delays, delays)
def test_lines_add_up_to_what_is_paid(loads, target, delay, start):
    day = autoscaled(loads, scaler(target, 1, delay, start))
    units = needed(loads, scaler(target))
    ups = sum(max(units[(h + 1) % 24] - units[h], 0) for h in range(24))
    downs = sum(max(units[h - 1] - units[h], 0) for h in range(24))
    assert day.startup == pytest.approx(ups * start / 3600)
    assert day.paid == pytest.approx(sum(units) + (ups * start + downs * delay) / 3600)
    assert day.idle >= -1e-6 and day.usage + day.idle + day.startup == pytest.approx(day.paid)


@given(days, st.integers(100, 1000))
def test_a_large_fleet_scales_and_a_small_one_has_steps(loads, times):
    """Twice the load costs twice as much, but for one unit at a time."""
    policy = scaler(least=0)
    small, large = (autoscaled([k * load for load in loads], policy) for k in (times, 2 * times))
    assert abs(large.paid / 2 - small.paid) <= 24 + 1e-6


def test_whole_units_bite_at_small_fleets():
    """A tenth of a unit all day pays for one: ten times its use. A hundred and a tenth pays 1.25 at 80%."""
    for load, over in ((0.1, 10.0), (100.1, 126 / 100.1)):
        day = autoscaled([load] * 24, scaler())
        assert day.paid / day.usage == pytest.approx(over) and day.startup == 0


def test_an_hour_by_hand():
    """One unit, three in the second hour: two start 10 minutes ahead and two stay 5 minutes after."""
    day = autoscaled([0.8, 2.4, *[0.8] * 22], scaler())
    assert needed([0.8, 2.4], scaler()) == [1, 3], "at the target is not above it"
    assert day.paid == pytest.approx(24 + 2 + 2 * 600 / 3600 + 2 * 300 / 3600)
    assert day.startup == pytest.approx(2 * 600 / 3600) and day.peak == 3
    assert static([0.8, 2.4, *[0.8] * 22], scaler()).paid == 72


def test_deepseeks_day_costs_what_is_published():
    """226.75 nodes of 8 on the mean and 278 at the peak: 87,072 USD at 2 USD a GPU-hour, 0.816 of the peak held."""
    curve = config.load(LoadCurve, "deepseek_fleet")
    assert sum(curve.hourly) / 24 == pytest.approx(226.75, abs=0.01) and max(curve.hourly) == 278
    loads, at_once = curve.relative(226.75), scaler(target=1.0, delay=0.0, start=0.0)
    node = 8 * 2.0
    assert perfect(loads) * node == pytest.approx(87_072)
    assert perfect(loads) / static(loads, at_once).paid == pytest.approx(226.75 / 278, rel=1e-6)
    assert 0 <= autoscaled(loads, at_once).paid * node - 87_072 <= 24 * node, "whole nodes: less than one an hour more"


@given(days, st.floats(0.1, 5), st.floats(0.1, 5))
def test_the_cheapest_base_is_the_cheapest(loads, reserved, on_demand):
    day = autoscaled([load / 10 for load in loads], scaler())
    best = reserved_base(day, reserved, on_demand)
    for units in range(day.peak + 2):
        assert best.usd(reserved, on_demand) <= base_of(day, units).usd(reserved, on_demand) + 1e-9
    assert best.usd(reserved, on_demand) <= day.paid * on_demand + 1e-9
    if reserved >= on_demand:
        assert best.usd(reserved, on_demand) == pytest.approx(day.paid * on_demand)


def test_a_base_by_hand():
    """Three units for 12 hours, one for 12: at half price what is used more than half the day is reserved."""
    day = autoscaled([0.8] * 12 + [2.4] * 12, scaler(delay=0.0, start=0.0))
    assert reserved_base(day, 1.0, 2.0).units == 1, "of two equal bases the smaller"
    assert reserved_base(day, 0.9, 2.0).units == 3
    assert reserved_base(day, 2.5, 2.0).units == 0


def lines(**changes):
    book = [provider(hour(), hour(term="spot", usd_per_gpu_hour=1.0), hour(term="reserved_1y", usd_per_gpu_hour=2.0))]
    curve = LoadCurve(name="n", hourly=(1.0,) * 12 + (3.0,) * 12, unit="u", source="https://a.b", licence="MIT")
    given_rows = {"rows": [serves()], "book": book, "curves": {"two": curve}, "scaler": scaler()} | changes
    return day_costs(as_of=DAY, **given_rows)


def test_a_row_by_hand():
    """8 H100s of 4 USD: 20 requests/s of 400 tokens a unit; a mean of one unit is 0.5 by night and 1.5 by day."""
    made = {(one["mean_units"], one["fleet"], one["level"]): one for one in lines()}
    assert len(made) == 3 * 7 and all(set(one) <= set(COLUMNS) for one in made.values())
    one = made[1.0, "autoscaled", "retail"]
    millions = 24 * 20 * 3600 * 400 / 1e6
    assert one["requests_per_s"] == pytest.approx(20) and one["peak_units"] == 2
    assert one["usage_usd_per_million_tokens"] == pytest.approx(24 * 32 / millions)
    assert one["startup_usd_per_million_tokens"] == pytest.approx(600 / 3600 * 32 / millions)
    assert one["usd_per_million_tokens"] == pytest.approx((12 + 24 + 900 / 3600) * 32 / millions)
    assert made[1.0, "static", "retail"]["usd_per_million_tokens"] == pytest.approx(48 * 32 / millions)
    assert made[1.0, "perfect", "contract"]["usd_per_million_tokens"] == pytest.approx(24 * 16 / millions)
    base = made[1.0, "reserved_base", "retail+contract"]
    assert (base["base_units"], base["term"], base["base_usd_per_unit_hour"]) == (2, "reserved_1y", 16.0)
    assert base["usd_per_million_tokens"] == pytest.approx(48 * 16 / millions)
    assert base["startup_usd_per_million_tokens"] == 0, "what is reserved all day is not started"


def test_lines_of_every_row_add_up_and_fleets_keep_their_order():
    for size in (1.0, 10.0, 100.0):
        here = {one["fleet"]: one for one in lines() if one["mean_units"] == size and one["level"] != "contract"}
        for one in here.values():
            parts = [one[f"{part}_usd_per_million_tokens"] for part in ("usage", "idle", "startup")]
            assert sum(parts) == pytest.approx(one["usd_per_million_tokens"]) and min(parts) >= -1e-12
        cost = {fleet: one["usd_per_million_tokens"] for fleet, one in here.items()}
        assert cost["static"] >= cost["autoscaled"] >= cost["perfect"]
        assert cost["reserved_base"] <= cost["autoscaled"]


def test_spot_is_no_median_and_a_base_needs_both_prices():
    assert {one["usd_per_unit_hour"] for one in lines() if one["level"] == "retail"} == {32.0}
    alone = [provider(hour(term="reserved_1y", usd_per_gpu_hour=2.0))]
    assert {one["fleet"] for one in lines(book=alone)} == {"static", "autoscaled", "perfect"}


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("    2891, 3334,", "    3334,", "hourly: expected 24 loads, an hour each, got 23"),
        ("2891", "-1", "hourly: expected loads of 0 or more"),
        ('source = "https', 'source = "http', "source: expected the full address"),
    ],
)
def test_a_curve_that_is_none_does_not_load(tmp_path, was, now, said):
    text = (config.CONFIGS / "load_curves" / "servegen_r1.toml").read_text()
    assert was in text
    path = tmp_path / "curve.toml"
    path.write_text(text.replace(was, now))
    with pytest.raises(ConfigError, match=said):
        config.read(LoadCurve, path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": 0.0}, "target_utilisation: expected a share in"),
        ({"target": 1.1}, "target_utilisation"),
        ({"least": 0.5}, "minimum_units: expected a whole number"),
        ({"delay": -1.0}, "scale_down_delay_s: expected a time of 0 or more"),
        ({"delay": 3000.0, "start": 700.0}, "start_s: expected with scale_down_delay_s at most an hour"),
        ({"sizes": ()}, "fleet_sizes: expected positive mean loads"),
    ],
)
def test_an_autoscaler_that_cannot_be_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        scaler(**changes)


def test_every_setting_says_where_it_is_from():
    for setting in dataclasses.astuple(Autoscaler.load()):
        assert setting[1].startswith("judgement: ") or "https://" in setting[1]
    assert math.isclose(config.load(LoadCurve, "servegen_r1").peak_over_mean, 5278 * 24 / 57628)
