"""The load client against a server that people use: `transformers serve`, on a tiny model made here."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("openai")
pytest.importorskip("pydantic")
pytest.importorskip("requests")
pytest.importorskip("accelerate")

import httpx

from bench import serving_results
from bench.client.address import Endpoint, Timeouts
from bench.client.client import token_source
from bench.client.generator import drive
from bench.client.text import Prompts, calibrate, shortfall
from bench.measure.clock import now
from bench.traffic.records import Planned
from bench.traffic.source import source

CONTEXT = 1024
REQUESTS = 50
CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_model(folder: Path, text: str) -> None:
    """A Llama of random weights with a byte-level tokenizer trained on `text`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    end = fast.convert_tokens_to_ids("<|end|>")
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Endpoint]:
    """An endpoint that answers; its process is ended as a person would, and must end."""
    folder = tmp_path_factory.mktemp("served")
    make_model(folder, (Path(__file__).parent / "data" / "public_domain.txt").read_text())
    port = free_port()
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    environment.pop("TRITON_INTERPRET", None)
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command + options, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/health", process, log)
        yield Endpoint(f"http://127.0.0.1:{port}/v1", str(folder), timeouts=Timeouts(total_s=45.0))
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) in (0, -signal.SIGTERM, 128 + signal.SIGTERM), log.read_text()[-2000:]
    finally:
        process.kill()
        process.wait()


def wait_until_ready(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = now() + 120
    while now() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            threading.Event().wait(0.2)
    pytest.fail(log.read_text()[-2000:])


def chat(count: int) -> list[Planned]:
    """Requests of the class chat, a tenth as long, as bursty as they come."""
    requests = source("chat")
    drawn = requests.plan(count, 0, max_context=CONTEXT // 2, scale=0.1).requests
    return requests.scheduled(drawn, 10.0, "trace", 0)


def test_fifty_streams_are_counted_by_the_servers_usage(server):
    plan = chat(REQUESTS)
    calibration = calibrate(server)
    assert calibration.tokens_per_word > 1 and calibration.overhead_tokens > 0, "the template adds its own"
    run = drive(server, plan, Prompts(plan, calibration), deadline_s=45)
    assert [record.status for record in run.records] == ["ok"] * REQUESTS, {r.reason for r in run.records}
    assert {token_source(record) for record in run.records} == {"usage"}
    for one, record in zip(plan, run.records, strict=True):
        assert 1 <= record.output_tokens <= one.output_tokens, "an end of sequence may cut it"
        assert record.sent_s >= one.arrival_s and record.end_s <= run.end_s
        if record.token_s:
            assert record.sent_s < record.first_token_s <= record.token_s[-1] <= record.end_s
    achieved = shortfall(plan, run.records)
    assert achieved is not None
    print(f"achieved of planned: input {achieved[0]:.3f}, output {achieved[1]:.3f}")
    assert achieved[0] == pytest.approx(1.0, abs=0.03)
    assert 0.3 < achieved[1] <= 1.0
    chunks, tokens = sum(len(r.token_s) for r in run.records), sum(r.output_tokens for r in run.records)
    print(f"{chunks} chunks with content for {tokens} tokens")
    assert chunks != tokens, "or counting chunks would have done"


def test_what_the_server_refuses_is_a_status(server):
    wrong = Endpoint(server.base_url, server.model, extra={"no_such_field": 1})
    run = drive(wrong, [Planned(0, 8, 2)], lambda _: "hello", concurrency=1, deadline_s=20)
    assert run.records[0].status == "http_422" and "no_such_field" in run.records[0].reason


def test_its_completions_stream_too(server):
    endpoint = Endpoint(server.base_url, server.model, path="completions")
    run = drive(endpoint, [Planned(0, 8, 6)], lambda _: "hello there", concurrency=1, deadline_s=20)
    assert run.records[0].status == "ok" and 1 <= run.records[0].output_tokens <= 6, run.records[0].reason


def test_the_command_measures_it_as_it_would_any_server(server, tmp_path):
    options = ["--gpu", "cpu", "--workload", "serve_chat_tiny", "--max-concurrency", "2", "--seconds", "4"]
    options += ["--served-model-name", server.model, "--out", str(tmp_path)]
    command = [sys.executable, "-m", "bench", "run", "--endpoint", server.base_url, *options]
    ended = subprocess.run(command, cwd=Path(__file__).resolve().parent.parent, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "ok concurrency=2" in ended.stderr and "output tokens/s" in ended.stderr
    (folder,) = (path.parent for path in (tmp_path / "runs").glob("*/cells.csv"))
    (point,) = serving_results.read(folder, "points")
    assert point["token_source"] == "usage" and point["window_requests"] >= 8
    assert "littles_law" not in (point["void"] or ""), "in flight as sampled, rate and time by the records"
