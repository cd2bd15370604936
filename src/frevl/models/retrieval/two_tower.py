"""The two first stages: `TwoTower` with learned projections, and `Cosine` for encoders with a common space.

A `TwoTower` (also: dual encoder) works with any two encoders; a `Cosine` learns nothing and needs encoders with a
common space, such as CLIP. Pure torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frevl.models.inputs import ZScore, frozen, stored_in_half
from frevl.models.retrieval.first_stage import FirstStage

__all__ = ["LARGEST_SCALE", "Cosine", "Projection", "TwoTower"]

LARGEST_SCALE = 30.0
"""Upper bound of a learned logit scale (one over the temperature); without it a network memorises small sets."""


class Projection(nn.Module):
    """Maps frozen embeddings of one modality to unit vectors: a two-layer network plus a linear map (ours).

    Embeddings are standardised per dimension with training statistics first; see `standardise`.
    """

    def __init__(self, *, inputs: int, hidden: int, width: int, input_dropout: float, dropout: float) -> None:
        super().__init__()
        self.mean, self.scale = frozen(inputs), frozen(inputs, fill=1.0)
        self.input_dropout = nn.Dropout(input_dropout)
        self.inner = nn.Linear(inputs, hidden)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(hidden, width)
        self.linear = nn.Linear(inputs, width)
        stored_in_half(self)

    @property
    def statistics(self) -> ZScore:
        """Mean and deviation of the training embeddings."""
        return ZScore(self.mean, self.scale)

    def standardise(self, embeddings: Tensor) -> None:
        """Measure mean and deviation of ``(n, inputs)`` training embeddings."""
        self.statistics.fit(embeddings.float())

    def turn(self, by: Tensor) -> None:
        """Multiply the output, before normalisation, by ``(width, width)``, which both last layers absorb."""
        for layer in (self.linear, self.outer):
            layer.weight.copy_((by.double() @ layer.weight.double()).float())
            layer.bias.copy_((by.double() @ layer.bias.double()).float())

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, inputs)`` to ``(n, width)`` unit vectors."""
        x = self.input_dropout(self.statistics(x))
        return F.normalize((self.linear(x) + self.outer(self.dropout(F.gelu(self.inner(x))))).float(), dim=1)


class TwoTower(FirstStage):
    """Two projections into one space, trained with symmetric InfoNCE (`frevl.training.retrieval.two_tower`).

    The vectors of several members are concatenated, each divided by the root of their number, so that the dot product
    is the mean of the members' cosines and an ensemble is searched like a single network. With ``stored_width`` they
    are projected to fewer numbers (`narrowed`), and the projections, again of unit length, are compared.
    """

    key = "dual"

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
        stored_width: int | None = None,
    ) -> None:
        """Build the network.

        Args:
            image_dim: Width of an image embedding.
            text_dim: Width of a text embedding.
            hidden: Width inside each projection.
            width: Width of a member's vectors.
            members: Number of pairs of projections, whose cosines are averaged.
            input_dropout: Probability of dropping a dimension of an embedding in training.
            dropout: Probability of dropping a hidden unit inside the projections in training.
            alignment: Arguments of the additional `Alignment`, or None.
            alignment_weight: Weight of the alignment's cosine in the logit.
            stored_width: Width to which the joined vectors are projected; None leaves them unprojected.
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
            **({} if stored_width is None else {"stored_width": stored_width}),  # older runs have no such key
        }
        shape: dict[str, Any] = {"hidden": hidden, "width": width, "input_dropout": input_dropout, "dropout": dropout}
        self.image = nn.ModuleList(Projection(inputs=image_dim, **shape) for _ in range(members))
        self.text = nn.ModuleList(Projection(inputs=text_dim, **shape) for _ in range(members))
        self.log_scale = nn.Parameter(torch.full((), math.log(1 / 0.07)))
        maps = [] if stored_width is None else [frozen(stored_width, members * width) for _ in range(2)]
        self.stored = nn.ParameterList(maps)  # of images, of texts
        stored_in_half(self.stored)
        self._align(alignment, alignment_weight)

    @classmethod
    def of(cls, networks: list[TwoTower]) -> TwoTower:
        """Combine trained networks with the same settings as the members of one."""
        settings = {**networks[0].settings, "members": sum(one.settings["members"] for one in networks)}
        whole = cls(**settings)
        whole.image = nn.ModuleList(member for one in networks for member in one.image)
        whole.text = nn.ModuleList(member for one in networks for member in one.text)
        with torch.no_grad():
            whole.log_scale.copy_(torch.stack([one.log_scale for one in networks]).mean())
        return whole.eval()

    @property
    def own_scale(self) -> Tensor:
        """The learned logit scale, in (0, 30]."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def narrowed(self, by: Tensor) -> TwoTower:
        """Return the same network with its joined vectors projected.

        Args:
            by: ``(stored width, members * width)`` with orthonormal rows; the same for images and texts, so that the
                dot product loses only what lies outside their span.
        """
        twin = deepcopy(self)
        twin.settings = {**self.settings, "stored_width": len(by)}
        twin.stored = nn.ParameterList(nn.Parameter(by.clone(), requires_grad=False) for _ in range(2))
        stored_in_half(twin.stored)
        return twin.eval()

    def own_image_vectors(self, image: Tensor) -> Tensor:
        """Return ``(n, members * width)`` unit vectors, or ``(n, stored width)``."""
        joined = _side_by_side(self.image, image)
        return F.normalize(joined @ self.stored[0].T, dim=1) if len(self.stored) else joined

    def own_text_vectors(self, text: Tensor) -> Tensor:
        """Return ``(n, members * width)`` unit vectors, or ``(n, stored width)``."""
        joined = _side_by_side(self.text, text)
        return F.normalize(joined @ self.stored[1].T, dim=1) if len(self.stored) else joined

    @property
    def transformable_texts(self) -> TwoTower | None:
        """This network, unless it has an alignment, which has no last linear map to transform."""
        return None if self.alignment is not None and self.alignment_weight else self

    @property
    def text_blocks(self) -> list[int]:
        """One width per member; if the joined vectors are projected, one for all."""
        if len(self.stored):
            return [len(self.stored[1])]
        return [int(self.settings["width"])] * int(self.settings["members"])

    def with_text_maps(self, maps: Sequence[Tensor]) -> TwoTower:
        """Fold the maps into the last layers of the text projections, or into the projection after them."""
        twin = deepcopy(self)
        with torch.no_grad():
            if len(twin.stored):
                twin.stored[1].copy_((maps[0].double() @ twin.stored[1].double()).float())
                return twin.eval()
            for member, turn in zip(twin.text, maps, strict=True):
                if isinstance(member, Projection):
                    member.turn(turn)
        return twin.eval()

    def input_statistics(self) -> tuple[ZScore, ZScore] | None:
        """Return the statistics of the first member; all members were trained on the same items."""
        image, text = self.image[0], self.text[0]
        if isinstance(image, Projection) and isinstance(text, Projection):
            return image.statistics, text.statistics
        return None


