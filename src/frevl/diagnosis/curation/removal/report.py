"""Report what was removed from a pairs file by key, text length and image cluster, and the loss of variety."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.packed.columns import by_value, chosen, joined
from frevl.data.pairs import Pairs
from frevl.diagnosis.curation.removal.diversity import Variety, varieties
from frevl.diagnosis.curation.removal.groups import (
    WORTH_SAYING,
    Groups,
    GroupShare,
    columns_of_keys,
    quarters,
    shares_kept,
)
from frevl.errors import MissingExtraError, library
from frevl.store.grouping.copies import MOST_COMPARED
from frevl.store.grouping.unit_vectors import in_float32, unit_vectors
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.reader import Store
from frevl.store.towers import Tower

__all__ = ["CLUSTERS", "Removed", "removed_of_lines", "what_is_removed"]

CLUSTERS = 20
"""Number of image clusters; fewer for fewer than 400 images."""

_IMAGES_A_CLUSTER = 20
_ROWS_AT_ONCE = 65_536
_WORDS = "words in the text"
_LIKE = "pictures like"
_PLACE = "place in the file"
_PLACES, _LINES_A_PLACE = 20, 25  # stretches of the file: one may be shifted, or be the work of one person


@dataclass(frozen=True)
class Removed:
    """The effects of filters.

    Attributes:
        kept: Share of all lines kept, in [0, 1].
        groups: Share kept of every group, hardest hit first.
        variety: Vendi score and effective rank of the images, before and after.
        notes: Sentences on what could not be examined.
        asked: Keys, tower and seed, so that the comparison can be repeated.
    """

    kept: float
    groups: list[GroupShare]
    variety: list[Variety]
    notes: list[str]
    asked: dict[str, Any] = field(default_factory=dict)

    def sentence(self) -> str:
        """Name the group that loses most, if that exceeds chance and `WORTH_SAYING`, and any change in variety."""
        sentences = []
        hit = [one for one in self.groups if one.beyond and self.kept - one.kept >= WORTH_SAYING]
        if hit:
            worst = min(hit, key=lambda one: one.kept)
            more = f"; {len(hit) - 1:,} more {'is' if len(hit) == 2 else 'are'} hit" if len(hit) > 1 else ""
            sentences.append(
                f"The filters do not affect all groups equally: {100 * worst.kept:.1f} % of {_named(worst)} are "
                f"kept, against {100 * self.kept:.1f} % of all lines ({100 * worst.low:.1f} to "
                f"{100 * worst.high:.1f} % under random removal){more}."
            )
        elif self.groups:
            sentences.append(
                f"No group of {len(self.groups):,} loses {100 * WORTH_SAYING:g} points more than average, beyond "
                "random removal."
            )
        for one in self.variety:
            if one.name == "vendi" and not one.low <= one.after <= one.high:
                less = "less" if one.after < one.low else "more"
                sentences.append(
                    f"The remaining images have {less} variety than after random removal of as many (Vendi score "
                    f"{one.after:.1f}; {one.low:.1f} to {one.high:.1f}; before {one.before:.1f})."
                )
        return " ".join([*sentences, *self.notes])

    def record(self) -> dict[str, Any]:
        """Return the record that ``--json`` writes."""
        return {
            "sentence": self.sentence(),
            "kept": 100 * self.kept,
            "asked": self.asked,
            "groups": [one.record() for one in self.groups],
            **{one.name: one.record() for one in self.variety},
        }


def what_is_removed(
    store: Store,
    pairs: Pairs,
    kept: NDArray[np.bool_],
    towers: Sequence[Tower],
    *,
    task: str,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> Removed | None:
    """Compare the filters' removals with removing as many lines at random.

    Args:
        store: Holds the image embeddings.
        pairs: All lines, with the keys of the file.
        kept: ``(n,)`` bool, which lines are kept.
        towers: Image towers available for every line; the narrowest is used.
        task: In classification, the targets also count as a key.
        keys: Keys to examine; None means all that form groups.
        seed: Random seed for clusters, samples and removals.

    Returns:
        None if all lines are kept, or none.
    """
    if kept.all() or not kept.any():
        return None
    (numbers,), units = joined([pairs.units])
    asked = None if keys is None else set(keys)
    extras = (
        {k: v for k, v in extra.items() if (k != "cluster" if asked is None else k in asked)} for extra in pairs.extras
    )
    columns = columns_of_keys(extras, len(pairs))
    if task == "classification" and (asked is None or "target" in asked):
        columns |= columns_of_keys(({"target": target} for target in pairs.targets), len(pairs))
    without = [key for key in keys or () if key not in columns]
    if "text" in pairs.sides and asked is None:
        columns[_WORDS] = quarters(by_value(pairs.texts, lambda text: len(text.split()), np.float64))
    if asked is None:
        columns |= _places(len(pairs))
    notes = [f"The key '{key}' forms no groups: it has only one value, or too many." for key in without]
    variety: list[Variety] = []
    if "image" in pairs.sides and towers:
        vectors = unit_vectors(store, units, towers, half=len(units) > MOST_COMPARED)
        left = np.bincount(numbers, kept, minlength=len(units)) > 0
        variety = varieties(vectors, left, seed=seed)
        try:
            clusters = _clusters(vectors, units, seed)
            if clusters is not None and asked is None:
                columns[_LIKE] = Groups(clusters.codes[numbers], clusters.names)
        except MissingExtraError as error:
            notes.append(f"Clusters of images were not examined: {error}")
    tower = min(towers, key=lambda one: one.dim).name if towers else None
    again = {"keys": None if keys is None else list(keys), "tower": tower, "seed": seed}
    return Removed(float(kept.mean()), shares_kept(kept, columns, numbers, seed=seed), variety, notes, again)


def removed_of_lines(
    store: Store,
    lines: Sequence[Mapping[str, Any]],
    kept: NDArray[np.bool_],
    *,
    task: str,
    asked: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Repeat the comparison for judged lines after people have decided on them.

    Args:
        store: The store with the image embeddings, if they still exist.
        lines: The lines as ``frevl curate`` wrote them.
        kept: ``(n,)`` bool, which of them are kept now.
        task: As in `what_is_removed`.
        asked: `Removed.asked` of the earlier comparison.

    Returns:
        The same as `Removed.record`; None if all lines are kept, or none.
    """
    own = ("image", "text", "target", "curate")
    images, texts = ([str(line.get(side) or "") for line in lines] for side in ("image", "text"))
    targets = [line.get("target") for line in lines]
    extras = [{key: value for key, value in line.items() if key not in own} for line in lines]
    pairs = Pairs(images=images, texts=texts, targets=targets, extras=extras, places=[""] * len(lines))
    towers = [one for one in store.select_towers("image") if "tower" not in asked or one.name == asked["tower"]]
    lost = ""
    if towers and not (find_rows(store.positions("image"), images) >= 0).all():
        towers = []
        lost = "Variety and clusters were not examined: some of these images are not in the store."
    found = what_is_removed(
        store, pairs, kept, towers, task=task, keys=asked.get("keys"), seed=int(asked.get("seed") or 0)
    )
    if found is None:
        return None
    return replace(found, notes=[*found.notes, lost] if lost else found.notes).record()


