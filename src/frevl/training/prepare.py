"""Pairs files and a store -> training and development examples, checked before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from frevl.data.pairs import Pairs, Side, read_pairs, split_by_image
from frevl.errors import PairsError
from frevl.runs.batches import EmbeddedPairs, absent_side
from frevl.runs.targets import Answers, encode_answers, hash_prefixes, label_vocabulary, match_truth
from frevl.store.grouping.groups import group_pairs
from frevl.store.reader import Store
from frevl.store.towers import Tower
from frevl.store.usable_pairs import choose_towers, content_of_units, names_of, note_unread, read_usable
from frevl.training.examples import Examples, with_wrong_texts
from frevl.training.selection.spare_classes import spare_clusters

__all__ = ["Prepared", "prepare", "read_file", "shared_groups", "shared_units"]


@dataclass(frozen=True)
class Prepared:
    """What a training needs.

    Attributes:
        train: Training examples.
        dev: Development examples; for matching every right pair stands beside a wrong one.
        labels: Classes, the most frequent first; empty for matching.
        image_towers: Towers that are concatenated, in their order; none where the pairs are texts alone.
        text_towers: The same for texts; none where the pairs are images alone.
        encoders: Names of the encoders that these are of, in the order in which they were asked for.
        image_hashes: ``(n,)`` uint64, sorted: content of the images of both parts, or of the texts where they are
            texts alone.
        notes: Sentences that the user should read.
        dev_is_spare: Development examples were set aside from the training pairs, not given.
        dev_is_seen: Nothing could be set aside without taking classes away, so they are training examples too: a
            figure on them says nothing.
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

    @property
    def sides(self) -> tuple[Side, ...]:
        """What the pairs have: an image, a text, or both."""
        towers: dict[Side, list[Tower]] = {"image": self.image_towers, "text": self.text_towers}
        return tuple(side for side, own in towers.items() if own)


def read_file(pairs: str | Path | Pairs, columns: str | Sequence[str] | Mapping[str, str] | None) -> Pairs:
    """Read a pairs file; pairs that are in memory stay as they are."""
    return pairs if isinstance(pairs, Pairs) else read_pairs(pairs, columns=columns)


