"""Hugging Face transformers' continuous batching, as its users serve with it (Apache-2.0, tested with 5.23).

Its ContinuousBatchingManager runs the model in a thread of its own and streams tokens through a queue. Attention is the
best it finds installed: FlashAttention-3 on Hopper, else FlashAttention-2 (with either, CUDA graphs, its decode path
over block tables and batches planned one ahead, all of which it decides itself), else torch's
scaled_dot_product_attention over a mask of all queries by all keys. Pages, prefix cache, scheduler and the share of
memory for the cache are its defaults; the workload sets what it sets for our engine: requests and tokens of a batch,
and whether prefixes are shared. On a CPU, where its cache would take most of the machine's memory, and its mask as much
again, the cache holds what `max_num_seqs` requests need. Decoding is greedy, and no token ends an answer, so that
answers have the planned length.

Between loads the thread stands still: a hard stop is how the open requests of a load are cut. To cancel them would be
the other way, but where batches are planned ahead its source then registers blocks of a request that has none any more,
and the thread may end by a KeyError. And with no thread the prefix cache can be emptied; graphs and cache stay. A
thread that dies ends the load, not the cell: its requests have failed, and the next load starts another. What of a
prompt the prefix cache has spared it does not tell.

Checked as it is timed, under batching, against the same weights in float64: three prompts, one in many chunks, one that
shares two pages with it while that one decodes, and a short one. Comparing tokens with its own one-at-a-time decoding
would call a tie an error, so each token is held against float64's probabilities after the same tokens:

    error = 1 - p(chosen) / p(best)     the largest over all tokens of all answers
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.architecture import Model
from bench.measure.clock import now
from bench.peers.found import one_line
from bench.peers.serve.found import Asked
from bench.peers.train.families import Family, classes, family_of, features, package
from bench.peers.train.found import reduced
from bench.peers.train.transformers import DTYPES, known, module_of, truth
from bench.workload import Serving, Workload

BATCHING = "transformers.generation.continuous_batching.utils"
WAIT_S = 0.005  # for a token: a request that becomes due meanwhile is sent as much later
STOP_S = 60.0  # for the thread to end
KEPT_FREE = 0.15  # of its cache: its scheduler starts no prompt below
LONG, SHARED, SHORT, CHUNK, CACHE = 640, 520, 37, 128, 4096  # of the check: tokens
GENERATED = (24, 8, 8)  # the long prompt still decodes when the others come
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 1e-1}  # rounding makes at most 0, 1.3e-3 and 2e-2 on six models


def why_not(model: Model, workload: Workload, device: torch.device) -> str | None:
    """None where it can serve this model and workload here, else one line. Raises what transformers' import raises."""
    o = workload.serving
    if o is None:
        return f"a serving peer serves, no {workload.phase}"
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    family = family_of(model)
    if family is None:
        return f"transformers has no architecture with exactly {', '.join(sorted(features(model))) or 'these parts'}"
    memory = device.type == "cpu" and importlib.util.find_spec("psutil") is None
    refused = {
        f"no {workload.precision} in transformers' continuous batching": workload.precision not in DTYPES,
        "its routers take no drawn routing, under which mixtures are served": bool(model.experts),
        f"{o.quantization} weights belong to another package": o.quantization != "none",
        "its cache is as wide as its weights: no fp8": o.kv_cache_dtype != "auto",
        "held against greedy decoding alone: no temperature": o.temperature > 0,
        "one GPU only": workload.tensor_parallel > 1,
        "on a CPU its continuous batching needs psutil, which is not installed": memory,
    }
    reason = next((reason for reason, holds in refused.items() if holds), None)
    if reason is None:
        classes(family)  # imported here, so that an import that fails is a reason too
        importlib.import_module(BATCHING)
    return reason


def build(model: Model, workload: Workload, device: torch.device, layers: int) -> Engine:
    """An engine around the first `layers` layers with random weights, warmed up as its own entry points do."""
    attention = attention_for(known(model), workload, device)
    assert workload.serving is not None
    return Engine(module_of(model.sliced(layers), workload, device, attention), workload.serving)


