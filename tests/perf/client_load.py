"""How many streams one core's worth of the load client can hold: a table, against a server that only paces events.

    python -m tests.perf.client_load                                  # 500, 1000, 2000 streams, ours and httpx's own
    python -m tests.perf.client_load --streams 4000 --shards 2        # several processes
    python -m tests.perf.client_load --streams 2000 --transport ours --record results/client_load.csv

The goal (configs/serving_goals.csv): 2,000 streams at 4 events/s each on one core with a client lag, p99(sent - due)
over the median TTFT, of at most 2%. Streams begin as a Poisson process, after a ramp that fills the server with
streams in all stages.
Only what is due in the measured seconds counts. The client needs a core and the server another: `waited` is how long
the client was ready to run and another process had its core, so a lag under which it waited much says nothing.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import multiprocessing.connection
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bench import results
from bench.client.address import Endpoint
from bench.client.generator import Run, drive
from bench.client.shards import drive_sharded
from bench.measure.device import cpu_count, cpu_name
from bench.points.validity import in_flight_means
from bench.points.window import Window
from bench.serving_results import CLIENT_LOAD
from bench.traffic.records import OK, Planned

TTFT_S, EVENTS_PER_S = 0.5, 4.0
RAMP_S, SETTLE_S = 6.0, 4.0
TOKENS = 80  # of a whole stream: about 20 s
MOST_LAG = 0.02
HEADS = ("transport", "shards", "streams", "events/s", "CPU, cores", "CPU µs/event", "waited s")
HEADS += ("lag p99 ms", "TTFT p50 ms", "lag ratio", "tick lag p99 ms", "failed", "within 2%")


def planned(streams: int, measured_s: float) -> list[Planned]:
    """Streams in all stages spread over the ramp, then arrivals that keep their number."""
    draw = random.Random(0)
    starts = []
    for _ in range(streams):
        at_s = draw.uniform(0, RAMP_S)
        starts.append((at_s, draw.randint(2, TOKENS) + round((RAMP_S - at_s) * EVENTS_PER_S)))
    due_s = RAMP_S
    while (due_s := due_s + draw.expovariate(streams / (TTFT_S + (TOKENS - 1) / EVENTS_PER_S))) < end_s(measured_s):
        starts.append((due_s, TOKENS))
    return [Planned(number, 16, tokens, arrival_s=at_s) for number, (at_s, tokens) in enumerate(sorted(starts))]


def end_s(measured_s: float) -> float:
    return RAMP_S + SETTLE_S + measured_s


def hello(one: Planned) -> str:
    return f"hello {one.number}"


def used(pids: list[int]) -> tuple[float, float]:
    """CPU seconds of processes so far, and seconds they were ready to run and did not (main threads; Linux)."""
    cpu = waited = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        waited += int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return cpu, waited


def measure(url: str, streams: int, shards: int, measured_s: float, own: bool) -> dict[str, Any]:
    """One row of the table."""
    endpoint = Endpoint(url, "paced", trust_env=own)
    plan = planned(streams, measured_s)
    marks: list[tuple[float, float]] = []

    def watch() -> None:
        # shards take their time to start: the clock runs from when the children are there and busy
        time.sleep(RAMP_S + SETTLE_S)
        pids = [child.pid for child in multiprocessing.active_children() if child.pid] if shards > 1 else [os.getpid()]
        for _ in range(2):
            marks.append(used(pids))
            time.sleep(measured_s * 0.8)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    deadline_s = end_s(measured_s) + 1.0
    if shards > 1:
        run = drive_sharded(endpoint, plan, hello, shards=shards, deadline_s=deadline_s)
    else:
        run = drive(endpoint, plan, hello, deadline_s=deadline_s)
    watcher.join()
    (cpu, waited), (cpu_after, waited_after) = marks
    return summary(run, measured_s) | {"cpu_s": cpu_after - cpu, "waited_s": waited_after - waited}


def summary(run: Run, measured_s: float) -> dict[str, Any]:
    """What the records due in the measured seconds say."""
    begin = RAMP_S + SETTLE_S
    due = [record for record in run.records if begin <= record.scheduled_s < begin + measured_s]
    lag = np.array([record.sent_s - record.scheduled_s for record in due])
    ttft = np.array([record.ttft_s for record in due if record.ttft_s is not None])
    events = sum(sum(begin <= at_s < begin + measured_s for at_s in record.token_s) for record in run.records)
    failed = Counter(record.status for record in run.records if record.status not in (OK, "cut"))
    streams = in_flight_means(run.in_flight, Window(begin, begin + measured_s))
    assert streams is not None
    return {
        "streams": float(streams[0]),
        "events_per_s": events / measured_s,
        "lag": lag,
        "ttft_s": float(np.median(ttft)),
        "tick_lag_s": float(np.percentile(run.tick_lag_s, 99)),
        "failed": " ".join(f"{status}={count}" for status, count in failed.items()) or "none",
    }


def figures(name: str, shards: int, found: dict[str, Any], measured_s: float) -> dict[str, Any]:
    """A row of results/client_load.csv."""
    return {
        "measured_at": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "cpu_name": cpu_name(),
        "cpu_count": cpu_count(),
        "transport": name,
        "shards": shards,
        "streams": found["streams"],
        "events_per_s": found["events_per_s"],
        "measured_s": measured_s,
        "client_cores": found["cpu_s"] / (0.8 * measured_s),
        "waited_s": found["waited_s"],
        "ttft_s_p50": found["ttft_s"],
        "client_lag_ratio": float(np.percentile(found["lag"], 99)) / found["ttft_s"],
        "client_tick_lag_s_p99": found["tick_lag_s"],
        "failed_by_status": found["failed"],
    }


def line(row: dict[str, Any]) -> list[str]:
    """The same for people."""
    lag_s = row["client_lag_ratio"] * row["ttft_s_p50"]
    return [
        *(row["transport"], str(row["shards"]), f"{row['streams']:.0f}", f"{row['events_per_s']:.0f}"),
        *(f"{row['client_cores']:.2f}", f"{row['client_cores'] / row['events_per_s'] * 1e6:.0f}"),
        *(f"{row['waited_s']:.1f}", f"{lag_s * 1e3:.2f}", f"{row['ttft_s_p50'] * 1e3:.0f}"),
        *(f"{row['client_lag_ratio']:.2%}", f"{row['client_tick_lag_s_p99'] * 1e3:.1f}", row["failed_by_status"]),
        "yes" if row["client_lag_ratio"] <= MOST_LAG else "no",
    ]


def isolated(pipe: multiprocessing.connection.Connection, *arguments: Any) -> None:
    pipe.send(measure(*arguments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--transport", choices=("ours", "httpx", "both"), default="both")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--measured", type=float, default=20.0, help="seconds")
    parser.add_argument("--record", type=Path, help="append the figures to this CSV, such as results/client_load.csv")
    chosen = parser.parse_args()
    command = [sys.executable, "-m", "tests.perf.stream_server", "--ttft", str(TTFT_S)]
    command += ["--events-per-s", str(EVENTS_PER_S)]
    names = ("ours", "httpx") if chosen.transport == "both" else (chosen.transport,)
    print("| " + " | ".join(HEADS) + " |\n|" + " --- |" * len(HEADS))
    for name in names:
        for streams in chosen.streams:
            server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert server.stdin and server.stdout
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
            mine, theirs = multiprocessing.Pipe()
            arguments = (theirs, url, streams, chosen.shards, chosen.measured, name == "httpx")
            client = multiprocessing.get_context("spawn").Process(target=isolated, args=arguments)
            client.start()
            theirs.close()
            row = figures(name, chosen.shards, mine.recv(), chosen.measured)
            print("| " + " | ".join(line(row)) + " |", flush=True)
            if chosen.record:
                results.append(chosen.record, CLIENT_LOAD, [row])
            client.join()
            server.stdin.close()
            server.wait()


if __name__ == "__main__":
    main()
