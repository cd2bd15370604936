"""What people read: progress lines on standard error (live on a terminal, now and then elsewhere), and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

__all__ = ["ProgressLine", "print_progress", "table"]


class ProgressLine:
    """A progress line that costs nothing when it is switched off.

    Args:
        title: What is being done.
        total: How many steps there are, or None if nobody knows.
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
        """Advance by some steps.

        Args:
            steps: How many.
            note: Figures to show beside the bar, for example the loss.
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
        """Steps per second since the start."""
        return self._done / max(time.monotonic() - self._started, 1e-9)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


def print_progress(line: str, *, enabled: bool) -> None:
    """Print one line on standard error."""
    if enabled:
        sys.stderr.write(line + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Return a plain-text table.

    Args:
        header: Names of the columns.
        rows: Cells, as many a row as there are columns.
        left: Numbers of the columns that are aligned left, words mostly; the others are aligned right.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])
