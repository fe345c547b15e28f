"""Serve: an engine in this process under one class of traffic or one mix: the ladder of points/ladder.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from bench.measure.clock import now
from bench.model.subject import Subject
from bench.peers.serve import found as peers
from bench.points.course import Course
from bench.points.ladder import Ladder, row, tables
from bench.serving import build as serving
from bench.serving.embedded import Driven, drive
from bench.serving.weights import quantise
from bench.traffic.prompts import Prompts
from bench.traffic.records import Planned
from bench.traffic.source import source

# runs something and answers: the board's energy between two instants of the clock, or None; further columns of the row
Watch = Callable[[Callable[[], None]], tuple[Callable[[float, float], float | None], dict[str, Any]]]


class Serve(Subject):
    """See measure/cell.py for what these names mean, and points/ladder.py for a server's."""

    most_input_tokens = math.inf
    engine: Driven

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        assert self.workload.serving is not None
        self.options = self.workload.serving
        self.source = source(self.options.traffic)
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
        """Every point: columns of the cell's row, and `tables`."""
        self.watch = watch
        served = Ladder(self.options, self.source, self, seconds).climb()
        taken = [tables(one) for one in served]
        return row(served, seconds) | {"tables": {name: [r for one in taken for r in one[name]] for name in taken[0]}}

    def serve(
        self, asked: Sequence[Planned], seed: int, *, concurrency: int | None, until_s: float, limit_s: float
    ) -> Course:
        """One load, from an empty prefix cache."""
        o, course = self.options, Course()
        prompts = Prompts(self.model.vocab, seed, asked)
        self.engine.begin()
        begun = now()

        def run() -> None:
            nonlocal course
            times = {"until_s": until_s, "limit_s": limit_s, "begin_s": begun}
            how = {"temperature": o.temperature, "top_p": o.top_p, **times}
            course = drive(self.engine, asked, prompts.tokens, concurrency=concurrency, **how)

        joules, board = self.watch(run)
        course.joules = lambda start_s, end_s: joules(begun + start_s, begun + end_s)
        course.board = board
        blocks, cache_bytes = self.engine.cache_size
        course.beside = {"token_source": "engine", "kv_cache_blocks": blocks, "kv_cache_bytes": cache_bytes}
        return course


class PeerServe(Serve):
    """The same load on another project's engine (bench/peers/serve)."""

    def check(self) -> tuple[float, float, str]:
        file = peers.peer(self.backend)
        error, tolerance, shape = file.check(self.model, self.workload, self.device)
        return error, self.workload.tolerance or tolerance, shape

    def prepare(self) -> None:
        file = peers.peer(self.backend)
        self.engine = self.peer = file.build(self.model, self.workload, self.device, self.layers)

    def measure(self, seconds: float, watch: Watch) -> dict[str, Any]:
        """The other project's version and settings beside what Serve measures; its threads end in any case."""
        try:
            return super().measure(seconds, watch) | {"ops_ran": self.ops_ran()}
        finally:
            self.engine.clear()

    def ops_ran(self) -> str | None:
        return str(self.peer.described()) if hasattr(self, "peer") else None


def build(backend: str, **arguments: Any) -> Serve:
    """Ours, or with backend `peer:<name>` another project's."""
    kind = PeerServe if backend.startswith("peer:") else Serve
    return kind(backend=backend, **arguments)
