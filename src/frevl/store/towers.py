"""The identity of a tower: what its fingerprint covers, and how a store records it.

Embeddings may be compared, concatenated or mixed in one column only if the same frozen network made them in the same
way. The fingerprint covers everything that can change a number (design decision 1), and canary embeddings detect what
no field covers: another library version, other hardware, a replaced weight file.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from frevl.errors import FingerprintError, StoreError

__all__ = [
    "CANARY_COSINE",
    "IMPORTED",
    "MODALITIES",
    "Modality",
    "Tower",
    "check_same",
    "checksum",
    "different_fields",
    "fingerprint_of",
]

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, Modality] = ("image", "text")

FORMAT = 1  # increased when older versions of frevl can no longer read the stores that this version writes
IMPORTED = "declared at import"  # in place of a hash, because the weights were never seen
CANARY_COSINE = 0.9999  # design decision 1: below this, an encoder is not the one that made the store

TOWER_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("encoders", pa.list_(pa.string())),
        pa.field("identity", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("dim", pa.int32()),
        pa.field("canaries", pa.list_(pa.list_(pa.float32()))),
        pa.field("format", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Tower:
    """The identity of one column of a store.

    Attributes:
        name: The column's name.
        modality: ``image`` or ``text``.
        encoders: Names of the encoders that use this tower.
        identity: Everything that can change an embedding, field by field; ``dtype`` is the stored type and ``tokens``
            is ``pooled`` or the kind of tokens.
        dim: Width of one embedding.
        canaries: ``(n, dim)`` float32 pooled embeddings of the fixed canary items.
    """

    name: str
    modality: Modality
    encoders: tuple[str, ...]
    identity: dict[str, str]
    dim: int
    canaries: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Hash of the identity."""
        return fingerprint_of(self.identity)

    @property
    def pooled(self) -> bool:
        """True for one vector per item, False for tokens."""
        return self.identity["tokens"] == "pooled"

    @property
    def imported(self) -> bool:
        """True if the identity was declared by a user, so that frevl cannot embed anything with this tower."""
        return self.identity.get("weights") == IMPORTED

    @property
    def remedy(self) -> str:
        """What to do if embeddings by this tower are missing."""
        if self.imported:
            return f"import them with frevl import --encoder {self.encoders[0]}"
        return f"run frevl extract again with --encoder {self.encoders[0]}"

    @property
    def column_type(self) -> pa.DataType:
        """The Arrow type of the column."""
        vector = pa.list_(pa.float16() if self.identity["dtype"] == "float16" else pa.float32(), self.dim)
        return vector if self.pooled else pa.list_(vector)


def fingerprint_of(identity: dict[str, str]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def different_fields(there: dict[str, str], here: dict[str, str]) -> str:
    """Describe the fields in which two identities differ, with both values; empty if they agree."""
    names = sorted(name for name in {**there, **here} if there.get(name) != here.get(name))
    return "; ".join(
        f"'{name}' is {there.get(name, 'absent')!r} there and {here.get(name, 'absent')!r} here" for name in names
    )


def check_same(stored: Tower, found: Tower, place: str) -> None:
    """Refuse an encoder other than the one that made a column.

    Args:
        stored: The tower as recorded in the store.
        found: The tower as it is now, with its own embeddings of the canaries.
        place: Location of the stored tower, for the message.

    Raises:
        FingerprintError: A field differs, or all fields agree and the canaries do not.
    """
    fields = different_fields(
        {**stored.identity, "width": str(stored.dim)}, {**found.identity, "width": str(found.dim)}
    )
    if fields:
        raise FingerprintError(
            f"{place}: the embeddings of the tower '{stored.name}' were made differently: {fields}. Use the "
            "encoder and settings that made the store, or extract into a new store"
        )
    if stored.canaries.shape != found.canaries.shape:
        raise FingerprintError(
            f"{place}: the tower '{stored.name}' has {len(stored.canaries)} canaries there, but this version of frevl "
            f"uses {len(found.canaries)}; use the version that made the store, or extract into a new store"
        )
    lengths = np.linalg.norm(stored.canaries, axis=1) * np.linalg.norm(found.canaries, axis=1)
    cosines = (stored.canaries * found.canaries).sum(axis=1) / np.maximum(lengths, 1e-12)
    if not cosines.min(initial=1.0) >= CANARY_COSINE:  # also true for NaN
        raise FingerprintError(
            f"{place}: the encoder of the tower '{stored.name}' has the right identity but embeds the canaries "
            f"differently (cosine {cosines.min():.5f}, expected at least {CANARY_COSINE}): its weights, libraries or "
            "hardware have changed. Extract into a new store"
        )


def checksum(id_: str, content_hash: str, embedding: np.ndarray) -> int:
    """Return the CRC-32 of ``id + newline + content hash + newline + embedding``, to detect silent corruption.

    Args:
        id_: Id of the item.
        content_hash: Hash of its content.
        embedding: ``(tokens, dim)`` embedding in the stored type.
    """
    return zlib.crc32(np.ascontiguousarray(embedding).tobytes(), zlib.crc32(f"{id_}\n{content_hash}\n".encode()))


def to_rows(towers: list[Tower]) -> pa.Table:
    """Convert towers to rows of the ``towers`` table."""
    rows = [
        {
            "name": tower.name,
            "modality": tower.modality,
            "encoders": list(tower.encoders),
            "identity": json.dumps(tower.identity, sort_keys=True),
            "fingerprint": tower.fingerprint,
            "dim": tower.dim,
            "canaries": tower.canaries.astype(np.float32).tolist(),
            "format": FORMAT,
        }
        for tower in towers
    ]
    return pa.Table.from_pylist(rows, schema=TOWER_SCHEMA)


def from_rows(rows: list[dict[str, Any]], place: str) -> list[Tower]:
    """Read the rows of the ``towers`` table.

    Raises:
        StoreError: The rows were written by a newer frevl.
        FingerprintError: An identity does not match its stored fingerprint.
    """
    towers = []
    for row in rows:
        if row["format"] > FORMAT:
            raise StoreError(
                f"{place}: the store has format {row['format']}, this frevl reads up to {FORMAT}; "
                "upgrade with: pip install -U frevl"
            )
        identity = json.loads(row["identity"])
        if fingerprint_of(identity) != row["fingerprint"]:
            raise FingerprintError(
                f"{place}: the identity of the tower '{row['name']}' was changed by hand: expected the fingerprint "
                f"{row['fingerprint']}, found {fingerprint_of(identity)}; extract into a new store"
            )
        towers.append(
            Tower(
                name=row["name"],
                modality=row["modality"],
                encoders=tuple(row["encoders"]),
                identity=identity,
                dim=row["dim"],
                canaries=np.array(row["canaries"], np.float32).reshape(-1, row["dim"]),
            )
        )
    return towers
