"""Leaks: test images and pairs that also occur, exactly or nearly, in the training or development pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.data_quality.near_duplicates import expected_more, normal_text
from frevl.diagnosis.data_quality.text_leaks import text_leak_findings
from frevl.diagnosis.findings import Finding
from frevl.diagnosis.splits import Splits
from frevl.errors import counted
from frevl.store.usable_pairs import content_of_units

__all__ = [
    "Likeness",
    "leak_findings",
    "likeness_threshold",
    "near_image_claim",
    "nearest_others",
    "same_image_claim",
    "same_images",
    "same_pair_claim",
]

# From loosest to strictest; the loosest that unrelated images of the set do not reach is used.
THRESHOLDS = (0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
_ORDINARY = 0.005  # share of training images that may reach the threshold with another training image
_MOST_MEASURED = 2_000
_MOST_IMAGES = 40_000
_ROWS_AT_ONCE = 512
_SHOWN = 20
_P = 0.01  # p-value below which there are more near copies than similarity explains
_COPIES = {
    "image": "Content hashes of the image files, so copies under other names count.",
    "text": "Hashes of the texts, ignoring spacing and Unicode composition.",
}
_NOTHING = "Nothing to do."
_LIKENESS = "No more than similarity explains: nothing to do, but a look at the first few costs little."


@dataclass(frozen=True)
class Likeness:
    """A cosine above which two images are called near copies, with its measured false-alarm rate.

    Attributes:
        threshold: The cosine, or None if unrelated images reach even the strictest.
        rate: Share of training images that reach it with a training image of different content, in [0, 1].
    """

    threshold: float | None
    rate: float


def leak_findings(splits: Splits) -> list[Finding]:
    """Find test images, pairs and texts among the training and development pairs.

    If there are only texts, they take the place of images; with a single side, pairs are not examined separately.
    """
    seen = [splits.train, splits.dev]
    parts = [splits.test, *seen]
    hashes = {unit: content for part in parts for unit, content in content_of_units(splits.store, part).items()}
    copies = same_images(splits.test, seen, hashes)
    near, alike = _near(splits, hashes, copies)
    if len(splits.train.sides) == 1:
        return [_images(splits, copies), near]
    same_pair, leaked = _pairs(splits, hashes)
    texts = text_leak_findings(splits, hashes, copies | alike, leaked)
    return [_images(splits, copies), near, same_pair, *texts]


def same_images(test: Pairs, seen: list[Pairs], hashes: dict[str, str]) -> dict[str, str]:
    """Return the test images whose content occurs in other pairs, each with its id there."""
    known = {hashes[unit]: unit for part in seen for unit in reversed(list(dict.fromkeys(part.units)))}
    return {unit: known[hashes[unit]] for unit in dict.fromkeys(test.units) if hashes[unit] in known}


def _images(splits: Splits, copies: dict[str, str]) -> Finding:
    test = splits.test
    images = len(set(test.units))
    touched = sum(unit in copies for unit in test.units)
    share = 100 * len(copies) / images
    claim, advice = same_image_claim(len(copies), images, touched, len(test))
    return Finding(
        name="same-image",
        section="data",
        claim=claim,
        value=share,
        ci95=None,
        how=_COPIES[splits.unit] + " Percent of test images.",
        advice=advice,
        table=[
            {f"test {splits.unit}": own, f"training {splits.unit}": other}
            for own, other in list(copies.items())[:_SHOWN]
        ],
    )


def same_image_claim(copies: int, images: int, touched: int, pairs: int) -> tuple[str, str]:
    """Return claim and advice on images in both training and test.

    Args:
        copies: Test images that are also in the training or development pairs.
        images: Number of distinct test images.
        touched: Test pairs with such an image.
        pairs: Test pairs.
    """
    if not copies:
        return f"None of the {counted(images, 'test image')} is in the training or development pairs.", _NOTHING
    return (
        f"{copies:,} of {counted(images, 'test image')} {'is' if copies == 1 else 'are'} also in the training or "
        f"development pairs ({touched:,} of {counted(pairs, 'test pair')}): all scores are too optimistic.",
        "Split by image content: remove these images from one side and diagnose again.",
    )


def nearest_others(
    queries: np.ndarray, pool: np.ndarray, *, not_these: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest item of a pool for every query, by cosine.

    Args:
        queries: ``(n, dim)`` of unit length.
        pool: ``(m, dim)`` of unit length.
        not_these: For every query, the rows of the pool to exclude.

    Returns:
        ``(n,)`` cosines, -1 if everything is excluded, and ``(n,)`` rows of the pool.
    """
    best, rows = np.empty(len(queries), np.float32), np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _ROWS_AT_ONCE):
        cosines = queries[start : start + _ROWS_AT_ONCE] @ pool.T
        for row, left_out in enumerate(not_these[start : start + _ROWS_AT_ONCE]):
            cosines[row, left_out] = -1.0
        part = slice(start, start + len(cosines))
        rows[part] = cosines.argmax(axis=1)
        best[part] = cosines.max(axis=1)
    return best, rows


def likeness_threshold(cosines: np.ndarray) -> Likeness:
    """Choose the threshold from the training images' cosines to their nearest other training image."""
    for threshold in THRESHOLDS:
        rate = float((cosines >= threshold).mean())
        if rate <= _ORDINARY:
            return Likeness(threshold, rate)
    return Likeness(None, float((cosines >= THRESHOLDS[-1]).mean()))


