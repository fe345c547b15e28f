"""Liger as a training peer. Its kernels need a GPU, so a stand-in takes its place here: it patches as Liger does."""

import importlib.util
import sys

import pytest
import torch

from bench.peers.train import found, liger
from tests.architectures import MODELS
from tests.test_training_peers import CPU, SMALL, asked, packed, workload

STAND_IN = """
from types import MethodType

from transformers.models.llama import modeling_llama

right = modeling_llama.apply_rotary_pos_emb


def turned(q, k, cos, sin, *others):
    return right(q, k, cos, SIGN * sin, *others)


class LigerRMSNorm(modeling_llama.LlamaRMSNorm): ...


def _apply_liger_kernel_to_instance(model):
    modeling_llama.apply_rotary_pos_emb = turned
    modeling_llama.LlamaRMSNorm = LigerRMSNorm
    for layer in model.model.layers:
        layer.input_layernorm.forward = MethodType(LigerRMSNorm.forward, layer.input_layernorm)
        layer.mlp._get_name = lambda: NAME
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes a `liger_kernel` of the given source to import; afterwards transformers is its own again."""
    modelling = liger.modelling(SMALL["Llama"])
    before = dict(vars(modelling))

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("liger_kernel")]:
            del sys.modules[name]

    def install(source: str) -> None:
        forget()
        (tmp_path / "liger_kernel" / "transformers").mkdir(parents=True)
        (tmp_path / "liger_kernel" / "__init__.py").touch()
        (tmp_path / "liger_kernel" / "transformers" / "__init__.py").write_text(source)
        (tmp_path / "liger_kernel-9.9.dist-info").mkdir()
        (tmp_path / "liger_kernel-9.9.dist-info" / "METADATA").write_text("Name: liger-kernel\nVersion: 9.9\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    vars(modelling).update(before)
    liger._originals.clear()
    forget()


@pytest.mark.parametrize("sign", ["1", "-1"])
def test_liger_patches_its_instance_and_leaves_the_truth_untouched(sign, stand_in):
    stand_in(STAND_IN.replace("SIGN", sign).replace("NAME", "'LigerExperts'"))
    model, modelling = SMALL["Llama"], liger.modelling(SMALL["Llama"])
    rotary, norm = modelling.apply_rotary_pos_emb, modelling.LlamaRMSNorm
    for _ in range(2):  # a second build must not take the first one's patches for originals
        network = liger.build(model, workload(), CPU, 2)
        assert modelling.apply_rotary_pos_emb.__name__ == "turned" and modelling.LlamaRMSNorm is not norm
        with liger.untouched(model):
            assert modelling.apply_rotary_pos_emb is rotary and modelling.LlamaRMSNorm is norm
        assert modelling.apply_rotary_pos_emb.__name__ == "turned" and modelling.LlamaRMSNorm is not norm
    assert "forward" in vars(network.module.model.layers[1].input_layernorm)
    described = network.described()
    assert described.startswith("liger_kernel=9.9 transformers=") and described.endswith("experts=liger")
    error, tolerance, _ = found.check("peer:liger", model, workload(), CPU, packed)
    assert (error <= tolerance) == (sign == "1")


def test_liger_says_why_not(stand_in, monkeypatch):
    fits = MODELS["llama_3_1_8b"], workload()
    if importlib.util.find_spec("liger_kernel") is None:
        assert asked(*fits, "peer:liger") == "liger_kernel is not installed"
    assert asked(MODELS["gpt2_124m"], workload(), "peer:liger") == "Liger has no kernels for one instance of GPT2"
    stand_in("raise ImportError('needs another transformers')")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert asked(*fits, "peer:liger") == "does not import: ImportError: needs another transformers"
    assert asked(*fits, "peer:liger", "cpu") == "needs a CUDA device"
