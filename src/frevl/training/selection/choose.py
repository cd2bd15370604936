"""``--model auto``: try baselines and fusions on data that they have not seen, and take the simplest of the best.

Every candidate is judged on held-out images, by cross-validation where there are few pairs. Among the candidates
whose paired difference from the best lies within one standard error (by image), the simplest is chosen; averages of
the best candidates are candidates too. Test data never enters. The procedure is ours.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from frevl.evaluation.chance import Chance, against_majority
from frevl.models.ensemble import Average
from frevl.models.interface import PairNetwork
from frevl.models.kernel_ridge import MOST_PAIRS
from frevl.progress import print_progress
from frevl.runs.batches import logits_of
from frevl.runs.calibration import calibrated, fit_calibration
from frevl.runs.targets import Answers
from frevl.training.examples import Examples, join
from frevl.training.fit_model import Fitted, as_it_is, fit_model
from frevl.training.initialisation import Beginning
from frevl.training.options import AutoOptions, ModelOptions, PairwiseOptions, Session, options_for
from frevl.training.prepare import Prepared
from frevl.training.selection.candidates import TRIED, Candidate, candidates
from frevl.training.selection.encoder_sets import EncoderChoice, choose_encoders, narrow
from frevl.training.selection.folds import Fold, cv_splits
from frevl.training.selection.gap import Gap, gap_between
from frevl.training.selection.one_standard_error import Judged, one_standard_error

__all__ = ["Selection", "choose", "whole_schedule"]

_CHEAP_SECONDS = 5.0  # a fit this short is repeated with other seeds
_SEEDS = 3
_DETERMINISTIC = ("majority", "linear", "kernel", "as begun")
# Development pairs; with fewer the best epoch is chance (research/experiments/log.md), so networks run their whole
# schedule and keep its end, whatever the call says of patience.
_FEWEST_TO_STOP_BY = 1_000
_FEWEST_FOR_SMALL = 8_000  # pairs; below, larger networks took most of the time and won nothing
_DEFAULT_LIMIT = 600.0  # seconds, if no time limit is given
_ENCODERS_SHARE = 0.25  # of the time limit, for comparing encoders
_SELECTION_SHARE = 0.75  # of the time limit; the rest is for the final fit


@dataclass
class Selection:
    """The outcome.

    Attributes:
        fitted: The chosen network, fitted on the training part.
        chosen: Its name.
        reason: Why.
        rows: The table: every candidate with mean, standard error, difference from the best, and time.
        judged_on: On what the candidates were judged.
        data: The examples with the embeddings of the chosen encoders only.
        encoders: The chosen encoders, with the table of all sets that were compared.
        checked_on: On what the comparison was checked, where development pairs were given; empty otherwise.
        gap: The two estimates of the choice.
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
    gap: Gap | None = None
    chance: Chance | None = None

    def warnings(self) -> list[str]:
        """What makes the figures doubtful, in sentences that stand before them."""
        found = []
        if self.gap is not None and self.gap.beyond_chance:
            found.append(self.gap.sentence(self.judged_on, self.checked_on))
        if self.chance is not None and self.chance.is_chance:
            found.append(self.chance.sentence)
        return found

    def record(self) -> dict[str, Any]:
        """Return what the run keeps."""
        return {
            "chosen": self.chosen,
            "reason": self.reason,
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
    folder: Path,
    start: Beginning | None = None,
) -> Selection:
    """Choose encoders and model on held-out images and fit the model on the training part.

    Args:
        data: Training and development examples of a classification.
        encoders: Encoders whose embeddings they hold; the set of them that does best is used.
        outputs: Number of classes.
        options: Of ``auto``.
        session: Its time limit bounds the whole selection.
        folder: Of the run.
        start: A trained fusion that some candidates begin with; the encoders are then those that it reads.

    Returns:
        The chosen network with the whole table.
    """
    started = time.monotonic()
    limit = session.time_limit or _DEFAULT_LIMIT
    if start is None:
        found = choose_encoders(data, encoders, outputs, session, time_limit=limit * _ENCODERS_SHARE)
    else:
        found = EncoderChoice(list(encoders), list(encoders), list(encoders), [], 0)
    data = narrow(data, found.images, found.texts)
    splits, judged_on, checked_on = cv_splits(data, session.seed)
    everything = join(data.train, data.dev)
    held = everything.select(torch.cat([fold.held_out for fold in splits]))
    check = everything.select(splits[0].check)
    print_progress(f"choosing on {judged_on}", enabled=session.progress)
    judged: list[Judged] = []
    left_out: list[dict[str, Any]] = []
    offered = candidates(start)
    by_name = {candidate.name: candidate for candidate in offered}
    names = [name for name in TRIED if name in by_name]
    for tried, name in enumerate(names):
        candidate = by_name[name]
        reason = _unfit(candidate, data, start)
        left = limit * _SELECTION_SHARE - (time.monotonic() - started)
        if not reason and left < limit * 0.03:
            reason = "no time left"
        if reason:
            left_out.append({"name": candidate.name, "reason": reason})
            continue
        # Twice the fair share: most candidates take less than theirs.
        bound = 2 * left / (len(splits) * (len(names) - tried))
        result = _judge(
            candidate, everything, splits, outputs, options, replace(session, time_limit=bound), left, start
        )
        if result is None:
            left_out.append({"name": candidate.name, "reason": "would take more than the time that is left"})
            print_progress(f"  {candidate.name:<20} left out: no time", enabled=session.progress)
            continue
        judged.append(result)
        shown = f"{100 * result.hits.mean():6.2f} %  {result.fit_seconds:6.1f} s a fit"
        print_progress(f"  {candidate.name:<20} {shown}", enabled=session.progress)
    judged.sort(key=lambda one: offered.index(one.candidate))
    single = judged
    judged = single + _averages(single, held, check)
    winner, reason, rows = one_standard_error(judged, held.clusters)
    gap = gap_between(winner.hits, held.clusters, winner.check_hits, check.clusters) if checked_on else None
    if gap is not None and gap.beyond_chance and gap.checked < gap.compared:
        single, held, check = [one.on_the_other_side() for one in single], check, held
        judged = single + _averages(single, held, check)
        winner, reason, rows = one_standard_error(judged, held.clusters)
        gap = replace(gap, compared=gap.checked, checked=gap.compared)  # of what would have been chosen
        judged_on, checked_on = checked_on, judged_on
    print_progress(f"chosen: {winner.candidate.name}: {reason}", enabled=session.progress)
    left = limit - (time.monotonic() - started)
    fitted = _final(winner.candidate, judged, held, data, outputs, options, session, folder, left, start)
    chance = _against_majority(winner, judged, held, data.labels)
    return Selection(
        fitted, winner.candidate.name, reason, rows + left_out, judged_on, data, found, checked_on, gap, chance
    )


