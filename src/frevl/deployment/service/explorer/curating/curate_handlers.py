"""Handlers of curation requests, one function per route."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from frevl.deployment.service.explorer.curating.curate_schemas import (
    DecideRequest,
    Decision,
    LineFilter,
    StartCurationRequest,
    UndecideRequest,
)
from frevl.deployment.service.explorer.curating.curations import Opened
from frevl.deployment.service.explorer.curating.decisions import (
    FIX,
    Standing,
    decided_lines,
    item_of_line,
    item_of_picture,
)
from frevl.deployment.service.explorer.curating.result import FILTERS, REPEATED, CurationResult, Group
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.http.limits import RefusedError
from frevl.store.commits.table_writer import in_utf8

__all__ = [
    "MOST_SHOWN",
    "Shown",
    "curations",
    "decide",
    "duplicates",
    "exported",
    "judged",
    "start",
    "stop",
    "summary",
    "undo",
]

_BLOCK = 256 << 10  # bytes of an export sent at once
Shown = Literal["flagged", "undecided", "decided", "all"]
MOST_SHOWN = 200
_TEXTS = 3  # texts shown for a copy
_COPIES = 40  # copies shown for a group
_LOOKED_FOR = 100  # images checked to tell whether the curation is of another store


async def curations(explorer: Explorer) -> dict[str, Any]:
    """List the curations."""

    def work() -> dict[str, Any]:
        has_labels = bool(explorer.labels.reading(lambda book: book.agreed()))
        pairs = explorer.curations.job.pairs
        judges = [name for name, there in (("pairs", pairs), ("labels", has_labels)) if there]
        return {
            "curations": list(explorer.curations.paths()),
            "judges": judges if explorer.writable and explorer.curations.job.can_start else [],
            "pairs": None if pairs is None else in_utf8(pairs.name),
            "writable": explorer.writable,
            "job": explorer.curations.job.record(),
        }

    return await explorer.ask(work)


async def summary(explorer: Explorer, name: str | None) -> dict[str, Any]:
    """Return a curation's findings and what is left after all decisions."""

    def work() -> dict[str, Any]:
        opened = explorer.curations.opened(name)
        result, standing = opened.result, opened.standing()
        return {
            "name": name if name is not None else next(iter(explorer.curations.paths())),
            "task": result.record["task"],
            "lines": len(result),
            "kept_by_curate": int(result.kept.sum()),
            "kept": standing.kept(result),
            "version": standing.version,
            "decided": len(standing.agreed),
            "disputed": len(standing.disputed),
            "by": {by: count for by, count in opened.decisions.reading(lambda book: book.labellers()).items() if count},
            "doubts": result.record.get("doubts", []),
            "notes": [*_wrong_store(explorer, opened), *result.record.get("notes", []), *opened.decisions.notes],
            "filters": _filters(result, standing),
            "removed": result.record.get("removed"),
            "writable": explorer.writable,
        }

    return await explorer.ask(work)


def _wrong_store(explorer: Explorer, opened: Opened) -> list[str]:
    """Return a warning if none of the first images is in this store."""
    result = opened.result
    rows = list(range(min(len(result), _LOOKED_FOR)))
    key = ("wrong store", opened.stamp)
    images = explorer.once(key, lambda: [line["image"] for line in result.lines(rows) if "image" in line])
    if not images or any(image in explorer.service.images for image in images):
        return []
    return [
        f"None of the first {len(images):,} images of this curation is in this store: is it a curation of "
        "another store? Its images cannot be shown."
    ]


def _filters(result: CurationResult, standing: Standing) -> list[dict[str, Any]]:
    found = []
    for name in (*FILTERS, REPEATED):
        counts = result.record["filters"].get("duplicate" if name == REPEATED else name)
        if counts is None:
            continue
        if name == "duplicate":
            groups = result.groups.values()
            open_ = sum(not _is_decided(standing, group) for group in groups)
            judged, flagged = len(groups), len(groups)
        else:
            rows = _rows(result, standing, name, "flagged")
            open_ = len(rows) - sum(name in standing.decided.get(row, {}) for row in rows.tolist())
            judged, flagged = int(result.seen[name].sum()), len(rows)
            if name == REPEATED and not judged:
                continue
        figures = {} if name == REPEATED else counts
        found.append({"name": name, "judged": judged, "flagged": flagged, "undecided": open_, "figures": figures})
    return found


