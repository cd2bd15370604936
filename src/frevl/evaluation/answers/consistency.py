"""Whether a run gives one answer to all forms of one question about one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import text_content
from frevl.data.pairs import Pairs
from frevl.errors import UsageError, nearest
from frevl.evaluation.intervals import bootstrap_interval
from frevl.runs.scorer import Scorer

__all__ = ["agreement", "evaluate_consistency", "forms_of"]

_PAIRS_AT_ONCE = 16_384


def forms_of(pairs: Pairs, key: str) -> list[NDArray[np.int64]]:
    """Return the rows of every question that is asked about one image in two forms or more.

    Args:
        pairs: Lines; those with the same image and the same value of the key are forms of one question, where their
            texts differ.
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
        if extra.get(key) is not None:
            rows.setdefault((unit, str(extra[key])), {}).setdefault(text_content(text), row)
    found = [np.array(list(own.values()), np.int64) for own in rows.values() if len(own) > 1]
    if not found:
        raise UsageError(
            f"--forms {key}: expected lines with one image, one value of '{key}' and different texts, found no two "
            "such; name the key that stands for a question whatever its words"
        )
    return found


def agreement(answers: Sequence[str], forms: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Return for every question the share of pairs of its forms that have one answer.

    Args:
        answers: One a line.
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
    """Evaluate how often a run gives one answer to all forms of a question.

    Args:
        scorer: The run with its store.
        pairs: Evaluated pairs; their ``clusters`` are what the intervals draw.
        key: That names the question.
        forms: Rows of every question, from `forms_of`.
        hits: ``(n,)`` what every pair earns.

    Returns:
        ``agreement`` (pairs of forms with one answer), ``all_right`` (questions with every form right) and ``accuracy``
        of these lines, in percent with ``ci95``, and how many ``questions`` and ``lines``; and a note.
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
        interval = bootstrap_interval(numbers, own)
        found[name] = 100 * interval.value
        found["ci95"][name] = interval.percent()
    note = (
        f"Forms of one question ('{key}', {len(forms):,} questions, {len(rows):,} lines): {found['agreement']:.1f} % "
        f"of the pairs of forms get one answer, {found['all_right']:.1f} % of the questions are right in every form "
        f"(lines: {found['accuracy']:.1f} %)."
    )
    return found, [note]
