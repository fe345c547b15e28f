"""Put an engine together from a network and the options of a workload, and check it against float64.

The cache takes what `max_num_seqs` requests of full length need, or what memory is left after the weights: of a GPU's
memory `MEMORY_SHARE`, as vLLM's gpu_memory_utilization, less room for one step's activations.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from bench.architecture import Model
from bench.kernels.op import relative_error
from bench.model import oracle
from bench.model.routing import drawn
from bench.model.transformer import Transformer
from bench.serving.blocks import Blocks
from bench.serving.engine import Engine
from bench.serving.paged import FP8, PagedCache
from bench.serving.request import Request
from bench.serving.runner import Runner
from bench.serving.scheduler import Scheduler
from bench.serving.weights import quantise
from bench.workload import Serving

MEMORY_SHARE = 0.9
STEP_ELEMENTS = 12  # of the hidden width a token holds at once, roughly, beside its logits
# e4m3 keeps three bits of every key and value: 0.050 on the reference ops, on two models
FP8_CACHE_TOLERANCE = 0.08
LONG, SHARED, SHORT, CHUNK, GENERATED = 300, 170, 37, 128, 4  # of the check: tokens


def engine(network: Transformer, options: Serving, *, graphs: bool = True, zipf: float = 0.0) -> Engine:
    """An idle engine. `zipf`: how unevenly drawn routing spreads tokens over experts, where there are any."""
    weight, model = network.embedding, network.model
    cuda = weight.device.type == "cuda"
    kv_dtype = FP8 if options.kv_cache_dtype == "fp8" else weight.dtype
    blocks = options.num_gpu_blocks or _blocks(network, options, kv_dtype)
    cache = PagedCache(model, len(network.stack), blocks, options.block_size, kv_dtype, weight.device)
    runner = Runner(
        network,
        cache,
        max_num_seqs=options.max_num_seqs,
        max_model_len=options.max_model_len,
        greedy=options.temperature == 0,
        graphs=graphs and cuda,
        routing=drawn(model, options.max_model_len, zipf, weight.device)[0] if model.experts else None,
    )
    scheduler = Scheduler(
        Blocks(blocks, options.block_size, caching=options.enable_prefix_caching),
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
    )
    return Engine(scheduler, runner, ahead=cuda)


def _blocks(network: Transformer, options: Serving, kv_dtype: torch.dtype) -> int:
    """Blocks of the cache. Raises ValueError where memory does not hold one request of full length."""
    weight, size = network.embedding, options.block_size
    pages = -(-options.max_model_len // size)
    wanted = options.max_num_seqs * pages
    if weight.device.type != "cuda":
        return wanted
    block_bytes = PagedCache(network.model, len(network.stack), 1, size, kv_dtype, weight.device).bytes
    free, total = torch.cuda.mem_get_info(weight.device)
    held_back = (1 - MEMORY_SHARE) * total
    step = options.max_num_batched_tokens * network.model.hidden * STEP_ELEMENTS * weight.element_size()
    logits = options.max_num_seqs * network.model.vocab * 8
    fit = int((free - held_back - step - logits) // block_bytes)
    if fit < pages:
        raise ValueError(f"the cache: {fit} blocks of {size} tokens fit beside the weights, a request needs {pages}")
    return min(wanted, fit)


@torch.no_grad()
def served_error(
    model: Model, backend: str, precision: str, device: torch.device, options: Serving
) -> tuple[float, float, str]:
    """Error of every sampled token's logits against a whole forward in float64, what is allowed, and the shape.

    Three requests: a prompt of 300 tokens in chunks of 128, one that shares 170 of them through the prefix cache, one
    of 37; all decode in batches with each other and with chunks.
    """
    network, _ = oracle.small(model, backend, precision, device, LONG)
    if options.quantization != "none":
        quantise(network, options.quantization, keep=True)
    truth = oracle.twin(network)
    few = dataclasses.replace(
        options, max_num_seqs=3, max_num_batched_tokens=CHUNK, max_model_len=LONG + GENERATED, num_gpu_blocks=64,
        enable_prefix_caching=True, temperature=0.0,
    )  # fmt: skip
    small = engine(network, few)
    rng = np.random.default_rng(5)
    first, other = (rng.integers(0, network.model.vocab, n, dtype=np.int32) for n in (LONG, SHORT))
    asked = [Request(0, first, GENERATED), Request(1, np.append(first[:SHARED], other[:9]), GENERATED)]
    asked.append(Request(2, other, GENERATED))
    rows: dict[int, list[torch.Tensor]] = {request.number: [] for request in asked}
    for number, request in enumerate(asked):
        small.add(request)
        while small.busy and (number == 2 or request.computed < LONG // 2):
            pieces = small.scheduler.schedule()
            values, _ = small.runner.launch(pieces).wait()
            sampling = [piece.request for piece in pieces if piece.samples]
            assert small.runner.logits is not None
            for one, logits, value in zip(sampling, small.runner.logits, values, strict=False):
                rows[one.number].append(logits.clone())
                small.accept(one, value)
            if number == 1 and request.generated:
                break
    found = torch.stack([row for request in asked for row in rows[request.number]])
    exact = torch.cat([_exact(truth, request, small.runner.routing) for request in asked])
    assert asked[1].cached_tokens > 0
    tolerance = FP8_CACHE_TOLERANCE if options.kv_cache_dtype == "fp8" else oracle.TOLERANCE[precision]
    return relative_error(found, exact), tolerance, f"layers={len(network.stack)} prompts={LONG},{SHARED}+9,{SHORT}"


def _exact(truth: Transformer, request: Request, routing: torch.Tensor | None) -> torch.Tensor:
    """float64 logits (generated, V) of the places whose next token was sampled."""
    sequence = [*request.prompt.tolist(), *request.output[:-1]]
    tokens = torch.tensor([sequence], device=truth.embedding.device)
    given = truth.described(1, len(sequence), None, None if routing is None else routing[: len(sequence)])
    return truth(tokens, given)[0, len(request.prompt) - 1 :]
