"""Evidence that a line is right, combined into one score; and a text's agreement with its image's other texts.

If all texts of an image come from another one, they agree with each other, so each of them looks right. Therefore the
texts of an image are also judged together, without their agreement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frevl.diagnosis.data_quality.mixture import Mixture, fit_mixture
from frevl.runs.batches import EmbeddedPairs

__all__ = [
    "ExchangedImages",
    "TextsOfImages",
    "draw_wrong",
    "exchange_images",
    "half_wrong",
    "judge_images",
    "one_score",
    "row_blocks",
]

_MOST_TEXTS = 8  # texts of an image with which a text is compared
_PENALTY = 1.0  # ridge penalty on standardised features
_STEPS = 30
_WITHOUT_OTHERS = 4  # the first features, which do not depend on the image's other texts
_MANY = 0.3  # wrong share from which an interval that reaches one half is no matter of few lines
_DRAWN, _TRIES = 2, 16  # wrong lines drawn per given line, and how often each is drawn again
_AT_ONCE = 8192
_FEWEST_IMAGES = 100  # with several texts; fewer show no distribution


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
        """Return how close a text is to the image's other texts, and whether there are any, ``(n,)`` each.

        Args:
            vectors: ``(texts, d)`` unit vectors of all texts.
            image: ``(n,)`` the images in question.
            text: ``(n,)`` the texts in question.
            own: ``(n,)`` the line's own text, which counts neither for itself nor for its replacement.

        Returns:
            The mean cosine, 0 if there is no other text; and 1 if there is one, else 0.
        """
        others = self.rows[image]
        counted = (others >= 0) & (others != own[:, None]) & (others != text[:, None])
        cosines = (vectors[others.clamp(min=0)] * vectors[text][:, None]).sum(dim=2)
        number = counted.sum(dim=1)
        means = (cosines * counted).sum(dim=1) / number.clamp(min=1)
        return means, (number > 0).to(means.dtype)


def one_score(
    given: NDArray[np.float64], drawn: NDArray[np.float64], right: NDArray[np.bool_], further: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weight the features to separate given lines from drawn ones (logistic regression with a small ridge penalty).

    Some given lines are also wrong, which shrinks all weights but preserves the ranking (Elkan and Noto
    2008, "Learning classifiers from only positive and unlabeled data").

    Args:
        given: ``(n, features)`` features of the given lines.
        drawn: ``(m, features)`` features of the drawn lines.
        right: ``(n,)`` bool, lines given as right: only these are used for fitting.
        further: ``(k, features)`` features of further lines to score.

    Returns:
        ``(n,)``, ``(m,)`` and ``(k,)`` scores; a single feature is returned unchanged.
    """
    if given.shape[1] == 1:
        return given[:, 0], drawn[:, 0], further[:, 0]
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

    return scores(given), scores(drawn), scores(further)


