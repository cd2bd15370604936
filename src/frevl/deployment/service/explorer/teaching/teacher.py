"""Refit the classifier in the background whenever labels change."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from frevl.deployment.service.explorer.query_encoder import QueryEncoder
from frevl.deployment.service.explorer.rows import Rows
from frevl.deployment.service.explorer.teaching.lesson import Classifier, Fit, Lesson, Material, apply_classifier
from frevl.errors import FrevlError
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.labels.labels_file import LabelsFile

__all__ = ["Teacher"]

_log = logging.getLogger("frevl.service")

_MOST_NAMED = 1_000  # maximum number of classes whose names are used


class Teacher:
    """Keeps a classifier up to date with the labels.

    A change of labels first triggers a quick fit with the known settings, so that the order of the images follows
    within a second; then a fit with held-out labels, which gives accuracy and settings. If labels change in between,
    the next quick fit comes first.

    Args:
        labels: The labels.
        rows: Returns the images; called in the teaching thread.
        fit: Fits a classifier.
        encoder: Embeds class names, if it has a common space of texts and images.
    """

    def __init__(self, labels: LabelsFile, rows: Callable[[], Rows], fit: Fit, encoder: QueryEncoder) -> None:
        self._labels, self._rows, self._fit, self._encoder = labels, rows, fit, encoder
        self._changed = threading.Condition()
        self._wanted = False
        self._closed = False
        self._working = False
        self._before: Classifier | None = None
        self._seen: tuple[int, str] | None = None  # version of the labels and of the rows
        self.lesson: Lesson | None = None
        self.problem = ""
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Check whether labels or images have changed; called after each label and on every request. Blocks."""
        now = self._labels.book().version, self._rows().key
        with self._changed:
            if self._closed or now == self._seen:
                return
            self._wanted, self._seen = True, now
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="teacher", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Stop the thread. Blocks, so do not call it on the event loop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def state(self) -> dict[str, Any]:
        """Return the figures of the last fit; see ``TeachResponse``."""
        lesson = self.lesson
        with self._changed:
            busy = self._wanted or self._working
        record: dict[str, Any] = {"busy": busy, "ready": lesson is not None, "problem": self.problem}
        if lesson is None:
            return record
        return {
            **record,
            "version": lesson.material.version,
            "pictures": len(lesson.material.rows),
            "classes": lesson.material.names,
            "method": lesson.classifier.method,
            "accuracy": lesson.accuracy,
            "confusion": lesson.confusion,
            "wrong": len(lesson.wrong),
            "seconds": lesson.seconds,
            "notes": [*lesson.classifier.notes, *lesson.material.notes],
        }

    def _run(self) -> None:
        while True:
            with self._changed:
                self._working = False
                self._changed.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                self._wanted, self._working = False, True
            try:
                self._work()
            except FrevlError as error:
                self.problem = f"The classifier could not be fitted: {error}"
            except Exception as error:
                _log.error("teaching failed", exc_info=error)
                self.problem = "The classifier could not be fitted; see the log of the service."

    def _stop(self) -> bool:
        return self._closed

    def _overtaken(self) -> bool:
        return self._wanted or self._closed

    def _work(self) -> None:
        rows = self._rows()
        material = _material(self._labels, rows, self._encoder)
        if len(material.names) < 2:
            self.lesson, self._before = None, None
            self.problem = "Label at least one image of each of two classes; then the classifier learns them."
            if self._encoder.text is not None:
                self.problem = (
                    "Name at least two classes, and it guesses from their names; then label images, and it "
                    "learns from them."
                )
            return
        self.problem = ""
        vectors = rows.vectors
        examples = np.asarray(vectors[material.rows])
        given = examples, material.labels, material.clusters.tolist(), len(material.names)
        by_name: dict[str, Any] = {"names": material.name_vectors, "scale": self._encoder.scale}
        if self._before is not None:
            lesson = self._learn(material, lambda: self._fit(*given, before=self._before, **by_name), rows)
            if lesson is None:
                return
            former = self.lesson
            # The previous figures stay until the new ones are known; if the store has changed, their rows may be other
            # images.
            if former is not None and former.material.key == material.key:
                lesson.accuracy, lesson.confusion, lesson.wrong = former.accuracy, former.confusion, former.wrong
            self.lesson = lesson
            if self._overtaken():
                return
        lesson = self._learn(material, lambda: self._fit(*given, **by_name), rows)
        if lesson is not None:
            lesson.evaluate(lesson.classifier)
            self._before, self.lesson = lesson.classifier, lesson

    def _learn(self, material: Material, fit: Callable[[], Classifier], rows: Rows) -> Lesson | None:
        started = time.perf_counter()
        classifier = fit()
        fitted = time.perf_counter()
        lesson = apply_classifier(material, classifier, rows.vectors, rows.usable, self._stop)
        if lesson is not None:
            lesson.seconds = {"fit": fitted - started, "score": time.perf_counter() - fitted}
        return lesson


def _material(labels: LabelsFile, rows: Rows, encoder: QueryEncoder) -> Material:
    version, agreed, classes = labels.reading(lambda book: (book.version, book.agreed(), list(book.classes())))
    places = find_rows(rows.positions, list(agreed)).tolist()
    known = [(row, name) for row, name in zip(places, agreed.values(), strict=True) if row >= 0 and rows.usable[row]]
    names = list(dict.fromkeys(name for _, name in known))
    named = names + [name for name in classes if name not in set(names)]
    name_vectors: np.ndarray | None = None
    notes: list[str] = []
    if len(named) > _MOST_NAMED:
        named = names  # embedding them all and scoring them for every image would take too long
    if 2 <= len(named) <= _MOST_NAMED:
        name_vectors, notes = encoder.embed_names(rows.store, named)
    if name_vectors is None:
        named = names
    numbers = {name: number for number, name in enumerate(named)}
    found = np.array([row for row, _ in known], np.int64)
    firsts = [rows.positions.get(rows.copies.get(rows.ids[row], rows.ids[row]), row) for row in found.tolist()]
    return Material(
        version=version,
        key=rows.key,
        rows=found,
        labels=np.array([numbers[name] for _, name in known], np.int64),
        clusters=np.array(firsts, np.int64),
        names=named,
        name_vectors=name_vectors,
        notes=notes,
    )
