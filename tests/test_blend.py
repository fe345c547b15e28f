"""A portfolio by hand, against a simulation of its hours, and what may not be one."""

from __future__ import annotations

import dataclasses
import datetime
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import config
from bench.config import ConfigError
from bench.price import blend
from bench.price.book import Range, providers
from bench.price.portfolio import Holding, Plan, Portfolio
from bench.price.reliability import Reliability, states

GB200 = "gb200_nvl72_186gb"
SOURCE = "https://example.org/figures"
HOURS = 8760.0


def point(value):
    return Range(low=value, value=value, high=value, unit="", source=SOURCE)


def outages(site_hours, outage_hours=10.0):
    return Reliability(key="made", site_hours_per_year=point(site_hours), outage_hours=point(outage_hours))


def portfolio(shares, sites=1, survive="seller", prices=None, commitments=None, **changes):
    """Sellers under real names (they need a file of outages), at fixed prices."""
    holdings = tuple(
        Holding(
            provider=name,
            sites=sites if isinstance(sites, int) else sites[name],
            usd_per_gpu_hour=point((prices or {}).get(name, 4.0)),
            term="contract",
            commitment_usd_per_year=point(commitments[name]) if commitments and name in commitments else None,
        )
        for name in shares
    )
    plan = Plan(year=2030, shares=shares, capacity_gw=changes.pop("capacity_gw", None))
    fields = {"key": "made", "name": "Made", "text": "made", "gpu": GB200, "survive": survive, "source": "test"}
    fields["as_of"] = datetime.date(2026, 8, 14)
    return Portfolio(**fields, holding=holdings, year=(plan,), **changes)


def assumed(**values):
    base = {"urgent_share": 0.6, "failover_hours": 0.0, "common_to_seller": 0.0, "common_to_all": 0.0}
    base |= {"manager_overhead": 0.0, "movable_share": 0.0, "usd_per_lost_serving_hour": 10.0}
    base |= {"usd_per_delayed_hour": 2.0, "price_correlation": 0.0}
    assert set(base | values) == set(blend.ASSUMPTIONS)
    return {name: np.full(1, value) for name, value in (base | values).items()}


def made(one, x=None, urgent=0.6, **site_hours):
    """One outcome with the same outages for every seller, or those given by name."""
    away = {h.provider: outages(site_hours.get(h.provider, 87.6)) for h in one.holding}  # 87.6 hours: 1% of a year
    return blend.outcome(one, 2030, x or assumed(), urgent, 1, away)


def value(array):
    return float(array[0])


# ---------------------------------------------------------------- by hand


def test_spare_is_what_the_rest_lacks_when_the_worst_part_is_away():
    halves, quarters = {"azure": 0.5, "aws": 0.5}, {n: 0.25 for n in ("azure", "aws", "gcp", "oracle")}
    assert blend.spare(portfolio(halves), portfolio(halves).plan(2030), 0.6) == pytest.approx(0.6 / 0.5 - 1)
    assert blend.spare(portfolio(quarters), portfolio(quarters).plan(2030), 0.6) == 0  # 75% are left for 60%
    most = portfolio({"azure": 0.25, "stargate": 0.75})
    assert blend.spare(most, most.plan(2030), 0.6) == pytest.approx(0.6 / 0.25 - 1)
    by_site = portfolio({"azure": 0.25, "stargate": 0.75}, sites=3, survive="site")
    assert blend.spare(by_site, by_site.plan(2030), 0.9) == pytest.approx(0.9 / 0.75 - 1)
    none = dataclasses.replace(by_site, survive="none")
    assert blend.spare(none, none.plan(2030), 1.0) == 0


def test_two_sellers_by_hand():
    # Halves, 20% spare: one away leaves 0.6, exactly serving's 0.6. q = 0.01: both away q^2 of the time, one 2 q (1-q).
    # Serving lost: q^2 * 0.6. Other work (0.4): whole with both there (1.2), nothing left of it with one or none.
    q = 0.01
    got = made(portfolio({"azure": 0.5, "aws": 0.5}, prices={"azure": 3.0, "aws": 5.0}))
    assert got.spare == pytest.approx(0.2)
    assert value(got.lost_hours) == pytest.approx(q**2 * HOURS)
    assert value(got.delayed_hours) == pytest.approx((2 * q * (1 - q) + q**2) * HOURS)
    assert value(got.blackout_hours) == pytest.approx(q**2 * HOURS)
    assert value(got.parts["capacity"]) == pytest.approx(4.0)
    assert value(got.parts["spare"]) == pytest.approx(0.8)
    loss = q**2 * 0.6 * 10 + (2 * q * (1 - q) + q**2) * 0.4 * 2
    assert value(got.parts["loss"]) == pytest.approx(loss)
    assert value(got.total) == pytest.approx(4.8 + loss)
    assert value(got.per_served_hour) == pytest.approx(4.8 / (1 - q**2 * 0.6 - (2 * q - q**2) * 0.4))


