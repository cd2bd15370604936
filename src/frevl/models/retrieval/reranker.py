"""A first stage, and a fusion that reranks its best candidates, as one network. Pure torch.

The score of a pair depends on nothing but the pair and what was learned, so it is the same in a ranking, in a grid and
alone::

    score = first + w_alignment alignment + w_image hubness(image) + w_text hubness(text) + w_fusion fusion(image, text)

``first`` is the first stage's own logit, ``alignment`` the cosine of the kernel regression beside it
(`frevl.models.retrieval.kernel_alignment`), which may weigh more here than in the search for candidates. Hubness: some
items ("hubs") are near to everything and come up for every query. It is measured as the logarithm of the mean of the
exponentials of an item's logits (of both terms) with a fixed sample of training items of the other modality, and a
negative weight takes it back (ours, after inverted softmax, arXiv 1702.03859, and query-bank normalisation, arXiv
2112.12777; here the bank is a part of the run). The weights are chosen on development data
(`frevl.training.retrieval.score_fusion`), so what does not help there has the weight 0.

Taking hubness back puts the candidates of one query in order. Whether one text describes one image is another question:
a general caption is near to many images because it describes many. So the match probability comes from a second logit,
the same sum without hubness (research/experiments/log.md, "Retrieval").
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frevl.models.fusion import Fusion
from frevl.models.inputs import ZScore, frozen, stored_in_half
from frevl.models.interface import Build, Items, PairNetwork, PriorSide
from frevl.models.retrieval.first_stage import FirstStage

__all__ = ["Reranked", "Standardised", "TermWeights", "hubness"]

_ITEMS_AT_ONCE = 8192  # with a bank of 2,000 these are 64 MB of logits


@dataclass(frozen=True, kw_only=True)
class TermWeights:
    """What the terms of a score weigh; the first stage's own logit always weighs 1.

    Attributes:
        alignment: Of the cosine of the kernel alignment.
        image_hubness: Of the hubness of the image; negative where it is taken back.
        text_hubness: The same of the text.
        fusion: Of the fusion's logit.
    """

    alignment: float = 0.0
    image_hubness: float = 0.0
    text_hubness: float = 0.0
    fusion: float = 0.0

    def record(self) -> dict[str, float]:
        """Return the weights as runs hold them; their format has an older word for hubness."""
        return {
            "alignment": self.alignment,
            "image_crowd": self.image_hubness,
            "text_crowd": self.text_hubness,
            "fusion": self.fusion,
        }

    @classmethod
    def from_record(cls, record: dict[str, float]) -> TermWeights:
        """Read what `record` returned."""
        return cls(**{name.replace("_crowd", "_hubness"): weight for name, weight in record.items()})


class Standardised(nn.Module):
    """A fusion whose embeddings are standardised with training statistics, with dropout on them while training."""

    def __init__(self, *, fusion: dict[str, Any], input_dropout: float) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"fusion": fusion, "input_dropout": input_dropout}
        self.fusion = Fusion(**fusion)
        self.input_dropout = nn.Dropout(input_dropout)
        image_dim, text_dim = int(fusion["image_dim"]), int(fusion["text_dim"])
        self.image_mean, self.image_scale = frozen(image_dim), frozen(image_dim, fill=1.0)
        self.text_mean, self.text_scale = frozen(text_dim), frozen(text_dim, fill=1.0)
        # The fusion starts as what adds nothing to the first stage.
        nn.init.zeros_(self.fusion.head.outer.weight)
        nn.init.zeros_(self.fusion.head.outer.bias)

    @property
    def image_statistics(self) -> ZScore:
        """Mean and deviation of the training images."""
        return ZScore(self.image_mean, self.image_scale)

    @property
    def text_statistics(self) -> ZScore:
        """Mean and deviation of the training texts."""
        return ZScore(self.text_mean, self.text_scale)

    def standardise(self, images: Tensor, texts: Tensor) -> None:
        """Take mean and deviation of ``(n, dim)`` pooled training embeddings."""
        self.image_statistics.fit(images.float())
        self.text_statistics.fit(texts.float())

    def project_image(self, image: Tensor) -> Tensor:
        """``(n, dim)`` or ``(n, Nv, dim)`` as ``(n, Nv, width)``."""
        return self.fusion.project_image(self.input_dropout(self.image_statistics(image)))

    def project_text(self, text: Tensor) -> Tensor:
        """``(n, dim)`` or ``(n, Nt, dim)`` as ``(n, Nt, width)``."""
        return self.fusion.project_text(self.input_dropout(self.text_statistics(text)))


class Reranked(PairNetwork):
    """First stage, hubness and fusion with their weights.

    The items of one modality are the first stage's parts ``(n, d)``, the hubness ``(n,)`` and the fusion's projected
    tokens ``(n, N, width)`` (width 0 without a fusion).
    """

    key = "reranked"
    item_work = "always"  # hubness is thousands of dot products an item
    probability_apart = True

    def __init__(
        self,
        first: FirstStage,
        bank_images: Tensor,
        bank_texts: Tensor,
        fusion: Standardised | None,
        *,
        weights: TermWeights,
        depth: int,
    ) -> None:
        """Put the parts together; they become parts of this network.

        Args:
            first: What searches.
            bank_images: ``(m, d)`` parts of training images, which the hubness of a text is measured with.
            bank_texts: ``(m, d)`` parts of training texts, which the hubness of an image is measured with.
            fusion: What scores the best candidates again, or None.
            weights: Of the terms.
            depth: How many candidates of the first stage are worth scoring again.
        """
        super().__init__()
        self.settings = {
            "first": first.key,
            "first_settings": first.settings,
            "bank_images": len(bank_images),
            "bank_texts": len(bank_texts),
            "bank_width": bank_images.shape[1],
            "fusion": None if fusion is None else fusion.settings,
            "weights": weights.record(),
            "depth": depth,
        }
        self.first = first
        self.bank_images = nn.Parameter(bank_images, requires_grad=False)
        self.bank_texts = nn.Parameter(bank_texts, requires_grad=False)
        stored_in_half(self, inner=False)
        self.fusion = fusion
        self.weights, self.depth = weights, depth

    @classmethod
    def from_settings(cls, settings: dict[str, Any], build: Build) -> Reranked:
        """Build the network without its numbers; ``build`` makes its first stage."""
        width, fusion = settings["bank_width"], settings["fusion"]
        return cls(
            cast("FirstStage", build(settings["first"], settings["first_settings"])),
            torch.zeros(settings["bank_images"], width),
            torch.zeros(settings["bank_texts"], width),
            None if fusion is None else Standardised(**fusion),
            weights=TermWeights.from_record(settings["weights"]),
            depth=settings["depth"],
        )

    @classmethod
    def of(
        cls,
        first: FirstStage,
        bank_images: Tensor,
        bank_texts: Tensor,
        fusion: Standardised | None,
        *,
        weights: TermWeights,
        depth: int,
    ) -> Reranked:
        """Put copies of fitted parts together, each as it would come back from a saved run; arguments as above."""
        parts = _as_saved(first), bank_images.clone(), bank_texts.clone(), None if fusion is None else _as_saved(fusion)
        return cls(*parts, weights=weights, depth=depth).eval()

    def weighed(self, weights: TermWeights, depth: int) -> Reranked:
        """Return the same parts with other weights; a fusion that weighs nothing is left out."""
        fusion = self.fusion if weights.fusion > 0 else None
        return Reranked.of(self.first, self.bank_images, self.bank_texts, fusion, weights=weights, depth=depth)

    def image_items(self, image: Tensor, image_mask: Tensor | None = None) -> Items:
        """Do what needs only the image: ``(n, image_dim)`` or ``(n, Nv, image_dim)`` embeddings."""
        parts = self.first.image_parts(image, image_mask)
        hidden = image.new_zeros(len(image), 1, 0) if self.fusion is None else self.fusion.project_image(image)
        return parts, self._hubness(parts, self.bank_texts), hidden

    def text_items(self, text: Tensor, text_mask: Tensor | None = None) -> Items:
        """Do what needs only the text."""
        parts = self.first.text_parts(text, text_mask)
        hidden = text.new_zeros(len(text), 1, 0) if self.fusion is None else self.fusion.project_text(text)
        return parts, self._hubness(parts, self.bank_images), hidden

    def terms(
        self, images: Items, texts: Items, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, 4)``: first stage with the weighted alignment, hubness of image and of text, fusion."""
        parts, image_hubness, image_hidden = images
        text_parts, text_hubness, text_hidden = texts
        first = (parts * self._scales() * text_parts).sum(dim=1)
        if self.fusion is None:
            fused = torch.zeros_like(first)
        else:
            network = self.fusion.fusion
            fused = network.head(network.fuse(image_hidden, text_hidden, image_mask, text_mask))[:, 0]
        return torch.stack([first, image_hubness, text_hubness, fused], dim=1)

    def rank_all(self, images: Items, texts: Items) -> Tensor:
        """Return ``(images, texts)`` scores of all pairs by the terms without a fusion, in one matrix product."""
        parts, image_hubness, _ = images
        text_parts, text_hubness, _ = texts
        scores: Tensor = parts * self._scales() @ text_parts.T
        return scores + self.weights.image_hubness * image_hubness[:, None] + self.weights.text_hubness * text_hubness

    def score_items(
        self, images: Items, texts: Items, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return the ``(n, 2)`` logits of pairs from their items: the weighed terms."""
        return self.weigh(self.terms(images, texts, image_mask, text_mask))

    def weigh(self, terms: Tensor) -> Tensor:
        """Weigh ``(n, 4)`` `terms` into ``(n, 2)`` logits: the score, and without hubness that of the probability."""
        hub_weights = [0.0, self.weights.image_hubness, self.weights.text_hubness, 0.0]
        match = (terms * terms.new_tensor([1.0, 0.0, 0.0, self.weights.fusion])).sum(dim=1)
        return torch.stack([match + (terms * terms.new_tensor(hub_weights)).sum(dim=1), match], dim=1)

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor] | None:
        """Those of the fusion that scores candidates again; without one, those of the first stage."""
        if self.fusion is None:
            return self.first.last_layer_inputs(image, text, image_mask, text_mask)
        hidden = self.fusion.project_image(image), self.fusion.project_text(text)
        fused = self.fusion.fusion.fuse(*hidden, image_mask, text_mask)
        return {"pair": F.normalize(self.fusion.fusion.head.hidden(fused).float(), dim=1)}

    @property
    def prior(self) -> Reranked | None:
        """Itself, where it keeps a bank of images."""
        return self if len(self.bank_images) else None

    @property
    def prior_of(self) -> PriorSide:
        """The text, whose hubness says how well it fits pictures in general."""
        return "text"

    def prior_logits(self, items: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the ``(n, 1)`` hubness of texts."""
        return self._hubness(self.first.text_parts(items, mask), self.bank_images)[:, None]

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return the ``(n, 2)`` logits of `weigh`; the shapes are those of `PairNetwork.forward`."""
        images, texts = self.image_items(image, image_mask), self.text_items(text, text_mask)
        return self.score_items(images, texts, image_mask, text_mask)

    def for_export(self) -> Reranked:
        """A copy whose fusion is fused for inference."""
        twin = deepcopy(self)
        if twin.fusion is not None:
            twin.fusion.fusion = twin.fusion.fusion.for_inference()
        return twin

    def input_statistics(self) -> tuple[ZScore, ZScore] | None:
        """Those of the first stage, or of the fusion."""
        own = None if self.fusion is None else (self.fusion.image_statistics, self.fusion.text_statistics)
        return self.first.input_statistics() or own

    @property
    def first_stage(self) -> FirstStage:
        """What searches."""
        return self.first

    @property
    def rerank_depth(self) -> int:
        """How many candidates of the first stage are worth scoring again."""
        return self.depth

    def _hubness(self, parts: Tensor, bank: Tensor) -> Tensor:
        return hubness(parts, bank, self._scales())

    def _scales(self) -> Tensor:
        """``(d,)``: what each number of the parts weighs in a logit."""
        return self.first.part_scales(self.weights.alignment, self.bank_images.shape[1])


def hubness(parts: Tensor, bank: Tensor, scales: Tensor) -> Tensor:
    """Hubness of items, ``(n,)``: the log of the mean exponential of their logits with a bank of the other modality.

    Args:
        parts: ``(n, d)`` of a first stage.
        bank: ``(m, d)``.
        scales: ``(d,)`` of `FirstStage.part_scales`.
    """
    blocks = (parts * scales).split(_ITEMS_AT_ONCE)  # type: ignore[no-untyped-call]
    logs: Tensor = torch.cat([(block @ bank.T).logsumexp(dim=1) for block in blocks])
    return logs - math.log(max(1, len(bank)))


Part = TypeVar("Part", bound=nn.Module)


def _as_saved(part: Part) -> Part:
    """A copy with the numbers that a saved run holds: some in half precision (`stored_in_half`)."""
    twin = deepcopy(part)
    twin.load_state_dict(part.state_dict())
    return twin
