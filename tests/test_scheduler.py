"""The engine's bookkeeping: blocks, prefix cache, scheduling. Tokens are arithmetic; test_engine.py has a model."""

import itertools
from collections import deque

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bench.serving.blocks import Blocks
from bench.serving.request import Request
from bench.serving.scheduler import Piece, Scheduler


def request(number: int, prompt: list[int] | int, max_tokens: int = 3) -> Request:
    tokens = list(range(100 * number, 100 * number + prompt)) if isinstance(prompt, int) else prompt
    return Request(number, np.array(tokens, dtype=np.int32), max_tokens)


def made(blocks: int = 20, size: int = 4, seqs: int = 4, tokens: int = 16, *, caching: bool = True) -> Scheduler:
    return Scheduler(Blocks(blocks, size, caching=caching), max_num_seqs=seqs, max_num_batched_tokens=tokens)


def next_token(owner: Request, place: int) -> int:
    """What the pretended model says: the same for the same tokens before."""
    return int(owner.tokens(0, owner.known).sum() * 31 + place) % 97


def learn(scheduler: Scheduler, pieces: list[Piece]) -> None:
    """The step has ended: its tokens are known."""
    for piece in pieces:
        if piece.samples:
            owner = piece.request
            owner.output.append(next_token(owner, owner.known))
            if owner.known == len(owner.prompt) + owner.max_tokens:
                scheduler.publish(owner)
                scheduler.finish(owner)
            elif owner.slot >= 0:
                scheduler.publish(owner)


def run(scheduler: Scheduler, limit: int = 1000) -> list[list[Piece]]:
    steps = []
    while scheduler.waiting or scheduler.running:
        steps.append(scheduler.schedule())
        learn(scheduler, steps[-1])
        assert len(steps) < limit
    return steps


def shape(pieces: list[Piece]) -> list[tuple[int, int, int]]:
    return [(piece.request.number, piece.start, piece.count) for piece in pieces]


def test_a_long_prompt_is_chunked_and_shares_steps_with_decoding():
    scheduler = made(tokens=8)
    scheduler.add(request(1, 4, max_tokens=4))
    scheduler.add(request(2, 10, max_tokens=1))
    steps = run(scheduler)
    assert [shape(pieces) for pieces in steps] == [
        [(1, 0, 4), (2, 0, 4)],
        [(1, 4, 1), (2, 4, 6)],
        [(1, 5, 1)],
        [(1, 6, 1)],
    ]
    assert [piece.decode for piece in steps[1]] == [True, False]
    assert [piece.samples for piece in steps[0]] == [True, False]


def test_running_requests_go_before_waiting_ones_and_no_more_than_max_num_seqs():
    scheduler = made(seqs=2)
    for number in (1, 2, 3):
        scheduler.add(request(number, 4, max_tokens=2))
    steps = run(scheduler)
    assert [shape(pieces) for pieces in steps] == [
        [(1, 0, 4), (2, 0, 4)],
        [(1, 4, 1), (2, 4, 1)],
        [(3, 0, 4)],
        [(3, 4, 1)],
    ]


def test_a_prefix_is_computed_once_and_the_last_token_always():
    scheduler = made()
    shared = list(range(12))
    scheduler.add(request(1, [*shared, 50, 51], max_tokens=1))
    run(scheduler)
    scheduler.add(second := request(2, [*shared, 60], max_tokens=1))
    scheduler.add(third := request(3, shared, max_tokens=1))
    assert shape(run(scheduler)[0]) == [(2, 12, 1), (3, 8, 4)]
    assert (second.cached_tokens, third.cached_tokens) == (12, 8)


def test_generated_tokens_are_found_again_too():
    scheduler = made()
    scheduler.add(first := request(1, 6, max_tokens=7))
    run(scheduler)
    turn = [*first.prompt.tolist(), *first.output, 1, 2, 3]
    scheduler.add(second := request(2, turn, max_tokens=1))
    run(scheduler)
    assert second.cached_tokens == 12, "6 + 7 tokens, the last never computed: three full blocks of 4"


def test_without_prefix_caching_nothing_is_found():
    scheduler = made(caching=False)
    for number in (1, 2):
        scheduler.add(again := request(number, list(range(12)), max_tokens=1))
        run(scheduler)
        assert again.cached_tokens == 0


