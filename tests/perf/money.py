"""How long pricing and a claim take, and how much memory: a table, each task in a process of its own.

    python -m tests.perf.money                                      # the sizes of configs/speed_goals.csv
    python -m tests.perf.money --record results/money_speed.csv     # and write it down

    price             so many throughput rows under every price of their GPU, into columns in memory (cost.columns)
    price_and_write   the same and costs.csv of it, line by line
    claim             so many draws of the share claim: world, shares, verdicts, break-evens
    claim_and_sobol   the same with Sobol indices and walks, whose own size is fixed

Throughput rows are those of the project (published and modelled ones), told again under other names until there are so
many. Seconds are the least of several repeats: what else runs on a machine only ever adds to them.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import multiprocessing.connection
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import config, results
from bench.claim import engine
from bench.claim.spec import Claim
from bench.claim.world import world
from bench.measure.device import cpu_count, cpu_name
from bench.modelled.accuracy import build
from bench.modelled.rows import modelled
from bench.money_results import MONEY_SPEED
from bench.price.book import providers
from bench.price.cost import columns
from bench.price.cost_columns import lines
from bench.price.throughput import Row, published

CLAIM = "inference_overtakes_training"
TODAY = datetime.date(2026, 11, 28)
SIZES = {"price": 100_000, "price_and_write": 10_000, "claim": 1_000_000, "claim_and_sobol": 1_000_000}
REPEATS = {"price_and_write": 1}
HEADS = ("task", "size", "lines", "seconds", "CPU seconds", "peak GB")


def throughput_rows(size: int) -> list[Row]:
    """The project's rates, published and modelled, as many times as it takes."""
    known = published()
    rows = known + modelled(known, providers().values(), build(known))
    times = -(-size // len(rows))
    return [row | {"row": f"{row['row']}#{turn}"} for turn in range(times) for row in rows][:size]


def task(name: str, size: int) -> Callable[[], int]:
    """Everything that is not timed done already; a call gives the lines, or findings, that came of it."""
    if name.startswith("price"):
        rows, book = throughput_rows(size), list(providers().values())

        def price() -> int:
            made = columns(rows, TODAY, book)
            if name == "price_and_write":
                with tempfile.TemporaryDirectory() as folder:
                    results.write(Path(folder) / "costs.csv", results.COSTS, lines(made))
            return len(made["x_row"])

        return price
    claim, known = replace(config.load(Claim, CLAIM), draws=size), published()

    def answer() -> int:
        drawn = world(claim, known)
        found = engine.answer(drawn)
        return len(found) + (len(engine.moves(drawn, found)) if name == "claim_and_sobol" else 0)

    return answer


def measure(pipe: multiprocessing.connection.Connection, name: str, size: int, repeats: int) -> None:
    """In a child: a row of MONEY_SPEED without when and where."""
    run, taken = task(name, size), []
    for _ in range(repeats):
        begin, cpu = time.perf_counter(), time.process_time()
        made = run()
        taken.append((time.perf_counter() - begin, time.process_time() - cpu))
    seconds, cpu_s = min(taken)
    pipe.send({"lines": made, "repeats": repeats, "seconds": seconds, "cpu_s": cpu_s, "peak_bytes": peak_bytes()})


def peak_bytes() -> int:
    """This process at its largest. getrusage begins with what the process that started this one had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def isolated(name: str, size: int, repeats: int) -> dict[str, Any]:
    """`measure` in a process of its own, so that its peak is its own."""
    mine, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=measure, args=(theirs, name, size, repeats))
    child.start()
    theirs.close()
    found = mine.recv()
    child.join()
    where = {"measured_at": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}", "cpu_name": cpu_name()}
    return where | {"cpu_count": cpu_count(), "task": name, "size": size, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=tuple(SIZES), action="append")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", type=Path, help="append the figures to this CSV, such as results/money_speed.csv")
    chosen = parser.parse_args()
    print("| " + " | ".join(HEADS) + " |\n|" + " --- |" * len(HEADS))
    for name in chosen.task or SIZES:
        row = isolated(name, SIZES[name], REPEATS.get(name, chosen.repeats))
        shown = (name, row["size"], row["lines"], *(f"{row[key]:.2f}" for key in ("seconds", "cpu_s")))
        print("| " + " | ".join(map(str, (*shown, f"{row['peak_bytes'] / 1e9:.2f}"))) + " |", flush=True)
        if chosen.record:
            results.append(chosen.record, MONEY_SPEED, [row])


if __name__ == "__main__":
    main()
