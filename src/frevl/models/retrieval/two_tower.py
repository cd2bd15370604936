"""The first stage of retrieval: one vector an image, one vector a text, and their dot product. Pure torch.

A `Dual` has learned projections and works with any two encoders; a `Cosine` has none and needs encoders with a common
space (CLIP and its kind). Both give the score of a pair on the road of every network, and vectors for search. Either
may hold a kernel alignment (`frevl.models.retrieval.kernel_alignment`) beside its own vectors::

    logit = own scale * own cosine + alignment weight * cosine of the alignment = scale * cosine of the joined vectors
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frevl.models.inputs import masked_mean, stored_in_half
from frevl.models.retrieval.kernel_alignment import Alignment

__all__ = ["LARGEST_SCALE", "Cosine", "Dual", "FirstStage", "Projection", "part_scales", "with_alignment"]

LARGEST_SCALE = 30.0
"""Bound of a learned logit scale (one over the temperature): without it small sets are learnt by heart."""


class Projection(nn.Module):
    """From frozen embeddings of one modality to unit vectors: a two-layer network beside a linear map (ours).

    Embeddings are standardised per dimension with training statistics first; see `standardise`.
    """

    def __init__(self, *, inputs: int, hidden: int, width: int, input_dropout: float, dropout: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(inputs), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(inputs), requires_grad=False)
        self.input_dropout = nn.Dropout(input_dropout)
        self.inner = nn.Linear(inputs, hidden)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(hidden, width)
        self.linear = nn.Linear(inputs, width)
        stored_in_half(self)

    def standardise(self, embeddings: Tensor) -> None:
        """Take mean and deviation of ``(n, inputs)`` training embeddings."""
        deviation, mean = torch.std_mean(embeddings.float(), dim=0, correction=0)
        self.mean.copy_(mean)
        # A dimension that never varies says nothing; dividing by its zero deviation would ruin all others.
        self.scale.copy_(deviation.where(deviation > 1e-6, torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        """Turn ``(n, inputs)`` into ``(n, width)`` unit vectors."""
        x = self.input_dropout((x - self.mean) / self.scale)
        return F.normalize((self.linear(x) + self.outer(self.dropout(F.gelu(self.inner(x))))).float(), dim=1)


class Dual(nn.Module):
    """Two projections into one space, trained with symmetric InfoNCE (`frevl.training.retrieval.two_tower`).

    With several members the vectors are put side by side, each over the root of their number, so that the dot
    product is the mean of the members' cosines and an ensemble is searched like a single one.
    """

    def __init__(
        self,
        *,
        image_dim: int,
        text_dim: int,
        hidden: int = 2048,
        width: int = 1024,
        members: int = 1,
        input_dropout: float = 0.3,
        dropout: float = 0.5,
        alignment: dict[str, Any] | None = None,
        alignment_weight: float = 0.0,
    ) -> None:
        """Build the network.

        Args:
            image_dim: Width of an image embedding.
            text_dim: Width of a text embedding.
            hidden: Width inside each projection.
            width: Width of a member's vectors.
            members: How many pairs of projections are averaged.
            input_dropout: Probability of dropping a dimension of an embedding while training.
            dropout: The same inside the projections.
            alignment: Arguments of the `Alignment` beside the projections, or None.
            alignment_weight: Of its cosine in the logit.
        """
        super().__init__()
        self.settings: dict[str, Any] = {
            "image_dim": image_dim,
            "text_dim": text_dim,
            "hidden": hidden,
            "width": width,
            "members": members,
            "input_dropout": input_dropout,
            "dropout": dropout,
            "alignment": alignment,
            "alignment_weight": alignment_weight,
        }
        shape: dict[str, Any] = {"hidden": hidden, "width": width, "input_dropout": input_dropout, "dropout": dropout}
        self.image = nn.ModuleList(Projection(inputs=image_dim, **shape) for _ in range(members))
        self.text = nn.ModuleList(Projection(inputs=text_dim, **shape) for _ in range(members))
        self.log_scale = nn.Parameter(torch.full((), math.log(1 / 0.07)))
        self.alignment = None if alignment is None else Alignment(**alignment)
        self.alignment_weight = alignment_weight

    @classmethod
    def of(cls, networks: list[Dual]) -> Dual:
        """Put trained networks of the same settings together as the members of one."""
        settings = {**networks[0].settings, "members": sum(one.settings["members"] for one in networks)}
        dual = cls(**settings)
        dual.image = nn.ModuleList(member for one in networks for member in one.image)
        dual.text = nn.ModuleList(member for one in networks for member in one.text)
        with torch.no_grad():
            dual.log_scale.copy_(torch.stack([one.log_scale for one in networks]).mean())
        return dual.eval()

    @property
    def own_scale(self) -> Tensor:
        """The learned logit scale, in (0, 30]."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    @property
    def scale(self) -> Tensor:
        """The logit scale of the joined vectors."""
        return self.own_scale + self.alignment_weight

    def image_parts(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """``(n, members * width + rank)``: own unit vectors, and those of the alignment beside them."""
        pooled = _pooled(image, image_mask)
        own = _side_by_side(self.image, pooled)
        return own if self.alignment is None else torch.cat([own, self.alignment.image_vectors(pooled)], dim=1)

    def text_parts(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """The same for texts."""
        pooled = _pooled(text, text_mask)
        own = _side_by_side(self.text, pooled)
        return own if self.alignment is None else torch.cat([own, self.alignment.text_vectors(pooled)], dim=1)

    def image_vectors(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """``(n, d)`` unit vectors of ``(n, image_dim)`` or ``(n, Nv, image_dim)`` embeddings."""
        return _joined(self, self.image_parts(image, image_mask))

    def text_vectors(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """``(n, d)`` unit vectors of ``(n, text_dim)`` or ``(n, Nt, text_dim)`` embeddings."""
        return _joined(self, self.text_parts(text, text_mask))

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, 1)``: scaled cosines; the shapes are those of `Fusion.forward`."""
        return self.of_vectors(self.image_vectors(image, image_mask), self.text_vectors(text, text_mask))

    def of_vectors(self, image: Tensor, text: Tensor) -> Tensor:
        """Return the ``(n, 1)`` logits of ``(n, d)`` vectors."""
        return self.scale * _dots(image, text)


class Cosine(nn.Module):
    """The cosine in the common space of CLIP-like encoders, with nothing to train.

    Several encoders with a common space are averaged; columns of encoders without one are passed over.
    """

    def __init__(
        self,
        *,
        spaces: list[list[int]],
        scale: float = 1.0,
        bias: float = 0.0,
        alignment: dict[str, Any] | None = None,
        alignment_weight: float = 0.0,
    ) -> None:
        """Build the network.

        Args:
            spaces: For each common space ``[image start, image stop, text start, text stop]``: its columns in the
                concatenated embeddings.
            scale: Logit scale of the encoder.
            bias: Its logit bias (SigLIP).
            alignment: Arguments of the `Alignment` beside it, or None.
            alignment_weight: Of its cosine in the logit.
        """
        super().__init__()
        self.settings: dict[str, Any] = {
            "spaces": spaces,
            "scale": scale,
            "bias": bias,
            "alignment": alignment,
            "alignment_weight": alignment_weight,
        }
        self.logit_scale = nn.Parameter(torch.tensor(float(scale)), requires_grad=False)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=False)
        self.spaces = spaces
        self.alignment = None if alignment is None else Alignment(**alignment)
        self.alignment_weight = alignment_weight

    @property
    def own_scale(self) -> Tensor:
        """The encoder's logit scale."""
        return self.logit_scale

    @property
    def scale(self) -> Tensor:
        """The logit scale of the joined vectors."""
        return self.own_scale + self.alignment_weight

    def image_parts(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """``(n, d + rank)``: own unit vectors, ``d`` the widths of the common spaces, and those of the alignment."""
        x = _pooled(image, image_mask)
        own = _normalised([x[:, start:stop] for start, stop, _, _ in self.spaces])
        return own if self.alignment is None else torch.cat([own, self.alignment.image_vectors(x)], dim=1)

    def text_parts(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """The same for texts."""
        x = _pooled(text, text_mask)
        own = _normalised([x[:, start:stop] for _, _, start, stop in self.spaces])
        return own if self.alignment is None else torch.cat([own, self.alignment.text_vectors(x)], dim=1)

    def image_vectors(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """``(n, d)`` unit vectors."""
        return _joined(self, self.image_parts(image, image_mask))

    def text_vectors(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """The same for texts."""
        return _joined(self, self.text_parts(text, text_mask))

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, 1)``: scaled cosines plus bias; the shapes are those of `Fusion.forward`."""
        return self.of_vectors(self.image_vectors(image, image_mask), self.text_vectors(text, text_mask))

    def of_vectors(self, image: Tensor, text: Tensor) -> Tensor:
        """Return the ``(n, 1)`` logits of ``(n, d)`` vectors."""
        return self.scale * _dots(image, text) + self.bias


FirstStage = Dual | Cosine


def with_alignment(first: FirstStage, alignment: Alignment, weight: float) -> FirstStage:
    """Return the same first stage with a fitted alignment beside its own vectors.

    Args:
        first: Without one.
        alignment: Of the same embeddings.
        weight: Of its cosine in the logit; with 0 it is there for `part_scales` only.
    """
    settings = {**first.settings, "alignment": alignment.settings, "alignment_weight": weight}
    joined: FirstStage = type(first)(**settings)
    state = {**first.state_dict(), **{f"alignment.{name}": value for name, value in alignment.state_dict().items()}}
    joined.load_state_dict(state)
    return joined.eval()


def part_scales(first: FirstStage, weight: float, width: int) -> Tensor:
    """``(width,)``: what each number of the parts weighs in a logit, the alignment's cosine weighing ``weight``."""
    rank = 0 if first.alignment is None else int(first.alignment.settings["rank"])
    own = first.own_scale.expand(width - rank)
    return torch.cat([own, own.new_full((rank,), weight)])


def _joined(first: FirstStage, parts: Tensor) -> Tensor:
    """Unit vectors whose dot product times the scale is the logit, from the parts."""
    if first.alignment is None:
        return parts
    if first.alignment_weight == 0:
        return parts[:, : parts.shape[1] - int(first.alignment.settings["rank"])]
    return parts * (part_scales(first, first.alignment_weight, parts.shape[1]) / first.scale).sqrt()


def _side_by_side(projections: nn.ModuleList, pooled: Tensor) -> Tensor:
    return torch.cat([projection(pooled) for projection in projections], dim=1) / math.sqrt(len(projections))


def _normalised(parts: list[Tensor]) -> Tensor:
    return torch.cat([F.normalize(part.float(), dim=1) for part in parts], dim=1) / math.sqrt(len(parts))


def _dots(image: Tensor, text: Tensor) -> Tensor:
    return (image * text).sum(dim=1, keepdim=True)


def _pooled(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens if tokens.dim() == 2 else masked_mean(tokens, mask)
