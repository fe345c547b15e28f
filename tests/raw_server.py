"""A real server for tests of the load client: raw sockets in a thread, misbehaving exactly as a test tells it to."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@dataclass
class Call:
    """One request as it arrived, and the way to answer it."""

    head: bytes
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    connection: int

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def abort(self) -> None:
        self.writer.transport.abort()


Behaviour = Callable[[Call], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    """One chunk of HTTP's chunked encoding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    """One server-sent event of JSON, as one chunk."""
    return chunk(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")


def delta(finish: str | None = None, **said: Any) -> bytes:
    """A chunk of a chat completion."""
    return event({"id": "x", "choices": [{"index": 0, "delta": said, "finish_reason": finish}]})


def usage(prompt: int, completion: int, cached: int | None = None) -> bytes:
    """The last chunk, with the server's counts and no choices."""
    counts: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    if cached is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached}
    return event({"id": "x", "choices": [], "usage": counts})


DONE = event(b"[DONE]")


async def answer(call: Call) -> None:
    """What a good server does: one chunk a token, counts from the words of the prompt, 2 for each and 11 on top."""
    tokens = call.body["max_tokens"]
    words = len(call.body["messages"][0]["content"].split())
    await call.send(HEAD, *[delta(content=" a") for _ in range(tokens)], delta("length"))
    await call.send(usage(2 * words + 11, tokens), DONE, END)


def serving(behaviour: Behaviour, models: list[dict[str, Any]]) -> Behaviour:
    """A server that lists its models, and behaves so otherwise."""

    async def listed(call: Call) -> None:
        if call.head.startswith(b"GET /v1/models "):
            data = json.dumps({"object": "list", "data": models}).encode()
            await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(data), data)
        else:
            await behaviour(call)

    return listed


def after(seconds: float) -> Behaviour:
    """`answer`, later."""

    async def late(call: Call) -> None:
        await asyncio.sleep(seconds)
        await answer(call)

    return late


@dataclass
class RawServer:
    """`with RawServer(behaviour) as server`: listens at `server.url` and keeps every call."""

    behaviour: Behaviour
    tls: ssl.SSLContext | None = None
    calls: list[Call] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    connections: int = 0

    def __enter__(self) -> RawServer:
        ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self.thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.closing.set)
        self.thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self.closing = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=self.tls, backlog=512)
        port = server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://{'localhost' if self.tls else '127.0.0.1'}:{port}/v1"
        ready.set()
        await self.closing.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        mine = self.connections
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, _, rest = head.lower().partition(b"content-length:")
                length = int(rest.split(b"\r\n")[0] or 0)
                body = json.loads(await reader.readexactly(length)) if length else {}
                call = Call(head, body, writer, mine)
                self.calls.append(call)
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    await self.behaviour(call)
                finally:
                    self.at_once -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
