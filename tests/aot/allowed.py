"""What the rules of test_aot.py let pass, and why. Empty is best."""

# (architecture, op.kernel) -> bytes a thread that may spill, and why none fewer
SPILLS: dict[tuple[int, str], tuple[int, str]] = {}

# (architecture, op.kernel) -> why its products may be mma.sync (HMMA) where wgmma or tcgen05 exist
ROWS = "16 rows (packed query heads, or few tokens): wgmma and tcgen05 start at 64"
TENSOR: dict[tuple[int, str], str] = {
    **{(arch, "decode_attention.split"): ROWS for arch in (90, 100)},
    (100, "decode_attention.latent"): "32 heads a program: the sums of 64 do not fit beside tcgen05",
    **{(arch, "quant_matmul.narrow"): ROWS for arch in (90, 100)},
    **{(arch, name): ROWS for arch in (90, 100) for name in ("moe.product", "grouped_matmul.product")},
}

# op.kernel -> loads narrower than 32 bits that are right there, and why
LOADS: dict[str, tuple[int, str]] = {
    "attention.delta": (1, "one sink logit a program, in the activations' dtype"),
    "linear_cross_entropy.normalise": (0, "without a gradient it reads one partial sum a tile, not the logits"),
}
