"""Texts whose pairs belong together: always the same label, or a set of images made for each text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

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
    images: Sequence[Hashable], texts: Sequence[str], targets: Sequence[Target | None]
) -> dict[str, str]:
    """Return the texts whose pairs belong together, with their label; empty if the set is not built that way.

    A sentence that is true of all six pictures drawn for it, or a title that every photo of one product has, makes
    pairs that are not independent: a model that has seen one of them knows the others. A question that is asked of
    many pictures is no such text, because its answers differ. The thresholds are ours.

    Args:
        images: ``(n,)`` names of the images' contents; a text counts as repeated with two different ones.
        texts: ``(n,)``.
        targets: ``(n,)``; the rule is for classes, so any target that is not one string switches it off.
    """
    labels: dict[str, str] = {}
    mixed: set[str] = set()
    contents: dict[str, set[Hashable]] = {}
    counts: Counter[str] = Counter()
    all_labels: Counter[str] = Counter()
    for image, text, target in zip(images, texts, targets, strict=True):
        if not isinstance(target, str):
            return {}
        if labels.setdefault(text, target) != target:
            mixed.add(text)
        contents.setdefault(text, set()).add(image)
        counts[text] += 1
        all_labels[target] += 1
    repeated = [text for text, found in contents.items() if len(found) > 1]
    one_label = {text: labels[text] for text in repeated if text not in mixed}
    n = len(texts)
    shares = [count / n for count in all_labels.values()]
    by_chance = sum(sum(share ** len(contents[text]) for share in shares) for text in repeated)
    if (
        len(one_label) < max(_FEWEST_TEXTS, _OF_CLASSES * len(all_labels))
        or len(one_label) < _ALWAYS * len(repeated)
        or by_chance > _BY_CHANCE * len(repeated)
        or sum(counts[text] for text in one_label) < _SHARE_OF_PAIRS * n
    ):
        return {}
    return one_label


def texts_with_images_of_their_own(images: Sequence[Hashable], texts: Sequence[str]) -> set[str]:
    """Return the texts for each of which a set of images was made; empty if the set is not built that way.

    Where nearly every pair has a text that stands with four images or more, and hardly an image stands with two texts,
    each text came with its own series of pictures: variants of one scene, as in NLVR. A split by image then leaves
    variants on both sides, and what is learnt about one text is not what a new text will need. In natural data most
    questions and titles are rare, and pictures have several of them. The thresholds are ours.

    Args:
        images: ``(n,)`` names of the images' contents.
        texts: ``(n,)``.
    """
    text_of: dict[Hashable, str] = {}
    contents: dict[str, set[Hashable]] = {}
    shared = set()
    for image, text in zip(images, texts, strict=True):
        if text_of.setdefault(image, text) != text:
            shared.add(image)
        contents.setdefault(text, set()).add(image)
    if len(shared) > _SHARED * len(text_of):
        return set()
    several = {text for text, found in contents.items() if len(found) >= _FEWEST_IMAGES}
    covered = sum(len(contents[text]) for text in several)
    enough = len(several) >= _FEWEST_SETS and covered >= _WITH_IMAGES_OF_THEIR_OWN * len(text_of)
    return several if enough else set()
