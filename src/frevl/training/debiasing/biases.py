"""The file of biases: prompts whose directions are to go, and texts that are to be equal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from frevl.errors import InputError

__all__ = ["Biases", "read_biases"]

_LARGEST = 16 << 20
_FORMS = '{"biased": "a photo of a man"} or {"same": ["a photo of a male doctor", "a photo of a female doctor"]}'


@dataclass(frozen=True)
class Biases:
    """What should not matter.

    Attributes:
        biased: Prompts that name it.
        same: Texts that differ in it alone, two or more each.
    """

    biased: list[str]
    same: list[tuple[str, ...]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two texts of a line of ``same``."""
        return [pair for texts in self.same for pair in combinations(texts, 2)]

    @property
    def texts(self) -> list[str]:
        """All texts, each once."""
        return list(dict.fromkeys([*self.biased, *(text for texts in self.same for text in texts)]))


def read_biases(file: str | Path) -> Biases:
    """Read one JSON object a line, ``{"biased": text}`` or ``{"same": [text, text, ...]}``.

    Raises:
        InputError: The file cannot be read, or a line says something else; names the line.
    """
    path = Path(file)
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path}: expected at most 16 MiB of biases, found {path.stat().st_size:,} bytes")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"{path}: the biases cannot be read ({reason}); give a file with lines such as {_FORMS}"
        ) from error
    biased: dict[str, None] = {}
    same: list[tuple[str, ...]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{place}: expected a JSON object such as {_FORMS}, found '{line.strip()[:60]}'"
            ) from error
        if not isinstance(row, dict) or len(row) != 1 or next(iter(row)) not in ("biased", "same"):
            raise InputError(f"{place}: expected {_FORMS}, found '{line.strip()[:60]}'")
        if "biased" in row:
            text = _text(row["biased"], place)
            if text in biased:
                raise InputError(f"{place}: the biased prompt '{text:.60}' stands there twice; leave one out")
            biased[text] = None
            continue
        texts = row["same"]
        if not isinstance(texts, list) or len(texts) < 2:
            raise InputError(
                f"{place}, field 'same': expected a list of two texts or more, found {json.dumps(texts)[:60]}"
            )
        words = tuple(_text(text, place) for text in texts)
        if len(set(words)) < len(words):
            raise InputError(f"{place}, field 'same': expected different texts, found '{words[0]:.60}' twice")
        same.append(words)
    if not biased and not same:
        raise InputError(f"{path}: expected lines such as {_FORMS}, found none")
    return Biases(list(biased), same)


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: expected a text, found {json.dumps(value)[:60]}")
    return value.strip()
