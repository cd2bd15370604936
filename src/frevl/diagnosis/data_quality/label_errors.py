"""Find likely label errors with two different models that were not trained on the labels.

The rule is that of `frevl.diagnosis.data_quality.label_rule`, which `frevl curate --drop label` uses too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frevl.data.packed.columns import joined
from frevl.data.pairs import Pairs
from frevl.diagnosis.cross_validation import cross_validate
from frevl.diagnosis.data_quality.label_rule import (
    LEAST_SKILL,
    SIMILAR_NOT_COUNTED,
    TRUSTED,
    UNLIKELY,
    deal_blocks,
    find_wrong_labels,
    least_accuracy,
    missed,
    most_missed,
    stands_out,
)
from frevl.diagnosis.data_quality.mixture import share_interval
from frevl.diagnosis.findings import Finding
from frevl.diagnosis.model_comparison import ComparedModel, ModelComparison, seen_by
from frevl.diagnosis.model_specs import ModelSpec
from frevl.diagnosis.performance.class_balance import FEWEST_OF_CLASS
from frevl.diagnosis.splits import MATCH_LABELS, Splits, answers_of
from frevl.runs.scorer import Scorer
from frevl.runs.targets import match_truth

__all__ = ["label_claim", "label_error_finding"]

_AS_GOOD = 0.02


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
    test, dev = (_Part(pairs, [model.scorer for model in models]) for pairs in (splits.test, splits.dev))
    train = [_Part(own[0], [own[1], other[1]]) for own, other in zip(crossed[0].parts, crossed[1].parts, strict=True)]
    # Test labels are usually made more carefully, so their share of wrong ones is not that of the training labels.
    specs = [model.spec for model in models]
    found = _together([_called_wrong(parts, classes, splits, specs) for parts in ([test], [dev, *train])])
    return _finding(found, {one.title: cross.accuracy for one, cross in zip(models, crossed, strict=True)})


def _accuracy(model: ComparedModel) -> float:
    """Return the model's accuracy on held-out pairs, in [0, 1]."""
    return float(model.dev.hits.mean()) if model.crossed is None else model.crossed.accuracy


def _best_of(comparison: ModelComparison) -> ComparedModel:
    return max((model for model in comparison.models if model.spec.role != "majority"), key=_accuracy)


def _able(comparison: ModelComparison) -> list[ComparedModel]:
    """Return the models accurate enough to doubt a label, simplest first."""
    least = least_accuracy(_accuracy(comparison.best("majority")))
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

    @property
    def known(self) -> set[str]:
        """Answers that all models were trained on; any other would look wrong to a model."""
        return set.intersection(*(set(_answers_of(scorer)) for scorer in self.scorers))


@dataclass(frozen=True)
class _CalledWrong:
    """The labels examined, and those that are more likely wrong than right.

    Attributes:
        looked_at: Number of labels examined.
        rows: One table row per label called wrong, likeliest first.
        wrong_share: Estimated share of wrong labels, in [0, 1].
        standard_error: Standard error of that share.
        found_share: Estimated share of the wrong labels that are called wrong, in [0, 1].
        found_error: Standard error of that share.
    """

    looked_at: int
    rows: list[dict[str, Any]]
    wrong_share: float
    standard_error: float
    found_share: float
    found_error: float

    @property
    def most_missed(self) -> float:
        """Return up to what share of the wrong labels is missed."""
        return most_missed(self.found_share, self.found_error, self.wrong_share * self.looked_at)

    @property
    def ci95(self) -> tuple[float, float]:
        """Return the interval of the wrong share."""
        return share_interval(self.wrong_share, self.standard_error)


def _together(found: Sequence[_CalledWrong]) -> _CalledWrong:
    """Join what was found in several sets of labels."""
    looked_at = sum(one.looked_at for one in found)
    weights = np.array([one.looked_at for one in found]) / max(looked_at, 1)
    shares = np.array([one.wrong_share for one in found])
    wrong = weights * shares if (weights * shares).any() else weights
    return _CalledWrong(
        looked_at,
        sorted((row for one in found for row in one.rows), key=_odds_for),
        float(weights @ shares) if found else 0.0,
        float(np.linalg.norm(weights * [one.standard_error for one in found])) if found else 0.0,
        float(wrong @ [one.found_share for one in found] / wrong.sum()) if looked_at else 0.0,
        float(np.linalg.norm(wrong * [one.found_error for one in found]) / wrong.sum()) if looked_at else 0.0,
    )