def test_while_it_fails_over_what_stood_there_is_lost():
    # Outages of 10 hours, failover 1 hour: a tenth of the time with one away, its half of serving is lost.
    q = 0.01
    got = made(portfolio({"azure": 0.5, "aws": 0.5}), assumed(failover_hours=1.0))
    one_away = 2 * q * (1 - q) * 0.5 * 0.1
    assert value(got.lost_hours) == pytest.approx((one_away + q**2) * HOURS)
    never = made(portfolio({"azure": 0.5, "aws": 0.5}), assumed(failover_hours=99.0))
    assert value(never.lost_hours) == pytest.approx((2 * q * (1 - q) * 0.5 + q**2) * HOURS)  # as if nothing moved


def test_common_causes_are_what_redundancy_cannot_mend():
    # A tenth of a seller's 1% takes every seller: 0.001 of the time nothing is left, whoever shares the load.
    quarters = portfolio({n: 0.25 for n in ("azure", "aws", "gcp", "oracle")}, sites=2)
    x = assumed(common_to_seller=1.0, common_to_all=0.1)
    got = made(quarters, x)
    assert value(got.lost_hours) == pytest.approx(0.001 * HOURS, rel=0.1)
    apart = made(quarters, assumed(common_to_seller=1.0))
    assert value(apart.lost_hours) < 0.1 * value(got.lost_hours)


def test_what_is_committed_and_not_used_is_paid():
    # 1 GW of 400,000 GPUs: 3.504e9 GPU-hours needed. AWS holds a tenth at 4 USD: 0.4 USD per needed hour; owed 35.04e9
    # USD are 10. Azure's 3.504e9 USD are 1 USD, of 3.6 used. Oracle is owed 0.5 USD and has no share.
    owed = {"azure": 3.504e9, "aws": 35.04e9, "oracle": 1.752e9}
    one = portfolio(
        {"azure": 0.9, "aws": 0.1, "oracle": 0.0},
        survive="none",
        commitments=owed,
        capacity_gw=point(1.0),
        gpus_per_gw=point(400e3),
    )
    assert value(made(one).parts["stranded"]) == pytest.approx(9.6 + 0.5)


def test_a_manager_is_paid_and_follows_the_price_only_where_there_are_several():
    x = assumed(manager_overhead=0.05, movable_share=0.2)
    several = made(portfolio({"azure": 0.5, "aws": 0.5}, prices={"azure": 3.0, "aws": 5.0}), x)
    assert value(several.parts["capacity"]) == pytest.approx(0.8 * 4.0 + 0.2 * 3.0)
    assert value(several.parts["manager"]) == pytest.approx(0.05 * 1.2 * 3.8)
    assert value(several.price) == pytest.approx(1.05 * 3.8)
    alone = made(portfolio({"azure": 1.0}, sites=4, survive="site", prices={"azure": 3.0}), x)
    assert value(alone.parts["manager"]) == 0 and value(alone.price) == 3.0


# ---------------------------------------------------------------- the states


beta, away_share = st.floats(0, 0.9), st.floats(0, 0.2)


@given(away_share, away_share, st.integers(1, 4), st.integers(1, 3), beta, beta)
def test_states_are_whole_and_leave_each_seller_its_own_unavailability(q1, q2, m1, m2, b_seller, b_all):
    """However much is common: probabilities add up to 1, and a seller's sites are away as often as they are."""
    away = {"a": np.array([q1]), "b": np.array([q2])}
    found = list(states({"a": m1, "b": m2}, away, np.array([b_seller]), np.array([b_all])))
    assert sum(value(p) for _, p in found) == pytest.approx(1)
    assert all(value(p) > -1e-12 for _, p in found)
    for name, q in (("a", q1), ("b", q2)):
        assert sum(part[name] * value(p) for part, p in found) == pytest.approx(q, abs=1e-12)


def test_a_simulation_of_hours_agrees():
    """Three sellers, unequal shares and sites, all causes: a million hours drawn one by one, and the same losses."""
    shares, sites = {"azure": 0.5, "aws": 0.3, "stargate": 0.2}, {"azure": 2, "aws": 1, "stargate": 3}
    q = {"azure": 0.04, "aws": 0.06, "stargate": 0.1}
    x = assumed(urgent_share=0.7, failover_hours=2.0, common_to_seller=0.3, common_to_all=0.2)
    one = portfolio(shares, sites=sites, survive="site")
    got = made(one, x, urgent=0.7, **{name: share * HOURS for name, share in q.items()})

    random, n = np.random.default_rng(7), 1_000_000
    whole = {name: 0.3 * q[name] for name in q}
    everywhere = 0.2 * min(whole.values())
    all_away = random.random(n) < everywhere
    down, moving = np.zeros(n), np.zeros(n)
    for name, share in shares.items():
        seller = random.random(n) < (whole[name] - everywhere) / (1 - everywhere)
        local = random.random((sites[name], n)) < (q[name] - whole[name]) / (1 - whole[name])
        part = np.where(all_away | seller, 1.0, local.mean(axis=0))
        down += share * part
        moving += share * part * 0.2  # 2 of 10 hours
    capacity = (1 + got.spare) * (1 - down)
    still = 1 - np.divide(moving, down, out=np.zeros(n), where=down > 0)
    lost = 0.7 * moving + still * np.maximum(0, 0.7 - capacity)
    assert value(got.lost_hours) == pytest.approx(lost.mean() / 0.7 * HOURS, rel=0.01)
    left = np.clip(capacity - 0.7, 0, 0.3)
    assert value(got.delayed_hours) == pytest.approx((0.3 - left).mean() / 0.3 * HOURS, rel=0.01)
    assert value(got.blackout_hours) == pytest.approx((capacity < 0.35).mean() * HOURS, rel=0.05)


