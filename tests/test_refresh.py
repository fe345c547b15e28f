"""Refreshed prices: what is taken from gpuhunt, what is left out, what stays of a provider that fails, who uses them.

A stand-in for gpuhunt everywhere; the package itself, offline, where it is installed.
"""

from __future__ import annotations

import csv
import datetime
import os
import sys
import types
from types import SimpleNamespace

import pytest

from bench import config
from bench.price import refresh, snapshot
from bench.price.book import Price, Provider, providers, standing

DAY = datetime.date(2026, 11, 28)
H100, A100 = "h100_sxm_80gb", "a100_sxm_80gb"


def item(instance="p5.48xlarge", location="us-east-1", price=55.04, **changes):
    """An offer as gpuhunt gives it: by the instance, a name and a memory for a GPU."""
    same = {"gpu_count": 8, "gpu_name": "H100", "gpu_memory": 80.0, "spot": False}
    return SimpleNamespace(instance_name=instance, location=location, price=price, **(same | changes))


class Hunt:
    """gpuhunt.Catalog, by what was loaded; a provider without offers raises or answers nothing."""

    def __init__(self, offers, broken=()):
        self.offers, self.broken = offers, broken
        self.catalog = {name: SimpleNamespace(version="20261127-1") for name in offers}

    def query(self, *, provider, min_gpu_count):
        assert min_gpu_count == 1
        if provider in self.broken:
            raise FileNotFoundError(f"no such file: {provider}.csv")
        return self.offers.get(provider, [])


@pytest.fixture
def hunt(monkeypatch):
    """Puts a stand-in for gpuhunt in place; returns how to say what it answers."""

    def answer(offers, broken=(), down=False):
        module = types.ModuleType("gpuhunt")
        module.GPUHuntError = type("GPUHuntError", (Exception,), {})

        class Catalog(Hunt):
            def __init__(self, balance_resources, auto_reload):
                assert not balance_resources and not auto_reload
                super().__init__(offers, broken)

            def load(self):
                if down:
                    raise module.GPUHuntError("Failed to load catalogs\nof all providers")

        module.Catalog = Catalog
        monkeypatch.setitem(sys.modules, "gpuhunt", module)
        monkeypatch.setattr(refresh, "release", lambda: "0.1.34")

    monkeypatch.delenv("GPUHUNT_CATALOG_DIR", raising=False)
    return answer


# ---------------------------------------------------------------- what a catalogue's item is


@pytest.mark.parametrize(
    ("seller", "instance", "name", "memory", "key"),
    [
        ("aws", "p5.48xlarge", "H100", 80, H100),
        ("aws", "p4d.24xlarge", "A100", 40, None),
        ("aws", "p6-b300.48xlarge", "B300", 268.6, "b300_sxm_288gb"),
        ("azure", "Standard_ND96amsr_A100_v4", "A100", 80, A100),
        ("azure", "Standard_NC24ads_A100_v4", "A100", 80, "a100_pcie_80gb"),
        ("azure", "Standard_NC40ads_H100_v5", "H100NVL", 94, "h100_nvl_94gb"),
        ("gcp", "a3-megagpu-8g", "H100", 80, H100),
        ("gcp", "a2-highgpu-8g", "A100", 40, None),
        ("lambdalabs", "gpu_1x_h100_pcie", "H100", 80, "h100_pcie_80gb"),
        ("lambdalabs", "gpu_8x_a100_80gb_sxm4", "A100", 80, A100),
        ("runpod", "NVIDIA A100-SXM4-80GB", "A100", 80, A100),
        ("runpod", "NVIDIA H100 80GB HBM3", "H100", 80, H100),
        ("oci", "BM.GPU.MI300X.8", "MI300X", 192, "mi300x_oam_192gb"),
        ("nebius", "gpu-h200-sxm 8gpu-128vcpu-1600gb", "H200", 141, "h200_sxm_141gb"),
        ("azure", "Standard_ND96isr_H100_v5", "H100", 40, None),  # the memory of another GPU
        ("somebody", "8xH100", "H100", 80, None),  # no form factor
        ("aws", "g6.xlarge", "L4", 24, None),
        ("aws", "c7i.8xlarge", None, None, None),
    ],
)
def test_gpus_are_told_by_an_exact_table(seller, instance, name, memory, key):
    assert refresh.gpu_key(item(instance, gpu_name=name, gpu_memory=memory), seller) == key


def test_every_key_of_the_table_is_a_gpu_of_ours():
    keys = {key for _, key in refresh.GPUS.values()} | {form[-1] for form in refresh.FORMS}
    assert keys <= set(config.keys(config.Gpu))
    assert {form[2] for form in refresh.FORMS} <= set(refresh.NAMES.values())
    assert set(refresh.NAMES) <= set(providers())