def exchange_images(image: Tensor, group: Tensor, source: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Give images with several texts all texts of another such image.

    Args:
        image: ``(n,)`` the image of every line.
        group: ``(n,)`` the group of every line.
        source: Rows of right lines.
        seed: Random seed.

    Returns:
        The images ``(m,)``, and the lines whose text each is given ``(m,)``. Images of one group are not exchanged.
    """
    rows, groups = source.numpy(), group.numpy()
    numbers, first, at, count = np.unique(
        image.numpy()[rows], return_index=True, return_inverse=True, return_counts=True
    )
    by_image = rows[np.argsort(at, kind="stable")]  # the lines of every image, one image after the other
    ends = np.cumsum(count)
    several = np.flatnonzero(count > 1)
    several = several[np.argsort(first[several], kind="stable")]  # in order of appearance
    order = torch.randperm(len(several), generator=torch.Generator().manual_seed(seed)).numpy()
    one, other = several[order], np.roll(several[order], -1)
    apart = groups[rows[first[one]]] != groups[rows[first[other]]]
    one, other = one[apart], other[apart]
    given = np.repeat(ends[other] - np.cumsum(count[other]), count[other]) + np.arange(int(count[other].sum()))
    return torch.from_numpy(np.repeat(numbers[one], count[other])), torch.from_numpy(by_image[given])


def draw_wrong(
    pairs: EmbeddedPairs, meaning: Tensor | None, groups: Tensor, right: Tensor, held: Tensor, near: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw lines whose image and text do not belong together.

    Args:
        pairs: All lines.
        meaning: ``(texts, d)`` unit vectors, or None if closeness of texts is unknown.
        groups: ``(n,)`` group of every line.
        right: ``(n,)`` bool, lines given as right.
        held: Rows of the lines to draw from.
        near: Cosine from which two texts count as wordings of the same content.
        seed: Random seed.

    Returns:
        Positions within ``held`` of the image and the text of each. The text belongs to another group, is not one of
        the image's own, and is not close to any of them.
    """
    random = torch.Generator().manual_seed(seed)
    source = right[held].nonzero()[:, 0]
    image, text, group = pairs.image_rows[held], pairs.text_rows[held], groups[held]
    own = TextsOfImages.of(image[source], text[source], int(image.max()) + 1).rows

    def is_wrong(rows: Tensor, columns: Tensor) -> Tensor:
        wrong = (group[rows] != group[columns]) & (text[rows] != text[columns]) & (image[rows] != image[columns])
        for part in row_blocks(len(rows)):
            texts_of_it = own[image[rows[part]]]  # (n, k)
            wrong[part] &= (texts_of_it != text[columns[part]][:, None]).all(dim=1)
            if meaning is not None:
                cosines = (meaning[texts_of_it.clamp(min=0)] * meaning[text[columns[part]]][:, None]).sum(dim=2)
                wrong[part] &= (cosines.masked_fill(texts_of_it < 0, -1.0) < near).all(dim=1)
        return wrong

    rows = source.repeat(_DRAWN)
    columns = source[torch.randint(len(source), (len(rows),), generator=random)]
    wrong = is_wrong(rows, columns)
    for _ in range(_TRIES):
        again = (~wrong).nonzero()[:, 0]
        if len(again) == 0:
            break
        columns[again] = source[torch.randint(len(source), (len(again),), generator=random)]
        wrong[again] = is_wrong(rows[again], columns[again])
    return rows[wrong], columns[wrong]


@dataclass(frozen=True)
class ExchangedImages:
    """A joint judgement of all texts of each image.

    Attributes:
        beliefs: ``(n,)`` probability that the image of a line was not given the texts of another as a whole; 1 for
            images not judged, such as those with one text.
        images: The estimate over images.
    """

    beliefs: NDArray[np.float64]
    images: Mixture

    def with_lines(self, lines: Mixture) -> tuple[float, tuple[float, float]]:
        """Return the share of lines that are wrong by themselves or with their image, and its interval."""
        low, high = self.images.ci95
        share = 1 - (1 - lines.wrong_share) * (1 - self.images.wrong_share)
        return share, (max(lines.ci95[0], low), 1 - (1 - lines.ci95[1]) * (1 - high))

    def sentence(self) -> str:
        """Return the note."""
        low, high = (100 * bound for bound in self.images.ci95)
        return (
            f"About {100 * self.images.wrong_share:.1f} % [{low:.1f}, {high:.1f}] of the images with several texts "
            "seem to have those of another image: together, they fit no better."
        )


def judge_images(
    given: NDArray[np.float64],
    drawn: NDArray[np.float64],
    right: NDArray[np.bool_],
    flagged: NDArray[np.bool_],
    images: NDArray[np.int64],
    groups: NDArray[np.int64],
    exchanged: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> ExchangedImages | None:
    """Judge the texts of an image together, without the features that depend on their agreement.

    Args:
        given: ``(n, features)`` features of the given lines.
        drawn: ``(m, features)`` features of the drawn lines.
        right: ``(n,)`` bool, lines given as right.
        flagged: ``(n,)`` bool, lines that are likely wrong by themselves. They explain why the texts of their image fit
            less well together, so it is not judged.
        images: ``(n,)`` image of every line.
        groups: ``(n,)`` group of every line.
        exchanged: ``(k, features)`` and ``(k,)`` features and images of exchanged texts (`exchange_images`).

    Returns:
        None if the share of exchanged images may be 0, or if fewer than 100 images can be judged.
    """
    table, of = exchanged
    if given.shape[1] <= _WITHOUT_OTHERS or not len(table):
        return None
    features = slice(_WITHOUT_OTHERS)
    own, _, others = one_score(given[:, features], drawn[:, features], right, table[:, features])
    _, first, at, count = np.unique(images[right], return_index=True, return_inverse=True, return_counts=True)
    several = (count > 1) & (np.bincount(at, flagged[right]) == 0)
    if several.sum() < _FEWEST_IMAGES:
        return None
    _, made = np.unique(of, return_inverse=True)
    means = (np.bincount(at, own[right]) / count)[several]
    found = fit_mixture(
        means, np.bincount(made, others) / np.bincount(made), groups[right][first][several], np.arange(made.max() + 1)
    )
    if found.ci95[0] <= 0:
        return None
    by_image = np.ones(len(count))
    by_image[several] = found.right
    belief = np.ones(len(given))
    belief[right] = by_image[at]
    return ExchangedImages(belief, found)


def half_wrong(share: float, low: float, high: float) -> list[str]:
    """Return a doubt if so many lines may be wrong that the models learned mostly from wrong ones.

    Measured on 2,500 captions: with 50, 70 and 90 % of them exchanged at random, the AUROC of the wrong ones was 0.95,
    0.86 and 0.55.

    Args:
        share: Estimated share of wrong lines, in [0, 1].
        low: Lower end of its interval.
        high: Upper end of its interval.
    """
    if share < _MANY or high < 0.5:
        return []
    return [
        f"Half of the texts or more may be wrong ({100 * share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]): the models "
        "learned from them, and wrong ones may be kept. Check whether images and texts belong together, or are shifted "
        "by some lines."
    ]


def row_blocks(count: int) -> list[slice]:
    """Return slices that cover a number of rows, at least one."""
    return [slice(start, start + _AT_ONCE) for start in range(0, max(count, 1), _AT_ONCE)]
