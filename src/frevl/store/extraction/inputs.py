"""What an extraction is asked to embed: a folder or tars of images, and the texts and images of pairs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frevl.data.columns import columns_of
from frevl.data.formats.arrow_rows import pictures_of
from frevl.data.formats.arrow_tables import ArrowSource, open_arrow, table_source
from frevl.data.formats.table_parts import is_in_parts
from frevl.data.in_memory import PLACE, table_of
from frevl.data.missing_side import mistaken_side, one_side_note
from frevl.data.names import as_list
from frevl.data.packed.columns import joined
from frevl.data.pairs import Pairs, read_pairs
from frevl.errors import InputError, UsageError
from frevl.store.extraction.items import ExtractionReport
from frevl.store.pictures.files import Choice, list_folder
from frevl.store.pictures.tables import TABLES_WITH_PICTURES
from frevl.store.pictures.tar_members import Tar, find_tars

__all__ = ["Inputs"]


@dataclass(frozen=True)
class Inputs:
    """The sources of the items to embed.

    Attributes:
        images: Folder of images, a tar, a folder of tars, or a list of tars, as it was given; None without.
        tars: The tars, if `images` names some.
        choice: Which images of the folder or the tars to take.
        pairs: Pairs files, and pairs in memory.
        in_memory: The tables among the pairs in memory, which may hold images.
        columns: Names of the columns of the pairs.
    """

    images: str | Path | None
    tars: Sequence[Tar] | None
    choice: Choice
    pairs: Sequence[Path | Pairs]
    in_memory: Sequence[ArrowSource]
    columns: Mapping[str, str]

    @classmethod
    def of(
        cls,
        images: str | Path | None,
        pairs: Any,
        columns: str | Sequence[str] | Mapping[str, str] | None,
        include: Sequence[str],
        exclude: Sequence[str],
        *,
        leave_out: Path,
    ) -> Inputs:
        """Check the arguments of `frevl.extract` that name sources; `leave_out` is the folder of the store."""
        named = columns_of(columns)
        read, in_memory = _several(pairs, named)
        choice = Choice(as_list(include, "include"), as_list(exclude, "exclude"))
        if images is not None and not isinstance(images, str | Path):
            raise UsageError(f"images: expected the path of one folder, found {type(images).__name__}")
        if images is None and not read:
            raise UsageError("Nothing to embed: give a folder with --images, pairs files with --pairs, or both")
        if images is None and (choice.include or choice.exclude):
            raise UsageError("--include and --exclude select files of a folder; give it with --images")
        tars = None if images is None else find_tars(Path(images), leave_out=leave_out, choice=choice)
        if images is not None and tars is None and not Path(images).is_dir():
            raise InputError(
                f"{images}: expected a folder of images, found {'a file' if Path(images).exists() else 'none'}; a tar, "
                "or a list of tars (.txt), also works"
            )
        return cls(images, tars, choice, read, in_memory, named)

    def refuse(self, *, prune: bool, check_content: bool, write_pairs: str | Path | None) -> None:
        """Raise `UsageError` if these options do not fit the sources."""
        if self.images is None and (prune or check_content):
            raise UsageError(
                "--prune and --check-content compare the store with a folder of images; give it with --images"
            )
        if self.tars is not None and prune:
            raise UsageError(
                "--prune compares the store with the files of a folder, not with tars; use frevl store remove"
            )
        if write_pairs is not None and self.images is None:
            raise UsageError("--write-pairs writes the captions next to images; give a folder or tars with --images")

    def refuse_empty_folder(self) -> None:
        """Raise `InputError` if no file of the folder is chosen."""
        if self.images is None or self.tars is not None:
            return
        some = Choice(self.choice.include, self.choice.exclude)
        if next(list_folder(self.images, choice=some), None) is None:
            aside = " ".join(["", *some.sentences()])
            raise InputError(
                f"{self.images}: expected images, found no file in that folder{aside and '.' + aside.rstrip('.')}"
            )

    def read(self, report: ExtractionReport) -> tuple[list[str], list[Pairs]]:
        """Return the distinct texts of the pairs, and the pairs that refer to images; rejects go to the report."""
        texts: dict[str, None] = {}
        referring: list[Pairs] = []
        for source in {id(one) if isinstance(one, Pairs) else one: one for one in self.pairs}.values():
            pairs = source if isinstance(source, Pairs) else read_pairs(source, columns=self.columns)
            report.rejects += pairs.rejected
            notes: Sequence[str] = pairs.notes
            if self.images is not None and "text" in pairs.sides and not mistaken_side(pairs.sides, pairs.extras):
                # The images come from the folder, so pairs of texts alone leave out nothing.
                notes = [note for note in notes if note not in one_side_note(pairs.sides, pairs.extras)]
            report.notes += notes
            if "text" in pairs.sides:
                texts.update(dict.fromkeys(joined([pairs.texts])[1]))  # in the order in which they first appear
            if "image" in pairs.sides:
                referring.append(pairs)
        return list(texts), referring

    def tables_with_images(self) -> list[ArrowSource]:
        """Return the tables among the pairs that have a column of images; none if images were given otherwise."""
        if self.images is not None:
            return []
        paths = dict.fromkeys(one for one in self.pairs if isinstance(one, Path))
        tables = [path for path in paths if path.suffix.lower() in TABLES_WITH_PICTURES or is_in_parts(path)]
        files = [open_arrow(path) for path in tables]
        return [table for table in (*files, *self.in_memory) if pictures_of(table, self.columns) is not None]

    def absolute(self) -> Inputs:
        """Return the same sources with the absolute path of the images, for processes in other folders."""
        if self.images is None:
            return self
        return replace(self, images=os.path.abspath(self.images))  # noqa: PTH100 - links stay as they are

    @property
    def names_of_pairs(self) -> set[str]:
        """The names under which rejects of pairs are recorded: files, and places of pairs in memory."""
        return {str(one.source if isinstance(one, Pairs) else one) for one in self.pairs}

    @property
    def names_read(self) -> set[str]:
        """Names of everything that holds pairs: also the tars, whose members may have captions."""
        return self.names_of_pairs | {tar.name for tar in self.tars or ()}


def _several(pairs: Any, columns: Mapping[str, str]) -> tuple[list[Path | Pairs], list[ArrowSource]]:
    """Return all sources of pairs, as files or in-memory `Pairs`, and the tables among the latter."""
    several = [pairs]
    if isinstance(pairs, list | tuple | Iterator):
        several = list(pairs)
        if several and all(isinstance(one, Mapping | list | tuple) for one in several):  # rows, and no files
            several = [several]
    in_memory = [one for one in several if not isinstance(one, str | Path | Pairs)]
    tables = [table for table in map(table_of, in_memory) if table is not None]
    read = [Path(one) if isinstance(one, str | Path) else read_pairs(one, columns=columns) for one in several]
    return read, [table_source(PLACE, table) for table in tables]
