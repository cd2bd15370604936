"""Turn scores into the probability that a line is right, without labels of wrong lines. Pure numpy.

This is the two-groups model (Efron 2010, "Large-Scale Inference", chapter 5): the scores of given lines are a mixture,
``f = wrong_share * f0 + (1 - wrong_share) * f1``. The score distribution of wrong lines, ``f0``, is known: texts of
other images are drawn and scored by the same model. So ::

    P(right | score) = 1 - wrong_share * f0(score) / f(score)

The ratio is that of a classifier between drawn and given lines (Elkan and Noto 2008), here isotonic in the score. The
share is the smallest ratio of the two distribution functions in the lower tail, where right lines are rare (Blanchard,
Lee and Scott 2010); if they are not rare there, it is an upper bound.

Wrong texts taken from similar images look like right ones, and count as right. The same ratio against texts drawn from
similar images is no upper bound for them: a model trained on such lines takes them for right ones
(research/experiments/log.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mixture", "clustered_mean", "fit_mixture", "share_interval"]

_TAIL = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5])  # quantiles of the wrong lines at which the share is read
_FEWEST = 60  # lines expected below such a quantile if all were wrong: the minimum of noisy ratios is too low
_STRICT = 0.005  # weight of a plain logistic curve in every probability, which breaks ties
_SURE = 1.96  # standard errors added to each bound before the bounds are compared
_OF_NONE = 1.5  # lines, the minimum error of a count: finding none does not prove that there are none
_AT_ONCE = 65_536
_REACH = 2.5  # standard errors; for the tightest of several bounds, 1.96 covered only 85 to 96 % in simulations


@dataclass(frozen=True)
class Mixture:
    """Probabilities derived from a set of scores.

    Attributes:
        right: ``(n,)`` probability of every given line being right.
        even: ``(n,)`` the same at equal odds, for lines that are not sampled from the given ones.
        wrong_share: Share of wrong lines among the given ones, in [0, 1].
        standard_error: Standard error of that share, with groups as units.
        most: Upper bound of the share, from the wrong lines whose text the model learned elsewhere; 0 if unknown.
    """

    right: NDArray[np.float64]
    even: NDArray[np.float64]
    wrong_share: float
    standard_error: float
    most: float = 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        """Return the interval of the wrong share."""
        low, high = share_interval(self.wrong_share, self.standard_error)
        return low, min(1.0, max(self.most, high))


def share_interval(share: float, standard_error: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of wrong lines, within [0, 1]."""
    reach = _REACH * standard_error
    return max(0.0, share - reach), min(1.0, share + reach)


def fit_mixture(
    given: NDArray[np.float64],
    drawn: NDArray[np.float64],
    groups: NDArray[np.int64],
    drawn_groups: NDArray[np.int64],
    learned: tuple[NDArray[np.float64], NDArray[np.int64]] | None = None,
    *,
    errors_added: float = 0.0,
) -> Mixture:
    """Separate right lines from wrong ones.

    Args:
        given: ``(n,)`` scores of the lines.
        drawn: ``(m,)`` scores of drawn wrong lines by the same models.
        groups: ``(n,)`` group of every line; lines of one group are not independent.
        drawn_groups: ``(m,)`` the same for the drawn ones.
        learned: ``(k,)`` scores and groups of wrong lines whose text the model has learned elsewhere, or None. A wrong
            text comes from an image of which the model mostly knows other texts, so it scores between these and the
            drawn ones: they bound the share from above.
        errors_added: Standard errors added to every estimate of the share before the smallest is taken for the
            probabilities. If the estimate is below half of the true share, no line is more likely wrong than right, and
            with few lines it often is. The share that is returned is without these.
    """
    ratio = _ratio(given, drawn)
    estimates = _estimates(given, drawn, groups, drawn_groups)
    share, error = _wrong_share(estimates)
    assumed = min([1.0, *(one + errors_added * of_one for one, of_one in estimates)]) if errors_added else share
    right = 1 - np.clip(assumed * ratio, 0.0, 1.0)
    # An isotonic fit is stepwise constant; this keeps better-scoring lines ahead.
    middle, width = float(drawn.mean()), max(float(drawn.std()), 1e-9)
    smooth = 1 / (1 + np.exp(-np.clip((given - middle) / width, -30, 30)))
    odds = np.maximum(1 / np.maximum(ratio, 1e-9) - share, 0.0) / max(1 - share, 1e-9)  # f1 / f0
    even = odds / (1 + odds)
    most = 0.0
    if learned is not None and len(learned[0]):
        bound, of_bound = _wrong_share(_estimates(given, learned[0], groups, learned[1]))
        most = bound + _REACH * of_bound
    right, even = (1 - _STRICT) * right + _STRICT * smooth, (1 - _STRICT) * even + _STRICT * smooth
    return Mixture(right, even, share, error, most)


