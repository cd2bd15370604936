"""The symmetric contrast of a batch, each worker with the similarities of its own texts only."""

from __future__ import annotations

import torch
from torch import Tensor

from frevl.training.workers.team import Team

__all__ = ["shared_contrast"]


def shared_contrast(
    similarity: Tensor, own: Tensor, image_places: Tensor, text_ids: Tensor, *, label_smoothing: float, team: Team
) -> Tensor:
    """Return a worker's contribution to `frevl.training.losses.batch_contrast` of the whole batch.

    From texts to images, every row of the softmax belongs to one worker. From images to texts, a column is spread over
    the workers: its sum is that of the sums over each worker's rows, the logarithms of which are the only numbers sent
    (ours; the loss is that of `batch_contrast`).

    Args:
        similarity: ``(k, images)`` logits of this worker's texts with all images of the batch.
        own: ``(k,)`` int64, which texts of the batch these are; every worker has at least one.
        image_places: ``(texts,)`` int64, the column of each text's image; every column has a text.
        text_ids: ``(texts,)`` integers, equal where two texts of the batch are the same.
        label_smoothing: In [0, 1).
        team: All workers.
    """
    texts, images = len(text_ids), similarity.shape[1]
    names, same = torch.unique(text_ids, return_inverse=True)
    same, own = (rows.to(similarity.device, non_blocking=True) for rows in (same, own))
    of_name = similarity.new_zeros(len(names), images)
    of_name[same, image_places] = 1
    right = of_name[same[own]]
    of_image = torch.bincount(same, minlength=len(names)).to(of_name) @ of_name  # right texts of every image
    among_right = similarity * right

    def wanted(right_ones: Tensor, all_of_them: Tensor) -> Tensor:
        return (1 - label_smoothing) * right_ones + label_smoothing * all_of_them

    rows = torch.logsumexp(similarity, 1) - wanted(among_right.sum(1) / right.sum(1), similarity.mean(1))
    over_workers = team.share(team.size).gathered(torch.logsumexp(similarity, 0)[None])
    columns = team.share(team.size).counted_once(torch.logsumexp(over_workers, 0).mean())
    columns = columns - wanted(among_right.sum(0) / of_image, similarity.sum(0) / texts).mean()
    return 0.5 * (rows.sum() / texts + columns)
