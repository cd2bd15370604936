"""What a pair costs on this machine: time, processor time, operations, energy.

`frevl.deployment.efficiency.bench.bench` calls them one after the other and gathers their records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["NOT_MEASURED", "Meter", "Record", "Show", "energy_record", "open_meter"]

NOT_MEASURED = "not measured"

Show = Callable[[str], object]


@dataclass(frozen=True)
class Record:
    """One measurement.

    Attributes:
        part: Theme: ``machine``, ``stages``, ``fusion``, ``scaling``, ``comparison``, ``break-even``, ``energy``,
            ``goals`` or ``profile``.
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
