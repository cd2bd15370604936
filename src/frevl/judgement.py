"""What each term of a reranked score is worth on development data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from frevl.batches import EmbeddedPairs
from frevl.blend import ALIGNMENT_WEIGHTS, DEPTHS, Blend, Candidates, candidates_of, choose_blend
from frevl.dual import FirstStage
from frevl.rerank import Items, Reranked

__all__ = ["Judgement", "judged", "judged_alone", "judged_part"]

_MOST_JUDGED = 1000  # development images that weights are chosen on
_PAIRS_AT_ONCE = 4096


@dataclass(frozen=True)
class Judgement:
    """A first stage alone, with crowds, and with crowds and fusion, on development data.

    Attributes:
        first: The first stage alone.
        crowded: With crowds taken back.
        aligned: With the kernel alignment and crowds.
        fused: With the fusion too.
        owners: ``(texts,)`` row of the image of each text.
    """

    first: Blend
    crowded: Blend
    aligned: Blend
    fused: Blend
    owners: Tensor

    def by_image(self, blend: Blend) -> Tensor:
        """``(images,)``: the mean of the six hits of each image and its texts, what candidates are compared by."""
        texts = torch.zeros(len(blend.i2t)).index_add_(0, self.owners, blend.t2i.mean(dim=1))
        counts = torch.zeros(len(blend.i2t)).index_add_(0, self.owners, torch.ones(len(self.owners)))
        return 0.5 * blend.i2t.mean(dim=1) + 0.5 * texts / counts.clamp(min=1)

    def record(self) -> dict[str, Any]:
        """Return what the run keeps."""
        return {"first_stage": self.first.record(), "with_crowds": self.crowded.record(),
                "with_alignment": self.aligned.record(), "with_fusion": self.fused.record()}  # fmt: skip


def judged_part(dev: EmbeddedPairs, seed: int) -> EmbeddedPairs:
    """Return the pairs of at most 1,000 development images: weights need no more."""
    kept = torch.unique(dev.image_rows)
    kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))[:_MOST_JUDGED]]
    return dev.select(torch.isin(dev.image_rows, kept))


def judged_alone(network: FirstStage, dev: EmbeddedPairs) -> Judgement:
    """Judge a first stage without anything else; all results are the same but for crowds, which mean nothing here."""
    width = network.image_vectors(dev.images[:1].float(), _mask(dev.image_mask, torch.tensor([0]))).shape[1]
    nothing = {"alignment": 0.0, "image_crowd": 0.0, "text_crowd": 0.0, "fusion": 0.0}
    bank = torch.zeros(1, width)
    return judged(Reranked.of(network, bank, bank, None, weights=nothing, depth=max(DEPTHS)), dev)


def judged(network: Reranked, dev: EmbeddedPairs) -> Judgement:
    """Rank development data by the first stage and choose the weights of the other terms.

    Args:
        network: First stage, banks, alignment and fusion; its own weights play no part.
        dev: Right pairs of development.
    """
    image_ids, image_at = torch.unique(dev.image_rows, return_inverse=True)
    text_ids, text_at = torch.unique(dev.text_rows, return_inverse=True)
    right = torch.zeros(len(image_ids), len(text_ids), dtype=torch.bool)
    right[image_at, text_at] = True
    with torch.inference_mode():
        vectors = [
            _items(make, *side)[0]
            for make, side in (
                (lambda *one: (network.first.image_vectors(*one),), (dev.images, dev.image_mask, image_ids)),
                (lambda *one: (network.first.text_vectors(*one),), (dev.texts, dev.text_mask, text_ids)),
            )
        ]
        first = vectors[0] @ vectors[1].T
        of_image = candidates_of(first, right, max(DEPTHS))
        of_text = candidates_of(first.T.contiguous(), right.T.contiguous(), max(DEPTHS))
        queries = [
            torch.arange(len(columns))[:, None].expand_as(columns).reshape(-1) for columns, _ in (of_image, of_text)
        ]
        pairs = ((queries[0], of_image[0].reshape(-1)), (of_text[0].reshape(-1), queries[1]))

        def fusions(part: Reranked) -> list[Tensor]:
            if part.fusion is None:
                return [torch.zeros(len(rows)) for rows, _ in pairs]
            images = _items(part.image_items, dev.images, dev.image_mask, image_ids)
            texts = _items(part.text_items, dev.texts, dev.text_mask, text_ids)
            found = []
            for rows, columns in pairs:
                parts = []
                for start in range(0, len(rows), _PAIRS_AT_ONCE):
                    a, b = rows[start : start + _PAIRS_AT_ONCE], columns[start : start + _PAIRS_AT_ONCE]
                    masks = _mask(dev.image_mask, image_ids[a]), _mask(dev.text_mask, text_ids[b])
                    parts.append(part.terms(_at(images, a), _at(texts, b), *masks)[:, 3])
                found.append(torch.cat(parts))
            return found

        fused = [said.view(chosen[0].shape) for said, chosen in zip(fusions(network), (of_image, of_text), strict=True)]
        sides = []
        weights = [weight for weight in ALIGNMENT_WEIGHTS if weight == 0 or network.alignment is not None]
        for weight in weights:
            plain = {"alignment": weight, "image_crowd": 0.0, "text_crowd": 0.0, "fusion": 0.0}
            part = network.weighed(plain, network.depth)
            images = _items(part.image_items, dev.images, dev.image_mask, image_ids)
            texts = _items(part.text_items, dev.texts, dev.text_mask, text_ids)
            base = part.first_grid(images[0], texts[0])
            both = []
            for grid, chosen, crowd, fusion in (
                (base, of_image, texts[1], fused[0]),
                (base.T, of_text, images[1], fused[1]),
            ):
                columns = torch.stack([grid.gather(1, chosen[0]), crowd[chosen[0]], fusion], dim=2)
                both.append(Candidates(*chosen, columns))
            sides.append(both)
    alone = _best([choose_blend(*sides[0], crowd=False, fusion=False)])
    least = alone.metrics["i2t_r1"] / 100 - 1e-6, alone.metrics["t2i_r1"] / 100 - 1e-6
    crowded = _best([choose_blend(*sides[0], fusion=False, least=least)])
    found = {}
    for name, allowed in (("aligned", False), ("fused", network.fusion is not None)):
        blends = [
            None if (blend := choose_blend(*side, fusion=allowed, least=least)) is None
            else replace(blend, weights={**blend.weights, "alignment": weight})
            for weight, side in zip(weights, sides, strict=True)
        ]  # fmt: skip
        found[name] = _best(blends)
    return Judgement(alone, crowded, found["aligned"], found["fused"], right.float().argmax(dim=0))


def _best(blends: list[Blend | None]) -> Blend:
    """The best mean recall; among equals the first, which weighs the alignment least."""
    return max((blend for blend in blends if blend is not None), key=lambda blend: blend.mean)


def _items(make: Callable[..., tuple[Tensor, ...]], values: Tensor, mask: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    """Do the work of single items, in blocks."""
    starts = range(0, len(ids), 1024)
    parts = [make(values[part].float(), _mask(mask, part)) for part in (ids[start : start + 1024] for start in starts)]
    return tuple(torch.cat(field) for field in zip(*parts, strict=True))


def _mask(mask: Tensor, rows: Tensor) -> Tensor | None:
    return None if mask.shape[1] == 1 else mask[rows]


def _at(items: tuple[Tensor, ...], rows: Tensor) -> Items:
    return items[0][rows], items[1][rows], items[2][rows]
