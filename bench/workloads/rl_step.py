"""One step of reinforcement learning by GRPO (grpo.py) on one model: rollout, scoring, update.

    rollout   `prompts` prompts of `input_tokens` random tokens, each answered `rollouts` times, in one static batch
              (rollout.py); answers as long as the workload's quantiles say (answers.py)
    scoring   one forward without gradient over prompts and answers: log-probabilities under the policy before the
              step, which are the ratio's denominator and kl's reference
    update    forward and backward over the same micro-batches of packed sequences, one AdamW step over all of them

Rewards are random numbers, the same at every step. What a step learns from is the policy's own sample, so ratios are 1
but for rounding: the work is that of any step, and the check (oracle_rl.py) takes ratios that are not.
`mark` is called at the end of each part, so that who measures can book generation, which is inference, by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.model import accounting_rl, answers, grpo, oracle, oracle_rl
from bench.model.optimiser import AdamW
from bench.model.rollout import Rollout
from bench.model.subject import Subject


class RlStep(Subject):
    """See measure/cell.py for what these names mean. Tokens a step: those of all answers, each trained on once."""

    token_kind = "trained"

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        w = self.workload
        possible = {
            "rollouts": (w.rollouts >= 2, "at least 2: an advantage is relative to the group's others"),
            "output_tokens": (w.output_tokens >= 1, "the longest answer allowed, at least 1"),
            "precision": (w.precision != "fp8", "fp32, bf16 or fp16"),
            "lora_rank": (w.lora_rank is None, "none: every weight is trained"),
            "document_tokens_median": (w.document_tokens_median is None, "none: documents are prompts with answers"),
            "gradient_accumulation": (w.gradient_accumulation == 1, "1: micro-batches follow from batch_size"),
            "tensor_parallel": (w.tensor_parallel == 1 and not self.world, "1, and one process: no sharding"),
        }
        for name, (holds, expected) in possible.items():
            if not holds:
                raise ValueError(f"rl_step {w.key}: {name}: expected {expected}")
        self.mark: Callable[[str], None] = lambda part: None
        self.lengths = answers.answer_tokens(w)
        self.tokens_per_step = sum(self.lengths)
        self.columns["rollout_idle_share"] = answers.idle_share(self.lengths)
        self.counts(accounting_rl.rl_step(self.slice, w, self.lengths))

    def check(self) -> tuple[float, float, str]:
        """Of the update; generation, where it fails its own tolerance."""
        w = self.workload
        arguments = (self.model, self.backend, w.precision, self.device)
        decoded, shape = oracle.decode_error(*arguments, w.input_tokens)
        allowed = oracle.TOLERANCE[w.precision]
        if not decoded <= allowed:
            return decoded, allowed, f"decode {shape}"
        error, shape = oracle_rl.grpo_error(*arguments, w.input_tokens + max(self.lengths))
        return error, w.tolerance or oracle.GRADIENT_TOLERANCE[w.precision], shape

    def prepare(self) -> None:
        w = self.workload
        self.model_under_test = self.network(w.input_tokens + max(self.lengths), checkpointing=w.checkpointing)
        prompts = self.tokens(w.prompts, w.input_tokens)
        self.rollout = Rollout(
            self.model_under_test,
            self.backend,
            prompts,
            self.lengths,
            self.cache,
            self.routing,
            oracle.TOLERANCE[w.precision],
        )
        rewards = torch.rand(w.prompts, w.rollouts, generator=torch.Generator().manual_seed(7))
        capacity = answers.capacity(w)
        self.batches = grpo.micro_batches(
            self.model_under_test,
            w.input_tokens,
            self.lengths,
            grpo.advantages(rewards),
            capacity,
            self.routing(capacity + w.prompts * w.rollouts),  # and padding, which is less than a token a sequence
        )
        self.policy = grpo.Policy(self.model_under_test, self.backend)
        self.optimiser = AdamW(
            list(self.model_under_test.parameters()),
            self.backend,
            states=w.optimizer_states,
            sums=len(self.batches) > 1,
        )

    def step(self) -> None:
        self.model_under_test.eval()
        tokens = grpo.pool(self.rollout.prompts, self.rollout.run())
        self.mark("rollout")
        old = [self.policy.score(tokens, batch) for batch in self.batches]
        self.mark("scoring")
        self.model_under_test.train()
        self.last_loss = torch.zeros((), device=self.device)
        for batch, before in zip(self.batches, old, strict=True):
            self.last_loss += self.policy.backward(tokens, batch, before)
            self.optimiser.gather()
        self.optimiser.update()
        self.mark("update")


build = RlStep
