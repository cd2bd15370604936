"""Compare all models on the same pairs: trained by `frevl.train`, scored by `Scorer`, tested on the same test pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frevl.data.pairs import Pairs
from frevl.diagnosis.model_choice import ModelChoice, ModelResult, title
from frevl.diagnosis.model_specs import SMALL, ModelSpec, specs_for
from frevl.diagnosis.splits import MATCH_LABELS, Splits, constant
from frevl.errors import UsageError, nearest
from frevl.runs.calibration import calibrated
from frevl.runs.scorer import Scorer
from frevl.runs.targets import encode_answers, match_truth
from frevl.store.towers import MODALITIES
from frevl.terminal import print_progress
from frevl.training.retrieval.two_tower import has_common_space
from frevl.training.training import train

__all__ = [
    "ComparedModel",
    "CrossValidation",
    "ModelComparison",
    "Predictions",
    "compare_models",
    "fit",
    "most_passes",
    "predict_all",
    "predictions_of",
    "quick_products",
    "seen_by",
]

_PAIRS_AT_ONCE = 16_384
_NETWORKS = ("text", "image", "mlp", "tiny")  # trained by gradient descent
# Matching trains on three wrong pairs per right one, so at first a network calls every pair wrong and gets half of the
# development pairs right; the default patience of `frevl.train` (5) ended training on small sets at that point.
_PATIENCE = 20
# A fusion needs enough steps: on 1,125 captions it stayed at 50 % with batches of 256, reached 71 % with 64 and 76 %
# with 32.
_STEPS, _SMALLEST_BATCH, _LARGEST_BATCH = 32, 32, 256  # steps per pass
_PASSES, _MANY = 20, 32_000


@dataclass(frozen=True)
class Predictions:
    """A model's answers to some pairs, and whether they are right.

    Attributes:
        predicted: ``(n,)`` int64, index of the predicted class in `labels`.
        labels: Names of the classes.
        hits: ``(n,)`` in [0, 1]: weight of the predicted answer, 1 if it is right.
        confidence: ``(n,)`` in [0, 1]: calibrated probability of the predicted class.
        raw: ``(n,)`` in [0, 1]: this probability before calibration.
    """

    predicted: np.ndarray
    labels: list[str]
    hits: np.ndarray
    confidence: np.ndarray
    raw: np.ndarray


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """A model trained several times, each time without some of the images of the training pairs.

    Attributes:
        parts: Every part of the training pairs, with the model that was not trained on its images. In matching, each
            right pair has one drawn wrong pair.
        hits: ``(n,)`` in [0, 1] on the pairs of all parts, in order.
        seconds: Total training time in seconds.
    """

    parts: list[tuple[Pairs, Scorer]]
    hits: np.ndarray
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of right answers over all parts, in [0, 1]."""
        return float(self.hits.mean())

    @property
    def clusters(self) -> Sequence[str]:
        """Cluster (image) of every pair of `hits`."""
        return [name for pairs, _ in self.parts for name in pairs.clusters]


@dataclass(frozen=True, eq=False)
class ComparedModel:
    """A model with its predictions.

    Attributes:
        spec: The model.
        scorer: The trained run.
        test: Predictions on the test pairs.
        dev: Predictions on the development pairs.
        seconds: Training time in seconds.
        crossed: Cross-validation of the model; None if there was none.
    """

    spec: ModelSpec
    scorer: Scorer
    test: Predictions
    dev: Predictions
    seconds: float
    crossed: CrossValidation | None = None

    @property
    def name(self) -> str:
        """Name of the model in the report."""
        return self.spec.name

    @property
    def title(self) -> str:
        """Name of the model in a sentence."""
        return title(self.spec.name, self.spec.role)


