"""The training, development and test pairs of a diagnosis, checked once for all models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frevl.data.formats.pair_rows import WITH_ARTICLE
from frevl.data.label_doubts import look_alike_note
from frevl.data.packed.columns import WithCluster, coded_values, in_order, joined
from frevl.data.pairs import Pairs, Side, Target, split_by_image
from frevl.errors import PairsError
from frevl.runs.targets import match_truth
from frevl.store.grouping.groups import group_pairs
from frevl.store.reader import Store
from frevl.store.towers import MODALITIES, Modality
from frevl.store.usable_pairs import choose_towers, colour_advice, names_of, note_unread, read_usable

__all__ = [
    "MATCH_LABELS",
    "MOST_TRAINED_ON",
    "Splits",
    "answers_of",
    "constant",
    "deal_folds",
    "few_enough",
    "read_splits",
    "share_of_clusters",
]

MATCH_LABELS = ["no match", "match"]
# They also determine temperature and thresholds, so there are more of them than early stopping needs.
DEV_SHARE = 0.15
_DRAWS = 16

MOST_TRAINED_ON = 20_000
"""Maximum training pairs for one model if several folds are trained, so that training takes a bounded time."""


@dataclass(frozen=True)
class Splits:
    """The pairs on which every model of a diagnosis is trained, tuned and compared.

    Attributes:
        store: The store with the embeddings.
        task: ``matching`` or ``classification``.
        train: Training pairs; no cluster (image) of them is in `dev`.
        dev: Development pairs, for early stopping, temperature, thresholds and, in large sets, the choice of models. In
            matching they include wrong pairs.
        test: Test pairs. In matching, one wrong text was drawn for every right pair if the file had no wrong ones.
        encoder: Names of the encoders; None uses all in the store.
        seed: Random seed.
        notes: Caveats for readers of the numbers.
        image_encoder: Names of the encoders whose image towers are used; None: see `encoder`.
        text_encoder: Names of the encoders whose text towers are used; None: see `encoder`.
    """

    store: Store
    task: str
    train: Pairs
    dev: Pairs
    test: Pairs
    encoder: list[str] | None
    seed: int
    notes: list[str] = field(default_factory=list)
    image_encoder: list[str] | None = None
    text_encoder: list[str] | None = None

    @property
    def unit(self) -> Side:
        """The unit of counting: the image, or the text if there are only texts."""
        return self.train.sides[0]

    def encoders_of(self, modality: Modality) -> list[str] | None:
        """Return the names of the encoders of a modality; None means all in the store."""
        own = self.image_encoder if modality == "image" else self.text_encoder
        return self.encoder if own is None else own

    def with_encoder(self, name: str, store: Store) -> Splits:
        """Return the same pairs with the embeddings of one encoder of a store."""
        return replace(self, store=store, encoder=[name], image_encoder=None, text_encoder=None)


def read_splits(
    store: Store,
    pairs: str | Path | Pairs,
    test: str | Path | Pairs,
    *,
    task: str,
    dev: str | Path | Pairs | None,
    encoder: Sequence[str] | None,
    image_encoder: Sequence[str] | None = None,
    text_encoder: Sequence[str] | None = None,
    seed: int,
    group_by: str | None = None,
    find_groups: bool = True,
) -> Splits:
    """Read and check the pairs of a diagnosis; the arguments are those of `frevl.diagnose`.

    Raises:
        PairsError: Pairs cannot be used: unknown images, no targets, one image only.
        UsageError: An encoder is not in the store, or the chosen ones have no tower of a modality.
    """
    notes: list[str] = []
    train, tested = read_usable(store, pairs, notes), read_usable(store, test, notes)
    known = [train] if dev is None else [train, read_usable(store, dev, notes)]
    _check_sides([*known, tested], task)
    names = {"encoder": encoder, "image_encoder": image_encoder, "text_encoder": text_encoder}
    chosen = choose_towers(store, [*known, tested], notes, names)
    towers = chosen["image"]
    known, grouped = group_pairs(store, known, group_by=group_by, find=find_groups, towers=towers)
    (tested,), drawn = group_pairs(
        store, [tested], group_by=group_by, find=find_groups, towers=towers,
        purpose="Test pairs drawn together for the intervals",
    )  # fmt: skip
    notes += grouped + drawn
    train, held = known if dev is not None else split_by_image(known[0], DEV_SHARE, seed=seed)
    texts = [text for part in (train, held, tested) for text in part.texts]
    note_unread(store, texts, chosen["text"], notes)
    if task == "matching":
        held, tested = with_wrong_pairs(held, seed), with_wrong_pairs(tested, seed)
    else:
        for part in (train, held, tested):
            _check_targets(part)
        doubts = look_alike_note(train.targets, held.targets, tested.targets)
        notes[:0] = [*doubts, *colour_advice(train, towers)]
    own = [
        None if not towers or towers == store.select_towers(modality, encoder) else names_of(store, towers)
        for modality, towers in chosen.items()
    ]
    notes = list(dict.fromkeys(notes))  # a note on several files is given once
    return Splits(store, task, train, held, tested, list(encoder) if encoder else None, seed, notes, *own)


def with_wrong_pairs(pairs: Pairs, seed: int) -> Pairs:
    """Add one wrong pair, with target ``false``, for every right pair; a file with wrong pairs is left unchanged.

    A wrong text belongs to another image, and to no pair of this image. An image for which all texts are right gets
    none.

    Raises:
        PairsError: No wrong text can be drawn.
    """
    truth = match_truth(pairs).numpy() > 0.5
    if not truth.all():
        return pairs
    random = np.random.default_rng(seed)
    texts_of: dict[str, set[str]] = {}
    for image, text in zip(pairs.images, pairs.texts, strict=True):
        texts_of.setdefault(image, set()).add(text)
    rows, texts = [], []
    for row, image in enumerate(pairs.images):
        for drawn in random.integers(0, len(pairs), _DRAWS):
            if pairs.texts[drawn] not in texts_of[image]:
                rows.append(row)
                texts.append(pairs.texts[drawn])
                break
    if not rows:
        raise PairsError(
            f"{pairs.places[0]}: matching is measured on right and wrong pairs, and no wrong text can be drawn: "
            "expected at least two images with different texts; give more pairs, or wrong pairs with target false"
        )
    wrong = replace(pairs.select(rows), texts=texts, targets=["false"] * len(rows))
    return Pairs(
        images=[*pairs.images, *wrong.images],
        texts=[*pairs.texts, *wrong.texts],
        targets=[*["true"] * len(pairs), *wrong.targets],
        extras=[*pairs.extras, *wrong.extras],
        places=[*pairs.places, *wrong.places],
        rejected=pairs.rejected,
    )


def constant(pairs: Pairs, *, image: str | None = None, text: str | None = None) -> Pairs:
    """Give every pair the same image or the same text, which then carries no information; clusters are unchanged."""
    extras = pairs.extras
    if not isinstance(extras, WithCluster):
        extras = [{**extra, "cluster": name} for extra, name in zip(extras, pairs.clusters, strict=True)]
    images = pairs.images if image is None else [image] * len(pairs)
    texts = pairs.texts if text is None else [text] * len(pairs)
    return replace(pairs, images=images, texts=texts, extras=extras)


def share_of_clusters(pairs: Pairs, share: float, *, seed: int) -> Pairs:
    """Return the pairs of a share of the clusters (images); a smaller share is a subset of a larger one."""
    codes, names = coded_values(pairs.clusters)
    ascending = in_order(names)
    order = np.random.default_rng(seed).permutation(len(names))
    kept = np.zeros(len(names), bool)
    kept[ascending[order[: max(1, round(share * len(names)))]]] = True
    return pairs.select(np.flatnonzero(kept[codes]))


def deal_folds(clusters: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of every line, ``(n,)``; clusters stay whole, and their numbers per fold differ by at most one.

    Args:
        clusters: ``(n,)`` name of the cluster (image, group) of every line.
        folds: Number of folds.
        seed: Random seed for the assignment.
    """
    (numbers,), names = joined([clusters])
    place = np.random.default_rng(seed).permutation(len(names))
    dealt: NDArray[np.int64] = (place % folds)[numbers]
    return dealt


