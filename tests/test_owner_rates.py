"""Published owner's rates beside ours: what explains a gap is computed."""

from __future__ import annotations

import csv
import datetime
import shutil

import numpy as np
import pytest

from bench import config
from bench.config import ConfigError
from bench.price import owned, owner_rates
from bench.price.book import providers

DAY = datetime.date(2026, 11, 28)
H100 = "h100_sxm_80gb"


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes configs/owner_rates.csv of a copy of configs/."""
    copy = tmp_path / "configs"
    shutil.copytree(config.CONFIGS, copy)
    monkeypatch.setattr(config, "CONFIGS", copy)

    def write(**row):
        base = {"id": "made", "publisher": "Somebody", "owner": "hyperscaler", "gpu": H100, "ours": "own_hyperscaler"}
        base |= {"as_of": "2026-08-14", "source": "https://example.org/rates"}
        with (copy / "owner_rates.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(owner_rates.COLUMNS))
            writer.writeheader()
            writer.writerow(base | row)
        return owner_rates.beside(DAY)

    return write


def own_h100():
    (own,) = (own for own in providers()["own_hyperscaler"].owned if own.gpu == H100)
    return own


def cost(**held):
    x = owned.inputs(own_h100())
    return float(np.median(owned.usd_per_gpu_hour({**x, **{name: np.asarray(v) for name, v in held.items()}})))


def test_the_input_that_differs_is_the_one_named(table):
    """Somebody pays half for the machine, states life and power too: only the price explains their rate."""
    theirs = cost(it_usd_per_gpu=20e3)
    stated = {"it_usd_per_gpu": 20e3, "it_life_years": 4.9, "power_kw_per_gpu": 1.4}
    (found,) = table(usd_per_gpu_hour=theirs, **stated)
    best = found.exchanges[0]
    assert (best.name, best.at, best.stated) == ("it_usd_per_gpu", 20e3, True)
    assert best.closes == pytest.approx(1)
    assert found.closed_at == pytest.approx(20e3, rel=1e-3)
    assert best.ours == pytest.approx(41e3, rel=0.05)
    assert {one.name for one in found.exchanges} == set(own_h100().ranges)


def test_what_they_keep_to_themselves_is_moved_to_the_nearer_end_of_our_range(table):
    (cheaper,) = table(usd_per_gpu_hour=0.9 * cost())
    (dearer,) = table(usd_per_gpu_hour=1.1 * cost())
    span = own_h100().ranges["cost_of_capital"]
    for found, end in ((cheaper, span.low), (dearer, span.high)):
        (capital,) = (one for one in found.exchanges if one.name == "cost_of_capital")
        assert (capital.at, capital.stated) == (end, False)
        assert capital.usd_per_gpu_hour == pytest.approx(cost(cost_of_capital=end))
        gap = abs(found.middle - found.published["usd_per_gpu_hour"])
        left = abs(capital.usd_per_gpu_hour - found.published["usd_per_gpu_hour"])
        assert capital.closes == pytest.approx(1 - left / gap)
        assert [one.closes for one in found.exchanges] == sorted((o.closes for o in found.exchanges), reverse=True)


def test_a_share_of_the_cost_is_exchanged_as_a_share(table):
    """Rent and energy at a fifth of the whole: machines and operations are then four fifths of it."""
    (found,) = table(usd_per_gpu_hour=1.3, housing_and_energy_share=0.2)
    (share,) = (one for one in found.exchanges if one.name == "housing_and_energy_share")
    parts = owned.parts(owned.inputs(own_h100()))
    assert share.usd_per_gpu_hour == pytest.approx(np.median((parts["machines"] + parts["operations"]) / 0.8))
    assert share.ours == pytest.approx(np.median((parts["housing"] + parts["energy"]) / sum(parts.values())))


def test_no_gap_is_not_explained_and_a_later_rate_is_not_known(table):
    (found,) = table(usd_per_gpu_hour=cost() * 1.005)
    assert found.exchanges == () and found.closed_at is None
    assert table(usd_per_gpu_hour=1.0, as_of="2026-11-29") == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"usd_per_gpu_hour": 1.0, "ours": "nobody"}, "line 2: ours: expected a provider with .* of h100_sxm_80gb"),
        ({"usd_per_gpu_hour": 1.0, "source": ""}, "line 2: source: blank; every published rate has one"),
    ],
)
def test_a_rate_that_cannot_be_held_against_ours_is_one_line(table, row, message):
    with pytest.raises(ConfigError, match=message):
        table(**row)


def test_the_registry_of_august_2026_stands_beside_ours():
    """1.17, 1.73 and 1.86 USD: ours are dearer, and the price of the machine closes most of each gap."""
    found = {one.published["id"]: one for one in owner_rates.beside(DAY)}
    published = {gpu: found[f"inferencex_{gpu}_hyperscaler"] for gpu in ("h100", "b200", "gb200")}
    assert [one.published["usd_per_gpu_hour"] for one in published.values()] == [1.17, 1.73, 1.86]
    for one in published.values():
        assert one.published["usd_per_gpu_hour"] < one.low < one.middle < one.high
        assert one.exchanges[0].name == "it_usd_per_gpu" and one.exchanges[0].closes > 0.3
        assert one.closed_at < one.exchanges[0].ours
        (life,) = (e for e in one.exchanges if e.name == "it_life_years")
        assert life.stated and life.at == 4 and life.closes < 0  # their shorter life makes ours dearer still