def _odds_for(row: dict[str, Any]) -> float:
    return float(row["probability of label %"]) / float(row["probability of likelier %"])


def _called_wrong(parts: list[_Part], classes: list[str], splits: Splits, specs: Sequence[ModelSpec]) -> _CalledWrong:
    """Examine the labels of some parts, in blocks if memory requires."""
    index = {name: number for number, name in enumerate(classes)}
    labels = [[_label(part.pairs, row, splits.task) for row in range(len(part.pairs))] for part in parts]
    counts = [len(part) for part in labels]
    blocks, dealt = deal_blocks(sum(counts), len(specs), len(classes), seed=splits.seed)
    block_of = np.split(dealt, np.cumsum(counts)[:-1])
    groups_of, _ = joined([part.pairs.clusters for part in parts])
    # Wrong pairs that we drew ourselves are not labels.
    drawn = splits.task == "matching" and bool((match_truth(splits.train) > 0.5).all())
    found: list[_CalledWrong] = []
    for block in range(blocks):
        where: list[tuple[Pairs, int]] = []
        numbers: list[int] = []
        groups: list[np.ndarray] = []
        answered: list[list[np.ndarray]] = [[] for _ in specs]
        for part, given, blocked, of_part in zip(parts, labels, block_of, groups_of, strict=True):
            known = index.keys() & part.known
            rows = [row for row in np.flatnonzero(blocked == block).tolist() if given[row] in known]
            where += [(part.pairs, row) for row in rows]
            numbers += [index[str(given[row])] for row in rows]
            groups.append(of_part[np.array(rows, np.int64)])
            for predicted, spec, scorer in zip(answered, specs, part.scorers, strict=True):
                predicted.append(_probabilities(scorer, seen_by(spec, part.pairs.select(rows), splits), classes))
        given_numbers = np.array(numbers, np.int64)
        if len(np.unique(given_numbers)) < 2:
            continue  # one class alone: there is no other label to compare with
        by_model = [np.maximum(np.concatenate(predicted), 1e-9) for predicted in answered]
        wrong = find_wrong_labels(
            given_numbers,
            [one / one.sum(axis=1, keepdims=True) for one in by_model],
            np.concatenate(groups),
            seed=splits.seed,
            judged=np.flatnonzero(given_numbers == 1) if drawn else None,
        )
        table = []
        for row in wrong.rows.tolist():
            pairs, place = where[row]
            table.append(
                {
                    "place": pairs.places[place], "image": pairs.images[place], "text": pairs.texts[place],
                    "label": classes[numbers[row]], "likelier": classes[int(wrong.likelier[row])],
                    "probability of label %": 100 * float(wrong.beliefs[row]),
                    "probability of likelier %": 100 * float(wrong.likeliest[row]),
                }
            )  # fmt: skip
        labelled = int((given_numbers == 1).sum()) if drawn else len(numbers)
        found.append(
            _CalledWrong(labelled, table, wrong.wrong_share, wrong.standard_error, wrong.found_share, wrong.found_error)
        )
    return _together(found)


