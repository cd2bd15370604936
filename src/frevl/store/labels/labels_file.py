"""The labels file of a store: ``STORE/labels/labels.jsonl``, only ever appended to.

A label is on disk when `LabelsFile.label` returns, so a killed process loses none. If it is killed while writing
several unconfirmed labels, it may leave some of them, which count; repeating the request writes the rest. Several
processes may write: a lock keeps their lines apart, and each reads the others' additions before it writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from frevl.errors import StoreError, UsageError
from frevl.files import flush_folder
from frevl.store.labels.book import LabelBook
from frevl.store.labels.entries import FORMAT, Entry, class_name, labeller_name, now, parse, request_id

__all__ = ["HEADER", "LabelsFile"]

A = TypeVar("A")

HEADER = json.dumps({"frevl_labels": FORMAT}).encode() + b"\n"
_MOST_NOTES = 20
_LOCK_SECONDS = 10.0


class LabelsFile:
    """The labels of a store. Threads and processes may share one file.

    Args:
        store: Folder of the store.
        writes: False never writes, and leaves an incomplete last line unchanged.
        name: Name of the file in the folder. Decisions on a curation are labels, too, in a file of their own.

    Attributes:
        path: The file; it is created with the first label.
        notes: Notes for the user on unreadable lines or an incomplete last line.

    Raises:
        StoreError: The file cannot be read.
    """

    def __init__(self, store: Path, *, writes: bool = True, name: str = "labels/labels.jsonl") -> None:
        self.path = store / name
        self.notes: list[str] = []
        self._guard = threading.RLock()
        self._start_over()
        with self._guard:
            self._read()
            if writes and self._tail():
                with contextlib.suppress(StoreError), self._locked():  # reported when something is to be written
                    self._read()
                    self._mend()

    def _start_over(self) -> None:
        self._book = LabelBook()
        self._offset = self._lines = 0
        self._file: tuple[int, int] | None = None  # device and inode
        self._last = b""  # the last line read: a new file may reuse the inode of a deleted one

    def book(self) -> LabelBook:
        """Return the state, including recent writes by others. Read-only; it changes with the next label."""
        with self._guard:
            self._read()
            return self._book

    def reading(self, ask: Callable[[LabelBook], A]) -> A:
        """Query the newest state while nobody changes it."""
        with self._guard:
            self._read()
            return ask(self._book)

    # ---- writing

    def label(self, by: str, labels: Sequence[tuple[str, str | None]], request: str | None = None) -> str:
        """Write a labeller's answers for some images.

        Args:
            by: Name of the labeller.
            labels: Image and class of each label; a class of None withdraws the labeller's own label.
            request: The caller's id, of letters and digits; repeating it writes only what is missing, so that a caller
                without an answer can try again.

        Returns:
            The id by which the request can be undone.

        Raises:
            UsageError: An invalid name, no labels, or an id under which something else was written.
            StoreError: The file cannot be written; nothing was.
        """
        if not labels:
            raise UsageError("labels: expected at least one, found none")
        named = [(image, None if name is None else class_name(name)) for image, name in labels]
        entry = Entry("", "", labeller_name(by), "label", None)
        return self._append([replace(entry, image=image, name=name) for image, name in named], request)

    def define(self, by: str, names: Sequence[str], request: str | None = None) -> str:
        """Add classes; existing ones are unchanged."""
        entry = Entry("", "", labeller_name(by), "define", None)
        return self._append([replace(entry, name=class_name(name)) for name in names], request)

    def rename(self, by: str, name: str, to: str, *, merge: bool = False, request: str | None = None) -> str:
        """Rename a class.

        Raises:
            UsageError: There is no such class, or the new name is taken and ``merge`` is False.
            StoreError: The file cannot be written; nothing was.
        """
        name, to = class_name(name), class_name(to)

        def check(book: LabelBook) -> None:
            if name not in book.classes():
                now_called = book.name_of(name)
                hint = f"it is now called {now_called!r}" if now_called else "give the name of an existing class"
                raise UsageError(f"There is no class {name!r:.80}; {hint}.")
            if to in book.classes() and to != name and not merge:
                raise UsageError(f"The class {to!r:.80} already exists; choose another name, or request a merge.")

        return self._append([Entry("", "", labeller_name(by), "rename", name, to=to)], request, check)

    def undo(self, by: str, request: str | None = None) -> list[Entry]:
        """Undo a labeller's last entries, or those under an id.

        Returns:
            The entries that no longer count.

        Raises:
            UsageError: There is nothing to undo.
            StoreError: The file cannot be written; nothing was.
        """
        by = labeller_name(by)
        undone: list[Entry] = []

        def find(book: LabelBook) -> list[Entry]:
            found = book.last_of(by) if request is None else request
            own = [] if found is None else [one for one in book.of_request(found) if one.by == by]
            undone[:] = [one for one in own if one.action != "undo" and found not in book.undone]
            if not undone:
                what = "nothing" if request is None else f"nothing under the id {request!r:.80}"
                raise UsageError(f"There is {what} that {by!r:.80} could undo.")
            return [Entry("", "", by, "undo", found)]

        with self._guard, self._locked():
            self._read()
            self._mend()
            self._write(_named(find(self._book), secrets.token_hex(8)))
        return undone

    def _append(
        self, entries: Sequence[Entry], request: str | None, check: Callable[[LabelBook], None] = lambda _: None
    ) -> str:
        id_ = secrets.token_hex(8) if request is None else request_id(request)
        with self._guard, self._locked():
            self._read()
            self._mend()
            named = _named(entries, id_)
            if self._book.knows(id_):
                named = self._missing(named, id_)
            else:
                check(self._book)
            if named:
                self._write(named)
        return id_

    def _missing(self, entries: Sequence[Entry], id_: str) -> list[Entry]:
        """Return the missing entries of a repeated request whose writer was killed part-way.

        Raises:
            UsageError: The id was used for something else.
        """
        asked = {entry.id: entry for entry in entries}
        known = {entry.id: entry for entry in self._book.of_request(id_)}
        for name, entry in known.items():
            if name not in asked or replace(entry, at="") != asked[name]:
                raise UsageError(
                    f"The id {id_!r} was already used by {entry.by!r:.80} for something else; nothing was written. "
                    "Use another id."
                )
        if id_ in self._book.undone:
            return []
        return [entry for name, entry in asked.items() if name not in known]

    def _write(self, entries: Sequence[Entry]) -> None:
        at = now()
        lines = b"".join(replace(entry, at=at).line() for entry in entries)
        is_new = self._offset == 0
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                self._write_all(descriptor, (HEADER if is_new else b"") + lines)
            finally:
                os.close(descriptor)
            if is_new:
                flush_folder(self.path.parent)
                flush_folder(self.path.parent.parent)
        except OSError as error:
            raise self._unwritable(error) from error
        self._read()

    def _write_all(self, descriptor: int, content: bytes) -> None:
        """Write and flush, or leave the file as it was."""
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._offset)
            raise

    def _mend(self) -> None:
        """Set aside a last line that was cut off while being written. Requires the lock."""
        torn = self._tail()
        if not torn:
            return
        try:
            with self.path.open("r+b") as file:
                whole = self._is_whole(torn)
                if whole:  # only its newline is missing
                    file.seek(0, os.SEEK_END)
                    file.write(b"\n")
                else:
                    with self.path.with_name("torn").open("ab") as aside:
                        aside.write(torn + b"\n")
                        aside.flush()
                        os.fsync(aside.fileno())
                    file.truncate(self._offset)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error
        if not whole:
            self._note(
                f"The last line of {self.path.name} was cut off while being written ({len(torn):,} bytes), so it had "
                f"not been confirmed; its bytes are kept in '{self.path.parent.name}/torn', and all entries before it "
                "count."
            )
        self._read()

    @staticmethod
    def _is_whole(line: bytes) -> bool:
        try:
            return parse(line) is not None
        except ValueError:
            return False

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.path}: {self.path.stem} cannot be written ({error.strerror or error}), so nothing was written; "
            "free some space or correct the permissions, and try again"
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(exist_ok=True)
            lock = FileLock(self.path.with_name(".lock"), timeout=_LOCK_SECONDS)
            lock.acquire()
        except OSError as error:  # including a timeout
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    # ---- reading

    def _read(self) -> None:
        """Read newly added lines."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                file.seek(max(0, self._offset - len(self._last)))
                same = self._file == (status.st_dev, status.st_ino) and file.read(len(self._last)) == self._last
                if not same:
                    if self._file is not None:
                        self._note(f"{self.path.name} was replaced by another file, which was read from the start.")
                    self._start_over()
                    self._file = (status.st_dev, status.st_ino)
                if status.st_size == self._offset:
                    return
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            if self._file is not None:
                self._note(f"{self.path.name} has been deleted, along with its {self.path.stem}.")
                self._start_over()
            return
        except OSError as error:
            raise StoreError(
                f"{self.path}: {self.path.stem} cannot be read ({error.strerror or error}); correct the permissions, "
                "or put the file back"
            ) from error
        self._take(added[: added.rfind(b"\n") + 1])

    def _take(self, whole: bytes) -> None:
        """Add whole lines to the state."""
        self._offset += len(whole)
        if whole:
            self._last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
            self._book.digest = zlib.crc32(whole, self._book.digest)  # the same for whoever reads these lines
        for line in whole.split(b"\n")[:-1]:
            self._lines += 1
            try:
                entry = parse(line)
            except ValueError as error:
                if line.strip():
                    self._note(
                        f"{self.path.name}, line {self._lines:,}: expected a label, found {error}; the line does not "
                        "count, but stays in the file."
                    )
                continue
            if entry is not None:
                self._book.take(entry)

    def _tail(self) -> bytes:
        """Return the bytes after the last complete line."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                return file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StoreError(f"{self.path}: {self.path.stem} cannot be read ({error.strerror or error})") from error

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)
        if len(self.notes) > _MOST_NOTES:
            del self.notes[_MOST_NOTES - 1 : -1]


def _named(entries: Sequence[Entry], id_: str) -> list[Entry]:
    """Assign ids to the entries of a request."""
    if len(entries) == 1:
        return [replace(entries[0], id=id_)]
    return [replace(entry, id=f"{id_}.{number}") for number, entry in enumerate(entries)]
