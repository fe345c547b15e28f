"""Open and closed loops against a real server, several processes, prompts as text, and events however they are cut."""

import itertools
import json
import multiprocessing
import os
import signal
from collections import Counter

import pytest

pytest.importorskip("httpx")

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.client import generator
from bench.client.address import Endpoint
from bench.client.framing import Chunked, Misframed
from bench.client.generator import Run, check, drive
from bench.client.shards import added, deal, drive_sharded, merged
from bench.client.sse import Answer, Events
from bench.client.text import WORDS, Calibration, Prompts, Uncalibrated, calibrate, shortfall
from bench.measure.clock import now
from bench.points.validity import LITTLES_LAW, in_flight_means, littles_law_ratio
from bench.points.window import Window
from bench.traffic.records import Planned
from tests.raw_server import DONE, END, HEAD, Call, RawServer, after, answer, chunk, delta


def hello(one: Planned) -> str:
    return f"hello {one.number}"


def ends(run: Run) -> dict[int, float]:
    return {record.number: record.end_s for record in run.records}


# open and closed loops


def test_an_open_loop_sends_when_due_whatever_the_server_is_doing():
    plan = [Planned(index, 4, 2, arrival_s=0.05 * index) for index in range(20)]
    with RawServer(after(0.6)) as server:
        run = drive(Endpoint(server.url, "m"), plan, hello, deadline_s=10)
        assert server.most_at_once >= 11, "0.6 s of waiting at 20 requests/s"
    assert [record.status for record in run.records] == ["ok"] * 20
    assert [record.scheduled_s for record in run.records] == [one.arrival_s for one in plan]
    late = sorted(record.sent_s - record.scheduled_s for record in run.records)
    assert late[0] >= 0 and late[10] < 0.05
    assert max(count for _, count in run.in_flight) >= 11
    assert run.unsent == 0 and not run.interrupted


def test_a_closed_loop_keeps_its_concurrency_and_never_more():
    plan = [Planned(index, 4, 2) for index in range(60)]
    with RawServer(after(0.1)) as server:
        run = drive(Endpoint(server.url, "m"), plan, hello, concurrency=5, deadline_s=20)
        assert server.most_at_once == 5
    assert len(run.records) == 60
    mean = in_flight_means(run.in_flight, Window(0.15, run.end_s - 0.15))
    assert mean is not None and 4.5 < mean[0] <= 5 and max(count for _, count in run.in_flight) == 5


def test_in_flight_is_counted_twenty_times_a_second_and_says_how_late_it_was():
    plan = [Planned(0, 4, 2, arrival_s=0.0)]
    with RawServer(after(1.0)) as server:
        run = drive(Endpoint(server.url, "m"), plan, hello, deadline_s=20)
    assert len(run.tick_lag_s) >= 20 * 0.8
    assert {count for at_s, count in run.in_flight if 0.3 < at_s < 0.9} == {1}


def test_answers_shorter_than_a_tick_are_counted_whole():
    """Little's law of a server that answers in 30 ms, in step with a count 25 times a second alone: a third off."""
    plan = [Planned(index, 4, 2, arrival_s=0.06 * index) for index in range(40)]
    with RawServer(after(0.03)) as server:
        run = drive(Endpoint(server.url, "m"), plan, hello, deadline_s=20)
    assert {record.status for record in run.records} == {"ok"}
    ratio = littles_law_ratio(run.records, run.in_flight, Window(0.1, 2.2))
    assert ratio is not None and abs(ratio - 1) < LITTLES_LAW, ratio


def test_a_later_turn_waits_for_the_one_before_and_thinks():
    plan = [
        Planned(0, 4, 2, arrival_s=0.0),
        Planned(1, 8, 2, after=0, think_s=0.3),
        Planned(2, 12, 2, after=1, think_s=0.1),
        Planned(3, 4, 2, arrival_s=0.05),
    ]
    with RawServer(after(0.1)) as server:
        run = drive(Endpoint(server.url, "m"), plan, hello, deadline_s=10)
    end_s, due_s = ends(run), {record.number: record.scheduled_s for record in run.records}
    assert sorted(due_s) == [0, 1, 2, 3]
    assert 0.3 <= due_s[1] - end_s[0] < 0.5 and 0.1 <= due_s[2] - end_s[1] < 0.3


def test_a_user_holds_the_place_while_thinking():
    plan = [Planned(0, 4, 2), Planned(1, 4, 2, after=0, think_s=0.4), Planned(2, 4, 2)]
    with RawServer(answer) as server:
        run = drive(Endpoint(server.url, "m"), plan, hello, concurrency=1, deadline_s=10)
    due_s = {record.number: record.scheduled_s for record in run.records}
    assert due_s[2] >= ends(run)[1] >= 0.4


