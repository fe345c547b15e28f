"""The schemas of `results/imports/*.csv`, and their only readers: other people's measurements, in our units.

`<format>_<stem>_<sha8>.csv` holds rates of tokens (IMPORTED, more than configs/published.csv asks for), a row a
result; `<format>_<stem>_<sha8>.kernels.csv` timings of kernels (IMPORTED_KERNELS). Kernels have a table of their own
because a foreign timing has no float64 check, no ceilings of the same run and no op of ours, which every row of
kernels.csv must have. `sha8` begins the input's SHA-256, so the same file lands in the same place.

Columns are listed by hand, append-only; times in s, energy in J, rates of the whole deployment; missing is blank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.results import TOKEN_KINDS, ResultsError, read_rows

KERNELS_SUFFIX = ".kernels.csv"
PHASES = ("train_step", "prefill", "decode", "serve")
FLAGS = ("open_loop", "client_late", "cut_by_time", "failed_requests")
BOUNDARIES = ("gpu", "node")
VERIFIED = "derived, not verified by MLCommons"  # in the note of every row made from MLPerf's results
Row = dict[str, Any]

# name -> (type, meaning). s = text, i = count, f = number.
IMPORTED: dict[str, tuple[str, str]] = {
    "id": ("s", "import:<file of this row, without .csv>/<number>"),
    "phase": ("s", ", ".join(PHASES) + " (serve: prefill and decode together)"),
    "model": ("s", "model key; blank where no table knows the name: never priced"),
    "gpu": ("s", "GPU key; blank likewise"),
    "n_gpus": ("i", "GPUs of the deployment"),
    "precision": ("s", "of the weights as the file or the user says; blank: not told, never in a claim"),
    "token_kind": ("s", "what the rate counts: " + ", ".join(TOKEN_KINDS)),
    "system_tokens_per_s": ("f", "rate of the whole deployment"),
    "system_tokens_per_s_low": ("f", "its 95% interval over repeated runs, low end, where the file has one"),
    "system_tokens_per_s_high": ("f", "and its high end"),
    "input_tokens": ("f", "tokens in, a request, mean (sequence length in training)"),
    "output_tokens": ("f", "tokens out, a request, mean"),
    "workload": ("s", "what ran, without the load, in one phrase"),
    "software": ("s", "framework and version, as far as told"),
    "as_of": ("s", "date or round of the measurement"),
    "source": ("s", "address of the figure, or whose it is"),
    "commit": ("s", "commit the file was taken at"),
    "licence": ("s", "licence of the figures, as the user says"),
    "note": ("s", "conversions made, caveats"),
    "flags": ("s", ", ".join(FLAGS) + ", joined by +; open_loop: the rate holds idle time"),
    "concurrency": ("f", "requests in flight: the client's limit, or the mean where that is what the file has"),
    "rate_per_s": ("f", "requests offered a second, open loop"),
    "requests_per_s": ("f", "requests completed a second"),
    "goodput_per_s": ("f", "of those, the ones that kept the file's own promise"),
    "ttft_s_p50": ("f", "time to first token, median"),
    "ttft_s_p99": ("f", "and 99th percentile"),
    "tpot_s_p50": ("f", "time per output token after the first, (end to end - TTFT) / (n - 1), median"),
    "tpot_s_p99": ("f", "and 99th percentile"),
    "e2e_s_p50": ("f", "a request end to end, median"),
    "e2e_s_p99": ("f", "and 99th percentile"),
    "energy_joules_per_token": ("f", "of all GPUs (or nodes) together, for each token the rate counts"),
    "energy_boundary": ("s", "what was metered: gpu (the boards) or node (the wall)"),
    "lora_rank": ("i", "rank of the adapters, where adapters alone were trained"),
    "model_name": ("s", "the model as the file names it"),
    "gpu_name": ("s", "the GPU as the file names it"),
    "precision_name": ("s", "the precision as the file names it"),
    "record": ("s", "the row's place or id in the file"),
    "format": ("s", "importer that read it"),
    "file": ("s", "name of the file"),
    "sha256": ("s", "of the file"),
}
IMPORTED_KERNELS: dict[str, tuple[str, str]] = {
    "id": ("s", "import:<file of this row, without .kernels.csv>/<number>"),
    "name": ("s", "the benchmark's full name"),
    "group": ("s", "the group it stands in"),
    "parameters": ("s", "its parameters, name=value, joined by blanks"),
    "device_name": ("s", "as the user or the file's extra_info says"),
    "time_s_median": ("f", "one call, median over the rounds"),
    "time_s_mean": ("f", "mean"),
    "time_s_min": ("f", "fastest round"),
    "time_s_max": ("f", "slowest round"),
    "time_s_sd": ("f", "standard deviation over the rounds"),
    "rounds": ("i", "timed rounds"),
    "calls": ("i", "calls in one round; the times are of one call"),
    "software": ("s", "pytest-benchmark and its version, Python's"),
    "as_of": ("s", "date of the measurement"),
    "source": ("s", "address of the figure, or whose it is"),
    "commit": ("s", "commit measured"),
    "licence": ("s", "licence of the figures, as the user says"),
    "note": ("s", "caveats"),
    "format": ("s", "importer that read it"),
    "file": ("s", "name of the file"),
    "sha256": ("s", "of the file"),
}
_NEEDED = ("id", "phase", "n_gpus", "token_kind", "system_tokens_per_s", "workload", "as_of", "source")
_KNOWN = {"phase": PHASES, "token_kind": TOKEN_KINDS, "energy_boundary": (None, *BOUNDARIES)}


def read_imported(path: Path) -> list[Row]:
    """The rows of one file of rates, each held against what a row must be. Raises ResultsError, naming the line."""
    return _read(path, IMPORTED, _NEEDED, ("n_gpus", "system_tokens_per_s"))


def read_imported_kernels(path: Path) -> list[Row]:
    """The rows of one file of kernel timings, likewise."""
    return _read(path, IMPORTED_KERNELS, ("id", "name", "time_s_median"), ("time_s_median",))


def _read(
    path: Path, columns: Mapping[str, tuple[str, str]], needed: Sequence[str], positive: Sequence[str]
) -> list[Row]:
    rows = read_rows(path, columns)
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        where = f"{path}: line {number}"
        for name in needed:
            if row[name] is None:
                raise ResultsError(f"{where}: {name}: blank; every imported row has one")
        for name, allowed in _KNOWN.items():
            if name in columns and row[name] not in allowed:
                raise ResultsError(f"{where}: {name}: expected one of {', '.join(filter(None, allowed))}")
        for name, (kind, _) in columns.items():
            if kind != "s" and row[name] is not None and row[name] < 0:
                raise ResultsError(f"{where}: {name}: expected no negative number, got {row[name]}")
        for name in positive:
            if not row[name]:
                raise ResultsError(f"{where}: {name}: expected a positive number, got {row[name]}")
        if row["id"] in seen:
            raise ResultsError(f"{where}: id: {row['id']} stands twice")
        seen.add(row["id"])
    return rows
