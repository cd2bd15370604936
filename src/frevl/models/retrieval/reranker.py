"""A first stage and a fusion that reads its best candidates again, as one network. Pure torch.

The score of a pair depends on nothing but the pair (and what was learnt), so it is the same in a ranking, in a grid
and alone::

    score = first + w_alignment alignment + w_image crowd(image) + w_text crowd(text) + w_fusion fusion(image, text)

``first`` is the first stage's own logit, ``alignment`` the cosine of the kernel regression beside it
(`frevl.models.retrieval.kernel_alignment`), which may weigh more here than in the search for candidates. ``crowd`` is
the logarithm of the mean of the exponentials of an item's logits, of both, with a fixed sample of training items of the
other modality: some items are near to everything ("hubs") and come up for every query; a negative weight takes that
back (ours, after inverted softmax, arXiv 1702.03859, and query-bank normalisation, arXiv 2112.12777; here the bank is a
part of the run). The weights are chosen on development data (`frevl.training.retrieval.score_fusion`), so what does not
help there has the weight 0.

Crowds put candidates of one query in order. Whether one text describes one image is another question: a general
caption is near to many images because it describes many. So the match probability comes from a second logit, the same
sum without crowds (research/experiments/log.md, "Retrieval").
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from frevl.models.fusion import Fusion
from frevl.models.inputs import stored_in_half
from frevl.models.retrieval.two_tower import Cosine, Dual, FirstStage, part_scales

__all__ = ["Items", "Reranked", "Standardised", "crowds"]

Items = tuple[Tensor, Tensor, Tensor]
"""What the score of pairs needs of their items of one modality: the first stage's parts ``(n, d)``, crowds
``(n,)`` and the fusion's projected tokens ``(n, N, width)`` (width 0 without a fusion)."""

_CROWDED = 8192  # items a block: with a bank of 2,000 64 MB of logits
_FIRST: dict[str, type[Dual] | type[Cosine]] = {"cosine": Cosine, "dual": Dual}


class Standardised(nn.Module):
    """A fusion whose embeddings are standardised with training statistics, with dropout on them while training."""

    def __init__(self, *, fusion: dict[str, Any], input_dropout: float) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"fusion": fusion, "input_dropout": input_dropout}
        self.fusion = Fusion(**fusion)
        self.input_dropout = nn.Dropout(input_dropout)
        self.image_mean, self.image_scale = _statistics(int(fusion["image_dim"]))
        self.text_mean, self.text_scale = _statistics(int(fusion["text_dim"]))
        # The fusion starts as what adds nothing to the first stage.
        nn.init.zeros_(self.fusion.head.outer.weight)
        nn.init.zeros_(self.fusion.head.outer.bias)

    def standardise(self, images: Tensor, texts: Tensor) -> None:
        """Take mean and deviation of ``(n, dim)`` pooled training embeddings."""
        sides = ((self.image_mean, self.image_scale, images), (self.text_mean, self.text_scale, texts))
        for own_mean, own_scale, values in sides:
            deviation, mean = torch.std_mean(values.float(), dim=0, correction=0)
            own_mean.copy_(mean)
            # As in `frevl.models.retrieval.two_tower.Projection`: what never varies becomes zero.
            own_scale.copy_(deviation.where(deviation > 1e-6, torch.inf))

    def project_image(self, image: Tensor) -> Tensor:
        """``(n, dim)`` or ``(n, Nv, dim)`` as ``(n, Nv, width)``."""
        return self.fusion.project_image(self.input_dropout((image - self.image_mean) / self.image_scale))

    def project_text(self, text: Tensor) -> Tensor:
        """``(n, dim)`` or ``(n, Nt, dim)`` as ``(n, Nt, width)``."""
        return self.fusion.project_text(self.input_dropout((text - self.text_mean) / self.text_scale))


