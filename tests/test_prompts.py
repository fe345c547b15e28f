"""Prompts are equal where the plan says so and nowhere else, the same in any process, and forgotten in time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import config
from bench.traffic.planning import plan
from bench.traffic.prompts import Prompts
from bench.traffic.records import Planned
from bench.traffic.traffic import Traffic

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def requests():
    """Sessions of both kinds: of agents, and inside a tree that begins with a prompt shared by all."""
    return {
        key: plan(config.load(Traffic, key), 300, 0, scale=0.02, max_context=4096).requests
        for key in ("agentic", "long_chat")
    }


def alike(one, other):
    """How many tokens two prompts begin with alike."""
    both = min(len(one), len(other))
    differ = np.flatnonzero(one[:both] != other[:both])
    return int(differ[0]) if len(differ) else both


@pytest.mark.parametrize("key", ["agentic", "long_chat"])
def test_a_prompt_begins_with_what_it_shares_and_goes_on_alone(requests, key):
    prompts = Prompts(50_000, 1, requests[key])
    made = [prompts.tokens(r) for r in requests[key]]
    for r, tokens in zip(requests[key], made, strict=True):
        assert tokens.dtype == np.int32 and len(tokens) == r.input_tokens
        assert tokens.min() >= 0 and tokens.max() < 50_000
        if r.prefix_of is not None:
            # the next token may be the same by chance, once in 50,000
            assert r.shared_tokens <= alike(tokens, made[r.prefix_of]) <= r.shared_tokens + 1
    starts = [made[r.number] for r in requests[key] if r.prefix_of is None]
    assert len({tuple(tokens[:2]) for tokens in starts}) == len(starts)


def test_the_order_of_asking_and_asking_twice_change_nothing(requests):
    forward, backward = (Prompts(1000, 7, requests["agentic"]) for _ in range(2))
    first = [forward.tokens(r) for r in requests["agentic"]]
    for r in reversed(requests["agentic"]):
        assert (backward.tokens(r) == first[r.number]).all()
        assert (backward.tokens(r) == first[r.number]).all()
    assert all((forward.tokens(r) == first[r.number]).all() for r in requests["agentic"][::17])


def test_another_seed_gives_other_tokens(requests):
    one, other = (Prompts(1000, seed, requests["long_chat"]).tokens(requests["long_chat"][0]) for seed in (1, 2))
    assert (one != other).mean() > 0.9


def test_another_process_makes_the_same_tokens(requests):
    code = (
        "from bench import config; from bench.traffic.planning import plan; from bench.traffic.prompts import Prompts\n"
        "from bench.traffic.traffic import Traffic\n"
        "r = plan(config.load(Traffic, 'agentic'), 300, 0, scale=0.02, max_context=4096).requests\n"
        "print(int(Prompts(1000, 7, r).tokens(r[250]).astype('int64') @ range(1, r[250].input_tokens + 1)))"
    )
    there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    mine = requests["agentic"]
    here = Prompts(1000, 7, mine).tokens(mine[250]).astype(np.int64)
    assert int(there.stdout) == int(here @ np.arange(1, mine[250].input_tokens + 1))


@pytest.mark.parametrize("key", ["agentic", "long_chat"])
def test_only_prompts_that_somebody_still_waits_for_are_kept(requests, key):
    some = requests[key][:120]
    prompts = Prompts(1000, 1, some)
    for r in some:
        prompts.tokens(r)
        prompts.tokens(r)  # a second try makes nobody wait less
        later = {other.prefix_of for other in some[r.number + 1 :]} - {None}
        assert set(prompts.kept) == {number for number in later if number <= r.number}
    assert not prompts.kept


@pytest.mark.parametrize(
    "bad",
    [
        Planned(number=1, input_tokens=9, output_tokens=1, prefix_of=0, shared_tokens=6),  # more than request 0 has
        Planned(number=1, input_tokens=3, output_tokens=1, prefix_of=0, shared_tokens=4),  # more than it has itself
        Planned(number=1, input_tokens=9, output_tokens=1, prefix_of=7, shared_tokens=2),
        Planned(number=1, input_tokens=9, output_tokens=1, prefix_of=1, shared_tokens=2),
        Planned(number=1, input_tokens=9, output_tokens=1, shared_tokens=2),
    ],
)
def test_a_plan_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match=r"request 1: shares . tokens with .*; expected an earlier request"):
        Prompts(1000, 0, [Planned(number=0, input_tokens=5, output_tokens=1), bad])
