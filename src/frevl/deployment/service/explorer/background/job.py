"""A training on disk: how it was started, whether its process is alive, and its state.

Next to the folder of a run, ``STORE/runs/NAME``, are ``NAME.job.json`` (the request), ``NAME.pairs.jsonl`` or ``.csv``
(the training data) and ``NAME.log`` (the output of the training). The state is derived from the files and the process,
so it is right even after the service was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from frevl.deployment.service.explorer.background.processes import birth_of, is_alive, last_lines
from frevl.errors import FrevlError
from frevl.files import read_record, write_json
from frevl.runs.run import UNFINISHED
from frevl.terminal import STEPS_FILE

__all__ = ["Job", "jobs_of"]

_SUFFIX = ".job.json"
_LINES = 20


@dataclass(frozen=True)
class Progress:
    """How far a training is; see ``TrainingRecord``."""

    progress: float | None
    step: str
    left: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Job:
    """A started training.

    Attributes:
        place: Folder of all runs.
        name: Name of the run.
        arguments: Arguments of ``frevl``.
        task: ``classification`` or ``matching``.
        model: The model as requested.
        by: Who requested it.
        pairs: Number of training lines.
        of_labels: Whether it trains on the labels.
        started: Seconds since 1970.
        ended: Seconds since 1970; None while it runs, or if its end was not observed.
        process: Process id, or 0 before it has one.
        born: System time at which the process began, which distinguishes it from a later process with the same id.
        cancelled: Whether it was cancelled.
        code: Exit status; None if not observed.
    """

    place: Path
    name: str
    arguments: tuple[str, ...]
    task: str
    model: str
    by: str
    pairs: int
    of_labels: bool
    started: float
    ended: float | None = None
    process: int = 0
    born: str = ""
    cancelled: bool = False
    code: int | None = None

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.place / self.name

    @property
    def log(self) -> Path:
        """Output of the training."""
        return self.place / f"{self.name}.log"

    @property
    def file(self) -> Path:
        """File in which this record is kept."""
        return self.place / f"{self.name}{_SUFFIX}"

    def keep(self) -> None:
        """Save this record."""
        record = asdict(self)
        del record["place"]
        write_json(self.file, record)

    @classmethod
    def read(cls, file: Path) -> Job | None:
        """Read what `keep` wrote; None if it cannot be read."""
        try:
            record = read_record(file)
            job = cls(**{**record, "place": file.parent, "arguments": tuple(record["arguments"])})
        except (FrevlError, OSError, TypeError, KeyError):
            return None
        return job if job.name == file.name.removesuffix(_SUFFIX) else None

    def with_process(self, process: int) -> Job:
        """Return a copy with the process that runs it."""
        return replace(self, process=process, born=birth_of(process))

    def lives(self) -> bool:
        """Return whether its process is running."""
        if not self.process or self.code is not None:
            return False
        return is_alive(self.process, self.born)

    def signal(self, number: int) -> None:
        """Send a signal to its process and all children."""
        if self.lives():
            with contextlib.suppress(OSError):  # it has already ended
                os.killpg(self.process, number)

    def state(self) -> str:
        """Return the state; see ``TrainingRecord``."""
        if self.lives():
            return "stopping" if self.cancelled else "running"
        if (self.run / "run.json").is_file():
            return "done"
        if self.cancelled:
            return "cancelled"
        if self.code:
            return "failed"
        return "deleted" if self.code == 0 else "interrupted"

    def record(self) -> dict[str, Any]:
        """Return a row of the list; see ``TrainingRecord``."""
        state = self.state()
        ended = self.ended if self.ended is not None else time.time() if state in ("running", "stopping") else None
        progress = self._progress(state)
        development = (self.results().get("development") or {}) if state == "done" else {}
        return {
            "name": self.name,
            "state": state,
            "task": self.task,
            "model": self.model,
            "by": self.by,
            "pairs": self.pairs,
            "of_labels": self.of_labels,
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "seconds": max(0.0, (ended if ended is not None else self._last_word()) - self.started),
            **asdict(progress),
            "accuracy": development.get("accuracy"),
            "interval": development.get("interval"),
            "problem": self._problem(state),
        }

    def results(self) -> dict[str, Any]:
        """Return the run's record of its training; empty if there is none."""
        found: dict[str, Any] = self._run_record().get("results") or {}
        return found

    def detail(self) -> dict[str, Any]:
        """Return all details; see ``TrainingDetail``."""
        record, run = self.record(), self._run_record() if self.state() == "done" else {}
        results = run.get("results") or {}
        store = f"{self.place.name}/{self.name}"
        selection = results.get("selection") or {}
        done = record["state"] == "done"
        return {
            **record,
            "folder": store,
            "chosen": str(selection.get("chosen") or run.get("network_name") or ""),
            "development": (results.get("development") or {}).get("n"),
            "labels": list(run.get("labels") or [])[:100],
            "notes": list(results.get("notes") or []),
            "commands": [
                f"frevl explore --store STORE --run STORE/{store}",
                f"frevl evaluate --store STORE --run STORE/{store} --pairs test.jsonl",
            ]
            if done
            else [],
            "said": self.said()[-_LINES:],
        }

    def said(self) -> list[str]:
        """Return the last lines of the log."""
        return last_lines(self.log)

    def _run_record(self) -> dict[str, Any]:
        with contextlib.suppress(FrevlError, OSError):
            return read_record(self.run / "run.json")
        return {}

    def _last_word(self) -> float:
        """Return the time of the last output: roughly when it ended, if that was not observed."""
        with contextlib.suppress(OSError):
            return self.log.stat().st_mtime
        return self.started

    def _progress(self, state: str) -> Progress:
        if state == "stopping":
            return Progress(None, "stopping")
        if state != "running":
            return Progress(1.0, "done") if state == "done" else Progress(None, state)
        for find in (self._of_choice, self._of_epochs):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, ZeroDivisionError, IndexError):
                return find()
        said = self.said()
        return Progress(None, said[-1][:200] if said else "reading the pairs")

    def _of_choice(self) -> Progress:
        """Read the progress file that ``auto`` writes after each step."""
        file = self.run / UNFINISHED / STEPS_FILE
        told, written = read_record(file), file.stat().st_mtime
        if written < self.file.stat().st_mtime:
            raise ValueError("written before this training was resumed")
        since = max(0.0, time.time() - written)
        done, of, doing = int(told["done"]), int(told["of"]), str(told["doing"])[:80]

        def now(seconds: float | None) -> float | None:
            return None if seconds is None else max(0.0, float(seconds) - since)

        step = f"step {done + 1:,} of {of:,}: {doing}"
        return Progress(min(1.0, float(told["share"])), step, now(told["left"]), now(told["at_most"]))

    def _of_epochs(self) -> Progress:
        """Read the log of gradient descent."""
        lines = (self.run / "log.jsonl").read_text(encoding="utf-8").strip().split("\n")
        last = json.loads(lines[-1])
        epoch, seconds = int(last["epoch"]), float(last["seconds"])
        epochs = int(json.loads((self.run / "settings.json").read_text(encoding="utf-8"))["epochs"])
        at_most = seconds / epoch * max(0, epochs - epoch)
        return Progress(min(1.0, epoch / epochs), f"epoch {epoch:,} of at most {epochs:,}", None, at_most)

    def _problem(self, state: str) -> str:
        if state == "interrupted":
            return "The process ended without a result: the machine or the training was stopped. Resume it."
        if state == "deleted":
            return "The folder of this run was deleted or moved."
        if state != "failed":
            return ""
        if self.code is not None and self.code < 0:
            name = signal.Signals(-self.code).name if -self.code in signal.valid_signals() else str(-self.code)
            hint = ", perhaps because memory ran out" if -self.code == signal.SIGKILL else ""
            return f"The training was killed ({name}){hint}. Resume it."
        said = self.said()
        own = [line for line in said if line.startswith("frevl: ")]
        return own[-1].removeprefix("frevl: ") if own else said[-1] if said else f"It ended with exit code {self.code}."


def jobs_of(place: Path) -> list[Job]:
    """Return all trainings in a folder, newest first."""
    try:
        files = [file for file in place.iterdir() if file.name.endswith(_SUFFIX)]
    except OSError:
        return []
    found = [job for job in map(Job.read, files) if job is not None]
    return sorted(found, key=lambda job: (-job.started, job.name))
