"""FLOPs and bytes of one reinforcement-learning step: rollout, scoring, update. See accounting.py for the conventions.

Counted is what the step is for, not what a batch wastes on the way:

    rollout   each prompt computed once, then every answer's tokens up to its own end: a finished sequence that keeps
              its place in the batch and padding of micro-batches are not counted
    scoring   one forward over each sequence, the LM head on the answer's tokens alone
    update    three times that forward; what checkpointing computes again is not counted

The unhalved convention takes each sequence's whole square, not that of the micro-batch it is packed into. Bytes: each
decoding step reads the weights once, and the cache of the sequences that are not finished; each micro-batch reads the
weights once for scoring; the update moves what accounting.train_step counts.
"""

from __future__ import annotations

from bench.architecture import Model
from bench.model import accounting, answers
from bench.model.accounting import Cost
from bench.workload import Workload


def rollout(m: Model, w: Workload, lengths: list[int]) -> Cost:
    """Prompts, and answers of `lengths` tokens. The first token of each comes from the prompt's own forward."""
    parts = [accounting.prefill(m, w.prompts, w.input_tokens, w.precision)]
    for step in range(1, max(lengths)):
        running = sum(length > step for length in lengths)
        parts.append(accounting.decode(m, running, w.input_tokens + step, w.precision))
    return Cost(*(sum(getattr(part, name) for part in parts) for name in ("flops", "flops_unhalved", "bytes")))


def forward_flops(m: Model, prompt: int, answer: int, *, halved: bool) -> int:
    """Forward over a prompt and its answer, less the last token; logits at the answer's tokens alone."""
    fed = prompt + answer - 1
    return accounting.forward_flops(m, 1, fed, halved=halved) - 2 * m.vocab * m.hidden * (fed - answer)


def rl_step(m: Model, w: Workload, lengths: list[int]) -> Cost:
    """The whole step with answers of `lengths` tokens, the same precision throughout."""
    generated = rollout(m, w, lengths)
    forward, unhalved = (
        sum(forward_flops(m, w.input_tokens, length, halved=halved) for length in lengths) for halved in (True, False)
    )
    sizes = [w.input_tokens + length - 1 for length in lengths]
    batches = len(answers.packed(sizes, answers.capacity(w)))
    tokens = sum(sizes) // batches
    # a prefill reads the weights and writes the cache, which scoring has not
    read = accounting.prefill(m, 1, tokens, w.precision).bytes - tokens * accounting.kv_bytes_per_token(m, w.precision)
    update = accounting.train_step(m, 1, tokens, batches, w.precision, optimizer_states=w.optimizer_states)
    return Cost(
        flops=generated.flops + 4 * forward,
        flops_unhalved=generated.flops_unhalved + 4 * unhalved,
        bytes=generated.bytes + batches * read + update.bytes,
    )
