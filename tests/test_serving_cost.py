"""What a load point costs: by hand, by level of price, by loop; points that have none; what is assumed."""

from __future__ import annotations

import datetime

import pytest
import serving_rows as made

from bench import config, results
from bench.price import serving_assumptions, serving_cost
from bench.price.cost import Utilisation
from bench.price.serving_assumptions import mixes, scenarios, uses
from bench.price.serving_points import best, standing, traffic_of
from bench.traffic import mixes as sent
from bench.traffic.traffic import Traffic

SHARE = Utilisation.load().inference.value


def costs(tmp_path, points, cells=None, told=True, **given):
    """Rows of serving.csv by point and level."""
    places = made.folder(tmp_path, cells or [made.served()], points, told)
    rows = serving_cost.serving_costs(places, made.AS_OF, **{"book": made.book(), **given})
    return {(row["point"], row["level"]): row for row in rows}


def test_a_closed_loop_point_by_hand(tmp_path):
    """10 users: 1,000 output tokens/s for one GPU at 3 USD an hour, at the fleet's utilisation."""
    rows = costs(tmp_path, [made.closed(10)])
    row = rows["concurrency=10", "retail"]
    assert (row["usd_per_hour"], row["offers"], row["utilisation"]) == (3.0, 3, SHARE)
    assert row["usd_per_million_output_tokens_whole"] == pytest.approx(3.0 / 3600 * 1000 / SHARE)
    assert row["usd_per_request"] == pytest.approx(3.0 / 3600 / 100 / SHARE)
    assert row["requests_per_user_month"] == uses()["chat"].requests_per_month
    assert row["usd_per_user_month"] == pytest.approx(row["usd_per_request"] * uses()["chat"].requests_per_month)
    assert row["load_factor"] is None and row["illustrative"] is None and set(row) == set(serving_cost.COLUMNS)
    contract = rows["concurrency=10", "contract"]
    assert contract["usd_per_hour"] == 2.0, "reservations alone"
    assert contract["usd_per_request"] == pytest.approx(row["usd_per_request"] * 2 / 3)


def test_parts_make_the_bill(tmp_path):
    row = costs(tmp_path, [made.closed(10)])["concurrency=10", "retail"]
    rates = {"input": 6000.0, "cached_input": 4000.0, "output": 1000.0}
    spent = sum(row[f"usd_per_million_{kind}_tokens"] * rate / 1e6 for kind, rate in rates.items())
    assert spent == pytest.approx(3.0 / 3600 / SHARE)
    kept = 0.5 * 200 / 1000
    assert row["cached_input_share"] == pytest.approx(kept)
    assert row["input_share"] == pytest.approx((1 - kept) * 0.5) == row["output_share"]


def test_an_open_loop_point_pays_for_its_idle_time_once(tmp_path):
    points = [made.closed(10), made.opened(40.0), made.closed(99, saturated="True"), made.closed(90, void="lag")]
    row = costs(tmp_path, points)["rate=40", "retail"]
    assert row["utilisation"] == 1.0
    assert row["load_factor"] == pytest.approx(0.4), "of the 100 requests/s that concurrency 10 sustained"
    assert row["usd_per_million_output_tokens_whole"] == pytest.approx(3.0 / 3600 * 1e6 / 400)


def test_only_usable_points_cost_something(tmp_path):
    none = {"output_tokens_per_s": None, "requests_per_s": None, "window_s": None, "busy_share": None}
    rows = costs(tmp_path, [made.closed(1), made.closed(2, void="Little's law"), made.closed(3, **none)])
    assert {point for point, _ in rows} == {"concurrency=1"}


def test_a_server_that_tells_no_steps_has_a_bill_without_parts(tmp_path):
    row = costs(tmp_path, [made.closed(10)], told=False)["concurrency=10", "retail"]
    assert row["output_share"] is row["usd_per_million_output_tokens"] is row["residual"] is None
    assert row["usd_per_million_output_tokens_whole"] == pytest.approx(3.0 / 3600 * 1000 / SHARE)


def test_a_gpu_no_price_is_known_of_keeps_its_bill(tmp_path):
    rows = costs(tmp_path, [made.closed(10)], [made.served(gpu=None, device_name="unknown")])
    row = rows["concurrency=10", None]
    assert row["gpu_s_per_request"] == pytest.approx(0.01) and row["usd_per_request"] is None


def test_later_prices_were_not_known_then(tmp_path):
    places = made.folder(tmp_path, [made.served()], [made.closed(10)])
    (row,) = serving_cost.serving_costs(places, made.AS_OF - datetime.timedelta(days=1), made.book())
    assert row["level"] is None and row["gpu_s_per_request"] == pytest.approx(0.01)