def test_prices_are_a_gpu_and_zones_of_a_region_are_one_price():
    zones = [item("a3-highgpu-8g", f"us-east4-{zone}", usd) for zone, usd in (("a", 80.0), ("b", 96.0), ("c", 88.0))]
    zones.append(item("a3-highgpu-8g", "us-east4-a", 40.0, spot=True))
    on_demand, spot = refresh.prices_of(zones, "gcp", DAY, "https://a.b")
    assert (on_demand.usd_per_gpu_hour, on_demand.region, on_demand.term) == (11.0, "us-east4", "on_demand")
    assert (spot.usd_per_gpu_hour, spot.gpu_count, spot.includes) == (5.0, 8, "instance")


def test_what_is_no_list_price_of_a_seller_is_left_out():
    name = "NVIDIA H100 80GB HBM3"
    community, secure = item(name, "US", 1.0, gpu_count=1), item(name, "US-KS-2", 2.99, gpu_count=1)
    free = item(name, "US-KS-2", 0.0, gpu_count=2)
    (price,) = refresh.prices_of([community, secure, free], "runpod", DAY, "https://a.b")
    assert price.usd_per_gpu_hour == 2.99


# ---------------------------------------------------------------- a refresh


def test_a_refresh_is_a_dated_snapshot_with_its_versions(hunt, tmp_path):
    hunt({"aws": [item()], "oci": [item("BM.GPU.H100.8", "us-ashburn-1", 80.0)]})
    said = refresh.refresh(["aws", "oracle"], tmp_path, DAY)
    assert said.splitlines() == [
        "aws: 1 prices, catalogue 20261127-1",
        "oracle: 1 prices, catalogue 20261127-1",
        f"{tmp_path}/2026-11-28.csv: 2 prices",
    ]
    found = snapshot.read(tmp_path / "2026-11-28.csv")
    (price,) = found["aws"]
    assert (price.sku, price.gpu, price.term, price.usd_per_gpu_hour) == ("p5.48xlarge", H100, "on_demand", 6.88)
    assert price.as_of == datetime.date(2026, 11, 27), "the catalogue's day, not the day it was fetched"
    assert price.source == "https://github.com/dstackai/gpuhunt (gpuhunt 0.1.34, catalogue 20261127-1)"


def test_a_provider_that_fails_keeps_its_last_snapshot_and_says_so(hunt, tmp_path):
    hunt({"aws": [item()], "azure": [item("Standard_ND96isr_H100_v5", "eastus", 98.32)]})
    refresh.refresh(["aws", "azure"], tmp_path, DAY)
    later = DAY + datetime.timedelta(days=7)
    hunt({"aws": [item(price=48.0)], "oci": [item("BM.GPU.A10.4", gpu_name="A10")]}, broken=("azure",))
    said = refresh.refresh(["aws", "azure", "oracle"], tmp_path, later).splitlines()
    assert said[1] == (
        "azure: failed (FileNotFoundError: no such file: azure.csv); keeps its last snapshot, 1 prices of 2026-11-27"
    )
    assert said[2] == (
        "oracle: failed (LookupError: no price of a GPU we know in its catalogue); no snapshot of it to keep"
    )
    found = snapshot.read(tmp_path / f"{later}.csv")
    assert [found[key][0].usd_per_gpu_hour for key in ("aws", "azure")] == [6.0, 12.29]
    assert found["azure"][0].as_of == datetime.date(2026, 11, 27)


def test_a_refresh_of_one_provider_keeps_the_others(hunt, tmp_path):
    hunt({"aws": [item()], "azure": [item("Standard_ND96isr_H100_v5", "eastus", 98.32)]})
    refresh.refresh(["aws", "azure"], tmp_path, DAY)
    hunt({"aws": [item(price=48.0)]})
    refresh.refresh(["aws"], tmp_path, DAY)
    assert set(snapshot.read(tmp_path / f"{DAY}.csv")) == {"aws", "azure"}


def test_nothing_is_written_where_nobody_answers(hunt, tmp_path):
    hunt({}, broken=tuple(refresh.NAMES.values()))
    with pytest.raises(refresh.NothingRefreshed, match=r"aws: failed .*; azure: failed"):
        refresh.refresh(None, tmp_path, DAY)
    hunt({}, down=True)
    with pytest.raises(refresh.NothingRefreshed) as caught:
        refresh.refresh(None, tmp_path, DAY)
    expected = "gpuhunt: GPUHuntError: Failed to load catalogs of all providers; the snapshots stay as they are"
    assert str(caught.value) == expected
    assert not list(tmp_path.iterdir())


def test_a_provider_gpuhunt_has_not_is_one_line(tmp_path):
    with pytest.raises(config.ConfigError, match=r"--provider: expected one of aws, azure, .*, got 'vast'"):
        refresh.refresh(["vast"], tmp_path, DAY)


def test_without_gpuhunt_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gpuhunt", None)
    with pytest.raises(ModuleNotFoundError, match=r"gpuhunt is not installed here: pip install gpuhunt, or make setup"):
        refresh.refresh(None, tmp_path, DAY)