def _finding(found: _CalledWrong, accuracies: dict[str, float]) -> Finding:
    table, n = found.rows, found.looked_at
    measured = " and ".join(f"{name} {100 * accuracy:.1f} %" for name, accuracy in accuracies.items())
    low, high = found.ci95
    claim, advice = label_claim(
        len(table), n, accuracies, ci95=(low, high), found_share=found.found_share, most=found.most_missed,
        mostly=_mostly(table),
    )  # fmt: skip
    return Finding(
        name="label-errors",
        section="data",
        claim=claim,
        value=100 * len(table) / max(n, 1),
        ci95=None,
        how=(
            "Held-out probabilities of two different models, whose accuracy on such pairs is: "
            f"{measured}. Labels that are more likely wrong than right (probability below {100 * UNLIKELY:.0f} %), by "
            "the odds against them in the average of the models that makes the given labels likeliest, compared with "
            "the odds against labels that are drawn and wrong; test labels and the others apart. About "
            f"{100 * found.wrong_share:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of the labels are as unlikely as "
            f"wrong ones, and of labels made wrong for comparison {100 * found.found_share:.0f} % are found; "
            "those exchanged for classes that the models hardly tell apart count as right. Single answers "
            f"of classes with at least {FEWEST_OF_CLASS} pairs that both models were trained on; percent of labels."
        ),
        advice=advice,
        table=table,
    )


def label_claim(
    named: int,
    of: int,
    accuracies: dict[str, float],
    *,
    ci95: tuple[float, float],
    found_share: float,
    most: float,
    mostly: str = "",
) -> tuple[str, str]:
    """Return claim and advice.

    Args:
        named: Number of labels called wrong.
        of: Number of labels examined.
        accuracies: Accuracy on held-out pairs for each model, in [0, 1].
        ci95: Interval of the share of wrong labels, in [0, 1].
        found_share: Estimated share of the wrong labels that are called wrong, in [0, 1].
        most: Up to what share of them is missed, in [0, 1].
        mostly: The most frequent confusion in words, preceded by a semicolon; may be empty.
    """
    share = named / max(of, 1)
    names = " and ".join(accuracies)
    measured = " and ".join(f"{name} {100 * accuracy:.1f} %" for name, accuracy in accuracies.items())
    if named == 0 and min(accuracies.values()) < TRUSTED:
        return (
            f"None of the {of:,} labels examined is called wrong, but the models may miss wrong ones: up to "
            f"{100 * ci95[1]:.1f} % of the labels may be wrong, {SIMILAR_NOT_COUNTED} (accuracy on unseen pairs: "
            f"{measured}).",
            "Look at a hundred labels by hand if much depends on them.",
        )
    if named == 0:
        return f"None of the {of:,} labels examined is likely wrong according to {names}.", "Nothing to do."
    some = f"{named:,} of {of:,} labels {'is' if named == 1 else 'are'}"
    clause = missed(found_share, most, ci95)
    others = f", and {clause}" if clause else ""
    if stands_out(share, list(accuracies.values())):
        return (
            f"{some} likely wrong ({100 * share:.1f} %{mostly}), as {names}, which were not "
            f"trained on these pairs, together favour another answer{others}.",
            "Look at the first ones (likeliest first) before training again; correct them rather than just "
            "deleting them.",
        )
    doubt = f"some of them may be model errors{others}" if clause else "and some of them may be model errors"
    return (
        f"{some} called wrong ({100 * share:.1f} %{mostly}), {doubt}. Accuracy on unseen pairs: {measured}.",
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
            f"Checked only if two different models come {100 * LEAST_SKILL:.0f} % of the way from always giving the "
            "most frequent answer to being right on all held-out pairs."
        ),
        advice="Look at a hundred labels by hand instead.",
    )


def _probabilities(scorer: Scorer, pairs: Pairs, classes: list[str]) -> np.ndarray:
    """Return the probabilities of the classes, ``(n, classes)`` float32; classes unknown to the run get 0."""
    scored = list(zip(pairs.images, pairs.texts, strict=True))
    if scorer.run.task == "matching":
        _, match = scorer.match_probabilities(scored)
        return np.stack([1 - match, match], axis=1)
    predicted = scorer.probabilities(scorer.score(scored))
    columns = {label: number for number, label in enumerate(scorer.run.labels)}
    known = [number for number, name in enumerate(classes) if name in columns]
    chosen = np.zeros((len(pairs), len(classes)), np.float32)
    chosen[:, known] = predicted[:, [columns[classes[number]] for number in known]]
    return chosen


def _answers_of(scorer: Scorer) -> list[str]:
    return MATCH_LABELS if scorer.run.task == "matching" else scorer.run.labels


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
