"""Fit models for matching: a first stage, a fusion alone, or both in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frevl.errors import PairsError, UsageError, nearest
from frevl.models.fusion import PRESETS
from frevl.models.interface import PairNetwork
from frevl.models.retrieval.first_stage import FirstStage, with_alignment
from frevl.models.retrieval.kernel_alignment import fit_alignment
from frevl.models.retrieval.reranker import Reranked, Standardised, TermWeights
from frevl.runs.batches import EmbeddedPairs
from frevl.terminal import print_progress
from frevl.training.examples import Examples, Prepared
from frevl.training.fitting.fit_model import Fitted, fit_model
from frevl.training.options import FULL_BATCH, ModelOptions, PairwiseOptions, RerankerOptions, Session, TwoTowerOptions
from frevl.training.retrieval.reranker import bank_of, fit_reranker, mine_hard_negatives
from frevl.training.retrieval.score_fusion import DEPTHS, WeightSearch, development_part, search_weights
from frevl.training.retrieval.two_tower import cosine_of, fit_two_tower_ensemble, pooled_items
from frevl.training.run_folder import NOWHERE, Checkpoint

if TYPE_CHECKING:
    from frevl.store.towers import Tower

__all__ = [
    "BANK",
    "FEWEST_IMAGES",
    "FIRST_SHARE",
    "FIRST_STAGES",
    "fit_first_stage",
    "fit_matching",
    "fit_reranked",
    "narrow_towers",
    "right_pairs",
    "with_enough_steps",
    "without_wide",
]

FIRST_STAGES = ("dual", "cosine")

_ALIGNMENT_WEIGHT = 3.0  # in the search for candidates; research/experiments/log.md, "Retrieval"
BANK = 2000  # training items of each modality used to measure hubness
_WIDEST = 4096  # numbers of an image embedding; research/experiments/log.md, "Retrieval"
FEWEST_IMAGES = 6  # with fewer, a fold has no wrong image
# A fusion stays at chance for its first hundred steps: batches grow from 32 to 256 with the number of captions.
_STEPS, _SMALLEST_BATCH = 32, 32
# Shares of a time limit: first stage and cross-fitted first stages; the fusion gets the rest, minus a tenth for
# judging.
FIRST_SHARE, _MINING_SHARE = 0.4, 0.3


def fit_matching(
    model: str,
    data: Prepared,
    options: ModelOptions,
    session: Session,
    *,
    first_stage: str | None,
    checkpoint: Checkpoint = NOWHERE,
    log_file: Path | None = None,
) -> tuple[Fitted[PairNetwork], dict[str, Any] | None]:
    """Fit one model for matching.

    Args:
        model: Name of the model, one of `frevl.training.fitting.fit_model.trainable`.
        data: Training and development examples.
        options: Options of this model; a standalone fusion or mlp uses the batch size of `with_enough_steps`.
        session: Seed, time limit, device and progress.
        first_stage: ``dual`` or ``cosine``: the fusion reranks the best candidates of this first stage. None: the
            fusion stands alone.
        checkpoint: Saves the states of all trainings.
        log_file: Log file of the gradient descent of a standalone network.

    Returns:
        The network, and the record of choices made on development data, if any.

    Raises:
        UsageError: The model does not fit the task, or the encoders have no common space.
        TrainingError: The loss is not finite.
    """
    if first_stage is not None:
        if first_stage not in FIRST_STAGES:
            raise UsageError(f"There is no first stage '{first_stage}'. {nearest(first_stage, FIRST_STAGES)}")
        if model not in PRESETS or not isinstance(options, RerankerOptions):
            raise UsageError(
                f"--first-stage needs a fusion ({', '.join(PRESETS)}) that reranks its candidates, found --model "
                f"{model}"
            )
        first = fit_first_stage(first_stage, data, TwoTowerOptions(), session, share=FIRST_SHARE, checkpoint=checkpoint)
        fitted, search = fit_reranked(model, first, data, options, session, checkpoint)
        best = search.fused
        return replace(fitted, network=fitted.network.weighed(best.weights, best.depth)), search.record()
    if model in FIRST_STAGES:
        return fit_first_stage(model, data, options, session, checkpoint=checkpoint), None
    enough = with_enough_steps(options, len(right_pairs(data.train)))
    alone = fit_model(
        model, data.train, data.dev, 1, enough, session, dev_is_spare=data.dev_is_spare,
        checkpoint=checkpoint.part(model), log_file=log_file,
    )  # fmt: skip
    return alone, None


def with_enough_steps(options: ModelOptions, pairs: int) -> ModelOptions:
    """Choose the batch size of a standalone fusion or mlp, if none is given: 32 steps per epoch (ours).

    It is between 32 and 256 right pairs, and so 256 from 8,192 pairs on. On 1,000 captions, batches of 256 give four
    steps per epoch, and training ended at chance (research/experiments/log.md, "Matching on few captions").
    """
    if not isinstance(options, PairwiseOptions) or options.batch_size is not None:
        return options
    return replace(options, batch_size=max(_SMALLEST_BATCH, min(FULL_BATCH, pairs // _STEPS)))


def fit_first_stage(
    kind: str,
    data: Prepared,
    options: ModelOptions,
    session: Session,
    *,
    share: float = 1.0,
    checkpoint: Checkpoint = NOWHERE,
) -> Fitted[FirstStage]:
    """Train the two-tower network on the right pairs, or build the cosine, which needs no training.

    Args:
        kind: ``dual`` or ``cosine``.
        data: Training examples.
        options: Options of the dual encoder; the cosine has none.
        session: Seed, time limit, device and progress.
        share: Share of the time limit.
        checkpoint: Saves the states of the members.
    """
    if kind == "cosine":
        return Fitted(cosine_of(data.image_towers, data.text_towers), 0.0)
    if not isinstance(options, TwoTowerOptions):
        raise TypeError(f"a dual encoder is not fitted with {type(options).__name__}")
    limit = None if session.time_limit is None else share * session.time_limit
    network, report = fit_two_tower_ensemble(
        right_pairs(data.train), options=options, session=replace(session, time_limit=limit),
        checkpoint=checkpoint.part("first stage"),
    )  # fmt: skip
    return Fitted(network, report.seconds, report)


def fit_reranked(
    preset: str,
    first: Fitted[FirstStage],
    data: Prepared,
    options: RerankerOptions,
    session: Session,
    checkpoint: Checkpoint = NOWHERE,
) -> tuple[Fitted[Reranked], WeightSearch]:
    """Train a fusion on the mistakes of cross-fitted first stages, and measure what it adds to the given first stage.

    The returned network has weight 1 for the fusion and 0 for hubness; `Reranked.weighed` applies the chosen weights.

    Args:
        preset: Preset of the fusion.
        first: The fitted first stage.
        data: Training and development examples.
        options: Options of the reranker.
        session: Seed, time limit, device and progress.
        checkpoint: Saves the states of all trainings.

    Raises:
        PairsError: There are too few images.
        TrainingError: The loss is not finite.
    """
    clock = checkpoint.clock
    started = clock.seconds()
    network = first.network
    pairs, limit = right_pairs(data.train), session.time_limit
    if len(torch.unique(pairs.image_rows)) < FEWEST_IMAGES:
        raise PairsError(
            f"Reranking expects at least {FEWEST_IMAGES} training images with right texts, found "
            f"{len(torch.unique(pairs.image_rows))}; give more pairs, or use --model dual"
        )
    mined = mine_hard_negatives(
        pairs, session=replace(session, time_limit=None if limit is None else _MINING_SHARE * limit),
        first=None if network.trained else network, checkpoint=checkpoint,
    )  # fmt: skip
    torch.manual_seed(session.seed)
    sizes: dict[str, Any] = {**PRESETS[preset], **({} if options.layers is None else {"layers": options.layers})}
    fusion = Standardised(
        fusion={
            "image_dim": pairs.images.shape[2],
            "text_dim": pairs.texts.shape[2],
            "outputs": 1,
            **sizes,
            "dropout": options.dropout,
            "cross_attention": options.cross_attention,
            "product": options.product,
            "difference": options.difference,
        },
        input_dropout=options.input_dropout,
    )
    left = None if limit is None else max(1.0, 0.9 * limit - first.seconds - (clock.seconds() - started))
    report = fit_reranker(
        fusion, pairs, mined, options=options, session=replace(session, time_limit=left),
        title=f"training {preset} to rerank", checkpoint=checkpoint.part("reranker"),
    )  # fmt: skip
    images, texts = pooled_items(pairs.images, pairs.image_mask), pooled_items(pairs.texts, pairs.text_mask)
    alignment = fit_alignment(images, texts, pairs.image_rows, pairs.text_rows, seed=session.seed)
    # The scale of an encoder's own cosine is arbitrary, so only a trained one uses the alignment in the search.
    network = with_alignment(network, alignment, _ALIGNMENT_WEIGHT if network.trained else 0.0)
    banks = bank_of(network, images, texts, pairs.image_rows, pairs.text_rows, BANK, session.seed)
    weights = TermWeights(alignment=network.alignment_weight, fusion=1.0)
    whole = Reranked.of(network, *banks, fusion, weights=weights, depth=max(DEPTHS))
    search = search_weights(whole, development_part(right_pairs(data.dev), session.seed))
    print_progress(_sentence(search), enabled=session.progress)
    return Fitted(whole, first.seconds + clock.seconds() - started, report), search


def narrow_towers(towers: Sequence[Tower]) -> list[Tower]:
    """Return the image towers used for retrieval: those with a width of at most 4,096, if any."""
    return [tower for tower in towers if tower.dim <= _WIDEST] or list(towers)


def without_wide(data: Prepared) -> Prepared:
    """Drop image towers wider than 4,096, if there are others.

    Statistics of many layers and regions, as in `packaged-deep`, drown out what distinguishes images: R@1 on Flickr8k
    fell by 2 to 4 points with them, and training took five times as long.
    """
    kept = narrow_towers(data.image_towers)
    if len(kept) == len(data.image_towers):
        return data
    columns, start = [], 0
    for tower in data.image_towers:
        if tower in kept:
            columns.append(torch.arange(start, start + tower.dim))
        start += tower.dim
    images = data.train.pairs.images[..., torch.cat(columns)]
    left_out = ", ".join(f"{tower.name} ({tower.dim:,} numbers)" for tower in data.image_towers if tower not in kept)
    return replace(
        data,
        train=replace(data.train, pairs=replace(data.train.pairs, images=images)),
        dev=replace(data.dev, pairs=replace(data.dev.pairs, images=images)),
        image_towers=kept,
        notes=[*data.notes, f"Left out as too wide for retrieval: the image tower {left_out}."],
    )


def right_pairs(examples: Examples) -> EmbeddedPairs:
    """Return the right pairs of a matching task."""
    truth = examples.truth
    if not isinstance(truth, Tensor):
        raise UsageError("A first stage is for matching only; for classification choose a fusion, mlp or linear")
    return examples.pairs.select(truth > 0.5)


def _sentence(search: WeightSearch) -> str:
    parts = [
        f"{name} {found.metrics['i2t_r1']:.1f} / {found.metrics['t2i_r1']:.1f}"
        for name, found in (
            ("first stage", search.first),
            ("without hubs", search.without_hubs),
            ("with the fusion", search.fused),
        )
    ]
    return f"R@1 on development data, image to text / text to image: {', '.join(parts)}"
