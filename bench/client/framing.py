"""Where the body of an HTTP/1.1 answer ends, and what of the bytes is body (RFC 9112, section 6).

Three ways: chunks, each `size in hex, CRLF, bytes, CRLF`, the last of size 0; a content-length; or all there is until
the connection closes. Streams come in chunks, several thousand a second, which is why this stands here and is not left
to a general parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

SIZE = re.compile(rb"[0-9a-fA-F]{1,8}")
MOST_LINE_BYTES = 8192


class Misframed(Exception):
    """The bytes do not follow the framing that the head announced."""


class Chunked:
    """A body in chunks."""

    __slots__ = ("ended", "left", "rest", "state", "surplus")

    def __init__(self) -> None:
        self.rest = b""  # a line not yet whole
        self.left = 0  # bytes of the chunk still to come
        self.state = "size"  # what comes next: size, bytes, crlf, trailer
        self.ended = False
        self.surplus = False  # bytes after the end: nobody asked for them

    def feed(self, data: bytes) -> bytes:
        """The part of `data` that is body. Raises Misframed."""
        buffer, at, out = self.rest + data if self.rest else data, 0, []
        self.rest = b""
        while not self.ended:
            if self.state == "bytes":
                part = buffer[at : at + self.left]
                out.append(part)
                at += len(part)
                self.left -= len(part)
                if self.left:
                    break
                self.state = "crlf"
            end = buffer.find(b"\r\n", at)
            if end < 0:
                self.rest = buffer[at:]
                if len(self.rest) > MOST_LINE_BYTES or (self.state == "crlf" and len(self.rest) > 1):
                    raise Misframed("a chunk that does not end where its size says")
                break
            line, at = buffer[at:end], end + 2
            if self.state == "size":
                size = line.partition(b";")[0].strip()
                if not SIZE.fullmatch(size):
                    raise Misframed("a chunk whose size is no number")
                self.left = int(size, 16)
                self.state = "bytes" if self.left else "trailer"
            elif self.state == "crlf":
                if line:
                    raise Misframed("a chunk that does not end where its size says")
                self.state = "size"
            else:
                self.ended = not line
        else:
            self.surplus = at < len(buffer)
        return out[0] if len(out) == 1 else b"".join(out)

    def whole(self) -> bool:
        """Whether a connection that closes now has said all it was to say."""
        return self.ended


class Length:
    """A body of a known length; None: until the connection closes."""

    __slots__ = ("ended", "left", "surplus")

    def __init__(self, length: int | None) -> None:
        self.left = length
        self.ended = length == 0
        self.surplus = False

    def feed(self, data: bytes) -> bytes:
        """The part of `data` that is body."""
        if self.left is None:
            return data
        part = data[: self.left]
        self.left -= len(part)
        self.ended = self.left == 0
        self.surplus = len(part) < len(data)
        return part

    def whole(self) -> bool:
        """Whether a connection that closes now has said all it was to say."""
        return self.left in (0, None)


def framing(status: int, headers: Mapping[str, str]) -> Chunked | Length:
    """How the body of an answer to a POST is framed. Header names in lower case. Raises Misframed."""
    if status in (204, 304):
        return Length(0)
    if coding := headers.get("transfer-encoding", ""):
        if coding.strip().lower() != "chunked":
            raise Misframed(f"a transfer coding that is not chunked: {coding}")
        return Chunked()
    if "content-length" in headers:
        length = headers["content-length"].strip()
        if not (length.isascii() and length.isdigit()):
            raise Misframed("a content-length that is no number")
        return Length(int(length))
    return Length(None)
