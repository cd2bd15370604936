"""A curation started from the page: ``frevl curate`` in its own process, watched by the service."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frevl.deployment.service.explorer.background.processes import birth_of, is_alive, last_lines, recorded
from frevl.deployment.service.http.limits import RefusedError
from frevl.files import read_record, write_json, write_lines
from frevl.runs.run import UNFINISHED
from frevl.store.commits.table_writer import in_utf8
from frevl.store.remote.address import is_remote

__all__ = ["Job"]

_PROCESS = "process.json"
_SECONDS_TO_STOP = 10.0
_LONGEST = 500  # characters of its last output


@dataclass
class _Call:
    """One call of ``frevl curate`` on this store, started by this service or by another one, perhaps an earlier one."""

    place: Path
    id: int
    born: str
    begun: float  # seconds since 1970, like all that follow
    own: subprocess.Popen[bytes] | None = None
    ended: float | None = None
    stopped: bool = False

    @classmethod
    def read(cls, file: Path) -> _Call | None:
        """Read what `keep` wrote; None if it cannot be read."""
        try:
            record = read_record(file)
            return cls(file.parent, int(record["process"]), str(record["born"]), float(record["begun"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def keep(self) -> None:
        """Record the process, for the next service."""
        write_json(self.place / _PROCESS, {"process": self.id, "born": self.born, "begun": self.begun})

    def runs(self) -> bool:
        if self.own is None:
            return is_alive(self.id, self.born)
        if self.own.poll() is not None:
            return False
        if is_alive(self.id, self.born):
            return True
        # While `watch` waits, `poll` learns nothing: the process has ended, and that thread is about to say how.
        self.own.wait()
        return False

    def watch(self) -> None:
        """Record when a process of this service ended. Blocks until then."""
        if self.own is not None:
            self.own.wait()
            self.ended = time.time()

    def state(self) -> str:
        if self.runs():
            return "running"
        code = None if self.own is None else self.own.returncode
        if self.stopped or code == -signal.SIGTERM:  # perhaps stopped by another service
            return "stopped"
        return "failed" if code or not (self.place / "result.json").exists() else "done"

    def seconds(self) -> float:
        ended = self.ended
        if ended is None:
            ended = time.time()
            if self.own is None and not self.runs():  # its end was not observed: use the time of its last output
                with contextlib.suppress(OSError):
                    ended = (self.place / "log").stat().st_mtime
        return max(0.0, ended - self.begun)

    def stop(self) -> None:
        """Stop it. Blocks."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(OSError):  # it has already ended
                if self.own is not None:
                    self.own.send_signal(number)
                elif self.runs():
                    os.kill(self.id, number)
            end = time.monotonic() + _SECONDS_TO_STOP
            while self.runs() and time.monotonic() < end:
                time.sleep(0.02)
            if not self.runs():
                return


