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
        id: The image id, or ``file:line`` for a pair.
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
    named = "; ".join(f"{reject.id}: {reject.reason}" for reject in rejects[:shown])
    more = f"; and {len(rejects) - shown:,} more" if len(rejects) > shown else ""
    return f"Left out: {counted} ({named}{more})."
