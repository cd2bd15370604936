"""Pairs files: read, check, split by image.

A pair is an image id, a text and an optional target. A file has one JSON object per line (or is Parquet or CSV with the
same columns): ``{"image": id, "text": "a sentence or question", "target": ...}``. A target that is a string is a class,
a list of strings is several right answers, and an object ``{answer: weight}`` is a soft target. If no pair in a file
has a target, all are positive image-text pairs; if only some have one, the others are unlabelled (`with_targets`).
Other keys are kept, and results can be sliced by them. A text that is a list stands for a pair with each of its
entries. To classify only images, or only texts, omit the other side from every pair of the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from frevl.data.columns import FIELDS, columns_of, refuse_empty
from frevl.data.formats.json_rows import HALF_PAIR, has_half_pair
from frevl.data.formats.pair_rows import (
    ENDINGS,
    JSON_ENDINGS,
    as_target,
    form_of,
    group_name,
    is_of_several,
    lacking_side,
    nothing_found,
    one_text_each,
    problem_in,
    rows_of,
    with_the_same_sides,
    without_gaps,
)
from frevl.data.formats.table_parts import ARROW, is_in_parts, parts_of, place_of
from frevl.data.in_memory import PLACE, rows_in_memory
from frevl.data.missing_side import one_side_note, other_keys
from frevl.data.packed.columns import Coded, WithCluster, chosen, coded_values, in_order, is_given
from frevl.data.packed.read import read_packed
from frevl.errors import PairsError, Reject, UsageError, rejects_sentence

__all__ = [
    "CAPTIONED",
    "LABELLED",
    "Pairs",
    "Side",
    "Target",
    "in_memory",
    "pair_list",
    "problem_of",
    "read_pairs",
    "split_by_image",
    "with_targets",
]

Target = str | list[str] | dict[str, float]
Side = Literal["image", "text"]
_COLUMNS: dict[Side, str] = {"image": "images", "text": "texts"}
CAPTIONED = '{"image": "a.jpg", "text": "a dog"}'
"""An image with a text, as a line of a file."""
LABELLED = '{"image": "a.jpg", "target": "dog"}'
"""An image with a class, as a line of a file."""

_LARGE = 16 << 20  # bytes of a file: about 150,000 captions
_LARGE_TABLE = 2 << 20  # of Parquet, which takes an eighth


@dataclass(frozen=True)
class Pairs:
    """Pairs in columns; each position is one pair.

    Columns are lists; those of a large file are dictionary-encoded (`frevl.data.packed.columns`) and create values on
    access.

    Attributes:
        images: Image ids; all empty if the pairs are only texts.
        texts: Sentences or questions, exactly as in the file; all empty if the pairs are only images.
        targets: One target per pair, or None.
        extras: All other keys of each pair.
        places: ``file:line`` of each pair (``file:row``, counted from 1, for Parquet), with the file as given.
        rejected: Lines that could not be read, with their reasons.
        notes: Sentences on how the file was read: columns that were renamed, or not read.
        source: The file that was read, as given, or None.
    """

    images: Sequence[str]
    texts: Sequence[str]
    targets: Sequence[Target | None]
    extras: Sequence[dict[str, Any]]
    places: Sequence[str]
    rejected: tuple[Reject, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    source: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides that every pair has: image, text, or both."""
        return tuple(side for side, column in _COLUMNS.items() if not len(self) or getattr(self, column)[0])

    @property
    def units(self) -> Sequence[str]:
        """The default unit of a pair: its image, or its text if there are only texts."""
        return self.images if "image" in self.sides else self.texts

    @property
    def clusters(self) -> Sequence[str]:
        """The cluster of each pair, which splits keep whole: the key ``cluster`` if present, else the unit."""
        extras = self.extras
        if isinstance(extras, WithCluster):
            return extras.clusters
        if isinstance(extras, Coded) and not any(group_name(extra.get("cluster")) for extra in extras.used_values()):
            return self.units
        named = (group_name(extra.get("cluster")) for extra in self.extras)
        return [unit if name is None else name for unit, name in zip(self.units, named, strict=True)]

    def select(self, rows: Sequence[int] | np.ndarray) -> Pairs:
        """Return the pairs at these positions, in this order, without the rejects."""
        return Pairs(
            images=chosen(self.images, rows),
            texts=chosen(self.texts, rows),
            targets=chosen(self.targets, rows),
            extras=chosen(self.extras, rows),
            places=chosen(self.places, rows),
            source=self.source,
        )

    def only(self, sides: Collection[str]) -> Pairs:
        """Return the pairs with only these sides."""
        blank = [""] * len(self)
        return replace(
            self,
            images=self.images if "image" in sides else blank,
            texts=self.texts if "text" in sides else blank,
        )

    def row(self, position: int) -> dict[str, Any]:
        """Return one pair as the original object in the file."""
        row = self.images[position], self.texts[position], self.targets[position], self.extras[position]
        return _as_object(self.sides, *row)

    def as_rows(self) -> Iterator[dict[str, Any]]:
        """Yield every pair as the original object in the file."""
        sides = self.sides
        for row in zip(self.images, self.texts, self.targets, self.extras, strict=True):
            yield _as_object(sides, *row)


