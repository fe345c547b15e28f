"""How long the answers of a reinforcement-learning step are, and how they are packed to be trained on. Counts alone.

Random weights never end an answer, so its length is prescribed: answer i of n has the length at quantile (i + 1/2) / n
of the workload's evenly spaced quantiles, joined by straight lines and cut at `output_tokens`, as trainers cut answers.
Each prompt gets every n-th of them, from its own place on.

Training packs whole sequences (prompt and answer, without the last token, which predicts nothing) end to end into
micro-batches of at most `batch_size` times the longest sequence: verl advises twice at least
(github.com/volcengine/verl/blob/main/docs/perf/perf_tuning.rst). Longest first, each goes where the fewest tokens are.
"""

from __future__ import annotations

from bench.workload import Workload


def answer_tokens(w: Workload) -> list[int]:
    """Length of each answer; answer `rollout` to `prompt` is number prompt · rollouts + rollout."""
    count = w.prompts * w.rollouts
    ranked = [_quantile(w.answer_tokens_quantiles, (i + 0.5) / count) for i in range(count)]
    return [
        min(w.output_tokens, max(1, round(ranked[rollout * w.prompts + prompt])))
        for prompt in range(w.prompts)
        for rollout in range(w.rollouts)
    ]


def _quantile(known: tuple[float, ...], share: float) -> float:
    """The value at `share`, linear between known values at evenly spaced shares from 0 to 1."""
    place = share * (len(known) - 1)
    below = min(int(place), len(known) - 2)
    return known[below] + (place - below) * (known[below + 1] - known[below])


def capacity(w: Workload) -> int:
    """Most tokens of a micro-batch, padding aside."""
    return w.batch_size * (w.input_tokens + max(answer_tokens(w)) - 1)


def packed(sizes: list[int], most: int) -> list[list[int]]:
    """Numbers of the sequences in each micro-batch, in as few of about equal size as hold at most `most` tokens."""
    order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    count = -(-sum(sizes) // most)
    while True:
        found: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for number in order:
            emptiest = filled.index(min(filled))
            found[emptiest].append(number)
            filled[emptiest] += sizes[number]
        if max(filled) <= most:
            return found
        count += 1


def documents(sizes: list[int], members: list[list[int]]) -> list[list[int]]:
    """Document lengths of each micro-batch: its sequences, then padding that gives all one shape.

    Padding is documents of one token, the last one longer; none where all are alike already. One shape means that a
    compiled step is compiled once.
    """
    rows = [[sizes[number] for number in one] for one in members]
    if len({(sum(row), len(row)) for row in rows}) == 1:
        return rows
    count = max(len(row) for row in rows) + 1
    tokens = max(sum(row) + count - len(row) for row in rows)
    return [row + [1] * (count - len(row) - 1) + [tokens - sum(row) - (count - len(row) - 1)] for row in rows]


def idle_share(lengths: list[int]) -> float:
    """Share of a static batch's decoded tokens that come after their answer's end."""
    places = len(lengths) * (max(lengths) - 1)
    return 1 - sum(length - 1 for length in lengths) / places if places else 0.0
