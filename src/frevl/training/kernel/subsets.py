"""Build networks on subsets of many training pairs, with the statistics of all, measured in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from frevl.errors import TrainingError
from frevl.models.classification.linear_problem import statistics_in_blocks
from frevl.models.inputs import ZScore, mean_pool
from frevl.models.kernel_ridge import KernelFusion, median_distance
from frevl.runs.targets import Answers, class_weights_of
from frevl.training.examples import Examples
from frevl.training.kernel.fit import pair_weights_of
from frevl.training.kernel.problem import WITHOUT_CHOICE, Problem, Sum, known_pairs
from frevl.training.options import KernelOptions

__all__ = ["Rooms"]

_ITEMS_AT_ONCE = 8_192
_PARTS_KEPT = 8  # after which the pages of memory-mapped embeddings are released
_FOR_WIDTHS = 2_000  # items whose distances determine the width of a kernel


@dataclass(frozen=True, eq=False)
class Rooms:
    """What networks on any subset of the training pairs have in common.

    Attributes:
        train: All training pairs.
        truth: The right answers of the training pairs.
        outputs: Number of classes.
        pair_weights: ``(n,)``, 1 on average; None: 1 for each.
        image_root: As in `KernelFusion`.
        state: Statistics, widths and mean targets, in the form of a network's state.
    """

    train: Examples
    truth: Answers
    outputs: int
    pair_weights: Tensor | None
    image_root: bool
    state: dict[str, Tensor]

    @classmethod
    def measured(cls, train: Examples, truth: Answers, outputs: int, options: KernelOptions) -> Rooms:
        """Measure all items that the pairs use, block by block.

        Raises:
            TrainingError: The embeddings are not finite.
        """
        image_numbers, text_numbers = torch.unique(train.pairs.image_rows), torch.unique(train.pairs.text_rows)
        least = 0.0
        for part in _items(train, "images", image_numbers):
            if not bool(part.isfinite().all()):
                raise _not_finite()
            least = min(least, part.min().item()) if part.numel() else least
        root = bool(train.pairs.images.shape[2]) and least >= 0
        image = _statistics(train, "images", image_numbers, root=root)
        text = _statistics(train, "texts", text_numbers, root=False)
        if not all(bool(one.mean.isfinite().all()) for one in (image, text)):
            raise _not_finite()
        pair_weights = None
        of_classes = class_weights_of(truth, outputs, options.class_weight)
        every = torch.arange(len(train))
        if of_classes is not None:
            parts = (truth.dense(rows, outputs) for rows in torch.split(every, _ITEMS_AT_ONCE))
            pair_weights = torch.cat([pair_weights_of(part, of_classes) for part in parts])
            pair_weights /= pair_weights.mean()
        mean = torch.zeros(outputs).double()
        for rows in torch.split(every, _ITEMS_AT_ONCE):
            part = truth.dense(rows, outputs).double()
            mean += (part if pair_weights is None else part * pair_weights[rows, None]).sum(dim=0)
        state = {
            "image_mean": image.mean,
            "image_scale": image.scale,
            "text_mean": text.mean,
            "text_scale": text.scale,
            "mean": (mean / len(train)).float(),
        }
        rooms = cls(train, truth, outputs, pair_weights, root, state)
        some, others = (numbers[:: max(1, len(numbers) // _FOR_WIDTHS)] for numbers in (image_numbers, text_numbers))
        frame = rooms._network(0, some, others, WITHOUT_CHOICE)
        state["image_width"], state["text_width"] = median_distance(frame.images), median_distance(frame.texts)
        return rooms

    def room(self, rows: Tensor, kind: Sum) -> KernelFusion:
        """Return an unsolved network on some of the pairs."""
        pairs = self.train.pairs
        image_numbers, image_rows = torch.unique(pairs.image_rows[rows], return_inverse=True)
        text_numbers, text_rows = torch.unique(pairs.text_rows[rows], return_inverse=True)
        network = self._network(len(rows), image_numbers, text_numbers, kind)
        network.image_rows.copy_(image_rows)
        network.text_rows.copy_(text_rows)
        return network

    def _network(self, pairs: int, image_numbers: Tensor, text_numbers: Tensor, kind: Sum) -> KernelFusion:
        network = KernelFusion(
            image_dim=self.train.pairs.images.shape[2],
            text_dim=self.train.pairs.texts.shape[2],
            outputs=self.outputs,
            pairs=pairs,
            images=len(image_numbers),
            texts=len(text_numbers),
            shares=kind.shares,
            image_root=self.image_root,
        )
        network.load_state_dict({**network.state_dict(), **self.state})
        for own, normal, side, numbers in (
            (network.images, network.normal_image, "images", image_numbers),
            (network.texts, network.normal_text, "texts", text_numbers),
        ):
            done = 0
            for part in _items(self.train, side, numbers):
                own[done : done + len(part)] = normal(part)
                done += len(part)
        return network

    def problem(self, rows: Tensor) -> Problem:
        """Return an exact problem on some of the pairs."""
        room = self.room(rows, WITHOUT_CHOICE)
        weights, clusters = self.truth.dense(rows, self.outputs), self.train.clusters[rows]
        return Problem(
            room,
            room.image_rows.data,
            room.text_rows.data,
            weights - room.mean,
            clusters,
            known_pairs(weights, clusters),
            None if self.pair_weights is None else self.pair_weights[rows],
        )


def _items(train: Examples, side: str, numbers: Tensor) -> Iterator[Tensor]:
    """Yield ``(m, dim)`` float32 items, pooled, some thousands at a time."""
    values, mask = (
        (train.pairs.images, train.pairs.image_mask) if side == "images" else (train.pairs.texts, train.pairs.text_mask)
    )
    for number, part in enumerate(torch.split(numbers, _ITEMS_AT_ONCE)):
        if number % _PARTS_KEPT == _PARTS_KEPT - 1:
            train.pairs.release()
        yield mean_pool(values[part].float(), mask[part])


def _statistics(train: Examples, side: str, numbers: Tensor, *, root: bool) -> ZScore:
    width = train.pairs.images.shape[2] if side == "images" else train.pairs.texts.shape[2]
    if not width:  # a side that is absent from the pairs
        return ZScore(torch.zeros(0), torch.ones(0))
    parts = _items(train, side, numbers)
    return statistics_in_blocks((part.sqrt() if root else part for part in parts), width)


def _not_finite() -> TrainingError:
    return TrainingError("The kernel fusion found no solution: the embeddings are not finite; run frevl store verify")
