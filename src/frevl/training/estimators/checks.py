"""Check the arguments of the estimators, which may be of any type."""

from __future__ import annotations

import math
import numbers

__all__ = ["check_seconds", "is_between", "is_whole"]


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
