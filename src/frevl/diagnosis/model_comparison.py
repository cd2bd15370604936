"""Every model on the same pairs: trained by `frevl.train`, scored by `Scorer`, judged on the same test pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frevl.data.pairs import Pairs
from frevl.diagnosis.splits import MATCH_LABELS, Splits, constant
from frevl.errors import UsageError, nearest
from frevl.progress import say
from frevl.runs.calibration import calibrated
from frevl.runs.scorer import Scorer
from frevl.runs.targets import encode_answers, match_truth
from frevl.training.retrieval.common_space import has_common_space
from frevl.training.training import train

__all__ = [
    "ENTRANTS",
    "Contest",
    "Entrant",
    "Entry",
    "Marks",
    "fit",
    "hold_contest",
    "mark",
    "marks_of",
    "most_passes",
    "quick_products",
]

SMALL = 8_000  # training pairs up to which a kernel takes seconds, and a network wants more regularisation
_PAIRS_AT_ONCE = 16_384
_NETWORKS = ("text", "image", "mlp", "tiny")  # trained by gradient descent
# Matching learns from three wrong pairs beside every right one: at first all are called wrong, half of the development
# pairs are right, and the patience of `frevl.train` (5) ended the training of a small set there.
_PATIENCE = 20
# And a fusion needs steps: on 1,125 captions it stayed at 50 % in batches of 256; 64 gave 71 %, 32 gave 76 %.
_STEPS, _SMALLEST_BATCH, _LARGEST_BATCH = 32, 32, 256  # a pass
_PASSES, _MANY = 20, 32_000
_REGULARISED = {"dropout": 0.4, "weight_decay": 0.2, "batch_size": 128}


@dataclass(frozen=True)
class Entrant:
    """A model that takes part.

    Attributes:
        name: As it stands in the report.
        model: What `frevl.train` trains.
        role: ``majority``, ``text`` and ``image`` (one side alone), ``baseline`` or ``fusion``.
        share: Of the time limit that its training may take.
        changes: Options of the model that differ from the defaults.
        epochs: Most passes over 32,000 training pairs or more (see `most_passes`); a diagnosis has minutes, and one
            modality alone has learnt what it can much earlier than the fusion. None leaves the default of
            `frevl.train`.
        without: ``image`` or ``text``: that side is the same for all pairs, so the model cannot use it.
        sizes: ``small``, ``large`` or ``any``: for how many training pairs it is meant (the border is `SMALL`).
        tasks: The tasks that it can do.
    """

    name: str
    model: str
    role: str
    share: float
    changes: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    without: str = ""
    sizes: str = "any"
    tasks: tuple[str, ...] = ("classification", "matching")


_CLASSES, _PAIRS = ("classification",), ("matching",)
# A kernel on one side alone: what the kernel fusion must be compared with, because on small sets a kernel learns more
# from a text than the network does, and the difference must not be credited to the image.
ENTRANTS = (
    Entrant("majority", "majority", "majority", 0.01),
    Entrant("text", "text", "text", 0.06, epochs=4),
    Entrant("image", "image", "image", 0.08, epochs=4),
    Entrant("text kernel", "kernel", "text", 0.1, without="image", sizes="small", tasks=_CLASSES),
    Entrant("image kernel", "kernel", "image", 0.1, without="text", sizes="small", tasks=_CLASSES),
    Entrant("cosine", "cosine", "baseline", 0.01, tasks=_PAIRS),
    Entrant("linear", "linear", "baseline", 0.1),
    Entrant("mlp", "mlp", "baseline", 0.22, epochs=12),
    Entrant("dual", "dual", "baseline", 0.2, tasks=_PAIRS),
    Entrant("kernel", "kernel", "fusion", 0.15, sizes="small", tasks=_CLASSES),
    Entrant("tiny regularised", "tiny", "fusion", 0.25, changes=_REGULARISED, sizes="small"),
    Entrant("tiny", "tiny", "fusion", 0.38, epochs=12, sizes="large"),
)


@dataclass(frozen=True)
class Marks:
    """What a model said of some pairs, and whether it was right.

    Attributes:
        predicted: ``(n,)`` int64, number of the predicted class in `labels`.
        labels: Names of the classes.
        hits: ``(n,)`` in [0, 1]: weight of the predicted answer, 1 where it is right.
        confidence: ``(n,)`` in [0, 1]: calibrated probability of the predicted class.
        raw: ``(n,)`` the same before calibration.
    """

    predicted: np.ndarray
    labels: list[str]
    hits: np.ndarray
    confidence: np.ndarray
    raw: np.ndarray


@dataclass(frozen=True)
class Entry:
    """A model with its marks.

    Attributes:
        entrant: The model.
        scorer: The trained run.
        test: Marks on the test pairs.
        dev: Marks on the development pairs.
        seconds: Time of the training.
    """

    entrant: Entrant
    scorer: Scorer
    test: Marks
    dev: Marks
    seconds: float

    @property
    def name(self) -> str:
        """Name of the model in the report."""
        return self.entrant.name


@dataclass(frozen=True)
class Contest:
    """All models on the same pairs.

    Attributes:
        splits: The pairs.
        entries: The models in the order of `ENTRANTS`.
    """

    splits: Splits
    entries: list[Entry]

    def best(self, *roles: str) -> Entry:
        """Return the model of these roles that is best on development data; of equals the one that stands first."""
        of_role = [entry for entry in self.entries if entry.entrant.role in roles]
        return max(of_role, key=lambda entry: entry.dev.hits.mean())

    @property
    def clusters(self) -> list[str]:
        """Cluster (image) of every test pair."""
        return self.splits.test.clusters


def hold_contest(
    splits: Splits, *, folder: Path, time_limit: float, models: Sequence[str] | None = None, progress: bool = False
) -> Contest:
    """Train all models that fit task and size on the training pairs, and judge them on the test pairs.

    Args:
        splits: The pairs.
        folder: For the runs.
        time_limit: Seconds; every training may take its entrant's share.
        models: Names of `ENTRANTS` to take; None takes all that fit.
        progress: Show progress lines.

    Raises:
        UsageError: An unknown model, or one of the roles is not filled.
        FrevlError: As `frevl.train`.
    """
    known = [entrant.name for entrant in ENTRANTS]
    for name in models or ():
        if name not in known:
            raise UsageError(f"A diagnosis compares no model '{name}'. {nearest(name, known)}")
    size = "small" if len(splits.train) <= SMALL else "large"
    towers = [splits.store.select_towers(modality, splits.encoder) for modality in ("image", "text")]
    chosen = [
        entrant
        for entrant in ENTRANTS
        if splits.task in entrant.tasks
        and (entrant.name in models if models else entrant.sizes in ("any", size))
        and (entrant.model != "cosine" or has_common_space(*towers))
    ]
    lacking = {"majority", "text", "image", "baseline", "fusion"} - {entrant.role for entrant in chosen}
    if lacking:
        raise UsageError(f"A diagnosis needs a model of each role, found none for: {', '.join(sorted(lacking))}")
    entries = []
    for entrant in chosen:
        scorer = fit(splits, entrant, folder=folder / entrant.name, time_limit=entrant.share * time_limit)
        test, dev = seen_by(entrant, splits.test, splits), seen_by(entrant, splits.dev, splits)
        seconds = float(scorer.run.results["train_seconds"])
        entry = Entry(entrant, scorer, mark(scorer, test), mark(scorer, dev), seconds)
        entries.append(entry)
        say(f"  {entry.name:<18} {100 * entry.test.hits.mean():6.2f} %  {seconds:6.1f} s", enabled=progress)
    return Contest(splits, entries)


def fit(splits: Splits, entrant: Entrant, *, folder: Path, time_limit: float, pairs: Pairs | None = None) -> Scorer:
    """Train one model.

    Args:
        splits: The pairs; development pairs stop and calibrate every training.
        entrant: The model.
        folder: Of the run.
        time_limit: Seconds.
        pairs: Training pairs; None takes those of the splits.
    """
    shown = seen_by(entrant, splits.train if pairs is None else pairs, splits)
    passes = {}
    if entrant.epochs is not None and len(shown) > SMALL:
        passes = {"epochs": entrant.epochs if pairs is not None else most_passes(entrant.epochs, len(shown))}
    patient: dict[str, Any] = {}
    if splits.task == "matching" and entrant.model in _NETWORKS:
        patient["patience"] = _PATIENCE
        if entrant.role == "fusion":
            patient["batch_size"] = max(_SMALLEST_BATCH, min(_LARGEST_BATCH, len(shown) // _STEPS))
    with quick_products(wanted=entrant.model in _NETWORKS and len(shown) > SMALL):
        run = train(
            splits.store,
            shown,
            run=folder,
            task=splits.task,
            model=entrant.model,
            dev=seen_by(entrant, splits.dev, splits),
            encoder=splits.encoder,
            seed=splits.seed,
            time_limit=max(time_limit, 1.0),
            options={**entrant.changes, **passes, **patient},
        )
    return Scorer(run, splits.store)


def most_passes(many: int, pairs: int) -> int:
    """Return how often a model of the contest goes through its pairs: `many` times, up to 20 where they are fewer.

    What a network needs is steps, of which `many` passes over 32,000 pairs are enough.
    """
    return max(many, min(_PASSES, many * _MANY // pairs))


@contextmanager
def quick_products(*, wanted: bool = True) -> Iterator[None]:
    """Let matrix products round their factors to bfloat16 where the processor has instructions for it.

    Sums and weights stay float32, and so does everything elsewhere. For gradient descent only: what is solved needs all
    digits.

    Args:
        wanted: False changes nothing.
    """
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def seen_by(entrant: Entrant, pairs: Pairs, splits: Splits) -> Pairs:
    """Return pairs as the model sees them: without one side, if it is to do without."""
    if entrant.without == "image":
        return constant(pairs, image=splits.train.images[0])
    if entrant.without == "text":
        return constant(pairs, text=splits.train.texts[0])
    return pairs


def mark(
    scorer: Scorer, pairs: Pairs, *, images: Sequence[str] | None = None, texts: Sequence[str] | None = None
) -> Marks:
    """Score pairs and judge the answers.

    Args:
        scorer: The run.
        pairs: Pairs with targets.
        images: Other images to show in place of those of the pairs.
        texts: Other texts in place of those of the pairs.
    """
    shown = list(zip(images or pairs.images, texts or pairs.texts, strict=True))
    parts = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):  # all scores of thousands of classes would fill memory
        rows = range(start, min(start + _PAIRS_AT_ONCE, len(pairs)))
        parts.append(marks_of(scorer, scorer.score(shown[start : start + _PAIRS_AT_ONCE]), pairs.select(rows)))
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("predicted", "hits", "confidence", "raw")
    }
    return Marks(labels=parts[0].labels, **joined)


def marks_of(scorer: Scorer, scores: np.ndarray, pairs: Pairs) -> Marks:
    """Judge scores (as `Scorer.score` returns them) of pairs with targets."""
    logits = torch.from_numpy(scores)
    none = {"scale": 1.0, "offset": 0.0}
    if scorer.run.task == "matching":
        probabilities = scorer.probabilities(scores)
        raw = calibrated(logits[:, None], none, soft=True)[:, 0].numpy()
        predicted = (probabilities > 0.5).astype(np.int64)
        hits = (predicted == (match_truth(pairs).numpy() > 0.5)).astype(np.float64)
        sure = [np.where(predicted == 1, p, 1 - p).astype(np.float64) for p in (probabilities, raw)]
        return Marks(predicted, MATCH_LABELS, hits, *sure)
    predicted = scores.argmax(axis=1).astype(np.int64)
    answers = encode_answers(pairs.targets, scorer.run.labels)
    hits = answers.hits(torch.from_numpy(predicted)).double().numpy()
    column = predicted[:, None]
    confidence = np.take_along_axis(scorer.probabilities(scores), column, axis=1)[:, 0].astype(np.float64)
    before = calibrated(logits, none, soft=scorer.soft).numpy()
    return Marks(
        predicted, scorer.run.labels, hits, confidence,
        np.take_along_axis(before, column, axis=1)[:, 0].astype(np.float64),
    )  # fmt: skip