def whole_schedule(options: ModelOptions, development_pairs: int) -> ModelOptions:
    """Return options that keep the last epoch of the whole schedule where there are too few pairs to stop by."""
    if not isinstance(options, PairwiseOptions) or development_pairs >= _FEWEST_TO_STOP_BY:
        return options
    return replace(options, keep_last=True, patience=sys.maxsize)


def _against_majority(winner: Judged, judged: list[Judged], held: Examples, labels: list[str]) -> Chance | None:
    """Compare the choice with the majority answer on the pairs that all candidates were judged on."""
    majority = next((one for one in judged if one.candidate.name == "majority"), None)
    if majority is None or not labels:
        return None
    answer = labels[int(majority.probabilities.mean(dim=0).argmax())]
    return against_majority(winner.hits.numpy(), majority.hits.numpy(), held.clusters.numpy(), answer)


def _unfit(candidate: Candidate, data: Prepared, start: Beginning | None) -> str:
    if candidate.begins and start is not None and start.seen:
        return (
            f"the run of --initialise-from has learnt from {start.seen:,} of these images, so judging it here says "
            "nothing"
        )
    if candidate.model == "kernel" and len(data.train) + len(data.dev) > MOST_PAIRS:
        return f"takes at most {MOST_PAIRS:,} pairs"
    if candidate.model == "small" and len(data.train) + len(data.dev) < _FEWEST_FOR_SMALL:
        return f"never won with fewer than {_FEWEST_FOR_SMALL:,} pairs"
    return ""


def _judge(
    candidate: Candidate,
    everything: Examples,
    splits: list[Fold],
    outputs: int,
    options: AutoOptions,
    session: Session,
    left: float,
    start: Beginning | None,
) -> Judged | None:
    """Fit a candidate on every fold, with several seeds if it is cheap; None if that would take too long."""
    soft = _answers(everything).soft
    longest, seeds, planned = 0.0, 0, _SEEDS
    probabilities: list[Tensor] = []
    hits: list[Tensor] = []
    checks: list[Tensor] = []
    check = everything.select(splits[0].check)
    while seeds < planned:
        parts: list[Tensor] = []
        check_parts: list[Tensor] = []
        for number, fold in enumerate(splits):
            train, dev = everything.select(fold.train), everything.select(fold.inner)
            # What is compared or checked on must not be learnt from.
            spare = not (torch.equal(fold.inner, fold.held_out) or torch.equal(fold.inner, fold.check))
            own = replace(session, seed=session.seed + seeds, progress=False)
            begun = time.monotonic()
            with TemporaryDirectory() as scratch:
                fitted = _fit(
                    candidate, train, dev, outputs, options, own, folder=Path(scratch), dev_is_spare=spare, start=start
                )
            longest = max(longest, time.monotonic() - begun)
            if number == 0 and seeds == 0 and longest * (len(splits) - 1) > left:
                return None
            calibration = fit_calibration(*fitted.development(dev), shrink=False)
            for examples, found in ((everything.select(fold.held_out), parts), (check, check_parts)):
                if len(examples):
                    logits = logits_of(fitted.network, examples.pairs, 1024)
                    found.append(calibrated(logits, calibration, soft=soft))
        said = torch.cat(parts)
        probabilities.append(said)
        hits.append(_hits(said, everything.select(torch.cat([fold.held_out for fold in splits]))))
        # Every fold sees the same pairs of the check: their mean, which is what an average of the folds would say.
        checks.append(torch.stack(check_parts).mean(dim=0) if check_parts else said[:0])
        seeds += 1
        if longest > _CHEAP_SECONDS or candidate.name in _DETERMINISTIC:
            planned = seeds  # deterministic, or too dear to repeat
    return Judged(
        candidate,
        torch.stack(hits).mean(dim=0),
        torch.stack(probabilities).mean(dim=0),
        longest,
        seeds,
        torch.stack([_hits(said, check) for said in checks]).mean(dim=0),
        torch.stack(checks).mean(dim=0),
    )


