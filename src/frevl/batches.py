"""Pairs and their embeddings as tensors in memory, from which batches are taken by index.

Every image and text stands once, whatever the number of pairs that use it, in the type in which it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frevl.errors import PairsError
from frevl.pairs import Pairs, Target
from frevl.rejects import Reject
from frevl.store import Store

__all__ = ["Answers", "EmbeddedPairs", "Inputs", "encode_answers", "label_vocabulary", "logits_of", "usable_pairs"]

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class EmbeddedPairs:
    """Embeddings of the different images and texts, and which of them make a pair.

    Attributes:
        images: ``(images, tokens, dim)`` in the stored type.
        image_mask: ``(images, tokens)`` bool.
        texts: ``(texts, tokens, dim)``.
        text_mask: ``(texts, tokens)`` bool.
        image_rows: ``(n,)`` int64, row of each pair's image.
        text_rows: ``(n,)`` int64, row of each pair's text.
    """

    images: Tensor
    image_mask: Tensor
    texts: Tensor
    text_mask: Tensor
    image_rows: Tensor
    text_rows: Tensor

    @classmethod
    def of(
        cls,
        images: Sequence[str],
        texts: Sequence[str],
        image_embeddings: dict[str, int],
        image_values: tuple[np.ndarray, np.ndarray],
        text_embeddings: dict[str, int],
        text_values: tuple[np.ndarray, np.ndarray],
    ) -> EmbeddedPairs:
        """Build from ids, the row of every id, and ``(values, mask)`` arrays."""
        return cls(
            torch.from_numpy(image_values[0]),
            torch.from_numpy(image_values[1]),
            torch.from_numpy(text_values[0]),
            torch.from_numpy(text_values[1]),
            torch.tensor([image_embeddings[id_] for id_ in images], dtype=torch.long),
            torch.tensor([text_embeddings[text] for text in texts], dtype=torch.long),
        )

    def __len__(self) -> int:
        return len(self.image_rows)

    def with_rows(self, image_rows: Tensor, text_rows: Tensor) -> EmbeddedPairs:
        """Return other pairs of the same items."""
        return replace(self, image_rows=image_rows, text_rows=text_rows)

    def items(self, image_rows: Tensor, text_rows: Tensor) -> EmbeddedPairs:
        """Return some of the items, ``(n,)`` and ``(m,)`` int64, without pairs."""
        none = image_rows.new_zeros(0)
        return EmbeddedPairs(
            self.images[image_rows], self.image_mask[image_rows], self.texts[text_rows], self.text_mask[text_rows],
            none, none,
        )  # fmt: skip

    def select(self, rows: Tensor) -> EmbeddedPairs:
        """Return some of the pairs, by index or bool mask."""
        return self.with_rows(self.image_rows[rows], self.text_rows[rows])

    def inputs(self, image_rows: Tensor, text_rows: Tensor, device: torch.device | str = "cpu") -> Inputs:
        """Return ``(image, text, image_mask, text_mask)`` of pairs in float32, as `Fusion.forward` takes them.

        Pooled embeddings come as ``(n, dim)`` without a mask.
        """
        image, image_mask = _rows(self.images, self.image_mask, image_rows, device)
        text, text_mask = _rows(self.texts, self.text_mask, text_rows, device)
        return image, text, image_mask, text_mask

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[Inputs]:
        """Yield the inputs of all pairs in their order."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield self.inputs(self.image_rows[rows], self.text_rows[rows], device)


