"""Text leaks: test texts and pairs that occur, exactly or nearly, in the training pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.data_quality.near_duplicates import (
    CRITERIA,
    ORDINARY,
    Criterion,
    NearDuplicates,
    choose_criteria,
    expected_more,
    met_by,
    normal_text,
    one_word_apart,
    words_of,
)
from frevl.diagnosis.findings import Finding
from frevl.diagnosis.splits import Splits
from frevl.errors import counted
from frevl.runs.targets import match_truth

__all__ = ["near_pair_claim", "near_text_claim", "same_text_claim", "text_leak_findings"]

_MOST_TEXTS = 20_000
_MOST_MEASURED = 2_000
_FEWEST_MEASURED = 100  # texts; with fewer, the usual rate is unknown
_P = 0.01  # p-value below which there are more near copies than similarity explains
_SURE = 2.58  # standard errors: one-sided p < 0.005
_SHOWN = 20
_NOTHING = "Nothing to do."
_SAME = "Texts are compared ignoring case, punctuation and spacing."


def text_leak_findings(
    splits: Splits, hashes: dict[str, str], alike: dict[str, str], leaked: set[int]
) -> list[Finding]:
    """Find test texts and pairs that occur, verbatim or nearly, in the training or development pairs.

    Args:
        splits: The pairs.
        hashes: Content hash of every image.
        alike: Test images that occur, exactly or nearly, in training or development, with their id there.
        leaked: Rows of test pairs that occur there exactly.

    Returns:
        ``same-text``, ``near-same-text`` and ``near-same-pair``.
    """
    known = _Texts.of([_right(splits.train, splits.task), _right(splits.dev, splits.task)])
    tested = _Texts.of([_right(splits.test, splits.task)])
    near, criteria = _near_texts(splits, known, tested)
    return [_same_texts(known, tested), near, _near_pairs(splits, hashes, alike, leaked, criteria)]


def _right(pairs: Pairs, task: str) -> Pairs:
    """Return the right pairs in matching: a wrong pair has another image's text, which would count as a copy."""
    if task != "matching":
        return pairs
    rows = np.flatnonzero(match_truth(pairs).numpy() > 0.5)
    return pairs.select(rows) if len(rows) else pairs


class _Texts:
    """Distinct texts as first written in the file, with the clusters (images) they belong to."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}
        self.at: dict[str, set[str]] = {}

    def recurring(self, elsewhere: Callable[[str], bool]) -> np.ndarray:
        """Return the share of each cluster's texts that also occur elsewhere, ``(clusters,)``."""
        texts_of: dict[str, list[str]] = {}
        for text, clusters in self.at.items():
            for cluster in clusters:
                texts_of.setdefault(cluster, []).append(text)
        return np.array([np.mean([elsewhere(text) for text in texts]) for cluster, texts in texts_of.items()])

    @classmethod
    def of(cls, parts: Iterable[Pairs]) -> _Texts:
        found = cls()
        normal: dict[str, str] = {}
        for part in parts:
            for cluster, text in zip(part.clusters, part.texts, strict=True):
                if text not in normal:
                    normal[text] = normal_text(text)
                name = normal[text]
                found.first.setdefault(name, text)
                found.at.setdefault(name, set()).add(cluster)
        return found


def _same_texts(known: _Texts, tested: _Texts) -> Finding:
    """Compare how often test texts recur in training with how often training texts do.

    Repeated texts are normal for templates and short questions, and a leak for captions.
    """
    shared = [text for text in tested.at if text in known.at]
    share = 100 * len(shared) / len(tested.at)
    # Both are means over images of the share of recurring texts, so they agree if test images are like the others.
    usual = known.recurring(lambda text: len(known.at[text]) > 1)
    found = tested.recurring(lambda text: text in known.at)
    error = float(np.hypot(usual.std() / len(usual) ** 0.5, found.std() / len(found) ** 0.5))
    more = float(found.mean() - usual.mean())
    leak = bool(shared) and more > _SURE * error
    claim, advice = same_text_claim(len(shared), len(tested.at), 100 * found.mean(), 100 * usual.mean(), leak=leak)
    return Finding(
        name="same-text",
        section="data",
        claim=claim,
        value=share,
        ci95=None,
        how=(
            f"{_SAME} Percent of distinct test texts. It counts as a leak if the mean share over test images "
            f"exceeds that over training images by more than {_SURE:g} standard errors (one-sided Welch test over "
            "images, p < 0.005)."
        ),
        advice=advice,
        table=[{"text": tested.first[text]} for text in shared[:_SHOWN]] if leak else [],
    )