def _fit(
    candidate: Candidate,
    train: Examples,
    dev: Examples,
    outputs: int,
    options: AutoOptions,
    session: Session,
    *,
    folder: Path,
    dev_is_spare: bool,
    start: Beginning | None,
) -> Fitted[PairNetwork]:
    """Fit a candidate with its own options; one that begins with another run and learns nothing stays what it was."""
    if start is not None and not candidate.learns:
        return as_it_is(start, outputs)
    own = whole_schedule(options.for_candidate(options_for(candidate.model), candidate.changes), len(dev))
    return fit_model(
        candidate.model, train, dev, outputs, own, session, folder=folder, dev_is_spare=dev_is_spare,
        start=start if candidate.begins else None,
    )  # fmt: skip


def _hits(probabilities: Tensor, examples: Examples) -> Tensor:
    return _answers(examples).hits(probabilities.argmax(dim=1))


def _answers(examples: Examples) -> Answers:
    if not isinstance(examples.truth, Answers):
        raise TypeError("this selection is for classification; matching has its own")
    return examples.truth


def _averages(judged: list[Judged], held: Examples, check: Examples) -> list[Judged]:
    """Average the seeds of the best candidate that has several, the best two, and the best three candidates."""
    ranked = sorted(judged, key=lambda one: -float(one.hits.mean()))
    groups = [[one] for one in ranked if one.seeds > 1][:1] + [
        ranked[:count] for count in (2, 3) if count <= len(ranked)
    ]
    averages = []
    for members in groups:
        # What a candidate with several seeds said is their mean: so it goes into the average, and so it is fitted.
        probabilities = torch.stack([one.probabilities for one in members]).mean(dim=0)
        names = [one.candidate.name + (f" x {one.seeds}" if one.seeds > 1 else "") for one in members]
        candidate = Candidate(" + ".join(names), "average", members=tuple(one.candidate for one in members))
        seconds = sum(one.fit_seconds * one.seeds for one in members)
        checks = torch.stack([one.check_probabilities for one in members]).mean(dim=0)
        averages.append(
            Judged(candidate, _hits(probabilities, held), probabilities, seconds, 1, _hits(checks, check), checks)
        )
    return averages


def _final(
    candidate: Candidate,
    judged: list[Judged],
    held: Examples,
    data: Prepared,
    outputs: int,
    options: AutoOptions,
    session: Session,
    folder: Path,
    left: float,
    start: Beginning | None,
) -> Fitted[PairNetwork]:
    """Fit the choice on the training part, with the development part for early stopping and calibration."""
    tried = {one.candidate.name: one.seeds for one in judged}
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
        for leftover in ("state.safetensors", "log.jsonl"):
            if len(members) > 1:
                (folder / leftover).unlink(missing_ok=True)
        fitted = _fit(
            member, data.train, data.dev, outputs, options, own, folder=folder, dev_is_spare=data.dev_is_spare,
            start=start,
        )  # fmt: skip
        seconds += fitted.seconds
        networks.append(fitted.network)
        calibrations.append({**fit_calibration(*fitted.development(data.dev), shrink=False), "weight": weight})
    if len(networks) == 1 and fitted is not None:
        return fitted
    soft = _answers(data.train).soft
    average = Average.of(list(networks), calibrations, soft=soft)
    # A member that learnt from the development part knows it; the held-out folds of the selection do not.
    return Fitted(average, seconds, held_out=(_average_logits(candidate, judged, soft=soft), held.truth))


def _average_logits(average: Candidate, judged: list[Judged], *, soft: bool) -> Tensor:
    """Return what an average said of the pairs it was judged on, as logits."""
    mean = next(one.probabilities for one in judged if one.candidate is average).clamp(1e-7, 1 - 1e-7)
    return torch.logit(mean) if soft else mean.log()
