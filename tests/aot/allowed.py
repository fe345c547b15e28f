"""What the rules of test_aot.py let pass, and why. Empty is best."""

# (architecture, op.kernel) -> bytes a thread that may spill, and why none fewer
SPILLS: dict[tuple[int, str], tuple[int, str]] = {
    # Triton 3.7.1 alone, at one width each (1024; 2048), in the norm whose sum nothing reads: two words of 72 and 80
    # registers, far from the limit of 255: the allocator's choice, not a lack
    (80, "rms_norm.backward"): (8, "two words, by the allocator's choice"),
    (100, "rms_norm.backward"): (8, "two words, by the allocator's choice"),
}

# (architecture, op.kernel) -> why its products may be mma.sync (HMMA) where wgmma or tcgen05 exist
ROWS = "16 rows (packed query heads, or few tokens): wgmma and tcgen05 start at 64"
TENSOR: dict[tuple[int, str], str] = {
    **{(arch, "decode_attention.split"): ROWS for arch in (90, 100)},
    (100, "decode_attention.latent"): "32 heads a program: the sums of 64 do not fit beside tcgen05",
    **{(arch, "quant_matmul.narrow"): ROWS for arch in (90, 100)},
    **{(arch, name): ROWS for arch in (90, 100) for name in ("moe.product", "grouped_matmul.product")},
}

# op.kernel -> loads narrower than 32 bits that are right there, and why
NARROW: dict[str, tuple[int, str]] = {
    "adamw.update": (32, "the masked tail of a tensor; whole blocks load 128 bits"),
    "attention.delta": (1, "one sink logit a program, in the activations' dtype"),
    "cross_entropy.forward": (1, "the target's own logit"),
    **{
        f"rms_norm.{part}": (1, "QK-norm: one weight of 128 for 128 threads, an element each")
        for part in ("forward", "backward")
    },
}

# op.kernel -> why it may have no 128-bit load
NO_WIDE: dict[str, str] = {
    **{
        name: "some thousand whole numbers of the routing, one an assignment or a tile"
        for name in ("grouped_matmul.table", "moe.table", "moe.count", "moe.place")
    },
    "kv_append.append": "one token of a small model: less than 128 bits a thread",
    "linear_cross_entropy.normalise": "without a gradient it reads one partial sum a tile, not the logits",
}
