"""The probe of `frevl classify`: logistic regression that starts at the names. Pure torch.

Features are standardised and of unit length (`frevl.models.classification.heads`).
"""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from frevl.models.classification.heads import Features, Head
from frevl.models.classification.linear_problem import minimise

__all__ = ["solve_probe"]

_STEPS = 12  # more steps change only the third digit of the likelihood (research/experiments/log.md)
_ENOUGH = 3e-4
_ENOUGH_OF_MANY = 1e-3  # 3e-3 above the minimum loss, in three quarters of the time; scikit-learn stops at 1e-2
_MANY = 2**22  # total number of features; smaller fits take less than 0.1 s
_BESIDE_NAMES = 0.05  # curvature; a smaller one comes closer to the minimum loss, but does no better on other data
_TELLING = 16  # examples per feature for estimating the curvature; with 4, and many examples, the steps do not suffice


def solve_probe(
    features: Features,
    labels: Tensor,
    classes: int,
    *,
    penalty: float,
    names: float = 0.0,
    weights: Tensor | None = None,
    steps: int = _STEPS,
    enough: float | None = None,
) -> Head:
    """Logistic regression that starts at the names and is pulled back to them.

    Minimise cross-entropies plus ``penalty / 2`` times the squared weights, which are added to ``names * cosines``:
    with a strong penalty, only the names remain. This is like CLAP (Silva-Rodriguez et al. 2024) and LP++ (Huang et al.
    2024) with names as the anchor; without names it is ordinary logistic regression.

    Args:
        features: Features of ``n`` examples.
        labels: ``(n,)`` int64, class indices.
        classes: Number of classes.
        penalty: Strength of the L2 penalty, above 0.
        names: Scale of the name logits.
        weights: ``(n,)`` float32 above 0, the weight of each example; None: 1 each.
        steps: Maximum number of L-BFGS steps.
        enough: Stop when a step would reduce the loss by no more than this share; None: 3e-4, or 1e-3 if the features
            hold 2^22 numbers or more.
    """
    x = features.standard
    if enough is None:
        enough = _ENOUGH if x.numel() < _MANY else _ENOUGH_OF_MANY
    offset = (names * features.cosines).T if names and features.cosines is not None else torch.zeros(())
    each = torch.ones(len(labels)) if weights is None else weights
    curvature = _BESIDE_NAMES if offset.dim() else (1 - 1 / classes) / classes  # p (1 - p), each as likely at first
    basis = None
    if len(x) < x.shape[1]:  # the weights lie in the span of the examples (representer theorem)
        basis, triangle = torch.linalg.qr(x.T)
        x = triangle.T.contiguous()
    inputs: _Rotated | _AsTheyAre
    if len(x) < classes * _STEPS:  # rotating the features once is then faster than rotating the weights at every step
        whole = _principal(x) if weights is None and basis is None else _principal_directions(x, each)
        inputs = _Rotated(*whole, curvature, penalty)
    else:
        inputs = _AsTheyAre(x, _to_even_curvature(x, each, penalty, curvature))
    rows = torch.arange(len(x))

    def evaluate(point: Tensor) -> tuple[float, Tensor]:
        weight = inputs.weight(point.view(classes, -1))  # the bias comes last and is penalised like all others
        started = bool(point.any())  # all weights are zero at first
        logits = inputs.logits(weight) if started else torch.zeros(classes, len(x))
        likely = torch.log_softmax(offset + logits, dim=0)  # one row per class: a tenth of the time
        value = float(penalty / 2 * weight.square().sum() - likely.gather(0, labels[None])[0] @ each)
        residual = likely.exp_()
        residual[labels, rows] -= 1
        residual = residual if weights is None else residual * each
        return value, inputs.point_gradient(inputs.weight_gradient(residual).add_(weight, alpha=penalty)).flatten()

    start = torch.zeros(classes * (x.shape[1] + 1))
    found = minimise(evaluate, start, steps=steps, tolerance=1e-4, enough=enough).view(classes, -1)
    found = inputs.restored(found)
    weight = found[:, :-1].clone() if basis is None else found[:, :-1] @ basis.T
    return Head(names, weight, found[:, -1].clone())


