"""WUPS, the DAQUAR score, which credits similar answers according to their distance in WordNet."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.pairs import Pairs
from frevl.errors import FrevlError, UsageError
from frevl.evaluation.measures import Measure

__all__ = ["measure_wups", "wordnet_similarity", "wups", "wups_available"]

Floats = NDArray[np.float64]


def wups(
    predicted: Sequence[Collection[str]],
    targets: Sequence[Collection[str]],
    *,
    threshold: float = 0.9,
    similarity: Callable[[str, str], float] | None = None,
) -> Floats:
    """Return the WUPS of answer sets, one number per item in ``[0, 1]`` (Malinowski and Fritz 2014, equation 7).

    ``min(prod over answers of max over targets, prod over targets of max over answers)`` of the Wu-Palmer
    similarity, which counts only a tenth below the threshold. Equal words score 1.

    Args:
        predicted: ``(n,)`` sets of answers. An empty set scores 0.
        targets: ``(n,)`` sets of right answers, none empty.
        threshold: 0.9 for WUPS at 0.9, 0 for plain WUPS.
        similarity: ``(word, word) -> [0, 1]``; by default `wordnet_similarity`.

    Returns:
        ``(n,)``.

    Raises:
        UsageError: Lengths differ, or a set of right answers is empty.
        FrevlError: No similarity is given and WordNet is missing.
    """
    if len(predicted) != len(targets):
        raise UsageError(f"WUPS: expected one answer set per item, found {len(predicted)} for {len(targets)}.")
    raw = wordnet_similarity() if similarity is None else similarity

    def weighted(a: str, b: str) -> float:
        if a == b:
            return 1.0
        value = raw(a, b)
        return value if value >= threshold else 0.1 * value

    scores = np.zeros(len(targets))
    for item, (answers, right) in enumerate(zip(predicted, targets, strict=True)):
        if isinstance(answers, str) or isinstance(right, str):
            raise UsageError(f"WUPS, item {item}: expected a set of answers, found one string.")
        if not right:
            raise UsageError(f"WUPS, item {item}: the set of right answers is empty.")
        if not answers:
            continue
        table = np.asarray([[weighted(a, t) for t in sorted(set(right))] for a in sorted(set(answers))])
        scores[item] = min(math.prod(table.max(axis=1)), math.prod(table.max(axis=0)))
    return scores


def wups_available() -> bool:
    """Return whether nltk and its WordNet data are installed."""
    return _wordnet() is not None


def wordnet_similarity() -> Callable[[str, str], float]:
    """Return the Wu-Palmer similarity of two nouns: the maximum over their senses, 0 for unknown words.

    Raises:
        FrevlError: nltk or its WordNet data is missing.
    """
    wordnet = _wordnet()
    if wordnet is None:
        raise FrevlError(
            "WUPS needs WordNet through nltk, which is not installed. Install it with: pip install nltk && python "
            "-m nltk.downloader wordnet"
        )

    @lru_cache(maxsize=200_000)
    def similarity(a: str, b: str) -> float:
        senses = [wordnet.synsets(word, pos="n") for word in (a, b)]
        return max((x.wup_similarity(y) or 0.0 for x in senses[0] for y in senses[1]), default=0.0)

    return similarity


def _wordnet() -> Any:
    try:
        from nltk.corpus import wordnet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    return wordnet


def measure_wups(measured: dict[str, Measure], predicted: list[str], pairs: Pairs) -> list[str]:
    """Add WUPS at 0.9 if pairs hold DAQUAR answer sets, with a note if WordNet is missing."""
    answers = [extra.get("answers") for extra in pairs.extras]
    if not all(isinstance(one, list) and len(one) != 10 for one in answers):
        return []
    if not wups_available():
        return [
            "WUPS at 0.9 is missing because WordNet is not installed (pip install nltk, then nltk.download('wordnet'))."
        ]
    sets = [one for one in answers if isinstance(one, list)]
    measured["wups_0.9"] = Measure(pairs.clusters, wups([[label] for label in predicted], sets))
    return []
