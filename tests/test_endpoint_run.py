"""`bench run --endpoint`: a whole ladder against a server of raw sockets, what it writes, and what it refuses."""

import asyncio
import csv
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("httpx")

from bench import endpoint, runs, serving_results
from bench.client.address import Endpoint
from bench.client.server import NoServer
from bench.config import ConfigError
from bench.endpoint import Asked, address
from bench.points import validity
from bench.price.throughput import throughput
from tests.raw_server import DONE, END, HEAD, Call, RawServer, after, answer, chunk, delta, serving, usage

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-secret/of+the/test-0123456789"
MODEL = [{"id": "someone/Tiny-7B", "max_model_len": 400}]
ASKED = Asked(gpu="h100_sxm_80gb", num_gpus=8, workload="serve_chat_tiny", load_s=1.5)


class Silent:
    """Listens, and keeps what is said."""

    def __init__(self):
        self.lines, self.points = [], []

    def say(self, text):
        self.lines.append(text)

    def point(self, one):
        self.points.append(one)


def measured(server: RawServer, out: Path, asked=ASKED, **options):
    there = address(server.url, **{"completions": False, "api_key_env": None, "extra_body": "{}"} | options)
    return endpoint.run(there, asked, out, Silent())


async def stingy(call: Call) -> None:
    """Every second answer is refused."""
    if call.connection % 2:
        await call.send(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n")
    else:
        await answer(call)


async def broken(call: Call) -> None:
    """Counts prompts of one token, as calibration asks, and closes in the middle of any longer answer."""
    if call.body["max_tokens"] == 1:
        return await answer(call)
    await call.send(HEAD)
    call.abort()


def test_a_ladder_becomes_a_run_folder_that_money_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    monkeypatch.setattr(validity, "CLIENT_LAG", 1.0)  # a busy machine would make the points void
    with RawServer(serving(after(0.05), MODEL)) as server:
        asked = replace(ASKED, workload="serve_chat_tiny", precision="fp8", model="llama_3_1_8b")
        folder, row, interrupted = measured(server, tmp_path, asked, api_key_env="THE_KEY", extra_body='{"top_k": 1}')
        sent = [call for call in server.calls if call.body]
    assert not interrupted and row["status"] == "ok", row
    assert {call.body["model"] for call in sent} == {"someone/Tiny-7B"} and {call.body["top_k"] for call in sent} == {1}
    assert all(KEY.encode() in call.head for call in server.calls)
    assert not [path for path in folder.iterdir() if KEY in path.read_text()], "the key was written down"
    (cell,) = runs.read_cells(folder)
    assert (cell["phase"], cell["backend"], cell["n_gpus"]) == ("serve", "endpoint", 8)
    assert (cell["model"], cell["precision"], cell["gpu"]) == ("llama_3_1_8b", "fp8", "h100_sxm_80gb")
    points = serving_results.read(folder, "points")
    assert [point["concurrency"] for point in points] == [1, 4, None] and points[2]["rate_per_s"] > 0
    assert {point["token_source"] for point in points} == {"usage"}
    for point in points:
        assert point["output_tokens_per_s_per_gpu"] == pytest.approx(point["output_tokens_per_s"] / 8, rel=1e-4)
        assert point["input_tokens_ratio"] == pytest.approx(1.0, abs=0.1), "short prompts, whole words"
    requests = serving_results.read(folder, "requests")
    assert {request["status"] for request in requests} <= {"ok", "cut"} and len(requests) == len(sent) - 2
    schedule = serving_results.read(folder, "schedule")
    assert {row["point"] for row in schedule} == {points[2]["point"]}
    due = {row["request"]: row["arrival_s"] for row in schedule}
    for request in requests:
        if request["point"] == points[2]["point"]:
            assert request["scheduled_s"] == pytest.approx(due[request["request"]], abs=1e-4)
    (priced,) = [row for row in throughput([folder]) if row["basis"] == "measured"]
    assert priced["system_tokens_per_s"] == pytest.approx(row["system_tokens_per_s"], rel=1e-4)


def test_a_folder_of_its_own_each_time_with_prompts_of_its_own(tmp_path):
    asked = replace(ASKED, workload="chat", concurrencies=(2,), load_s=1.0)
    with RawServer(serving(after(0.02), MODEL)) as server:
        first, second = (measured(server, tmp_path, asked)[0] for _ in range(2))
        said = [call.body["messages"][0]["content"] for call in server.calls if call.body]
    assert first != second
    beginnings = {" ".join(text.split()[:4]) for text in said}
    assert len(beginnings) == len(said), "a prefix cache would find them"


def test_explicit_loads_stand_in_the_place_of_the_workloads_own(tmp_path):
    asked = replace(ASKED, rates_per_s=(20.0,), load_s=1.0)
    with RawServer(serving(after(0.01), MODEL)) as server:
        folder, _, _ = measured(server, tmp_path, asked)
    assert [point["point"] for point in serving_results.read(folder, "points")] == ["rate=20"]


def test_the_servers_context_bounds_the_requests(tmp_path):
    asked = replace(ASKED, concurrencies=(2,), load_s=1.0)
    with RawServer(serving(after(0.01), [{"id": "m", "max_model_len": 40}])) as server:
        folder, _, _ = measured(server, tmp_path, asked)
    facts = runs.read_environment(folder)
    assert facts["loads"]["max_model_len"] == 38
    for request in serving_results.read(folder, "requests"):
        assert request["input_tokens"] + request["planned_output_tokens"] <= 41


@pytest.mark.parametrize(("behaviour", "status"), [(stingy, "http_429"), (broken, "closed")])
def test_a_server_that_fails_gives_statuses_and_never_a_crash(behaviour, status, tmp_path):
    asked = replace(ASKED, concurrencies=(4,), load_s=1.0)
    with RawServer(serving(behaviour, MODEL)) as server:
        try:
            folder, row, _ = measured(server, tmp_path, asked)
        except Exception as error:
            assert type(error).__name__ == "Uncalibrated" and "429" in str(error)
            return
    assert status in {request["status"] for request in serving_results.read(folder, "requests")}
    assert row["status"] == "ok" or status in row["reason"]


def test_a_trace_is_replayed_at_its_own_pace_and_a_closed_loop_takes_its_order(tmp_path):
    trace = tmp_path / "azure.csv"
    lines = [f"2023-11-16 18:17:{n / 10 + 3:010.7f},{20 + n % 7},{2 + n % 3}" for n in range(30)]
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(lines) + "\n")
    with RawServer(serving(after(0.01), MODEL)) as server:
        own, _, _ = measured(server, tmp_path, replace(ASKED, workload="chat", trace=(trace,), load_s=4.0))
        closed, _, _ = measured(
            server, tmp_path, replace(ASKED, workload="chat", trace=(trace,), concurrencies=(3,), load_s=4.0)
        )
    schedule = serving_results.read(own, "schedule")
    assert [row["input_tokens"] for row in schedule] == [20 + n % 7 for n in range(30)]
    assert [row["arrival_s"] for row in schedule] == pytest.approx([n / 10 for n in range(30)], abs=1e-4)
    (point,) = serving_results.read(closed, "points")
    assert point["concurrency"] == 3 and point["requests_completed"] == 33, "and three seats"


