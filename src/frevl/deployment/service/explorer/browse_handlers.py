"""Handlers of browsing requests, one function per route."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from frevl.deployment.service.explorer.browse_schemas import FindRequest
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.rows import Rows
from frevl.deployment.service.explorer.searching.filters import Filter, columns_of, read_filters
from frevl.deployment.service.explorer.searching.filters import condition as condition_of
from frevl.deployment.service.explorer.teaching.lesson import Lesson
from frevl.deployment.service.http.body import Upload, decoded
from frevl.deployment.service.http.limits import RefusedError
from frevl.runs.search.copies import merge_copies
from frevl.runs.search.distances import nearest_rows
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.labels.book import LabelBook
from frevl.store.reader import Store
from frevl.store.towers import Modality
from frevl.store.upkeep.growth import growth

__all__ = ["MOST_SHOWN", "Order", "Shown", "find", "guess_of", "images", "overview"]

Order = Literal["store", "next", "doubt", "wrong", "class"]
Shown = Literal["all", "labelled", "unlabelled", "disputed"]
MOST_SHOWN = 500
_EXAMPLES, _REASONS = 20, 50


async def overview(explorer: Explorer) -> dict[str, Any]:
    """Describe the contents of the store."""
    rows = await explorer.rows()
    return await explorer.ask(lambda: _overview(explorer, rows))


def _overview(explorer: Explorer, rows: Rows) -> dict[str, Any]:
    store, encoder = rows.store, explorer.encoder
    towers = {
        name: {side: next(iter(store.select_towers(side, [name])), None) for side in ("image", "text")}
        for name in store.encoders
    }  # fmt: skip
    encoders = [
        {
            "name": name,
            "image_dim": None if own["image"] is None else own["image"].dim,
            "text_dim": None if own["text"] is None else own["text"].dim,
            "imported": any(tower is not None and tower.imported for tower in own.values()),
            "used": name == encoder.name,
        }
        for name, own in towers.items()
    ]
    rejects = store.rejects()
    by_reason: dict[str, list[Any]] = {}
    for reject in rejects:
        by_reason.setdefault(reject.reason, []).append(reject)
    reasons = [
        {
            "reason": reason,
            "count": len(of),
            "examples": [{"kind": one.kind, "id": one.id, "reason": one.reason} for one in of[:_EXAMPLES]],
        }
        for reason, of in sorted(by_reason.items(), key=lambda item: -len(item[1]))[:_REASONS]
    ]
    models = [name for name, model in explorer.service.models.items() if model.searches]
    return {
        "name": store.path.resolve().name,
        "images": len(rows),
        "texts": store.count("text"),
        "without_embedding": int((~rows.usable).sum()),
        "copies": len(rows.copies),
        "encoders": encoders,
        "rejects": len(rejects),
        "reasons": reasons,
        "picture_bytes": rows.picture_bytes,
        "store_bytes": _sizes(store.path),
        "growth": _growth(store, "image"),
        "text_growth": _growth(store, "text"),
        "columns": {name: str(kind) for name, kind in store.metadata("image").items()},
        "pictures": explorer.thumbnails.pictures is not None,
        "writable": explorer.writable,
        "searches_text": encoder.text is not None or bool(models),
        "searches_pictures": encoder.embeds_images,
        "searching_models": models,
        "notes": _notes(explorer, rows),
    }


def _notes(explorer: Explorer, rows: Rows) -> list[str]:
    notes = []
    if explorer.thumbnails.pictures is None:
        notes.append("The images cannot be shown because their folder is unknown; start with --images DIR.")
    if not len(rows):
        notes.append("There are no images in this store yet.")
    encoder = explorer.encoder
    if any(model.searches for model in explorer.service.models.values()):
        return notes  # a run reads the words of a search
    if encoder.text is None and encoder.shares_space:
        notes.append(
            f"Text search with the encoder {encoder.name} is not possible, because the store had no texts of this "
            "encoder when the service started; add some and restart, or serve a matching run (--run)."
        )
    elif encoder.text is None:
        notes.append(
            f"Text search with the encoder {encoder.name} is not possible, because it has no common space of texts "
            "and images; serve a matching run (--run), or use an encoder such as CLIP."
        )
    return notes


def _growth(store: Store, modality: Modality) -> list[dict[str, Any]]:
    try:
        found = growth(store.path, modality)
    except (OSError, ValueError):  # a commit deleted while being read; the rest of the page is still useful
        return []
    return [{"at": at.isoformat(timespec="seconds"), "rows": rows} for at, rows in found]


def _sizes(store: Path) -> dict[str, int]:
    """Return the size in bytes of every part of the store."""
    sizes: dict[str, int] = {}
    for folder, _, files in os.walk(store):
        part = Path(folder).relative_to(store).parts
        for file in files:
            try:
                size = (Path(folder) / file).stat().st_size
            except OSError:  # deleted meanwhile
                continue
            name = part[0] if part else file
            sizes[name] = sizes.get(name, 0) + size
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


async def images(
    explorer: Explorer,
    *,
    start: int,
    count: int,
    shown: Shown,
    label: str | None,
    where: str | None,
    filters: str | None = None,
    order: Order = "store",
    of: str | None = None,
) -> dict[str, Any]:
    """Return a page of images, in store order or as ranked by the classifier."""
    if of is not None:  # the link may date from before the class was renamed
        given = of
        of = await explorer.ask(lambda: explorer.labels.reading(lambda book: book.name_of(given))) or of
    rows = await explorer.rows()
    lesson = await _lesson(explorer, rows, order, of)
    chips = await explorer.ask(lambda: read_filters(filters))

    def work() -> dict[str, Any]:
        condition = _condition(rows, chips, where)

        def answer(book: LabelBook) -> dict[str, Any]:
            chosen = _chosen(explorer, rows, book, shown, label, condition)
            if lesson is not None and order != "store":
                narrowed = (shown, label, condition, book.version)
                chosen = _ordered(explorer, rows, lesson, order, of, chosen, narrowed)
            total = len(rows) if chosen is None else len(chosen)
            every = range(total) if chosen is None else chosen
            taken = [int(row) for row in every[start : start + count]]
            found = [
                {"id": rows.ids[row], "labels": book.of(rows.ids[row]), "guess": guess_of(lesson, rows, row, of)}
                for row in taken
            ]
            return {"total": total, "start": start, "images": found}

        return explorer.labels.reading(answer)

    return await explorer.ask(work)


def _chosen(
    explorer: Explorer, rows: Rows, book: LabelBook, shown: Shown, label: str | None, where: str | None
) -> np.ndarray | None:
    """Return the matching rows; None for all."""
    chosen: np.ndarray | None = None
    if where is not None:
        chosen = explorer.once((rows.key, "where", where), lambda: _where(rows, where))
    if label is not None or shown != "all":
        label = label if label is None else book.name_of(label) or label  # the link may have a former name
        key = (rows.key, "labels", book.version, shown, label)
        by_label = explorer.once(key, lambda: _labelled(rows, book, shown, label))
        chosen = by_label if chosen is None else np.intersect1d(chosen, by_label, assume_unique=True)
    return chosen


async def _lesson(explorer: Explorer, rows: Rows, order: Order, of: str | None) -> Lesson | None:
    """Return the classifier's predictions; in store order, only if there are any yet."""
    if order == "store":
        return None if explorer.teacher is None else explorer.teacher.lesson
    lesson = await explorer.lesson(rows, "This order")
    if order == "class" and of not in lesson.material.names:
        raise RefusedError(409, "not_taught", f"The classifier knows no class {(of or '')[:80]!r} yet.")
    return lesson


