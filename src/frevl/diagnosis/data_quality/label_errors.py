"""Find likely label errors: labels that two different models contradict in the same way.

Confident learning (Northcutt et al. 2021) as in cleanlab, on out-of-fold probabilities.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.cross_validation import cross_validate
from frevl.diagnosis.data_quality.near_duplicates import normal_text
from frevl.diagnosis.findings import Finding
from frevl.diagnosis.model_comparison import ComparedModel, ModelComparison, seen_by
from frevl.diagnosis.model_specs import ModelSpec
from frevl.diagnosis.performance.class_balance import FEWEST_OF_CLASS
from frevl.diagnosis.splits import MATCH_LABELS, Splits, answers_of
from frevl.errors import MissingExtraError
from frevl.runs.scorer import Scorer
from frevl.runs.targets import match_truth
from frevl.store.usable_pairs import content_of_units

__all__ = [
    "check_cleanlab",
    "conflict_claim",
    "conflict_finding",
    "label_claim",
    "label_error_finding",
    "likely_errors",
]

_LEAST_ACCURACY = 0.5  # a model that is mostly wrong cannot detect errors
_LEAST_SKILL = 0.4  # share of the way from the most frequent answer to perfect
_MOST_CELLS = 40_000_000  # probabilities in memory; more are processed in blocks
_AS_GOOD = 0.02
_SURE = 0.8  # share of the mean confidence
_TRUSTED = 0.9  # accuracy below which a contradiction says more about the model than about the label
_SHOWN = 30


def check_cleanlab() -> None:
    """Fail now rather than after minutes of training.

    Raises:
        MissingExtraError: cleanlab is not installed.
    """
    try:
        importlib.import_module("cleanlab")
    except ImportError as error:
        raise MissingExtraError("cleanlab", "diagnose") from error


def likely_errors(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the rows whose label is likely wrong, likeliest first.

    Uses confident learning; in addition, the model must be about as sure of another answer as it usually is (ours).

    Args:
        labels: ``(n,)`` int64 classes; every class of the probabilities occurs.
        probabilities: ``(n, classes)`` out of fold, calibrated, rows sum to 1.
    """
    filter_module = importlib.import_module("cleanlab.filter")
    found = filter_module.find_label_issues(
        labels, probabilities, return_indices_ranked_by="self_confidence", filter_by="prune_by_noise_rate", n_jobs=1
    )
    # On pairs that it cannot solve, a model is unsure; only if it is about as sure as usual does its contradiction say
    # something about the label.
    sure = probabilities.max(axis=1)
    ranked = np.asarray(found, np.int64)
    kept: np.ndarray = ranked[sure[ranked] >= _SURE * sure.mean()]
    return kept


def label_error_finding(comparison: ModelComparison, *, folder: Path, time_limit: float) -> Finding:
    """Find wrong labels in all pairs with two different models not trained on the pair.

    Test and development pairs are answered by the models of the comparison, training pairs by the same two models as
    `frevl.diagnosis.cross_validation.cross_validate` trains them. If the probabilities of all pairs would be too large,
    pairs are processed in blocks.

    Args:
        comparison: The trained models.
        folder: Folder for further runs.
        time_limit: Seconds for further trainings.
    """
    splits, majority = comparison.splits, comparison.best("majority")
    able = _able(comparison)
    if not able:
        return _cannot_tell(
            f"no model is right often enough; the best, {_best_of(comparison).title}, answers "
            f"{100 * _accuracy(_best_of(comparison)):.0f} % of held-out pairs right, and always giving the most "
            f"frequent answer {100 * _accuracy(majority):.0f} %"
        )
    first, second = _two_different(able)
    if second is None:
        return _cannot_tell(f"only {first.title} is right often enough, and two different models are needed")
    classes = _classes(splits)
    if len(classes) < 2:
        return _cannot_tell(f"fewer than two classes have {FEWEST_OF_CLASS} training pairs")
    models = [first, second]
    crossed = [
        model.crossed or cross_validate(splits, model.spec, folder=folder / model.name, time_limit=time_limit / 2)
        for model in models
    ]
    parts = [_Part(pairs, [model.scorer for model in models]) for pairs in (splits.test, splits.dev)]
    for own, other in zip(crossed[0].parts, crossed[1].parts, strict=True):
        parts.append(_Part(own[0], [own[1], other[1]]))
    found = _contradicted(parts, classes, splits, [model.spec for model in models])
    return _finding(found, {one.title: cross.accuracy for one, cross in zip(models, crossed, strict=True)})


