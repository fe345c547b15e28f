"""A ladder of loads on one server, each a point of its frontier, and the rows they make.

Closed-loop points first, from few to many users; then open-loop points at shares of the requests a second that the best
of them sustained, which show what a token costs at a load that comes and goes. Every point gets requests of its own.
The cell's rate is that of its best point: the most output tokens a second among those that are not void, and where any
keeps its promises, among those.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bench.points.course import Course
from bench.points.point import SLO, Point
from bench.points.search import Outcome, goodput_search
from bench.points.summarise import by_class, steady_window, summarise
from bench.points.window import members
from bench.serving_results import KEPT
from bench.traffic.records import CUT, OK, Planned, Record
from bench.traffic.seats import seated
from bench.traffic.source import Source
from bench.workload import Serving

MOST_REQUESTS = 20_000  # planned for one point
SEARCHED = (0.2, 1.3)  # shares of the ladder's best that a goodput search looks between
FASTEST_PER_S = 200.0  # requests a second that one user of a server is planned to get through at most
Tables = dict[str, list[dict[str, Any]]]


class Server(Protocol):
    """Whatever answers requests: the embedded engine, a peer's, somebody's over a network."""

    @property
    def most_input_tokens(self) -> float:
        """Of all prompts planned for one closed-loop point."""

    def serve(
        self, asked: Sequence[Planned], seed: int, *, concurrency: int | None, until_s: float, limit_s: float
    ) -> Course:
        """Send them, from an empty prefix cache where that can be had.

        The load goes on until all that was due by `until_s` has ended, so that nobody's answer is cut short and none
        ends in an emptying server; at `limit_s` what still runs is cut.
        """


@dataclass
class Served:
    """One load point that was measured; `beside`: columns of points.csv beside the point's own."""

    name: str
    point: Point
    course: Course
    asked: list[Planned]
    beside: dict[str, Any]
    classes: list[dict[str, Any]]  # of a mix: rows of classes.csv
    members: frozenset[int]  # numbers of the requests due in the window


class Ladder:
    """The loads of `options` on one server, for `seconds` together."""

    def __init__(self, options: Serving, source: Source, server: Server, seconds: float, n_gpus: int = 1):
        self.options, self.source, self.server, self.n_gpus = options, source, server, n_gpus
        self.loads = len(options.concurrencies) + len(options.rate_shares) + len(options.rates_per_s)
        self.share_s = seconds / self.loads
        self.number = 0
        self.served: list[Served] = []

    def climb(self, told: Callable[[Served], None] = lambda one: None) -> list[Served]:
        """Every point, until one is interrupted. `told` hears of each once it is whole."""
        for one in self._points():
            self.served.append(one)
            told(one)
            if one.course.interrupted:
                return self.served
        most = self._most
        for one in self._searched(most) if self.options.goodput_search and most else []:
            self.served.append(one)
            told(one)
        return self.served

    @property
    def _most(self) -> float:
        """The requests a second of the best point so far."""
        return max((one.point.requests_per_s or 0.0 for one in self.served), default=0.0)

    def _points(self) -> Iterator[Served]:
        for users in self.options.concurrencies:
            yield self._serve(f"concurrency={users}", concurrency=users)
        most = self._most
        for rate in [*(part * most for part in self.options.rate_shares if most), *self.options.rates_per_s]:
            yield self._serve(f"rate={rate:.4g}", rate_per_s=rate)

    def _searched(self, most: float) -> list[Served]:
        """The trials of a goodput search around the requests a second that the ladder sustained."""
        trials: list[Served] = []

        def measure(rate: float, count: int) -> Point:
            name = f"rate={rate:.4g} trial={len(trials)}"
            trials.append(self._serve(name, rate_per_s=rate, until_s=count / rate))
            return trials[-1].point

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
        *,
        concurrency: int | None = None,
        rate_per_s: float | None = None,
        until_s: float | None = None,
    ) -> Served:
        """One point, with requests of its own. The load may go on for as long again as its requests were counted."""
        o, number = self.options, self.number
        self.number += 1
        until_s = until_s or self.share_s
        limit_s = 2 * until_s
        how: dict[str, Any] = {"max_context": o.max_model_len, "scale": o.length_scale, "most_think_s": o.most_think_s}
        if concurrency is not None:
            count = min(MOST_REQUESTS, max(8 * concurrency, int(concurrency * limit_s * FASTEST_PER_S)))
            drawn = self.source.plan(MOST_REQUESTS, 100 + number, **how)
            asked = seated(drawn.requests, concurrency, count, self.server.most_input_tokens, 200 + number)
        else:
            assert rate_per_s is not None
            drawn = self.source.plan(min(MOST_REQUESTS, int(1.2 * rate_per_s * limit_s) + 8), 100 + number, **how)
            asked = self.source.scheduled(drawn.requests, rate_per_s, o.arrivals, 200 + number, o.arrivals_cv)
        course = self.server.serve(asked, 300 + number, concurrency=concurrency, until_s=until_s, limit_s=limit_s)
        window = steady_window(course.records, concurrency, until_s)
        slo = SLO(o.ttft_slo_s, o.tpot_slo_s) if o.ttft_slo_s and o.tpot_slo_s else None
        point = summarise(
            course.records,
            course.in_flight,
            steady=window,
            concurrency=concurrency,
            rate_per_s=rate_per_s,
            slo=slo,
            n_gpus=self.n_gpus,
            steps=course.steps,
            max_num_seqs=course.max_num_seqs,
            energy_joules=None if window is None else course.joules(window.start_s, window.end_s),
        )
        beside = course.beside | {
            "arrivals": None if rate_per_s is None else self.source.process(o.arrivals),
            "clipped_share": drawn.clipped_share,
            "lost_token_share": drawn.lost_token_share,
            "ended_session_share": drawn.ended_session_share,
        }
        of = {one.number: one.traffic for one in asked} if drawn.classes else {}
        due = frozenset(record.number for record in members(course.records, window)) if window else frozenset()
        classes = by_class(course.records, of, window, slo, self.n_gpus)
        return Served(name, point, course, asked, beside, classes, due)


