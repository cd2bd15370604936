"""The labels themselves: conflicts, likely errors, imbalance, and classes that training never saw.

Label errors: confident learning (Northcutt et al. 2021) as in cleanlab, on out-of-fold probabilities.
"""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from frevl.diagnosis.contest import MATCH_LABELS, SMALL, Contest, Entry, fit, seen_by
from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.leaks import normal_text
from frevl.diagnosis.splits import Splits, with_wrong_pairs
from frevl.errors import MissingExtraError
from frevl.pairs import Pairs, Target
from frevl.preparation import match_truth
from frevl.scorer import Scorer

__all__ = ["check_cleanlab", "conflict_finding", "imbalance_finding", "label_error_finding", "likely_errors"]

_FEWEST_OF_CLASS = 5  # with fewer, the threshold of a class is the noise of one pair
_LEAST_ACCURACY = 0.5  # a model that is mostly wrong cannot tell who else is
_LEAST_SKILL = 0.4  # of the way from the most frequent answer to all right
_MOST_CELLS = 40_000_000  # probabilities in memory
_AS_GOOD = 0.02
_SURE = 0.8  # of the mean confidence
_TRUSTED = 0.9  # below, as many contradictions may come from the model as from the labels
_SHOWN = 30


def check_cleanlab() -> None:
    """Refuse now what would fail after minutes of training.

    Raises:
        MissingExtraError: cleanlab is not installed.
    """
    try:
        importlib.import_module("cleanlab")
    except ImportError as error:
        raise MissingExtraError("cleanlab", "diagnose") from error


