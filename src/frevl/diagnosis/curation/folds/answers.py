"""Out-of-fold answers: groups are dealt into folds, and every line is answered by a model not trained on its group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frevl.data.pairs import Pairs
from frevl.diagnosis.curation.folds.each_fold import each_fold
from frevl.diagnosis.curation.lines import Lines
from frevl.diagnosis.model_comparison import most_passes, quick_products
from frevl.diagnosis.model_specs import SMALL, ModelSpec
from frevl.diagnosis.splits import answers_of, constant, deal_folds, few_enough
from frevl.runs.scorer import Scorer
from frevl.store.grouping.large_arrays import blank
from frevl.store.usable_pairs import names_of
from frevl.training.examples import set_aside
from frevl.training.run_folder import Checkpoint
from frevl.training.training import train

__all__ = ["FOLDS", "Answers", "out_of_fold"]

FOLDS = 5
"""Default number of folds for labels: models trained on 80 instead of 67 % of 9,700 lines of easy-VQA found exchanged
labels with a precision of 0.79 instead of 0.73 (research/experiments/log.md)."""

_PAIRS_AT_ONCE = 16_384
_LEAST_SECONDS = 10.0
_FEWEST_GROUPS = 2  # groups of a class needed to learn it: one group may be set aside for the development metric
_DEV_SHARE = 0.1  # share of the groups set aside for the development metric


@dataclass(frozen=True)
class Answers:
    """The models' predictions for lines that they were not trained on.

    Attributes:
        probabilities: ``(n, classes)`` float32, calibrated, rows sum to 1; uniform if a model knows none of the
            classes. Those of many lines and classes are in an unnamed file.
        fold_of: ``(n,)`` int64, the fold of every line, and so the model that answers it.
        learned: ``(folds, classes)`` bool, whether the model of a fold was trained on the class.
        cut: Indices of folds whose model was cut short by the time limit.
    """

    probabilities: NDArray[np.floating]
    fold_of: NDArray[np.int64]
    learned: NDArray[np.bool_]
    cut: frozenset[int]

    def knows(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the model that answers each line was trained on its label, ``(n,)`` bool."""
        known: NDArray[np.bool_] = self.learned[self.fold_of, labels]
        return known


def out_of_fold(
    lines: Lines, spec: ModelSpec, classes: Sequence[str], rows: NDArray[np.int64], *, share: float
) -> Answers:
    """Answer every line with a model trained on the other folds.

    Args:
        lines: All lines.
        spec: The model.
        classes: Order of the returned probabilities; other classes are dropped.
        rows: Lines to answer and to train on.
        share: Share of the time limit; a model is trained for at least 10 seconds.

    Returns:
        The answers for ``rows``.

    Raises:
        PairsError: A fold leaves fewer than two classes to learn from.
    """
    folds = lines.folds or FOLDS
    work = _AnsweredFolds(lines, spec, classes, rows)
    probabilities = blank((len(rows), len(classes)), np.float32)
    learned, cut = np.zeros((folds, len(classes)), bool), set()
    limit = lines.session.time_limit
    for fold in each_fold(
        lines, spec.name, folds, work, partial(_AnsweredFolds, spec=spec, classes=classes, rows=rows),
        limit=None if limit is None else share * limit, least=_LEAST_SECONDS,
    ):  # fmt: skip
        held = np.flatnonzero(work.fold_of == fold.number)
        answered = fold.tensors["said"].numpy()
        np.maximum(answered, 1e-9, out=answered)
        answered /= answered.sum(axis=1, keepdims=True)
        probabilities[held], learned[fold.number] = answered, fold.tensors["knows"].numpy()
        cut |= {fold.number} if fold.cut else set()
    return Answers(probabilities, work.fold_of, learned, frozenset(cut))


