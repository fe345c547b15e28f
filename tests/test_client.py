"""The load client against a real server on raw sockets: whatever it does becomes a record, and no key leaks."""

import asyncio
import json
import logging
import pickle
import shutil
import ssl
import subprocess

import pytest

pytest.importorskip("httpx")

import httpx

from bench.client.address import ChatRequest, Endpoint, Timeouts
from bench.client.client import connect, stream, token_source
from bench.client.generator import drive
from bench.client.transport import Socket, certificates
from bench.measure.clock import now
from bench.traffic.records import Planned, Record
from tests.raw_server import DONE, END, HEAD, Behaviour, Call, RawServer, answer, chunk, delta, event, usage

SECRET = "sk-verysecret/0123456789"
QUICK = Timeouts(connect_s=2.0, first_token_s=0.25, between_chunks_s=0.25, total_s=5.0)


def one(url: str, **settings) -> Record:
    """The record of a single request of 4 tokens to the server there."""
    endpoint = Endpoint(url, "tiny", **{"timeouts": Timeouts(total_s=5.0), **settings})

    async def go() -> Record:
        client = connect(endpoint)
        try:
            return await stream(client, ChatRequest("hello you", 4), Planned(7, 100, 4), start, now)
        finally:
            await client.aclose()

    start = now()
    return asyncio.run(asyncio.wait_for(go(), 8))


def sending(*pieces: bytes, pause_s: float = 0.0, abort: bool = False) -> Behaviour:
    """Sends the pieces, then ends the connection: cleanly, or torn."""

    async def behave(call: Call) -> None:
        for piece in pieces:
            await call.send(piece)
            await asyncio.sleep(pause_s)
        call.abort() if abort else call.writer.close()

    return behave


GOOD = (delta(role="assistant", content=""), delta(content=" a"), delta(content=" b c"), delta("stop", content=" d"))


def test_tokens_are_what_the_server_counts_and_times_those_of_chunks_with_content():
    with RawServer(sending(HEAD, *GOOD, usage(23, 9, cached=16), DONE, END, pause_s=0.03)) as server:
        record = one(server.url)
    assert (record.status, token_source(record)) == ("ok", "usage"), record.reason
    assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (23, 9, 16)
    assert len(record.token_s) == 3 and record.first_token_s == record.token_s[0]
    assert record.first_token_s - record.sent_s > 0.055, "the role's chunk has no content"
    assert record.end_s == record.token_s[-1], "the usage comes after the last token"
    assert all(b - a > 0.02 for a, b in zip(record.token_s, record.token_s[1:], strict=False))


def test_what_is_asked():
    with RawServer(answer) as server:
        one(server.url, extra={"ignore_eos": True})
        call = server.calls[0]
    assert call.head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n") and b"authorization" not in call.head.lower()
    assert call.body["messages"] == [{"role": "user", "content": "hello you"}]
    assert call.body["stream"] and call.body["stream_options"] == {"include_usage": True} and call.body["ignore_eos"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({}, {"reasoning_content": "hm"}),
        ({}, {"reasoning": "hm", "content": None}),
        ({"path": "completions"}, None),
    ],
)
def test_reasoning_and_bare_completions_count_as_content(extra, said):
    texts = [event({"choices": [{"text": word, "finish_reason": None}]}) for word in ("", "a", "b")]
    events = [delta(**said)] * 2 if said else texts
    with RawServer(sending(HEAD, *events, delta("stop"), usage(5, 2), END)) as server:
        record = one(server.url, **extra)
    assert record.status == "ok" and len(record.token_s) == 2


