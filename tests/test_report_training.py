"""The training section: fits over two depths, the workloads, skew, an RL step's split, scaling, others' rates."""

from __future__ import annotations

import pytest
import report_rows as made
from report_rows import material, shown, words

from bench import config, results
from bench.model import accounting
from bench.report import build, offers, roofline, training
from bench.report.material import gather
from bench.report.page import Layout, dangling, ids
from bench.report.training_cells import SAME, alike, at_depth, depth, fits, name, shares, standing
from bench.report.training_goals import goals
from bench.report.training_rl import PRIOR
from bench.workload import Workload

SHORT = "llama_3_2_1b/pretrain_short"
DENSE = "llama_3_1_8b/pretrain_dense_8b"
MOE = "gpt_oss_20b/pretrain_moe"
ON_H100 = "Training on 1 × H100 SXM 80 GB, newest run of each"


def tables(*cells, **given):
    """The section's tables by caption."""
    return {table.caption: table for table in training.section(material(*cells, **given)).tables}


# ---------------------------------------------------------------- two depths


def test_two_depths_stand_for_the_whole_model(tmp_path):
    given = material(made.sliced(f"{DENSE}/triton", 8), made.sliced(f"{DENSE}/triton", 16), folder=tmp_path)
    (fit,) = fits(given)
    whole = made.trained(f"{DENSE}/triton")
    for column in ("flops_per_step", "flops_per_step_unhalved", "bytes_per_step", "energy_joules_per_step"):
        assert fit[column] == pytest.approx(whole[column]), column
    assert fit["step_s_last_third"] == pytest.approx(1.0, rel=1e-4)
    assert fit["system_tokens_per_s"] == pytest.approx(8192, rel=1e-4)
    assert depth(fit) == "fit of 8+16 of 32 layers" and fit["peak_memory_bytes"] is None
    assert name(fit) == f"{made.H100_RUN}/{DENSE}/triton/8+16"
    assert shares(given, [fit])[name(fit)].mfu_datasheet.share == pytest.approx(0.5, rel=1e-4)


def test_the_accounting_of_a_dense_model_is_a_line_over_its_depth():
    """What makes a fit's MFU exact: FLOPs and bytes of two depths give those of the whole."""
    model, workload = config.load(accounting.Model, "llama_3_1_8b"), config.load(Workload, "pretrain_dense_8b")

    def cell(layers):
        cost = accounting.train_step(model.sliced(layers), workload.batch_size, workload.input_tokens, 1, "bf16")
        return {"layers_measured": layers, "flops_per_step": cost.flops, "bytes_per_step": cost.bytes}

    for column in ("flops_per_step", "bytes_per_step"):
        fitted = at_depth([cell(4), cell(8)], column, 32)
        assert fitted == pytest.approx(cell(32)[column], rel=1e-9)


def test_one_depth_and_a_share_of_the_experts_are_no_fit(tmp_path):
    share = {"expert_parallel": 16}
    cells = [
        made.sliced(f"{DENSE}/triton", 8),
        made.sliced(f"{MOE}_share/triton", 8, **share),
        made.sliced(f"{MOE}_share/triton", 16, **share),
    ]
    assert fits(material(*cells, folder=tmp_path)) == []


def test_only_the_newest_and_largest_stands_for_a_workload():
    old = made.trained(f"{SHORT}/triton", run="20260101")
    shallow = made.sliced(f"{SHORT}/triton", 8)
    assert standing([made.trained(f"{SHORT}/triton"), shallow, old]) == [made.trained(f"{SHORT}/triton")]
    assert alike(shallow) != alike(made.trained(f"{SHORT}/triton")) and "run" in SAME


# ---------------------------------------------------------------- the table of workloads


def test_a_workload_shows_its_rate_mfu_memory_and_energy():
    rows = shown(tables(made.ceiling(), made.trained(f"{SHORT}/triton"))[ON_H100])
    (row,) = rows
    assert row["workload"] == "Llama-3.2-1B, pretrain_short"
    assert (row["MFU"], row["MFU unhalved"], row["MFU of measured"]) == ("50.0%", "60.0%", "62.5%")
    assert (row["tokens/s a GPU"], row["peak memory a GPU"]) == ("8,190", "40.0 GB")
    assert row["energy a token"] == "0.0854 J"  # 700 J over 8,192 tokens


