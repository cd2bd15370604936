"""Run a frozen hub network: ONNX Runtime on a CPU, PyTorch on accelerators or on request.

On a CPU the network is exported once (`frevl.encoders.onnx_session`); if that fails, PyTorch runs it and the reason is
logged. On accelerators PyTorch runs it in float16, one copy per device, each with its share of a batch
(`frevl.encoders.hub.torch_copy`). The number of items per run is chosen by timing the first runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np

from frevl.encoders.hub.torch_copy import TorchCopy
from frevl.encoders.onnx_session import Source, open_int8, open_network, run
from frevl.machine import processors

__all__ = ["BatchSizes", "Network", "accelerators", "on_device", "open_in_torch", "open_runtime"]

_log = logging.getLogger("frevl")
_PROCESSOR_SIZES = (1, 4, 8, 16)
_ACCELERATOR_SIZES = (16, 64, 256)
_AHEAD = 2  # runs started before the outputs of an earlier one are awaited
_TRIES = 2  # per size; the faster one counts, since the first run of a size also allocates memory


class BatchSizes:
    """Chooses how many items go into one run: tries every size on real work, then keeps the fastest (ours).

    Args:
        sizes: Sizes to choose from, in the order in which they are tried.

    Attributes:
        sizes: The sizes to choose from.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self._seconds: dict[int, list[float]] = {size: [] for size in self.sizes}
        self._lock = threading.Lock()

    def next(self) -> int:
        """Return the batch size of the next run."""
        with self._lock:
            for size, seconds in self._seconds.items():
                if len(seconds) < _TRIES:
                    return size
            return min(self._seconds, key=lambda size: min(self._seconds[size]))

    @property
    def settled(self) -> bool:
        """Return whether every size has been tried."""
        with self._lock:
            return all(len(seconds) >= _TRIES for seconds in self._seconds.values())

    def took(self, size: int, seconds: float) -> None:
        """Record how long a run of this size took, in seconds per item."""
        with self._lock:
            if len(self._seconds[size]) < _TRIES:
                self._seconds[size].append(seconds)


@dataclass(frozen=True)
class Network:
    """A frozen network that is ready to run.

    Attributes:
        copies: One function from a batch to its outputs for each parallel run; a `TorchCopy` is started first and
            awaited later.
        sizes: Run sizes to choose from.
        name: ``ONNX Runtime``, ``ONNX Runtime, int8`` or ``PyTorch on`` some device.
    """

    copies: Sequence[Callable[[np.ndarray], np.ndarray]]
    sizes: BatchSizes
    name: str

    @property
    def batch_size(self) -> int:
        """Number of items that a tower should request at once to keep every copy busy, whatever the run size."""
        ahead = 2 * _AHEAD if isinstance(self.copies[0], TorchCopy) and self.copies[0].device != "cpu" else 1
        return max(32, ahead * self.sizes.sizes[-1] * len(self.copies))

    def __call__(self, items: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run equal-shaped inputs.

        Args:
            items: Inputs of equal shape, without a batch axis.

        Returns:
            One output per item, without a batch axis.
        """
        outputs: list[np.ndarray] = []
        begun: deque[Callable[[], list[np.ndarray]]] = deque()
        taken = 0
        while taken < len(items):
            size, trying = self.sizes.next(), not self.sizes.settled
            while begun and trying:  # a timed run must be alone
                outputs += begun.popleft()()
            rest = items[taken : taken + size * len(self.copies)]
            # Too few items for full runs still occupy every copy.
            share = min(size, -(-len(rest) // len(self.copies)))
            shares = [rest[start : start + share] for start in range(0, len(rest), share)]
            started = time.perf_counter()
            begun.append(self._begin(shares))
            taken += len(rest)
            if trying or len(begun) > _AHEAD:
                outputs += begun.popleft()()
            if trying and len(rest) == size * len(self.copies):  # a smaller remainder would make a size look slow
                self.sizes.took(size, (time.perf_counter() - started) / len(rest))
        for wait in begun:
            outputs += wait()
        return outputs

    def _begin(self, shares: Sequence[Sequence[np.ndarray]]) -> Callable[[], list[np.ndarray]]:
        """Start one run on each copy."""
        if len(shares) == 1:
            waits = [_begun(self.copies[0], shares[0])]
        else:
            with ThreadPoolExecutor(len(shares)) as pool:
                waits = list(pool.map(_begun, self.copies, shares))
        return lambda: [output for wait in waits for output in wait()]


def _begun(one: Callable[[np.ndarray], np.ndarray], share: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
    if isinstance(one, TorchCopy):
        return one.start(share)
    output = one(np.stack(share))
    return lambda: output


_chosen: ContextVar[str | None] = ContextVar("device", default=None)


@contextmanager
def on_device(device: str | None) -> Iterator[None]:
    """Make the encoders loaded within the context run on one device; None uses all accelerators.

    Args:
        device: ``cpu``, ``cuda`` (one copy per NVIDIA device), or a single device such as ``cuda:1``.
            The caller has checked it.
    """
    token = _chosen.set(device)
    try:
        yield
    finally:
        _chosen.reset(token)


def accelerators() -> list[str]:
    """Return the accelerators that PyTorch can use, or the device set by `on_device`."""
    import torch

    chosen = _chosen.get()
    if chosen is not None and chosen != "cuda":
        return [] if chosen == "cpu" else [chosen]

    if torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else []


def open_runtime(name: str, key: str, build: Callable[[], Source], choice: str) -> Network:
    """Open a network in the way that suits the machine.

    Args:
        name: Name of the tower, used for the exported file.
        key: Hash of everything on which the exported network depends.
        build: Loads the PyTorch network and describes the export; called only if needed.
        choice: ``auto``, ``torch`` (never export) or ``int8`` (8-bit weights, always ONNX Runtime).

    Raises:
        EncoderError: The network cannot be loaded, or int8 was requested and does not work.
        MissingExtraError: int8 was requested and ONNX Runtime is not installed.
    """
    if choice == "int8":
        # Activations are rounded with one scale per run: an item alone in its run does not depend on others.
        return _in_onnx_runtime(open_int8(name, key, build), "ONNX Runtime, int8", (1,))
    if choice == "torch" or accelerators():
        return open_in_torch(build(), accelerators() or ["cpu"])
    built: list[Source] = []

    def build_once() -> Source:
        if not built:
            built.append(build())
        return built[0]

    try:
        return _in_onnx_runtime(open_network(name, key, build_once), "ONNX Runtime", _PROCESSOR_SIZES)
    # The exporter raises exceptions of many kinds; whatever the error, PyTorch can still run the network.
    except Exception as error:
        source = build_once()  # raises the actual error if the network itself is at fault
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        _log.warning("frevl: '%s' runs in PyTorch, slower, because its export to ONNX failed: %s", name, reason)
        return open_in_torch(source, ["cpu"])


def open_in_torch(source: Source, devices: Sequence[str]) -> Network:
    """Run a network in PyTorch: float32 on a CPU, float16 on other devices, one copy per device."""
    copies = [TorchCopy(source.network, device) for device in devices]
    sizes = _PROCESSOR_SIZES if devices[0] == "cpu" else _ACCELERATOR_SIZES
    return Network(copies, BatchSizes(sizes), f"PyTorch on {', '.join(devices)}")


def _in_onnx_runtime(session: Any, name: str, sizes: Sequence[int]) -> Network:
    """Open with as many parallel runs as cores, because one run uses one core (`frevl.encoders.onnx_session`)."""
    count = processors()
    copies = [lambda batch: run(session, batch)] * count
    return Network(copies, BatchSizes(sizes), name)
