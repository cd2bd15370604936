"""Pictures inside a table (Hugging Face, img2dataset) -> what has to be done with each of them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from frevl.data.arrow_rows import ArrowSource, pictures_of
from frevl.encoders.interface import ImageTower
from frevl.errors import ImageError, PairsError
from frevl.rejects import Reject
from frevl.store.commit_buffer import PendingItem
from frevl.store.image_folder.files import inputs_of, reason_of
from frevl.store.stored_items import IN_A_TABLE, StoredItems
from frevl.store.writer import Item

__all__ = ["TABLES_WITH_PICTURES", "Picture", "TablePictures"]

TABLES_WITH_PICTURES = (".parquet", ".arrow", ".feather")

Picture = tuple[str, str, bytes]
"""The table, the id, and the bytes of a picture."""


class TablePictures:
    """The pictures inside some tables, compared with the images of a store. Several threads may prepare them.

    Args:
        tables: Tables of pairs; those without pictures inside are passed over.
        columns: Of the fields, as the user named them.
        towers: Image towers that shall have seen every image.
        stored: The images of the store.

    Attributes:
        guessed_white: Ids of pictures of more than 8 bits that do not say what white is and do not use all their bits.
    """

    def __init__(
        self,
        tables: Sequence[ArrowSource],
        columns: Mapping[str, str],
        towers: Sequence[ImageTower],
        stored: StoredItems,
    ) -> None:
        self._tables, self._columns, self._towers, self._stored = tables, columns, towers, stored
        self._seen: dict[str, str] = {}
        self._lock = threading.Lock()
        self.guessed_white: list[str] = []

    def pictures(self) -> Iterator[Picture]:
        """Read the pictures one after the other; no other column is read, but the one that names them.

        Raises:
            PairsError: A table cannot be read, or has two pictures of one name.
        """
        for table in self._tables:
            for id_, content in pictures_of(table, self._columns) or ():
                yield table.place, id_, content

    def prepare(self, picture: Picture) -> tuple[str, PendingItem | Reject | None]:
        """Hash and decode one picture, if the store does not hold it as it is.

        Returns:
            Its id, and what has to be done; None for nothing.

        Raises:
            PairsError: An image of this name has other content, in the store or in another table.
        """
        table, id_, content = picture
        item = Item(id_, hashlib.sha256(content).hexdigest()[:32], len(content), IN_A_TABLE)
        known = self._stored.get(id_)
        with self._lock:
            repeated = id_ in self._seen
            before = self._seen.setdefault(id_, item.content_hash)
        imported = known is not None and not known.bytes  # of which the content was never seen
        if before != item.content_hash or (known and not imported and known.content_hash != item.content_hash):
            where = "another table" if before != item.content_hash else "the store"
            raise PairsError(
                f"{table}: the picture '{id_:.80}' has other content than the image of this name in {where}; name a "
                "column of unique names, as in --columns image=NAME, use a store of its own, or take the former image "
                "out with frevl store remove"
            )
        if repeated:  # two tables of one collection, such as train and test, may share pictures
            return id_, None
        try:
            if known:
                if imported:
                    item = Item(id_, known.content_hash, 0)
                return id_, self._pending(item, "fill", content, known.lacking) if known.lacking else None
            taken = self._stored.take_over(item.content_hash, lambda _: False)
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
        inputs, guessed = inputs_of(content, [tower for tower in self._towers if tower.name in names])
        if guessed:
            self.guessed_white.append(item.id)
        return PendingItem(item, action, inputs, source)
