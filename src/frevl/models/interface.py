"""The interface of networks: pairs in, logits out, and optional capabilities.

A new network is one class here in ``models`` with a `PairNetwork.key`, its ``settings`` and ``forward``, and one line
in `frevl.models.registry`. All other members have defaults that suit a network without special abilities. Training,
evaluation, scoring, search, export and the service use this interface only and know no concrete class.
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
    "TransformableTexts",
    "set_evaluating",
]

Build = Callable[[str, dict[str, Any]], "PairNetwork"]
"""Builds a network with fresh weights from its key and settings: `frevl.models.registry.build`."""

Items = tuple[Tensor, ...]
"""Intermediate results of items of one modality; the first axis of every tensor counts the items."""

PairLogits = Callable[[Tensor, Tensor], Tensor]
"""Maps ``(n,)`` image rows and ``(n,)`` text rows to ``(n, outputs)`` logits."""


Projection = Callable[[Tensor], Tensor]
"""Maps ``(n, dim)`` or ``(n, N, dim)`` embeddings to ``(n, N, width)``."""


PriorSide = Literal["image", "text"]
"""The side of a pair that a network can answer to alone."""


class Searchable(Protocol):
    """A network with one vector per image and one per text, whose dot products rank."""

    def image_vectors(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Return ``(n, d)`` unit vectors for ``(n, image_dim)`` or ``(n, Nv, image_dim)`` embeddings."""
        ...

    def text_vectors(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Return ``(n, d)`` unit vectors for ``(n, text_dim)`` or ``(n, Nt, text_dim)`` embeddings."""
        ...


class Prior(Protocol):
    """A network that can answer to one side of a pair alone, using a bank of training items of the other side."""

    @property
    def prior_of(self) -> PriorSide:
        """The side that it can answer to alone."""
        ...

    def prior_logits(self, items: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the answer to one side alone.

        Args:
            items: ``(n, dim)`` or ``(n, N, dim)`` embeddings of that side; see `prior_of`.
            mask: ``(n, N)`` bool, True where a token exists.

        Returns:
            ``(n, outputs)`` for classification, ``(n, 1)`` for matching.
        """
        ...


class TransformableTexts(Protocol):
    """A network with text vectors (of a first stage, or of class names) whose parts linear maps can transform."""

    @property
    def text_blocks(self) -> list[int]:
        """Widths of the parts of a text vector."""
        ...

    def with_text_maps(self, maps: Sequence[Tensor]) -> PairNetwork:
        """Return the same network with every part transformed and rescaled to its former length.

        Args:
            maps: One ``(d, d)`` matrix for each of `text_blocks`.
        """
        ...


class PairNetwork(nn.Module, ABC):
    """A network that scores pairs of an image and a text from their frozen embeddings.

    Attributes:
        key: Name of the kind of network in ``run.json``, unique in `frevl.models.registry.NETWORKS`.
        settings: The arguments that build the same network without its weights, as JSON values; see
            `from_settings`.
        item_work: Whether computing `image_items` and `text_items` separately pays off: ``never``; in ``grids``, where
            many pairs share few items; or ``always``, because an item is so much work that a list of pairs should share
            it too.
        probability_apart: Whether the match probability has its own logit, the last column; the first is then the
            score.
        scores_in_half: Whether, with weights in float16 on an accelerator, it ranks as in float32 (measured,
            docs/accelerator.md).
        affine: Whether the mean of its logits over images is the logit of the mean image, and likewise for texts.
        no_int8: Reason why the network cannot be exported in 8-bit integers; empty if it can.
    """

    key: ClassVar[str]
    item_work: ClassVar[Literal["never", "grids", "always"]] = "never"
    probability_apart: ClassVar[bool] = False
    scores_in_half: ClassVar[bool] = False
    affine: ClassVar[bool] = False
    no_int8: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Return a copy, so that the settings cannot be changed; they are set once, in the constructor."""
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
            text: ``(n, text_dim)`` or ``(n, Nt, text_dim)``; may be pooled even if ``image`` is not.
            image_mask: ``(n, Nv)`` bool, True where a token exists; without it all exist.
            text_mask: ``(n, Nt)`` bool.

        Returns:
            ``(n, outputs)``: one column for matching (see `probability_apart`), otherwise one per class.
        """

    @classmethod
    def from_settings(cls, settings: dict[str, Any], build: Build) -> PairNetwork:
        """Build the network from its ``settings``, with fresh weights.

        Args:
            settings: The former ``settings`` of a network of this class.
            build: Builds the networks inside this one.
        """
        del build  # only a network that contains others needs it
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
        """Return a network with the same outputs and possibly less work; this one is not changed."""
        return self

    def for_export(self) -> nn.Module:
        """Return the same function in a form that can be traced: no loop over pairs, no branch on values."""
        return self.for_inference()

    def probability_logits(self, logits: Tensor) -> Tensor:
        """Return the columns of the ``(n, outputs)`` logits from which calibrated probabilities are computed."""
        return logits[:, -1:] if self.probability_apart else logits

    def image_items(self, image: Tensor, image_mask: Tensor | None = None) -> Items:
        """Do the work that depends on the image alone; shapes as in `forward`."""
        del image_mask  # the embeddings are kept as they are, and `score_items` gets the mask again
        return (image,)

    def text_items(self, text: Tensor, text_mask: Tensor | None = None) -> Items:
        """Do the work that depends on the text alone."""
        del text_mask
        return (text,)

    def score_items(
        self, images: Items, texts: Items, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return the ``(n, outputs)`` logits of ``n`` pairs from the items of each modality."""
        logits: Tensor = self(*images, *texts, image_mask, text_mask)
        return logits

    def shared_scorer(self, images: Items, texts: Items) -> PairLogits | None:
        """Return a faster way to score any number of unmasked pairs of these items; None if there is none."""
        del images, texts
        return None

    def input_statistics(self) -> tuple[ZScore, ZScore] | None:
        """Return mean and deviation of the image and text embeddings in training, if the network stores them."""
        return None

    def projections(self) -> tuple[Projection, Projection] | None:
        """Return the learned maps of image and text embeddings to ``(n, N, width)``, if the network has them."""
        return None

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor] | None:
        """Return the inputs of the last layer, by side, if the posterior of that layer is known in closed form.

        Args:
            image: As in `forward`, like the other arguments.
            text: As in `forward`.
            image_mask: As in `forward`.
            text_mask: As in `forward`.

        Returns:
            ``(n, width)`` float32 of unit length (or below: see `frevl.models.classification.posterior.left_over`) by
            ``image``, by ``image`` and ``text``, or by ``pair``. A network that contains others prefixes their number:
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
        """Return the ``(n,)`` doubt of pairs from the variance left over for each of the `last_layer_inputs`.

        Args:
            left: ``(n,)`` left-over variance by side, on the CPU, where the doubt is returned too.
            image: As in `forward`, like the other arguments.
            text: As in `forward`.
            image_mask: As in `forward`.
            text_mask: As in `forward`.
        """
        del image, text, image_mask, text_mask
        return pair_doubt(left)

    @property
    def prior(self) -> Prior | None:
        """The part that answers to one side alone; None if the network has no bank of the other side."""
        return None

    def mean_logits(self, kept: PriorSide, items: Tensor, bank: Tensor) -> Tensor | None:
        """Return the mean of the logits over a bank, if there is a faster way than scoring one bank item at a time.

        Args:
            kept: The side of the items.
            items: ``(n, dim)`` pooled embeddings of that side.
            bank: ``(m, dim)`` pooled embeddings of the other side.

        Returns:
            ``(n, outputs)``, or None if there is no such way.
        """
        del kept, items, bank
        return None

    @property
    def transformable_texts(self) -> TransformableTexts | None:
        """The part whose text vectors can be transformed; None if there is none."""
        return None

    @property
    def first_stage(self) -> Searchable | None:
        """The part that can search; None if the network has no vectors of single items."""
        return None

    @property
    def rerank_depth(self) -> int:
        """Number of candidates of the first stage worth rescoring; 0 if the network does not rerank."""
        return 0


def set_evaluating(network: nn.Module) -> None:
    """Put a network in evaluation mode, with all its parts.

    Setting the mode of every part again takes a percent of the time of scoring 256 pairs, or more (measured).
    """
    if any(part.training for part in network.modules()):
        network.eval()