def test_a_turn_follows_a_failed_one_too():
    async def fails_first(call: Call) -> None:
        await (
            call.send(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n") if call.body["max_tokens"] == 1 else answer(call)
        )

    plan = [Planned(0, 4, 1), Planned(1, 4, 2, after=0)]
    with RawServer(fails_first) as server:
        run = drive(Endpoint(server.url, "m"), plan, hello, concurrency=1, deadline_s=10)
    assert [record.status for record in run.records] == ["http_500", "ok"]


def test_at_the_deadline_what_is_in_flight_is_cut_and_nothing_more_is_sent():
    async def forever(call: Call) -> None:
        await (answer(call) if call.body["max_tokens"] == 1 else call.send(HEAD, *[delta(content="a")] * 3))
        if call.body["max_tokens"] > 1:
            await after(60)(call)

    plan = [Planned(0, 4, 1, arrival_s=0.0), Planned(1, 4, 9, arrival_s=0.1), Planned(2, 4, 9, arrival_s=30.0)]
    with RawServer(forever) as server:
        begin = now()
        run = drive(Endpoint(server.url, "m"), plan, hello, deadline_s=0.6)
        assert now() - begin < 3
    assert [record.status for record in run.records] == ["ok", "cut"]
    assert len(run.records[1].token_s) == 3 and run.records[1].output_tokens == 0, "seen, and not counted"
    assert run.unsent == 1 and not run.interrupted and 0.6 <= run.end_s < 2


def test_ctrl_c_keeps_what_was_measured():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    async def interrupting(call):
        """The request has been sent, so the loop runs: Ctrl-C before that is the caller's."""
        os.kill(os.getpid(), signal.SIGINT)
        await after(20)(call)

    plan = [Planned(0, 4, 2, arrival_s=0.0), Planned(1, 4, 2, arrival_s=30.0)]
    try:
        with RawServer(interrupting) as server:
            run = drive(Endpoint(server.url, "m"), plan, hello, deadline_s=15)
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.interrupted and [record.status for record in run.records] == ["cut"] and run.unsent == 1


def test_a_mistake_of_ours_is_not_taken_for_the_servers(monkeypatch):
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(generator, "stream", broken)
    with pytest.raises(ZeroDivisionError):
        drive(Endpoint("http://127.0.0.1:1/v1", "m"), [Planned(0, 1, 1, arrival_s=0.0)], hello, deadline_s=5)


@pytest.mark.parametrize(
    ("plan", "concurrency", "said"),
    [
        ([Planned(0, 1, 1)], None, "concurrency"),
        ([Planned(0, 1, 1)], 0, "concurrency"),
        ([Planned(0, 1, 1, after=3)], 1, "after"),
        ([Planned(0, 1, 1), Planned(0, 1, 1)], 1, "number"),
    ],
)
def test_a_plan_that_contradicts_itself_is_one_line(plan, concurrency, said):
    with pytest.raises(ValueError, match=said):
        check(plan, concurrency)


# several processes


def test_shards_deal_round_robin_and_keep_sessions_together():
    plan = [Planned(index, 1, 1) for index in range(6)] + [Planned(6, 1, 1, after=1), Planned(7, 1, 1, after=6)]
    shares = [[one.number for one in share] for share in deal(plan, 3)]
    assert shares == [[0, 3], [1, 4, 6, 7], [2, 5]]


def test_two_shards_are_one_run_and_one_that_dies_loses_its_requests_and_says_so():
    plan = [Planned(index, 4, 2, arrival_s=0.02 * index) for index in range(40)]

    async def kill_one(call: Call) -> None:
        if call.body["messages"][0]["content"] == "hello 30":  # the first shard sends it
            os.kill(min(child.pid for child in multiprocessing.active_children()), signal.SIGKILL)
        await after(0.2)(call)

    with RawServer(kill_one) as server:
        run = drive_sharded(Endpoint(server.url, "m"), plan, hello, shards=2, deadline_s=20)
        sent = {call.body["messages"][0]["content"] for call in server.calls}
    assert [record.number for record in run.records] == list(range(40))
    assert Counter(record.status for record in run.records) == {"ok": 20, "lost": 20}
    assert all((record.status == "ok") == (record.number % 2 == 1) for record in run.records)
    assert all(record.sent_s >= record.scheduled_s for record in run.records)
    assert {f"hello {index}" for index in range(31)} <= sent, "both sent, neither what the other did"
    assert len(run.notes) == 1 and "20 requests" in run.notes[0] and "-9" in run.notes[0]


def test_shards_in_flight_add_up():
    two = [[(0.0, 1), (1.0, 2), (2.0, 3)], [(0.1, 10), (1.5, 20)]]
    assert added(two) == [(0.0, 1), (0.1, 11), (1.0, 12), (1.5, 22), (2.0, 23)]
    assert added([]) == []
    run = merged([], {0: ("gone", [Planned(0, 5, 5)])})
    assert run.records[0].status == "lost" and run.notes


# prompts as text


def test_a_calibrated_prompt_has_the_tokens_planned():
    plan = [Planned(index, tokens, 2, arrival_s=0.0) for index, tokens in enumerate((13, 100, 101, 777))]
    with RawServer(answer) as server:
        endpoint = Endpoint(server.url, "m")
        calibration = calibrate(endpoint)
        run = drive(endpoint, plan, Prompts(plan, calibration), deadline_s=10)
    assert calibration == Calibration(overhead_tokens=11, tokens_per_word=2)
    for one, record in zip(plan, run.records, strict=True):
        assert abs(record.input_tokens - one.input_tokens) <= 1
    achieved = shortfall(plan, run.records)
    assert achieved is not None and achieved == pytest.approx((1, 1), abs=0.01)


def test_a_server_without_usage_cannot_be_calibrated():
    async def mute(call: Call) -> None:
        await call.send(HEAD, delta(content="a"), DONE, END)

    with RawServer(mute) as server, pytest.raises(Uncalibrated, match="usage"):
        calibrate(Endpoint(server.url, "m"))
    assert shortfall([Planned(0, 1, 1)], []) is None


def test_prompts_share_exactly_the_planned_beginning_and_repeat_with_the_seed():
    plan = [Planned(0, 400, 1), Planned(1, 600, 1, prefix_of=0, shared_tokens=400), Planned(2, 400, 1)]
    plan += [Planned(3, 300, 1, prefix_of=1, shared_tokens=90)]
    prompts = Prompts(plan, Calibration(10.0, 1.5))
    words = [prompts(one).split() for one in plan]
    assert [len(each) for each in words] == [260, 393, 260, 193]
    assert words[1][:260] == words[0] and words[3][:53] == words[1][:53] and words[3][53:70] != words[1][53:70]
    assert words[2][:5] != words[0][:5]
    assert prompts(plan[1]) == Prompts(plan, Calibration(10.0, 1.5))(plan[1])
    assert Prompts(plan, Calibration(10.0, 1.5), seed=1)(plan[0]) != prompts(plan[0])
    assert all(sorted(words[0][at : at + 64]) == sorted(WORDS) for at in (0, 64, 128, 192))
    with pytest.raises(ValueError, match="before"):
        Prompts([Planned(0, 4, 1, prefix_of=1, shared_tokens=4), Planned(1, 4, 1)], Calibration(0, 1))


# events and chunks, however they are cut

TEXTS = st.text(alphabet='ab"\\{}:,\n\r é日\x00"content": "x"', max_size=12)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(TEXTS, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_events_are_the_same_however_they_arrive(texts, line_end, comments, separators, places):
    values = [{"choices": [{"delta": {"content": text}, "finish_reason": None}]} for text in texts]
    wanted = [json.dumps(value, separators=separators, ensure_ascii=False).encode() for value in values]
    end = line_end.encode()
    ping = b": ping" + end + end if comments else b""
    data = b"".join(
        b"event: message" * comments + end * comments + b"data: " + one + end + end + ping for one in wanted
    )
    events = Events()
    got = [one for piece in cut(data, places) for one in events.feed(piece)] + events.end()
    assert got == wanted

    answer = Answer("chat")
    for at_s, one in enumerate(got):
        answer.read(one, float(at_s))
    assert answer.token_s == [float(at_s) for at_s, text in enumerate(texts) if text], "content, as json would find it"


def test_a_text_that_looks_like_a_key_is_not_one():
    answer = Answer("chat")
    for at_s, said in enumerate(
        [{"content": "a"}, {"other": '"content":"x"'}, {"content": "", "note": '"content": "x"'}]
    ):
        answer.read(json.dumps({"choices": [{"delta": said}]}).encode(), float(at_s))
    assert answer.token_s == [0.0] and answer.end_s == 2.0


def test_several_lines_of_data_are_one_event():
    assert Events().feed(b'data: {"a":\ndata: 1}\nid: 3\n\n') == [b'{"a":\n1}']


@settings(max_examples=80, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 10_000), max_size=12))
def test_chunks_are_the_same_however_they_arrive(parts, places):
    framed = b"".join(chunk(part) for part in parts) + b"0;last\r\ntrailer: x\r\n\r\n"
    frame = Chunked()
    assert b"".join(frame.feed(piece) for piece in cut(framed, places)) == b"".join(parts)
    assert frame.ended and not frame.surplus
    assert Chunked().feed(framed + b"more") == b"".join(parts)


@pytest.mark.parametrize("bad", [b"-1\r\n", b"0x5\r\nhello\r\n", b"\r\n", b"5\r\nhelloXX", b"1_0\r\n", b"9" * 9000])
def test_bad_chunks_are_refused(bad):
    with pytest.raises(Misframed):
        Chunked().feed(bad)
