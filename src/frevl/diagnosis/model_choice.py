"""Which of the compared models is best: of its kind, of all, and which one to recommend.

The choice is made by cross-validation over the images of the training pairs, or on the development pairs where there
was no cross-validation. The test pairs may only object: a model that another measurably beats there is not called the
best of all, and never recommended. The rule is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from frevl.diagnosis.gaps import Gap, compare

__all__ = ["SMALL_GAIN", "ModelChoice", "ModelResult", "title"]

SMALL_GAIN = 1.0
"""Points; a gain below this is not called worth its cost, however certain it is."""

_SIDES = ("text", "image", "baseline", "fusion")  # every role but that of the most frequent answer
_SIMPLEST = {"text": 0, "image": 0, "baseline": 2, "fusion": 3}  # one encoder less is the largest saving
_PLAIN = ("cosine", "linear")  # simpler than the other baselines


@dataclass(frozen=True, eq=False)
class ModelResult:
    """What a verdict needs of a model.

    Attributes:
        name: In the report.
        role: As in `frevl.diagnosis.model_comparison.ModelSpec`.
        hits: ``(n,)`` in [0, 1] on the test pairs.
        dev: Share of right answers on the development pairs, in [0, 1].
        cross_validated: Share of right answers on the training pairs, each answered by a model that has not learnt
            from its image, in [0, 1]; None where this was not measured.
        parameters: Number of its parameters.
        seconds: Time of its training.
    """

    name: str
    role: str
    hits: np.ndarray
    dev: float
    cross_validated: float | None = None
    parameters: int = 0
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """Share of right answers on the test pairs, in [0, 1]."""
        return float(self.hits.mean())

    @property
    def title(self) -> str:
        """What it is called in a sentence."""
        return title(self.name, self.role)

    @property
    def simplicity(self) -> int:
        """A rank, 0 for the simplest: one side alone, a linear model, another baseline, a fusion."""
        return 1 if self.name in _PLAIN else _SIMPLEST.get(self.role, 0)


class ModelChoice:
    """Compared models and what follows from their paired differences.

    Args:
        models: At least one of each role: ``majority``, ``text``, ``image``, ``baseline``, ``fusion``.
        clusters: ``(n,)`` image of every test pair.
    """

    def __init__(self, models: Sequence[ModelResult], clusters: list[str]) -> None:
        self.models, self.clusters = list(models), clusters
        self._gaps: dict[tuple[str, str], Gap] = {}

    def gap(self, a: ModelResult, b: ModelResult) -> Gap:
        """Return the paired difference of two models on the test pairs."""
        if (b.name, a.name) in self._gaps:
            return -self._gaps[b.name, a.name]
        if (a.name, b.name) not in self._gaps:
            self._gaps[a.name, b.name] = compare(a.hits, b.hits, self.clusters)
        return self._gaps[a.name, b.name]

    def best(self, role: str) -> ModelResult:
        """Return the best model of a role; of equals the first.

        The cross-validation chooses; where `overall` is of this role, it is that model.
        """
        return self._best[role]

    @property
    def majority(self) -> ModelResult:
        """Always giving the most frequent answer."""
        return self._best["majority"]

    @property
    def both(self) -> ModelResult:
        """The best model that sees image and text."""
        return self._best["both"]

    @property
    def overall(self) -> ModelResult:
        """The best of all models, those that see one side only included.

        The cross-validation chooses. Where another model measurably beats its choice on the test pairs, that is taken.
        """
        return self._best["overall"]

    @cached_property
    def _best(self) -> dict[str, ModelResult]:
        best: dict[str, ModelResult] = {}
        for role in dict.fromkeys(model.role for model in self.models):
            pool = [model for model in self.models if model.role == role]
            best[role] = _first_choice(pool)
        sides = [model for model in self.models if model.role in _SIDES]
        overall = self._unbeaten(_first_choice([best[role] for role in _SIDES if role in best]), sides)
        best["overall"] = best[overall.role] = overall
        both = [best[role] for role in ("baseline", "fusion") if role in best]
        best["both"] = overall if overall in both else _first_choice(both) if both else overall
        return best

    def _unbeaten(self, chosen: ModelResult, pool: Sequence[ModelResult]) -> ModelResult:
        """Return a model, or where others of a pool measurably beat it on the test pairs the best of those."""
        while better := self._beating(chosen, pool):
            chosen = max(better, key=lambda model: model.accuracy)
        return chosen

    @cached_property
    def runner_up(self) -> ModelResult:
        """The best of another role than `overall`, by the test pairs: what its lead is measured against."""
        others = [self._best[role] for role in _SIDES if role != self.overall.role]
        return max(others, key=lambda model: model.accuracy)

    @cached_property
    def recommended(self) -> ModelResult:
        """The simplest model that is about as good as the best of all.

        No model may measurably beat it, and it may lie behind the best by one standard error of the difference, or by
        `SMALL_GAIN`, whichever is more.
        """
        pool = [model for model in self.models if model.role in _SIDES]
        near = [
            model
            for model in pool
            if model is self.overall or (self._about_as_good(model) and not self._beating(model, self.models))
        ]
        simplest = min(model.simplicity for model in near)
        return _first_choice([model for model in near if model.simplicity == simplest])

    def _about_as_good(self, model: ModelResult) -> bool:
        behind = self.gap(self.overall, model)
        return bool(behind.value <= np.nanmax([SMALL_GAIN, behind.standard_error]))

    def _beating(self, model: ModelResult, pool: Sequence[ModelResult]) -> list[ModelResult]:
        """Return the models that measurably beat this one on the test pairs."""
        return [one for one in pool if one.accuracy > model.accuracy and self.gap(one, model).up]


def _first_choice(pool: Sequence[ModelResult]) -> ModelResult:
    """Return the best by cross-validation; models without one only count where none of the pool has one."""
    measured = [model for model in pool if model.cross_validated is not None]
    return max(measured, key=lambda model: model.cross_validated or 0.0) if measured else max(pool, key=_dev)


def _dev(model: ModelResult) -> float:
    return model.dev


def title(name: str, role: str) -> str:
    """Return what a model is called in a sentence."""
    if role == "fusion":
        return f"the fusion ({name})"
    if role == "majority":
        return "always giving the most frequent answer"
    return "the linear probe" if name == "linear" else f"the {name} model"
