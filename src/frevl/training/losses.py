"""Training losses: ``1.0 task + 0.1 contrastive + 0.01 feature norm`` (weights: FrEVL's public code).

The weights are options; this file has the terms (each a pure function of tensors that returns a scalar) but for the
contrastive one of the fusion (`frevl.training.fitting.contrast`), mixup, and the monitoring of an epoch's losses. ``n``
is the number of pairs in the batch, ``C`` the number of classes. All terms are finite, with finite gradients, at logits
of +-10,000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.errors import TrainingError, UsageError

__all__ = [
    "SeenLosses",
    "batch_contrast",
    "binary_loss",
    "class_loss",
    "draw_mixup",
    "feature_norm_loss",
    "looks_every",
    "mixed",
    "mixup",
    "soft_target_loss",
    "task_loss",
]


def task_loss(
    logits: Tensor, truth: Tensor, *, kind: str, smoothing: float, class_weights: Tensor | None = None
) -> Tensor:
    """Return the loss of the task.

    Args:
        logits: ``(n, outputs)`` logits.
        truth: ``(n,)`` in [0, 1] for ``match``; ``(n, outputs)`` weights for ``class`` and ``soft``.
        kind: ``match``, ``class`` (weights are shares of one answer) or ``soft`` (each class is independent).
        smoothing: Label smoothing in [0, 1).
        class_weights: ``(outputs,)``, for ``class`` only; None means 1 for each.
    """
    if kind == "match":
        return binary_loss(logits, truth, label_smoothing=smoothing)
    if kind == "soft":
        return soft_target_loss(logits, truth)
    shares = truth / truth.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return class_loss(logits, shares, label_smoothing=smoothing, class_weights=class_weights)


def binary_loss(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the binary cross-entropy for matching, averaged over pairs.

    Args:
        logits: ``(n,)`` or ``(n, 1)`` logits.
        targets: ``(n,)`` float in [0, 1]; 1 for a match.
        label_smoothing: ``e`` in [0, 1]: a target ``t`` becomes ``(1 - e) t + e / 2``.

    Raises:
        UsageError: Shapes or types do not match.
    """
    flat = logits.squeeze(1) if logits.dim() == 2 and logits.shape[1] == 1 else logits
    if flat.dim() != 1 or targets.shape != flat.shape or not targets.is_floating_point():
        raise UsageError(
            "binary_loss expects logits (n,) or (n, 1) and float targets (n,), "
            f"but got logits {tuple(logits.shape)} and {targets.dtype} targets {tuple(targets.shape)}."
        )
    smooth = targets * (1.0 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(flat, smooth)


def class_loss(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Return the softmax cross-entropy for exactly one right class, averaged over pairs.

    Args:
        logits: ``(n, C)`` logits.
        targets: ``(n,)`` int64 class numbers, or ``(n, C)`` float with one distribution per row (mixup, several right
            answers). A row of zeros contributes nothing, apart from smoothing.
        label_smoothing: ``e`` in [0, 1]: a distribution ``t`` becomes ``(1 - e) t + e / C``.
        class_weights: ``(C,)``: a pair counts by the mean weight of its targets (ours: PyTorch would weight the
            smoothed targets, which pulls every pair towards rare classes). The sum is divided by the number of pairs,
            not by the sum of their weights.

    Raises:
        UsageError: Shapes or types do not match.
    """
    numbers = targets.dim() == 1 and targets.dtype == torch.int64 and targets.shape == logits.shape[:1]
    if logits.dim() != 2 or not (numbers or (targets.shape == logits.shape and targets.is_floating_point())):
        raise UsageError(
            "class_loss expects logits (n, C) and int64 targets (n,) or float targets (n, C), "
            f"but got logits {tuple(logits.shape)} and {targets.dtype} targets {tuple(targets.shape)}."
        )
    if class_weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    each = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
    return (each * (class_weights[targets] if numbers else targets @ class_weights)).mean()


def soft_target_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy against soft targets for VQA v2, summed over answers, averaged over questions.

    The sum is customary for VQA v2: with a mean over 3,129 answers, the gradient of the few right ones would be
    negligible next to the other terms. There is no label smoothing (ours): the share of the ten annotators is already
    soft, and half of 0.1 on each of 3,129 answers would amount to 156 right answers per question.

    Args:
        logits: ``(n, C)`` logits.
        targets: ``(n, C)`` float in [0, 1]; a row need not sum to 1.

    Raises:
        UsageError: Shapes or types do not match.
    """
    if logits.dim() != 2 or targets.shape != logits.shape or not targets.is_floating_point():
        raise UsageError(
            "soft_target_loss expects logits (n, C) and float targets (n, C), "
            f"but got logits {tuple(logits.shape)} and {targets.dtype} targets {tuple(targets.shape)}."
        )
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / max(logits.shape[0], 1)


def batch_contrast(
    similarity: Tensor, image_places: Tensor, text_ids: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Return the symmetric InfoNCE of a batch of texts and its distinct images, with several positives and soft labels.

    This is the cross-entropy of each row's softmax against a distribution that gives every positive the same share and
    spreads ``label_smoothing`` evenly, averaged over both directions (CLIP's loss with the targets of supervised
    contrastive learning, arXiv 2004.11362, equation 2).

    Args:
        similarity: ``(texts, images)`` logits.
        image_places: ``(texts,)`` int64, the column of each text's image; every column has a text.
        text_ids: ``(texts,)`` integers, equal for rows with the same text: a text that describes two images of the
            batch is a positive of both.
        label_smoothing: In [0, 1).

    Raises:
        UsageError: Shapes do not match.
    """
    texts, images = similarity.shape
    if image_places.shape != (texts,) or text_ids.shape != (texts,):
        raise UsageError(
            f"batch_contrast expects image_places and text_ids ({texts},), but got {tuple(image_places.shape)} and "
            f"{tuple(text_ids.shape)}."
        )
    of_text = similarity.new_zeros(texts, images).scatter_(1, image_places[:, None], 1)
    # Computed on the device of the ids: if that is the CPU, this need not wait for the accelerator.
    names, same = torch.unique(text_ids, return_inverse=True)
    same = same.to(similarity.device, non_blocking=True)
    of_name = similarity.new_zeros(len(names), images)
    positive = of_name.index_add_(0, same, of_text)[same].clamp_(max=1)

    def one_way(logits: Tensor, right: Tensor) -> Tensor:
        return F.cross_entropy(logits, right / right.sum(dim=1, keepdim=True), label_smoothing=label_smoothing)

    return 0.5 * (one_way(similarity, positive) + one_way(similarity.T, positive.T))


def feature_norm_loss(fused: Tensor) -> Tensor:
    """Return the mean squared norm of the fused features (ours: the published regulariser is unknown).

    Args:
        fused: ``(n, k)``, from ``Fusion.fuse``.

    Raises:
        UsageError: The shape does not match.
    """
    if fused.dim() != 2:
        raise UsageError(f"feature_norm_loss expects fused features (n, k), but got {tuple(fused.shape)}.")
    return fused.square().sum() / max(fused.shape[0], 1)


def mixup(
    image_hidden: Tensor,
    text_hidden: Tensor,
    targets: Tensor,
    *,
    generator: torch.Generator,
    alpha: float = 0.2,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix every pair of the batch with another one (mixup, arXiv 1710.09412, on projected features).

    ``x = share * x + (1 - share) * x[other]`` for images, texts and targets, with one ``share`` per batch from
    Beta(alpha, alpha) and a random permutation ``other``.

    This requires targets that can be mixed: probabilities, not class numbers. It also requires pooled embeddings, or
    tokens that all exist (an image grid): the mean of two sentences of different lengths, token by token, is not
    meaningful, and counting missing words as zeros would dilute the shorter one. The contrastive term is
    meaningless on a mixed batch, whose pairs have two images each.

    Args:
        image_hidden: ``(n, d)`` or ``(n, Nv, d)`` projected images.
        text_hidden: ``(n, d)`` or ``(n, Nt, d)`` projected texts.
        targets: ``(n,)`` or ``(n, C)`` float targets.
        generator: A CPU generator. The same state gives the same draws on every device.
        alpha: In (0, 1]; small values mix little.

    Returns:
        Images, texts and targets of the mixed batch, with unchanged shapes.

    Raises:
        UsageError: The targets are integers, or ``alpha`` is out of range.
    """
    share, other = draw_mixup(targets, generator=generator, alpha=alpha)
    return mixed(image_hidden, text_hidden, targets, share, other.to(targets.device))


def mixed(
    image_hidden: Tensor, text_hidden: Tensor, targets: Tensor, share: float | Tensor, other: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix the first ``len(other)`` rows of a batch as in `mixup`, with the values drawn by `draw_mixup`.

    ``share`` is a float32 scalar tensor for a network that is compiled or recorded.
    """

    def mix(x: Tensor) -> Tensor:
        if isinstance(share, Tensor):  # must have the type of what it weighs, and half precision would round it
            return torch.lerp(x[other].float(), x[: len(other)].float(), share).to(x.dtype)
        return torch.lerp(x[other], x[: len(other)], share)

    return mix(image_hidden), mix(text_hidden), mix(targets)


def draw_mixup(targets: Tensor, *, generator: torch.Generator, alpha: float = 0.2) -> tuple[float, Tensor]:
    """Draw the values for `mixup`: one share, and ``(n,)`` int64 other rows, on the generator's device.

    Raises the same errors as `mixup`.
    """
    if not targets.is_floating_point():
        raise UsageError(
            f"mixup needs targets that can be mixed, float (n,) or (n, C), but got {targets.dtype}: "
            "turn class numbers into distributions with torch.nn.functional.one_hot(targets, classes).float()."
        )
    share = _beta(alpha, generator)
    return share, torch.randperm(targets.shape[0], generator=generator)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Draw from Beta(alpha, alpha) by rejection from two uniforms, because PyTorch's sampler takes no generator.

    With ``x = u ** (1/alpha)`` and ``y`` likewise, ``x / (x + y)`` given ``x + y <= 1`` is Beta distributed.
    At least half of all draws are accepted for ``alpha <= 1``.
    """
    if not 0.0 < alpha <= 1.0:
        raise UsageError(f"mixup: alpha must be above 0 and at most 1, but is {alpha}.")
    while True:
        u, w = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
        x, y = u ** (1.0 / alpha), w ** (1.0 / alpha)
        if 0.0 < x + y <= 1.0:
            return float(x / (x + y))


_STEPS_UNSEEN = 50


def looks_every(device: str) -> int:
    """Return the number of steps between loss checks: 1 on a CPU, more elsewhere, as a check waits for the device."""
    return 1 if torch.device(device).type == "cpu" else _STEPS_UNSEEN


@dataclass
class SeenLosses:
    """The losses of an epoch. A non-finite loss ends the training when checked, with the number of its batch.

    Attributes:
        where: The epoch, for the message.
        title: Name of the training.
        remedy: Advice for the message.
        steps: Number of steps per epoch.
        every: Number of steps between checks.
        last: The last loss checked.
        seen: Number of steps looked at.
        sums: Sum of every term over these steps.
    """

    where: str
    title: str
    remedy: str
    steps: int
    every: int
    last: float = 0.0
    seen: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    _unseen: list[tuple[int, Tensor]] = field(default_factory=list)

    def add(self, batch: int, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Add the loss of a batch with its terms, and check if due.

        Raises the same errors as `look`.
        """
        self.sums = self.sums or dict.fromkeys(terms, 0.0)
        self._unseen.append((batch, torch.stack([part.detach().float() for part in (loss, *terms.values())])))
        if len(self._unseen) >= self.every:
            self.look()

    @property
    def means(self) -> dict[str, float]:
        """Mean of every term over the steps looked at, which the time limit may have made fewer than an epoch has."""
        return {name: value / max(1, self.seen) for name, value in self.sums.items()}

    def look(self) -> None:
        """Check all unchecked losses.

        Raises:
            TrainingError: A loss is not finite.
        """
        seen = torch.stack([values for _, values in self._unseen]).tolist() if self._unseen else []
        for (batch, _), (value, *parts) in zip(self._unseen, seen, strict=True):
            self.last = value
            if not math.isfinite(self.last):
                named = ", ".join(f"{name} {part:.4g}" for name, part in zip(self.sums, parts, strict=True))
                raise TrainingError(
                    f"{self.title}: expected a finite loss, found {self.last} in {self.where}, batch {batch + 1} "
                    f"of {self.steps}{named and f' ({named})'}; {self.remedy}"
                )
            self.seen += 1
            for name, part in zip(self.sums, parts, strict=True):
                self.sums[name] += part
        self._unseen.clear()
