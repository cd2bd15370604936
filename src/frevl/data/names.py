"""Ids and texts given by users: lists of them, and matching those that look the same but differ in bytes."""

from __future__ import annotations

import difflib
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeGuard, TypeVar
from urllib.parse import unquote

from frevl.errors import UsageError, lies_beside_images

__all__ = [
    "are_ids",
    "as_list",
    "has_value",
    "list_or_none",
    "marks",
    "number_of",
    "same_names",
    "spelling_note",
    "text_content",
    "value_name",
    "why_unknown",
    "word_pattern",
]

A = TypeVar("A")

_NUMBERS = re.compile(r"\d+")
_PLAIN = re.compile(r"-?(?:0|[1-9]\d{0,14})(?:\.\d+)?", re.ASCII)  # not "007", which is a name
_WHOLE = re.compile(r"(.*)\.0+")
_IDS = "ids are paths below the folder of images"
_MOST_COMPARED = 20_000  # names compared character by character


def as_list(value: Iterable[A] | A, name: str) -> list[A]:
    """Return a list; a single text or path becomes a list with one element, not of characters.

    Args:
        value: A list, any iterable, or one text or path.
        name: Name of the argument, for the message.

    Raises:
        UsageError: The value is neither.
    """
    if isinstance(value, str | Path):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        raise UsageError(f"{name}: expected a list, such as ['a', 'b'], found {type(value).__name__} {value!r:.40}")
    return list(value)


def list_or_none(value: Iterable[A] | A | None, name: str) -> list[A] | None:
    """Return None for None, and otherwise what `as_list` returns."""
    return None if value is None else as_list(value, name)


def text_content(text: str) -> str:
    """Return a canonical form, the same for texts that differ only in whitespace or Unicode composition."""
    return " ".join(unicodedata.normalize("NFC", text).split())


@lru_cache(1)
def marks() -> str:
    """Return all combining marks as the inside of a character class.

    Regular expressions do not count them as parts of words, but vowels of Hindi, Thai and other scripts are such marks.
    """
    found = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("M")]
    starts = [code for code, before in zip(found, [-1, *found], strict=False) if code != before + 1]
    ends = [code for code, after in zip(found, [*found[1:], -1], strict=True) if code + 1 != after]
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in zip(starts, ends, strict=True))


def word_pattern() -> str:
    """Return a regular expression for a word of any script."""
    return rf"[\w{marks()}]+"


def has_value(value: object) -> TypeGuard[str | float]:
    """Return whether a value names a group: a word, boolean or number, not an empty table cell or NaN."""
    return isinstance(value, str | int | float) and value == value and bool(str(value).strip())


def number_of(value: object) -> float | None:
    """Return a value of a key as a number, as tables of text hold numbers too; None for words, booleans and "007"."""
    if isinstance(value, str):
        return float(value) if _PLAIN.fullmatch(value.strip()) else None
    return None if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


def are_ids(values: Collection[object], items: int) -> bool:
    """Return whether a key's distinct values number its items: whole numbers as text, more than half as many as items.

    Tables of text hold ids and numbers alike; an age or a year is shared by many items.
    """
    return 2 * len(values) > items and all(isinstance(one, str) and one.strip().isdecimal() for one in values)


def value_name(value: str | float) -> str:
    """Return the name of a group: 1, 1.0, "1" and "1.0" are the same; whitespace and composed accents do not count."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    name = text_content(str(value))
    whole = _WHOLE.fullmatch(name) if _PLAIN.fullmatch(name) else None
    return str(int(whole[1])) if whole else name


def same_names(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Match names to known ones, ignoring a leading ``./``, backslashes and Unicode composition.

    Args:
        names: Names of images, as in pairs.
        known: Ids of images.

    Returns:
        For every name that is not known itself but matches exactly one known id, that id.
    """
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if not unknown:
        return {}
    wanted = {_path(name) for name in unknown}
    meant: dict[str, list[str]] = {}
    for id_ in known:
        key = _path(id_)
        if key in wanted:
            meant.setdefault(key, []).append(id_)
    return {name: meant[_path(name)][0] for name in unknown if len(meant.get(_path(name), ())) == 1}


def spelling_note(same: dict[str, str]) -> list[str]:
    """Return a note that names were found under a different spelling."""
    if not same:
        return []
    name, id_ = next(iter(same.items()))
    count = "1 image id was" if len(same) == 1 else f"{len(same):,} image ids were"
    return [f"{count} found under a different spelling ('{name:.60}' as '{id_:.60}'{_composed(name, id_)})."]


def why_unknown(name: str, known: Collection[str]) -> str:
    """Return the known name closest to an unknown one and how it differs; an empty string if none is close.

    Args:
        name: The unknown name.
        known: Ids of images.
    """
    own = _path(name)
    path = PurePosixPath(own)
    alike: list[str] = []
    for id_ in known:
        key = _path(id_)
        if lies_beside_images(key):  # a store knows such files as rejected
            continue
        if own.endswith("/" + key):
            return f"the nearest is '{id_:.80}', without the folder '{own[: -len(key)]}' ({_IDS})"
        if key.endswith("/" + own):
            return f"the nearest is '{id_:.80}', in the folder '{key[: -len(own)]}' ({_IDS})"
        if PurePosixPath(key).stem.casefold() == path.stem.casefold() or unquote(own) == key:
            alike.append(id_)
    for id_ in alike:
        key = _path(id_)
        if unquote(own) == key:
            return f"the nearest is '{id_:.80}', which is not percent-encoded (%20 for a space)"
        if key.casefold() == own.casefold():
            return f"the nearest is '{id_:.80}', which differs in capital letters"
        if PurePosixPath(key).with_suffix("") == path.with_suffix(""):
            return f"the nearest is '{id_:.80}', which has another file extension"
    if alike:
        return f"the nearest is '{alike[0]:.80}', in another folder"
    # Different numbers mean different images, however similar the names.
    numbers = _NUMBERS.findall(name)
    few = [id_ for id_ in known if _NUMBERS.findall(id_) == numbers] if len(known) <= _MOST_COMPARED else []
    few = [id_ for id_ in few if not lies_beside_images(id_)]
    close = difflib.get_close_matches(name, few, n=1, cutoff=0.7)
    return f"the nearest is '{close[0]:.80}'" if close else ""


def _path(name: str) -> str:
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _composed(name: str, id_: str) -> str:
    plain = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", id_)
    return ", with a different Unicode composition" if plain else ""
