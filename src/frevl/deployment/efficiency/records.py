"""Records of what a pair costs on this machine (time, CPU time, operations, energy), and energy meters."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["NOT_MEASURED", "CardMeter", "Meter", "Record", "Show", "Windows", "energy_record", "open_meter"]

NOT_MEASURED = "not measured"

Show = Callable[[str], object]


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        part: Theme: ``machine``, ``stages``, ``fusion``, ``scaling``, ``comparison``, ``break-even``, ``energy``,
            ``goals``, ``accelerator`` or ``profile``.
        name: What was measured, in words.
        value: The number (the median over rounds), or text such as ``not measured``.
        unit: Unit of the value.
        spread: ``low``, ``high`` and ``rounds``, in the same unit; None for values that do not vary.
        ratio: The number compared with `limit`, if any.
        limit: Minimum ratio that we promise, or None.
        details: Further figures: ``flops``, ``bytes``, ``batch``, ``cpu_seconds``, ...
    """

    part: str
    name: str
    value: float | str
    unit: str
    spread: dict[str, float] | None = None
    ratio: float | None = None
    limit: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Return whether the limit is reached; None without a limit."""
        return None if self.ratio is None or self.limit is None else self.ratio >= self.limit

    def json(self, hardware: dict[str, Any]) -> dict[str, Any]:
        """Return the record of `frevl bench --json`."""
        named = {name: value for name, value in vars(self).items() if name != "details"}
        return {**named, "met": self.met, "hardware": hardware, **self.details}


RAPL = Path("/sys/class/powercap/intel-rapl")


class Meter:
    """Measures the energy of calls that a CPU computes, or states why it cannot; `CardMeter` is for NVIDIA devices.

    Attributes:
        reason: Why energy cannot be measured; empty if it can.
        counters: Description of the counters that are read.
    """

    def __init__(self, monitor: Any = None, *, reason: str = "", counters: str = "") -> None:
        self._monitor = monitor
        self.reason = reason
        self.counters = counters

    def joules(self, call: Callable[[], object]) -> float | None:
        """Return the joules of one call, CPU and memory together; None without a counter."""
        if self._monitor is None:
            return None
        self._monitor.begin_window("frevl")
        call()
        found = self._monitor.end_window("frevl")
        parts = [part or {} for part in (found.cpu_energy, found.dram_energy)]
        return float(sum(sum(part.values()) for part in parts))


def open_meter(rapl: Path = RAPL) -> Meter:
    """Open the energy counters of the machine's CPU. An NVIDIA device next to it would only add its idle power.

    Args:
        rapl: Folder of the counters.
    """
    if next(rapl.glob("intel-rapl:*/energy_uj"), None) is None:
        return Meter(reason=f"the CPU of this machine has no readable energy counter (no RAPL in {rapl})")
    try:
        from zeus.monitor import ZeusMonitor
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "zeus":
            raise
        return Meter(reason="reading the CPU's counters needs the library 'zeus': pip install 'frevl[energy]'")
    try:
        monitor = ZeusMonitor(gpu_indices=[])
    # Zeus raises several unrelated errors (no permission, no device, no daemon), all of which mean: no usable counter.
    except Exception as error:
        return Meter(reason=f"the energy counters cannot be read ({' '.join(str(error).split())[:160]})")
    return Meter(monitor, counters="RAPL")


@dataclass(frozen=True)
class Windows:
    """One call, repeated over several time windows.

    Attributes:
        seconds: Seconds per call, for each window.
        joules: Joules per call above the idle GPU; empty without a counter.
        watts: Total power; empty without a counter.
    """

    seconds: list[float]
    joules: list[float]
    watts: list[float]


_WINDOWS = 3
_UNSEEN_CALLS = 8  # calls issued before waiting for them, which keeps the device's queue short


class CardMeter:
    """Measures time and energy of calls on an NVIDIA GPU, using the driver library's counter (NVML).

    The counter covers the whole GPU; the idle power, this process's context included, is subtracted. It is updated only
    every tenth of a second or so, so windows should be seconds long.

    Attributes:
        device: The device's name in PyTorch.
        reason: Why energy cannot be measured; empty if it can.
        idle: Idle power in watts, once `rest` has measured it.
    """

    def __init__(self, device: str) -> None:
        """Open the counter."""
        self.device, self.idle = device, 0.0
        self.reason = "" if device.startswith("cuda") else "on a CPU, no GPU counter is read"
        self._read: Callable[[], float] | None = None
        if not self.reason:
            try:
                pynvml: Any = importlib.import_module("pynvml")
                pynvml.nvmlInit()
                handle = pynvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2] or 0))
                self._read = lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
                self._read()
            # The library has an error class for each of its codes, all of which mean: no usable counter.
            except Exception as error:
                self._read, self.reason = None, f"NVML: {error}"

    def rest(self, seconds: float) -> float:
        """Measure and store the idle power in watts."""
        if self._read is not None:
            self._wait()
            time.sleep(min(1.0, seconds))
            self.idle = self._window(self._read, lambda: time.sleep(0.05), seconds)[1]
        return self.idle

    def measure(self, call: Callable[[], object], seconds: float) -> Windows:
        """Repeat a call over three windows of the given seconds; without a counter, once per window."""
        found = Windows([], [], [])
        call()
        self._wait()
        for _ in range(_WINDOWS):
            started = time.perf_counter()
            if self._read is None:
                call()
                self._wait()
                found.seconds.append(time.perf_counter() - started)
                continue
            count, watts = self._window(self._read, call, seconds)
            each = (time.perf_counter() - started) / count
            found.seconds.append(each)
            found.watts.append(watts)
            found.joules.append(max(0.0, watts - self.idle) * each)
        return found

    def _window(self, read: Callable[[], float], call: Callable[[], object], seconds: float) -> tuple[int, float]:
        """Return the number of calls in a window, and the watts."""
        self._wait()
        before, started, count = read(), time.perf_counter(), 0
        while not count or time.perf_counter() - started < seconds:
            call()
            count += 1
            if count % _UNSEEN_CALLS == 0:
                self._wait()
        self._wait()
        spent = time.perf_counter() - started
        return count, (read() - before) / spent

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)


def energy_record(name: str, joules: float | None, meter: Meter, *, pairs: int, **stand_ins: float) -> Record:
    """Record the energy per pair, with clearly labelled stand-ins.

    Args:
        name: What was measured.
        joules: Energy of one call, or None.
        meter: The meter that measured it.
        pairs: Pairs in the call.
        **stand_ins: ``cpu_seconds`` and ``flops`` per pair.
    """
    value: float | str = NOT_MEASURED if joules is None else joules / pairs
    how = {"reason": meter.reason} if joules is None else {"counters": meter.counters}
    return Record("energy", name, value, "joules per pair", details={**how, "stand_ins": stand_ins})
