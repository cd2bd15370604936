"""What an ablation study compares with the full fusion, and how each of them is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frevl.models.fusion import PRESETS
from frevl.store.reader import Store
from frevl.training.options import FusionOptions, ModelOptions, PairwiseOptions, make_options, options_for

__all__ = ["BASELINES", "DEPTHS", "FULL", "VARIANTS", "Variant", "depth_of", "options_of", "variants_of"]


@dataclass(frozen=True)
class Variant:
    """A fusion or baseline to compare with the full fusion.

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

    @property
    def folder(self) -> str:
        """Name of the folder of its runs; one that changes nothing (the same depth) is the full fusion itself."""
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
    """Return all variants of a study, the full fusion first.

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
        variant: The variant; a baseline takes over how the full fusion is trained, as far as it has the option.
        model: Preset of the full fusion.
        full: Options of the full fusion.
    """
    own = variant.arguments.get("model", model)
    given = {**full.changes(), "layers": depth_of(model, full), **variant.changes}
    if own in BASELINES:
        shared = PairwiseOptions.__dataclass_fields__.keys() & options_for(own).__dataclass_fields__.keys()
        given = {name: value for name, value in given.items() if name in shared}
    return make_options(own, given)
