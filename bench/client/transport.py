"""One HTTP/1.1 connection under httpx that costs little for each event read.

httpx reads through httpcore, h11 and anyio, made for requests and answers, not for thousands of streams that each
bring a few hundred bytes four times a second: `python -m tests.perf.client_load` measures what an event costs there
and here. This transport keeps httpx's requests, answers and errors, and h11 for the head of an answer; the body goes
from asyncio's socket callback to whoever `pour` names, with no task woken in between, which also makes its time stamps
those of the arrival. It knows no proxies and no HTTP/2, and follows nothing.

One transport holds one connection and carries one request at a time; a busy client has one for each request in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from functools import cache

import h11
import httpx

from bench.client.framing import Chunked, Length, Misframed, framing
from bench.measure.clock import now

MOST_BYTES = 1 << 16
KEEP_ALIVE_S = 2.0  # idle for longer: servers close after 5 s, and closing may cross the next request on the wire
POUR = "pour"  # the name in a response's extensions
Sink = Callable[[bytes], None]


class Enough(Exception):
    """As much of a body as anybody wants was read."""


@cache
def certificates() -> ssl.SSLContext:
    """httpx's own, read once: reading them takes longer than all else in making a client."""
    return httpx.create_ssl_context(trust_env=False)


class Socket(asyncio.Protocol):
    """One connection: hands on what arrives, or keeps it until somebody wants it."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.unread: list[bytes] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = False
        self.error: BaseException | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.sink is None:
            self.unread.append(data)
            self.transport.pause_reading()
            return
        try:
            self.sink(data)
        except Exception as error:
            self.finish(error)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        self.finish(None if error is None else httpx.ReadError(f"the connection broke: {type(error).__name__}"))

    def finish(self, error: Exception | None = None) -> None:
        """Nothing more is wanted, or will come."""
        if not self.over.done():
            self.error = error
            self.over.set_result(None)

    async def pour(self, sink: Sink) -> None:
        """Hand everything to `sink` as it arrives, until `finish`. Raises what the sink or the connection did."""
        if self.over.done() and not self.ended:
            self.over = asyncio.get_running_loop().create_future()
        self.sink = sink
        try:
            while self.unread and self.sink is not None:  # the connection may be gone, and what it said is still here
                self.sink(self.unread.pop(0))
            if not self.ended:
                self.transport.resume_reading()
            await self.over
        finally:
            self.sink = None
        if self.error is not None:
            raise self.error


class Wire(httpx.AsyncBaseTransport):
    """An httpx transport over one connection, which it opens when asked and keeps while both sides allow."""

    def __init__(self, connect_s: float):
        self.connect_s = connect_s
        self.socket: Socket | None = None
        self.idle_since_s: float | None = None  # None: an answer is under way

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends the request and reads the head of the answer; the body follows as it is asked for."""
        socket = await self._connected(request.url)
        self.idle_since_s = None
        http = h11.Connection(h11.CLIENT)
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
        data = h11.Data(data=request.content)
        parts = [http.send(head), http.send(data), http.send(h11.EndOfMessage())]
        socket.transport.write(b"".join(part for part in parts if part))
        answer = await self._head(http, socket)
        surplus, _ = http.trailing_data
        socket.unread[:0] = [bytes(surplus)] if surplus else []
        headers = httpx.Headers(answer.headers.raw_items())
        try:
            body = Body(self, socket, framing(answer.status_code, headers))
        except Misframed as error:
            raise httpx.RemoteProtocolError(str(error)) from None
        body.keep = answer.http_version >= b"1.1" and headers.get("connection", "").lower() != "close"
        return httpx.Response(answer.status_code, headers=headers, stream=body, extensions={POUR: body.pour})

    async def _connected(self, url: httpx.URL) -> Socket:
        kept, idle_s = self.socket, self.idle_since_s
        fresh = idle_s is not None and now() - idle_s < KEEP_ALIVE_S
        if fresh and kept is not None and not kept.ended and not kept.unread:
            return kept
        self.close()
        secure = url.scheme == "https"
        try:
            async with asyncio.timeout(self.connect_s):
                _, socket = await asyncio.get_running_loop().create_connection(
                    Socket,
                    url.host,
                    url.port or (443 if secure else 80),
                    ssl=certificates() if secure else None,
                    happy_eyeballs_delay=0.25,
                )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {self.connect_s:g} s") from None
        except OSError as error:  # certificates that do not hold are among them
            raise httpx.ConnectError(str(error)) from None
        self.socket = socket
        return socket

    async def _head(self, http: h11.Connection, socket: Socket) -> h11.Response:
        found: list[h11.Response] = []

        def read(data: bytes) -> None:
            http.receive_data(data)
            while (event := http.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    found.append(event)
                    socket.sink = None  # the body is for another
                    socket.finish()
                    return

        try:
            await socket.pour(read)
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from None
        except httpx.ReadError:
            if not found:
                raise
        if not found:
            raise httpx.ReadError("the server closed the connection without an answer")
        return found[0]

    def close(self) -> None:
        """Drop the connection at once, whatever is under way on it."""
        if self.socket is not None:
            self.socket.transport.abort()
            self.socket = None

    async def aclose(self) -> None:
        self.close()


class Body(httpx.AsyncByteStream):
    """The body of an answer: poured into a sink as it arrives, or read at leisure as httpx does."""

    def __init__(self, wire: Wire, socket: Socket, frame: Chunked | Length):
        self.wire, self.socket, self.frame = wire, socket, frame
        self.keep = False

    async def pour(self, sink: Sink) -> None:
        """Call `sink` with each piece as it arrives, to the end of the body. Raises httpx's errors, and the sink's."""
        frame, socket = self.frame, self.socket

        def read(data: bytes) -> None:
            part = frame.feed(data)
            if part:
                sink(part)
            if frame.ended:
                socket.finish()

        if not frame.ended:
            try:
                await socket.pour(read)
            except Misframed as error:
                raise httpx.RemoteProtocolError(str(error)) from None
            except httpx.ReadError:
                if not frame.ended:
                    raise
        if not frame.whole():
            raise httpx.ReadError("the server closed the connection before its answer had ended")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body, or its first MOST_BYTES: whoever reads at leisure reads a complaint."""
        parts: list[bytes] = []

        def keep(part: bytes) -> None:
            parts.append(part)
            if sum(map(len, parts)) > MOST_BYTES:
                raise Enough

        with contextlib.suppress(Enough):
            await self.pour(keep)
        for part in parts:
            yield part

    async def aclose(self) -> None:
        if self.wire.socket is not self.socket:
            return
        if self.keep and self.frame.ended and not self.frame.surplus:
            self.wire.idle_since_s = now()
        else:
            self.wire.close()
