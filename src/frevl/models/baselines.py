"""The baselines for a fusion: majority, a single modality, a linear probe, an MLP on the concatenation.

They are pure PyTorch. Token embeddings are mean-pooled.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frevl.models.classification.linear_problem import Blocks, InBlocks, InMemory, LinearProblem, Loss, minimise
from frevl.models.inputs import ZScore, frozen, mean_pool
from frevl.models.interface import PairNetwork

__all__ = ["PENALTIES", "Linear", "Majority", "Mlp", "best_of_path", "fit_linear"]

_TOLERANCE = 5e-5  # largest derivative at which a linear fit is at its optimum; scikit-learn stops at 1e-4
_ROUGHLY = 1e-3  # the same while penalties are only being compared: their metrics differ by far more
_FEWEST_LOOKS = 10  # full passes over the pairs before the time limit counts

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Penalties that are compared, strongest first."""


class Majority(PairNetwork):
    """A baseline that always answers with the training frequencies, regardless of image and text."""

    key = "majority"

    def __init__(self, *, outputs: int) -> None:
        super().__init__()
        self.settings = {"outputs": outputs}
        self.logits = frozen(outputs)

    def forward(
        self,
        image: Tensor,
        text: Tensor,  # noqa: ARG002
        image_mask: Tensor | None = None,  # noqa: ARG002
        text_mask: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Return the log frequencies, ``(n, outputs)``, the same for every pair."""
        return self.logits.expand(len(image), -1)


class Linear(PairNetwork):
    """Logistic regression on ``[v ; t]``, and on ``v*t`` too if the widths agree.

    Features are standardised with training statistics first. Fitted by `fit_linear`.
    """

    key = "linear"
    affine = True

    def __init__(self, *, image_dim: int, text_dim: int, outputs: int) -> None:
        super().__init__()
        self.settings = {"image_dim": image_dim, "text_dim": text_dim, "outputs": outputs}
        self.multiply = image_dim == text_dim
        features = image_dim + text_dim + (image_dim if self.multiply else 0)
        self.mean, self.scale = frozen(features), frozen(features, fill=1.0)
        self.linear = nn.Linear(features, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def features(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return the standardised features, ``(n, features)``."""
        v, t = mean_pool(image, image_mask), mean_pool(text, text_mask)
        parts = [v, t, v * t] if self.multiply else [v, t]
        return self.statistics(torch.cat(parts, dim=1))

    @property
    def statistics(self) -> ZScore:
        """Mean and standard deviation of the training features."""
        return ZScore(self.mean, self.scale)

    def input_statistics(self) -> tuple[ZScore, ZScore]:
        """Mean and standard deviation of the training pairs' images, and of their texts."""
        ends = self.settings["image_dim"], self.settings["image_dim"] + self.settings["text_dim"]
        sides = slice(0, ends[0]), slice(*ends)
        image, text = (ZScore(self.mean[side], self.scale[side]) for side in sides)
        return image, text

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, outputs)`` logits; the shapes are those of `PairNetwork.forward`."""
        logits: Tensor = self.linear(self.features(image, text, image_mask, text_mask))
        return logits

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the features of each pair, scaled to unit length: ``{"pair": (n, features)}``."""
        return {"pair": F.normalize(self.features(image, text, image_mask, text_mask), dim=1)}


class Mlp(PairNetwork):
    """A two-layer network on the concatenation; with one modality switched off, a single-modality baseline."""

    key = "mlp"

    def __init__(
        self,
        *,
        image_dim: int,
        text_dim: int,
        outputs: int,
        use_image: bool = True,
        use_text: bool = True,
        hidden: int = 512,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.settings = {
            "image_dim": image_dim,
            "text_dim": text_dim,
            "outputs": outputs,
            "use_image": use_image,
            "use_text": use_text,
            "hidden": hidden,
            "dropout": dropout,
        }
        self.use_image, self.use_text = use_image, use_text
        inputs = use_image * image_dim + use_text * text_dim
        self.norm = nn.LayerNorm(inputs)
        self.layers = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(inputs, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, outputs),
        )

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, outputs)`` logits; the shapes are those of `PairNetwork.forward`."""
        logits: Tensor = self.layers(self._normed(image, text, image_mask, text_mask))
        return logits

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the hidden units of each pair, scaled to unit length: ``{"pair": (n, hidden)}``."""
        return {"pair": F.normalize(self.layers[:-1](self._normed(image, text, image_mask, text_mask)), dim=1)}

    def _normed(self, image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None) -> Tensor:
        parts = [mean_pool(image, image_mask)] if self.use_image else []
        parts += [mean_pool(text, text_mask)] if self.use_text else []
        normed: Tensor = self.norm(torch.cat(parts, dim=1))
        return normed


