"""Embedded pairs together with their right answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frevl.errors import PairsError
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.targets import Answers

__all__ = ["Examples", "dev_metric", "join", "kind_of", "sample_negatives", "with_wrong_texts"]

_DRAWS = 16  # tries to find a wrong text; only where nearly all pairs share an image or text is one missing after that


@dataclass(frozen=True)
class Examples:
    """Pairs with their right answers.

    Attributes:
        pairs: Embedded pairs.
        truth: Answers of a classification; for matching ``(n,)`` float32, 1 where image and text belong together.
        clusters: ``(n,)`` int64; pairs of one number (mostly: of one image) are not independent.
    """

    pairs: EmbeddedPairs
    truth: Answers | Tensor
    clusters: Tensor

    def __len__(self) -> int:
        return len(self.pairs)

    def select(self, rows: Tensor) -> Examples:
        """Return some of the examples, by int64 index."""
        truth = self.truth[rows] if isinstance(self.truth, Tensor) else self.truth.select(rows)
        return Examples(self.pairs.select(rows), truth, self.clusters[rows])


def join(a: Examples, b: Examples) -> Examples:
    """Join the examples of two parts that share their items."""
    pairs = a.pairs.with_rows(
        torch.cat([a.pairs.image_rows, b.pairs.image_rows]), torch.cat([a.pairs.text_rows, b.pairs.text_rows])
    )
    clusters = torch.cat([a.clusters, b.clusters])
    if isinstance(a.truth, Tensor) and isinstance(b.truth, Tensor):
        return Examples(pairs, torch.cat([a.truth, b.truth]), clusters)
    if isinstance(a.truth, Answers) and isinstance(b.truth, Answers):
        return Examples(pairs, a.truth.followed_by(b.truth), clusters)
    raise TypeError("examples of different tasks cannot be joined")


def kind_of(truth: Answers | Tensor) -> str:
    """Return ``match``, ``soft`` or ``class``: which task loss fits."""
    if isinstance(truth, Tensor):
        return "match"
    return "soft" if truth.soft else "class"


def dev_metric(logits: Tensor, truth: Answers | Tensor, class_weights: Tensor | None = None) -> float:
    """Return the share of right answers in [0, 1]: the weight of the predicted class, or right match decisions.

    Args:
        logits: ``(n, outputs)``.
        truth: ``(n,)`` of a matching, or the answers of a classification.
        class_weights: ``(outputs,)`` by which a pair counts, the mean of its answers' weights; None is 1 for each.
    """
    if isinstance(truth, Tensor):
        return ((logits[:, 0] > 0) == (truth > 0.5)).float().mean().item()
    hits = truth.hits(logits.argmax(dim=1))
    if class_weights is None:
        return hits.mean().item()
    shares = truth.dense(torch.arange(len(hits)), len(class_weights))
    weights = shares @ class_weights / shares.sum(dim=1).clamp(min=1e-9)
    return ((hits * weights).sum() / weights.sum().clamp(min=1e-9)).item()


def sample_negatives(
    pairs: EmbeddedPairs, rows: Tensor, count: int, generator: torch.Generator, *, pool: EmbeddedPairs | None = None
) -> tuple[Tensor, Tensor]:
    """Draw wrong texts for images.

    Args:
        pairs: Embedded pairs.
        rows: ``(n,)`` rows of right pairs.
        count: Wrong texts per image.
        generator: Of the random choice.
        pool: Pairs of the same items to draw texts from; None takes the chosen pairs themselves.

    Returns:
        Image rows and text rows of at most ``n * count`` pairs. A text of the same image, or the same text, is
        never a negative; where several draws find nothing else, the pair gets none.
    """
    source = pairs.select(rows) if pool is None else pool
    image, text = pairs.image_rows[rows], pairs.text_rows[rows]
    images, texts = [], []
    for _ in range(count if len(source) else 0):
        drawn = torch.randint(len(source), (len(rows),), generator=generator)
        for _ in range(_DRAWS):
            clash = (source.image_rows[drawn] == image) | (source.text_rows[drawn] == text)
            if not bool(clash.any()):
                break
            drawn = torch.where(clash, torch.randint(len(source), (len(rows),), generator=generator), drawn)
        right = (source.image_rows[drawn] != image) & (source.text_rows[drawn] != text)
        images.append(image[right])
        texts.append(source.text_rows[drawn][right])
    none = rows.new_zeros(0)
    return torch.cat([none, *images]), torch.cat([none, *texts])


def with_wrong_texts(examples: Examples, count: int, seed: int, *, pool: EmbeddedPairs | None = None) -> Examples:
    """Put wrong texts beside every right pair of a matching task, unless the file brought its own.

    Raises:
        PairsError: There is no wrong text to draw.
    """
    truth = examples.truth
    if not isinstance(truth, Tensor) or bool((truth < 0.5).any()):
        return examples
    random = torch.Generator().manual_seed(seed)
    pairs = examples.pairs
    image_rows, text_rows = sample_negatives(pairs, torch.arange(len(pairs)), count, random, pool=pool)
    if len(image_rows) == 0:
        raise PairsError(
            "No wrong text can be drawn: matching expects at least two images with different texts, found one image or "
            "one text; give more pairs, or wrong pairs with target false"
        )
    both = pairs.with_rows(torch.cat([pairs.image_rows, image_rows]), torch.cat([pairs.text_rows, text_rows]))
    clusters = torch.zeros(int(pairs.image_rows.max()) + 1, dtype=torch.long)
    clusters[pairs.image_rows] = examples.clusters
    return Examples(
        both, torch.cat([truth, torch.zeros(len(image_rows))]), torch.cat([examples.clusters, clusters[image_rows]])
    )
