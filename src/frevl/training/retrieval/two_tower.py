"""The training of the first stage: symmetric InfoNCE over large batches taken by index."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from frevl.errors import TrainingError
from frevl.models.inputs import low_precision, mean_pool
from frevl.models.retrieval.two_tower import TwoTower
from frevl.runs.batches import EmbeddedPairs
from frevl.training.loop import FitReport, descend
from frevl.training.losses import batch_contrast

__all__ = ["fit_members", "pooled_items"]

_LARGE = 5000  # pairs; with fewer a wide network is slower and not better
_STATISTICS = 50_000  # items from which means and deviations are taken


def fit_members(
    pairs: EmbeddedPairs,
    *,
    members: int = 3,
    seed: int,
    time_limit: float | None = None,
    device: str = "cpu",
    progress: bool = False,
    title: str = "training dual",
    width: int | None = None,
    hidden: int | None = None,
    dropout: float = 0.5,
    input_dropout: float = 0.3,
    epochs: int = 6,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.2,
    warm_up: float = 0.1,
    label_smoothing: float = 0.1,
    gradient_clip: float = 1.0,
) -> tuple[TwoTower, FitReport]:
    """Train one dual encoder a member, each from another seed, and put them together.

    Args:
        pairs: Right pairs.
        members: How many; their mean cosine ranks better than any of them, and than one of twice the width.
        seed: Of the first member.
        time_limit: Most seconds of all members together; the schedules shrink to it.
        device: Where to train.
        progress: Show a progress line.
        title: Of that line.
        width: Of a member's vectors. None takes 512, and 256 for fewer than 5,000 pairs.
        hidden: Width inside a projection. None takes twice the width.
        dropout: Inside a projection.
        input_dropout: On the embeddings.
        epochs: Passes over the pairs.
        batch_size: Pairs a step; all others of the batch are negatives, so large is good.
        learning_rate: Of AdamW, after warm-up; it falls to a thousandth by a cosine.
        weight_decay: Of AdamW.
        warm_up: Share of the training in which the rate rises.
        label_smoothing: Share of the target that is spread over the whole batch.
        gradient_clip: Largest norm of the gradient.

    Returns:
        The network on the CPU in evaluation mode, and how the training went.

    Raises:
        TrainingError: The loss is not finite.
    """
    started = time.monotonic()
    images, texts = pooled_items(pairs.images, pairs.image_mask), pooled_items(pairs.texts, pairs.text_mask)
    width = (512 if len(pairs) >= _LARGE else 256) if width is None else width
    hidden = 2 * width if hidden is None else hidden
    networks = []
    reports: list[FitReport] = []
    for number in range(members):
        torch.manual_seed(seed + 1009 * number)
        network = TwoTower(
            image_dim=images.shape[1], text_dim=texts.shape[1], hidden=hidden, width=width,
            input_dropout=input_dropout, dropout=dropout,
        )  # fmt: skip
        for projections, values, rows in (
            (network.image, images, pairs.image_rows),
            (network.text, texts, pairs.text_rows),
        ):
            for projection in projections:
                projection.standardise(values[torch.unique(rows)[:_STATISTICS]])  # type: ignore[operator]
        left = None if time_limit is None else max(1.0, time_limit - (time.monotonic() - started)) / (members - number)
        reports.append(
            descend(
                network.to(device), _contrast(network, images, texts, pairs, label_smoothing, device), len(pairs),
                seed=seed + 1009 * number, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
                weight_decay=weight_decay, warm_up=warm_up, gradient_clip=gradient_clip, time_limit=left,
                progress=progress, title=title if members == 1 else f"{title} {number + 1} of {members}",
                remedy="lower --learning-rate, or look for broken embeddings with: frevl store verify",
            )
        )  # fmt: skip
        networks.append(network)
    if not reports:
        raise TrainingError(f"A dual encoder needs at least one member, found {members}")
    return TwoTower.of(networks), replace(reports[-1], seconds=time.monotonic() - started)


def _contrast(
    network: TwoTower, images: Tensor, texts: Tensor, pairs: EmbeddedPairs, label_smoothing: float, device: str
) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return the loss of a batch of pairs for `frevl.training.loop.descend`."""

    def loss_of(rows: Tensor, _: torch.Generator) -> Tensor:
        image, text = pairs.image_rows[rows], pairs.text_rows[rows]
        # An image that stands in the batch with several captions is one column with several positives.
        columns, places = torch.unique(image, return_inverse=True)
        with low_precision(device):
            image_vectors = network.image_vectors(images[columns].to(device).float())
            text_vectors = network.text_vectors(texts[text].to(device).float())
        similarity = network.scale * text_vectors @ image_vectors.T
        return batch_contrast(similarity, places.to(device), text.to(device), label_smoothing=label_smoothing)

    return loss_of


def pooled_items(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens of all items, ``(n, dim)`` in the stored type."""
    if values.shape[1] == 1:
        return values[:, 0]
    parts = zip(values.split(512), mask.split(512), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([mean_pool(v.float(), m).to(values.dtype) for v, m in parts])
