"""What one extraction did, as JSON and as a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from frevl.errors import Reject, rejects_sentence

__all__ = ["ExtractionReport"]


@dataclass
class ExtractionReport:
    """What one extraction did.

    Attributes:
        store: Path of the store.
        images: Images embedded now by at least one tower.
        texts: Texts embedded now.
        images_kept: Images that were in the store already and had not changed.
        texts_kept: Texts that were in the store already.
        texts_unread: Texts of this call of which the encoders cannot read most letters.
        images_moved: Images that the store had under another name, whose file is gone; nothing was embedded.
        images_copied: Images of the same content as another one of the store; nothing was embedded.
        images_gone: Images of the store that have no file in the folder.
        images_pruned: Of those, how many were removed.
        rejects: What was left out, now.
        notes: Sentences that a user should read.
        seconds: Wall time.
    """

    store: str
    images: int = 0
    texts: int = 0
    images_kept: int = 0
    texts_kept: int = 0
    texts_unread: int = 0
    images_moved: int = 0
    images_copied: int = 0
    images_gone: int = 0
    images_pruned: int = 0
    rejects: list[Reject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return what `frevl extract --json` writes."""
        return {**vars(self), "rejects": [vars(reject) for reject in self.rejects]}

    def sentence(self) -> str:
        """Summarise it in one line."""
        done = (
            f"Embedded {self.images:,} images and {self.texts:,} texts in {self.seconds:.1f} s; "
            f"{self.images_kept:,} images and {self.texts_kept:,} texts were in the store already."
        )
        return " ".join([done, *self.notes, rejects_sentence(self.rejects)]).rstrip()
