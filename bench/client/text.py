"""Prompts as text, for a server whose tokenizer nobody here knows.

Words are short and common, so most tokenizers make one token of each; how many it really is, the server says itself:
two probes of different length give a line,

    input tokens = overhead + tokens_per_word · words,

the overhead being what the chat template adds. Each stretch of 64 words holds each of 64 words once, in an order drawn
for that stretch, so that all prompts have nearly the same tokens per word and no two begin alike unless they are
planned to. The achieved counts are in the records; `shortfall` says how far they are from the plan.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.client.address import ChatRequest, Endpoint, Timeouts
from bench.client.client import UNCOUNTED, connect, stream
from bench.measure.clock import now
from bench.traffic.records import OK, Planned, Record

SIXTY_FOUR = (
    "and air ask big boat book by call car city cold come cup day door down eat end eye far "
    "fish food from game go good hand hat hill home hot house in keep king land leaf light line "
    "long man milk name new night old on open out park rain red road room run sea ship "
    "song sun time to tree up wind"
)
WORDS = SIXTY_FOUR.split()
PROBE_WORDS = (64, 512)
PROBE_S = 300.0  # a server may load its model first


class Uncalibrated(Exception):
    """The server did not say how many tokens a probe had; why, in one line."""


@dataclass(frozen=True)
class Calibration:
    """The line from words to the tokens one server counts."""

    overhead_tokens: float
    tokens_per_word: float

    def words(self, tokens: int) -> int:
        """How many words make a prompt of about so many tokens; at least one."""
        return max(1, round((tokens - self.overhead_tokens) / self.tokens_per_word))


class Prompts:
    """The prompt of each planned request: call it with one. Can be pickled; equal seeds give equal prompts.

    Raises ValueError, one line, on a plan whose prefixes do not stand before those that use them.
    """

    def __init__(self, planned: Sequence[Planned], calibration: Calibration, seed: int = 0):
        self.words: dict[int, np.ndarray] = {}  # number -> indices of its words
        for one in sorted(planned, key=lambda one: one.number):
            count = calibration.words(one.input_tokens)
            shared = np.zeros(0, np.uint8)
            if one.prefix_of is not None and one.shared_tokens > 0:
                if one.prefix_of not in self.words:
                    raise ValueError(f"request {one.number} begins as {one.prefix_of}, which is not planned before it")
                shared = self.words[one.prefix_of][: min(count, calibration.words(one.shared_tokens))]
            self.words[one.number] = np.concatenate([shared, drawn(count - len(shared), (seed, one.number))])

    def __call__(self, one: Planned) -> str:
        return " ".join([WORDS[index] for index in self.words[one.number]])


def drawn(count: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """`count` indices into WORDS: shuffled decks of all of them, one after another."""
    random = np.random.default_rng(seed)
    decks = [random.permutation(len(WORDS)).astype(np.uint8) for _ in range(-(-count // len(WORDS)))]
    return np.concatenate([np.zeros(0, np.uint8), *decks])[:count]


def calibrate(endpoint: Endpoint, seed: int = 0) -> Calibration:
    """Ask the server for one token after each of two prompts. Raises Uncalibrated, or ValueError without a key."""
    patient = dataclasses.replace(endpoint, timeouts=Timeouts(first_token_s=PROBE_S, total_s=PROBE_S))
    return fitted(asyncio.run(_probes(patient, seed)))


def fitted(points: Sequence[tuple[int, int]]) -> Calibration:
    """The line through (words, tokens) of the shortest and the longest probe."""
    (few, tokens_few), (many, tokens_many) = min(points), max(points)
    slope = (tokens_many - tokens_few) / (many - few)
    if slope <= 0:
        raise Uncalibrated(f"{many} words counted as {tokens_many} tokens, {few} words as {tokens_few}")
    return Calibration(tokens_few - slope * few, slope)


async def _probes(endpoint: Endpoint, seed: int) -> list[tuple[int, int]]:
    points = []
    client = connect(endpoint)
    try:
        for index, count in enumerate(PROBE_WORDS):
            text = " ".join([WORDS[word] for word in drawn(count, (seed, index, 1))])
            record = await stream(client, ChatRequest(text, 1), Planned(index, count, 1), now(), now)
            if record.status != OK:
                hint = "calibration needs it" if record.status == UNCOUNTED else record.status
                raise Uncalibrated(f"{endpoint.base_url}: {record.reason} ({hint})")
            points.append((count, record.input_tokens))
    finally:
        await client.aclose()
    return points


def shortfall(planned: Sequence[Planned], records: Sequence[Record]) -> tuple[float, float] | None:
    """Achieved over planned tokens, (input, output), of the requests the server counted; None where it counted none."""
    wanted = {one.number: one for one in planned}
    pairs = [(wanted[record.number], record) for record in records if record.status == OK]

    def ratio(of: Callable[[Planned | Record], int]) -> float:
        return sum(of(record) for _, record in pairs) / max(1, sum(of(one) for one, _ in pairs))

    if not pairs:
        return None
    return ratio(lambda one: one.input_tokens), ratio(lambda one: one.output_tokens)