class Cosine(FirstStage):
    """The cosine in the common space of CLIP-like encoders, with nothing to train.

    Several encoders with a common space are averaged; the columns of encoders without one are ignored.
    """

    key = "cosine"
    trained: ClassVar[bool] = False

    def __init__(
        self,
        *,
        spaces: list[list[int]],
        scale: float = 1.0,
        bias: float = 0.0,
        alignment: dict[str, Any] | None = None,
        alignment_weight: float = 0.0,
        text_maps: bool = False,
    ) -> None:
        """Build the network.

        Args:
            spaces: ``[image start, image stop, text start, text stop]`` of each common space: its columns in the
                concatenated embeddings.
            scale: Logit scale of the encoder.
            bias: Logit bias of the encoder (SigLIP).
            alignment: Arguments of the additional `Alignment`, or None.
            alignment_weight: Weight of the alignment's cosine in the logit.
            text_maps: Whether the texts of every space are multiplied by a matrix (`with_text_maps`).
        """
        super().__init__()
        self.settings: dict[str, Any] = {
            "spaces": spaces,
            "scale": scale,
            "bias": bias,
            "alignment": alignment,
            "alignment_weight": alignment_weight,
            **({"text_maps": True} if text_maps else {}),  # a run without them keeps its saved settings
        }
        self.logit_scale, self.bias = frozen(fill=float(scale)), frozen(fill=float(bias))
        self.spaces = spaces
        self.text_maps = nn.ParameterList(frozen(one, one) for one in self.text_blocks if text_maps)
        self._align(alignment, alignment_weight)

    @property
    def own_scale(self) -> Tensor:
        """The encoder's logit scale."""
        return self.logit_scale

    def own_image_vectors(self, image: Tensor) -> Tensor:
        """Return ``(n, d)`` unit vectors; ``d`` is the sum of the widths of the common spaces."""
        return _normalised([image[:, start:stop] for start, stop, _, _ in self.spaces])

    def own_text_vectors(self, text: Tensor) -> Tensor:
        """Return ``(n, d)`` unit vectors."""
        parts = [text[:, start:stop] for _, _, start, stop in self.spaces]
        maps: Sequence[Tensor] = list(self.text_maps)
        return _normalised([part.float() @ turn.T for part, turn in zip(parts, maps, strict=True)] if maps else parts)

    @property
    def transformable_texts(self) -> Cosine:
        """This network, whose texts can be transformed by maps."""
        return self

    @property
    def text_blocks(self) -> list[int]:
        """One width per common space."""
        return [stop - start for _, _, start, stop in self.spaces]

    def with_text_maps(self, maps: Sequence[Tensor]) -> Cosine:
        """Store the maps, or multiply them with those already stored."""
        twin = type(self)(**{**self.settings, "text_maps": True})
        before = list(self.text_maps) or [torch.eye(len(one)) for one in maps]
        own = {
            **self.state_dict(),
            **{f"text_maps.{n}": one @ two for n, (one, two) in enumerate(zip(maps, before, strict=True))},
        }
        twin.load_state_dict(own)
        return twin.eval()

    def of_vectors(self, image: Tensor, text: Tensor) -> Tensor:
        """Return the ``(n, 1)`` logits of ``(n, d)`` vectors: scaled cosines plus the encoder's bias."""
        return super().of_vectors(image, text) + self.bias


def _side_by_side(projections: nn.ModuleList, pooled: Tensor) -> Tensor:
    return torch.cat([projection(pooled) for projection in projections], dim=1) / math.sqrt(len(projections))


def _normalised(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:  # without a copy
        return F.normalize(parts[0].float(), dim=1)
    return torch.cat([F.normalize(part.float(), dim=1) for part in parts], dim=1) / math.sqrt(len(parts))
