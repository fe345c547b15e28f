"""Is a backend's policy update right? Its GRPO loss and gradients against the same weights in float64.

At the shape of oracle.py's other checks: two prompts with two answers each, of different lengths, together up to 320
tokens a sequence. The backend packs them and runs the head in chunks, as the timed step does; the truth takes one
sequence at a time through plain logits. So that every term counts, the old policy is set apart from the new one, by
changes of log-probability that lie well inside the clip's bounds or well outside: rounding moves none across.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.architecture import Model
from bench.model import answers, grpo, oracle

PROMPTS, ROLLOUTS = 2, 2
APART = (-0.5, -0.1, 0.1, 0.5)  # ratios 0.61, 0.90, 1.11, 1.65 against a clip at 0.8 and 1.2


def plain_loss(log_probabilities: list[Tensor], old: list[Tensor], advantages: list[float]) -> tuple[Tensor, Tensor]:
    """(loss, mean size of its terms) written out: a list entry is one answer, a loss the mean over all tokens."""
    terms = []
    for new, before, advantage in zip(log_probabilities, old, advantages, strict=True):
        ratio = torch.exp(new - before)
        clipped = torch.clip(ratio, 1 - grpo.CLIP, 1 + grpo.CLIP)
        away = torch.exp(before - new) - (before - new) - 1
        terms.append(torch.min(ratio * advantage, clipped * advantage) - grpo.KL * away)
    joined = torch.cat(terms)
    return -joined.mean(), joined.detach().abs().mean()


def grpo_error(model: Model, backend: str, precision: str, device: torch.device, tokens: int) -> tuple[float, str]:
    """The larger of the loss's error, against the size of its terms, and the worst parameter's gradient's."""
    network, shape = oracle.small(model, backend, precision, device, tokens)
    network.train()
    longest = min(oracle.TOKENS, tokens)
    prompt = max(1, longest // 4)
    lengths = [max(1, (longest - prompt) * part // 4) for part in (4, 1, 2, 3)]
    sizes = [prompt + length - 1 for length in lengths]
    generator = torch.Generator().manual_seed(2)
    vocab = network.model.vocab
    prompts = torch.randint(vocab, (PROMPTS, prompt), generator=generator)
    generated = torch.randint(vocab, (max(lengths), len(lengths)), generator=generator)
    gains = grpo.advantages(torch.rand(PROMPTS, ROLLOUTS, generator=generator))
    routing = oracle.routed(network, sum(sizes))
    [batch] = grpo.micro_batches(network, prompt, lengths, gains, sum(sizes), routing, chunk=max(lengths))

    truth, at, new = oracle.twin(network), 0, {}
    [members] = answers.packed(sizes, sum(sizes))  # in the order the micro-batch has them
    for number in members:
        answer = generated[: lengths[number], number]
        fed = torch.cat((prompts[number // ROLLOUTS], answer[:-1]))[None].to(device)
        forced = None if routing is None else routing[at : at + sizes[number]]
        logits = truth(fed, truth.described(1, sizes[number], None, forced))[0, prompt - 1 :]
        new[number] = logits.log_softmax(-1).gather(1, answer[:, None].to(device))[:, 0]
        at += sizes[number]
    apart = torch.tensor(APART, dtype=torch.float64)
    moves = {n: apart[torch.randint(len(APART), (lengths[n],), generator=generator)].to(device) for n in members}
    before = [new[number].detach() - moves[number] for number in members]
    exact, scale = plain_loss([new[n] for n in members], before, [float(gains.flatten()[n]) for n in members])
    exact.backward()

    old = torch.cat(before)
    old = torch.cat((old, old.new_zeros(len(batch.rows) - len(old)))).float()
    loss = grpo.Policy(network, backend).backward(grpo.pool(prompts, generated).to(device), batch, old)
    errors = [float((loss.double() - exact.detach()).abs() / scale)]
    for ours, theirs in zip(network.parameters(), truth.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        errors.append(float((ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()))
    return float(torch.tensor(errors).max()), f"{shape} answers={'+'.join(map(str, lengths))}"