def test_a_mix_is_told_by_class_too(tmp_path):
    asked = replace(ASKED, workload="chat_2023", concurrencies=(4,), load_s=2.0, max_model_len=64)
    with RawServer(serving(after(0.02), [{"id": "m"}])) as server:
        folder, row, _ = measured(server, tmp_path, asked)
    assert row["status"] == "ok"
    (whole,) = serving_results.read(folder, "points")
    parts = serving_results.read(folder, "classes")
    assert {part["traffic"] for part in parts} == {"chat", "completion"} or len(parts) > 1
    assert sum(part["requests"] for part in parts) == whole["requests"]
    assert sum(part["output_tokens_per_s"] or 0 for part in parts) == pytest.approx(
        whole["output_tokens_per_s"], rel=1e-3
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workload": "chta"}, "--workload: no 'chta'; expected one of"),
        ({"gpu": "h100"}, "configs/gpus/h100.toml: no such config; known: a100"),
        ({"model": "llama"}, "configs/models/llama.toml: no such config"),
        ({"precision": "int3"}, "--precision: expected one of fp32, bf16"),
        ({"trace": (Path("/nonexistent.csv"),)}, "/nonexistent.csv: cannot be read"),
    ],
)
def test_bad_input_is_one_line(change, said, tmp_path):
    with RawServer(serving(answer, MODEL)) as server, pytest.raises(ConfigError) as caught:
        measured(server, tmp_path, replace(ASKED, **change))
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)
    assert not list((tmp_path / "runs").glob("*/cells.csv")) if (tmp_path / "runs").exists() else True


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"id": "a"}, {"id": "b"}], "--served-model-name: expected one of the server's models: a, b"),
        ([], "--served-model-name: expected one of the server's models: none"),
        ([7], "expected a list of models"),
    ],
)
def test_which_model_is_asked_for(models, said, tmp_path):
    with RawServer(serving(answer, models)) as server, pytest.raises((ConfigError, NoServer), match=said):
        measured(server, tmp_path)


