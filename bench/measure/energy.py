"""What the GPU board did while a cell was sampled: energy, SM clock, temperature, throttle reasons, from NVML.

Energy is the difference of the board's own counter (Volta and later), read with the device idle at both ends;
where the GPU has no counter, power is integrated by trapezoids. The boundary is the GPU board, not the node.
Windows under 2 s give no energy: the counter moves in steps of tens of milliseconds (ML.ENERGY, zeus).
No NVML, or one that fails, gives blanks with a reason, never zeros.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.measure import clock

PERIOD_S = 0.1
LEAST_WINDOW_S = 2.0
# NVML's clock-event reasons that mean the GPU could not run as fast as asked (nvml.h)
THROTTLE_REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
}


@dataclass
class BoardReading:
    """Over one window. Joules, Hz, degrees C; None where it could not be read."""

    energy_joules: float | None = None
    energy_source: str | None = None
    sm_clock_hz: float | None = None
    temperature_c: float | None = None
    throttle_reasons: list[str] = field(default_factory=list)
    reason: str | None = None  # why something is None


class Board:
    """One GPU's NVML handle. `open_board` makes it; `nvml` is the module, so that tests bring their own."""

    def __init__(self, nvml: Any, handle: Any, now: Callable[[], float] = clock.now):
        self.nvml, self.handle, self.now = nvml, handle, now
        self.joules: list[tuple[float, float]] = []  # (when, counter) through the last watch

    def _read(self, name: str, *arguments: Any) -> Any:
        """One NVML query, or None where this GPU or driver does not answer it."""
        try:
            return getattr(self.nvml, name)(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None

    def energy_joules(self) -> float | None:
        """The board's counter since the driver was loaded. NVML gives millijoules."""
        millijoules = self._read("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def poll(self) -> dict[str, Any]:
        """One sample of everything that is polled."""
        milliwatts = self._read("nvmlDeviceGetPowerUsage")
        megahertz = self._read("nvmlDeviceGetClockInfo", 1)  # 1 = NVML_CLOCK_SM
        return {
            "at": self.now(),
            "power_w": None if milliwatts is None else milliwatts / 1e3,
            "sm_clock_hz": None if megahertz is None else megahertz * 1e6,
            "temperature_c": self._read("nvmlDeviceGetTemperature", 0),  # 0 = the GPU die
            "energy_joules": self.energy_joules(),
            "reasons": self._read("nvmlDeviceGetCurrentClocksThrottleReasons") or 0,
        }

    def watch(self, run: Callable[[], None]) -> BoardReading:
        """Run `run` and read the board through it."""
        polls: list[dict[str, Any]] = []
        done = threading.Event()

        def loop() -> None:
            while not done.is_set():
                polls.append(self.poll())
                done.wait(PERIOD_S)

        thread = threading.Thread(target=loop, daemon=True)
        before, start = self.energy_joules(), self.now()
        thread.start()
        try:
            run()
        finally:
            done.set()
            thread.join()
        window = self.now() - start
        polls.append(self.poll())
        self.joules = [(p["at"], p["energy_joules"]) for p in polls if p["energy_joules"] is not None]
        return summarise(polls, before, self.energy_joules(), window)

    def joules_between(self, start: float, end: float) -> float | None:
        """Energy from `start` to `end`, instants on the clock inside the last watch, by its counter; None under 2 s."""
        if len(self.joules) < 2 or end - start < LEAST_WINDOW_S:
            return None
        at, counter = zip(*self.joules, strict=True)
        if not at[0] <= start <= end <= at[-1]:
            return None
        return float(np.interp(end, at, counter) - np.interp(start, at, counter))


def summarise(polls: list[dict[str, Any]], before: float | None, after: float | None, window: float) -> BoardReading:
    """One reading from the polled samples and the two counter values."""
    reading = BoardReading()
    clocks = sorted(p["sm_clock_hz"] for p in polls if p["sm_clock_hz"] is not None)
    heats = [p["temperature_c"] for p in polls if p["temperature_c"] is not None]
    seen = 0
    for poll in polls:
        seen |= poll["reasons"]
    reading.sm_clock_hz = clocks[len(clocks) // 2] if clocks else None
    reading.temperature_c = max(heats) if heats else None
    reading.throttle_reasons = [name for bit, name in THROTTLE_REASONS.items() if seen & bit]
    powers = [(p["at"], p["power_w"]) for p in polls if p["power_w"] is not None]
    if window < LEAST_WINDOW_S:
        reading.reason = f"window of {window:.2g} s is under {LEAST_WINDOW_S:g} s"
    elif before is not None and after is not None and after > before:
        reading.energy_joules, reading.energy_source = after - before, "counter"
    elif len(powers) > 1:
        pairs = itertools.pairwise(powers)
        reading.energy_joules = sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in pairs)
        reading.energy_source = "power_integral"
    else:
        reading.reason = "the board answers neither its energy counter nor its power"
    return reading


def open_board(uuid: str | None = None) -> Board | str:
    """The NVML handle of the GPU torch uses (by UUID, else the first), or why there is none."""
    try:
        import pynvml
    except ImportError:
        return "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetUUID(handle)
            if uuid is None or uuid in (name.decode() if isinstance(name, bytes) else name):
                return Board(pynvml, handle)
    except pynvml.NVMLError as error:
        return f"NVML: {error}"
    return f"NVML lists no GPU {uuid}"
