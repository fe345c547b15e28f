"""`python -m bench.traffic.distil CLASS FILE...`: from an original trace to the figures of configs/traffic/CLASS.toml.

What a person wrote stands above the marker line and is kept; everything below it is computed here, so that the same
file gives the same figures again. Three choices are ours. Bins of the input hold equal shares of the requests, finer
at the long end, where the tokens are. Slots of the arrival series are a minute, ten seconds where a tenth of the
minutes hold no request (bursts that short would be smeared over their minute), ten minutes over a day. And a slot's
counted requests vary even at a steady rate, by about c² of the mean count, so rates are drawn towards their mean, as
powers r^a that leave empty slots empty, until model and trace have the same index of dispersion.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.config import CONFIGS, ConfigError
from bench.traffic.records import Planned
from bench.traffic.trace_blocks import MOONCAKE_BLOCK_TOKENS
from bench.traffic.traces import read

Array = NDArray[np.float64]
MARKER = "# Figures from here on: python -m bench.traffic.distil"
# close at the middle, where some answers have two usual lengths, and at the long end, on which the mean hangs
SHARES = (0, 0.01, 0.05, 0.1, 0.2, 0.3, *(round(0.05 * i, 2) for i in range(7, 19)))
SHARES += (0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1)
BINS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.85, 0.9, 0.92, 0.94, 0.97, 0.99)
DAY_S = 86400.0
WEKA_BLOCK_TOKENS = 64


def figures(requests: Sequence[Planned], block_tokens: int | None = None) -> dict[str, object]:
    """The figures of a class as its TOML holds them, from a trace's requests.

    block_tokens: the trace's, where it tells shared prefixes.
    """
    inputs = np.array([r.input_tokens for r in requests], dtype=float)
    outputs = np.array([r.output_tokens for r in requests], dtype=float)
    edges = np.unique(np.rint(np.quantile(inputs, BINS)))
    edges = edges[(edges > inputs.min()) & (edges <= inputs.max())]
    bins = np.searchsorted(edges, inputs, side="right")
    found: dict[str, object] = {
        "requests": len(requests),
        "shares": list(SHARES),
        "input_tokens": whole(quantiles(inputs)),
        "input_edges": whole(edges),
        "output_tokens": [whole(quantiles(outputs[bins == b])) for b in range(len(edges) + 1)],
    }
    if requests[0].arrival_s is not None:
        found["arrivals"] = arrivals(np.array([r.arrival_s for r in requests], dtype=float))
    if block_tokens is not None:
        found["sessions"] = sessions(requests, inputs, bins, len(edges) + 1, block_tokens)
    return found


def quantiles(values: Array) -> Array:
    return np.quantile(values, SHARES)


def _quantiles_or(values: Array) -> Array:
    """Ones where there is nothing to describe, and a share of 0 says that it is never drawn."""
    return quantiles(values) if len(values) else np.ones(len(SHARES))


def whole(values: Array) -> list[int]:
    return np.rint(values).astype(int).tolist()


def rounded(values: Array, digits: int = 4) -> list[float]:
    return [round(float(value), digits) for value in values]


# ---------------------------------------------------------------- arrivals


def arrivals(times_s: Array) -> dict[str, object]:
    """Slot rates and the unevenness inside slots of a trace that begins with its first request."""
    span_s = float(times_s[-1] - times_s[0])
    slot_s = 600.0 if span_s > DAY_S / 2 else 60.0 if (_counts(times_s, 60.0) > 0).mean() > 0.9 else 10.0
    counts = _counts(times_s, slot_s)
    # operational time: requests expected so far, were each slot's rate the one counted in it
    levels = np.append(0.0, np.cumsum(counts))
    gaps = np.diff(np.interp(times_s, np.arange(len(levels)) * slot_s, levels))
    cv = float(gaps.std() / gaps.mean())
    relative = _drawn_in(counts / counts.mean(), max(0.0, counts.var() - cv**2 * counts.mean()) / counts.mean() ** 2)
    return {
        "rate_per_s": round((len(times_s) - 1) / span_s, 4),
        "slot_s": slot_s,
        "cv": round(cv, 3),
        "relative_rates": rounded(relative, 3),
    }


def _counts(times_s: Array, slot_s: float) -> Array:
    """Requests of each whole slot."""
    slots = max(1, int((times_s[-1] - times_s[0]) / slot_s))
    return np.histogram(times_s - times_s[0], np.arange(slots + 1) * slot_s)[0].astype(float)


def _drawn_in(relative: Array, variance: float) -> Array:
    """The rates as powers r^a, 0 <= a <= 1, with mean 1 and this variance, or the nearest to it."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        powers = np.where(relative > 0, relative**middle, 0.0)
        low, high = (low, middle) if (powers / powers.mean()).var() > variance else (middle, high)
    powers = np.where(relative > 0, relative**high, 0.0)
    return powers / powers.mean()


