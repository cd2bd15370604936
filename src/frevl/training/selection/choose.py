"""``--model auto``: compare baselines and fusions on held-out data, and choose the simplest of the best.

Every candidate is evaluated on held-out images, by cross-validation if there are few pairs. Among the candidates whose
paired difference from the best is within one standard error (by image), the simplest is chosen; averages of the best
candidates are candidates too. Test data are never used. The procedure is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from frevl.evaluation.chance import Chance
from frevl.models.ensemble import Average
from frevl.models.interface import PairNetwork
from frevl.models.kernel_ridge import MOST_PAIRS
from frevl.runs.calibration import fit_calibration
from frevl.terminal import Steps, print_progress
from frevl.training.examples import Prepared, join
from frevl.training.fitting.fit_model import Fitted
from frevl.training.fitting.initialisation import Pretrained
from frevl.training.loop import FitReport
from frevl.training.options import AutoOptions, Session
from frevl.training.run_folder import NOWHERE, Checkpoint
from frevl.training.selection.candidates import TRIED, Candidate, candidates, steps_of
from frevl.training.selection.comparison import Comparison, HeldOutPairs
from frevl.training.selection.encoder_sets import EncoderChoice, all_encoders, choose_encoders, narrow
from frevl.training.selection.folds import cv_splits
from frevl.training.selection.held_out import (
    NO_TIME,
    TOO_LONG,
    CandidateScores,
    answers_of,
    fit_candidate,
    keep,
    recalled,
    score_held_out,
)
from frevl.training.selection.measures import Gap, check_measure, in_nats, shown
from frevl.training.selection.uncompared import QUICK, Uncompared

__all__ = ["Selection", "choose"]

_FEWEST_FOR_SMALL = 8_000  # pairs; below this, larger networks took most of the time and gained nothing
_DEFAULT_LIMIT = 600.0  # seconds, if no time limit is given
_ENCODERS_SHARE = 0.25  # of the time limit, for comparing encoders
_ENCODERS, _CHOICE = "comparing encoders", "fitting the choice"  # names of the first and last steps, for progress
_SELECTION_SHARE = 0.75  # of the time limit; the rest is for the final fit
_AT_LEAST = 2.0  # seconds for the single fit if the time limit allowed no comparison
_OUT_OF_TIME = "the time limit allowed no comparison, and this is fitted in seconds"
_NOTHING_HELD_OUT = (
    "nearly every class has a single example, so none can be held out for a comparison; this model did best on "
    "such data when it was measured"
)


@dataclass
class Selection:
    """The result of a selection.

    Attributes:
        fitted: The chosen network, fitted on the training part.
        chosen: Name of the chosen candidate.
        reason: Why it was chosen.
        rows: The table: every candidate with mean, standard error, difference from the best, and time.
        judged_on: The data of the comparison, in words.
        data: The examples with the embeddings of the chosen encoders only.
        encoders: The chosen encoders, with the table of all sets compared.
        checked_on: The data by which the comparison was checked, if development pairs were given; otherwise empty.
        choose_by: The measure of the comparison.
        gap: The two estimates of the choice's accuracy.
        chance: The choice against the majority answer.
    """

    fitted: Fitted[PairNetwork]
    chosen: str
    reason: str
    rows: list[dict[str, Any]]
    judged_on: str
    data: Prepared
    encoders: EncoderChoice
    checked_on: str
    choose_by: str
    gap: Gap | None = None
    chance: Chance | None = None

    def warnings(self) -> list[str]:
        """Return reasons to doubt the figures, shown before them."""
        found = []
        late = ", ".join(row["name"] for row in self.rows if row.get("reason") in (NO_TIME, TOO_LONG))
        if self.reason == _OUT_OF_TIME:
            found.append(
                "Nothing was compared: the time limit was too short to try a model on held-out pairs, so "
                f"{self.chosen} was fitted once; others may be better. Raise --time-limit."
            )
        elif self.chosen == "majority" and late:
            found.append(
                f"The most frequent answer was chosen because the time limit ended before {late} could be tried, which "
                "may be better; raise --time-limit."
            )
        if self.gap is not None and self.gap.beyond_chance:
            found.append(self.gap.sentence(self.judged_on, self.checked_on))
        if self.chance is not None and self.chance.is_chance:
            found.append(self.chance.sentence)
        return found

    def record(self) -> dict[str, Any]:
        """Return the record stored in the run."""
        return {
            "chosen": self.chosen,
            "reason": self.reason,
            "choose_by": self.choose_by,
            "judged_on": self.judged_on,
            "checked_on": self.checked_on,
            "gap": None if self.gap is None else vars(self.gap),
            "candidates": self.rows,
            "encoders": {
                "chosen": self.encoders.encoders,
                "images": self.encoders.images,
                "texts": self.encoders.texts,
                "pairs": self.encoders.pairs,
                "sets": self.encoders.rows,
            },
            "majority": self.chance.record() if self.chance else None,
        }


def choose(
    data: Prepared,
    encoders: Sequence[str],
    outputs: int,
    options: AutoOptions,
    session: Session,
    *,
    start: Pretrained | None = None,
    checkpoint: Checkpoint = NOWHERE,
    log_file: Path | None = None,
) -> Selection:
    """Choose encoders and model on held-out images, and fit the model on the training part.

    Args:
        data: Training and development examples of a classification.
        encoders: Encoders whose embeddings the examples have; the best set of them is used.
        outputs: Number of classes.
        options: Options of ``auto``.
        session: Its time limit covers the whole selection.
        start: A trained fusion from which some candidates are initialised; the encoders are then those that it reads.
        checkpoint: Where everything finished or in progress is saved.
        log_file: Log file of the gradient descent of the chosen model.

    Returns:
        The chosen network with the whole table.
    """
    measure = options.choose_by
    check_measure(measure, answers_of(data.train))
    limit = session.time_limit or _DEFAULT_LIMIT
    offered = candidates(start, data.sides)
    unfit = {one.name: _unfit(one, data, start) for one in offered}
    names = [name for name in TRIED if name in unfit]
    compares = start is None and len(encoders) > 1
    idle = [name for name in names if unfit[name]]
    steps = steps_of([*([_ENCODERS] if compares else []), *names, _CHOICE], checkpoint, limit, idle=idle)
    course = _Course(checkpoint, limit, steps)
    if compares:
        steps.begin(_ENCODERS)
    if start is None:
        found = choose_encoders(
            data, encoders, outputs, session, time_limit=limit * _ENCODERS_SHARE,
            balanced=measure in ("macro_f1", "balanced_accuracy"), checkpoint=checkpoint,
        )  # fmt: skip
    else:
        found = all_encoders(data, encoders)
    found = session.team.agreed(found)
    data = narrow(data, found.images, found.texts)
    place = checkpoint.part("choice")
    fit_uncompared = partial(Uncompared.fit, data, outputs, options, start=start, place=place, log_file=log_file)
    if data.dev_is_seen:
        steps.begin(_CHOICE)
        taken = fit_uncompared(session, most=MOST_PAIRS)
        print_progress(f"chosen: {taken.name}: {_NOTHING_HELD_OUT}", enabled=session.progress)
        rows = [{"name": one.name, "reason": "nothing could be held out for a comparison"} for one in offered]
        return Selection(taken.fitted, taken.name, _NOTHING_HELD_OUT, rows, "nothing", data, found, "", measure)
    splits, compared_on, checked_on = cv_splits(data, session.seed)
    everything = join(data.train, data.dev)
    print_progress(f"choosing on {compared_on}", enabled=session.progress)
    score = partial(score_held_out, everything=everything, splits=splits, outputs=outputs, options=options, start=start)
    scored, left_out = _score_all(
        [next(one for one in offered if one.name == name) for name in names], unfit, score, course, session,
        folds=len(splits), measure=measure,
    )  # fmt: skip
    if len(scored) == 1 and any(row["reason"] in (NO_TIME, TOO_LONG) for row in left_out):
        steps.begin(_CHOICE)
        rest = session.team.agreed(max(course.left(), _AT_LEAST))
        taken = fit_uncompared(replace(session, time_limit=rest), most=QUICK)
        print_progress(f"chosen: {taken.name}: {_OUT_OF_TIME}", enabled=session.progress)
        chance = taken.against_majority(scored[0].probabilities.mean(dim=0), data, measure)
        return Selection(
            taken.fitted, taken.name, _OUT_OF_TIME, left_out, "nothing", data, found, "", measure, chance=chance
        )
    compared = Comparison.of(
        sorted(scored, key=lambda one: offered.index(one.candidate)),
        HeldOutPairs(
            everything.select(torch.cat([fold.held_out for fold in splits])), everything.select(splits[0].check),
            compared_on, checked_on, measure,
        ),
    )  # fmt: skip
    print_progress(f"chosen: {compared.winner.name}: {compared.reason}", enabled=session.progress)
    steps.begin(_CHOICE)
    fitted = _final(compared, data, outputs, options, session, course.left(), start, place, log_file)
    rows = (in_nats(compared.rows) if measure == "nll" else compared.rows) + left_out
    return Selection(
        fitted, compared.winner.name, compared.reason, rows, compared.pairs.compared_on, data, found,
        compared.pairs.checked_on, measure, compared.gap, compared.against_majority(data.labels),
    )  # fmt: skip


class _Course:
    """Where a selection stands: what it saves, its steps, and its time; time before an interruption counts."""

    def __init__(self, checkpoint: Checkpoint, limit: float, steps: Steps) -> None:
        self.checkpoint, self.limit, self.steps = checkpoint, limit, steps
        self._started = checkpoint.clock.seconds()

    def left(self, share: float = 1.0) -> float:
        """Return how many seconds of a share of the limit are left."""
        return self.limit * share - (self.checkpoint.clock.seconds() - self._started)


def _score_all(
    tried: Sequence[Candidate],
    unfit: Mapping[str, str],
    score: Callable[..., CandidateScores | str],
    course: _Course,
    session: Session,
    *,
    folds: int,
    measure: str,
) -> tuple[list[CandidateScores], list[dict[str, Any]]]:
    """Score every candidate that is fit and for which there is time, or recall its saved outcome.

    Returns:
        The scored candidates, and the rows of those left out, with reasons.
    """
    clock = course.checkpoint.clock
    scored: list[CandidateScores] = []
    left_out: list[dict[str, Any]] = []
    for number, candidate in enumerate(tried):
        name, place = candidate.name, course.checkpoint.part(f"candidate {candidate.name}")
        course.steps.begin(name)
        outcome = recalled(candidate, place)
        if outcome is not None:
            course.steps.recall(name)
        else:
            began = clock.seconds()
            # The majority answer takes no fit, and all others are compared with it.
            left = math.inf if name == "majority" else course.left(_SELECTION_SHARE)
            outcome = unfit[name] or (NO_TIME if left < course.limit * 0.03 else "")
            if not outcome:
                # Twice the fair share, because most candidates take less than theirs. But the choice is fitted once
                # more afterwards, and with less time it would not be the model that was compared.
                most = min(2 * left / (folds * (len(tried) - number)), max(course.left(), 1.0) / (folds + 1))
                own = replace(session, time_limit=most)
                outcome = score(candidate, session=own, left=left, place=place, tell=partial(course.steps.begin, name))
            outcome = session.team.agreed(outcome)  # results under a time limit may differ between workers
            keep(outcome, place, clock.seconds() - began)
        if isinstance(outcome, str):
            left_out.append({"name": name, "reason": outcome})
            print_progress(f"  {name:<20} left out: {outcome}", enabled=session.progress)
            continue
        scored.append(outcome)
        figure = f"{shown(measure, float(outcome.hits.mean()))}  {outcome.fit_seconds:6.1f} s a fit"
        print_progress(f"  {name:<20} {figure}", enabled=session.progress)
    return scored, left_out


def _unfit(candidate: Candidate, data: Prepared, start: Pretrained | None) -> str:
    if candidate.begins and start is not None and start.seen:
        return (
            f"the run of --initialise-from was trained on {start.seen:,} of these images, so it cannot be evaluated "
            "on them"
        )
    if candidate.model == "kernel" and len(data.train) + len(data.dev) > MOST_PAIRS:
        return f"not compared above {MOST_PAIRS:,} pairs, where it is approximate; --model kernel trains it"
    if candidate.model == "small" and len(data.train) + len(data.dev) < _FEWEST_FOR_SMALL:
        return f"never wins with fewer than {_FEWEST_FOR_SMALL:,} pairs"
    return ""


def _final(
    compared: Comparison,
    data: Prepared,
    outputs: int,
    options: AutoOptions,
    session: Session,
    left: float,
    start: Pretrained | None,
    place: Checkpoint,
    log_file: Path | None,
) -> Fitted[PairNetwork]:
    """Fit the choice on the training part, with the development part for early stopping and calibration."""
    candidate, tried = compared.winner.candidate, {one.name: one.seeds for one in compared.scored}
    members = [
        (member, seed, 1 / tried[member.name])
        for member in candidate.members or (candidate,)
        for seed in range(tried[member.name] if candidate.members else 1)
    ]
    networks: list[PairNetwork] = []
    calibrations: list[dict[str, float]] = []
    reports: dict[str, FitReport] = {}
    notes: list[str] = []
    seconds = 0.0
    fitted: Fitted[PairNetwork] | None = None
    for member, seed, weight in members:
        bound = max(left, 30.0) / len(members)
        own = replace(session, time_limit=bound, seed=session.seed + seed)
        fitted = fit_candidate(
            member, data.train, data.dev, outputs, options, own, dev_is_spare=data.dev_is_spare, start=start,
            checkpoint=place.part(f"{member.name} seed {seed}"), log_file=log_file,
        )  # fmt: skip
        seconds += fitted.seconds
        notes += fitted.notes
        if fitted.report is not None:
            reports[f"{member.name} (seed {own.seed})" if tried[member.name] > 1 else member.name] = fitted.report
        networks.append(fitted.network)
        calibrations.append({**fit_calibration(*fitted.development(data.dev), shrink=False), "weight": weight})
    if len(networks) == 1 and fitted is not None:
        return fitted
    soft = answers_of(data.train).soft
    average = Average.of(list(networks), calibrations, soft=soft)
    # A member that trained on the development part knows it; the held-out folds of the selection do not.
    mean = compared.winner.probabilities.clamp(1e-7, 1 - 1e-7)
    logits, held = torch.logit(mean) if soft else mean.log(), compared.pairs.compared
    return Fitted(
        average, seconds, held_out=(logits, held.truth), held_out_clusters=held.clusters,
        notes=list(dict.fromkeys(notes)), members=reports,
    )  # fmt: skip
