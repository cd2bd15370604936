"""Compare the candidates of ``--model auto`` and their averages, and check the comparison on other pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from frevl.evaluation.chance import Chance, against_majority
from frevl.training.examples import Examples
from frevl.training.selection.candidates import Candidate
from frevl.training.selection.held_out import CandidateScores, hits_of
from frevl.training.selection.measures import UNITS, Gap, gap_between, one_standard_error

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """Candidates and their averages, compared on held-out pairs.

    Attributes:
        scored: Candidates, simplest first, then their averages.
        winner: The simplest of those within one standard error of the best.
        reason: Why it was chosen.
        rows: The table of all of them.
        held: The pairs of the comparison.
        compared_on: These pairs, in words.
        checked_on: The pairs of the check, in words; empty if there are none.
        gap: The winner's accuracy on the pairs of the comparison and on those of the check.
    """

    scored: list[CandidateScores]
    winner: CandidateScores
    reason: str
    rows: list[dict[str, Any]]
    held: Examples
    compared_on: str
    checked_on: str
    gap: Gap | None

    @classmethod
    def of(
        cls,
        candidates: list[CandidateScores],
        held: Examples,
        check: Examples,
        *,
        compared_on: str,
        checked_on: str,
        measure: str,
    ) -> Comparison:
        """Compare candidates.

        If the winner does worse on the pairs of the check than chance explains, the comparison is repeated on those: a
        model is chosen by the pairs that are harder for it.

        Args:
            candidates: Scored candidates, simplest first.
            held: The pairs of the comparison.
            check: The pairs of the check; empty if there are none.
            compared_on: The pairs of the comparison, in words.
            checked_on: The pairs of the check, in words; empty if there are none.
            measure: Measure of the comparison, such as ``accuracy``.
        """
        found = cls._on(candidates, held, check, compared_on, checked_on, measure)
        if found.gap is None or not found.gap.beyond_chance or found.gap.checked >= found.gap.compared:
            return found
        swapped = [one.on_the_other_side() for one in candidates]
        again = cls._on(swapped, check, held, checked_on, compared_on, measure)
        # The gap is stated as that of the model that would have been chosen, compared with the check.
        gap = replace(found.gap, compared=found.gap.checked, checked=found.gap.compared)
        return replace(again, gap=gap)

    @classmethod
    def _on(
        cls,
        candidates: list[CandidateScores],
        held: Examples,
        check: Examples,
        compared_on: str,
        checked_on: str,
        measure: str,
    ) -> Comparison:
        scored = candidates + averages(candidates, held, check, measure)
        winner, reason, rows = one_standard_error(scored, held.clusters, unit=UNITS.get(measure, "points"))
        gap = None
        if checked_on:
            right, of_check = winner.hits, winner.check_hits
            if measure != "accuracy":
                right, of_check = hits_of(winner.probabilities, held), hits_of(winner.check_probabilities, check)
            gap = gap_between(right, held.clusters, of_check, check.clusters)
        return cls(scored, winner, reason, rows, held, compared_on, checked_on, gap)

    def against_majority(self, labels: list[str], measure: str) -> Chance | None:
        """Compare the winner with the majority answer on the held-out pairs; None if nothing can be said."""
        majority = next((one for one in self.scored if one.name == "majority"), None)
        if majority is None or not labels:
            return None
        answer = labels[int(majority.probabilities.mean(dim=0).argmax())]
        right, always = (
            one.hits if measure == "accuracy" else hits_of(one.probabilities, self.held)
            for one in (self.winner, majority)
        )
        return against_majority(right.numpy(), always.numpy(), self.held.clusters.numpy(), answer)


def averages(scored: list[CandidateScores], held: Examples, check: Examples, measure: str) -> list[CandidateScores]:
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
