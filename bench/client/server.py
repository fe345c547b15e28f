"""Anybody's server as what a ladder of loads is climbed on: its models, its way of counting, one load after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx
import numpy as np

from bench.client.address import Endpoint
from bench.client.shards import drive_sharded
from bench.client.sse import MOST_TOKENS, shown
from bench.client.text import Calibration, Prompts, calibrate, shortfall
from bench.client.transport import certificates
from bench.measure.clock import now
from bench.points.course import Course
from bench.traffic.records import OK, Planned

MOST_INPUT_TOKENS = 20_000_000  # prompts of one closed-loop point, all made beforehand: about 100 MB of text


MODELS_S, MOST_MODELS_BYTES = 30.0, 1 << 20  # that a list of models may take


class NoServer(Exception):
    """Nothing there answers as it should; one line. Exit code 1."""


@dataclass(frozen=True)
class Offer:
    """One model a server says it has."""

    name: str
    max_model_len: int | None  # vLLM and SGLang tell it; others do not


def offers(endpoint: Endpoint) -> list[Offer]:
    """What GET /models names. Raises NoServer, or ValueError without a key."""
    key, url = endpoint.key(), endpoint.base_url.rstrip("/") + "/models"
    headers = {"authorization": f"Bearer {key}"} if key else {}

    def refused(why: str) -> NoServer:
        said = shown(endpoint.masked(why))
        return NoServer(f"{url}: {said}; expected a list of models (--served-model-name NAME does without)")

    try:
        status, said = _got(url, headers, endpoint.trust_env)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise refused(f"{type(error).__name__}: {error}") from None
    if status != 200:
        raise refused(f"HTTP {status}")
    try:
        listed = [(one["id"], one.get("max_model_len")) for one in json.loads(said)["data"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise refused(f"not what was asked for: {said.decode(errors='replace')}") from None
    for name, _ in listed:
        if not isinstance(name, str) or not name.isprintable() or endpoint.masked(name) != name:
            raise refused("a model with a name that cannot be shown")
    return [
        Offer(name, length if type(length) is int and 1 < length < MOST_TOKENS else None) for name, length in listed
    ]


def _got(url: str, headers: dict[str, str], trust_env: bool) -> tuple[int, bytes]:
    """Status and body of an address. Raises httpx's errors; one that is too long, or too slow, is one of them."""
    begun, said = now(), b""
    with (
        httpx.Client(verify=certificates(), timeout=MODELS_S, trust_env=trust_env, follow_redirects=False) as client,
        client.stream("GET", url, headers=headers) as answer,
    ):
        for piece in answer.iter_bytes():
            said += piece
            if len(said) > MOST_MODELS_BYTES or now() - begun > MODELS_S:
                raise httpx.ReadTimeout(f"no end after {len(said)} bytes and {now() - begun:.0f} s")
        return answer.status_code, said


class Server:
    """An endpoint under one load after another; see points/ladder.py. `seed`: of what prompts say, in this run.

    A server keeps its prefix cache between two loads, and between two runs: prompts never repeat those of another load,
    and repeat those of an earlier run only with its seed.
    """

    most_input_tokens: float = MOST_INPUT_TOKENS

    def __init__(self, endpoint: Endpoint, seed: int, *, shards: int = 1):
        self.endpoint, self.seed, self.shards = endpoint, seed, shards
        self.calibration: Calibration = calibrate(endpoint, seed)

    def serve(
        self, asked: Sequence[Planned], seed: int, *, concurrency: int | None, until_s: float, limit_s: float
    ) -> Course:
        """One load. Raises ValueError, one line, on one that cannot be driven."""
        text: Callable[[Planned], str] = Prompts(asked, self.calibration, self.seed + seed)
        shards = self.shards if concurrency is None else min(self.shards, concurrency)
        times = {"until_s": until_s, "deadline_s": limit_s}
        run = drive_sharded(self.endpoint, asked, text, shards=shards, concurrency=concurrency, **times)
        course = Course(run.records, run.in_flight, end_s=run.end_s, interrupted=run.interrupted, notes=run.notes)
        achieved = shortfall(asked, run.records)
        course.beside = {
            "token_source": "usage" if any(record.status == OK for record in run.records) else "none",
            "input_tokens_ratio": achieved[0] if achieved else None,
            "client_tick_lag_s_p99": float(np.percentile(run.tick_lag_s, 99)) if run.tick_lag_s else None,
        }
        return course
