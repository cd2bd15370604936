"""The variants of an ablation study, and the rows of its table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from frevl.evaluation.seeds import SeedsResult
from frevl.training.seeds import SeedRuns

__all__ = ["DEPTHS", "VARIANTS", "Ablation", "AblationRow", "Variant"]


@dataclass(frozen=True)
class Variant:
    """A fusion or baseline to set beside the full fusion.

    Attributes:
        name: As it stands in the table.
        group: ``full``, ``parts``, ``layers``, ``training``, ``encoders`` or ``baselines``.
        changes: Options that differ from the full fusion's.
        arguments: Arguments of `frevl.train` that differ from the full fusion's.
        store: Number of the store it is trained on.
    """

    name: str
    group: str
    changes: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    store: int = 0


FULL = Variant("full fusion", "full")
VARIANTS = (
    Variant("no cross-attention", "parts", {"cross_attention": False}),
    Variant("concatenation only", "parts", {"product": False, "difference": False}),
    Variant("no product", "parts", {"product": False}),
    Variant("no difference", "parts", {"difference": False}),
    Variant("no contrastive term", "training", {"contrastive_weight": 0.0}),
    Variant("no regularisation term", "training", {"regularisation_weight": 0.0}),
    Variant("no mixup", "training", {"mixup_share": 0.0}),
    Variant("standardised inputs, 0.3 dropped", "training", {"standardise": True, "input_dropout": 0.3}),
    Variant("last epoch, not the best", "training", {"keep_last": True}),
    Variant("no label smoothing", "training", {"label_smoothing": 0.0}),
)
DEPTHS = (1, 2, 4, 6, 8)
_OF_ONE_ROW = ("Means of ", "Chance: ")  # notes that say something of one row, not of the comparison
BASELINES = ("linear", "mlp")


@dataclass(frozen=True)
class AblationRow:
    """A variant with what its seeds reached on the test pairs.

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