def same_text_claim(shared: int, texts: int, found: float, usual: float, *, leak: bool) -> tuple[str, str]:
    """Return claim and advice on texts that occur verbatim in both training and test.

    Args:
        shared: Distinct test texts that also occur in the training or development pairs.
        texts: Different test texts.
        found: Percent of its texts that a test image shares with training images, on average.
        usual: Percent of its texts that a training image shares with other training images.
        leak: Whether the first is measurably more than the second.
    """
    claim = (
        f"{shared:,} of {counted(texts, 'different test text')} ({100 * shared / texts:.1f} %) "
        f"{'is' if shared == 1 else 'are'} in the training or development pairs word for word; a test image shares "
        f"{found:.1f} % of its texts with training images, a training image {usual:.1f} % with other training images"
    )
    if leak:
        return (
            f"{claim}: more than is usual in this set.",
            "More texts are shared with training than is usual in this set: if they are captions or sentences, "
            "split the pairs so that no text is in both training and test.",
        )
    return f"{claim}.", "Texts recur no more than is usual in this set: nothing to do." if shared else _NOTHING


def _near_texts(splits: Splits, known: _Texts, tested: _Texts) -> tuple[Finding, list[Criterion]]:
    random = np.random.default_rng(splits.seed)
    pool = _some(list(known.at), _MOST_TEXTS, random)
    further = _some([text for text in tested.at if text not in known.at], _MOST_TEXTS, random)
    # Texts of several images are left out here, just as verbatim repeats are left out of the test texts.
    measured = _some([text for text in pool if len(known.at[text]) == 1], _MOST_MEASURED, random)
    if not further:
        return _nothing(
            "Every test text is in the training or development pairs word for word; none is left to compare.", 0
        ), []
    if len(measured) < _FEWEST_MEASURED:
        claim = (
            f"Near copies cannot be distinguished from unrelated texts: only {len(measured):,} training texts "
            "have one image."
        )
        return _nothing(claim, len(further)), []
    texts = NearDuplicates(
        pool, [frozenset(known.at[text]) for text in pool], _unit(splits, [known.first[t] for t in pool])
    )
    usual = texts.nearest(
        measured, [frozenset(known.at[text]) for text in measured], _unit(splits, [known.first[t] for t in measured])
    )
    criteria = choose_criteria(usual)
    nearest = texts.nearest(
        further, [frozenset(tested.at[text]) for text in further], _unit(splits, [tested.first[t] for t in further])
    )
    ordinary = int(np.any(list(met_by(usual, criteria).values()), axis=0).sum())
    met = met_by(nearest, criteria)
    found = np.flatnonzero(np.any(list(met.values()), axis=0))
    p = expected_more(len(found), len(further), ordinary, len(measured))
    expected = len(further) * ordinary / len(measured)
    table: list[dict[str, Any]] = []
    for row in found[np.argsort(-nearest["cosine"][0][found], kind="stable")] if "cosine" in nearest else found:
        how = next(name for name, hits in met.items() if hits[row])
        other = texts.texts[nearest[how][1][row]]
        table.append(
            {"test text": tested.first[further[row]], "training text": known.first[other], "near by": CRITERIA[how]}
        )
    claim, advice = near_text_claim(len(found), len(further), expected, p)
    finding = Finding(
        name="near-same-text",
        section="data",
        claim=claim,
        value=100 * len(found) / len(further),
        ci95=None,
        how=(
            f"{_in_words(criteria)} Each bound is the loosest that at most {100 * ORDINARY:g} % of {len(measured):,} "
            "training texts reach with a text of another training image; together those are "
            f"{100 * ordinary / len(measured):.2f} % (the false-alarm rate). Against that: one-sided Fisher's "
            f"exact test, p = {p:.4f}, called more than chance below {_P:g}. Percent of the distinct test texts "
            "that are not there word for word."
        ),
        advice=advice,
        table=table[:_SHOWN],
    )
    return finding, criteria


def near_text_claim(found: int, examined: int, expected: float, p: float) -> tuple[str, str]:
    """Return claim and advice on near copies of texts.

    Args:
        found: Test texts with a near copy.
        examined: Number of test texts examined.
        expected: Number expected from similarity alone.
        p: Probability of finding at least as many if that were all.
    """
    claim = (
        f"{found:,} of {examined:,} further test texts {'is a near copy' if found == 1 else 'are near copies'} of a "
        f"training or development text ({expected:.1f} expected from similarity alone)"
    )
    if p < _P:
        return (
            f"{claim}: more than chance explains.",
            "Look at them: if they are edited copies, keep them in the same split as their originals.",
        )
    likeness = "No more than similarity explains: nothing to do, but a look at the first few costs little."
    return f"{claim}.", likeness if found else _NOTHING


