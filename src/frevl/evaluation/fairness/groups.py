"""Compare groups by one key of the pairs: every group's rate, the worst group, the gap, and equal opportunity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.label_doubts import plain_label
from frevl.data.names import text_content
from frevl.data.pairs import Pairs
from frevl.errors import UsageError, counted, nearest
from frevl.evaluation.fairness.rates import Cells
from frevl.evaluation.measures import Measure, single_answer
from frevl.evaluation.slices import Rows, group_rows, rows_by_group, slice_table
from frevl.runs.scorer import Scorer
from frevl.runs.targets import match_truth
from frevl.store.grouping.copies import one_item_each

__all__ = ["FEWEST_PICTURES", "Groups", "evaluate_groups", "groups_of"]

FEWEST_PICTURES = 20
"""Smaller groups are listed but not compared: their rates are noise and would determine the gap."""

_MOST_SHOWN = 10  # group names listed in a sentence
_MOST_GROUPS = 200  # the maximum in slice tables
_MOST_NUMBERS = 20_000_000  # cells of the table of clusters, groups and classes: 160 MB
_RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")


@dataclass(frozen=True)
class Groups:
    """The groups to compare.

    Attributes:
        key: The key of the pairs.
        rows: Row numbers of the pairs in every group, in the order of ranges or names.
        pictures: Number of distinct images (or texts, if there are only texts) in every group.
        left_out: The same for groups that are too small.
        without: Number of pairs without the key.
    """

    key: str
    rows: dict[str, Rows]
    pictures: dict[str, int]
    left_out: dict[str, int]
    without: int

    def of(self, pairs: int) -> NDArray[np.int64]:
        """Return ``(pairs,)``: the group index of each pair, -1 for none."""
        cells = np.full(pairs, -1, np.int64)
        for number, rows in enumerate(self.rows.values()):
            cells[rows] = number
        return cells

    def notes(self) -> list[str]:
        """Return notes on groups that look alike, and on what is not compared."""
        alike: dict[str, list[str]] = {}
        for name in (*self.rows, *self.left_out):
            alike.setdefault(plain_label(name), []).append(name)
        several = [names for names in alike.values() if len(names) > 1]
        found = []
        if several:
            shown = "; ".join(" and ".join(f"'{name:.40}'" for name in names) for names in several[:_MOST_SHOWN])
            found.append(
                f"Groups of '{self.key}' that look alike are compared as different ones: {shown}. Write them alike if "
                "they mean the same."
            )
        if self.left_out:
            shown = ", ".join(f"'{name:.40}' ({n:,})" for name, n in list(self.left_out.items())[:_MOST_SHOWN])
            more = f" and {len(self.left_out) - _MOST_SHOWN:,} more" if len(self.left_out) > _MOST_SHOWN else ""
            found.append(
                f"Groups of '{self.key}' with fewer than {FEWEST_PICTURES} images are left out of the comparison: "
                f"{shown}{more}."
            )
        if self.without:
            some = counted(self.without, "pair has", "pairs have")
            belong = "belongs" if self.without == 1 else "belong"
            found.append(f"{some} no '{self.key}' and {belong} to no group.")
        return found


def groups_of(pairs: Pairs, key: str, content: Mapping[str, str]) -> Groups:
    """Find the groups of a key that can be compared.

    Args:
        pairs: The evaluated pairs.
        key: A key of these pairs.
        content: A hash of every image (or text, if there are only texts): copies count as one image.

    Raises:
        UsageError: No pair has the key, or fewer than two groups have enough images.
    """
    rows = group_rows(pairs.extras, key, asked=True)
    if not rows:
        known = sorted({name for extra in pairs.extras for name in extra if name != key})
        hint = nearest(key, known) if known else "The pairs have no further keys."
        if any(key in extra for extra in pairs.extras):
            hint = f"Its values are lists, objects or empty. {hint}"
        raise UsageError(f"--groups {key}: no pair has a name or a number for this key. {hint}")
    units = pairs.units
    pictures = {name: len({content.get(units[row], units[row]) for row in own}) for name, own in rows.items()}
    if len(rows) == 1:
        raise UsageError(
            f"--groups {key}: all pairs with this key are in one group ('{next(iter(rows)):.60}'), so there is "
            "nothing to compare; give a key with several values"
        )
    kept = {name: own for name, own in rows.items() if pictures[name] >= FEWEST_PICTURES}
    if len(kept) < 2:
        shown = ", ".join(f"'{name:.40}' {n:,}" for name, n in list(pictures.items())[:_MOST_SHOWN])
        raise UsageError(
            f"--groups {key}: expected at least two groups of at least {FEWEST_PICTURES} images, found "
            f"{len(kept)} among {len(rows):,} ({shown}); give more pairs, or a key with fewer values"
        )
    if len(kept) > _MOST_GROUPS:
        raise UsageError(
            f"--groups {key}: expected at most {_MOST_GROUPS} groups, found {len(kept):,}; give a key whose values "
            "are groups, not items"
        )
    return Groups(
        key,
        kept,
        {name: pictures[name] for name in kept},
        {name: pictures[name] for name in rows if name not in kept},
        len(pairs) - sum(len(own) for own in rows.values()),
    )


def evaluate_groups(
    scorer: Scorer, pairs: Pairs, groups: Groups, measures: dict[str, Measure]
) -> tuple[dict[str, Any], list[str]]:
    """Compare the groups of one key.

    Args:
        scorer: The run with its store.
        pairs: The evaluated pairs; intervals resample their ``clusters``.
        groups: Groups of these pairs.
        measures: Metrics of the result by name.

    Returns:
        ``{"pictures", "left_out", "metrics": {name: {"groups", "worst", "best", "gap", "gap_ci95", "difference",
        "difference_ci95", "chance"}}, "equal_opportunity"}`` (docs/fairness.md), in percent and points, and notes.
    """
    notes: list[str] = []
    items = _items_of_matching if scorer.run.task == "matching" else _items_of_classes
    rated, truths, said = items(scorer, pairs, measures)
    cells = groups.of(len(pairs))
    found: dict[str, Any] = {"pictures": groups.pictures, "left_out": groups.left_out, "metrics": {}}
    names = list(groups.rows)
    for name, one in rated.items():
        own = one.groups(cells)
        missing = [names[number] for number in range(len(names)) if not (own == number).any()]
        if missing:
            notes.append(
                f"'{name}' by '{groups.key}' is left out, because it has no items in the group '{missing[0]:.60}'."
            )
            continue
        found["metrics"][name] = _compared(name, one.values, own, one.clusters, names)
    if found["metrics"]:
        first, table = next(iter(found["metrics"].items()))
        notes.insert(0, _sentence(groups.key, first, table))
    notes += groups.notes()
    found["equal_opportunity"] = _opportunity(truths, said, cells, pairs.clusters, names)
    return found, notes


@dataclass(frozen=True)
class _Rated:
    """A metric's ``(n,)`` values, each with its pairs' rows (None: a pair each) and its cluster."""

    values: NDArray[np.float64]
    rows: Sequence[Sequence[int]] | None
    clusters: Sequence[str]

    def groups(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return ``(n,)``: the group of every item; -1 if its pairs are in several groups or in none."""
        if self.rows is None:
            return cells
        own = [set(cells[list(rows)].tolist()) for rows in self.rows]
        return np.array([next(iter(one)) if len(one) == 1 else -1 for one in own], np.int64)