class Job:
    """Run one curation of a store at a time.

    Its output is in ``STORE/curation/NAME``. A stopped or killed curation continues when the same one is started again.
    A curation that survives its service is found by the next service.

    Args:
        folder: ``STORE/curation``.
        store: Folder of the store.
        pairs: The pairs file that may be curated, or None.
        images: Folder of the images, or None.
        command: Command that runs ``frevl``; empty disables starting.
    """

    def __init__(
        self, folder: Path, store: Path, pairs: Path | None, images: Path | None, command: Sequence[str]
    ) -> None:
        self.pairs = pairs
        self._folder, self._store, self._images, self._command = folder, store, images, list(command)
        self._guard = threading.Lock()
        self._call: _Call | None = None

    @property
    def can_start(self) -> bool:
        """Return whether a curation can be started."""
        return bool(self._command) and not is_remote(self._store)

    def start(self, labels: Mapping[str, str] | None) -> None:
        """Start curating the pairs file, or the labels of images.

        Raises:
            RefusedError: One is running, there is nothing to curate, or the disk cannot be written.
        """
        with self._guard:
            if is_remote(self._store):
                raise RefusedError(
                    409,
                    "store_in_bucket",
                    "Curating from the page requires a store in a local folder; run frevl curate.",
                )
            call = self._current()
            if call is not None and call.runs():
                raise RefusedError(409, "busy", "A curation is running; wait for it, or stop it first.")
            if not self._command:
                raise RefusedError(422, "invalid", "This service cannot start a curation; frevl explore can.")
            if labels is None and self.pairs is None:
                raise RefusedError(
                    422, "invalid", "There is no pairs file to curate: start frevl explore with --pairs FILE."
                )
            if labels is not None and not labels:
                raise RefusedError(422, "invalid", "There are no labels to curate: label images first.")
            try:
                self._begin(labels)
            except OSError as error:
                raise RefusedError(
                    503, "store", f"The curation cannot be started ({error.strerror or error}).", retry_after=10
                ) from None

    def _begin(self, labels: Mapping[str, str] | None) -> None:
        place = self._free_place(labels)
        place.mkdir(parents=True, exist_ok=True)
        pairs = self.pairs
        task: list[str] = []
        if labels is not None:
            pairs = place / "labels.jsonl"
            if not _holds(pairs, labels):
                write_lines(pairs, ({"image": image, "target": name} for image, name in labels.items()))
            task = ["--task", "classification"]
        given = ["--store", self._store, "--pairs", pairs, "--out", place / "kept.jsonl"]
        given += ["--dropped", place / "dropped.jsonl", "--json", place / "result.json"]
        given += [] if self._images is None else ["--images", self._images]
        begun = time.time()
        _Call(place, 0, "", begun).keep()  # completed by the process itself
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - the command is ours, and the files are those of the start
                recorded([*self._command, "curate", *map(str, given), *task], place / _PROCESS),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._call = _Call(place, process.pid, birth_of(process.pid), begun, process)
        threading.Thread(target=self._call.watch, name="curation", daemon=True).start()
        try:
            self._call.keep()
        except OSError:  # disk full: no later service could find the process
            self._call.stop()
            raise

    def _free_place(self, labels: Mapping[str, str] | None) -> Path:
        """Return a folder without a result: that of an unfinished curation of the same labels or file, or a new one."""
        name = "labels" if labels is not None else in_utf8((self.pairs or Path("pairs")).stem)
        number = 1
        while True:
            place = self._folder / (name if number == 1 else f"{name}-{number}")
            # Work done on other labels cannot be continued with these.
            begun = any((place / "kept.jsonl.unfinished" / UNFINISHED).glob("*.safetensors"))
            others = labels is not None and begun and not _holds(place / "labels.jsonl", labels)
            if not others and not (place / "result.json").exists():
                return place
            number += 1

    def _current(self) -> _Call | None:
        """Return the running call on this store, or the last one that this service knows of."""
        if self._call is None or not self._call.runs():
            for file in self._folder.glob(f"*/{_PROCESS}"):
                call = _Call.read(file)
                if call is not None and call.runs():
                    self._call = call
        return self._call

    def record(self) -> dict[str, Any] | None:
        """Return the progress; None if nothing is running and nothing was started since the service began."""
        with self._guard:
            call = self._current()
            if call is None:
                return None
            return {
                "name": call.place.name,
                "state": call.state(),
                "said": self._last_line(call.place),
                "seconds": round(call.seconds(), 1),
            }

    def _last_line(self, place: Path) -> str:
        last = "".join(last_lines(place / "log")[-1:]).strip()
        return last.replace(f"{place}/", "").replace(str(self._store), "STORE")[:_LONGEST]

    def stop(self) -> None:
        """Stop the running curation; it continues when started again. Blocks."""
        with self._guard:
            call = self._current()
            if call is None or not call.runs():
                return
            call.stopped = True
        call.stop()

    def close(self) -> None:
        """Stop what this service started. Blocks."""
        with self._guard:
            call = self._call
        if call is not None and call.own is not None and call.runs():
            call.stopped = True
            call.stop()


def _holds(file: Path, labels: Mapping[str, str]) -> bool:
    """Return whether a labels file holds the same labels, in any order."""
    try:
        with file.open(encoding="utf-8") as lines:
            found = [json.loads(line) for line in lines]
        return {one["image"]: one["target"] for one in found} == labels
    except (OSError, ValueError, TypeError, KeyError):
        return False