def _in_words(criteria: list[Criterion]) -> str:
    parts = []
    for one in criteria:
        if one.least is None:
            parts.append(f"{CRITERIA[one.name]} (not used: {100 * one.rate:.1f} % of the training texts are)")
        elif one.name == "cosine":
            parts.append(f"{CRITERIA[one.name]} ({one.least:g} or more)")
        else:
            parts.append(f"{CRITERIA[one.name]} (texts of {one.least:.0f} words or more)")
    return f"Near copies: {'; '.join(parts)}. {_SAME}"


def _nothing(claim: str, n: int) -> Finding:
    return Finding(
        name="near-same-text",
        section="data",
        claim=claim,
        value=None,
        ci95=None,
        how=f"{n:,} different test texts are not in the training or development pairs word for word. {_SAME}",
        advice=_NOTHING if n == 0 else "Compare some test texts with the training texts by hand.",
    )


def _near_pairs(
    splits: Splits, hashes: dict[str, str], alike: dict[str, str], leaked: set[int], criteria: list[Criterion]
) -> Finding:
    """Find pairs that are not identical, but whose image and text are both the same or nearly so."""
    texts_of: dict[str, dict[str, str]] = {}
    wanted = {hashes[image] for image in alike.values()}
    for part in (splits.train, splits.dev):
        for image, text in zip(part.images, part.texts, strict=True):
            if hashes[image] in wanted:
                texts_of.setdefault(hashes[image], {}).setdefault(normal_text(text), text)
    bounds = {one.name: one.least for one in criteria}
    test = splits.test
    rows = [row for row in range(len(test)) if test.images[row] in alike and row not in leaked]
    vectors = _Vectors(
        splits, [*(test.texts[row] for row in rows), *(t for there in texts_of.values() for t in there.values())]
    )
    table = []
    for row in rows:
        there = texts_of.get(hashes[alike[test.images[row]]], {})
        other = _nearest_of(vectors, test.texts[row], there, bounds)
        if other is not None:
            table.append(
                {
                    "place": test.places[row], "image": test.images[row], "text": test.texts[row],
                    "training image": alike[test.images[row]], "training text": other,
                }
            )  # fmt: skip
    n = len(test) - len(leaked)
    claim, advice = near_pair_claim(len(table), n)
    return Finding(
        name="near-same-pair",
        section="data",
        claim=claim,
        value=100 * len(table) / max(n, 1),
        ci95=None,
        how=(
            "Image with the same content or a near copy (as in same-image and near-same-image), paired with the "
            "same text or a near copy (as in near-same-text). Percent of the test pairs that are not there "
            "exactly."
        ),
        advice=advice,
        table=table[:_SHOWN],
    )


def near_pair_claim(found: int, examined: int) -> tuple[str, str]:
    """Return claim and advice on pairs whose image and text both have a copy or a near copy in one pair."""
    claim = (
        f"{found:,} of {counted(examined, 'further test pair')} {'has' if found == 1 else 'have'} both image and text, "
        "or a near copy of either, in one training or development pair."
    )
    if not found:
        return claim, _NOTHING
    return claim, "Look at them and remove them from one side: a model can answer them from memory."


class _Vectors:
    """Text embeddings, read at once; None if there are no texts, too many, or no encoder for them."""

    def __init__(self, splits: Splits, texts: list[str]) -> None:
        different = list(dict.fromkeys(texts))
        self.row_of = {text: row for row, text in enumerate(different)}
        few = 0 < len(different) <= 2 * _MOST_TEXTS
        self.values = _unit(splits, different) if few else None


def _nearest_of(vectors: _Vectors, text: str, there: dict[str, str], bounds: dict[str, float | None]) -> str | None:
    """Return an image's training text that is the same as a text or near it; None if there is none."""
    if normal_text(text) in there:
        return there[normal_text(text)]
    words = words_of(text)
    for name, other in there.items():
        others = words_of(name)
        shorter = min(len(words), len(others))
        for criterion, near in (
            ("same words", sorted(words) == sorted(others)),
            ("one word", one_word_apart(words, others)),
        ):
            least = bounds.get(criterion)
            if least is not None and near and shorter >= least:
                return other
    least = bounds.get("cosine")
    if least is None or not there or vectors.values is None:
        return None
    cosines = vectors.values[[vectors.row_of[other] for other in there.values()]] @ vectors.values[vectors.row_of[text]]
    return list(there.values())[int(cosines.argmax())] if cosines.max() >= least else None


def _unit(splits: Splits, texts: list[str]) -> np.ndarray | None:
    """Return embeddings of unit length, ``(texts, dim)``; None if no encoder embeds texts."""
    if not splits.store.select_towers("text", splits.encoders_of("text")):
        return None
    values = splits.store.read_texts(texts, encoders=splits.encoders_of("text"))
    unit: np.ndarray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return unit


def _some(items: list[str], most: int, random: np.random.Generator) -> list[str]:
    if len(items) <= most:
        return items
    return [items[i] for i in np.sort(random.permutation(len(items))[:most])]
