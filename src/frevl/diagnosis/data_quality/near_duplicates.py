"""Near-duplicate texts: the same words in another order, one word apart, or with similar embeddings.

What counts as near depends on the set: "is the square red?" and "is the circle red?" are two questions, while two
captions with eleven equal words and one other are copies. So every criterion is calibrated on the training texts: it is
only as loose as unrelated texts of the set permit (ours).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from frevl.data.names import text_content, word_pattern

__all__ = [
    "CRITERIA",
    "ORDINARY",
    "Criterion",
    "NearDuplicates",
    "choose_criteria",
    "expected_more",
    "met_by",
    "normal_text",
    "one_word_apart",
    "words_of",
]

ORDINARY = 0.005
"""Maximum share of training texts that meet a criterion with a training text of another image."""

COSINES = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
LENGTHS = (3, 4, 5, 6, 8, 10, 12, 16)  # minimum words for a text to be compared word by word
CRITERIA = {
    "same words": "the same words in another order",
    "one word": "one word added, dropped, replaced or moved",
    "cosine": "similar by the cosine of their embeddings",
}
_ROWS_AT_ONCE = 512

_SYMBOLS = "<>=+$%#"  # what they stand for changes what is said
_BRANDS = "\u00a9\u00ae\u2122"
_MINUS = r"(?<!\w)-(?=\d)\w+"
_ASCII_WORD = re.compile(rf"{_MINUS}|\w+|[{_SYMBOLS}]")


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text, ignoring case, punctuation and invisible characters.

    Symbols such as ``<`` and emojis are words, and ``-5`` is another word than ``5``.
    """
    plain = text_content(text).casefold()
    if plain.isascii():
        return tuple(_ASCII_WORD.findall(plain))
    pieces = _any_piece().findall("".join(char for char in plain if not _invisible(char)))
    return tuple(piece for piece in pieces if len(piece) > 1 or _is_word(piece))


@lru_cache(1)
def _any_piece() -> re.Pattern[str]:
    return re.compile(rf"{_MINUS}|{word_pattern()}|\S")


@lru_cache(4096)
def _invisible(char: str) -> bool:
    return unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f"  # forms of one emoji


@lru_cache(4096)
def _is_word(char: str) -> bool:
    kind = unicodedata.category(char)
    symbol = kind in ("Sm", "Sc", "So") and char not in _BRANDS if not char.isascii() else char in _SYMBOLS
    return symbol or kind[0] in "LNM" or char == "_"


def normal_text(text: str) -> str:
    """Normalise a text for comparison: no case, punctuation or extra spaces; see `words_of`."""
    return " ".join(words_of(text))


@dataclass(frozen=True)
class Criterion:
    """A criterion of nearness, and its reliability on this set.

    Attributes:
        name: A key of `CRITERIA`.
        least: Minimum words (the first two) or cosine; None if unrelated texts meet even the strictest, in which case
            it is not used.
        rate: Share of training texts that meet it (the strictest, if unused), in [0, 1].
    """

    name: str
    least: float | None
    rate: float


