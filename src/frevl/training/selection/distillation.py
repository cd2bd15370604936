"""A network that learns from a kernel: part of every target is what the kernel says of a pair it has not seen.

Distillation (Hinton et al. 2015, arXiv 1503.02531) with a closed-form teacher (ours): the kernel fusion scores every
training pair exactly as if its image had been left out, so what it says holds no label by heart, as an in-sample
teacher's answers do. What the two modalities say together is then no longer learnt from one hard label a pair.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from frevl.errors import UsageError
from frevl.runs.calibration import calibrated, fit_calibration
from frevl.runs.targets import Answers
from frevl.training.examples import Examples

__all__ = ["taught"]


def taught(train: Examples, held_out: Tensor, share: float) -> Examples:
    """Mix the truth with what a teacher says.

    Args:
        train: Examples of a classification.
        held_out: ``(n, outputs)`` scores of the same pairs, each by a teacher that has not seen its cluster.
        share: Of the target that comes from the teacher, in [0, 1].

    Returns:
        The same pairs, with the answer ``(1 - share) truth + share teacher`` in every class. The teacher is
        calibrated on them first. Pairs without a known answer still ask for nothing.

    Raises:
        UsageError: The examples are of matching.
    """
    truth = train.truth
    if not isinstance(truth, Answers):
        raise UsageError("--kernel-teacher belongs to --task classification: the kernel does no matching")
    outputs = held_out.shape[1]
    said = calibrated(held_out, fit_calibration(held_out, truth), soft=truth.soft)
    weights = truth.dense(torch.arange(len(train)), outputs)
    total = weights.sum(dim=1, keepdim=True)
    if not truth.soft:
        weights = weights / total.clamp(min=1e-9)  # one answer a pair, shared among the right ones
    mixed = ((1 - share) * weights + share * said) * (total > 0)
    every = torch.arange(outputs).expand(len(train), -1)
    return replace(train, truth=Answers(every, mixed.float(), truth.soft))