def fit_linear(
    network: Linear,
    features: Tensor | Blocks,
    loss: Loss | None,
    development: Callable[[], float],
    *,
    penalties: tuple[float, ...] = PENALTIES,
    iterations: int = 150,
    time_limit: float | None = None,
) -> float:
    """Fit logistic regression to its optimum along a path of L2 penalties (ours).

    The path goes from strong to weak penalties, each fit starts from the previous one, and the path ends when the
    development metric has fallen twice: a linear baseline is only fair with a well-chosen penalty. Penalties are
    compared by rough fits, and the best one is then fitted to its optimum.

    A fit is full-batch L-BFGS in coordinates in which the problem is nearly round: along the principal directions of
    the features, with each weight multiplied by the root of its curvature. The optimum is that of the plain problem,
    and it is reached in far fewer iterations; stopped early, the result would depend on how sums are rounded, and hence
    on the number of threads.

    Args:
        network: The network to fit, with its mean and scale set; its weights are overwritten.
        features: ``(n, features)`` standardised training features, or blocks of them with their losses, which give the
            same optimum in the memory of one block.
        loss: Maps ``(n, outputs)`` logits to the mean training loss over the pairs, without the penalty; None if
            ``features`` are blocks, which bring their own losses.
        development: Returns the development metric of the network with its current weights; larger is better.
        penalties: Factors of half the sum of squared weights (biases are not penalised), strongest first.
        iterations: Maximum number of L-BFGS steps per penalty.
        time_limit: Seconds after which fitting stops with the best weights found so far, but not before ten full passes
            over the pairs. The principal directions are skipped if computing them would take more than a third of it.

    Returns:
        The best penalty; the network holds its weights.
    """
    ends = float("inf") if time_limit is None else time.monotonic() + time_limit
    problem: LinearProblem
    if not isinstance(features, Tensor):
        problem = InBlocks(features, network.linear.in_features, ends)
    elif loss is not None:
        problem = InMemory(features, loss, ends)
    else:
        raise TypeError("features in memory need their loss")

    def keep(weight: Tensor, bias: Tensor) -> None:
        with torch.no_grad():
            network.linear.weight.copy_(weight if problem.directions is None else weight @ problem.directions.T)
            network.linear.bias.copy_(bias)

    def metric(weight: Tensor, bias: Tensor) -> float:
        keep(weight, bias)
        return development()

    best, weight, bias = best_of_path(
        problem, network.linear.bias.detach().clone(), metric, penalties=penalties, iterations=iterations, ends=ends
    )
    keep(weight, bias)
    return best


def best_of_path(
    problem: LinearProblem,
    bias: Tensor,
    metric: Callable[[Tensor, Tensor], float],
    *,
    penalties: tuple[float, ...] = PENALTIES,
    iterations: int = 150,
    enough: float = 0.0,
    enough_at_last: float = 0.0,
    ends: float = float("inf"),
) -> tuple[float, Tensor, Tensor]:
    """Minimise a problem along a path of penalties; see `fit_linear`.

    Args:
        problem: The loss to minimise.
        bias: ``(outputs,)`` biases to start from; the weights start at zero.
        metric: Returns the development metric of ``(outputs, r)`` weights and ``(outputs,)`` biases.
        penalties: As in `fit_linear`.
        iterations: As in `fit_linear`.
        enough: While penalties are compared, a fit ends when a step promises to lower the loss by no more than this
            share of it.
        enough_at_last: The same for the last fit, with the best penalty.
        ends: `time.monotonic` time at which to stop with the best found so far.

    Returns:
        The best penalty, and the weights and biases at its optimum.
    """
    variances = problem.variances
    weight = variances.new_zeros(len(bias), len(variances))
    best = (float("-inf"), penalties[0], weight, bias)

    def refined(penalty: float, weight: Tensor, bias: Tensor, tolerance: float, least: int) -> tuple[Tensor, Tensor]:
        curvature = problem.curvature(weight, bias)
        scales = (curvature[:, None] * variances + penalty).sqrt(), curvature.sqrt()
        ended = enough if tolerance > _TOLERANCE else enough_at_last
        return _minimised(problem, penalty, weight, bias, *scales, iterations, tolerance, ended, ends, least)

    falls, several = 0, len(penalties) > 1
    for number, penalty in enumerate(penalties):
        weight, bias = refined(
            penalty, weight, bias, _ROUGHLY if several else _TOLERANCE, 1 if number else _FEWEST_LOOKS
        )
        found = metric(weight, bias)
        falls = 0 if found >= best[0] else falls + 1
        if found > best[0]:
            best = (found, penalty, weight, bias)
        if falls == 2 or time.monotonic() > ends:
            break
    if not several or time.monotonic() > ends:
        return best[1:]
    return best[1], *refined(*best[1:], _TOLERANCE, 0)


def _minimised(
    problem: LinearProblem,
    penalty: float,
    weight: Tensor,
    bias: Tensor,
    weight_scale: Tensor,
    bias_scale: Tensor,
    iterations: int,
    tolerance: float,
    enough: float,
    ends: float,
    least: int,
) -> tuple[Tensor, Tensor]:
    """Return ``(outputs, r)`` weights and ``(outputs,)`` biases at the minimum, or as close as the time allows.

    The starting point and the scales have those shapes; ``ends`` is a `time.monotonic` time, ignored until the loss has
    been computed ``least`` times.
    """
    shape, looks = weight.shape, 0

    def evaluate(point: Tensor) -> tuple[float, Tensor]:
        nonlocal looks
        looks += 1
        weights, biases = point[: -len(bias)].view(shape) / weight_scale, point[-len(bias) :] / bias_scale
        value, by_weight, by_bias = problem.value(weights, biases)
        by_weight = (by_weight + penalty * weights) / weight_scale
        gradient = torch.cat([by_weight.flatten(), by_bias / bias_scale])
        return value + 0.5 * penalty * weights.square().sum().item(), gradient

    point = minimise(
        evaluate,
        torch.cat([(weight * weight_scale).flatten(), bias * bias_scale]),
        steps=iterations,
        tolerance=tolerance,
        enough=enough,
        out_of_time=lambda: looks >= least and time.monotonic() > ends,
    )
    return point[: -len(bias)].view(shape) / weight_scale, point[-len(bias) :] / bias_scale