def _accuracy(model: ComparedModel) -> float:
    """Return the model's accuracy on held-out pairs, in [0, 1]."""
    return float(model.dev.hits.mean()) if model.crossed is None else model.crossed.accuracy


def _best_of(comparison: ModelComparison) -> ComparedModel:
    return max((model for model in comparison.models if model.spec.role != "majority"), key=_accuracy)


def _able(comparison: ModelComparison) -> list[ComparedModel]:
    """Return the models accurate enough to contradict a label, simplest first."""
    by_count = _accuracy(comparison.best("majority"))
    least = max(_LEAST_ACCURACY, by_count + _LEAST_SKILL * (1 - by_count))
    return [model for model in comparison.models if model.spec.role != "majority" and _accuracy(model) >= least]


def _two_different(able: list[ComparedModel]) -> tuple[ComparedModel, ComparedModel | None]:
    """Return the simplest model that is nearly as good as the best, and the best of a different kind."""
    best = max(map(_accuracy, able))
    first = next(model for model in able if _accuracy(model) >= best - _AS_GOOD)
    others = [model for model in able if model.spec.model != first.spec.model]
    return first, max(others, key=_accuracy, default=None)


@dataclass(frozen=True)
class _Part:
    """Pairs, and models not trained on them."""

    pairs: Pairs
    scorers: list[Scorer]


@dataclass(frozen=True)
class _Contradicted:
    """The labels examined, and those that all models contradict in the same way."""

    looked_at: int
    rows: list[dict[str, Any]]


