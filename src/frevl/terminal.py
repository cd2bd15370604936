"""Output for people: progress on standard error (live on a terminal, occasional elsewhere), and tables."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from frevl.files import write_json

__all__ = ["STEPS_FILE", "ProgressLine", "Steps", "print_progress", "table"]

STEPS_FILE = "progress.json"
"""File with the progress of a training's steps, next to its states while it runs (`Steps`)."""

_TELLING = 0.1  # share of the work after which the remaining time is estimated


class ProgressLine:
    """A progress line that costs nothing when disabled.

    Args:
        title: Name of the activity.
        total: Number of steps, or None if unknown.
        enabled: Off by default everywhere in the library; the command line switches it on.
    """

    def __init__(self, title: str, total: int | None = None, *, enabled: bool = True) -> None:
        self._title = title
        self._total = total
        self._enabled = enabled
        self._console = Console(stderr=True)
        self._live: Progress | None = None
        self._done = 0
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> ProgressLine:
        if self._enabled and self._console.is_terminal:
            self._live = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._live.add_task(self._title, total=self._total, note="")
            self._live.start()
        return self

    def advance(self, steps: int = 1, *, note: str = "") -> None:
        """Advance by a number of steps.

        Args:
            steps: Number of steps.
            note: Figures to show next to the bar, such as the loss.
        """
        self._done += steps
        if self._live is not None:
            self._live.update(self._task, advance=steps, note=note)
        elif self._enabled and time.monotonic() - self._printed > 10:
            self._printed = time.monotonic()
            of = f" of {self._total:,}" if self._total else ""
            sys.stderr.write(f"{self._title}: {self._done:,}{of} {note}\n")

    @property
    def rate(self) -> float:
        """Return the steps per second since the start."""
        return self._done / max(time.monotonic() - self._started, 1e-9)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


class Steps:
    """Progress of a few different steps, kept in a file for other processes to watch.

    The file holds ``done`` and ``of`` (steps), ``doing`` (the name of the one under way), ``share`` (0 to 1, by the
    weights), ``left`` (an estimate in seconds from the pace so far; None until it is known well enough) and
    ``at_most`` (seconds; None without a limit), both as they were when the file was written.

    Args:
        weights: Approximate relative duration of each step, by name.
        file: File to write; None for none.
        limit: Seconds after which everything ends at the latest, or None.
    """

    def __init__(self, weights: Mapping[str, float], file: Path | None, limit: float | None = None) -> None:
        self._weights, self._file, self._limit = dict(weights), file, limit
        self._started = time.monotonic()
        self._recalled = 0.0

    def begin(self, name: str, part: float = 0.0) -> None:
        """Record that a step has begun and those before it are done.

        Args:
            name: Name of the step.
            part: Completed share of it, 0 to 1.
        """
        names = list(self._weights)
        if self._file is None or name not in names:
            return
        done, total = names.index(name), sum(self._weights.values())
        behind = sum(self._weights[one] for one in names[:done]) + part * self._weights[name]
        seconds = time.monotonic() - self._started
        own = behind - self._recalled
        left = seconds * (total - behind) / own if own >= _TELLING * total else None
        at_most = None if self._limit is None else max(0.0, self._limit - seconds)
        if left is not None and at_most is not None:
            left = min(left, at_most)
        record = {"done": done, "of": len(names), "doing": name, "share": behind / total if total else 0.0}
        with contextlib.suppress(OSError):  # whatever must be written reports a full disk
            write_json(self._file, {**record, "left": left, "at_most": at_most})

    def recall(self, name: str) -> None:
        """Record that an earlier process did a step, so that it does not count in the pace of this one."""
        self._recalled += self._weights.get(name, 0.0)


def print_progress(line: str, *, enabled: bool) -> None:
    """Print one line on standard error."""
    if enabled:
        sys.stderr.write(line + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Return a plain-text table.

    Args:
        header: Names of the columns.
        rows: Cells; each row has one per column.
        left: Indices of left-aligned columns, mostly words; the others are right-aligned.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])
