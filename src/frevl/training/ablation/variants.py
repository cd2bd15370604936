"""The variants of the fusion that an ablation study trains, and the rows of its table."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frevl.evaluation.intervals import paired_difference
from frevl.evaluation.seeds import SeedsResult
from frevl.models.fusion import PRESETS
from frevl.store.reader import Store
from frevl.training.options import FusionOptions, ModelOptions, PairwiseOptions, make_options, options_for
from frevl.training.seeds import SeedRuns

__all__ = [
    "BASELINES",
    "DEPTHS",
    "FULL",
    "VARIANTS",
    "Ablation",
    "AblationRow",
    "Variant",
    "depth_of",
    "notes_of",
    "options_of",
    "row_of",
    "variants_of",
]


@dataclass(frozen=True)
class Variant:
    """A fusion or baseline to compare with the full fusion.

    Attributes:
        name: Name of the variant in the table.
        group: ``full``, ``parts``, ``layers``, ``training``, ``encoders`` or ``baselines``.
        changes: Options that differ from the full fusion's.
        arguments: Arguments of `frevl.train` that differ from the full fusion's.
        store: Index of the store it is trained on.
    """

    name: str
    group: str
    changes: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    store: int = 0

    @property
    def folder(self) -> str:
        """Return its run folder's name; a variant that changes nothing (the same depth) is the full fusion itself."""
        changed = self.changes or self.arguments or self.store
        return "-".join(re.findall(r"[a-z0-9]+", (self.name if changed else FULL.name).lower()))


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
BASELINES = ("linear", "mlp")


def variants_of(stores: Sequence[Store], whole: Sequence[str], depth: int) -> list[Variant]:
    """Return all variants of a study, full fusion first.

    Args:
        stores: The full fusion is trained on each, everything else on the first.
        whole: Encoders of the first store that embedded both images and texts.
        depth: Number of blocks of the full fusion.
    """
    parts, training = ([one for one in VARIANTS if one.group == group] for group in ("parts", "training"))
    depths = [
        Variant(f"{n} layer{'s' if n > 1 else ''}", "layers", {} if n == depth else {"layers": n}) for n in DEPTHS
    ]
    by_modality = {"image_encoder": None, "text_encoder": None}
    alone = [Variant(f"{name} only", "encoders", arguments={"encoder": [name], **by_modality}) for name in whole]
    further = [
        Variant(f"store {number + 1} ({Path(one.path).name}: {' + '.join(one.encoders)})", "encoders", store=number)
        for number, one in enumerate(stores)
        if number > 0
    ]
    baselines = [Variant(name, "baselines", arguments={"model": name}) for name in BASELINES]
    return [FULL, *parts, *depths, *training, *(alone if len(whole) > 1 else []), *further, *baselines]


def depth_of(model: str, options: FusionOptions) -> int:
    """Return the number of blocks of a fusion."""
    return PRESETS[model]["layers"] if options.layers is None else options.layers


def options_of(variant: Variant, model: str, full: FusionOptions) -> ModelOptions:
    """Return the options of a variant.

    Args:
        variant: The variant; a baseline takes the training options of the full fusion, as far as it has them.
        model: Preset of the full fusion.
        full: Options of the full fusion.
    """
    own = variant.arguments.get("model", model)
    given = {**full.changes(), "layers": depth_of(model, full), **variant.changes}
    if own in BASELINES:
        shared = PairwiseOptions.__dataclass_fields__.keys() & options_for(own).__dataclass_fields__.keys()
        given = {name: value for name, value in given.items() if name in shared}
    return make_options(own, given)


NO_MORE_THAN_CHANCE = "The full fusion is not measurably better than "
"""How the first note of an ablation begins whose fusion has learned nothing."""

_OF_ONE_ROW = ("Means of ", "Chance: ")  # notes about one row, not about the comparison


@dataclass(frozen=True)
class AblationRow:
    """A variant with its results on the test pairs.

    Attributes:
        variant: The trained variant.
        runs: Runs of the variant.
        result: Metrics in percent, averaged over seeds; the first is the one compared.
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
        metric: Name of the metric compared.
        n: Number of test pairs.
        images: Number of distinct test images (or clusters), the unit of resampling.
        seeds: Seed of every training.
        rows: The rows, full fusion first.
        notes: Caveats for readers of the numbers.
        provenance: Provenance of the full fusion's result.
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
        variant: The trained variant.
        runs: Runs of the variant.
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
    """Return the notes of all results without repeats, and which rows are at chance or changed nothing.

    Those that put the whole comparison in doubt come first.
    """
    notes = list(dict.fromkeys(note for row in rows for note in row.result.notes if not note.startswith(_OF_ONE_ROW)))
    notes.sort(key=lambda note: not note.startswith("Leak: "))
    full = rows[0]
    # Classification compares the mean of the seeds with the majority answer, matching every seed with random scores.
    guess = "random scores" if full.result.chance is None else "always giving the majority answer"
    chance = [row.variant.name for row in rows if row.result.at_chance == row.result.seeds["n"]]
    partly = {
        row.variant.name: row.result.at_chance for row in rows if 0 < row.result.at_chance < row.result.seeds["n"]
    }
    if full.variant.name in chance:
        notes.insert(
            0,
            f"{NO_MORE_THAN_CHANCE}{guess}: what its parts contribute cannot be told from these differences. Train it "
            "longer, on more pairs, or with other settings (--set).",
        )
    if chance:
        notes.append(f"At chance, not measurably better than {guess}: {', '.join(chance)}.")
    if partly:
        shown = ", ".join(f"{name} ({count})" for name, count in partly.items())
        notes.append(f"At chance with some of the {full.result.seeds['n']} seeds: {shown}.")
    same = [
        row.variant.name
        for row in rows[1:]
        if row.runs.path != full.runs.path and row.result.seeds["values"] == full.result.seeds["values"]
    ]
    if same:
        notes.append(f"Identical to the full fusion, with every seed and in every metric: {', '.join(same)}.")
    return notes
