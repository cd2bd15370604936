"""The report of a repair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from frevl.errors import counted

__all__ = ["RepairReport"]


@dataclass
class RepairReport:
    """The result of a repair.

    Attributes:
        store: Path of the store.
        versions: By table, the version that was restored from its record.
        rows: By table, the number of rows recovered from data files without a version.
        removed: By table, the number of rows removed because they were damaged; their embeddings are lost.
        missing: By table, the number of rows of its last commit that it lacks.
        unread: Files that could not be read in full; they are in ``STORE/unclaimed`` and may be deleted.
        notes: Notes for the user.
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
        """Return a one-line summary."""
        said = [f"Restored version {version} of '{name}'." for name, version in self.versions.items()]
        said += [f"Recovered {counted(count, 'row')} of '{name}' from data files." for name, count in self.rows.items()]
        said += [f"Removed {counted(count, 'damaged row')} of '{name}'." for name, count in self.removed.items()]
        said += [
            f"'{name}' is missing {counted(count, 'row')} of its last commit: extract or import "
            f"{'it' if count == 1 else 'them'} again."
            for name, count in self.missing.items()
        ]
        if self.unread:
            said.append(
                f"{counted(len(self.unread), 'file')} could not be read in full and set aside (the first is "
                f"{self.unread[0]}); delete what is there if you have no copy to compare it with."
            )
        return " ".join([f"{self.store}:", *(said or ["nothing needed recovering."]), *self.notes])
