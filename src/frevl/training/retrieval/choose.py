"""``--model auto`` for matching: compare first stages, reranking and baselines on development data.

Candidates are compared by the mean of six recalls (at 1, 5 and 10, both directions). Among those whose paired
difference from the best is within one standard error, by image, or below 0.2 points, the simplest is chosen. The
procedure is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from frevl.models.interface import PairNetwork
from frevl.models.retrieval.first_stage import FirstStage
from frevl.models.retrieval.reranker import Reranked
from frevl.models.retrieval.two_tower import Cosine
from frevl.runs.batches import EmbeddedPairs, grid_scorer
from frevl.terminal import Steps, print_progress
from frevl.training.examples import Examples, Prepared
from frevl.training.fitting.fit_model import Fitted, fit_model
from frevl.training.options import AutoOptions, RerankerOptions, Session, TwoTowerOptions, options_for
from frevl.training.retrieval.adapt import Adapted, adapt_cosine, full_recall, measurably_worse
from frevl.training.retrieval.fit import (
    FEWEST_IMAGES,
    FIRST_SHARE,
    fit_first_stage,
    fit_reranked,
    right_pairs,
    with_enough_steps,
)
from frevl.training.retrieval.score_fusion import WeightSearch, development_part, recall_by_image, search_alone
from frevl.training.retrieval.two_tower import has_common_space
from frevl.training.run_folder import NOWHERE, Checkpoint
from frevl.training.selection.candidates import steps_of
from frevl.training.selection.measures import one_standard_error, table_row

__all__ = ["choose_matching"]

_DEFAULT_LIMIT = 1100.0  # seconds, if no time limit is given
_BASELINE_SHARE = 0.05  # of the time limit, for each of linear and mlp
_FUSION = "tiny"
_LINEAR_PAIRS = 5000
_WORTH = 0.002  # a smaller gain in mean recall is not worth another component, however certain
_SAMPLE = 100  # development images for comparing linear and mlp, which score every image with every text


N_co = TypeVar("N_co", bound=PairNetwork, covariant=True)


@dataclass(frozen=True)
class _Tried(Generic[N_co]):
    """A candidate with its ``(images,)`` mean recall on every development image, or on a sample of them."""

    name: str
    hits: Tensor
    fitted: Fitted[N_co]
    fit_seconds: float
    seeds: int = 1


def choose_matching(
    data: Prepared, options: AutoOptions, session: Session, checkpoint: Checkpoint = NOWHERE
) -> tuple[Fitted[PairNetwork], dict[str, Any]]:
    """Fit and compare all models for matching, and choose the simplest of the best.

    Args:
        data: Training and development examples.
        options: Options of ``auto``.
        session: Seed, device and progress, and a time limit for everything together.
        checkpoint: Saves the states of all trainings.

    Returns:
        The chosen network, and the table with reasons for the run's record.

    Raises:
        PairsError: There are too few images.
        TrainingError: A loss is not finite.
    """
    limit = session.time_limit or _DEFAULT_LIMIT
    limited = replace(session, time_limit=limit * (1 - 2 * _BASELINE_SHARE))
    first_stages: list[_Tried[FirstStage]] = []
    left_out: list[dict[str, Any]] = []
    dev = development_part(right_pairs(data.dev), session.seed)
    print_progress(f"choosing on {len(torch.unique(dev.image_rows)):,} development images", enabled=session.progress)
    adapted: Adapted | None = None
    steps = steps_of(("cosine", "dual", "reranking", "linear", "mlp"), checkpoint, limit)
    for kind in ("cosine", "dual"):
        steps.begin(kind)
        if kind == "cosine" and not has_common_space(data.image_towers, data.text_towers):
            left_out.append({"name": kind, "reason": "the encoders have no common space of image and text"})
            continue
        fitted = fit_first_stage(kind, data, TwoTowerOptions(), limited, share=FIRST_SHARE, checkpoint=checkpoint)
        alone = search_alone(fitted.network, dev)
        first_stages.append(_Tried(kind, alone.by_image(alone.first), fitted, fitted.seconds))
        _say(first_stages[-1], session)
    tried: list[_Tried[PairNetwork]] = [*first_stages]
    if first_stages[0].name == "cosine":
        plain = cast("Cosine", first_stages[0].fitted.network)
        started = checkpoint.clock.seconds()
        adapted = adapt_cosine(plain, data.train, session.seed)
        seconds = checkpoint.clock.seconds() - started  # here, because every worker must call it
        if adapted is not None and adapted.network is not plain:
            left_out.append(_adapted(adapted, first_stages, tried, dev, seconds))
            _say(tried[0], session)
    steps.begin("reranking")
    # CPUs differ in the last bits, so workers that chose independently might rerank different candidates.
    first = session.team.agreed(max(first_stages, key=lambda one: float(one.hits.mean())))
    search: WeightSearch | None = None
    if len(torch.unique(data.train.pairs.image_rows)) < FEWEST_IMAGES:
        left_out.append({"name": "reranking", "reason": f"needs at least {FEWEST_IMAGES} training images"})
    else:
        reranked, search = fit_reranked(
            _FUSION, first.fitted, data, options.for_candidate(RerankerOptions), limited, checkpoint
        )
        tried += _reranked(first, reranked, search)
        for one in tried[-3:]:
            _say(one, session)
    images = torch.arange(len(tried[0].hits))
    winner, reason, rows = one_standard_error(tried, images, worthwhile=_WORTH)
    winner, reason, more = _against_baselines(
        winner, reason, data, options, replace(session, time_limit=limit * _BASELINE_SHARE), checkpoint, steps
    )
    print_progress(f"chosen: {winner.name}: {reason}", enabled=session.progress)
    record = {
        "chosen": winner.name,
        "reason": reason,
        "judged_on": f"{len(tried[0].hits):,} development images with their texts; linear and mlp on "
        f"{min(_SAMPLE, len(tried[0].hits)):,} of them",
        "candidates": rows + more + left_out,
        "adapted": None if adapted is None else adapted.record(),
        "blend": None if search is None else search.record(),
    }
    return winner.fitted, record


def _adapted(
    adapted: Adapted,
    first_stages: list[_Tried[FirstStage]],
    tried: list[_Tried[PairNetwork]],
    dev: EmbeddedPairs,
    seconds: float,
) -> dict[str, Any]:
    """Replace the cosine by the adapted cosine, unless that is measurably worse on development data.

    Cross-validation over the training images has already compared the two, on more images than the development data.

    Returns:
        The table row of the candidate that is left out.
    """
    plain, hits = first_stages[0], full_recall(adapted.network, dev)
    if measurably_worse(hits, plain.hits):
        behind = 100 * float((plain.hits - hits).mean())
        reason = f"better by cross-validation, but {behind:.1f} points behind the cosine on development images"
        return {"name": adapted.name, "reason": reason}
    alone = search_alone(adapted.first, dev)
    first_stages[0] = _Tried(adapted.name, alone.by_image(alone.first), Fitted(adapted.first, seconds), seconds)
    tried[0] = _Tried(adapted.name, hits, Fitted(adapted.network, seconds), seconds)
    return {"name": plain.name, "reason": f"behind {adapted.name} on {adapted.judged_on}"}


def _reranked(first: _Tried[FirstStage], reranked: Fitted[Reranked], search: WeightSearch) -> list[_Tried[Reranked]]:
    """Return the reranking variants, simplest first."""
    network = reranked.network
    steps = (
        (f"{first.name} with alignment", search.first, first.fit_seconds),
        (f"{first.name} with alignment and hubness", search.without_hubs, first.fit_seconds),
        (f"{first.name} with alignment, hubness and {_FUSION}", search.fused, reranked.seconds),
    )
    return [
        _Tried(name, search.by_image(found), replace(reranked, network=network.weighed(found.weights, found.depth)), s)
        for name, found, s in steps
    ]


def _against_baselines(
    winner: _Tried[PairNetwork],
    reason: str,
    data: Prepared,
    options: AutoOptions,
    session: Session,
    checkpoint: Checkpoint,
    steps: Steps,
) -> tuple[_Tried[PairNetwork], str, list[dict[str, Any]]]:
    """Fit linear and mlp; one of them is chosen if it is better by more than one standard error."""
    dev, quiet = development_part(right_pairs(data.dev), session.seed), replace(session, progress=False)
    images = torch.unique(dev.image_rows)[:_SAMPLE]
    sample = dev.select(torch.isin(dev.image_rows, images))
    winner = replace(winner, hits=_by_image(winner.fitted, sample))
    rows = []
    for name in ("linear", "mlp"):
        steps.begin(name)
        started = checkpoint.clock.seconds()
        train = _some(data.train, session.seed) if name == "linear" else data.train
        own = with_enough_steps(options.for_candidate(options_for(name)), len(right_pairs(train)))
        fitted = fit_model(name, train, data.dev, 1, own, quiet, dev_is_spare=False, checkpoint=checkpoint.part(name))
        one = _Tried(name, _by_image(fitted, sample), fitted, checkpoint.clock.seconds() - started)
        row = table_row(one, winner, torch.arange(len(images)))
        rows.append({**row, "images": len(images), "compared_with": winner.name})
        _say(one, session)
        if row["behind_best"] < -row["standard_error_of_difference"]:
            reason = f"better than {winner.name} by more than one standard error"
            winner = one
    return winner, reason, rows


def _some(train: Examples, seed: int) -> Examples:
    """Return at most 5,000 of the pairs, because the linear probe passes over them a hundred times."""
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:_LINEAR_PAIRS]
    return train.select(rows.sort().values)


def _by_image(fitted: Fitted[PairNetwork], sample: EmbeddedPairs) -> Tensor:
    """Return the mean of the six hits of each image and its texts, ``(images,)``, scoring all pairs."""
    image_ids, image_at = torch.unique(sample.image_rows, return_inverse=True)
    text_ids, text_at = torch.unique(sample.text_rows, return_inverse=True)
    right = torch.zeros(len(image_ids), len(text_ids), dtype=torch.bool)
    right[image_at, text_at] = True
    with torch.inference_mode():
        logits = grid_scorer(fitted.network, sample.items(image_ids, text_ids), 1024, "cpu")
        numbers = torch.arange(right.numel()).split(4096)  # type: ignore[no-untyped-call]
        scores = torch.cat([logits(part // len(text_ids), part % len(text_ids))[:, 0] for part in numbers])
    return recall_by_image(scores.view(right.shape), right)


def _say(one: _Tried[PairNetwork], session: Session) -> None:
    print_progress(
        f"  {one.name:<28} {100 * float(one.hits.mean()):6.2f} % mean recall  {one.fit_seconds:6.1f} s",
        enabled=session.progress,
    )
