"""What a repair of a store did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["RepairReport"]


@dataclass
class RepairReport:
    """The result of a repair.

    Attributes:
        store: Path of the store.
        versions: By table, the version that was restored from its record.
        rows: By table, how many rows were recovered from data files that no version named.
        removed: By table, how many rows were removed because they are damaged; their embeddings are lost.
        missing: By table, how many rows fewer it has than after its last commit.
        unread: Files that nothing could be read of, or not all; they lie in ``STORE/unclaimed`` and may be deleted.
        notes: Sentences that a user should read.
    """

    store: str
    versions: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the record that `frevl store repair --json` writes."""
        return dict(vars(self))

    def sentence(self) -> str:
        """Summarise it in one line."""
        said = [f"Restored version {version} of '{name}'." for name, version in self.versions.items()]
        said += [f"Recovered {count:,} rows of '{name}' from their data files." for name, count in self.rows.items()]
        said += [f"Removed {count:,} damaged rows of '{name}'." for name, count in self.removed.items()]
        said += [
            f"'{name}' lacks {count:,} rows of its last commit: extract or import them again."
            for name, count in self.missing.items()
        ]
        if self.unread:
            said.append(
                f"{len(self.unread):,} files cannot be read in full and were set aside, the first is {self.unread[0]}; "
                "delete them when you have no copy to compare them with."
            )
        return " ".join([f"{self.store}:", *(said or ["nothing needed recovering."]), *self.notes])
