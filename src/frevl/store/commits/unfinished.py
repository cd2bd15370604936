"""Work on a store that has begun and not finished: a store filled halfway looks like any other.

An extraction, import or merge leaves a file in ``STORE/commits/unfinished`` from its first commit to its end. Whoever
uses the store as a whole, such as a search, can then say that a part may be missing.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from frevl.files import write_json
from frevl.store.commits.failures import writing
from frevl.store.remote.address import is_remote
from frevl.store.remote.objects import Objects

__all__ = ["UNFINISHED", "Work", "call_of", "forget_work", "unfinished_work"]

UNFINISHED = "commits/unfinished"
"""Folder of the records below the store."""
_SHOWN = 200  # characters; a merge may name hundreds of parts


class Work:
    """What a writer does to a store.

    Args:
        store: Folder or address of the store.
        what: The call, the same for every repetition; None: nothing is recorded.
    """

    def __init__(self, store: Path, what: str | None) -> None:
        self._store, self._what, self._begun = store, what, False

    def begin(self) -> None:
        """Record that the call has begun; only the first time does anything.

        Raises:
            StoreError: The record cannot be written.
        """
        if self._what is None or self._begun:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {"work": self._what, "begun": now}
        if is_remote(self._store):
            Objects(self._store).write(_name(self._what), json.dumps(record).encode())
        else:
            with writing(self._store, UNFINISHED):
                (self._store / UNFINISHED).mkdir(parents=True, exist_ok=True)
                write_json(self._store / _name(self._what), record)
        self._begun = True

    def end(self) -> None:
        """Record that the call has finished, also if an earlier call began it and this one found nothing left to do."""
        if self._what is not None:
            _end(self._store, _name(self._what))


def call_of(command: str, sources: Iterable[str | Path], options: Mapping[str, str | Iterable[str] | None]) -> str:
    """Return what identifies a call for `Work`: the command, what it reads, and the options that decide what it adds.

    Args:
        command: Its words.
        sources: Files and folders, which become absolute paths; addresses, and names of data in memory, stay.
        options: Values by name; None, and an option without any value, are left out.
    """
    places = [os.path.abspath(source) if os.path.exists(source) else str(source) for source in sources]  # noqa: PTH100, PTH110
    given = {name: [value] if isinstance(value, str) else value or () for name, value in options.items()}
    return " ".join([command, *places, *(f"--{name} {value}" for name, values in given.items() for value in values)])


def forget_work(store: Path) -> None:
    """Forget all unfinished work: the store is wanted as it is."""
    for work, _ in _records(store):
        _end(store, _name(work))


def _end(store: Path, name: str) -> None:
    if not is_remote(store):
        with contextlib.suppress(OSError):  # then the work counts as unfinished, and repeating it helps
            (store / name).unlink(missing_ok=True)
    elif name in (objects := Objects(store)).names(UNFINISHED):
        objects.delete(name)


def unfinished_work(store: Path) -> list[str]:
    """Return a sentence for each call that has begun to fill a store and not finished; empty for most stores."""
    return [
        f"'{work if len(work) <= _SHOWN else work[:_SHOWN] + ' ...'}', begun {begun}, has not finished, so {store} may "
        "lack items: it is still running, or it was stopped and running it again completes it. frevl store repair "
        f"{store} accepts the store as it is."
        for work, begun in _records(store)
    ]


def _records(store: Path) -> list[tuple[str, str]]:
    """Return what has begun and when, the oldest first; records that cannot be read are left out."""
    contents: list[bytes | None] = []
    if is_remote(store):
        objects = Objects(store)
        contents += [objects.read(name) for name in objects.names(UNFINISHED)]
    else:
        with contextlib.suppress(OSError):
            for path in (store / UNFINISHED).glob("*.json"):
                with contextlib.suppress(OSError):  # it finished in the meantime
                    contents.append(path.read_bytes())
    found = []
    for content in contents:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(content or b"")
            found.append((str(record["work"]), str(record["begun"])))
    return sorted(found, key=lambda one: one[1])


def _name(work: str) -> str:
    return f"{UNFINISHED}/{hashlib.sha256(work.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.json"
