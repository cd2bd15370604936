"""The hyperparameters of every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """How to train; the fields are arguments of `frevl.train`, which has their defaults."""

    seed: int
    time_limit: float | None
    epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    final_learning_rate: float
    weight_decay: float | None
    warm_up: float | None
    gradient_clip: float
    dropout: float | None
    label_smoothing: float | None
    contrastive_weight: float
    temperature: float
    regularisation_weight: float
    mixup_alpha: float
    mixup_share: float
    standardise: bool
    input_dropout: float
    kernel_teacher: float
    negatives: int
    patience: int
    keep_last: bool
    layers: int | None
    cross_attention: bool
    product: bool
    difference: bool
    device: str
    progress: bool

    def given(self, *names: str) -> dict[str, Any]:
        """Return those of some options that are not None; where one is None, the function called has its own."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}