# ---------------------------------------------------------------- sessions


def sessions(
    requests: Sequence[Planned], inputs: Array, bins: NDArray[np.int64], rows: int, block_tokens: int
) -> dict[str, object]:
    """How turns follow each other: from each turn with a next one, to that."""
    closed = requests[0].arrival_s is None
    after = np.array([_turn_before(r, requests) for r in requests])
    later = np.flatnonzero(after >= 0)
    before = after[later]
    shared = np.array([requests[i].shared_tokens for i in later.tolist()], dtype=float)
    shared = np.minimum(shared, inputs[before])
    grew = shared > inputs[before] - 2 * block_tokens
    kept = np.floor(inputs[before] / block_tokens) * block_tokens
    fresh = np.maximum(1.0, inputs[later] - kept)
    continued = np.isin(np.arange(len(requests)), before)
    first = inputs[after < 0]
    if closed:
        gaps = np.array([requests[i].think_s for i in later.tolist()])
    else:
        at = np.array([r.arrival_s for r in requests], dtype=float)
        gaps = at[later] - at[before]
    common = [r.shared_tokens for r, link in zip(requests, after.tolist(), strict=True) if link < 0]
    return {
        "count": len(first),
        "loop": "closed" if closed else "open",
        "block_tokens": block_tokens,
        "shared_by_all_tokens": int(np.median(common)),
        "first_input_tokens": whole(quantiles(first)),
        "end_share": rounded(np.array([1 - continued[bins == b].mean() for b in range(rows)])),
        "cut_share": rounded(np.array([(~grew)[bins[before] == b].mean() for b in range(rows)])),
        "fresh_tokens": [whole(_quantiles_or(fresh[grew & (bins[before] == b)])) for b in range(rows)],
        "cut_input_tokens": [whole(_quantiles_or(inputs[later[~grew & (bins[before] == b)]])) for b in range(rows)],
        "cut_kept_share": rounded(quantiles((shared / inputs[before])[~grew])),
        "gap_s": rounded(quantiles(gaps), 1),
    }


def _turn_before(request: Planned, requests: Sequence[Planned]) -> int:
    """The turn before this one in its session, -1 for the first."""
    link = request.prefix_of if request.after is None else request.after
    return -1 if link is None or requests[link].session != request.session else link


# ---------------------------------------------------------------- the file


def block_tokens_of(requests: Sequence[Planned]) -> int | None:
    """Of the trace's shared prefixes; None where it has none. WEKA has closed loops, Mooncake open ones."""
    if not any(r.shared_tokens for r in requests):
        return None
    return WEKA_BLOCK_TOKENS if requests[0].arrival_s is None else MOONCAKE_BLOCK_TOKENS


def toml(found: dict[str, object]) -> str:
    """Figures as TOML: plain keys first, tables after them."""
    plain = [f"{key} = {_value(value)}" for key, value in found.items() if not isinstance(value, dict)]
    tables = [f"\n[{key}]\n{toml(value)}" for key, value in found.items() if isinstance(value, dict)]
    return "\n".join(plain) + "\n" + "".join(tables)


def _value(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + "".join(f"  {_value(row)},\n" for row in value) + "]"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) and value < 1e5 else str(value)


def distilled(paths: Sequence[Path]) -> str:
    """Everything below the marker line for these files."""
    requests = read(paths)
    found = figures(requests, block_tokens_of(requests))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}
    quoted = {f'"{name}"': digest for name, digest in digests.items()}
    return toml({**found, "files": quoted})


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2:
        print("usage: python -m bench.traffic.distil CLASS FILE...", file=sys.stderr)
        return 2
    target = CONFIGS / "traffic" / f"{arguments[0]}.toml"
    try:
        if not target.is_file():
            raise ConfigError(f"configs/traffic/{target.name}: no such class; expected its text to be written first")
        words, marker, _ = target.read_text(encoding="utf-8").partition(MARKER)
        if not marker:
            raise ConfigError(f"configs/traffic/{target.name}: expected a line that begins {MARKER!r}")
        found = distilled([Path(name) for name in arguments[1:]])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    target.write_text(f"{words}{MARKER}\n{found}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
