"""The errors that a user can meet, and items that could not be used.

Every message says where it happened, what was expected, what was found and what to do.

FrevlError               a known failure; the command line prints it and exits with 1
├── UsageError           a wrong argument: unknown name, flags that contradict each other; exits with 2
├── MissingExtraError    an optional library is not installed
├── InputError           the user's own files cannot be used as they are
│   ├── PairsError       a pairs file: names file, line and field
│   └── ImageError       one image cannot be decoded
├── EncoderError         an encoder cannot be loaded, or is not what it claims to be
├── StoreError           a store is missing, damaged, locked or lacks what was requested
│   └── FingerprintError store, encoder and run do not belong together; names the field that differs
├── TrainingError        training cannot continue (one class only, a loss that is not finite)
└── RunError             a run is missing, damaged or does not fit

A `Reject` is one item of many that was left out: kept with its reason, counted in the closing line, never dropped.
"""

from __future__ import annotations

import difflib
import importlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import ModuleType

__all__ = [
    "EncoderError",
    "FingerprintError",
    "FrevlError",
    "ImageError",
    "InputError",
    "MissingExtraError",
    "PairsError",
    "Reject",
    "RunError",
    "StoreError",
    "TrainingError",
    "UsageError",
    "library",
    "lies_beside_images",
    "nearest",
    "one_line",
    "rejects_sentence",
]


def library(name: str, extra: str = "packaged") -> ModuleType:
    """Import an optional library that belongs to an extra of this package.

    Raises:
        MissingExtraError: The library is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MissingExtraError(name, extra) from None


class FrevlError(Exception):
    """A known failure with a one-line message for the user; quoted text may come from an untrusted file."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """Escape unprintable characters: a hostile name must not move the cursor of the user's terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(FrevlError):
    """A wrong argument: an unknown name, or arguments that contradict each other."""


class MissingExtraError(FrevlError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(
            f"The library '{library}' is not installed, and this step needs it. "
            f"Install it with: pip install 'frevl[{extra}]'"
        )


class InputError(FrevlError):
    """The user's own files cannot be used as they are."""


class PairsError(InputError):
    """A pairs file cannot be used; the message names file, line and field."""


class ImageError(InputError):
    """One image cannot be decoded."""


class EncoderError(FrevlError):
    """An encoder cannot be loaded, or is not what it claims to be."""


class StoreError(FrevlError):
    """A store is missing, damaged, locked, or lacks what was requested."""


class FingerprintError(StoreError):
    """Store, encoder and run do not belong together; the message names the field that differs."""


class TrainingError(FrevlError):
    """Training cannot continue."""


class RunError(FrevlError):
    """A run is missing, damaged, or does not fit."""


MOST_SHOWN, _FEW = 60, 20
"""Maximum number of valid names in a message: more than any list of options has, fewer than a screen holds."""


def nearest(name: object, valid: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest valid name, and all of them.

    Args:
        name: What the user typed, or passed from Python (then not necessarily a string).
        valid: The names that exist.

    Returns:
        ``"Did you mean 'x'? Valid: 'x', 'y'."``, or only the second sentence if no name is close; of many valid names
        (classes, ids), the first and how many there are.
    """
    names = list(valid)
    close: list[str] = []
    if isinstance(name, str):
        alike = [one for one in names if one.casefold() == name.casefold()]  # difflib finds 'RED' unlike 'red'
        close = alike or difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    shown = names if len(names) <= MOST_SHOWN else names[:_FEW]
    rest = f" and {len(names) - len(shown):,} more" if len(shown) < len(names) else ""
    return hint + "Valid: " + ", ".join(f"'{n!s:.60}'" for n in shown) + rest + "."


_PLURALS = {"image": "images", "text": "texts", "pair": "pairs", "class": "classes"}
# Suffixes of files often kept next to images: captions, metadata, lists. Rejecting them is not worth reporting one by
# one.
_BESIDE = frozenset(
    (".aae", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".mov", ".mp4", ".npy", ".npz",
     ".parquet", ".tsv", ".txt", ".url", ".xml", ".xmp", ".yaml", ".yml")
)  # fmt: skip


@dataclass(frozen=True)
class Reject:
    """A rejected item.

    Attributes:
        kind: ``image``, ``text``, ``pair`` or ``class``.
        id: The image id, the text, or ``file:line`` for a pair.
        reason: One sentence.
    """

    kind: str
    id: str
    reason: str


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 test image`` or ``2,000 test images``.

    Args:
        number: How many.
        noun: The noun in the singular, with its adjectives.
        plural: The plural, if it is not the singular with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


_MISLEADING = ("Leak: ", "Chance: ", "Spelling: ", "Contradiction: ", "One class: ", "Unknown classes: ")


def misleading(notes: Iterable[str]) -> list[str]:
    """Return the notes on figures that are too good, show nothing or are wrong as they stand: these come first."""
    return [note for note in notes if note.startswith(_MISLEADING)]


def in_bytes(number: float) -> str:
    """Return a number of bytes in the unit that shows it: ``1.5 GB``, ``12 MB``, ``3 kB`` or ``1 byte``."""
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if number >= 0.995 * size:
            return f"{number / size:,.1f} {unit}"
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if number >= 0.995 * size:
            return f"{number / size:,.0f} {unit}"
    return counted(int(number), "byte")


def rejects_sentence(rejects: Sequence[Reject], *, shown: int = 3) -> str:
    """Count rejects by kind and name the first few.

    Files that usually lie next to images are counted by suffix, and named only if there is nothing else.

    Args:
        rejects: The rejected items.
        shown: How many to name.

    Returns:
        An empty string if nothing was rejected.
    """
    if not rejects:
        return ""
    beside = Counter(_ending(one.id) for one in rejects if _stands_beside(one))
    told = [one for one in rejects if not _stands_beside(one)] or rejects
    counts = Counter(one.kind for one in told)
    told_of = [f"{n:,} {_PLURALS[kind] if n > 1 else kind}" for kind, n in sorted(counts.items())]
    named = one_line("; ".join(f"{reject.id:.200}: {reject.reason:.200}" for reject in told[:shown]))
    more = f"; and {len(told) - shown:,} more" if len(told) > shown else ""
    sentence = f"Left out: {', '.join(told_of)} ({named}{more})"
    others = sum(beside.values())
    if not others or told is rejects:
        return f"{sentence}."
    return f"{sentence}, and {others:,} other file{'s' if others > 1 else ''} ({', '.join(sorted(beside))})."


def lies_beside_images(id_: str) -> bool:
    """Return whether a file is of a kind that usually lies next to images: a caption, a list, metadata."""
    return _ending(id_) in _BESIDE


def _stands_beside(reject: Reject) -> bool:
    return reject.kind == "image" and lies_beside_images(reject.id)


def _ending(id_: str) -> str:
    return PurePosixPath(id_).suffix.lower()
