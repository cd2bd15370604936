"""Decide which pairs belong together, consistently for splits, folds, calibration, bootstrap and diagnosis.

Pairs are not independent if they show the same content, nearly the same image, frames of one video, photos of one
product or patient, or a text that always has the same label. A split that cuts such a group lets a model answer from
memory and reports the result as skill. `group_pairs` finds the groups, names them in the key ``cluster`` of every pair,
and states in a note what it grouped and why.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from frevl.data.formats.pair_rows import group_name
from frevl.data.packed.columns import Chained, Coded, WithCluster, by_value, chosen, different, is_given, joined
from frevl.data.pairs import Pairs, Target
from frevl.errors import UsageError, nearest
from frevl.store.grouping.contents import content_numbers
from frevl.store.grouping.copies import MOST_COMPARED, find_near_copies
from frevl.store.grouping.unit_vectors import unit_vectors
from frevl.store.reader import Store
from frevl.store.towers import Tower

__all__ = [
    "GROUP_KEYS",
    "SWITCH_OFF",
    "Forest",
    "group_pairs",
    "joined_nodes",
    "texts_with_images_of_their_own",
    "texts_with_one_label",
]


SWITCH_OFF = " Switch off with --no-groups."
"""End of a note on groups, for commands that have this flag."""


@dataclass
class Forest:
    """Union-find over anything hashable."""

    parents: dict[Hashable, Hashable] = field(default_factory=dict)

    def root(self, item: Hashable) -> Hashable:
        """Return the representative of an item's tree."""
        self.parents.setdefault(item, item)
        while self.parents[item] != item:
            self.parents[item] = self.parents[self.parents[item]]  # halve the path
            item = self.parents[item]
        return item

    def join(self, one: Hashable, other: Hashable) -> None:
        """Merge two trees."""
        self.parents[self.root(other)] = self.root(one)

    def copy(self) -> Forest:
        """Return an independent copy."""
        return Forest(dict(self.parents))


