"""``--unknown``: the score below which an image belongs to none of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from frevl.models.classification.class_network import ClassNetwork
from frevl.models.inputs import mean_pool
from frevl.store.reader import Store
from frevl.store.towers import Tower
from frevl.training.classification.choose import Choice

__all__ = ["unknown_threshold"]

_SAMPLE = 2_000  # images of the store, used if no labelled ones were held out


def unknown_threshold(
    choice: Choice, network: ClassNetwork, store: Store, towers: Sequence[Tower], *, share: float | None, seed: int
) -> tuple[dict[str, float] | None, list[str]]:
    """Choose a threshold for the largest logit of an image.

    The largest probability is not used: it compares the classes with each other, so one of them is always likeliest.
    With half of the classes removed, CLIP's names identified images of the removed classes with an AUROC of 0.94 by
    logit, and of 0.76 by probability (research/experiments/log.md).

    Args:
        choice: Provides the calibrated logits of held-out images, if there are any.
        network: The final network.
        store: Store whose images are used if none were held out.
        towers: Image towers that the network reads.
        share: Share of images that keep their label; None sets no threshold.
        seed: Random seed of the sample.

    Returns:
        ``{"below": logit, "share": share}`` or None, and a note on the data used.
    """
    if share is None:
        return None, []
    logits = choice.held_out[0]
    if len(logits):
        source = f"{len(logits):,} held-out images keep their label"
    else:
        chosen = np.random.default_rng(seed).permutation(store.count("image"))[:_SAMPLE]
        values, mask = store.read("image", store.ids("image", np.sort(chosen)), towers)
        logits = _logits(network, mean_pool(torch.from_numpy(values).float(), torch.from_numpy(mask)))
        source = f"{len(logits):,} images of the store keep their label, whatever they show, as none were held out"
    below = float(logits.max(dim=1).values.quantile(1 - share))
    note = f"Unknown: an image whose largest logit is below {below:.3g}; {100 * share:g} % of {source}."
    return {"below": below, "share": share}, [note]


def _logits(network: ClassNetwork, images: Tensor) -> Tensor:
    absent = torch.zeros(len(images), 0)
    with torch.inference_mode():
        return torch.cat([network(block, absent[: len(block)]) for block in torch.split(images, 1_024)]).clone()
