"""Record the training steps of an NVIDIA device as CUDA graphs, which start hundreds of kernels as one.

A step of a fusion starts so many small kernels that the CPU cannot start them as fast as the device finishes them
(docs/accelerator.md). Forward and backward pass of a batch whose shapes recur are therefore recorded once, by
`torch.cuda.make_graphed_callables`, and then replayed: the same kernels on the same numbers, without the waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from frevl.devices import is_accelerator

__all__ = ["RecordedTerms", "Terms"]

Terms = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""Maps tensors, or None where one is absent, to a loss and its terms by name, without waiting for the device."""
Replayed = Callable[..., tuple[Tensor, ...]]

_RECURS = 3  # a batch is recorded at this occurrence of its shapes
_MOST = 8  # maximum number of recorded shapes; classes have four: two batch sizes, with and without mixup

_log = logging.getLogger("frevl")


class RecordedTerms:
    """Terms of a loss, replayed on an NVIDIA device for batches whose shapes recur, and computed otherwise.

    Args:
        network: The network being trained, in training mode. A recording holds the addresses of its parameters; if they
            move, batches are recorded anew.
        terms: Computes the loss from tensors.
        device: Device of the network.
        record: Turns a module and its inputs into a function that replays it; replaced in tests.
    """

    def __init__(
        self,
        network: nn.Module,
        terms: Terms,
        device: str,
        record: Callable[[nn.Module, Sequence[Tensor]], Replayed] | None = None,
    ) -> None:
        self._network, self._terms, self._device = network, terms, device
        self._record = record
        if record is None and is_accelerator(device):
            self._record = _Recorder(device)
        self._parameters: list[nn.Parameter] | None = None
        self._times: dict[object, int] = {}
        self._replayed: dict[object, Replayed] = {}
        self._names: list[str] = []

    def __call__(self, *given: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and its terms by name; replayed terms have no gradient of their own."""
        replayed = self._replayed_for(given)
        if replayed is None:
            total, terms = self._terms(*given)
            self._names = list(terms)
            return total, terms
        total, *values = replayed(*(one for one in given if one is not None))
        return total, dict(zip(self._names, values, strict=True))

    def _replayed_for(self, given: Sequence[Tensor | None]) -> Replayed | None:
        """Return a function that replays such a batch, recorded if its shapes recur; None if it must be computed."""
        # Replayed gradients lie in memory that the next replay overwrites. Where gradients are summed over parts of a
        # step, only the first part may be replayed.
        if self._record is None:
            return None
        if self._parameters is None:  # once: going through the modules takes longer than a small step on a device
            self._parameters = list(self._network.parameters())
        parameters = self._parameters
        if any(parameter.grad is not None for parameter in parameters):
            return None
        place = parameters[0].data_ptr()  # all of them move together
        shapes = (place, *(None if one is None else (one.shape, one.dtype) for one in given))
        if shapes not in self._replayed and len(self._replayed) < _MOST:
            self._times[shapes] = self._times.get(shapes, 0) + 1
            if self._times[shapes] == _RECURS:
                step = _Step(self._network, self._terms, [one is not None for one in given])
                try:
                    self._replayed[shapes] = self._record(step, [one.clone() for one in given if one is not None])
                except (RuntimeError, AssertionError) as error:  # too little memory, or it cannot be recorded
                    _log.warning(
                        "frevl: %s: training steps are not recorded and so may be slower (%s).",
                        self._device, " ".join(str(error).split())[:120] or type(error).__name__,
                    )  # fmt: skip
                    self._record = None
        return self._replayed.get(shapes)


class _Step(nn.Module):
    """A loss as the module that is recorded: from the tensors that are present to the loss and its terms."""

    def __init__(self, network: nn.Module, terms: Terms, present: Sequence[bool]) -> None:
        super().__init__()
        self.network, self.terms, self.present = network, terms, list(present)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        total, terms = self.terms(*(next(given) if there else None for there in self.present))
        return total, *(term.detach() for term in terms.values())


class _Recorder:
    """Records on one device. All recordings share their working memory: they never run at the same time."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._pool: Any = None  # PyTorch's handle of memory

    def __call__(self, step: nn.Module, inputs: Sequence[Tensor]) -> Replayed:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Trial runs must not change which values dropout removes: an interrupted training records at another step.
        before = torch.cuda.get_rng_state(self._device)
        try:
            with torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False):
                recorded = torch.cuda.make_graphed_callables(
                    step, tuple(inputs), allow_unused_input=True, pool=self._pool
                )
        finally:
            torch.cuda.set_rng_state(before, self._device)
        return cast("Replayed", recorded)