def _as_object(
    sides: Sequence[str], image: str, text: str, target: Target | None, extra: dict[str, Any]
) -> dict[str, Any]:
    own = {"image": image} if "image" in sides else {}
    if "text" in sides:
        own["text"] = text
    return {**own, **extra} if target is None else {**own, "target": target, **extra}


def read_pairs(
    source: Any, *, columns: str | Sequence[str] | Mapping[str, str] | None = None, example: str = CAPTIONED
) -> Pairs:
    """Read a pairs file, or pairs in memory.

    Unusable lines (malformed, without image or text, with an invalid target) are set aside in ``rejected`` with file,
    line and field. A line with a list of texts is a pair for each of them. If no pair has a text, the pairs are images
    only, for classification; if none has an image, texts only.

    Args:
        source: A file: JSON (one object per line, or a list of objects), a text table (with commas, tabs or semicolons,
            in UTF-8 or UTF-16), Parquet, Arrow or Feather; a folder of the last three, or a pattern of their names, is
            one table. Or pairs in memory: `Pairs`, a table of pandas, polars, Arrow or datasets, a list of mappings or
            of ``(image, text)`` or ``(image, text, target)``, a mapping of columns, or one pair.
        columns: Columns or keys of the fields, as in ``image=filepath,text=title``; by default those with the same or a
            synonymous name.
        example: The line that is shown as an example if none can be used.

    Returns:
        The pairs in file order.

    Raises:
        PairsError: The file is missing, empty or of another kind, no line of it can be used, or some pairs with a
            target have a text (an image) and others none.
        UsageError: ``columns`` names an unknown field.
    """
    if isinstance(source, Pairs):
        return source
    given = columns_of(columns)
    notes: list[str] = []
    from_file = isinstance(source, str | PathLike)
    path = str(Path(source)) if from_file else PLACE
    packed = _from_packed(Path(source), given) if from_file else None
    if packed is not None:
        _refuse_empty(packed, given)
        return replace(packed, notes=tuple(dict.fromkeys([*packed.notes, *one_side_note(packed.sides, packed.extras)])))
    rows = rows_of(Path(source), given, notes) if from_file else rows_in_memory(source, given, notes)
    rejected: list[tuple[int, Reject]] = []
    kept: list[tuple[int, str, dict[str, Any]]] = []
    several = from_file and not Path(source).is_file() and is_in_parts(Path(source))
    named = place_of(Path(source)) if several else lambda line: f"{path}:{line}"
    row: Any = None
    for number, (place, row, problem) in enumerate(one_text_each(rows, named, notes)):
        problem = problem or problem_in(row)
        if problem:
            rejected.append((number, Reject("pair", place, problem)))
        else:
            kept.append((number, place, row))
    kept = with_the_same_sides(kept, rejected)
    rejects = tuple(reject for _, reject in sorted(rejected, key=lambda one: one[0]))
    if not kept:
        detail = (rejects_sentence(rejects) or "It is empty.") + other_keys(row)
        raise PairsError(f"{path}: no usable pair found; expected {form_of(source)} {example}. {detail}")
    pairs = Pairs(
        [row.get("image") or "" for _, _, row in kept],
        [row.get("text") or "" for _, _, row in kept],
        without_gaps([as_target(row.get("target")) for _, _, row in kept]),
        [{key: value for key, value in row.items() if key not in FIELDS} for _, _, row in kept],
        [place for _, place, _ in kept],
        rejects,
        source=path if from_file else None,
    )
    _refuse_empty(pairs, given)
    return replace(pairs, notes=tuple(dict.fromkeys([*notes, *one_side_note(pairs.sides, pairs.extras)])))


def _refuse_empty(pairs: Pairs, given: Mapping[str, str]) -> None:
    # The header of a table was checked, and a table may have a column of labels that is still to be filled.
    labelled = "target" not in given or not (pairs.source or "").lower().endswith(JSON_ENDINGS)
    filled = [*pairs.sides, *(["target"] if labelled or is_given(pairs.targets).any() else [])]
    if not {*given} <= {*filled}:
        refuse_empty(str(pairs.source or PLACE), given, filled, {key for extra in pairs.extras for key in extra})


