"""Begin a fusion with what another one has learnt: captions or made lessons first, the task afterwards.

A few thousand labelled pairs are too few to learn which words belong to which pictures; captions of other photos, or
statements whose truth is known, can teach it, and the task then starts from there (numbers in docs/experiments.md).
Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frevl.errors import UsageError
from frevl.fusion import PRESETS, Fusion

__all__ = ["Beginning", "begin_with", "rows_of_same_classes"]

_LAST = ("head.outer.weight", "head.outer.bias")  # the map to the logits: other classes, another meaning


@dataclass(frozen=True)
class Beginning:
    """A trained fusion that another one begins with.

    Attributes:
        network: The trained fusion; takes plain embeddings.
        rows: ``(outputs,)`` int64, for every class of the new task the output of the same class here; None if the
            classes are others.
        seen: How many images of the new pairs it has learnt from.
    """

    network: Fusion
    rows: Tensor | None
    seen: int

    @property
    def preset(self) -> str:
        """The preset that it has the width of."""
        return next(name for name, sizes in PRESETS.items() if sizes["width"] == self.network.settings["width"])

    @property
    def shape(self) -> dict[str, int | float | bool]:
        """The options of a fit that give a fusion of its shape."""
        names = ("layers", "cross_attention", "product", "difference")
        return {name: self.network.settings[name] for name in names}


def rows_of_same_classes(classes: Sequence[str], former: Sequence[str]) -> Tensor | None:
    """Return where every class stands among the former ones; None if they are not the same classes."""
    if sorted(classes) != sorted(former):
        return None
    return torch.tensor([list(former).index(name) for name in classes])


def begin_with(network: Fusion, start: Beginning) -> None:
    """Copy all weights of a trained fusion; those of its last map only where the classes are the same.

    Args:
        network: Changed in place; takes plain embeddings afterwards, as the trained one does.
        start: Of the same sizes, apart from outputs and dropout.

    Raises:
        UsageError: Another size or shape of the fused feature.
    """
    own, others = network.settings, start.network.settings
    for name, value in own.items():
        if name not in ("outputs", "dropout") and value != others[name]:
            raise UsageError(
                f"--start-from: expected a fusion whose {name} is {value}, found {others[name]}; train both with the "
                "same encoders, --model and --layers"
            )
    weights, fresh = start.network.state_dict(), network.state_dict()
    for name in _LAST:
        weights[name] = fresh[name] if start.rows is None else weights[name][start.rows]
    network.load_state_dict(weights)
