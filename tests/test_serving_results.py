"""The columns of serving's CSVs are what the measuring half fills them with."""

import dataclasses

from bench import serving_results
from bench.points.point import SLO, Point
from bench.points.steps import Step
from bench.points.summarise import by_class
from bench.points.window import Window
from bench.traffic.records import Planned, Record


def test_a_point_has_exactly_the_columns_of_points_csv():
    fields = [field.name for field in dataclasses.fields(Point)]
    beside = {"cell", "point", "search", "kv_cache_blocks", "kv_cache_bytes"}  # what the workload adds
    beside |= {"clipped_share", "lost_token_share", "ended_session_share"}
    beside |= {"token_source", "input_tokens_ratio", "client_tick_lag_s_p99", "arrivals"}
    assert sorted(fields) == sorted(set(serving_results.POINTS) - beside)
    assert beside < set(serving_results.POINTS)


def test_a_step_has_exactly_the_columns_of_steps_csv():
    fields = [field.name for field in dataclasses.fields(Step)]
    assert sorted(fields) == sorted(set(serving_results.STEPS) - {"cell", "point"})


def test_the_other_tables_have_exactly_the_columns_that_are_filled():
    slo, window = SLO(1.0, 1.0), Window(0.0, 10.0)
    records = [Record(n, n, n, 8, 4, output_tokens=4, first_token_s=n + 0.1, end_s=n + 0.4) for n in range(10)]
    (of_class,) = by_class(records, dict.fromkeys(range(10), "chat"), window, slo, 1)
    # what the server did not say of these: which tokens it had cached
    cached = {name for name in serving_results.CLASSES if name.startswith("cached_input")}
    assert sorted(of_class) == sorted(set(serving_results.CLASSES) - {"cell", "point"} - cached)
    planned = {field.name for field in dataclasses.fields(Planned)} - {"number"} | {"request"}
    assert sorted(planned) == sorted(set(serving_results.SCHEDULE) - {"cell", "point"})
