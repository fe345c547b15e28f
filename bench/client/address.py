"""Somebody's OpenAI-compatible server: where it is, what it calls the model, how long it may take, what is asked of it.

The key of a server that wants one stays in the environment: an `Endpoint` holds the variable's name, never its value,
so that it can be printed, pickled for another process and written beside a result.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
PIECE = 8  # characters of a key in a row that are not shown
HEADER = {chr(code) for code in range(33, 127)}  # what a bearer token may be made of: visible ASCII


@dataclass(frozen=True)
class Timeouts:
    """Seconds a request may spend: `first_token_s` from when it was sent, `between_chunks_s` between two events."""

    connect_s: float = 10.0
    first_token_s: float = 600.0
    between_chunks_s: float = 120.0
    total_s: float = 3600.0


@dataclass(frozen=True)
class Endpoint:
    """A server and how it is spoken to. Raises ValueError, one line, on an address that cannot be one.

    `extra` is added to every request's body (ignore_eos, temperature). `trust_env` lets the proxies named in the
    environment stand between, at the cost that `transport.py` gives.
    """

    base_url: str  # up to and with /v1
    model: str
    path: str = "chat"  # or completions
    api_key_env: str | None = None
    timeouts: Timeouts = Timeouts()
    extra: Mapping[str, Any] = field(default_factory=dict)
    trust_env: bool = False

    def __post_init__(self) -> None:
        check_url(self.base_url)
        if self.path not in PATHS:
            raise ValueError(f"path {self.path!r}: expected one of {', '.join(PATHS)}")

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.base_url.rstrip("/") + PATHS[self.path]

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    def masked(self, words: str) -> str:
        """What a server said without the key, which some repeat in their complaints. Takes the words uncut.

        Eight characters of it in a row are enough to be masked, as they stand or escaped as in JSON or an address.
        """
        try:
            key = self.key()
        except ValueError:
            key = None
        if not key:
            return words
        words = words.replace("\\/", "/")
        for form in {key, quote(key, safe=""), json.dumps(key)[1:-1]}:
            words = words.replace(form, "***")
            for start in range(max(1, len(form) - PIECE + 1)):
                words = words.replace(form[start : start + PIECE], "***")
        return words

    def key(self) -> str | None:
        """The API key, from the environment. Raises ValueError without repeating any of it."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(f"the environment variable {self.api_key_env} is not set, and the API key was to be in it")
        if not set(key) <= HEADER:
            raise ValueError(f"the API key in {self.api_key_env} has characters that no header can carry")
        return key


@dataclass(frozen=True)
class ChatRequest:
    """What one request asks: a prompt, and at most so many tokens in answer."""

    prompt: str
    output_tokens: int

    def body(self, endpoint: Endpoint) -> bytes:
        """The request as JSON. One user message on the chat path, so that equal beginnings stay equal."""
        chat = endpoint.path == "chat"
        asked = {"messages": [{"role": "user", "content": self.prompt}]} if chat else {"prompt": self.prompt}
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(
            {"model": endpoint.model, **asked, "max_tokens": self.output_tokens, **stream, **endpoint.extra}
        ).encode()


def check_url(url: str) -> None:
    """Raises ValueError, one line, unless `url` is a plain http or https address. The line never holds a password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"not an address: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address must hold no user or password: name an environment variable with the key instead")
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{url!r}: expected http://host:port/v1 or https://host/v1")
    if parts.query or parts.fragment or any(sign.isspace() for sign in url):
        raise ValueError(f"{url.split('?')[0].split('#')[0]!r}: an address ends with its path: no ?, # or blank")
    if ":" in host:
        ipaddress.ip_address(host.partition("%")[0])
    elif "[" in parts.netloc or not host.isascii():
        raise ValueError(f"{url!r}: expected a host of plain letters, digits and dots, or an address of the internet")