class Reranked(nn.Module):
    """First stage, crowds and fusion with their weights."""

    def __init__(
        self,
        *,
        first: str,
        first_settings: dict[str, Any],
        bank_images: int,
        bank_texts: int,
        bank_width: int,
        fusion: dict[str, Any] | None,
        weights: dict[str, float],
        depth: int,
    ) -> None:
        """Build the network.

        Args:
            first: ``dual`` or ``cosine``.
            first_settings: Arguments of its constructor.
            bank_images: Training images that the crowd of a text is measured with.
            bank_texts: Training texts that the crowd of an image is measured with.
            bank_width: Width of the first stage's parts.
            fusion: Arguments of `Standardised`, or None.
            weights: ``alignment``, ``image_crowd``, ``text_crowd`` and ``fusion``.
            depth: How many candidates of the first stage are worth reading again.
        """
        super().__init__()
        self.settings: dict[str, Any] = {
            "first": first,
            "first_settings": first_settings,
            "bank_images": bank_images,
            "bank_texts": bank_texts,
            "bank_width": bank_width,
            "fusion": fusion,
            "weights": dict(weights),
            "depth": depth,
        }
        self.first: Dual | Cosine = _FIRST[first](**first_settings)
        self.bank_images = nn.Parameter(torch.zeros(bank_images, bank_width), requires_grad=False)
        self.bank_texts = nn.Parameter(torch.zeros(bank_texts, bank_width), requires_grad=False)
        stored_in_half(self, inner=False)
        self.fusion = None if fusion is None else Standardised(**fusion)
        self.weights, self.depth = dict(weights), depth

    @classmethod
    def of(
        cls,
        first: FirstStage,
        bank_images: Tensor,
        bank_texts: Tensor,
        fusion: Standardised | None,
        *,
        weights: dict[str, float],
        depth: int,
    ) -> Reranked:
        """Put fitted parts together; ``bank_images`` and ``bank_texts`` are ``(m, d)`` parts of the first stage."""
        network = cls(
            first=next(name for name, kind in _FIRST.items() if type(first) is kind),
            first_settings=first.settings,
            bank_images=len(bank_images),
            bank_texts=len(bank_texts),
            bank_width=bank_images.shape[1],
            fusion=None if fusion is None else fusion.settings,
            weights=weights,
            depth=depth,
        )
        network.first.load_state_dict(first.state_dict())
        network.bank_images.copy_(bank_images)
        network.bank_texts.copy_(bank_texts)
        if network.fusion is not None and fusion is not None:
            network.fusion.load_state_dict(fusion.state_dict())
        return network.eval()

    def weighed(self, weights: dict[str, float], depth: int) -> Reranked:
        """Return the same parts with other weights; a fusion that weighs nothing is left out."""
        fusion = self.fusion if weights["fusion"] > 0 else None
        return Reranked.of(self.first, self.bank_images, self.bank_texts, fusion, weights=weights, depth=depth)

    def image_items(self, image: Tensor, mask: Tensor | None = None) -> Items:
        """Do what needs only the image: ``(n, image_dim)`` or ``(n, Nv, image_dim)`` embeddings."""
        parts = self.first.image_parts(image, mask)
        hidden = image.new_zeros(len(image), 1, 0) if self.fusion is None else self.fusion.project_image(image)
        return parts, self._crowd(parts, self.bank_texts), hidden

    def text_items(self, text: Tensor, mask: Tensor | None = None) -> Items:
        """Do what needs only the text."""
        parts = self.first.text_parts(text, mask)
        hidden = text.new_zeros(len(text), 1, 0) if self.fusion is None else self.fusion.project_text(text)
        return parts, self._crowd(parts, self.bank_images), hidden

    def terms(
        self, images: Items, texts: Items, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, 4)``: first stage with the weighted alignment, crowd of the image, crowd of the text, fusion."""
        parts, image_crowd, image_hidden = images
        text_parts, text_crowd, text_hidden = texts
        first = (parts * self._scales() * text_parts).sum(dim=1)
        if self.fusion is None:
            fused = torch.zeros_like(first)
        else:
            network = self.fusion.fusion
            fused = network.head(network.fuse(image_hidden, text_hidden, image_mask, text_mask))[:, 0]
        return torch.stack([first, image_crowd, text_crowd, fused], dim=1)

    def blend(self, terms: Tensor) -> Tensor:
        """Weigh ``(n, 4)`` terms into ``(n, 2)`` logits: the score, and without crowds what the probability is from."""
        crowds_apart = [0.0, self.weights["image_crowd"], self.weights["text_crowd"], 0.0]
        match = (terms * terms.new_tensor([1.0, 0.0, 0.0, self.weights["fusion"]])).sum(dim=1)
        return torch.stack([match + (terms * terms.new_tensor(crowds_apart)).sum(dim=1), match], dim=1)

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return the ``(n, 2)`` logits of `blend`; the shapes are those of `Fusion.forward`."""
        images, texts = self.image_items(image, image_mask), self.text_items(text, text_mask)
        return self.blend(self.terms(images, texts, image_mask, text_mask))

    def _crowd(self, parts: Tensor, bank: Tensor) -> Tensor:
        return crowds(parts, bank, self._scales())

    def _scales(self) -> Tensor:
        """``(d,)``: what each number of the parts weighs in a logit."""
        return part_scales(self.first, self.weights["alignment"], self.bank_images.shape[1])


def crowds(parts: Tensor, bank: Tensor, scales: Tensor) -> Tensor:
    """``(n,)`` log of the mean exponential of the logits of items with a bank of the other modality.

    Args:
        parts: ``(n, d)`` of a first stage.
        bank: ``(m, d)``.
        scales: ``(d,)`` of `frevl.models.retrieval.two_tower.part_scales`.
    """
    blocks = (parts * scales).split(_CROWDED)  # type: ignore[no-untyped-call]
    logs: Tensor = torch.cat([(block @ bank.T).logsumexp(dim=1) for block in blocks])
    return logs - math.log(max(1, len(bank)))


def _statistics(width: int) -> tuple[nn.Parameter, nn.Parameter]:
    mean, scale = torch.zeros(width), torch.ones(width)
    return nn.Parameter(mean, requires_grad=False), nn.Parameter(scale, requires_grad=False)
