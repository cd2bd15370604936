"""Handlers of map requests, one function per route."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np

from frevl.deployment.service.explorer.browse_handlers import guess_of
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.mapping.clusters import cluster_numbers
from frevl.deployment.service.explorer.mapping.map_schemas import MapMethod, PointsRequest
from frevl.deployment.service.explorer.mapping.projection import Projection, projection_of
from frevl.deployment.service.explorer.rows import Rows
from frevl.deployment.service.http.limits import RefusedError
from frevl.errors import counted
from frevl.store.ids.rows_of_ids import find_rows

__all__ = ["ColourBy", "colours", "pictures", "whole_map"]

ColourBy = Literal["label", "cluster", "guess", "probability", "doubt"]
_CLUSTERS = 12


async def whole_map(explorer: Explorer, method: MapMethod = "components") -> dict[str, Any]:
    """Return all points, or report that they are being computed."""
    rows = await explorer.rows()

    def work() -> dict[str, Any]:
        problem = ""
        found: Projection | None
        if method == "components":
            found = _components(explorer, rows)
        else:
            found, problem = explorer.neighbours.ask(rows)
        points = b"" if found is None else found.points.astype("<f4").tobytes()
        return {
            "key": rows.key,
            "total": int(rows.usable.sum()),
            "count": 0 if found is None else len(found.rows),
            "points": base64.b64encode(points).decode(),
            "explained": [0.0, 0.0] if found is None else list(found.explained),
            "method": method,
            "methods": ["components", *(["neighbours"] if explorer.neighbours.offered else [])],
            "computing": found is None and not problem,
            "problem": problem,
        }

    return await explorer.ask(work)


def _components(explorer: Explorer, rows: Rows) -> Projection:
    found: Projection = explorer.once((rows.key, "map"), lambda: projection_of(rows, keep=explorer.writable))
    return found


def _projection(explorer: Explorer, rows: Rows, method: MapMethod) -> Projection:
    if method == "components":
        return _components(explorer, rows)
    found, problem = explorer.neighbours.ask(rows)
    if found is None:
        raise RefusedError(409, "no_map", problem or "The map is being computed; try again in a while.")
    return found


async def colours(explorer: Explorer, by: ColourBy, of: str | None, method: MapMethod = "components") -> dict[str, Any]:
    """Return the values that colour the points."""
    rows = await explorer.rows()
    lesson = None if by in ("label", "cluster") else await explorer.lesson(rows, "This colour")

    def work() -> dict[str, Any]:
        drawn = _projection(explorer, rows, method).rows
        if by == "label":
            return {"key": rows.key, **_by_label(explorer, rows, drawn)}
        if lesson is None:  # clusters need no classifier
            numbers = explorer.once(
                (rows.key, "clusters", method), lambda: cluster_numbers(rows.vectors, drawn, _CLUSTERS)
            )
            counts: list[int] = np.bincount(numbers).tolist()
            names = [f"cluster {number + 1}: {counted(count, 'image')}" for number, count in enumerate(counts)]
            return {"key": rows.key, "names": names, "values": numbers.tolist()}
        names = lesson.material.names
        if by == "guess":
            return {"key": rows.key, "names": names, "values": lesson.best[drawn].tolist()}
        if by == "doubt":
            values = 1 - np.clip(lesson.margin[drawn], 0, 1)
        elif of not in names:
            raise RefusedError(409, "not_taught", f"The classifier knows no class {(of or '')[:80]!r} yet.")
        else:
            values = lesson.of_class(of, rows.vectors)[drawn]
        return {"key": rows.key, "names": [], "values": np.round(255 * values).astype(int).tolist()}

    return await explorer.ask(work)


def _by_label(explorer: Explorer, rows: Rows, drawn: np.ndarray) -> dict[str, Any]:
    agreed, disputed, names = explorer.labels.reading(
        lambda book: (book.agreed(), book.disputed(), list(book.classes()))
    )
    numbers = {name: number for number, name in enumerate(names)}
    of_row = np.full(len(rows), -1, np.int64)
    for row, name in zip(find_rows(rows.positions, list(agreed)).tolist(), agreed.values(), strict=True):
        if row >= 0:
            of_row[row] = numbers[name]
    divided = find_rows(rows.positions, disputed)
    of_row[divided[divided >= 0]] = -2
    return {"names": names, "values": of_row[drawn].tolist()}


async def pictures(explorer: Explorer, asked: PointsRequest) -> dict[str, Any]:
    """Return the images at some points."""
    rows = await explorer.rows()
    if asked.key != rows.key:
        raise RefusedError(409, "store_changed", "The store has changed since this map was drawn; reload the map.")

    def work() -> dict[str, Any]:
        drawn = _projection(explorer, rows, asked.method).rows
        beyond = next((point for point in asked.points if point >= len(drawn)), None)
        if beyond is not None:
            raise RefusedError(422, "invalid", f"The map has {len(drawn):,} points, found point {beyond:,}.")
        lesson = None if explorer.teacher is None else explorer.teacher.lesson
        chosen = [int(row) for row in drawn[asked.points]]
        return explorer.labels.reading(
            lambda book: {
                "images": [
                    {"id": rows.ids[row], "labels": book.of(rows.ids[row]), "guess": guess_of(lesson, rows, row, None)}
                    for row in chosen
                ]
            }
        )

    return await explorer.ask(work)
