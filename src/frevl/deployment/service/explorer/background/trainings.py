"""Start, watch and stop trainings: each is ``frevl train`` in its own process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from frevl.deployment.service.explorer.background.job import Job, jobs_of
from frevl.deployment.service.explorer.background.processes import recorded
from frevl.deployment.service.http.limits import RefusedError
from frevl.errors import StoreError
from frevl.files import replace_file
from frevl.store.remote.address import is_remote

__all__ = ["Trainings"]

_PATIENCE = 5.0  # seconds between asking a process to stop and killing it


class Trainings:
    """The trainings of a store, one at a time because they share the CPU with people browsing and labelling.

    Args:
        store: Folder of the store.
        device: Where PyTorch computes.
    """

    def __init__(self, store: Path, *, device: str = "cpu") -> None:
        self._store, self._device = store.absolute(), device  # a job may be resumed from another folder
        self.place = self._store / "runs"
        self._guard = threading.Lock()  # guards starting and stopping
        self._writing = threading.Lock()  # guards writing a job's record
        self._watched: dict[str, threading.Thread] = {}

    def all(self) -> list[Job]:
        """Return all started trainings, newest first."""
        found = jobs_of(self.place)
        ended = [self._watched.get(job.name) for job in found if job.code is None and not job.lives()]
        for thread in ended:
            if thread is not None:  # its process is gone, and its exit status is about to be recorded
                thread.join(2)
        return jobs_of(self.place) if any(ended) else found

    def one(self, name: str) -> Job:
        """Return one training.

        Raises:
            RefusedError: No training has this name, or none any longer.
        """
        found = next((job for job in self.all() if job.name == name), None)
        if found is None:
            raise RefusedError(
                404, "no_run", f"There is no run {name[:80]!r} here; it may have been deleted or renamed."
            )
        return found

    def start(
        self,
        content: bytes,
        *,
        form: str,
        name: str | None,
        task: str,
        model: str,
        by: str,
        pairs: int,
        of_labels: bool,
        minutes: float | None,
    ) -> Job:
        """Start a training.

        Args:
            content: Contents of the pairs file.
            form: ``jsonl`` or ``csv``.
            name: Name of the run; None chooses an unused one.
            task: ``classification`` or ``matching``.
            model: As ``frevl train --model``.
            by: Who requests it.
            pairs: Number of lines in the file.
            of_labels: Whether the file holds the labels.
            minutes: Time limit; None for none.

        Raises:
            RefusedError: Another training is running, or the name is in use.
            StoreError: Nothing can be written.
        """
        if is_remote(self._store):
            raise RefusedError(
                409, "store_in_bucket", "Training from the page requires a store in a local folder; export the labels "
                    "and use frevl train.",
            )  # fmt: skip
        with self._guard:
            self._make_place()
            with self._lock():
                self._check_free()
                taken = {path.name.partition(".")[0].lower() for path in self.place.iterdir()}
                name = name or next(
                    one for one in (f"taught-{n}" for n in range(1, len(taken) + 2)) if one not in taken
                )
                if name.lower() in taken:
                    raise RefusedError(409, "name_taken", f"A run {name!r} already exists; choose another name.")
                file = self.place / f"{name}.pairs.{form}"
                arguments = [
                    "train", *self._places(name, file.name), "--task", task, "--model", model, "--device", self._device,
                    *([] if minutes is None else ["--time-limit", f"{60 * minutes:g}"]),
                ]  # fmt: skip
                job = Job(
                    self.place, name, tuple(arguments), task, model, by, pairs, of_labels, started=time.time()
                )  # fmt: skip
                try:
                    replace_file(file, lambda path: path.write_bytes(content))
                    return self._run(job)
                except OSError as error:
                    raise self._unwritable(error) from error

    def resume(self, name: str) -> Job:
        """Resume a training that was cancelled, killed or failed, from where it stopped.

        Raises:
            RefusedError: The training is running or done, or another one is running.
            StoreError: Nothing can be written.
        """
        with self._guard:
            job = self.one(name)
            state = job.state()
            if state not in ("cancelled", "failed", "interrupted"):
                raise RefusedError(409, "not_stopped", f"The training {name!r} is {state}; there is nothing to resume.")
            self._make_place()
            with self._lock():
                self._check_free()
                try:
                    job = replace(job, arguments=self._placed(job))
                    return self._run(replace(job, ended=None, code=None, cancelled=False, process=0, born=""))
                except OSError as error:
                    raise self._unwritable(error) from error

    def cancel(self, name: str) -> Job:
        """Cancel a training; its progress is kept, so it can be resumed.

        Raises:
            RefusedError: The training does not exist, or is not running.
        """
        with self._guard:
            job = self.one(name)
            with self._writing:
                if not job.lives():
                    raise RefusedError(
                        409, "not_running", f"The training {name!r} is {job.state()}; nothing is running."
                    )
                job = replace(job, cancelled=True)
                try:
                    job.keep()
                except OSError as error:
                    raise self._unwritable(error) from error
            job.signal(signal.SIGTERM)
            if name not in self._watched:  # started by another process
                threading.Thread(target=_insist, args=(job,), daemon=True).start()
            return job

    def close(self) -> None:
        """Stop what this process started; it can be resumed. Blocks."""
        for name in list(self._watched):
            with self._guard:
                job = next((one for one in self.all() if one.name == name), None)
                if job is not None and job.lives():
                    job.signal(signal.SIGTERM)
            thread = self._watched.get(name)
            if thread is not None:
                thread.join(_PATIENCE)
                if thread.is_alive() and job is not None:
                    job.signal(signal.SIGKILL)
                    thread.join(_PATIENCE)

    def _places(self, name: str, pairs: str) -> list[str]:
        """Return the path arguments."""
        return ["--store", str(self._store), "--pairs", str(self.place / pairs), "--run", str(self.place / name)]

    def _placed(self, job: Job) -> tuple[str, ...]:
        """Return a job's arguments for the current location of the store, which may have been moved."""
        form = "csv" if (self.place / f"{job.name}.pairs.csv").exists() else "jsonl"
        places = self._places(job.name, f"{job.name}.pairs.{form}")
        return (job.arguments[0], *places, *job.arguments[1 + len(places) :])

    def _run(self, job: Job) -> Job:
        job.keep()
        command = [sys.executable, "-m", "frevl", *job.arguments]
        with job.log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - the arguments are ours, or checked against patterns
                recorded(command, job.file),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        job = job.with_process(process.pid)
        job.keep()
        thread = threading.Thread(target=self._watch, args=(job, process), name=f"training {job.name}", daemon=True)
        self._watched[job.name] = thread
        thread.start()
        return job

    def _watch(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        asked: float | None = None
        while (code := process.poll()) is None:
            time.sleep(0.1)
            now = Job.read(job.file)
            if asked is None and now is not None and now.cancelled:
                asked = time.monotonic()
            if asked is not None and time.monotonic() - asked > _PATIENCE:
                job.signal(signal.SIGKILL)
        with self._writing:
            now = Job.read(job.file)
            # Otherwise it was deleted, or resumed by another process.
            if now is not None and now.process == process.pid:
                if code == -signal.SIGTERM:
                    now = replace(now, cancelled=True)
                with contextlib.suppress(OSError):  # disk full: the state is derived from the files instead
                    replace(now, code=code, ended=time.time()).keep()
            self._watched.pop(job.name, None)

    def _make_place(self) -> None:
        try:
            self.place.mkdir(exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Prevent other processes from starting a training on this store at the same moment."""
        lock = FileLock(self.place / ".lock", timeout=5)
        try:
            lock.acquire()
        except Timeout:
            raise RefusedError(409, "busy", "Another training is being started; try again.") from None
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def _check_free(self) -> None:
        other = [job for job in self.all() if job.lives()]
        if other:
            raise RefusedError(
                409, "busy", f"The training {other[0].name!r} is running; wait until it ends, or cancel it first."
            )

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.place}: the training cannot be started ({error.strerror or error}); free some disk space, or "
            "correct the permissions"
        )


def _insist(job: Job) -> None:
    time.sleep(_PATIENCE)
    job.signal(signal.SIGKILL)
