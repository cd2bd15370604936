"""Clock, energy counter and limits of one device; everything that is measured goes through here.

The same code runs on a processor with tiny sizes (``--quick``), so that it is tested where there is no accelerator.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

Call = Callable[[], object]
LEAST = 0.02  # seconds of one timed stretch: shorter calls are repeated


@dataclass(frozen=True)
class Record:
    """One measurement: the median over rounds with its lowest and highest round.

    ``ratio`` is what is held against ``goal``, both without a unit.
    """

    part: str
    name: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    ratio: float | None = None
    goal: float | None = None
    at_most: bool = False  # the goal is an upper bound
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.ratio is None or self.goal is None:
            return None
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal

    def json(self) -> dict[str, Any]:
        """Everything, for the JSON file."""
        return {**asdict(self), "met": self.met}


@dataclass
class Chip:
    """A device, and how much of everything is measured on it."""

    device: torch.device
    quick: bool
    rounds: int
    seconds: float  # of one window of energy

    @property
    def cuda(self) -> bool:
        """Whether it is an NVIDIA device."""
        return self.device.type == "cuda"

    def sync(self) -> None:
        """Wait until all work is done."""
        if self.cuda:
            torch.cuda.synchronize()

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
        """Draw normal numbers on the device: zeros would run faster than data."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, device=self.device, dtype=dtype, generator=generator)

    def name(self) -> str:
        """Name of the device as its driver gives it."""
        return torch.cuda.get_device_name(self.device) if self.cuda else "processor"


def timed(
    chip: Chip, calls: Mapping[str, Call], *, rounds: int | None = None, least: float = LEAST
) -> dict[str, list[float]]:
    """Seconds a call, one stretch of each call a round, so that a chip that slows down hurts all alike.

    A stretch takes at least so many seconds; a stretch of a single call includes what the CPU does before the first
    kernel, which in a loop is done while the device still computes the call before.
    """
    repeats = {}
    for name, call in calls.items():
        for _ in range(1 if chip.quick else 2):
            call()
        chip.sync()
        once = stretch(chip, call, 1)
        if once < LEAST / 4:
            once = stretch(chip, call, 4)
        repeats[name] = 1 if chip.quick else max(1, math.ceil(least / max(once, 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds or chip.rounds):
        for name, call in calls.items():
            found[name].append(stretch(chip, call, repeats[name]))
    return found


def stretch(chip: Chip, call: Call, repeats: int) -> float:
    """Wall seconds per call, waiting for the device before and after all of them."""
    chip.sync()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    chip.sync()
    return (time.perf_counter() - started) / repeats


def quotient(a: list[float], b: list[float]) -> float:
    """Median over rounds of the quotient of the same round."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def rate(part: str, name: str, seconds: list[float], items: float, unit: str, **more: Any) -> Record:
    """Record items per second."""
    each = [items / one for one in seconds]
    ratio, goal = more.pop("ratio", None), more.pop("goal", None)
    return Record(
        part, name, statistics.median(each), unit, min(each), max(each), len(each), ratio=ratio, goal=goal, details=more
    )


@dataclass(frozen=True)
class Limits:
    """What this chip was measured to do: operations per second by type, bytes per second."""

    flops: dict[str, float]
    copied: float
    read: float


def limits(chip: Chip) -> tuple[Limits, list[Record]]:
    """Measure square matrix products, a copy (bytes read and written) and a pass that only reads."""
    side = 256 if chip.quick else 8192
    calls: dict[str, Call] = {}
    for name, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}.items():
        a, b = chip.randn(side, side, dtype=dtype), chip.randn(side, side, dtype=dtype, seed=1)
        out = torch.empty(side, side, device=chip.device, dtype=dtype)
        calls[name] = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # type: ignore[misc]
    if chip.cuda:
        calls["tf32"] = _in_tf32(calls["fp32"])
    source = chip.randn((1 if chip.quick else 1024) << 18)
    target = torch.empty_like(source)
    calls["copy"] = lambda: target.copy_(source)
    calls["read"] = lambda: torch.amax(source)
    found = timed(chip, calls)
    size, work = source.nbytes, 2 * side**3
    flops = {name: work / statistics.median(found[name]) for name in calls if name not in ("copy", "read")}
    records = [
        rate("limits", f"matrix product {side} x {side}, {name}", found[name], work / 1e12, "TFLOP/s") for name in flops
    ]
    records.append(rate("limits", "copy, read and written", found["copy"], 2 * size / 1e9, "GB/s"))
    records.append(rate("limits", "one pass that reads", found["read"], size / 1e9, "GB/s"))
    copied, read = 2 * size / statistics.median(found["copy"]), size / statistics.median(found["read"])
    return Limits(flops, copied, max(copied, read)), records


def _in_tf32(call: Call) -> Call:
    def inner() -> None:
        torch.backends.cuda.matmul.allow_tf32 = True
        call()
        torch.backends.cuda.matmul.allow_tf32 = False

    return inner


def graphed(chip: Chip, call: Call) -> Call:
    """Capture a call whose inputs stay in place as one CUDA graph; on a processor the call itself."""
    if not chip.cuda:
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def kernel_profile(chip: Chip, call: Call, *, calls: int = 3, shown: int = 12) -> dict[str, float]:
    """Share of the device's time by kernel: where the time goes when a goal is missed."""
    if not chip.cuda:
        return {}
    from torch.profiler import ProfilerActivity, profile

    call()
    chip.sync()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        for _ in range(calls):
            call()
        chip.sync()
    spent: dict[str, float] = {}
    for event in profiled.key_averages():
        spent[event.key] = spent.get(event.key, 0.0) + float(event.self_device_time_total)
    total = sum(spent.values()) or 1.0
    first = sorted(spent, key=lambda name: -spent[name])[:shown]
    return {"milliseconds a call": round(total / calls / 1e3, 3)} | {
        name[:100]: round(spent[name] / total, 3) for name in first
    }
