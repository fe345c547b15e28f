"""Measure somebody's server: the loads of a serve workload against an OpenAI-compatible endpoint, as one run folder.

    python -m bench run --endpoint http://127.0.0.1:8000/v1 --gpu h100_sxm_80gb --num-gpus 8 --workload chat

The engine is theirs; traffic, client, statistics and money are those of our own engine's cells. What a server runs on
cannot be seen from here: GPU, number and precision are as the user says. No torch, no worker process. Every call starts
a run folder of its own, for an address does not say which server, with which options, answers behind it today. Points
are written as they come; Ctrl-C keeps them, and what the one under way has shown.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench import config, plan
from bench.architecture import Model
from bench.client.address import Endpoint
from bench.client.server import NoServer, Offer, Server, offers
from bench.config import ConfigError, Gpu
from bench.journal import Journal
from bench.measure import device
from bench.mix import Mix
from bench.plan import Cell
from bench.points.ladder import Ladder, Served, row, tables
from bench.run import commit
from bench.traffic.source import Replay, Source, source
from bench.traffic.traffic import Traffic
from bench.workload import Serving, Workload

NAME = "endpoint"  # of the suite, and of the backend
# what of a serve workload is about its requests, and not about our engine
LOADS = (
    *("traffic", "max_model_len", "length_scale", "concurrencies", "rate_shares", "rates_per_s", "arrivals"),
    *("arrivals_cv", "most_think_s", "goodput_search", "ttft_slo_s", "tpot_slo_s"),
)
CONTEXT_SHARE = 0.97  # of the server's context: prompts of words come out a little longer or shorter than planned
CONCURRENCIES, RATE_SHARES = (1, 4, 16, 64), (0.3, 0.6, 0.8)  # of traffic that no workload describes


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for. `gpu`: a key of configs/gpus, or cpu. `model`: a key of configs/models.

    Concurrencies or rates, where given, stand in the place of the workload's own loads.
    """

    gpu: str
    num_gpus: int = 1
    workload: str = "chat"
    served_model_name: str | None = None
    model: str | None = None
    precision: str | None = None
    concurrencies: tuple[int, ...] = ()
    rates_per_s: tuple[float, ...] = ()
    trace: tuple[Path, ...] = ()
    load_s: float = 60.0  # of one load
    max_model_len: int | None = None
    shards: int = 1


class Listener(Protocol):
    """Who is told how it goes."""

    def say(self, text: str) -> None: ...

    def point(self, one: Served) -> None: ...


def address(url: str, *, completions: bool, api_key_env: str | None, extra_body: str) -> Endpoint:
    """The server, its model not known yet. Raises ConfigError."""
    try:
        extra = json.loads(extra_body)
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise ConfigError(f"--extra-body: expected a JSON object, got {extra_body!r}")
    try:
        there = Endpoint(url, "", "completions" if completions else "chat", api_key_env, extra=extra)
        there.key()
    except ValueError as error:
        raise ConfigError(f"--endpoint: {error}") from None
    return there


def run(endpoint: Endpoint, asked: Asked, out: Path, listener: Listener) -> tuple[Path, dict[str, Any], bool]:
    """Measure into `out`/runs: the run folder, the cell's row, whether Ctrl-C ended it.

    Raises ConfigError, NoServer, Uncalibrated, JournalError.
    """
    if asked.gpu != "cpu":
        config.load(Gpu, asked.gpu)
    if asked.precision not in (None, *config.PRECISIONS):
        raise ConfigError(f"--precision: expected one of {', '.join(config.PRECISIONS)}, got {asked.precision!r}")
    model = config.load(Model, asked.model) if asked.model else None
    requests = source_of(asked)
    try:
        offer = offer_of(endpoint, asked)
        endpoint = dataclasses.replace(endpoint, model=offer.name)
        workload = chosen(asked, offer, requests)
        assert workload.serving is not None
        cell = cell_of(workload, model, offer.name, asked)
        loads = len(workload.serving.concurrencies + workload.serving.rate_shares + workload.serving.rates_per_s)
        seconds = asked.load_s * loads
        listener.say(f"{endpoint.base_url}: {offer.name} on {asked.num_gpus} x {asked.gpu}, as you say")
        about = f"{loads} loads of {asked.load_s:g} s, about {seconds / 60:.2g} min"
        listener.say(f"{workload.key}: {about}, context {workload.serving.max_model_len:,}")
        seed = secrets.randbits(31)
        server = Server(endpoint, seed, shards=asked.shards)
        facts = facts_of(endpoint, asked, workload, cell, seed)
        with Journal.open(out / "runs", facts, fresh=True) as journal:
            started = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
            ladder = Ladder(workload.serving, requests, server, seconds, asked.num_gpus)
            interrupted = climb(ladder, journal, cell, listener)
            known = {name: value for name, value in facts.items() if name in ("suite", "device", "gpu", "device_name")}
            answer = cell.columns() | known | {"run": journal.folder.name, "started_at": started}
            answer |= {"model": model.key if model else plain(offer.name), "precision": asked.precision}
            answer |= row(ladder.served, seconds, interrupted=interrupted)
            journal.append(answer, [])
    except ValueError as error:  # an address, a key or a plan that cannot be driven
        raise ConfigError(str(error)) from None
    return journal.folder, answer, interrupted


