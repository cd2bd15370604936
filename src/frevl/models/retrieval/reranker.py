"""A first stage and a fusion that reranks its best candidates, as one network. Pure torch.

The score of a pair depends only on the pair and what was learned, so it is the same in a ranking, in a grid and
alone::

    score = first + w_alignment alignment + w_image hubness(image) + w_text hubness(text) + w_fusion fusion(image, text)

``first`` is the first stage's own logit, ``alignment`` the cosine of the added kernel regression
(`frevl.models.retrieval.kernel_alignment`), which may have a larger weight here than in the search for candidates.
Hubness: some items ("hubs") are close to everything and turn up for every query. It is measured as the logarithm of the
mean exponential of an item's logits (of both terms) with a fixed sample of training items of the other modality, and a
negative weight compensates for it (ours, after inverted softmax, arXiv 1702.03859, and query-bank normalisation, arXiv
2112.12777; here the bank is part of the run). The weights are chosen on development data
(`frevl.training.retrieval.score_fusion`), so a term that does not help there has the weight 0.

Compensating for hubness improves the ranking of one query's candidates. Whether one text describes one image is another
question: a general caption is close to many images because it describes many. The match probability is therefore
computed from a second logit, the same sum without hubness (research/experiments/log.md, "Retrieval").
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
    """The weights of the terms of a score; the first stage's own logit always has weight 1.

    Attributes:
        alignment: Weight of the kernel alignment's cosine.
        image_hubness: Weight of the image's hubness; negative to compensate for it.
        text_hubness: Weight of the text's hubness; likewise.
        fusion: Weight of the fusion's logit.
    """

    alignment: float = 0.0
    image_hubness: float = 0.0
    text_hubness: float = 0.0
    fusion: float = 0.0

    def record(self) -> dict[str, float]:
        """Return the weights as runs store them; their format has an older word for hubness."""
        return {
            "alignment": self.alignment,
            "image_crowd": self.image_hubness,
            "text_crowd": self.text_hubness,
            "fusion": self.fusion,
        }

    @classmethod
    def from_record(cls, record: dict[str, float]) -> TermWeights:
        """Read the weights from a record."""
        return cls(**{name.replace("_crowd", "_hubness"): weight for name, weight in record.items()})


class Standardised(nn.Module):
    """A fusion that standardises embeddings with training statistics, and applies dropout to them in training."""

    def __init__(self, *, fusion: dict[str, Any], input_dropout: float) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"fusion": fusion, "input_dropout": input_dropout}
        self.fusion = Fusion(**fusion)
        self.input_dropout = nn.Dropout(input_dropout)
        image_dim, text_dim = int(fusion["image_dim"]), int(fusion["text_dim"])
        self.image_mean, self.image_scale = frozen(image_dim), frozen(image_dim, fill=1.0)
        self.text_mean, self.text_scale = frozen(text_dim), frozen(text_dim, fill=1.0)
        # At the start, the fusion adds nothing to the first stage.
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
        """Map ``(n, dim)`` or ``(n, Nv, dim)`` to ``(n, Nv, width)``."""
        return self.fusion.project_image(self.input_dropout(self.image_statistics(image)))

    def project_text(self, text: Tensor) -> Tensor:
        """Map ``(n, dim)`` or ``(n, Nt, dim)`` to ``(n, Nt, width)``."""
        return self.fusion.project_text(self.input_dropout(self.text_statistics(text)))


class Reranked(PairNetwork):
    """First stage, hubness and fusion with their weights.

    The items of one modality are the first stage's parts ``(n, d)``, the hubness ``(n,)`` and the fusion's projected
    tokens ``(n, N, width)`` (width 0 without a fusion).
    """

    key = "reranked"
    item_work = "always"  # hubness takes thousands of dot products per item
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
        """Combine the parts, which become submodules of this network.

        Args:
            first: The network that searches.
            bank_images: ``(m, d)`` parts of training images, used to measure the hubness of a text.
            bank_texts: ``(m, d)`` parts of training texts, used to measure the hubness of an image.
            fusion: The network that rescores the best candidates, or None.
            weights: Weights of the terms.
            depth: Number of candidates of the first stage worth rescoring.
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
        """Build the network without its weights; ``build`` makes its first stage."""
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
        """Combine copies of fitted parts, each as if loaded from a saved run; arguments as in the constructor."""
        parts = _as_saved(first), bank_images.clone(), bank_texts.clone(), None if fusion is None else _as_saved(fusion)
        return cls(*parts, weights=weights, depth=depth).eval()

    def weighed(self, weights: TermWeights, depth: int) -> Reranked:
        """Return the same parts with other weights; a fusion with weight 0 is left out."""
        fusion = self.fusion if weights.fusion > 0 else None
        return Reranked.of(self.first, self.bank_images, self.bank_texts, fusion, weights=weights, depth=depth)

    def image_items(self, image: Tensor, image_mask: Tensor | None = None) -> Items:
        """Do the work that depends on the image alone: ``(n, image_dim)`` or ``(n, Nv, image_dim)`` embeddings."""
        parts = self.first.image_parts(image, image_mask)
        hidden = image.new_zeros(len(image), 1, 0) if self.fusion is None else self.fusion.project_image(image)
        return parts, self._hubness(parts, self.bank_texts), hidden

    def text_items(self, text: Tensor, text_mask: Tensor | None = None) -> Items:
        """Do the work that depends on the text alone."""
        parts = self.first.text_parts(text, text_mask)
        hidden = text.new_zeros(len(text), 1, 0) if self.fusion is None else self.fusion.project_text(text)
        return parts, self._hubness(parts, self.bank_images), hidden

    def terms(
        self, images: Items, texts: Items, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return first stage plus weighted alignment, hubness of image and of text, and fusion, ``(n, 4)``."""
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
        """Return the scores of all pairs without the fusion term, ``(images, texts)``, in one matrix product."""
        parts, image_hubness, _ = images
        text_parts, text_hubness, _ = texts
        scores: Tensor = parts * self._scales() @ text_parts.T
        return scores + self.weights.image_hubness * image_hubness[:, None] + self.weights.text_hubness * text_hubness

    def score_items(
        self, images: Items, texts: Items, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return the ``(n, 2)`` logits of pairs from their items: weighted sums of the terms."""
        return self.weigh(self.terms(images, texts, image_mask, text_mask))

    def weigh(self, terms: Tensor) -> Tensor:
        """Combine ``(n, 4)`` `terms` into ``(n, 2)`` logits: the score, and the probability's logit without hubness."""
        hub_weights = [0.0, self.weights.image_hubness, self.weights.text_hubness, 0.0]
        match = (terms * terms.new_tensor([1.0, 0.0, 0.0, self.weights.fusion])).sum(dim=1)
        return torch.stack([match + (terms * terms.new_tensor(hub_weights)).sum(dim=1), match], dim=1)

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor] | None:
        """Return the last-layer inputs of the fusion, or of the first stage if there is no fusion."""
        if self.fusion is None:
            return self.first.last_layer_inputs(image, text, image_mask, text_mask)
        hidden = self.fusion.project_image(image), self.fusion.project_text(text)
        fused = self.fusion.fusion.fuse(*hidden, image_mask, text_mask)
        return {"pair": F.normalize(self.fusion.fusion.head.hidden(fused).float(), dim=1)}

    @property
    def prior(self) -> Reranked | None:
        """This network, if it keeps a bank of images."""
        return self if len(self.bank_images) else None

    @property
    def prior_of(self) -> PriorSide:
        """The text: its hubness shows how well it fits images in general."""
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
        """Return a copy whose fusion is fused for inference."""
        twin = deepcopy(self)
        if twin.fusion is not None:
            twin.fusion.fusion = twin.fusion.fusion.for_inference()
        return twin

    def input_statistics(self) -> tuple[ZScore, ZScore] | None:
        """Return the statistics of the first stage, or of the fusion."""
        own = None if self.fusion is None else (self.fusion.image_statistics, self.fusion.text_statistics)
        return self.first.input_statistics() or own

    @property
    def first_stage(self) -> FirstStage:
        """The network that searches."""
        return self.first

    @property
    def rerank_depth(self) -> int:
        """Number of candidates of the first stage worth rescoring."""
        return self.depth

    def _hubness(self, parts: Tensor, bank: Tensor) -> Tensor:
        return hubness(parts, bank, self._scales())

    def _scales(self) -> Tensor:
        """Return the weight of each number of the parts in a logit, ``(d,)``."""
        return self.first.part_scales(self.weights.alignment, self.bank_images.shape[1])


def hubness(parts: Tensor, bank: Tensor, scales: Tensor) -> Tensor:
    """Return the ``(n,)`` hubness of items: the log-mean-exp of their logits with a bank of the other modality.

    Args:
        parts: ``(n, d)`` parts of a first stage.
        bank: ``(m, d)`` parts of the bank's items.
        scales: ``(d,)``, from `FirstStage.part_scales`.
    """
    blocks = parts.split(_ITEMS_AT_ONCE)  # type: ignore[no-untyped-call]
    logs: Tensor = torch.cat([((block * scales) @ bank.T).logsumexp(dim=1) for block in blocks])
    return logs - math.log(max(1, len(bank)))


Part = TypeVar("Part", bound=nn.Module)


def _as_saved(part: Part) -> Part:
    """Return a copy with the numbers that a saved run holds: some in half precision (`stored_in_half`)."""
    twin = deepcopy(part)
    twin.load_state_dict(part.state_dict())
    return twin
