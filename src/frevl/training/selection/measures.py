"""What ``auto`` compares candidates by, as one number a pair whose mean is the measure.

So one rule serves all measures: means, paired differences and their standard errors by cluster are those of the
numbers. For a measure that is no mean over pairs (macro F1, balanced accuracy) the numbers are its pseudo-values,
measure plus influence: their mean is the measure, and their standard error that of the infinitesimal jackknife (Jaeckel
1972), with whole clusters as units.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.errors import UsageError
from frevl.runs.targets import Answers

__all__ = ["UNITS", "check_measure", "earned", "in_nats", "shown"]

UNITS = {"nll": "hundredths of a nat"}
"""What a difference of a hundredth is called, where it is no point."""

_SMALLEST = 1e-7  # probability


def check_measure(choose_by: str, truth: Answers) -> None:
    """Refuse a measure that the targets do not have.

    Args:
        choose_by: An option of `frevl.training.options.AutoOptions`.
        truth: Answers of all pairs.

    Raises:
        UsageError: Weights of answers have accuracy alone; of several right answers none has an F1 of its own.
    """
    several = bool(((truth.weights > 0).sum(dim=1) > 1).any())
    if choose_by != "accuracy" and (truth.soft or (several and choose_by != "nll")):
        found = "weights of answers" if truth.soft else "pairs with several right answers"
        raise UsageError(f"choose_by={choose_by} needs one right class per pair, found {found}; use choose_by=accuracy")


def earned(choose_by: str, probabilities: Tensor, truth: Answers) -> Tensor:
    """Return ``(n,)`` what predictions earn on each pair; the mean is the measure, and more is better.

    Args:
        choose_by: ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that occur), ``macro_f1`` (as
            `frevl.evaluation.metrics.macro_f1`), or ``nll``: the log-likelihood, its negative, in nats.
        probabilities: ``(n, outputs)``.
        truth: Of the same pairs. A class that training never saw is one more class, and never predicted.
    """
    hits = truth.hits(probabilities.argmax(dim=1))
    if choose_by == "accuracy" or not len(hits):
        return hits
    outputs = probabilities.shape[1]
    if choose_by == "nll":
        right = (truth.dense(torch.arange(len(hits)), outputs) > 0) * probabilities
        return right.sum(dim=1).clamp(min=_SMALLEST).log()
    known = truth.classes.max(dim=1).values
    actual = F.one_hot(known.where(known >= 0, outputs), outputs + 1).double()
    predicted = F.one_hot(probabilities.argmax(dim=1), outputs + 1).double()
    both = actual * predicted
    if choose_by == "balanced_accuracy":
        top, bottom = both, actual
    else:
        top, bottom = 2 * both, actual + predicted
    occurs = bottom.sum(dim=0) > 0
    top, bottom = top[:, occurs], bottom[:, occurs]
    size = bottom.mean(dim=0)
    ratio = top.mean(dim=0) / size
    influence = (top - ratio * bottom) / size  # of a pair on the ratio of every class; its mean is 0
    return (ratio + influence).mean(dim=1).to(hits.dtype)


def shown(choose_by: str, mean: float) -> str:
    """Write down a measure."""
    return f"{-mean:6.3f} nats" if choose_by == "nll" else f"{100 * mean:6.2f} %"


def in_nats(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a table of log-likelihoods with their negative as metric, and everything in nats."""
    keys = ("standard_error", "behind_best", "standard_error_of_difference")
    return [
        {**row, "metric": -row["metric"] / 100, **{key: row[key] / 100 for key in keys}} if "metric" in row else row
        for row in rows
    ]