class _AnsweredFolds:
    """Answers the lines of one fold after the other; a `frevl.diagnosis.curation.folds.each_fold.FoldWork`."""

    def __init__(self, lines: Lines, spec: ModelSpec, classes: Sequence[str], rows: NDArray[np.int64]) -> None:
        self._lines, self._spec, self._classes = lines, spec, classes
        self._known = lines.pairs.select(rows)
        self.fold_of = deal_folds(self._known.clusters, lines.folds or FOLDS, lines.session.seed)

    def __call__(
        self,
        number: int,
        time_limit: float | None,
        place: Checkpoint,  # noqa: ARG002 - a fold takes seconds, so nothing of it is kept
    ) -> tuple[dict[str, Tensor], bool]:
        seed = self._lines.session.seed
        held, others = np.flatnonzero(self.fold_of == number), np.flatnonzero(self.fold_of != number)
        trained_on = few_enough(self._known.select(others), seed=seed)
        held_out = self._known.select(held)
        predicted, cut = _answers(self._lines, self._spec, trained_on, held_out, self._classes, time_limit)
        knows = torch.from_numpy(_learned_classes(trained_on, self._classes, seed))
        return {"said": torch.from_numpy(predicted), "knows": knows}, cut


def _learned_classes(pairs: Pairs, classes: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Return whether each class has enough groups, also among those not set aside, ``(classes,)`` bool.

    If groups have many answers, training may set aside the only ones that hold a rare class.
    """
    left, _, _ = set_aside(pairs, _DEV_SHARE, task="classification", min_answer_count=1, seed=seed)
    shown = {answer for target in left.targets for answer in answers_of(target, "classification")}
    groups: dict[str, set[str]] = {}
    for target, name in zip(pairs.targets, pairs.clusters, strict=True):
        for answer in answers_of(target, "classification"):
            groups.setdefault(answer, set()).add(name)
    fewest = min(_FEWEST_GROUPS, len(set(pairs.clusters)))
    return np.array([name in shown and len(groups.get(name, ())) >= fewest for name in classes], bool)


def _answers(
    lines: Lines, spec: ModelSpec, training: Pairs, held_out: Pairs, classes: Sequence[str], time_limit: float | None
) -> tuple[NDArray[np.floating], bool]:
    """Train one model and let it answer; also return whether the time limit cut its training short."""
    passes = {} if spec.epochs is None else {"epochs": most_passes(spec.epochs, len(training))}
    with TemporaryDirectory() as scratch, quick_products(wanted=len(training) > SMALL and spec.model != "linear"):
        run = train(
            lines.store,
            _seen(spec, training),
            run=Path(scratch) / "run",
            task="classification",
            model=spec.model,
            image_encoder=names_of(lines.store, lines.image_towers) or None,
            text_encoder=names_of(lines.store, lines.text_towers) or None,
            seed=lines.session.seed,
            dev_share=_DEV_SHARE,
            time_limit=time_limit,
            options={**spec.changes, **passes},
            device=lines.session.device,
            find_groups=False,  # done once for all models
            workers=1,  # regardless of what a launcher has set: its processes do not share a curation
        )
        scorer = Scorer(run, lines.store, device=lines.session.device)
        shown = _seen(spec, held_out)
        columns = {label: number for number, label in enumerate(run.labels)}
        present = [number for number, name in enumerate(classes) if name in columns]
        own = [columns[classes[number]] for number in present]
        found = blank((len(shown), len(classes)), np.float32)
        for start in range(0, len(shown), _PAIRS_AT_ONCE):
            block = slice(start, start + _PAIRS_AT_ONCE)
            scores = scorer.score(list(zip(shown.images[block], shown.texts[block], strict=True)))
            found[block, present] = scorer.probabilities(scores)[:, own]
    return found, (run.results.get("fit") or {}).get("stopped") == "time"


def _seen(spec: ModelSpec, pairs: Pairs) -> Pairs:
    return constant(pairs, image=pairs.images[0]) if spec.without == "image" else pairs
