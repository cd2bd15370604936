"""Decide which lines to keep, by the filters' flags or by the probability that a line is correct. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from frevl.diagnosis.curation.lines import Found
from frevl.diagnosis.curation.verdicts.reasons import Reasons
from frevl.errors import UsageError

__all__ = ["check_shares", "reasons_to_drop"]


def check_shares(keep: float | None, below: float | None) -> None:
    """Refuse meaningless shares.

    Raises:
        UsageError: Both are given, or one is out of its range.
    """
    if keep is not None and below is not None:
        raise UsageError("--keep and --below both determine how many lines are dropped; give one of them")
    if keep is not None and not 0 < keep <= 1:
        raise UsageError(f"--keep: expected a share of the lines, above 0 and at most 1, found {keep}")
    if below is not None and not 0 < below < 1:
        raise UsageError(f"--below: expected a probability between 0 and 1, found {below}")


def reasons_to_drop(
    found: Mapping[str, Found], lines: int, *, keep: float | None, below: float | None, notes: list[str]
) -> Reasons:
    """Return for every line the names of the filters that drop it; empty if it is kept.

    Args:
        found: Findings of the filters, by name.
        lines: Number of lines.
        keep: Share of lines to keep: after the other filters, those least likely to be correct are dropped, but no
            unchecked ones. None: drop what the filters flag.
        below: Drop lines whose probability of being correct is below this, instead of what their filter flags.
        notes: Receives a sentence if ``keep`` cannot be met.

    Raises:
        UsageError: A share is given, but no filter gives probabilities.
    """
    flag = "--keep" if keep is not None else "--below"
    sure = {name: one.belief for name, one in found.items() if one.belief is not None}
    if (keep is not None or below is not None) and not sure:
        raise UsageError(
            f"{flag} uses the probability that a line is correct, which no filter gives (found: "
            f"{', '.join(found) or 'no filter'}); add --drop match (captions) or --drop label (classes)"
        )
    why = Reasons(list(found), lines)
    for name, one in found.items():
        belief = sure.get(name)
        flagged = one.flagged
        if belief is not None and below is not None:
            flagged = belief < below  # NaN is not
        if belief is not None and keep is not None:
            continue
        why.add(name, flagged)
    if keep is not None:
        _keep_best(why, sure, math.ceil(keep * lines), notes)
    return why


def _keep_best(why: Reasons, sure: Mapping[str, NDArray[np.float64]], wanted: int, notes: list[str]) -> None:
    """Drop the least probable remaining lines until the given number is left."""
    left = np.flatnonzero(why.clear)
    if len(left) < wanted:
        notes.append(f"Only {len(left):,} lines are left instead of {wanted:,}, because the other filters drop more.")
    # Unchecked lines stay: there is no reason to drop them.
    known = np.any([~np.isnan(belief) for belief in sure.values()], axis=0)
    tables = np.stack([np.nan_to_num(belief, nan=1.0) for belief in sure.values()])
    least, least_by = tables.min(axis=0), tables.argmin(axis=0)
    judged = left[known[left]]
    order = judged[np.argsort(least[judged], kind="stable")]
    go = max(0, len(left) - wanted)
    if go > len(order):
        more, names = go - len(order), " and ".join(sure)
        notes.append(
            f"{more:,} {'line more is' if more == 1 else 'lines more are'} kept than the {wanted:,} of --keep, because "
            f"{names} could not judge what is left."
        )
    for number, name in enumerate(sure):
        why.add(name, order[:go][least_by[order[:go]] == number])