def _clusters(vectors: NDArray[np.floating], units: Sequence[str], seed: int) -> Groups | None:
    """Return for every image its cluster, named by the central image; None if there are too few for two clusters."""
    count = min(CLUSTERS, len(units) // _IMAGES_A_CLUSTER)
    if count < 2:
        return None
    library("sklearn", "diagnose")
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(count, random_state=seed, n_init=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct images than clusters, or out of memory on some systems
        labels = means.fit_predict(in_float32(vectors))
    distances = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distances[rows] = np.linalg.norm(vectors[rows] - means.cluster_centers_[labels[rows]], axis=1)
    order = np.lexsort((-np.arange(len(labels)), distances, labels))  # of several nearest images, the last one
    found, first = np.unique(labels[order], return_index=True)
    codes = np.searchsorted(found, labels).astype(np.int32)
    return Groups(codes, list(chosen(units, order[first])))


def _places(lines: int) -> dict[str, Groups]:
    """Return for every line the stretch of the file that it lies in; nothing if there are too few for two."""
    count = min(_PLACES, lines // _LINES_A_PLACE)
    if count < 2:
        return {}
    ends = np.arange(1, count + 1) * lines // count
    names = [f"{first + 1:,} to {last:,}" for first, last in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]
    return {_PLACE: Groups(np.searchsorted(ends, np.arange(lines), side="right").astype(np.int32), names)}


def _named(group: GroupShare) -> str:
    if group.key == _WORDS:
        return f"the lines with {group.value} words"
    if group.key == _PLACE:
        return f"lines {group.value}, counted without those left out,"
    if group.key == _LIKE:
        return f"the lines of images like '{group.value}'"
    return f"the lines with '{group.key}' = '{group.value}'"
