"""Input operations of networks: mean pooling, standardisation, and lower precision if safe."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["ZScore", "bfloat16_on_accelerators", "frozen", "low_precision", "mean_pool", "stored_in_half"]

_LEAST_DEVIATION = 1e-6


def mean_pool(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over the tokens that are not padding.

    Args:
        tokens: ``(n, N, d)``, finite where masked out; or ``(n, d)``, already pooled.
        mask: ``(n, N)`` bool, True where a token exists; without it all exist.

    Returns:
        ``(n, d)``; zero for items without any token. One token is returned unchanged.
    """
    if tokens.dim() == 2:
        return tokens
    if mask is None:
        return tokens[:, 0] if tokens.shape[1] == 1 else tokens.mean(dim=1)
    weights = mask.to(tokens.dtype)
    return torch.einsum("nkd,nk->nd", tokens, weights) / weights.sum(dim=1, keepdim=True).clamp(min=1.0)


class ZScore(NamedTuple):
    """Standardisation: subtract the mean and divide by the standard deviation, dimension by dimension.

    Attributes:
        mean: ``(d,)``, the mean of each dimension.
        scale: ``(d,)``, the standard deviation; infinite where a dimension is constant, which then becomes zero: it
            carries no information, and dividing by its zero deviation would ruin all others.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, values: Tensor) -> ZScore:
        """Measure ``(n, d)`` values; a single row has no deviation."""
        if not values.shape[1]:  # a side that is absent from the pairs
            return cls(values.new_zeros(0), values.new_ones(0))
        deviation, mean = torch.std_mean(values, dim=0, correction=0)
        return cls.from_deviation(mean, deviation)

    @classmethod
    def from_deviation(cls, mean: Tensor, deviation: Tensor) -> ZScore:
        """Take a ``(d,)`` mean and deviation measured elsewhere."""
        return cls(mean, deviation.where(deviation > _LEAST_DEVIATION, torch.inf))

    def __call__(self, values: Tensor) -> Tensor:
        """Standardise ``(..., d)`` values."""
        return (values - self.mean) / self.scale

    def fit(self, values: Tensor) -> None:
        """Measure ``(n, d)`` values and write the result into the existing tensors, which are a network's."""
        with torch.no_grad():
            for own, found in zip(self, ZScore.of(values), strict=True):
                own.copy_(found)


def frozen(*shape: int, fill: float = 0.0) -> nn.Parameter:
    """Return a tensor that is saved with its network and never trained."""
    return nn.Parameter(torch.full(shape, fill), requires_grad=False)


_LARGEST = 6e4  # float16 ends at 65,504


def bfloat16_on_accelerators(device: torch.device | str) -> AbstractContextManager[object]:
    """Use bfloat16 matrix products in training on an NVIDIA device; weights, norms and losses stay in float32."""
    if torch.device(device).type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def low_precision(device: str) -> AbstractContextManager[object]:
    """Use bfloat16 matrix products in training: on NVIDIA devices, and on CPUs with matrix instructions for it (AMX).

    On such a CPU, matrix products are then seven times as fast (research/experiments/log.md); emulated, they would be
    slower than float32. On a CPU, scores are always computed in float32.
    """
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if torch.device(device).type == "cpu" and capabilities.get("amx_bf16", False):
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return bfloat16_on_accelerators(device)


def stored_in_half(module: nn.Module, *, inner: bool = True) -> None:
    """Store the matrices of a module as float16 in its `state_dict`; in memory they stay float32.

    This halves the size of a run. A matrix of unit vectors or of trained weights loses a relative 3e-4 per number, in
    random directions: scores change by less than a thousandth (tested). Vectors (means, biases, scales) stay exact, as
    does a matrix with numbers that float16 cannot hold.

    Args:
        module: Module whose matrices are stored so.
        inner: Whether to include its submodules.
    """
    own = frozenset(name for name, _ in module.named_parameters(recurse=inner))
    module.register_state_dict_post_hook(_Halving(own))  # type: ignore[no-untyped-call]


class _Halving:
    """The hook of `stored_in_half`; a class, so that a network with it can be pickled."""

    def __init__(self, own: frozenset[str]) -> None:
        self.own = own

    def __call__(self, _: nn.Module, state: dict[str, Any], prefix: str, __: object) -> None:
        for name in self.own:
            value = state[prefix + name]
            if value.dim() > 1 and value.dtype == torch.float32 and value.numel() and value.abs().max() < _LARGEST:
                state[prefix + name] = value.half()
