"""A frozen network in PyTorch on one device: runs start asynchronously, and batches too large for memory are halved.

On an accelerator the network runs in float16; inputs are collected in page-locked memory, from which the device copies
on its own, and the next run is prepared while this one computes.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from frevl.errors import EncoderError

if TYPE_CHECKING:
    import torch

__all__ = ["TorchCopy", "fold_quick_gelu"]

_log = logging.getLogger("frevl")

Result = Callable[[], np.ndarray]
"""Waits for a started run, and returns its outputs with a batch axis."""


class TorchCopy:
    """One copy of a network.

    Attributes:
        device: Name of the device in PyTorch.
        most: Number of inputs that fit in the device's memory, known once a larger run did not fit; else None.
    """

    def __init__(self, network: torch.nn.Module, device: str) -> None:
        """Put the network on a device: in float32 on a CPU, in float16 on other devices."""
        import torch

        self.device = device
        self.most: int | None = None
        processor = device == "cpu"
        # On a CPU there is a single copy, which can be the network itself.
        placed = network if processor else fold_quick_gelu(copy.deepcopy(network))
        self._network = placed.to(device=device, dtype=torch.float32 if processor else torch.float16).eval()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Run a batch and wait for its outputs."""
        return self.start(batch)()

    def start(self, items: Sequence[np.ndarray] | np.ndarray) -> Result:
        """Start a run of equal-shaped inputs; a CPU has finished it on return.

        Raises:
            EncoderError: Not even one input fits in the device's memory.
        """
        import torch

        if self.most is not None and len(items) > self.most:
            size = self.most
            results = [self.start(items[first : first + size]) for first in range(0, len(items), size)]
            return lambda: np.concatenate([result() for result in results])
        try:
            return self._start(items)
        except torch.OutOfMemoryError as error:
            if len(items) == 1:
                raise EncoderError(
                    f"{self.device}: too little memory to run the network on one input "
                    f"({str(error).split('.')[0]}); stop other programs on this device, or use a smaller encoder"
                ) from error
            self.most = len(items) // 2
        _log.warning(
            "frevl: %s ran out of memory with %d inputs at once; using %d from now on.",
            self.device, len(items), self.most,
        )  # fmt: skip
        torch.cuda.empty_cache()  # does nothing without an NVIDIA device
        return self.start(items)

    def _start(self, items: Sequence[np.ndarray] | np.ndarray) -> Result:
        import torch

        locked = self.device.startswith("cuda")
        first = torch.from_numpy(np.asarray(items[0]))
        batch = torch.empty((len(items), *first.shape), dtype=first.dtype, pin_memory=locked)
        np.stack(list(items), out=batch.numpy())
        with torch.inference_mode():
            output = self._network(batch.to(self.device, non_blocking=locked)).float()
            if not locked:
                finished: np.ndarray = output.cpu().numpy()
                return lambda: finished
            with torch.cuda.device(self.device):
                back = torch.empty(output.shape, dtype=output.dtype, pin_memory=True)
                back.copy_(output, non_blocking=True)
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record()

        def wait() -> np.ndarray:
            done.synchronize()
            values: np.ndarray = back.numpy()
            return values

        return wait


_QUICK = 1.702  # constant of the activation `x * sigmoid(1.702 x)` of OpenAI's CLIP


def fold_quick_gelu(network: torch.nn.Module) -> torch.nn.Module:
    """Replace CLIP's activation by SiLU, with its constant absorbed by the surrounding weights: the same function.

    ``x sigmoid(1.702 x) = silu(1.702 x) / 1.702``. SiLU takes one pass over the widest activations of the network where
    the transformers library takes three: a sixth more images per second on an accelerator (docs/accelerator.md).

    Returns:
        The network itself, modified where a layer of the transformers library has this activation.
    """
    import torch

    for module in network.modules():
        activation = getattr(module, "activation_fn", None)
        inner, outer = getattr(module, "fc1", None), getattr(module, "fc2", None)
        if not (isinstance(inner, torch.nn.Linear) and isinstance(outer, torch.nn.Linear)):
            continue
        if type(activation).__name__ == "QuickGELUActivation":
            with torch.no_grad():
                inner.weight.mul_(_QUICK)
                inner.bias.mul_(_QUICK)
                outer.weight.div_(_QUICK)
            module.activation_fn = torch.nn.SiLU()
    return network
