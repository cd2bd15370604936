"""Read class names, descriptions and example images from three common file formats.

``.txt``: one name per line. ``.jsonl``: one object per line, ``{"class": "tench", "names": ["tench", "Tinca tinca"],
"descriptions": [...], "examples": [image ids], "kind": "fish"}``, where only ``class`` is required. ``.json``:
``{class: [texts]}``, as published for CuPL and classification by description.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

from frevl.data.formats.json_rows import json_rows
from frevl.errors import InputError, Reject, UsageError, nearest
from frevl.files import read_text

__all__ = [
    "TEMPLATE",
    "TEMPLATE_OF_CAPTIONS",
    "ClassEntry",
    "ClassList",
    "check_templates",
    "doubtful_names",
    "is_number",
    "read_classes",
    "sentences_of",
]

_KEYS = ("class", "names", "descriptions", "examples", "kind")
_MOST_BYTES = 256 << 20
_FEWEST = 2


@dataclass(frozen=True)
class ClassEntry:
    """One class.

    Attributes:
        label: The label of images, and the ``target`` of pairs.
        names: Words to insert into a template; by default the label; empty if the label is not a word.
        descriptions: Texts to use unchanged.
        examples: Ids of images in this class.
        kind: The kind of thing, such as ``fish``; may be empty.
        place: ``file:line``, for messages.
    """

    label: str
    names: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    kind: str = ""
    place: str = ""


@dataclass(frozen=True)
class ClassList:
    """Classes in file order.

    Attributes:
        entries: The classes, at least two.
        rejected: Lines that could not be used.
        source: The file as given, or an empty string.
    """

    entries: tuple[ClassEntry, ...]
    rejected: tuple[Reject, ...] = ()
    source: str = ""

    @property
    def labels(self) -> list[str]:
        """The labels, in order."""
        return [entry.label for entry in self.entries]


def read_classes(source: Any) -> ClassList:
    """Read classes from a file or from Python values.

    Args:
        source: A ``.txt``, ``.jsonl`` or ``.json`` file; names; a mapping from class to texts; or a `ClassList`.

    Returns:
        At least two different classes; unusable lines are in ``rejected``.

    Raises:
        InputError: The file cannot be read or has another suffix, a class occurs twice, or there are fewer than two.
    """
    if isinstance(source, ClassList):
        return source
    if isinstance(source, Mapping):
        return _checked(_of_mapping(source, "classes"), [], "")
    if isinstance(source, Iterable) and not isinstance(source, str | bytes | PathLike):
        rows = ((f"classes[{number}]", one, "") for number, one in enumerate(source))
        return _checked(*_of_rows(rows), "")
    path = Path(source)
    if path.suffix.lower() not in (".txt", ".jsonl", ".ndjson", ".json"):
        raise InputError(
            f"{path}: classes are read from .txt (one name per line), .jsonl or .json, found the suffix '{path.suffix}'"
        )
    try:
        if path.suffix.lower() == ".json":
            return _checked(_of_mapping(_one_object(path), str(path)), [], str(path))
        if path.suffix.lower() == ".txt":
            # Not splitlines, which would also split names at separators of other scripts.
            lines = read_text(path).split("\n")
            rows = ((f"{path}:{number}", line, "") for number, line in enumerate(lines, 1) if line.strip())
            return _checked(*_of_rows(rows), str(path))
        stream = BytesIO(read_text(path).encode())
        rows = ((f"{path}:{number}", row, problem) for number, row, problem in json_rows(path, stream))
        return _checked(*_of_rows(rows), str(path))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected text in UTF-8, found something else ({error.reason}); save the file as UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: the classes cannot be read ({error.strerror or error})") from error


def _one_object(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path}: expected at most {_MOST_BYTES >> 20} MB of JSON, found more; use .jsonl")

    def once(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        most = Counter(name for name, _ in entries).most_common(1)
        if most and most[0][1] > 1:  # Python would silently keep the last one
            raise InputError(
                f"{path}: the class '{most[0][0]:.60}' appears twice; give every class once, with all its texts"
            )
        return dict(entries)

    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON object {{class: [texts]}}, found broken JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object {{class: [texts]}}, found {type(value).__name__}")
    return value


def _of_mapping(given: Mapping[Any, Any], source: str) -> list[ClassEntry]:
    entries = []
    for label, texts in given.items():
        place = f"{source}, class '{label}'"
        found = [texts] if isinstance(texts, str) else texts
        if not isinstance(label, str) or not _is_visible(label):
            raise InputError(f"{source}: expected the name of a class, found {label!r:.60}")
        problem = _not_texts(found)
        if problem:
            raise InputError(f"{place}: expected a list of texts, {problem}")
        if is_number(label) and found:  # an index, as in {"0": "tench"}: a name of few words belongs in a template
            names = tuple(text for text in found if len(text.split()) <= _A_NAME)
            whole = tuple(text for text in found if text not in names)
            entries.append(ClassEntry(label, names, whole, place=place))
            continue
        descriptions = tuple(_as_description(text, label) for text in found)
        entries.append(ClassEntry(label, (label,), descriptions, place=place))
    return entries


def _of_rows(rows: Iterable[tuple[str, Any, str]]) -> tuple[list[ClassEntry], list[Reject]]:
    entries, rejected = [], []
    for place, row, problem in rows:
        entry = problem or _entry(row, place)
        if isinstance(entry, ClassEntry):
            entries.append(entry)
        else:
            rejected.append(Reject("class", place, entry))
    return entries, rejected


def _entry(row: Any, place: str) -> ClassEntry | str:
    """Return the class defined by a row, or what is wrong with it."""
    if isinstance(row, str):
        if not (name := row.strip()) or not _is_visible(name):
            return "expected a name, found only spaces or invisible characters"
        if "\t" in name:
            return (
                f"expected a name, found columns separated by tabs ({name!r:.60}); write one name per line, or .jsonl "
                'such as {"class": "n01440764", "names": ["tench"]}'
            )
        return ClassEntry(name, (name,), place=place)
    if not isinstance(row, dict):
        return f"expected an object or a name, found {type(row).__name__}"
    label = row.get("class")
    if not isinstance(label, str) or not _is_visible(label):
        return f"field 'class': expected a name, found {label!r:.40}"
    unknown = [key for key in row if key not in _KEYS]
    if unknown:
        return f"there is no field '{unknown[0]:.40}'. {nearest(str(unknown[0]), _KEYS)}"
    lists = {key: row.get(key, []) for key in ("names", "descriptions", "examples")}
    for key, value in lists.items():
        problem = _not_texts(value)
        if problem:
            return f"field '{key}': expected a list of texts, {problem}"
    kind = row.get("kind", "")
    if not isinstance(kind, str):
        return f"field 'kind': expected a text, found {type(kind).__name__}"
    label = label.strip()
    descriptions = tuple(_as_description(text, label) for text in lists["descriptions"])
    names = tuple(lists["names"]) if "names" in row else (label,)  # an empty list: the label is not a word
    return ClassEntry(label, names, descriptions, tuple(lists["examples"]), kind, place)


def is_number(name: str) -> bool:
    """Return whether a name is a number, such as the index of a class."""
    return re.fullmatch(r"-?\d+(\.\d+)?", name.strip()) is not None


def _is_visible(name: str) -> bool:
    return any(not sign.isspace() and unicodedata.category(sign) not in ("Cf", "Cc") for sign in name)


def _not_texts(value: Any) -> str:
    if not isinstance(value, list | tuple):
        return f"found {type(value).__name__}"
    wrong = next((one for one in value if not isinstance(one, str) or not one.strip()), None)
    return "" if wrong is None else f"found {wrong!r:.40} in it"


def _as_description(text: str, label: str) -> str:
    """Return a text about the class; one that does not name the class is a feature ("a long tail").

    Features are joined to the name as in classification by description (Menon and Vondrick 2023).
    """
    plain = text.strip()
    if label.casefold() in plain.casefold() or len(plain.split()) > _A_SENTENCE:
        return plain
    first = plain.split()[0].casefold()
    if first in ("a", "an", "the", "usually", "used"):
        return f"{label}, which is {plain}"
    return f"{label}, which {plain}" if first in _VERBS else f"{label}, which has {plain}"


_A_NAME = 4  # words, at most
_A_SENTENCE = 12  # words; a longer text stands alone whether or not it names the class
_VERBS = ("has", "have", "is", "are", "can", "may", "often", "typically", "does")


def _checked(entries: Sequence[ClassEntry], rejected: Sequence[Reject], source: str) -> ClassList:
    seen: dict[str, str] = {}
    for entry in entries:
        if entry.label in seen:
            raise InputError(
                f"{entry.place}: the class '{entry.label}' already appears in {seen[entry.label]}; give every "
                "class once, with all its names and texts"
            )
        seen[entry.label] = entry.place
    if len(entries) < _FEWEST:
        first = f" (the first line left out is {rejected[0].id}: {rejected[0].reason})" if rejected else ""
        if not rejected and entries and "," in entries[0].label:
            first = f", '{entries[0].label:.60}'; write one name per line"
        raise InputError(f"{source or 'classes'}: expected at least two classes, found {len(entries)}{first}")
    return ClassList(tuple(entries), tuple(rejected), source)


def doubtful_names(classes: ClassList) -> list[str]:
    """Return notes on names that are probably not meant as words: numbers, and comments in a list of names."""
    notes = []
    numbers = [entry.label for entry in classes.entries if entry.names and all(map(is_number, entry.names))]
    if numbers:
        few = ", ".join(f"'{label}'" for label in numbers[:3]) + (" and others" if len(numbers) > 3 else "")
        notes.append(
            f"The names of {len(numbers):,} of {len(classes.entries):,} classes are only numbers ({few}), which "
            "describe an image only if it shows them; give words in .jsonl, such as "
            f'{{"class": "{numbers[0]}", "names": ["tench"]}}, or "names": [] to use examples alone.'
        )
    marked = [entry for entry in classes.entries if entry.label.startswith("#")]
    if marked:
        notes.append(
            f"{marked[0].place}: '{marked[0].label:.60}' is taken for a class, as there are no comments in this file; "
            "remove the line if it is one."
        )
    return notes


TEMPLATE = "a photo of a {}."
"""The CLIP authors' prompt: their encoders were not trained on bare words."""

TEMPLATE_OF_CAPTIONS = "a {}"
"""For a space trained on captions: the best of four tried on Flickr8k (research/experiments/log.md)."""


def check_templates(templates: Sequence[str]) -> None:
    """Refuse a template without a placeholder for the name.

    Raises:
        UsageError: A template has no placeholder; names it.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(
                "--template: expected a sentence with one '{}' where the name of the class belongs, found "
                f"'{template}'; for example --template \"{TEMPLATE}\""
            )


def sentences_of(entry: ClassEntry, templates: Sequence[str]) -> list[str]:
    """Return the distinct prompts of a class: every name in every template, then the descriptions."""
    named = [template.replace("{}", name) for template in templates for name in entry.names]
    return list(dict.fromkeys([*named, *entry.descriptions]))
