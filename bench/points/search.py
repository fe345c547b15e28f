"""Goodput search: the highest request rate at which TTFT p95 and TPOT p95 still meet the SLO.

A p95 meets its limit where at least 95% of requests do, so a trial at one rate
- passes if, for TTFT and for TPOT, the Wilson interval of attainment lies at or above 95%, and its queue does not rise;
- fails if one of the two lies below 95% altogether;
- is undecided otherwise, or where its point is void or has no window: it is measured again with twice the requests,
  up to a limit, and then counts as failed. The longer measurement stands alone; the two are not pooled.

Rates are bisected on a log scale between one that passed and one that failed. A queue starts empty and near its limit
takes long to fill, so a short trial can fail a rate but pass it wrongly: the rate the bisection ends with is
measured again with the most requests allowed, and is withdrawn if the longer trial contradicts it, with less than 95%
or a queue that rises. The search then goes on below it, with twice the requests from the start. What failed is never
tried again, so noise can misplace the answer but not make it swing; a rate whose attainment sits at 95% stays
undecided at any length, so the answer errs on the low side. (GuideLLM's goodput profile has the idea of an interval on
attainment.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from bench.points.point import Point

ATTAINMENT = 0.95
STEP = 1.04  # the bracket's ends at most this far apart in the answer
REQUESTS, MOST_REQUESTS = 512, 8192


class Outcome(StrEnum):
    """What a trial says about its rate."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate, measured once. `counted`: what the search took it for; None where a longer trial took its place.

    A rate that passed may stand again further on, where it was confirmed or not.
    """

    rate_per_s: float
    requests: int
    point: Point
    outcome: Outcome
    counted: Outcome | None
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """`rate_per_s`: the highest rate that passed; None where none did. `above_per_s`: the lowest that did not."""

    rate_per_s: float | None
    above_per_s: float | None
    reason: str
    trials: tuple[Trial, ...]


def judge(point: Point) -> tuple[Outcome, str]:
    """What one point says about its rate, and why."""
    sides = {
        "TTFT": (point.ttft_attainment_low, point.ttft_attainment_high),
        "TPOT": (point.tpot_attainment_low, point.tpot_attainment_high),
    }
    if point.void:
        return Outcome.UNDECIDED, point.void[0]
    for name, (low, high) in sides.items():
        if low is None or high is None:
            return Outcome.UNDECIDED, "+".join(point.flags) or "no SLO"
        if high < ATTAINMENT:
            return Outcome.FAILED, f"{name} SLO met by at most {high:.1%} of requests"
    if point.saturated:
        return Outcome.UNDECIDED, "the queue rises"
    for name, (low, _) in sides.items():
        if low is not None and low < ATTAINMENT:
            return Outcome.UNDECIDED, f"{name} SLO met by {low:.1%} of requests or more"
    return Outcome.PASSED, "TTFT and TPOT SLO met by 95% of requests or more"


def contradicts(point: Point) -> str | None:
    """Why a longer point at a rate that has passed takes it back; None where it does not."""
    if point.void or point.saturated:
        return judge(point)[1]
    for name, share in (("TTFT", point.ttft_attainment), ("TPOT", point.tpot_attainment)):
        if share is None or share < ATTAINMENT:
            return f"in a longer trial {name} SLO met by " + (
                "nobody knows how many" if share is None else f"{share:.1%}"
            )
    return None


def goodput_search(
    measure: Callable[[float, int], Point],
    low: float,
    high: float,
    *,
    step: float = STEP,
    requests: int = REQUESTS,
    most_requests: int = MOST_REQUESTS,
) -> Found:
    """Search between two rates, requests per second. `measure(rate_per_s, requests)` runs one open-loop point.

    Raises ValueError unless 0 < low < high and step > 1.
    """
    if not 0 < low < high or step <= 1:
        raise ValueError(f"goodput search from {low:g} to {high:g} by {step:g}; expected 0 < low < high and step > 1")
    trials: list[Trial] = []

    def passes(rate: float, count: int) -> bool:
        while True:
            point = measure(rate, count)
            outcome, reason = judge(point)
            last = outcome is not Outcome.UNDECIDED or 2 * count > most_requests
            if last and outcome is Outcome.UNDECIDED:
                reason = f"undecided after {count} requests, counted as failed: {reason}"
            counted = None if not last else Outcome.PASSED if outcome is Outcome.PASSED else Outcome.FAILED
            trials.append(Trial(rate, count, point, outcome, counted, reason))
            if last:
                return outcome is Outcome.PASSED
            count *= 2

    def stands(rate: float) -> bool:
        if 2 * max(trial.requests for trial in trials if trial.rate_per_s == rate) > most_requests:
            return True
        point = measure(rate, most_requests)
        reason = contradicts(point)
        counted = Outcome.FAILED if reason else Outcome.PASSED
        trials.append(Trial(rate, most_requests, point, judge(point)[0], counted, reason or "a longer trial agrees"))
        return reason is None

    def found(rate: float | None, above: float | None, reason: str) -> Found:
        return Found(rate, above, reason, tuple(trials))

    if not passes(low, requests):
        return found(None, low, f"the lowest rate, {low:.4g}/s, did not pass: {trials[-1].reason}")
    passed = [low]  # rates, each above the one before
    above, why = None, f"the highest rate tried, {high:.4g}/s, still passed"
    if passes(high, requests):
        passed.append(high)
    else:
        above, why = high, f"at {high:.4g}/s: {trials[-1].reason}"
    while passed:
        while above is not None and above / passed[-1] > step:
            middle = (passed[-1] * above) ** 0.5
            if passes(middle, requests):
                passed.append(middle)
            else:
                above, why = middle, f"at {middle:.4g}/s: {trials[-1].reason}"
        if stands(passed[-1]):
            return found(passed[-1], above, why)
        above = passed.pop()
        why = f"at {above:.4g}/s: {trials[-1].reason}"
        requests = min(2 * requests, most_requests)
    return found(None, above, f"the lowest rate did not pass: {why}")
