"""Every kernel the ops launch, compiled for A100, H100 and B200 on any machine, and held against committed tables.

Runs in a process of its own (`TRITON_AOT_TESTS=1 pytest tests/aot`): a process that interprets kernels cannot
compile them. `results/kernels/aot_<arch>_<triton>.csv` says what the compiler made of each. A row whose source hash
still stands is believed, but for a few drawn at random; a kernel that changed is compiled here, and the failure shows
what became of it. `make aot` compiles everything and rewrites the tables.
"""

import os
import random
from pathlib import Path

import pytest

if not os.environ.get("TRITON_AOT_TESTS"):
    pytest.skip("its own process: TRITON_AOT_TESTS=1 pytest tests/aot", allow_module_level=True)

import triton

from bench.kernels.op import ARCHITECTURES, discover
from tests.aot import table
from tests.aot.allowed import NARROW, NO_WIDE, SPILLS, TENSOR
from tests.aot.compile_check import SHARED_LIMIT, Compiled, Launch

OPS = discover()
DRAWN = 10  # rows of each table compiled again, whatever their hashes say
COMMITTED = (table.FOLDER / f"aot_sm90_{triton.__version__}.csv").is_file()


def uses(launch: Launch, *calls: str) -> bool:
    """Whether the kernel or a function it calls has one of these calls in its text."""
    return any(call in text for text in launch.texts for call in calls)


def allowed(entry: tuple[int, str, str] | None, row: dict[str, str]) -> int:
    """How many an entry of allowed.py allows this row: none where it was met at a place that does not begin so."""
    most, where, _ = entry or (0, "", "")
    return most if all(place.startswith(where) for place in row["shapes"].split("+")) else 0


def faults(op: str, launch: Launch, row: dict[str, str]) -> list[str]:
    """What a row must not be, one line a fault. What is allowed, and why, stands in allowed.py."""
    arch, name = launch.arch, f"{op}.{row['kernel']}"
    count = {key: int(row[key]) for key in (*table.COUNTED, "spill_bytes", "shared_bytes", "warps")}
    found = []
    if count["spill_bytes"] > allowed(SPILLS.get((arch, name)), row):
        found.append(f"spills {count['spill_bytes']} bytes a thread")
    if count["shared_bytes"] > SHARED_LIMIT[arch]:
        found.append(f"{count['shared_bytes']} bytes of shared memory; the limit is {SHARED_LIMIT[arch]}")
    if count["warps"] != launch.warps and not uses(launch, "warp_specialize"):
        found.append(f"{count['warps']} warps, {launch.warps} were asked for")
    products = [{80: "hmma", 90: "wgmma", 100: "tcgen05"}[arch]]
    products += ["hmma"] if (arch, name) in TENSOR and allowed((1, *TENSOR[arch, name]), row) else []
    if uses(launch, "tl.dot(", "warpgroup_mma(") and not any(count[key] for key in products):
        found.append(f"no tensor-core instruction of this architecture ({products[0]})")
    described = any("tensordesc" in kind for kind, _ in launch.special)
    if described and not count["tma_loads"]:
        found.append("a descriptor, and no bulk-tensor load")
    if not described and not uses(launch, "tl.dot(", "warpgroup_mma("):
        narrow = allowed(NARROW.get(name), row)
        if not count["loads_128"] and name not in NO_WIDE:
            found.append("no 128-bit load")
        if count["narrow_loads"] > narrow:
            found.append(f"{count['narrow_loads']} loads narrower than 32 bits, {narrow} allowed")
    return found