def attention_for(family: Family, workload: Workload, device: torch.device) -> str:
    """The best attention installed, by transformers' name for it."""
    utils = package().utils
    if device.type == "cuda" and family.flash and workload.precision != "fp32":
        if torch.cuda.get_device_capability(device)[0] == 9 and utils.is_flash_attn_3_available():
            return "flash_attention_3"
        if utils.is_flash_attn_2_available():
            return "flash_attention_2"
    return "sdpa"


@dataclass(frozen=True, slots=True)
class Token:
    """A request has one more token."""

    number: int
    at_s: float
    last: bool
    cached_tokens: None = None


class Engine:
    """One manager, driven as our engine is: its thread computes, `step` hears what it has streamed."""

    def __init__(self, module: Any, options: Serving):
        hf = package()
        self.module, self.max_num_seqs = module, options.max_num_seqs
        self.steps: list[Any] = []  # it tells none
        self.failure: str | None = None
        self.ended = 0  # requests whose last token was given
        self._heard: dict[str, int] = {}  # tokens of each open request
        settings = hf.ContinuousBatchingConfig(
            max_batch_tokens=options.max_num_batched_tokens,
            max_requests_per_batch=min(options.max_num_seqs, options.max_num_batched_tokens),
            allow_block_sharing=options.enable_prefix_caching,
            auto_switch_to_flash=False,  # attention_for has chosen; its own choice may want the network
        )
        settings.num_blocks = _blocks(options, settings.page_size, module.device)
        hints = importlib.import_module(BATCHING).WorkloadHints
        self.manager = module.init_continuous_batching(
            hf.GenerationConfig(do_sample=False, eos_token_id=-1),
            settings,
            hints(max_prompt_length=options.max_model_len),  # so that its decode path takes the longest request
        )
        self.manager.warmup()

    @property
    def busy(self) -> bool:
        return bool(self._heard)

    @property
    def cache_size(self) -> tuple[int, int]:
        cache = self.manager.batch_processor.cache
        return int(cache.num_blocks), int(cache.cache_tensor.numel())

    def begin(self) -> None:
        """An empty prefix cache and a new thread. Raises RuntimeError where the last one could not be stopped."""
        if self.manager.is_running():
            raise RuntimeError(f"transformers' thread did not stop within {STOP_S:g} s")
        self.manager.batch_processor.cache.reset()
        for _ in self._outputs(0.0):  # of requests that were cut
            pass
        self.failure = None
        self.manager.start()

    def add(self, request: Asked) -> None:
        """Queue a request; one that a dead thread takes no more fails with the rest."""
        name = str(request.number)
        self._heard[name] = 0
        taken = self.manager.add_request(request.prompt.tolist(), name, request.max_tokens, streaming=True)
        if taken is None:
            self._fail()

    def step(self) -> Sequence[Token]:
        """What was streamed since, after WAIT_S at most; notices a thread that has died."""
        found: list[Token] = []
        for output in self._outputs(WAIT_S):
            name, at = output.request_id, now()
            if output.error is not None:
                self._fail(output.error)
                continue
            new, ended = len(output.generated_tokens) - self._heard[name], output.is_finished()
            found += [Token(int(name), at, ended and left == 1) for left in range(new, 0, -1)]
            self._heard[name] += new
            if ended:
                del self._heard[name]
                self.ended += 1
        if not found and not self.manager.is_running():
            self._fail()
        return found

    def clear(self) -> None:
        """Stop the thread, which forgets its requests; graphs and cache are kept."""
        self._heard.clear()
        self.manager.stop(block=True, timeout=STOP_S, keep_for_next_session=True, hard_stop=True)

    def described(self) -> str:
        """Version and what it decided."""
        c = self.manager.continuous_batching_config
        said = {
            "transformers": importlib.metadata.version("transformers"),
            "attention": self.module.config._attn_implementation,
            "graphs": "+".join(n for n, on in zip(("varlen", "decode"), c.cuda_graph_booleans, strict=True) if on),
            "ahead": int(c.use_async_batching),
            "page": c.page_size,
        }
        return " ".join(f"{name}={value or 'none'}" for name, value in said.items())

    def _outputs(self, wait_s: float) -> Iterator[Any]:
        """What the thread has streamed, the first after `wait_s` at most."""
        output = self.manager.get_result(timeout=wait_s)
        while output is not None:
            yield output
            output = self.manager.get_result(timeout=0)

    def _fail(self, said: str = "its thread has ended") -> None:
        """Take the first line said; the thread fails what is open before it says why, so it is given a second."""
        self.manager.join(now(), 1.0)
        fatal = self.manager.background_thread_status.fatal_error
        lines = (one_line(fatal) if fatal is not None else said).splitlines()
        self.failure = self.failure or f"transformers: {lines[0] if lines else 'an error without words'}"[:200]


