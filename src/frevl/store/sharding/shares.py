"""Assign items to shards, and mark a store as part of a sharded extraction."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from frevl.errors import StoreError, UsageError
from frevl.files import read_record, write_json
from frevl.store.ids.hashing import as_arrow
from frevl.store.ids.rows_of_ids import RowsOfIds
from frevl.store.remote.address import is_remote
from frevl.store.remote.objects import Objects
from frevl.version import __version__

__all__ = ["Part", "Shard", "Share", "begin_part", "finish_part", "read_part", "refuse_part"]

FORMAT = 1
_LIBRARIES = ("pillow", "numpy", "onnxruntime", "torch", "transformers", "tokenizers", "open_clip_torch")
_NAMES_AT_ONCE = 65_536
A = TypeVar("A")


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of the items of an extraction.

    An item belongs to the shard i of n if the first 16 bytes of the SHA-256 of its id (in UTF-8), read as a big-endian
    number, leave the remainder i - 1 when divided by n.

    Attributes:
        number: Number of the shard, from 1 to ``of``.
        of: Number of shards.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, written: str) -> Shard:
        """Read ``i/n``.

        Raises:
            UsageError: It does not have this form.
        """
        found = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", written.strip())
        shard = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.of:
            raise UsageError(
                f"--shard takes the number of this shard and of all shards, from 1/8 to 8/8 for example; found "
                f"'{written}'"
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


class Share:
    """A shard's share of a list; it reads the whole list, so that the lists of all shards can be compared.

    Args:
        shard: The shard; None takes everything.
        remember: Keep the names of the whole list.
    """

    def __init__(self, shard: Shard | None, *, remember: bool = False) -> None:
        self._shard, self._remember = shard, remember
        self._count = self._sum = 0
        self._names: list[pa.Array] = []
        self._waiting: list[str] = []

    def own(self, items: Iterable[A], name: Callable[[A], str]) -> Iterator[A]:
        """Yield the items that belong to the shard."""
        if self._shard is None:
            yield from items
            return
        for item in items:
            known_as = name(item)
            number = _number(known_as)
            self._count += 1
            self._sum = (self._sum + number) % 2**128
            if self._remember:
                self._waiting.append(known_as)
                if len(self._waiting) == _NAMES_AT_ONCE:
                    self._pack()
            if number % self._shard.of == self._shard.number - 1:
                yield item

    @property
    def names(self) -> RowsOfIds:
        """Names of the whole list, including those of other shards, if they are kept and there is a shard."""
        self._pack()
        return RowsOfIds.of(pa.chunked_array(self._names, pa.large_string()).drop_null())

    def _pack(self) -> None:
        self._names.append(as_arrow(self._waiting))
        self._waiting = []

    @property
    def partial(self) -> bool:
        """Return whether there is a shard, in which case the share may be empty."""
        return self._shard is not None

    def apart(self) -> Share:
        """Return a fresh share of the same shard."""
        return Share(self._shard)

    def digest(self) -> str:
        """Identify a list regardless of order, by the number of names and the sum of their hashes."""
        return f"{self._count}:{self._sum:032x}"


@dataclass(frozen=True)
class Part:
    """The record that makes a store a part: ``STORE/shard.json``.

    Attributes:
        number: Number of the shard.
        of: Number of shards.
        frevl: Version of frevl that made it.
        libraries: Versions of the libraries that decode and embed.
        complete: Whether the extraction has finished.
        lists: By ``images`` and ``texts``, the digest of all names, including those of other shards.
        pairs: Names of the pairs files, and of the tars.
        rows: By table, its final number of rows.
    """

    number: int
    of: int
    frevl: str = __version__
    libraries: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    lists: dict[str, str] = field(default_factory=dict)
    pairs: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)


def begin_part(store: Path, shard: Shard, *, empty: bool) -> Part:
    """Record that a store becomes, or continues as, a part. Requires the store's lock.

    Args:
        store: Folder of the store.
        shard: Shard of this extraction.
        empty: Whether the store has no tower yet.

    Raises:
        StoreError: The store is complete, or the part of another shard.
    """
    former = read_part(store)
    if former is None and not empty:
        raise StoreError(
            f"{store}: expected an empty or new folder, or the store of the shard {shard}, found a complete store; "
            "choose another folder for the part, and merge the parts with frevl store merge"
        )
    if former is not None and (former.number, former.of) != (shard.number, shard.of):
        raise StoreError(
            f"{store}: expected the store of the shard {shard}, found that of {former.number}/{former.of}; every "
            "shard needs its own folder"
        )
    part = Part(shard.number, shard.of, libraries=_versions())
    _write(store, part)
    return part


def finish_part(store: Path, part: Part, *, lists: dict[str, str], pairs: Iterable[str], rows: dict[str, int]) -> None:
    """Record that the extraction of a part has finished."""
    _write(store, replace(part, complete=True, lists=lists, pairs=sorted(pairs), rows=rows))


def read_part(store: Path) -> Part | None:
    """Return the record of a part; None if the store is not one.

    Raises:
        StoreError: The record is damaged, or was written by a newer frevl.
    """
    path = _path(store)
    content = Objects(store).read(path.name) if is_remote(store) else None
    if content is None and not path.exists():
        return None
    try:
        record: dict[str, Any] = read_record(path) if content is None else json.loads(content)
        found = record.pop("format")
        if isinstance(found, int) and found > FORMAT:
            raise StoreError(f"{path}: it has format {found}, but this frevl reads up to {FORMAT}; upgrade frevl")
        part = Part(**record)
        if not isinstance(part.number, int) or not isinstance(part.of, int) or not 1 <= part.number <= part.of:
            raise ValueError("it names no shard")
        return part
    except (OSError, ValueError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise StoreError(
            f"{path}: expected the record of a part of an extraction, found a damaged one ({error}); extract this "
            "shard into a new folder"
        ) from error


def refuse_part(store: Path) -> None:
    """Refuse to extract everything into a shard's part.

    Raises:
        StoreError: The store is a part.
    """
    part = read_part(store)
    if part is not None:
        raise StoreError(
            f"{store}: this is the store of the shard {part.number}/{part.of}; add --shard {part.number}/{part.of}, or "
            "choose another folder"
        )


def _write(store: Path, part: Part) -> None:
    record = {"format": FORMAT, **asdict(part)}
    if is_remote(store):
        Objects(store).write(_path(store).name, json.dumps(record).encode())
        return
    try:
        write_json(_path(store), record)
    except OSError as error:
        raise StoreError(f"{store}: the store cannot be written ({error.strerror}); free some space") from error


def _path(store: Path) -> Path:
    return store / "shard.json"


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:16])


def _versions() -> dict[str, str]:
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
