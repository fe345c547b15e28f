"""Serve: the embedded engine under one class of traffic, a ladder of loads, each a point of the frontier.

Closed-loop points first, from few to many users; then open-loop points at shares of the requests a second that the best
of them sustained, which show what a token costs at a load that comes and goes. Every point gets requests of its own and
begins with an empty prefix cache. The cell's rate is that of its best point: the most output tokens a second among
those that are not void, and where any keeps its promises, among those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.config import load
from bench.measure.clock import now
from bench.model.subject import Subject
from bench.points.point import SLO, Point
from bench.points.search import Outcome, goodput_search
from bench.points.summarise import steady_window, summarise
from bench.serving import build as serving
from bench.serving.embedded import Course, drive
from bench.serving.weights import quantise
from bench.traffic.arrivals import scheduled
from bench.traffic.planning import plan
from bench.traffic.prompts import Prompts
from bench.traffic.records import OK, Planned, Record
from bench.traffic.traffic import Traffic

MOST_REQUESTS = 20_000  # planned for one point
SEARCHED = (0.2, 1.3)  # shares of the ladder's best that a goodput search looks between
DRAIN_S = 30.0  # that a trial may take longer than its arrivals
KEPT = 0.95  # share of requests whose promises a point must keep to count as keeping them

# runs something and answers: the board's energy between two instants of the clock, or None; further columns of the row
Watch = Callable[[Callable[[], None]], tuple[Callable[[float, float], float | None], dict[str, Any]]]


@dataclass
class Served:
    """One load point that was measured: columns of the board for the cell, and columns beside the point's own."""

    name: str
    point: Point
    course: Course
    board: dict[str, Any]
    beside: dict[str, Any]
    requests: list[dict[str, Any]]