def test_an_equal_block_after_another_beginning_is_another_block():
    a, b, c, d = ([number] * 4 for number in range(1, 5))
    scheduler = made(blocks=30)
    scheduler.add(request(1, [*a, *b, *a, *c, 9], max_tokens=1))
    scheduler.add(request(2, [*d, *c, 9], max_tokens=1))
    run(scheduler)
    blocks_known = {
        (*a, *c, 9): 1,  # 2 were a block known by its own tokens, or by those of one more
        (*b, *a, *c, 9): 0,  # 3, by its own tokens
        (*d, *b, *a, *c, 9): 1,  # 4, by its own tokens and its place
        (*a, *b, *a, *c, 9): 4,
    }
    for prompt, known in blocks_known.items():
        scheduler.add(asked := request(3, list(prompt), max_tokens=1))
        run(scheduler)
        assert asked.cached_tokens == 4 * known, prompt


def test_the_beginnings_of_prompts_stay_longest():
    """Freed last block first: what is evicted is the end of a prompt."""
    scheduler = made(blocks=6)
    scheduler.add(request(1, list(range(17)), max_tokens=1))  # five blocks, four of them full
    run(scheduler)
    scheduler.add(request(2, list(range(100, 111)), max_tokens=1))  # takes three: the never used, and two ends
    run(scheduler)
    scheduler.add(again := request(3, list(range(17)), max_tokens=1))
    run(scheduler)
    assert again.cached_tokens == 12


def test_where_the_cache_is_full_the_last_admitted_is_computed_again_and_ends_with_the_same_tokens():
    alone = request(2, 7, max_tokens=9)
    scheduler = made()
    scheduler.add(alone)
    run(scheduler)
    tight = made(blocks=6)
    tight.add(request(1, 8, max_tokens=9))
    tight.add(again := request(2, 7, max_tokens=9))
    steps = run(tight)
    assert tight.preemptions == again.preemptions > 0
    assert again.output == alone.output
    assert tight.blocks.available == 6 and len(steps) > 9


def test_the_preempted_wait_in_front_in_the_order_they_came():
    scheduler = made(blocks=5, seqs=3)
    for number in (1, 2, 3, 4):
        scheduler.add(request(number, 4, max_tokens=9))
    queues = []
    while scheduler.waiting or scheduler.running:
        queues.append([waiting.number for waiting in scheduler.waiting])
        learn(scheduler, scheduler.schedule())
    changes = [queue for queue, _ in itertools.groupby(queues)]
    assert changes[:4] == [[1, 2, 3, 4], [4], [3, 4], [2, 3, 4]]


@pytest.mark.parametrize("late, back", [(0, 5), (1, 5), (2, 6)])
def test_the_preempted_wait_for_the_next_step_and_for_their_last_token(late, back):
    """Step 4 preempts. Of two equal prompts the second then finds the first one's blocks, and would fit at once.

    `late`: steps on their way, their tokens unknown, when the next is planned; `back`: the step that admits it again.
    """
    scheduler = made(blocks=6, tokens=24)
    scheduler.add(request(0, 5, max_tokens=1))
    run(scheduler)
    both = [request(number, list(range(9)), max_tokens=8) for number in (1, 2)]
    for one in both:
        scheduler.add(one)
    flying: deque[list[Piece]] = deque()
    computed = []
    for step in range(back + 1):
        flying.append(scheduler.schedule())
        computed += [(step, piece.start) for piece in flying[-1] if piece.request is both[1]]
        if len(flying) > late:
            learn(scheduler, flying.popleft())
    assert computed == [(0, 4), (1, 9), (2, 10), (3, 11), (back, 12)]
    assert [one.cached_tokens for one in both] == [4, 4], "as first admitted: not the 12 found later"


@pytest.mark.parametrize("prompt, tokens", [(0, 1), (4, 0), (70, 20)])
def test_what_can_never_run_is_refused(prompt, tokens):
    with pytest.raises(ValueError, match=r"^request 1: .*; expected at least one of each, and a cache of 80 to hold"):
        made().add(request(1, prompt, tokens))