Items = tuple[dict[str, _Rated], list[str | None], NDArray[np.float64]]
"""Metrics; the right class of each pair, None if it offers no opportunity; ``(pairs,)`` whether it was predicted."""


def _items_of_classes(scorer: Scorer, pairs: Pairs, measures: dict[str, Measure]) -> Items:
    del scorer
    first = next(iter(measures))
    rated = {first: _Rated(_values(measures[first]), None, pairs.clusters)}
    single = [single_answer(target) for target in pairs.targets]
    return rated, single, _values(measures["accuracy"])


def _items_of_matching(scorer: Scorer, pairs: Pairs, measures: dict[str, Measure]) -> Items:
    truth = match_truth(pairs).numpy() > 0.5
    _, probabilities = scorer.match_probabilities(list(zip(pairs.images, pairs.texts, strict=True)))
    matched = (probabilities > 0.5).astype(np.float64)
    rated: dict[str, _Rated] = {}
    if _RECALLS[0] in measures:
        right = [row for row in range(len(pairs)) if truth[row]]
        merged, rows_of = one_item_each(pairs.select(right), scorer.store)[0], _rows_of_items(pairs, right, scorer)
        images, texts = list(dict.fromkeys(merged.images)), list(dict.fromkeys(merged.texts))
        for name in _RECALLS:
            rows = [rows_of[name[0]][one] for one in (images if name[0] == "i" else texts)]
            rated[name] = _Rated(_values(measures[name]), rows, list(measures[name].clusters))
    if "accuracy" in measures:
        rated["accuracy"] = _Rated(_values(measures["accuracy"]), None, pairs.clusters)
    rated["match_rate"] = _Rated(matched, None, pairs.clusters)
    return rated, ["match" if one else None for one in truth.tolist()], matched