def _ratio(given: NDArray[np.float64], drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the density ratio of wrong to given lines at every given line, ``(n,)``.

    Both kinds have equal total weight, so the isotonic share ``g`` of given ones yields the ratio ``(1 - g) / g``.
    """
    scores = np.concatenate([given, drawn])
    order = np.argsort(scores, kind="stable")
    weights = np.concatenate([np.full(len(given), 1 / len(given)), np.full(len(drawn), 1 / len(drawn))])[order]
    truth = np.concatenate([np.ones(len(given)), np.zeros(len(drawn))])[order]
    places, shares = _isotonic(scores[order], truth, weights)
    found = np.interp(given, places, shares)
    # Each line's own weight keeps the ratio finite if no other given line is near.
    found = np.clip(found, 1 / (len(given) + 1), 1.0)
    ratio: NDArray[np.float64] = (1 - found) / found
    return ratio


def _isotonic(
    scores: NDArray[np.float64], truth: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the centres and the values of the blocks of an isotonic fit (pool adjacent violators)."""
    totals: list[list[float]] = []  # weight, weight times truth, weight times score
    for score, value, weight in chain.from_iterable(
        zip(*(one[start : start + _AT_ONCE].tolist() for one in (scores, truth, weights)), strict=True)
        for start in range(0, len(scores), _AT_ONCE)  # as Python numbers, all of them would take 100 bytes each
    ):
        block = [weight, weight * value, weight * score]
        while totals and totals[-1][1] * block[0] >= block[1] * totals[-1][0]:
            last = totals.pop()
            block = [one + other for one, other in zip(block, last, strict=True)]
        totals.append(block)
    table = np.array(totals)
    return table[:, 2] / table[:, 0], table[:, 1] / table[:, 0]


def _estimates(
    given: NDArray[np.float64], drawn: NDArray[np.float64], groups: NDArray[np.int64], drawn_groups: NDArray[np.int64]
) -> list[tuple[float, float]]:
    """Return the share of wrong lines and its standard error, as read at each quantile of the tail."""
    found = []
    tail = _TAIL[min(0.5, _FEWEST / len(given)) <= _TAIL]
    for bound in np.quantile(drawn, tail).tolist():
        below, error = clustered_mean(given <= bound, groups)
        usual, usual_error = clustered_mean(drawn <= bound, drawn_groups)
        if usual == 0:
            continue
        share = below / usual
        found.append((share, float(np.hypot(error / usual, share * usual_error / usual))))
    return found


def _wrong_share(estimates: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the share of wrong lines and its standard error.

    Each estimate is a noisy upper bound of the true share: take that with the lowest upper confidence limit.
    """
    share, error = min(estimates, key=lambda one: one[0] + _SURE * one[1], default=(1.0, 0.0))
    return min(1.0, share), error


def clustered_mean(hits: NDArray[np.bool_], groups: NDArray[np.int64]) -> tuple[float, float]:
    """Return a mean and its standard error with groups as units (ratio estimator).

    Args:
        hits: ``(n,)`` what is averaged.
        groups: ``(n,)`` group of every row; rows of one group are not independent.

    Returns:
        Both in [0, 1]; the error is at least that of a count of one and a half.
    """
    _, at = np.unique(groups, return_inverse=True)
    sizes = np.bincount(at)
    sums = np.bincount(at, weights=hits.astype(np.float64))
    mean = float(hits.mean())
    spread = float(np.square(sums - mean * sizes).sum()) ** 0.5 / len(hits)
    return mean, max(spread, _OF_NONE / len(hits))
