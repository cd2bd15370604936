"""The models that a diagnosis compares, and how each is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["MODEL_SPECS", "SMALL", "ModelSpec", "specs_for"]

SMALL = 8_000
"""Training pairs up to which a kernel takes seconds, and a network needs more regularisation."""

_REGULARISED = {"dropout": 0.4, "weight_decay": 0.2, "batch_size": 128}


@dataclass(frozen=True)
class ModelSpec:
    """A model that a diagnosis compares, and how it is trained.

    Attributes:
        name: In the report.
        model: What `frevl.train` trains.
        role: ``majority``, ``text`` and ``image`` (one side alone), ``baseline`` or ``fusion``; ``side`` where pairs
            have one side only.
        share: Of the time limit that its training may take, in (0, 1).
        changes: Options of the model that differ from the defaults.
        epochs: Most passes over 32,000 training pairs or more (see `most_passes`); a diagnosis has minutes, and a model
            of one side has learned what it can much earlier than the fusion. None leaves the default of `frevl.train`.
        without: ``image`` or ``text``: that side is the same for all pairs, so the model cannot use it.
        sizes: ``small``, ``large`` or ``any``: for how many training pairs it is meant (the border is `SMALL`).
        tasks: The tasks that it can do.
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
# The kernel of one side alone is what the kernel fusion must be compared with: on small sets a kernel learns more from
# a text than a network does, and that difference must not be credited to the image.
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
    """Return the models to compare on pairs that have these sides, the simplest first.

    Args:
        sides: ``image`` and ``text``, or the only one of them that the pairs have.
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
