"""Growth of a store: rows of a table at every commit that Lance still knows."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import lance
import numpy as np

from frevl.store.reader import TABLES
from frevl.store.towers import Modality

__all__ = ["growth"]


def growth(store: Path, modality: Modality, *, most: int = 60) -> list[tuple[datetime, int]]:
    """Return the number of rows of a table over time, oldest first.

    Compaction removes earlier commits, so the history may begin later than the store.

    Args:
        store: Folder of the store.
        modality: ``image`` or ``text``.
        most: Maximum number of commits; if there are more, evenly spaced ones are returned, with the first and last.

    Returns:
        Times in UTC and row counts; empty if the table does not exist or does not record them.
    """
    path = store / f"{TABLES[modality]}.lance"
    if not path.is_dir():
        return []
    found = []
    for version in lance.dataset(path).versions():
        said, at = version["metadata"], version["timestamp"]
        if isinstance(said, dict) and isinstance(at, datetime) and "total_rows" in said:
            found.append((at.astimezone(UTC), int(said["total_rows"])))  # Lance returns local time without a time zone
    chosen = np.unique(np.linspace(0, max(0, len(found) - 1), min(len(found), most)).astype(int)).tolist()
    return [found[at] for at in chosen]
