"""Findings: facts with their number, evidence and advice; and the data for plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SECTIONS", "Finding", "chart", "sections_of", "series"]

# The sections of the page, in order, with their headings.
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


def sections_of(verdict: Mapping[str, Any]) -> dict[str, str]:
    """Return the sections of a diagnosis with their headings.

    Args:
        verdict: The verdict of the diagnosis. Without a fusion, since the pairs have one side, modality use is unknown.
    """
    if verdict.get("fusion", "") is not None:
        return SECTIONS
    kept = {name: heading for name, heading in SECTIONS.items() if name not in ("image", "skills")}
    return {**kept, "verdict": "Which model is best?"}


@dataclass(frozen=True)
class Finding:
    """One diagnosed fact (design, "Other JSON").

    Attributes:
        name: Name of the finding, unique in a diagnosis, for example ``fusion-against-linear``.
        section: One of `SECTIONS`.
        claim: One sentence in plain words, with its number.
        value: The number of the claim, in the unit stated by `how`; None if there is none.
        ci95: 95 % interval of the number, ``[low, high]``; None if unknown.
        how: The way in which it was computed, in one or two sentences: data, method, unit.
        advice: The action to take.
        table: Rows of the evidence, every row with the same keys; values are strings, numbers or None.
        plot: Data of the plot on the page, from `chart`, with every plotted number; empty for no plot.
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
        """Return the JSON record."""
        return dict(vars(self))


def chart(kind: str, x_label: str, y_label: str, *lines: dict[str, Any], log_x: bool = False) -> dict[str, Any]:
    """Return the data of a plot.

    Args:
        kind: ``bars`` (x are names; several series side by side) or ``lines`` (x are numbers).
        x_label: Title of the x axis.
        y_label: Title of the y axis, with its unit.
        lines: At least one, from `series`.
        log_x: The x axis is logarithmic.
    """
    return {"kind": kind, "x_label": x_label, "y_label": y_label, "log_x": log_x, "series": list(lines)}


def series(
    name: str,
    x: Sequence[str | float],
    y: Sequence[float | None],
    *,
    low: Sequence[float | None] | None = None,
    high: Sequence[float | None] | None = None,
    dashed: bool = False,
) -> dict[str, Any]:
    """Return one series of a plot; ``low`` and ``high`` are error bars (bars) or a band (lines), in units of y.

    A dashed series is a reference (the diagonal, a fitted law), not a measurement. None leaves a gap.
    """
    return {
        "name": name,
        "x": list(x),
        "y": list(y),
        "low": None if low is None else list(low),
        "high": None if high is None else list(high),
        "dashed": dashed,
    }