def joined_nodes(roots: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge the trees of two nodes, for many such links at once.

    Args:
        roots: ``(n,)`` int64, for every node the smallest node of its tree.
        one: ``(l,)`` int64, the nodes at one end of the links.
        other: ``(l,)`` int64, the nodes at the other end.

    Returns:
        ``(n,)`` roots afterwards.
    """
    while True:
        low, high = np.minimum(roots[one], roots[other]), np.maximum(roots[one], roots[other])
        apart = low < high
        if not apart.any():
            return roots
        parents = np.arange(len(roots))
        np.minimum.at(parents, high[apart], low[apart])
        while not np.array_equal(parents[parents], parents):
            parents = parents[parents]
        roots, one, other = parents[roots], one[apart], other[apart]


GROUP_KEYS = ("group", "scene", "video", "product", "patient", "subject", "session", "sequence")
"""Keys that usually define a group, also with the suffix ``_id``. ``cluster`` always does."""

_FEWEST_GROUPS = 20  # with fewer values, a key is treated as a category
_LARGEST_SHARE = 0.2  # maximum share of the pairs; a larger group could not be split, and is probably not a group


def group_pairs(
    store: Store,
    parts: Sequence[Pairs],
    *,
    group_by: str | None = None,
    find: bool = True,
    towers: Sequence[Tower] = (),
    purpose: str = "Kept on one side of every split",
    advice: str = SWITCH_OFF,
) -> tuple[list[Pairs], list[str]]:
    """Put dependent pairs into the same cluster.

    Args:
        store: The store with the content and the embeddings of the images.
        parts: Pairs to be grouped together, for example training and development pairs.
        group_by: A key of the pairs that identifies their group. Pairs without it stand alone.
        find: Look for copies, near copies, keys that look like a group, and repeated texts with the same label. False
            uses only the key ``cluster`` (or ``group_by``).
        towers: Image towers for comparison, of which the narrowest is used; by default those of the store.
        purpose: Beginning of the note: what is done with the groups.
        advice: Its end; empty where groups cannot be switched off.

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
        _near_copies(rules, store, units, contents, towers)
    if sides == ("image", "text"):
        rules.texts(*joined([part.texts for part in parts]), targets)
    groups, start = rules.groups(), 0
    grouped = []
    for part in parts:
        own = chosen(groups, np.arange(start, start + len(part)))
        start += len(part)
        if isinstance(part.images, Coded) and isinstance(own, Coded):
            grouped.append(replace(part, extras=WithCluster(part.extras, own)))
        else:
            extras_of = zip(part.extras, own, strict=True)
            grouped.append(replace(part, extras=[{**extra, "cluster": name} for extra, name in extras_of]))
    return grouped, rules.notes(purpose, advice)


class _Rules:
    """Contents and clusters as numbered nodes. Every rule joins some of them and adds a clause to the note."""

    def __init__(
        self, clusters: np.ndarray, names: Sequence[str], rows: np.ndarray, contents: np.ndarray, unit: str
    ) -> None:
        """Join pairs by their own clusters and contents.

        Args:
            clusters: ``(n,)`` number of each pair's cluster.
            names: Names of the clusters.
            rows: ``(n,)`` number of each pair's unit.
            contents: ``(units,)`` number of the content of each unit.
            unit: The kind of unit: image, or text if there are only texts.
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
                f"The key '{key}' has {len(groups):,} values over {len(contents):,} {self.unit}s and was treated "
                f"as a category, not as groups; if its pairs belong together, use --group-by {key}."
            )
            return
        clause = f"pairs with the same '{key}' belong together ({len(groups):,} groups)"
        numbers = joined([[value for value, _ in known]])[0][0]
        self._join(numbers, np.array([content for _, content in known]), clause)

    def near_copies(self, links: np.ndarray, gap: float) -> None:
        """Join contents, given as ``(l, 2)`` of their numbers."""
        if len(links):
            clause = (
                f"{_count(len(np.unique(links)), 'image is', 'images are')} nearly the same as another one "
                f"({np.sqrt(gap):.1f} times closer than the next neighbour)"
            )
            self._join(links[:, 0], links[:, 1], clause, other_nodes=False)

    def texts(self, rows: Sequence[np.ndarray], texts: Sequence[str], targets: Chained[Target | None]) -> None:
        """Group by texts that always have the same label, or that have their own set of images."""
        of_pairs = np.concatenate(rows)
        found = texts_with_one_label(self.content, of_pairs, targets.parts)
        clause = f"{len(found):,} texts occur with several images but always the same label"
        # Captions have no targets, and several images may share one.
        if not len(found) and any(is_given(part).any() for part in targets.parts):
            found = texts_with_images_of_their_own(self.content, of_pairs)
            clause = f"{len(found):,} texts each have several images of their own"
        if len(found):
            there = np.zeros(len(texts), bool)
            there[found] = True
            among = there[of_pairs]
            self._join(of_pairs[among], self.content[among], clause)

    def _join(self, one: np.ndarray, contents: np.ndarray, clause: str, *, other_nodes: bool = True) -> None:
        """Join nodes with contents, unless the groups would become too large to split; unknown nodes are new."""
        roots, first = self._roots, len(self._roots)
        if other_nodes:
            roots, one = np.append(roots, np.arange(first, first + int(one.max()) + 1)), one + first
        roots = joined_nodes(roots, one, contents)
        joined_pairs = int(np.bincount(roots[self.content]).max())
        if joined_pairs > max(self._largest(), _LARGEST_SHARE * len(self.content)):
            self.unused.append(
                f"Not grouped, because {joined_pairs:,} of {len(self.content):,} pairs would be one group: "
                f"{clause}. If so, a split cannot measure generalisation; give development pairs with --dev."
            )
        else:
            self._roots = roots
            self.clauses.append(clause)

    def _largest(self) -> int:
        return int(np.bincount(self._roots[self.content]).max())

    def groups(self) -> Coded[str]:
        """Return the name of every pair's group: the first cluster name in it."""
        _, first, group = np.unique(self._roots[self.content], return_index=True, return_inverse=True)
        return Coded.of(group, chosen(self._names, self._clusters[first]))

    def notes(self, purpose: str, advice: str) -> list[str]:
        """Return notes on what was grouped and why, and what was not."""
        if not self.clauses:
            return self.unused
        groups = len(np.unique(self._roots[self.content]))
        return [
            f"{purpose}, {groups:,} groups of {len(self.content):,} pairs: " + "; ".join(self.clauses) + f".{advice}",
            *self.unused,
        ]


def _near_copies(
    rules: _Rules, store: Store, images: Sequence[str], contents: np.ndarray, towers: Sequence[Tower]
) -> None:
    chosen = list(towers) or store.select_towers("image")
    different = int(contents.max(initial=-1)) + 1
    if not chosen or different > MOST_COMPARED:
        return
    image_of = np.zeros(different, np.int64)
    image_of[contents] = np.arange(len(contents))  # for copies, the last one
    found = find_near_copies(unit_vectors(store, [images[row] for row in image_of.tolist()], chosen))
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
        name = group_name(extra.get(key))
        return {**extra, "cluster": unit if name is None else f"{key} {name}"}

    return [
        replace(part, extras=[named(extra, unit) for extra, unit in zip(part.extras, part.units, strict=True)])
        for part in parts
    ]


def _count(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


_FEWEST_TEXTS = 10
_SHARE_OF_PAIRS = 0.2  # minimum share of pairs with such texts, else the rule does not apply to this set
_ALWAYS = 0.98  # share of the repeated texts with a single label
_BY_CHANCE = 0.5  # share expected to have a single label if texts were unrelated to labels
_FEWEST_IMAGES, _WITH_IMAGES_OF_THEIR_OWN, _FEWEST_SETS = 4, 0.95, 20  # images per text, share of pairs, texts
_SHARED = 0.05  # share of images that may have several texts, as drawn variants are sometimes the same image
_OF_CLASSES = 2  # minimum number of texts per class; with fewer, a text may be a name of the class


def texts_with_one_label(
    images: NDArray[np.int64], texts: NDArray[np.int64], targets: Sequence[Sequence[Target | None]]
) -> NDArray[np.int64]:
    """Return the texts whose pairs belong together; none if the set is not built that way.

    A sentence that is true of all six images drawn for it, or a title shared by every photo of one product, makes pairs
    that are not independent: a model that has seen one of them knows the others. A question asked about many images is
    not such a text, because its answers differ. The thresholds are ours.

    Args:
        images: ``(n,)`` numbers of the images' contents, from 0; a text counts as repeated if it has two different
            contents.
        texts: ``(n,)`` numbers of the texts, from 0.
        targets: Columns, ``n`` pairs in total; the rule is for classes, so any target that is not a single string
            switches it off.

    Returns:
        Numbers of texts, ascending.
    """
    none = np.zeros(0, np.int64)
    plain = [by_value(part, lambda target: isinstance(target, str), bool) for part in targets]
    if not len(texts) or not all(part.all() for part in plain):
        return none
    parts, names = joined(targets)
    labels, n = np.concatenate(parts), len(texts)
    counts, kinds = np.bincount(texts), len(names)
    contents = _different(texts, images)
    repeated = contents > 1
    one_label = repeated & (_different(texts, labels) == 1)
    shares = np.bincount(labels, minlength=kinds) / n
    sizes, times = np.unique(contents[repeated], return_counts=True)
    by_chance = sum(
        many * float((shares**size).sum()) for size, many in zip(sizes.tolist(), times.tolist(), strict=True)
    )
    if (
        one_label.sum() < max(_FEWEST_TEXTS, _OF_CLASSES * kinds)
        or one_label.sum() < _ALWAYS * repeated.sum()
        or by_chance > _BY_CHANCE * repeated.sum()
        or counts[one_label].sum() < _SHARE_OF_PAIRS * n
    ):
        return none
    return np.flatnonzero(one_label)


def texts_with_images_of_their_own(images: NDArray[np.int64], texts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the texts for which images were made, a set for each; none if the data set is not built that way.

    If nearly every pair has a text with four images or more, and hardly any image has two texts, each text came with
    its own series of images: variants of one scene, as in NLVR. A split by image then leaves variants on both sides,
    and learning about one text does not help with a new one. In natural data, most questions and titles are rare, and
    images have several of them. The thresholds are ours.

    Args:
        images: ``(n,)`` numbers of the images' contents, from 0; all numbers occur.
        texts: ``(n,)`` numbers of the texts, from 0.

    Returns:
        Numbers of texts, ascending.
    """
    texts_of = _different(images, texts)
    contents = _different(texts, images)
    several = contents >= _FEWEST_IMAGES
    if (
        (texts_of > 1).sum() > _SHARED * len(texts_of)
        or several.sum() < _FEWEST_SETS
        or contents[several].sum() < _WITH_IMAGES_OF_THEIR_OWN * len(texts_of)
    ):
        return np.zeros(0, np.int64)
    return np.flatnonzero(several)


def _different(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for every number in one column, how many different numbers of the other column it occurs with."""
    width = int(other.max(initial=0)) + 1
    together = one.astype(np.int64) * width + other
    together.sort()
    first = np.ones(len(together), bool)
    first[1:] = together[1:] != together[:-1]
    return np.bincount(together[first] // width)