def guess_of(lesson: Lesson | None, rows: Rows, row: int, of: str | None) -> dict[str, Any] | None:
    """Return the classifier's prediction for an image; None without a classifier or a prediction."""
    if lesson is None or lesson.material.key != rows.key or lesson.best[row] < 0:
        return None
    if of is not None and lesson.kept is not None and of in lesson.material.names:
        return {"label": of, "probability": float(lesson.kept[row, lesson.material.names.index(of)])}
    return {"label": lesson.material.names[lesson.best[row]], "probability": float(lesson.likely[row])}


def _ordered(
    explorer: Explorer,
    rows: Rows,
    lesson: Lesson,
    order: Order,
    of: str | None,
    chosen: np.ndarray | None,
    filters: tuple[object, ...],
) -> np.ndarray:
    """Return the rows as ranked by the classifier; `chosen` are those that pass the filters."""

    def make() -> np.ndarray:
        if order == "next":
            return lesson.next(rows.vectors, chosen)
        if order == "wrong":
            return lesson.wrong
        if order == "doubt":
            return np.argsort(lesson.margin, kind="stable")[: int((lesson.best >= 0).sum())]
        likely = lesson.of_class(of or "", rows.vectors)
        return np.argsort(-likely, kind="stable")[: int((lesson.best >= 0).sum())]

    key = (rows.key, lesson.number, order, of)
    # `next` lists only a few, so they are chosen among the filtered rows; every other order is global.
    every = explorer.once((*key, filters) if order == "next" and chosen is not None else key, make)
    return every if chosen is None else every[np.isin(every, chosen)]


def _condition(rows: Rows, filters: Sequence[Filter], where: str | None) -> str | None:
    return condition_of(filters, where, columns_of(rows.store)) if filters else where


def _where(rows: Rows, where: str) -> np.ndarray:
    return _rows_of(rows, rows.store.matching("image", where))


def _rows_of(rows: Rows, ids: Sequence[str]) -> np.ndarray:
    """Return the rows of images, ascending, in one lookup: a million one by one would take minutes."""
    found = find_rows(rows.positions, ids)
    return np.sort(found[found >= 0])


