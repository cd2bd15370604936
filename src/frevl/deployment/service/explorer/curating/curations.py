"""The curations that an explorer shows: the given one, and those started from the page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frevl.deployment.service.explorer.curating.background import Job
from frevl.deployment.service.explorer.curating.decisions import Standing, decisions_beside
from frevl.deployment.service.explorer.curating.result import CurationResult, open_result, stamp_of
from frevl.deployment.service.http.limits import RefusedError
from frevl.errors import InputError
from frevl.store.commits.table_writer import in_utf8
from frevl.store.labels.labels_file import LabelsFile

__all__ = ["Curations", "Opened", "Removal"]

_MOST_OPEN = 2  # results held in memory
Removal = Callable[..., dict[str, Any] | None]
"""Compares what is removed with random removal (`frevl.diagnosis.curation.removal.report.removed_of_lines`)."""


@dataclass
class Opened:
    """A result with its decisions.

    Attributes:
        result: What ``frevl curate`` found.
        decisions: People's decisions on it.
        stamp: Stamp of the files when they were read.
    """

    result: CurationResult
    decisions: LabelsFile
    stamp: tuple[object, ...]
    _standing: Standing | None = None

    def standing(self) -> Standing:
        """Return what is left after all decisions, including recent ones by others."""

        def ask() -> Standing:
            book = self.decisions.book()
            if self._standing is None or self._standing.version != book.version:
                self._standing = Standing.of(self.result, book)
            return self._standing

        return self.decisions.reading(lambda _: ask())


class Curations:
    """Finds and opens curations by name.

    Args:
        store: Folder of the store; curations started from the page are kept in ``STORE/curation``.
        writable: Whether decisions are accepted.
        given: The result given at the start, or None.
        pairs: A pairs file that may be curated from the page, or None.
        images: Folder of the images, or None.
        command: Command that runs ``frevl``; empty disables starting curations.
        removal: Compares what all decisions remove with random removal; None uses what ``frevl curate`` wrote.

    Attributes:
        folder: Folder of curations started from the page.
        job: The curation started from the page.

    Raises:
        InputError: The given curation cannot be used.
    """

    def __init__(
        self,
        store: Path,
        *,
        writable: bool,
        given: Path | None = None,
        pairs: Path | None = None,
        images: Path | None = None,
        command: Sequence[str] = (),
        removal: Removal | None = None,
    ) -> None:
        self.removal = removal
        self.folder = store / "curation"
        self.job = Job(self.folder, store, pairs, images, command)
        self._given = given
        self._writable = writable
        self._open: dict[Path, Opened] = {}
        self._guard = threading.Lock()
        if given is not None:
            stamp_of(given)

    def paths(self) -> dict[str, Path]:
        """Return all results by name, the given one first, then newest first."""
        own = sorted(self.folder.glob("*/result.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        found = {} if self._given is None else {in_utf8(self._given.stem): self._given}
        for path in own:
            name = in_utf8(path.parent.name)
            found[f"{name} (store)" if name in found else name] = path
        return found

    def scrubbed(self, sentence: str) -> str:
        """Remove the folder of the given result from a sentence."""
        return sentence if self._given is None else sentence.replace(f"{self._given.parent}/", "")

    def opened(self, name: str | None) -> Opened:
        """Open a curation; None opens the first.

        Raises:
            RefusedError: No curation has this name, or it can no longer be used.
        """
        paths = self.paths()
        if name is None and paths:
            name = next(iter(paths))
        if name is None or name not in paths:
            what = "There is no curation yet." if name is None else f"There is no curation {name[:80]!r} here."
            raise RefusedError(404, "no_curation", what)
        path = paths[name]
        with self._guard:
            try:
                stamp = stamp_of(path)
                found = self._open.pop(path, None)
                if found is None or found.stamp != stamp:
                    found = Opened(open_result(path), decisions_beside(path, writes=self._writable), stamp)
            except InputError as error:
                raise RefusedError(409, "bad_curation", str(error).replace(f"{path.parent}/", "")) from None
            self._open[path] = found
            while len(self._open) > _MOST_OPEN:
                self._open.pop(next(iter(self._open)))
        return found