def _rows(values: Tensor, mask: Tensor, rows: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
    chosen = values[rows].to(device).float()
    if values.shape[1] == 1:
        return chosen[:, 0], None
    return chosen, mask[rows].to(device)


@dataclass(frozen=True)
class Answers:
    """Classification targets as numbers; a pair has up to ``k`` answers.

    Attributes:
        classes: ``(n, k)`` int64 class indices, -1 where there is no (known) answer.
        weights: ``(n, k)`` float32 in [0, 1], 0 where there is none.
        soft: True if the file gave weights: then answers are judged one by one and need not sum to 1.
    """

    classes: Tensor
    weights: Tensor
    soft: bool

    def dense(self, rows: Tensor, outputs: int) -> Tensor:
        """Return the ``(len(rows), outputs)`` float32 weights of every class."""
        target = torch.zeros(len(rows), outputs + 1)
        # Answers outside the vocabulary (-1) fall into a column that is cut off.
        target.scatter_(1, self.classes[rows].where(self.classes[rows] >= 0, outputs), self.weights[rows])
        return target[:, :outputs]

    def select(self, rows: Tensor) -> Answers:
        """Return the answers of some pairs, by index or bool mask."""
        return Answers(self.classes[rows], self.weights[rows], self.soft)

    def followed_by(self, other: Answers) -> Answers:
        """Return these answers and then those of other pairs, in the same classes."""
        width = max(self.classes.shape[1], other.classes.shape[1])

        def wide(values: Tensor, empty: float) -> Tensor:
            return F.pad(values, (0, width - values.shape[1]), value=empty)

        return Answers(
            torch.cat([wide(self.classes, -1), wide(other.classes, -1)]),
            torch.cat([wide(self.weights, 0), wide(other.weights, 0)]),
            self.soft or other.soft,
        )

    def hits(self, predicted: Tensor) -> Tensor:
        """Return ``(n,)`` float32: the weight of the predicted class, 1 for a right answer."""
        return (self.weights * (self.classes == predicted[:, None])).sum(dim=1)


def logits_of(network: nn.Module, pairs: EmbeddedPairs, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the ``(n, outputs)`` float32 logits of a network in evaluation mode, on the CPU."""
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(*inputs).cpu() for inputs in pairs.batches(batch_size, device)])


def label_vocabulary(targets: Sequence[Target | None], *, min_count: int = 1) -> list[str]:
    """Return the classes of training targets, the most frequent first, ties in alphabetical order.

    Args:
        targets: Training targets only: a vocabulary that has seen test answers leaks.
        min_count: Leave out answers that fewer pairs name.

    Raises:
        PairsError: No class is frequent enough.
    """
    counts: dict[str, int] = {}
    for target in targets:
        for answer, weight in _weights(target).items():
            if weight > 0:
                counts[answer] = counts.get(answer, 0) + 1
    labels = sorted((answer for answer, n in counts.items() if n >= min_count), key=lambda a: (-counts[a], a))
    if not labels:
        raise PairsError(f"No answer of the training pairs is named by at least {min_count} pairs; lower the minimum")
    return labels


def encode_answers(targets: Sequence[Target | None], labels: Sequence[str]) -> Answers:
    """Turn targets into class indices and weights."""
    index = {label: i for i, label in enumerate(labels)}
    rows = [_weights(target) for target in targets]
    longest = max((len(row) for row in rows), default=1) or 1
    classes = np.full((len(rows), longest), -1, np.int64)
    weights = np.zeros((len(rows), longest), np.float32)
    for i, row in enumerate(rows):
        for k, (answer, weight) in enumerate(row.items()):
            if answer in index:
                classes[i, k], weights[i, k] = index[answer], weight
    soft = any(isinstance(target, dict) for target in targets)
    return Answers(torch.from_numpy(classes), torch.from_numpy(weights), soft)


def usable_pairs(pairs: Pairs, store: Store) -> tuple[Pairs, list[Reject]]:
    """Leave out the pairs whose image or text was rejected at extraction.

    Args:
        pairs: As read.
        store: Where their embeddings are. A text that it has never seen is usable: it can still be embedded.

    Returns:
        The usable pairs, and one reject for each that is left out.

    Raises:
        PairsError: A pair names an image that the store has never seen, or no pair is left.
    """
    known_images, rejects = store.positions("image"), store.rejects()
    broken = {reject.id: reject.reason for reject in rejects if reject.kind == "image"}
    broken_texts = {reject.id: reject.reason for reject in rejects if reject.kind == "text"}
    if broken_texts:
        known_texts = store.positions("text")  # another encoder, or a later call, may have embedded it
        broken_texts = {text: reason for text, reason in broken_texts.items() if text not in known_texts}
    unknown = [i for i, image in enumerate(pairs.images) if image not in known_images and image not in broken]
    if unknown:
        first = unknown[0]
        raise PairsError(
            f"{pairs.places[first]}, field 'image': the store has no image '{pairs.images[first]:.80}' "
            f"({len(unknown):,} of {len(pairs):,} pairs name unknown images); "
            "extract the folder that holds them, or correct the ids"
        )
    kept, left_out = [], []
    for i, (image, text) in enumerate(zip(pairs.images, pairs.texts, strict=True)):
        if image not in known_images:
            left_out.append(Reject("pair", pairs.places[i], f"its image '{image}' was rejected: {broken[image]}"))
        elif text in broken_texts:
            left_out.append(
                Reject("pair", pairs.places[i], f"its text '{text:.80}' was rejected: {broken_texts[text]}")
            )
        else:
            kept.append(i)
    if not kept:
        raise PairsError(f"{pairs.places[0]}: no pair is left, everything was rejected ({left_out[0].reason})")
    return pairs.select(kept), left_out


def _weights(target: Target | None) -> dict[str, float]:
    if target is None:
        return {}
    if isinstance(target, str):
        return {target: 1.0}
    return dict.fromkeys(target, 1.0) if isinstance(target, list) else target
