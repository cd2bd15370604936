"""People's decisions on the judgements of a curation, and the lines that remain.

A decision is kept as a label of a judgement, in a file of the same kind as the labels of a store
(`frevl.store.labels.labels_file`): append-only, on disk before the answer is sent, and shared by several people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frevl.deployment.service.explorer.curating.result import FILTERS, REPEATED, CurationResult
from frevl.store.labels.book import LabelBook
from frevl.store.labels.labels_file import LabelsFile

__all__ = ["FIX", "KEEP", "SAYS", "Standing", "decided_lines", "decisions_beside", "item_of_line", "item_of_picture"]

DROP, KEEP, FIX = "drop", "keep", "fix"
SAYS = (DROP, KEEP, FIX)
"""Possible decisions: drop the line (or the image with its lines), keep it, or give it the likelier label."""

_LONGEST = 4000  # characters of an id; a label file takes 4,096


def decisions_beside(result: Path, *, writes: bool) -> LabelsFile:
    """Return the decisions on a result, kept in ``RESULT.decisions/decisions.jsonl``, which the first one creates."""
    return LabelsFile(result.with_name(f"{result.name}.decisions"), writes=writes, name="decisions.jsonl")


def item_of_line(name: str, key: int) -> str:
    """Return the item by which a decision refers to a judgement: the filter and the line's key."""
    return f"{name} {key:016x}"


def item_of_picture(picture: str) -> str:
    """Return the item by which a decision refers to an image in a group of copies."""
    if len(picture) > _LONGEST:
        picture = hashlib.sha256(picture.encode("utf-8", "surrogatepass")).hexdigest()
    return f"copy {picture}"


@dataclass(frozen=True)
class Standing:
    """A curation with people's decisions applied.

    Attributes:
        version: Version of the decisions.
        agreed: The majority decision for each judgement.
        disputed: Judgements on which people are evenly split; ``frevl curate``'s own verdict then stands.
        why: For each line with a decision, why it is dropped; empty if it stays.
        decided: The decision for each line and filter.
        pictures: Decisions on images in groups of copies.
    """

    version: int
    agreed: dict[str, str]
    disputed: set[str]
    why: dict[int, list[str]]
    decided: dict[int, dict[str, str]]
    pictures: dict[str, str]

    @classmethod
    def of(cls, result: CurationResult, book: LabelBook) -> Standing:
        """Apply decisions to a result."""
        agreed = book.agreed()
        rows = {f"{key:016x}": row for row, key in _wanted(result, agreed)}
        decided: dict[int, dict[str, str]] = {}
        for item, say in agreed.items():
            name, _, key = item.partition(" ")
            if name != "copy" and key in rows and say in SAYS:
                decided.setdefault(rows[key], {})[name] = say
        pictures = {}
        for picture, group in result.group_of.items():
            say = agreed.get(item_of_picture(picture), "")
            if say in (DROP, KEEP):
                pictures[picture] = say
                for row in result.groups[group].rows[picture]:
                    decided.setdefault(row, {})["duplicate"] = say
        why = {row: _why(result, row, said) for row, said in decided.items()}
        return cls(book.version, agreed, set(book.disputed()), why, decided, pictures)

    def kept(self, result: CurationResult) -> int:
        """Count the remaining lines."""
        changed = sum((not why) - int(result.kept[row]) for row, why in self.why.items())
        return int(result.kept.sum()) + changed

    def reasons(self, result: CurationResult, row: int) -> list[str]:
        """Return the filters that drop a line; none if it stays."""
        return self.why[row] if row in self.why else _flagged(result, row)


def _wanted(result: CurationResult, agreed: dict[str, str]) -> Iterator[tuple[int, int]]:
    """Return row and key of every line with a decision."""
    for item in agreed:
        name, _, key = item.partition(" ")
        row = None if name == "copy" else result.row_of(key)
        if row is not None:
            yield row, int(result.keys[row])


def _flagged(result: CurationResult, row: int) -> list[str]:
    return [name for name in FILTERS if result.flags[name][row]]


def _why(result: CurationResult, row: int, said: dict[str, str]) -> list[str]:
    why = set(_flagged(result, row))
    for name, say in said.items():
        reason = "duplicate" if name == REPEATED else name
        if say == DROP:
            why.add(reason)
        else:
            why.discard(reason)
    return [name for name in FILTERS if name in why]


def decided_lines(result: CurationResult, standing: Standing, *, kept: bool) -> Iterator[dict[str, Any]]:
    """Return the kept or the dropped lines, with reason and decision in their key ``curate``.

    They come in the order of the judged file. A line with the decision ``fix`` has the likelier label.
    """
    for row, line in result.every_line():
        why = standing.reasons(result, row)
        if (not why) is not kept:
            continue
        judged = {**line["curate"], "kept": not why, "why": why}
        said = standing.decided.get(row)
        if said:
            judged["decided"] = said
            if said.get("label") == FIX:
                line["target"] = line["curate"]["label"][1]
        line["curate"] = judged
        yield line
