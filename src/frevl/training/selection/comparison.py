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

__all__ = ["Comparison", "HeldOutPairs"]


@dataclass(frozen=True)
class HeldOutPairs:
    """The pairs on which candidates are compared, and those on which the comparison is checked.

    Attributes:
        compared: The pairs of the comparison.
        checked: The pairs of the check; empty if there are none.
        compared_on: The pairs of the comparison, in words.
        checked_on: The pairs of the check, in words; empty if there are none.
        measure: Measure of the comparison, such as ``accuracy``.
    """

    compared: Examples
    checked: Examples
    compared_on: str
    checked_on: str
    measure: str

    def swapped(self) -> HeldOutPairs:
        """Return the same with the pairs of the comparison and those of the check exchanged."""
        return HeldOutPairs(self.checked, self.compared, self.checked_on, self.compared_on, self.measure)


@dataclass(frozen=True)
class Comparison:
    """Candidates and their averages, compared on held-out pairs.

    Attributes:
        scored: Candidates, simplest first, then their averages.
        winner: The simplest of those within one standard error of the best.
        reason: Why it was chosen.
        rows: The table of all of them.
        pairs: The pairs of the comparison, and of its check.
        gap: The winner's accuracy on the pairs of the comparison and on those of the check.
    """

    scored: list[CandidateScores]
    winner: CandidateScores
    reason: str
    rows: list[dict[str, Any]]
    pairs: HeldOutPairs
    gap: Gap | None

    @classmethod
    def of(cls, candidates: list[CandidateScores], pairs: HeldOutPairs) -> Comparison:
        """Compare candidates.

        If the winner does worse on the pairs of the check than chance explains, the comparison is repeated on those: a
        model is chosen by the pairs that are harder for it.

        Args:
            candidates: Scored candidates, simplest first.
            pairs: The pairs on which they were scored.
        """
        found = cls._on(candidates, pairs)
        if found.gap is None or not found.gap.beyond_chance or found.gap.checked >= found.gap.compared:
            return found
        swapped = [one.on_the_other_side() for one in candidates]
        again = cls._on(swapped, pairs.swapped())
        # The gap is stated as that of the model that would have been chosen, compared with the check.
        gap = replace(found.gap, compared=found.gap.checked, checked=found.gap.compared)
        return replace(again, gap=gap)

    @classmethod
    def _on(cls, candidates: list[CandidateScores], pairs: HeldOutPairs) -> Comparison:
        held, check = pairs.compared, pairs.checked
        scored = candidates + averages(candidates, held, check, pairs.measure)
        winner, reason, rows = one_standard_error(scored, held.clusters, unit=UNITS.get(pairs.measure, "points"))
        gap = None
        if pairs.checked_on:
            right, of_check = winner.hits, winner.check_hits
            if pairs.measure != "accuracy":
                right, of_check = hits_of(winner.probabilities, held), hits_of(winner.check_probabilities, check)
            gap = gap_between(right, held.clusters, of_check, check.clusters)
        return cls(scored, winner, reason, rows, pairs, gap)

    def against_majority(self, labels: list[str]) -> Chance | None:
        """Compare the winner with the majority answer on the held-out pairs; None if nothing can be said."""
        majority = next((one for one in self.scored if one.name == "majority"), None)
        if majority is None or not labels:
            return None
        answer = labels[int(majority.probabilities.mean(dim=0).argmax())]
        right, always = (
            one.hits if self.pairs.measure == "accuracy" else hits_of(one.probabilities, self.pairs.compared)
            for one in (self.winner, majority)
        )
        return against_majority(right.numpy(), always.numpy(), self.pairs.compared.clusters.numpy(), answer)


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