def few_enough(pairs: Pairs, *, seed: int) -> Pairs:
    """Return the pairs, or those of a share of the clusters if there are more than `MOST_TRAINED_ON`."""
    return share_of_clusters(pairs, MOST_TRAINED_ON / len(pairs), seed=seed) if len(pairs) > MOST_TRAINED_ON else pairs


def answers_of(target: Target | None, task: str) -> set[str]:
    """Return the answers that a target contains; in matching one of `MATCH_LABELS`."""
    if task == "matching":
        one = Pairs([""], [""], [target], [{}], ["pair"])
        return {MATCH_LABELS[int(match_truth(one)[0] > 0.5)]}
    if isinstance(target, dict):
        return {answer for answer, weight in target.items() if weight > 0}
    return {target} if isinstance(target, str) else set(target or [])


def _check_sides(parts: Sequence[Pairs], task: str) -> None:
    """Refuse parts with different sides, and matching with one side alone."""
    sides = parts[0].sides
    for part in parts:
        lacking = [side for side in MODALITIES if side not in part.sides]
        if lacking and (task == "matching" or part.sides != sides):
            a = WITH_ARTICLE[lacking[0]]
            why = "matching needs both" if task == "matching" else f"the pairs of {parts[0].places[0]} have one"
            raise PairsError(f"{part.places[0]}, field '{lacking[0]}': expected {a}, as {why}; found none in any pair")
        if part.sides != sides:
            a = WITH_ARTICLE[next(side for side in part.sides if side not in sides)]
            raise PairsError(
                f"{part.places[0]}: found {a} in the pairs, and none in those of {parts[0].places[0]}; give all files "
                "the same sides"
            )


def _check_targets(pairs: Pairs) -> None:
    missing = [place for place, target in zip(pairs.places, pairs.targets, strict=True) if target is None]
    if missing:
        raise PairsError(
            f"{missing[0]}, field 'target': a diagnosis of a classification expects a target in every pair, found none "
            f"in {len(missing):,} of {len(pairs):,}; add targets, or diagnose with --task matching"
        )
