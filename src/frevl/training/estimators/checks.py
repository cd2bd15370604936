"""Check the arguments of the estimators, which may be of any type."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_all_given", "check_seconds", "is_between", "is_whole"]


def is_between(value: object, low: float, high: float) -> bool:
    """Return whether a value is a number above ``low`` and below ``high``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return low < float(value) < high


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, of Python or NumPy."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_seconds(limit: object) -> None:
    """Refuse an invalid time limit.

    Args:
        limit: Seconds, or None.

    Raises:
        ValueError: The limit is not a number above 0.
    """
    if limit is not None and not is_between(limit, 0, math.inf):
        raise ValueError(f"time_limit: expected seconds above 0, or None, found {limit!r}")


def check_all_given(name: str, what: str, values: NDArray[Any], remedy: str) -> None:
    """Refuse missing values: None, NaN, NaT, or the NA of pandas, which is neither equal to itself nor different.

    Args:
        name: Name of the argument.
        what: What a row should have.
        values: ``(n,)`` of any type.
        remedy: What to do.

    Raises:
        ValueError: A value is missing.
    """
    missing = np.array([_is_missing(one) for one in values.astype(object)], bool)
    if missing.any():
        raise ValueError(
            f"{name}: expected the {what} of every row, found none in {missing.sum():,} of {len(values):,}, first in "
            f"row {missing.argmax():,}; {remedy}"
        )


def _is_missing(value: object) -> bool:
    different = True if value is None else value != value
    return bool(different) if isinstance(different, bool | np.bool_) else True
