"""Find the columns or keys that hold image, text and target when they have other names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from frevl.errors import PairsError, UsageError, nearest

__all__ = [
    "FIELDS",
    "REQUIRED",
    "Columns",
    "choose_columns",
    "columns_of",
    "likely_target",
    "means_image",
    "refuse_empty",
    "renaming_note",
]

FIELDS = ("image", "text", "target")
REQUIRED = ("image", "text")

Columns = dict[str, str]
"""Maps fields to column names; fields without a column are absent."""

# Unambiguous names for the fields, used by open_clip, img2dataset, the Hugging Face hub and others.
_OTHER_NAMES = {
    "image": (
        "image_path", "image_file", "image_name", "image_id", "img", "img_path", "filepath", "file_path", "filename",
        "file_name", "file", "path", "key",
    ),
    "text": ("caption", "title", "question", "sentence", "description", "txt"),
    "target": ("answer",),
}  # fmt: skip

_FILE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|hei[cf]|avif)$", re.IGNORECASE)
_LIKE_TARGETS = ("label", "class", "category", "class_name", "label_name", "answer", "y")


def columns_of(given: str | Sequence[str] | Mapping[str, str] | None) -> Columns:
    """Parse ``image=filepath,text=title``, given as an option or a mapping.

    Raises:
        UsageError: A field does not exist, is given twice, or has no column.
    """
    if given is None:
        return {}
    entries: list[tuple[str, str]] = []
    if isinstance(given, Mapping):
        entries = [(str(field), str(name)) for field, name in given.items()]
    else:
        for part in ",".join([given] if isinstance(given, str) else given).split(","):
            field, _, name = part.partition("=")
            entries.append((field.strip(), name.strip()))
    for field, name in entries:
        if field not in FIELDS:
            raise UsageError(f"--columns: there is no field '{field}'. {nearest(field, FIELDS)}")
        if not name:
            raise UsageError(f"--columns: expected the column of '{field}', as in {field}=NAME, found nothing")
    twice = [field for field, count in Counter(field for field, _ in entries).items() if count > 1]
    if twice:
        raise UsageError(f"--columns: the field '{twice[0]}' is given twice; give it once")
    return dict(entries)


def choose_columns(
    place: str, names: Iterable[str], given: Mapping[str, str], *, required: Sequence[str] = REQUIRED
) -> Columns:
    """Find the column of each field.

    A column given by the user has priority; then one with the field's own name, ignoring case; then the only one with a
    synonymous name. A column ``answer`` is the target if there is a ``question``.

    Args:
        place: File and line, for messages.
        names: Columns of the table, or keys of a row.
        given: Columns that the user named for some of the fields.
        required: Fields that must have a column, except that a table may have only images or only texts: with a target,
            or with nothing else. If empty, nothing is refused.

    Raises:
        PairsError: A column is missing, several are possible, or a name occurs twice.
    """
    names = list(names)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice and required:
        raise PairsError(f"{place}: expected each column once, found {twice[0]!r:.80} twice in {_shown(names)}")
    found: Columns = {}
    for field in FIELDS:
        if field in given:
            if given[field] in names:
                found[field] = given[field]
            elif required:
                hint = nearest(given[field], names)
                raise PairsError(f"{place}: there is no column '{given[field]}' for --columns {field}=... {hint}")
            continue
        free = [name for name in names if name not in given.values()]
        own = [name for name in free if name == field] or [name for name in free if _plain(name) == field]
        others = [name for name in free if _plain(name) in _OTHER_NAMES[field]]
        if field == "target" and _plain(found.get("text", "")) != "question":
            others = []
        if own or len(others) == 1:
            found[field] = (own or others)[0]
        elif others and field in required:
            raise PairsError(
                f"{place}: no column is named '{field}', and several could be meant; choose one, as in --columns "
                f"{field}={others[0]} (found {_shown(names)})"
            )
    missing = [field for field in required if field not in found]
    # Classes of images only, or of texts only. Without a target, a column with another name may be the missing one.
    alone = len(missing) == 1 and bool(found) and ("target" in found or len(names) == len(found))
    if missing and not alone:
        named = ",".join(f"{field}=NAME" for field in missing)
        raise PairsError(
            f"{place}: expected the columns 'image' and 'text' (and 'target'), found {_shown(names)}; name the "
            f"columns, as in --columns {named}{_of_one_side(found, names, required)}{_without_header(names)}"
        )
    return found


def refuse_empty(place: str, given: Mapping[str, str], filled: Iterable[str], keys: Iterable[str]) -> None:
    """Refuse a column that the user named and that holds nothing; its field would be missing without a word.

    Args:
        place: The file, for messages.
        given: Columns that the user named (`columns_of`).
        filled: Fields for which some pair has a value.
        keys: Other keys of the pairs, one of which may be meant.

    Raises:
        PairsError: No pair has a value for a field that was named.
    """
    filled = {*filled}
    for field, name in given.items():
        if field not in filled:
            others = sorted({*keys} - {name})
            hint = f" {nearest(name, others)}" if others else ""
            raise PairsError(
                f"{place}: no pair has a value under '{name}', which --columns names as {field}; correct the name, or "
                f"leave out {field}={name}.{hint}"
            )


def _of_one_side(found: Mapping[str, str], names: Sequence[str], required: Sequence[str]) -> str:
    """Return the end of a message that a side is missing, if only classes of images, or of texts, may be meant."""
    label = likely_target(names)
    sides = found or {side: "" for side in REQUIRED if side not in required}  # images in the table itself
    if not label or len(sides) != 1 or "target" in sides:
        return ""
    ((side, column),) = sides.items()
    named = f"{side}={column}," if column else ""
    return f"; or, if these are {side}s with a class each, --columns {named}target={label}"


def _without_header(names: Sequence[str]) -> str:
    """Return the end of a message that columns are missing, if the first line seems to hold values, not names."""
    if not any(_FILE.search(name) for name in names):
        return ""
    return "; or, if the first line is an item, add one with the names of the columns, such as image,text,target"


def likely_target(names: Iterable[str]) -> str:
    """Return the only one of some columns that is named like a target, or an empty string.

    It is only suggested: a label beside a caption may be something other than what is to be learned.
    """
    likely = [name for name in names if _plain(name) in _LIKE_TARGETS]
    return likely[0] if len(likely) == 1 else ""


def means_image(name: str) -> bool:
    """Return whether a column with this name would be used for images."""
    return _plain(name) in ("image", *_OTHER_NAMES["image"])


def renaming_note(columns: Mapping[str, str]) -> list[str]:
    """Return a note on which columns were used for which fields, if their names differ."""
    other = [f"'{name}' as {field}" for field, name in columns.items() if name != field]
    return [f"Read the column {', '.join(other)}."] if other else []


def _plain(name: str) -> str:
    return name.strip().lower()


def _shown(names: Sequence[str]) -> str:
    """Shorten names for a message; a damaged file may have very long ones."""
    text = repr(list(names))
    return text if len(text) <= 500 else f"{text[:500]} ..."
