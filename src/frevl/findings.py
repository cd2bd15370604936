"""What a diagnosis says: one fact, with its number, its evidence and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["SECTIONS", "Finding"]

# The sections of the page, in its order, with their headings.
SECTIONS = {
    "verdict": "Is the fusion worth it?",
    "image": "Does the image matter?",
    "skills": "What it can and cannot do",
    "probes": "What the embeddings hold",
    "curve": "What more data would buy",
    "calibration": "Can its probabilities be trusted?",
    "data": "Leaks and noise in the data",
    "embedding": "The embedding space",
    "encoders": "Encoders compared",
    "cost": "What it costs",
}


@dataclass(frozen=True)
class Finding:
    """One diagnosed fact (design, "Other JSON").

    Attributes:
        name: Of the finding, unique in a diagnosis, for example ``fusion-against-linear``.
        section: One of `SECTIONS`.
        claim: One sentence in plain words, with its number.
        value: The number of the claim, in the unit that `how` names; None where there is none.
        ci95: Its 95 % interval, ``[low, high]``; None where it cannot be told.
        how: How it was computed, in one or two sentences: data, method, unit.
        advice: What to do about it.
        table: Rows of the evidence, every row with the same keys; values are strings, numbers or None.
        plot: Named series of numbers that the page draws; every plotted number stands here.
    """

    name: str
    section: str
    claim: str
    value: float | None
    ci95: list[float] | None
    how: str
    advice: str
    table: list[dict[str, Any]] = field(default_factory=list)
    plot: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return what the JSON holds of it."""
        return dict(vars(self))
