"""What several ranks say together, and how their communication is told from their work: on made-up spans and clocks."""

import math
import types

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from bench.measure import ranks
from bench.measure.clock import PartTimer
from bench.measure.communication import exposed, exposed_s, spans_of, union

SPANS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda s: (float(s[0]), float(sum(s)))), max_size=8
)


@given(talk=SPANS, work=SPANS)
def test_exposed_time_is_what_is_left_when_every_instant_is_looked_at(talk, work):
    def inside(spans, at):
        return any(start <= at < end for start, end in spans)

    instants = [half / 2 + 0.25 for half in range(100)]  # spans begin and end at whole numbers
    looked = sum(0.5 for at in instants if inside(talk, at) and not inside(work, at))
    assert exposed(talk, work) == pytest.approx(looked)
    assert sum(end - start for start, end in union(talk)) == pytest.approx(exposed(talk, []))


def event(name, start, end, device="CPU", annotation=False):
    span = types.SimpleNamespace(start=start, end=end)
    kind = types.SimpleNamespace(name=device)
    return types.SimpleNamespace(name=name, time_range=span, device_type=kind, is_user_annotation=annotation)


def test_on_cuda_only_kernels_count_and_nccls_are_the_communication():
    seen = [
        event("ncclDevKernel_AllGather_RING_LL", 0, 10, "CUDA"),
        event("nvjet_hsh_128x256", 4, 6, "CUDA"),
        event("nccl:all_gather", 0, 10, "CUDA", annotation=True),
        event("FSDP::all_gather", 0, 10, "CUDA", annotation=True),
        event("aten::mm", 0, 10),
    ]
    talk, work = spans_of(seen, "cuda")
    assert (talk, work) == ([(0, 10)], [(4, 6)]) and exposed(talk, work) == 8


def test_on_a_cpu_operators_compute_and_gloo_communicates():
    seen = [event("gloo:all_reduce", 0, 4), event("aten::mm", 3, 9), event("FSDP::pre_forward", 0, 9)]
    assert spans_of(seen, "cpu") == ([(0, 4)], [(3, 9)])


def test_a_step_that_does_not_communicate_has_no_exposed_time():
    assert exposed_s(lambda: torch.ones(4) + 1, "cpu") is None


@pytest.fixture
def two(monkeypatch):
    """Rank 0 of two, whose other rank says what a test puts into `told`."""
    told = {}
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda out, mine: out.__setitem__(slice(None), [mine, told["row"]]))
    monkeypatch.setattr(dist, "all_reduce", lambda x, op: x.copy_(torch.maximum(x, told["tensor"])))
    monkeypatch.setattr(dist, "broadcast", lambda x, source: None)
    return told


def test_one_row_of_two_rows(two):
    mine = {
        "status": "ok",
        "peak_memory_bytes": 5,
        "energy_joules_per_step": 2.0,
        "flags": "throttled",
        "step_s": [1.0],
    }
    mine |= {"exposed_communication_s": 0.1, "sm_clock_hz": 2e9, "temperature_c": 50.0, "throttle_reasons": "a"}
    two["row"] = mine | {"peak_memory_bytes": 7, "energy_joules_per_step": 3.0, "flags": "unsteady+throttled"}
    two["row"] |= {"exposed_communication_s": 0.3, "sm_clock_hz": 1e9, "temperature_c": 60.0, "throttle_reasons": "b"}
    assert ranks.together(mine) == {
        "status": "ok",
        "peak_memory_bytes": 7,
        "energy_joules_per_step": 5.0,
        "exposed_communication_s": pytest.approx(0.2),
        "flags": "throttled+unsteady",
        "sm_clock_hz": 1e9,
        "temperature_c": 60.0,
        "throttle_reasons": "a+b",
        "step_s": [1.0],
    }
    two["row"] |= {"energy_joules_per_step": None, "exposed_communication_s": None}
    joint = ranks.together(mine)
    assert joint["energy_joules_per_step"] is None  # one board's energy is not the deployment's
    assert joint["exposed_communication_s"] == 0.1


def test_a_sample_is_the_slowest_ranks(two):
    two["tensor"] = torch.tensor([3.0, 1.0], dtype=torch.float64)
    timer = types.SimpleNamespace(times=lambda step, samples, group: [2.0, 2.0], now=lambda: 7.5)
    shared = ranks.RankTimer(timer)
    assert shared.times(None, 2, 1) == [3.0, 2.0] and shared.now() == 7.5


def test_the_worst_error_is_the_largest_and_nan_is_worst(two):
    two["tensor"] = torch.tensor([0.25], dtype=torch.float64)
    assert ranks.worst(0.5) == 0.5 and ranks.worst(0.125) == 0.25
    assert math.isnan(ranks.worst(math.nan))
    two["tensor"] = torch.tensor([math.inf], dtype=torch.float64)  # as another rank's NaN arrives
    assert math.isnan(ranks.worst(0.1))


def test_without_a_world_nothing_is_joined():
    with ranks.joined(None, "cpu"):
        assert not dist.is_initialized()


def test_parts_of_a_step_are_timed_from_mark_to_mark(monkeypatch):
    times = iter([0.0, 100.0, 110.0, 111.0, 113.0, 123.0, 124.0, 127.0])
    monkeypatch.setattr("bench.measure.clock.now", lambda: next(times))
    parts = PartTimer(cuda=False)
    for part in ("rollout", "update"):  # warm-up, slow
        parts.mark(part)
    parts.clear()
    for part in ("rollout", "scoring", "update") * 2:
        parts.mark(part)
    # the first rollout begins where warm-up ended: 10 and 10, then 1 and 1, then 2 and 3
    assert parts.medians() == {"rollout": 10.0, "scoring": 1.0, "update": 2.5} and parts.last == "update"
