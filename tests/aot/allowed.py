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
    **{
        f"rms_norm.{part}": (1, "QK-norm: one weight of 128 for 128 threads, an element each")
        for part in ("forward", "backward")
    },
    "adamw.update": (32, "the masked tail of a tensor; whole blocks load 128 bits"),
    "cross_entropy.forward": (1, "the target's own logit"),
    **{
        name: (0, "some thousand whole numbers of the routing, one an assignment or a tile")
        for name in ("grouped_matmul.table", "moe.table", "moe.count", "moe.place")
    },
    "linear_cross_entropy.normalise": (0, "without a gradient it reads one partial sum a tile, not the logits"),
}