# ---------------------------------------------------------------- who uses a snapshot


def price(usd, day, sku="theirs", **changes):
    same = {"region": "r", "sku": sku, "gpu": H100, "gpu_count": 8, "includes": "instance", "term": "on_demand"}
    same |= {"usd_per_gpu_hour": usd, "as_of": day, "source": "https://example.org"}
    return Price(**(same | changes))


def test_a_snapshot_takes_the_place_of_older_prices_of_its_gpus_and_terms(tmp_path):
    old, day = datetime.date(2026, 8, 21), datetime.date(2026, 11, 20)
    mine = (
        price(4.0, old, "ours"),
        price(9.0, old, "ours", gpu=A100),
        price(2.0, old, "ours", term="reserved_1y"),
        price(1.0, old, "ours", includes="gpu_only"),
    )
    book = {"a": Provider(key="a", name="A", kind="neocloud", price=mine)}
    snapshot.write(tmp_path / f"{day}.csv", {"a": [price(3.0, day)]})
    after = snapshot.refreshed(book, tmp_path, DAY)["a"].price
    assert [(p.usd_per_gpu_hour, p.sku) for p in after] == [
        (9.0, "ours"),
        (2.0, "ours"),
        (1.0, "ours"),
        (3.0, "theirs"),
    ]
    assert snapshot.refreshed(book, tmp_path, day - datetime.timedelta(days=1)) == book, "not there yet"
    assert snapshot.refreshed(book, tmp_path / "none", DAY) == book
    newer = {"a": Provider(key="a", name="A", kind="neocloud", price=(price(4.0, DAY, "ours"),))}
    assert snapshot.refreshed(newer, tmp_path, DAY) == newer, "a price of ours that is newer stays"


def test_the_newest_snapshot_of_a_day_counts(tmp_path):
    for day in ("2026-11-01", "2026-11-20", "2026-12-01"):
        snapshot.write(tmp_path / f"{day}.csv", {"aws": [price(3.0, datetime.date(2026, 11, 1))]})
    assert snapshot.newest(tmp_path, DAY) == tmp_path / "2026-11-20.csv"
    (tmp_path / "old.csv").write_text("")
    with pytest.raises(config.ConfigError, match=r"old\.csv: expected a snapshot named by its day"):
        snapshot.newest(tmp_path, DAY)


@pytest.mark.parametrize(
    ("key", "message"),
    [("nobody", "provider: expected a key of configs/providers, got 'nobody'"), ("", "provider: blank")],
)
def test_a_snapshot_of_a_stranger_is_one_line(tmp_path, key, message):
    snapshot.write(tmp_path / "2026-11-01.csv", {key: [price(3.0, DAY)]})
    with pytest.raises(config.ConfigError, match=message):
        snapshot.refreshed(providers(), tmp_path, DAY)


# ---------------------------------------------------------------- gpuhunt itself, offline

ITEM = {
    **{"instance_name": "p5.48xlarge", "location": "us-east-1", "price": "55.04", "cpu": "192", "memory": "2048"},
    **{"gpu_count": "8", "gpu_name": "H100", "gpu_memory": "80.0", "spot": "False", "disk_size": ""},
    **{"gpu_vendor": "nvidia", "flags": "", "cpu_arch": "x86", "provider_data": "{}"},
}


def test_gpuhunt_reads_a_folder_of_catalogues(monkeypatch, tmp_path):
    pytest.importorskip("gpuhunt", reason="extra `prices` is not installed")
    lines = [
        ITEM,
        ITEM | {"price": "20.0", "spot": "True"},
        ITEM | {"gpu_count": "0", "gpu_name": "", "gpu_vendor": ""},
    ]
    catalogue = tmp_path / "catalogue"
    catalogue.mkdir()
    with open(catalogue / "aws.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(ITEM))
        writer.writeheader()
        writer.writerows(lines)
    seen = datetime.datetime(2026, 11, 20, 12, tzinfo=datetime.UTC).timestamp()
    os.utime(catalogue / "aws.csv", (seen, seen))
    monkeypatch.setenv("GPUHUNT_CATALOG_DIR", str(catalogue))
    said = refresh.refresh(["aws", "azure"], tmp_path / "out", DAY).splitlines()
    assert said[0] == "aws: 2 prices, catalogue a local file of 2026-11-20"
    assert said[1].startswith("azure: failed (FileNotFoundError: ") and said[1].endswith("; no snapshot of it to keep")
    book = snapshot.refreshed(providers(), tmp_path / "out", DAY)
    (aws,) = standing([book["aws"]], DAY)
    h100 = {(p.term, p.sku): p.usd_per_gpu_hour for p in aws.price if p.gpu == H100}
    assert h100[("on_demand", "p5.48xlarge")] == 6.88 and h100[("spot", "p5.48xlarge")] == 2.5
    assert ("reserved_3y", "p5.48xlarge") in h100 and ("on_demand", "p5.4xlarge") not in h100
