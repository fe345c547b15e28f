"""Every format lands; what cannot land is one line and exit code 2; the same file always lands the same."""

import csv
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.import_results import IMPORTED, KERNELS_SUFFIX, read_imported, read_imported_kernels
from bench.importers import landing, names
from bench.importers.document import Document, Refused
from bench.results import PUBLISHED, ResultsError, append
from tests.import_samples import API_ROW, SAMPLES, VLLM, written

ROOT = Path(__file__).resolve().parent.parent
GIVEN = {
    **{"gpu": "h100_sxm_80gb", "num_gpus": 8, "model": "llama_3_1_8b", "precision": "fp8"},
    **{"as_of": "2026-11", "source": "https://example.org/x", "commit": "abc", "licence": "CC0"},
}


def saved(tmp_path, name, content=None):
    path = tmp_path / SAMPLES[name][1]
    path.write_text(written(SAMPLES[name][2] if content is None else content), encoding="utf-8")
    return path


def wanted(path):
    """What the user must say about a sample: what is in it is left out."""
    asked = dict(GIVEN)
    while True:
        try:
            landing.land(path, None, landing.Given(**asked), path.parent / "scratch")
            return landing.Given(**asked)
        except Refused as error:
            told = [word.strip("-:,").replace("-", "_") for word in str(error).split() if word.startswith("--")]
            assert told and told[0] in asked and "leave the option out" in str(error), error
            del asked[told[0]]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """What the user must say about each sample."""
    folder = tmp_path_factory.mktemp("asked")
    return {name: wanted(saved(folder, name)) for name in SAMPLES}


def bench(*arguments):
    command = [sys.executable, "-m", "bench", *map(str, arguments)]
    quiet = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)


@pytest.mark.parametrize("name", SAMPLES)
def test_each_sample_is_claimed_by_its_own_format_alone(tmp_path, name):
    document = Document.of(saved(tmp_path, name))
    assert [key for key, module in landing.formats().items() if module.sniff(document)] == [SAMPLES[name][0]]


def test_every_format_has_a_sample_and_says_what_it_is():
    known = landing.formats()
    assert {sample[0] for sample in SAMPLES.values()} == set(known)
    for module in known.values():
        assert module.ABOUT and module.GIVES and len(module.__doc__) > 200
    table = (ROOT / "docs" / "importing.md").read_text()
    assert all(f"| `{name}` |" in table for name in known)


