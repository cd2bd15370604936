"""Embedded pairs with their right answers, and the other inputs of a training. This module does not read a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from frevl.data.packed.columns import in_order, is_given, joined, one_column
from frevl.data.pairs import Pairs, Side, split_by_image
from frevl.errors import PairsError, counted
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.targets import Answers, encode_answers, label_vocabulary, match_truth
from frevl.training.selection.spare_classes import MOST_SET_ASIDE, spare_clusters

if TYPE_CHECKING:
    from frevl.store.towers import Tower

__all__ = [
    "Examples",
    "Prepared",
    "dev_hits",
    "dev_metric",
    "examples_of",
    "join",
    "kind_of",
    "on_device",
    "sample_negatives",
    "set_aside",
    "with_wrong_texts",
]

_DRAWS = 16  # attempts to find a wrong text; these fail only if nearly all pairs share an image or text


@dataclass(frozen=True)
class Examples:
    """Pairs with their right answers.

    Attributes:
        pairs: The embedded pairs.
        truth: Answers in classification; in matching ``(n,)`` float32, 1 if image and text belong together.
        clusters: ``(n,)`` int64; pairs with the same number (mostly: the same image) are not independent.
    """

    pairs: EmbeddedPairs
    truth: Answers | Tensor
    clusters: Tensor

    def __len__(self) -> int:
        return len(self.pairs)

    def on(self, device: torch.device | str) -> Examples:
        """Return the same examples with embeddings and answers on a device; in matching, truth stays with the rows."""
        truth = self.truth if isinstance(self.truth, Tensor) else self.truth.on(device)
        return Examples(self.pairs.on(device), truth, self.clusters)

    def select(self, rows: Tensor) -> Examples:
        """Return some of the examples, by int64 index."""
        truth = self.truth[rows] if isinstance(self.truth, Tensor) else self.truth.select(rows)
        return Examples(self.pairs.select(rows), truth, self.clusters[rows])


@dataclass(frozen=True)
class Prepared:
    """The prepared data of a training.

    Attributes:
        train: Training examples.
        dev: Development examples; in matching, every right pair comes with a wrong one.
        labels: Classes, most frequent first; empty for matching.
        image_towers: Image towers to concatenate, in order; none if the pairs have only texts.
        text_towers: Text towers to concatenate, in order; none if the pairs have only images.
        encoders: Names of the encoders of these towers, in the requested order.
        image_hashes: ``(n,)`` uint64, sorted: content hashes of the images of both parts, or of their texts if there
            are no images.
        notes: Notes for the user.
        dev_is_spare: Whether the development examples were set aside from the training pairs, not given.
        dev_is_seen: Whether the development examples are also training examples, because setting them aside would have
            removed classes: a metric on them is meaningless.
        doubts: Notes that are shown before every metric.
    """

    train: Examples
    dev: Examples
    labels: list[str]
    image_towers: list[Tower]
    text_towers: list[Tower]
    encoders: list[str]
    image_hashes: np.ndarray
    notes: list[str]
    dev_is_spare: bool
    dev_is_seen: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides of the pairs: image, text, or both."""
        towers: dict[Side, list[Tower]] = {"image": self.image_towers, "text": self.text_towers}
        return tuple(side for side, own in towers.items() if own)


def on_device(examples: Examples, device: torch.device | str) -> Examples:
    """Return the examples entirely on an accelerator if its memory allows (`EmbeddedPairs.fits`)."""
    return examples.on(device) if examples.pairs.fits(device) else examples


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
    """Return the kind of task loss that fits: ``match``, ``soft`` or ``class``."""
    if isinstance(truth, Tensor):
        return "match"
    return "soft" if truth.soft else "class"


def dev_metric(logits: Tensor, truth: Answers | Tensor, class_weights: Tensor | None = None) -> float:
    """Return the accuracy in [0, 1]: the mean weight of the predicted classes, or the share of right match decisions.

    Args:
        logits: ``(n, outputs)`` logits.
        truth: ``(n,)`` for matching, or the answers of a classification.
        class_weights: ``(outputs,)`` weights of the classes; a pair counts by the mean weight of its answers. None
            means equal weights.
    """
    hits = dev_hits(logits, truth)
    if class_weights is None or isinstance(truth, Tensor):
        return hits.mean().item()
    shares = truth.dense(torch.arange(len(hits)), len(class_weights))
    weights = shares @ class_weights / shares.sum(dim=1).clamp(min=1e-9)
    return ((hits * weights).sum() / weights.sum().clamp(min=1e-9)).item()


