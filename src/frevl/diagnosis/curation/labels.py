"""The filters ``label`` and ``blind`` for wrong labels and for lines whose label the text alone gives away.

Both use models not trained on the line's group. Their answers become the probability that a label is right in
`frevl.diagnosis.data_quality.label_rule`, which the diagnosis uses too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.packed.columns import by_value, chosen, joined
from frevl.data.pairs import Target
from frevl.diagnosis.curation.folds.answers import FOLDS, Answers, out_of_fold
from frevl.diagnosis.curation.folds.each_fold import cut_short
from frevl.diagnosis.curation.lines import Found, Lines
from frevl.diagnosis.curation.verdicts.values import Values
from frevl.diagnosis.curation.word_classifier import by_words, words_weighed
from frevl.diagnosis.data_quality.label_rule import (
    SIMILAR_NOT_COUNTED,
    TRUSTED,
    find_wrong_labels,
    least_accuracy,
    missed,
    stands_out,
)
from frevl.diagnosis.model_specs import SMALL, ModelSpec
from frevl.diagnosis.performance.class_balance import FEWEST_OF_CLASS
from frevl.diagnosis.splits import answers_of, deal_folds
from frevl.errors import PairsError, counted
from frevl.store.grouping.large_arrays import gathered

__all__ = ["GIVEN_AWAY", "blind_filter", "label_filter"]

GIVEN_AWAY = 0.9
"""Probability of the label given the text alone from which a line is flagged as blind ..."""

_ODDS = 3.0  # ... if its odds are this many times those of the label in the file: a frequent label is no leak
_ROWS_AT_ONCE = 16_384
_NAMED = 5  # labels listed in a sentence

# A network needs enough steps: with a diagnosis's 20 epochs in batches of 128, 92 % of the unseen clean lines of
# easy-VQA were right, with these 95 % (research/experiments/log.md).
_REGULARISED = {
    "dropout": 0.4,
    "weight_decay": 0.2,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "epochs": 40,
    "patience": 40,
}


def label_filter(lines: Lines, before: Mapping[str, Found]) -> Found:  # noqa: ARG001 - it needs no other
    """Find wrong labels."""
    given = _given(lines)
    classes, rows, labels = given.classes, given.rows, given.numbers[given.rows]
    if len(classes) < 2 or _groups(lines, rows) < _folds(lines):
        return _silent(lines, "label", given, _too_few("wrong labels", classes, lines))
    kinds = _models(lines, len(rows))
    try:
        answers = [out_of_fold(lines, spec, classes, rows, share=0.4) for spec in kinds]
    except PairsError as error:  # with few groups, a fold may take all lines of a class
        return _silent(
            lines, "label", given, f"wrong labels cannot be found: too little remains without a fold ({error})"
        )
    cut = cut_short(len(frozenset.union(*(one.cut for one in answers))), _folds(lines))
    unchecked = _unchecked(lines, given)
    judged, notes = _known_to_models(labels, classes, answers)
    rows, labels, predicted = rows[judged], labels[judged], [_some(one.probabilities, judged) for one in answers]
    if len(set(labels.tolist())) < 2:
        return _silent(lines, "label", given, f"wrong labels cannot be found: {notes[0]}", cut)
    accuracies = [float((one.argmax(axis=1) == labels).mean()) for one in predicted]
    usual = float(np.bincount(labels).max() / len(labels))
    measured = " and ".join(f"{spec.name} {100 * one:.1f} %" for spec, one in zip(kinds, accuracies, strict=True))
    if min(accuracies) < least_accuracy(usual):
        reason = (
            f"wrong labels cannot be distinguished from model errors (accuracy on held-out lines: {measured}; always "
            f"the most frequent label: {100 * usual:.1f} %)"
        )
        return _silent(lines, "label", given, reason, cut)
    (groups,), _ = joined([chosen(lines.pairs.clusters, rows)])
    found = find_wrong_labels(labels, predicted, groups, seed=lines.session.seed)
    wrong = found.rows
    belief = np.full(len(lines), np.nan)
    belief[rows] = found.beliefs
    likelier: NDArray[np.int32] = np.full(len(lines), -1, np.int32)
    likelier[rows] = found.likelier

    def values(part: slice) -> list[dict[str, Any]]:
        both = zip(given.names(part), given.named(likelier[part]), belief[part].tolist(), strict=True)
        return [{"label": [name, other, None if np.isnan(p) else round(p, 6)]} for name, other, p in both]

    flagged = np.zeros(len(lines), bool)
    flagged[rows[wrong]] = True
    share, (low, high) = found.wrong_share, found.ci95
    doubts = []
    clause = missed(found.found_share, found.most_missed, found.ci95)
    if len(wrong) and clause:
        doubts = [f"{clause[0].upper()}{clause[1:]}."]
    if len(wrong) and not stands_out(len(wrong) / len(rows), accuracies):
        doubts.append(
            f"Some labels flagged as wrong may be model errors (accuracy on held-out lines: {measured}). Look at a "
            "hundred of them first."
        )
    elif not len(wrong) and min(accuracies) < TRUSTED:
        doubts = [
            f"No label is flagged as wrong, but the models may miss wrong ones: up to {100 * high:.1f} % may be wrong, "
            f"{SIMILAR_NOT_COUNTED} (accuracy on held-out lines: {measured})."
        ]
    notes += (
        f"About {100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of the labels are as unlikely as wrong ones; "
        "labels exchanged for classes that the models hardly tell apart count as right.",
    )
    figures = {
        "looked_at": len(rows),
        "accuracy": dict(zip((one.name for one in kinds), accuracies, strict=True)),
        "wrong_share": share,
        "ci95": [low, high],
        "found_share": found.found_share,
        "most_missed": found.most_missed,
    }
    return Found(Values(len(lines), values), flagged, belief, (*cut, *doubts), (*unchecked, *notes), figures)


def blind_filter(lines: Lines, before: Mapping[str, Found]) -> Found:  # noqa: ARG001 - it needs no other
    """Find lines whose label the text alone gives away."""
    if len(lines.pairs.sides) < 2:
        return _silent(lines, "blind", None, "the lines have only one side, so nothing can be left out")
    given = _given(lines)
    classes, rows, labels = given.classes, given.rows, given.numbers[given.rows]
    if len(classes) < 2 or _groups(lines, rows) < _folds(lines):
        return _silent(lines, "blind", None, _too_few("what the text alone answers", classes, lines))
    try:
        predicted, source, answers = _by_text(lines, labels, classes, rows)
    except PairsError as error:
        reason = f"what the text alone answers is unknown: too little remains without a fold ({error})"
        return _silent(lines, "blind", None, reason)
    cut = cut_short(len(answers.cut), _folds(lines))
    unchecked = _unchecked(lines, given)
    judged, notes = _known_to_models(labels, classes, [answers])
    rows, labels, predicted = rows[judged], labels[judged], _some(predicted, judged)
    if not len(rows):
        return _silent(lines, "blind", None, f"what the text alone answers is unknown: {notes[0]}", cut)
    belief = np.full(len(lines), np.nan)
    belief[rows] = predicted[np.arange(len(rows)), labels]
    usual = (np.bincount(labels, minlength=len(classes)) / len(labels))[labels]
    sure = belief[rows]
    flagged = np.zeros(len(lines), bool)
    flagged[rows] = (sure >= GIVEN_AWAY) & (sure * (1 - usual) >= _ODDS * usual * (1 - sure))
    hits = float((predicted.argmax(axis=1) == labels).mean())
    often = float(np.bincount(labels).max() / len(labels))
    note = (
        f"The text alone ({source}) answers {100 * hits:.1f} % of {len(rows):,} lines, always the most frequent label "
        f"{100 * often:.1f} %."
    )

    def values(part: slice) -> list[dict[str, Any]]:
        return [{"blind": None if np.isnan(p) else round(p, 6)} for p in belief[part].tolist()]

    figures = {"accuracy": hits, "most_frequent": often}
    return Found(Values(len(lines), values), flagged, None, tuple(cut), (note, *unchecked, *notes), figures)


def _by_text(
    lines: Lines, labels: NDArray[np.int64], classes: Sequence[str], rows: NDArray[np.int64]
) -> tuple[NDArray[np.floating], str, Answers]:
    """Return predictions from the text alone, by words or by embedding, whichever does better on held-out lines.

    The answers by embedding are returned too, as they show which classes were trained on.
    """
    texts = chosen(lines.pairs.texts, rows)
    fold_of = deal_folds(chosen(lines.pairs.clusters, rows), _folds(lines), lines.session.seed)
    words = by_words(texts, labels, fold_of, len(classes))
    np.maximum(words, 1e-9, out=words)
    embedded = out_of_fold(lines, _text_model(len(rows)), classes, rows, share=0.2)
    at = np.flatnonzero(embedded.knows(labels))
    own = labels[at]
    if not len(at) or np.log(words[at, own]).mean() >= np.log(embedded.probabilities[at, own]).mean():
        weighed = words_weighed(len(classes))
        few = f"its {weighed:,} most frequent words" if weighed < words_weighed(1) else "its words"
        return words, few, embedded
    return embedded.probabilities, "its embedding", embedded


def _some(probabilities: NDArray[np.floating], kept: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Return the rows to keep: the array itself if these are all, otherwise a copy, in a file if it is large."""
    if kept.all():
        return probabilities
    rows = np.flatnonzero(kept)
    blocks = (probabilities[rows[start : start + _ROWS_AT_ONCE]] for start in range(0, len(rows), _ROWS_AT_ONCE))
    return gathered(blocks, (len(rows), probabilities.shape[1]), np.float32)