def prepare(
    store: Store,
    pairs: str | Path | Pairs,
    dev: str | Path | Pairs | None,
    *,
    task: str,
    encoder: Sequence[str] | None,
    image_encoder: Sequence[str] | None = None,
    text_encoder: Sequence[str] | None = None,
    seed: int,
    dev_share: float,
    min_answer_count: int,
    group_by: str | None = None,
    find_groups: bool = True,
) -> Prepared:
    """Read, check, split and embed; the arguments are those of `frevl.train`.

    Raises:
        PairsError: The pairs cannot be used.
        StoreError: Embeddings are missing.
        UsageError: An encoder is not in the store, or the chosen ones have no tower of a modality.
    """
    notes: list[str] = []
    parts = [read_usable(store, part, notes) for part in (pairs, dev) if part is not None]
    asked = {"encoder": encoder, "image_encoder": image_encoder, "text_encoder": text_encoder}
    chosen = choose_towers(store, parts, notes, asked)
    towers = chosen["image"], chosen["text"]
    note_unread(store, [text for part in parts for text in part.texts], towers[1], notes)
    grouped, found = group_pairs(store, parts, group_by=group_by, find=find_groups, towers=towers[0], seed=seed)
    notes += found
    seen = False
    if dev is None:
        (train_pairs,) = grouped
        if task == "matching":
            _check_enough_to_split(train_pairs)
            train_pairs, dev_pairs = split_by_image(train_pairs, dev_share, seed=seed)
        else:
            _check_targets(train_pairs)
            train_pairs, dev_pairs, seen = _set_aside(train_pairs, dev_share, seed, min_answer_count)
    else:
        train_pairs, dev_pairs = grouped
    hashes = content_of_units(store, train_pairs) | content_of_units(store, dev_pairs)
    if not seen:
        notes += shared_units(train_pairs, dev_pairs, hashes) or shared_groups(train_pairs, dev_pairs)
    embedded = _embed(store, [train_pairs, dev_pairs], *towers)
    clusters = _number_clusters([train_pairs, dev_pairs])
    labels: list[str] = []
    if task == "matching":
        right = match_truth(train_pairs)
        train = Examples(embedded[0], right, clusters[0])
        dev_examples = with_wrong_texts(
            Examples(embedded[1], match_truth(dev_pairs), clusters[1]), 1, seed, pool=_right(embedded, right, dev_pairs)
        )
        if not bool((right > 0.5).any()):
            raise PairsError(
                f"{train_pairs.places[0]}: expected right image-text pairs, found only wrong ones; where some pairs "
                "have a target, the right ones need the target true"
            )
    else:
        for part in (train_pairs, dev_pairs):
            _check_targets(part)
        labels = label_vocabulary(train_pairs.targets, min_count=min_answer_count)
        if len(labels) < 2:
            raise PairsError(
                f"{train_pairs.places[0].rpartition(':')[0]}, field 'target': expected at least two classes in the "
                f"training pairs, found only '{labels[0]}'"
            )
        learned = len(labels)
        if dev is None:  # a class of the pairs that were set aside is a class: they may be learned from in the end
            both = label_vocabulary([*train_pairs.targets, *dev_pairs.targets], min_count=min_answer_count)
            labels += [label for label in both if label not in set(labels)]
        train = _with_known_answers(
            Examples(embedded[0], encode_answers(train_pairs.targets, labels), clusters[0]), notes
        )
        dev_answers = encode_answers(dev_pairs.targets, labels)
        dev_examples = Examples(embedded[1], dev_answers, clusters[1])
        known = (dev_answers.classes >= 0) & (dev_answers.classes < learned)
        unseen = int((~known.any(dim=1)).sum())
        if unseen:
            notes.append(f"{unseen:,} development pairs have only classes that training never saw: counted as wrong.")
        notes += [] if seen else _single_class(dev_pairs)
    prefixes = hash_prefixes(hashes.values())
    used = [*(image_encoder or encoder or store.encoders), *(text_encoder or encoder or store.encoders)]
    encoders = [name for name in dict.fromkeys(used) if name in names_of(store, [*towers[0], *towers[1]])]
    notes = list(dict.fromkeys(notes))  # what holds for both files is said once
    return Prepared(
        train,
        dev_examples,
        labels,
        *towers,
        encoders,
        prefixes,
        notes,
        dev_is_spare=dev is None and not seen,
        dev_is_seen=seen,
    )


def _set_aside(pairs: Pairs, share: float, seed: int, min_answer_count: int) -> tuple[Pairs, Pairs, bool]:
    """Split labelled pairs as `split_by_image` does, but take no class away from the training part.

    Returns:
        Training part, development part, and whether the development part is in the training part too: where less than
        half of what was wanted can be spared.
    """
    kept, held = split_by_image(pairs, share, seed=seed)
    answers = encode_answers(pairs.targets, label_vocabulary(pairs.targets, min_count=min_answer_count))
    names = sorted(set(pairs.clusters))  # the order in which `split_by_image` draws
    number = {name: place for place, name in enumerate(names)}
    clusters = torch.tensor([number[name] for name in pairs.clusters])
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    wanted = len(set(held.clusters))
    spared = spare_clusters(clusters, answers, order, wanted)
    if spared == order[:wanted]:
        return kept, held, False
    if 2 * len(spared) < wanted:
        return pairs, held, True
    inside = torch.isin(clusters, torch.tensor(spared))
    return pairs.select((~inside).nonzero()[:, 0].tolist()), pairs.select(inside.nonzero()[:, 0].tolist()), False


def shared_units(train: Pairs, dev: Pairs, hashes: dict[str, str]) -> list[str]:
    """Say how many development images are in the training part too, under the same or another id; or how many texts."""
    seen = {hashes[unit] for unit in train.units}
    different, kind = dict.fromkeys(dev.units), dev.sides[0]
    shared = [unit for unit in different if hashes[unit] in seen]
    if not shared:
        return []
    return [
        f"Leak: {len(shared):,} of {len(different):,} development {kind}s have the same content as a training "
        f"{kind} (the first is '{shared[0]:.80}'): the development metric is too good."
    ]


