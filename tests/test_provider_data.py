"""The shipped figures are whole: every price and every published row can be checked at its source."""

from __future__ import annotations

import csv
import datetime
import re
import statistics

import pytest

from bench import config, results
from bench.architecture import Model
from bench.price.book import LEVELS, providers, standing
from bench.price.throughput import PHASES

BOOK = providers()
RESERVED = ("reserved_1y", "reserved_3y")
PUBLISHED = results.read_rows(config.CONFIGS / "published.csv", results.PUBLISHED)
PRICES = [(key, price) for key, provider in BOOK.items() for price in provider.price]
TODAY = {p.key: p for p in standing(BOOK.values(), datetime.date(2026, 11, 28))}
A100, H100, H200 = "a100_sxm_80gb", "h100_sxm_80gb", "h200_sxm_141gb"
B200, B300, GB200 = "b200_sxm_180gb", "b300_sxm_288gb", "gb200_nvl72_186gb"
L40S, MI300X, NVL = "l40s_pcie_48gb", "mi300x_oam_192gb", "h100_nvl_94gb"


def terms(key, gpu, includes="instance"):
    return {p.term for k, p in PRICES if (k, p.gpu, p.includes) == (key, gpu, includes)}


@pytest.mark.parametrize(
    ("key", "name", "gpus"),
    [
        ("azure", "Microsoft Azure", {A100, H100, NVL, H200, GB200, MI300X}),
        ("aws", "Amazon Web Services", {A100, L40S, H100, H200, B200, B300}),
        ("gcp", "Google Cloud", {A100, H100, B200}),
        ("oracle", "Oracle Cloud", {A100, L40S, H100, H200, B200, GB200, MI300X}),
        ("coreweave", "CoreWeave", {A100, L40S, H100, H200, B200}),
        ("lambda_labs", "Lambda", {H100, B200}),
        ("nebius", "Nebius", {L40S, H100, H200, B200}),
        ("runpod", "RunPod", {A100, L40S, H100, NVL, H200, B200, B300, MI300X}),
        ("crusoe", "Crusoe", {A100, L40S, H100, H200, MI300X}),
        ("together", "Together", {A100, L40S, H100, H200}),
        ("vast", "Vast", {A100, L40S, H100, NVL, H200, B200}),
        ("neocloud_market", "Neocloud market (survey)", {H100, H200, B200, B300, GB200, "gb300_nvl72_288gb"}),
        ("stargate", "SoftBank Stargate", {GB200}),
    ],
)
def test_providers_sell_what_the_report_needs(key, name, gpus):
    assert BOOK[key].name == name
    assert gpus <= {p.gpu for p in TODAY[key].price if p.includes == "instance"}


def test_expected_terms_are_there():
    assert terms("azure", H100) == {"on_demand", "spot"}
    assert terms("azure", A100) == terms("azure", "a100_pcie_80gb") - {"spot"} == {"on_demand", *RESERVED}
    assert terms("azure", NVL) == {"on_demand", "spot", *RESERVED}
    assert terms("aws", H100) == {"on_demand", "reserved_3y"}
    assert terms("aws", H200) == {"on_demand", "capacity_block"}
    assert terms("aws", L40S) == {"on_demand", *RESERVED}
    assert terms("gcp", H100) == {"on_demand", "spot", *RESERVED}
    assert terms("gcp", B200) == {"on_demand", "spot", "capacity_block", *RESERVED}
    assert terms("coreweave", H100) == {"on_demand", "contract"}
    assert terms("stargate", GB200) == {"contract"}
    assert len(BOOK["stargate"].owned) == 1
    assert {k for k, p in BOOK.items() if p.cpu_price} == {"aws", "azure", "gcp"}
    assert {p.term for _, p in PRICES} | {"owned"} == set(LEVELS)


