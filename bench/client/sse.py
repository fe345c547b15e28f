"""Server-sent events, cut out of bytes by hand, and what an OpenAI-compatible stream of them says.

An event is lines up to a blank one; its data is what follows `data:` (WHATWG HTML, "Server-sent events"). A stream is
chunks of JSON: `choices[0].delta.content`, at some point a `finish_reason`, somewhere `usage`, and mostly `[DONE]`.
One chunk may hold several tokens, or none, so tokens are counted by `usage` alone.

At thousands of events a second, json.loads on each would be most of the client's work. Only the first event with
content, the last, and those that do not match one pattern are parsed. The pattern cannot match inside a text, where
JSON writes a quote as \\": it finds only a key, followed by a text that is not empty.
"""

from __future__ import annotations

import json
import re
from typing import Any

LARGEST_EVENT_BYTES = 1 << 20
CONTENT = {
    "chat": re.compile(rb'"(?:content|reasoning_content|reasoning)"\s*:\s*"[^"]'),
    "completions": re.compile(rb'"text"\s*:\s*"[^"]'),
}
TEXTS = {"chat": ("content", "reasoning_content", "reasoning"), "completions": ("text",)}
DONE = b"[DONE]"


class Malformed(Exception):
    """The stream is not what it should be: how, and what came instead, as long as it is."""


class ServerError(Exception):
    """The server reports an error within its stream; its own words."""


class Events:
    """Bytes in, as they come, the data of whole events out."""

    __slots__ = ("tail",)

    def __init__(self) -> None:
        self.tail = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Data of the events that `chunk` completes. Raises Malformed where one grows beyond all measure."""
        buffer = self.tail + chunk if self.tail else chunk
        held = b""
        if b"\r" in buffer:
            if buffer.endswith(b"\r"):  # half a line end, perhaps
                buffer, held = buffer[:-1], b"\r"
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *blocks, rest = buffer.split(b"\n\n")
        self.tail = rest + held
        if len(self.tail) > LARGEST_EVENT_BYTES:
            raise Malformed(f"an event of more than {LARGEST_EVENT_BYTES} bytes")
        return [data for block in blocks if (data := data_of(block)) is not None]

    def end(self) -> list[bytes]:
        """At the end of the stream: an event whose blank line is missing counts all the same."""
        block, self.tail = self.tail.rstrip(b"\r\n"), b""
        data = data_of(block)
        return [] if data is None else [data]


def data_of(block: bytes) -> bytes | None:
    """The data of one event's lines, None where it has none (a comment that keeps the connection open)."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


MOST_TOKENS = 1 << 31  # of one request


class Answer:
    """What the events of one answer have said so far. Times are the caller's."""

    __slots__ = ("done", "end_s", "events", "finished", "last", "pattern", "texts", "token_s", "usage")

    def __init__(self, path: str) -> None:
        self.pattern, self.texts = CONTENT[path], TEXTS[path]
        self.token_s: list[float] = []  # one for each event with content
        self.end_s: float | None = None  # of the last event with a choice in it: the last token, seen or not
        self.events = 0
        self.done = False  # [DONE] was seen: nothing more is to come
        self.finished = False  # a finish_reason or [DONE] was seen: the server meant to end here
        self.usage: dict[str, Any] | None = None
        self.last: bytes | None = None  # the last event taken unread

    def read(self, data: bytes, at_s: float) -> None:
        """One event. Raises Malformed or ServerError."""
        self.events += 1
        if self.token_s and self.pattern.search(data):
            if data[-1:] != b"}":
                raise Malformed(f"an event that does not end as JSON: {text(data)}")
            self.token_s.append(at_s)
            self.end_s = at_s
            self.last = data
        elif data == DONE:
            self.done = self.finished = True
        elif data.strip():
            self._parse(data, at_s)

    def close(self) -> None:
        """The stream has ended: look into the last event taken unread, where some servers say how it ended."""
        if self.last is not None and (self.usage is None or not self.finished):
            self._parse(self.last, None)

    def _parse(self, data: bytes, at_s: float | None) -> None:
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise Malformed(f"an event that is not JSON: {text(data)}") from None
        if not isinstance(chunk, dict):
            raise Malformed(f"an event that is no JSON object: {text(data)}")
        if chunk.get("error"):
            raise ServerError(message(chunk))
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        choices = chunk.get("choices")
        if not choices:
            return
        choice = choices[0] if isinstance(choices, list) else None
        if not isinstance(choice, dict):
            raise Malformed(f"choices that are none: {text(data)}")
        self.finished = self.finished or bool(choice.get("finish_reason"))
        if at_s is None:
            return
        self.end_s = at_s
        said = choice if "text" in self.texts else choice.get("delta")
        if isinstance(said, dict) and any(isinstance(said.get(key), str) and said[key] for key in self.texts):
            self.token_s.append(at_s)

    def counted(self, key: str) -> int | None:
        """A count from the server's usage, None where it does not say."""
        return count(self.usage, key)

    @property
    def cached_tokens(self) -> int | None:
        """Input tokens found in the server's prefix cache, None where it does not say."""
        return count(self.usage and self.usage.get("prompt_tokens_details"), "cached_tokens")


def count(counts: Any, key: str) -> int | None:
    """A whole number that can be a count of tokens, or None."""
    value = counts.get(key) if isinstance(counts, dict) else None
    return value if type(value) is int and 0 <= value < MOST_TOKENS else None


def text(data: bytes) -> str:
    """Bytes from outside as text, whatever they are."""
    return data.decode(errors="replace")


def shown(words: str, most: int = 160) -> str:
    """Text from outside as one short printable line."""
    line = " ".join(words[: 4 * most].split())
    line = "".join(sign if sign.isprintable() else "?" for sign in line)
    return line if len(line) <= most else line[: most - 1] + "…"


def message(answer: Any) -> str:
    """The words of an error, as the various servers wrap them."""
    for key in ("error", "message", "detail"):
        if isinstance(answer, dict) and answer.get(key):
            answer = answer[key]
    return str(answer)
