"""The engine against one request at a time: the same tokens, whatever was batched, chunked, preempted, cached."""

import dataclasses
import functools

import numpy as np
import pytest
import torch

from bench.architecture import Model
from bench.config import load
from bench.kernels.op import load as load_ops
from bench.model.transformer import DTYPES, Transformer
from bench.serving.blocks import Blocks
from bench.serving.engine import Engine
from bench.serving.paged import PagedCache
from bench.serving.request import Request
from bench.serving.runner import Runner
from bench.serving.scheduler import Scheduler

CPU = torch.device("cpu")
SMALL = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 96, "vocab": 211}
LONGEST = 160


@functools.cache
def network(key: str = "tiny_15m", backend: str = "reference", **options) -> Transformer:
    model = load(Model, key)
    if key == "tiny_15m":
        model = dataclasses.replace(model, **SMALL | options)
    return Transformer(model, load_ops(backend), precision="fp32", device=CPU, max_tokens=LONGEST, layers=2, seed=4)


def engine(net: Transformer, blocks: int = 200, seqs: int = 8, tokens: int = 24, *, ahead: bool = False, **options):
    caching = options.pop("caching", True)
    cache = PagedCache(net.model, len(net.stack), blocks, 16, options.pop("kv", DTYPES["fp32"]), CPU)
    scheduler = Scheduler(Blocks(blocks, 16, caching=caching), max_num_seqs=seqs, max_num_batched_tokens=tokens)
    return Engine(scheduler, Runner(net, cache, max_num_seqs=seqs, max_model_len=LONGEST, **options), ahead=ahead)


def requests(count: int, vocab: int, seed: int = 1) -> list[Request]:
    """Prompts of 1 to 90 tokens, half of which begin as one of three others do; answers of 1 to 30."""
    rng = np.random.default_rng(seed)
    stems = [rng.integers(0, vocab, 64, dtype=np.int32) for _ in range(3)]
    made = []
    for number in range(count):
        own = rng.integers(0, vocab, rng.integers(1, 30), dtype=np.int32)
        stem = stems[rng.integers(3)][: rng.integers(8, 65)] if rng.random() < 0.5 else own[:0]
        made.append(Request(number, np.concatenate((stem, own)), int(rng.integers(1, 31))))
    return made


@torch.no_grad()
def alone(net: Transformer, request: Request) -> list[int]:
    """Greedy decoding of one request with no cache at all: the whole sequence forward for every token."""
    tokens = torch.tensor(request.prompt, dtype=torch.int64)[None]
    for _ in range(request.max_tokens):
        tokens = torch.cat((tokens, net(tokens)[:, -1].argmax(-1)[None]), 1)
    return tokens[0, len(request.prompt) :].tolist()


def drain(served: Engine, asked: list[Request], arriving: int = 3) -> None:
    """A few requests arrive in each step, until all have ended."""
    left = list(asked)
    for _ in range(5000):
        for request in left[:arriving]:
            served.add(request)
        del left[:arriving]
        served.step()
        if not left and not served.busy:
            return
    raise AssertionError("the engine does not end")


