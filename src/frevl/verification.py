"""Reading a whole store to find what is damaged."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from frevl.embeddings import pool
from frevl.errors import StoreError
from frevl.store import TABLES, Store

__all__ = ["describe", "verify"]

_ROWS_AT_ONCE = 4096
_LENGTH_TOLERANCE = 0.01  # float16 rounds a unit vector of 1,280 numbers by far less


def describe(store: Store) -> dict[str, Any]:
    """Return what a store holds, as `frevl store info` prints it."""
    files = [file for file in store.path.rglob("*") if file.is_file()]
    return {
        "path": str(store.path),
        "fingerprint": store.fingerprint,
        "bytes": sum(file.stat().st_size for file in files),
        "images": len(store.positions("image")),
        "texts": len(store.positions("text")),
        "rejects": dict(Counter(reject.kind for reject in store.rejects())),
        "encoders": store.encoders,
        "towers": [
            {
                "name": tower.name,
                "modality": tower.modality,
                "encoders": list(tower.encoders),
                "dim": tower.dim,
                "fingerprint": tower.fingerprint,
                "lacking": int((~store.states(tower.modality)[f"has:{tower.name}"]).sum()),
                "identity": tower.identity,
            }
            for tower in store.towers.values()
        ],
    }


def verify(path: str | Path) -> list[str]:
    """Read every embedding and say what is wrong.

    Args:
        path: Folder of the store.

    Returns:
        One sentence a problem; empty if the store is sound.

    Raises:
        StoreError: There is no store at this path.
    """
    store = Store.open(path)
    problems: list[str] = []
    for modality, name in TABLES.items():
        try:
            ids = store.ids(modality)
        except StoreError as error:
            problems.append(str(error))
            continue
        repeated = [id_ for id_, n in Counter(ids).items() if n > 1]
        if repeated:
            problems.append(f"Table '{name}': {len(repeated):,} ids stand twice, the first is '{repeated[0]:.80}'.")
        lacking = store.states(modality)
        for tower in store.select_towers(modality):
            missing = ~lacking[f"has:{tower.name}"]
            if missing.any():
                problems.append(
                    f"Tower '{tower.name}': {int(missing.sum()):,} of {len(ids):,} {modality}s lack an embedding; "
                    f"run frevl extract again with --encoder {tower.encoders[0]}."
                )
            present = [id_ for id_, gap in zip(ids, missing, strict=True) if not gap]
            bad: list[str] = []
            try:
                for start in range(0, len(present), _ROWS_AT_ONCE):
                    part = present[start : start + _ROWS_AT_ONCE]
                    vectors = pool(*store.read(modality, part, [tower]))
                    lengths = np.linalg.norm(vectors, axis=1)
                    wrong = ~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE)  # NaN is wrong too
                    bad += [part[i] for i in np.flatnonzero(wrong)]
            except StoreError as error:
                problems.append(str(error))
            if bad and tower.identity.get("tokens") == "pooled":
                problems.append(
                    f"Tower '{tower.name}': {len(bad):,} embeddings are not finite or not of unit length, the first "
                    f"is '{bad[0]:.80}'; delete the store and extract again."
                )
    return problems
