"""Labels of a store as one HTML page: the most and least certain images of every class."""

from __future__ import annotations

from html import escape
from pathlib import Path

from frevl.errors import InputError, counted
from frevl.files import replace_file
from frevl.runs.labelling.label_store import Labelling
from frevl.runs.search.contact_sheet import thumbnail

__all__ = ["label_sheet", "missing_images", "write_label_sheet"]

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #1a1a1a; background: #fff; }}
ul {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem; padding: 0; }}
li {{ list-style: none; overflow-wrap: anywhere; }}
img {{ max-width: 100%; display: block; }}
.none {{ background: #eee; color: #555; padding: 2rem 1rem; text-align: center; }}
.said {{ color: #555; }}
h3 {{ font-size: 1rem; font-weight: normal; color: #555; margin: .5rem 0; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="said">{said}</p>
{classes}
</body>
</html>
"""


def write_label_sheet(path: str | Path, labelling: Labelling, *, images: Path | None, notes: list[str]) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        labelling: The result of `label_store`.
        images: Folder to which image ids are relative; without it the page shows only ids.
        notes: Notes for the user.

    Raises:
        InputError: The file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        page = label_sheet(labelling, images=images, notes=notes)
        replace_file(path, lambda target: target.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: the page cannot be written ({error.strerror or error})") from error


def missing_images(labelling: Labelling, images: Path | None) -> list[str]:
    """Return a note on images that the page is to show, but that are not in the folder."""
    if images is None:
        return []
    kept = [*labelling.surest.values(), *labelling.least_sure.values()]
    shown = list(dict.fromkeys(image for some in kept for _, image in some))
    missing = [image for image in shown if not (images / image).is_file()]
    if not missing:
        return []
    return [
        f"{len(missing):,} of {len(shown):,} images of the page are not in {images} (the first: '{missing[0]:.60}'); "
        "give with --images the folder that was embedded."
    ]


def label_sheet(labelling: Labelling, *, images: Path | None, notes: list[str]) -> str:
    """Return the page; all data are escaped."""
    title = f"{counted(labelling.labelled, 'image')} in {len(labelling.counts):,} classes"
    unknown = [f"{labelling.unknown:,} belong to no class."] if labelling.unknown else []
    said = escape(" ".join([*unknown, *missing_images(labelling, images), *notes]))
    classes = [_class(label, count, labelling, images) for label, count in labelling.counts.most_common()]
    return _PAGE.format(title=escape(title), said=said, classes="\n".join(classes))


def _class(label: str, count: int, labelling: Labelling, images: Path | None) -> str:
    surest = labelling.surest[label]
    shown = {image for _, image in surest}
    doubtful = [one for one in labelling.least_sure[label] if one[1] not in shown]
    parts = [f"<h2>{escape(label)}: {count:,}</h2>", _row("Most certain", surest, images)]
    return "\n".join([*parts, *([_row("Least certain", doubtful, images)] if doubtful else [])])


def _row(title: str, kept: list[tuple[float, str]], images: Path | None) -> str:
    items = [
        f"<li>{thumbnail(None if images is None else images / image, image)}{escape(image)}<br>"
        f'<span class="said">{100 * probability:.1f} %</span></li>'
        for probability, image in kept
    ]
    return f"<h3>{title}</h3>\n<ul>\n" + "\n".join(items) + "\n</ul>"
