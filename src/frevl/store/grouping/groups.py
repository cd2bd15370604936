"""Which pairs belong together: one answer for splits, folds, calibration, bootstrap and diagnosis.

Pairs are not independent when they show the same content, nearly the same picture, frames of one video, photos of one
product or patient, or a text that always has one label. A split that cuts such a group lets a model answer from memory
and reports the result as skill. `group_pairs` finds the groups, names them in the key ``cluster`` of every pair, and
says in a note what it grouped and why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from frevl.data.packed.columns import Chained, Coded, WithCluster, chosen, different, joined, told
from frevl.data.pairs import Pairs, Target
from frevl.errors import UsageError, nearest
from frevl.store.grouping.contents import content_numbers
from frevl.store.grouping.forest import joined_nodes
from frevl.store.grouping.image_vectors import unit_vectors
from frevl.store.grouping.near_copies import MOST_COMPARED, find_near_copies
from frevl.store.grouping.repeated_texts import texts_with_images_of_their_own, texts_with_one_label
from frevl.store.reader import Store
from frevl.store.towers import Tower

__all__ = ["GROUP_KEYS", "group_pairs"]

GROUP_KEYS = ("group", "scene", "video", "product", "patient", "subject", "session", "sequence")
"""Keys of pairs that mostly name a group, also with the ending ``_id``. ``cluster`` always does."""

_FEWEST_GROUPS = 20  # with fewer values a key is taken for a category
_LARGEST_SHARE = 0.2  # of the pairs: what puts more together cannot be split, and is probably no group


def group_pairs(
    store: Store,
    parts: Sequence[Pairs],
    *,
    group_by: str | None = None,
    find: bool = True,
    towers: Sequence[Tower] = (),
    seed: int = 0,
    purpose: str = "Kept on one side of every split",
) -> tuple[list[Pairs], list[str]]:
    """Put pairs that are not independent into one cluster.

    Args:
        store: Has the content and the embeddings of the images.
        parts: Pairs to be grouped together, for example training and development pairs.
        group_by: A key of the pairs that names their group, whatever it is called. Pairs without it stand alone.
        find: Look for copies, near copies, keys that look like a group, and repeated texts with one label. False keeps
            the key ``cluster`` (or ``group_by``) alone.
        towers: Image towers to compare; the narrowest is used. None given takes the store's.
        seed: Of the samples that near copies are found with.
        purpose: How the note begins: what is done with the groups.

    Returns:
        The same pairs in the same parts, whose ``clusters`` are the groups, and notes for the user: what was grouped
        and why, and what looked like a group but was not used.

    Raises:
        UsageError: No pair has the key ``group_by``.
    """
    if group_by is not None:
        parts = _by_key(parts, group_by)
    if not find:
        return list(parts), []
    sides = parts[0].sides
    rows, units = joined([part.units for part in parts])
    clusters, names = joined([part.clusters for part in parts])
    contents = content_numbers(store, units, parts)
    rules = _Rules(np.concatenate(clusters), names, np.concatenate(rows), contents, sides[0])
    targets = Chained([part.targets for part in parts])
    if group_by is None:
        extras = Chained([part.extras for part in parts])
        for key in _keys(Chained([different(part.extras) for part in parts])):
            rules.key(key, [extra.get(key) for extra in extras], targets)
    if "image" in sides:
        _near_copies(rules, store, units, contents, towers, seed)
    if sides == ("image", "text"):
        rules.texts(*joined([part.texts for part in parts]), targets)
    groups, start = rules.groups(), 0
    grouped = []
    for part in parts:
        own = chosen(groups, range(start, start + len(part)))
        start += len(part)
        if isinstance(part.images, Coded) and isinstance(own, Coded):
            grouped.append(replace(part, extras=WithCluster(part.extras, own)))
        else:
            extras_of = zip(part.extras, own, strict=True)
            grouped.append(replace(part, extras=[{**extra, "cluster": name} for extra, name in extras_of]))
    return grouped, rules.notes(purpose)


class _Rules:
    """Contents and clusters as numbered nodes; every rule joins some of them and adds a clause to the note."""

    def __init__(
        self, clusters: np.ndarray, names: Sequence[str], rows: np.ndarray, contents: np.ndarray, unit: str
    ) -> None:
        """Join what the pairs say themselves.

        Args:
            clusters: ``(n,)`` number of each pair's cluster.
            names: Of the clusters.
            rows: ``(n,)`` number of each pair's unit.
            contents: ``(units,)`` number of what each unit holds.
            unit: What the contents are of: image, or text where there are texts alone.
        """
        self.content = contents[rows]
        self.unit = unit
        self._clusters, self._names = clusters, names
        self.clauses: list[str] = []
        self.unused: list[str] = []
        first = int(contents.max(initial=-1)) + 1
        self._roots = joined_nodes(np.arange(first + len(names)), clusters + first, self.content)
        copies = len(contents) - first
        if copies:
            self.clauses.append(
                f"{_count(copies, f'{self.unit} is a copy', f'{self.unit}s are copies')} of another one"
            )

    def key(self, key: str, values: list[object], targets: Sequence[object]) -> None:
        """Group by a key that looks like one, unless its values look like categories."""
        of_pairs = self.content.tolist()
        known = [(value, content) for value, content in zip(values, of_pairs, strict=True) if value is not None]
        contents = {content for _, content in known}
        groups = {value for value, _ in known}
        if len(groups) < 2 or len(groups) == len(contents):
            return  # one group, or every image (text) its own
        labels = {(value, str(target)) for value, target in zip(values, targets, strict=True) if value is not None}
        if len(groups) < _FEWEST_GROUPS or len(labels) == len(groups) == len({label for _, label in labels}):
            self.unused.append(
                f"The key '{key}' has {len(groups):,} values over {len(contents):,} {self.unit}s and was taken for a "
                f"category, not for groups; if its pairs belong together, use --group-by {key}."
            )
            return
        clause = f"pairs with the same '{key}' belong together ({len(groups):,} groups)"
        numbers = joined([[value for value, _ in known]])[0][0]
        self._join(numbers, np.array([content for _, content in known]), clause)

    def near_copies(self, links: np.ndarray, gap: float) -> None:
        """Join contents, ``(l, 2)`` of their numbers."""
        if len(links):
            clause = (
                f"{_count(len(np.unique(links)), 'image is', 'images are')} nearly the same as another one "
                f"({np.sqrt(gap):.1f} times closer than the next neighbour)"
            )
            self._join(links[:, 0], links[:, 1], clause, other_nodes=False)

    def texts(self, rows: Sequence[np.ndarray], texts: Sequence[str], targets: Chained[Target | None]) -> None:
        """Group by texts that always have one label, or that came with a set of images of their own."""
        of_pairs = np.concatenate(rows)
        found = texts_with_one_label(self.content, of_pairs, targets.parts)
        clause = f"{len(found):,} texts stand with several images and always with one label"
        if not len(found) and any(told(part).any() for part in targets.parts):  # captions: several images may share one
            found = texts_with_images_of_their_own(self.content, of_pairs)
            clause = f"each of {len(found):,} texts stands with several images of its own"
        if len(found):
            there = np.zeros(len(texts), bool)
            there[found] = True
            among = there[of_pairs]
            self._join(of_pairs[among], self.content[among], clause)

    def _join(self, one: np.ndarray, contents: np.ndarray, clause: str, *, other_nodes: bool = True) -> None:
        """Join nodes with contents, unless the groups would become too large to split; other nodes are new ones."""
        roots, first = self._roots, len(self._roots)
        if other_nodes:
            roots, one = np.append(roots, np.arange(first, first + int(one.max()) + 1)), one + first
        roots = joined_nodes(roots, one, contents)
        joined_pairs = int(np.bincount(roots[self.content]).max())
        if joined_pairs > max(self._largest(), _LARGEST_SHARE * len(self.content)):
            self.unused.append(
                f"Not grouped, because {joined_pairs:,} of {len(self.content):,} pairs would be one group: {clause}. "
                "If that is so, a split cannot measure what is new; give development pairs with --dev."
            )
        else:
            self._roots = roots
            self.clauses.append(clause)

    def _largest(self) -> int:
        return int(np.bincount(self._roots[self.content]).max())

    def groups(self) -> Coded[str]:
        """Return a name for the group of every pair: the first cluster name in it."""
        _, first, group = np.unique(self._roots[self.content], return_index=True, return_inverse=True)
        return Coded.of(group, [self._names[number] for number in self._clusters[first].tolist()])

    def notes(self, purpose: str) -> list[str]:
        """Say what was grouped and why, and what was not."""
        if not self.clauses:
            return self.unused
        groups = len(np.unique(self._roots[self.content]))
        return [
            f"{purpose}, {groups:,} groups of {len(self.content):,} pairs: "
            + "; ".join(self.clauses)
            + ". Switch off with --no-groups.",
            *self.unused,
        ]


def _near_copies(
    rules: _Rules, store: Store, images: Sequence[str], contents: np.ndarray, towers: Sequence[Tower], seed: int
) -> None:
    chosen = list(towers) or store.select_towers("image")
    different = int(contents.max(initial=-1)) + 1
    if not chosen or different > MOST_COMPARED:
        return
    image_of = np.zeros(different, np.int64)
    image_of[contents] = np.arange(len(contents))  # of copies the last one
    found = find_near_copies(unit_vectors(store, [images[row] for row in image_of.tolist()], chosen), seed=seed)
    rules.near_copies(found.links, found.gap)


def _keys(extras: Sequence[dict[str, object]]) -> list[str]:
    """Return the keys that look like a group, in the order of `GROUP_KEYS`."""
    present = {key: None for extra in extras for key in extra}
    plain = {key: re.sub(r"[ _-]?id$", "", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()) for key in present}
    return [key for wanted in GROUP_KEYS for key in present if plain[key] == wanted]


def _by_key(parts: Sequence[Pairs], key: str) -> list[Pairs]:
    keys = {name for part in parts for extra in part.extras for name in extra}
    if key not in keys:
        known = sorted(keys)
        hint = nearest(key, known) if known else "The pairs have no further keys."
        raise UsageError(f"--group-by {key}: no pair has this key. {hint}")

    def named(extra: dict[str, object], unit: str) -> dict[str, object]:
        value = extra.get(key)
        return {**extra, "cluster": unit if value is None else f"{key} {value}"}

    return [
        replace(part, extras=[named(extra, unit) for extra, unit in zip(part.extras, part.units, strict=True)])
        for part in parts
    ]


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
