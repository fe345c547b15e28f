"""The README says what the results say, names targets and verbs that exist, and stays short."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import config, results
from bench.price.book import LISTED
from bench.report import readme
from bench.workload import TRAINING, Workload

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_verdict_table_is_that_of_the_results():
    claims = results.read_rows(ROOT / "results" / "claims.csv", results.CLAIMS)
    assert readme.verdict_table(claims) in README, "`make report` rewrites it"


def test_make_report_rewrites_the_table_and_nothing_else(tmp_path):
    claims = results.read_rows(ROOT / "results" / "claims.csv", results.CLAIMS)
    copied = tmp_path / "README.md"
    copied.write_text(README.replace("P 0", "P 9"))
    readme.update(copied, claims)
    assert copied.read_text() == README
    copied.write_text("no marks")
    with pytest.raises(ValueError, match="expected the marks"):
        readme.update(copied, claims)


def test_every_target_it_names_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_column_it_names_is_in_the_schema():
    known = {*results.CELLS, *results.COSTS, *results.CLAIMS, *results.SAMPLES, *LISTED}
    section = (ROOT / "docs" / "csv.md").read_text()
    for name in re.findall(r"\b(?:x_\w+|\w+_s_\w+|\w+_per_\w+)\b", section):
        assert name in known, name
    for name in results.CELLS:
        assert name.split("_low")[0].split("_high")[0] in section or name in section, name


def test_it_says_what_every_suite_and_training_workload_is():
    """Those on a GPU by name, with a source; their tiny twins as one family."""
    section = README.split("## Training workloads")[1].split("## Serving")[0]
    for suite in config.keys(config.Suite):
        assert f"`{suite}`" in section, suite
    for key, workload in config.load_all(Workload).items():
        if workload.phase in TRAINING and not key.endswith("_tiny"):
            (row,) = [line for line in section.splitlines() if f"`{key}`" in line and line.startswith("|")]
            assert all(cell.strip() for cell in row.strip("|").split("|")), key
            for paper in re.findall(r"arXiv [\d.]+\d", row):  # a key of two workloads may take its sources from either
                sources = [config.load(Workload, name).source for name in re.findall(r"`([a-z]\w+)`", row)]
                assert any(paper in source for source in sources), (key, paper)


def test_the_way_to_run_on_several_machines_is_one_torchrun_names():
    (line,) = [line.strip() for line in README.splitlines() if line.strip().startswith("torchrun")]
    options, verb = line.split(" -m bench run ")
    known = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--help"], capture_output=True, text=True)
    for option in re.findall(r"--([a-z-]+)", options):
        assert f"--{option}" in known.stdout, option
    assert verb.split()[-1] in config.keys(config.Suite)


def test_it_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("name", ["README.md", "docs/design.md", "docs/csv.md", "docs/importing.md", "docs/serving.md"])
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / name).parent.joinpath(link).exists(), link


def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("bench", "test", "lint", "report", "check-results", "perf", "aot", "wheels", "setup", "clean"):
        assert re.search(rf"^{target}\s+\S", shown, re.M), target
