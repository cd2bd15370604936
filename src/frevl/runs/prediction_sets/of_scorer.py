"""Prediction sets of a run: the scores that it keeps, or those of pairs that it has not learned from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.pairs import Pairs
from frevl.errors import RunError, UsageError
from frevl.runs.prediction_sets.conformal import ConformalScores
from frevl.runs.scorer import Scorer
from frevl.runs.targets import encode_answers, match_truth
from frevl.store.grouping.groups import group_pairs
from frevl.store.usable_pairs import read_usable

__all__ = ["conformal_scores", "right_classes", "set_probabilities"]

_PAIRS_AT_ONCE = 16_384


def conformal_scores(scorer: Scorer, calibrate: Any = None) -> ConformalScores:
    """Return the scores that a run keeps of its held-out pairs, or those of other pairs.

    Args:
        scorer: The run with its store.
        calibrate: Pairs with known targets that the run has not learned from, or a pairs file; None takes the run's.

    Raises:
        UsageError: The run keeps none, or was trained on soft targets.
        PairsError: The pairs cannot be used.
    """
    if scorer.run.task == "classification" and scorer.soft:
        raise UsageError(
            f"{scorer.run.path}: sets need one probability shared by all classes, and the run has soft targets"
        )
    if calibrate is None:
        record = scorer.run.results.get("prediction_sets")
        if record is None:
            raise UsageError(
                f"{scorer.run.path}: the run keeps no scores of held-out pairs, because nothing was held out or an "
                "earlier version trained it; give pairs that it has not learned from with --calibrate, or train again"
            )
        try:
            return ConformalScores.from_record(record)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{scorer.run.path}: the run is damaged ('prediction_sets': {error}); train again"
            ) from error
    pairs = read_usable(scorer.store, calibrate, [])
    scorer.run.check_pairs(pairs)
    towers = [scorer.store.towers[name] for name in scorer.run.towers["image"]]
    (pairs,), _ = group_pairs(scorer.store, [pairs], towers=towers)
    probabilities = set_probabilities(scorer, pairs)
    return ConformalScores.fit(probabilities, right_classes(scorer, pairs), np.array(pairs.clusters))


def set_probabilities(scorer: Scorer, pairs: Pairs) -> NDArray[np.float64]:
    """Return ``(n, classes)`` probabilities of pairs; of a matching run ``(n, 2)``, of no match and of a match."""
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


def right_classes(scorer: Scorer, pairs: Pairs) -> NDArray[np.bool_]:
    """Return ``(n, classes)``: which classes are right for pairs; of a matching run ``(n, 2)``."""
    if scorer.run.task == "matching":
        matches = match_truth(pairs).numpy() > 0.5
        return np.stack([~matches, matches], axis=1)
    answers = encode_answers(pairs.targets, scorer.run.labels)
    found = np.zeros((len(pairs), len(scorer.run.labels) + 1), bool)
    np.put_along_axis(found, answers.classes.numpy(), answers.weights.numpy() > 0, axis=1)
    return found[:, :-1]
