"""One GRPO step: its answers, its loss and the work it counts, against plain loops and hand counts."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.architecture import Model
from bench.config import load
from bench.measure.cell import resolve
from bench.model import accounting, accounting_rl, answers, grpo, oracle
from bench.workload import Workload

MODEL = dataclasses.replace(
    load(Model, "tiny_15m"), layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=97
)
SIZES = {
    "prompts": 2,
    "rollouts": 3,
    "input_tokens": 5,
    "output_tokens": 9,
    "answer_tokens_quantiles": (1, 4, 12),
    "batch_size": 2,
}


def workload(**sizes):
    return Workload(key="w", phase="rl_step", source="test", **{"precision": "fp32", **SIZES, **sizes})


def make(model=MODEL, backend="reference", **sizes):
    build = resolve("bench.workloads.rl_step:build")
    request = dataclasses.asdict(workload(**sizes))
    return build(device="cpu", model=dataclasses.asdict(model), workload=request, backend=backend, layers=model.layers)


# ---------------------------------------------------------------- lengths and packing


def test_lengths_are_the_quantiles_in_the_middle_of_each_share_dealt_to_the_prompts():
    w = workload(rollouts=2, answer_tokens_quantiles=(2, 10, 20), output_tokens=16)
    # shares 1/8 3/8 5/8 7/8 of a line from 2 over 10 to 20: 4, 8, 12.5, 17.5, the last one cut
    assert answers.answer_tokens(w) == [4, 12, 8, 16]


def test_the_shipped_quantiles_give_the_traces_mean_answer():
    w = load(Workload, "rl_rollout")
    lengths = answers.answer_tokens(w)
    assert len(lengths) == 128 and max(lengths) == 4096
    assert sum(lengths) / 128 == pytest.approx(1221.7, rel=0.01)  # of all the trace's answers, cut at 4,096


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), spare=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_every_sequence_is_in_one_micro_batch_and_all_have_one_shape(sizes, spare):
    most = max(sizes) + spare
    members = answers.packed(sizes, most)
    assert sorted(number for one in members for number in one) == list(range(len(sizes)))
    assert all(sum(sizes[number] for number in one) <= most for one in members)
    documents = answers.documents(sizes, members)
    assert len({(len(row), sum(row)) for row in documents}) == 1 and min(map(min, documents)) >= 1
    for one, row in zip(members, documents, strict=True):
        assert row[: len(one)] == [sizes[number] for number in one]


def test_idle_share_by_hand():
    # decoded tokens, the first of each answer aside: 0 + 2 + 4 of 3 x 4 places
    assert answers.idle_share([1, 3, 5]) == pytest.approx(0.5)
    assert answers.idle_share([4, 4]) == 0 and answers.idle_share([1]) == 0


# ---------------------------------------------------------------- rollout


@pytest.fixture(scope="module")
def job():
    made = make()
    made.prepare()
    return made


def test_a_batchs_answers_are_those_of_one_sequence_at_a_time(job):
    found = job.rollout.run()
    assert len(found) == max(job.lengths) == 9
    for number, length in enumerate(job.lengths):
        tokens = job.rollout.prompts[number // 3].tolist()
        for row in range(length):
            with torch.no_grad():
                mass = job.model_under_test(torch.tensor([tokens]))[0, -1].double().softmax(0).cumsum(0)
            tokens.append(int((mass > job.rollout.uniforms[row, number]).int().argmax()))
        assert found[:length, number].tolist() == tokens[5:], f"answer {number} of {length} tokens"


def test_a_finished_sequence_stays_where_it_ended(job):
    job.rollout.run()
    # a clamp after each step: the longest has fed its last token but one
    assert job.rollout.kv.lengths.tolist() == [5 + length - 2 for length in job.lengths]
    assert job.rollout.kv.keys[0].shape[1] == 5 + 9 - 1


# ---------------------------------------------------------------- loss


def test_advantages_have_mean_0_and_variance_1_in_each_group():
    found = grpo.advantages(torch.rand(4, 7, dtype=torch.float64))
    torch.testing.assert_close(found.mean(1), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(found.var(1, correction=0), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("ratio", "advantage", "flows"),
    [(1.3, 1.0, False), (0.7, -1.0, False), (1.3, -1.0, True), (0.7, 1.0, True), (1.1, 1.0, True), (0.9, -1.0, True)],
)
def test_the_clip_stops_what_has_gone_far_enough_and_nothing_else(ratio, advantage, flows, monkeypatch):
    monkeypatch.setattr(grpo, "KL", 0.0)
    new = torch.tensor([ratio]).log().requires_grad_()
    grpo.token_losses(new, torch.zeros(1), torch.tensor([advantage])).sum().backward()
    assert new.grad.item() == pytest.approx(-ratio * advantage if flows else 0.0)


def plain_term(new, old, advantage):
    """DeepSeekMath's equations 3 and 4 for one token, case by case."""
    ratio = (new - old).exp()
    if advantage > 0 and ratio > 1.2:
        gain = torch.tensor(1.2 * advantage, dtype=torch.float64)
    elif advantage < 0 and ratio < 0.8:
        gain = torch.tensor(0.8 * advantage, dtype=torch.float64)
    else:
        gain = ratio * advantage
    away = (old - new).exp() - (old - new) - 1
    return 0.04 * away - gain