def test_several_gpus_pay_together(tmp_path):
    row = costs(tmp_path, [made.closed(10, n_gpus=4)], [made.served(n_gpus=4)])["concurrency=10", "retail"]
    assert row["usd_per_request"] == pytest.approx(4 * 3.0 / 3600 / 100 / SHARE)


def test_a_cpu_is_priced_by_its_vcpus_and_marked(tmp_path):
    cell = "tiny_15m/serve_chat_tiny/reference"
    rows = costs(tmp_path, [made.closed(2, cell)], [made.on_cpu()], book=None)
    row = rows["concurrency=2", "retail"]
    assert row["illustrative"] == "yes" and row["traffic"] == "chat" and 0.01 < row["usd_per_hour"] < 1
    again = serving_cost.hourly(serving_cost.providers().values(), {"device": "cpu"}, 8)
    assert again["retail"][0] == pytest.approx(2 * row["usd_per_hour"]), "8 vCPUs for 4"


def test_prices_that_buy_no_instance_count_for_nothing():
    only = made.price(0.1, includes="gpu_only")
    book = [made.Provider(key="a", name="a", kind="neocloud", price=(only, made.price(4.0)))]
    point = {"device": "cuda", "gpu": "h100_sxm_80gb"}
    assert serving_cost.hourly(book, point, None) == {"retail": (4.0, 1)}


def test_rows_are_written_and_read(tmp_path):
    rows = list(costs(tmp_path, [made.closed(10), made.opened(40.0)]).values())
    results.write(tmp_path / "serving.csv", serving_cost.COLUMNS, rows)
    read = results.read_rows(tmp_path / "serving.csv", serving_cost.COLUMNS)
    assert [row["usd_per_request"] for row in read] == pytest.approx([r["usd_per_request"] for r in rows], rel=1e-5)


# ---------------------------------------------------------------- which point stands for a class


def test_the_best_point_keeps_its_promises_and_its_queue():
    points = [
        made.closed(1),
        made.closed(4),
        made.closed(8, slo_attainment=0.9),
        made.opened(60.0, saturated="True"),
        made.closed(9, void="client lag"),
    ]
    assert best(points)["point"] == standing(points)["point"] == "concurrency=4"
    faster = [*points, made.opened(50.0)]
    assert best(faster)["point"] == "rate=50", "the highest rate, whatever the loop"
    assert standing(faster)["point"] == "concurrency=4", "closed loop first: classes compare"


def test_where_no_promise_is_kept_the_fastest_steady_point_stands():
    points = [made.closed(4, slo_attainment=0.1), made.closed(8, slo_attainment=None)]
    assert best(points) is None and standing(points)["point"] == "concurrency=8"
    assert standing([made.closed(1, void="x")]) is None


def test_a_workload_knows_its_class():
    assert [traffic_of(name) for name in ("serve_agentic_tiny", "chat", "serve_chat")] == ["agentic", "chat", "chat"]
    assert traffic_of("no_such") == "no_such"


# ---------------------------------------------------------------- what is assumed


def test_every_class_has_a_user_and_every_mix_is_read_as_it_is_sent():
    classes = set(config.keys(Traffic))
    assert set(uses()) == classes - {"fixed_1k_1k", "lm_arena"}, "loads of benchmarks, which nobody uses by the month"
    for key, mix in mixes().items():
        assert mix.shares == {part.traffic: part.share for part in config.load(sent.Mix, key).parts}
        assert set(mix.shares) <= classes
    assert {"chat_2023", "api_2025", "agent_2026"} <= set(mixes())


def test_a_mix_costs_the_weighted_mean_or_nothing():
    mix = mixes()["chat_2023"]
    assert mix.mean({"chat": 1.0, "completion": 0.0, "other": 9.0}) == pytest.approx(mix.shares["chat"])
    assert mix.mean({"chat": 1.0}) is None


def test_scenarios_divide_the_part_they_speed_up():
    known = {one.key: one for one in scenarios()}
    assert set(known) == {"speculative_decoding", "prefill_decode_disaggregation"}
    assert known["speculative_decoding"].cost_after(10.0, 0.5, 2.0) == 7.5
    assert known["speculative_decoding"].cost_after(10.0, None, 2.0) is None
    assert known["prefill_decode_disaggregation"].cost_after(10.0, None, 2.0) == 5.0


@pytest.mark.parametrize(
    "wrong", [{"source": "a blog"}, {"factor": 0.0}, {"factor": 9.0}, {"source": "http://plain.example"}]
)
def test_a_factor_without_source_or_out_of_order_does_not_load(wrong):
    figure = {"factor": 1.1, "said": "x", "source": "https://a.b", "seen": made.AS_OF}
    with pytest.raises(ValueError):
        low = serving_assumptions.Figure(**{**figure, **wrong})
        high = serving_assumptions.Figure(**{**figure, "factor": 1.2})
        serving_assumptions.Scenario(key="k", speeds="whole", low=low, value=high, high=high, note="")
