"""Train a reranker on hard negatives, mined by a first stage that was not trained on their images.

A first stage has memorised the captions of its training images: its mistakes there differ from those on new images, and
its scores are too confident. The images are therefore divided into folds; for each fold a two-tower network is trained
on the others and ranks the fold (cross-fitting, ours). The reranker then trains on the kind of mistakes, and with the
kind of scores, that it will encounter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.models.inputs import low_precision
from frevl.models.retrieval.first_stage import FirstStage, with_alignment
from frevl.models.retrieval.kernel_alignment import fit_alignment
from frevl.models.retrieval.reranker import Standardised, hubness
from frevl.runs.batches import EmbeddedPairs, moved
from frevl.store.grouping.large_arrays import gathered
from frevl.training.loop import FitReport, gradient_descent
from frevl.training.options import RerankerOptions, Session, TwoTowerOptions
from frevl.training.retrieval.score_fusion import few_enough
from frevl.training.retrieval.two_tower import fit_two_tower_ensemble, pooled_items
from frevl.training.run_folder import NOWHERE, Checkpoint
from frevl.training.workers.team import Share

__all__ = ["HardNegatives", "assign_folds", "bank_of", "fit_reranker", "listwise_loss", "mine_hard_negatives"]

_MOST_IMAGES = 2500  # images mined per fold; with five texts each, 31 million scores
_CENTRED_AT_ONCE = 1 << 26  # numbers: 256 MiB
_TWIN_QUANTILE, _MOST_TWINS = 0.75, 100_000


@dataclass(frozen=True)
class HardNegatives:
    """Wrong images for the text, and wrong texts for the image, of every right pair, hardest first.

    Rows refer to the embedded items of the pairs. ``base`` holds the scores to which the fusion adds its own: the first
    stage's logit with the alignment, corrected for hubness.

    Attributes:
        image_rows: ``(n,)`` int64, the right image.
        text_rows: ``(n,)`` int64, the right text.
        base: ``(n,)`` scores of the right pairs.
        wrong_images: ``(n, k)`` int64, -1 where there are fewer.
        wrong_images_base: ``(n, k)`` scores of those images with the text.
        wrong_texts: ``(n, k)`` int64, -1 where there are fewer.
        wrong_texts_base: ``(n, k)`` scores of those texts with the image.
    """

    image_rows: Tensor
    text_rows: Tensor
    base: Tensor
    wrong_images: Tensor
    wrong_images_base: Tensor
    wrong_texts: Tensor
    wrong_texts_base: Tensor

    def __len__(self) -> int:
        return len(self.image_rows)


def assign_folds(image_rows: Tensor, folds: int, seed: int) -> Tensor:
    """Divide the images of pairs into folds; return the fold number of every pair, ``(n,)``."""
    different, inverse = torch.unique(image_rows, return_inverse=True)
    order = torch.randperm(len(different), generator=torch.Generator().manual_seed(seed))
    return (order % folds)[inverse]


def mine_hard_negatives(
    pairs: EmbeddedPairs,
    *,
    session: Session,
    folds: int = 2,
    depth: int = 30,
    alignment_weight: float = 10.0,
    hubness_weight: float = 0.5,
    bank: int = 2000,
    first: FirstStage | None = None,
    checkpoint: Checkpoint = NOWHERE,
) -> HardNegatives:
    """Rank every fold of images with a first stage trained on the others, and keep the best wrong items.

    To avoid false negatives, a text as close to one of the image's texts as three quarters of the image's own texts are
    to each other is taken to describe the image too; neither it nor its image counts as wrong.

    Args:
        pairs: Right pairs.
        session: Seed of folds and training; time limit, device and progress.
        folds: Number of folds.
        depth: Number of wrong items kept for each pair and direction.
        alignment_weight: Weight of the kernel alignment in the scores.
        hubness_weight: Weight of the hubness subtracted from the scores (`frevl.models.retrieval.reranker`).
        bank: Maximum number of training items by which hubness is measured.
        first: A first stage that has never seen any of the images (``cosine``); then none is trained.
        checkpoint: Saves the states of the first stages.
    """
    clock = checkpoint.clock
    started, seed, time_limit = clock.seconds(), session.seed, session.time_limit
    fold_of = assign_folds(pairs.image_rows, folds, seed)
    images, texts = pooled_items(pairs.images, pairs.image_mask), pooled_items(pairs.texts, pairs.text_mask)
    near = near_duplicate_bound(texts, pairs.image_rows, pairs.text_rows)
    parts, order = [], []
    for fold in range(folds):
        held = _at_most(pairs.image_rows, (fold_of == fold).nonzero()[:, 0], _MOST_IMAGES)
        held = held[few_enough(pairs.image_rows[held], pairs.text_rows[held], seed)]
        inside = (fold_of != fold).nonzero()[:, 0]
        network = first
        if network is None:
            left = None if time_limit is None else max(1.0, time_limit - (clock.seconds() - started)) / (folds - fold)
            network, _ = fit_two_tower_ensemble(
                pairs.select(inside), options=TwoTowerOptions(members=1),
                session=replace(session, seed=seed + fold, time_limit=left),
                title=f"first stage without fold {fold + 1} of {folds}",
                checkpoint=checkpoint.part(f"without fold {fold + 1}"),
            )  # fmt: skip
        seen = pairs.image_rows[inside], pairs.text_rows[inside]
        network = with_alignment(network, fit_alignment(images, texts, *seen, seed=seed), alignment_weight)
        banks = bank_of(network, images, texts, *seen, bank, seed)
        parts.append(_lists(network, images, texts, pairs.image_rows[held], pairs.text_rows[held], banks, near, depth,
                            hubness_weight))  # fmt: skip
        order.append(held)
    back = torch.cat(order).argsort()
    fields = HardNegatives.__dataclass_fields__
    return HardNegatives(**{name: torch.cat([getattr(part, name) for part in parts])[back] for name in fields})


def _at_most(image_rows: Tensor, rows: Tensor, most: int) -> Tensor:
    """Keep the pairs of a limited number of images, because every text in a fold is compared with every image."""
    kept = torch.unique(image_rows[rows])[:most]
    return rows[torch.isin(image_rows[rows], kept)]


def bank_of(
    first: FirstStage,
    images: Tensor,
    texts: Tensor,
    image_rows: Tensor,
    text_rows: Tensor,
    size: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Return parts of at most ``size`` images and ``size`` texts of training pairs, ``(m, d)`` each."""
    random = torch.Generator().manual_seed(seed)

    def sample(rows: Tensor) -> Tensor:
        different: Tensor = torch.unique(rows)
        return different[torch.randperm(len(different), generator=random)[:size]]

    chosen_images, chosen_texts = images[sample(image_rows)].float(), texts[sample(text_rows)].float()
    with torch.inference_mode():
        return first.image_parts(chosen_images), first.text_parts(chosen_texts)


