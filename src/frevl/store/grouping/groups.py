"""Which pairs belong together: one answer for splits, folds, calibration, bootstrap and diagnosis.

Pairs are not independent when they show the same content, nearly the same picture, frames of one video, photos of one
product or patient, or a text that always has one label. A split that cuts such a group lets a model answer from memory
and reports the result as skill. `group_pairs` finds the groups, names them in the key ``cluster`` of every pair, and
says in a note what it grouped and why.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from frevl.data.pairs import Pairs, Target
from frevl.errors import UsageError, nearest
from frevl.store.grouping.forest import Forest
from frevl.store.grouping.image_vectors import unit_vectors
from frevl.store.grouping.near_copies import find_near_copies
from frevl.store.grouping.repeated_texts import texts_with_images_of_their_own, texts_with_one_label
from frevl.store.reader import Store
from frevl.store.towers import Tower
from frevl.store.usable_pairs import content_of_units

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
    units = [unit for part in parts for unit in part.units]
    hashes = {unit: content for part in parts for unit, content in content_of_units(store, part).items()}
    sides = parts[0].sides
    rules = _Rules(
        [name for part in parts for name in part.clusters], [hashes.get(unit, unit) for unit in units], sides[0]
    )
    rules.same_content(units)
    extras = [extra for part in parts for extra in part.extras]
    targets = [target for part in parts for target in part.targets]
    if group_by is None:
        for key in _keys(extras):
            rules.key(key, [extra.get(key) for extra in extras], targets)
    if "image" in sides:
        _near_copies(rules, store, dict(zip(rules.contents, units, strict=True)), towers, seed)
    if sides == ("image", "text"):
        rules.texts([text for part in parts for text in part.texts], targets)
    names = rules.names()
    grouped, start = [], 0
    for part in parts:
        own = names[start : start + len(part)]
        start += len(part)
        grouped.append(
            replace(part, extras=[{**extra, "cluster": name} for extra, name in zip(part.extras, own, strict=True)])
        )
    return grouped, rules.notes(purpose)


class _Rules:
    """Pairs as nodes of a forest; every rule joins some of them and adds a clause to the note."""

    def __init__(self, clusters: list[str], contents: list[str], unit: str) -> None:
        self.contents = contents
        self.unit = unit  # what the contents are of: image, or text where there are texts alone
        self.clusters = clusters
        self.forest = Forest()
        self.clauses: list[str] = []
        self.unused: list[str] = []
        for cluster, content in zip(clusters, contents, strict=True):
            self.forest.join(("cluster", cluster), ("content", content))

    def same_content(self, units: list[str]) -> None:
        ids: dict[str, set[str]] = {}
        for unit, content in zip(units, self.contents, strict=True):
            ids.setdefault(content, set()).add(unit)
        copies = sum(len(names) - 1 for names in ids.values())
        if copies:
            self.clauses.append(
                f"{_count(copies, f'{self.unit} is a copy', f'{self.unit}s are copies')} of another one"
            )

    def key(self, key: str, values: list[object], targets: Sequence[object]) -> None:
        """Group by a key that looks like one, unless its values look like categories."""
        known = [(value, content) for value, content in zip(values, self.contents, strict=True) if value is not None]
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
        self._join((((key, value), ("content", content)) for value, content in known), clause)

    def near_copies(self, links: list[tuple[str, str]], gap: float) -> None:
        if links:
            contents = {content for link in links for content in link}
            clause = (
                f"{_count(len(contents), 'image is', 'images are')} nearly the same as another one "
                f"({np.sqrt(gap):.1f} times closer than the next neighbour)"
            )
            self._join(((("content", one), ("content", other)) for one, other in links), clause)

    def texts(self, texts: list[str], targets: Sequence[Target | None]) -> None:
        """Group by texts that always have one label, or that came with a set of images of their own."""
        found = set(texts_with_one_label(self.contents, texts, targets))
        clause = f"{len(found):,} texts stand with several images and always with one label"
        if not found and any(target is not None for target in targets):  # captions: several images may share one
            found = texts_with_images_of_their_own(self.contents, texts)
            clause = f"each of {len(found):,} texts stands with several images of its own"
        pairs = ((text, content) for text, content in zip(texts, self.contents, strict=True) if text in found)
        if found:
            self._join(((("text", text), ("content", content)) for text, content in pairs), clause)

    def _join(self, pairs: Iterable[tuple[Hashable, Hashable]], clause: str) -> None:
        """Join pairs, unless the groups would become too large to split."""
        before = self.forest.copy()
        largest = self._largest()
        for one, other in pairs:
            self.forest.join(one, other)
        joined = self._largest()
        if joined > max(largest, _LARGEST_SHARE * len(self.contents)):
            self.forest = before
            self.unused.append(
                f"Not grouped, because {joined:,} of {len(self.contents):,} pairs would be one group: {clause}. If "
                "that is so, a split cannot measure what is new; give development pairs with --dev."
            )
        else:
            self.clauses.append(clause)

    def _largest(self) -> int:
        return max(Counter(self._roots()).values())

    def _roots(self) -> list[Hashable]:
        return [self.forest.root(("content", content)) for content in self.contents]

    def names(self) -> list[str]:
        """Return a name for the group of every pair: the first cluster name in it."""
        first: dict[Hashable, str] = {}
        return [first.setdefault(root, name) for root, name in zip(self._roots(), self.clusters, strict=True)]

    def notes(self, purpose: str) -> list[str]:
        if not self.clauses:
            return self.unused
        groups = len(set(self._roots()))
        return [
            f"{purpose}, {groups:,} groups of {len(self.contents):,} pairs: "
            + "; ".join(self.clauses)
            + ". Switch off with --no-groups.",
            *self.unused,
        ]


def _near_copies(rules: _Rules, store: Store, image_of: dict[str, str], towers: Sequence[Tower], seed: int) -> None:
    chosen = list(towers) or store.select_towers("image")
    if not chosen:
        return
    contents = list(image_of)
    found = find_near_copies(unit_vectors(store, [image_of[content] for content in contents], chosen), seed=seed)
    rules.near_copies([(contents[one], contents[other]) for one, other in found.links.tolist()], found.gap)


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