def _rows_of_items(pairs: Pairs, right: list[int], scorer: Scorer) -> dict[str, dict[str, list[int]]]:
    """Return the rows of every image (``i``) and text (``t``) in right pairs; copies count as the first of them."""
    hashes = scorer.store.content_hashes([pairs.images[row] for row in right])
    names: dict[str, str] = {}
    found: dict[str, dict[str, list[int]]] = {"i": {}, "t": {}}
    for row in right:
        image, text = pairs.images[row], pairs.texts[row]
        first = names.setdefault(f"i{hashes.get(image, image)}", image)
        found["i"].setdefault(first, []).append(row)
        found["t"].setdefault(names.setdefault(f"t{text_content(text)}", text), []).append(row)
    return found


def _values(measure: Measure) -> NDArray[np.float64]:
    return np.zeros(0) if measure.values is None else measure.values


def _compared(
    name: str, values: NDArray[np.float64], own: NDArray[np.int64], clusters: Sequence[str], names: list[str]
) -> dict[str, Any]:
    rows = rows_by_group(own, names)
    table = slice_table({"": rows}, name, values, clusters)[""]
    cells = Cells(values, own, clusters, len(names))
    worst, best = int(np.argmin(cells.rates)), int(np.argmax(cells.rates))
    whole, between = cells.gap(), cells.difference(best, worst)
    return {
        "groups": table,
        "worst": names[worst],
        "best": names[best],
        "gap": 100 * whole.value,
        "gap_ci95": whole.percent(),
        "difference_ci95": between.percent(),
        "chance": cells.chance(),
    }


def _opportunity(
    truths: list[str | None], said: NDArray[np.float64], cells: NDArray[np.int64], clusters: Sequence[str],
    names: list[str],
) -> dict[str, Any] | None:  # fmt: skip
    """Compare true-positive rates for every class that each group has in at least 20 clusters (in matching: at all)."""
    if not len(said):
        return None
    kinds = [kind for kind in dict.fromkeys(truths) if kind is not None]
    having: dict[tuple[str, int], set[str]] = {}
    for kind, cell, cluster in zip(truths, cells.tolist(), clusters, strict=True):
        if kind is not None and cell >= 0:
            having.setdefault((kind, cell), set()).add(cluster)
    fewest = {kind: min(len(having.get((kind, cell), ())) for cell in range(len(names))) for kind in kinds}
    kept = sorted((kind for kind in kinds if fewest[kind] >= FEWEST_PICTURES), key=lambda kind: -fewest[kind])
    kept = kept[: max(1, _MOST_NUMBERS // max(1, len(set(clusters)) * len(names)))]
    if not kept:
        return None
    place = {kind: number for number, kind in enumerate(kept)}
    at = np.array(
        [
            cell * len(kept) + place[kind] if kind in place and cell >= 0 else -1
            for kind, cell in zip(truths, cells.tolist(), strict=True)
        ],
        np.int64,
    )
    table = Cells(said, at, clusters, len(names) * len(kept))
    rates = table.rates.reshape(len(names), len(kept))
    gaps = rates.max(axis=0) - rates.min(axis=0)
    largest, whole = int(gaps.argmax()), table.gap((len(names), len(kept)))
    return {
        "difference": 100 * whole.value,
        "ci95": whole.percent(),
        "class": kept[largest],
        "groups": {name: 100 * float(rates[number, largest]) for number, name in enumerate(names)},
        "classes": {kind: 100 * float(one) for kind, one in zip(kept, gaps, strict=True)},
        "classes_left_out": len(kinds) - len(kept),
    }


def _sentence(key: str, name: str, table: dict[str, Any]) -> str:
    low, high = table["worst"], table["best"]
    worst, best = table["groups"][low], table["groups"][high]
    if not table["gap"]:
        return f"All groups of '{key}' have the same {name}: {worst[name]:.2f} %."
    shown = f"'{low:.60}' {worst[name]:.2f} % to '{high:.60}' {best[name]:.2f} %, {table['gap']:.2f} points apart"
    bounds = table["difference_ci95"]
    interval = "" if bounds is None else f" [{bounds[0]:.2f}, {bounds[1]:.2f}]"
    p = table["chance"]
    if bounds is None or bounds[0] <= 0 or (p is not None and p > _SIGNIFICANT):
        chance = "" if p is None else f"; a gap this large occurs in {100 * p:.0f} % of random groupings"
        return f"Groups of '{key}' do not measurably differ in {name}: {shown}{interval}{chance}."
    return f"Groups of '{key}' differ in {name}: {shown}{interval}."


_SIGNIFICANT = 0.05
