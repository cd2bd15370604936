"""A search result as one self-contained HTML page with the images embedded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from frevl.errors import ImageError, InputError
from frevl.files import replace_file
from frevl.runs.search.searching import Hit, SearchResult
from frevl.runs.search.thumbnails import thumbnail_address

__all__ = ["contact_sheet", "page_of", "thumbnail", "write_contact_sheet", "write_page"]

_SIDE = 240  # pixels of a thumbnail's longer side

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #1a1a1a; background: #fff; }}
ol {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.5rem; padding: 0; }}
li {{ list-style: none; overflow-wrap: anywhere; }}
img {{ max-width: 100%; display: block; margin-bottom: .4rem; }}
.none {{ background: #eee; color: #555; padding: 3rem 1rem; text-align: center; margin-bottom: .4rem; }}
.said {{ color: #555; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="said">{said}</p>
<ol>
{hits}
</ol>
</body>
</html>
"""


def write_contact_sheet(path: str | Path, result: SearchResult) -> None:
    """Write a contact sheet.

    Args:
        path: The HTML file.
        result: The result of `frevl.search`; images are shown where a hit's ``path`` is known.

    Raises:
        InputError: The file cannot be written.
    """
    write_page(path, contact_sheet(result))


def write_page(path: str | Path, page: str) -> None:
    """Write an HTML page.

    Raises:
        InputError: The file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda target: target.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: the contact sheet cannot be written ({error.strerror or error})") from error


def contact_sheet(result: SearchResult) -> str:
    """Return the page; all data are escaped."""
    said = " ".join([f"Best of {result.searched:,}.", *result.notes])
    entries = [_entry(hit, result.find) for hit in result.hits]
    return page_of(f"{len(result.hits)} {result.find} for: {result.query}", said, entries)


def page_of(title: str, said: str, entries: Sequence[str]) -> str:
    """Return a page of images in a grid.

    Args:
        title: Title text; it is escaped.
        said: Text below the title; it is escaped.
        entries: An ``li`` each, as HTML.
    """
    return _PAGE.format(title=escape(title), said=escape(said), hits="\n".join(entries))


def _entry(hit: Hit, find: str) -> str:
    scores = f"similarity {hit.similarity:.3f}"
    if hit.probability is not None:
        scores = f"match {100 * hit.probability:.1f} %, {scores}"
    picture = thumbnail(hit.path, hit.id) if find == "images" else ""
    name = escape(hit.id)
    return f'<li value="{hit.rank}">{picture}{hit.rank}. {name}<br><span class="said">{escape(scores)}</span></li>'


def thumbnail(path: str | Path | None, name: str) -> str:
    """Return HTML with the image embedded, or a grey box if the file is missing or unreadable.

    Args:
        path: Path of the image file, or None.
        name: Alternative text of the image.
    """
    missing = '<div class="none">no image</div>'
    if path is None:
        return missing
    try:
        address = thumbnail_address(path, _SIDE)
    except (ImageError, OSError):
        return missing
    return f'<img alt="{escape(name, quote=True)}" src="{address}">'
