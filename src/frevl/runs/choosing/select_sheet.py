"""What was chosen to be labelled, as one HTML page with the pictures in it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from frevl.runs.choosing.selecting import Selection
from frevl.runs.search.contact_sheet import page_of, thumbnail, write_page

__all__ = ["select_sheet", "write_select_sheet"]

_SHOWN = 300  # pictures; a page of more opens slowly


def write_select_sheet(path: str | Path, selection: Selection, *, images: Path | None) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        selection: What `select_pairs` returned.
        images: Folder that the image ids are relative to; without it the page shows ids alone.

    Raises:
        InputError: The file cannot be written.
    """
    write_page(path, select_sheet(selection, images=images))


def select_sheet(selection: Selection, *, images: Path | None) -> str:
    """Return the page, the most wanted first; everything that comes from data is escaped."""
    shown = selection.lines[:_SHOWN]
    said = selection.sentence()
    if len(shown) < len(selection.lines):
        said += f" The first {len(shown):,} are shown."
    return page_of(f"{len(selection.lines):,} pairs to label next", said, [_entry(line, images) for line in shown])


def _entry(line: dict[str, Any], images: Path | None) -> str:
    about, image = line["select"], line.get("image")
    picture = "" if image is None else thumbnail(None if images is None else images / image, image)
    name = " - ".join(str(line[side]) for side in ("image", "text") if side in line)
    answer = f"{about['label']} " if "label" in about else "match "
    said = f"{answer}{100 * about['probability']:.1f} %, margin {about['margin']:.3f}"
    return f'<li>{picture}{about["rank"]}. {escape(name)}<br><span class="said">{escape(said)}</span></li>'
