"""Read examples of classes, from a pairs file and the classes file, as embedded images with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frevl.data.class_files import ClassEntry, ClassList
from frevl.data.columns import likely_target
from frevl.data.missing_side import one_side_note
from frevl.data.pairs import LABELLED, Pairs
from frevl.errors import PairsError, Reject, UsageError, nearest, rejects_sentence
from frevl.models.inputs import mean_pool
from frevl.store.grouping.groups import group_pairs
from frevl.store.reader import Store
from frevl.store.towers import Tower
from frevl.store.usable_pairs import content_of_units, read_usable
from frevl.training.classification.fit_network import EmbeddedExamples
from frevl.training.prepare import read_file, shared_groups, shared_units

__all__ = ["classes_of", "collect", "of_one_class", "read_examples"]


def read_examples(
    store: Store,
    source: str | Path | Pairs | None,
    columns: str | Sequence[str] | Mapping[str, str] | None,
    notes: list[str],
) -> Pairs | None:
    """Read examples (images only); unusable ones are counted in ``notes``.

    Raises:
        PairsError: No example has a class.
    """
    if source is None:
        return None
    pairs = read_file(source, columns, LABELLED)
    if "image" not in pairs.sides:
        raise PairsError(f"{pairs.places[0]}, field 'image': expected an image, found only texts")
    # That texts are ignored need not be mentioned here.
    kept_notes = tuple(note for note in pairs.notes if note not in one_side_note(pairs.sides, pairs.extras))
    found = read_usable(store, replace(pairs.only(("image",)), notes=kept_notes), notes)
    kept, rejected = [], []
    for row, target in enumerate(found.targets):
        several = isinstance(target, list | dict) and len(target) != 1
        if target is None or several:
            what = "several classes" if several else "none"
            rejected.append(Reject("pair", found.places[row], f"field 'target': expected one class, found {what}"))
        else:
            kept.append(row)
    if not kept:
        raise PairsError(f"{rejected[0].id}, {rejected[0].reason}; no example has a class{_key_hint(found)}")
    if rejected:
        notes.append(rejects_sentence(rejected))
    chosen = found.select(kept)
    return replace(chosen, targets=[_one(target) for target in chosen.targets])


def _key_hint(examples: Pairs) -> str:
    """Return the end of a message that names the key that probably holds the classes."""
    label = likely_target(dict.fromkeys(key for extra in examples.extras for key in extra))
    return f"; if '{label}' is the class, name it with --columns target={label}" if label else ""


def classes_of(examples: Pairs | None) -> ClassList:
    """Return the classes of examples, in alphabetical order, if no file lists them.

    Raises:
        UsageError: There are no examples either, or all are of one class.
    """
    if examples is None:
        raise UsageError("classify needs class names (--classes), examples (--examples), or both")
    labels = sorted({str(target) for target in examples.targets})
    if len(labels) < 2:
        raise PairsError(f"{examples.places[0]}: expected examples of at least two classes, found only '{labels[0]}'")
    return ClassList(tuple(ClassEntry(label, (label,), place=examples.places[0]) for label in labels))


def collect(
    store: Store,
    classes: ClassList,
    examples: Pairs | None,
    dev: Pairs | None,
    towers: Sequence[Tower],
    *,
    group_by: str | None,
    find_groups: bool,
    notes: list[str],
    doubts: list[str],
    learned: np.ndarray | None = None,
) -> tuple[EmbeddedExamples, EmbeddedExamples | None, dict[str, str]]:
    """Drop examples of no class or of several, find groups, and embed.

    What was left out is added to ``notes``; whatever makes every figure doubtful, such as development images among the
    examples, to ``doubts``. ``learned`` holds the sorted `frevl.runs.targets.hash_prefixes` of the images on which the
    names' space was trained, or is None.

    Returns:
        Examples (zero images if there are none), development images, and the content hash of every image by id.

    Raises:
        PairsError: No example, or no development image, belongs to one of the classes, or the store lacks an image.
    """
    named = _of_class_file(store, classes, notes)
    parts = [part for part in (examples, named) if part is not None]
    kept = [_of_known_classes(part, classes, notes, "examples") for part in parts]
    development = None if dev is None else _of_known_classes(dev, classes, notes, "development images")
    kept = of_one_class(store, kept, notes)
    everything = [*kept, *([development] if development is not None else [])]
    empty = EmbeddedExamples(
        torch.zeros(0, sum(tower.dim for tower in towers)), *(torch.zeros(0, dtype=torch.long),) * 2
    )
    if not everything:
        return empty, None, {}
    grouped, found = group_pairs(store, everything, group_by=group_by, find=find_groups, towers=towers)
    notes += found
    hashes: dict[str, str] = {}
    for part in grouped:
        hashes |= content_of_units(store, part)
    if development is not None:
        for part in grouped[:-1]:
            doubts += shared_units(part, grouped[-1], hashes) or shared_groups(part, grouped[-1])
    numbers: dict[str, int] = {}
    index = {label: number for number, label in enumerate(classes.labels)}

    def embedded(some: Sequence[Pairs]) -> EmbeddedExamples:
        ids = [image for part in some for image in part.images]
        targets = [target for part in some for target in part.targets]
        clusters = [cluster for part in some for cluster in part.clusters]
        values, mask = store.read("image", ids, towers)
        images = mean_pool(torch.from_numpy(values).float(), torch.from_numpy(mask))
        labels = torch.tensor([index[str(target)] for target in targets])
        groups = torch.tensor([numbers.setdefault(c, len(numbers)) for c in clusters])
        return EmbeddedExamples(images, labels, groups, known=_known(ids, hashes, learned))

    own = grouped[: len(kept)]
    return embedded(own) if own else empty, None if development is None else embedded(grouped[-1:]), hashes


def _known(ids: Sequence[str], hashes: Mapping[str, str], learned: np.ndarray | None) -> Tensor | None:
    """Return which images are among those with the hashes of ``learned``; None if there are none."""
    if learned is None or not len(learned):
        return None
    own = np.array([int(hashes[id_][:16], 16) for id_ in ids], np.uint64)
    found = np.isin(own, learned)
    return torch.from_numpy(found) if found.any() else None


def _one(target: Any) -> str:
    return str(target) if not isinstance(target, list | dict) else str(next(iter(target)))


def _of_class_file(store: Store, classes: ClassList, notes: list[str]) -> Pairs | None:
    """Return the examples listed in the classes file."""
    rows = [(entry, image) for entry in classes.entries for image in entry.examples]
    if not rows:
        return None
    pairs = Pairs(
        images=[image for _, image in rows],
        texts=[""] * len(rows),
        targets=[entry.label for entry, _ in rows],
        extras=[{} for _ in rows],
        places=[entry.place for entry, _ in rows],
        rejected=(),
    )
    return read_usable(store, pairs, notes)


def of_one_class(store: Store, parts: Sequence[Pairs], notes: list[str]) -> list[Pairs]:
    """Drop images that occur with different classes, under one name or as copies; a note names the classes left empty.

    Raises:
        PairsError: No image is left.
    """
    classes: dict[str, set[str]] = {}
    hashes: dict[str, str] = {}
    for part in parts:
        hashes |= content_of_units(store, part)
        for image, target in zip(part.images, part.targets, strict=True):
            classes.setdefault(hashes[image], set()).add(str(target))
    kept, first = [], ""
    for part in parts:
        rows = [row for row, image in enumerate(part.images) if len(classes[hashes[image]]) == 1]
        if len(rows) < len(part) and not first:
            row = next(row for row, image in enumerate(part.images) if len(classes[hashes[image]]) > 1)
            found = " and ".join(f"'{one:.40}'" for one in sorted(classes[hashes[part.images[row]]])[:2])
            first = f"{part.places[row]}: '{part.images[row]:.60}' is {found}"
        kept.append(part.select(rows))
    left_out = sum(map(len, parts)) - sum(map(len, kept))
    if left_out and not any(map(len, kept)):
        raise PairsError(f"{first}; every example is of several classes, expected one class each")
    if left_out:
        remaining = {str(one) for part in kept for one in part.targets}
        lost = sorted({str(one) for part in parts for one in part.targets} - remaining)
        named = ", ".join(f"'{one:.40}'" for one in lost[:5])
        without = f" No example is left of {named}." if lost else ""
        notes.append(f"Left out: {left_out:,} examples of images that occur with several classes ({first}).{without}")
    return [part for part in kept if len(part)]


def _of_known_classes(pairs: Pairs, classes: ClassList, notes: list[str], what: str) -> Pairs:
    known = set(classes.labels)
    rows = [row for row, target in enumerate(pairs.targets) if target in known]
    unknown = [row for row, target in enumerate(pairs.targets) if target not in known]
    if not unknown:
        return pairs
    target = str(pairs.targets[unknown[0]])
    sentence = f"{pairs.places[unknown[0]]}: there is no class '{target:.60}'. {nearest(target, classes.labels)}"
    if not rows:
        raise PairsError(f"{sentence} None of the {len(pairs):,} {what} is of one of the {len(known):,} classes")
    notes.append(f"Left out: {len(unknown):,} of {len(pairs):,} {what} of classes that are not listed ({sentence}).")
    return pairs.select(rows)