@dataclass(frozen=True)
class ModelComparison:
    """All models on the same pairs.

    Attributes:
        splits: The pairs.
        models: The models in the order of `MODEL_SPECS`, simplest first.
        exchanged: For each model name, its hits with ``image`` and ``text`` exchanged among the test pairs (from
            `frevl.diagnosis.performance.modality_use.exchanged_hits`); None before that was measured.
    """

    splits: Splits
    models: list[ComparedModel]
    exchanged: dict[str, dict[str, np.ndarray]] | None = None

    @cached_property
    def choice(self) -> ModelChoice:
        """The choice of the best model, by kind and overall."""
        results = [
            ModelResult(
                name=model.name,
                role=model.spec.role,
                hits=model.test.hits,
                dev=float(model.dev.hits.mean()),
                held_out=None if model.crossed is None else model.crossed.hits,
                parameters=model.scorer.run.parameters,
                seconds=model.seconds,
            )
            for model in self.models
        ]
        crossed = next((model.crossed for model in self.models if model.crossed is not None), None)
        further = [] if crossed is None else crossed.clusters
        return ModelChoice(results, self.clusters, further, self.exchanged, unit=self.splits.unit)

    def best(self, role: str) -> ComparedModel:
        """Return the best model of a role (see `frevl.diagnosis.model_choice`)."""
        return self._named(self.choice.best(role).name)

    @property
    def both(self) -> ComparedModel:
        """The best model that sees image and text; the best of all models if the pairs have one side only."""
        return self._named(self.choice.both.name)

    @property
    def recommended(self) -> ComparedModel:
        """The model that the verdict recommends."""
        return self._named(self.choice.recommended.name)

    @property
    def clusters(self) -> Sequence[str]:
        """Cluster (image) of every test pair."""
        return self.splits.test.clusters

    def _named(self, name: str) -> ComparedModel:
        return next(model for model in self.models if model.name == name)


def compare_models(
    splits: Splits, *, folder: Path, time_limit: float, models: Sequence[str] | None = None, progress: bool = False
) -> ModelComparison:
    """Train all models that suit task and size on the training pairs, and let them answer the test pairs.

    Args:
        splits: The pairs.
        folder: Folder for the runs.
        time_limit: Total seconds, of which every training may use its share.
        models: Names from `MODEL_SPECS` to compare; None takes all that are suitable.
        progress: Show progress.

    Raises:
        UsageError: A model is unknown, or a role is not filled.
        FrevlError: As in `frevl.train`.
    """
    sides = splits.train.sides
    specs = specs_for(sides)
    known = [spec.name for spec in specs]
    for name in models or ():
        if name not in known:
            raise UsageError(f"A diagnosis has no model '{name}'. {nearest(name, known)}")
    size = "small" if len(splits.train) <= SMALL else "large"
    towers = [splits.store.select_towers(modality, splits.encoders_of(modality)) for modality in MODALITIES]
    chosen = [
        spec
        for spec in specs
        if splits.task in spec.tasks
        and (spec.name in models if models else spec.sizes in ("any", size))
        and (spec.model != "cosine" or has_common_space(*towers))
    ]
    roles = {"majority", "text", "image", "baseline", "fusion"} if len(sides) == 2 else {"majority", "side"}
    lacking = roles - {spec.role for spec in chosen}
    if lacking:
        raise UsageError(f"A diagnosis needs a model of each role, found none for: {', '.join(sorted(lacking))}")
    compared = []
    for spec in chosen:
        scorer = fit(splits, spec, folder=folder / spec.name, time_limit=spec.share * time_limit)
        test, dev = (predict_all(scorer, seen_by(spec, part, splits)) for part in (splits.test, splits.dev))
        seconds = float(scorer.run.results["train_seconds"])
        compared.append(ComparedModel(spec, scorer, test, dev, seconds))
        print_progress(f"  {spec.name:<18} {100 * test.hits.mean():6.2f} %  {seconds:6.1f} s", enabled=progress)
    return ModelComparison(splits, compared)


