"""Train one model per fold, in this process or on the nodes of a Ray cluster; finished folds are kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from frevl.diagnosis.curation.lines import Lines
from frevl.errors import FrevlError
from frevl.store.many_nodes.connection import connected
from frevl.store.many_nodes.workers import Greeting, Workers
from frevl.store.reader import Store
from frevl.store.remote.address import is_remote
from frevl.store.towers import MODALITIES
from frevl.terminal import print_progress
from frevl.training.run_folder import NOWHERE, Checkpoint

__all__ = ["Fold", "FoldWork", "cut_short", "each_fold"]

FoldWork = Callable[[int, float | None, Checkpoint], tuple[dict[str, Tensor], bool]]
"""Trains a model without a fold and applies it to that fold.

Arguments are the number of the fold from 0, the time limit in seconds or None, and the place for unfinished state; it
returns tensors by name, and whether the time limit cut the training short."""


@dataclass(frozen=True)
class Fold:
    """The result of one fold.

    Attributes:
        number: Number of the fold, from 0.
        tensors: Tensors returned by its work, by name.
        cut: Whether the time limit cut its training short.
    """

    number: int
    tensors: dict[str, Tensor]
    cut: bool


def cut_short(cut: int, folds: int) -> list[str]:
    """Return the doubt about folds cut short by the time limit; empty if none were."""
    if not cut:
        return []
    return [
        f"{cut} of {folds} folds {'was' if cut == 1 else 'were'} cut short by --time-limit: their lines were "
        "checked by models with less training."
    ]


def each_fold(
    lines: Lines,
    name: str,
    folds: int,
    here: FoldWork,
    there: Callable[[Lines], FoldWork],
    *,
    limit: float | None,
    least: float,
) -> Iterator[Fold]:
    """Train one model per fold, and yield the results in order.

    Folds finished by an interrupted call are not repeated. With ``lines.ray``, the nodes of that cluster train several
    folds at once; the results differ from those of this process as training with other numbers of threads does.

    Args:
        lines: The lines.
        name: Name of the model, for progress and for the files of finished folds.
        folds: Number of folds.
        here: The work, for this process.
        there: Returns the work on a node; it must be picklable.
        limit: Time limit for all folds together in seconds, or None.
        least: Minimum seconds per fold.

    Raises:
        FrevlError: There is no cluster, or a node sees another store or has another version of frevl.
    """
    began = lines.checkpoint.clock.seconds()
    finished: dict[int, Fold] = {}
    places = [lines.checkpoint.part(f"{name} fold {number + 1}") for number in range(folds)]
    for number, place in enumerate(places):
        saved = _saved(place, lines.session.time_limit)
        if saved is not None:
            finished[number] = Fold(number, saved[0], saved[1]["cut"])
    left = [number for number in range(folds) if number not in finished]

    def seconds_each(rounds: int) -> float | None:
        """Return the time limit of a fold if that many must be trained one after the other."""
        return None if limit is None else max(least, (limit - (lines.checkpoint.clock.seconds() - began)) / rounds)

    training = (
        _in_this_process(lines, name, left, here, places, seconds_each)
        if lines.ray is None or not left
        else _on_nodes(lines, lines.ray, name, left, there, seconds_each)
    )
    with closing(training):
        for following in range(folds):
            while following not in finished:
                number, tensors, cut, seconds = next(training)
                places[number].save(tensors, {"seconds": seconds, "cut": cut, "limit": lines.session.time_limit})
                places[number].discard_parts()
                finished[number] = Fold(number, tensors, cut)
            yield finished.pop(following)


_Trained = tuple[int, dict[str, Tensor], bool, float]
"""Number of the fold, tensors, whether the time limit cut it short, and the seconds it took."""


def _in_this_process(
    lines: Lines,
    name: str,
    left: Sequence[int],
    work: FoldWork,
    places: Sequence[Checkpoint],
    seconds_each: Callable[[int], float | None],
) -> Generator[_Trained, None, None]:
    clock = lines.checkpoint.clock
    for done, number in enumerate(left):
        print_progress(f"{name}: training without fold {number + 1} of {len(places)}", enabled=lines.session.progress)
        begun = clock.seconds()
        tensors, cut = work(number, seconds_each(len(left) - done), places[number])
        yield number, tensors, cut, clock.seconds() - begun


def _on_nodes(
    lines: Lines,
    address: str,
    name: str,
    left: Sequence[int],
    there: Callable[[Lines], FoldWork],
    seconds_each: Callable[[int], float | None],
) -> Generator[_Trained, None, None]:
    with connected(address) as ray:
        accelerators = 0 if lines.session.device == "cpu" else 1
        hired: Workers[tuple[int, float | None], _Trained] = Workers(
            ray, partial(_FoldsOnNode, _Recipe.of(lines), there), count=len(left),
            processors=_processors(ray, len(left)), accelerators=accelerators,
        )  # fmt: skip
        content = _content(lines.store)

        def greeted(greeting: Greeting) -> None:
            if greeting.about != content:
                raise FrevlError(
                    f"--ray: the node {greeting.node} sees a different store under {lines.store.path} than this "
                    "process; give a path that is valid on all nodes, and do not write to the store meanwhile"
                )

        try:
            with hired:
                hired.start(greeted)
                seconds = seconds_each(-(-len(left) // hired.count))
                print_progress(
                    f"{name}: training {len(left)} folds on {hired.count} workers", enabled=lines.session.progress
                )
                for _, trained in hired.results((number, seconds) for number in left):
                    yield trained
        finally:  # also if the caller stops before the last fold
            lines.notes.extend(hired.notes)


def _processors(ray: ModuleType, workers: int) -> int:
    """Return how many cores each worker may have, so that all workers fit at once if possible."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    room = min(workers, sum(nodes))
    return next((most for most in range(max(nodes, default=1), 1, -1) if sum(n // most for n in nodes) >= room), 1)


def _content(store: Store) -> dict[str, Any]:
    versions = {modality: store.version(modality) for modality in MODALITIES}
    return {"store": store.fingerprint, "versions": versions}


@dataclass(frozen=True)
class _Recipe:
    """Lines without their store and checkpoint, to be sent to a node."""

    store: str
    rest: dict[str, Any]

    @classmethod
    def of(cls, lines: Lines) -> _Recipe:
        path = lines.store.path
        place = str(path) if is_remote(path) else os.path.abspath(path)  # noqa: PTH100 - links stay as they are
        rest = {one.name: getattr(lines, one.name) for one in fields(lines)}
        rest |= {"session": replace(lines.session, progress=False), "checkpoint": NOWHERE, "notes": [], "ray": None}
        del rest["store"]
        return cls(place, rest)

    def lines(self) -> Lines:
        return Lines(store=Store.open(self.store), **self.rest)


class _FoldsOnNode:
    """Trains folds on a node."""

    def __init__(self, recipe: _Recipe, there: Callable[[Lines], FoldWork]) -> None:
        self._lines, self._there = recipe.lines(), there
        self._work: FoldWork | None = None
        self.about = _content(self._lines.store)

    def __call__(self, block: tuple[int, float | None]) -> _Trained:
        number, seconds = block
        begun = time.monotonic()
        if self._work is None:
            self._work = self._there(self._lines)  # not at the greeting: reading embeddings may take minutes
        tensors, cut = self._work(number, seconds, NOWHERE)
        return number, tensors, cut, time.monotonic() - begun


def _saved(place: Checkpoint, limit: float | None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the saved state of a fold from an interrupted call.

    Args:
        place: Place of the fold; its record has ``cut``, and ``limit``, the time limit of that call.
        limit: The time limit of this call in seconds, or None.

    Returns:
        Tensors and record; None if nothing is saved, or if it was cut short and there is now more time.
    """
    saved = place.load()
    if saved is None or "cut" not in saved[1]:  # an earlier version did not record it
        return None
    record = saved[1]
    if record["cut"] and (limit is None or limit > record["limit"]):
        place.clock.add_earlier(-float(record["seconds"]))  # that time does not belong to this result
        return None
    return saved
