"""A simulated NVIDIA card: the real code runs on tensors that have a device, a type and a shape, but no numbers.

Tensors of different devices do not mix, float16 products have the types of a card, and every operation that waits for
the card is counted. Gradients cannot be computed: PyTorch's engine needs the real driver.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CARD = "cuda:0"
_FREE = 100 << 30
_COPIES = ("aten::to", "aten::_to_copy", "aten::copy_")
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::linear", "aten::_addmm_activation")


class Waits(TorchDispatchMode):
    """Counts the operations for which a processor waits for the card.

    Attributes:
        back: Copies from the card, each of which waits for all that was started.
        unpinned: Copies to the card from memory that is not page-locked.
        products: Matrix products on the card.
        divided: Those that add to another product, or to a bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.back = self.unpinned = self.products = self.divided = 0
        self.card = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function._schema.name, kwargs or {}
        if not any(map(_of_card, tree_leaves((args, kwargs)))):  # tensors of the processor keep their numbers
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        if name == "aten::_local_scalar_dense":
            self.back += 1
            return 1.0
        into = name == "aten::copy_"
        if name in _COPIES and not (kwargs.get("non_blocking", False) or (into and args[2:] == (True,))):
            source = args[1] if into else args[0]
            target = args[0].device if into else kwargs.get("device") or source.device
            self.back += source.is_cuda and target.type == "cpu"
            self.unpinned += target.type == "cuda" and not source.is_cuda
        self.products += name in _PRODUCTS
        self.divided += name in ("aten::addmm", "aten::addmm_")
        args, kwargs = tree_map_only(torch.Tensor, self._without_numbers, (args, kwargs))
        return function(*args, **kwargs)

    def _without_numbers(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.card.from_tensor(tensor)


def _of_card(one: object) -> bool:
    return isinstance(one, FakeTensor) or (isinstance(one, torch.device) and one.type == "cuda")


def _apply(module: nn.Module, change, recurse: bool = True) -> nn.Module:
    """`nn.Module._apply` for tensors that cannot be exchanged in place."""
    for child in module.children():
        _apply(child, change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module


_ORIGINAL = torch.Tensor.__getitem__, torch.Tensor.__setitem__


def _get(tensor: torch.Tensor, key: object) -> torch.Tensor:
    """`Tensor.__getitem__`, which asks the driver for the card even of tensors without numbers."""
    if not tensor.is_cuda:
        return _ORIGINAL[0](tensor, key)
    keys, at = key if isinstance(key, tuple) else (key,), 0
    numbers: list[torch.Tensor | None] = []
    for place, one in enumerate(keys):
        if one is None:
            tensor = tensor.unsqueeze(at)
        elif one is Ellipsis:
            at = tensor.dim() - sum(other is not None for other in keys[place + 1 :]) - 1
        elif isinstance(one, int):
            tensor, at = tensor.select(at, one), at - 1
        elif isinstance(one, slice):
            tensor = torch.ops.aten.slice(tensor, at, one.start, one.stop, one.step or 1)
        else:
            numbers += [None] * (at - len(numbers)) + [one]
        at += 1
    return torch.ops.aten.index(tensor, numbers) if numbers else tensor


def _set(tensor: torch.Tensor, key: object, value: torch.Tensor) -> None:
    """`Tensor.__setitem__`, likewise."""
    if not tensor.is_cuda:
        _ORIGINAL[1](tensor, key, value)
    else:
        torch.ops.aten.copy_(_get(tensor, key), value)


@contextlib.contextmanager
def card() -> Iterator[Waits]:
    """Let ``cuda:0`` be a device of this machine, and count what waits for it."""
    empty, waits = torch.empty, Waits()

    def numbers(tensor):
        waits.back += 1
        return np.zeros(tensor.shape).tolist()

    def unlocked(*shape, pin_memory=False, **more):
        return empty(*shape, **more)

    with (
        mock.patch.object(torch.cuda, "mem_get_info", return_value=(_FREE, _FREE)),
        mock.patch.object(torch.Tensor, "pin_memory", lambda self: self),
        mock.patch.object(FakeTensor, "tolist", numbers),
        mock.patch.object(FakeTensor, "data_ptr", lambda self: id(self)),
        mock.patch.object(torch.Tensor, "numpy", lambda self: np.zeros(self.shape, np.float32)),
        mock.patch.object(torch, "empty", unlocked),
        mock.patch.object(torch.cuda, "_lazy_init"),
        mock.patch.object(torch.cuda, "device", return_value=contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "Event", mock.MagicMock),
        mock.patch.object(nn.Module, "_apply", _apply),
        mock.patch.object(torch.Tensor, "__getitem__", _get),
        mock.patch.object(torch.Tensor, "__setitem__", _set),
        mock.patch.object(torch.Tensor, "__invert__", lambda self: torch.bitwise_not(self)),
        waits.card,
        warnings.catch_warnings(),
        waits,
    ):
        warnings.filterwarnings("ignore", message="User provided device_type of 'cuda', but CUDA is not available")
        yield waits