def test_rates_and_mfu_are_per_gpu_and_energy_is_of_all_boards():
    many = {"n_gpus": 8, "tokens_per_step": 8 * 8192, "system_tokens_per_s": 8 * 8192.0, "flops_per_step": 4 * 989.4e12}
    cell = made.trained(f"{SHORT}/triton", **many, energy_joules_per_step=8 * 700.0)
    (row,) = shown(tables(cell)[ON_H100.replace("1 ×", "8 ×")])
    assert (row["tokens/s a GPU"], row["MFU"], row["energy a token"]) == ("8,190", "50.0%", "0.0854 J")


def test_fp8_has_no_measured_peak_and_the_table_says_why():
    fast = made.trained(f"{DENSE}_fp8/triton", precision="fp8")
    table = tables(made.ceiling(), made.trained(f"{DENSE}/triton"), fast)[ON_H100]
    rows = {row["workload"]: row for row in shown(table)}
    assert rows["Llama-3.1-8B, pretrain_dense_8b"]["MFU of measured"] == "62.5%"
    assert rows["Llama-3.1-8B, pretrain_dense_8b_fp8"]["MFU of measured"] == "–"
    assert rows["Llama-3.1-8B, pretrain_dense_8b_fp8"]["MFU"] == "25.0%"  # of the fp8 peak, twice that of bf16
    assert words(table.note) == "MFU of measured is blank where there is no fp8 matmul ceiling in this run."


def test_what_a_reader_must_know_of_a_row_is_said_where_it_holds():
    plain = tables(made.ceiling(), made.trained(f"{SHORT}/triton"))[ON_H100]
    assert plain.note == ()
    adapters = made.trained("llama_3_1_8b/finetune_lora/triton", lora_rank=16)
    note = words(tables(made.ceiling(), adapters, rl_step())[ON_H100].note)
    assert note == (
        "An RL step's tokens are those of its answers."
        " LoRA trains adapters alone: about 4 FLOPs a parameter and token, not 6."
    )


def test_a_fit_shows_its_rate_and_the_memory_of_its_deepest_slice(tmp_path):
    slices = [made.sliced(f"{DENSE}/triton", n, peak_memory_bytes=n * 10**9) for n in (16, 8)]
    (row,) = shown(tables(*slices, folder=tmp_path)[ON_H100])
    assert (row["tokens/s a GPU"], row["depth"]) == ("8,190", "fit of 8+16 of 32 layers")
    assert row["peak memory a GPU"] == "16.0 GB *"
    (alone,) = shown(tables(slices[0])[ON_H100])
    assert "tokens/s a GPU" not in alone and (alone["depth"], alone["MFU"]) == ("16 of 32 layers", "50.0%")


def test_a_share_of_the_experts_is_marked():
    (row,) = shown(tables(made.trained(f"{MOE}_share/triton", expert_parallel=16))[ON_H100])
    assert row["depth"] == "1/16 of the experts"


def test_the_cost_is_the_median_of_retail_prices_on_demand():
    rate = made.trained("llama_3_1_8b/finetune_lora/triton", lora_rank=16)

    def cost(usd, provider="a", level="retail", term="on_demand", **other):
        base = {"x_row": name(rate), "x_level": level, "x_term": term, "x_usd_per_million_tokens": usd}
        return made.row(results.COSTS, **{**base, "x_provider": provider, "RegionId": "r", **other})

    costs = [cost(1.0), cost(3.0, "b"), cost(8.0, "c"), cost(9e9, term="spot"), cost(9e9, level="owner")]
    costs += [cost(9e9, x_illustrative="yes"), cost(9e9, x_row="another")]
    (row,) = shown(tables(rate, costs=costs)[ON_H100])
    assert row["USD per million tokens"] == "$3.00"


def test_adapters_and_rl_steps_never_lead_the_cost_tables():
    """Faster than any pre-training and measured where the rest is imported: still no price of training a model."""
    sides = {side: [r for r in made.costs() if offers.side_of(r) == side] for side in ("training", "serving")}
    lora = {"x_workload": "finetune_lora", "x_row": "run/lora", "x_basis": "measured", "x_system_tokens_per_s": 1e9}
    rl = lora | {"x_workload": "rl_rollout", "x_row": "run/rl", "x_phase": "rl_step"}
    never = [row | changes for row in sides["training"] for changes in (lora, rl)]
    assert {offers.side_of(row) for row in never} == {""}
    costs = [*made.costs(), *never]
    assert {row["x_row"] for row in offers.chosen(costs, "training", offers.headline(costs))} == {
        "published:rate_train"
    }
    # a model that is served, and whose adapters alone are trained, has one side and not two
    other = [row | {"x_model": "a_model"} for row in (*sides["serving"], *never)]
    assert offers.headline([*made.costs(), *other]) == offers.headline(made.costs())


