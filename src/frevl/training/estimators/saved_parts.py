"""What an estimator saves in a run's settings besides its network, as JSON, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.training.options import ModelOptions

__all__ = ["labels_of", "parameters_of", "record_of_labels"]


def record_of_labels(labels: NDArray[Any]) -> dict[str, Any]:
    """Return ``classes`` and ``classes_dtype``; dates are written as text."""
    as_text = labels.dtype.kind in "Mm"
    return {
        "classes": [str(label) if as_text else label.item() if hasattr(label, "item") else label for label in labels],
        "classes_dtype": labels.dtype.str,
    }


def labels_of(settings: Mapping[str, Any]) -> NDArray[Any]:
    """Return the labels of `record_of_labels`; runs of earlier versions have no type of them."""
    found: NDArray[Any] = np.array(settings["classes"], dtype=settings.get("classes_dtype"))
    return found


def parameters_of(given: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Return the parameters of an estimator that can be written as JSON, without arrays.

    Args:
        given: The parameters by name.
        seed: What to write for a generator of random numbers.
    """
    found = {name: _plain(value) for name, value in given.items()}
    if given.get("random_state") is not None and not _is_json(found["random_state"]):
        found["random_state"] = seed
    return {name: value for name, value in found.items() if _is_json(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, ModelOptions):
        value = value.changes()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    return value is None or isinstance(value, str | int | float | bool)
