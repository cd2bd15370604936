"""Train the first stage: symmetric InfoNCE over large batches.

The model ``cosine`` needs no training, only embedding columns in a common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from frevl.errors import UsageError
from frevl.models.inputs import low_precision, mean_pool
from frevl.models.retrieval.two_tower import Cosine, TwoTower
from frevl.runs.batches import EmbeddedPairs, moved
from frevl.training.loop import FitReport, LossOf, gradient_descent
from frevl.training.losses import batch_contrast
from frevl.training.options import Session, TwoTowerOptions
from frevl.training.run_folder import NOWHERE, Checkpoint
from frevl.training.workers.shared_contrast import shared_contrast
from frevl.training.workers.team import ALONE, Team

if TYPE_CHECKING:
    from frevl.store.towers import Tower

__all__ = ["COMMON_SPACE", "cosine_of", "fit_two_tower_ensemble", "has_common_space", "narrow_vectors", "pooled_items"]

_LARGE = 5000  # pairs; with fewer, a wide network is slower and no better
_STATISTICS = 50_000  # items from which means and deviations are measured
_ITEMS_AT_ONCE = 4_096


def fit_two_tower_ensemble(
    pairs: EmbeddedPairs,
    *,
    options: TwoTowerOptions,
    session: Session,
    title: str = "training dual",
    checkpoint: Checkpoint = NOWHERE,
) -> tuple[TwoTower, FitReport]:
    """Train two-tower networks from different seeds and combine them into one.

    Args:
        pairs: Right pairs.
        options: Options; the members' mean cosine ranks better than any single member, and than one of twice the width.
        session: Seed of the first member, time limit for all members together, device and progress.
        title: Title of the progress line.
        checkpoint: Saves the state of every member.

    Returns:
        The network on the CPU in evaluation mode, and the report of the training.

    Raises:
        TrainingError: The loss is not finite.
    """
    clock = checkpoint.clock
    started = clock.seconds()
    images, texts = pooled_items(pairs.images, pairs.image_mask), pooled_items(pairs.texts, pairs.text_mask)
    members, seed, time_limit = options.members, session.seed, session.time_limit
    width = (512 if len(pairs) >= _LARGE else 256) if options.width is None else options.width
    hidden = 2 * width if options.hidden is None else options.hidden
    networks = []
    smoothing = options.label_smoothing
    reports: list[FitReport] = []
    for number in range(members):
        torch.manual_seed(seed + 1009 * number)
        network = TwoTower(
            image_dim=images.shape[1], text_dim=texts.shape[1], hidden=hidden, width=width,
            input_dropout=options.input_dropout, dropout=options.dropout,
        )  # fmt: skip
        for projections, values, rows in (
            (network.image, images, pairs.image_rows),
            (network.text, texts, pairs.text_rows),
        ):
            for projection in projections:
                projection.standardise(values[torch.unique(rows)[:_STATISTICS]])  # type: ignore[operator]
        left = None if time_limit is None else max(1.0, time_limit - (clock.seconds() - started)) / (members - number)
        reports.append(
            gradient_descent(
                network, _contrast(network, images, texts, pairs, smoothing, session.device, session.team), len(pairs),
                options=options, session=replace(session, seed=seed + 1009 * number, time_limit=left),
                title=title if members == 1 else f"{title} {number + 1} of {members}",
                checkpoint=checkpoint.part(f"member {number + 1}"),
                remedy="lower learning_rate, or look for damaged embeddings with: frevl store verify",
            )
        )  # fmt: skip
        networks.append(network)
    whole = narrow_vectors(TwoTower.of(networks), images, texts, pairs, options.stored_width)
    passes = min(one.passes for one in reports)
    return whole, replace(reports[-1], seconds=clock.seconds() - started, passes=passes)


def narrow_vectors(network: TwoTower, images: Tensor, texts: Tensor, pairs: EmbeddedPairs, width: int) -> TwoTower:
    """Project the concatenated vectors of several members to a smaller width; narrower ones are unchanged.

    The directions are those in which the vectors of training images and texts, equally weighted, are largest: the first
    eigenvectors of their second moments. Measured: research/experiments/log.md, "Stored vectors of dual".

    Args:
        network: A trained network in evaluation mode.
        images: ``(images, dim)`` pooled embeddings.
        texts: ``(texts, dim)`` pooled embeddings.
        pairs: Pairs whose items are the training items; up to 50,000 of each modality are used.
        width: Width of a stored vector.
    """
    joined = int(network.settings["width"]) * int(network.settings["members"])
    if joined <= width:
        return network
    moment = torch.zeros(joined, joined, dtype=torch.double)
    with torch.inference_mode():
        for of, values, rows in (
            (network.own_image_vectors, images, pairs.image_rows),
            (network.own_text_vectors, texts, pairs.text_rows),
        ):
            chosen = torch.unique(rows)[:_STATISTICS]
            for part in torch.split(chosen, _ITEMS_AT_ONCE):
                vectors = of(values[part].float())
                moment += (vectors.T @ vectors).double() / len(chosen)
    directions: Tensor = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :width]
    return network.narrowed(directions.T.float().contiguous())


def _contrast(
    network: TwoTower,
    images: Tensor,
    texts: Tensor,
    pairs: EmbeddedPairs,
    label_smoothing: float,
    device: str,
    team: Team = ALONE,
) -> LossOf:
    """Build the loss of a member: symmetric InfoNCE within the batch, for any number of workers."""

    def loss_of(rows: Tensor, _: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        image, text = pairs.image_rows[rows], pairs.text_rows[rows]
        # An image that occurs in the batch with several captions is one column with several positives.
        columns, places = torch.unique(image, return_inverse=True)
        own_images, own_texts = team.share(len(columns)), team.share(len(text))
        with low_precision(device):
            with own_images.dropping():
                image_vectors = network.image_vectors(moved(images[own_images.of(columns)], device).float())
            with own_texts.dropping():
                text_vectors = network.text_vectors(moved(texts[own_texts.of(text)], device).float())
        places, smoothed = moved(places, device), {"label_smoothing": label_smoothing}
        if 1 < team.size <= len(columns):
            # Each compares its own texts with all images; there are no fewer texts than images.
            similarity = network.scale * text_vectors.float() @ own_images.gathered_for_own(image_vectors).T
            own = own_texts.of(torch.arange(len(text)))
            loss = shared_contrast(similarity, own, places, text, **smoothed, team=team)
        else:
            image_vectors, text_vectors = own_images.gathered(image_vectors), own_texts.gathered(text_vectors)
            similarity = network.scale * text_vectors @ image_vectors.T
            loss = own_texts.counted_once(batch_contrast(similarity, places, text, **smoothed))
        return loss, {"contrastive": loss}

    return loss_of


def pooled_items(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over tokens of all items, ``(n, dim)`` in the stored type."""
    if values.shape[1] == 1:
        return values[:, 0]
    parts = zip(values.split(512), mask.split(512), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([mean_pool(v.float(), m).to(values.dtype) for v, m in parts])


COMMON_SPACE = "common_space"
"""Field of a tower's identity: names the space shared by image and text embeddings, equal in both towers.

It is absent for encoders without one. The image tower may also have ``logit_scale`` and ``logit_bias``, numbers as
text: the encoder's own logits are ``logit_scale * cosine + logit_bias``.
"""


def has_common_space(image_towers: Sequence[Tower], text_towers: Sequence[Tower]) -> bool:
    """Return whether an image tower and a text tower share a space."""
    return bool(_spaces(image_towers) & _spaces(text_towers))


def cosine_of(image_towers: Sequence[Tower], text_towers: Sequence[Tower]) -> Cosine:
    """Build the cosine network, which needs no training.

    Args:
        image_towers: Image towers in the order in which their embeddings are concatenated.
        text_towers: Text towers in the order in which their embeddings are concatenated.

    Raises:
        UsageError: No image tower shares a space with a text tower.
    """
    spaces: list[list[int]] = []
    scales, biases = [], []
    image_start = 0
    for image in image_towers:
        text_start = 0
        for text in text_towers:
            space = image.identity.get(COMMON_SPACE)
            if space is not None and space == text.identity.get(COMMON_SPACE):
                spaces.append([image_start, image_start + image.dim, text_start, text_start + text.dim])
                scales.append(float(image.identity.get("logit_scale", "1")))
                biases.append(float(image.identity.get("logit_bias", "0")))
            text_start += text.dim
        image_start += image.dim
    if not spaces:
        raise UsageError(
            "The model 'cosine' needs an encoder whose images and texts share a space, as in CLIP; found "
            f"{', '.join(tower.name for tower in [*image_towers, *text_towers])}, which have none; use --model dual, "
            "which learns one"
        )
    return Cosine(spaces=spaces, scale=sum(scales) / len(scales), bias=sum(biases) / len(biases)).eval()


def _spaces(towers: Sequence[Tower]) -> set[str]:
    return {tower.identity[COMMON_SPACE] for tower in towers if COMMON_SPACE in tower.identity}
