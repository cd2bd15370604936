"""Fit the linear probe to few pairs: folds choose its penalty and calibrate it, and it is fitted to all of them.

Ten pairs set aside from a hundred can choose nothing, and would be missing from the fit. The fits without each fold and
the fit to all pairs are solved together, as one problem whose outputs are those of all fits side by side: on so few
pairs, a step of L-BFGS costs the same for six fits as for one. The combination is ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from frevl.models.baselines import Linear, best_of_path
from frevl.models.classification.linear_problem import LEAST_CURVATURE, principal_directions
from frevl.models.interface import PairNetwork
from frevl.runs.batches import list_logits
from frevl.runs.calibration import fit_calibration
from frevl.runs.targets import Answers, class_weights_of
from frevl.training.examples import Examples, join
from frevl.training.fitting.linear_probe import all_features, mean_loss
from frevl.training.options import LinearOptions, Session
from frevl.training.run_folder import Checkpoint

__all__ = ["MOST_FOLDED", "FoldFits", "HeldOut", "fit_again_by_folds", "fit_linear_by_folds", "is_folded"]

MOST_FOLDED = 1_000
"""Pairs up to which the linear probe is fitted by folds."""

_MOST_LOGITS = 30_000  # pairs times classes; with more, folds would take longer than what they are compared with

_FOLDS = 5
_ENOUGH = 1e-3  # share of the loss that a step must promise while penalties are compared
# The same for the last fits. Closer to the optimum they take half as long again, and are no better: on five sets of 100
# to 1,000 pairs, accuracy, calibration error and log loss were 0.04 and 0.1 points and 0.003 worse.
_ENOUGH_AT_LAST = 1e-4
_IMPOSSIBLE = -1e4  # a logit that no other is near; not infinite, since 0 times infinity is no number


class HeldOut(NamedTuple):
    """Scores of pairs by a fit without their fold.

    Attributes:
        logits: ``(n, outputs)`` logits.
        truth: The right answers.
        clusters: ``(n,)`` int64, as in `frevl.training.examples.Examples`.
    """

    logits: Tensor
    truth: Answers
    clusters: Tensor


@dataclass(frozen=True)
class FoldFits:
    """The fits without each fold, as networks.

    Attributes:
        networks: One for each fold.
        examples: ``m`` pairs, each with a right answer that the fit without its fold has seen.
        folds: ``(m,)`` int64, the fold of each pair.
        seen: ``(folds, outputs)``, whether the fit without a fold has seen a class.
    """

    networks: tuple[Linear, ...]
    examples: Examples
    folds: Tensor
    seen: Tensor

    def logits(self, change: Callable[[PairNetwork], PairNetwork]) -> Tensor:
        """Return ``(m, outputs)`` logits of every pair by the changed network that was fitted without its fold."""
        found = torch.zeros(len(self.examples), self.seen.shape[1])
        for fold, network in enumerate(self.networks):
            rows = (self.folds == fold).nonzero()[:, 0]
            if len(rows):
                found[rows] = list_logits(change(network), self.examples.select(rows).pairs, 1024)
        return _with_lowest(found, self.seen[self.folds])


def is_folded(train: Examples, dev: Examples, outputs: int, *, dev_is_spare: bool) -> bool:
    """Return whether these pairs are so few that `fit_linear_by_folds` fits them, including the development part."""
    count = len(train) + len(dev)
    return (
        dev_is_spare
        and isinstance(train.truth, Answers)
        and not train.truth.soft
        and count <= MOST_FOLDED
        and count * outputs <= _MOST_LOGITS
        and len(torch.unique(torch.cat([train.clusters, dev.clusters]))) >= _FOLDS
    )


def fit_linear_by_folds(
    network: Linear, train: Examples, dev: Examples, options: LinearOptions, session: Session, checkpoint: Checkpoint
) -> HeldOut:
    """Fit the linear probe to the pairs of both parts; return their scores by the fits without them.

    Args:
        network: The network to fit.
        train: Pairs for which `is_folded` holds.
        dev: The development pairs that were set aside from them.
        options: Options of the probe.
        session: Seed and time limit.
        checkpoint: Where the fit is saved.
    """
    started, examples = checkpoint.clock.seconds(), join(train, dev)
    truth = _answers(examples)
    weights = class_weights_of(truth, network.linear.out_features, options.class_weight)
    saved = checkpoint.load()
    if saved is None:
        ends = float("inf") if session.time_limit is None else time.monotonic() + session.time_limit
        solved = _solved(network, examples, weights, session.seed, ends)
        rows, logits = solved.rows, solved.logits
        state = {**network.state_dict(), **dict(zip(_HELD_OUT, (rows, logits), strict=True))}
        checkpoint.save(state, {"seconds": checkpoint.clock.seconds() - started, "notes": []})
    else:
        rows, logits = (saved[0].pop(name) for name in _HELD_OUT)
        network.load_state_dict(saved[0])
    return HeldOut(logits, truth.select(rows), examples.clusters[rows])


_HELD_OUT = ("held_out_rows", "held_out_logits")


def fit_again_by_folds(
    train: Examples, dev: Examples, former: PairNetwork, options: LinearOptions, seed: int
) -> FoldFits:
    """Repeat the fits of `fit_linear_by_folds` to keep those without each fold, which a run does not hold.

    Args:
        train: Training pairs of a run.
        dev: The development pairs that its training set aside.
        former: The network of that run, for its sizes.
        options: Options of its training.
        seed: Its seed.

    Raises:
        ValueError: These fits do not lead to that network, so they are not those of its training.
    """
    again = Linear(**former.settings)
    examples = join(train, dev)
    weights = class_weights_of(_answers(examples), again.linear.out_features, options.class_weight)
    solved = _solved(again, examples, weights, seed, float("inf"))
    own, found = (list_logits(one, examples.pairs, 1024).softmax(dim=1) for one in (former, again.eval()))
    if float((own - found).abs().max()) > _SAME:
        raise ValueError("other fits than those of the training")
    networks = []
    for weight, bias in zip(solved.weights[:-1], solved.biases[:-1], strict=True):
        network = Linear(**former.settings)
        network.load_state_dict({**again.state_dict(), "linear.weight": weight, "linear.bias": bias})
        networks.append(network.eval())
    return FoldFits(tuple(networks), examples.select(solved.rows), solved.folds[solved.rows], solved.seen[:-1])


_SAME = 0.01  # largest difference between probabilities of two fits to the same pairs, such as on two machines


def _answers(examples: Examples) -> Answers:
    """Return the answers of a classification."""
    if not isinstance(examples.truth, Answers):
        raise TypeError("pairs of a matching are not fitted by folds")
    return examples.truth


class _Solved(NamedTuple):
    """All fits side by side.

    Attributes:
        rows: ``(m,)`` pairs that the fit without their fold can answer.
        logits: ``(m, outputs)`` their logits by that fit.
        folds: ``(n,)`` int64, the fold of each pair.
        seen: ``(fits, outputs)``, whether a fit has seen a class; the last fit has all pairs.
        weights: ``(fits, outputs, features)``.
        biases: ``(fits, outputs)``.
    """

    rows: Tensor
    logits: Tensor
    folds: Tensor
    seen: Tensor
    weights: Tensor
    biases: Tensor


def _solved(network: Linear, examples: Examples, class_weights: Tensor | None, seed: int, ends: float) -> _Solved:
    """Fit the network; return it with the fits without each fold.

    Pairs are left out if the fit without their fold has seen none of their right answers; the fit to all pairs has.
    """
    features, outputs = all_features(network, examples), network.linear.out_features
    shares = _answers(examples).dense(torch.arange(len(examples)), outputs)
    shares /= shares.sum(dim=1, keepdim=True).clamp(min=1e-9)
    each = torch.ones(len(examples)) if class_weights is None else shares @ class_weights
    folds = _folds(examples, seed)
    problem = _SideBySide(features, shares, each, folds, ends)
    rows = (shares * problem.seen[folds]).sum(dim=1).nonzero()[:, 0]
    judged = examples.select(rows)

    def calibrated_likelihood(weight: Tensor, bias: Tensor) -> float:
        logits = problem.held_out(weight, bias)[rows]
        calibration = fit_calibration(logits, judged.truth, shrink=False)
        return -mean_loss(network, judged, class_weights, calibration["scale"] * logits + calibration["offset"])

    start = network.linear.bias.detach().repeat(_FOLDS + 1)
    _, weight, bias = best_of_path(
        problem, start, calibrated_likelihood, enough=_ENOUGH, enough_at_last=_ENOUGH_AT_LAST, ends=ends
    )
    weights, biases = weight.view(_FOLDS + 1, -1, weight.shape[1]), bias.view(_FOLDS + 1, -1)
    weights = weights if problem.directions is None else weights @ problem.directions.T
    with torch.no_grad():
        network.linear.weight.copy_(weights[-1])
        network.linear.bias.copy_(biases[-1])
    return _Solved(rows, problem.held_out(weight, bias)[rows], folds, problem.seen, weights, biases)


def _with_lowest(logits: Tensor, seen: Tensor) -> Tensor:
    """Return ``(n, outputs)`` logits in which classes that are not seen have the lowest of the others."""
    lowest = logits.masked_fill(~seen, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(seen, logits, lowest)


def _folds(examples: Examples, seed: int) -> Tensor:
    """Return ``(n,)`` int64: the fold of each pair. Clusters stay whole, and those of a class are dealt in turn."""
    clusters, of_pairs = torch.unique(examples.clusters, return_inverse=True)
    first = torch.full((len(clusters),), len(of_pairs)).scatter_reduce(
        0, of_pairs, torch.arange(len(of_pairs)), reduce="amin"
    )
    order = torch.randperm(len(clusters), generator=torch.Generator().manual_seed(seed))
    order = order[_answers(examples).classes[first[order], 0].sort(stable=True).indices]
    folds = torch.empty_like(order)
    folds[order] = torch.arange(len(order)) % _FOLDS
    return folds[of_pairs]


class _SideBySide:
    """The losses of the fits without each fold, and of the fit to all pairs, as one `LinearProblem` of their sum.

    The fits share no weight, so the minimum of the sum is that of each.

    Attributes:
        directions: See `frevl.models.classification.linear_problem.LinearProblem`.
        variances: See there.
        seen: ``(fits, outputs)``, whether a fit has pairs of a class; those without are no part of it, because their
            biases would have no lower bound.
    """

    def __init__(self, features: Tensor, shares: Tensor, each: Tensor, folds: Tensor, ends: float) -> None:
        """Rotate the features to their principal directions.

        Args:
            features: ``(n, features)``, standardised.
            shares: ``(n, outputs)`` shares of the right answers.
            each: ``(n,)`` weights of the pairs.
            folds: ``(n,)`` int64, the fold of each pair.
            ends: `time.monotonic` time by which the fit must be finished.
        """
        self.directions, self.variances = principal_directions(features, len(features), ends)
        self._features = features if self.directions is None else features @ self.directions
        self._shares, self._totals, self._folds = shares.T.contiguous(), shares.sum(dim=1), folds
        # Of every pair in every fit: its weight over the number of pairs in the fit, 0 in that without its fold.
        inside = torch.arange(_FOLDS + 1)[:, None] != folds
        self._counts = inside.sum(dim=1)
        self._each = each * inside / self._counts[:, None]
        self.seen = inside.to(shares.dtype) @ (shares > 0).to(shares.dtype) > 0

    def value(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return the sum of the mean losses and its gradients."""
        logs = self._logs(weight, bias)
        loss = -((self._shares * logs).sum(dim=1) * self._each).sum()
        residuals = self._residuals(logs).flatten(0, 1)
        return loss.item(), residuals @ self._features, residuals.sum(dim=1)

    def curvature(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the curvature of the loss in each logit, ``(outputs of all fits,)``."""
        squares = self._residuals(self._logs(weight, bias)).square().sum(dim=2) * self._counts[:, None]
        return squares.flatten().clamp(min=LEAST_CURVATURE)

    def held_out(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the ``(n, outputs)`` logits of every pair by the fit without its fold.

        A class that a fit has not seen gets the lowest logit of the others.
        """
        logits = self._logits(weight, bias)[self._folds, :, torch.arange(len(self._folds))]
        return _with_lowest(logits, self.seen[self._folds])

    def _logits(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return ``(fits, outputs, n)``: with the pairs last, the sums over a few classes are several times as fast."""
        return torch.addmm(bias[:, None], weight, self._features.T).view(_FOLDS + 1, -1, len(self._features))

    def _logs(self, weight: Tensor, bias: Tensor) -> Tensor:
        return self._logits(weight, bias).masked_fill_(~self.seen[:, :, None], _IMPOSSIBLE).log_softmax(dim=1)

    def _residuals(self, logs: Tensor) -> Tensor:
        """Return the gradient of the sum with respect to the logits, ``(fits, outputs, n)``."""
        return (logs.exp() * self._totals - self._shares).mul_(self._each[:, None])
