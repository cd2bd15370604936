"""A curation that was begun from the page: ``frevl curate`` in a process of its own, which the service watches."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frevl.deployment.service.http.limits import RefusedError
from frevl.jsonfile import write_lines

__all__ = ["Job"]

_SECONDS_TO_STOP = 10.0
_LONGEST = 500  # characters of what it said last


class Job:
    """Runs one curation at a time.

    What it writes lies in ``STORE/curation/NAME``. One that was stopped or killed goes on with what is done when the
    same is begun again.

    Args:
        folder: ``STORE/curation``.
        store: Folder of the store.
        pairs: The pairs file that may be judged, or None.
        images: Folder of the pictures, or None.
        command: How ``frevl`` is called; empty can begin nothing.
    """

    def __init__(
        self, folder: Path, store: Path, pairs: Path | None, images: Path | None, command: Sequence[str]
    ) -> None:
        self.pairs = pairs
        self._folder, self._store, self._images, self._command = folder, store, images, list(command)
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._place = folder
        self._begun = self._ended = 0.0
        self._stopped = False

    @property
    def can_start(self) -> bool:
        """Whether anything can be begun."""
        return bool(self._command)

    def start(self, labels: Mapping[str, str] | None) -> None:
        """Begin to judge the pairs file, or labels of pictures.

        Raises:
            RefusedError: One is under way, there is nothing to judge, or the disk takes nothing.
        """
        with self._guard:
            if self._running():
                raise RefusedError(409, "busy", "A curation is under way; wait for it, or stop it first.")
            if not self._command or (labels is None and self.pairs is None) or labels == {}:
                raise RefusedError(
                    422, "invalid", "There is nothing to judge: label pictures, or start with --pairs FILE."
                )
            try:
                self._begin(labels)
            except OSError as error:
                raise RefusedError(
                    503, "store", f"The curation cannot be begun ({error.strerror or error}).", retry_after=10
                ) from None

    def _begin(self, labels: Mapping[str, str] | None) -> None:
        self._place = self._free_place("labels" if labels is not None else (self.pairs or Path("pairs")).stem)
        self._place.mkdir(parents=True, exist_ok=True)
        pairs = self.pairs
        task: list[str] = []
        if labels is not None:
            pairs = self._place / "labels.jsonl"
            if not pairs.exists() or not (self._place / "kept.jsonl.unfinished").exists():
                write_lines(pairs, ({"image": image, "target": name} for image, name in labels.items()))
            task = ["--task", "classification"]
        given = ["--store", self._store, "--pairs", pairs, "--out", self._place / "kept.jsonl"]
        given += ["--dropped", self._place / "dropped.jsonl", "--json", self._place / "result.json"]
        given += [] if self._images is None else ["--images", self._images]
        with (self._place / "log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours, and the files are those of the start
                [*self._command, "curate", *map(str, given), *task],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._begun, self._stopped = time.monotonic(), False

    def _free_place(self, name: str) -> Path:
        """Return a folder without a result: that of an unfinished call, or a new one."""
        number = 1
        while True:
            place = self._folder / (name if number == 1 else f"{name}-{number}")
            if not (place / "result.json").exists():
                return place
            number += 1

    def _running(self) -> bool:
        if self._process is None:
            return False
        if self._process.poll() is None:
            self._ended = time.monotonic()
            return True
        return False

    def record(self) -> dict[str, Any] | None:
        """Say how it goes; None if nothing was begun since the start of the service."""
        with self._guard:
            if self._process is None:
                return None
            running = self._running()
            code = self._process.returncode
            state = "running" if running else "stopped" if self._stopped else "failed" if code else "done"
            return {
                "name": self._place.name,
                "state": state,
                "said": self._last_words(),
                "seconds": round(self._ended - self._begun, 1),
            }

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            text = (self._place / "log").read_bytes()[-20_000:].decode("utf-8", "replace")
            lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
            if lines:
                return lines[-1].replace(f"{self._place}/", "").replace(str(self._store), "STORE")[:_LONGEST]
        return ""

    def stop(self) -> None:
        """End it; it can be begun again and goes on with what is done. Blocks."""
        with self._guard:
            process = self._process
            if process is None or not self._running():
                return
            self._stopped = True
        process.terminate()
        try:
            process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