def shared_groups(train: Pairs, dev: Pairs) -> list[str]:
    """Say how many development pairs belong to a group that training pairs belong to as well."""
    seen = set(train.clusters)
    shared = [row for row, name in enumerate(dev.clusters) if name in seen]
    if not shared:
        return []
    return [
        f"Leak: {len(shared):,} of {len(dev):,} development pairs belong to a group that training pairs belong to as "
        f"well (the first is {dev.places[shared[0]]}): the development metric is too good."
    ]


def _single_class(dev: Pairs) -> list[str]:
    """Say that development pairs of one class cannot tell a model that looks from one that always answers the same."""
    classes = {json.dumps(target, sort_keys=True) for target in dev.targets}
    if len(classes) > 1:
        return []
    return [
        f"All {len(dev):,} development pairs have the same target ({classes.pop():.60}): the best epoch, calibration "
        "and the development metric say nothing then; give development pairs of several classes with --dev."
    ]


def _check_enough_to_split(pairs: Pairs) -> None:
    """Refuse two images of right pairs only: one would be set aside, and the other would have no wrong text."""
    images = len(set(pairs.images))
    if images == 2 and bool((match_truth(pairs) > 0.5).all()):
        raise PairsError(
            f"{pairs.places[0].rpartition(':')[0]}: matching sets images aside for development and needs two more "
            "whose texts are wrong for each other; expected at least three images, found 2; give more pairs, a "
            "development file with --dev, or right and wrong pairs with target true and false"
        )


def _check_targets(pairs: Pairs) -> None:
    missing = [place for place, target in zip(pairs.places, pairs.targets, strict=True) if target is None]
    if missing:
        raise PairsError(
            f"{missing[0]}, field 'target': classification expects a target in every pair, found none in "
            f"{len(missing):,} of {len(pairs):,}; name the column that holds them with --columns target=NAME, "
            "or train with --task matching"
        )


def _embed(
    store: Store, parts: Sequence[Pairs], image_towers: Sequence[Tower], text_towers: Sequence[Tower]
) -> list[EmbeddedPairs]:
    """Read every different item once, whatever the parts that use it."""
    images = {id_: row for row, id_ in enumerate(dict.fromkeys(id_ for part in parts for id_ in part.images))}
    texts = {text: row for row, text in enumerate(dict.fromkeys(text for part in parts for text in part.texts))}
    sides = parts[0].sides
    image_values = store.read("image", list(images), image_towers) if "image" in sides else absent_side(len(images))
    text_values = store.read("text", list(texts), text_towers) if "text" in sides else absent_side(len(texts))
    return [EmbeddedPairs.of(part.images, part.texts, images, image_values, texts, text_values) for part in parts]


def _right(embedded: list[EmbeddedPairs], right: Tensor, dev: Pairs) -> EmbeddedPairs:
    """Return the right pairs of both parts: a development part of one image finds its wrong texts in training."""
    both = torch.cat([right, match_truth(dev)]) > 0.5
    image_rows = torch.cat([part.image_rows for part in embedded])
    return embedded[0].with_rows(image_rows[both], torch.cat([part.text_rows for part in embedded])[both])


def _number_clusters(parts: Sequence[Pairs]) -> list[Tensor]:
    """Number the clusters (mostly images) of all parts together."""
    numbers: dict[str, int] = {}
    return [torch.tensor([numbers.setdefault(name, len(numbers)) for name in part.clusters]) for part in parts]


def _with_known_answers(examples: Examples, notes: list[str]) -> Examples:
    """Leave out training pairs none of whose answers is a class."""
    answers = examples.truth
    if not isinstance(answers, Answers):
        return examples
    known = answers.classes.max(dim=1).values >= 0
    if bool(known.all()):
        return examples
    notes.append(f"{int((~known).sum()):,} training pairs have only rare answers and are left out of the training.")
    return examples.select(known.nonzero()[:, 0])
