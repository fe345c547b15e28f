"""The ladder on a server of known behaviour, in virtual time: what it says must be what was."""

import heapq
from collections import Counter

import numpy as np
import pytest

from bench.points.course import Course, counted
from bench.points.ladder import Ladder, row, tables
from bench.traffic.dues import Dues
from bench.traffic.records import CUT, Record
from bench.traffic.seats import seated
from bench.traffic.source import source
from bench.workload import Serving

TTFT_S, TPOT_S = 0.1, 0.012
MISSING = 0.9  # share of completions that a server that loses some notes


class Paced:
    """Room for everybody: every request has its first token after 0.1 s and 12 ms a token from there on."""

    most_input_tokens = float("inf")

    def __init__(self, keeps: float = 1.0):
        self.keeps, self.asked, self.rng = keeps, [], np.random.default_rng(0)

    def serve(self, asked, seed, *, concurrency, until_s, limit_s):
        self.asked.append(asked)
        dues, course, changes, open_ = Dues(asked, concurrency), Course(), [], []
        while True:
            next_s = dues.next_s
            at_s = min(next_s if next_s is not None else np.inf, open_[0][0] if open_ else np.inf)
            waited_for = any(record.scheduled_s <= until_s for _, _, record in open_)
            if at_s > limit_s or (at_s > until_s and not waited_for) or at_s == np.inf:
                break
            if open_ and open_[0][0] <= at_s:
                end_s, _, record = heapq.heappop(open_)
                changes.append((end_s, -1))
                dues.ended(record.number, end_s)
                if self.rng.random() < self.keeps:
                    record.end_s, record.output_tokens, record.status = end_s, record.planned_output_tokens, "ok"
                    continue
            else:
                due_s, one = dues.take()
                changes.append((due_s, 1))
                record = Record(one.number, due_s, due_s, one.input_tokens, one.output_tokens, status=CUT)
                record.first_token_s = due_s + TTFT_S
                course.records.append(record)
                end_s = due_s + TTFT_S + TPOT_S * (one.output_tokens - 1)
                heapq.heappush(open_, (end_s, one.number, record))
        for _, _, record in open_:  # cut: as far as they went
            record.output_tokens = max(1, int((at_s - record.first_token_s) / TPOT_S) if at_s < limit_s + 1e9 else 1)
            record.token_s = [record.first_token_s, record.first_token_s + TPOT_S * (record.output_tokens - 1)]
        course.in_flight = counted(changes)
        return course


def climbed(key, *, keeps=1.0, load_s=60.0, **options):
    """The one point of a ladder of one load, and its server."""
    server = Paced(keeps)
    given = {"traffic": key, "max_model_len": 32768, "ttft_slo_s": 0.5, "tpot_slo_s": 0.03} | options
    served = Ladder(Serving(**given), source(key), server, load_s).climb()
    return served, server


@pytest.mark.parametrize("key", ["chat", "reasoning", "long_chat"])
@pytest.mark.parametrize("load", [{"concurrencies": (16,)}, {"rates_per_s": (2.0,), "arrivals": "poisson"}], ids=str)
def test_a_server_that_keeps_every_promise_is_said_to(key, load):
    (one,), _ = climbed(key, load_s=120.0, **load)
    assert one.point.slo_attainment == 1.0 and one.point.void == (), one.point
    assert one.point.littles_law_ratio == pytest.approx(1.0, abs=0.01)