# ---------------------------------------------------------------- skew, RL, scaling, others


def routed(zipf, load, seconds, **other):
    name = f"{MOE}_{'zipf' if zipf else 'uniform'}/triton"
    same = {"routing_zipf": zipf, "expert_load": load, "step_s_last_third": seconds}
    return made.trained(name, **same, **other)


def test_the_cost_of_skew_is_a_ratio_of_step_times():
    (row,) = shown(tables(routed(0.5, 2.9, 1.3), routed(0.0, 1.1, 1.0))["The cost of skewed routing"])
    assert row["step time, Zipf / uniform"] == "1.30"
    assert (row["busiest expert / mean, uniform"], row["the same, Zipf"]) == ("1.10", "2.90")


@pytest.mark.parametrize("change", [{"run": "20260101"}, {"batch_size": 2}, {"layers_measured": 8}, {"n_gpus": 2}])
def test_skew_compares_cells_that_differ_in_nothing_else(change):
    assert "The cost of skewed routing" not in tables(routed(0.5, 2.9, 1.3), routed(0.0, 1.1, 1.0, **change))


def test_the_routers_own_choice_is_not_uniform_routing():
    own = routed(None, None, 1.0, workload="train_4k")
    assert "The cost of skewed routing" not in tables(routed(0.5, 2.9, 1.3), own)


def test_dense_cells_have_no_skew():
    assert "The cost of skewed routing" not in tables(made.trained(f"{SHORT}/triton"))


def rl_step(**values):
    parts = {"step_s_median": 10.0, "rollout_s_median": 7.0, "scoring_s_median": 1.0, "rollout_idle_share": 0.64}
    return made.trained("llama_3_2_1b/rl_rollout/triton", phase="rl_step", **{**parts, **values})


def test_an_rl_step_books_its_inference_separately():
    (row,) = shown(tables(rl_step())["A reinforcement-learning step by part"])
    assert (row["rollout"], row["scoring"], row["update"]) == ("70%", "10%", "20%")
    assert (row["inference: rollout and scoring"], row["idle places"]) == ("80%", "64%")


def test_what_an_rl_step_measured_stands_beside_the_claims_prior():
    prior = next(claim for claim in material().files.values() if PRIOR in claim.parameters)
    low, middle, high = prior.parameters[PRIOR].numbers
    on_cpu = rl_step(device="cpu", gpu="cpu", device_name="AMD EPYC", scoring_s_median=2.0)
    said = words(training.section(material(rl_step(), on_cpu)).text[-1])
    assert "80% of its time on 1 × H100 SXM 80 GB (Llama-3.2-1B, rl_rollout)" in said
    assert "90% of its time on AMD EPYC" in said and "says nothing about GPUs" in said
    assert f"from {low:.0%} to {high:.0%}, median {middle:.0%}" in said and "not the same quantity" in said
    assert "are inference: not measured yet." in words(training.section(material()).text[-1])


def test_scaling_is_the_rate_a_gpu_over_that_on_one():
    one = made.trained(f"{SHORT}/triton", run="20260101")
    many = {"n_gpus": 8, "tensor_parallel": 1, "system_tokens_per_s": 8 * 0.9 * 8192, "exposed_communication_s": 0.05}
    (row,) = shown(tables(made.trained(f"{SHORT}/triton", **many), one)["More than one GPU"])
    assert (row["of the rate on 1"], row["only communicating"], row["of the step"]) == ("90.0%", "50.0 ms", "5.0%")
    (alone,) = shown(tables(made.trained(f"{SHORT}/triton", **many))["More than one GPU"])
    assert alone["of the rate on 1"] == "–"
    other = made.trained(f"{SHORT}/triton", gpu="h200_sxm_141gb", device_name="H200")
    (apart,) = shown(tables(made.trained(f"{SHORT}/triton", **many), other)["More than one GPU"])
    assert apart["of the rate on 1"] == "–"
    assert "More than one GPU" not in tables(one)


def test_a_sharded_model_is_held_against_the_fit_on_one(tmp_path):
    slices = [made.sliced(f"{DENSE}/triton", n, run="20260101") for n in (8, 16)]
    many = made.trained(f"{DENSE}/triton", n_gpus=8, system_tokens_per_s=8 * 0.8 * 8192.0)
    (row,) = shown(tables(*slices, many, folder=tmp_path)["More than one GPU"])
    assert row["of the rate on 1"] == "80.0%"


