"""``--model auto``: compare baselines and fusions on held-out data, and choose the simplest of the best.

Every candidate is evaluated on held-out images, by cross-validation if there are few pairs. Among the candidates whose
paired difference from the best is within one standard error (by image), the simplest is chosen; averages of the best
candidates are candidates too. Test data are never used. The procedure is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frevl.evaluation.intervals import Chance, against_majority
from frevl.models.ensemble import Average
from frevl.models.interface import PairNetwork
from frevl.models.kernel_ridge import MOST_PAIRS
from frevl.runs.calibration import fit_calibration
from frevl.terminal import print_progress
from frevl.training.examples import Examples, Prepared, join
from frevl.training.fitting.fit_model import Fitted
from frevl.training.fitting.initialisation import Pretrained
from frevl.training.options import AutoOptions, Session
from frevl.training.run_folder import NOWHERE, Checkpoint
from frevl.training.selection.candidates import TRIED, Candidate, candidates, steps_of
from frevl.training.selection.encoder_sets import EncoderChoice, all_encoders, choose_encoders, narrow
from frevl.training.selection.folds import cv_splits
from frevl.training.selection.held_out import (
    NO_TIME,
    TOO_LONG,
    CandidateScores,
    answers_of,
    fit_candidate,
    hits_of,
    keep,
    recalled,
    score_held_out,
)
from frevl.training.selection.measures import UNITS, Gap, check_measure, gap_between, in_nats, one_standard_error, shown
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
    measure, unit = options.choose_by, UNITS.get(options.choose_by, "points")
    check_measure(measure, answers_of(data.train))
    clock = checkpoint.clock
    started = clock.seconds()
    limit = session.time_limit or _DEFAULT_LIMIT
    offered = candidates(start, data.sides)
    by_name = {candidate.name: candidate for candidate in offered}
    names = [name for name in TRIED if name in by_name]
    unfit = {name: _unfit(by_name[name], data, start) for name in names}
    idle = [name for name, reason in unfit.items() if reason]
    compares = start is None and len(encoders) > 1
    steps = steps_of([*([_ENCODERS] if compares else []), *names, _CHOICE], checkpoint, limit, idle=idle)
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
    fit_uncompared = partial(
        Uncompared.fit, data, outputs, options, start=start, place=checkpoint.part("choice"), log_file=log_file
    )
    if data.dev_is_seen:
        steps.begin(_CHOICE)
        taken = fit_uncompared(session, most=MOST_PAIRS)
        print_progress(f"chosen: {taken.name}: {_NOTHING_HELD_OUT}", enabled=session.progress)
        rows = [{"name": one.name, "reason": "nothing could be held out for a comparison"} for one in offered]
        return Selection(taken.fitted, taken.name, _NOTHING_HELD_OUT, rows, "nothing", data, found, "", measure)
    splits, judged_on, checked_on = cv_splits(data, session.seed)
    everything = join(data.train, data.dev)
    held = everything.select(torch.cat([fold.held_out for fold in splits]))
    check = everything.select(splits[0].check)
    print_progress(f"choosing on {judged_on}", enabled=session.progress)
    scored: list[CandidateScores] = []
    left_out: list[dict[str, Any]] = []
    for tried, name in enumerate(names):
        candidate, place = by_name[name], checkpoint.part(f"candidate {name}")
        steps.begin(name)
        outcome = recalled(candidate, place)
        if outcome is not None:
            steps.recall(name)
        else:
            began = clock.seconds()
            left = limit * _SELECTION_SHARE - (clock.seconds() - started)
            outcome = unfit[name]
            if name == "majority":
                left = math.inf  # it takes no fit, and all others are compared with it
            elif not outcome and left < limit * 0.03:
                outcome = NO_TIME
            if not outcome:
                # Twice the fair share, because most candidates take less than theirs.
                own = replace(session, time_limit=2 * left / (len(splits) * (len(names) - tried)))
                outcome = score_held_out(
                    candidate, everything, splits, outputs, options, own, left, start, place, partial(steps.begin, name)
                )
            outcome = session.team.agreed(outcome)  # results under a time limit may differ between workers
            keep(outcome, place, clock.seconds() - began)
        if isinstance(outcome, str):
            left_out.append({"name": name, "reason": outcome})
            print_progress(f"  {name:<20} left out: {outcome}", enabled=session.progress)
            continue
        scored.append(outcome)
        figure = f"{shown(measure, float(outcome.hits.mean()))}  {outcome.fit_seconds:6.1f} s a fit"
        print_progress(f"  {name:<20} {figure}", enabled=session.progress)
    if len(scored) == 1 and any(row["reason"] in (NO_TIME, TOO_LONG) for row in left_out):
        steps.begin(_CHOICE)
        rest = session.team.agreed(max(limit - (clock.seconds() - started), _AT_LEAST))
        taken = fit_uncompared(replace(session, time_limit=rest), most=QUICK)
        print_progress(f"chosen: {taken.name}: {_OUT_OF_TIME}", enabled=session.progress)
        chance = taken.against_majority(scored[0].probabilities.mean(dim=0), data, measure)
        return Selection(
            taken.fitted, taken.name, _OUT_OF_TIME, left_out, "nothing", data, found, "", measure, chance=chance
        )
    scored.sort(key=lambda one: offered.index(one.candidate))
    single = scored
    scored = single + _averages(single, held, check, measure)
    winner, reason, rows = one_standard_error(scored, held.clusters, unit=unit)
    right = winner.hits if measure == "accuracy" else hits_of(winner.probabilities, held)
    of_check = winner.check_hits if measure == "accuracy" else hits_of(winner.check_probabilities, check)
    gap = gap_between(right, held.clusters, of_check, check.clusters) if checked_on else None
    if gap is not None and gap.beyond_chance and gap.checked < gap.compared:
        single, held, check = [one.on_the_other_side() for one in single], check, held
        scored = single + _averages(single, held, check, measure)
        winner, reason, rows = one_standard_error(scored, held.clusters, unit=unit)
        gap = replace(gap, compared=gap.checked, checked=gap.compared)  # for the model that would have been chosen
        judged_on, checked_on = checked_on, judged_on
    print_progress(f"chosen: {winner.name}: {reason}", enabled=session.progress)
    left = limit - (clock.seconds() - started)
    place = checkpoint.part("choice")
    steps.begin(_CHOICE)
    fitted = _final(winner.candidate, scored, held, data, outputs, options, session, left, start, place, log_file)
    chance = _against_majority(winner, scored, held, data.labels, measure)
    rows = in_nats(rows) if measure == "nll" else rows
    return Selection(
        fitted, winner.name, reason, rows + left_out, judged_on, data, found, checked_on, measure, gap, chance
    )


def _against_majority(
    winner: CandidateScores, scored: list[CandidateScores], held: Examples, labels: list[str], measure: str
) -> Chance | None:
    """Compare the choice with the majority answer on the pairs used to compare all candidates."""
    majority = next((one for one in scored if one.name == "majority"), None)
    if majority is None or not labels:
        return None
    answer = labels[int(majority.probabilities.mean(dim=0).argmax())]
    right = [one.hits if measure == "accuracy" else hits_of(one.probabilities, held) for one in (winner, majority)]
    return against_majority(right[0].numpy(), right[1].numpy(), held.clusters.numpy(), answer)


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


def _averages(scored: list[CandidateScores], held: Examples, check: Examples, measure: str) -> list[CandidateScores]:
    """Average the seeds of the best candidate with several, the best two, and the best three candidates."""
    ranked = sorted(scored, key=lambda one: -float(one.hits.mean()))
    groups = [[one] for one in ranked if one.seeds > 1][:1] + [
        ranked[:count] for count in (2, 3) if count <= len(ranked)
    ]
    averages = []
    for members in groups:
        # A candidate with several seeds predicts their mean: it enters the average, and is fitted, in this form.
        probabilities = torch.stack([one.probabilities for one in members]).mean(dim=0)
        names = [one.name + (f" x {one.seeds}" if one.seeds > 1 else "") for one in members]
        candidate = Candidate(" + ".join(names), "average", members=tuple(one.candidate for one in members))
        seconds = sum(one.fit_seconds * one.seeds for one in members)
        checks = torch.stack([one.check_probabilities for one in members]).mean(dim=0)
        averages.append(
            CandidateScores(
                candidate,
                hits_of(probabilities, held, measure),
                probabilities,
                seconds,
                1,
                hits_of(checks, check, measure),
                checks,
            )
        )
    return averages


def _final(
    candidate: Candidate,
    scored: list[CandidateScores],
    held: Examples,
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
    tried = {one.name: one.seeds for one in scored}
    members = [
        (member, seed, 1 / tried[member.name])
        for member in candidate.members or (candidate,)
        for seed in range(tried[member.name] if candidate.members else 1)
    ]
    networks: list[PairNetwork] = []
    calibrations: list[dict[str, float]] = []
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
        networks.append(fitted.network)
        calibrations.append({**fit_calibration(*fitted.development(data.dev), shrink=False), "weight": weight})
    if len(networks) == 1 and fitted is not None:
        return fitted
    soft = answers_of(data.train).soft
    average = Average.of(list(networks), calibrations, soft=soft)
    # A member that trained on the development part knows it; the held-out folds of the selection do not.
    logits = _average_logits(candidate, scored, soft=soft)
    return Fitted(average, seconds, held_out=(logits, held.truth), held_out_clusters=held.clusters)


def _average_logits(average: Candidate, scored: list[CandidateScores], *, soft: bool) -> Tensor:
    """Return an average's predictions for the pairs it was compared on, as logits."""
    mean = next(one.probabilities for one in scored if one.candidate is average).clamp(1e-7, 1 - 1e-7)
    return torch.logit(mean) if soft else mean.log()
