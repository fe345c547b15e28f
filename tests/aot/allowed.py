"""What the rules of test_aot.py let pass, and why. Empty is best."""

# (architecture, op.kernel) -> bytes a thread that may spill, where (how each place a row was met at begins), and why
CHOICE = "a word or two at 56 to 80 registers, far from the limit of 255: the allocator's choice, not a lack"
ODD = "GPT-2's 50,257 words: rows of logits begin at odd addresses, and single elements take registers"
SPILLS: dict[tuple[int, str], tuple[int, str, str]] = {
    # Triton 3.7.1 alone, at one width each (1024; 2048), in the norm whose sum nothing reads
    (80, "rms_norm.backward"): (8, "", CHOICE),
    (100, "rms_norm.backward"): (8, "", CHOICE),
    (80, "matmul.pointer"): (8, "", CHOICE),
    (90, "router.forward"): (8, "kimi_k2/", CHOICE),  # Triton 3.7.1 alone, 24 experts
    (80, "linear_cross_entropy.product"): (8, "gpt2_124m/", ODD),
    (100, "linear_cross_entropy.logits"): (32, "gpt2_124m/", ODD),  # Triton 3.6.0 alone
}

# (architecture, op.kernel) -> where, and why its products may be mma.sync (HMMA) where wgmma or tcgen05 exist
ROWS = "16 rows (packed query heads, or few tokens): wgmma and tcgen05 start at 64"
TENSOR: dict[tuple[int, str], tuple[str, str]] = {
    **{(arch, "decode_attention.split"): ("", ROWS) for arch in (90, 100)},
    (100, "decode_attention.latent"): ("", "32 heads a program: the sums of 64 do not fit beside tcgen05"),
    **{(arch, "quant_matmul.narrow"): ("", ROWS) for arch in (90, 100)},
    **{(arch, name): ("", ROWS) for arch in (90, 100) for name in ("moe.product", "grouped_matmul.product")},
    # no descriptor takes rows of 50,257 logits, and a prefill has one row a prompt
    **{(arch, "matmul.pointer"): ("gpt2_124m/prefill", ROWS) for arch in (90, 100)},
}

# op.kernel -> loads narrower than 32 bits that are right there, where, and why
NARROW: dict[str, tuple[int, str, str]] = {
    "adamw.update": (32, "", "the masked tail of a tensor; whole blocks load 128 bits"),
    "attention.delta": (1, "", "one sink logit a program, in the activations' dtype"),
    "cross_entropy.forward": (1, "", "the target's own logit"),
    "linear_cross_entropy.normalise": (16, "gpt2_124m/", ODD),
    "rope.rope": (2, "", "few key heads (MLA's one, 4 of Qwen3-235B) for 128 or 256 threads: an element of each half"),
    **{
        f"rms_norm.{part}": (1, "", "QK-norm: one weight of 128 for 128 threads, an element each")
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
