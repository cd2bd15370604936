"""Fit the classifier network to embedded examples and name vectors. Loads no store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frevl.errors import counted
from frevl.models.classification.class_network import ClassNetwork
from frevl.models.classification.heads import Features, Head, statistics_of
from frevl.models.classification.solvers import solve_unlabelled
from frevl.models.inputs import ZScore
from frevl.models.interface import PairNetwork
from frevl.training.classification.candidates import Candidate
from frevl.training.classification.choose import Choice, choose_head, fitted_head
from frevl.training.classification.trials import Labelled, calibrated_parts
from frevl.training.options import Session
from frevl.training.selection.measures import standard_error

__all__ = ["FEWEST_A_CLASS", "EmbeddedExamples", "FittedSpace", "fit_network", "with_unlabelled"]

_AT_ONCE = 4_096


@dataclass(frozen=True)
class EmbeddedExamples:
    """Images of known classes.

    Attributes:
        images: ``(n, dim)`` float32 embeddings, mean-pooled over tokens.
        labels: ``(n,)`` int64.
        clusters: ``(n,)`` int64; images with the same number are not independent.
        weights: ``(n,)`` weights above 0, or None for equal weights.
        known: ``(n,)`` bool, on which images the names' space was trained; None: on none of them.
    """

    images: Tensor
    labels: Tensor
    clusters: Tensor
    weights: Tensor | None = None
    known: Tensor | None = None


@dataclass(frozen=True)
class FittedSpace:
    """Names of all classes in a space shared with images.

    Attributes:
        vectors: ``(classes, d)`` of unit length.
        network: Maps images into the space.
        scale: The logit of a cosine of 1.
    """

    vectors: Tensor
    network: PairNetwork
    scale: float


def fit_network(
    own: EmbeddedExamples,
    held: EmbeddedExamples | None,
    space: FittedSpace | None,
    classes: int,
    *,
    method: str,
    session: Session,
    unlabelled: Tensor | None = None,
) -> tuple[ClassNetwork, Choice]:
    """Choose a head and build a network around it.

    Args:
        own: Examples; may be empty if there is a space.
        held: Development images for comparing methods, or None.
        space: The space of the names; None without names.
        classes: Number of classes.
        method: One of `frevl.training.classification.candidates.METHODS`.
        session: Seed, time limit and progress.
        unlabelled: ``(m, dim)`` embeddings of unlabelled images to train on as well, or None.
    """
    image_dim = own.images.shape[1]
    # Without examples, nothing uses standardised features.
    statistics = (
        statistics_of(own.images, own.weights)
        if len(own.images)
        else ZScore(torch.zeros(image_dim), torch.ones(image_dim))
    )
    blank = _network(image_dim, classes, Head.zero(classes, image_dim), space, 0)
    blank.take(Head.zero(classes, image_dim), statistics, None if space is None else space.vectors, own.images)

    def featured(images: Tensor) -> Features:
        with torch.no_grad():
            return _joined([blank.features(block) for block in torch.split(images, _AT_ONCE)])

    def labelled(some: EmbeddedExamples) -> Labelled:
        return Labelled(featured(some.images), some.labels, some.clusters, some.weights, some.known)

    examples, dev = labelled(own), None if held is None else labelled(held)
    names = 0.0 if space is None else space.scale
    choice = choose_head(examples, dev, classes, method=method, names=names, session=session)
    if unlabelled is not None:
        others = featured(unlabelled)
        choice = with_unlabelled(choice, examples, dev, others, classes, names=names)
    head, kept = choice.head.compact(len(own.images))
    network = _network(image_dim, classes, head, space, len(kept))
    network.take(head, statistics, None if space is None else space.vectors, own.images[kept])
    return network.eval(), choice


def _network(image_dim: int, classes: int, head: Head, space: FittedSpace | None, examples: int) -> ClassNetwork:
    return ClassNetwork(
        image_dim=image_dim,
        outputs=classes,
        name_dim=0 if space is None else space.vectors.shape[1],
        names=head.names,
        examples=examples if head.memories else 0,
        memories=[{"width": one.width, "on_unit": one.on_unit} for one in head.memories],
        space=None if space is None else space.network,
        linear=head.linear,
    )


def _joined(blocks: Sequence[Features]) -> Features:
    unit, standard = (torch.cat([getattr(one, name) for one in blocks]).clone() for name in ("unit", "standard"))
    cosines = [one.cosines for one in blocks if one.cosines is not None]
    return Features(unit, standard, torch.cat(cosines).clone() if cosines else None)


FEWEST_A_CLASS = 8
"""Minimum number of unlabelled images per class, on average. With two, ImageNet lost up to 11 points."""


def with_unlabelled(
    choice: Choice, examples: Labelled, dev: Labelled | None, unlabelled: Features, classes: int, *, names: float
) -> Choice:
    """Average the chosen head with class Gaussians that were also fitted to unlabelled images.

    The average is used if it makes held-out examples (or development images) likelier and no fewer of them right beyond
    one standard error. If nothing could be held out (one example per class) it is used without names, because it gained
    6 to 12 points there on three sets, but not with names, where it lost (research/experiments/log.md).

    Args:
        choice: The choice made from labelled images alone.
        examples: The labelled images.
        dev: Development images, or None.
        unlabelled: Features of the unlabelled images.
        classes: Number of classes.
        names: Scale of the cosines with the names; 0 without names.

    Returns:
        The new choice, or the same one with a note that states why.
    """
    count = len(unlabelled.standard)
    if count < FEWEST_A_CLASS * classes:
        return _declined(choice, f"they are {count:,}, fewer than {FEWEST_A_CLASS} for each of {classes:,} classes")
    if not len(examples):
        return _declined(choice, "there are no examples to compare by")

    def both(kept: Labelled, head: Head, features: Features) -> tuple[Tensor, Tensor]:
        """Return the ``(n, classes)`` logits of the chosen head, and of its average with the new one."""
        own = head.logits(features, kept.features)
        other = _head(kept, head, unlabelled, classes)
        return own, (own + other.logits(features, None)) / 2

    head = choice.head
    if not len(choice.held_out[1]):
        if names:
            return _declined(choice, "beside names it has to be compared, and nothing could be held out")
        merged = head.scaled(0.5).plus(_head(examples, head, unlabelled, classes).scaled(0.5))
        return replace(choice, head=merged, method=f"{choice.method} + unlabelled", notes=[*choice.notes, _note(count)])
    parts = []
    for fit_on, predicted in choice.splits or [(torch.arange(len(examples)), None)]:
        kept = examples.select(fit_on)
        features = dev.features if predicted is None and dev is not None else examples.features.select(
            fit_on if predicted is None else predicted
        )  # fmt: skip
        parts.append(both(kept, fitted_head(choice.members, kept, classes, names), features))
    before, after = (torch.cat([part[side] for part in parts]) for side in (0, 1))
    truth = choice.truth
    if truth is None:
        raise ValueError("a choice with held-out images knows their labels")
    old, new = (
        calibrated_parts(Candidate(name, None, anchored=True), (logits, torch.zeros_like(logits)), truth, 0.0)
        for name, logits in (("labelled", before), ("unlabelled", after))
    )
    gain = float((old.losses - new.losses).mean())
    fewer = float((old.hits - new.hits).mean())
    if gain <= 0 or fewer > standard_error(old.hits - new.hits, truth.clusters):
        return _declined(choice, f"they made {choice.compared_on} no likelier")
    scale = choice.scale * new.members[0][1][0]
    merged = head.scaled(0.5 * scale).plus(_head(examples, head, unlabelled, classes).scaled(0.5 * scale))
    rows = [*choice.rows, {
        "name": f"{choice.method} + unlabelled", "metric": 100 * float(new.hits.mean()),
        "log_loss": float(new.losses.mean()),
    }]  # fmt: skip
    return replace(
        choice, head=merged, method=f"{choice.method} + unlabelled", rows=rows,
        held_out=(choice.scale * new.logits, truth.labels), notes=[*choice.notes, _note(count)],
    )  # fmt: skip


def _head(kept: Labelled, head: Head, unlabelled: Features, classes: int) -> Head:
    guessed = head.logits(unlabelled, kept.features).softmax(dim=1)
    return solve_unlabelled(kept.features, kept.labels, classes, unlabelled=unlabelled.standard, guessed=guessed)


def _note(count: int) -> str:
    return (
        f"{counted(count, 'image')} of the store served without labels; figures on images among them do not hold for "
        "new ones."
    )


def _declined(choice: Choice, why: str) -> Choice:
    return replace(choice, notes=[*choice.notes, f"Unlabelled images were not used: {why}."])
