"""Bad input gets one line naming file, key and expectation; good input comes out typed and frozen."""

import dataclasses
import shutil

import pytest

from bench import config
from bench.architecture import Model
from bench.config import ConfigError, Gpu, Suite
from bench.workload import Workload

MODEL = (config.CONFIGS / "models" / "llama_3_1_8b.toml").read_text()
GPU = (config.CONFIGS / "gpus" / "h100_sxm_80gb.toml").read_text()
SUITE = (config.CONFIGS / "suites" / "smoke.toml").read_text()


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A private copy of configs/ in use."""
    folder = shutil.copytree(config.CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(config, "CONFIGS", folder)
    return folder


@pytest.mark.parametrize("kind", [Model, Gpu, Workload, Suite])
def test_every_shipped_config_loads(kind):
    assert config.load_all(kind)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Model, MODEL + "layer = 3\n", "configs/models/bad.toml: layer: unknown key; did you mean layers?"),
        (Model, MODEL + "zebra = 3\n", "configs/models/bad.toml: zebra: unknown key; known keys: "),
        (Model, MODEL.replace("layers = 32\n", ""), "configs/models/bad.toml: layers: missing; expected int"),
        (Model, MODEL.replace("32\n", '"32"\n', 1), "configs/models/bad.toml: layers: expected int, got '32'"),
        (Model, MODEL.replace("= 32\n", "= true\n", 1), "configs/models/bad.toml: layers: expected int, got True"),
        (
            Model,
            MODEL.replace("= 32\n", "= 0\n", 1),
            "configs/models/bad.toml: layers: expected a positive count",
        ),
        (Model, MODEL.replace("kv_heads = 8", "kv_heads = 7"), "configs/models/bad.toml: kv_heads: expected a divisor"),
        (Model, "layers = 3", "configs/models/bad.toml: name: missing; expected str (missing too: hidden, heads, "),
        (Model, "layers = [", "configs/models/bad.toml: not valid TOML: "),
        (Gpu, GPU.replace("fp8 =", "fp9 ="), "configs/gpus/bad.toml: peak_flops_per_s: expected one of"),
        (
            Gpu,
            GPU.replace("3.35e+12", "nan"),
            "configs/gpus/bad.toml: hbm_bytes_per_s: expected a finite number",
        ),
        (Gpu, GPU.replace("3.35e+12", "-1.0"), "configs/gpus/bad.toml: hbm_bytes_per_s: expected a positive rate"),
        (Suite, SUITE.replace('"cpu"', '"tpu"'), "configs/suites/bad.toml: device: expected cpu or cuda, got 'tpu'"),
        (
            Suite,
            SUITE.replace("seconds = 2", 'seconds = "2"', 1),
            "configs/suites/bad.toml: groups[0].seconds: expected float, got '2'",
        ),
        (Suite, SUITE.replace("seconds =", "secs =", 1), "configs/suites/bad.toml: groups[0].secs: unknown key"),
        (
            Workload,
            'phase = "sing"\nprecision = "bf16"\nsource = "x"\n',
            "configs/workloads/bad.toml: phase: expected one of ceiling, decode, kernel, prefill, rl_step, serve, "
            "train_step",
        ),
    ],
)
def test_bad_input_is_one_line_naming_file_key_and_expectation(copied, kind, text, message):
    (copied / kind.FOLDER / "bad.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(kind, "bad")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_a_name_that_does_not_exist_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"lama_3_1_8b.toml: no such config; did you mean llama_3_1_8b"):
        config.load(Model, "lama_3_1_8b")


def test_a_dropped_in_file_is_found_and_its_stem_is_its_key(copied):
    for kind, text in ((Model, MODEL), (Gpu, GPU), (Suite, SUITE)):
        (copied / kind.FOLDER / "dropped.toml").write_text(text)
        assert "dropped" in config.keys(kind) and config.load(kind, "dropped").key == "dropped"


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.load(Model, "tiny_15m").layers = 3


def test_every_gpu_is_named_by_at_most_one_config():
    names = [name for gpu in config.load_all(Gpu).values() for name in gpu.device_names]
    assert len(names) == len(set(names))


def test_every_suite_names_things_that_exist():
    from bench import plan

    for suite in config.load_all(Suite).values():
        assert plan.cells(suite, 80e9)


def test_kernel_workloads_name_an_op_and_a_shape():
    from bench.kernels.op import discover

    ops = discover()
    for workload in config.load_all(Workload).values():
        if workload.phase == "kernel":
            assert workload.shape in ops[workload.op].shapes


def test_the_backends_a_suite_may_name_are_those_of_the_kernels():
    from bench.kernels.op import BACKENDS

    assert config.BACKENDS == BACKENDS
    with pytest.raises(ValueError, match="each one of reference, compile, triton, best, got 'tritn'"):
        config.Group(workloads=("x",), backends=("tritn",))
