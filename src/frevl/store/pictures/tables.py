"""Images inside tables (Hugging Face, img2dataset), and what to do with each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from frevl.data.formats.arrow_rows import pictures_of
from frevl.data.formats.arrow_tables import ArrowSource
from frevl.encoders.interface import ImageTower
from frevl.errors import ImageError, PairsError, Reject
from frevl.store.extraction.embedder import MakePictures
from frevl.store.extraction.items import IN_A_TABLE, KnownItems, PendingItem
from frevl.store.pictures.files import PicturesToPrepare, reason_of
from frevl.store.writer import Item

__all__ = ["TABLES_WITH_PICTURES", "Cell", "TablePictures"]

TABLES_WITH_PICTURES = (".parquet", ".arrow", ".feather")


@dataclass(frozen=True, slots=True)
class Cell:
    """An image inside a table.

    Attributes:
        place: Name of the table.
        id: Id of the image.
        content: Bytes of the image; empty if it occurred in an earlier table.
        content_hash: Hash of its content, once known.
    """

    place: str
    id: str
    content: bytes
    content_hash: str = ""


class TablePictures(PicturesToPrepare):
    """The images inside some tables, compared with the images of a store. Several threads may prepare them."""

    def __init__(self, towers: Sequence[ImageTower], stored: KnownItems) -> None:
        super().__init__(towers, stored)
        self._seen: dict[str, str] = {}

    def pictures(self, tables: Sequence[ArrowSource], columns: Mapping[str, str]) -> Iterator[Cell]:
        """Read the images in turn, with no column other than theirs and the one with their names.

        Args:
            tables: Tables of pairs; those without images inside are skipped.
            columns: Columns of the fields, as named by the user.

        Raises:
            PairsError: A table cannot be read.
        """
        for table in tables:
            for id_, content in pictures_of(table, columns) or ():
                yield Cell(table.place, id_, content)

    def once(self, cells: Iterable[Cell]) -> Iterator[Cell]:
        """Hash images, dropping the content of those already seen in another table.

        Raises:
            PairsError: An image with this name has different content in the store or in another table.
        """
        for cell in cells:
            content_hash = hashlib.sha256(cell.content).hexdigest()[:32]
            known = self._stored.get(cell.id)
            before = self._seen.get(cell.id)
            imported = known is not None and not known.bytes  # an import, whose content was never seen
            other = before is not None and before != content_hash
            if other or (known and not imported and known.content_hash != content_hash):
                where = "another table" if other else "the store"
                raise PairsError(
                    f"{cell.place}: the image '{cell.id:.80}' has different content from the image of this name "
                    f"in {where}; give a column of unique names, as in --columns image=NAME, use a separate store, "
                    "or remove the former image with frevl store remove"
                )
            self._seen[cell.id] = content_hash
            # Two tables of one collection, such as train and test, may share images.
            yield Cell(cell.place, cell.id, b"" if before else cell.content, "" if before else content_hash)

    def id_of(self, cell: Cell) -> str:
        """Return the id of an image."""
        return cell.id

    def bytes_of(self, cell: Cell) -> int:
        """Return the image's size in bytes."""
        return len(cell.content)

    def is_settled(self, cell: Cell) -> bool:
        """Return whether an earlier table or the store has it."""
        known = self._stored.get(cell.id)
        return not cell.content_hash or (known is not None and not known.lacking)

    def elsewhere(self) -> MakePictures[Cell]:
        """Return a factory that recreates them on another machine."""
        return TablePictures

    def prepare(self, cell: Cell) -> tuple[str, PendingItem | Reject | None]:
        """Decode one image, unless the store has it unchanged.

        Returns:
            Its id, and what is to be done; None if nothing is.
        """
        id_, content = cell.id, cell.content
        if self.is_settled(cell):
            return id_, None
        item = Item(id_, cell.content_hash, len(content), IN_A_TABLE)
        known = self._stored.get(id_)
        try:
            if known:
                if not known.bytes:  # imported
                    item = Item(id_, known.content_hash, 0)
                return id_, self._pending(item, "fill", content, known.lacking)
            taken = self._stored.take_over(item.content_hash, self.is_gone)
            if taken is not None:
                return id_, self._pending(item, "fill", content, taken[0].lacking, taken[0].id)
            return id_, self._pending(item, "append", content, [tower.name for tower in self._towers])
        except ImageError as error:
            return id_, Reject("image", id_, reason_of(error))

    def _pending(
        self,
        item: Item,
        action: Literal["append", "fill"],
        content: bytes,
        names: Sequence[str],
        source: str | None = None,
    ) -> PendingItem:
        return PendingItem(item, action, self._inputs(item.id, content, names), source)
