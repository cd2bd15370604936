"""A training on disk: what was started, whether its process lives, and what can be said of it.

Beside the folder of a run, ``STORE/runs/NAME``, stand ``NAME.job.json`` (what was asked for), ``NAME.pairs.jsonl`` or
``.csv`` (what is learned from) and ``NAME.log`` (what the training says). The state follows from the files and the
process, so that it is right after the service was killed, too.
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
    """A training that was started.

    Attributes:
        place: Folder of all runs.
        name: Of the run.
        arguments: Of ``frevl``.
        task: ``classification`` or ``matching``.
        model: As it was asked for.
        by: Who asked.
        pairs: Lines.
        of_labels: Whether the labels are learned from.
        started: Seconds since 1970.
        ended: Seconds since 1970; None while it runs, or where nobody saw the end.
        process: Its id, or 0 before it has one.
        born: When the process began, as the system counts; tells it from another one that has its id later.
        cancelled: Somebody asked for its end.
        code: Exit status; None if nobody saw it.
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
        """What the training says."""
        return self.place / f"{self.name}.log"

    @property
    def file(self) -> Path:
        """Where this is kept."""
        return self.place / f"{self.name}{_SUFFIX}"

    def keep(self) -> None:
        """Write it down."""
        record = asdict(self)
        del record["place"]
        write_json(self.file, record)

    @classmethod
    def read(cls, file: Path) -> Job | None:
        """Read what `keep` wrote; None where that cannot be read."""
        try:
            record = read_record(file)
            job = cls(**{**record, "place": file.parent, "arguments": tuple(record["arguments"])})
        except (FrevlError, OSError, TypeError, KeyError):
            return None
        return job if job.name == file.name.removesuffix(_SUFFIX) else None

    def with_process(self, process: int) -> Job:
        """Return it with the process that runs it."""
        return replace(self, process=process, born=birth_of(process))

    def lives(self) -> bool:
        """Tell whether its process runs."""
        if not self.process or self.code is not None:
            return False
        return is_alive(self.process, self.born)

    def signal(self, number: int) -> None:
        """Send a signal to its process and all that it has started."""
        if self.lives():
            with contextlib.suppress(OSError):  # it has ended meanwhile
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
            "accuracy": self.results().get("development", {}).get("accuracy") if state == "done" else None,
            "problem": self._problem(state),
        }

    def results(self) -> dict[str, Any]:
        """Return what the run remembers of its training; empty if there is none."""
        found: dict[str, Any] = self._run_record().get("results") or {}
        return found

    def detail(self) -> dict[str, Any]:
        """Return all that can be said; see ``TrainingDetail``."""
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
        """Return when the training last said something: about when it ended, if nobody saw that."""
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
        """Read what ``auto`` keeps of its steps."""
        file = self.run / UNFINISHED / STEPS_FILE
        told, written = read_record(file), file.stat().st_mtime
        if written < self.file.stat().st_mtime:
            raise ValueError("of a call before this one was continued")
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
            return "Its process is gone without a result: the machine or the training was stopped. Continue it."
        if state == "deleted":
            return "The folder of this run was deleted, or moved to another place."
        if state != "failed":
            return ""
        if self.code is not None and self.code < 0:
            name = signal.Signals(-self.code).name if -self.code in signal.valid_signals() else str(-self.code)
            hint = ", perhaps because memory ran out" if -self.code == signal.SIGKILL else ""
            return f"The training was killed ({name}){hint}. Continue it."
        said = self.said()
        own = [line for line in said if line.startswith("frevl: ")]
        return own[-1].removeprefix("frevl: ") if own else said[-1] if said else f"It ended with {self.code}."


def jobs_of(place: Path) -> list[Job]:
    """Return all trainings of a folder, the newest first."""
    try:
        files = [file for file in place.iterdir() if file.name.endswith(_SUFFIX)]
    except OSError:
        return []
    found = [job for job in map(Job.read, files) if job is not None]
    return sorted(found, key=lambda job: (-job.started, job.name))
