"""Peers are found by listing the folder, compute what the op says, and a broken one is a row and never a crash."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.kernels.op import Op, discover, mapped, tensors
from bench.peers import found
from bench.peers.found import Unsupported

OPS = discover()
PEERS = found.discover()
HERE = [
    (peer.name, op, shape)
    for peer in PEERS.values()
    if peer.reason is None
    for op in peer.ops
    if op in OPS
    for shape in OPS[op].test_shapes
]


def results(op: Op, function: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Outputs and, where there are any, gradients for random output gradients that are the same in every call."""
    leaves = [name for name in op.differentiable if inputs.get(name) is not None]
    inputs = inputs | {name: inputs[name].detach().requires_grad_() for name in leaves}
    inputs |= {name: mapped(torch.clone, inputs[name]) for name in op.mutates}
    outputs = tensors(function(inputs))
    flowing = [x for x in outputs if x.requires_grad]
    generator = torch.Generator().manual_seed(3)
    pull = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in flowing]
    gradients = torch.autograd.grad(flowing, [inputs[name] for name in leaves], pull) if flowing else ()
    return [*outputs, *gradients]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/perf checks peers on a GPU, in the dtype it times")
@pytest.mark.parametrize(("name", "op", "shape"), HERE)
def test_a_peer_that_runs_here_computes_the_op(name: str, op: str, shape: str) -> None:
    made = OPS[op].inputs(
        OPS[op].test_shapes[shape], torch.float32, torch.device("cpu"), torch.Generator().manual_seed(5)
    )
    ours = results(OPS[op], lambda inputs: OPS[op].reference(**inputs), made)
    try:
        theirs = results(OPS[op], lambda inputs: PEERS[name].ops[op](inputs)(), made)
    except Unsupported as error:
        pytest.skip(str(error))
    assert len(ours) == len(theirs)
    for value, truth in zip(theirs, ours, strict=True):
        assert value.shape == truth.shape and value.dtype == truth.dtype
        torch.testing.assert_close(value, truth, rtol=2e-5, atol=2e-5)


def test_some_peer_runs_on_a_cpu_and_every_other_says_why_not() -> None:
    assert {name for name, op, _ in HERE if op == "rms_norm"} >= {"torch_ops"}
    for peer in PEERS.values():
        assert peer.ops, f"{peer.name}: {peer.reason}"
        assert peer.reason is None or ("\n" not in peer.reason and len(peer.reason) <= 200)
        assert not set(peer.unchecked) - set(peer.ops)


def test_an_op_that_a_peer_misspells_is_its_reason(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("def why_not():\n    return None\nOPS = {'rms_nrom': print}")
    assert found.discover(tmp_path)["odd"].reason == "no op 'rms_nrom' in kernels/"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise RuntimeError('no such library\\nsecond line')", "does not import: RuntimeError: no such library"),
        ("import a_package_that_is_not_there", "does not import: ModuleNotFoundError: No module named"),
        ("OPS = {", "does not import: SyntaxError"),
        ("OPS = {}", "does not import: AttributeError"),
        ("def why_not():\n    return 'needs a moon'\nOPS = {}", "needs a moon"),
        ("def why_not():\n    raise OSError('driver too old')\nOPS = {}", "does not import: OSError: driver too old"),
    ],
)
def test_a_file_dropped_in_that_does_not_import_is_a_peer_with_a_reason(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    (tmp_path / "sound.py").write_text("def why_not():\n    return None\nOPS = {'swiglu': lambda inputs: lambda: 1}")
    peers = found.discover(tmp_path)
    assert list(peers) == ["broken", "sound"]
    assert peers["broken"].reason is not None and peers["broken"].reason.startswith(reason)
    assert peers["sound"].reason is None and peers["sound"].ops["swiglu"]({})() == 1


def test_the_folder_s_own_files_are_no_peers() -> None:
    assert not {"found", "__init__"} & set(PEERS)


def test_a_missing_module_is_named() -> None:
    assert found.lacking("a_package_that_is_not_there") == "a_package_that_is_not_there is not installed"


def test_what_a_peer_cannot_do_is_said() -> None:
    found.need(True, "never")
    with pytest.raises(Unsupported, match="no sinks"):
        found.need(False, "no sinks")


def test_fa3_fills_in_the_arguments_its_build_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two builds of the library: one has an argument more, one lacks one that is given."""
    from bench.peers import fa3

    library = torch.library.Library("_vllm_fa3_C", "FRAGMENT")
    library.define("fwd(Tensor q, Tensor k, Tensor? o_scale, float softmax_scale, bool is_causal, int sm_margin,"
                   " int? max_seqlen_q, int cp_world_size) -> Tensor[]")  # fmt: skip
    seen: list[Any] = []

    def fwd(q: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
        seen.extend(rest)
        return [q * 2]

    library.impl("fwd", fwd, "CPU")
    monkeypatch.setenv(fa3.VARIABLE, "somewhere")
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    given = {"q": torch.ones(2), "k": torch.ones(2), "softmax_scale": 0.5, "is_causal": True}
    assert fa3._call(dict(given))().tolist() == [2, 2]
    assert seen[1:] == [None, 0.5, True, 0, None, 1]
    with pytest.raises(Unsupported, match="no s_aux"):
        fa3._call(given | {"s_aux": torch.ones(1)})
