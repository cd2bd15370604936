"""Pages that other commands wrote about runs (diagnosis, evaluation, curation): displayed, never executed."""

from __future__ import annotations

import html
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import HTMLResponse, Response

from frevl.deployment.service.http.limits import RefusedError
from frevl.store.commits.table_writer import in_utf8

__all__ = ["Report", "Reports"]

_MOST_FILES = 200  # HTML files of a run's folder
_LARGEST = 64 << 20  # bytes
_HEAD = 4096  # bytes in which to look for the title
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
# Our own pages need no scripts, and a foreign page gets none: no forms, no resources of other hosts, and no access to
# the page around it.
_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-DNS-Prefetch-Control": "off",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Report:
    """A page.

    Attributes:
        id: Id used to request it.
        run: Name of the run whose folder it is in; empty for one given by its path.
        title: Its title, or else its file name.
        bytes: Size in bytes.
        changed: When it was written, seconds since 1970.
        path: The file.
    """

    id: str
    run: str
    title: str
    bytes: int
    changed: float
    path: Path


class Reports:
    """All HTML files in the run folders, and others given by path; listed anew for every request.

    Args:
        runs: Folders of the runs by name.
        files: Additional pages, which come first.
    """

    def __init__(self, runs: Mapping[str, Path] | None = None, files: Sequence[Path] = ()) -> None:
        self._runs = {name: Path(path) for name, path in (runs or {}).items()}
        self._files = [Path(path) for path in files]

    def add(self, run: str, folder: Path) -> None:
        """Also look in the folder of another run."""
        self._runs = {**self._runs, run: folder}

    def all(self) -> list[Report]:
        """Return the current pages in the order of the runs; ``report.html`` comes first in each."""
        named = [("", path) for path in self._files]
        for run, folder in self._runs.items():
            try:
                found = [path for path in folder.iterdir() if path.suffix.lower() in (".html", ".htm")]
            except OSError:  # deleted meanwhile
                continue
            found.sort(key=lambda path: (path.name != "report.html", path.name))
            named += [(run, path) for path in found[:_MOST_FILES]]
        reports: dict[str, Report] = {}
        for run, path in named:
            file = in_utf8(path.name)
            id_ = f"{run}/{file}" if run else file
            number = 2
            while id_ in reports:  # files with the same name in several folders
                id_, number = f"{file} ({number})", number + 1
            report = _read(id_, run, path)
            if report is not None:
                reports[id_] = report
        return list(reports.values())

    def answer(self, id_: str | None) -> Response:
        """Return a page that a browser shows without running anything in it; None takes the first one.

        Raises:
            RefusedError: The report does not exist, is gone, or is too large.
        """
        report = next((one for one in self.all() if id_ in (None, one.id)), None)
        if report is None:
            what = "no report" if id_ is None else f"no report {id_[:80]!r}"
            raise RefusedError(
                404, "unknown_report", f"There is {what}; create one with frevl diagnose --html RUN/report.html, "
                    "or name one with --report FILE.",
            )  # fmt: skip
        if report.bytes > _LARGEST:
            raise RefusedError(
                413, "too_large", f"The report {report.id[:80]!r} has {report.bytes:,} bytes, and at most {_LARGEST:,} "
                    "can be shown here; open the file itself.",
            )  # fmt: skip
        try:
            return HTMLResponse(report.path.read_bytes(), headers=_HEADERS)
        except OSError:
            raise RefusedError(404, "unknown_report", f"The report {report.id[:80]!r} can no longer be read.") from None


def _read(id_: str, run: str, path: Path) -> Report | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would block forever
            return None
        with path.open("rb") as file:
            found = _TITLE.search(file.read(_HEAD))
    except OSError:  # a dangling link, or deleted meanwhile
        return None
    title = html.unescape(found[1].decode("utf-8", "replace")) if found else ""
    return Report(id_, run, " ".join(title.split())[:200] or in_utf8(path.name), status.st_size, status.st_mtime, path)
