"""Cross-validate the compared models over the training images, because a few development pairs are a poor guide.

A tenth of a small set decides little: on 425 development pairs, the worst of several models was chosen. Out-of-fold
answers for all training pairs are a far larger sample, at the cost of a few more trainings. The same models are later
used to find wrong labels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from frevl.diagnosis.gaps import compare
from frevl.diagnosis.model_comparison import ComparedModel, CrossValidation, ModelComparison, fit, predict_all, seen_by
from frevl.diagnosis.model_specs import SMALL, ModelSpec
from frevl.diagnosis.splits import Splits, deal_folds, few_enough, with_wrong_pairs
from frevl.errors import PairsError
from frevl.terminal import print_progress

__all__ = ["contenders", "cross_validate", "cross_validate_contenders"]

_PARTS, _PARTS_OF_MANY = 3, 2
_SLOWER, _LEAST_SECONDS = 4.0, 10.0


def cross_validate_contenders(
    comparison: ModelComparison, *, folder: Path, time_limit: float, progress: bool = False
) -> tuple[ModelComparison, list[str]]:
    """Cross-validate the models that may be the best of their role.

    Args:
        comparison: All models, trained on all training pairs.
        folder: Folder for the runs.
        time_limit: Total seconds; if the trainings would take longer, there is no cross-validation, because trainings
            cut short cannot be compared.
        progress: Show progress.

    Returns:
        The comparison, with cross-validated contenders, and notes for the reader. Above
        `frevl.diagnosis.model_specs.SMALL` training pairs the comparison is unchanged: there are enough development
        pairs.
    """
    splits = comparison.splits
    chosen = contenders(comparison)
    needed = sum(model.seconds for model in chosen) * (_PARTS - 1)
    clusters = len(set(splits.train.clusters))
    if len(splits.train) > SMALL or clusters < _PARTS:
        return comparison, []
    if needed > time_limit:
        return comparison, [
            f"There was no time for cross-validation (about {needed:.0f} s of training): the best models were "
            f"chosen on {len(splits.dev):,} development pairs; a larger --time-limit makes the choice more "
            "reliable."
        ]
    crossed = {}
    for model in chosen:
        # A busy machine takes longer, and a training cut short cannot be compared.
        limit = max(_SLOWER * model.seconds * (_PARTS - 1), _LEAST_SECONDS)
        try:
            crossed[model.name] = cross_validate(splits, model.spec, folder=folder / model.name, time_limit=limit)
        except PairsError:  # a part may have no pair of a very rare class
            return comparison, [
                "Some classes are too rare for cross-validation: the best models were chosen on "
                f"{len(splits.dev):,} development pairs."
            ]
        print_progress(
            f"  {model.name:<18} {100 * crossed[model.name].accuracy:6.2f} % cross-validated", enabled=progress
        )
    return replace(comparison, models=[replace(one, crossed=crossed.get(one.name)) for one in comparison.models]), []


def contenders(comparison: ModelComparison) -> list[ComparedModel]:
    """Return the models that are not measurably worse on the development pairs than the best of their role."""
    clusters = comparison.splits.dev.clusters
    kept = []
    for role in dict.fromkeys(model.spec.role for model in comparison.models):
        of_role = [model for model in comparison.models if model.spec.role == role]
        best = max(of_role, key=lambda model: model.dev.hits.mean())
        kept += [model for model in of_role if model is best or not compare(best.dev.hits, model.dev.hits, clusters).up]
    return kept


def cross_validate(splits: Splits, spec: ModelSpec, *, folder: Path, time_limit: float) -> CrossValidation:
    """Train a model on all but one part of the training images, for every part.

    There are three parts, or two for more than `frevl.diagnosis.model_specs.SMALL` pairs, the same for every model. A
    model is trained on at most 20,000 pairs.

    Args:
        splits: The pairs; development pairs serve for early stopping and calibration.
        spec: The model.
        folder: Folder for the runs.
        time_limit: Total seconds for training.
    """
    parts = _PARTS if len(splits.train) <= SMALL else _PARTS_OF_MANY
    part_of = deal_folds(splits.train.clusters, parts, splits.seed)
    answered = with_wrong_pairs(splits.train, splits.seed) if splits.task == "matching" else splits.train
    held_out, hits, seconds = [], [], 0.0
    for part in range(parts):
        training = few_enough(splits.train.select(np.flatnonzero(part_of != part).tolist()), seed=splits.seed)
        scorer = fit(splits, spec, folder=folder / str(part), time_limit=time_limit / parts, pairs=training)
        own = set(splits.train.select(np.flatnonzero(part_of == part).tolist()).clusters)
        pairs = answered.select([row for row, name in enumerate(answered.clusters) if name in own])
        held_out.append((pairs, scorer))
        hits.append(predict_all(scorer, seen_by(spec, pairs, splits)).hits)
        seconds += float(scorer.run.results["train_seconds"])
    return CrossValidation(held_out, np.concatenate(hits), seconds)
