"""Drawn traffic is like the trace it stands for, in figures typed in here from a summary of the original files."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from bench import config
from bench.config import ConfigError
from bench.mix import Mix
from bench.traffic import planning
from bench.traffic.arrivals import PROCESSES, bent, renewals, scheduled
from bench.traffic.mixes import classes, counts, mixed
from bench.traffic.planning import plan
from bench.traffic.traffic import Traffic

# of the original files: input mean, p50, p90, p99; output likewise; sum of inputs over sum of outputs; correlation of
# the logarithms
TRACES = {
    "completion": (2047.8, 1469, 5187.6, 7436, 27.9, 13, 55, 251.5, 73.45, 0.0),
    "chat": (1154.7, 1020, 2734.5, 4142, 211.1, 129, 424, 601, 5.47, 0.09),
    "long_chat": (12035.1, 6909, 27367, 85400.4, 342.6, 350, 597, 1118.5, 35.13, 0.05),
    "agentic": (122379, 103659, 233633, 498518.7, 440.1, 216, 898, 3686.3, 278.1, 0.07),
    "batch": (2588.1, 2730, 3702, 3933.4, 291.4, 167, 372, 3271.3, 8.88, -0.49),
    "reasoning": (1261.9, 208, 2083.3, 23166.9, 1526.3, 786, 3413.3, 12516.7, 0.83, -0.3),
}
HIT_SHARES = {"long_chat": 0.3736, "agentic": 0.9632}
# requests per second; coefficient of variation of the gaps; index of dispersion over a minute. Mooncake's own 3.03 is
# of stamps rounded to 3 s, 1.01 of stamps spread inside. The summary's 20.6 for chat counts the last, unfinished
# minute; whole minutes give 16.1.
ARRIVALS = {
    "completion": (2.567, 13.15, (120, 200)),
    "chat": (5.53, 1.09, (13, 21)),
    "long_chat": (3.401, 1.01, (1.9, 3.3)),
    "reasoning": (0.667, 1.22, (10, 13)),
}
BLOCK_TOKENS = {"long_chat": 512, "agentic": 64}


def traffic(key):
    return config.load(Traffic, key)


def lengths(requests):
    return (np.array([getattr(r, f"{side}_tokens") for r in requests], dtype=float) for side in ("input", "output"))


def hit_share(requests, block_tokens):
    """Share of input tokens that an endless prefix cache of whole blocks holds already, requests in planned order."""
    cache, blocks, hits = set(), {}, 0
    for r in requests:
        first = 0 if r.prefix_of is None else r.shared_tokens // block_tokens
        own = np.arange(first, r.input_tokens // block_tokens) + r.number * 10**7
        blocks[r.number] = mine = own if r.prefix_of is None else np.concatenate((blocks[r.prefix_of][:first], own))
        # a block is held only with all before it: the first one missing is found by halving
        low, high = 0, len(mine)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if int(mine[middle]) in cache else (low, middle)
        hits += low * block_tokens
        cache.update(mine[low:].tolist())
    return hits / sum(r.input_tokens for r in requests)


@pytest.fixture(scope="module")
def drawn():
    """Enough requests of each class; sessions are long, so that there are far fewer of them than requests."""
    return {key: plan(traffic(key), 100_000 if key == "agentic" else 30_000, 1).requests for key in TRACES}


@pytest.mark.parametrize("key", TRACES)
def test_lengths_are_those_of_the_trace(drawn, key):
    inputs, outputs = lengths(drawn[key])
    target = dict(zip(("mean", 0.5, 0.9, 0.99), zip(TRACES[key][:4], TRACES[key][4:8], strict=True), strict=True))
    tolerance = {"mean": 0.03, 0.5: 0.04, 0.9: 0.04, 0.99: 0.1}
    for figure, wanted in target.items():
        got = [float(side.mean() if figure == "mean" else np.quantile(side, figure)) for side in (inputs, outputs)]
        assert got == pytest.approx(list(wanted), rel=tolerance[figure]), (key, figure)
    assert inputs.sum() / outputs.sum() == pytest.approx(TRACES[key][8], rel=0.05)


@pytest.mark.parametrize("key", TRACES)
def test_long_inputs_go_with_long_or_short_outputs_as_in_the_trace(drawn, key):
    inputs, outputs = lengths(drawn[key])
    assert np.corrcoef(np.log(inputs), np.log(outputs))[0, 1] == pytest.approx(TRACES[key][9], abs=0.07)


@pytest.mark.parametrize("key", HIT_SHARES)
def test_an_endless_cache_finds_what_it_finds_of_the_trace(drawn, key):
    found = hit_share(drawn[key][:15_000], BLOCK_TOKENS[key])
    assert found == pytest.approx(HIT_SHARES[key], rel=0.05)
    assert 1 - found == pytest.approx(1 - HIT_SHARES[key], rel=0.1)


def test_classes_without_sessions_share_nothing(drawn):
    for key in set(TRACES) - set(HIT_SHARES):
        assert all(r.prefix_of is None and not r.shared_tokens and r.after is None for r in drawn[key])


@pytest.mark.parametrize("key", HIT_SHARES)
def test_a_turn_names_an_earlier_one_and_shares_no_more_than_both_have(drawn, key):
    requests = drawn[key][:20_000]
    for r in requests:
        for other in (r.prefix_of, r.after):
            assert other is None or other < r.number
        if r.prefix_of is not None:
            assert 0 < r.shared_tokens <= min(requests[r.prefix_of].input_tokens, r.input_tokens - 1)
    assert all(r.number == i for i, r in enumerate(requests))


def test_agents_wait_for_answers_and_think(drawn):
    later = [r for r in drawn["agentic"] if r.after is not None]
    think = np.array([r.think_s for r in later])
    assert np.quantile(think, [0.5, 0.9]) == pytest.approx([10, 162], rel=0.08)
    turns = np.array(list(Counter(r.session for r in drawn["agentic"]).values()))
    # the trace's 773 sessions: 63.8 turns on average, 39 in the middle
    assert turns.mean() == pytest.approx(63.8, rel=0.05) and np.median(turns) == pytest.approx(39, rel=0.35)
    assert max(r.think_s for r in plan(traffic("agentic"), 2000, 1, most_think_s=5).requests) == 5


@pytest.mark.parametrize("key", ARRIVALS)
def test_arrivals_are_as_uneven_as_the_traces(key):
    rate, cv, (least, most) = ARRIVALS[key]
    one = traffic(key)
    assert one.arrivals.rate_per_s == pytest.approx(rate, rel=0.003)
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        times = bent(renewals(one.requests, one.arrivals.cv, rng), one.arrivals, rng.random())
        gaps = np.diff(times)
        minutes = np.histogram(times, np.arange(0, times[-1], 60))[0]
        found.append((gaps.std() / gaps.mean(), minutes.var() / minutes.mean()))
    means = np.mean(found, axis=0)
    assert means[0] == pytest.approx(cv, rel=0.1 if cv > 2 else 0.04)
    assert least <= means[1] <= most


@pytest.mark.parametrize(("process", "key", "cv"), [("poisson", "chat", None), ("gamma", "chat", 4.0)])
def test_renewals_have_the_rate_and_the_unevenness_asked_for(process, key, cv):
    requests = plan(traffic(key), 40_000, 2).requests
    times = np.array([r.arrival_s for r in scheduled(requests, 50.0, process, 3, cv=cv)])
    gaps = np.diff(times)
    assert len(times) / times[-1] == pytest.approx(50, rel=0.05 * (cv or 0.3))
    assert gaps.std() / gaps.mean() == pytest.approx(cv or 1.0, rel=0.05) and (gaps >= 0).all()


@pytest.mark.parametrize(("process", "cv"), [("poisson", None), ("gamma", 5.0), ("trace", None)])
def test_the_rate_is_met_on_average_in_any_stretch_even_the_first_second(process, cv):
    """Counted in the first second and over all seeds; an ordinary first gap would miss it by half at cv 5."""
    one = traffic("completion")
    requests = plan(one, 80, 0).requests
    bursts = one if process == "trace" else None
    early = []
    for seed in range(400):
        times = [r.arrival_s for r in scheduled(requests, 8.0, process, seed, traffic=bursts, cv=cv)]
        early.append(sum(t < 1.0 for t in times))
    spread = np.std(early) / len(early) ** 0.5
    assert np.mean(early) == pytest.approx(8.0, abs=4 * spread) and spread < 1.5


def test_another_rate_stretches_the_clock_and_nothing_else():
    one = traffic("completion")
    requests = plan(one, 3000, 0).requests
    slow, fast = (
        np.array([r.arrival_s for r in scheduled(requests, rate, "trace", 5, traffic=one)]) for rate in (1.0, 20.0)
    )
    assert slow == pytest.approx(20 * fast)


def test_later_turns_of_a_closed_loop_get_no_time_of_their_own():
    found = scheduled(plan(traffic("agentic"), 500, 0).requests, 2.0, "poisson", 0)
    assert all((r.arrival_s is None) == (r.after is not None) for r in found)
    assert 1 < sum(r.after is None for r in found) < 100


@pytest.mark.parametrize(
    ("process", "arguments"),
    [
        ("posson", {}),
        ("gamma", {}),
        ("poisson", {"cv": 2.0}),
        ("trace", {}),
        ("poisson", {"traffic": "chat"}),
        ("trace", {"traffic": "batch"}),
    ],
)
def test_a_process_that_cannot_be_had_says_so(process, arguments):
    if "traffic" in arguments:
        arguments = arguments | {"traffic": traffic(arguments["traffic"])}
    with pytest.raises(ValueError, match=r"expected|says nothing of arrivals"):
        scheduled(plan(traffic("chat"), 3, 0).requests, 1.0, process, 0, **arguments)
    assert process in PROCESSES or process == "posson"


# ---------------------------------------------------------------- fitting into a model


def test_a_seed_gives_one_plan_and_another_seed_another():
    one = traffic("long_chat")
    assert plan(one, 300, 4) == plan(one, 300, 4)
    assert plan(one, 300, 4).requests != plan(one, 300, 5).requests


@pytest.mark.parametrize("key", TRACES)
@pytest.mark.parametrize("count", [1, 7, 400])
def test_a_plan_has_as_many_requests_as_asked_for_and_fits_the_context(key, count):
    found = plan(traffic(key), count, 0, max_context=256, scale=0.02)
    assert len(found.requests) == count
    for r in found.requests:
        assert r.input_tokens >= 1 and r.output_tokens >= 1 and r.input_tokens + r.output_tokens <= 256
        assert r.shared_tokens < r.input_tokens


def test_the_longer_length_gives_way_but_not_below_half_of_the_context():
    inputs, outputs = np.array([90, 900, 10, 900, 51]), np.array([10, 20, 900, 900, 50])
    got = planning.clipped(inputs, outputs, 100)
    assert [side.tolist() for side in got] == [[90, 80, 10, 50, 50], [10, 20, 90, 50, 50]]


def test_what_does_not_fit_is_counted():
    free = plan(traffic("reasoning"), 5000, 0)
    tight = plan(traffic("reasoning"), 5000, 0, max_context=4096)
    assert (free.clipped_share, free.lost_token_share, free.ended_session_share) == (0, 0, 0)
    whole = sum(r.input_tokens + r.output_tokens for r in free.requests)
    left = sum(r.input_tokens + r.output_tokens for r in tight.requests)
    assert tight.lost_token_share == pytest.approx(1 - left / whole)
    over = sum(r.input_tokens + r.output_tokens > 4096 for r in free.requests)
    assert tight.clipped_share == pytest.approx(over / 5000) and over > 100


def test_a_turn_that_would_pass_the_context_ends_its_session():
    free, tight = (plan(traffic("agentic"), 20_000, 0, max_context=most) for most in (None, 131_072))
    assert free.ended_session_share == 0 and 0.3 < tight.ended_session_share < 1
    first = [r for r in tight.requests if r.after is None]
    turns = Counter(r.session for r in tight.requests)
    # only first turns are ever clipped, and nothing follows them
    assert all(turns[r.session] == 1 for r in first if r.input_tokens + r.output_tokens == 131_072)
    assert tight.clipped == sum(r.input_tokens + r.output_tokens == 131_072 for r in first) > 0


def test_nothing_follows_a_clipped_prompt_not_even_a_cut_one_that_would_fit():
    """It would begin with tokens that were clipped away."""
    known = traffic("agentic").sessions
    every = tuple(1.0 for _ in known.cut_share)
    one = broken("agentic", sessions=dataclasses.replace(known, cut_share=every, end_share=(0.0,) * len(every)))
    requests = plan(one, 2000, 0, max_context=40_000).requests
    for r in requests:
        assert r.prefix_of is None or r.shared_tokens <= requests[r.prefix_of].input_tokens
        if r.after is not None:
            before = requests[r.after]
            assert before.after is not None or before.input_tokens + before.output_tokens < 40_000


def test_scaled_lengths_keep_their_shape():
    whole, small = (plan(traffic("long_chat"), 4000, 0, scale=scale).requests for scale in (1.0, 0.01))
    for full, tiny in zip(whole, small, strict=True):
        assert tiny.input_tokens == pytest.approx(full.input_tokens / 100, abs=0.51)
        assert tiny.shared_tokens <= full.shared_tokens / 100
    assert hit_share(small, 1) == pytest.approx(hit_share(whole, 512), rel=0.03)


# ---------------------------------------------------------------- mixes


@pytest.mark.parametrize("key", config.keys(Mix))
def test_a_mix_is_its_classes_plans_in_another_order(key):
    mix = config.load(Mix, key)
    found = mixed(mix, 1000, 3, max_context=32_768)
    assert [r.number for r in found.requests] == list(range(1000))
    wanted = counts([part.share for part in mix.parts], 1000)
    tally = Counter(r.traffic for r in found.requests)
    assert [tally[part.traffic] for part in mix.parts] == wanted and sum(wanted) == 1000
    for part in mix.parts:
        alone = plan(traffic(part.traffic), tally[part.traffic], 3, max_context=32_768)
        mine = [r for r in found.requests if r.traffic == part.traffic]
        assert [r.input_tokens for r in mine] == [r.input_tokens for r in alone.requests]
        place = {r.number: i for i, r in enumerate(mine)}
        links = [(r.prefix_of if r.prefix_of is None else place[r.prefix_of], r.shared_tokens) for r in mine]
        assert links == [(r.prefix_of, r.shared_tokens) for r in alone.requests]
        assert found.classes[part.traffic] == alone
    classes = {}
    for r in found.requests:
        assert classes.setdefault(r.session, r.traffic) == r.traffic
        assert r.after is None or found.requests[r.after].session == r.session
    assert found.clipped == sum(one.clipped for one in found.classes.values()) > 0 or key == "chat_2023"


def test_a_mix_keeps_each_classes_own_bursts_at_its_share_of_the_rate():
    mix = config.load(Mix, "chat_2023")
    found = scheduled(mixed(mix, 28_185, 0).requests, 8.0, "trace", 0, traffic=classes(mix))
    for key, rate, least, most in (("chat", 5.52, 1.0, 1.15), ("completion", 2.48, 9, 15)):
        times = np.array([r.arrival_s for r in found if r.traffic == key])
        assert (np.diff(times) >= 0).all() and len(times) / times[-1] == pytest.approx(rate, rel=0.15)
        assert least < np.diff(times).std() / np.diff(times).mean() < most


@pytest.mark.parametrize(
    ("key", "inputs", "outputs", "most"), [("api_2025", 7600, 496, 0.06), ("agent_2026", 66_800, 461, 0.06)]
)
def test_what_the_files_of_the_mixes_say_of_them_is_so(key, inputs, outputs, most):
    mix = config.load(Mix, key)
    rows = [(part.share, TRACES[part.traffic]) for part in mix.parts]
    assert sum(share * row[0] for share, row in rows) == pytest.approx(inputs, rel=most)
    assert sum(share * row[4] for share, row in rows) == pytest.approx(outputs, rel=most)


# ---------------------------------------------------------------- the files


def broken(key, **changed):
    one = traffic(key)
    parts = {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}
    return Traffic(**(parts | changed))


def test_a_class_that_contradicts_itself_is_refused():
    chat, agents = traffic("chat"), traffic("agentic")
    with pytest.raises(ValueError, match="shares: expected rising from 0 to 1"):
        broken("chat", shares=chat.shares[:-1])
    with pytest.raises(ValueError, match="output_tokens: expected a row for each of"):
        broken("chat", output_tokens=chat.output_tokens[1:])
    with pytest.raises(ValueError, match="input_tokens: expected 26 rising numbers"):
        broken("chat", input_tokens=chat.input_tokens[::-1])
    with pytest.raises(ValueError, match=r"sessions\.end_share: expected one for each of"):
        broken("agentic", sessions=dataclasses.replace(agents.sessions, end_share=(0.5,)))
    with pytest.raises(ValueError, match="relative_rates: expected rates of mean 1"):
        dataclasses.replace(chat.arrivals, relative_rates=(1.0, 2.0))


def test_a_mix_whose_shares_do_not_sum_to_one_is_refused():
    mix = config.load(Mix, "api_2025")
    with pytest.raises(ValueError, match=r"parts: expected shares that sum to 1, got 0\.59"):
        dataclasses.replace(mix, parts=mix.parts[1:])
    with pytest.raises(ConfigError, match="did you mean api_2025"):
        config.load(Mix, "api_2026")


def test_fixed_lengths_are_exact_and_published_ones_come_out():
    for scale, length in ((1.0, 1024), (1 / 32, 32)):
        made = plan(traffic("fixed_1k_1k"), 50, 3, scale=scale, max_context=2 * length)
        sizes = {(r.input_tokens, r.output_tokens, r.shared_tokens) for r in made.requests}
        assert sizes == {(length, length, 0)} and made.clipped_share == 0
    inputs, outputs = lengths(plan(traffic("lm_arena"), 30_000, 1, max_context=8192).requests)
    assert outputs.mean() == pytest.approx(395.54, rel=0.02) and outputs.max() <= 4096  # ml-energy/leaderboard 0cd52da
    assert inputs.mean() == pytest.approx(2 * 69.5 + 214.5, rel=0.03)  # two turns on average, the answers between them
