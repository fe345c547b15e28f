"""`make perf`: the ceilings, then every op in a pytest process of its own, into one run folder.

    python -m tests.perf [--op NAME ...] [--seconds S] [--budget 8m] [--compile] [--out FOLDER] [--run FOLDER]

A kernel that loses the device, a library that takes the process down or a case that hangs costs its own row only:
the process is started again and goes on with the next case. Before anything is timed all kernels are compiled,
several ops at a time. --run goes on with a folder: what has a row is not measured again. On a CPU one process runs
everything, at small shapes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.arguments import budget_s
from bench.config import ConfigError
from bench.journal import pack
from bench.kernel_results import table
from bench.measure.device import cpu_count
from tests.perf import cases, ceilings, machine
from tests.perf.journal import ROOT, Journal, new_folder

HERE = Path(__file__).resolve().parent
WARM_LIMIT_S = 120.0
CASE_LIMIT_S = 240.0  # a first call may build a library's kernels with nvcc
SAME = ("device_name", "source_hash", "torch", "triton")  # of the run that is gone on with and of this process
# pytest's exit statuses: passed, tests failed, no tests collected
ENDED = (0, 1, 5)


def main() -> int:
    """Measure what is asked for; 1 where one of our own implementations failed its check or raised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", action="append", choices=list(cases.OPS), help="this op only; again for more")
    parser.add_argument("--seconds", type=float, help="timed, a case (0.3 on a GPU)")
    parser.add_argument("--budget", type=_seconds, help="start no case after this time, such as 8m or 500s")
    parser.add_argument("--compile", action="store_true", help="torch.compile of each reference too: slow")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="where kernels/<run> is made")
    parser.add_argument("--run", type=Path, help="a run folder to go on with")
    parser.add_argument("--pack", type=Path, help="also pack the run folder as one .tar.gz here")
    asked = parser.parse_args()
    ops = asked.op or list(cases.OPS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    facts = machine.facts(cases.PEERS)
    try:
        folder = asked.run or new_folder(asked.out, facts)
        journal = Journal(folder.resolve())
    except OSError as error:
        parser.error(f"{asked.run or asked.out}: {error.strerror}: {error.filename}")
    if other := [name for name in SAME if journal.facts.get(name) != facts[name]]:
        parser.error(f"--run {folder}: measured with another {', '.join(other)}: start a new run")
    journal.note.unlink(missing_ok=True)  # what ran when an interrupted run stopped has no row: it is measured again
    environment = os.environ | {"PERF_RUN": str(journal.folder), "PERF_COMPILE": "1" if asked.compile else "0"}
    if asked.seconds:
        environment["PERF_SECONDS"] = str(asked.seconds)
    if asked.budget:
        environment["PERF_DEADLINE"] = str(time.time() + asked.budget)
    if machine.CUDA:
        _warm(ops)
        plan = [("test_ceilings_perf.py", ops), *(("test_kernels_perf.py", [op]) for op in ops)]
    else:
        plan = [("", ops)]
    try:
        for file, chosen in plan:
            _finish(HERE / file, journal, environment | {"PERF_OPS": ",".join(chosen)})
    except KeyboardInterrupt:
        print(f"\ninterrupted; go on with: make perf ARGS='--run {journal.folder}'", file=sys.stderr)
        return 130
    rows = journal.derive(machine.gpu(), ceilings.sizes())
    print("", *table(rows), journal.path, sep="\n")
    if asked.pack:
        print(f"packed: {pack(journal.folder, asked.pack)}")
    if time.time() > float(environment.get("PERF_DEADLINE", "inf")):
        print(f"the budget was spent; the rest: make perf ARGS='--run {journal.folder}'")
    ours = [row for row in rows if row["implementation"] in ("triton", "reference", "compile")]
    return int(any(row["status"] in ("incorrect", "error", "crashed", "timeout") for row in ours))


def _warm(ops: list[str]) -> None:
    """Compile the ops' kernels side by side, a core each, before anything is timed."""
    waiting, begin = list(ops), time.monotonic()
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        running = [process for process in running if process.poll() is None]
        if time.monotonic() - begin > WARM_LIMIT_S:
            waiting = []
            for process in running:
                process.kill()
        elif waiting and len(running) < cpu_count():
            command = [sys.executable, "-m", "tests.perf.warm", waiting.pop(0)]
            running.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            continue
        time.sleep(0.1)


def _seconds(text: str) -> float:
    try:
        return budget_s(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _finish(file: Path, journal: Journal, environment: dict[str, str]) -> None:
    """Run pytest on the file until it ends by itself; a case that stopped it gets its row here."""
    command = [sys.executable, "-m", "pytest", str(file), "--benchmark-only", "--benchmark-quiet", "-rN", "--no-header"]
    while True:
        before = len(journal.rows())
        code, hung = _watch([*command, "-p", "no:cacheprovider"], journal, environment)
        stopped = journal.running()
        if stopped:
            reason = f"no end within {CASE_LIMIT_S:.0f} s" if hung else f"its process ended with status {code}"
            journal.append(stopped, {"status": "timeout" if hung else "crashed", "reason": reason})
        if code in ENDED or len(journal.rows()) == before:
            return


def _watch(command: list[str], journal: Journal, environment: dict[str, str]) -> tuple[int, bool]:
    """Exit status, and whether a case outlasted its limit and the process was killed."""
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as process:
        while True:
            try:
                return process.wait(timeout=1), False
            except subprocess.TimeoutExpired:
                if journal.seconds_running() > CASE_LIMIT_S:
                    os.killpg(process.pid, signal.SIGKILL)
                    return process.wait(), True
            except BaseException:  # interrupted or told to end: the child must not go on measuring
                os.killpg(process.pid, signal.SIGKILL)
                raise


if __name__ == "__main__":
    sys.exit(main())
