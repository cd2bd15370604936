"""Time calls in turns, so that drift in the machine's speed affects all of them equally."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from frevl.deployment.efficiency.records import Record

__all__ = [
    "PRODUCT_SIDE",
    "Limits",
    "Timing",
    "measure_limits",
    "product",
    "rate_record",
    "ratio",
    "take_turns",
    "time_record",
]

_LEAST_SECONDS = 0.005  # shorter calls are repeated: otherwise the clock and a single interruption would dominate


@dataclass(frozen=True)
class Timing:
    """Timings of one call over rounds.

    Attributes:
        seconds: Wall time of every round.
        cpu_seconds: CPU time of every round, over all threads of this process.
    """

    seconds: list[float]
    cpu_seconds: list[float]

    @property
    def median(self) -> float:
        """Return the median wall time in seconds."""
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """Return the median CPU time in seconds."""
        return statistics.median(self.cpu_seconds)


def take_turns(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 5, warm_up: bool = True, most_seconds: float = math.inf
) -> dict[str, Timing]:
    """Time calls in rounds, each once per round.

    Args:
        calls: Calls to time, by name.
        rounds: Number of rounds that count.
        warm_up: Call each once first, which also determines how often a short call is repeated.
        most_seconds: No further round starts after this time; the first is always measured.

    Returns:
        The timing of every call; round ``i`` took place at nearly the same time for all.
    """
    repeats = dict.fromkeys(calls, 1)
    if warm_up:
        for name, call in calls.items():
            call()
            once, _ = _timed(call, 1)  # the first call also allocates
            repeats[name] = max(1, math.ceil(_LEAST_SECONDS / max(once, 1e-7)))
    found: dict[str, Timing] = {name: Timing([], []) for name in calls}
    started = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - started > most_seconds:
            break
        for name, call in calls.items():
            wall, processor = _timed(call, repeats[name])
            found[name].seconds.append(wall)
            found[name].cpu_seconds.append(processor)
    return found


def ratio(slow: Timing, fast: Timing) -> float:
    """Return how many times faster ``fast`` is: the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


def time_record(part: str, name: str, timing: Timing, *, items: int = 1, unit: str = "ms", **details: object) -> Record:
    """Record the milliseconds per item.

    Args:
        part: As in `Record`.
        name: As in `Record`.
        timing: Timing of one batch.
        items: Items in the batch.
        unit: Description of the unit; the number is in milliseconds.
        **details: Further figures.
    """
    return _record(part, name, timing, [1e3 * seconds / items for seconds in timing.seconds], unit, items, details)


def rate_record(part: str, name: str, timing: Timing, *, items: int, unit: str, **details: object) -> Record:
    """Record the items per second; arguments as in `time_record`."""
    return _record(part, name, timing, [items / seconds for seconds in timing.seconds], unit, items, details)


def _record(
    part: str, name: str, timing: Timing, each: list[float], unit: str, items: int, details: dict[str, object]
) -> Record:
    return Record(
        part,
        name,
        statistics.median(each),
        unit,
        {"low": min(each), "high": max(each), "rounds": len(each)},
        details={"cpu_seconds": timing.cpu_median / items, **details},
    )


def _timed(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - processor) / repeats


PRODUCT_SIDE = 2048
_MEGABYTES = 256


@dataclass(frozen=True)
class Limits:
    """Measured limits of this process on this machine.

    Attributes:
        flops: Floating-point operations per second of a large float32 matrix product.
        bytes: Bytes per second that a large copy reads and writes.
    """

    flops: float
    bytes: float

    def attainable(self, flops: float, moved: float) -> float:
        """Return the attainable operations per second for work with this many operations and bytes moved."""
        return min(self.flops, self.bytes * flops / moved)


def product(side: int = PRODUCT_SIDE) -> Callable[[], object]:
    """Return a call that multiplies two square float32 matrices: ``2 * side**3`` operations."""
    a, b, c = torch.randn(side, side), torch.randn(side, side), torch.empty(side, side)
    return lambda: torch.mm(a, b, out=c)


def measure_limits(*, rounds: int = 7, side: int = PRODUCT_SIDE, megabytes: int = _MEGABYTES) -> list[Record]:
    """Measure both limits: records ``matrix products`` (operations/s) and ``memory`` (bytes/s)."""
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    with torch.inference_mode():
        found = take_turns({"product": product(side), "copy": lambda: target.copy_(source)}, rounds=rounds)
    return [
        rate_record(
            "machine",
            f"matrix products: float32, {side} x {side}, {torch.get_num_threads()} threads",
            found["product"],
            items=2 * side**3,
            unit="operations/s",
        ),
        rate_record(
            "machine",
            f"memory: a copy of {megabytes} MB, read and written",
            found["copy"],
            items=2 * source.nbytes,
            unit="bytes/s",
        ),
    ]
