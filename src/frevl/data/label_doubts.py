"""Labels that are probably misspelt, and pairs that contradict each other."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from frevl.data.packed.columns import different, joined
from frevl.data.pairs import Pairs, Target
from frevl.errors import counted

__all__ = ["contradiction_note", "look_alike_note", "plain_label", "unseen_note"]

_OVERLOOKED = "blanks, accents or invisible characters"
_SHOWN = 3
_WORTH_SAYING = 0.01  # share of contradicting pairs; a few are normal in large sets
_MOST_COMPARED = 2_000_000  # pairs: comparing more takes memory that training needs


def plain_label(label: str) -> str:
    """Return a label without differences that people overlook: case, spaces, invisible characters, encoded accents."""
    if not label.isascii():
        label = "".join(char for char in unicodedata.normalize("NFC", label) if unicodedata.category(char) != "Cf")
    return " ".join(label.casefold().split())


def look_alike_note(*columns: Sequence[Target | None]) -> list[str]:
    """Return a note on classes in columns of targets that look alike: each counts as wrong for the other."""
    labels = {label for column in columns for label in _labels(different(column))}
    alike: dict[str, list[str]] = {}
    for label in sorted(labels):
        alike.setdefault(plain_label(label), []).append(label)
    groups = [names for names in alike.values() if len(names) > 1]
    if not groups:
        return []
    shown = "; ".join(" and ".join(f"'{name:.40}'" for name in names[:_SHOWN]) for names in groups[:_SHOWN])
    return [
        f"Classes that look alike: {sum(map(len, groups)):,} of {len(labels):,} differ from another one only in case, "
        f"{_OVERLOOKED} ({shown}{' and others' if len(groups) > _SHOWN else ''}). Each counts as wrong for the "
        "other; write them alike if they mean the same."
    ]


def unseen_note(accepted: Iterable[Collection[str]], labels: Collection[str]) -> list[str]:
    """Return notes on pairs whose right answers are not classes of the run: spelt otherwise than one, and unknown.

    If most are unknown, the note begins with "Unknown classes", so that it comes first.

    Args:
        accepted: The right answers of every pair; none if it has none.
        labels: The classes of the run.
    """
    known, total, unseen = set(labels), 0, []
    for answers in accepted:
        total += 1
        if answers and known.isdisjoint(answers):
            unseen.append(answers)
    if not unseen:
        return []
    meant = {plain_label(label): label for label in labels}
    spelt: list[tuple[str, str]] = []
    for answers in unseen:
        alike = next((answer for answer in answers if plain_label(answer) in meant), None)
        if alike is not None:
            spelt.append((alike, meant[plain_label(alike)]))
    notes = []
    if spelt:
        answer, label = spelt[0]
        one = len(spelt) == 1
        notes.append(
            f"Spelling: the right {'class' if one else 'classes'} of {counted(len(spelt), 'pair')} "
            f"{'differs from one' if one else 'differ from those'} of the run only in case, {_OVERLOOKED} "
            f"('{answer:.40}' from '{label:.40}'), and no answer counts as right there; write them as in training."
        )
    unknown = len(unseen) - len(spelt)
    if unknown:
        counts = "it counts" if unknown == 1 else "they count"
        some = counted(unknown, "pair has", "pairs have")
        said = f"{some} only classes that were not in training; {counts} as wrong."
        # Where most pairs do, these are hardly the classes of this run.
        notes.append(f"Unknown classes: {said}" if 2 * unknown > total else said)
    return notes


def contradiction_note(pairs: Pairs, *, least: float = _WORTH_SAYING) -> list[str]:
    """Return a note if pairs with the same image and text have different classes, so that not all can be right.

    Sets with lists of answers or weights are not compared, nor are those of more than two million pairs.

    Args:
        pairs: The pairs.
        least: Share of contradicting pairs from which they are worth a note, in [0, 1].
    """
    if len(pairs) > _MOST_COMPARED or not all(isinstance(one, str) for one in different(pairs.targets)):
        return []
    ((images,), _), ((texts,), words), ((classes,), names) = (
        joined([column]) for column in (pairs.images, pairs.texts, pairs.targets)
    )
    inputs = np.unique(images * len(words) + texts, return_inverse=True)[1].reshape(-1)
    each, counts = np.unique(inputs * len(names) + classes, return_counts=True)
    of_input = each // len(names)
    several = np.bincount(of_input)[inputs] > 1
    if not several.any() or several.mean() < least:
        return []
    most = np.zeros(int(inputs.max()) + 1, np.int64)
    np.maximum.at(most, of_input, counts)
    same = " and ".join(pairs.sides)
    return [
        f"Contradiction: {int(several.sum()):,} of {len(pairs):,} pairs have the same {same} as another pair, but "
        f"another class, so at most {100 * most.sum() / len(pairs):.2f} % of all can be right; give several right "
        "answers of a pair as a list, or choose one."
    ]


def _labels(targets: Iterable[Target | None]) -> Iterable[str]:
    for target in targets:
        if isinstance(target, str):
            yield target
        elif target is not None:
            yield from target
