"""Choose the best classification method by comparison on held-out examples.

Held-out examples are predicted in stratified folds with whole groups. Leave-one-out, which is exact for the closed
forms, was tried first, but favours the names: of three examples per class, the class in question keeps only two.
Candidates are compared by likelihood, because differences in accuracy on a few hundred examples are mostly noise
(research/experiments/log.md). Names alone win if they are within one standard error of the likeliest, and nothing
measurably less accurate than the names is chosen: examples cannot make the result worse beyond the noise of the choice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.errors import UsageError
from frevl.evaluation.intervals import hit_record
from frevl.models.classification.heads import Head, one_hot
from frevl.runs.calibration import ConformalScores, calibration_notes
from frevl.terminal import print_progress
from frevl.training.classification.candidates import Candidate, candidates_of, fixed_candidate
from frevl.training.classification.learning_curve import scale_for_all
from frevl.training.classification.trials import Compared, Labelled, Trials, calibrated_parts, no_surer_than_right
from frevl.training.options import Session
from frevl.training.selection.measures import standard_error, table_row

__all__ = ["Choice", "assign_folds", "choose_head", "fitted_head"]

MOST_FOLDS = 5
FEWEST_HELD_OUT = 20
"""Minimum number of held-out examples, or development images; with fewer nothing can be compared."""
_Z = 1.96  # standard errors: the bounds of a 95 % interval
_TOO_LATE = "would take more than the remaining time"
_TOO_FEW = (
    "{} of the {:,} examples can be held out ({}at least {} are needed), so nothing was compared and the probabilities "
    "were not checked; the method and its settings are those that did best with one example a class on other data"
)
_ONE_EACH = "a class with one example, or one group of examples, needs it; "
_LEARNED = (
    "the space of the names has learned from {:,} of the {:,} examples, or from images grouped with them, where "
    "names are right more often than on other images, so these cannot be held out; the method and its settings are "
    "those that did best with one example a class on other data. Give other images with --dev to compare on"
)


@dataclass(frozen=True)
class Choice:
    """The chosen method and its evaluation.

    Attributes:
        head: The head, fitted on all examples and scaled to calibrated logits.
        method: Name of the chosen method.
        reason: Why it was chosen, in words.
        rows: Every candidate with its figures.
        compared_on: The data of the comparison, in words; empty if nothing was compared.
        held_out: ``(n, classes)`` logits of the held-out images on the scale of the head, and ``(n,)`` their labels.
        notes: Sentences for the user.
        members: The terms of the head, each with its two scales.
        splits: Rows to fit and rows held out, for every fold; empty if development images were used.
        truth: The images of the comparison, with labels.
        scale: Factor by which the logits were multiplied, as the final fit has more examples than those compared
            (`frevl.training.classification.learning_curve`).
    """

    head: Head
    method: str
    reason: str
    rows: list[dict[str, Any]]
    compared_on: str
    held_out: tuple[Tensor, Tensor]
    notes: list[str]
    members: tuple[tuple[Candidate, tuple[float, float]], ...] = ()
    splits: tuple[tuple[Tensor, Tensor], ...] = ()
    truth: Labelled | None = None
    scale: float = 1.0

    def results(self, *, examples: int, seconds: float, names: bool) -> dict[str, Any]:
        """Return the record stored in a run.

        Args:
            examples: Number of examples.
            seconds: Time taken, in seconds.
            names: Whether the classes have names.
        """
        logits, labels = self.held_out
        reached: dict[str, Any] = {"n": 0, "accuracy": None, "interval": None}
        if len(labels):
            clusters = None if self.truth is None else self.truth.clusters.numpy()
            reached = hit_record((logits.argmax(dim=1) == labels).numpy(), clusters)
        doubts = [*self._chance(), *self.notes]
        return {
            "development": reached,
            "train_pairs": examples,
            "train_seconds": seconds,
            "soft_targets": False,
            "warnings": doubts,
            "notes": [*doubts, *(calibration_notes(len(labels)) if len(labels) else [])],
            "fit": None,
            "prediction_sets": self.kept_scores(),
            "selection": {
                "chosen": self.method,
                "reason": self.reason,
                "judged_on": self.compared_on,
                "candidates": self.rows,
                "names": names,
            },
        }

    def _chance(self) -> list[str]:
        """Return a warning if the most frequent class alone does about as well on the held-out images."""
        logits, labels = self.held_out
        if self.truth is None or not len(labels):
            return []
        hits, always = (logits.argmax(dim=1) == labels).double(), (labels == labels.bincount().argmax()).double()
        gain = hits - always
        if float(gain.mean()) > _Z * standard_error(gain, self.truth.clusters):
            return []
        right = f"{100 * float(hits.mean()):.2f} % right"
        return [
            f"Chance: {right} on {self.compared_on} is not measurably better than always "
            f"giving their most frequent class ({100 * float(always.mean()):.2f} %)."
        ]

    def kept_scores(self) -> dict[str, Any] | None:
        """Return the scores of held-out images to keep for prediction sets; None if there are none."""
        logits, labels = self.held_out
        if self.truth is None or not len(labels):
            return None
        right = one_hot(labels, logits.shape[1]).numpy() > 0
        probabilities = logits.double().softmax(dim=1).numpy()
        return ConformalScores.fit(probabilities, right, self.truth.clusters.numpy()).record()


def choose_head(
    examples: Labelled, dev: Labelled | None, classes: int, *, method: str, names: float, session: Session
) -> Choice:
    """Compare the candidates, choose, and fit the choice on all examples.

    Args:
        examples: Examples to train on; may be empty if the classes have names.
        dev: Images to compare on instead of held-out examples, or None.
        classes: Number of classes.
        method: One of `frevl.training.classification.candidates.METHODS`.
        names: Scale of the cosines with the names; 0 without names.
        session: Seed, time limit and progress.
    """
    choice = _chosen(examples, dev, classes, method=method, names=names, session=session)
    sentences = _disagreement(examples, classes)
    if dev is not None and dev.known is not None and bool(dev.known.any()):
        sentences.append(
            f"The space of the names has learned from {int(dev.known.sum()):,} of the {len(dev):,} development "
            "images, where names are right more often than on other images."
        )
    if dev is not None and len(dev) < FEWEST_HELD_OUT:
        sentences.append(
            f"The {len(dev):,} development images were not used for the comparison: at least {FEWEST_HELD_OUT} "
            "are needed."
        )
    late = sum(row.get("left_out") == _TOO_LATE for row in choice.rows)
    if late:
        sentences.append(
            f"The time limit left {late:,} settings untried, some of which may be better; allow more time."
        )
    return replace(choice, notes=[*sentences, *choice.notes])


def _disagreement(examples: Labelled, classes: int) -> list[str]:
    """Return a warning if the names alone label the examples no better than chance, as with labels in another order."""
    cosines = examples.features.cosines
    if cosines is None or len(examples) < FEWEST_HELD_OUT:
        return []
    hits = (cosines.argmax(dim=1) == examples.labels).double()
    if float(hits.mean()) > 1 / classes + _Z * standard_error(hits, examples.clusters):
        return []
    return [
        f"The names alone are right for {int(hits.sum()):,} of {len(hits):,} examples, which is no better than chance: "
        "check that every label goes with its own name, and that the encoder knows these words."
    ]


def _chosen(
    examples: Labelled, dev: Labelled | None, classes: int, *, method: str, names: float, session: Session
) -> Choice:
    has_names = names != 0.0
    # Whole clusters: otherwise the rest of one would be used for both training and evaluation.
    out = torch.zeros(len(examples), dtype=torch.bool)
    if examples.known is not None:
        out = torch.isin(examples.clusters, examples.clusters[examples.known])
    folds, known = assign_folds(examples, classes, session.seed).where(~out, -1), int(out.sum())
    held = dev if dev is not None and len(dev) >= FEWEST_HELD_OUT else None
    held_rows = (folds >= 0).nonzero()[:, 0]
    nothing = torch.zeros(0, classes), torch.zeros(0, dtype=torch.long)
    if not len(examples):
        head = Head.zero(classes, examples.features.standard.shape[1], names=names)
        return _of_names(head, held, nothing)
    if held is None and len(held_rows) < FEWEST_HELD_OUT:
        few = f"only {len(held_rows):,}" if len(held_rows) else "none"
        needed = _ONE_EACH if len(held_rows) < len(examples) else ""
        why = (_LEARNED if known else _TOO_FEW).format(known or few, len(examples), needed, FEWEST_HELD_OUT)
        return _fixed(examples, classes, method, names, "nothing could be held out", why)
    trials = Trials(examples, folds, held, classes, names)
    started, left_out = time.monotonic(), []
    compared: list[Compared] = []
    for method_name, settings in groupby(candidates_of(method, has_names=has_names), lambda one: one.method):
        own = []
        for candidate in settings:
            reason = trials.unfit(candidate)
            if not reason and session.time_limit is not None and compared:
                spent, longest = time.monotonic() - started, max(one.fit_seconds for one in compared)
                if spent + 2 * longest > session.time_limit:
                    reason = _TOO_LATE
            if reason:
                left_out.append({"name": candidate.name, "left_out": reason})
            else:
                own.append(candidate)
        found = trials.compare(own)
        compared += found
        for one in found:
            print_progress(f"{one.name:<24} {100 * float(one.hits.mean()):.2f} %", enabled=session.progress)
        tried = {one.name for one in found}
        left_out += [
            {"name": one.name, "left_out": f"another setting of {method_name} was likelier in the first fold"}
            for one in own if one.name not in tried
        ]  # fmt: skip
    if not compared:
        return _uncompared(trials, method, {one["name"]: one["left_out"] for one in left_out})
    truth, compared_on = trials.truth, trials.compared_on
    compared += _averages(compared, truth)
    winner, reason, rows = _choose(compared, truth.clusters)

    def divided(folds: int) -> Trials:
        each = assign_folds(examples, classes, session.seed, most=folds).where(~out, -1)
        return Trials(examples, each, None, classes, names)

    in_time = session.time_limit is None or time.monotonic() - started + 3 * winner.fit_seconds < session.time_limit
    scale = scale_for_all(winner, trials, divided if held is None and in_time else None)
    # The kept logits get the same scale, as thresholds on them apply to those of the final fit.
    members = tuple((one, (scale * of_names, scale * of_rest)) for one, (of_names, of_rest) in winner.members)
    head = fitted_head(members, examples, classes, names)
    print_progress(f"chosen: {winner.name}: {reason}", enabled=session.progress)
    return Choice(
        head, winner.name, reason, rows + left_out, compared_on, (scale * winner.logits, truth.labels), [],
        members, tuple(trials.splits), truth, scale,
    )  # fmt: skip


def assign_folds(examples: Labelled, classes: int, seed: int, most: int = MOST_FOLDS) -> Tensor:
    """Return the fold in which each example is held out, such that every class keeps examples in every fit.

    Args:
        examples: The examples; their clusters stay whole, and a cluster counts for its most frequent class.
        classes: Number of classes.
        seed: Random seed of the order.
        most: Maximum number of folds.

    Returns:
        ``(n,)`` int64 below ``most``; -1 for examples that are never held out, because their class has one cluster.
    """
    folds = torch.full((len(examples),), -1)
    if not len(examples):
        return folds
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.from_numpy(np.unique(examples.clusters.numpy(), return_inverse=True)[1])
    votes = torch.zeros(int(clusters.max()) + 1, classes)
    votes.index_put_((clusters, examples.labels), torch.ones(len(examples)), accumulate=True)
    of_cluster = votes.argmax(dim=1)
    count = min(most, int(torch.bincount(of_cluster, minlength=classes).max()))
    fold_of_cluster = torch.full((len(votes),), -1)
    start = 0
    for label in sorted(set(of_cluster.tolist())):
        own = (of_cluster == label).nonzero()[:, 0]
        if len(own) > 1 and count > 1:
            order = own[torch.randperm(len(own), generator=generator)]
            # The next class continues where this one ends, so that folds have similar sizes.
            fold_of_cluster[order] = (torch.arange(len(own)) + start) % count
            start += len(own)
    # A class whose examples would all be held out keeps them (its clusters cannot share a fold, as folds take turns).
    return fold_of_cluster[clusters]


def _fixed(examples: Labelled, classes: int, method: str, names: float, reason: str, why: str) -> Choice:
    """Use a method with the settings that did best on other data, because nothing can be compared."""
    candidate, scale = fixed_candidate(method, has_names=names != 0.0)
    head = no_surer_than_right(fitted_head([(candidate, (1.0, scale))], examples, classes, names), examples)
    note = f"Methods were not compared, and probabilities are hardly calibrated: {why}."
    nothing = torch.zeros(0, classes), torch.zeros(0, dtype=torch.long)
    return Choice(head, candidate.method, reason, [], "", nothing, [note])


def _uncompared(trials: Trials, method: str, left_out: dict[str, str]) -> Choice:
    """Fit on all examples a method that cannot be fitted on fewer.

    Raises:
        UsageError: The method cannot be fitted on all of them either.
    """
    name, reason = next(iter(left_out.items()))
    candidate, _ = fixed_candidate(method, has_names=trials.names != 0.0)
    if refusal := trials.unfit(candidate, whole=True):
        raise UsageError(
            f"--method {method}: {name} {refusal}; choose another method, or auto, which tries all suitable ones"
        )
    return _fixed(trials.examples, trials.classes, method, trials.names, f"it {reason}", f"{name} {reason}")


def _of_names(head: Head, held: Labelled | None, nothing: tuple[Tensor, Tensor]) -> Choice:
    """Use the names alone, calibrated on development images if there are any."""
    reason = "there are no examples"
    if held is None:
        note = "Not calibrated: there are no examples, so the probabilities are those of the encoder's own scale."
        return Choice(head, "names", reason, [], "", nothing, [note])
    names = Candidate("names", None, anchored=True)
    own = head.logits(held.features, None)
    found = calibrated_parts(names, (own, torch.zeros_like(own)), held, 0.0)
    scale = found.members[0][1][0]
    rows = [table_row(found, found, held.clusters)]
    on = f"{len(held):,} development images"
    return Choice(head.scaled(scale), "names", reason, rows, on, (found.logits, held.labels), [], truth=held)


def _averages(compared: list[Compared], truth: Labelled) -> list[Compared]:
    """Average the logits of the best two and the best three methods, each with its best setting."""
    best: dict[str, Compared] = {}
    for one in sorted(compared, key=lambda one: float(one.losses.mean())):
        best.setdefault(one.members[0][0].method, one)
    averages = []
    for count in range(2, min(3, len(best)) + 1):
        taken = list(best.values())[:count]
        logits = torch.stack([one.logits for one in taken]).mean(dim=0)
        members = tuple(
            (candidate, (of_names / count, of_rest / count))
            for one in taken
            for candidate, (of_names, of_rest) in one.members
        )
        hits = (logits.argmax(dim=1) == truth.labels) * truth.each
        losses = F.cross_entropy(logits, truth.labels, reduction="none") * truth.each
        name, seconds = " + ".join(one.name for one in taken), sum(one.fit_seconds for one in taken)
        averages.append(Compared(name, members, logits, hits, losses, seconds))
    return averages


def _choose(compared: list[Compared], clusters: Tensor) -> tuple[Compared, str, list[dict[str, Any]]]:
    """Choose the simplest candidate whose likelihood is within one standard error of the best."""
    names = next((one for one in compared if one.name == "names"), None)
    rows, allowed = [], []
    for one in compared:
        worse = 0.0 if names is None else float((names.hits - one.hits).mean())
        below = names is not None and worse > standard_error(names.hits - one.hits, clusters)
        rows.append({
            **table_row(one, max(compared, key=lambda other: float(other.hits.mean())), clusters),
            "log_loss": float(one.losses.mean()),
            "below_names": below,
        })  # fmt: skip
        if not below:
            allowed.append(one)
    best = min(allowed, key=lambda one: float(one.losses.mean()))
    winner, reason = best, "the likeliest"
    if names is not None and names is not best:
        behind = float((names.losses - best.losses).mean())
        if behind <= standard_error(names.losses - best.losses, clusters):
            winner, reason = names, f"names alone are within one standard error of the likeliest ({best.name})"
    for one, row in zip(compared, rows, strict=True):
        behind = float((one.losses - best.losses).mean())
        inside = one is best or behind <= standard_error(one.losses - best.losses, clusters)
        row["within_one_standard_error"] = inside and not row["below_names"]
    return winner, reason, rows


def fitted_head(
    members: Sequence[tuple[Candidate, tuple[float, float]]], examples: Labelled, classes: int, names: float
) -> Head:
    """Fit the members on all examples, scale them, and add them up."""
    whole: Head | None = None
    for candidate, (of_names, of_rest) in members:
        head = candidate.fit(examples.features, examples.labels, classes, names=names, weights=examples.weights)
        own = head.scaled(of_names) if candidate.anchored else head.scaled(of_rest).with_names(head.names * of_names)
        whole = own if whole is None else whole.plus(own)
    if whole is None:
        raise ValueError("a choice has at least one member")
    return whole