def test_long_answers_are_not_cut_out_of_the_picture():
    """R1's answers: a mean of 1,526 tokens and a long tail, over a minute that many of them do not fit in."""
    drawn = source("reasoning").plan(50_000, 9, max_context=32768).requests
    e2e_s = TTFT_S + TPOT_S * (np.array([one.output_tokens for one in drawn]) - 1)
    users = (56, 60, 64, 68, 72)
    served, _ = climbed("reasoning", concurrencies=users, load_s=60.0 * len(users))
    rates = [one.point.requests_per_s / count for one, count in zip(served, users, strict=True)]
    medians = [one.point.e2e_s_p50 for one in served]
    lengths = [row([one], 60.0)["output_tokens"] for one in served]
    assert np.mean(rates) == pytest.approx(1 / e2e_s.mean(), rel=0.1), "what ends a second, for each user"
    assert np.mean(medians) == pytest.approx(np.median(e2e_s), rel=0.1)
    assert np.mean(lengths) == pytest.approx(np.mean([one.output_tokens for one in drawn]), rel=0.1)


def test_a_percentile_beyond_what_was_seen_is_blank():
    """Most answers are longer than the load may last."""
    (one,), _ = climbed("reasoning", concurrencies=(64,), load_s=8.0)
    assert "cut_requests" in one.point.flags and one.point.e2e_s_p95 is None
    assert one.point.ttft_s_p50 == pytest.approx(TTFT_S)


@pytest.mark.parametrize("load", [{"concurrencies": (16,)}, {"rates_per_s": (20.0,)}], ids=str)
def test_a_server_that_loses_completions_is_void(load):
    (one,), _ = climbed("chat", keeps=MISSING, **load)
    assert any(reason.startswith("littles_law") for reason in one.point.void), one.point


def test_a_closed_loop_of_a_mix_has_the_classes_shares_from_the_start():
    """Sessions of 64 turns beside single requests: who begins with first turns sees next to none of them."""
    (one,), server = climbed("agent_2026", concurrencies=(32,), load_s=60.0, most_think_s=1.0, max_model_len=131072)
    due = Counter(r.traffic for r in server.asked[0] if r.number in one.members)
    assert sum(due.values()) > 300
    assert due["agentic"] / sum(due.values()) == pytest.approx(0.53, abs=0.12), due
    assert {each["traffic"] for each in one.classes} == {"agentic", "chat", "completion", "long_chat", "reasoning"}
    whole, parts = one.point, one.classes
    for name in ("output_tokens_per_s", "input_tokens_per_s", "requests_per_s"):
        assert sum(part.get(name) or 0 for part in parts) == pytest.approx(getattr(whole, name), rel=1e-6), name


def test_seats_hold_what_is_left_of_a_request_and_the_session_after_it():
    pool = source("agentic").plan(3000, 0, max_context=131072).requests
    asked = seated(pool, 8, 400, float("inf"), 0)
    roots = [one for one in asked if one.after is None]
    assert [one.number for one in asked] == list(range(len(asked)))
    assert np.mean([one.input_tokens for one in roots[:8]]) > np.mean([one.input_tokens for one in roots[8:]])
    for one in asked:
        assert one.prefix_of is None or one.prefix_of < one.number
        assert one.input_tokens + one.output_tokens <= 131072 and one.output_tokens >= 1
        if one.prefix_of is not None:
            assert one.shared_tokens <= min(one.input_tokens, asked[one.prefix_of].input_tokens)
    few = seated(pool, 8, 400, 1e6, 0)
    assert len([one for one in few if one.after is None]) >= 8, "every seat has its first request, whatever it costs"
    assert sum(one.input_tokens for one in few) < sum(one.input_tokens for one in asked)


def test_shared_beginnings_of_separate_requests_are_kept():
    asked = seated(source("long_chat").plan(4000, 0, max_context=131072).requests, 16, 4000, float("inf"), 0)
    assert sum(one.shared_tokens for one in asked) / sum(one.input_tokens for one in asked) > 0.3


def test_open_loop_points_have_their_schedule_and_say_how_requests_came():
    served, _ = climbed("agentic", rates_per_s=(0.5,), load_s=40.0, most_think_s=1.0, max_model_len=131072)
    written = tables(served[0])
    assert written["points"][0]["arrivals"] == "poisson", "its trace tells no times"
    assert len(written["schedule"]) > 10 and written["points"][0]["offered_per_s"] > 0
