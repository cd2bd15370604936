"""Write a diagnosis as one HTML file that needs no network or scripts, for light and dark, phone and print.

Every number on the page is a number of the diagnosis JSON, rounded, or part of one of its sentences; only the ticks of
plot axes are not. Every plot has its table next to it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frevl.diagnosis.findings import sections_of
from frevl.diagnosis.report.plots import NARROW, WIDE, check_matplotlib, draw_plot, series_colours
from frevl.diagnosis.report.shareable import shareable
from frevl.errors import ImageError, InputError, MissingExtraError, UsageError
from frevl.files import plain, replace_file
from frevl.runs.search.thumbnails import thumbnail_address

if TYPE_CHECKING:
    from frevl.diagnosis.diagnosis import Diagnosis

__all__ = ["check_page_libraries", "figures", "page_of", "render", "write_page", "write_text"]

_THUMBNAIL = 320  # pixels of the longer side
_LONG = 12  # number of rows from which a table is collapsed
_WORDS = {
    "title": "Diagnosis",
    "kicker": "Diagnosis of frozen embeddings",
    "cases": "Example cases",
    "truth": "Truth",
    "answer": "Answer",
    "nothing": "Not measured in this diagnosis.",
}


def check_page_libraries(images: str | Path | None = None) -> None:
    """Fail before anything is measured if the page cannot be written.

    Args:
        images: The folder of images to be passed to `write_page`.

    Raises:
        MissingExtraError: Jinja2 or Matplotlib is not installed (extra ``diagnose``).
        UsageError: The folder of images does not exist.
    """
    if images is not None and not Path(images).is_dir():
        raise UsageError(f"--images: expected a folder of images, found none at {images}")
    try:
        importlib.import_module("jinja2")
    except ModuleNotFoundError as error:
        raise MissingExtraError("jinja2", "diagnose") from error
    check_matplotlib()


def write_page(diagnosis: Diagnosis, path: str | Path, *, images: str | Path | None = None) -> None:
    """Write the page.

    Args:
        diagnosis: The diagnosis to report.
        path: HTML file to write; its folder is created if missing.
        images: Folder of the images, for thumbnails of the example cases; None shows only their ids.

    Raises:
        MissingExtraError: Jinja2 or Matplotlib is not installed.
        UsageError: The folder of images does not exist.
        InputError: The file cannot be written.
    """
    check_page_libraries(images)
    write_text(page_of(diagnosis, images=None if images is None else Path(images)), path)


def write_text(page: str, path: str | Path) -> None:
    """Write a page, completely or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(path), lambda temporary: temporary.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: the page cannot be written ({error.strerror or error}); choose another file"
        ) from error


def page_of(diagnosis: Diagnosis, *, images: Path | None = None) -> str:
    """Return the page as text; the same diagnosis gives the same text."""
    record = shareable(plain(diagnosis.record()))  # the JSON record, without the folders of this machine
    return render(record, sections_of(record["verdict"]), _facts(record), _WORDS, images=images)


