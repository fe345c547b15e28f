"""The shipped figures are whole: every price and every published row can be checked at its source."""

from __future__ import annotations

import csv
import statistics

import pytest

from bench import config, results
from bench.architecture import Model
from bench.price.book import LEVELS, providers
from bench.price.throughput import PHASES

BOOK = providers()
PUBLISHED = results.read_rows(config.CONFIGS / "published.csv", results.PUBLISHED)
PRICES = [(key, price) for key, provider in BOOK.items() for price in provider.price]
A100, H100, H200 = "a100_sxm_80gb", "h100_sxm_80gb", "h200_sxm_141gb"
B200, GB200 = "b200_sxm_180gb", "gb200_nvl72_186gb"


def terms(key, gpu, includes="instance"):
    return {p.term for k, p in PRICES if (k, p.gpu, p.includes) == (key, gpu, includes)}


@pytest.mark.parametrize(
    ("key", "name", "gpus"),
    [
        ("azure", "Microsoft Azure", {A100, H100, H200, GB200}),
        ("aws", "Amazon Web Services", {A100, H100, H200, B200}),
        ("gcp", "Google Cloud", {A100, H100, B200}),
        ("oracle", "Oracle Cloud", {A100, H100, H200, B200, GB200}),
        ("coreweave", "CoreWeave", {A100, H100, H200, B200}),
        ("lambda_labs", "Lambda", {H100, B200}),
        ("nebius", "Nebius", {H100, H200, B200}),
        ("runpod", "RunPod", {A100, H100, H200, B200}),
        ("crusoe", "Crusoe", {A100, H100, H200}),
        ("neocloud_market", "Neocloud market (survey)", {H100, H200, B200, GB200}),
        ("stargate", "SoftBank Stargate", {GB200}),
    ],
)
def test_providers_sell_what_the_report_needs(key, name, gpus):
    assert BOOK[key].name == name
    assert gpus <= {p.gpu for p in BOOK[key].price if p.includes == "instance"}


def test_expected_terms_are_there():
    assert terms("azure", H100) == {"on_demand"}
    assert terms("azure", A100) == {"on_demand", "reserved_1y", "reserved_3y"}
    assert terms("aws", H100) == {"on_demand", "reserved_3y"}
    assert terms("gcp", H100) == {"on_demand", "spot", "reserved_1y", "reserved_3y"}
    assert terms("coreweave", H100) == {"on_demand", "contract"}
    assert terms("stargate", GB200) == {"contract"}
    assert len(BOOK["stargate"].owned) == 1
    assert {k for k, p in BOOK.items() if p.cpu_price} == {"aws", "azure", "gcp"}
    assert {p.term for _, p in PRICES} | {"owned"} == set(LEVELS)


@pytest.mark.parametrize(("key", "gpu"), [("azure", H100), ("azure", GB200), ("gcp", H100), ("gcp", A100)])
def test_a_region_range_can_be_told(key, gpu):
    usd = {p.region: p.usd_per_gpu_hour for k, p in PRICES if (k, p.gpu, p.term) == (key, gpu, "on_demand")}
    assert len(usd) >= 4
    assert min(usd.values()) < statistics.median(usd.values()) < max(usd.values())


def test_every_price_has_a_checkable_source():
    for key, price in PRICES:
        assert price.source.startswith("https://"), key
        assert price.as_of.year >= 2025, key
        assert 0.3 < price.usd_per_gpu_hour < 60, (key, price)
        assert price.region and price.sku, key


def test_no_price_is_listed_twice():
    seen = [(k, p.region, p.sku, p.gpu, p.term, p.includes) for k, p in PRICES]
    assert len(seen) == len(set(seen))


def test_google_h200_is_the_gpu_alone():
    assert terms("gcp", H200) == set()
    assert "on_demand" in terms("gcp", H200, "gpu_only")


def test_form_factors_are_not_mixed():
    pcie = {p.sku for _, p in PRICES if p.gpu == "a100_pcie_80gb"}
    assert "Standard_NC96ads_A100_v4" in pcie  # Azure's NC series is PCIe
    azure_h100 = {p.sku for k, p in PRICES if k == "azure" and p.gpu == H100}
    assert azure_h100 == {"Standard_ND96isr_H100_v5"}  # NC H100 v5 is another GPU: NVL, 94 GB


def test_published_rows_are_whole():
    models, gpus = set(config.keys(Model)), set(config.keys(config.Gpu))
    assert 20 <= len(PUBLISHED) <= 60
    assert len({row["id"] for row in PUBLISHED}) == len(PUBLISHED)
    for row in PUBLISHED:
        assert row["model"] in models, row["id"]
        assert row["gpu"] in gpus, row["id"]
        assert row["phase"] in PHASES, row["id"]
        assert row["precision"] in config.PRECISIONS, row["id"]
        assert row["token_kind"] in results.TOKEN_KINDS, row["id"]
        assert (row["token_kind"] == "trained") == (row["phase"] == "train_step"), row["id"]
        assert row["system_tokens_per_s"] > 0 and row["n_gpus"] >= 1, row["id"]
        assert row["source"].startswith("https://"), row["id"]
        assert row["workload"] and row["software"] and row["as_of"], row["id"]


def test_no_published_training_rate_beats_the_machine():
    # 6 FLOP per parameter and token, attention left out: a lower bound on the work, so a firm upper bound on the rate.
    for row in PUBLISHED:
        if row["phase"] == "train_step":
            model, gpu = config.load(Model, row["model"]), config.load(config.Gpu, row["gpu"])
            flops = 6 * model.active_matmul_params * row["system_tokens_per_s"] / row["n_gpus"]
            assert 0.15 < flops / gpu.peak_flops_per_s[row["precision"]] < 0.6, row["id"]


def test_mlperf_and_torchtitan_agree_where_they_measure_the_same():
    per_gpu = {row["id"]: row["system_tokens_per_s"] / row["n_gpus"] for row in PUBLISHED}
    assert per_gpu["mlperf_train_8b_h200x64_fp8"] == pytest.approx(per_gpu["torchtitan_8b_h200x32_fp8"], rel=0.1)


def test_ranges_cite_evidence_that_exists():
    with open(config.CONFIGS / "evidence.csv", newline="", encoding="utf-8") as file:
        known = {row["id"] for row in csv.DictReader(file)}
    for provider in BOOK.values():
        for own in provider.owned:
            cited = {i for span in own.ranges.values() for i in span.evidence}
            assert cited and cited <= known, provider.key


def test_evidence_is_whole():
    with open(config.CONFIGS / "evidence.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["id"] for row in rows}) == len(rows)
    kinds = {"reported", "projection", "estimate", "leak", "statement"}
    for row in rows:
        assert row["kind"] in kinds and row["confidence"] in {"high", "medium", "low"}, row["id"]
        assert row["source_url"] and row["metric"] and row["organisation"], row["id"]
        assert len(row["metric"]) <= 100, row["id"]
        values = [float(row[k]) for k in ("value_low", "value", "value_high") if row[k]]
        assert values == sorted(values), row["id"]
        assert values or row["unit"] == "qualitative", row["id"]