@pytest.mark.parametrize(
    ("key", "sku", "region", "term", "usd"),
    [  # the lowest list prices of 2026, as worked out from the sources before any of this was written
        ("aws", "p4de.24xlarge", "us-east-1", "on_demand", 3.43),
        ("aws", "p5.48xlarge", "us-east-1", "reserved_3y", 2.97),
        ("aws", "p6-b300.48xlarge", "us-east-1", "on_demand", 17.80),
        ("azure", "Standard_ND96is_H100_v5", "eastus", "on_demand", 11.06),
        ("azure", "Standard_ND96isr_H100_v5", "eastus", "spot", 2.27),
        ("azure", "Standard_NC40ads_H100_v5", "eastus", "reserved_1y", 5.81),
        ("azure", "Standard_ND96isr_MI300X_v5", "eastus2", "on_demand", 6.00),
        ("gcp", "a3-highgpu-8g", "us-central1", "reserved_3y", 4.86),
        ("gcp", "a4-highgpu-8g", "us-central1", "on_demand", 16.11),
        ("oracle", "BM.GPU.GB200.4", "all regions", "on_demand", 16.00),
        ("lambda_labs", "gpu_8x_h100_sxm5", "global", "on_demand", 3.99),
        ("nebius", "gpu-h200-sxm 8gpu", "global", "on_demand", 3.50),
        ("coreweave", "HGX B200 8x", "global", "on_demand", 8.60),
    ],
)
def test_what_stands_is_what_the_sources_say(key, sku, region, term, usd):
    (price,) = [p for p in TODAY[key].price if (p.sku, p.region, p.term) == (sku, region, term)]
    assert price.usd_per_gpu_hour == pytest.approx(usd, abs=0.006)


@pytest.mark.parametrize(
    ("key", "sku", "region", "term", "told"),
    [  # changes that old snapshots would miss
        ("aws", "p5.48xlarge", "us-east-1", "on_demand", [12.29, 6.88]),
        ("lambda_labs", "gpu_8x_h100_sxm5", "global", "on_demand", [2.99, 3.44, 3.99]),
        ("azure", "Standard_ND96isr_MI300X_v5", "eastus2", "on_demand", [11.061, 6.0]),
        ("nebius", "gpu-h100-sxm 8gpu", "global", "spot", [1.25, 2.15]),
        ("neocloud_market", "H100, 1 year, rental index", "market", "contract", [1.70, 2.35]),
    ],
)
def test_old_prices_stay(key, sku, region, term, told):
    found = sorted(
        (p.as_of, p.usd_per_gpu_hour) for k, p in PRICES if (k, p.sku, p.region, p.term) == (key, sku, region, term)
    )
    assert list(dict.fromkeys(usd for _, usd in found)) == pytest.approx(told)


@pytest.mark.parametrize(("key", "gpu"), [("azure", H100), ("azure", GB200), ("gcp", H100), ("gcp", A100)])
def test_a_region_range_can_be_told(key, gpu):
    usd = {p.region: p.usd_per_gpu_hour for k, p in PRICES if (k, p.gpu, p.term) == (key, gpu, "on_demand")}
    assert len(usd) >= 4
    assert min(usd.values()) < statistics.median(usd.values()) < max(usd.values())


def test_every_price_has_a_checkable_source():
    for key, price in PRICES:
        assert price.source.startswith("https://"), key
        assert datetime.date(2022, 1, 1) < price.as_of <= datetime.date(2026, 11, 28), key
        assert 0.3 < price.usd_per_gpu_hour < 60, (key, price)
        assert price.region and price.sku, key


def test_repositories_are_cited_at_a_commit():
    """A page of a site cannot be pinned; a file of a repository can."""
    files = [p.source for _, p in PRICES if p.source.startswith("https://github.com/")]
    loose = {source for source in files if not re.search(r"/blob/[0-9a-f]{8,40}/|@[0-9a-f]{8,40}", source)}
    assert loose == {
        "https://github.com/SemiAnalysisAI/InferenceX-app/blob/main/packages/constants/src/gpu-keys.ts"
    }  # read in a fork, whose commit its note names


def test_google_h200_is_the_gpu_alone():
    assert terms("gcp", H200) == set()
    assert "on_demand" in terms("gcp", H200, "gpu_only")


def test_form_factors_are_not_mixed():
    pcie = {p.sku for _, p in PRICES if p.gpu == "a100_pcie_80gb"}
    assert "Standard_NC96ads_A100_v4" in pcie  # Azure's NC series is PCIe
    azure_h100 = {p.sku for k, p in PRICES if k == "azure" and p.gpu == H100}
    # with and without InfiniBand; NC H100 v5 is another GPU: NVL, 94 GB
    assert azure_h100 == {"Standard_ND96isr_H100_v5", "Standard_ND96is_H100_v5"}
    assert {p.sku for k, p in PRICES if k == "azure" and p.gpu == NVL} == {"Standard_NC40ads_H100_v5"}


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
