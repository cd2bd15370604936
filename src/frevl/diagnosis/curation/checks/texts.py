"""The filter ``text``: texts that say nothing of their picture, whatever the picture is."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import text_content
from frevl.diagnosis.curation.lines import Found, Lines
from frevl.store.grouping.image_vectors import unit_vectors
from frevl.store.usable_pairs import content_of_units

__all__ = ["SCRIPT_SHARE", "boilerplate", "file_name", "has_words", "script_of", "text_filter"]

SCRIPT_SHARE = 0.95
"""Share of the texts that are written in one script from which on another script is out of place."""

FEWEST_PICTURES = 5
"""Different pictures that a text must stand with to be looked at as boilerplate."""

_DRAWS = 400  # random sets of as many pictures
_LEVEL = 0.99  # of the random sets are less alike than the pictures of an ordinary text
_MOST_OF_A_TEXT = 200  # pictures that are compared

_NAMES = (
    r".*[^\s.]\.(jpe?g|png|gif|webp|bmp|tiff?|hei[cf]|avif|svg|mp4|mov|pdf)",
    r"(img|image|dsc[fn]?|dscn|pict?|photo|picture|pxl|mvimg|vid|scan|untitled|screenshot|gopr|p|imgp|cimg|sam|s\w?r)"
    r"[ _-]?\(?\d[\d _.:-]*\)?(at [\d.: ]+)?( ?[ap]m)?(~\d+|\(\d+\))?",
    r"\d{8}[ _-]?\d{6}\w*",
    r"(https?://|www\.)\S+",
    r"[0-9a-f]{16,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    r"(screenshot|screen shot|whatsapp image) .*\d{2}[.:-]\d{2}.*",
)
_FILE_NAME = re.compile("|".join(f"(?:{name})" for name in _NAMES), re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]")


def text_filter(lines: Lines, _: Mapping[str, Found]) -> Found:
    """Flag texts without a word, file names, texts in another script than the others, and boilerplate.

    Boilerplate is asked of captions only: one question stands with many pictures by right.
    """
    pairs = lines.pairs
    if "text" not in pairs.sides:
        return Found([{"text": None}] * len(lines), np.zeros(len(lines), bool))
    script, others = _usual_script(pairs.texts)
    reasons: list[list[str]] = []
    for text in pairs.texts:
        own = []
        if not has_words(text):
            own.append("no words")
        elif file_name(text):
            own.append("file name")
        elif script is not None and script_of(text) not in (script, None):
            own.append("other script")
        reasons.append(own)
    notes: list[str] = []
    if lines.task == "matching" and lines.image_towers:
        for row in np.flatnonzero(_boilerplate_lines(lines, notes)).tolist():
            reasons[row].append("on many different pictures")
    if script is None and others:
        notes.append(f"The texts are written in several scripts ({others}), so that none is out of place.")
    counts = Counter(reason for own in reasons for reason in own)
    return Found(
        [{"text": own} for own in reasons],
        np.array([bool(own) for own in reasons]),
        notes=tuple(notes),
        figures={"reasons": dict(sorted(counts.items())), "script": script},
    )


def has_words(text: str) -> bool:
    """Tell whether a text has a letter of any script."""
    return _WORD.search(text) is not None


def file_name(text: str) -> bool:
    """Tell whether a text is the name of a file, an address, or what a camera calls its pictures."""
    return _FILE_NAME.fullmatch(text.strip()) is not None


def script_of(text: str) -> str | None:
    """Return the script that most letters of a text belong to, such as ``LATIN``; None without letters.

    Chinese characters, kana and their like are one script, because Japanese mixes them.
    """
    counts = Counter(filter(None, (_script(letter) for letter in unicodedata.normalize("NFKC", text))))
    return counts.most_common(1)[0][0] if counts else None


@lru_cache(4096)
def _script(letter: str) -> str | None:
    if not unicodedata.category(letter).startswith("L"):
        return None
    name = unicodedata.name(letter, "").split(" ")[0].split("-")[0]
    if name in ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "IDEOGRAPHIC"):
        return "CJK"
    return None if name in ("", "MODIFIER", "FEMININE", "MASCULINE") else name


def _usual_script(texts: Sequence[str]) -> tuple[str | None, str]:
    """Return the script of nearly all different texts, None without one, and the most frequent ones in words."""
    counts = Counter(filter(None, (script_of(text) for text in dict.fromkeys(texts))))
    total = sum(counts.values())
    if not total:
        return None, ""
    script, most = counts.most_common(1)[0]
    listed = ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in counts.most_common(3))
    return (script if most >= SCRIPT_SHARE * total else None), listed


def _boilerplate_lines(lines: Lines, notes: list[str]) -> NDArray[np.bool_]:
    pairs = lines.pairs
    hashes = content_of_units(lines.store, pairs)
    number_of: dict[str, int] = {}
    numbers = np.array([number_of.setdefault(hashes.get(image, image), len(number_of)) for image in pairs.images])
    texts = [text_content(" ".join(text.casefold().split())) for text in pairs.texts]
    pictures: dict[str, dict[int, None]] = {}
    for text, number in zip(texts, numbers.tolist(), strict=True):
        pictures.setdefault(text, {})[number] = None
    asked = {text: list(own) for text, own in pictures.items() if len(own) >= FEWEST_PICTURES}
    # Random sets would be nearly the same pictures, which tell nothing of the text.
    usual = [text for text, own in asked.items() if 2 * len(own) > len(number_of)]
    for text in usual:
        count = len(asked.pop(text))
        notes.append(
            f"'{text[:60]}' stands with {count:,} of {len(number_of):,} different pictures: with more than half, "
            "whether it says anything of them cannot be told, and it was not judged."
        )
    if not asked:
        return np.zeros(len(pairs), bool)
    first = dict(zip(numbers[::-1].tolist(), pairs.images[::-1], strict=True))
    vectors = unit_vectors(
        lines.store, [first[number] for number in range(len(number_of))], lines.image_towers, half=True
    )
    flags = boilerplate(vectors, list(asked.values()), seed=lines.session.seed)
    found = {text for text, flag in zip(asked, flags, strict=True) if flag}
    return np.array([text in found for text in texts])


def boilerplate(vectors: NDArray[np.floating], groups: Sequence[Sequence[int]], *, seed: int = 0) -> NDArray[np.bool_]:
    """Tell of every text whether its pictures are no more alike than pictures drawn at random.

    A text that describes its pictures stands with pictures that are alike; "image not found" stands with any. The mean
    cosine of the pictures of a text is compared with those of random sets of as many pictures (ours).

    Args:
        vectors: ``(n, d)`` of unit length, one a picture.
        groups: Of every text the rows of its pictures, at least two.
        seed: Of the random sets.

    Returns:
        ``(texts,)`` bool.
    """
    random = np.random.default_rng(seed)
    centre = vectors.mean(axis=0, dtype=np.float32)  # what all pictures share is no likeness
    flags = np.zeros(len(groups), bool)
    bounds: dict[int, float] = {}
    for number, rows in enumerate(groups):
        own = np.asarray(rows)
        if len(own) > _MOST_OF_A_TEXT:
            own = random.choice(own, _MOST_OF_A_TEXT, replace=False)
        size = min(len(own), len(vectors))
        if size not in bounds:
            drawn = [
                _likeness(vectors[random.choice(len(vectors), size, replace=False)], centre) for _ in range(_DRAWS)
            ]
            bounds[size] = float(np.quantile(drawn, _LEVEL))
        flags[number] = _likeness(vectors[own], centre) <= bounds[size]
    return flags


def _likeness(vectors: NDArray[np.floating], centre: NDArray[np.float32]) -> float:
    """Return the mean cosine of all pairs of ``(k, d)`` vectors as seen from a centre, k at least 2."""
    wide = vectors.astype(np.float32) - centre
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.float32(1e-6))
    total = wide.sum(axis=0)
    k = len(wide)
    return float((total @ total - np.einsum("kd,kd->", wide, wide)) / (k * (k - 1)))