def _blocks(options: Serving, page: int, device: torch.device) -> int | None:
    """Blocks of its cache; None: it decides by the memory that is left."""
    if options.num_gpu_blocks:
        return -(-options.num_gpu_blocks * options.block_size // page)
    needed = options.max_num_seqs * -(-options.max_model_len // page)
    return int(needed / (1 - KEPT_FREE)) + 1 if device.type == "cpu" else None


# ---------------------------------------------------------------- the check


@dataclass
class _Prompt:
    """A request of the check."""

    number: int
    prompt: np.ndarray
    max_tokens: int


@torch.no_grad()
def check(model: Model, workload: Workload, device: torch.device) -> tuple[float, float, str]:
    """Error against float64, the tolerance, and the shape checked. Raises RuntimeError where its thread dies."""
    small = reduced(model)
    assert workload.serving is not None
    options = dataclasses.replace(
        workload.serving,
        max_num_seqs=3,
        max_num_batched_tokens=CHUNK,
        max_model_len=LONG + max(GENERATED),
        num_gpu_blocks=CACHE // workload.serving.block_size,
        enable_prefix_caching=True,
    )
    theirs = module_of(small, workload, device, attention_for(known(small), workload, device))
    exact = truth(small, workload, device, small.layers).module.eval()
    for wide, narrow in zip(exact.parameters(), theirs.parameters(), strict=True):
        wide.copy_(narrow)
    rng = np.random.default_rng(5)
    first, other = (rng.integers(0, small.vocab, n, dtype=np.int32) for n in (LONG, SHORT))
    prompts = [first, np.append(first[:SHARED], other[:9]), other]
    asked = [_Prompt(n, tokens, length) for n, (tokens, length) in enumerate(zip(prompts, GENERATED, strict=True))]
    answers = _answers(Engine(theirs, options), asked)
    worst = torch.stack([_lack(exact, one, answers[one.number]) for one in asked]).max()
    shape = f"layers={small.layers} prompts={LONG},{SHARED}+9,{SHORT}"
    shape += f" vocab={small.vocab}" if small.vocab != model.vocab else ""
    return float(worst), TOLERANCE[workload.precision], shape


def _answers(engine: Engine, asked: Sequence[_Prompt]) -> dict[int, list[int]]:
    """Each request's answer; all but the first come once that one decodes."""
    answers: dict[int, list[int]] = {}
    engine.begin()
    try:
        engine.add(asked[0])
        waiting, left = list(asked[1:]), len(asked)
        while left and engine.failure is None:
            for output in engine._outputs(WAIT_S):
                if output.error is not None:
                    engine._fail(output.error)
                answers[int(output.request_id)] = output.generated_tokens
                left -= output.is_finished()
                while waiting:
                    engine.add(waiting.pop(0))
            if not engine.manager.is_running():
                engine._fail()
    finally:
        engine.clear()
    if engine.failure is not None:
        raise RuntimeError(engine.failure)
    return answers


def _lack(exact: Any, asked: _Prompt, answer: list[int]) -> torch.Tensor:
    """The error of an answer: infinite where it has not the planned length."""
    if len(answer) != asked.max_tokens:
        return torch.tensor(float("inf"))
    tokens = torch.tensor([[*asked.prompt.tolist(), *answer[:-1]]], device=exact.device)
    logits = exact(input_ids=tokens, use_cache=False, logits_to_keep=len(answer)).logits[0]
    chosen = logits.gather(1, torch.tensor(answer, device=exact.device)[:, None])[:, 0]
    return (1 - torch.exp(chosen - logits.amax(-1))).amax().cpu()
