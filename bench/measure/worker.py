"""The worker process: cells run here, so that a fault, a hang or a killed process costs one cell and not the run.

The parent sends {"call": "module:function", "arguments": {...}} as a line of JSON and gets one line back. The
worker lives in its own session (Ctrl-C reaches the parent alone) and dies with its parent. What it prints goes
to a log, whose last line explains a crash.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure.clock import now

LOOK_S = 1.0  # how often `unless` is asked
ROOT = Path(__file__).resolve().parent.parent.parent


class WorkerDied(Exception):
    """The worker gave no answer; `status` is timeout or crashed."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class Worker:
    """A child process that answers calls one at a time. Started at the first call."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.answers = -1
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the worker

    def start(self) -> None:
        answers, write = os.pipe()
        self.answers = answers
        self.log.seek(0)
        self.log.truncate()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.measure.worker", str(write)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            pass_fds=(write,),
            start_new_session=True,
        )
        os.close(write)

    def call(
        self, target: str, arguments: dict[str, Any], limit_s: float, unless: Callable[[], str | None] | None = None
    ) -> Any:
        """The answer of `module:function`. Raises WorkerDied after `limit_s` seconds or when the process ends.

        `unless` is asked every second; the reason it gives, if any, ends the process too.
        """
        if self.process is None:
            self.start()
        assert self.process and self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # a dead worker shows when its answer is read
            self.process.stdin.write(json.dumps({"call": target, "arguments": arguments}).encode() + b"\n")
            self.process.stdin.flush()
        deadline, received = now() + limit_s, b""
        while not received.endswith(b"\n"):
            left = deadline - now()
            if left <= 0:
                self.stop()
                raise WorkerDied("timeout", f"no answer within {limit_s:g} s; the worker was killed")
            if not select.select([self.answers], [], [], min(left, LOOK_S) if unless else left)[0]:
                if unless and (reason := unless()):
                    self.stop()
                    raise WorkerDied("crashed", reason)
                continue
            chunk = os.read(self.answers, 1 << 20)
            if not chunk:
                raise WorkerDied("crashed", self._obituary())
            received += chunk
        answer = json.loads(received)
        if "error" in answer:
            raise WorkerDied("error", answer["error"])
        return answer["result"]

    def _obituary(self) -> str:
        assert self.process
        code = self.process.wait()
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.log.seek(0)
        lines = [text for text in self.log.read().decode(errors="replace").splitlines() if text.strip()]
        self.stop()
        return f"the worker process ended: {cause}" + (f"; it last said: {lines[-1][:200]}" if lines else "")

    def stop(self) -> None:
        """End the process; the next call starts a fresh one."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        os.close(self.answers)
        self.process = None


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends (prctl 1 = PR_SET_PDEATHSIG)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main(answers: int) -> None:
    """Answer calls from standard input until it closes."""
    from bench.measure.cell import resolve

    die_with_parent()
    with os.fdopen(answers, "w") as out:
        for request in sys.stdin:
            message = json.loads(request)
            try:
                answer = {"result": resolve(message["call"])(**message["arguments"])}
            except Exception as error:  # told to the parent, who raises it
                answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            out.write(json.dumps(answer) + "\n")
            out.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