def _rows(result: CurationResult, standing: Standing, name: str, shown: str) -> NDArray[np.int64]:
    """Return the lines to list, most suspicious first."""
    # Lines with a decision are listed as decided even if no filter flagged them.
    mask = np.ones(len(result), bool) if shown in ("all", "decided") else result.flags[name].copy()
    if shown in ("undecided", "decided"):
        decided = np.zeros(len(result), bool)
        decided[[row for row, said in standing.decided.items() if name in said]] = True
        mask &= decided if shown == "decided" else ~decided
    return result.order(name, mask)


async def judged(
    explorer: Explorer, of: str | None, name: LineFilter, shown: Shown, start: int, count: int
) -> dict[str, Any]:
    """List the lines that a filter checked."""

    def work() -> dict[str, Any]:
        opened = explorer.curations.opened(of)
        result, standing = opened.result, opened.standing()
        if name not in result.seen:
            raise RefusedError(404, "no_filter", f"This curation did not use the filter {name}.")
        moving = standing.version if shown in ("undecided", "decided") else -1
        key = ("curation", opened.stamp, name, shown, moving)
        rows = explorer.once(key, lambda: _rows(result, standing, name, shown))
        chosen = [int(row) for row in rows[start : start + count]]
        lines = zip(chosen, result.lines(chosen), strict=True)
        said = opened.decisions.reading(
            lambda book: {row: book.of(item_of_line(name, int(result.keys[row]))) for row in chosen}
        )
        return {
            "total": len(rows),
            "start": start,
            "lines": [_line(result, standing, name, row, line, said[row]) for row, line in lines],
        }

    return await explorer.ask(work)


def _line(
    result: CurationResult, standing: Standing, name: str, row: int, line: dict[str, Any], said: dict[str, str]
) -> dict[str, Any]:
    verdict = line["curate"]
    belief = result.beliefs.get(name)
    probability = None if belief is None else float(belief[row])
    label = verdict["label"] if name == "label" else None
    why = standing.reasons(result, row)
    return {
        "line": f"{int(result.keys[row]):016x}",
        "image": line.get("image"),
        "text": line.get("text"),
        "target": line.get("target"),
        "probability": probability,
        "label": None if label is None else dict(zip(("given", "likelier", "probability"), label, strict=True)),
        "reasons": verdict[name] if name in ("text", "image") else [],
        "flagged": bool(result.flags[name][row]),
        "kept": not why,
        "why": why,
        "said": said,
        "decision": standing.decided.get(row, {}).get(name),
    }


async def duplicates(explorer: Explorer, of: str | None, shown: Shown, start: int, count: int) -> dict[str, Any]:
    """List groups of copies in line order."""

    def work() -> dict[str, Any]:
        opened = explorer.curations.opened(of)
        result, standing = opened.result, opened.standing()
        wanted = {"undecided": False, "decided": True}.get(shown)
        groups = [group for group in result.groups.values() if wanted is None or wanted == _is_decided(standing, group)]
        chosen = groups[start : start + count]
        return {
            "total": len(groups),
            "start": start,
            "groups": [_group(opened, standing, group) for group in chosen],
        }

    return await explorer.ask(work)


def _group(opened: Opened, standing: Standing, group: Group) -> dict[str, Any]:
    result = opened.result
    said = opened.decisions.reading(
        lambda book: {one: book.of(item_of_picture(one)) for one in [group.kept, *group.rows]}
    )
    copies = []
    ordered = sorted(group.rows.items(), key=lambda one: one[0] != group.kept)
    for picture, rows in ordered[:_COPIES]:
        by_curate = not result.flags["duplicate"][rows[0]]
        decided = standing.pictures.get(picture)
        texts = [line.get("text", "") for line in result.lines(rows[:_TEXTS])]
        copies.append(
            {
                "picture": picture,
                "lines": len(rows),
                "texts": [text for text in texts if text != picture],
                "kept": by_curate if decided is None else decided != "drop",
                "kept_by_curate": by_curate,
                "said": said[picture],
            }
        )
    more = len(ordered) - len(copies)
    return {"group": group.kept, "decided": _is_decided(standing, group), "copies": copies, "more": more}


