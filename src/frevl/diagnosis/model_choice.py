"""Decide which model is best in its role and overall, which to recommend, and what image and text contribute.

The best of each kind is chosen by cross-validation over the images of the training pairs, or on the development pairs
if there was none. No model is called one of the best, or recommended, if another measurably beats it on the test pairs.
The rule is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from frevl.diagnosis.gaps import Gap, compare

__all__ = ["SMALL_GAIN", "ModelChoice", "ModelResult", "title"]

SMALL_GAIN = 1.0
"""Points; a smaller gain is not called worth its cost, however certain it is."""

_OTHER = {"image": "text", "text": "image"}
_FIRST_P = 0.01  # level of the first claim, on which all others rest, for the one model chosen beforehand
_FURTHER_P = 0.01 / 3  # the same for the best of each of three kinds: three more chances to be wrong
_SIMPLEST = {"text": 0, "image": 0, "baseline": 2, "side": 2, "fusion": 3}  # doing without an encoder saves most
_PLAIN = ("cosine", "linear")  # simpler than the other baselines


@dataclass(frozen=True, eq=False)
class ModelResult:
    """The results of a model on which a verdict rests.

    Attributes:
        name: Name of the model in the report.
        role: Role of the model, as in `frevl.diagnosis.model_specs.ModelSpec`.
        hits: ``(n,)`` in [0, 1], share of a right answer on each test pair.
        dev: Share of right answers on the development pairs, in [0, 1].
        held_out: ``(m,)`` in [0, 1] on the training pairs, answered by models that were not trained on the image; None
            if not measured.
        parameters: Number of parameters.
        seconds: Training time in seconds.
    """

    name: str
    role: str
    hits: np.ndarray
    dev: float
    held_out: np.ndarray | None = None
    parameters: int = 0
    seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """Share of right answers on the test pairs, in [0, 1]."""
        return float(self.hits.mean())

    @property
    def cross_validated(self) -> float | None:
        """Share of right answers on held-out training pairs, in [0, 1]; None if not measured."""
        return None if self.held_out is None else float(self.held_out.mean())

    @property
    def title(self) -> str:
        """Name of the model in a sentence."""
        return title(self.name, self.role)

    @property
    def simplicity(self) -> int:
        """Rank of simplicity, 0 for the simplest: one side alone, a linear model, another baseline, a fusion."""
        return 1 if self.name in _PLAIN else _SIMPLEST.get(self.role, 0)


class ModelChoice:
    """Compared models and the conclusions from their paired differences.

    Args:
        models: At least one per role: ``majority``, ``text``, ``image``, ``baseline``, ``fusion``; or ``majority`` and
            ``side`` if the pairs have one side only.
        clusters: ``(n,)`` image of every test pair.
        held_out_clusters: ``(m,)`` image of every pair in `ModelResult.held_out`; none of them is a test image.
        exchanged: For each model name, ``(n,)`` hits with ``image`` and with ``text`` exchanged among the test pairs;
            needed for `both`. None credits a side without this check.
        unit: Kind of the clusters: ``image``, or ``text`` if there are only texts.
    """

    def __init__(
        self,
        models: Sequence[ModelResult],
        clusters: Sequence[str],
        held_out_clusters: Sequence[str] = (),
        exchanged: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        *,
        unit: str = "image",
    ) -> None:
        self.unit = unit
        self.models, self.clusters = list(models), clusters
        self._further = [f"held out: {name}" for name in held_out_clusters]
        self._exchanged = exchanged
        self._gaps: dict[tuple[str, str], Gap] = {}

    # ---- differences

    def gap(self, a: ModelResult, b: ModelResult) -> Gap:
        """Return the paired difference of two models on the test pairs."""
        if (b.name, a.name) in self._gaps:
            return -self._gaps[b.name, a.name]
        if (a.name, b.name) not in self._gaps:
            self._gaps[a.name, b.name] = compare(a.hits, b.hits, self.clusters)
        return self._gaps[a.name, b.name]

    def lost(self, model: ModelResult) -> dict[str, Gap]:
        """Return the loss of a model with wrong images and with wrong texts; empty if they were not exchanged."""
        exchanged = (self._exchanged or {}).get(model.name, {})
        return {side: compare(model.hits, hits, self.clusters) for side, hits in exchanged.items()}

    # ---- the best of a kind

    def best(self, role: str) -> ModelResult:
        """Return the best model of a role: the cross-validation's choice among those that no other reliably beats.

        If all of the role are beaten, the choice is among all of them.
        """
        return self._best_of([model for model in self.models if model.role == role])

    @property
    def majority(self) -> ModelResult:
        """The baseline that always gives the most frequent answer."""
        return self.best("majority")

    @property
    def one_side(self) -> bool:
        """Return whether the pairs have only images, or only texts."""
        return any(model.role == "side" for model in self.models)

    @cached_property
    def both(self) -> ModelResult:
        """The best model that sees image and text; the best of all models if the pairs have one side only."""
        return self._best_of([model for model in self.models if model.role in ("baseline", "fusion", "side")])

    # ---- the contributions of image and text

    @cached_property
    def learned(self) -> bool:
        """Return whether any model is reliably better than always giving the most frequent answer."""
        kinds = (self.both,) if self.one_side else (self.best("text"), self.best("image"), self.both)
        return self.gap(self.chosen, self.majority).better_at(_FIRST_P) or any(
            self.gap(model, self.majority).better_at(_FURTHER_P) for model in kinds
        )

    def adds(self, side: str) -> bool:
        """Return whether ``image`` or ``text`` adds anything measurable to the other side."""
        if not any(model.role == _OTHER[side] for model in self.models):
            return True  # no model of the other side alone was compared, so that side cannot be enough
        without = self.best(_OTHER[side])
        needed = self._exchanged is None or self.lost(self.both)[side].up
        return (self.gap(self.both, without).up and needed) or self.gap(self.best(side), without).up

    # ---- the best of all

    @cached_property
    def chosen(self) -> ModelResult:
        """The cross-validation's choice among all models, whatever the test pairs say, to avoid selection bias."""
        return _first_choice(self._pool)

    @cached_property
    def leaders(self) -> list[ModelResult]:
        """The best models overall, including those that see one side only; the best on the test pairs comes first.

        No other model measurably beats any of them on the test pairs, or on test pairs and held-out training pairs
        together; but if image or text adds nothing, the latter does not rule out models of the other side alone.
        """
        enough = {_OTHER[side] for side in _OTHER if not self.adds(side)}
        leading = [model for model in self._unbeaten if model in self._sure or model.role in enough]
        return sorted(leading, key=lambda model: -model.accuracy)

    @property
    def overall(self) -> ModelResult:
        """The best leader on the test pairs."""
        return self.leaders[0]

    @cached_property
    def runner_up(self) -> ModelResult:
        """The best model on the test pairs in a role other than `overall`'s, with which a single leader is compared.

        If there is only one role, it is the best of the other models.
        """
        others = [model for model in self._pool if model.role != self.overall.role]
        others = others or [model for model in self._pool if model is not self.overall] or [self.majority]
        return max(others, key=lambda model: model.accuracy)

    @cached_property
    def recommended(self) -> ModelResult:
        """The recommended model.

        If image or text adds nothing, this is the best leader that does without it. Otherwise it is the simplest leader
        that is about as good as the best: behind by at most one standard error of the difference or `SMALL_GAIN`,
        whichever is larger. Cross-validation chooses among equally simple leaders.
        """
        enough = {_OTHER[side] for side in _OTHER if not self.adds(side)}
        alone = [model for model in self.leaders if model.role in enough]
        if alone:
            return _first_choice(alone)
        for rank in range(self.overall.simplicity):
            alike = [model for model in self.leaders if model.simplicity == rank]
            if alike and self._about_as_good(_first_choice(alike)):
                return _first_choice(alike)
        return _first_choice([model for model in self.leaders if model.simplicity == self.overall.simplicity])

    @cached_property
    def _pool(self) -> list[ModelResult]:
        """All models except the majority baseline."""
        return [model for model in self.models if model.role != "majority"]

    @cached_property
    def _unbeaten(self) -> list[ModelResult]:
        """The models that no other measurably beats on the test pairs; at least the best of them."""
        return [
            model
            for model in self._pool
            if not any(one.accuracy > model.accuracy and self.gap(one, model).up for one in self._pool)
        ]

    @cached_property
    def _sure(self) -> list[ModelResult]:
        """Those of `_unbeaten` that no model beats on test and held-out training pairs together; at least one."""
        sure = [model for model in self._unbeaten if not any(self._beats_on_all(one, model) for one in self._pool)]
        return sure or self._unbeaten

    def _beats_on_all(self, one: ModelResult, other: ModelResult) -> bool:
        if one.held_out is None or other.held_out is None:
            return False
        own, its = np.concatenate([one.hits, one.held_out]), np.concatenate([other.hits, other.held_out])
        return bool(own.mean() > its.mean()) and compare(own, its, [*self.clusters, *self._further]).up

    def _best_of(self, pool: Sequence[ModelResult]) -> ModelResult:
        return _first_choice([model for model in pool if model in self._sure] or pool)

    def _about_as_good(self, model: ModelResult) -> bool:
        behind = self.gap(self.overall, model)
        return bool(behind.value <= np.nanmax([SMALL_GAIN, behind.standard_error]))


def _first_choice(pool: Sequence[ModelResult]) -> ModelResult:
    """Return the best by cross-validation; ties are broken by the test pairs, then by order.

    Models without cross-validation count only if none of the pool has one; then the development pairs decide.
    """
    measured = [model for model in pool if model.held_out is not None]
    if measured:
        return max(measured, key=lambda model: (model.cross_validated or 0.0, model.accuracy))
    return max(pool, key=lambda model: (model.dev, model.accuracy))


def title(name: str, role: str) -> str:
    """Return the name of a model in a sentence."""
    if role == "fusion":
        return f"the fusion ({name})"
    if role == "majority":
        return "always giving the most frequent answer"
    return "the linear probe" if name == "linear" else f"the {name} model"