def render(
    record: dict[str, Any],
    headings: dict[str, str],
    facts: list[tuple[str, Any]],
    words: dict[str, str],
    *,
    images: Path | None = None,
) -> str:
    """Return a page of findings as text.

    Args:
        record: ``verdict`` with its ``sentence``, ``findings``, and optionally ``notes``, ``cases`` and ``provenance``.
        headings: Headings of the sections, by the names that findings use.
        facts: Names and values listed below the sentence.
        words: ``title``, ``kicker``, ``cases``, ``truth``, ``answer`` and ``nothing``: the page's own wording.
        images: Folder of the images, for thumbnails of the cases.
    """
    check_page_libraries()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("frevl.diagnosis.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update({"figures": figures, "anchor": _anchor, "answers": _answers})
    return environment.get_template("diagnosis.html").render(
        verdict={"detail": [], **record["verdict"]},
        facts=facts,
        notes=record.get("notes", []),
        sections=_sections(record["findings"], headings),
        cases=_cases(record.get("cases", []), images),
        provenance={"store": "", **record.get("provenance", {})},
        origin=_origin(record.get("provenance", {})),
        words=words,
    )


def figures(value: object, decimals: int | None = None) -> str:
    """Format a cell: numbers rounded for reading, a dash for None.

    Args:
        value: Value of the cell.
        decimals: Number of decimals for a non-integer; None takes as many as its size needs.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{_decimals([value]) if decimals is None else decimals}f}"


def _decimals(values: Sequence[float]) -> int:
    """Return the number of decimals that the largest of some numbers needs: none from 1,000 on, then 1, 2 or 3."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 0 if largest >= 1000 else 1 if largest >= 10 or largest == 0 else 2 if largest >= 1 else 3


# ---- the template's input


def _facts(record: dict[str, Any]) -> list[tuple[str, Any]]:
    verdict = record["verdict"]
    named = [
        ("Task", record.get("task")),
        ("Test pairs", verdict.get("test_pairs")),
        (f"Test {verdict.get('unit', 'image')}s", verdict.get("test_images")),
        ("Fusion", verdict.get("fusion")),
        ("Metric", verdict.get("metric")),
    ]
    return [(name, value) for name, value in named if value is not None]


def _sections(findings: list[dict[str, Any]], headings: dict[str, str]) -> list[dict[str, Any]]:
    """Return every section of the page with its findings, including empty ones."""
    number = 0
    sections = []
    for id_, heading in headings.items():
        shown = []
        for finding in (one for one in findings if one["section"] == id_):
            number += 1
            shown.append(_shown(finding, number))
        sections.append({"id": id_, "heading": heading, "findings": shown})
    return sections


def _shown(finding: dict[str, Any], number: int) -> dict[str, Any]:
    """Return the template's input for one finding."""
    table, plot = finding["table"], finding["plot"]
    shown = {**finding, "drawings": None, "legend": [], "tables": [], "collapsed": len(table) > _LONG}
    if table:
        shown["tables"].append(_table("Evidence", table))
    if plot:
        shown["drawings"] = {
            "wide": draw_plot(plot, width=WIDE, prefix=f"p{number}w"),
            "narrow": draw_plot(plot, width=NARROW, prefix=f"p{number}n"),
        }
        shown["legend"] = _legend(plot)
        shown["collapsed"] = True
        plotted = _plotted(plot)
        if not _numbers(plotted) <= _numbers(table):  # a fitted law, for example, is only drawn
            shown["tables"].append(_table("Plotted", plotted))
    return shown


def _legend(plot: dict[str, Any]) -> list[dict[str, Any]]:
    """Return name, stroke and colour of every series."""
    return [
        {
            "name": one["name"],
            "dashed": one["dashed"],
            "colour": "var(--reference)" if number is None else f"var(--series-{number})",
        }
        for one, number in zip(plot["series"], series_colours(plot), strict=True)
    ]


def _plotted(plot: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    bounded = any(one["low"] for one in plot["series"])
    for one in plot["series"]:
        for i, (x, y) in enumerate(zip(one["x"], one["y"], strict=True)):
            row = {"series": one["name"], plot["x_label"]: x, plot["y_label"]: y}
            if bounded:
                row |= {side: one[side][i] if one[side] else None for side in ("low", "high")}
            rows.append(row)
    return rows


def _table(title: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    columns, cells = [], []
    for name in rows[0]:
        values = [row[name] for row in rows]
        numbers = [value for value in values if _is_number(value)]
        numeric = bool(numbers) and all(value is None or _is_number(value) for value in values)
        columns.append({"name": name, "kind": "number" if numeric else "text"})
        decimals = _decimals(numbers) if numeric else None
        cells.append([figures(value, decimals) for value in values])
    return {"title": title, "columns": columns, "body": list(zip(*cells, strict=True))}


def _numbers(rows: list[dict[str, Any]]) -> set[float]:
    return {float(value) for row in rows for value in row.values() if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cases(cases: Sequence[dict[str, Any]], images: Path | None) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        shown = {"confidence": None, **case, "thumbnail": _thumbnail(images, case["image"])}
        groups.setdefault(case["kind"], []).append(shown)
    return list(groups.items())


def _thumbnail(images: Path | None, id_: str) -> str | None:
    """Return a small JPEG as a data URL; None without a folder, or if the image can no longer be read."""
    if images is None or not id_:
        return None
    try:
        return thumbnail_address(images / id_, _THUMBNAIL)
    except ImageError:
        return None


def _answers(target: object) -> str:
    """Format a target: a class, several right ones, or weights."""
    if isinstance(target, dict):
        return ", ".join(f"{answer} ({figures(weight)})" for answer, weight in target.items())
    if isinstance(target, list):
        return ", ".join(dict.fromkeys(map(str, target)))
    return "the text belongs to the image" if target is None else str(target)


def _origin(provenance: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the provenance of the numbers, one line each."""
    lines = []
    for name, value in provenance.items():
        if value in ("", None, {}, []):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {figures(entry)}" for key, entry in value.items())
        lines.append((name.replace("_", " "), value))
    return lines


def _anchor(name: str) -> str:
    """Return the name of a finding as the id of an HTML element."""
    return "finding-" + "".join(letter if letter.isalnum() else "-" for letter in name)
