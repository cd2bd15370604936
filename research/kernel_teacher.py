"""Distillation from the kernel: part of every target is what the kernel predicts for a pair it has not seen.

Distillation (Hinton et al. 2015, arXiv 1503.02531) with a closed-form teacher (ours): the kernel fusion scores every
training pair exactly as if its image had been left out, so a prediction never repeats a memorised label, as those of an
in-sample teacher do. It helped with all layers of the text and not with the last one (experiments/log.md), so it
is not part of the product; ``research/fusion_ideas.py`` measures it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from frevl.errors import TrainingError, UsageError
from frevl.models.kernel_ridge import MOST_PAIRS
from frevl.runs.calibration import calibrated, fit_calibration
from frevl.runs.targets import Answers
from frevl.training.examples import Examples
from frevl.training.fitting.fit_model import fit_kernel_on

__all__ = ["distil", "teach"]


def teach(train: Examples, outputs: int, weight: float) -> Examples:
    """Mix the truth with what a kernel predicts that is fitted on these very pairs, each without its image.

    Args:
        train: Training examples of a classification.
        outputs: Number of classes.
        weight: Share of the targets that comes from the kernel, in [0, 1].

    Raises:
        TrainingError: There are too many pairs for a kernel.
        UsageError: The examples are of matching, or the weight is not a share.
    """
    if not 0 <= weight <= 1:
        raise UsageError(f"The weight of the kernel must be from 0 to 1, found {weight}")
    if len(train) > MOST_PAIRS:
        raise TrainingError(f"A kernel takes at most {MOST_PAIRS:,} training pairs, found {len(train):,}")
    with torch.autocast("cpu", enabled=False):  # the caller may train in half precision; nothing is solved in it
        return distil(train, fit_kernel_on(train, outputs)[1].held_out, weight)


def distil(train: Examples, held_out: Tensor, weight: float) -> Examples:
    """Mix the truth with the predictions of a teacher.

    Args:
        train: Examples of a classification.
        held_out: ``(n, outputs)`` scores of the same pairs, each by a teacher that has not seen its cluster.
        weight: Share of the targets that comes from the teacher, in [0, 1].

    Returns:
        The same pairs, with the answer ``(1 - weight) truth + weight teacher`` in every class. The teacher is
        calibrated on them first. Pairs without a known answer still ask for nothing.

    Raises:
        UsageError: The examples are of matching.
    """
    truth = train.truth
    if not isinstance(truth, Answers):
        raise UsageError("A kernel teaches classification only, found examples of matching")
    outputs = held_out.shape[1]
    predicted = calibrated(held_out, fit_calibration(held_out, truth), soft=truth.soft)
    weights = truth.dense(torch.arange(len(train)), outputs)
    total = weights.sum(dim=1, keepdim=True)
    if not truth.soft:
        weights = weights / total.clamp(min=1e-9)  # one answer per pair, shared among the right ones
    mixed = ((1 - weight) * weights + weight * predicted) * (total > 0)
    every = torch.arange(outputs).expand(len(train), -1)
    return replace(train, truth=Answers(every, mixed.float(), truth.soft))
