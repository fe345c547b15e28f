"""Energy and carbon of a token: by hand, by basis, and blank where nobody publishes a factor."""

from __future__ import annotations

import datetime

import pytest
import report_rows
import serving_rows
from test_price import DAY, provider
from test_price import price as hour
from test_price import row as measured

from bench import config, results
from bench.config import ConfigError, Gpu
from bench.price import carbon
from bench.price.carbon import grids, with_carbon
from bench.price.cost import costs
from bench.price.throughput import throughput

LINE = "aws,us-east-1,400,2024,2026-02-24,https://example.org/g,1.2,https://example.org/p,"


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes configs/grids.csv of a folder that knows the seller aws."""

    def write(*lines):
        (tmp_path / "providers").mkdir(exist_ok=True)
        (tmp_path / "providers" / "aws.toml").touch()
        (tmp_path / "grids.csv").write_text("\n".join((",".join(carbon.COLUMNS), *lines)) + "\n")
        monkeypatch.setattr(config, "CONFIGS", tmp_path)

    return write


def priced(row, region="us-central1", key="gcp"):
    made = costs([row], DAY, [provider(hour(region=region))])
    return with_carbon([one | {"x_provider": key} for one in made], [row], DAY)


def test_metered_energy_by_hand():
    """2 J a token at 40,000 tokens/s is 80 kW: 2e6 J a million tokens, 0.556 kWh, times 1.1 and 431.95 g."""
    (one,) = priced(measured(energy_joules_per_token=2.0, energy_boundary="gpu"))
    assert (one["x_energy_basis"], one["x_energy_boundary"]) == ("measured", "gpu")
    assert one["x_energy_kwh_per_million_tokens"] == pytest.approx(2e6 / 3.6e6)
    assert (one["x_pue"], one["x_grid_g_co2e_per_kwh"], one["x_grid_year"]) == (1.10, 431.95, 2025)
    assert one["x_g_co2e_per_million_tokens"] == pytest.approx(2e6 / 3.6e6 * 1.10 * 431.95)
    assert one["x_grid_source"].startswith("https://") and set(one) == set(results.COSTS) - {"x_quote"}


def test_rated_power_is_modelled_and_follows_the_tokens_that_are_counted():
    """Four boards at their TDP, whatever the tokens: output tokens alone carry it all, with inputs a quarter each."""
    serves = measured(
        phase="serve", token_kind="output", system_tokens_per_s=1000.0, input_tokens=300.0, output_tokens=100.0
    )
    output, total = priced(serves)
    watts = 4 * config.load(Gpu, "h100_sxm_80gb").tdp_w
    assert output["x_energy_basis"] == total["x_energy_basis"] == "modelled"
    assert output["x_energy_kwh_per_million_tokens"] == pytest.approx(watts * 1e6 / 1000 / 3.6e6)
    assert total["x_energy_kwh_per_million_tokens"] == pytest.approx(watts * 1e6 / 4000 / 3.6e6)


def test_no_factor_no_carbon():
    (one,) = priced(measured(), "most regions", "aws")
    assert one["x_energy_kwh_per_million_tokens"] is not None
    assert one["x_g_co2e_per_million_tokens"] is one["x_grid_g_co2e_per_kwh"] is one["x_pue"] is None
    (other,) = priced(measured(), "us-central1", "aws")
    assert other["x_g_co2e_per_million_tokens"] is None, "a region is its seller's"


def test_a_cpu_has_no_rated_power():
    assert carbon.power(measured(gpu="cpu", device="cpu"), config.load_all(Gpu)) == (None, None, None)


def test_the_factor_known_on_the_day_stands(table):
    later = LINE.replace("400,2024,2026-02-24", "300,2025,2026-08")
    table(later, LINE)
    day = datetime.date
    assert grids(day(2026, 2, 23)) == {}
    assert grids(day(2026, 7, 31))["aws", "us-east-1"].g_co2e_per_kwh == 400
    assert grids(day(2026, 8, 1))["aws", "us-east-1"].g_co2e_per_kwh == 300


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("aws", "nobody", "provider: expected a key of configs/providers, got 'nobody'"),
        (",400,", ",0,", "g_co2e_per_kwh: expected a positive factor, got 0.0"),
        (",400,", ",,", "g_co2e_per_kwh: blank; every grid has one"),
        (",1.2,", ",0.9,", "pue: expected at least 1, got 0.9"),
        ("2026-02-24", "lately", "published: expected a year or a day, got 'lately'"),
        ("https://example.org/p", "a page", "pue_source: expected the full address"),
    ],
)
def test_a_factor_that_cannot_be_checked_does_not_load(table, was, now, said):
    table(LINE.replace(was, now))
    with pytest.raises(ConfigError, match=r"configs/grids\.csv line 2: ") as caught:
        carbon.listed()
    assert said in str(caught.value)


def test_one_factor_a_region_and_year(table):
    table(LINE, LINE)
    with pytest.raises(ConfigError, match="line 3: expected one factor a region and year; twice: aws, us-east-1, 2024"):
        carbon.listed()


def test_the_committed_factors_load_and_name_regions_that_are_priced():
    from bench.price.book import providers

    book = providers()
    for grid in carbon.listed():
        regions = {price.region for price in book[grid.provider].price}
        assert grid.region in regions, f"{grid.provider} sells nothing in {grid.region}"


def test_a_factor_is_of_the_regions_own_grid_and_year():
    """The source puts Azure's West US (California) on Washington's grid, and has 2023's factors for AWS in 2024 too."""
    known = grids(DAY)
    assert ("azure", "westus") not in known
    assert {grid.year for (seller, _), grid in known.items() if seller == "aws"} == {2023}


def test_a_step_is_metered_by_its_own_joules_and_a_served_point_by_its_window(tmp_path):
    """700 J for 8,192 tokens; and 0.5 J an output token of the point the cell's rate is of, not of its neighbour."""
    name = "llama_3_1_8b/train_8k/triton"
    (row,) = report_rows.measured([report_rows.trained(name)], tmp_path)
    assert row["energy_joules_per_token"] == pytest.approx(700 / 8192) and row["energy_boundary"] == "gpu"
    points = [
        serving_rows.closed(5, energy_joules_per_output_token=9.0),
        serving_rows.closed(10, energy_joules_per_output_token=0.5),
    ]
    places = serving_rows.folder(tmp_path, [serving_rows.served(point="concurrency=10")], points, True)
    (row,) = [one for one in throughput(places) if one["basis"] == "measured"]
    assert row["energy_joules_per_token"] == pytest.approx(0.5)