def _from_packed(path: Path, given: Mapping[str, str]) -> Pairs | None:
    """Read a large file; None for any other."""
    in_parts = not path.is_file() and is_in_parts(path)
    if not in_parts and (path.suffix.lower() not in ENDINGS or not path.is_file()):
        return None
    try:
        size = sum(file.stat().st_size for file in (parts_of(path) if in_parts else [path]))
        if size < (_LARGE_TABLE if in_parts or path.suffix.lower() in ARROW else _LARGE):
            return None
        kept = read_packed(path, given)
    except OSError:
        return None  # reported when it is read row by row
    if kept is None:
        return None
    places = kept.places(path)
    rejects = tuple(Reject("pair", places.place(line), reason) for line, reason in kept.rejected)
    columns = kept.strings("images"), kept.strings("texts"), kept.objects("targets"), kept.objects("extras")
    return Pairs(*columns, places, rejects, tuple(kept.notes), source=str(path))


def in_memory(pairs: Any) -> Any:
    """Return the path of a pairs file, `Pairs` and None unchanged, and everything else as `Pairs`."""
    return pairs if pairs is None or isinstance(pairs, str | PathLike | Pairs) else read_pairs(pairs)


def pair_list(pairs: Any, sides: Sequence[Side] = ("image", "text")) -> list[tuple[str, str]]:
    """Return pairs as a list of ``(image id, text)``; a missing side is empty.

    Args:
        pairs: Such a list, or anything that `read_pairs` accepts except a file.
        sides: Sides to read. With one side alone, the pairs may be a list of image ids, or of texts.

    Raises:
        UsageError: The value is none of these.
        PairsError: An element is not a pair: nothing is left out here, so that results keep their positions.
    """
    if isinstance(pairs, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        return pairs
    if isinstance(pairs, str | PathLike):
        raise UsageError(
            f"expected pairs such as [(image id, text)], found '{pairs!s:.60}'; use read_pairs or frevl score for "
            "a pairs file"
        )
    pairs = pairs if isinstance(pairs, Sized) else list(pairs) if isinstance(pairs, Iterable) else pairs
    if isinstance(pairs, Sized) and not len(pairs):
        return []
    if len(sides) == 1 and not isinstance(pairs, Mapping) and set(map(type, pairs)) == {str}:
        if sides[0] == "image" and all(map(str.strip, pairs)) and not has_half_pair(list(pairs)):
            return [(one, "") for one in pairs]  # nothing to check; whole stores are labelled this way
        pairs = [{sides[0]: one} for one in pairs]
    read = read_pairs(pairs)
    if read.rejected:
        raise PairsError(f"{read.rejected[0].id}: {read.rejected[0].reason}")
    if several := next(filter(is_of_several, read.places), ""):
        raise PairsError(f"{several}: expected one text, found a list; give one pair for each text")
    return list(zip(read.images, read.texts, strict=True))


def problem_of(row: object) -> str:
    """Return why a pairs file cannot hold a row, naming the field; an empty string if it can.

    Args:
        row: An object with ``image``, ``text`` and optionally ``target``, as in a line of the file.
    """
    lacking = lacking_side(row) if isinstance(row, dict) else ""
    return (nothing_found(lacking) if lacking else problem_in(row)) or (HALF_PAIR if has_half_pair(row) else "")


def with_targets(pairs: Pairs) -> tuple[Pairs, list[Reject]]:
    """Leave out pairs without a target if others have one: they are unlabelled.

    Args:
        pairs: Pairs as read. If none has a target they are captions, and all of them are kept.

    Returns:
        The pairs usable for training or evaluation, and one reject for each of the others.
    """
    judged = is_given(pairs.targets)
    count = int(judged.sum())
    if count in (0, len(pairs)):
        return pairs, []
    reason = (
        f"field 'target': expected a target, as {count:,} other pairs of the file have one, found none or a mark of "
        "none, such as 'NA'"
    )
    rejects = [Reject("pair", pairs.places[int(i)], reason) for i in np.flatnonzero(~judged)]
    return pairs.select(np.flatnonzero(judged)), rejects


def split_by_image(pairs: Pairs, share: float, *, seed: int = 0) -> tuple[Pairs, Pairs]:
    """Split pairs so that no image (or ``cluster``, if given) is on both sides.

    Args:
        pairs: At least two different images.
        share: Share of the images, in (0, 1), for the second part, which gets at least one image.
        seed: Random seed for choosing the images.

    Returns:
        The larger and the smaller part, both in file order.

    Raises:
        PairsError: There are fewer than two different images.
    """
    codes, names = coded_values(pairs.clusters)
    unique = in_order(names)
    if len(unique) < 2:
        raise PairsError(
            f"{pairs.places[0].rpartition(':')[0]}: expected at least two different {pairs.sides[0]}s to set some "
            f"aside for development, found {len(unique)}; give more pairs, or a development file with --dev"
        )
    order = np.random.default_rng(seed).permutation(len(unique))
    held = np.zeros(len(unique), bool)
    held[unique[order[: min(max(1, round(share * len(unique))), len(unique) - 1)]]] = True
    aside = held[codes]
    return pairs.select(np.flatnonzero(~aside)), pairs.select(np.flatnonzero(aside))