class Serve(Subject):
    """See measure/cell.py for what these names mean."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        assert self.workload.serving is not None
        self.options = self.workload.serving
        self.traffic = load(Traffic, self.options.traffic)
        self.zipf = self.workload.routing_zipf or 0.0

    def check(self) -> tuple[float, float, str]:
        precision = self.workload.working_precision
        error, tolerance, shape = serving.served_error(self.model, self.backend, precision, self.device, self.options)
        return error, self.workload.tolerance or tolerance, shape

    def prepare(self) -> None:
        network = self.network(self.options.max_model_len)
        if self.options.quantization != "none":
            quantise(network, self.options.quantization)
        self.engine = serving.engine(network, self.options, zipf=self.zipf)

    def measure(self, seconds: float, watch: Watch) -> dict[str, Any]:
        """Every point, the ladder for as long together as `seconds`: columns of the cell's row, and `tables`."""
        self.watch, self.number = watch, 0
        served = [*self._ladder(seconds)]
        if self.options.goodput_search:
            served += self._searched(max(one.point.requests_per_s or 0.0 for one in served))
        tables: dict[str, list[dict[str, Any]]] = {"points": [], "requests": [], "steps": []}
        row: dict[str, Any] = {}
        for one in served:
            named = {"point": one.name}
            tables["points"].append(named | one.point.row() | one.beside)
            tables["requests"] += [named | request for request in one.requests]
            tables["steps"] += [named | dataclasses.asdict(step) for step in one.course.steps]
            row |= {name: value for name, value in one.board.items() if value is not None}
        best = max(served, key=lambda one: _rank(one.point))
        if best.point.output_tokens_per_s is None:
            return {"status": "error", "reason": f"no point has a steady window in {seconds:.3g} s", "tables": tables}
        return row | {
            "status": "ok",
            "point": best.name,
            **_means(best.course),
            "token_kind": "output",
            "system_tokens_per_s": best.point.output_tokens_per_s,
            "system_tokens_per_s_low": best.point.output_tokens_per_s_low,
            "system_tokens_per_s_high": best.point.output_tokens_per_s_high,
            "flags": "+".join((*best.point.flags, *(["void"] if best.point.void else []))),
            "tables": tables,
        }

    def _ladder(self, seconds: float) -> Iterator[Served]:
        o, most = self.options, 0.0
        share_s = seconds / (len(o.concurrencies) + len(o.rate_shares))
        for users in o.concurrencies:
            one = self._serve(f"concurrency={users}", MOST_REQUESTS, share_s, concurrency=users)
            most = max(most, one.point.requests_per_s or 0.0)
            yield one
        for part in o.rate_shares if most else ():
            rate = part * most
            count = min(MOST_REQUESTS, int(1.2 * rate * share_s) + 8)
            yield self._serve(f"rate={rate:.4g}", count, share_s, rate_per_s=rate)

    def _searched(self, most: float) -> list[Served]:
        """The trials of a goodput search around the requests a second that the ladder sustained."""
        trials: list[Served] = []

        def measure(rate: float, count: int) -> Point:
            name = f"rate={rate:.4g} trial={len(trials)}"
            trials.append(self._serve(name, count, 1.5 * count / rate + DRAIN_S, rate_per_s=rate))
            return trials[-1].point

        if not most:
            return []
        shortest = self.options.goodput_search
        found = goodput_search(
            measure, *(share * most for share in SEARCHED), requests=shortest, most_requests=8 * shortest
        )
        for one, trial in zip(trials, found.trials, strict=True):
            holds = trial.rate_per_s == found.rate_per_s and trial.outcome == Outcome.PASSED
            one.beside["search"] = "found" if holds else str(trial.outcome)
        return trials

    def _serve(
        self,
        name: str,
        count: int,
        deadline_s: float,
        *,
        concurrency: int | None = None,
        rate_per_s: float | None = None,
    ) -> Served:
        """One point, with requests of its own and an empty prefix cache."""
        o, number = self.options, self.number
        self.number += 1
        drawn = plan(
            self.traffic,
            count,
            100 + number,
            max_context=o.max_model_len,
            scale=o.length_scale,
            # users of a closed loop begin sessions of their own, however few requests there is time for
            sessions=concurrency,
            most_think_s=o.most_think_s,
        )
        asked = drawn.requests
        if rate_per_s is not None:
            asked = scheduled(asked, rate_per_s, o.arrivals, 200 + number, traffic=self.traffic)
        prompts = Prompts(self.model.vocab, 300 + number, asked)
        self.engine.scheduler.blocks.forget()
        course = Course()
        begun = now()

        def run() -> None:
            nonlocal course
            how = {"temperature": o.temperature, "top_p": o.top_p}
            course = drive(
                self.engine, asked, prompts.tokens, concurrency=concurrency, deadline_s=deadline_s, begin_s=begun, **how
            )

        joules, board = self.watch(run)
        window = steady_window(course.records, concurrency)
        energy = None if window is None else joules(begun + window.start_s, begun + window.end_s)
        point = summarise(
            course.records,
            course.in_flight,
            concurrency=concurrency,
            rate_per_s=rate_per_s,
            slo=SLO(o.ttft_slo_s, o.tpot_slo_s) if o.ttft_slo_s and o.tpot_slo_s else None,
            steps=course.steps,
            max_num_seqs=o.max_num_seqs,
            energy_joules=energy,
        )
        cache = self.engine.runner.cache
        beside = {
            "kv_cache_blocks": self.engine.scheduler.blocks.count,
            "kv_cache_bytes": cache.bytes,
            "clipped_share": drawn.clipped_share,
            "lost_token_share": drawn.lost_token_share,
            "ended_session_share": drawn.ended_session_share,
        }
        return Served(name, point, course, board, beside, _requests(course, asked))


def _requests(course: Course, asked: Sequence[Planned]) -> list[dict[str, Any]]:
    """Rows of requests.csv."""
    of = {one.number: one.traffic for one in asked}
    names = [field.name for field in dataclasses.fields(Record) if field.name not in ("number", "token_s")]
    return [
        {"request": one.number, "traffic": of[one.number]} | {name: getattr(one, name) for name in names}
        for one in course.records
    ]


def _means(course: Course) -> dict[str, Any]:
    """Lengths of the requests that completed."""
    done = [record for record in course.records if record.status == OK]
    count = max(1, len(done))
    return {
        "input_tokens": round(sum(record.input_tokens for record in done) / count),
        "output_tokens": round(sum(record.output_tokens for record in done) / count),
        "cached_input_tokens": sum(record.cached_tokens or 0 for record in done) / count,
    }


def _rank(point: Point) -> tuple[bool, bool, bool, float]:
    """Points with a rate first, of them those that may be believed, that keep their promises, the fastest."""
    rate, keeps = point.output_tokens_per_s, (point.slo_attainment or 0.0) >= KEPT
    return rate is not None, not point.void, keeps, rate or 0.0


build = Serve