def _near(splits: Splits, hashes: dict[str, str], copies: dict[str, str]) -> tuple[Finding, dict[str, str]]:
    """Return the finding, and the test images with a near copy, each with the copy's id."""
    random = np.random.default_rng(splits.seed)
    known = _some(list(dict.fromkeys([*splits.train.units, *splits.dev.units])), _MOST_IMAGES, random)
    examined = _some([unit for unit in dict.fromkeys(splits.test.units) if unit not in copies], _MOST_IMAGES, random)
    how = (
        "Cosine of the stored embeddings to the nearest training or development image of different content. The "
        f"threshold is the loosest of {', '.join(f'{t:g}' for t in THRESHOLDS)} that at most {100 * _ORDINARY:g} % "
        "of the training images reach with a training image of different content"
    )
    if len(known) < 2 or not examined:
        return _no_threshold("There are too few images to search for near copies.", how + ".", 0.0), {}
    pool, queries = _unit(splits, known), _unit(splits, examined)
    rows_of: dict[str, list[int]] = {}
    for row, image in enumerate(known):
        rows_of.setdefault(hashes[image], []).append(row)
    measured = _some(list(range(len(known))), _MOST_MEASURED, random)
    same = [np.array(rows_of[hashes[known[row]]]) for row in measured]
    likeness = likeness_threshold(nearest_others(pool[measured], pool, not_these=same)[0])
    how += f"; measured {100 * likeness.rate:.2f} % (the false-alarm rate)."
    if likeness.threshold is None:
        claim = (
            f"Near copies cannot be distinguished from unrelated images: {100 * likeness.rate:.1f} % of the "
            f"training images have another training image at a cosine of {THRESHOLDS[-1]:g} or more."
        )
        return _no_threshold(claim, how, likeness.rate), {}
    cosines, rows = nearest_others(queries, pool, not_these=[np.zeros(0, np.int64)] * len(queries))
    found = np.flatnonzero(cosines >= likeness.threshold)
    expected = likeness.rate * len(examined)
    usual = round(likeness.rate * len(measured))
    p = expected_more(len(found), len(examined), usual, len(measured))
    worst = found[np.argsort(-cosines[found], kind="stable")]
    claim, advice = near_image_claim(len(found), len(examined), likeness.threshold, expected, p)
    finding = Finding(
        name="near-same-image",
        section="data",
        claim=claim,
        value=100 * len(found) / len(examined),
        ci95=None,
        how=(
            f"{how} Against that rate: one-sided Fisher's exact test, p = {p:.4f}, called more than chance below "
            f"{_P:g}. Percent of test images."
        ),
        advice=advice,
        table=[
            {
                f"test {splits.unit}": examined[row],
                f"training {splits.unit}": known[rows[row]],
                "cosine": float(cosines[row]),
            }
            for row in worst[:_SHOWN]
        ],
    )
    return finding, {examined[row]: known[rows[row]] for row in found}


def near_image_claim(found: int, examined: int, threshold: float, expected: float, p: float) -> tuple[str, str]:
    """Return claim and advice on near copies of images.

    Args:
        found: Test images with a near copy.
        examined: Number of test images examined.
        threshold: Cosine above which images count as near.
        expected: Number expected from similarity alone.
        p: Probability of finding at least as many if that were all.
    """
    claim = (
        f"{found:,} of {examined:,} further test images {'has' if found == 1 else 'have'} a near copy in the training "
        f"or development pairs (cosine {threshold:g} or more; {expected:.1f} expected from similarity alone)"
    )
    if p < _P:
        return (
            f"{claim}: more than chance explains.",
            "Look at them; keep images of the same scene in one split with the key 'cluster'.",
        )
    return f"{claim}.", _LIKENESS if found else _NOTHING


def same_pair_claim(same: int, pairs: int) -> tuple[str, str]:
    """Return claim and advice on test pairs that are also in the training or development pairs."""
    if not same:
        return f"None of the {counted(pairs, 'test pair')} is in the training or development pairs.", _NOTHING
    return (
        f"{same:,} of {counted(pairs, 'test pair')} {'is' if same == 1 else 'are'} also in the training or "
        "development pairs (same image, same text).",
        "Remove them from one side: a model can answer them from memory.",
    )


def _no_threshold(claim: str, how: str, rate: float) -> Finding:
    advice = (
        "If they are frames of one film, or copies, give them the same value of the key 'cluster' and split by it."
        if rate > 0
        else _NOTHING
    )
    return Finding("near-same-image", "data", claim, None, None, how, advice)


def _unit(splits: Splits, ids: list[str]) -> np.ndarray:
    read = splits.store.read_images if splits.unit == "image" else splits.store.read_texts
    values = read(ids, encoders=splits.encoders_of(splits.unit))
    unit: np.ndarray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return unit


def _some(items: list[Any], most: int, random: np.random.Generator) -> list[Any]:
    if len(items) <= most:
        return items
    return [items[i] for i in np.sort(random.permutation(len(items))[:most])]


def _pairs(splits: Splits, hashes: dict[str, str]) -> tuple[Finding, set[int]]:
    """Return the finding, and the rows of test pairs that are also in the training or development pairs."""

    def key(pairs: Pairs, row: int) -> tuple[str, str]:
        return hashes[pairs.images[row]], normal_text(pairs.texts[row])

    known = {key(part, row) for part in (splits.train, splits.dev) for row in range(len(part))}
    same = [row for row in range(len(splits.test)) if key(splits.test, row) in known]
    n = len(splits.test)
    claim, advice = same_pair_claim(len(same), n)
    finding = Finding(
        name="same-pair",
        section="data",
        claim=claim,
        value=100 * len(same) / n,
        ci95=None,
        how="Image content hash and text, ignoring case, punctuation and spacing. Percent of test pairs.",
        advice=advice,
        table=[
            {"place": splits.test.places[row], "image": splits.test.images[row], "text": splits.test.texts[row]}
            for row in same[:_SHOWN]
        ],
    )
    return finding, set(same)
