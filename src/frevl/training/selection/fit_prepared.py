"""Fit and calibrate the requested model, or the model that ``auto`` chooses, on prepared examples, in both tasks.

Both `frevl.train` and the estimators of `frevl.estimators` call this module, so the same data give the same network. It
does not read a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frevl.errors import UsageError
from frevl.evaluation.chance import against_majority, match_chance
from frevl.evaluation.intervals import hit_record
from frevl.models.interface import PairNetwork
from frevl.runs.calibration import ConformalScores, calibrated, calibration_notes, fit_calibration
from frevl.runs.posterior import Posterior, fit_posterior
from frevl.runs.targets import Answers
from frevl.training.examples import Examples, Prepared, dev_hits, with_wrong_texts
from frevl.training.fitting.fit_model import fit_model
from frevl.training.fitting.initialisation import Pretrained
from frevl.training.options import AutoOptions, LinearOptions, ModelOptions, Session
from frevl.training.retrieval.choose import choose_matching
from frevl.training.retrieval.fit import fit_matching, without_wide
from frevl.training.run_folder import NOWHERE, Checkpoint
from frevl.training.selection.choose import choose

__all__ = ["FittedRun", "fit_prepared", "kept_scores"]


_FOR_POSTERIOR = 1_000_000  # evenly spaced matching pairs that get wrong texts for the posterior of the last layer
_NOTHING_HELD_OUT = (
    "The development metric is meaningless: nearly every class has just one example, so none could be set aside "
    "and it is measured on training pairs. For a valid metric and calibrated probabilities, give other pairs with "
    "--dev."
)


@dataclass(frozen=True)
class FittedRun:
    """A network with all that a run records about its training.

    Attributes:
        network: The network on the CPU, in evaluation mode.
        calibration: ``scale`` and ``offset``; see `frevl.runs.calibration`.
        results: Development metrics, seconds, notes and the like.
        data: The examples as used: with the chosen encoders.
        encoders: Names of the chosen encoders.
        posterior: Posterior of the last layer, if known and asked for.
    """

    network: PairNetwork
    calibration: dict[str, float]
    results: dict[str, Any]
    data: Prepared
    encoders: list[str]
    posterior: Posterior | None = None


def fit_prepared(
    data: Prepared,
    *,
    task: str,
    model: str,
    options: ModelOptions,
    session: Session,
    first_stage: str | None = None,
    start: Pretrained | None = None,
    checkpoint: Checkpoint = NOWHERE,
    log_file: Path | None = None,
    with_posterior: bool = True,
) -> FittedRun:
    """Fit and calibrate a network.

    Args:
        data: Training and development examples.
        task: ``matching`` or ``classification``.
        model: Name of the model, as in `frevl.train`.
        options: Options of this model.
        session: Seed, time limit, device and progress.
        first_stage: In matching, the stage that finds candidates.
        start: In classification, a trained fusion to initialise from.
        checkpoint: Where finished and unfinished work is saved.
        log_file: Log file of gradient descent.
        with_posterior: Whether to fit the posterior of the last layer, which takes as long as a fit to few pairs.

    Raises:
        UsageError: The model does not fit the task.
        TrainingError: The loss is not finite.
    """
    outputs = len(data.labels) if task == "classification" else 1
    encoders, warnings = data.encoders, list(data.doubts)
    selection: dict[str, Any] | None = None
    if task == "matching":
        data = without_wide(data)
        if isinstance(options, AutoOptions):
            _check_for_matching(options)
            fitted, selection = choose_matching(data, options, session, checkpoint)
        else:
            fitted, selection = fit_matching(
                model, data, options, session, first_stage=first_stage, checkpoint=checkpoint, log_file=log_file
            )
    elif isinstance(options, AutoOptions):
        chosen = choose(
            data, encoders, outputs, options, session, start=start, checkpoint=checkpoint, log_file=log_file
        )
        fitted, selection, data, encoders = chosen.fitted, chosen.record(), chosen.data, chosen.encoders.encoders
        warnings += chosen.warnings()
    else:
        fitted = fit_model(
            model, data.train, data.dev, outputs, options, session, dev_is_spare=data.dev_is_spare, start=start,
            checkpoint=checkpoint.part(model), log_file=log_file,
        )  # fmt: skip
    logits, truth = fitted.development(data.dev)
    if task == "matching":
        logits = fitted.network.probability_logits(logits)
    calibration = fit_calibration(logits, truth)
    if data.dev_is_seen:
        warnings.insert(0, _NOTHING_HELD_OUT)
        if fitted.held_out is None:  # on training pairs every model would look overconfident
            calibration = {"scale": 1.0, "offset": 0.0}
    scores = calibration["scale"] * logits + calibration["offset"] if task == "matching" else logits
    clusters = data.dev.clusters if fitted.held_out is None else fitted.held_out_clusters
    if not (data.dev_is_seen or model == "majority" or clusters is None):
        if isinstance(truth, Tensor):
            right = truth.numpy() > 0.5
            warnings += _judged_at_chance(scores, truth, clusters, data.train.truth) or match_chance(
                scores.flatten().numpy(), right, clusters.numpy()
            )
        elif selection is None:
            warnings += at_chance(scores, truth, clusters, data.labels)
    warnings += fitted.unseen_warning()
    results = {
        "development": hit_record(
            dev_hits(scores, truth).numpy(), None if data.dev_is_seen or clusters is None else clusters.numpy()
        ),
        "train_pairs": fitted.pairs or (len(data.train) if fitted.held_out is None else len(logits)),
        "train_seconds": fitted.seconds,
        "soft_targets": isinstance(data.train.truth, Answers) and data.train.truth.soft,
        "warnings": warnings,
        "notes": list(
            dict.fromkeys(
                [
                    *warnings,
                    *fitted.cut_short_note(),
                    *fitted.notes,
                    *_weighting(options),
                    *data.notes,
                    *calibration_notes(len(logits)),
                ]
            )
        ),
        "fit": vars(fitted.report) if fitted.report else None,
        "selection": selection,
    }
    if fitted.approximation is not None:  # in that case the held-out pairs are training pairs
        results |= {"train_pairs": fitted.approximation["pairs"], "approximation": fitted.approximation}
    if clusters is not None and not data.dev_is_seen:
        results["prediction_sets"] = kept_scores(logits, truth, clusters, calibration)
    posterior = _posterior(fitted.network, data.train, options, session) if with_posterior else None
    return FittedRun(fitted.network, calibration, results, data, encoders, posterior)


def at_chance(
    logits: Tensor, truth: Answers | Tensor, clusters: Tensor, labels: Sequence[str], *, majority: int = 0
) -> list[str]:
    """Return a warning if a classifier is not measurably better than always giving the most frequent answer.

    ``auto`` compares its candidates with that answer itself; for matching, see `match_chance`. Pairs of a single class
    show nothing about a model, as another note says.

    Args:
        logits: ``(n, classes)`` of held-out pairs.
        truth: Their right answers.
        clusters: ``(n,)`` int64, as in `frevl.training.examples.Examples`.
        labels: The classes; none in matching.
        majority: Number of the class most frequent in training, the first of those that a training counts.
    """
    if isinstance(truth, Tensor) or not labels or bool((truth.classes == truth.classes[:1]).all()):
        return []
    hits = truth.hits(logits.argmax(dim=1)), truth.hits(torch.full((len(logits),), majority))
    chance = against_majority(hits[0].numpy(), hits[1].numpy(), clusters.numpy(), labels[majority])
    return [chance.sentence] if chance.is_chance else []


def _judged_at_chance(
    scores: Tensor, truth: Answers | Tensor, clusters: Tensor, learned: Answers | Tensor
) -> list[str]:
    """Return the warning of `at_chance` for pairs that were judged right or wrong, instead of drawn texts."""
    if not (isinstance(truth, Tensor) and isinstance(learned, Tensor)) or not bool((learned < 0.5).any()):
        return []
    right, most = truth > 0.5, bool(learned.mean() > 0.5)
    if bool((right == right[:1]).all()):
        return []
    hits, always = ((scores.reshape(len(right)) > 0) == right).numpy(), (right == most).numpy()
    chance = against_majority(hits, always, clusters.numpy(), "a match" if most else "no match")
    return [chance.sentence] if chance.is_chance else []


def _posterior(network: PairNetwork, train: Examples, options: ModelOptions, session: Session) -> Posterior | None:
    """Fit the last layer's posterior to its training inputs; in matching, a model of pairs also gets wrong pairs."""
    rows = train.pairs.image_rows[:1], train.pairs.text_rows[:1]
    inputs = network.last_layer_inputs(*train.pairs.inputs(*rows))
    if inputs is None:
        return None
    if any(side.endswith("pair") for side in inputs) and isinstance(train.truth, Tensor):
        negatives = getattr(options, "negatives", LinearOptions().negatives)
        whole = len(train)
        if whole > _FOR_POSTERIOR:  # wrong texts for ten million pairs would take gigabytes
            train = train.select(torch.arange(_FOR_POSTERIOR) * whole // _FOR_POSTERIOR)
        stand_for = whole / len(train)
        train = with_wrong_texts(train, negatives, session.seed)
        return fit_posterior(network, train.pairs, stand_for=stand_for)
    return fit_posterior(network, train.pairs)


def _weighting(options: ModelOptions) -> list[str]:
    """Return a note on the meaning of probabilities under class weights."""
    if getattr(options, "class_weight", None) is None:
        return []
    return ["class_weight=balanced: probabilities assume equally frequent classes, not the frequencies in these pairs."]


def _check_for_matching(options: AutoOptions) -> None:
    if {"choose_by", "class_weight"} & options.changes().keys():
        raise UsageError("choose_by and class_weight apply to --task classification; matching is chosen by recall")


def kept_scores(
    logits: Tensor, truth: Answers | Tensor, clusters: Tensor, calibration: dict[str, float]
) -> dict[str, Any] | None:
    """Return the scores of held-out pairs to keep for prediction sets; None with soft targets.

    Args:
        logits: ``(n, outputs)`` logits of pairs that the network was not trained on.
        truth: Their answers, or ``(n,)`` for matching.
        clusters: ``(n,)`` int64 clusters of the pairs.
        calibration: Calibration of the logits.
    """
    if not len(logits):
        return None
    if isinstance(truth, Tensor):
        matching = calibrated(logits, calibration, soft=True)[:, 0]
        probabilities, matches = torch.stack([1 - matching, matching], dim=1), truth > 0.5
        right = torch.stack([~matches, matches], dim=1)
    elif truth.soft:
        return None
    else:
        probabilities = calibrated(logits, calibration, soft=False)
        right = truth.dense(torch.arange(len(logits)), logits.shape[1]) > 0
    scores = ConformalScores.fit(probabilities.double().numpy(), right.numpy(), clusters.numpy())
    return scores.record()
