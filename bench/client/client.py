"""One request to anybody's server, streamed, and what became of it, always as a `Record`.

Whatever a server does (stall, close in the middle, answer 429, send nonsense) ends as a status and one line of
reason: a load test that crashes on a bad answer measures nothing. Statuses: `ok`; `uncounted`, a whole answer without
usage, so its tokens are unknown (chunks are never counted as tokens); `timeout`; `refused`; `http_<code>`, redirects
included, since following one could carry the key to another host; `malformed`; `closed`; `server_error`, told in the
stream; `cut`, ended by us; `failed`, anything else.

Timeouts cost nothing for each event: one timer a request, which looks when it fires whether the limit has moved on
meanwhile, and if so sleeps again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import httpx

from bench.client.address import ChatRequest, Endpoint
from bench.client.sse import Answer, Events, Malformed, ServerError, message, shown, text
from bench.client.transport import POUR, Wire, certificates
from bench.traffic.records import CUT, OK, Planned, Record

UNCOUNTED = "uncounted"
MOST_ERROR_BYTES = 4096
AFTER_DONE_S = 1.0  # for the end of the stream to follow [DONE]
SLACK_TOKENS = 16  # that an answer may have beyond what was asked: some count a stop token, or a step run ahead


@dataclass(slots=True)
class Watch:
    """The limit a request runs against; past it the task that waits is cancelled, and `status` says why."""

    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[object]
    total_s: float  # on the loop's clock
    limit_s: float = 0.0
    why: str = ""
    status: str = ""
    reason: str = ""
    timer: asyncio.TimerHandle | None = None

    def allow(self, seconds: float, why: str) -> None:
        """From now on, so long until this is called again."""
        self.limit_s = self.loop.time() + seconds
        if why != self.why:
            self.why = why
            if self.timer is not None:
                self.timer.cancel()
            self._look()

    def again(self, seconds: float) -> None:
        """The same limit, counted anew: an assignment, no timer."""
        self.limit_s = self.loop.time() + seconds

    def _look(self) -> None:
        now_s = self.loop.time()
        if now_s >= self.total_s:
            self.expire("timeout", "the whole answer took too long")
        elif now_s >= self.limit_s:
            self.expire("timeout", self.why)
        else:
            self.timer = self.loop.call_at(min(self.limit_s, self.total_s), self._look)

    def expire(self, status: str, reason: str) -> None:
        """End the request now."""
        if not self.status:
            self.status, self.reason = status, reason
            self.task.cancel()

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


@dataclass(slots=True)
class Client:
    """One connection to an endpoint, for one request at a time. Made by `connect`, within a running event loop."""

    endpoint: Endpoint
    http: Wire | httpx.AsyncClient
    send: Callable[[httpx.Request], Awaitable[httpx.Response]]
    headers: httpx.Headers = field(repr=False)
    secret: str | None = field(repr=False)
    watch: Watch | None = None

    def cut(self, reason: str = "still running at the end") -> None:
        """End the request under way, if there is one; its record says `cut`."""
        if self.watch is not None:
            self.watch.expire(CUT, reason)

    def clean(self, words: str) -> str:
        """One short line without the key, which some servers repeat in their complaints. Takes the words uncut."""
        return shown(self.endpoint.masked(words))

    async def aclose(self) -> None:
        await self.http.aclose()


def connect(endpoint: Endpoint) -> Client:
    """A client that has not connected yet: the first request does. Raises ValueError where the key is missing.

    Requests go to the transport itself: cookies, redirects and the environment, which httpx's own client would look
    after for each, have no place here. Only behind a proxy of the environment does that client stand in between.
    """
    secret = endpoint.key()
    headers = {"accept": "text/event-stream", "accept-encoding": "identity", "content-type": "application/json"}
    if secret:
        headers["authorization"] = f"Bearer {secret}"
    if not endpoint.trust_env:
        wire = Wire(endpoint.timeouts.connect_s)
        return Client(endpoint, wire, wire.handle_async_request, httpx.Headers(headers), secret)
    timeout = httpx.Timeout(None, connect=endpoint.timeouts.connect_s)
    http = httpx.AsyncClient(verify=certificates(), timeout=timeout, follow_redirects=False, trust_env=True)
    return Client(endpoint, http, partial(http.send, stream=True), httpx.Headers(headers), secret)


parsed = lru_cache(maxsize=16)(httpx.URL)


async def stream(
    client: Client,
    request: ChatRequest | bytes,
    planned: Planned,
    scheduled_s: float,
    clock: Callable[[], float],
) -> Record:
    """Send `request` (or its body made beforehand) now, read the answer to its end, and say what happened.

    `clock` gives seconds since the start of the measurement, as `scheduled_s` is. Raises only CancelledError, when
    the caller's task is cancelled; `client.cut()` ends a request with a record.
    """
    limits, loop = client.endpoint.timeouts, asyncio.get_running_loop()
    body = request if isinstance(request, bytes) else request.body(client.endpoint)
    task = asyncio.current_task()
    assert task is not None
    record = Record(planned.number, scheduled_s, clock(), planned.input_tokens, planned.output_tokens)
    answer = Answer(client.endpoint.path)
    watch = client.watch = Watch(loop, task, loop.time() + limits.total_s)
    watch.allow(limits.first_token_s, f"no token within {limits.first_token_s:g} s")
    try:
        record.status, record.reason = await _answered(client, body, answer, watch, clock)
    except asyncio.CancelledError:
        if not watch.status:
            raise
        task.uncancel()
        record.status, record.reason = watch.status, watch.reason
        if answer.done and watch.status == "timeout":  # it said so, and left the connection open
            record.status, record.reason = _ended(answer)
    except (Malformed, ServerError) as error:
        status = "malformed" if isinstance(error, Malformed) else "server_error"
        record.status, record.reason = status, client.clean(str(error))
    except httpx.TimeoutException:
        record.status, record.reason = "timeout", f"no connection within {limits.connect_s:g} s"
    except httpx.ConnectError as error:
        record.status, record.reason = "refused", client.clean(str(error))
    except httpx.RemoteProtocolError as error:
        gone = any(word in str(error) for word in ("peer closed", "disconnected"))  # httpx's own transport says so
        record.status, record.reason = "closed" if gone else "malformed", client.clean(str(error))
    except httpx.NetworkError as error:
        record.status, record.reason = "closed", client.clean(str(error))
    except Exception as error:  # one request's failure, of whatever layer below, must not end the measurement
        record.status, record.reason = "failed", client.clean(f"{type(error).__name__}: {error}")
    finally:
        watch.stop()
        client.watch = None
    record.token_s = answer.token_s
    record.first_token_s = answer.token_s[0] if answer.token_s else None
    record.end_s = answer.end_s
    _count(record, answer)
    return record


async def _answered(
    client: Client, body: bytes, answer: Answer, watch: Watch, clock: Callable[[], float]
) -> tuple[str, str]:
    """Fills `answer`; the status and reason of a stream that came to an end by itself."""
    post = httpx.Request("POST", parsed(client.endpoint.url), headers=client.headers, content=body)
    response = await client.send(post)
    try:
        if response.status_code != 200:
            return f"http_{response.status_code}", client.clean(await _complaint(response))
        await _read(response, answer, watch, client.endpoint.timeouts.between_chunks_s, clock)
    finally:
        await response.aclose()
    if not answer.events:
        coded = response.headers.get("content-encoding")
        if coded:
            return "malformed", f"the answer is compressed ({client.clean(coded)}), though none was asked for"
        kind = response.headers.get("content-type", "none")
        return "malformed", f"no server-sent events in the answer (content type {client.clean(kind)})"
    return _ended(answer)


def _ended(answer: Answer) -> tuple[str, str]:
    """Status and reason of a stream that brought events and came to its end."""
    answer.close()
    if not answer.finished:
        return "closed", f"the stream ended after {answer.events} events without saying why"
    if answer.counted("completion_tokens") is None or answer.counted("prompt_tokens") is None:
        return UNCOUNTED, "the server sent no usage, so its tokens are unknown"
    return OK, ""


async def _read(
    response: httpx.Response, answer: Answer, watch: Watch, between_s: float, clock: Callable[[], float]
) -> None:
    events = Events()
    waiting = True

    def take(chunk: bytes) -> None:
        nonlocal waiting
        at_s = clock()
        for data in events.feed(chunk):
            answer.read(data, at_s)
            if answer.done:
                watch.allow(AFTER_DONE_S, "nothing more after [DONE]")
            elif not waiting:
                watch.again(between_s)
            elif answer.token_s:
                waiting = False
                watch.allow(between_s, f"nothing more for {between_s:g} s")

    pour = response.extensions.get(POUR)
    if pour is not None:
        await pour(take)
    else:
        async for chunk in response.aiter_raw():
            take(chunk)
    for data in events.end():
        answer.read(data, clock())


async def _complaint(response: httpx.Response) -> str:
    """Why the server refused, from the beginning of its answer; of a redirect, only that there was one."""
    if response.is_redirect:
        return "a redirect, which is not followed"
    answer = b""
    async for chunk in response.aiter_raw():
        answer += chunk
        if len(answer) >= MOST_ERROR_BYTES:
            break
    try:
        return message(json.loads(answer))
    except (ValueError, RecursionError):
        return text(answer)


def _count(record: Record, answer: Answer) -> None:
    """What the server counted, if the answer came to its end: a count along the way is not the whole."""
    if record.status != OK:
        return
    prompt, completion, cached = (
        answer.counted("prompt_tokens"),
        answer.counted("completion_tokens"),
        answer.cached_tokens,
    )
    assert prompt is not None and completion is not None
    if not prompt or (cached or 0) > prompt or completion > record.planned_output_tokens + SLACK_TOKENS:
        asked = f"{record.planned_output_tokens} at most were asked for"
        record.status = UNCOUNTED
        record.reason = f"a usage that cannot be: prompt {prompt}, cached {cached}, completion {completion}; {asked}"
        return
    record.input_tokens, record.output_tokens, record.cached_tokens = prompt, completion, cached


def token_source(record: Record) -> str:
    """Where a record's counts come from: usage, or none, and then `output_tokens` says nothing."""
    return "usage" if record.status == OK else "none"
