"""Choice sets: one image with several texts of which one is right, or two images with two texts that cross.

Pairs of one set share the key ``group``, as in SugarCrepe and Winoground (`frevl.data.benchmarks.reasoning`). Only
complete sets are scored: a set without a right text cannot be won, one with two right texts has no single answer, and a
set that lost a row when an image was rejected is easier than the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import has_value, value_name
from frevl.data.pairs import Pairs
from frevl.evaluation.measures import Measure
from frevl.evaluation.metrics import choice_hits, group_hits

__all__ = ["choice_chance", "choice_set_scores"]

_TEXTS = "one image with two or more texts, exactly one of them right"
_RANDOM = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}  # how often random scores win
_CROSSED = "two images with two texts (numbered by 'picture' and 'caption'), each text right for one of the images"


def choice_set_scores(
    scores: NDArray[Any], truth: NDArray[np.bool_], pairs: Pairs
) -> tuple[dict[str, Measure], list[str]]:
    """Score choice sets.

    Args:
        scores: ``(n,)`` scores of the pairs.
        truth: ``(n,)`` bool, whether the text describes the image.
        pairs: Pairs with the key ``group``; sets of two images are numbered by ``caption`` and ``picture``.

    Returns:
        ``choice_accuracy``, or ``text_score``, ``image_score`` and ``group_score``, each with what random scores would
        reach, and a note if some groups are no complete sets. Both are empty if there are no sets; there is only the
        note if most groups are none.
    """
    if not all(has_value(extra.get("group")) for extra in pairs.extras):
        return {}, []
    groups: dict[str, list[int]] = {}
    for row, extra in enumerate(pairs.extras):
        groups.setdefault(value_name(extra["group"]), []).append(row)
    crossed = all(_is_number(extra.get(key)) for extra in pairs.extras for key in ("caption", "picture"))
    crossed = crossed and any(len({pairs.images[row] for row in rows}) > 1 for rows in groups.values())
    chosen = {name: _crossed(rows, truth, pairs) if crossed else _choices(rows, truth, pairs)
              for name, rows in groups.items()}  # fmt: skip
    sets = [rows for rows in chosen.values() if rows]
    if not sets:
        return {}, []
    names = "text_score, image_score and group_score" if crossed else "choice_accuracy"
    counted = f"{len(sets):,} of {len(groups):,} groups are choice sets ({_CROSSED if crossed else _TEXTS})"
    if 2 * len(sets) < len(groups):
        return {}, [f"No {names}: only {counted}."]
    notes = [f"Choice sets: {names} leave out the other groups, because only {counted}."]
    clusters = pairs.clusters
    owners = [min(clusters[row] for row in rows) for rows in sets]
    if crossed:
        blocks = scores[np.array(sets)].reshape(-1, 2, 2)
        measured = {
            f"{name}_score": Measure(owners, hits, random=np.full(len(sets), _RANDOM[name]))
            for name, hits in group_hits(blocks).items()
        }
    else:
        filled = np.full((len(sets), max(map(len, sets))), -np.inf)
        for number, rows in enumerate(sets):
            filled[number, : len(rows)] = scores[rows]
        random = np.array([1 / len(rows) for rows in sets])
        measured = {"choice_accuracy": Measure(owners, choice_hits(filled), random=random)}
    return measured, notes if len(sets) < len(groups) else []


def choice_chance(measured: Mapping[str, Measure]) -> list[str]:
    """Return a sentence for every score of choice sets that is not measurably better than that of random scores."""
    found = []
    for name, measure in measured.items():
        gap = measure.at_chance()
        if gap is not None and measure.values is not None and measure.random is not None:
            bounds = "" if np.isnan(gap.low) else f" [{100 * gap.low:.2f}, {100 * gap.high:.2f}]"
            found.append(
                f"Chance: {name} of {100 * measure.values.mean():.2f} % is not measurably better than that of random "
                f"scores ({100 * measure.random.mean():.2f} %): {100 * gap.value:+.2f} points{bounds}."
            )
    return found


def _choices(rows: list[int], truth: NDArray[np.bool_], pairs: Pairs) -> list[int]:
    """Return the rows of a group of texts, the right one first; none if it is no complete set."""
    right = [row for row in rows if truth[row]]
    if len(rows) < 2 or len(right) != 1 or len({pairs.images[row] for row in rows}) > 1:
        return []
    return [*right, *(row for row in rows if not truth[row])]


def _crossed(rows: list[int], truth: NDArray[np.bool_], pairs: Pairs) -> list[int]:
    """Return the rows of two captions with two pictures: own, other, other, own; none if it is no complete set."""
    extras = pairs.extras
    cells = {(int(extras[row]["caption"]), int(extras[row]["picture"])): row for row in rows}
    captions, pictures = (sorted({cell[side] for cell in cells}) for side in (0, 1))
    if not len(rows) == len(cells) == 4 or not len(captions) == len(pictures) == 2:
        return []
    if len({pairs.images[row] for row in rows}) != 2 or len({pairs.texts[row] for row in rows}) != 2:
        return []
    if truth[cells[captions[0], pictures[1]]]:
        pictures.reverse()  # the first caption belongs to the second picture
    ordered = [cells[caption, picture] for caption in captions for picture in pictures]
    return ordered if truth[ordered].tolist() == [True, False, False, True] else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
