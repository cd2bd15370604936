"""The filter ``duplicate``: lines of duplicate images, and repeated lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import text_content
from frevl.data.pairs import Pairs
from frevl.diagnosis.curation.checks.picture_files import check_folder, read_grey
from frevl.diagnosis.curation.copies.groups import CopyGroups, group_copies
from frevl.diagnosis.curation.copies.near import TELLS, confirmed_links, embedding_links
from frevl.diagnosis.curation.lines import Found, Lines
from frevl.machine import processors
from frevl.store.grouping.copies import MOST_COMPARED, unit_vectors
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.usable_pairs import content_of_units

__all__ = ["duplicate_filter", "groups_without_a_line", "plain_text"]


# Punctuation before and after a word; "-5" is another number than "5", and "#1" another rank than "1".
_AROUND_WORD = re.compile(r"^[^\w\s+\-#$€£%&@=<>*/°]+|[^\w\s+#$€£%&@=<>*/°]+$")
_NOT_ALONE = re.compile(r"[\w+#$€£%&@=<>*/°]")


def duplicate_filter(lines: Lines, found: Mapping[str, Found]) -> Found:
    """Flag the lines of every image that copies another one, and every repeated line.

    Images are copies if their files have the same hash, or if they are nearly the same by their embeddings or, given
    a folder, by their pixels. One image of each group is kept: one with a line that no other filter flags, then the
    one whose lines match best, then the largest file, then the first. If there are only texts, equal texts are copies.

    Args:
        lines: The lines.
        found: Findings of the other filters.
    """
    pairs = lines.pairs
    units = list(dict.fromkeys(pairs.units))
    hashes = content_of_units(lines.store, pairs)
    contents = [hashes.get(unit, unit) for unit in units]
    first: dict[str, int] = {}
    for number, content in enumerate(contents):
        first.setdefault(content, number)
    links = [(first[content], number) for number, content in enumerate(contents) if first[content] != number]
    same = len(links)
    near, notes, figures = _near(lines, units, list(first.values()))
    groups = group_copies([*links, *near], _preference(lines, units, found))
    return _found(lines, units, groups, same, notes, figures)


def _near(lines: Lines, units: list[str], chosen: list[int]) -> tuple[list[tuple[int, int]], list[str], dict[str, Any]]:
    """Return links between images of different content, notes, and figures for the JSON."""
    if "image" not in lines.pairs.sides or not lines.image_towers:
        return [], [], {}
    ids = [units[number] for number in chosen]
    session = lines.session
    vectors = unit_vectors(lines.store, ids, lines.image_towers, half=len(ids) > MOST_COMPARED)
    by_embedding, index = embedding_links(vectors, threads=processors(), progress=session.progress)
    links, notes = by_embedding.links, []
    figures: dict[str, Any] = {
        "by": "embedding",
        "bound": _number(by_embedding.within),
        "gap": _number(by_embedding.gap),
    }
    if lines.images is not None:
        folder = lines.images
        check_folder(folder)
        confirmed, readable, enough = confirmed_links(
            vectors, lambda row: read_grey(folder, ids[row]), index=index, progress=session.progress
        )
        figures["agreement"] = enough
        if enough > TELLS:
            notes.append(
                "Near copies were found by embeddings alone: in this set the pixels of unrelated images agree "
                f"as much as those of copies ({enough:.2f}), or many images occur five or more times."
            )
        else:
            # The pixels decide if both can be read; otherwise the embeddings do.
            unread = ~(readable[links[:, 0]] & readable[links[:, 1]])
            links = np.concatenate([confirmed, links[unread]])
            if readable.any():
                figures["by"] = "pixels"
        lacking = int((~readable).sum())
        if lacking:
            notes.append(
                f"{lacking:,} of {len(ids):,} images cannot be read below {folder} and were compared by "
                "embeddings alone."
            )
    elif np.isnan(by_embedding.gap):
        notes.append(
            f"Near copies were not searched for (distinct images: {len(ids):,}): there are too few to know the "
            "usual distances, or no scale to judge them by; --images DIR compares the pixels."
        )
    else:
        notes.append(
            "Near copies were found by embeddings alone, which miss much smaller copies and those with a fifth "
            "cropped; --images DIR compares the pixels."
        )
    return [(chosen[one], chosen[other]) for one, other in links.tolist()], notes, figures


def _preference(lines: Lines, units: list[str], found: Mapping[str, Found]) -> list[tuple[float, ...]]:
    """Return for every unit whether any of its lines stays, their mean match, and its size in bytes."""
    row_of = {unit: number for number, unit in enumerate(units)}
    numbers = np.array([row_of[unit] for unit in lines.pairs.units])
    stays = np.ones(len(lines), bool)
    for one in found.values():
        stays &= ~one.flagged
    staying = np.bincount(numbers[stays], minlength=len(units)) > 0
    belief = found["match"].belief if "match" in found else None
    match: NDArray[np.float64] = np.zeros(len(units))
    if belief is not None:
        known = ~np.isnan(belief)
        counts = np.bincount(numbers[known], minlength=len(units))
        match = np.bincount(numbers[known], belief[known], minlength=len(units)) / np.maximum(counts, 1)
    sizes = np.zeros(len(units))
    if "image" in lines.pairs.sides:
        stored = lines.store.states("image")["bytes"]
        sizes = stored[find_rows(lines.store.positions("image"), units)].astype(np.float64)
    return list(zip(staying.tolist(), match.tolist(), sizes.tolist(), strict=True))


def groups_without_a_line(units: Sequence[str], found: Found, why: Sequence[Sequence[str]]) -> int:
    """Count the groups of copies without a kept line.

    Args:
        units: ``(n,)`` image (text) of every line.
        found: Findings of this filter.
        why: For every line, the filters that drop it.
    """
    kept: dict[str, bool] = {}
    for unit, value, reasons in zip(units, found.values, why, strict=True):
        if value["copies"] > 1:
            group = value["duplicate_of"] or unit
            kept[group] = kept.get(group, False) or not reasons
    return sum(not one for one in kept.values())


def _found(
    lines: Lines, units: list[str], groups: CopyGroups, same: int, notes: list[str], figures: dict[str, Any]
) -> Found:
    pairs = lines.pairs
    row_of = {unit: number for number, unit in enumerate(units)}
    numbers = np.array([row_of[unit] for unit in pairs.units])
    flagged = groups.kept[numbers] != numbers
    repeated = _repeated(pairs) & ~flagged
    values = []
    for row, number in enumerate(numbers.tolist()):
        kept = units[groups.kept[number]] if flagged[row] else units[number] if repeated[row] else None
        values.append({"duplicate_of": kept, "copies": int(groups.sizes[number])})
    copies = int((groups.kept != np.arange(len(units))).sum())
    if groups.cut:
        notes.append(
            f"{groups.cut:,} {'group was' if groups.cut == 1 else 'groups were'} held together by chains of "
            f"images (up to {groups.longest:,}, as in a film) and split up: each dropped image is nearly the "
            "same as the one kept for it."
        )
    figures = {
        "items": len(units),
        "copies": copies,
        "same_content": same,
        "near": max(0, copies - same),
        "repeated_lines": int(repeated.sum()),
        **figures,
    }
    return Found(values, flagged | repeated, notes=tuple(notes), figures=figures)


def _repeated(pairs: Pairs) -> NDArray[np.bool_]:
    """Return whether an earlier line has the same image and target and nearly the same text, ``(n,)`` bool."""
    seen: set[tuple[str, str, str]] = set()
    repeated = np.zeros(len(pairs), bool)
    for row, (image, text) in enumerate(zip(pairs.images, pairs.texts, strict=True)):
        key = (image, plain_text(text), json.dumps(pairs.targets[row], sort_keys=True))
        repeated[row] = key in seen
        seen.add(key)
    return repeated


def plain_text(text: str) -> str:
    """Return a text without details that tell a model nothing new: case, whitespace, punctuation around words.

    Signs of numbers, and texts of nothing but punctuation, stay as they are.
    """
    words = (_AROUND_WORD.sub("", word) or word for word in text_content(text).casefold().split())
    return " ".join(word for word in words if _NOT_ALONE.search(word)) or text_content(text)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
