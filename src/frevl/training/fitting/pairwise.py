"""Losses for networks trained pair by pair: the task loss alone, and FrEVL's three terms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from frevl.devices import is_accelerator
from frevl.models.blocks import dropped
from frevl.models.fusion import Fusion
from frevl.models.inputs import bfloat16_on_accelerators, mean_pool
from frevl.runs.batches import moved
from frevl.runs.targets import Answers
from frevl.training.examples import Examples, kind_of, on_device, sample_negatives
from frevl.training.fitting.contrast import Positives, contrastive_loss
from frevl.training.fitting.recorded_steps import RecordedTerms
from frevl.training.loop import LossOf
from frevl.training.losses import draw_mixup, feature_norm_loss, mixed, task_loss
from frevl.training.options import FusionOptions, PairwiseOptions
from frevl.training.workers.team import ALONE, Share, Team

__all__ = ["fusion_loss", "pair_loss"]


def pair_loss(
    network: nn.Module,
    train: Examples,
    outputs: int,
    *,
    options: PairwiseOptions,
    device: str,
    class_weights: Tensor | None = None,
    team: Team = ALONE,
) -> LossOf:
    """Build the loss of a network trained on the task alone.

    Args:
        network: Maps a batch of pairs to ``(n, outputs)`` logits.
        train: Training examples.
        outputs: Number of classes; 1 for matching.
        options: Label smoothing, and the number of wrong texts per right pair in matching.
        device: Device of the network.
        class_weights: ``(outputs,)`` as in `task_loss`.
        team: The workers that share the batch.
    """
    kind, train = kind_of(train.truth), on_device(train, device)
    weights = None if class_weights is None else class_weights.to(device)

    def terms(
        image: Tensor, text: Tensor, image_mask: Tensor | None, text_mask: Tensor | None, truth: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, smoothing = network(image, text, image_mask, text_mask), options.label_smoothing
        task = task_loss(logits, truth, kind=kind, smoothing=smoothing, class_weights=weights)
        return task, {"task": task}

    recorded = RecordedTerms(network, terms, device) if team.size == 1 else terms

    def loss_of(rows: Tensor, random: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        image_rows, text_rows, truth = _with_truth(train, rows, options.negatives, random, outputs)
        own = team.share(len(image_rows))
        inputs = train.pairs.inputs(own.of(image_rows), own.of(text_rows), device)
        with bfloat16_on_accelerators(device), own.dropping():
            task = own.weighed(recorded(*inputs, moved(own.of(truth), device))[0])
        return task, {"task": task}

    return loss_of


def fusion_loss(
    network: Fusion,
    train: Examples,
    outputs: int,
    *,
    options: FusionOptions,
    device: str,
    class_weights: Tensor | None = None,
    compiled: str = "",
    team: Team = ALONE,
) -> LossOf:
    """Build FrEVL's loss of a fusion: task + weighted contrastive term + weighted norm of the fused features.

    Args:
        network: The fusion.
        train: Training examples.
        outputs: Number of classes; 1 for matching.
        options: Weights of the terms, label smoothing, temperature, mixup (of pooled embeddings only), input dropout,
            and the number of wrong texts per right pair in matching.
        device: Device of the network.
        class_weights: ``(outputs,)`` as in `task_loss`.
        compiled: Mode of ``torch.compile``; empty disables compilation.
        team: The workers that share the batch.
    """
    kind, train = kind_of(train.truth), on_device(train, device)
    weights = None if class_weights is None else class_weights.to(device)
    terms: Callable[..., tuple[Tensor, dict[str, Tensor]]] = partial(_fusion_terms, network, options, kind, weights)
    if compiled:
        terms = torch.compile(terms, mode=compiled, dynamic=False)
    whole = team.share(0) if team.size == 1 and not compiled else None  # the share of a process that trains alone
    recorded = whole and RecordedTerms(network, partial(terms, whole, whole), device)
    pooled = train.pairs.images.shape[1] == train.pairs.texts.shape[1] == 1

    def loss_of(rows: Tensor, random: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        image_rows, text_rows, truth = _with_truth(train, rows, options.negatives, random, outputs)
        # Row numbers instead of flags: counting flags would mean waiting for the accelerator.
        matching = (truth > 0.5).nonzero()[:, 0] if kind == "match" else None
        positives = Positives.of(image_rows, text_rows, matching, padded=is_accelerator(device))
        own = needed = team.share(len(image_rows))
        mix: tuple[float | Tensor, Tensor] | tuple[None, None] = (None, None)
        if pooled and torch.rand((), generator=random).item() < options.mixup_share:
            share, partners = draw_mixup(truth, generator=random, alpha=options.mixup_alpha)
            needed, partners = own.with_partners(partners)
            # A number would be fixed when a step is compiled or recorded, so the share is a tensor there.
            constant = not compiled and not is_accelerator(device)
            mix = (share if constant else moved(torch.tensor(share), device), moved(partners, device))
        inputs = train.pairs.inputs(needed.of(image_rows), needed.of(text_rows), device)
        around = (*positives, needed.of(truth), matching)
        tensors = (*inputs, *(None if one is None else moved(one, device) for one in around), *mix)
        with bfloat16_on_accelerators(device):
            return recorded(*tensors) if recorded else terms(own, needed, *tensors)

    return loss_of


def _fusion_terms(
    network: Fusion,
    options: FusionOptions,
    kind: str,
    weights: Tensor | None,
    own: Share,
    needed: Share,
    image: Tensor,
    text: Tensor,
    image_mask: Tensor | None,
    text_mask: Tensor | None,
    places: Tensor,
    shares: Tensor,
    truth: Tensor,
    matching: Tensor | None,
    mix_share: float | Tensor | None,
    partners: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the terms of `fusion_loss`: tensors in, tensors out, without waiting for a device.

    Inputs and truth are those of the rows needed: this worker's, and those they are mixed with.
    """
    if options.input_dropout > 0:
        with needed.dropping():
            image, text = dropped(image, options.input_dropout), dropped(text, options.input_dropout)
    image, text = network.project(image, text)
    images, texts = (mean_pool(own.first(image), image_mask), mean_pool(own.first(text), text_mask))
    images, texts = own.both_gathered(images, texts, matching)
    positives = Positives(places, shares)
    contrastive = own.counted_once(contrastive_loss(images, texts, positives, temperature=options.temperature))
    if mix_share is not None and partners is not None:
        image, text, truth = mixed(image, text, truth, mix_share, partners)
    with own.dropping():
        fused = network.fuse(image, text, image_mask, text_mask)
        logits, smoothing = network.head(fused), options.label_smoothing
    regularisation = own.weighed(feature_norm_loss(fused))
    task = own.weighed(task_loss(logits, truth, kind=kind, smoothing=smoothing, class_weights=weights))
    total = task + options.contrastive_weight * contrastive + options.regularisation_weight * regularisation
    return total, {"task": task, "contrastive": contrastive, "regularisation": regularisation}


def _with_truth(
    train: Examples, rows: Tensor, negatives: int, random: torch.Generator, outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return image rows, text rows and truth of a batch; in matching, wrong texts are added."""
    pairs = train.pairs
    image_rows, text_rows = pairs.image_rows[rows], pairs.text_rows[rows]
    if isinstance(train.truth, Answers):
        return image_rows, text_rows, train.truth.dense(rows, outputs)
    truth = train.truth[rows]
    wrong_images, wrong_texts = sample_negatives(pairs, rows[truth > 0.5], negatives, random)
    return (
        torch.cat([image_rows, wrong_images]),
        torch.cat([text_rows, wrong_texts]),
        torch.cat([truth, torch.zeros(len(wrong_images))]),
    )
