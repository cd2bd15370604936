"""Evaluate prediction sets on test pairs: coverage and size, also by slice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.pairs import Pairs
from frevl.evaluation.measures import Measure
from frevl.evaluation.slices import slice_table
from frevl.runs.prediction_sets import conformal_scores, right_classes, set_probabilities
from frevl.runs.scorer import Scorer

__all__ = ["evaluate_sets"]


def evaluate_sets(
    scorer: Scorer, pairs: Pairs, level: float, calibrate: Any, slices: dict[str, dict[str, list[int]]]
) -> tuple[dict[str, Any], list[str]]:
    """Evaluate a run's prediction sets.

    Args:
        scorer: The run with its store.
        pairs: Test pairs with targets; intervals resample their ``clusters``.
        level: Target coverage: how often the right class should be in the set.
        calibrate: As in `frevl.runs.prediction_sets.conformal_scores`.
        slices: Rows of every group of the pairs.

    Returns:
        ``level``, ``kind``, ``set_coverage`` and ``single`` (sets of one class) in percent, ``set_size`` in classes,
        each with ``ci95``, the coverage by slice, and notes.

    Raises:
        UsageError: The run cannot give sets.
    """
    conformal, notes = conformal_scores(scorer, calibrate, evaluated=pairs)
    probabilities = set_probabilities(scorer, pairs)
    inside, right = conformal.sets(probabilities, level), right_classes(scorer, pairs)
    covered: NDArray[np.float64] = np.any(inside & right, axis=1).astype(np.float64)
    if scorer.run.task == "matching" and bool(right.all(axis=0).any()):
        notes.append(
            "All pairs are right ones, or all are wrong ones, but the sets were calibrated on both: coverage can "
            "differ from the level."
        )
    sizes = inside.sum(axis=1).astype(np.float64)
    measures = {"set_coverage": covered, "set_size": sizes, "single": (sizes == 1).astype(np.float64)}
    found: dict[str, Any] = {"level": level, "kind": conformal.kind, "ci95": {}}
    for name, values in measures.items():
        interval = Measure(pairs.clusters, values).interval()
        scale = 1 if name == "set_size" else 100
        found[name] = scale * interval.value
        bounds = interval.percent()
        found["ci95"][name] = None if bounds is None else [scale * bound / 100 for bound in bounds]
    found["slices"] = slice_table(slices, "set_coverage", covered, pairs.clusters)
    return found, [*notes, *conformal.notes(level)]