def _contradicted(parts: list[_Part], classes: list[str], splits: Splits, specs: Sequence[ModelSpec]) -> _Contradicted:
    """Examine the labels of all pairs, in blocks if memory requires."""
    index = {name: number for number, name in enumerate(classes)}
    labels = [[_label(part.pairs, row, splits.task) for row in range(len(part.pairs))] for part in parts]
    blocks = -(-len(specs) * sum(map(len, labels)) * len(classes) // _MOST_CELLS)
    random = np.random.default_rng(splits.seed)
    block_of = [random.integers(0, blocks, len(part)) for part in labels]
    # Wrong pairs that we drew ourselves are not labels.
    drawn = splits.task == "matching" and bool((match_truth(splits.train) > 0.5).all())
    looked_at, table = 0, []
    for block in range(blocks):
        where: list[tuple[Pairs, int]] = []
        numbers: list[int] = []
        answered: list[list[np.ndarray]] = [[] for _ in specs]
        for part, given, blocked in zip(parts, labels, block_of, strict=True):
            rows = [row for row in np.flatnonzero(blocked == block).tolist() if given[row] in index]
            where += [(part.pairs, row) for row in rows]
            numbers += [index[str(given[row])] for row in rows]
            for said, spec, scorer in zip(answered, specs, part.scorers, strict=True):
                said.append(_probabilities(scorer, seen_by(spec, part.pairs.select(rows), splits), classes))
        looked_at += sum(not drawn or classes[number] == MATCH_LABELS[1] for number in numbers)
        present, given_numbers = np.unique(np.array(numbers, np.int64), return_inverse=True)
        if len(present) < 2:
            continue
        # Other classes are dropped and the rest renormalised; a row with nothing left is uninformative.
        by_model = [np.maximum(np.concatenate(said)[:, present], 1e-9) for said in answered]
        by_model = [one / one.sum(axis=1, keepdims=True) for one in by_model]
        for row in _agreed(given_numbers, by_model):
            pairs, place = where[row]
            label = classes[numbers[row]]
            if drawn and label != MATCH_LABELS[1]:
                continue
            left = float(np.mean([one[row, given_numbers[row]] for one in by_model]))
            table.append(
                {
                    "place": pairs.places[place], "image": pairs.images[place], "text": pairs.texts[place],
                    "label": label, "likelier": classes[present[int(by_model[0][row].argmax())]],
                    "probability of label %": 100 * left,
                }
            )  # fmt: skip
    return _Contradicted(looked_at, sorted(table, key=lambda line: float(line["probability of label %"])))


def _agreed(labels: np.ndarray, by_model: Sequence[np.ndarray]) -> list[int]:
    """Return the rows whose label every model flags as likely wrong, with the same other answer.

    Args:
        labels: ``(n,)`` int64 classes; every class of the probabilities occurs.
        by_model: ``(n, classes)`` for every model, as in `likely_errors`.
    """
    named = set.intersection(*({int(row) for row in likely_errors(labels, one)} for one in by_model))
    return [row for row in sorted(named) if len({int(one[row].argmax()) for one in by_model}) == 1]


def _finding(found: _Contradicted, accuracies: dict[str, float]) -> Finding:
    table, n = found.rows, found.looked_at
    share = len(table) / max(n, 1)
    told = " and ".join(f"{name} {100 * accuracy:.1f} %" for name, accuracy in accuracies.items())
    claim, advice = label_claim(len(table), n, accuracies, _mostly(table))
    return Finding(
        name="label-errors",
        section="data",
        claim=claim,
        value=100 * share,
        ci95=None,
        how=(
            "Confident learning (cleanlab, prune by noise rate) on the held-out probabilities of two different "
            f"models, whose accuracy on such pairs is: {told}. A label counts only where both contradict it with "
            "the same other answer, about as surely as they usually answer. Single answers of classes with at "
            f"least {FEWEST_OF_CLASS} pairs; percent of labels. Reported as likely wrong only if both models "
            f"answer {100 * _TRUSTED:.0f} % right and agree on at least half of what either gets wrong; otherwise "
            "model errors look like wrong labels."
        ),
        advice=advice,
        table=table,
    )


def label_claim(named: int, of: int, accuracies: dict[str, float], mostly: str = "") -> tuple[str, str]:
    """Return claim and advice.

    Args:
        named: Number of labels that both models contradict in the same way.
        of: Number of labels examined.
        accuracies: Accuracy on held-out pairs for each model, in [0, 1].
        mostly: What most of them have in common, preceded by a semicolon.
    """
    share = named / max(of, 1)
    names = " and ".join(accuracies)
    if named == 0:
        return f"None of the {of:,} labels examined is contradicted by both {names}.", "Nothing to do."
    weakest = min(accuracies.values())
    if weakest >= _TRUSTED and 2 * share >= 1 - weakest:
        return (
            f"{named:,} of {of:,} labels are likely wrong ({100 * share:.1f} %{mostly}): {names}, which were not "
            "trained on these pairs, agree on another answer.",
            "Look at the first ones (likeliest first) before training again; correct them rather than just "
            "deleting them.",
        )
    told = " and ".join(f"{name} {100 * accuracy:.1f} %" for name, accuracy in accuracies.items())
    return (
        f"Wrong labels cannot be distinguished from model errors (accuracy on unseen pairs: {told}). Both "
        f"contradict {named:,} of {of:,} labels with the same other answer ({100 * share:.1f} %{mostly}).",
        "Look at a hundred of these labels (likeliest first) before changing anything: how many are wrong shows "
        "whether the rest are worth checking.",
    )


def _mostly(table: list[dict[str, Any]]) -> str:
    """Name the most frequent confusion, if it accounts for at least two thirds of them."""
    changes = Counter((row["label"], row["likelier"]) for row in table)
    if not changes:
        return ""
    (label, likelier), often = changes.most_common(1)[0]
    if 3 * often < 2 * len(table) or len(changes) < 2:
        return ""
    return f"; {often:,} of them say '{label}' where '{likelier}' is likelier"


def _cannot_tell(reason: str) -> Finding:
    return Finding(
        name="label-errors",
        section="data",
        claim=f"Wrong labels cannot be distinguished from model errors: {reason}.",
        value=None,
        ci95=None,
        how=(
            f"Checked only if two different models answer at least {100 * _LEAST_ACCURACY:.0f} % of held-out pairs "
            f"right and come {100 * _LEAST_SKILL:.0f} % of the way from the most frequent answer to perfect."
        ),
        advice="Look at a hundred labels by hand instead.",
    )


def _probabilities(scorer: Scorer, pairs: Pairs, classes: list[str]) -> np.ndarray:
    """Return ``(n, classes)`` float32; classes unknown to the run get 0."""
    asked = list(zip(pairs.images, pairs.texts, strict=True))
    if scorer.run.task == "matching":
        _, match = scorer.match_probabilities(asked)
        return np.stack([1 - match, match], axis=1)
    said = scorer.probabilities(scorer.score(asked))
    columns = {label: number for number, label in enumerate(scorer.run.labels)}
    known = [number for number, name in enumerate(classes) if name in columns]
    chosen = np.zeros((len(pairs), len(classes)), np.float32)
    chosen[:, known] = said[:, [columns[classes[number]] for number in known]]
    return chosen


def _classes(splits: Splits) -> list[str]:
    if splits.task == "matching":
        return MATCH_LABELS
    labels = (_label(splits.train, row, splits.task) for row in range(len(splits.train)))
    counts = Counter(label for label in labels if label is not None)
    return [name for name, count in counts.most_common() if count >= FEWEST_OF_CLASS]


def _label(pairs: Pairs, row: int, task: str) -> str | None:
    """Return a pair's single answer; None if there are several."""
    answers = answers_of(pairs.targets[row], task)
    return next(iter(answers)) if len(answers) == 1 else None


def conflict_finding(splits: Splits) -> Finding:
    """Find pairs with the same image content and text whose targets have nothing in common."""
    parts = [splits.train, splits.dev, splits.test]
    hashes = {unit: content for part in parts for unit, content in content_of_units(splits.store, part).items()}
    groups: dict[tuple[str, str], list[tuple[Pairs, int]]] = {}
    total = 0
    for part in parts:
        for row, (unit, text) in enumerate(zip(part.units, part.texts, strict=True)):
            groups.setdefault((hashes[unit], normal_text(text)), []).append((part, row))
            total += 1
    table, touched = [], 0
    for members in groups.values():
        if len(members) < 2:
            continue
        answers = [answers_of(part.targets[row], splits.task) for part, row in members]
        if set.intersection(*answers):
            continue
        touched += len(members)
        first, row = members[0]
        said = "; ".join(sorted({", ".join(sorted(one)) for one in answers}))
        table.append({"image": first.images[row], "text": first.texts[row], "pairs": len(members), "targets": said})
    what = " and ".join(splits.train.sides)
    claim, advice = conflict_claim(touched, total, what)
    return Finding(
        name="conflicting-labels",
        section="data",
        claim=claim,
        value=100 * touched / total,
        ci95=None,
        how=f"Same {_SAME[what]}, no answer in common; all splits together. Percent of pairs.",
        advice=advice,
        table=table[:_SHOWN],
    )


_SAME = {"image and text": "image content and same text", "image": "image content", "text": "text"}


def conflict_claim(touched: int, pairs: int, what: str = "image and text") -> tuple[str, str]:
    """Return claim and advice on pairs that contradict another pair with the same image and text (or single side)."""
    if not touched:
        return f"No two pairs with the same {what} contradict each other.", "Nothing to do."
    return (
        f"{touched:,} of {pairs:,} pairs contradict another pair with the same {what}.",
        "Decide which is right: no answer can be right for both.",
    )
