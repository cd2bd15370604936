"""A network minus its answer to one side of the pair alone. Pure torch.

``logits(image, text) - strength * mean over a bank of images of logits(image', text)``: up to a number that is the same
for all classes, the mean of the logits is the mean of the log-probabilities, so this divides by the geometric mean of
the answers to the text alone, to the power of ``strength``. The bank consists of training images kept in the run: what
is subtracted depends on the text alone, never on the other pairs being scored. The same works for the image alone, with
a bank of texts. After Zhao et al. 2021 ("Calibrate before use") and the unimodal debiasing of visual question answering
(Cadene et al. 2019, RUBi); the bank and the choice of the strength (`frevl.training.debiasing.prior`) are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from frevl.models.inputs import ZScore, frozen, mean_pool, stored_in_half
from frevl.models.interface import Build, Items, PairLogits, PairNetwork, PriorSide

__all__ = ["WithoutPrior"]

_PAIRS_AT_ONCE = 4_096


class WithoutPrior(PairNetwork):
    """A network with a bank of items used to measure its prior.

    An item of the kept side costs as much work as the whole bank, so that work is done once per item.
    """

    key = "without-prior"
    item_work = "always"

    def __init__(self, network: PairNetwork, bank: Tensor, mask: Tensor, *, kept: PriorSide, strength: float) -> None:
        """Combine the parts, which become submodules of this network.

        Args:
            network: A classification network.
            bank: ``(m, dim)`` or ``(m, N, dim)`` embeddings of training items of the side that is averaged out.
            mask: ``(m, N)`` bool, True where a token exists; ``(m, 1)`` for pooled embeddings.
            kept: The side whose prior is measured: ``text`` if images are averaged out.
            strength: Weight of the prior, in [0, 1]; with 0 the bank only serves `prior_logits`.
        """
        super().__init__()
        self.settings = {
            "network": network.key,
            "network_settings": network.settings,
            "bank": list(bank.shape),
            "kept": kept,
            "strength": strength,
        }
        self.network, self.strength = network, strength
        self.bank = frozen(*bank.shape)
        self.bank_mask = nn.Parameter(mask.clone(), requires_grad=False)
        with torch.no_grad():
            self.bank.copy_(bank)
        stored_in_half(self, inner=False)
        self.kept: PriorSide = kept
        self.no_int8 = network.no_int8

    @classmethod
    def from_settings(cls, settings: dict[str, Any], build: Build) -> WithoutPrior:
        """Build the network without its weights."""
        shape = [int(size) for size in settings["bank"]]
        return cls(
            build(settings["network"], settings["network_settings"]),
            torch.zeros(shape),
            torch.ones(shape[0], 1 if len(shape) == 2 else shape[1], dtype=torch.bool),
            kept=settings["kept"],
            strength=float(settings["strength"]),
        )

    @property
    def prior(self) -> WithoutPrior:
        """This network, which can answer to one side alone."""
        return self

    @property
    def prior_of(self) -> PriorSide:
        """The side that it can answer to alone."""
        return self.kept

    def prior_logits(self, items: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the ``(n, outputs)`` mean over the bank of the logits of ``(n, dim)`` or ``(n, N, dim)`` items."""
        if items.dim() == 3 and items.shape[1] == 1:  # one token is a pooled item
            items, mask = items.flatten(1), None
        bank_mask = None if self.bank.dim() == 2 else self.bank_mask
        if bank_mask is None and mask is None:
            shorter = self.network.mean_logits(self.kept, items, self.bank)
            if shorter is not None:
                return shorter
        if self.kept == "text":
            bank, own = self.network.image_items(self.bank, bank_mask), self.network.text_items(items, mask)
        else:
            bank, own = self.network.text_items(self.bank, bank_mask), self.network.image_items(items, mask)
        found, size = [], len(self.bank)
        step = max(1, _PAIRS_AT_ONCE // size)
        for start in range(0, len(items), step):
            rows = torch.arange(start, min(start + step, len(items)), device=items.device).repeat_interleave(size)
            places = torch.arange(size, device=items.device).repeat(len(rows) // size)
            of_bank, of_items = tuple(part[places] for part in bank), tuple(part[rows] for part in own)
            masks = None if bank_mask is None else bank_mask[places], None if mask is None else mask[rows]
            if self.kept == "text":
                logits = self.network.score_items(of_bank, of_items, *masks)
            else:
                logits = self.network.score_items(of_items, of_bank, masks[1], masks[0])
            found.append(logits.view(-1, size, logits.shape[1]).mean(dim=1))
        return torch.cat(found)

    def image_items(self, image: Tensor, image_mask: Tensor | None = None) -> Items:
        """Compute what depends on the image alone; if texts are averaged out, its prior comes last."""
        items = self.network.image_items(image, image_mask)
        return items if self.kept == "text" or not self.strength else (*items, self.prior_logits(image, image_mask))

    def text_items(self, text: Tensor, text_mask: Tensor | None = None) -> Items:
        """Compute what depends on the text alone; if images are averaged out, its prior comes last."""
        items = self.network.text_items(text, text_mask)
        return (*items, self.prior_logits(text, text_mask)) if self.kept == "text" and self.strength else items

    def score_items(
        self, images: Items, texts: Items, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return the ``(n, outputs)`` logits of pairs from their items."""
        if not self.strength:
            return self.network.score_items(images, texts, image_mask, text_mask)
        images, texts, prior = self._apart(images, texts)
        return self.network.score_items(images, texts, image_mask, text_mask) - self.strength * prior

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor] | None:
        """Return the inputs of the inner network's last layer, from which the prior is computed too."""
        return self.network.last_layer_inputs(image, text, image_mask, text_mask)

    def doubt(
        self,
        left: Mapping[str, Tensor],
        image: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the doubt of the inner network."""
        return self.network.doubt(left, image, text, image_mask, text_mask)

    def shared_scorer(self, images: Items, texts: Items) -> PairLogits | None:
        """Return the inner network's faster way to score many pairs of few items, if it has one."""
        if not self.strength:
            return self.network.shared_scorer(images, texts)
        own_images, own_texts, prior = self._apart(images, texts)
        shared = self.network.shared_scorer(own_images, own_texts)
        if shared is None:
            return None
        of_text = self.kept == "text"
        return lambda rows, columns: shared(rows, columns) - self.strength * prior[columns if of_text else rows]

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, outputs)`` logits; the shapes are those of `PairNetwork.forward`."""
        items = self.image_items(image, image_mask), self.text_items(text, text_mask)
        return self.score_items(*items, image_mask, text_mask)

    def for_inference(self) -> WithoutPrior:
        """Return the same with the inner network in its form for inference."""
        return self._around(self.network.for_inference())

    def for_export(self) -> nn.Module:
        """Return a form without a loop over blocks of pairs."""
        return _InOneBlock(self) if self.strength else self.network.for_export()

    def input_statistics(self) -> tuple[ZScore, ZScore] | None:
        """Return the statistics of the inner network."""
        return self.network.input_statistics()

    def _around(self, network: PairNetwork) -> WithoutPrior:
        if network is self.network:
            return self
        twin = WithoutPrior.__new__(WithoutPrior)
        nn.Module.__init__(twin)
        twin.settings, twin.network, twin.strength, twin.kept = self.settings, network, self.strength, self.kept
        twin.bank, twin.bank_mask, twin.no_int8 = self.bank, self.bank_mask, self.no_int8
        return twin.eval()

    def _apart(self, images: Items, texts: Items) -> tuple[Items, Items, Tensor]:
        if self.kept == "text":
            return images, texts[:-1], texts[-1]
        return images[:-1], texts, images[-1]


class _InOneBlock(nn.Module):
    """`WithoutPrior.forward` of all pairs with the whole bank at once."""

    def __init__(self, whole: WithoutPrior) -> None:
        super().__init__()
        self.whole = whole
        self.network = deepcopy(whole.network).for_export()
        self.bank, self.bank_mask = whole.bank, whole.bank_mask
        self.kept, self.strength, self.pooled = whole.kept, whole.strength, whole.bank.dim() == 2

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        logits: Tensor = self.network(image, text, image_mask, text_mask)
        own, own_mask = (text, text_mask) if self.kept == "text" else (image, image_mask)
        shorter = (
            self.whole.network.mean_logits(self.kept, mean_pool(own, own_mask), self.bank) if self.pooled else None
        )
        if shorter is not None:
            return logits - self.strength * shorter
        size = self.bank.shape[0]
        bank = self.bank[None].expand(own.shape[0], *self.bank.shape).flatten(0, 1)
        bank_mask = None
        if self.bank.dim() == 3:
            bank_mask = self.bank_mask[None].expand(own.shape[0], *self.bank_mask.shape).flatten(0, 1)
        items = own.repeat_interleave(size, dim=0)
        items_mask = None if own_mask is None else own_mask.repeat_interleave(size, dim=0)
        if self.kept == "text":
            prior = self.network(bank, items, bank_mask, items_mask)
        else:
            prior = self.network(items, bank, items_mask, bank_mask)
        mean: Tensor = prior.view(-1, size, logits.shape[1]).mean(dim=1)
        return logits - self.strength * mean