class NearDuplicates:
    """An index of training texts for comparison with other texts.

    Args:
        texts: Different texts.
        owners: For every text, the images (clusters) that it belongs to.
        vectors: ``(texts, dim)`` embeddings at unit length, float32; None compares only words.
    """

    def __init__(self, texts: Sequence[str], owners: Sequence[frozenset[str]], vectors: np.ndarray | None) -> None:
        self.texts, self.owners, self.vectors = list(texts), list(owners), vectors
        self._rows_of: dict[str, dict[int, list[int]]] = {"same words": {}, "one word": {}}
        for row, text in enumerate(self.texts):
            for criterion, keys in _keys(words_of(text)).items():
                for key in keys:
                    self._rows_of[criterion].setdefault(key, []).append(row)
        self._at: dict[str, list[int]] = {}
        for row, images in enumerate(self.owners):
            for image in images:
                self._at.setdefault(image, []).append(row)

    def nearest(
        self, texts: Sequence[str], owners: Sequence[frozenset[str]], vectors: np.ndarray | None
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Find the nearest text of another image, by every criterion.

        Args:
            texts: ``n`` texts.
            owners: The images that each of them belongs to; texts of these images do not count.
            vectors: ``(n, dim)`` at unit length, or None.

        Returns:
            For each criterion, ``(n,)`` strengths (number of words of the shorter text, 0 if none; or cosine, -1 if
            none), and ``(n,)`` rows of the training texts.
        """
        found = {name: (np.zeros(len(texts)), np.zeros(len(texts), np.int64)) for name in self._rows_of}
        for i, (text, own) in enumerate(zip(texts, owners, strict=True)):
            words = words_of(text)
            for name, keys in _keys(words).items():
                found[name][0][i], found[name][1][i] = self._longest(words, own, name, keys)
        if vectors is not None and self.vectors is not None:
            found["cosine"] = self._closest(owners, vectors)
        return found

    def _longest(self, words: tuple[str, ...], own: frozenset[str], name: str, keys: list[int]) -> tuple[int, int]:
        """Return the length and row of the longest near text of another image; 0 and 0 if none."""
        best = (0, 0)
        for key in keys:
            for row in self._rows_of[name].get(key, ()):
                other = words_of(self.texts[row])
                if other != words and own.isdisjoint(self.owners[row]):
                    best = max(best, (min(len(words), len(other)), -row))
                    if best[0] == len(words):  # none can be longer, and templates yield thousands of this length
                        return best[0], row
        return best[0], -best[1]

    def _closest(self, owners: Sequence[frozenset[str]], vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pool = self.vectors
        best, rows = np.full(len(vectors), -1.0, np.float32), np.zeros(len(vectors), np.int64)
        if pool is None or len(pool) == 0:
            return best, rows
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            cosines = vectors[start : start + _ROWS_AT_ONCE] @ pool.T
            for row, own in enumerate(owners[start : start + _ROWS_AT_ONCE]):
                cosines[row, [other for image in own for other in self._at.get(image, ())]] = -1.0
            part = slice(start, start + len(cosines))
            rows[part], best[part] = cosines.argmax(axis=1), cosines.max(axis=1)
        return best, rows


def choose_criteria(nearest: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[Criterion]:
    """Choose the loosest bound for each criterion that at most `ORDINARY` of the training texts reach.

    Args:
        nearest: Result of `NearDuplicates.nearest` for training texts.
    """
    chosen = []
    for name, (strength, _) in nearest.items():
        ladder: tuple[float, ...] = COSINES if name == "cosine" else LENGTHS
        rates = [float((strength >= least).mean()) for least in ladder]
        fitting = [at for at, rate in enumerate(rates) if rate <= ORDINARY]
        chosen.append(
            Criterion(name, ladder[fitting[0]], rates[fitting[0]]) if fitting else Criterion(name, None, rates[-1])
        )
    return chosen


def met_by(nearest: dict[str, tuple[np.ndarray, np.ndarray]], criteria: Sequence[Criterion]) -> dict[str, np.ndarray]:
    """Return for each criterion which texts have a near duplicate, ``(n,)`` bool."""
    return {
        one.name: nearest[one.name][0] >= one.least
        if one.least is not None
        else np.zeros(len(nearest[one.name][0]), bool)
        for one in criteria
    }


def expected_more(found: int, of: int, usual: int, among: int) -> float:
    """Return the one-sided p-value of Fisher's exact test: the chance of at least as many if both were alike.

    Args:
        found: Number found among `of` test items.
        of: Test items.
        usual: Number found among `among` training items.
        among: Training items.
    """
    total, all_ = found + usual, of + among

    def choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    whole = choose(all_, total)
    tail = range(found, min(of, total) + 1)
    return min(1.0, sum(math.exp(choose(of, k) + choose(among, total - k) - whole) for k in tail if total - k <= among))


def one_word_apart(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """Return whether two texts differ by one word added, dropped, replaced or moved."""
    return a != b and not set(_keys(a)["one word"]).isdisjoint(_keys(b)["one word"])


def _keys(words: tuple[str, ...]) -> dict[str, list[int]]:
    """Return hashes that near texts share: of the sorted words, of the text, and of the text without each word.

    They are in word order, so that every process picks the same one among equals, regardless of hash values.
    """
    without = [hash(words[:at] + words[at + 1 :]) for at in range(len(words))]
    return {"same words": [hash(tuple(sorted(words)))], "one word": list(dict.fromkeys([hash(words), *without]))}
