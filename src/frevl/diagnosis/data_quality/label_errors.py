"""The labels themselves: conflicts, likely errors, imbalance, and classes that training never saw.

Label errors: confident learning (Northcutt et al. 2021) as in cleanlab, on out-of-fold probabilities.
"""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.data_quality.near_duplicates import normal_text
from frevl.diagnosis.findings import Finding
from frevl.diagnosis.model_comparison import SMALL, Contest, Entry, fit, seen_by
from frevl.diagnosis.performance.class_balance import FEWEST_OF_CLASS
from frevl.diagnosis.splits import MATCH_LABELS, Splits, answers_of, share_of_clusters, with_wrong_pairs
from frevl.errors import MissingExtraError
from frevl.runs.scorer import Scorer
from frevl.runs.targets import match_truth

__all__ = ["check_cleanlab", "conflict_finding", "label_error_finding", "likely_errors"]

_LEAST_ACCURACY = 0.5  # a model that is mostly wrong cannot tell who else is
_LEAST_SKILL = 0.4  # of the way from the most frequent answer to all right
_MOST_CELLS = 40_000_000  # probabilities in memory: more are looked at block by block
_MOST_LEARNT = 20_000  # training pairs of a fold's model, so that a training has an end
_AS_GOOD = 0.02
_SURE = 0.8  # of the mean confidence
_TRUSTED = 0.97  # below, as many contradictions may come from the model as from the labels
_MORE = 2.0  # times the errors of the model
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
        answers = [answers_of(part.targets[row], splits.task) for part, row in members]
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


def label_error_finding(contest: Contest, *, folder: Path, time_limit: float) -> Finding:
    """Look for wrong labels in all pairs, by probabilities of models that did not learn from the pair.

    Test and development pairs are judged by the contest's model, training pairs by the same model trained on other
    folds of the training images: three folds, or two where there are more than `frevl.diagnosis.model_comparison.SMALL`
    pairs, and from at most 20,000 pairs. Where the probabilities of all pairs are too many, pairs are judged in blocks.
    """
    splits, entry = contest.splits, _simplest_as_good(contest)
    accuracy, by_count = (float(one.dev.hits.mean()) for one in (entry, contest.best("majority")))
    if accuracy < max(_LEAST_ACCURACY, by_count + _LEAST_SKILL * (1 - by_count)):
        return _cannot_tell(
            f"{entry.name} answers only {100 * accuracy:.0f} % of the development pairs right, and always giving the "
            f"most frequent answer {100 * by_count:.0f} %"
        )
    classes = _classes(splits)
    if len(classes) < 2:
        return _cannot_tell(f"fewer than two classes have {FEWEST_OF_CLASS} training pairs")
    train = with_wrong_pairs(splits.train, splits.seed) if splits.task == "matching" else splits.train
    judged = [(part, entry.scorer) for part in (splits.test, splits.dev)]
    folds = 3 if len(splits.train) <= SMALL else 2
    fold_of = _folds(splits.train.clusters, folds, splits.seed)
    for fold in range(folds):
        learnt = splits.train.select([row for row, name in enumerate(splits.train.clusters) if fold_of[name] != fold])
        if len(learnt) > _MOST_LEARNT:
            learnt = share_of_clusters(learnt, _MOST_LEARNT / len(learnt), seed=splits.seed)
        place = folder / str(fold)
        scorer = fit(splits, entry.entrant, folder=place, time_limit=time_limit / folds, pairs=learnt)
        judged.append((train.select([row for row, name in enumerate(train.clusters) if fold_of[name] == fold]), scorer))
    return _errors(_named(judged, classes, splits, entry), entry)


@dataclass(frozen=True)
class _Named:
    """Labels that were looked at, and those of them that are likely wrong."""

    looked_at: int
    rows: list[dict[str, Any]]


