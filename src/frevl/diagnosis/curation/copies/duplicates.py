"""The filter ``duplicate``: lines of duplicate images, and repeated lines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import marks, text_content
from frevl.data.packed.columns import chosen, joined
from frevl.data.pairs import Pairs
from frevl.diagnosis.curation.checks.picture_files import check_folder, read_grey
from frevl.diagnosis.curation.copies.groups import CopyGroups, group_copies
from frevl.diagnosis.curation.copies.near import TELLS, confirmed_links, embedding_links
from frevl.diagnosis.curation.lines import Found, Lines
from frevl.diagnosis.curation.verdicts.values import Values
from frevl.machine import processors
from frevl.runs.search.graphs import bytes_in_graph
from frevl.store.grouping.contents import content_numbers, numbers_by
from frevl.store.grouping.copies import MOST_COMPARED
from frevl.store.grouping.unit_vectors import unit_vectors
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.towers import Tower

__all__ = ["duplicate_filter", "graph_bytes", "groups_without_a_line", "plain_text"]


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
    (numbers,), units = joined([pairs.units])
    contents = content_numbers(lines.store, units, [pairs])
    first = np.unique(contents, return_index=True)[1]  # contents are numbered in order of appearance
    originals = first[contents]
    copies = np.flatnonzero(originals != np.arange(len(units)))
    near, doubts, notes, figures = _near(lines, units, first)
    links = chain(zip(originals[copies].tolist(), copies.tolist(), strict=True), near)
    groups = group_copies(links, _preference(lines, units, numbers, found))
    return _found(lines, units, numbers, groups, len(copies), doubts, notes, figures)


def _near(
    lines: Lines, units: Sequence[str], originals: NDArray[np.int64]
) -> tuple[list[tuple[int, int]], list[str], list[str], dict[str, Any]]:
    """Return links between images of different content, doubts, notes, and figures for the JSON."""
    if "image" not in lines.pairs.sides or not lines.image_towers:
        return [], [], [], {}
    ids = chosen(units, originals)
    session = lines.session
    vectors = unit_vectors(lines.store, ids, lines.image_towers, half=len(ids) > MOST_COMPARED)
    by_embedding, index = embedding_links(vectors, threads=processors(), progress=session.progress)
    links = by_embedding.links
    doubts: list[str] = []
    notes: list[str] = []
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
            doubts.append(
                "Most near copies may be missed, as they were found by embeddings alone: in this set the pixels of "
                f"unrelated images agree as much as those of copies ({enough:.2f}), or many images occur five or more "
                "times."
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
            "Near copies were found by embeddings alone, which miss most copies that are smaller, grey, rotated, "
            "cropped by a fifth, in a frame or on a screen; --images DIR compares the pixels."
        )
    return [(one, other) for one, other in originals[links].tolist()], doubts, notes, figures


def _preference(
    lines: Lines, units: Sequence[str], numbers: NDArray[np.int64], found: Mapping[str, Found]
) -> NDArray[np.float64]:
    """Return for every unit whether any of its lines stays, their mean match, and its size in bytes, ``(units, 3)``."""
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
    return np.stack([staying, match, sizes], axis=1)


def graph_bytes(pairs: Pairs, towers: Sequence[Tower]) -> int:
    """Return the size of the graph that finds near copies among the images of some lines; 0 if none is built.

    Args:
        pairs: The lines.
        towers: Image towers, of which the narrowest is used.
    """
    if "image" not in pairs.sides or not towers:
        return 0
    images = len(joined([pairs.images])[1])
    return images * bytes_in_graph(min(tower.dim for tower in towers)) if images > MOST_COMPARED else 0


def groups_without_a_line(units: Sequence[str], found: Found, kept: NDArray[np.bool_]) -> int:
    """Count the groups of copies without a kept line.

    Args:
        units: ``(n,)`` image (text) of every line.
        found: Findings of this filter.
        kept: ``(n,)`` bool, which lines are kept.
    """
    left: dict[str, bool] = {}
    for unit, value, stays in zip(units, found.values, kept.tolist(), strict=True):
        if value["copies"] > 1:
            group = value["duplicate_of"] or unit
            left[group] = left.get(group, False) or stays
    return sum(not one for one in left.values())


def _found(
    lines: Lines,
    units: Sequence[str],
    numbers: NDArray[np.int64],
    groups: CopyGroups,
    same: int,
    doubts: list[str],
    notes: list[str],
    figures: dict[str, Any],
) -> Found:
    flagged = groups.kept[numbers] != numbers
    repeated = _repeated(lines.pairs, numbers) & ~flagged

    def values(part: slice) -> list[dict[str, Any]]:
        own = numbers[part]
        copied = (flagged[part] | repeated[part]).tolist()  # of a repeated line, the image is the one kept
        kept, sizes = groups.kept[own].tolist(), groups.sizes[own].tolist()
        return [
            {"duplicate_of": units[original] if copy else None, "copies": size}
            for copy, original, size in zip(copied, kept, sizes, strict=True)
        ]

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
    return Found(
        Values(len(lines), values), flagged | repeated, doubts=tuple(doubts), notes=tuple(notes), figures=figures
    )


def _repeated(pairs: Pairs, units: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether an earlier line has the same image and target and nearly the same text, ``(n,)`` bool.

    Args:
        pairs: The lines.
        units: ``(n,)`` number of the image of every line; of its text if there are only texts.
    """
    columns = [
        numbers_by(pairs.texts, plain_text),
        numbers_by(pairs.targets, lambda target: json.dumps(target, sort_keys=True)),
    ]
    if "image" in pairs.sides:
        columns.insert(0, units)
    together = np.zeros(len(pairs), np.int64)
    for column in columns:
        together = np.unique(together * (int(column.max(initial=0)) + 1) + column, return_inverse=True)[1]
    repeated = np.ones(len(pairs), bool)
    repeated[np.unique(together, return_index=True)[1]] = False
    return repeated


def plain_text(text: str) -> str:
    """Return a text without details that tell a model nothing new: case, whitespace, punctuation around words.

    Signs of numbers, and texts of nothing but punctuation, stay as they are.
    """
    words = (_around_word().sub("", word) or word for word in text_content(text).casefold().split())
    return " ".join(word for word in words if _NOT_ALONE.search(word)) or text_content(text)


@lru_cache(1)
def _around_word() -> re.Pattern[str]:
    """Return punctuation before and after a word; "-5" is another number than "5", and "#1" another rank than "1"."""
    inside = rf"\w\s{marks()}+#$€£%&@=<>*/°"
    return re.compile(rf"^[^{inside}\-]+|[^{inside}]+$")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