def _known_to_models(
    labels: NDArray[np.int64], classes: Sequence[str], answers: Sequence[Answers]
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Return which lines have a label known to the models that answer them, and a note on the others.

    A model that has never seen a class would flag all lines of that class.
    """
    judged: NDArray[np.bool_] = np.all([one.knows(labels) for one in answers], axis=0)
    if judged.all():
        return judged, ()
    names = [classes[number] for number in np.unique(labels[~judged]).tolist()]
    listed = ", ".join(f"'{name}'" for name in names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")
    count = int((~judged).sum())
    return judged, (
        f"{count:,} {'line' if count == 1 else 'lines'} with the label {listed} cannot be checked: nearly all "
        "groups with this label are in one fold, so the models that answer it were not trained on it.",
    )


@dataclass(frozen=True)
class _Given:
    """The labels in the file.

    Attributes:
        numbers: ``(n,)`` int64, the number of every line's single answer, -1 if there are several.
        answers: The answers by number, the most frequent first.
        classes: Those with enough lines.
        rows: Rows of the lines of these classes.
    """

    numbers: NDArray[np.int64]
    answers: list[str]
    classes: list[str]
    rows: NDArray[np.int64]

    def names(self, part: slice) -> list[str | None]:
        """Return the answers of some lines."""
        return self.named(self.numbers[part])

    def named(self, numbers: NDArray[np.integer]) -> list[str | None]:
        """Return the answers with these numbers, None for -1."""
        return [None if number < 0 else self.answers[number] for number in numbers.tolist()]


def _given(lines: Lines) -> _Given:
    known: dict[str, int] = {}

    def number(target: Target | None) -> int:
        answers = answers_of(target, lines.task)
        return known.setdefault(next(iter(answers)), len(known)) if len(answers) == 1 else -1

    found = by_value(lines.pairs.targets, number, np.int64)
    own = np.flatnonzero(found >= 0)
    numbers, first, counts = np.unique(found[own], return_index=True, return_counts=True)
    order = np.lexsort((first, -counts))
    place = np.full(len(known) + 1, -1, np.int64)  # the last one for -1
    place[numbers[order]] = np.arange(len(order))
    names = list(known)
    answers = [names[one] for one in numbers[order].tolist()]
    place_of = place[found]
    enough = int((counts >= FEWEST_OF_CLASS).sum())
    rows = np.flatnonzero((place_of >= 0) & (place_of < enough))
    return _Given(place_of, answers, answers[:enough], rows)


def _unchecked(lines: Lines, given: _Given) -> tuple[str, ...]:
    """Return a note on the lines without a single answer, or with a rare one: no filter of labels judges them."""
    several = int((given.numbers < 0).sum())
    rare = len(lines) - len(given.rows) - several
    reasons = [
        *([counted(several, "has several answers", "have several answers")] if several else []),
        *([f"{counted(rare, 'has', 'have')} a label with fewer than {FEWEST_OF_CLASS} lines"] if rare else []),
    ]
    if not reasons:
        return ()
    return (f"{counted(several + rare, 'line was', 'lines were')} not checked: {' and '.join(reasons)}.",)


def _groups(lines: Lines, rows: NDArray[np.int64]) -> int:
    """Return the number of groups of some lines."""
    return len(joined([chosen(lines.pairs.clusters, rows)])[1])


def _folds(lines: Lines) -> int:
    return lines.folds or FOLDS


def _too_few(what: str, classes: Sequence[str], lines: Lines) -> str:
    if len(classes) < 2:
        return f"{what} cannot be found: fewer than two classes have {FEWEST_OF_CLASS} lines with only that answer"
    return f"{what} cannot be found: the lines of these classes belong to fewer than {_folds(lines)} groups"


def _silent(lines: Lines, key: str, given: _Given | None, reason: str, cut: Sequence[str] = ()) -> Found:
    nothing = Values.same(len(lines), {key: None})
    if given is not None:
        nothing = Values(len(lines), lambda part: [{key: [one, None, None]} for one in given.names(part)])
    return Found(
        nothing,
        np.zeros(len(lines), bool),
        None if given is None else np.full(len(lines), np.nan),
        (*cut, f"{reason[0].upper()}{reason[1:].rstrip('.')}."),
    )


def _models(lines: Lines, count: int) -> list[ModelSpec]:
    """Return two models of different kinds, suited to the number of lines."""
    small = count * (_folds(lines) - 1) <= SMALL * _folds(lines)
    if len(lines.pairs.sides) < 2:
        (side,) = lines.pairs.sides
        first = ModelSpec("kernel", "kernel", "side", 0.4) if small else ModelSpec("linear", "linear", "side", 0.4)
        return [first, ModelSpec(side, side, "side", 0.4, epochs=12)]
    if small:
        return [ModelSpec("kernel", "kernel", "fusion", 0.4), ModelSpec("mlp", "mlp", "baseline", 0.4, _REGULARISED)]
    return [ModelSpec("linear", "linear", "baseline", 0.4), ModelSpec("mlp", "mlp", "baseline", 0.4, epochs=12)]


def _text_model(count: int) -> ModelSpec:
    if count <= SMALL:
        return ModelSpec("text kernel", "kernel", "text", 0.2, without="image")
    return ModelSpec("text", "text", "text", 0.2, epochs=4)
