"""The training of a reranker: a fusion learns what to add to the first stage's score, list by list."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.models.inputs import low_precision
from frevl.models.retrieval.reranker import Standardised
from frevl.runs.batches import EmbeddedPairs, moved
from frevl.training.loop import FitReport, gradient_descent
from frevl.training.options import RerankerOptions, Session
from frevl.training.retrieval.hard_negatives import HardNegatives
from frevl.training.retrieval.two_tower import pooled_items
from frevl.training.run_folder import NOWHERE, Checkpoint
from frevl.training.workers.team import Share

__all__ = ["fit_reranker", "listwise_loss"]


def fit_reranker(
    network: Standardised,
    pairs: EmbeddedPairs,
    mined: HardNegatives,
    *,
    options: RerankerOptions,
    session: Session,
    title: str,
    checkpoint: Checkpoint = NOWHERE,
) -> FitReport:
    """Train a fusion on hard negatives; on embeddings in memory, pooled or tokens.

    Each right pair competes with `negatives` wrong images for its text and as many wrong texts for its image, by the
    sum of the score that the first stage gave and the fusion's logit. The fusion starts at zero, so training starts at
    the ranking of the first stage and learns its mistakes.

    Args:
        network: Its statistics are taken from the mined items.
        pairs: Embedded items.
        mined: The hard negatives.
        options: How.
        session: Seed of order, choice of wrong items and dropout; time limit, device and progress.
        title: Of the progress line.
        checkpoint: Where the state is saved.

    Raises:
        TrainingError: The loss is not finite.
    """
    network.standardise(
        pooled_items(pairs.images, pairs.image_mask)[torch.unique(mined.image_rows)],
        pooled_items(pairs.texts, pairs.text_mask)[torch.unique(mined.text_rows)],
    )
    wrong, label_smoothing, device, team = options.negatives, options.label_smoothing, session.device, session.team

    def loss_of(rows: Tensor, random: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = torch.randint(mined.wrong_images.shape[1], (2, len(rows), wrong), generator=random)
        images, image_base = _drawn(mined.wrong_images, mined.wrong_images_base, rows, chosen[0])
        texts, text_base = _drawn(mined.wrong_texts, mined.wrong_texts_base, rows, chosen[1])
        image, text = mined.image_rows[rows], mined.text_rows[rows]
        image_rows = torch.cat([image, images.reshape(-1).clamp(min=0), image.repeat_interleave(wrong)])
        text_rows = torch.cat([text, text.repeat_interleave(wrong), texts.reshape(-1).clamp(min=0)])
        lists = team.share(len(rows))
        in_lists = torch.arange(images.numel()).view(images.shape)  # the wrong pairs of every list
        own_wrong = lists.of(in_lists).flatten()
        places = [lists.of(torch.arange(len(rows))), len(rows) + own_wrong, len(rows) + images.numel() + own_wrong]
        own = lists.among(torch.cat(places), len(image_rows))
        with low_precision(device):
            logits = _logits(network, pairs, image_rows, text_rows, own, device).float()
        right, by_image, by_text = torch.split(logits, [len(part) for part in places])
        images, image_base, texts, text_base = map(lists.of, (images, image_base, texts, text_base))
        right = moved(lists.of(mined.base[rows]), device) + right
        losses = [
            listwise_loss(
                right, said.view(numbers.shape) + moved(base, device), moved(numbers >= 0, device),
                label_smoothing=label_smoothing,
            )
            for said, numbers, base in ((by_image, images, image_base), (by_text, texts, text_base))
        ]  # fmt: skip
        loss = lists.weighed(0.5 * (losses[0] + losses[1]))
        return loss, {"listwise": loss}

    return gradient_descent(
        network, loss_of, len(mined), options=options, session=session, title=title, remedy="lower learning_rate",
        checkpoint=checkpoint,
    )  # fmt: skip


def listwise_loss(right: Tensor, wrong: Tensor, exists: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the right item in the softmax over its list, the mean over lists (ListNet with one right item).

    Args:
        right: ``(n,)`` score of the right item.
        wrong: ``(n, k)`` scores of wrong items.
        exists: ``(n, k)`` bool; others are left out. A list without wrong items costs nothing.
        label_smoothing: Share of the target that is spread evenly over the items that exist.
    """
    scores = torch.cat([right[:, None], wrong.masked_fill(~exists, -torch.inf)], dim=1)
    logs = scores.log_softmax(dim=1)
    there = F.pad(exists, (1, 0), value=True)
    spread = logs.masked_fill(~there, 0.0).sum(dim=1) / there.sum(dim=1)
    return -((1 - label_smoothing) * logs[:, 0] + label_smoothing * spread).mean()


def _drawn(numbers: Tensor, base: Tensor, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    return numbers[rows].gather(1, chosen), base[rows].gather(1, chosen)


def _logits(
    network: Standardised, pairs: EmbeddedPairs, image_rows: Tensor, text_rows: Tensor, own: Share, device: str
) -> Tensor:
    """``(k,)`` logits of this worker's pairs of the batch; every different item of them is projected once."""
    images, image_at = torch.unique(own.of(image_rows), return_inverse=True)
    texts, text_at = torch.unique(own.of(text_rows), return_inverse=True)
    with own.of_items(image_rows, images).dropping():
        image_hidden = network.project_image(moved(pairs.images[images], device).float())[moved(image_at, device)]
    with own.of_items(text_rows, texts).dropping():
        text_hidden = network.project_text(moved(pairs.texts[texts], device).float())[moved(text_at, device)]
    image_mask = None if image_hidden.shape[1] == 1 else moved(pairs.image_mask[own.of(image_rows)], device)
    text_mask = None if text_hidden.shape[1] == 1 else moved(pairs.text_mask[own.of(text_rows)], device)
    fusion = network.fusion
    with own.dropping():
        logits: Tensor = fusion.head(fusion.fuse(image_hidden, text_hidden, image_mask, text_mask))[:, 0]
    return logits
