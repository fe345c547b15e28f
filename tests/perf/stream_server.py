"""A server of streams at a fixed pace, in bare asyncio: what the load client's own cost is measured against.

Every request is answered by `max_tokens` events, the first after `--ttft` seconds and the others `1 / --events-per-s`
apart, then by a usage event and `[DONE]`, whatever its prompt says. It has no model and no HTTP library, so what it
costs is little more than the sockets.

    python -m tests.perf.stream_server --ttft 0.5 --events-per-s 4      # prints its port, ends when its input does
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys

EVENT = {
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "object": "chat.completion.chunk",
    "created": 1764300000,
    "model": "paced",
    "choices": [{"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}],
}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
TOKENS = re.compile(rb'"max_tokens": *(\d+)')


def event(data: str) -> bytes:
    """One server-sent event as one chunk of HTTP's chunked encoding."""
    text = b"data: " + data.encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(text), text)


CONTENT = event(json.dumps(EVENT, separators=(",", ":")))


class Paced(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, ttft_s: float, gap_s: float):
        self.ttft_s, self.gap_s = ttft_s, gap_s
        self.loop = asyncio.get_running_loop()
        self.received = b""
        self.left = self.asked = 0
        self.due_s = 0.0
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, blank, body = self.received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not blank or not length or len(body) < int(length[1]):
            return
        self.received = b""
        tokens = TOKENS.search(body)
        self.left = self.asked = int(tokens[1]) if tokens else 1
        self.transport.write(HEAD)
        self.due_s = self.loop.time() + self.ttft_s
        self.timer = self.loop.call_at(self.due_s, self.send)

    def send(self) -> None:
        self.left -= 1
        if self.left:
            self.due_s += self.gap_s
            self.timer = self.loop.call_at(self.due_s, self.send)
            self.transport.write(CONTENT)
            return
        usage = {"prompt_tokens": 16, "completion_tokens": self.asked, "total_tokens": 16 + self.asked}
        last = EVENT | {"choices": [{"index": 0, "delta": {"content": " end"}, "finish_reason": "stop"}]}
        tail = [json.dumps(last), json.dumps(EVENT | {"choices": [], "usage": usage}), "[DONE]"]
        self.transport.write(b"".join(map(event, tail)) + b"0\r\n\r\n")


async def serve(ttft_s: float, events_per_s: float) -> None:
    """Serves until standard input ends; prints the port first."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Paced(ttft_s, 1 / events_per_s), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ttft", type=float, default=0.5)
    parser.add_argument("--events-per-s", type=float, default=4.0)
    chosen = parser.parse_args()
    asyncio.run(serve(chosen.ttft, chosen.events_per_s))
