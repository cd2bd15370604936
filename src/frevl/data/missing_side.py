"""A side that pairs lack: explain it, and find the key that probably holds it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from frevl.data.columns import REQUIRED
from frevl.data.formats.pair_rows import LEFT_ALONE, WITH_ARTICLE

__all__ = ["mistaken_side", "one_side_note", "other_keys"]

_SENTENCE = re.compile(r"\S\s+\S+\s+\S")
_PICTURE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|hei[cf]|avif)$", re.IGNORECASE)


def mistaken_side(sides: Sequence[str], extras: Sequence[Mapping[str, Any]]) -> str:
    """Return the key that probably holds the missing side, or an empty string.

    Sentences of three words or more (or a list of them) look like texts, and names with an image suffix look like
    images, if most pairs have one. Keys such as ``question_type`` do not.
    """
    if len(sides) == 2 or not len(extras):
        return ""
    looks = _SENTENCE if list(sides) == ["image"] else _PICTURE
    counts: dict[str, int] = {}
    for extra in extras:
        for key, value in extra.items():
            first = value[0] if isinstance(value, list) and value else value
            if isinstance(first, str) and looks.search(first.strip()):
                counts[key] = counts.get(key, 0) + 1
    likely = max(counts, key=lambda key: counts[key], default="")
    return likely if likely and 2 * counts[likely] > len(extras) else ""


def one_side_note(sides: Sequence[str], extras: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a note that the pairs are only images, or only texts; a misspelt key would otherwise go unnoticed."""
    if len(sides) == 2:
        return []
    side = "text" if list(sides) == ["image"] else "image"
    mistaken = mistaken_side(sides, extras)
    if mistaken:
        return [
            f"No pair has {WITH_ARTICLE[side]}, and '{mistaken}' looks like one: only {LEFT_ALONE[side]} are used. "
            f"If it is one, name it with --columns {side}={mistaken}."
        ]
    keys = ", ".join(f"'{key}'" for key in list(dict.fromkeys(key for extra in extras for key in extra))[:8])
    hint = f" If another key has it ({keys}), name it with --columns {side}=NAME." if keys else ""
    a = WITH_ARTICLE[side]
    return [f"No pair has {a}: only {LEFT_ALONE[side]} are used, and whatever needs {a} is skipped.{hint}"]


def other_keys(row: object) -> str:
    """Explain how to name the fields if a row's keys are not those of a pair."""
    if not isinstance(row, dict) or not row or set(REQUIRED) <= set(row):
        return ""
    if "target" in row and not set(REQUIRED).isdisjoint(row):  # classes of one side: nothing is missing
        return ""
    keys = ", ".join(f"'{key}'" for key in list(row)[:8])
    return f" The last one has the keys {keys}: name them, as in --columns image=NAME,text=NAME."