# ---------------------------------------------------------------- the files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of configs/ that a test may change."""
    copy = tmp_path / "configs"
    shutil.copytree(config.CONFIGS, copy)
    monkeypatch.setattr(config, "CONFIGS", copy)
    return copy


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("two_clouds", "aws = 0.5", "aws = 0.4", r"year\[0\].shares: expected fractions that add up to 1"),
        ("two_clouds", "aws = 0.5", "gcp = 0.5", "year.2026.shares: expected sellers with a .* table, got gcp"),
        ("two_clouds", 'provider = "aws"', 'provider = "nobody"', "a key of configs/reliability, got 'nobody'"),
        ("two_clouds", 'survive = "seller"', 'survive = "sellers"', "one of none, site, seller, got 'sellers'"),
        ("two_clouds", 'term = "contract"', 'term = "on_demand"', "prices of one level, never contract beside retail"),
        ("one_cloud", 'survive = "site"', 'survive = "seller"', "two sellers at least, where the loss of one"),
        ("stargate_75", "[gpus_per_gw]", "[gpus_a_gw]", "unknown key; did you mean gpus_per_gw?"),
        ("stargate_75", "[year.capacity_gw]", "[year.capacity]", "unknown key; did you mean capacity_gw?"),
        ("two_clouds", f'gpu = "{GB200}"', 'gpu = "gb2000"', "a key of configs/gpus, got 'gb2000'"),
    ],
)
def test_a_wrong_portfolio_is_one_line(folder, file, old, new, message):
    path = folder / "portfolios" / f"{file}.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(Portfolio, file)
    assert "\n" not in str(caught.value) and f"configs/portfolios/{file}.toml" in str(caught.value)


def test_a_commitment_needs_to_know_how_much_capacity_is_needed():
    with pytest.raises(ValueError, match="gpus_per_gw: expected a range where a commitment is"):
        portfolio({"azure": 1.0}, survive="none", commitments={"azure": 1e9}, capacity_gw=point(1.0))
    with pytest.raises(ValueError, match=r"year\.2030\.capacity_gw: expected a range where a commitment is"):
        portfolio({"azure": 1.0}, survive="none", commitments={"azure": 1e9}, gpus_per_gw=point(4e5))


def test_one_site_alone_cannot_survive_losing_it():
    one = portfolio({"azure": 1.0}, sites=1, survive="site")
    with pytest.raises(ConfigError, match="sites: expected two at least to lose one"):
        made(one)
    with pytest.raises(ConfigError, match="year: expected 2031, has 2030"):
        one.plan(2031)


def test_the_shipped_files_say_what_the_price_book_and_the_reports_say():
    shipped = config.load_all(Portfolio)
    assert shipped["stargate_75"].plan(2030).shares["stargate"] == 0.75
    (as_paid,) = providers()["stargate"].price
    for one in shipped.values():
        for holding in one.holding:
            if holding.provider == "stargate":
                span = holding.usd_per_gpu_hour
                assert (span.low, span.value, span.high) == (as_paid.low, as_paid.usd_per_gpu_hour, as_paid.high)
            else:
                assert holding.proxy and holding.usd_per_gpu_hour.low == pytest.approx(2.6 * 1.1)
                assert holding.usd_per_gpu_hour.high == pytest.approx(3.3 * 1.6)
    owed = {h.provider: h.commitment_usd_per_year for h in shipped["stargate_75"].holding}
    assert owed["azure"].value == pytest.approx(250e9 / 7, rel=0.01)
    assert owed["aws"].value == pytest.approx(38e9 / 7 + 100e9 / 8, rel=0.01)


def test_every_provider_of_the_issue_has_outages_with_sources():
    known = {line.split(",")[0] for line in (config.CONFIGS / "evidence.csv").read_text().splitlines()}
    found = config.load_all(Reliability)
    assert {"azure", "aws", "gcp", "oracle", "stargate"} <= set(found)
    for key, one in found.items():
        assert one.incident and one.evidence and set(one.evidence) <= known, key
        longest = max(incident.hours or 0 for incident in one.incident)
        assert one.outage_hours.low <= longest or key == "stargate", key
