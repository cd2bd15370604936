"""From logits to calibrated probabilities: one scale, and for matching one offset, fitted on held-out data.

Temperature scaling is Guo et al. 2017, "On Calibration of Modern Neural Networks"; with an offset it is Platt 1999, who
also softens the truth so that few pairs cannot prove certainty. We soften it as Laplace's rule of succession does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.models.classification.minimise import minimise
from frevl.runs.targets import Answers

__all__ = ["FEWEST_PAIRS", "calibrated", "calibration_notes", "fit_calibration"]

FEWEST_PAIRS = 50
"""Development pairs below which a run says that it is hardly calibrated."""

# What a fit must gain, in twice the log-likelihood, before any of it is kept: 4 is about what chance gives one
# temperature in one of twenty sets. Scale and offset together are steadied by the softened truth, too. Measured on
# made networks that are calibrated already, with 20 pairs: without this a third of the fits made the ECE worse by
# 5 points or more; with it one in fifty of several classes and one in twenty of two outcomes.
_CHANCE = {"binary": 2.0, "classes": 4.0}
_MOST_PAIRS = 20_000  # two numbers are fitted: more pairs only cost memory
# Pairs of unknown truth, assumed in addition to the real ones: after 18 right decisions of 18, the next one has the
# probability (18 + 1) / (18 + 2), not 1.
_UNKNOWN_PAIRS = 2


def calibrated(logits: Tensor, calibration: dict[str, float], *, soft: bool) -> Tensor:
    """Turn logits into probabilities.

    Args:
        logits: ``(n, 1)`` for matching, ``(n, classes)`` for classification.
        calibration: ``scale`` and ``offset``.
        soft: True where every class has a probability of its own (soft targets), as for matching.

    Returns:
        Probabilities of the shape of the logits; they sum to one over the classes unless ``soft``.
    """
    scale, offset = calibration["scale"], calibration["offset"]
    adjusted = logits if (scale, offset) == (1.0, 0.0) else logits * scale + offset
    return adjusted.sigmoid() if soft else adjusted.softmax(dim=1)


def fit_calibration(logits: Tensor, target: Tensor | Answers, *, shrink: bool = True) -> dict[str, float]:
    """Fit scale (and offset, for matching and soft targets) on development data by maximum likelihood.

    The truth is softened to ``(n truth + 1) / (n + 2)`` for two outcomes, ``(n truth + 2 / classes) / (n + 2)`` for
    classes, where n counts the decisions: Platt 1999, section 2.2, without the split by class. It matters where few or
    separable pairs would lead to certainty, and vanishes as n grows.

    Of the fit, the share ``1 - c / gain`` is kept (none if that is negative), where gain is twice the log-likelihood
    that it adds and c is what chance adds: few pairs change nothing unless they are very clear. This is shrinkage as of
    James and Stein 1961, with constants of ours.

    Args:
        logits: ``(n, outputs)`` on pairs that were not trained on.
        target: ``(n,)`` 0 or 1 for matching, or the answers of a classification.
        shrink: Keep that share. False keeps all: to weigh networks against each other, where nobody reads a
            probability, a noisy scale is better than the one by which a network overrates itself.

    Returns:
        ``{"scale": positive, "offset": any}``; scale 1 and offset 0 if the data do not determine them (no pair has a
        known answer, or the fit diverges).
    """
    if len(logits) > _MOST_PAIRS:
        rows = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))[:_MOST_PAIRS]
        logits, target = logits[rows], target[rows] if isinstance(target, Tensor) else target.select(rows)
    logits = logits.detach().double()
    binary = isinstance(target, Tensor) or target.soft
    if isinstance(target, Tensor):
        truth = target.double()[:, None]
    else:
        truth = target.dense(torch.arange(len(logits)), logits.shape[1]).double()
        if not target.soft:
            known = truth.sum(dim=1) > 0
            logits, truth = logits[known], truth[known] / truth[known].sum(dim=1, keepdim=True)
    if len(logits) == 0:
        return {"scale": 1.0, "offset": 0.0}
    decisions, outcomes = (truth.numel(), 2) if binary else truth.shape
    truth = (decisions * truth + _UNKNOWN_PAIRS / outcomes) / (decisions + _UNKNOWN_PAIRS)

    def evaluate(point: Tensor) -> tuple[float, Tensor]:
        point = point.clone().requires_grad_()
        log_scale, offset = point.unbind()
        adjusted = logits * log_scale.exp() + (offset if binary else 0.0)
        fit = F.binary_cross_entropy_with_logits(adjusted, truth) if binary else F.cross_entropy(adjusted, truth)
        # Logits that are all the same fit every scale: it then stays at 1.
        value = fit + 1e-3 * (log_scale.square() + offset.square())
        return value.item(), torch.autograd.grad(value, point)[0]

    found = minimise(evaluate, torch.zeros(2, dtype=torch.double), steps=100, tolerance=1e-7)
    scale, shift = found[0].exp().item(), found[1].item()
    if not torch.isfinite(found).all():
        return {"scale": 1.0, "offset": 0.0}
    if not shrink:
        return {"scale": scale, "offset": shift}
    fit = F.binary_cross_entropy_with_logits if binary else F.cross_entropy
    gain = 2 * decisions * (fit(logits, truth) - fit(logits * scale + shift, truth)).item()
    kept = max(0.0, 1 - _CHANCE["binary" if binary else "classes"] / gain) if gain > 0 else 0.0
    return {"scale": scale**kept, "offset": shift * kept}


def calibration_notes(pairs: int) -> list[str]:
    """Return a note if there were too few development pairs to calibrate on."""
    if pairs >= FEWEST_PAIRS:
        return []
    return [
        f"Hardly calibrated: {pairs:,} development pairs can show only a large error of the probabilities; give at "
        f"least {FEWEST_PAIRS} with --dev where they matter."
    ]
