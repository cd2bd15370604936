"""Energy from the machine's own counters (RAPL, NVML) through zeus; nothing else is ever called energy.

Zeus (https://ml.energy/zeus) is the smaller of the two well-kept libraries for this; codecarbon falls back to
constants where there is no counter, which is what we never want.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from frevl.costs import NOT_MEASURED, Record

__all__ = ["Meter", "energy_record", "open_meter"]

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


def energy_record(name: str, joules: float | None, meter: Meter, *, pairs: int, **stand_ins: float) -> Record:
    """Record the energy a pair, with stand-ins that are named so.

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
