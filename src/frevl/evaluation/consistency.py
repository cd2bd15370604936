"""Consistency: whether a run gives the same answer to all rephrasings of a question about an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import has_value, text_content, value_name
from frevl.data.pairs import Pairs
from frevl.errors import UsageError, nearest
from frevl.evaluation.intervals import hit_interval
from frevl.runs.scorer import Scorer

__all__ = ["agreement", "evaluate_consistency", "forms_of"]

_PAIRS_AT_ONCE = 16_384


def forms_of(pairs: Pairs, key: str) -> list[NDArray[np.int64]]:
    """Return the rows of every question asked about an image in at least two forms.

    Args:
        pairs: Pairs; those with the same image and key value but different texts are forms of one question.
        key: A key of the pairs, such as ``question``.

    Raises:
        UsageError: No pair has the key, or no question has two forms.
    """
    known = sorted({name for extra in pairs.extras for name in extra})
    if key not in known:
        hint = nearest(key, known) if known else "The pairs have no further keys."
        raise UsageError(f"--forms {key}: no pair has this key. {hint}")
    rows: dict[tuple[str, str], dict[str, int]] = {}
    for row, (unit, text, extra) in enumerate(zip(pairs.images, pairs.texts, pairs.extras, strict=True)):
        if has_value(extra.get(key)):
            rows.setdefault((unit, value_name(extra[key])), {}).setdefault(text_content(text), row)
    found = [np.array(list(own.values()), np.int64) for own in rows.values() if len(own) > 1]
    if not found:
        raise UsageError(
            f"--forms {key}: expected lines with the same image, the same '{key}' and different texts, found no "
            "two such lines; give the key that identifies a question regardless of its wording"
        )
    return found


def agreement(answers: Sequence[str], forms: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return, for every question, the share of pairs of forms with the same answer.

    Args:
        answers: One answer per line.
        forms: From `forms_of`.

    Returns:
        ``(questions,)`` in [0, 1].
    """
    _, numbers = np.unique(np.asarray(answers, dtype=object).astype(str), return_inverse=True)
    shares = []
    for rows in forms:
        counts = np.bincount(numbers[rows]).astype(np.float64)
        k = len(rows)
        shares.append(float((counts * (counts - 1)).sum()) / (k * (k - 1)))
    return np.array(shares)


def evaluate_consistency(
    scorer: Scorer, pairs: Pairs, key: str, forms: Sequence[NDArray[np.int64]], hits: NDArray[np.float64]
) -> tuple[dict[str, Any], list[str]]:
    """Evaluate how consistently a run answers all forms of a question.

    Args:
        scorer: The run with its store.
        pairs: Evaluated pairs; intervals resample their ``clusters``.
        key: Key that identifies the question.
        forms: Rows of every question, from `forms_of`.
        hits: ``(n,)`` credit of every pair.

    Returns:
        ``agreement`` (pairs of forms with the same answer), ``all_right`` (questions answered right in every form) and
        ``accuracy`` on these lines, in percent with ``ci95``, the numbers of ``questions`` and ``lines``, and a note.
    """
    rows = np.concatenate(list(forms))
    answers: dict[int, str] = {}
    asked = rows.tolist()
    for start in range(0, len(asked), _PAIRS_AT_ONCE):
        part = asked[start : start + _PAIRS_AT_ONCE]
        said = scorer.predict([(pairs.images[row], pairs.texts[row]) for row in part])
        answers |= {row: str(one.label) for row, one in zip(part, said, strict=True)}
    named = [answers.get(row, "") for row in range(len(pairs))]
    clusters = pairs.clusters
    of_question = [clusters[int(own[0])] for own in forms]
    values = {
        "agreement": (agreement(named, forms), of_question),
        "all_right": (np.array([float(hits[own].min()) for own in forms]), of_question),
        "accuracy": (hits[rows], [clusters[row] for row in asked]),
    }
    found: dict[str, Any] = {"key": key, "questions": len(forms), "lines": len(rows), "ci95": {}}
    for name, (numbers, own) in values.items():
        interval = hit_interval(numbers, own)
        found[name] = 100 * interval.value
        found["ci95"][name] = interval.percent()
    note = (
        f"Forms of one question ('{key}', {len(forms):,} questions, {len(rows):,} lines): {found['agreement']:.1f} "
        f"% of the pairs of forms get the same answer, {found['all_right']:.1f} % of the questions are right in "
        f"every form (lines: {found['accuracy']:.1f} %)."
    )
    return found, [note]