def _is_decided(standing: Standing, group: Group) -> bool:
    return any(picture in standing.pictures for picture in group.rows)


async def decide(explorer: Explorer, asked: DecideRequest) -> dict[str, Any]:
    """Write decisions; they are on disk when this is answered."""
    explorer.check_writable()
    explorer.service.check_size([], len(asked.decisions))

    def work() -> dict[str, Any]:
        opened = explorer.curations.opened(asked.of)
        items = [item for one in asked.decisions for item in _items(opened.result, one)]
        id_ = opened.decisions.label(asked.by, items, asked.id)
        standing = opened.standing()
        return {"id": id_, "version": standing.version, "kept": standing.kept(opened.result)}

    return await explorer.ask(work)


def _items(result: CurationResult, one: Decision) -> list[tuple[str, str | None]]:
    """Return the judgements that a decision concerns, with the decision on each."""
    if one.group is None and one.picture is None:
        return [(_item_of_line(result, one), one.say)]
    if one.picture is not None and (group := result.group_of.get(one.picture)) != (one.group or group or ""):
        where = "no group of copies" if one.group is None else f"no group {one.group[:80]!r}"
        raise RefusedError(404, "no_copy", f"The image {one.picture[:80]!r} is in {where}.")
    if one.group is None:
        return [(item_of_picture(one.picture or ""), one.say)]
    if one.group not in result.groups:
        raise RefusedError(404, "no_copy", f"There is no group of copies of {one.group[:80]!r}.")
    pictures = result.groups[one.group].rows
    stays = one.picture or one.group
    return [
        (item_of_picture(picture), "keep" if one.say == "drop" and picture == stays else one.say)
        for picture in pictures
    ]


def _item_of_line(result: CurationResult, one: Decision) -> str:
    row = result.row_of(one.line or "")
    if row is None or one.filter is None or one.filter not in result.seen:
        raise RefusedError(404, "no_line", f"This curation has no line {one.line!r} of {one.filter}; was it rewritten?")
    if one.say == FIX:
        verdict = result.lines([row])[0]["curate"]["label"]
        if not verdict or verdict[1] is None or verdict[0] == verdict[1]:
            raise RefusedError(422, "invalid", "No other label is likelier for this line, so there is nothing to fix.")
    return item_of_line(one.filter, int(result.keys[row]))


async def undo(explorer: Explorer, asked: UndecideRequest) -> dict[str, Any]:
    """Undo decisions."""
    explorer.check_writable()

    def work() -> dict[str, Any]:
        opened = explorer.curations.opened(asked.of)
        undone = opened.decisions.undo(asked.by, asked.id)
        standing = opened.standing()
        return {
            "id": undone[0].request,
            "version": standing.version,
            "kept": standing.kept(opened.result),
            "judgements": len(undone),
        }

    return await explorer.ask(work)


async def exported(explorer: Explorer, of: str | None, *, kept: bool) -> Iterator[bytes]:
    """Return the kept or the dropped lines as JSON lines."""

    def work() -> tuple[CurationResult, Standing]:
        opened = explorer.curations.opened(of)
        return opened.result, opened.standing()

    result, standing = await explorer.ask(work)
    lines = decided_lines(result, standing, kept=kept)
    return _blocks(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n" for line in lines)


def _blocks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Join lines into blocks: each piece sent switches threads once, which takes longer than writing a line."""
    block = bytearray()
    for line in lines:
        block += line
        if len(block) >= _BLOCK:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


async def start(explorer: Explorer, asked: StartCurationRequest) -> dict[str, Any]:
    """Start a curation in the background."""
    explorer.check_writable()

    def work() -> None:
        labels = explorer.labels.reading(lambda book: book.agreed()) if asked.judge == "labels" else None
        explorer.curations.job.start(labels)

    await explorer.ask(work)
    return await curations(explorer)


async def stop(explorer: Explorer) -> dict[str, Any]:
    """Stop the curation; finished work is kept, and it continues from there."""
    explorer.check_writable()
    await explorer.ask(explorer.curations.job.stop)
    return await curations(explorer)