def climb(ladder: Ladder, journal: Journal, cell: Cell, listener: Listener) -> bool:
    """Every load, each written once it is whole. Whether Ctrl-C ended it."""

    def told(one: Served) -> None:
        journal.beside(cell.key, tables(one))
        listener.point(one)

    try:
        ladder.climb(told)
    except KeyboardInterrupt:
        return True
    return any(one.course.interrupted for one in ladder.served)


def source_of(asked: Asked) -> Source:
    """The trace files, or the traffic of the workload. Raises ConfigError."""
    serving = described(asked.workload).serving
    assert serving is not None
    return source(serving.traffic, asked.trace)


def described(key: str) -> Workload:
    """The serve workload of that key, or of that traffic. Raises ConfigError."""
    known = {name: one for name, one in config.load_all(Workload).items() if one.serving}
    found = known.get(key) or known.get(f"serve_{key}")
    if found is not None:
        return found
    traffic = [*config.keys(Traffic), *config.keys(Mix)]
    if key not in traffic:
        raise ConfigError(f"--workload: no {key!r}; expected one of {', '.join([*traffic, *known])}")
    options = Serving(traffic=key, max_model_len=1 << 17, concurrencies=CONCURRENCIES, rate_shares=RATE_SHARES)
    return Workload(key=key, phase="serve", precision="bf16", serving=options, source=f"the traffic {key} by itself")


def chosen(asked: Asked, offer: Offer, requests: Source) -> Workload:
    """The workload with the context of the server and the loads that are asked for. Raises ConfigError."""
    found = described(asked.workload)
    assert found.serving is not None
    changes: dict[str, Any] = {}
    context = min((n for n in (asked.max_model_len, offer.max_model_len) if n), default=None)
    if context:
        changes["max_model_len"] = max(2, min(found.serving.max_model_len, int(CONTEXT_SHARE * context)))
    if asked.concurrencies or asked.rates_per_s:
        changes |= {"concurrencies": asked.concurrencies, "rates_per_s": asked.rates_per_s, "rate_shares": ()}
    elif isinstance(requests, Replay) and requests.rate_per_s:  # its own pace is the load
        changes |= {"concurrencies": (), "rates_per_s": (requests.rate_per_s,), "rate_shares": ()}
    return dataclasses.replace(found, serving=dataclasses.replace(found.serving, **changes))


def offer_of(endpoint: Endpoint, asked: Asked) -> Offer:
    """The model to ask for, and its context where the server tells it. Raises NoServer, ConfigError."""
    name = asked.served_model_name
    try:
        there = offers(endpoint)
    except NoServer:
        if name is None:
            raise
        return Offer(name, None)
    if name is None and len(there) != 1:
        names = ", ".join(one.name for one in there) or "none"
        raise ConfigError(f"--served-model-name: expected one of the server's models: {names}")
    return next((one for one in there if name in (None, one.name)), Offer(name or "", None))


def plain(served: str) -> str:
    """A served model's name without whose it is, or where it lies."""
    return served.rstrip("/").rpartition("/")[2]


def cell_of(workload: Workload, model: Model | None, served: str, asked: Asked) -> Cell:
    """What is measured, as a suite would name it."""
    key = f"{model.key if model else plain(served)}/{workload.key}/{NAME}"
    layers = model.layers if model else None
    return Cell(key, workload, NAME, model, layers, asked.load_s, 0.0, 0.0, n_gpus=asked.num_gpus)


def facts_of(endpoint: Endpoint, asked: Asked, workload: Workload, cell: Cell, seed: int) -> dict[str, Any]:
    """environment.json: what the server is said to be, how it was spoken to, and the client's machine."""
    on_cpu = asked.gpu == "cpu"
    client = {"cpu_name": device.cpu_name(), "cpu_count": device.cpu_count(), "memory_bytes": device.cpu_memory_bytes()}
    return {
        "suite": NAME,
        "gpu": asked.gpu,
        "device": "cpu" if on_cpu else "cuda",
        "device_name": "as the user says: " + (asked.gpu if on_cpu else config.load(Gpu, asked.gpu).name),
        "device_uuid": f"endpoint:{endpoint.base_url}",
        "n_gpus": asked.num_gpus,
        "endpoint": {"url": endpoint.url, "model": endpoint.model, "extra": dict(endpoint.extra)},
        "trace": [file.name for file in asked.trace],
        "loads": {name: getattr(workload.serving, name) for name in LOADS},
        "prompt_seed": seed,
        # the host's CPUs are those of a server on the same machine, and priced as its
        **({"cpu_count": client["cpu_count"]} if on_cpu and endpoint.is_local else {}),
        "client": client | {"python": platform.python_version(), "platform": platform.platform()},
        "source_hash": plan.source_hash(NAME, [cell]),
        "plan": [cell.key],
        **commit(),
    }
