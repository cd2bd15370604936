"""The first stage of retrieval: one vector per image, one vector per text, and their dot product. Pure torch.

Any first stage may combine its own vectors with a kernel alignment (`frevl.models.retrieval.kernel_alignment`)::

    logit = own scale * own cosine + alignment weight * cosine of the alignment = scale * cosine of the joined vectors
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.models.inputs import mean_pool
from frevl.models.interface import Items, PairNetwork
from frevl.models.retrieval.kernel_alignment import Alignment

__all__ = ["FirstStage", "with_alignment"]


class FirstStage(PairNetwork):
    """A network whose score is a scaled dot product of unit vectors, so that it can search.

    Subclasses define `own_image_vectors`, `own_text_vectors` and `own_scale`, and pass ``alignment`` and
    ``alignment_weight`` from their settings to `_align`.

    Attributes:
        trained: Whether it learns from pairs.
        alignment: The additional kernel alignment, or None.
        alignment_weight: Weight of the alignment's cosine in the logit.
    """

    item_work = "grids"
    trained: ClassVar[bool] = True
    alignment: Alignment | None
    alignment_weight: float

    def _align(self, alignment: dict[str, Any] | None, weight: float) -> None:
        """Allocate room for an alignment; called at the end of the constructor."""
        self.alignment = None if alignment is None else Alignment(**alignment)
        self.alignment_weight = weight

    @abstractmethod
    def own_image_vectors(self, image: Tensor) -> Tensor:
        """Return ``(n, d)`` unit vectors for ``(n, image_dim)`` pooled embeddings."""

    @abstractmethod
    def own_text_vectors(self, text: Tensor) -> Tensor:
        """Return ``(n, d)`` unit vectors for ``(n, text_dim)`` pooled embeddings."""

    @property
    @abstractmethod
    def own_scale(self) -> Tensor:
        """The logit of a cosine of 1 between its own vectors, a scalar."""

    @property
    def scale(self) -> Tensor:
        """The logit scale of the joined vectors."""
        return self.own_scale + self.alignment_weight

    @property
    def first_stage(self) -> FirstStage:
        """This network, which can search."""
        return self

    def image_parts(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Return its own unit vectors, followed by those of the alignment, ``(n, d + rank)``."""
        pooled = mean_pool(image, image_mask)
        own = self.own_image_vectors(pooled)
        return own if self.alignment is None else torch.cat([own, self.alignment.image_vectors(pooled)], dim=1)

    def text_parts(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Return the same for texts."""
        pooled = mean_pool(text, text_mask)
        own = self.own_text_vectors(pooled)
        return own if self.alignment is None else torch.cat([own, self.alignment.text_vectors(pooled)], dim=1)

    def part_scales(self, weight: float, width: int) -> Tensor:
        """Return the factor of each number of the parts in a logit, ``(width,)``, given the alignment's weight."""
        rank = 0 if self.alignment is None else int(self.alignment.settings["rank"])
        own = self.own_scale.expand(width - rank)
        return torch.cat([own, own.new_full((rank,), weight)])

    def image_vectors(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Return ``(n, d)`` unit vectors for ``(n, image_dim)`` or ``(n, Nv, image_dim)`` embeddings."""
        return self._joined(self.image_parts(image, image_mask))

    def text_vectors(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Return ``(n, d)`` unit vectors for ``(n, text_dim)`` or ``(n, Nt, text_dim)`` embeddings."""
        return self._joined(self.text_parts(text, text_mask))

    def of_vectors(self, image: Tensor, text: Tensor) -> Tensor:
        """Return the ``(n, 1)`` logits of ``(n, d)`` vectors."""
        return self.scale * (image * text).sum(dim=1, keepdim=True)

    def rank_all(self, images: Items, texts: Items) -> Tensor:
        """Return scores that rank like the logits of all pairs, ``(images, texts)``."""
        scores: Tensor = self.scale * images[0] @ texts[0].T
        return scores

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, 1)`` scaled cosines; the shapes are those of `PairNetwork.forward`."""
        return self.of_vectors(self.image_vectors(image, image_mask), self.text_vectors(text, text_mask))

    def image_items(self, image: Tensor, image_mask: Tensor | None = None) -> Items:
        """Return the vectors of images."""
        return (self.image_vectors(image, image_mask),)

    def text_items(self, text: Tensor, text_mask: Tensor | None = None) -> Items:
        """Return the vectors of texts."""
        return (self.text_vectors(text, text_mask),)

    def score_items(
        self,
        images: Items,
        texts: Items,
        image_mask: Tensor | None = None,  # noqa: ARG002
        text_mask: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Return the ``(n, 1)`` logits of pairs from their vectors."""
        return self.of_vectors(*images, *texts)

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the inputs of each side's projection at unit length, standardised if the network standardises."""
        sides = {"image": mean_pool(image, image_mask), "text": mean_pool(text, text_mask)}
        statistics = self.input_statistics()
        if statistics is None:
            return {"image": self.own_image_vectors(sides["image"]), "text": self.own_text_vectors(sides["text"])}
        return {
            side: F.normalize(own(values).float(), dim=1)
            for own, (side, values) in zip(statistics, sides.items(), strict=True)
        }

    def _joined(self, parts: Tensor) -> Tensor:
        """Join the parts into unit vectors whose dot product times the scale is the logit."""
        if self.alignment is None:
            return parts
        if self.alignment_weight == 0:
            return parts[:, : parts.shape[1] - int(self.alignment.settings["rank"])]
        return parts * (self.part_scales(self.alignment_weight, parts.shape[1]) / self.scale).sqrt()


Stage = TypeVar("Stage", bound=FirstStage)


def with_alignment(first: Stage, alignment: Alignment, weight: float) -> Stage:
    """Return the same first stage with a fitted alignment added.

    Args:
        first: A first stage without an alignment.
        alignment: Fitted on the same embeddings.
        weight: Weight of its cosine in the logit; with 0 it only serves `FirstStage.part_scales`.
    """
    joined = type(first)(**{**first.settings, "alignment": alignment.settings, "alignment_weight": weight})
    state = {**first.state_dict(), **{f"alignment.{name}": value for name, value in alignment.state_dict().items()}}
    joined.load_state_dict(state)
    return joined.eval()