def test_usage_may_stand_in_the_last_chunk_with_content():
    last = event(
        {
            "choices": [{"delta": {"content": "z"}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 8},
        }
    )
    with RawServer(sending(HEAD, delta(content="a"), last, END)) as server:
        record = one(server.url)
    assert (record.status, record.output_tokens) == ("ok", 8)


def test_a_body_without_chunks_or_length_ends_with_the_connection():
    body = b"".join(piece.split(b"\r\n", 1)[1][:-2] for piece in (*GOOD, usage(5, 3)))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    for rest in (b"\r\n", b"content-length: %d\r\n\r\n" % len(body)):
        with RawServer(sending(head + rest, body)) as server:
            assert one(server.url).status == "ok"


REFUSAL = b'{"error": {"message": "slow\\ndown, please"}}'
BAD = {
    "http_429": sending(b"HTTP/1.1 429 Slow\r\ncontent-length: %d\r\n\r\n" % len(REFUSAL), REFUSAL),
    "http_500": sending(b"HTTP/1.1 500 Oh\r\nconnection: close\r\n\r\nit broke"),
    "http_307": sending(b"HTTP/1.1 307 There\r\nlocation: http://127.0.0.1:1/v1\r\ncontent-length: 0\r\n\r\n"),
    "closed torn": sending(HEAD, GOOD[1], abort=True),
    "closed between chunks": sending(HEAD, GOOD[1]),
    "closed within a chunk": sending(HEAD, b"ff\r\ndata: {"),
    "closed without finish": sending(HEAD, GOOD[1], END),
    "closed at once": sending(),
    "malformed http": sending(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"),
    "malformed json": sending(HEAD, GOOD[1], event(b'{"choices": [{"delta": '), END),
    "malformed content": sending(HEAD, GOOD[1], event(b'{"choices": [{"delta": {"content": "x"'), END),
    "malformed choices": sending(HEAD, event({"choices": "many"}), END),
    "malformed list": sending(HEAD, event(b"[1, 2]"), END),
    "malformed page": sending(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 4\r\n\r\n<p>\n"),
    "malformed chunk": sending(HEAD, b"zz\r\n"),
    "malformed length": sending(HEAD, b"3\r\nabcdef\r\n"),
    "malformed endless": sending(HEAD, *[chunk(b"data: " + b"x" * (1 << 18))] * 6),
    "server_error": sending(HEAD, GOOD[1], event({"error": {"message": "out of memory"}}), END),
    "uncounted": sending(HEAD, *GOOD, DONE, END),
    "uncounted nonsense": sending(
        HEAD, *GOOD, event({"choices": [], "usage": {"prompt_tokens": -1, "completion_tokens": "9"}}), END
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_misbehaving_server_gives_a_status_and_one_line(case):
    with RawServer(BAD[case]) as server:
        record = one(server.url)
    assert record.status == case.split()[0], record.reason
    assert record.reason and "\n" not in record.reason and len(record.reason) <= 160
    assert (record.output_tokens, record.input_tokens) == (0, 100) and token_source(record) == "none"


def test_a_refusal_is_told_in_the_servers_words_and_a_redirect_is_not_followed():
    with RawServer(BAD["http_429"]) as server:
        assert one(server.url).reason == "slow down, please"
    with RawServer(answer) as elsewhere:
        move = b"HTTP/1.1 302 There\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % elsewhere.url.encode()
        with RawServer(sending(move)) as server:
            assert one(server.url).status == "http_302"
        assert not elsewhere.calls


async def _stalls(call: Call) -> None:
    await call.send(HEAD, GOOD[0])
    for _ in range(100):
        await call.send(chunk(b": still there\n\n"))
        await asyncio.sleep(0.05)


async def _stalls_later(call: Call) -> None:
    await call.send(HEAD, *GOOD[:3])
    await asyncio.sleep(5)


async def _never_ends(call: Call) -> None:
    await call.send(HEAD)
    while True:
        await call.send(delta(content="a"))
        await asyncio.sleep(0.1)


async def _silent(call: Call) -> None:
    await asyncio.sleep(5)


@pytest.mark.parametrize(
    ("behaviour", "limits", "least_s", "why"),
    [
        (_silent, QUICK, 0.25, "no token within 0.25 s"),
        (_stalls, QUICK, 0.25, "no token within 0.25 s"),
        (_stalls_later, QUICK, 0.25, "nothing more for 0.25 s"),
        (_never_ends, Timeouts(between_chunks_s=0.3, total_s=0.6), 0.6, "the whole answer took too long"),
    ],
)
def test_each_timeout(behaviour, limits, least_s, why):
    with RawServer(behaviour) as server:
        begin = now()
        record = one(server.url, timeouts=limits)
        took_s = now() - begin
    assert (record.status, record.reason) == ("timeout", why)
    assert least_s < took_s < least_s + 1.5


def test_nobody_there_is_refused():
    with RawServer(answer) as server:
        url = server.url
    assert one(url).status == "refused"


def test_the_outer_task_can_still_be_cancelled():
    with RawServer(_silent) as server:

        async def go() -> None:
            client = connect(Endpoint(server.url, "tiny"))
            async with asyncio.timeout(0.1):
                await stream(client, ChatRequest("x", 1), Planned(0, 1, 1), 0.0, now)

        with pytest.raises(TimeoutError):
            asyncio.run(go())


async def _echo_key(call: Call) -> None:
    key = next(line for line in call.head.split(b"\r\n") if line.lower().startswith(b"authorization")).split()[-1]
    how = call.body["model"]
    if how == "refusal":
        body = json.dumps({"error": {"message": "x" * 145 + f" bad key {key.decode()}"}}).encode()
        await call.send(b"HTTP/1.1 401 No\r\ncontent-length: %d\r\n\r\n" % len(body), body)
    elif how == "event":
        await call.send(HEAD, event(b"{bad " + key), END)
    elif how == "error":
        await call.send(HEAD, event({"error": f"no such key: {key.decode()}"}), END)
    else:
        await call.send(b"HTTP/1.1 " + key + b"\r\n\r\n")


@pytest.mark.parametrize("how", ["refusal", "event", "error", "http"])
def test_the_key_is_sent_and_appears_nowhere_else(how, monkeypatch, caplog, capsys):
    monkeypatch.setenv("SOME_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    endpoint = Endpoint("http://127.0.0.1:1/v1", how, api_key_env="SOME_KEY")
    with RawServer(_echo_key) as server:
        endpoint = Endpoint(server.url, how, api_key_env="SOME_KEY")
        run = drive(endpoint, [Planned(0, 1, 1, arrival_s=0.0)], lambda _: "x", deadline_s=5)
        assert f"Bearer {SECRET}".encode() in server.calls[0].head
    assert run.records[0].status != "ok" and run.records[0].reason

    async def shown() -> str:
        return repr(connect(endpoint))

    said = capsys.readouterr()
    everything = repr(endpoint) + repr(run) + asyncio.run(shown()) + caplog.text + said.out + said.err
    assert SECRET not in everything and SECRET[:12] not in everything
    assert SECRET.encode() not in pickle.dumps((endpoint, run))


@pytest.mark.parametrize("key", ["", "two words-secret", "line\nsecret", "ключ-secret"])
def test_a_key_that_cannot_be_sent_is_an_error_that_does_not_tell_it(key, monkeypatch):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(ValueError, match="SOME_KEY") as raised:
        drive(Endpoint("http://127.0.0.1:1/v1", "m", api_key_env="SOME_KEY"), [], lambda _: "", deadline_s=1)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:8000/v1", "ftp://host/v1", "file:///etc/passwd", "http://", "http://host:99999/v1"),
        *("http://[::1/v1", "http://me:sk-secret@host/v1", "http://host/v1?key=sk-secret", "http://host/v1#sk-secret"),
        *("http://ho st/v1", "http://sk-secret@host/v1"),
    ],
)
def test_a_bad_address_is_one_clear_line(url):
    with pytest.raises(ValueError) as raised:
        Endpoint(url, "m")
    assert "\n" not in str(raised.value) and "sk-secret" not in str(raised.value)


def test_a_connection_is_used_again_and_a_spoilt_one_is_not():
    seen = []

    async def sometimes(call: Call) -> None:
        seen.append(call.connection)
        await (answer(call) if len(seen) != 3 else call.send(HEAD, event(b"{")))

    plan = [Planned(index, 4, 2) for index in range(6)]
    with RawServer(sometimes) as server:
        run = drive(Endpoint(server.url, "m"), plan, lambda _: "x", concurrency=1, deadline_s=10)
    assert [record.status for record in run.records].count("ok") == 5
    assert seen == [1, 1, 1, 2, 2, 2]


def test_what_a_connection_said_before_it_broke_is_heard():
    async def late_listener() -> list[bytes]:
        connection, heard = Socket(), []
        connection.connection_made(await _transport())
        connection.data_received(b"one")
        connection.data_received(b"two")
        connection.connection_lost(ConnectionResetError())
        with pytest.raises(httpx.ReadError):
            await connection.pour(heard.append)
        return heard

    async def _transport() -> asyncio.Transport:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port)
        return transport

    with RawServer(answer) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        assert asyncio.run(late_listener()) == [b"one", b"two"]


def test_behind_httpxs_own_transport_the_records_are_the_same(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with RawServer(sending(HEAD, *GOOD, usage(23, 9), DONE, END)) as server:
        record = one(server.url, trust_env=True)
    assert (record.status, record.input_tokens, record.output_tokens) == ("ok", 23, 9)
    with RawServer(_stalls_later) as server:
        assert one(server.url, trust_env=True, timeouts=QUICK).status == "timeout"
    with RawServer(BAD["closed torn"]) as server:
        assert one(server.url, trust_env=True).status == "closed"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_https_wants_a_certificate_that_holds(tmp_path, monkeypatch):
    files = {"-keyout": tmp_path / "key.pem", "-out": tmp_path / "cert.pem"}
    named = [str(part) for pair in files.items() for part in pair]
    more = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*make, *named, *more], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files["-out"], files["-keyout"])
    with RawServer(answer, tls=tls) as server:
        assert one(server.url).status == "refused" and not server.calls
        certificates().load_verify_locations(files["-out"])
        try:
            assert one(server.url).status == "ok"
        finally:
            certificates.cache_clear()