def _named(judged: list[tuple[Pairs, Scorer]], classes: list[str], splits: Splits, entry: Entry) -> _Named:
    """Judge the labels of pairs, each part by its own model, in as many blocks as the memory asks for."""
    index = {name: number for number, name in enumerate(classes)}
    labels = [[_label(pairs, row, splits.task) for row in range(len(pairs))] for pairs, _ in judged]
    blocks = -(-sum(map(len, labels)) * len(classes) // _MOST_CELLS)
    random = np.random.default_rng(splits.seed)
    block_of = [random.integers(0, blocks, len(part)) for part in labels]
    # Wrong pairs that we drew ourselves are nobody's labels.
    drawn = splits.task == "matching" and bool((match_truth(splits.train) > 0.5).all())
    looked_at, table = 0, []
    for block in range(blocks):
        where, numbers, said = [], [], []
        for (pairs, scorer), given, blocked in zip(judged, labels, block_of, strict=True):
            rows = [row for row in np.flatnonzero(blocked == block).tolist() if given[row] in index]
            where += [(pairs, row) for row in rows]
            numbers += [index[str(given[row])] for row in rows]
            said.append(_probabilities(scorer, seen_by(entry.entrant, pairs.select(rows), splits), classes))
        looked_at += sum(not drawn or classes[number] == MATCH_LABELS[1] for number in numbers)
        present, given_numbers = np.unique(np.array(numbers, np.int64), return_inverse=True)
        if len(present) < 2:
            continue
        # Classes outside are left out, so that what remains is a probability again; a row without any says nothing.
        probabilities = np.maximum(np.concatenate(said)[:, present], 1e-9)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        for row in likely_errors(given_numbers, probabilities):
            pairs, place = where[row]
            label = classes[numbers[row]]
            if drawn and label != MATCH_LABELS[1]:
                continue
            table.append(
                {
                    "place": pairs.places[place], "image": pairs.images[place], "text": pairs.texts[place],
                    "label": label, "likelier": classes[present[int(probabilities[row].argmax())]],
                    "probability of label %": 100 * float(probabilities[row, given_numbers[row]]),
                }
            )  # fmt: skip
    return _Named(looked_at, sorted(table, key=lambda line: float(line["probability of label %"])))


def _errors(found: _Named, entry: Entry) -> Finding:
    table, n = found.rows, found.looked_at
    share = 100 * len(table) / max(n, 1)
    return Finding(
        name="label-errors",
        section="data",
        claim=(
            f"{len(table):,} of {n:,} labels are likely wrong ({share:.1f} %{_mostly(table)})"
            + (_or_hard(entry.name, float(entry.dev.hits.mean()), share / 100) if table else "")
            + "."
        ),
        value=share,
        ci95=None,
        how=(
            f"Confident learning (cleanlab, prune by noise rate) on out-of-fold probabilities of {entry.name}, which "
            f"answers {100 * entry.dev.hits.mean():.1f} % of the development pairs right; named only where it is about "
            "as sure of another answer as it usually is. Single answers of classes with at least "
            f"{FEWEST_OF_CLASS} pairs; percent of labels. What a model cannot do may still look like an error."
        ),
        advice=(
            "Look at the first ones (the likeliest come first) before training again; correct, do not only delete."
            if table
            else "Nothing to do."
        ),
        table=table,
    )


def _mostly(table: list[dict[str, Any]]) -> str:
    """Say which exchange of labels most of them are, if one is two thirds of them or more."""
    changes = Counter((row["label"], row["likelier"]) for row in table)
    if not changes:
        return ""
    (label, likelier), often = changes.most_common(1)[0]
    if 3 * often < 2 * len(table) or len(changes) < 2:
        return ""
    return f"; {often:,} of them say '{label}' where '{likelier}' is likelier"


def _or_hard(name: str, accuracy: float, named: float) -> str:
    """Say what else may be behind a contradiction: wrong labels lower the accuracy, and so does a weak model.

    Also of a strong one, if it contradicts hardly more labels than it has errors (its folds learn from fewer pairs).
    """
    if accuracy >= _TRUSTED and named > _MORE * (1 - accuracy):
        return ""
    return f", or are what {name} cannot do: it answers {100 * accuracy:.1f} % right, and the two cannot be told apart"


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


def _simplest_as_good(contest: Contest) -> Entry:
    """Return the simplest model (`ENTRANTS` stand in that order) whose development score is the best, or nearly."""
    least = contest.best("fusion", "baseline").dev.hits.mean() - _AS_GOOD
    return next(
        entry
        for entry in contest.entries
        if entry.entrant.role in ("fusion", "baseline") and entry.dev.hits.mean() >= least
    )


def _probabilities(scorer: Scorer, pairs: Pairs, classes: list[str]) -> np.ndarray:
    """Return ``(n, classes)`` float32; classes that the run does not know get 0."""
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
    """Return the only answer of a pair; None where there are several."""
    answers = answers_of(pairs.targets[row], task)
    return next(iter(answers)) if len(answers) == 1 else None


def _folds(clusters: list[str], folds: int, seed: int) -> dict[str, int]:
    """Return the fold of every cluster."""
    names = sorted(set(clusters))
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[place]: number % folds for number, place in enumerate(order)}
