"""Embedded examples and vectors of names -> the network that classifies. Loads no store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frevl.models.classification.class_network import ClassNetwork
from frevl.models.classification.heads import Features, Head, statistics_of
from frevl.models.inputs import ZScore
from frevl.models.interface import PairNetwork
from frevl.training.classification.choose import Choice, choose_head
from frevl.training.classification.trials import Labelled
from frevl.training.classification.unlabelled import with_unlabelled
from frevl.training.options import Session

__all__ = ["EmbeddedExamples", "FittedSpace", "fit_network"]

_AT_ONCE = 4_096


@dataclass(frozen=True)
class EmbeddedExamples:
    """Images of known classes.

    Attributes:
        images: ``(n, dim)`` float32 embeddings, tokens pooled by their mean.
        labels: ``(n,)`` int64.
        clusters: ``(n,)`` int64; images of one number are not independent.
        weights: ``(n,)`` above 0, or None.
        known: ``(n,)`` bool, which the space of the names has learned from; None: none of them.
    """

    images: Tensor
    labels: Tensor
    clusters: Tensor
    weights: Tensor | None = None
    known: Tensor | None = None


@dataclass(frozen=True)
class FittedSpace:
    """Names of all classes in a space that images share.

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
    """Choose a head, and put it into a network with what it needs.

    Args:
        own: Examples; may be empty where there is a space.
        held: Development images to compare methods on, or None.
        space: Of the names; None without names.
        classes: How many there are.
        method: One of `frevl.training.classification.candidates.METHODS`.
        session: Seed, time limit and progress.
        unlabelled: ``(m, dim)`` embeddings of images without labels to learn from as well, or None.
    """
    image_dim = own.images.shape[1]
    # Without examples nothing reads standardised features.
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
    network = _network(image_dim, classes, choice.head, space, len(own.images))
    network.take(choice.head, statistics, None if space is None else space.vectors, own.images)
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
