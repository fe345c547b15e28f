"""The model of GPUs nobody measured: counts and times by hand, planted efficiencies found, a GPU really left out."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from bench import config
from bench.config import Gpu
from bench.model import accounting
from bench.modelled import accuracy, fit, points, roofline, work
from bench.modelled.fit import Efficiencies, Table, stands_for
from bench.modelled.roofline import Hardware
from bench.modelled.work import Cell, Step

H100 = config.load(Gpu, "h100_sxm_80gb")
NUMBERS = ("matmul", "head", "memory", "attention", "experts", "streams", "vector", "routing", "link", "launch")


def cell(**changes) -> Cell:
    fields = {"model": "llama_3_1_8b", "gpu": "h100_sxm_80gb", "n_gpus": 1, "precision": "fp8", "phase": "serve"}
    return Cell(**{**fields, "input_tokens": 1000.0, "output_tokens": 1000.0, **changes})


def plans(asked: Cell):
    return work.plans(asked, points.model_of(asked.model), config.load(Gpu, asked.gpu))


def at(numbers: dict[str, float], step: Step, gpu: Gpu = H100, precision: str = "fp8") -> float:
    """Seconds of a step where every number is 1 but those given, and watts do not count unless `power` is."""
    e = {name: np.array([numbers.get(name, 1.0)]) for name in NUMBERS} | {
        "power": np.array([numbers.get("power", 0.0)])
    }
    hardware = Hardware.of([(cell(gpu=gpu.key, precision=precision), gpu)])
    return float(sum(roofline.seconds(roofline.amounts([step]), hardware, e).values())[0])


# ---------------------------------------------------------------- units and counts


def test_a_step_takes_its_flops_over_the_peak_and_its_bytes_over_the_bandwidth():
    assert at({"matmul": 0.5}, Step(matmul_flops=1.9789e15)) == pytest.approx(2.0)
    assert at({"memory": 0.5}, Step(weight_bytes=3.35e12)) == pytest.approx(2.0)
    assert at({"head": 0.5}, Step(head_flops=9.894e14)) == pytest.approx(2.0)  # in bf16, whatever the precision
    assert at({"attention": 0.25}, Step(attention_flops=9.894e14)) == pytest.approx(4.0)
    assert at({"link": 0.5}, Step(link_bytes=4.5e11)) == pytest.approx(2.0)  # one direction: half of 900 GB/s
    assert at({"launch": 1e-4}, Step(layers=80)) == pytest.approx(8e-3)
    assert at({"vector": 3.0, "memory": 0.5}, Step(vector_bytes=3.35e12)) == pytest.approx(6.0)
    assert at({"matmul": 0.5, "experts": 0.5}, Step(expert_flops=1.9789e15)) == pytest.approx(4.0)


def test_flops_and_bytes_of_one_kernel_overlap_and_kernels_follow_each_other():
    both = Step(matmul_flops=1.9789e15, weight_bytes=2 * 3.35e12, attention_flops=9.894e14, cache_bytes=3.35e11)
    assert at({}, both) == pytest.approx(2.0 + 1.0)


def test_a_card_of_fewer_watts_is_slower_by_the_power_of_their_ratio():
    pcie = config.load(Gpu, "a100_pcie_80gb")  # 300 W behind the peak for which the SXM card has 400
    time = at({"power": 0.5}, Step(matmul_flops=3.12e14), pcie, "bf16")
    assert time == pytest.approx((400 / 300) ** 0.5)
    assert at({"power": 0.5}, Step(matmul_flops=3.12e14), config.load(Gpu, "a100_sxm_80gb"), "bf16") == pytest.approx(1)


def test_training_work_is_three_forward_passes_four_with_recomputation_and_two_of_frozen_weights():
    model, tokens = points.model_of("llama_3_1_8b"), 8192
    (plan,) = plans(cell(phase="train_step", input_tokens=tokens, n_gpus=8))
    flops = plan.once.matmul_flops + plan.once.head_flops + plan.once.attention_flops
    assert flops == accounting.train_step(model, 1, tokens, 1, "bf16").flops
    assert plan.tokens == 8 * tokens
    (full,) = plans(cell(phase="train_step", input_tokens=tokens, recompute=True))
    assert full.once.matmul_flops == pytest.approx(plan.once.matmul_flops * 4 / 3)
    assert full.once.attention_flops == pytest.approx(plan.once.attention_flops * 4 / 3)
    (lora,) = plans(cell(phase="train_step", input_tokens=tokens, lora_rank=16))
    adapters = 3 * 2 * accounting.adapter_params(model, 16) * tokens
    assert lora.once.matmul_flops == pytest.approx(plan.once.matmul_flops * 2 / 3 + adapters)


@pytest.mark.parametrize("name", ["llama_3_1_8b", "qwen3_30b_a3b", "deepseek_v3", "gpt_oss_20b"])
def test_a_decode_step_counts_what_the_accounting_counts(name):
    """Shared out over eight GPUs, at one context, everything in fp8."""
    model, batch = points.model_of(name), 32
    size = 8
    asked = cell(model=name, phase="decode", n_gpus=size, tensor_parallel=size, precision="fp8", batch=batch)
    asked = dataclasses.replace(asked, gpu="h200_sxm_141gb", input_tokens=500.0, output_tokens=None)
    step = plans(asked)[0].again
    whole = accounting.decode(model, batch, 500.0, "fp8")
    counted = step.matmul_flops + step.expert_flops + step.head_flops + step.attention_flops
    assert counted * size == pytest.approx(whole.flops)
    copies = size if model.attention == "mla" else 1  # the latent cache is on every GPU
    moved = size * (step.weight_bytes + step.expert_bytes + step.cache_bytes / copies)
    assert moved == pytest.approx(whole.bytes)


def test_the_batch_is_what_memory_holds_at_full_length_or_what_was_told():
    (plan,) = plans(cell())
    free = 0.9 * 80e9 - 8_030_261_248
    assert plan.batch == pytest.approx(free / (2000 * 2 * 32 * 8 * 128))  # fp8 keys and values of 32 layers, 8 heads
    assert plans(cell(batch=16.0))[0].batch == 16
    assert plans(cell(input_tokens=10.0, output_tokens=10.0))[0].batch == work.MOST_SEQUENCES
    assert plans(cell(model="llama_3_1_405b")) == []


def test_replicas_share_the_load_and_every_layout_is_tried():
    made = plans(cell(n_gpus=8))
    assert [plan.tensor_parallel for plan in made] == [1, 2, 4, 8]
    single = plans(cell())[0]
    assert made[0].tokens == pytest.approx(8 * single.tokens)
    assert {plan.tensor_parallel for plan in plans(cell(n_gpus=8, tensor_parallel=4))} == {4}


# ---------------------------------------------------------------- the fit


TRUTH = {
    **{"train matmul bf16 sm_80": 0.71, "train matmul bf16 sm_90": 0.62, "train matmul fp8 sm_90": 0.55},
    **{"serve matmul bf16 sm_80": 0.66, "serve matmul fp8 sm_90": 0.58, "serve matmul bf16 sm_90": 0.64},
    **{"memory sm_80": 0.81, "memory sm_90": 0.74, "train attention": 0.42, "serve attention": 0.35, "link": 0.44},
    **{"train experts": 0.5, "serve experts": 0.62, "serve streams": 0.7, "train vector": 2.6, "serve vector": 3.1},
    **{"train routing": 4.0, "serve routing": 6.0, "launch_s": 2e-4, "power": 0.55},
    **{"few nodes": 0.9, "many nodes": 0.8, "software vllm": 0.77},
}


def synthetic() -> list[Cell]:
    """Cells that need every number of TRUTH, on two generations with two cards each."""
    gpus = (("a100_sxm_80gb", "bf16"), ("a100_pcie_80gb", "bf16"), ("h100_sxm_80gb", "fp8"), ("h100_sxm_80gb", "bf16"))
    gpus = (*gpus, ("h200_sxm_141gb", "fp8"), ("h100_pcie_80gb", "fp8"))
    made = []
    models = ("llama_3_1_8b", "mixtral_8x7b", "qwen3_30b_a3b", "llama_3_2_1b")
    for (gpu, precision), name in itertools.product(gpus, models):
        for tokens, nodes in ((2048, 8), (16384, 8), (65536, 64), (4096, 1024)):
            at = {"phase": "train_step", "n_gpus": nodes, "input_tokens": float(tokens), "output_tokens": None}
            made.append(cell(model=name, gpu=gpu, precision=precision, **at))
        for sizes in ((64, 2000, 4), (8000, 100, 64), (500, 500, None), (100000, 500, 1), (20, 8000, 512)):
            at = {"input_tokens": float(sizes[0]), "output_tokens": float(sizes[1]), "batch": sizes[2]}
            made += [cell(model=name, gpu=gpu, precision=precision, n_gpus=4, tensor_parallel=4, **at)]
            made += [cell(model=name, gpu=gpu, precision=precision, n_gpus=8, software="vLLM 1", **at)]
    return made


def known(cells: list[Cell], truth: dict[str, float]):
    """Cells with a plan, as the fit takes them, and the rates that `truth` gives them."""
    timed = [(one, config.load(Gpu, one.gpu), made) for one in cells if (made := plans(one))]
    return timed, Table(timed).predict(Efficiencies(truth))[0]


def test_planted_efficiencies_are_found_again_exactly():
    timed, rates = known(synthetic(), TRUTH)
    found = fit.fit(timed, rates, pull=0.0)
    assert set(found.values) == set(TRUTH)
    for name, value in TRUTH.items():
        assert found.values[name] == pytest.approx(value, rel=1e-4), name


def test_slopes_are_those_of_the_formula():
    """Against differences: d ln rate / d ln number, for every role."""
    timed, _ = known(synthetic()[::7], TRUTH)
    table, truth = Table(timed), Efficiencies(TRUTH)
    numbers = {role: np.array([truth.of(name) for name in names]) for role, names in table.names.items()}
    slopes = roofline.slopes(table.parts(numbers), table.hardware, numbers)
    for role in numbers:
        more, less = ({**numbers, role: numbers[role] * factor} for factor in (1 + 1e-6, 1 - 1e-6))
        change = np.log(table.rates(more, table.parts(more)) / table.rates(less, table.parts(less))) / 2e-6
        np.testing.assert_allclose(slopes[role], change, atol=1e-5, err_msg=role)


def test_an_outlier_hardly_moves_the_fit_and_a_new_generation_stays_near_the_old_one():
    timed, rates = known(synthetic(), TRUTH)
    spoiled = rates.copy()
    spoiled[3] *= 20
    name = "serve matmul fp8 sm_90"
    clean, moved = fit.fit(timed, rates).values[name], fit.fit(timed, spoiled).values[name]
    assert moved == pytest.approx(clean, rel=0.03)
    old = [i for i, (one, gpu, _) in enumerate(timed) if gpu.architecture == "sm_80" and one.phase == "train_step"]
    lone = [(cell(gpu="h100_sxm_80gb", precision="bf16", phase="train_step", input_tokens=4096.0), H100)]
    lone = [(one, gpu, plans(one)) for one, gpu in lone]
    rates_of_old = [rates[i] for i in old]
    slow = Table(lone).predict(Efficiencies({**TRUTH, "train matmul bf16 sm_90": 0.1}))[0]
    found = fit.fit([timed[i] for i in old] + lone, [*rates_of_old, float(slow[0])])
    assert 0.3 < found.values["train matmul bf16 sm_90"] < 0.7  # one row against what the last generation did


def test_efficiencies_never_pass_the_data_sheet():
    timed, rates = known(synthetic(), TRUTH)
    found = fit.fit(timed, rates * 3)
    assert max(value for name, value in found.values.items() if "matmul" in name or "memory" in name) <= 1.000001


def test_a_name_without_a_row_takes_the_nearest_older_generation_then_newer_then_a_wider_precision():
    have = ["serve matmul fp8 sm_89", "serve matmul fp8 sm_103", "serve matmul bf16 sm_80", "memory sm_80"]
    assert stands_for("serve matmul fp8 sm_100", have) == "serve matmul fp8 sm_89"
    assert stands_for("serve matmul fp8 maia_200", have) == "serve matmul fp8 sm_103"
    assert stands_for("serve matmul fp8 sm_80", have) == "serve matmul fp8 sm_89"
    assert stands_for("serve matmul fp4 sm_80", have) == "serve matmul fp8 sm_89"
    assert stands_for("memory of_the_future", have) == "memory sm_80"
    assert stands_for("train matmul bf16 sm_80", have) == ""


# ---------------------------------------------------------------- leaving a GPU out


def some_points(factor: float) -> list[points.Point]:
    """Points of five GPUs that obey TRUTH; those of one are `factor` times as fast."""
    timed, rates = known(synthetic()[::3], TRUTH)
    made = []
    for number, ((one, gpu, laid), rate) in enumerate(zip(timed, rates, strict=True)):
        times = factor if one.gpu == "h200_sxm_141gb" else 1.0
        model = points.model_of(one.model)
        made.append(points.Point(f"p{number}", "node", "fit", one, rate * times, "", gpu, model, tuple(laid)))
    return made


def test_an_outlying_gpu_cannot_move_its_own_prediction_and_moves_the_others():
    honest, spoiled = some_points(1.0), some_points(3.0)
    before, after = (accuracy.without(made, lambda p: p.cell.gpu) for made in (honest, spoiled))
    outlier = [i for i, one in enumerate(honest) if one.cell.gpu == "h200_sxm_141gb"]
    others = [i for i in before if i not in outlier]
    assert outlier and all(before[i][0] == after[i][0] for i in outlier)
    assert any(before[i][0] != after[i][0] for i in others)
    for i in outlier:  # and what is predicted is right, for the other card of its generation obeys the same numbers
        assert before[i][0] == pytest.approx(honest[i].tokens_per_s, rel=0.1)


def test_a_check_is_predicted_and_never_fitted():
    made = some_points(1.0)
    spoiled = [dataclasses.replace(p, use="check", tokens_per_s=p.tokens_per_s * 9) for p in made[:20]]
    apart = [dataclasses.replace(p, use="check") for p in made[:20]]
    assert accuracy.fitted(spoiled + made[20:]) == accuracy.fitted(apart + made[20:])
    assert accuracy.fitted(made) != accuracy.fitted(apart + made[20:])
