"""Reword the sentences of a training for arrays, and warn of what the rows themselves show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["contradiction", "in_terms_of_arrays", "without_weight"]

_TARGET = re.compile(r'\("(\d+)"\)(?=: the best epoch)')
_REMEDY = re.compile(r"give [^;.]*?with --dev(?! file)")
_METHOD = re.compile(r"--(method|model) (\w+)")
_FLAG = re.compile(r"--([a-z][a-z-]*)")


def in_terms_of_arrays(sentence: str, classes: NDArray[Any] | Sequence[Any] = ()) -> str:
    """Replace files and flags of the command line by rows and parameters, and numbers of classes by their labels.

    Args:
        sentence: A message about pairs of a file.
        classes: The labels, in the order of ``classes_``.
    """
    said = sentence.removeprefix(": ")
    said = _TARGET.sub(lambda found: f"('{classes[int(found[1])]}')", said)
    said = _REMEDY.sub("fit on rows of more groups", said)
    said = _METHOD.sub(r"\1='\2'", said)
    return _FLAG.sub(lambda found: found[1].replace("-", "_"), said)


def contradiction(numbers: NDArray[np.int64], labels: NDArray[np.int64]) -> list[str]:
    """Return a note if equal rows have different labels, which no classifier can get right.

    Args:
        numbers: ``(n,)`` as from `equal_rows`.
        labels: ``(n,)`` class numbers.
    """
    if len(numbers) == numbers.max(initial=-1) + 1:
        return []
    pairs = np.unique(np.stack([numbers, labels], axis=1), axis=0)
    several = np.flatnonzero(np.bincount(pairs[:, 0]) > 1)
    count = int(np.isin(numbers, several).sum())
    if not count:
        return []
    return [
        f"{count:,} of {len(numbers):,} rows equal rows of other classes, so no classifier can get all of them right."
    ]


def without_weight(labels: NDArray[Any], kept: NDArray[np.bool_]) -> list[str]:
    """Return a warning about classes that have only rows of weight 0, which do not count.

    Args:
        labels: ``(n,)`` labels of all rows.
        kept: ``(n,)`` whether a row has a weight above 0.
    """
    lost = np.setdiff1d(labels, labels[kept])
    if not len(lost):
        return []
    return [
        f"{len(lost):,} of {len(np.unique(labels)):,} classes have only rows of weight 0 and are therefore not among "
        f"classes_, first '{lost[0]}'."
    ]
