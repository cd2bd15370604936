"""The table of an ablation study: a row per variant, compared with the full fusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frevl.evaluation.intervals import paired_difference
from frevl.evaluation.seeds import SeedsResult
from frevl.training.ablation.variants import Variant
from frevl.training.seeds import SeedRuns

__all__ = ["Ablation", "AblationRow", "notes_of", "row_of"]

_OF_ONE_ROW = ("Means of ", "Chance: ")  # notes about one row, not about the comparison


@dataclass(frozen=True)
class AblationRow:
    """A variant with its results on the test pairs.

    Attributes:
        variant: What was trained.
        runs: Its runs.
        result: Metrics in percent, means over seeds; the first is the one that is compared.
        difference: Variant minus full fusion in points: ``difference``, ``ci95`` over images and
            ``standard_error_over_seeds`` (None for one seed); None for the full fusion.
    """

    variant: Variant
    runs: SeedRuns
    result: SeedsResult
    difference: dict[str, Any] | None

    def record(self) -> dict[str, Any]:
        """Return the row of the ablation JSON."""
        return {
            "variant": self.variant.name,
            "group": self.variant.group,
            "model": self.runs.model,
            "changes": {**self.variant.arguments, **self.variant.changes},
            "encoders": self.runs.encoders,
            "parameters": self.runs.parameters,
            "metrics": self.result.metrics,
            "ci95": self.result.ci95,
            "deviation": self.result.seeds["deviation"],
            "values": self.result.seeds["values"],
            "difference": self.difference,
            "train_seconds": sum(self.runs.train_seconds) / len(self.runs.train_seconds),
            "runs": str(self.runs.path),
        }


@dataclass(frozen=True)
class Ablation:
    """The table.

    Attributes:
        model: Preset of the full fusion.
        task: ``matching`` or ``classification``.
        metric: The metric that is compared.
        n: Test pairs.
        images: Different test images (or clusters), the unit of resampling.
        seeds: Seed of every training.
        rows: The full fusion first.
        notes: Sentences that a reader of the numbers should know.
        provenance: Of the full fusion's result.
    """

    model: str
    task: str
    metric: str
    n: int
    images: int
    seeds: list[int]
    rows: list[AblationRow]
    notes: list[str]
    provenance: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return the ablation JSON."""
        return {**vars(self), "rows": [row.record() for row in self.rows]}


def row_of(variant: Variant, runs: SeedRuns, result: SeedsResult, full: AblationRow | None) -> AblationRow:
    """Return the row of a variant, compared with the full fusion, image by image.

    Args:
        variant: What was trained.
        runs: Its runs.
        result: Their results on the test pairs.
        full: The row of the full fusion; None if this is it.
    """
    if full is None:
        return AblationRow(variant, runs, result, None)
    gap = paired_difference(result.hits, full.result.hits, full.result.clusters)
    metric = next(iter(full.result.metrics))
    spreads = [one.seeds["deviation"][metric] for one in (result, full.result)]
    error = None if None in spreads else math.hypot(*spreads) / math.sqrt(full.result.seeds["n"])
    difference = {
        "versus": str(full.runs.path),
        "metric": metric,
        "difference": 100 * gap.value,
        "ci95": gap.percent(),
        "standard_error_over_seeds": error,
    }
    return AblationRow(variant, runs, result, difference)


def notes_of(rows: Sequence[AblationRow]) -> list[str]:
    """Return the notes of all results, each sentence once; which rows are at chance, and which changed nothing."""
    notes = list(dict.fromkeys(note for row in rows for note in row.result.notes if not note.startswith(_OF_ONE_ROW)))
    chance = [row.variant.name for row in rows if row.result.chance is not None and row.result.chance.is_chance]
    if chance:
        notes.append(f"At chance, not measurably better than always giving the majority answer: {', '.join(chance)}.")
    full = rows[0]
    same = [
        row.variant.name
        for row in rows[1:]
        if row.runs.path != full.runs.path and row.result.seeds["values"] == full.result.seeds["values"]
    ]
    if same:
        notes.append(f"Exactly as the full fusion, with every seed and in every metric: {', '.join(same)}.")
    return notes
