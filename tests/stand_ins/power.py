"""A power failure: what is left of a folder if the disk keeps no more than POSIX guarantees."""

import os
import stat
from pathlib import Path

__all__ = ["Disk", "PowerFailure"]


class PowerFailure(BaseException):
    """Nothing of the process continues."""


class Disk:
    """Remembers what was flushed: contents of files, and names in folders. Everything else may be lost.

    Args:
        monkeypatch: To watch ``os.fsync`` with.
        fails_at: The power fails in this flush, counted from 1; 0 for never.
    """

    def __init__(self, monkeypatch, fails_at=0):
        self.flushes = 0
        self._fails_at = fails_at
        self._contents, self._names, self._held = {}, {}, []
        monkeypatch.setattr(os, "fsync", self._fsync)

    def close(self):
        for descriptor in self._held:
            os.close(descriptor)

    def _fsync(self, descriptor):
        self.flushes += 1
        if self.flushes == self._fails_at:
            raise PowerFailure
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(descriptor)}
        else:
            if status.st_ino not in self._contents:
                self._held.append(os.dup(descriptor))  # so that no other file gets this number
            self._contents[status.st_ino] = os.pread(descriptor, status.st_size, 0)

    def left_of(self, folder: Path, target: Path, *, names_survive: bool):
        """Write what a disk would hold of a folder.

        Args:
            folder: Whose own name is on disk.
            target: Where to write; made.
            names_survive: The names of all files reached the disk, though perhaps nothing of their content; otherwise
                only names that were flushed did.
        """
        target.mkdir()
        inode = folder.stat().st_ino
        names = {entry.name: entry.inode() for entry in os.scandir(folder)} if names_survive else self._names.get(inode)
        for name, number in (names or {}).items():
            source = folder / name
            if source.is_dir() and source.stat().st_ino == number:
                self.left_of(source, target / name, names_survive=names_survive)
            elif number in self._contents or names_survive:
                (target / name).write_bytes(self._contents.get(number, b""))
            elif not source.is_dir():
                (target / name).write_bytes(b"")
