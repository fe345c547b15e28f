"""The columns of serving's CSVs are what the measuring half fills them with."""

import dataclasses

from bench import serving_results
from bench.points.point import Point
from bench.points.steps import Step


def test_a_point_has_exactly_the_columns_of_points_csv():
    fields = [field.name for field in dataclasses.fields(Point)]
    beside = {"cell", "point", "search", "kv_cache_blocks", "kv_cache_bytes"}  # what the workload adds
    beside |= {"clipped_share", "lost_token_share", "ended_session_share"}
    assert sorted(fields) == sorted(set(serving_results.POINTS) - beside)
    assert beside < set(serving_results.POINTS)


def test_a_step_has_exactly_the_columns_of_steps_csv():
    fields = [field.name for field in dataclasses.fields(Step)]
    assert sorted(fields) == sorted(set(serving_results.STEPS) - {"cell", "point"})