class _AsTheyAre:
    """Features as they are, with weights in even coordinates; for many examples, which are not copied.

    Args:
        x: ``(n, d)``.
        back: ``(d + 1, d + 1)`` from even coordinates to weights, the bias last.
    """

    def __init__(self, x: Tensor, back: Tensor) -> None:
        self.x, self.back = x, back

    def weight(self, point: Tensor) -> Tensor:
        """Return the weights of a point, ``(classes, d + 1)``."""
        return point @ self.back

    def logits(self, weight: Tensor) -> Tensor:
        """Return the logits, ``(classes, n)``."""
        return torch.addmm(weight[:, -1:], weight[:, :-1], self.x.T)

    def weight_gradient(self, residual: Tensor) -> Tensor:
        """Return the gradient in the weights, ``(classes, d + 1)``, from ``(classes, n)`` residuals."""
        return torch.cat([residual @ self.x, residual.sum(dim=1, keepdim=True)], dim=1)

    def point_gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient in the coordinates of the point."""
        return gradient @ self.back.T

    def restored(self, point: Tensor) -> Tensor:
        """Return the weights of the features themselves."""
        return self.weight(point)


class _Rotated:
    """Features along their principal directions, which only need scaling to become even coordinates; for many classes.

    This saves two of the four matrix products of a step, and several penalties share the rotation.

    Args:
        rotated: ``(n, d + 1)`` features followed by a one, along the directions.
        spread: ``(d + 1,)`` sum of their squares along each direction.
        directions: ``(d + 1, d + 1)`` orthonormal, one per column.
        of_logits: As in `_to_even_curvature`.
        penalty: Strength of the L2 penalty on the weights and the bias.
    """

    def __init__(self, rotated: Tensor, spread: Tensor, directions: Tensor, of_logits: float, penalty: float) -> None:
        self.rotated, self.directions = rotated, directions
        self.stretch = (of_logits * spread + penalty).rsqrt()

    def weight(self, point: Tensor) -> Tensor:
        """Return the weights along the directions, ``(classes, d + 1)``, as long as those of the features."""
        return point * self.stretch

    def logits(self, weight: Tensor) -> Tensor:
        """Return the logits, ``(classes, n)``."""
        return weight @ self.rotated.T

    def weight_gradient(self, residual: Tensor) -> Tensor:
        """Return the gradient in the weights, ``(classes, d + 1)``, from ``(classes, n)`` residuals."""
        return residual @ self.rotated

    def point_gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient in the coordinates of the point."""
        return gradient * self.stretch

    def restored(self, point: Tensor) -> Tensor:
        """Return the weights of the features themselves."""
        return self.weight(point) @ self.directions.T


def _principal_directions(x: Tensor, each: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments of `_Rotated` for ``(n, d)`` features, weighted by ``each``."""
    whole = F.pad(x, (0, 1), value=1.0)
    scaled = whole if each is None else whole * each.sqrt()[:, None]
    spread, directions = torch.linalg.eigh(scaled.T @ scaled)
    return whole @ directions, spread.clamp(min=0), directions


def _to_even_curvature(x: Tensor, each: Tensor, penalty: float, of_logits: float) -> Tensor:
    """Return the ``(d + 1, d + 1)`` matrix from coordinates in which the curvature is about the identity to weights.

    In such coordinates a third of the steps are needed. The curvature is estimated well enough on some of the examples.

    Args:
        x: ``(n, d)``; the bias acts like a further column of ones.
        each: ``(n,)`` weights of the examples.
        penalty: Strength of the L2 penalty on the weights and the bias.
        of_logits: Curvature of the loss of an example in its logits.
    """
    parts = min(len(x), _TELLING * x.shape[1])
    rows = torch.arange(parts) * len(x) // parts  # evenly, because examples may come class by class
    some, share = (x, each) if parts == len(x) else (x[rows], each[rows])
    scaled = some if bool((share == 1).all()) else some * share.sqrt()[:, None]
    array = scaled.detach().contiguous().numpy()
    curvature = torch.empty(x.shape[1] + 1, x.shape[1] + 1)
    curvature[:-1, :-1] = torch.from_numpy(array.T @ array)  # NumPy exploits the symmetry, which halves the work
    curvature[-1, :-1] = curvature[:-1, -1] = share @ some
    curvature[-1, -1] = share.sum()
    curvature *= of_logits * float(each.sum() / share.sum())
    curvature.diagonal().add_(penalty)
    factor = torch.linalg.cholesky(curvature)
    inverse: Tensor = torch.linalg.solve_triangular(factor, torch.eye(len(factor)), upper=False)
    return inverse


# By features, which are never changed in place: several penalties share them.
_DIRECTIONS: MutableMapping[Tensor, tuple[Tensor, Tensor, Tensor]] = WeakIdKeyDictionary()


def _principal(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `_principal_directions` of features with equal weights."""
    found = _DIRECTIONS.get(features)
    if found is None:
        found = _principal_directions(features, None)
        _DIRECTIONS.clear()  # one at a time: those of further folds take its place
        _DIRECTIONS[features] = found
    return found
