"""Fit a candidate of ``auto`` on every fold, to predict held-out pairs.

Finished work (a fold of a seed, then a candidate) is saved, so an interrupted selection continues after it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frevl.models.interface import PairNetwork
from frevl.runs.batches import logits_of
from frevl.runs.calibration import calibrated, fit_calibration
from frevl.runs.targets import Answers
from frevl.training.examples import Examples
from frevl.training.fitting.fit_model import Fitted, as_it_is, fit_model
from frevl.training.fitting.initialisation import Pretrained
from frevl.training.options import AutoOptions, ModelOptions, PairwiseOptions, Session, options_for
from frevl.training.run_folder import Checkpoint
from frevl.training.selection.candidates import Candidate
from frevl.training.selection.folds import Fold
from frevl.training.selection.measures import earned

__all__ = [
    "NO_TIME",
    "TOO_LONG",
    "CandidateScores",
    "answers_of",
    "fit_candidate",
    "hits_of",
    "keep",
    "recalled",
    "score_held_out",
    "whole_schedule",
]

NO_TIME, TOO_LONG = "no time left", "would take more than the remaining time"
"""Why the time limit excluded a candidate: before its first fit, or after it."""

_CHEAP_SECONDS = 5.0  # a fit this short is repeated with other seeds
_SEEDS = 3
_DETERMINISTIC = ("majority", "linear", "kernel", "zero-shot")
# Development pairs. With fewer, the best epoch is a matter of chance (research/experiments/log.md), so networks run
# their whole schedule and keep the last epoch, whatever patience was requested.
_FEWEST_TO_STOP_BY = 1_000


@dataclass(frozen=True)
class CandidateScores:
    """A candidate with its predictions for held-out pairs.

    Attributes:
        candidate: The candidate.
        hits: ``(n,)`` float, the candidate's score on each pair (`frevl.training.selection.measures`; by default the
            weight of the predicted class), averaged over seeds.
        probabilities: ``(n, outputs)`` calibrated probabilities.
        fit_seconds: Duration of the longest single fit, in seconds.
        seeds: Number of seeds tried.
        check_hits: ``(m,)`` float, ``hits`` on the pairs of the check; empty if there are none.
        check_probabilities: ``(m, outputs)``, ``probabilities`` of the same pairs.
    """

    candidate: Candidate
    hits: Tensor
    probabilities: Tensor
    fit_seconds: float
    seeds: int
    check_hits: Tensor
    check_probabilities: Tensor

    @property
    def name(self) -> str:
        """Name of the candidate."""
        return self.candidate.name

    def on_the_other_side(self) -> CandidateScores:
        """Return a copy in which the pairs of the comparison and those of the check are swapped."""
        return replace(
            self,
            hits=self.check_hits,
            probabilities=self.check_probabilities,
            check_hits=self.hits,
            check_probabilities=self.probabilities,
        )


def recalled(candidate: Candidate, place: Checkpoint) -> CandidateScores | str | None:
    """Return the saved outcome of a candidate: its scores, or the reason for which it was left out."""
    saved = place.load()
    if saved is None:
        return None
    tensors, record = saved
    if record["reason"]:
        return str(record["reason"])
    figures: dict[str, Any] = {**tensors, "fit_seconds": record["fit_seconds"], "seeds": record["seeds"]}
    return CandidateScores(candidate=candidate, **figures)


def keep(outcome: CandidateScores | str, place: Checkpoint, seconds: float) -> None:
    """Save the outcome of a candidate, discarding its intermediate states."""
    if isinstance(outcome, str):
        place.save({}, {"reason": outcome, "seconds": seconds})
    else:
        tensors = {name: value for name, value in vars(outcome).items() if isinstance(value, Tensor)}
        figures = {"fit_seconds": outcome.fit_seconds, "seeds": outcome.seeds}
        place.save(tensors, {"reason": "", "seconds": seconds, **figures})
    place.discard_parts()


def score_held_out(
    candidate: Candidate,
    everything: Examples,
    splits: list[Fold],
    outputs: int,
    options: AutoOptions,
    session: Session,
    left: float,
    start: Pretrained | None,
    place: Checkpoint,
    tell: Callable[[float], None],
) -> CandidateScores | str:
    """Fit a candidate on every fold, with several seeds if it is cheap; return a reason if that would take too long.

    ``tell`` receives the share of the fits that are done.
    """
    longest, seeds, planned = 0.0, 0, _SEEDS
    probabilities: list[Tensor] = []
    hits: list[Tensor] = []
    checks: list[Tensor] = []
    check = everything.select(splits[0].check)
    while seeds < planned:
        parts: list[Tensor] = []
        check_parts: list[Tensor] = []
        for number, fold in enumerate(splits):
            own = replace(session, seed=session.seed + seeds, progress=False)
            here = place.part(f"seed {seeds} fold {number}")
            of_held_out, of_check, seconds = _held_out(candidate, everything, fold, outputs, options, own, start, here)
            longest = max(longest, seconds)
            if number == 0 and seeds == 0 and longest * (len(splits) - 1) > left:
                return TOO_LONG
            repeated = longest <= _CHEAP_SECONDS and candidate.name not in _DETERMINISTIC
            tell((seeds * len(splits) + number + 1) / (len(splits) * (planned if repeated else seeds + 1)))
            parts.append(of_held_out)
            check_parts.append(of_check)
        probabilities.append(torch.cat(parts))
        held = everything.select(torch.cat([fold.held_out for fold in splits]))
        hits.append(hits_of(probabilities[-1], held, options.choose_by))
        # All folds predict the same pairs of the check, so their predictions are averaged, as in an ensemble.
        checks.append(torch.stack(check_parts).mean(dim=0))
        seeds += 1
        if longest > _CHEAP_SECONDS or candidate.name in _DETERMINISTIC:
            planned = seeds  # deterministic, or too expensive to repeat
    return CandidateScores(
        candidate,
        torch.stack(hits).mean(dim=0),
        torch.stack(probabilities).mean(dim=0),
        longest,
        seeds,
        torch.stack([hits_of(one, check, options.choose_by) for one in checks]).mean(dim=0),
        torch.stack(checks).mean(dim=0),
    )


def _held_out(
    candidate: Candidate,
    everything: Examples,
    fold: Fold,
    outputs: int,
    options: AutoOptions,
    session: Session,
    start: Pretrained | None,
    place: Checkpoint,
) -> tuple[Tensor, Tensor, float]:
    """Fit a candidate on one fold.

    Returns:
        Its probabilities for the held-out part and for the pairs of the check, and the duration of the fit in seconds.
    """
    saved = place.load()
    if saved is not None:
        return saved[0]["held_out"], saved[0]["check"], saved[1]["fit_seconds"]
    train, dev = everything.select(fold.train), everything.select(fold.inner)
    spare = fold.inner_is_spare  # pairs for comparison or checks must not be trained on
    started = place.clock.seconds()
    fitted = fit_candidate(
        candidate, train, dev, outputs, options, session, dev_is_spare=spare, start=start, checkpoint=place.part("fit")
    )
    seconds = place.clock.seconds() - started
    calibration, soft = fit_calibration(*fitted.development(dev), shrink=False), answers_of(everything).soft

    def probabilities_of(rows: Tensor) -> Tensor:
        if not len(rows):
            return torch.zeros(0, outputs)
        return calibrated(logits_of(fitted.network, everything.select(rows).pairs, 1024), calibration, soft=soft)

    predicted = {"held_out": probabilities_of(fold.held_out), "check": probabilities_of(fold.check)}
    place.save(predicted, {"fit_seconds": seconds, "seconds": place.clock.seconds() - started})
    place.discard_parts()
    return predicted["held_out"], predicted["check"], seconds


def whole_schedule(options: ModelOptions, development_pairs: int) -> ModelOptions:
    """Return options with which the last epoch is kept, if there are too few pairs for early stopping."""
    if not isinstance(options, PairwiseOptions) or development_pairs >= _FEWEST_TO_STOP_BY:
        return options
    return replace(options, keep_last=True, patience=sys.maxsize)


def fit_candidate(
    candidate: Candidate,
    train: Examples,
    dev: Examples,
    outputs: int,
    options: AutoOptions,
    session: Session,
    *,
    dev_is_spare: bool,
    start: Pretrained | None,
    checkpoint: Checkpoint,
    log_file: Path | None = None,
) -> Fitted[PairNetwork]:
    """Fit a candidate with its own options; a zero-shot candidate is the fusion of another run, unchanged."""
    if start is not None and not candidate.learns:
        return as_it_is(start, outputs)
    own = whole_schedule(options.for_candidate(options_for(candidate.model), candidate.changes), len(dev))
    return fit_model(
        candidate.model, train, dev, outputs, own, session, dev_is_spare=dev_is_spare,
        start=start if candidate.begins else None, checkpoint=checkpoint, log_file=log_file,
    )  # fmt: skip


def hits_of(probabilities: Tensor, examples: Examples, choose_by: str = "accuracy") -> Tensor:
    """Return ``(n,)`` scores of ``(n, outputs)`` probabilities; by default the weight of the predicted class."""
    return earned(choose_by, probabilities, answers_of(examples))


def answers_of(examples: Examples) -> Answers:
    """Return the answers of a classification."""
    if not isinstance(examples.truth, Answers):
        raise TypeError("this selection is for classification; matching has its own")
    return examples.truth