def test_loss_and_gradients_are_those_of_a_plain_float64_grpo(job):
    network = job.model_under_test
    tokens = grpo.pool(job.rollout.prompts, job.rollout.run())
    gains = grpo.advantages(torch.rand(2, 3, generator=torch.Generator().manual_seed(8)))
    batches = grpo.micro_batches(network, 5, job.lengths, gains, answers.capacity(job.workload), chunk=4)
    assert len(batches) > 1 and any((batch.weights == 0).any() for batch in batches)
    generator = torch.Generator().manual_seed(9)
    moved = [0.4 * torch.randn(len(batch.rows), generator=generator) for batch in batches]
    old = [job.policy.score(tokens, batch) + move for batch, move in zip(batches, moved, strict=True)]
    network.train()
    loss = sum(job.policy.backward(tokens, batch, before) for batch, before in zip(batches, old, strict=True))

    truth, terms = oracle.twin(network), []
    sizes = [5 + length - 1 for length in job.lengths]
    for one, before in zip(answers.packed(sizes, answers.capacity(job.workload)), old, strict=True):
        at = 0
        for number in one:
            answer = job.rollout.answers[: job.lengths[number], number]
            fed = torch.cat((job.rollout.prompts[number // 3], answer[:-1]))[None]
            new = truth(fed)[0, 4:].log_softmax(-1)
            for place, token in enumerate(answer.tolist()):
                gain = float(gains[number // 3, number % 3])
                terms.append(plain_term(new[place, token], before[at + place].double(), gain))
            at += len(answer)
    exact = torch.stack(terms).mean()
    exact.backward()
    assert float(loss) == pytest.approx(float(exact.detach()), rel=1e-5)
    for ours, theirs in zip(network.parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)
        ours.grad = None


def test_the_heads_gradient_does_not_depend_on_how_many_chunks_make_it():
    """In bf16 one chunk after the other would round small parts away."""
    sizes = {"answer_tokens_quantiles": (64, 64), "output_tokens": 64, "batch_size": 6, "precision": "bf16"}
    made = make(**sizes)
    made.prepare()
    network, tokens = made.model_under_test, grpo.pool(made.rollout.prompts, made.rollout.run())
    gains = grpo.advantages(torch.rand(2, 3, generator=torch.Generator().manual_seed(8)))
    found = []
    for chunk in (1, 384):
        [batch] = grpo.micro_batches(network, 5, made.lengths, gains, answers.capacity(made.workload), chunk=chunk)
        made.policy.backward(tokens, batch, made.policy.score(tokens, batch))
        found.append(network.head.grad.double())
        for weight in network.parameters():
            weight.grad = None
    assert (found[0] - found[1]).norm() / found[1].norm() < 0.006  # one rounding to bf16; 0.02 where chunks are rounded


# ---------------------------------------------------------------- the step


def test_a_step_trains_every_weight_and_its_parts_come_in_order():
    made, heard = make(), []
    made.prepare()
    made.mark = heard.append
    before = [weight.detach().clone() for weight in made.model_under_test.parameters()]
    made.step()
    assert heard == ["rollout", "scoring", "update"]
    assert all(not torch.equal(old, new) for old, new in zip(before, made.optimiser.copies, strict=True))
    assert (made.tokens_per_step, made.token_kind) == (sum(made.lengths), "trained")
    # on its own sample every ratio is 1, and the loss is minus the mean advantage of a token
    gains = torch.cat([batch.advantages for batch in made.batches]).double()
    assert float(made.last_loss) == pytest.approx(-float(gains.sum()) / sum(made.lengths), abs=1e-5)


def test_checkpointing_changes_no_step():
    plain, full = make(), make(checkpointing="full")
    for made in (plain, full):
        made.prepare()
        made.step()
        made.step()
    assert torch.equal(plain.rollout.answers, full.rollout.answers)
    for a, b in zip(plain.optimiser.copies, full.optimiser.copies, strict=True):
        torch.testing.assert_close(a, b)


def test_backend_triton_takes_the_step_that_reference_takes():
    sizes = {"prompts": 1, "rollouts": 2, "input_tokens": 3, "answer_tokens_quantiles": (2, 3), "output_tokens": 3}
    ours, torchs = (make(backend=backend, **sizes) for backend in ("triton", "reference"))
    for made in (ours, torchs):
        made.prepare()
        made.step()
    for number, length in enumerate(ours.lengths):
        assert torch.equal(ours.rollout.answers[:length, number], torchs.rollout.answers[:length, number])
    for a, b in zip(ours.optimiser.copies, torchs.optimiser.copies, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_check_passes_and_finds_a_wrong_gradient(monkeypatch):
    made = make()
    error, tolerance, shape = made.check()
    assert error <= tolerance and shape == "layers=2 batch=2 tokens=14 answers=11+2+5+8"
    right = grpo.Policy._loss
    # 1% more for the same loss: only gradients differ
    monkeypatch.setattr(grpo.Policy, "_loss", lambda self, *a: 1.01 * (loss := right(self, *a)) - 0.01 * loss.detach())
    error, tolerance, _ = made.check()
    assert error == pytest.approx(0.01, rel=0.01) and error > tolerance


@pytest.mark.parametrize("key", ["tiny_moe", "tiny_mla"])
def test_mixtures_and_latent_attention_take_the_step(key):
    made = make(load(Model, key), precision="bf16", routing_zipf=0.5)
    made.prepare()
    made.step()
    assert torch.isfinite(made.last_loss) and made.columns["expert_load"] > 1


# ---------------------------------------------------------------- counts


def test_scoring_and_update_flops_equal_torchs_counter():
    # answers of one length, one to a micro-batch: nothing is padded, and a sequence's square is its micro-batch's
    made = make(answer_tokens_quantiles=(7, 7), batch_size=1)
    made.prepare()
    tokens = grpo.pool(made.rollout.prompts, made.rollout.run())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        old = [made.policy.score(tokens, batch) for batch in made.batches]
        for batch, before in zip(made.batches, old, strict=True):
            made.policy.backward(tokens, batch, before)
    by_op = counter.get_flop_counts()["Global"]
    assert sum(n for op, n in by_op.items() if "bmm" in str(op)) > 0  # attention was seen
    counted = made.flops_unhalved - accounting_rl.rollout(MODEL, made.workload, made.lengths).flops_unhalved
    assert len(made.batches) == 6 and counted == counter.get_total_flops()


def test_rollout_counts_each_prompt_once_and_each_answer_to_its_own_end():
    w, lengths = workload(), [1, 3, 2, 5, 4, 9]
    found = accounting_rl.rollout(MODEL, w, lengths)
    prompts = accounting.prefill(MODEL, 2, 5, "fp32")
    each = [accounting.decode(MODEL, 1, 5 + step, "fp32") for length in lengths for step in range(1, length)]
    assert found.flops == prompts.flops + sum(one.flops for one in each)
    # the weights are read at each of 8 steps, however few still decode
    kv = accounting.kv_bytes_per_token(MODEL, "fp32")
    cache = sum(5 + step for length in lengths for step in range(1, length)) * kv
    assert found.bytes == pytest.approx(prompts.bytes + cache + 8 * accounting.total_params(MODEL) * 4)


def test_causal_halving_touches_attention_alone():
    made = make()
    pairs = {True: lambda n: n * (n + 1) // 2, False: lambda n: n * n}
    sizes = [5 + length - 1 for length in made.lengths]
    saved = 4 * sum(2 * 2 * 4 * 32 * (pairs[False](n) - pairs[True](n)) for n in sizes)
    prompt = 2 * 2 * 2 * 4 * 32 * (pairs[False](5) - pairs[True](5))
    assert made.flops_unhalved - made.flops == saved + prompt


# ---------------------------------------------------------------- configs


@pytest.mark.parametrize("key", ["rl_rollout", "rl_rollout_tiny"])
def test_shipped_workloads_build(key):
    w = dataclasses.asdict(load(Workload, key))
    made = resolve("bench.workloads.rl_step:build")(
        device="cpu", model=dataclasses.asdict(MODEL), workload=w, backend="reference", layers=2
    )
    assert 0.5 < made.columns["rollout_idle_share"] < 0.75 and made.flops > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollouts": 1}, "rollouts: expected at least 2"),
        ({"output_tokens": 0}, "output_tokens: expected the longest answer"),
        ({"precision": "fp8"}, "precision: expected fp32, bf16 or fp16"),
        ({"lora_rank": 4}, "lora_rank: expected none"),
        ({"gradient_accumulation": 2}, "gradient_accumulation: expected 1"),
    ],
)
def test_what_the_step_does_not_do_is_refused(change, message):
    with pytest.raises(ValueError, match=f"rl_step w: {message}"):
        make(**change)
