"""Handlers of label requests, one function per route."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from frevl.data.pairs import Pairs, read_pairs
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.label_schemas import (
    DefineRequest,
    ImportRequest,
    LabelsRequest,
    RenameRequest,
    UndoRequest,
)
from frevl.deployment.service.http.body import Upload, decoded
from frevl.deployment.service.http.limits import RefusedError
from frevl.errors import FrevlError, UsageError
from frevl.evaluation.metrics import cohens_kappa, observed_agreement
from frevl.store.labels.book import LabelBook
from frevl.store.labels.entries import class_name

__all__ = ["define", "exported", "label", "read_sent", "rename", "summary", "take_file", "undo"]


async def label(explorer: Explorer, asked: LabelsRequest) -> dict[str, Any]:
    """Write labels for images of the store."""
    explorer.check_writable()
    service = explorer.service
    service.check_size([], len(asked.labels))
    await service.newest_store()  # an image just removed gets no label
    await service.check_images([one.image for one in asked.labels])
    labels = [(one.image, one.label) for one in asked.labels]
    written = await _written(explorer, asked.id, lambda: explorer.labels.label(asked.by, labels, asked.id))
    given = {one.label for one in asked.labels if one.label is not None}
    former = await explorer.ask(lambda: explorer.labels.reading(lambda book: book.renamed()))
    return {**written, "renamed": {name: former[name] for name in sorted(given) if name in former}}


async def define(explorer: Explorer, asked: DefineRequest) -> dict[str, Any]:
    """Add classes."""
    explorer.check_writable()
    return await _written(explorer, asked.id, lambda: explorer.labels.define(asked.by, asked.names, asked.id))


async def rename(explorer: Explorer, asked: RenameRequest) -> dict[str, Any]:
    """Rename a class."""
    explorer.check_writable()

    def write() -> str:
        return explorer.labels.rename(asked.by, asked.name, asked.to, merge=asked.merge, request=asked.id)

    return await _written(explorer, asked.id, write)


async def _written(explorer: Explorer, given: str | None, write: Callable[[], str]) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        before = len(explorer.labels.book().of_request(given or ""))
        id_ = write()
        book = explorer.labels.book()
        return {"id": id_, "written": len(book.of_request(id_)) - before, "version": book.version}

    written = await explorer.ask(work)
    await wake(explorer)
    return written


async def wake(explorer: Explorer) -> None:
    """Let the classifier learn the new labels."""
    if explorer.teacher is not None:
        await explorer.ask(explorer.teacher.wake)


async def undo(explorer: Explorer, asked: UndoRequest) -> dict[str, Any]:
    """Undo a labeller's entries."""
    explorer.check_writable()

    def work() -> dict[str, Any]:
        undone = explorer.labels.undo(asked.by, asked.id)
        book = explorer.labels.book()
        images = dict.fromkeys(entry.image for entry in undone if entry.image)
        return {
            "id": undone[0].request,
            "version": book.version,
            "images": {image: book.of(image) for image in images},
        }

    undone = await explorer.ask(work)
    await wake(explorer)
    return undone


async def summary(explorer: Explorer) -> dict[str, Any]:
    """Summarise all labels."""
    return await explorer.ask(lambda: explorer.labels.reading(lambda book: _summary(explorer, book)))


def _summary(explorer: Explorer, book: LabelBook) -> dict[str, Any]:
    agreement = [
        {
            "first": first,
            "second": second,
            "images": len(one),
            "agreement": observed_agreement(one, other),
            "kappa": cohens_kappa(one, other),
        }
        for (first, second), (one, other) in sorted(book.both().items())
    ]
    return {
        "version": book.version,
        "writable": explorer.writable,
        "images": len(book.agreed()),
        "disputed": len(book.disputed()),
        "classes": [{"name": name, "labels": labels} for name, labels in book.classes().items()],
        "renamed": book.renamed(),
        "labellers": book.labellers(),
        "agreement": agreement,
        "notes": [explorer.scrubbed(note) for note in explorer.labels.notes],
    }


async def exported(explorer: Explorer, form: str, by: str | None) -> bytes:
    """Return the labels as a pairs file: one line per image, without images on which labellers are split.

    Args:
        explorer: Explorer with the labels.
        form: ``jsonl`` or ``csv``.
        by: Only the labels of this labeller.
    """

    def work() -> bytes:
        agreed = explorer.labels.reading(lambda book: book.agreed(by))
        if form == "jsonl":
            lines = (json.dumps({"image": image, "target": name}, ensure_ascii=False) for image, name in agreed.items())
            return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
        nested = next((name for name in agreed.values() if name[:1] in "[{"), None)
        if nested is not None:
            raise UsageError(
                f"The class {nested!r:.80} would be read as several answers in a CSV file; export JSON lines "
                "(format=jsonl), or rename the class."
            )
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["image", "target"])
        writer.writerows(agreed.items())
        return table.getvalue().encode("utf-8", "surrogatepass")

    return await explorer.ask(work)


async def take_file(explorer: Explorer, asked: ImportRequest, uploads: Mapping[str, Upload]) -> dict[str, Any]:
    """Import the images and targets of a pairs file as labels."""
    explorer.check_writable()
    if len(uploads) != 1:
        raise RefusedError(422, "invalid", f"An import takes one uploaded file, found {len(uploads)}.")
    (name, upload), *_ = uploads.items()
    content = decoded(name, upload)
    await explorer.service.newest_store()  # an image just added gets its label, one just removed does not
    images = explorer.service.images
    labels, left_out, notes = await explorer.ask(lambda: _usable(read_sent(content, asked.format), images))
    if not labels:
        raise RefusedError(422, "invalid", f"The file has no usable label: {' '.join(notes) or 'no lines'}")
    written = await _written(explorer, asked.id, lambda: explorer.labels.label(asked.by, labels, asked.id))
    return {**written, "left_out": left_out, "notes": notes}


def read_sent(content: bytes, form: str) -> Pairs:
    """Read an uploaded pairs file.

    Raises:
        UsageError: The content is not a pairs file.
    """
    with tempfile.TemporaryDirectory(prefix="frevl-pairs-") as folder:
        path = Path(folder) / f"file.{form}"
        path.write_bytes(content)
        try:
            return read_pairs(path)
        except FrevlError as error:
            raise UsageError(str(error).replace(str(path), "the file")) from None


def _usable(read: Pairs, images: Mapping[str, int]) -> tuple[list[tuple[str, str]], int, list[str]]:
    """Return the labels, the number of lines left out, and the reasons as sentences."""
    labels: list[tuple[str, str]] = []
    why: dict[str, list[str]] = {}
    for image, target, place in zip(read.images, read.targets, read.places, strict=True):
        problem = ""
        if image not in images:
            problem = "name an image that is not in the store"
        elif not isinstance(target, str):
            problem = "have no target" if target is None else "have several targets"
        else:
            try:
                labels.append((image, class_name(target)))
            except UsageError as error:
                problem = f"have an unusable class ({error})"
        if problem:
            why.setdefault(problem, []).append(place.rpartition(":")[2])
    if read.rejected:
        first = read.rejected[0]
        why[f"cannot be read ({first.reason})"] = [one.id.rpartition(":")[2] for one in read.rejected]
    notes = [_sentence(problem, lines) for problem, lines in why.items()]
    return labels, sum(map(len, why.values())), notes


def _sentence(problem: str, lines: Sequence[str]) -> str:
    return f"{len(lines):,} of the lines {problem}; the first is line {lines[0]}."
