"""Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300): its loss, and how the policy is trained on it.

    A_i = (r_i - mean r) / std r                        over the answers to one prompt, the same for all their tokens
    ratio = π(token) / π_old(token),   kl = π_old / π - log(π_old / π) - 1
    loss = 1/N · Σ_tokens β · kl - min(ratio · A, clip(ratio, 1 - ε, 1 + ε) · A)

ε is 0.2 on both sides and β 0.04, DeepSeekMath's; the mean is over all N answer tokens of the step, as in DAPO
(arXiv 2503.14476), whose wider upper clip (0.28) is not taken. The reference of kl is the policy before the step, so
that one forward without gradient (scoring) gives it and the ratio's denominator both.

The loss needs each token's own log-probability, which the op `linear_cross_entropy`, a mean, does not give. So the head
runs on CHUNK answer tokens at a time: logits by the op `matmul`, softmax and loss by torch in fp32, and backward into
the head and the hidden states at once, before the next chunk. Logits of one chunk exist, and none is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.kernels.op import compiled
from bench.model import answers
from bench.model.parts import Tokens
from bench.model.transformer import Transformer

CLIP, KL = 0.2, 0.04
CHUNK = 2048  # answer tokens whose logits exist at once: 1 GB in fp32 at a vocabulary of 128k


def advantages(rewards: Tensor) -> Tensor:
    """(prompts, rollouts) -> the same shape, mean 0 and variance 1 over each prompt's answers."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt()


def token_losses(log_probability: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    """The loss's term of each token, all (N,)."""
    change = log_probability - old
    ratio = change.exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
    return KL * ((-change).exp() + change - 1) - surrogate


@dataclass(frozen=True)
class MicroBatch:
    """T tokens of whole sequences packed end to end, and the R answer tokens they predict. Rows that pad weigh 0."""

    source: Tensor  # (1, T), places of the tokens in the step's pool of prompts and answers
    given: Tokens
    rows: Tensor  # (R,), which of the T predict an answer's token
    targets: Tensor  # (R,), places of the predicted tokens in the pool
    advantages: Tensor  # (R,) fp32
    weights: Tensor  # (R,) fp32: 1 / the step's answer tokens
    chunk: int  # rows whose logits exist at once; divides R


def pool(prompts: Tensor, generated: Tensor) -> Tensor:
    """prompts (P, I) and answers (longest, P · rollouts), token by token, laid end to end."""
    return torch.cat((prompts.flatten(), generated.flatten()))


def micro_batches(
    network: Transformer,
    prompt_tokens: int,
    lengths: list[int],
    advantage: Tensor,
    most: int,
    routing: Tensor | None = None,
    chunk: int = CHUNK,
) -> list[MicroBatch]:
    """The sequences with answers of `lengths` packed into micro-batches of one shape and at most `most` tokens.

    `advantage` (prompts, rollouts); `routing` as parts.Tokens has it, of at least a micro-batch's tokens.
    """
    prompts, rollouts = advantage.shape
    device = network.embedding.device
    sizes = [prompt_tokens + length - 1 for length in lengths]
    members = answers.packed(sizes, most)
    documents = answers.documents(sizes, members)
    longest = max(sum(lengths[number] for number in one) for one in members)
    parts = -(-longest // chunk)
    chunk = -(-longest // parts)

    def padded(pieces: list[Tensor], size: int) -> Tensor:
        whole = torch.cat(pieces)
        return torch.cat((whole, whole.new_zeros(size - len(whole)))).to(device)

    def batch(one: list[int], row: list[int]) -> MicroBatch:
        tokens, rows, targets, gains, first = [], [], [], [], 0
        for number in one:
            answer = prompts * prompt_tokens + number + torch.arange(lengths[number]) * len(lengths)
            prompt = number // rollouts
            tokens += [torch.arange(prompt * prompt_tokens, (prompt + 1) * prompt_tokens), answer[:-1]]
            targets.append(answer)
            rows.append(first + prompt_tokens - 1 + torch.arange(lengths[number]))
            gains.append(advantage.flatten()[number].float().cpu().expand(lengths[number]))
            first += sizes[number]
        size = parts * chunk
        given = network.described(1, sum(row), [row], None if routing is None else routing[: sum(row)])
        return MicroBatch(
            source=padded(tokens, sum(row))[None],
            given=given,
            rows=padded(rows, size),
            targets=padded(targets, size),
            advantages=padded(gains, size),
            weights=padded([torch.full((sum(lengths[number] for number in one),), 1 / sum(lengths))], size),
            chunk=chunk,
        )

    return [batch(one, row) for one, row in zip(members, documents, strict=True)]


class Policy:
    """The network as scoring and update run it, on one micro-batch at a time; `tokens` is the step's pool."""

    def __init__(self, network: Transformer, backend: str):
        self.network = network
        self.hidden = compiled(backend, self._hidden)
        self.log_probabilities = compiled(backend, self._log_probabilities)
        self.loss = compiled(backend, self._loss)

    def _hidden(self, tokens: Tensor, given: Tokens, rows: Tensor) -> Tensor:
        return self.network.hidden(tokens, given)[0].index_select(0, rows)

    def _log_probabilities(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.network.ops.matmul(hidden, self.network.head)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return torch.log_softmax(logits, -1, dtype=wide).gather(1, targets[:, None])[:, 0]

    def _loss(self, hidden: Tensor, targets: Tensor, old: Tensor, advantage: Tensor, weights: Tensor) -> Tensor:
        return (token_losses(self._log_probabilities(hidden, targets), old, advantage) * weights).sum()

    @torch.no_grad()
    def score(self, tokens: Tensor, batch: MicroBatch) -> Tensor:
        """Log-probabilities (R,) of the answers' tokens."""
        hidden = self.hidden(tokens[batch.source], batch.given, batch.rows)
        pairs = zip(hidden.split(batch.chunk), tokens[batch.targets].split(batch.chunk), strict=True)
        return torch.cat([self.log_probabilities(part, targets) for part, targets in pairs])

    def backward(self, tokens: Tensor, batch: MicroBatch, old: Tensor) -> Tensor:
        """Add the micro-batch's part of the loss's gradients to the weights'; that part of the loss."""
        hidden = self.hidden(tokens[batch.source], batch.given, batch.rows)
        parts = [part.detach().requires_grad_() for part in hidden.split(batch.chunk)]
        columns = (tokens[batch.targets], old, batch.advantages, batch.weights)
        head, total, back = self.network.head, torch.zeros((), device=hidden.device), []
        summed = torch.zeros_like(head, dtype=torch.promote_types(head.dtype, torch.float32))
        for part, *column in zip(parts, *(column.split(batch.chunk) for column in columns), strict=True):
            loss = self.loss(part, *column)
            for_part, for_head = torch.autograd.grad(loss, (part, head))
            back.append(for_part)
            summed += for_head  # in fp32: many chunks' parts would be lost in 16 bits
            total += loss.detach()
        head.grad = summed.to(head.dtype) if head.grad is None else head.grad + summed.to(head.dtype)
        hidden.backward(torch.cat(back))
        return total