def near_duplicate_bound(texts: Tensor, image_rows: Tensor, text_rows: Tensor) -> float:
    """Return the cosine above which a text counts as a rewording of a right one; infinite if unknown.

    It is the upper quartile of the cosines between texts of the same image, after subtracting the mean text.
    """
    order = image_rows.argsort(stable=True)
    same = image_rows[order][1:] == image_rows[order][:-1]
    a, b = text_rows[order][1:][same], text_rows[order][:-1][same]
    different = a != b
    if int(different.sum()) < 100:
        return math.inf
    vectors, some = centred(texts), different.nonzero()[:_MOST_TWINS, 0]
    cosines = (vectors[a[some]] * vectors[b[some]]).sum(dim=1)
    return float(cosines.quantile(_TWIN_QUANTILE))


def centred(texts: Tensor) -> Tensor:
    """Return unit vectors of ``(n, d)`` embeddings minus their mean; those of many are in an unnamed file."""
    if texts.numel() <= _CENTRED_AT_ONCE or texts.device.type != "cpu":
        values = texts.float()
        return F.normalize(values - values.mean(dim=0), dim=1)
    blocks = texts.split(max(1, _CENTRED_AT_ONCE // texts.shape[1]))  # type: ignore[no-untyped-call]
    mean = (sum(block.double().sum(dim=0) for block in blocks) / len(texts)).float()
    parts = (F.normalize(block.float() - mean, dim=1).numpy() for block in blocks)
    return torch.from_numpy(gathered(parts, (len(texts), texts.shape[1]), np.float32))


def _lists(
    network: FirstStage,
    images: Tensor,
    texts: Tensor,
    image_rows: Tensor,
    text_rows: Tensor,
    banks: tuple[Tensor, Tensor],
    near: float,
    depth: int,
    hubness_weight: float,
) -> HardNegatives:
    """Mine within one fold; every wrong item is from the fold too, because the others were used in training."""
    image_ids, image_at = torch.unique(image_rows, return_inverse=True)
    text_ids, text_at = torch.unique(text_rows, return_inverse=True)
    meaning = centred(texts)[text_ids] if math.isfinite(near) else None
    with torch.inference_mode():
        image_parts = network.image_parts(images[image_ids].float())
        text_parts = network.text_parts(texts[text_ids].float())
        scales = network.part_scales(network.alignment_weight, image_parts.shape[1])
        scores = text_parts * scales @ image_parts.T
        scores -= hubness_weight * hubness(text_parts, banks[0], scales)[:, None]
        scores -= hubness_weight * hubness(image_parts, banks[1], scales)
        right = torch.zeros(scores.shape, dtype=torch.bool)
        right[text_at, image_at] = True
        alike = right.clone()
        if meaning is not None:
            # A text close to one of an image's texts is taken as another description of that image.
            for start in range(0, len(text_ids), 1024):
                close = (meaning[start : start + 1024] @ meaning.T >= near).to(torch.float32)
                alike[start : start + 1024] |= close @ right.to(torch.float32) > 0
        wrong = scores.masked_fill(alike, -torch.inf)
        of_text = wrong.topk(min(depth, len(image_ids)), dim=1)
        of_image = wrong.T.contiguous().topk(min(depth, len(text_ids)), dim=1)

    def rows(found: Any, ids: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return row numbers and scores for each pair, padded to the same depth with -1."""
        numbers = torch.where(found.values.isfinite(), ids[found.indices], -1)[places]
        values = found.values.masked_fill(~found.values.isfinite(), 0.0)[places]
        missing = depth - numbers.shape[1]
        return F.pad(numbers, (0, missing), value=-1), F.pad(values, (0, missing))

    wrong_images, wrong_images_base = rows(of_text, image_ids, text_at)
    wrong_texts, wrong_texts_base = rows(of_image, text_ids, image_at)
    return HardNegatives(
        image_rows, text_rows, scores[text_at, image_at].clone(), wrong_images, wrong_images_base.clone(), wrong_texts,
        wrong_texts_base.clone(),
    )  # fmt: skip


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
    """Train a fusion on hard negatives, from in-memory embeddings, pooled or tokens.

    Each right pair competes with `negatives` wrong images for its text and as many wrong texts for its image, by the
    sum of the first stage's score and the fusion's logit. The fusion starts at zero, so training starts at the ranking
    of the first stage and learns to correct its mistakes.

    Args:
        network: The fusion; its statistics are measured on the mined items.
        pairs: Embedded items.
        mined: The hard negatives.
        options: Options of the reranker.
        session: Seed of order, choice of wrong items and dropout; time limit, device and progress.
        title: Title of the progress line.
        checkpoint: Saves the state.

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
                right, scores.view(numbers.shape) + moved(base, device), moved(numbers >= 0, device),
                label_smoothing=label_smoothing,
            )
            for scores, numbers, base in ((by_image, images, image_base), (by_text, texts, text_base))
        ]  # fmt: skip
        loss = lists.weighed(0.5 * (losses[0] + losses[1]))
        return loss, {"listwise": loss}

    return gradient_descent(
        network, loss_of, len(mined), options=options, session=session, title=title, remedy="lower learning_rate",
        checkpoint=checkpoint,
    )  # fmt: skip


def listwise_loss(right: Tensor, wrong: Tensor, exists: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of the right item in the softmax over its list, averaged over lists (ListNet).

    Args:
        right: ``(n,)`` score of the right item.
        wrong: ``(n, k)`` scores of wrong items.
        exists: ``(n, k)`` bool; other items are ignored. A list without wrong items has loss 0.
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
    """Return the ``(k,)`` logits of this worker's pairs in the batch, projecting every distinct item once."""
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