def tables(one: Served) -> Tables:
    """The rows of one point, by table."""
    rows = {
        "points": [one.point.row() | one.beside],
        "classes": one.classes,
        "requests": _requests(one),
        "steps": [dataclasses.asdict(step) for step in one.course.steps],
        "schedule": [_due(each) for each in one.asked] if one.point.rate_per_s is not None else [],
    }
    return {name: [{"point": one.name, **row} for row in each] for name, each in rows.items()}


def row(served: Sequence[Served], seconds: float, *, interrupted: bool = False) -> dict[str, Any]:
    """Columns of the cell's row, from the points of its ladder, which were to have so long together."""
    if not served:
        return {"status": "error", "reason": "interrupted before any load had ended"}
    boards = [one.course.board for one in served]
    shared = {name: value for board in boards for name, value in board.items() if value is not None}
    best = max(served, key=lambda one: _rank(one.point))
    if best.point.output_tokens_per_s is None:
        when = "when it was interrupted" if interrupted else f"in {seconds:.3g} s"
        return {"status": "error", "reason": f"no point has a steady window {when}{_why(served)}"}
    flags = [*best.point.flags, *["void"] * bool(best.point.void), *["interrupted"] * interrupted]
    return shared | {
        "status": "ok",
        "point": best.name,
        **_means(best),
        "token_kind": "output",
        "system_tokens_per_s": best.point.output_tokens_per_s,
        "system_tokens_per_s_low": best.point.output_tokens_per_s_low,
        "system_tokens_per_s_high": best.point.output_tokens_per_s_high,
        "flags": "+".join(flags),
    }


def _why(served: Sequence[Served]) -> str:
    """What became of most requests, where most failed."""
    failed = [record for one in served for record in one.course.records if record.status not in (OK, CUT)]
    if 2 * len(failed) <= sum(len(one.course.records) for one in served):
        return ""
    (status, reason), count = Counter((record.status, record.reason) for record in failed).most_common(1)[0]
    return f"; {count} requests: {status}: {reason}"


def _requests(served: Served) -> list[dict[str, Any]]:
    """Rows of requests.csv."""
    of = {one.number: one.traffic for one in served.asked}
    names = [field.name for field in dataclasses.fields(Record) if field.name not in ("number", "token_s")]
    rows = []
    for one in served.course.records:
        gaps = sorted(b - a for a, b in itertools.pairwise(one.token_s))
        rows.append(
            {"request": one.number, "traffic": of[one.number]}
            | {name: getattr(one, name) for name in (*names, "ttft_s", "tpot_s", "e2e_s")}
            | {"itl_s_p50": statistics.median(gaps) if gaps else None, "itl_s_max": max(gaps, default=None)}
        )
    return rows


def _due(one: Planned) -> dict[str, Any]:
    """A row of schedule.csv."""
    names = [field.name for field in dataclasses.fields(Planned) if field.name != "number"]
    return {"request": one.number} | {name: getattr(one, name) for name in names}


def _means(served: Served) -> dict[str, Any]:
    """Mean lengths of the requests of the window; an answer that was cut counts as long as it was to be."""
    due = [record for record in served.course.records if record.number in served.members]
    done = [record for record in due if record.status in (OK, CUT)]
    count = max(1, len(done))
    given = [record.output_tokens if record.status == OK else record.planned_output_tokens for record in done]
    told = [record.cached_tokens for record in done if record.cached_tokens is not None]
    return {
        "input_tokens": round(sum(record.input_tokens for record in done) / count),
        "output_tokens": round(sum(given) / count),
        "cached_input_tokens": sum(told) / count if len(told) == len(done) else None,
    }


def _rank(point: Point) -> tuple[bool, bool, bool, float]:
    """Points with a rate first, of them those that may be believed, that keep their promises, the fastest."""
    rate, keeps = point.output_tokens_per_s, (point.slo_attainment or 0.0) >= KEPT
    return rate is not None, not point.void, keeps, rate or 0.0