def test_blocks_refuse_a_second_free_and_more_than_there_is():
    blocks = Blocks(4, 2)
    taken = blocks.take(3)
    blocks.release(taken)
    with pytest.raises(ValueError, match="freed twice"):
        blocks.release(taken[:1])
    with pytest.raises(ValueError, match="5 blocks wanted, 4 available"):
        blocks.take(5)


class Bookkeeping(RuleBasedStateMachine):
    """Any order of requests and steps, tokens known at once or a step late: no block is lost, doubled or overdrawn."""

    @initialize(blocks=st.integers(3, 14), seqs=st.integers(1, 5), tokens=st.integers(1, 20), caching=st.booleans())
    def begin(self, blocks, seqs, tokens, caching):
        self.scheduler = made(blocks, 4, seqs, tokens, caching=caching)
        self.flying: list[list[Piece]] = []
        self.requests: list[Request] = []

    @rule(shared=st.integers(0, 3), own=st.integers(1, 14), wanted=st.integers(1, 9))
    def add(self, shared, own, wanted):
        """Prompts share up to three blocks; those too long for the cache are refused."""
        prompt = [*range(4 * shared), *(1000 + 20 * len(self.requests) + i for i in range(own))]
        new = request(len(self.requests), prompt, wanted)
        try:
            self.scheduler.add(new)
        except ValueError:
            assert len(prompt) + wanted - 1 > self.scheduler.blocks.count * 4
        else:
            self.requests.append(new)

    @precondition(lambda self: len(self.flying) < 2)
    @rule()
    def launch(self):
        ran, preemptions = list(self.scheduler.running), self.scheduler.preemptions
        pieces = self.scheduler.schedule()
        assert sum(piece.count for piece in pieces) <= self.scheduler.max_num_batched_tokens
        assert self.scheduler.preemptions == preemptions or all(piece.request in ran for piece in pieces)
        assert len({piece.request.number for piece in pieces}) == len(pieces)
        for piece in pieces:
            assert piece.start + piece.count <= 4 * len(piece.request.blocks)
            assert piece.decode or piece.start + piece.count <= piece.request.known
        self.flying.append(pieces)

    @precondition(lambda self: self.flying)
    @rule()
    def land(self):
        learn(self.scheduler, self.flying.pop(0))

    @invariant()
    def every_block_is_accounted_for(self):
        if not hasattr(self, "scheduler"):
            return
        scheduler, blocks = self.scheduler, self.scheduler.blocks
        users = [0] * blocks.count
        for owner in scheduler.running:
            assert len(set(owner.blocks)) == len(owner.blocks)
            for block in owner.blocks:
                users[block] += 1
        assert users == blocks.users
        assert blocks.available == users.count(0)
        assert not any(owner.blocks for owner in scheduler.waiting)
        assert len(scheduler.running) <= scheduler.max_num_seqs
        slots = [owner.slot for owner in scheduler.running]
        assert len(set(slots)) == len(slots) and all(0 <= slot < scheduler.max_num_seqs for slot in slots)

    @invariant()
    def who_came_first_waits_in_front(self):
        if hasattr(self, "scheduler"):
            numbers = [owner.number for owner in self.scheduler.waiting]
            assert numbers == sorted(numbers)

    @invariant()
    def the_prefix_cache_names_each_block_once(self):
        if hasattr(self, "scheduler"):
            blocks = self.scheduler.blocks
            assert {key: block for block, key in blocks._hash.items()} == blocks._block
            assert blocks.idle_prefixes == sum(not blocks.users[block] for block in blocks._hash)

    def teardown(self):
        """Everything ends, with the tokens it would have had alone."""
        if not hasattr(self, "scheduler"):
            return
        while self.flying:
            learn(self.scheduler, self.flying.pop(0))
        run(self.scheduler)
        assert self.scheduler.blocks.available == self.scheduler.blocks.count
        for ended in self.requests:
            alone = Request(ended.number, ended.prompt, ended.max_tokens)
            for place in range(len(ended.prompt), len(ended.prompt) + ended.max_tokens):
                alone.output.append(next_token(alone, place))
            assert ended.output == alone.output and len(ended.output) == ended.max_tokens


Bookkeeping.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBookkeeping = Bookkeeping.TestCase