def test_a_redirect_is_not_followed_and_takes_no_key_along(tmp_path, monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    with RawServer(answer) as other:

        async def elsewhere(call: Call) -> None:
            await call.send(b"HTTP/1.1 307 X\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % other.url.encode())

        with RawServer(elsewhere) as server, pytest.raises(NoServer, match="HTTP 307"):
            measured(server, tmp_path, api_key_env="THE_KEY")
    assert not other.calls


async def lies(call: Call) -> None:
    """More tokens than were asked for, and more cached than the prompt has; calibration gets the truth."""
    if call.connection <= 2:  # the list of models, calibration
        return await answer(call)
    count = {1: 10**400, 0: 10**6}[call.connection % 2]
    await call.send(HEAD, delta(content=" a"), delta("length"), usage(20, count, cached=99), DONE, END)


async def never_closes(call: Call) -> None:
    """[DONE], and a connection that stays open."""
    tokens, words = call.body["max_tokens"], len(call.body["messages"][0]["content"].split())
    await call.send(HEAD, *[delta(content=" a") for _ in range(tokens)], delta("length"))
    await call.send(usage(2 * words + 11, tokens), DONE)
    await asyncio.sleep(30)


async def endless(call: Call) -> None:
    """A complaint without an end."""
    if call.connection <= 2:  # the list of models, calibration
        return await answer(call)
    await call.send(b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(1000):
        await call.send(chunk(b"x" * (1 << 20)))


def test_a_usage_that_cannot_be_counts_for_nothing(tmp_path):
    with RawServer(serving(lies, MODEL)) as server:
        folder, row, _ = measured(server, tmp_path, replace(ASKED, concurrencies=(2,), load_s=1.0))
    requests = serving_results.read(folder, "requests")
    assert {request["status"] for request in requests} <= {"uncounted", "cut"}
    assert row["status"] == "error" and "uncounted" in row["reason"]


def test_done_is_the_end_of_an_answer_though_the_connection_stays(tmp_path):
    with RawServer(serving(never_closes, MODEL)) as server:
        folder, _, _ = measured(server, tmp_path, replace(ASKED, concurrencies=(8,), load_s=2.0))
    statuses = [request["status"] for request in serving_results.read(folder, "requests")]
    assert statuses.count("ok") >= 8 and set(statuses) <= {"ok", "cut"}


def test_a_complaint_is_read_no_further_than_its_beginning(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with RawServer(serving(endless, MODEL)) as server:
        folder, _, _ = measured(server, tmp_path, replace(ASKED, concurrencies=(1,), load_s=1.0))
    assert {request["status"] for request in serving_results.read(folder, "requests")} <= {"http_500", "cut"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "KiB; a body has 1,000,000"


@pytest.mark.parametrize(
    "said",
    [
        json.dumps({"data": [{"id": f"model-{KEY}"}]}),
        json.dumps({"data": [{"id": KEY[:12]}, {"id": "other"}]}),
        f"who is {KEY}?",
        "x" * 50 + KEY,
        json.dumps({"data": [{"id": "a\ud800"}]}),
        "[" * 100_000,
        "x" * (2 << 20),
    ],
    ids=lambda said: said[:24],
)
def test_whatever_the_list_of_models_says_is_one_line_without_the_key(said, tmp_path, monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)

    async def talks(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(said.encode()), said.encode())

    with RawServer(talks) as server, pytest.raises(NoServer) as caught:
        measured(server, tmp_path, api_key_env="THE_KEY")
    assert KEY[:8] not in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("form", [KEY, KEY.replace("/", "\\/"), quote(KEY, safe=""), KEY[:14] + " " + KEY[4:]])
def test_a_key_is_masked_however_it_is_written(form, monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    masked = Endpoint("http://x/v1", "m", api_key_env="THE_KEY").masked(f"no access with {form} here")
    assert not any(KEY[at : at + 8] in masked for at in range(len(KEY) - 7)) and masked.startswith("no access with ")


def command(url, out, *more):
    options = ["--gpu", "cpu", "--workload", "serve_chat_tiny", "--seconds", "2", "--out", str(out), *more]
    return [sys.executable, "-m", "bench", "run", "--endpoint", url, *options]


def test_the_command_line_and_ctrl_c_keeps_what_was_measured(tmp_path):
    with RawServer(serving(after(0.05), MODEL)) as server:
        options = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "env": os.environ | {"COLUMNS": "200"}}
        with subprocess.Popen(command(server.url, tmp_path, "--seconds", "3"), **options) as process:
            said = ""
            while "ok concurrency=1" not in said:
                said += process.stderr.readline()
            process.send_signal(signal.SIGINT)
            said += process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/cells.csv"))
    assert str(folder) in said and "Traceback" not in said
    points = serving_results.read(folder, "points")
    assert points[0]["point"] == "concurrency=1" and points[0]["output_tokens_per_s"] > 0
    (cell,) = runs.read_cells(folder)
    assert cell["status"] == "ok" and "interrupted" in cell["flags"]
    with open(folder / "environment.json") as file:
        assert json.load(file)["endpoint"]["model"] == "someone/Tiny-7B"


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--endpoint", "http://127.0.0.1:9/v1"], 1, "error: http://127.0.0.1:9/v1/models: ConnectError"),
        (["--endpoint", "ftp://x/v1"], 2, "error: --endpoint: 'ftp://x/v1': expected http://host:port/v1"),
        (["--endpoint", "http://[v1.x]/v1"], 2, "error: --endpoint: 'http://[v1.x]/v1': expected a host"),
        (["--endpoint", "http://\u0663.1/v1"], 2, "expected a host of plain letters"),
        (["--extra-body", "[1]"], 2, "error: --extra-body: expected a JSON object, got '[1]'"),
        (["--max-concurrency", "1,x"], 2, "error: --max-concurrency: expected positive whole numbers such as 1,8"),
        (["--request-rate", "0"], 2, "error: --request-rate: expected positive numbers such as 1,8, got '0'"),
        (["--api-key-env", "NOT_SET"], 2, "the environment variable NOT_SET is not set"),
    ],
)
def test_exit_codes(more, code, said, tmp_path):
    ended = subprocess.run(command("http://127.0.0.1:9/v1", tmp_path, *more), cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == code and said in ended.stderr and len(ended.stderr.splitlines()) == 1, ended.stderr


def test_no_column_is_lost(tmp_path):
    """What a point has and the file does not would be an error: every column of points.csv stands in its head."""
    with RawServer(serving(after(0.01), MODEL)) as server:
        folder, _, _ = measured(server, tmp_path, replace(ASKED, concurrencies=(2,), load_s=1.0))
    with open(folder / "points.csv") as file:
        assert next(csv.reader(file)) == list(serving_results.POINTS)
