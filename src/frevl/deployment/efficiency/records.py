"""What a pair costs on this machine: time, processor time, operations, energy.

`frevl.deployment.efficiency.bench.bench` calls them one after the other and gathers their records.
"""

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
        value: The number (the median over rounds), or words such as ``not measured``.
        unit: Of the value.
        spread: ``low``, ``high`` and ``rounds``, in the same unit; None for what does not vary.
        ratio: The number against which `limit` is held, if there is one.
        limit: Least ratio that we promise, or None.
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
        """Whether the limit is reached; None where there is none."""
        return None if self.ratio is None or self.limit is None else self.ratio >= self.limit

    def json(self, hardware: dict[str, Any]) -> dict[str, Any]:
        """Return the record of `frevl bench --json`."""
        named = {name: value for name, value in vars(self).items() if name != "details"}
        return {**named, "met": self.met, "hardware": hardware, **self.details}


RAPL = Path("/sys/class/powercap/intel-rapl")


class Meter:
    """Measures the energy of calls, or says why it cannot.

    Attributes:
        reason: Why nothing can be measured; empty if it can.
        counters: Which counters are read, in words.
    """

    def __init__(self, monitor: Any = None, *, reason: str = "", counters: str = "") -> None:
        self._monitor = monitor
        self.reason = reason
        self.counters = counters

    def joules(self, call: Callable[[], object]) -> float | None:
        """Energy of one call in joules: processor, memory and accelerators together; None without a counter."""
        if self._monitor is None:
            return None
        self._monitor.begin_window("frevl")
        call()
        found = self._monitor.end_window("frevl")
        parts = [part or {} for part in (found.cpu_energy, found.dram_energy, found.gpu_energy)]
        return float(sum(sum(part.values()) for part in parts))


def open_meter(rapl: Path = RAPL, *, accelerator: bool | None = None) -> Meter:
    """Open the machine's energy counters.

    Args:
        rapl: Folder of the processor's counters.
        accelerator: Whether there is an NVIDIA device; None asks PyTorch.
    """
    if accelerator is None:
        import torch

        accelerator = torch.cuda.is_available()
    processor = next(rapl.glob("intel-rapl:*/energy_uj"), None)
    if processor is None and not accelerator:
        return Meter(reason=f"this machine shows no energy counter (no RAPL in {rapl}, no NVIDIA device)")
    try:
        from zeus.monitor import ZeusMonitor
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "zeus":
            raise
        return Meter(reason="the library 'zeus' reads this machine's counters: pip install 'frevl[energy]'")
    try:
        monitor = ZeusMonitor()
    # Zeus raises errors of several families (no permission, no device, no daemon); each means: no counter for us.
    except Exception as error:
        return Meter(reason=f"the energy counters cannot be read ({' '.join(str(error).split())[:160]})")
    counters = " and ".join(name for name, there in (("RAPL", processor), ("NVML", accelerator)) if there)
    return Meter(monitor, counters=counters)


@dataclass(frozen=True)
class Windows:
    """One call, repeated for several windows of time.

    Attributes:
        seconds: Of a call, window by window.
        joules: Of a call above the idle card; empty without a counter.
        watts: Power in all; empty without a counter.
    """

    seconds: list[float]
    joules: list[float]
    watts: list[float]


_WINDOWS = 3
_UNSEEN_CALLS = 8  # before they are waited for, so that the queue of the device stays short


class CardMeter:
    """Time and energy of calls on an NVIDIA card, by the counter of its driver's library (NVML).

    The counter is that of the whole card; what the idle card uses, this process's context included, is subtracted. It
    moves in steps of up to a tenth of a second, so windows should be seconds long.

    Attributes:
        device: As PyTorch names it.
        reason: Why there is no energy; empty if there is.
        idle: Watts of the idle card, once `rest` has measured them.
    """

    def __init__(self, device: str) -> None:
        """Open the counter."""
        self.device, self.idle = device, 0.0
        self.reason = "" if device.startswith("cuda") else "a processor run reads no counter of a card"
        self._read: Callable[[], float] | None = None
        if not self.reason:
            try:
                pynvml: Any = importlib.import_module("pynvml")
                pynvml.nvmlInit()
                handle = pynvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2] or 0))
                self._read = lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
                self._read()
            # The library has an error class for each of its codes; each means: no counter for us.
            except Exception as error:
                self._read, self.reason = None, f"NVML: {error}"

    def rest(self, seconds: float) -> float:
        """Measure and keep the watts of the idle card."""
        if self._read is not None:
            self._wait()
            time.sleep(min(1.0, seconds))
            self.idle = self._window(self._read, lambda: time.sleep(0.05), seconds)[1]
        return self.idle

    def measure(self, call: Callable[[], object], seconds: float) -> Windows:
        """Repeat a call for three windows of so many seconds; without a counter it is called once a window."""
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
        """Calls in a window, and watts."""
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
    """Record the energy per pair, with stand-ins that are named so.

    Args:
        name: What was measured.
        joules: Of one call, or None.
        meter: That measured it.
        pairs: Pairs in the call.
        **stand_ins: ``cpu_seconds`` and ``flops`` a pair.
    """
    value: float | str = NOT_MEASURED if joules is None else joules / pairs
    how = {"reason": meter.reason} if joules is None else {"counters": meter.counters}
    return Record("energy", name, value, "joules a pair", details={**how, "stand_ins": stand_ins})
