"""Who may import whom, read from the source: the house's walls."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEFT = {
    "config",
    "results",
    "runs",
    "kernels",
    "model",
    "traffic",
    "points",
    "client",
    "serving",
    "workloads",
    "measure",
    "plan",
    "journal",
    "run",
    "endpoint",
    "crew",
    "display",
    "tune",
    "peers",
}

# room -> rooms of ours it may import (itself aside)
MAY = {
    "config": set(),
    "results": set(),
    "runs": {"results"},
    "install": set(),
    "options": {"config"},
    "kernels": set(),
    "model": {"config", "kernels"},
    "traffic": {"config"},
    "points": {"config", "results", "traffic"},
    "client": {"traffic", "points", "measure"},
    "serving": {"config", "model", "kernels", "measure", "traffic", "points"},
    "workloads": {"config", "model", "traffic", "points", "client", "serving", "kernels", "measure", "peers"},
    "measure": set(),
    "plan": {"config", "model"},
    "journal": {"results", "runs"},
    "run": LEFT,
    "endpoint": LEFT,
    "crew": {"measure"},
    "display": {"config", "plan", "points"},
    "tune": {"config", "results", "kernels", "measure"},
    "peers": {"config", "kernels", "measure"},
    "kernel_results": {"results"},
    "importers": {"config", "results", "runs", "options"},
    "price": {"config", "results", "runs"},
    "claim": {"config", "results", "price"},
    "modelled": {"config", "results", "price", "accounting"},
    "report": {"config", "results", "price", "claim", "modelled"},
    "derive": {"config", "results", "runs", "kernel_results", "price", "claim", "modelled", "report", "derivation"},
    "derivation": {"config", "runs", "price"},
    "verbs": {"options", "derive", "price"},
    "catalogue": {"config", "traffic", "price", "claim", "importers"},
    "doctor": LEFT | {"install"},
    "__main__": {
        *(
            "config",
            "plan",
            "journal",
            "run",
            "endpoint",
            "crew",
            "display",
            "measure",
            "derive",
            "catalogue",
            "doctor",
            "tune",
            "options",
            "importers",
            "verbs",
        ),
    },
    "__init__": set(),
}
RIGHT = ("importers", "price", "claim", "modelled", "report", "derive", "results", "runs", "config", "options")
FILES = [*(ROOT / "bench").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]
FILES = sorted({path for path in FILES if "bench/kernels" not in str(path)})


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "kernels" if parts[0] == "kernels" else room(parts[1])


def room(name: str) -> str:
    """The room of a module or folder of bench: what configs say is one room in four files, what CSVs say in three."""
    configs = dict.fromkeys(("architecture", "workload", "mix"), "config")
    csvs = ("serving_results", "import_results", "money_results", "modelled_results")
    return (configs | dict.fromkeys(csvs, "results")).get(name, name)


def named(name: str) -> str:
    """The room an import names. bench/model/accounting.py needs no torch: both halves count by it, and by it alone."""
    return "accounting" if name.startswith("bench.model.accounting") else room(name.split(".")[1])


def imported(path: Path) -> set[str]:
    """Every module named in an import anywhere in the file, "bench.x.y" and others alike."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    mine = room_of(path)
    ours = {named(name) for name in imported(path) if name.startswith("bench.")} - {mine}
    if "accounting" in ours and "model" in {mine, *MAY[mine]}:
        ours.remove("accounting")
    assert ours <= MAY[mine], f"{path}: {ours - MAY[mine]}"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in RIGHT], ids=lambda p: str(p.relative_to(ROOT)))
def test_right_of_the_csv_nothing_names_torch(path):
    assert not {name for name in imported(path) if name.split(".")[0] in ("torch", "triton")}


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in LEFT], ids=lambda p: str(p.relative_to(ROOT)))
def test_left_of_the_csv_nothing_knows_dollars(path):
    assert "usd" not in path.read_text().lower() or room_of(path) in ("results", "config")


def test_only_the_clock_reads_a_clock():
    for path in FILES:
        if path.name != "clock.py":
            assert not {name for name in imported(path) if name == "time" or name.startswith("time.")}, path


@pytest.mark.parametrize(
    "module",
    ["bench.derive", "bench.price.cost", "bench.claim.table", "bench.modelled.accuracy", "bench.report.build"],
)
def test_the_report_half_leaves_torch_alone_and_the_measuring_half_its_packages(module):
    code = f"import sys, {module}; assert not {{'torch', 'triton'}} & set(sys.modules), 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_measuring_half_needs_no_package_of_the_report_half():
    absent = ("pydantic", "altair", "vl_convert", "jinja2", "scipy", "pandas")
    code = (
        f"import sys\nfor name in {absent!r}: sys.modules[name] = None\n"
        "import bench.run, bench.display, bench.measure.worker, bench.measure.cell, bench.__main__\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_kernels_import_nothing_of_ours_but_kernels():
    """op.py and tuning.py; an op's further kernels (attention_backward) and the ops it is made of (moe)."""
    for path in (ROOT / "kernels").glob("*.py"):
        ours = {name for name in imported(path) if name.startswith("bench")}
        assert all(name.startswith("bench.kernels.") for name in ours), path


def test_kernels_is_no_package_of_its_own():
    """An __init__.py there would shadow Hugging Face's `kernels`, which transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (ROOT / "bench" / "kernels").is_symlink()


def test_files_are_short_and_none_is_a_drawer():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 300, path
        assert path.stem not in ("utils", "common", "helpers", "base"), path


def test_every_module_says_what_it_is():
    for path in FILES:
        if path.name != "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), path