SETTINGS = {
    "plenty": {},
    "ahead": {"ahead": True},
    "scarce": {"blocks": 18},
    "scarce and ahead": {"blocks": 18, "ahead": True},
    "small chunks": {"tokens": 7},
    "no prefix cache": {"caching": False, "blocks": 18},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_hundred_requests_get_the_tokens_they_get_alone(name):
    net = network()
    asked = requests(200, net.model.vocab)
    served = engine(net, **SETTINGS[name])
    drain(served, asked)
    for request in asked:
        assert request.output == wanted()[request.number], f"request {request.number}"
    cached = sum(request.cached_tokens for request in asked)
    assert (cached > 0) == (name != "no prefix cache")
    assert (served.scheduler.preemptions > 0) == ("blocks" in SETTINGS[name])
    assert served.scheduler.blocks.available == served.scheduler.blocks.count
    computed = sum(step.prefill_tokens + step.decode_sequences for step in served.steps)
    once = sum(len(request.prompt) + request.max_tokens - 1 - request.cached_tokens for request in asked)
    assert computed == once if not served.scheduler.preemptions else computed > once


@functools.cache
def wanted() -> list[list[int]]:
    net = network()
    return [alone(net, request) for request in requests(200, net.model.vocab)]


FAMILIES = {
    "window and sinks": ("tiny_15m", {"sliding_window": 24, "window_every": 2, "attention_sinks": True}),
    "learned positions": ("tiny_15m", {"rope_theta": None, "max_positions": 512}),
    "latent": ("tiny_mla", {}),
    "mixture": ("tiny_moe", {}),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_attention_is_served(name):
    key, options = FAMILIES[name]
    net = network(key, **options)
    asked = requests(12, net.model.vocab)
    served = engine(net, blocks=22)
    drain(served, asked)
    assert [request.output for request in asked] == [alone(net, request) for request in asked]
    assert sum(request.cached_tokens for request in asked) > 0


def test_what_does_not_fit_is_refused():
    served = engine(network())
    with pytest.raises(ValueError, match=r"^request 7: 161 tokens; expected at most max_model_len = 160"):
        served.add(Request(7, np.zeros(100, dtype=np.int32), 61))


def test_an_equal_block_after_another_beginning_is_not_taken_from_the_cache():
    net = network()
    a, b, c = np.random.default_rng(3).integers(0, net.model.vocab, (3, 16), dtype=np.int32)
    served = engine(net)
    asked = [Request(0, np.concatenate((a, b, a, c, c[:1])), 12), Request(1, np.concatenate((a, c, c[:1])), 12)]
    for request in asked:
        drain(served, [request])
    assert [request.output for request in asked] == [alone(net, request) for request in asked]
    assert [request.cached_tokens for request in asked] == [0, 16]


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Which tokens of each row of logits may be drawn; one that is so by rounding alone too."""
    mass, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    kept = mass.cumsum(-1) - mass < top_p + 1e-4
    return torch.zeros_like(kept).scatter(-1, order, kept)


@torch.no_grad()
def test_sampling_draws_from_the_nucleus_and_temperature_0_is_greedy():
    net = network()
    greedy, drawn = (requests(40, net.model.vocab) for _ in range(2))
    for request in drawn[1::2]:
        request.temperature, request.top_p = 2.0, (0.3 if request.number % 4 == 1 else 1.0)
    drain(engine(net), greedy)
    drain(engine(net, greedy=False), drawn)
    same = [a.output == b.output for a, b in zip(greedy, drawn, strict=True)]
    assert all(same[::2]) and not any(same[i] for i in range(1, 40, 2) if len(greedy[i].output) > 4)
    # The nucleus has 0.31 of the mass: were top_p ignored, 158 draws would stay inside with a chance of 1e-80. Of the
    # 176 with top_p = 1, 0.31 +- 0.035 are inside; at temperature 1, 0.50 +- 0.038 would be.
    inside: dict[float, list[bool]] = {0.3: [], 1.0: []}
    for request in drawn[1::2]:
        logits = net(torch.tensor([*request.prompt, *request.output])[None])[0, len(request.prompt) - 1 : -1]
        drawable = nucleus(logits, 2.0, 0.3)
        inside[request.top_p] += drawable[range(request.max_tokens), request.output].tolist()
    assert len(inside[0.3]) == 158 and all(inside[0.3])
    assert len(inside[1.0]) == 176 and 0.2 < sum(inside[1.0]) / 176 < 0.41


def test_an_fp8_cache_serves_nearly_the_same_logits():
    net = network()
    asked = Request(0, np.arange(70, dtype=np.int32), 1)
    served = engine(net, kv=torch.float8_e4m3fn)
    drain(served, [asked])
    exact = net(torch.arange(70)[None])[:, -1]
    error = (served.runner.logits - exact).norm() / exact.norm()
    assert 1e-3 < error < 0.1, "e4m3 keeps three bits"
