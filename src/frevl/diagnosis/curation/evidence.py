"""Evidence that a line is right, combined into one score; and a text's agreement with its image's other texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TextsOfImages", "one_score"]

_MOST_TEXTS = 8  # texts of an image with which a text is compared
_PENALTY = 1.0  # ridge penalty on standardised features
_STEPS = 30


@dataclass(frozen=True)
class TextsOfImages:
    """The first texts of every image.

    Attributes:
        rows: ``(images, k)`` int64 rows of texts, -1 where an image has fewer.
    """

    rows: Tensor

    @classmethod
    def of(cls, image: Tensor, text: Tensor, images: int) -> TextsOfImages:
        """Collect the texts from the ``(n,)`` images and texts of right lines; at most 8 per image."""
        order = image.argsort(stable=True)
        image, text = image[order], text[order]
        rank = torch.arange(len(image)) - torch.searchsorted(image, image)
        few = rank < _MOST_TEXTS
        rows = torch.full((images, _MOST_TEXTS), -1, dtype=torch.long)
        rows[image[few], rank[few]] = text[few]
        return cls(rows)

    def agreement(self, vectors: Tensor, image: Tensor, text: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Return a text's closeness to the image's other texts, and 1 if there are any, ``(n,)`` each.

        Args:
            vectors: ``(texts, d)`` unit vectors of all texts.
            image: ``(n,)`` the images in question.
            text: ``(n,)`` the texts in question.
            own: ``(n,)`` the line's own text, which counts neither for itself nor for its replacement.

        Returns:
            The mean cosine; 0 if there is no other text.
        """
        others = self.rows[image]
        counted = (others >= 0) & (others != own[:, None]) & (others != text[:, None])
        cosines = (vectors[others.clamp(min=0)] * vectors[text][:, None]).sum(dim=2)
        number = counted.sum(dim=1)
        means = (cosines * counted).sum(dim=1) / number.clamp(min=1)
        return means, (number > 0).to(means.dtype)


def one_score(
    given: NDArray[np.float64], drawn: NDArray[np.float64], right: NDArray[np.bool_], learnt: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weight the features to separate given lines from drawn ones (logistic regression with a small ridge penalty).

    Some given lines are also wrong, which shrinks all weights but preserves the ranking (Elkan and Noto
    2008, "Learning classifiers from only positive and unlabeled data").

    Args:
        given: ``(n, features)`` features of the given lines.
        drawn: ``(m, features)`` features of the drawn lines.
        right: ``(n,)`` bool, lines given as right: only these are used for fitting.
        learnt: ``(k, features)``, further lines to score.

    Returns:
        ``(n,)``, ``(m,)`` and ``(k,)`` scores; a single feature is returned unchanged.
    """
    if given.shape[1] == 1:
        return given[:, 0], drawn[:, 0], learnt[:, 0]
    both = np.concatenate([given[right], drawn])
    middle, width = both.mean(axis=0), both.std(axis=0)
    known = width > 1e-9
    width = np.where(known, width, 1.0)
    x = np.concatenate([np.where(known, (both - middle) / width, 0.0), np.ones((len(both), 1))], axis=1)
    truth = np.concatenate([np.ones(int(right.sum())), np.zeros(len(drawn))])
    weight = np.concatenate([np.full(int(right.sum()), 0.5 / right.sum()), np.full(len(drawn), 0.5 / len(drawn))])
    weight *= len(both)
    ridge = np.full(x.shape[1], _PENALTY)
    ridge[-1] = 1e-6
    factors = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ factors, -30, 30)))
        slope = x.T @ (weight * (p - truth)) + ridge * factors
        curve = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        factors -= step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-9))  # stay out of the sigmoid's flat part
        if np.abs(step).max() < 1e-6:
            break

    def scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.where(known, (values - middle) / width, 0.0) @ factors[:-1]
        return found

    return scores(given), scores(drawn), scores(learnt)
