"""Items that could not be used: kept with their reason, counted in the closing line, never dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from frevl.errors import one_line

__all__ = ["Reject", "rejects_sentence"]

_PLURALS = {"image": "images", "text": "texts", "pair": "pairs", "class": "classes"}
# What is often kept next to pictures in folders: captions, metadata, lists. That none of them is a picture is no news.
_BESIDE = frozenset(
    (".aae", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".mov", ".mp4", ".npy", ".npz",
     ".parquet", ".tsv", ".txt", ".url", ".xml", ".xmp", ".yaml", ".yml")
)  # fmt: skip


@dataclass(frozen=True)
class Reject:
    """One thing that was left out.

    Attributes:
        kind: ``image``, ``text``, ``pair`` or ``class``.
        id: The image id, the text, or ``file:line`` for a pair.
        reason: One sentence.
    """

    kind: str
    id: str
    reason: str


def rejects_sentence(rejects: Sequence[Reject], *, shown: int = 3) -> str:
    """Count rejects by kind and name the first few.

    Files that usually lie next to pictures are counted by their endings, and named only where there is nothing else.

    Args:
        rejects: What was left out.
        shown: How many to name.

    Returns:
        An empty string if nothing was rejected.
    """
    if not rejects:
        return ""
    beside = Counter(_ending(one) for one in rejects if _stands_beside(one))
    told = [one for one in rejects if not _stands_beside(one)] or rejects
    counts = Counter(one.kind for one in told)
    counted = [f"{n:,} {_PLURALS[kind] if n > 1 else kind}" for kind, n in sorted(counts.items())]
    named = one_line("; ".join(f"{reject.id:.200}: {reject.reason:.200}" for reject in told[:shown]))
    more = f"; and {len(told) - shown:,} more" if len(told) > shown else ""
    sentence = f"Left out: {', '.join(counted)} ({named}{more})"
    others = sum(beside.values())
    if not others or told is rejects:
        return f"{sentence}."
    return f"{sentence}, and {others:,} other file{'s' if others > 1 else ''} ({', '.join(sorted(beside))})."


def _stands_beside(reject: Reject) -> bool:
    return reject.kind == "image" and _ending(reject) in _BESIDE


def _ending(reject: Reject) -> str:
    return PurePosixPath(reject.id).suffix.lower()
