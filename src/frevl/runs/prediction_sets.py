"""Prediction sets of a run, from the scores it keeps or from other held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.pairs import Pairs, with_targets
from frevl.errors import PairsError, RunError, UsageError, counted, rejects_sentence
from frevl.runs.calibration import ConformalScores
from frevl.runs.scorer import Scorer
from frevl.runs.targets import encode_answers, match_truth, prefixes_of
from frevl.store.grouping.contents import among
from frevl.store.grouping.groups import group_pairs
from frevl.store.usable_pairs import contents_of, read_usable, stored_contents_of

__all__ = ["conformal_scores", "named_matches", "named_sets", "right_classes", "set_probabilities"]

_PAIRS_AT_ONCE = 16_384


def conformal_scores(
    scorer: Scorer, calibrate: Any = None, *, evaluated: Pairs | None = None
) -> tuple[ConformalScores, list[str]]:
    """Return the scores of a run's held-out pairs, or those of given pairs.

    Args:
        scorer: The run with its store.
        calibrate: Pairs with known targets that the run was not trained on, or a pairs file; None uses the scores kept
            in the run.
        evaluated: Pairs on which the sets are to be evaluated.

    Returns:
        The scores, and reasons to doubt them: pairs on which the run was trained, or that are also evaluated.

    Raises:
        UsageError: The run has no scores, or was trained on soft targets.
        PairsError: The pairs cannot be used, or the run knows none of their classes.
    """
    if scorer.run.task == "classification" and scorer.soft:
        raise UsageError(f"{scorer.run.path}: sets need probabilities that sum to one, and the run has soft targets")
    if calibrate is None:
        record = scorer.run.results.get("prediction_sets")
        if record is None:
            raise UsageError(
                f"{scorer.run.path}: the run has no scores of held-out pairs, because nothing was held out or an "
                "earlier version trained it; give held-out pairs with --calibrate, or train again"
            )
        try:
            return ConformalScores.from_record(record), []
        except (KeyError, TypeError, ValueError) as error:
            reason = str(error)[:80]
            raise RunError(
                f"{scorer.run.path}: the run is damaged ('prediction_sets': {reason}); train again"
            ) from error
    notes: list[str] = []
    read = read_usable(scorer.store, calibrate, notes)
    notes += scorer.run.check_pairs(read)
    pairs, without = with_targets(read.only(scorer.run.sides))
    if scorer.run.task == "classification" and all(target is None for target in pairs.targets):
        raise PairsError(f"{pairs.places[0]}, field 'target': expected the right answer, found none in any pair")
    said = rejects_sentence(without)
    notes += [said] if said else []
    content = contents_of(scorer.store, pairs)[1]
    seen = np.isin(prefixes_of(content), scorer.run.train_image_hashes)
    doubts = []
    if seen.any():
        doubts.append(
            f"Leak: {int(seen.sum()):,} of {len(seen):,} different {pairs.sides[0]}s of --calibrate were in "
            "training or development: the sets are too small, and contain the right class less often than stated."
        )
    if evaluated is not None:
        again = len(np.unique(content[among(content, stored_contents_of(scorer.store, evaluated)[1])]))
        if again:
            doubts.append(
                f"Leak: {again:,} {pairs.sides[0]}s of --calibrate are also evaluated: the coverage is "
                "measured on the calibration pairs."
            )
    towers = [scorer.store.towers[name] for name in scorer.run.towers["image"]]
    (pairs,), grouped = group_pairs(
        scorer.store, [pairs], towers=towers, purpose="Counted once for the sets", advice=""
    )
    right = right_classes(scorer, pairs)
    doubts += _doubts_about_classes(scorer, pairs, right)
    scores = ConformalScores.fit(set_probabilities(scorer, pairs), right, np.array(pairs.clusters))
    return scores, [*doubts, *notes, *grouped]


def _doubts_about_classes(scorer: Scorer, pairs: Pairs, right: NDArray[np.bool_]) -> list[str]:
    """Return notes on pairs to calibrate on that are all of one class, or of classes that the run does not know.

    Args:
        scorer: The run with its store.
        pairs: The pairs.
        right: As returned by `right_classes`.

    Raises:
        PairsError: The run knows the class of none.
    """
    known = right.any(axis=1)
    if not known.any():
        labels = scorer.run.labels
        raise PairsError(
            f"{pairs.places[0]}, field 'target': expected classes of the run, such as '{labels[0]:.40}', found only "
            f"others, such as {str(pairs.targets[0])[:40]!r}; write them as in training"
        )
    doubts = []
    if not known.all():
        first = int((~known).argmax())
        doubts.append(
            f"Unknown classes: {counted(int((~known).sum()), 'pair')} of {len(pairs):,} of --calibrate "
            f"(the first is {pairs.places[first]}: {str(pairs.targets[first])[:40]!r}) have only classes that were not "
            "in training: no set contains these, so all sets are larger."
        )
    classes = np.flatnonzero(right.any(axis=0))
    if len(classes) == 1 and right.shape[1] > 1:
        name = ("no match", "a match")[classes[0]] if scorer.run.task == "matching" else scorer.run.labels[classes[0]]
        doubts.append(
            f"One class: all pairs of --calibrate have the right answer '{name:.60}', so sets contain other classes "
            "less often, or more often, than stated; give pairs like those to be scored."
        )
    return doubts


def set_probabilities(scorer: Scorer, pairs: Pairs) -> NDArray[np.float64]:
    """Return ``(n, classes)`` probabilities of pairs; for a matching run ``(n, 2)``, of no match and of a match."""
    parts = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        both = list(zip(pairs.images[part], pairs.texts[part], strict=True))
        if scorer.run.task == "matching":
            matching = scorer.match_probabilities(both)[1].astype(np.float64)
            parts.append(np.stack([1 - matching, matching], axis=1))
        else:
            parts.append(scorer.probabilities(scorer.score(both)).astype(np.float64))
    return np.concatenate(parts)


def named_sets(
    conformal: ConformalScores, probabilities: NDArray[Any], level: float, labels: Sequence[str]
) -> list[list[str]]:
    """Return each pair's classes that cannot be ruled out, likeliest first, from ``(n, classes)``."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    mask = np.take_along_axis(conformal.sets(probabilities, level), order, axis=1)
    return [[labels[number] for number in classes[inside]] for classes, inside in zip(order, mask, strict=True)]


def named_matches(conformal: ConformalScores, matching: NDArray[Any], level: float) -> list[bool | None]:
    """Return whether each of ``(n,)`` match probabilities is a match; None if neither can be ruled out."""
    mask = conformal.sets(np.stack([1 - matching, matching], axis=1), level)
    return [None if no == yes else yes for no, yes in mask.tolist()]


def right_classes(scorer: Scorer, pairs: Pairs) -> NDArray[np.bool_]:
    """Return ``(n, classes)``: which classes are right for pairs; for a matching run ``(n, 2)``."""
    if scorer.run.task == "matching":
        matches = match_truth(pairs).numpy() > 0.5
        return np.stack([~matches, matches], axis=1)
    answers = encode_answers(pairs.targets, scorer.run.labels)
    found = np.zeros((len(pairs), len(scorer.run.labels) + 1), bool)
    np.put_along_axis(found, answers.classes.numpy(), answers.weights.numpy() > 0, axis=1)
    return found[:, :-1]