def dev_hits(logits: Tensor, truth: Answers | Tensor) -> Tensor:
    """Return ``(n,)`` numbers from 0 to 1: how right each prediction is; arguments as in `dev_metric`."""
    if isinstance(truth, Tensor):
        return ((logits[:, 0] > 0) == (truth > 0.5)).float()
    return truth.hits(logits.argmax(dim=1))


def sample_negatives(
    pairs: EmbeddedPairs, rows: Tensor, count: int, generator: torch.Generator, *, pool: EmbeddedPairs | None = None
) -> tuple[Tensor, Tensor]:
    """Draw wrong texts for images.

    Args:
        pairs: Embedded pairs.
        rows: ``(n,)`` rows of right pairs.
        count: Number of wrong texts per image.
        generator: Random generator.
        pool: Pairs with the same items to draw texts from; None uses the chosen pairs themselves.

    Returns:
        Image rows and text rows of at most ``n * count`` pairs. The same text, or another text of the same image, is
        never a negative; if several draws give nothing else, the pair has no negative.
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
    """Add a wrong text to every right pair in matching, unless the file has wrong pairs of its own.

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


def set_aside(pairs: Pairs, share: float, *, task: str, min_answer_count: int, seed: int) -> tuple[Pairs, Pairs, bool]:
    """Set pairs aside for development, keeping groups whole.

    Args:
        pairs: Pairs to split.
        share: Share of the groups to set aside, in (0, 1); reduced if more than about `MOST_SET_ASIDE` pairs would be
            set aside.
        task: ``matching`` or ``classification``; the latter needs targets.
        min_answer_count: Answers of fewer pairs than this are not classes.
        seed: Random seed of the choice of groups.

    Returns:
        Training pairs, development pairs, and whether the latter are also training pairs, because setting them aside
        would remove every class.

    Raises:
        PairsError: There are too few pairs, or targets are missing.
    """
    share = min(share, MOST_SET_ASIDE / max(len(pairs), 1))
    if task == "matching":
        _check_enough_to_split(pairs)
        return *split_by_image(pairs, share, seed=seed), False
    _check_targets(pairs)
    return _set_aside(pairs, share, seed, min_answer_count)


def examples_of(
    parts: Sequence[Pairs],
    embedded: Sequence[EmbeddedPairs],
    *,
    task: str,
    min_answer_count: int,
    seed: int,
    dev_is_spare: bool,
    dev_is_seen: bool,
    notes: list[str],
) -> tuple[Examples, Examples, list[str]]:
    """Convert pairs to examples: classes from the training part, and wrong texts for the development part in matching.

    Args:
        parts: Training and development pairs.
        embedded: The same pairs with their embeddings, which share their items.
        task: ``matching`` or ``classification``.
        min_answer_count: Answers of fewer training pairs than this are not classes.
        seed: Random seed for drawing wrong texts.
        dev_is_spare: Whether the development pairs were set aside from the training pairs.
        dev_is_seen: Whether the development pairs are also training pairs.
        notes: Receives notes for the user.

    Returns:
        Training and development examples, and the classes (empty for matching).

    Raises:
        PairsError: Targets are missing, there is only one class, or there is no right pair.
    """
    train_pairs, dev_pairs = parts
    clusters = _number_clusters(parts)
    labels: list[str] = []
    if task == "matching":
        right = match_truth(train_pairs)
        train = Examples(embedded[0], right, clusters[0])
        dev_examples = with_wrong_texts(
            Examples(embedded[1], match_truth(dev_pairs), clusters[1]), 1, seed, pool=_right(embedded, right, dev_pairs)
        )
        if not bool((right > 0.5).any()):
            raise PairsError(
                f"{train_pairs.places[0]}: expected right image-text pairs, found only wrong ones; if some pairs "
                "have a target, the right ones need the target true"
            )
    else:
        for part in (train_pairs, dev_pairs):
            _check_targets(part)
        labels = label_vocabulary(train_pairs.targets, min_count=min_answer_count)
        if len(labels) < 2:
            left_out = next((f". {note}" for note in notes if note.startswith("Left out: ")), "")
            raise PairsError(
                f"{train_pairs.places[0].rpartition(':')[0]}, field 'target': expected at least two classes in the "
                f"training pairs, found only '{labels[0]:.60}'{left_out}"
            )
        learned = len(labels)
        if dev_is_spare:  # classes of the pairs set aside also count: the final model may be trained on them
            both = label_vocabulary(one_column([train_pairs.targets, dev_pairs.targets]), min_count=min_answer_count)
            labels += [label for label in both if label not in set(labels)]
        train = _with_known_answers(
            Examples(embedded[0], encode_answers(train_pairs.targets, labels), clusters[0]), notes
        )
        dev_answers = encode_answers(dev_pairs.targets, labels)
        dev_examples = Examples(embedded[1], dev_answers, clusters[1])
        known = (dev_answers.classes >= 0) & (dev_answers.classes < learned)
        unseen = int((~known.any(dim=1)).sum())
        if unseen:
            said = counted(unseen, "development pair has", "development pairs have")
            notes.append(
                f"{'Unknown classes: ' if 2 * unseen > len(dev_pairs) else ''}{said} only classes that do not occur in "
                "training; they count as wrong."
            )
        notes += [] if dev_is_seen else _single_class(dev_pairs)
    return train, dev_examples, labels