def _labelled(rows: Rows, book: LabelBook, shown: Shown, label: str | None) -> np.ndarray:
    if label is not None:
        ids: Any = [image for image in book.images() if label in book.of(image).values()]
    elif shown == "disputed":
        ids = book.disputed()
    else:
        ids = [image for image in book.images() if book.of(image)]
    found = _rows_of(rows, ids)
    if label is None and shown == "unlabelled":
        return np.setdiff1d(np.arange(len(rows)), found, assume_unique=True)
    return found


async def find(explorer: Explorer, asked: FindRequest, uploads: Mapping[str, Upload]) -> dict[str, Any]:
    """Find similar images."""
    service, encoder = explorer.service, explorer.encoder
    if asked.upload is not None and asked.upload not in uploads:
        raise RefusedError(404, "unknown_upload", f"The upload {asked.upload[:80]!r} is not in the request.")
    unused = sorted(uploads.keys() - {asked.upload})
    if unused:
        raise RefusedError(422, "invalid", f"The upload {unused[0][:80]!r} is not used by the search; leave it out.")
    if asked.image is not None:
        await service.check_images([asked.image])
    rows = await explorer.rows()
    text = asked.text
    if text is not None and any(model.searches for model in service.models.values()):
        reads = await explorer.ask(lambda: encoder.can_embed_text(rows.store, text))
        if not reads:
            return await _by_run(explorer, rows, asked)
    content = None if asked.upload is None else decoded(asked.upload, uploads[asked.upload])

    def work() -> dict[str, Any]:
        query = _query(explorer, rows, asked, content)
        allowed = rows.usable
        where = _condition(rows, asked.filters, asked.where)
        if where is not None:
            allowed = np.zeros(len(rows), bool)
            allowed[explorer.once((rows.key, "where", where), lambda: _where(rows, where))] = True
            allowed &= rows.usable
        # More than requested, because copies are merged and the image itself is not a hit.
        found, likeness = nearest_rows([rows.vectors], query, 2 * asked.k + 10, allowed=allowed)
        return _answer(explorer, rows, asked, [rows.ids[row] for row in found.tolist()], likeness, int(allowed.sum()))

    return await explorer.ask(work)


def _query(explorer: Explorer, rows: Rows, asked: FindRequest, content: bytes | None) -> np.ndarray:
    encoder = explorer.encoder
    if asked.image is not None:
        row = rows.positions.get(asked.image)
        if row is None or not rows.usable[row]:
            raise RefusedError(
                409, "cannot_embed", f"The store has no embedding of {asked.image[:80]!r} to search with."
            )
        stored: np.ndarray = rows.vectors[row].astype(np.float32)
        return stored
    if content is not None:
        if not encoder.embeds_images:
            raise RefusedError(
                409, "cannot_embed", "The vectors of this store were imported, so other images cannot be embedded; "
                    "search with an image in the store.",
            )  # fmt: skip
        return encoder.embed_image(content, max_pixels=explorer.service.limits.pixels)
    found = encoder.embed_text(rows.store, asked.text or "")
    if found is None:
        raise RefusedError(
            409, "cannot_embed", f"The encoder {encoder.name} cannot search for this text: the store has none of its "
                "texts in a common space, or the vectors were imported; serve a matching run (--run).",
        )  # fmt: skip
    return found


def _answer(
    explorer: Explorer, rows: Rows, asked: FindRequest, ids: list[str], likeness: np.ndarray, searched: int
) -> dict[str, Any]:
    copies = rows.copies if asked.fold else {}
    leave_out = [] if asked.image is None else [asked.image]
    merged = list(merge_copies(ids, "image", copies, leave_out).items())[: asked.k]

    def shown(book: LabelBook) -> list[dict[str, Any]]:
        return [
            {
                "id": own[0],
                "labels": book.of(own[0]),
                "similarity": float(likeness[position]),
                "copies": own[1:],
            }
            for position, own in merged
        ]

    return {"searched": searched, "by": "encoder", "notes": [], "images": explorer.labels.reading(shown)}


async def _by_run(explorer: Explorer, rows: Rows, asked: FindRequest) -> dict[str, Any]:
    """Search for a text with a served run, because the encoder cannot."""
    service = explorer.service
    model = service.searching_model(None)
    text = asked.text or ""
    service.check_size([text], 1)
    service.check_texts(model, [text])
    where = await explorer.ask(lambda: _condition(rows, asked.filters, asked.where))
    found = await service.search(model, text=text, k=asked.k, where=where)
    likeness = np.array([hit.similarity for hit in found.by_score], np.float32)
    ids = [hit.id for hit in found.by_score]
    answer = await explorer.ask(lambda: _answer(explorer, rows, asked, ids, likeness, found.searched))
    return {**answer, "by": "run", "notes": found.notes}