@pytest.fixture(scope="module", params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def made(arch: int) -> dict[tuple[str, ...], tuple[Launch, list[str]]]:
    """Every launch at the shapes of real models, on tensors without memory: nothing is compiled yet."""
    return table.launches(OPS, arch)


def compiled_rows(made: dict, keys: list[tuple[str, ...]]) -> dict[tuple[str, ...], dict[str, str]]:
    return {key: table.row_of(key, made[key][0].compile(), made[key][1]) for key in keys}


def complaints(made: dict, rows: dict[tuple[str, ...], dict[str, str]]) -> list[str]:
    return [f"{key}: {fault}" for key, row in rows.items() for fault in faults(key[0], made[key][0], row)]


@pytest.mark.skipif(not COMMITTED, reason=f"no committed table for triton {triton.__version__}")
def test_the_table_is_of_this_source(arch: int, made: dict) -> None:
    """Changed kernels are compiled here, so that the failure says what became of them."""
    committed = table.read(arch)
    changed = [key for key in made if key not in committed]
    rows = compiled_rows(made, changed)
    assert not complaints(made, rows)
    gone = [key for key in committed if key not in made]
    moved = [key for key in made if key in committed and committed[key]["shapes"] != "+".join(made[key][1])]
    assert not moved, f"run `make aot`: met at other shapes than the table says: {moved}"
    assert not changed and not gone, f"run `make aot`; changed: {list(rows.values())}; gone: {gone}"


@pytest.mark.skipif(not COMMITTED, reason=f"no committed table for triton {triton.__version__}")
def test_no_committed_row_breaks_a_rule(arch: int, made: dict) -> None:
    committed = table.read(arch)
    assert committed
    assert not complaints(made, {key: row for key, row in committed.items() if key in made})


@pytest.mark.skipif(not COMMITTED, reason=f"no committed table for triton {triton.__version__}")
def test_drawn_rows_compile_to_what_the_table_says(arch: int, made: dict) -> None:
    committed = table.read(arch)
    drawn = random.sample(sorted(made), min(DRAWN, len(made)))
    rows = compiled_rows(made, drawn)
    assert rows == {key: committed[key] for key in drawn}


@pytest.mark.skipif(COMMITTED, reason="this triton has its tables")
def test_drawn_kernels_keep_the_rules_under_another_triton(arch: int, made: dict) -> None:
    """A triton nobody made a table for: a sample, against the rules alone."""
    rows = compiled_rows(made, random.sample(sorted(made), min(DRAWN, len(made))))
    assert not complaints(made, rows)


def test_a_spill_is_a_fault(made: dict) -> None:
    """The rules can fail: a row that spills, one too large, one without tensor-core instructions."""
    (key, (launch, shapes)) = next(item for item in made.items() if uses(item[1][0], "tl.dot("))
    good = Compiled(100, 0, 1000, launch.warps, {"HMMA": 1, "HGMMA": 1, "UTCHMMA": 1, "UTMALDG": 1, "LDG.E.128": 1})
    assert not faults(key[0], launch, table.row_of(key, good, shapes))
    for damage in (
        Compiled(100, 100_000, 1000, launch.warps, good.instructions),
        Compiled(100, 0, 300_000, launch.warps, good.instructions),
        Compiled(100, 0, 1000, launch.warps + 1, good.instructions),
        Compiled(100, 0, 1000, launch.warps, {"LDG.E.128": 1}),
    ):
        assert faults(key[0], launch, table.row_of(key, damage, shapes))


def test_an_allowance_holds_where_it_says_and_nowhere_else() -> None:
    entry = (8, "gpt2_124m/", "why")
    assert allowed(entry, {"shapes": "gpt2_124m/prefill_1k+gpt2_124m/pretrain_1k"}) == 8
    assert allowed(entry, {"shapes": "gpt2_124m/prefill_1k+qwen3_8b/prefill_1k"}) == 0
    assert allowed(None, {"shapes": "gpt2_124m/prefill_1k"}) == 0


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1"])
def test_the_tables_are_there_and_no_row_stands_twice(arch: int, version: str) -> None:
    """With torch 2.11's Triton and torch 2.13's: without a table nothing above would be checked."""
    lines = (table.FOLDER / f"aot_sm{arch}_{version}.csv").read_text().splitlines()
    assert len(lines) > 100 and len(lines) == len(set(lines))


def test_every_op_is_compiled(arch: int, made: dict) -> None:
    declared = {name for name, op in OPS.items() if any(arch in op.architectures(s) for s in op.shapes.values())}
    assert declared == {key[0] for key in made}


def test_allowances_name_kernels_that_exist(made: dict) -> None:
    kernels = {f"{key[0]}.{key[1]}" for key in made}
    named = {name for _, name in (*SPILLS, *TENSOR)} | set(NARROW) | set(NO_WIDE)
    declared = {f"{path.stem}" for path in (Path(table.__file__).parents[2] / "kernels").glob("*.py")}
    assert all(name in kernels or name.split(".")[0] in declared for name in named)
