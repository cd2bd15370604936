"""Texts whose pairs belong together: always the same label, or a set of images made for each text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from frevl.data.packed.columns import by_value, joined
from frevl.data.pairs import Target

__all__ = ["texts_with_images_of_their_own", "texts_with_one_label"]

_FEWEST_TEXTS = 10
_SHARE_OF_PAIRS = 0.2  # that stand with such texts, or the rule does not concern this set
_ALWAYS = 0.98  # of the repeated texts have one label
_BY_CHANCE = 0.5  # of them may be expected to have one label if texts said nothing about labels
_FEWEST_IMAGES, _WITH_IMAGES_OF_THEIR_OWN, _FEWEST_SETS = 4, 0.95, 20  # a text, of the pairs, texts
_SHARED = 0.05  # of the images may stand with several texts: drawn variants are sometimes the same picture
_OF_CLASSES = 2  # texts per class, at least: with fewer, a text may be a name of the class


def texts_with_one_label(
    images: NDArray[np.int64], texts: NDArray[np.int64], targets: Sequence[Sequence[Target | None]]
) -> NDArray[np.int64]:
    """Return the texts whose pairs belong together; none if the set is not built that way.

    A sentence that is true of all six pictures drawn for it, or a title that every photo of one product has, makes
    pairs that are not independent: a model that has seen one of them knows the others. A question that is asked of
    many pictures is no such text, because its answers differ. The thresholds are ours.

    Args:
        images: ``(n,)`` numbers of the images' contents, from 0; a text counts as repeated with two different ones.
        texts: ``(n,)`` numbers of the texts, from 0.
        targets: Columns, together of ``n`` pairs; the rule is for classes, so any target that is not one string
            switches it off.

    Returns:
        Numbers of texts, ascending.
    """
    none = np.zeros(0, np.int64)
    plain = [by_value(part, lambda target: isinstance(target, str), bool) for part in targets]
    if not len(texts) or not all(part.all() for part in plain):
        return none
    parts, names = joined(targets)
    labels, n = np.concatenate(parts), len(texts)
    counts, kinds = np.bincount(texts), len(names)
    contents = _different(texts, images)
    repeated = contents > 1
    one_label = repeated & (_different(texts, labels) == 1)
    shares = np.bincount(labels, minlength=kinds) / n
    sizes, times = np.unique(contents[repeated], return_counts=True)
    by_chance = sum(
        many * float((shares**size).sum()) for size, many in zip(sizes.tolist(), times.tolist(), strict=True)
    )
    if (
        one_label.sum() < max(_FEWEST_TEXTS, _OF_CLASSES * kinds)
        or one_label.sum() < _ALWAYS * repeated.sum()
        or by_chance > _BY_CHANCE * repeated.sum()
        or counts[one_label].sum() < _SHARE_OF_PAIRS * n
    ):
        return none
    return np.flatnonzero(one_label)


def texts_with_images_of_their_own(images: NDArray[np.int64], texts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the texts for each of which a set of images was made; none if the set is not built that way.

    Where nearly every pair has a text that stands with four images or more, and hardly an image stands with two texts,
    each text came with its own series of pictures: variants of one scene, as in NLVR. A split by image then leaves
    variants on both sides, and what is learnt about one text is not what a new text will need. In natural data most
    questions and titles are rare, and pictures have several of them. The thresholds are ours.

    Args:
        images: ``(n,)`` numbers of the images' contents, from 0; all numbers occur.
        texts: ``(n,)`` numbers of the texts, from 0.

    Returns:
        Numbers of texts, ascending.
    """
    texts_of = _different(images, texts)
    contents = _different(texts, images)
    several = contents >= _FEWEST_IMAGES
    if (
        (texts_of > 1).sum() > _SHARED * len(texts_of)
        or several.sum() < _FEWEST_SETS
        or contents[several].sum() < _WITH_IMAGES_OF_THEIR_OWN * len(texts_of)
    ):
        return np.zeros(0, np.int64)
    return np.flatnonzero(several)


def _different(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for every number of one column, with how many different numbers of the other it stands."""
    width = int(other.max(initial=0)) + 1
    together = one.astype(np.int64) * width + other
    together.sort()
    first = np.ones(len(together), bool)
    first[1:] = together[1:] != together[:-1]
    return np.bincount(together[first] // width)