def test_a_format_is_one_file_in_the_folder(tmp_path, monkeypatch):
    for path in landing.HERE.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "notes.py").write_text('"""No format."""\nNAMES = ()\n')
    monkeypatch.setattr(landing, "HERE", tmp_path)
    before = set(landing.formats())
    (tmp_path / "vllm.py").unlink()
    assert before - set(landing.formats()) == {"vllm"}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_lands_whole_and_the_same_twice(tmp_path, name):
    path = saved(tmp_path, name)
    given = wanted(path)
    landed = landing.land(path, None, given, tmp_path / "imports")
    kernels = landed.path.name.endswith(KERNELS_SUFFIX)
    rows = (read_imported_kernels if kernels else read_imported)(landed.path)
    values = SAMPLES[name][2]
    records = {"inferencex_api": 2, "mlenergy": 2}.get(name, 1)
    assert len(rows) + sum(landed.left_out.values()) == records and values
    assert all(row["id"].startswith(f"import:{SAMPLES[name][0]}_") and row["licence"] == "CC0" for row in rows)
    before = landed.path.read_bytes()
    assert landing.land(path, SAMPLES[name][0], given, tmp_path / "imports").path.read_bytes() == before
    assert landed.path.name.startswith(f"{SAMPLES[name][0]}_{path.stem}_{rows[0]['sha256'][:8]}")


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("tenths", range(10))
def test_a_truncated_file_is_one_line_and_writes_nothing(tmp_path, name, tenths):
    path = saved(tmp_path, name)
    given, data = wanted(path), path.read_bytes()
    path.write_bytes(data[: len(data) * tenths // 10])
    with pytest.raises(Refused) as caught:
        landing.land(path, None, given, tmp_path / "imports")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert not (tmp_path / "imports").exists()


def test_an_unknown_file_lists_what_was_expected(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("a shopping list\n")
    answer = bench("import", path, "--out", tmp_path)
    assert answer.returncode == 2 and "no known format; it starts with 'a shopping list'" in answer.stderr
    assert all(name in answer.stderr for name in landing.formats()) and answer.stderr.count("\n") == 1
    assert "--format: expected one of aiperf" in bench("import", path, "--format", "vlm", "--out", tmp_path).stderr
    with pytest.raises(Refused, match="not vllm: expected vllm bench serve"):
        landing.land(path, "vllm", landing.Given(), tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty; expected a result file"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"\x1f\x8b\x08\x00cut", "not a whole gzip file"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1} trailing', "line 1 column 10: not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_text_or_json_is_named(tmp_path, content, said):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(Refused) as caught:
        Document.of(path)
    assert said in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(Refused, match="cannot be read"):
        Document.of(tmp_path / "absent.json")


def test_a_compressed_answer_of_an_api_lands(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(gzip.compress(json.dumps([API_ROW]).encode()))
    assert len(landing.land(path, None, landing.Given(), tmp_path / "imports").rows) == 1


def test_what_is_needed_and_missing_is_one_line_with_all_of_it(tmp_path):
    answer = bench("import", saved(tmp_path, "vllm"), "--out", tmp_path / "out")
    assert answer.returncode == 2 and not (tmp_path / "out").exists()
    assert "the file does not say n_gpus, source, gpu: give --num-gpus, --source, --gpu" in answer.stderr


def test_an_option_never_stands_against_the_file(tmp_path):
    path = saved(tmp_path, "inferencex_api")
    with pytest.raises(Refused, match=r"\[0\]: n_gpus: the file says 8, --num-gpus says 4: leave the option out"):
        landing.land(path, None, landing.Given(num_gpus=4), tmp_path / "imports")
    with pytest.raises(Refused, match="gpu: the file says b200_sxm_180gb, --gpu says h100_sxm_80gb"):
        landing.land(path, None, landing.Given(gpu="h100_sxm_80gb"), tmp_path / "imports")


@pytest.mark.parametrize(
    "wrong", [{"gpu": "h100"}, {"model": "gpt-5"}, {"precision": "int4"}, {"num_gpus": 0}, {"output_tokens": -1.0}]
)
def test_an_option_that_is_no_key_or_no_size_is_refused(wrong):
    with pytest.raises(Refused, match=f"--{next(iter(wrong)).replace('_', '-')}: expected"):
        landing.Given(**wrong)


def test_a_name_no_table_has_keeps_its_words_and_no_key(tmp_path):
    rows = [API_ROW, API_ROW | {"hardware": "B200 "}, API_ROW | {"model": "gptoss120b-next"}]
    landed = landing.land(saved(tmp_path, "inferencex_api", rows), None, landing.Given(), tmp_path / "imports")
    keys = [(row["gpu"], row["gpu_name"], row["model"], row["model_name"]) for row in read_imported(landed.path)]
    assert keys[0] == ("b200_sxm_180gb", "b200", "gpt_oss_120b", "gptoss120b")
    assert keys[1][:2] == (None, "B200 ") and keys[2][2:] == (None, "gptoss120b-next")
    assert "no key for gpu 'B200 ': 1 rows kept, never priced" in landed.remarks


def test_an_option_stands_for_one_unknown_name_and_not_for_two(tmp_path):
    one = saved(tmp_path, "inferencex_api", [API_ROW | {"hardware": "b200-lab"}])
    (row,) = landing.land(one, None, landing.Given(gpu="b200_sxm_180gb"), tmp_path / "imports").rows
    assert (row["gpu"], row["gpu_name"]) == ("b200_sxm_180gb", "b200-lab")
    two = saved(tmp_path, "inferencex_api", [API_ROW | {"hardware": name} for name in ("b200-lab", "mi355x")])
    with pytest.raises(Refused, match="--gpu stands for one gpu, and the file names 2: b200-lab, mi355x"):
        landing.land(two, None, landing.Given(gpu="b200_sxm_180gb"), tmp_path / "imports")


def test_every_name_in_the_tables_leads_to_a_config():
    assert all(names.gpu(name)[0] for name in names.GPUS)
    for key, known in [*names.MODELS.items(), *names.SAME_SHAPES.items()]:
        assert {names.model(name)[0] for name in known} == {key}
    assert "has the shapes of DeepSeek-V3" in names.model("dsr1")[1]
    assert names.gpu("NVIDIA H100 80GB HBM3")[0] == "h100_sxm_80gb"  # the driver's own name
    assert [names.precision(word) for word in ("NVFP4", "bfloat16", "int4", None)] == ["fp4", "bf16", None, None]


def test_the_imported_columns_hold_all_that_published_ones_do():
    assert set(PUBLISHED) < set(IMPORTED)
    for name in PUBLISHED:
        assert IMPORTED[name][0] == PUBLISHED[name][0]


def test_a_changed_import_is_named_by_line_and_column(tmp_path):
    path = saved(tmp_path, "vllm")
    landed = landing.land(path, None, wanted(path), tmp_path / "imports")
    (row,) = read_imported(landed.path)
    for change, said in (
        ({"n_gpus": None}, "line 2: n_gpus: blank"),
        ({"phase": "dream"}, "line 2: phase: expected one of train_step"),
        ({"system_tokens_per_s": 0.0}, "line 2: system_tokens_per_s: expected a positive number"),
        ({"ttft_s_p50": -1.0}, "line 2: ttft_s_p50: expected no negative number"),
    ):
        wrong = tmp_path / "wrong.csv"
        wrong.unlink(missing_ok=True)
        append(wrong, IMPORTED, [row | change])
        with pytest.raises(ResultsError, match=said):
            read_imported(wrong)


def test_five_thousand_rows_of_an_api_land_within_five_seconds(tmp_path):
    rows = [
        API_ROW | {"conc": number, "metrics": API_ROW["metrics"] | {"median_ttft": 1.0}} for number in range(1, 5001)
    ]
    path = saved(tmp_path, "inferencex_api", rows)
    start = time.perf_counter()
    landed = landing.land(path, None, landing.Given(), tmp_path / "imports")
    with open(landed.path, newline="") as file:
        assert len(list(csv.DictReader(file))) == 5000
    assert time.perf_counter() - start < 5


def test_the_command_says_how_many_rows_where_and_what_was_left_out(tmp_path):
    rows = written([API_ROW, API_ROW | {"metrics": {"tput_per_gpu": 0}, "hardware": "mi355x"}])
    path = saved(tmp_path, "inferencex_api", rows)
    answer = bench("import", path, "--licence", "none of ours", "--out", tmp_path / "out")
    assert answer.returncode == 0 and "1 of 2 results of benchmarks.json (inferencex)" in answer.stdout
    assert "left out: 1 without a rate" in answer.stdout and "no commit told" in answer.stderr
    assert len(list((tmp_path / "out" / "imports").glob("inferencex_benchmarks_*.csv"))) == 1


def test_costs_in_a_file_are_never_read_and_the_user_is_told(tmp_path):
    row = API_ROW | {"metrics": API_ROW["metrics"] | {"costh": 14.4, "usd_per_node_hour": 115.2}}
    plain = landing.land(saved(tmp_path, "inferencex_api", [API_ROW]), None, landing.Given(), tmp_path / "a")
    priced = landing.land(saved(tmp_path, "inferencex_api", [row]), None, landing.Given(), tmp_path / "b")
    own = ("id", "sha256", "file")
    assert [v for k, v in priced.rows[0].items() if k not in own] == [
        v for k, v in plain.rows[0].items() if k not in own
    ]
    assert any("own costs are not read (costh, usd_per_node_hour)" in line for line in priced.remarks)
    assert not any("costs" in line for line in plain.remarks)


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10**400),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def spots(value, path=()):
    """Every place in a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from spots(child, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_change_to_a_file_raises_anything_but_a_refusal(tmp_path, asked, data):
    name = data.draw(st.sampled_from(sorted(SAMPLES)))
    content = SAMPLES[name][2]
    if isinstance(content, str) and content.startswith("{"):
        content = json.loads(content)
    if isinstance(content, str):  # a log: lines lost, doubled or changed
        lines = content.splitlines()
        at = data.draw(st.integers(0, len(lines) - 1))
        lines[at] = data.draw(st.sampled_from(["", lines[at] * 2, lines[at].replace("1", "x"), lines[at][:-3], "{"]))
        content = "\n".join(lines)
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content = changed(content, data.draw(st.sampled_from(list(spots(content)))), data.draw(junk))
        content = json.dumps(content)
    path = saved(tmp_path, name, content)
    try:
        landed = landing.land(path, None, asked[name], tmp_path / "imports")
    except Refused as error:
        assert "\n" not in str(error)
        return
    (read_imported_kernels if landed.path.name.endswith(KERNELS_SUFFIX) else read_imported)(landed.path)


def test_a_number_that_is_none_is_refused_with_its_place(tmp_path):
    path = saved(tmp_path, "vllm", VLLM | {"output_throughput": "fast"})
    with pytest.raises(Refused, match=r"openai-infqps.json: output_throughput: expected a number, got 'fast'"):
        landing.land(path, None, landing.Given(**GIVEN), tmp_path / "imports")
