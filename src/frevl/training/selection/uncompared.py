"""The model that ``--model auto`` fits if nothing could be compared: a single one that is sure to finish in time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from frevl.evaluation.chance import Chance, against_majority
from frevl.models.interface import PairNetwork
from frevl.runs.calibration import calibrated, fit_calibration
from frevl.runs.targets import Answers
from frevl.training.examples import Prepared
from frevl.training.fitting.fit_model import Fitted
from frevl.training.fitting.initialisation import Pretrained
from frevl.training.options import AutoOptions, Session
from frevl.training.run_folder import Checkpoint
from frevl.training.selection.candidates import candidates
from frevl.training.selection.held_out import fit_candidate
from frevl.training.selection.measures import earned

__all__ = ["QUICK", "Uncompared"]


QUICK = 2_000
"""Pairs on which the kernel is solved in a second or two; above, the linear probe drops pairs until it is as fast."""


@dataclass(frozen=True)
class Uncompared:
    """A model that was fitted once.

    Attributes:
        fitted: The network.
        name: ``kernel``, or ``linear`` if there are too many pairs for it.
    """

    fitted: Fitted[PairNetwork]
    name: str

    @classmethod
    def fit(
        cls,
        data: Prepared,
        outputs: int,
        options: AutoOptions,
        session: Session,
        *,
        most: int,
        start: Pretrained | None,
        place: Checkpoint,
        log_file: Path | None,
    ) -> Uncompared:
        """Fit the kernel or, above ``most`` training pairs, the linear probe; see `fit_candidate` for the arguments."""
        pairs = len(data.train) + (len(data.dev) if data.dev_is_spare else 0)
        name = "kernel" if pairs <= most else "linear"
        candidate = next(one for one in candidates(start, data.sides) if one.name == name)
        fitted = fit_candidate(
            candidate, data.train, data.dev, outputs, options, session, dev_is_spare=data.dev_is_spare, start=start,
            checkpoint=place.part(f"{name} uncompared"), log_file=log_file,
        )  # fmt: skip
        return cls(fitted, name)

    def against_majority(self, majority: Tensor, data: Prepared, measure: str) -> Chance | None:
        """Compare it with the majority answer on pairs that it was not trained on; None if there are none.

        Args:
            majority: ``(outputs,)`` probabilities, the same for every pair.
            data: Data of the fit.
            measure: Measure of the selection, such as ``accuracy``.
        """
        logits, truth = self.fitted.development(data.dev)
        clusters = data.dev.clusters if self.fitted.held_out_clusters is None else self.fitted.held_out_clusters
        if not isinstance(truth, Answers) or not len(logits):
            return None
        own = calibrated(logits, fit_calibration(logits, truth, shrink=False), soft=truth.soft)
        right, always = (earned(measure, rows, truth).numpy() for rows in (own, majority.expand_as(own)))
        return against_majority(right, always, clusters.numpy(), data.labels[int(majority.argmax())])