def likely_errors(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the rows whose label is likely wrong, the likeliest first.

    Confident learning, and the model must be about as sure of another answer as it usually is (ours).

    Args:
        labels: ``(n,)`` int64 classes; every class of the probabilities occurs.
        probabilities: ``(n, classes)`` out of fold, calibrated, rows sum to 1.
    """
    filter_module = importlib.import_module("cleanlab.filter")
    found = filter_module.find_label_issues(
        labels, probabilities, return_indices_ranked_by="self_confidence", filter_by="prune_by_noise_rate", n_jobs=1
    )
    # What the model cannot do at all it answers without being sure; only where it is about as sure as usual does its
    # contradiction say something about the label.
    sure = probabilities.max(axis=1)
    ranked = np.asarray(found, np.int64)
    kept: np.ndarray = ranked[sure[ranked] >= _SURE * sure.mean()]
    return kept


def conflict_finding(splits: Splits) -> Finding:
    """Find pairs with the same image content and text whose targets have nothing in common."""
    parts = [splits.train, splits.dev, splits.test]
    hashes = splits.store.content_hashes([image for part in parts for image in part.images])
    groups: dict[tuple[str, str], list[tuple[Pairs, int]]] = {}
    total = 0
    for part in parts:
        for row, (image, text) in enumerate(zip(part.images, part.texts, strict=True)):
            groups.setdefault((hashes[image], normal_text(text)), []).append((part, row))
            total += 1
    table, touched = [], 0
    for members in groups.values():
        if len(members) < 2:
            continue
        answers = [_answers(part.targets[row], splits.task) for part, row in members]
        if set.intersection(*answers):
            continue
        touched += len(members)
        first, row = members[0]
        said = "; ".join(sorted({", ".join(sorted(one)) for one in answers}))
        table.append({"image": first.images[row], "text": first.texts[row], "pairs": len(members), "targets": said})
    if touched:
        claim = f"{touched:,} of {total:,} pairs contradict another pair of the same image and text."
        advice = "Decide which is right; whatever a model says, it is wrong for one of them."
    else:
        claim = "No two pairs of the same image and text contradict each other."
        advice = "Nothing to do."
    return Finding(
        name="conflicting-labels",
        section="data",
        claim=claim,
        value=100 * touched / total,
        ci95=None,
        how="Same image content and same text, no answer in common; all splits together. Percent of pairs.",
        advice=advice,
        table=table[:_SHOWN],
    )


def imbalance_finding(splits: Splits) -> Finding:
    """Count classes: how many, how uneven, and what test pairs have only classes that training never saw."""
    if splits.task == "matching" and bool((match_truth(splits.train) > 0.5).all()):
        return _only_right_pairs(len(splits.train))
    counts = Counter(answer for target in splits.train.targets for answer in _answers(target, splits.task))
    total = sum(counts.values())
    shares = np.array(list(counts.values())) / total
    effective = float(np.exp(-(shares * np.log(shares)).sum()))
    unseen = sum(1 for target in splits.test.targets if counts.keys().isdisjoint(_answers(target, splits.task)))
    rare = sum(1 for count in counts.values() if count < _FEWEST_OF_CLASS)
    most, often = counts.most_common(1)[0]
    share = 100 * often / total
    n = len(splits.test)
    named = f"{len(counts):,} class{'es' if len(counts) > 1 else ''}"
    return Finding(
        name="class-balance",
        section="data",
        claim=(
            f"{named}, as uneven as {effective:.1f} equal ones; '{most}' alone is {share:.1f} %, {rare:,} have fewer "
            f"than {_FEWEST_OF_CLASS} training pairs, and {unseen:,} of {n:,} test pairs ask for a class that training "
            "never saw."
        ),
        value=share,
        ci95=None,
        how="Targets of the training pairs; percent of the most frequent class. Equal classes: exp of the entropy.",
        advice=(
            f"No model can answer more than {100 * (1 - unseen / n):.1f} % of the test pairs; add pairs of the missing "
            "classes."
            if unseen
            else "Report accuracy beside that of the most frequent answer, and macro-F1 if rare classes matter."
            if share > 50
            else "Nothing to do."
        ),
        table=[{"class": name, "training pairs": count} for name, count in counts.most_common(_SHOWN)],
        plot=chart(
            "bars",
            "class",
            "training pairs",
            series("training", [name for name, _ in counts.most_common(20)], [c for _, c in counts.most_common(20)]),
        ),
    )


def _only_right_pairs(n: int) -> Finding:
    return Finding(
        name="class-balance",
        section="data",
        claim=f"All {n:,} training pairs are right pairs; wrong ones are drawn while training.",
        value=None,
        ci95=None,
        how="Targets of the training pairs.",
        advice="Nothing to do; wrong pairs of your own, which are harder, may teach more than drawn ones.",
    )


def label_error_finding(contest: Contest, *, folder: Path, time_limit: float) -> Finding:
    """Look for wrong labels in all pairs, by probabilities of models that did not learn from the pair.

    Test and development pairs are judged by the contest's model, training pairs by the same model trained on other
    folds of the training images; of more than `frevl.diagnosis.contest.SMALL` training pairs only half are judged.
    """
    splits, entry = contest.splits, _cheapest_as_good(contest)
    accuracy, by_count = (float(one.dev.hits.mean()) for one in (entry, contest.best("majority")))
    if accuracy < max(_LEAST_ACCURACY, by_count + _LEAST_SKILL * (1 - by_count)):
        return _cannot_tell(
            f"{entry.name} answers only {100 * accuracy:.0f} % of the development pairs right, and always giving the "
            f"most frequent answer {100 * by_count:.0f} %"
        )
    classes = _classes(splits)
    train = with_wrong_pairs(splits.train, splits.seed) if splits.task == "matching" else splits.train
    cells = (len(train) + len(splits.dev) + len(splits.test)) * len(classes)
    if len(classes) < 2 or cells > _MOST_CELLS:
        return _cannot_tell(f"{len(classes):,} classes with at least {_FEWEST_OF_CLASS} pairs are too few or too many")
    parts = [
        (part, _probabilities(entry.scorer, seen_by(entry.entrant, part, splits), classes))
        for part in (splits.test, splits.dev)
    ]
    small = len(train) <= SMALL
    folds = 3 if small else 2
    fold_of = _folds(train.clusters, folds, splits.seed)
    for fold in range(folds if small else 1):  # of many pairs half are judged: that takes half of a training
        inside, judged = (train.select(np.flatnonzero(rows)) for rows in (fold_of != fold, fold_of == fold))
        place = folder / str(fold)
        scorer = fit(splits, entry.entrant, folder=place, time_limit=time_limit / folds, pairs=inside)
        parts.append((judged, _probabilities(scorer, seen_by(entry.entrant, judged, splits), classes)))
    return _errors(parts, classes, splits, entry)


def _errors(parts: list[tuple[Pairs, np.ndarray]], classes: list[str], splits: Splits, entry: Entry) -> Finding:
    index = {name: number for number, name in enumerate(classes)}
    targets = [_label(pairs, row, splits.task) for pairs, _ in parts for row in range(len(pairs))]
    numbers = np.array([index.get(target, -1) if target is not None else -1 for target in targets])
    usable = np.flatnonzero(numbers >= 0)
    probabilities = np.concatenate([said for _, said in parts])[usable]
    # Classes outside are left out, so that what remains is a probability again; a row without any says nothing.
    probabilities = np.maximum(probabilities, 1e-9)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    present, labels = np.unique(numbers[usable], return_inverse=True)
    found = likely_errors(labels, probabilities[:, present]) if len(present) > 1 else np.zeros(0, np.int64)
    where = [(pairs, row) for pairs, _ in parts for row in range(len(pairs))]
    table: list[dict[str, Any]] = []
    # Wrong pairs that we drew ourselves are nobody's labels.
    drawn = splits.task == "matching" and bool((match_truth(splits.train) > 0.5).all())
    for row in found:
        pairs, place = where[usable[row]]
        given = classes[present[labels[row]]]
        if drawn and given != MATCH_LABELS[1]:
            continue
        likelier = classes[present[int(probabilities[row, present].argmax())]]
        table.append(
            {
                "place": pairs.places[place], "image": pairs.images[place], "text": pairs.texts[place], "label": given,
                "likelier": likelier, "probability of label %": 100 * float(probabilities[row, numbers[usable[row]]]),
            }
        )  # fmt: skip
    n = sum(classes[number] == MATCH_LABELS[1] for number in numbers[usable]) if drawn else len(usable)
    share = 100 * len(table) / n
    return Finding(
        name="label-errors",
        section="data",
        claim=(
            f"{len(table):,} of {n:,} labels are likely wrong ({share:.1f} %)"
            + (_or_hard(entry.name, float(entry.dev.hits.mean())) if table else "")
            + "."
        ),
        value=share,
        ci95=None,
        how=(
            f"Confident learning (cleanlab, prune by noise rate) on out-of-fold probabilities of {entry.name}, which "
            f"answers {100 * entry.dev.hits.mean():.1f} % of the development pairs right; named only where it is about "
            "as sure of another answer as it usually is. Single answers of classes with at least "
            f"{_FEWEST_OF_CLASS} pairs; percent of labels. What a model cannot do may still look like an error."
        ),
        advice=(
            "Look at the first ones (the likeliest come first) before training again; correct, do not only delete."
            if table
            else "Nothing to do."
        ),
        table=table,
    )


def _or_hard(name: str, accuracy: float) -> str:
    """Say what else may be behind a contradiction: wrong labels lower the accuracy, and so does a weak model."""
    if accuracy >= _TRUSTED:
        return ""
    return f", or are what {name} cannot do: it answers {100 * accuracy:.0f} % right, and the two cannot be told apart"


def _cannot_tell(reason: str) -> Finding:
    return Finding(
        name="label-errors",
        section="data",
        claim=f"Label errors cannot be told from errors of the model: {reason}.",
        value=None,
        ci95=None,
        how=(
            f"Looked for where a model answers at least {100 * _LEAST_ACCURACY:.0f} % of the development pairs "
            f"right, and has come {100 * _LEAST_SKILL:.0f} % of the way from the most frequent answer to all right."
        ),
        advice="Look at a hundred labels by hand instead.",
    )


def _cheapest_as_good(contest: Contest) -> Entry:
    """Return the model with the shortest training whose development score is the best, or nearly."""
    least = contest.best("fusion", "baseline").dev.hits.mean() - _AS_GOOD
    good = [
        entry
        for entry in contest.entries
        if entry.entrant.role in ("fusion", "baseline") and entry.dev.hits.mean() >= least
    ]
    return min(good, key=lambda entry: entry.seconds)


def _probabilities(scorer: Scorer, pairs: Pairs, classes: list[str]) -> np.ndarray:
    """Return ``(n, classes)`` float32; classes that the run does not know get 0."""
    said = scorer.probabilities(scorer.score(list(zip(pairs.images, pairs.texts, strict=True))))
    if scorer.run.task == "matching":
        return np.stack([1 - said, said], axis=1)
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
    return [name for name, count in counts.most_common() if count >= _FEWEST_OF_CLASS]


def _label(pairs: Pairs, row: int, task: str) -> str | None:
    """Return the only answer of a pair; None where there are several."""
    answers = _answers(pairs.targets[row], task)
    return next(iter(answers)) if len(answers) == 1 else None


def _answers(target: Target | None, task: str) -> set[str]:
    """Return the answers that a target names."""
    if task == "matching":
        one = Pairs([""], [""], [target], [{}], ["pair"])
        return {MATCH_LABELS[int(match_truth(one)[0] > 0.5)]}
    if isinstance(target, dict):
        return {answer for answer, weight in target.items() if weight > 0}
    return {target} if isinstance(target, str) else set(target or [])


def _folds(clusters: list[str], folds: int, seed: int) -> np.ndarray:
    names = sorted(set(clusters))
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = {names[place]: number % folds for number, place in enumerate(order)}
    return np.array([fold_of[name] for name in clusters])