def test_published_rates_stand_beside_ours_a_gpu():
    cells = [
        made.trained(f"{DENSE}/triton", n_gpus=2, system_tokens_per_s=30_000.0, precision="fp8"),
        made.trained("llama_3_1_8b/finetune_lora/triton", lora_rank=16, precision="fp8"),
    ]
    rows = shown(tables(*cells, published=made.PUBLISHED)["Beside what others published"])
    assert [row["tokens/s a GPU"] for row in rows] == ["15,000", "10,000"]  # ours, then 80,000 on 8; no adapters
    assert rows[0]["source"] == "measured here: pretrain_dense_8b, triton"
    assert rows[1]["source"] == "example.org, a | pipe" and rows[1]["GPUs"] == "8 × H100 SXM 80 GB"


def test_the_shipped_published_rates_of_the_goals_models_are_shown():
    given = gather([], [], [], [], {}, made.AS_OF)
    table = training.published_table([], given)
    assert {"torchtitan", "NeMo 24.07"} <= {words(row.cells[4]).partition(", ")[2] for row in table.rows}
    assert {"6,670", "8,530"} <= {words(row.cells[3]) for row in table.rows}  # torchtitan's 8B, bf16 and fp8


# ---------------------------------------------------------------- the section and the page


def test_nothing_measured_says_so_and_keeps_every_goal():
    section = training.section(material())
    assert words(section.text[0]).startswith("No GPU has run the training workloads yet")
    table = section.tables[0]
    assert len(table.rows) == len(goals()) and {row["verdict"] for row in shown(table)} == {"not measured"}
    assert "reached" not in table.names


def test_the_summary_counts_goals():
    slow = made.trained(f"{DENSE}/triton", step_s_last_third=2.0)
    said = words(training.section(material(made.trained(f"{SHORT}/triton"), slow)).text[0])
    assert said == f"1 of 2 goals measured are met; {len(goals()) - 2} are not measured."


def test_the_page_with_every_kind_of_training_cell_has_no_loose_end(tmp_path):
    cells = [
        made.ceiling(),
        *(made.sliced(f"{DENSE}/{backend}", n) for backend in ("triton", "peer:liger") for n in (8, 16)),
        made.trained(f"{SHORT}/triton"),
        made.trained(f"{SHORT}/triton", n_gpus=8, run="20261123", exposed_communication_s=0.1),
        routed(0.5, 2.9, 1.3),
        routed(0.0, 1.1, 1.0),
        rl_step(),
        made.trained("llama_3_1_8b/finetune_lora/triton", lora_rank=16),
    ]
    page = build.assemble(material(*cells, folder=tmp_path, published=made.PUBLISHED))
    assert dangling(page) == [] and len(ids(page)) == len(set(ids(page)))
    body = build.markdown(page)
    assert "RL step" in body and "fit of 8+16 of 32 layers" in body and "None" not in body


def test_a_phase_looks_the_same_in_every_panel_of_the_roofline():
    """Panels of one chart share a legend: each must give every phase its own colour, also phases it does not hold."""
    pytest.importorskip("altair")
    on_cpu = {"device": "cpu", "gpu": "cpu", "device_name": "AMD EPYC"}
    roofless = made.trained(f"{SHORT}/reference", precision="fp8", **on_cpu)
    cells = [made.ceiling(), made.trained(f"{SHORT}/triton"), rl_step(precision="fp32"), roofless]
    chart = roofline.chart(material(*cells), Layout(width=910, columns=2)).to_dict()
    shapes = [
        panel["layer"][-1]["encoding"] for panel in (p if "layer" in p else {"layer": [p]} for p in chart["concat"])
    ]
    assert len(shapes) == 2, "a panel without a roof is not drawn"
    assert shapes[0]["color"]["scale"] == shapes[1]["color"]["scale"]
    assert shapes[0]["color"]["scale"]["domain"] == ["train step", "RL step"]


def test_a_run_on_several_gpus_says_so_where_cells_are_listed():
    many = made.trained(f"{SHORT}/triton", n_gpus=8)
    captions = [table.caption for table in build.measured.section(material(many)).tables]
    assert captions[0] == f"Run {made.H100_RUN}, 8 × NVIDIA H100 80GB HBM3"
