"""The filter ``text``: texts that cannot describe any image."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import text_content
from frevl.data.packed.columns import by_value, chosen, joined
from frevl.diagnosis.curation.lines import Found, Lines
from frevl.diagnosis.curation.verdicts.reasons import Reasons
from frevl.diagnosis.curation.verdicts.values import Values
from frevl.diagnosis.data_quality.near_duplicates import normal_text
from frevl.store.grouping.contents import content_numbers, numbers_by
from frevl.store.grouping.unit_vectors import unit_vectors

__all__ = ["SCRIPT_SHARE", "boilerplate", "file_name", "has_words", "script_of", "text_filter"]

SCRIPT_SHARE = 0.95
"""Share of texts in one script from which texts in another script count as out of place."""

FEWEST_PICTURES = 5
"""Minimum number of distinct images with a text for it to be checked as boilerplate."""

_DRAWS = 400  # random sets with the same number of images
_LEVEL = 0.99  # share of the random sets that must be less alike than the images of a normal text
_MOST_OF_A_TEXT = 200  # images compared
_REASONS = ("no words", "file name", "other script", "on many different images")

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
    """Flag texts without words, file names, texts in an unusual script, and boilerplate.

    Boilerplate is checked only for captions: one question may rightly go with many images.
    """
    pairs = lines.pairs
    if "text" not in pairs.sides:
        return Found(Values.same(len(lines), {"text": None}), np.zeros(len(lines), bool))
    script, others = _usual_script(pairs.texts)
    reasons = Reasons(_REASONS, len(lines))
    found = by_value(pairs.texts, lambda text: _reason(text, script), np.int8)
    for number, reason in enumerate(_REASONS[:-1]):
        reasons.add(reason, found == number)
    notes: list[str] = []
    if lines.task == "matching" and lines.image_towers:
        reasons.add(_REASONS[-1], _boilerplate_lines(lines, notes))
    if script is None and others:
        notes.append(f"The texts use several scripts ({others}), so none is out of place.")
    counts = {reason: int(reasons.by(reason).sum()) for reason in sorted(_REASONS)}
    return Found(
        Values(len(lines), lambda part: [{"text": own} for own in reasons[part]]),
        ~reasons.clear,
        notes=tuple(notes),
        figures={"reasons": {reason: count for reason, count in counts.items() if count}, "script": script},
    )


def _reason(text: str, script: str | None) -> int:
    """Return the index in `_REASONS` of what is wrong with a text by itself, or -1."""
    if not has_words(text):
        return 0
    if file_name(text):
        return 1
    return 2 if script is not None and script_of(text) not in (script, None) else -1


def has_words(text: str) -> bool:
    """Return whether a text has a letter of any script."""
    return _WORD.search(text) is not None


def file_name(text: str) -> bool:
    """Return whether a text is a file name, an address, or a camera's default name."""
    return _FILE_NAME.fullmatch(text.strip()) is not None


def script_of(text: str) -> str | None:
    """Return the script of most letters in a text, such as ``LATIN``; None without letters.

    Chinese characters, kana and the like count as one script, because Japanese mixes them.
    """
    if text.isascii():
        return "LATIN" if has_words(text) else None
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
    """Return the script of nearly all distinct texts (None if there is none), and the most frequent ones as text."""
    counts = Counter(filter(None, (script_of(text) for text in joined([texts])[1])))
    total = sum(counts.values())
    if not total:
        return None, ""
    script, most = counts.most_common(1)[0]
    listed = ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in counts.most_common(3))
    return (script if most >= SCRIPT_SHARE * total else None), listed


def _boilerplate_lines(lines: Lines, notes: list[str]) -> NDArray[np.bool_]:
    pairs = lines.pairs
    (units,), names = joined([pairs.images])
    contents = content_numbers(lines.store, names, [pairs])
    images, texts = contents[units], numbers_by(pairs.texts, lambda text: normal_text(text) or _spelling(text))
    distinct = int(contents.max()) + 1
    # Every text with every content, once, in order of appearance; texts are numbered in that order, too.
    first = np.sort(np.unique(texts * distinct + images, return_index=True)[1])
    first = first[np.argsort(texts[first], kind="stable")]
    sizes = np.bincount(texts[first])
    groups = {
        text: images[first[end - size : end]]
        for text, size, end in zip(range(len(sizes)), sizes.tolist(), np.cumsum(sizes).tolist(), strict=True)
        if size >= FEWEST_PICTURES
    }
    for text, own in list(groups.items()):
        # Random sets of that size would hold nearly the same images, so they reveal nothing about the text.
        if 2 * len(own) > distinct:
            del groups[text]
            spelling = _spelling(pairs.texts[int(np.argmax(texts == text))])
            notes.append(
                f"'{spelling[:60]}' goes with {len(own):,} of {distinct:,} distinct images; above half, boilerplate "
                "cannot be detected, so it was not checked."
            )
    if not groups:
        return np.zeros(len(pairs), bool)
    one_each = chosen(names, np.unique(contents, return_index=True)[1])
    vectors = unit_vectors(lines.store, one_each, lines.image_towers, half=True)
    flags = boilerplate(vectors, list(groups.values()), seed=lines.session.seed)
    return np.isin(texts, np.array(list(groups))[flags])


def _spelling(text: str) -> str:
    """Return a text without its case, and with single blanks."""
    return text_content(" ".join(text.casefold().split()))


def boilerplate(vectors: NDArray[np.floating], groups: Sequence[Sequence[int]], *, seed: int = 0) -> NDArray[np.bool_]:
    """Return for every text whether its images are no more alike than random ones.

    A descriptive text goes with similar images; "image not found" goes with any. The mean cosine of a text's images
    is compared with that of random sets of the same size (ours).

    Args:
        vectors: ``(n, d)`` of unit length, one per image.
        groups: For every text, the rows of its images, at least two.
        seed: Random seed for the sets.

    Returns:
        ``(texts,)`` bool.
    """
    random = np.random.default_rng(seed)
    centre = vectors.mean(axis=0, dtype=np.float32)  # what all images share is not similarity
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
    """Return the mean cosine over all pairs of ``(k, d)`` vectors, centred, with k at least 2."""
    wide = vectors.astype(np.float32) - centre
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.float32(1e-6))
    total = wide.sum(axis=0)
    k = len(wide)
    return float((total @ total - np.einsum("kd,kd->", wide, wide)) / (k * (k - 1)))
