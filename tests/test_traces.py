"""Original trace files are read as they are, bad ones refused in one line, and the shipped figures are theirs.

The last needs the files: CROSSOVER_TRACES names the folder they lie in. Without it those tests are skipped.
"""

import gzip
import hashlib
import json
import lzma
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import config
from bench.config import ConfigError
from bench.traffic import distil
from bench.traffic.planning import plan
from bench.traffic.traces import read
from bench.traffic.traffic import Traffic

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,0
2023-11-16 18:16:50.9951690,879,55
"""
SERVEGEN = "t_s,client_id,input_tokens,output_tokens,reasoning_tokens\n4.342,48,433,496,390\n4.580,35,13,1487,519\n"
VIDUR = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3772,54,3826,69.85\n2015.0,156,2171,12.9\n"
MOONCAKE = [
    {"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 0, "input_length": 700, "output_length": 6, "hash_ids": [0, 3]},
    {"timestamp": 3001, "input_length": 1900, "output_length": 7, "hash_ids": [0, 1, 4, 5]},
    {"timestamp": 3001, "input_length": 1100, "output_length": 8, "hash_ids": [0, 3, 6]},
    {"timestamp": 9000, "input_length": 1024, "output_length": 9, "hash_ids": [0, 1]},
    {"timestamp": 9000, "input_length": 600, "output_length": 9, "hash_ids": [0, 7]},
]
WEKA = {
    "id": "trace_0009",
    "models": ["m"],
    "block_size": 64,
    "hash_id_scope": "local",
    "requests": [
        {"t": 0.0, "type": "n", "in": 200, "out": 10, "hash_ids": [1, 2, 3, 4], "api_time": 2.0, "think_time": 0.0},
        {
            "t": 5.5,
            "type": "subagent",
            "agent_id": "agent_001",
            "requests": [
                {"t": 0.0, "type": "n", "in": 100, "out": 3, "hash_ids": [90, 91], "api_time": 1.0},
                {"t": 4.0, "type": "n", "in": 140, "out": 3, "hash_ids": [90, 91, 92], "api_time": 1.0},
            ],
        },
        {"t": 30.0, "type": "n", "in": 300, "out": 11, "hash_ids": [1, 2, 3, 7, 8], "think_time": 28.0},
        {"t": 40.0, "type": "s", "in": 66, "out": 12, "hash_ids": [1, 50]},
        {"t": 50.0, "type": "n", "in": 330, "out": 13, "hash_ids": [1, 2, 3, 7, 8, 9], "think_time": 4.0},
    ],
}


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_azure_stamps_become_seconds(tmp_path):
    found = read([written(tmp_path, "conv.csv", AZURE)])
    assert [r.arrival_s for r in found] == pytest.approx([0, 4.314579, 64.314579])
    assert [(r.input_tokens, r.output_tokens) for r in found] == [(374, 44), (396, 1), (879, 55)]
    assert [(r.number, r.session) for r in found] == [(0, 0), (1, 1), (2, 2)]


def test_tables_may_be_compressed_and_have_further_columns(tmp_path):
    (tmp_path / "r1.csv.gz").write_bytes(gzip.compress(SERVEGEN.encode()))
    found = read([tmp_path / "r1.csv.gz"])
    assert [(r.input_tokens, r.output_tokens) for r in found] == [(433, 496), (13, 1487)]
    assert found[1].arrival_s == pytest.approx(0.238)


def test_lengths_without_times_have_no_arrivals(tmp_path):
    found = read([written(tmp_path, "arxiv.csv", VIDUR)])
    assert [(r.input_tokens, r.output_tokens, r.arrival_s) for r in found] == [(3772, 54, None), (2015, 156, None)]


def test_mooncake_blocks_become_shared_prefixes(tmp_path):
    path = written(tmp_path, "conversation.jsonl", "".join(json.dumps(row) + "\n" for row in MOONCAKE))
    found = read([path], seed=3)
    assert [(r.prefix_of, r.shared_tokens) for r in found] == [
        (None, 0),
        (0, 512),
        (0, 1024),
        (1, 1024 - 324),  # two blocks, but request 1 has no more than 700 tokens
        (2, 1023),  # all of it; the last token is read again
        (4, 512),
    ]
    # block 0 is everybody's, and makes no session
    assert [r.session for r in found] == [0, 1, 0, 1, 0, 5]
    times = [r.arrival_s for r in found]
    assert times == sorted(times) and times != [r.arrival_s for r in read([path], seed=4)]
    assert [int(t // 3) for t in times] == [0, 0, 1, 1, 3, 3]
    assert times == [r.arrival_s for r in read([path], seed=3)]


def test_weka_turns_follow_answers_and_subagents_the_request_before_them(tmp_path):
    found = read([written(tmp_path, "trace_0009.json", json.dumps(WEKA))])
    assert [(r.input_tokens, r.session, r.after, r.think_s) for r in found] == [
        (200, 0, None, 0.0),
        (300, 0, 0, 28.0),
        (66, 0, 1, 10.0),  # no think time: from the request before it, whose answer took no known time
        (330, 0, 2, 4.0),
        (100, 1, 0, 3.5),  # the subagent, begun 3.5 s after the first answer
        (140, 1, 4, 3.0),
    ]
    # the fourth goes back past the third, to the second
    shared = [(None, 0), (0, 192), (1, 64), (1, 300), (None, 0), (4, 100)]
    assert [(r.prefix_of, r.shared_tokens) for r in found] == shared


def test_block_ids_may_stand_as_runs_and_sessions_in_a_folder(tmp_path):
    def run(request):
        if "requests" in request:
            return request | {"requests": [run(one) for one in request["requests"]]}
        flat = [value for block in request["hash_ids"] for value in (block, 1)]
        return {key: value for key, value in request.items() if key != "hash_ids"} | {"hash_rle": flat}

    (tmp_path / "rle.jsonl.xz").write_bytes(lzma.compress((json.dumps(run(WEKA)) + "\n").encode() * 2))
    folder = tmp_path / "traces"
    folder.mkdir()
    for name in ("trace_0002.json", "trace_0001.json"):
        written(folder, name, json.dumps(WEKA, indent=1))  # over many lines
    assert read([tmp_path / "rle.jsonl.xz"]) == read([folder])
    assert len(read([folder])) == 12 and len({r.session for r in read([folder])}) == 4


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", AZURE.replace("396", "many"), "a.csv: line 3: expected TIMESTAMP, ContextTokens, GeneratedTokens: "),
        ("a.csv", AZURE.replace(",396,0", ""), "a.csv: line 3: expected TIMESTAMP, ContextTokens, GeneratedTokens: "),
        ("a.csv", AZURE.replace("18:16:50", "18:15:48"), "a.csv: line 4: expected TIMESTAMP, ContextTokens, "),
        ("a.csv", AZURE.replace("396", "-3"), "a.csv: line 3: expected TIMESTAMP, ContextTokens, GeneratedTokens: "),
        ("a.csv", AZURE.replace("2023-11-16 18:16:50", "noon"), "a.csv: line 4: expected TIMESTAMP, "),
        ("a.csv", AZURE.split("\n")[0], "a.csv: line 2: expected a request, got the end of the file"),
        ("a.csv", "when,what\n1,2\n", "a.csv: line 1: expected Azure 2023, ServeGen or Vidur CSV, Mooncake JSONL"),
        ("a.csv", "", "a.csv: line 1: expected Azure 2023, ServeGen or Vidur CSV, Mooncake JSONL"),
        ("a.csv.gz", "no gzip", "a.csv.gz: line 1: expected Azure 2023"),
        ("m.jsonl", json.dumps(MOONCAKE[0]) + '\n{"timestamp": 3', "m.jsonl: line 2: expected JSON: "),
        (
            "m.jsonl",
            json.dumps(MOONCAKE[2]) + "\n" + json.dumps(MOONCAKE[0]),
            "m.jsonl: line 2: timestamp: expected one that rises, got 0",
        ),
        (
            "m.jsonl",
            json.dumps(MOONCAKE[0] | {"input_length": "12"}),
            "m.jsonl: line 1: input_length: expected int, got 12",
        ),
        ("w.json", '{"id": "x", "block_size": 64}', "w.json: line 1: requests: expected list, got None"),
        (
            "w.json",
            json.dumps(WEKA).replace('"in": 300', '"in": -300'),
            "w.json: line 1: requests[2]: in: expected int, got -300",
        ),
        (
            "w.json",
            json.dumps(WEKA).replace('"hash_ids": [90, 91]', '"blocks": 2'),
            "w.json: line 1: subagent 1: requests[0]: hash_ids: expected a list of block ids",
        ),
    ],
)
def test_a_bad_file_is_one_line_naming_file_line_and_expectation(tmp_path, name, text, message):
    with pytest.raises(ConfigError) as caught:
        read([written(tmp_path, name, text)])
    assert str(caught.value).startswith(f"{tmp_path}/{message}") and "\n" not in str(caught.value)


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.csv: cannot be read"):
        read([tmp_path / "nothing.csv"])
    with pytest.raises(ConfigError, match="no trace file; expected Azure 2023"):
        read([tmp_path])


def test_only_sessions_come_in_several_files(tmp_path):
    one, other = (written(tmp_path, name, AZURE) for name in ("a.csv", "b.csv"))
    with pytest.raises(ConfigError, match=r"b\.csv: expected one file of this format"):
        read([one, other])


# ---------------------------------------------------------------- distilling


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """configs/traffic with one class in it, its figures gone."""
    words = (config.CONFIGS / "traffic" / "chat.toml").read_text().partition(distil.MARKER)[0]
    (tmp_path / "configs" / "traffic").mkdir(parents=True)
    (tmp_path / "configs" / "traffic" / "chat.toml").write_text(f"{words}{distil.MARKER}\n")
    monkeypatch.setattr(distil, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(config, "CONFIGS", tmp_path / "configs")
    return tmp_path


def test_what_is_distilled_is_read_and_drawn_from(copied):
    """From a made-up trace whose law is known: outputs are half of their inputs."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(100, 1000, 3000)
    stamps = np.cumsum(rng.exponential(0.5, 3000))
    rows = [f"{at:.6f},0,{size},{size // 2}" for at, size in zip(stamps, inputs, strict=True)]
    path = written(copied, "made_up.csv", "t_s,client_id,input_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    assert distil.main(["chat", str(path)]) == 0
    found = config.load(Traffic, "chat")
    assert found.about.startswith("an hour of a conversation service") and found.requests == 3000
    assert found.files == {"made_up.csv": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert found.arrivals.rate_per_s == pytest.approx(2, rel=0.05) and found.arrivals.cv == pytest.approx(1, abs=0.05)
    assert np.std(found.arrivals.relative_rates) < 0.06  # steady, though counts of a minute vary by a tenth
    drawn = plan(found, 20_000, 0).requests
    ratio = np.array([r.output_tokens / r.input_tokens for r in drawn])
    assert np.mean([r.input_tokens for r in drawn]) == pytest.approx(inputs.mean(), rel=0.01)
    # half, within what a bin is wide
    assert ratio.mean() == pytest.approx(0.5, rel=0.03) and ratio.std() < 0.12
    first = (copied / "configs" / "traffic" / "chat.toml").read_text()
    assert distil.main(["chat", str(path)]) == 0
    assert (copied / "configs" / "traffic" / "chat.toml").read_text() == first


def test_distilling_wrongly_is_one_line(copied, capsys):
    assert distil.main(["chat"]) == 2
    assert distil.main(["chatt", "x.csv"]) == 2
    assert distil.main(["chat", "x.csv"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[0].startswith("usage: ")
    assert lines[1].startswith("configs/traffic/chatt.toml: no such class") and "x.csv: cannot be read" in lines[2]


@pytest.mark.parametrize("key", config.keys(Traffic))
def test_the_original_file_gives_the_committed_figures_again(key):
    folder = os.environ.get("CROSSOVER_TRACES")
    if folder is None:
        pytest.skip("CROSSOVER_TRACES names no folder with the original traces")
    wanted = config.load(Traffic, key).files
    found = {path.name: path for path in Path(folder).rglob("*") if path.name in wanted}
    if set(found) != set(wanted):
        pytest.skip(f"not in {folder}: {', '.join(sorted(set(wanted) - set(found)))}")
    text = (config.CONFIGS / "traffic" / f"{key}.toml").read_text()
    assert distil.distilled([found[name] for name in wanted]) == text.partition(distil.MARKER)[2].lstrip("\n")


def test_neither_traces_nor_their_figures_need_more_than_numpy():
    import subprocess

    code = (
        "import sys\nfor name in ('torch', 'pandas', 'scipy', 'pydantic'): sys.modules[name] = None\n"
        "import bench.traffic.distil, bench.traffic.mixes, bench.traffic.prompts, bench.traffic.arrivals\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parent.parent, check=True)
