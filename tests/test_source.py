"""Where a load's requests come from: a class, a mix, or the lines of a trace file as they stand."""

import itertools
import json

import numpy as np
import pytest

from bench.config import ConfigError
from bench.traffic.source import source


def azure(folder, count=40, gap_s=0.5):
    """A table of requests every half second, prompts rising from 100 tokens."""
    path = folder / "azure.csv"
    at = [f"2023-11-16 18:{int(n * gap_s) // 60:02}:{n * gap_s % 60:010.7f},{100 + n},{10 + n}" for n in range(count)]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(at) + "\n")
    return path


def agents(folder, sessions=3, turns=5):
    """Sessions whose every turn repeats the one before and adds 64 tokens."""
    for session in range(sessions):
        requests = [
            {
                "t": turn,
                "type": "n",
                "in": 64 * (turn + 1),
                "out": 7,
                "hash_ids": list(range(turn + 1)),
                "think_time": 3.0,
            }
            for turn in range(turns)
        ]
        value = {"id": f"s{session}", "models": ["m"], "block_size": 64, "hash_id_scope": "local", "requests": requests}
        (folder / f"{session}.json").write_text(json.dumps(value))
    return folder


def test_a_trace_is_replayed_as_it_stands(tmp_path):
    replay = source("chat", [azure(tmp_path)])
    drawn = replay.plan(10, 0)
    assert [(one.input_tokens, one.output_tokens) for one in drawn.requests] == [(100 + n, 10 + n) for n in range(10)]
    assert {one.traffic for one in drawn.requests} == {"chat"} and not drawn.clipped
    assert replay.rate_per_s == pytest.approx(40 / 19.5)
    twice = replay.scheduled(drawn.requests, 2 * replay.rate_per_s, "trace", 0)
    assert [one.arrival_s for one in twice] == pytest.approx([n / 4 for n in range(10)])
    poisson = replay.scheduled(drawn.requests, 4.0, "poisson", 0)
    assert [one.input_tokens for one in poisson] == [one.input_tokens for one in drawn.requests]
    assert len(replay.plan(1000, 0).requests) == 40, "all there are"


def test_clipping_a_trace_is_told(tmp_path):
    drawn = source("chat", [azure(tmp_path)]).plan(40, 0, max_context=120)
    assert all(one.input_tokens + one.output_tokens <= 120 for one in drawn.requests)
    assert drawn.clipped == 34 and drawn.lost_tokens == sum(110 + 2 * n - 120 for n in range(6, 40))


def test_turns_and_prefixes_of_a_trace_are_kept(tmp_path):
    replay = source("agentic", [agents(tmp_path)])
    drawn = replay.plan(6, 0, most_think_s=1.0).requests
    assert [one.number for one in drawn] == list(range(6)) and drawn[0].after is None
    for first, second in itertools.pairwise(drawn[:5]):
        assert second.after == second.prefix_of == first.number
        assert (second.shared_tokens, second.think_s) == (first.input_tokens, 1.0)


def test_a_trace_or_a_class_without_times_arrives_as_poisson(tmp_path):
    path = tmp_path / "vidur.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n" + "72,54,126,69.85\n" * 500)
    for one in (source("batch", [path]), source("batch"), source("agentic")):
        assert one.process("trace") == "poisson" and one.process("gamma") == "gamma"
        due = [r.arrival_s for r in one.scheduled(one.plan(500, 0).requests, 2.0, "trace", 0) if r.after is None]
        gaps = np.diff(due)
        assert len(due) < 30 or (gaps.mean() == pytest.approx(0.5, rel=0.2) and 0.8 < gaps.std() / gaps.mean() < 1.2)
    assert source("chat").process("trace") == "trace"


def test_a_mix_is_known_by_its_key_and_keeps_each_class_s_bursts():
    mixed = source("chat_2023")
    drawn = mixed.plan(2000, 0)
    assert set(drawn.classes) == {"chat", "completion"}
    due = mixed.scheduled(drawn.requests, 10.0, "trace", 0)
    variation = {}
    for key in ("chat", "completion"):
        gaps = np.diff(sorted(one.arrival_s for one in due if one.traffic == key))
        variation[key] = gaps.std() / gaps.mean()
    assert variation["completion"] > 3 * variation["chat"], variation


def test_gamma_arrivals_have_their_coefficient_of_variation():
    chat = source("chat")
    due = chat.scheduled(chat.plan(20_000, 0).requests, 5.0, "gamma", 0, 3.0)
    gaps = np.diff([one.arrival_s for one in due])
    assert gaps.mean() == pytest.approx(0.2, rel=0.1) and gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.1)
    with pytest.raises(ValueError, match="expected a positive cv with gamma"):
        chat.scheduled(chat.plan(2, 0).requests, 5.0, "gamma", 0)


def test_an_unknown_one_is_one_line():
    with pytest.raises(ConfigError, match=r"^configs/traffic/chta.toml: no such config; did you mean chat\?"):
        source("chta")