def _set_aside(pairs: Pairs, share: float, seed: int, min_answer_count: int) -> tuple[Pairs, Pairs, bool]:
    """Split labelled pairs as `split_by_image` does, but keep every class in the training part.

    Returns:
        Training part, development part, and whether the training part includes the development part, because less than
        half of the requested number can be spared.
    """
    kept, held = split_by_image(pairs, share, seed=seed)
    answers = encode_answers(pairs.targets, label_vocabulary(pairs.targets, min_count=min_answer_count))
    codes, names = joined([pairs.clusters])
    places = np.empty(len(names), np.int64)
    places[in_order(names)] = np.arange(len(names))  # the order in which `split_by_image` draws
    clusters = torch.from_numpy(places[codes[0]])
    order = np.random.default_rng(seed).permutation(len(names))
    wanted = len(joined([held.clusters])[1])
    spared = spare_clusters(clusters, answers, order, wanted)
    if spared == order[:wanted].tolist():
        return kept, held, False
    if 2 * len(spared) < wanted:
        return pairs, held, True
    inside = np.isin(clusters.numpy(), spared)
    return pairs.select(np.flatnonzero(~inside)), pairs.select(np.flatnonzero(inside)), False


def _check_enough_to_split(pairs: Pairs) -> None:
    """Refuse just two images with right pairs: with one set aside, the other would have no wrong text."""
    images = len(joined([pairs.images])[1])
    if images == 2 and bool((match_truth(pairs) > 0.5).all()):
        raise PairsError(
            f"{pairs.places[0].rpartition(':')[0]}: matching sets images aside for development and needs two more "
            "whose texts are wrong for each other; expected at least three images, found 2; give more pairs, a "
            "development file with --dev, or right and wrong pairs with target true and false"
        )


def _single_class(dev: Pairs) -> list[str]:
    """Return a note that development pairs of one class cannot tell a model from a constant answer."""
    classes = {json.dumps(target, sort_keys=True) for target in dev.targets}
    if len(classes) > 1:
        return []
    several = f"all {len(dev):,} development pairs have the same target"
    alike = several if len(dev) > 1 else "there is one development pair"
    return [
        f"One class: {alike} ({classes.pop():.60}): the best epoch, the calibration and the development metric are "
        "then meaningless; give development pairs of several classes with --dev."
    ]


def _check_targets(pairs: Pairs) -> None:
    missing = np.flatnonzero(~is_given(pairs.targets)).tolist()
    if missing:
        raise PairsError(
            f"{pairs.places[missing[0]]}, field 'target': classification expects a target in every pair, found none in "
            f"{len(missing):,} of {len(pairs):,}; name the column that holds them with --columns target=NAME, "
            "or train with --task matching"
        )


def _right(embedded: Sequence[EmbeddedPairs], right: Tensor, dev: Pairs) -> EmbeddedPairs:
    """Return the right pairs of both parts: a development part with one image takes its wrong texts from training."""
    both = torch.cat([right, match_truth(dev)]) > 0.5
    image_rows = torch.cat([part.image_rows for part in embedded])
    return embedded[0].with_rows(image_rows[both], torch.cat([part.text_rows for part in embedded])[both])


def _number_clusters(parts: Sequence[Pairs]) -> list[Tensor]:
    """Number the clusters (mostly images) of all parts together."""
    return [torch.from_numpy(numbers) for numbers in joined([part.clusters for part in parts])[0]]


def _with_known_answers(examples: Examples, notes: list[str]) -> Examples:
    """Drop training pairs without an answer among the classes."""
    answers = examples.truth
    if not isinstance(answers, Answers):
        return examples
    known = answers.classes.max(dim=1).values >= 0
    if bool(known.all()):
        return examples
    notes.append(f"{int((~known).sum()):,} training pairs have only rare answers and were left out.")
    return examples.select(known.nonzero()[:, 0])
