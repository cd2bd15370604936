"""Items that could not be used: kept with their reason, counted in the closing line, never dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Reject", "rejects_sentence"]

_PLURALS = {"image": "images", "text": "texts", "pair": "pairs"}


@dataclass(frozen=True)
class Reject:
    """One thing that was left out.

    Attributes:
        kind: ``image``, ``text`` or ``pair``.
        id: The image id, the text, or ``file:line`` for a pair.
        reason: One sentence.
    """

    kind: str
    id: str
    reason: str


def rejects_sentence(rejects: Sequence[Reject], *, shown: int = 3) -> str:
    """Count rejects by kind and name the first few.

    Args:
        rejects: What was left out.
        shown: How many to name.

    Returns:
        An empty string if nothing was rejected.
    """
    if not rejects:
        return ""
    counts = Counter(reject.kind for reject in rejects)
    counted = ", ".join(f"{n:,} {_PLURALS[kind] if n > 1 else kind}" for kind, n in sorted(counts.items()))
    named = _one_line("; ".join(f"{reject.id:.200}: {reject.reason:.200}" for reject in rejects[:shown]))
    more = f"; and {len(rejects) - shown:,} more" if len(rejects) > shown else ""
    return f"Left out: {counted} ({named}{more})."


def _one_line(text: str) -> str:
    """Escape what is not printable: a hostile file name must not move the cursor of the user's terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
