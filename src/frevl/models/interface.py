"""The interface of networks: pairs in, logits out, and optional capabilities.

A new network is one class here in ``models`` with a `PairNetwork.key`, its ``settings`` and ``forward``, and one line
in `frevl.models.registry`. All other members have defaults that are right for a network without special abilities.
Training, evaluation, scoring, search, export and the service use this interface only and know no class of a network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from frevl.models.classification.posterior import pair_doubt
from frevl.models.inputs import ZScore

__all__ = [
    "Build",
    "Items",
    "PairLogits",
    "PairNetwork",
    "Prior",
    "PriorSide",
    "Projection",
    "Searchable",
    "TurnableTexts",
]

Build = Callable[[str, dict[str, Any]], "PairNetwork"]
"""From the key and the settings of a network to the network, with fresh weights: `frevl.models.registry.build`."""

Items = tuple[Tensor, ...]
"""What a network keeps of items of one modality; the first axis of every tensor counts the items."""

PairLogits = Callable[[Tensor, Tensor], Tensor]
"""From ``(n,)`` image rows and ``(n,)`` text rows to ``(n, outputs)`` logits."""


Projection = Callable[[Tensor], Tensor]
"""From ``(n, dim)`` or ``(n, N, dim)`` embeddings to ``(n, N, width)``."""


PriorSide = Literal["image", "text"]
"""The side of a pair that a network can answer from alone."""


class Searchable(Protocol):
    """What has one vector per image and one vector per text, whose dot products rank."""

    def image_vectors(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """``(n, d)`` unit vectors of ``(n, image_dim)`` or ``(n, Nv, image_dim)`` embeddings."""
        ...

    def text_vectors(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """``(n, d)`` unit vectors of ``(n, text_dim)`` or ``(n, Nt, text_dim)`` embeddings."""
        ...


class Prior(Protocol):
    """What answers to one side of a pair alone, by its bank of training items of the other."""

    @property
    def prior_of(self) -> PriorSide:
        """The side that it answers to."""
        ...

    def prior_logits(self, items: Tensor, mask: Tensor | None = None) -> Tensor:
        """Answer to one side alone.

        Args:
            items: ``(n, dim)`` or ``(n, N, dim)`` embeddings of the side `prior_of`.
            mask: ``(n, N)`` bool.

        Returns:
            ``(n, outputs)`` of a classification, ``(n, 1)`` of a matching.
        """
        ...


class TurnableTexts(Protocol):
    """What has vectors of texts (of a first stage, or of names of classes) whose parts linear maps can turn."""

    @property
    def text_blocks(self) -> list[int]:
        """Widths of the parts."""
        ...

    def with_text_maps(self, maps: Sequence[Tensor]) -> PairNetwork:
        """Return the same network with every part turned, and scaled to its length again.

        Args:
            maps: ``(d, d)`` of every one of `text_blocks`.
        """
        ...


class PairNetwork(nn.Module, ABC):
    """A network that scores pairs of an image and a text from their frozen embeddings.

    Attributes:
        key: Name of the kind of network in ``run.json``, unique in `frevl.models.registry.NETWORKS`.
        settings: The arguments that build the same network without its weights, as JSON can hold them; see
            `from_settings`.
        item_work: When `image_items` and `text_items` pay: ``never``; in ``grids``, where many pairs share few items;
            or ``always``, because an item is so much work that it is done once for a list of pairs too.
        probability_apart: The match probability has a logit of its own, the last column; the first is the score.
        scores_in_half: With its weights in float16 it was measured on an accelerator to rank as in float32
            (docs/accelerator.md).
        affine: The mean of its logits over images is its logits of their mean; the same of texts.
        no_int8: Why the network cannot be exported in 8-bit integers; empty if it can.
    """

    key: ClassVar[str]
    item_work: ClassVar[Literal["never", "grids", "always"]] = "never"
    probability_apart: ClassVar[bool] = False
    scores_in_half: ClassVar[bool] = False
    affine: ClassVar[bool] = False
    no_int8: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """A copy, so that nobody changes them afterwards; set once, in the constructor."""
        return deepcopy(self._settings)

    @settings.setter
    def settings(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    @abstractmethod
    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return the logits of pairs.

        Args:
            image: ``(n, image_dim)`` pooled or ``(n, Nv, image_dim)`` token embeddings, float32.
            text: ``(n, text_dim)`` or ``(n, Nt, text_dim)``; may be pooled where ``image`` is not.
            image_mask: ``(n, Nv)`` bool, True where a token exists; without it all exist.
            text_mask: ``(n, Nt)`` bool.

        Returns:
            ``(n, outputs)``: one column for matching (see `probability_apart`), one for each class otherwise.
        """

    @classmethod
    def from_settings(cls, settings: dict[str, Any], build: Build) -> PairNetwork:
        """Build the network from its ``settings``, with fresh weights.

        Args:
            settings: What ``settings`` of a network of this class held.
            build: Builds the networks that this one is made of.
        """
        del build  # only a network made of others needs it
        return cls(**settings)

    @classmethod
    def for_data(cls, *, image_dim: int, text_dim: int, outputs: int) -> PairNetwork:
        """Build a network to be trained by gradient descent.

        Args:
            image_dim: Width of an image embedding.
            text_dim: Width of a text embedding.
            outputs: Number of classes; 1 for matching.
        """
        return cls(image_dim=image_dim, text_dim=text_dim, outputs=outputs)

    def for_inference(self) -> PairNetwork:
        """Return a network with the same answers and possibly less work; this one stays as it is."""
        return self

    def for_export(self) -> nn.Module:
        """Return the same function in a form that can be traced: no loop over pairs, no branch on values."""
        return self.for_inference()

    def probability_logits(self, logits: Tensor) -> Tensor:
        """Select from ``(n, outputs)`` logits the columns that calibrated probabilities are computed from."""
        return logits[:, -1:] if self.probability_apart else logits

    def image_items(self, image: Tensor, image_mask: Tensor | None = None) -> Items:
        """Do the work that needs only the image; shapes as in `forward`."""
        del image_mask  # the embeddings themselves are kept, and `score_items` gets the mask again
        return (image,)

    def text_items(self, text: Tensor, text_mask: Tensor | None = None) -> Items:
        """Do the work that needs only the text."""
        del text_mask
        return (text,)

    def score_items(
        self, images: Items, texts: Items, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return the ``(n, outputs)`` logits of pairs from their items, ``n`` of each modality."""
        logits: Tensor = self(*images, *texts, image_mask, text_mask)
        return logits

    def shared_scorer(self, images: Items, texts: Items) -> PairLogits | None:
        """Return a faster way to score any number of pairs of these items without masks; None if there is none."""
        del images, texts
        return None

    def input_statistics(self) -> tuple[ZScore, ZScore] | None:
        """Mean and deviation of image and of text embeddings in training, if the network remembers them."""
        return None

    def projections(self) -> tuple[Projection, Projection] | None:
        """Learned maps of the embeddings of an image, and of a text, to ``(n, N, width)``, if the network has them."""
        return None

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor] | None:
        """Return what its last layer reads, by side, if the posterior of that layer is known in closed form.

        Args:
            image: As `forward`, like all others.
            text: As `forward`.
            image_mask: As `forward`.
            text_mask: As `forward`.

        Returns:
            ``(n, width)`` float32 of unit length (or below: see `frevl.models.classification.posterior.left_over`) by
            ``image``, by ``image`` and ``text``, or by ``pair``. A network made of others puts their number before:
            ``0.pair``. None if there is no such layer.
        """
        del image, text, image_mask, text_mask
        return None

    def doubt(
        self,
        left: Mapping[str, Tensor],
        image: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the ``(n,)`` doubt of pairs from what the posterior leaves of each of the `last_layer_inputs`.

        Args:
            left: ``(n,)`` by side, on the CPU, where the doubt stays.
            image: As `forward`, like all others.
            text: As `forward`.
            image_mask: As `forward`.
            text_mask: As `forward`.
        """
        del image, text, image_mask, text_mask
        return pair_doubt(left)

    @property
    def prior(self) -> Prior | None:
        """What answers to one side alone; None if the network has no bank of the other one."""
        return None

    def mean_logits(self, kept: PriorSide, items: Tensor, bank: Tensor) -> Tensor | None:
        """Return the mean of the logits over a bank in a shorter way than one item of it after the other.

        Args:
            kept: The side of the items.
            items: ``(n, dim)`` pooled embeddings of that side.
            bank: ``(m, dim)`` of the other side.

        Returns:
            ``(n, outputs)``, or None if there is no such way.
        """
        del kept, items, bank
        return None

    @property
    def turnable_texts(self) -> TurnableTexts | None:
        """What turns its vectors of texts; None if it has none that linear maps can turn."""
        return None

    @property
    def first_stage(self) -> Searchable | None:
        """What can search; None if the network has no vectors of single items."""
        return None

    @property
    def rerank_depth(self) -> int:
        """How many candidates of the first stage are worth scoring again; 0 if the network does not rerank."""
        return 0
