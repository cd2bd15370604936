"""Two estimates of one accuracy, on development pairs that were given and on held-out training pairs: do they agree?

Where they differ by more than chance, one of them is wrong for what the user wants to know: training pairs that are not
independent of each other make cross-validation too good, and development pairs that resemble the training pairs do the
same to themselves. The lower one is believed (ours).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frevl.training.selection.one_standard_error import standard_error

__all__ = ["Gap", "gap_between"]

_Z = 2.58  # standard errors: one in a hundred by chance, either way
_FEWEST_CLUSTERS = 10  # with fewer the standard errors mean little


@dataclass(frozen=True)
class Gap:
    """The two figures of the candidate that the comparison preferred.

    Attributes:
        compared: Percent right on what candidates were compared on.
        checked: Percent right on the other side.
        error: Standard error of their difference in points.
        beyond_chance: Whether they differ by more than chance explains.
    """

    compared: float
    checked: float
    error: float
    beyond_chance: bool

    def sentence(self, compared_on: str, checked_on: str) -> str:
        """Say it so that it can stand first."""
        high, low = (compared_on, checked_on) if self.compared > self.checked else (checked_on, compared_on)
        best, worst = max(self.compared, self.checked), min(self.compared, self.checked)
        return (
            f"Two estimates disagree by more than chance explains: {worst:.1f} % on {low}, {best:.1f} % on {high}. The "
            "lower one counts, and the model was chosen by it. Pairs that belong together on both sides of a split, "
            "or development pairs of another kind, do this; name such groups with --group-by."
        )


def gap_between(hits: Tensor, clusters: Tensor, other_hits: Tensor, other_clusters: Tensor) -> Gap:
    """Compare the mean of two independent sets of pairs.

    Args:
        hits: ``(n,)`` in [0, 1], what a candidate earns on each pair.
        clusters: ``(n,)`` int64, the unit of resampling.
        other_hits: ``(m,)`` of the other pairs.
        other_clusters: ``(m,)``.
    """
    errors = standard_error(hits, clusters), standard_error(other_hits, other_clusters)
    error = (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    difference = abs(float(hits.mean() - other_hits.mean()))
    enough = min(len(torch.unique(clusters)), len(torch.unique(other_clusters))) >= _FEWEST_CLUSTERS
    return Gap(
        compared=100 * float(hits.mean()),
        checked=100 * float(other_hits.mean()),
        error=100 * error,
        beyond_chance=enough and difference > _Z * error,
    )
