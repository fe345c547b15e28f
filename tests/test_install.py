"""Set-up: torch first and the CPU build where there is no GPU; each thing that can be missing is one line."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench import install

ROOT = Path(__file__).resolve().parent.parent


def test_without_a_gpu_only_cpu_builds_are_ever_asked_for():
    for command in install.torch_commands(["pip", "install"], False, install.CPU_INDEX):
        assert command[-1] == "torch==2.13.0+cpu"


def test_the_fallback_takes_an_index_or_a_folder(tmp_path):
    assert "--index-url" in install.torch_commands(["pip", "install"], False, "https://index.example/whl")[1]
    offline = install.torch_commands(["pip", "install"], False, str(tmp_path))[1]
    assert "--no-index" in offline and str(tmp_path) in offline


def test_with_a_gpu_the_ordinary_build_is_asked_for():
    assert install.torch_commands(["pip", "install"], True, "x") == [["pip", "install", "torch==2.13.0"]]


def test_no_source_of_torch_is_one_line_naming_the_variable():
    with pytest.raises(install.SetupError) as caught:
        install.install_torch(["false", "install"], False, "https://index.example/whl")
    assert "TORCH_INDEX" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_extra_is_refused():
    with pytest.raises(install.SetupError, match="no extra named 'gpu'"):
        install.requirements(["gpu"])


def test_torch_is_left_to_its_own_step_and_the_constraints_agree():
    assert not [need for need in install.requirements(["dev", "peers"]) if need.startswith("torch")]
    cpu = (ROOT / "constraints-cpu.txt").read_text()
    assert f"torch=={install.TORCH}\n" in cpu and "triton==3.7.1\n" in cpu
    assert "triton" not in [line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()]


def test_everything_required_is_pinned():
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints-cpu.txt").read_text().splitlines()}
    for need in install.requirements(["dev"]):
        name = need.split(">")[0].split(";")[0].split("<")[0].strip().lower()
        assert name in pinned, name


@pytest.mark.parametrize(
    ("broken", "named"),
    [("ensurepip", "python3-venv"), ("compiler", "a C++ compiler"), ("headers", "Python headers")],
)
def test_what_the_system_lacks_is_named(monkeypatch, broken, named):
    assert not [part for part in install.missing_parts() if part.startswith(named)]
    if broken == "ensurepip":
        monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    elif broken == "compiler":
        monkeypatch.setattr(install.shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(install.sysconfig, "get_paths", lambda: {"include": "/nonexistent"})
    assert [part for part in install.missing_parts() if part.startswith(named)]


def test_nothing_of_ours_is_installed():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"] == []


def test_set_up_needs_the_standard_library_alone():
    code = "import sys; sys.modules.update(dict.fromkeys(('torch', 'numpy', 'rich', 'typer'))); import bench.install"
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True)
