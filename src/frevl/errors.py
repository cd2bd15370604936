"""The errors that a user can meet.

Every message says where, what was expected, what was found and what to do.

FrevlError               a known failure; the command line prints it and exits with 1
├── UsageError           a wrong argument: unknown name, flags that contradict each other; exits with 2
├── MissingExtraError    an optional library is not installed
├── InputError           the user's own files cannot be used as they are
│   ├── PairsError       a pairs file: names file, line and field
│   └── ImageError       one image cannot be decoded
├── EncoderError         an encoder cannot be loaded, or is not what it claims to be
├── StoreError           a store is missing, damaged, locked or lacks what is asked of it
│   └── FingerprintError store, encoder and run do not belong together; names the field that differs
├── TrainingError        training cannot continue (one class only, a loss that is not finite)
└── RunError             a run is missing, damaged or does not fit
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

__all__ = [
    "EncoderError",
    "FingerprintError",
    "FrevlError",
    "ImageError",
    "InputError",
    "MissingExtraError",
    "PairsError",
    "RunError",
    "StoreError",
    "TrainingError",
    "UsageError",
    "library",
    "nearest",
    "one_line",
]


def library(name: str, extra: str = "packaged") -> ModuleType:
    """Import an optional library of an extra of this package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MissingExtraError(name, extra) from None


class FrevlError(Exception):
    """A known failure with a message for the user, on one line: what it quotes may come from a stranger's file."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """Escape what is not printable: a hostile name must not move the cursor of the user's terminal."""
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
    """A store is missing, damaged, locked, or lacks what is asked of it."""


class FingerprintError(StoreError):
    """Store, encoder and run do not belong together; the message names the field that differs."""


class TrainingError(FrevlError):
    """Training cannot continue."""


class RunError(FrevlError):
    """A run is missing, damaged, or does not fit."""


def nearest(name: object, valid: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest, and all that are valid.

    Args:
        name: What the user typed, or gave from Python, where it need not be a text.
        valid: The names that exist.

    Returns:
        ``"Did you mean 'x'? Valid: 'x', 'y'."``, or only the second sentence if nothing is close.
    """
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1) if isinstance(name, str) else []
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return hint + "Valid: " + ", ".join(f"'{n}'" for n in names) + "."
