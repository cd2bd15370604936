"""The models compared by a diagnosis, and how each is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MODEL_SPECS", "SMALL", "ModelSpec", "specs_for"]

SMALL = 8_000
"""Maximum number of training pairs for which a kernel takes seconds, and a network needs more regularisation."""

_REGULARISED = {"dropout": 0.4, "weight_decay": 0.2, "batch_size": 128}


@dataclass(frozen=True)
class ModelSpec:
    """A model compared by a diagnosis, and how it is trained.

    Attributes:
        name: Name of the model in the report.
        model: Kind of model, as for `frevl.train`.
        role: ``majority``, ``text`` and ``image`` (one side alone), ``baseline`` or ``fusion``; ``side`` if pairs have
            one side only.
        share: Share of the time limit for its training, in (0, 1).
        changes: Options of the model that differ from the defaults.
        epochs: Maximum passes over 32,000 training pairs or more (see `most_passes`); a diagnosis has minutes, and a
            one-sided model converges much earlier than the fusion. None leaves the default of `frevl.train`.
        without: ``image`` or ``text``: that side is made the same for all pairs, so the model cannot use it.
        sizes: ``small``, ``large`` or ``any``: the numbers of training pairs it is meant for (the limit is `SMALL`).
        tasks: The tasks that it supports.
    """

    name: str
    model: str
    role: str
    share: float
    changes: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    without: str = ""
    sizes: str = "any"
    tasks: tuple[str, ...] = ("classification", "matching")


_CLASSES, _PAIRS = ("classification",), ("matching",)
# The fusion must be compared with the kernel of one side alone: on small sets a kernel learns more from a text than a
# network does, and that difference must not be credited to the image.
MODEL_SPECS = (
    ModelSpec("majority", "majority", "majority", 0.01),
    ModelSpec("text", "text", "text", 0.06, epochs=4),
    ModelSpec("image", "image", "image", 0.08, epochs=4),
    ModelSpec("text kernel", "kernel", "text", 0.1, without="image", sizes="small", tasks=_CLASSES),
    ModelSpec("image kernel", "kernel", "image", 0.1, without="text", sizes="small", tasks=_CLASSES),
    ModelSpec("cosine", "cosine", "baseline", 0.01, tasks=_PAIRS),
    ModelSpec("linear", "linear", "baseline", 0.1),
    ModelSpec("mlp", "mlp", "baseline", 0.22, epochs=12),
    ModelSpec("dual", "dual", "baseline", 0.2, tasks=_PAIRS),
    ModelSpec("kernel", "kernel", "fusion", 0.15, sizes="small", tasks=_CLASSES),
    ModelSpec("tiny regularised", "tiny", "fusion", 0.25, changes=_REGULARISED, sizes="small"),
    ModelSpec("tiny", "tiny", "fusion", 0.38, epochs=12, sizes="large"),
)


def specs_for(sides: Sequence[str]) -> tuple[ModelSpec, ...]:
    """Return the models to compare on pairs with these sides, simplest first.

    Args:
        sides: ``image`` and ``text``, or the only side that the pairs have.
    """
    if len(sides) == 2:
        return MODEL_SPECS
    (side,) = sides
    return (
        MODEL_SPECS[0],
        ModelSpec("linear", "linear", "side", 0.3, tasks=_CLASSES),
        ModelSpec("kernel", "kernel", "side", 0.3, sizes="small", tasks=_CLASSES),
        ModelSpec(side, side, "side", 0.3, epochs=12, tasks=_CLASSES),
    )