def fit(splits: Splits, spec: ModelSpec, *, folder: Path, time_limit: float, pairs: Pairs | None = None) -> Scorer:
    """Train one model.

    Args:
        splits: The pairs; development pairs stop and calibrate every training.
        spec: The model.
        folder: Folder for the run.
        time_limit: Training time limit in seconds.
        pairs: Training pairs; None takes those of the splits.
    """
    shown = seen_by(spec, splits.train if pairs is None else pairs, splits)
    passes = {}
    if spec.epochs is not None and len(shown) > SMALL:
        passes = {"epochs": spec.epochs if pairs is not None else most_passes(spec.epochs, len(shown))}
    patient: dict[str, Any] = {}
    if splits.task == "matching" and spec.model in _NETWORKS:
        patient["patience"] = _PATIENCE
        if spec.role == "fusion":
            patient["batch_size"] = max(_SMALLEST_BATCH, min(_LARGEST_BATCH, len(shown) // _STEPS))
    with quick_products(wanted=spec.model in _NETWORKS and len(shown) > SMALL):
        run = train(
            splits.store,
            shown,
            run=folder,
            task=splits.task,
            model=spec.model,
            dev=seen_by(spec, splits.dev, splits),
            encoder=splits.encoder,
            image_encoder=splits.image_encoder,
            text_encoder=splits.text_encoder,
            seed=splits.seed,
            time_limit=max(time_limit, 1.0),
            options={**spec.changes, **passes, **patient},
            find_groups=False,  # done once for all models, in `read_splits`
            workers=1,  # whatever a launcher set, because its processes do not share a diagnosis
        )
    return Scorer(run, splits.store)


def most_passes(many: int, pairs: int) -> int:
    """Return the number of passes over the training pairs: `many`, or up to 20 for fewer than 32,000 pairs.

    A network needs a certain number of steps, and `many` passes over 32,000 pairs provide enough of them.
    """
    return max(many, min(_PASSES, many * _MANY // pairs))


@contextmanager
def quick_products(*, wanted: bool = True) -> Iterator[None]:
    """Let matrix products round their factors to bfloat16 if the CPU has instructions for it.

    Sums and weights stay float32, as does everything else. For gradient descent only: closed-form solutions need full
    precision.

    Args:
        wanted: False leaves the precision unchanged.
    """
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def seen_by(spec: ModelSpec, pairs: Pairs, splits: Splits) -> Pairs:
    """Return pairs as the model sees them: a side that it must do without is the same for all."""
    if spec.without == "image":
        return constant(pairs, image=splits.train.images[0])
    if spec.without == "text":
        return constant(pairs, text=splits.train.texts[0])
    return pairs


def predict_all(
    scorer: Scorer, pairs: Pairs, *, images: Sequence[str] | None = None, texts: Sequence[str] | None = None
) -> Predictions:
    """Answer pairs, and score every answer as right or wrong.

    Args:
        scorer: The run.
        pairs: Pairs with targets.
        images: Images to use in place of those of the pairs.
        texts: Texts to use in place of those of the pairs.
    """
    shown = list(zip(images or pairs.images, texts or pairs.texts, strict=True))
    parts = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):  # all scores for many classes would fill memory
        rows = range(start, min(start + _PAIRS_AT_ONCE, len(pairs)))
        parts.append(predictions_of(scorer, scorer.score(shown[start : start + _PAIRS_AT_ONCE]), pairs.select(rows)))
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("predicted", "hits", "confidence", "raw")
    }
    return Predictions(labels=parts[0].labels, **joined)


def predictions_of(scorer: Scorer, scores: np.ndarray, pairs: Pairs) -> Predictions:
    """Return the predictions from scores of `Scorer.score` on pairs with targets."""
    logits = torch.from_numpy(scores)
    none = {"scale": 1.0, "offset": 0.0}
    if scorer.run.task == "matching":
        probabilities = scorer.probabilities(scores)
        raw = calibrated(logits[:, None], none, soft=True)[:, 0].numpy()
        predicted = (probabilities > 0.5).astype(np.int64)
        hits = (predicted == (match_truth(pairs).numpy() > 0.5)).astype(np.float64)
        sure = [np.where(predicted == 1, p, 1 - p).astype(np.float64) for p in (probabilities, raw)]
        return Predictions(predicted, MATCH_LABELS, hits, *sure)
    predicted = scores.argmax(axis=1).astype(np.int64)
    answers = encode_answers(pairs.targets, scorer.run.labels)
    hits = answers.hits(torch.from_numpy(predicted)).double().numpy()
    column = predicted[:, None]
    confidence = np.take_along_axis(scorer.probabilities(scores), column, axis=1)[:, 0].astype(np.float64)
    before = calibrated(logits, none, soft=scorer.soft).numpy()
    return Predictions(
        predicted, scorer.run.labels, hits, confidence,
        np.take_along_axis(before, column, axis=1)[:, 0].astype(np.float64),
    )  # fmt: skip
