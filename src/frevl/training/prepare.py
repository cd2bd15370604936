"""Prepare training and development examples from pairs files and a store, checked before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from frevl.data.label_doubts import contradiction_note, look_alike_note
from frevl.data.missing_side import mistaken_side, one_side_note
from frevl.data.packed.columns import joined
from frevl.data.pairs import CAPTIONED, Pairs, read_pairs
from frevl.errors import misleading
from frevl.runs.batches import EmbeddedPairs, absent_side
from frevl.runs.targets import prefixes_of
from frevl.store.grouping.contents import among
from frevl.store.grouping.groups import group_pairs
from frevl.store.reader import Store
from frevl.store.towers import MODALITIES, Tower
from frevl.store.usable_pairs import choose_towers, colour_advice, contents_of, names_of, note_unread, read_usable
from frevl.training.examples import Prepared, examples_of, set_aside
from frevl.training.mapped_items import fit_in_memory, map_items, read_items
from frevl.training.selection.spare_classes import set_aside_note

__all__ = ["embed_pairs", "prepare", "read_file", "shared_groups", "shared_units"]


def read_file(
    pairs: str | Path | Pairs, columns: str | Sequence[str] | Mapping[str, str] | None, example: str = CAPTIONED
) -> Pairs:
    """Read a pairs file; in-memory pairs are returned unchanged."""
    return pairs if isinstance(pairs, Pairs) else read_pairs(pairs, columns=columns, example=example)


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
    """Read, check, split and embed; arguments as in `frevl.train`.

    Raises:
        PairsError: The pairs cannot be used.
        StoreError: Embeddings are missing.
        UsageError: An encoder is not in the store, or the chosen ones have no tower of a modality.
    """
    notes: list[str] = []
    doubts: list[str] = []
    parts = [read_usable(store, part, notes) for part in (pairs, dev) if part is not None]
    asked = {"encoder": encoder, "image_encoder": image_encoder, "text_encoder": text_encoder}
    chosen = choose_towers(store, parts, notes, asked)
    towers = chosen["image"], chosen["text"]
    if task == "classification":
        notes[:0] = colour_advice(parts[0], towers[0])
        doubts += [*look_alike_note(*(part.targets for part in parts)), *contradiction_note(parts[0])]
    note_unread(store, joined([part.texts for part in parts])[1], towers[1], notes)
    grouped, found = group_pairs(store, parts, group_by=group_by, find=find_groups, towers=towers[0])
    notes += found
    seen = False
    if dev is None:
        train_pairs, dev_pairs, seen = set_aside(
            grouped[0], dev_share, task=task, min_answer_count=min_answer_count, seed=seed
        )
        notes += [] if seen else set_aside_note(grouped[0], dev_pairs, dev_share)
    else:
        train_pairs, dev_pairs = grouped
    own, others = (contents_of(store, part) for part in (train_pairs, dev_pairs))
    prefixes = np.union1d(prefixes_of(own[1]), prefixes_of(others[1]))
    if not seen:
        doubts += _shared_contents(own, others, dev_pairs.sides[0]) or shared_groups(train_pairs, dev_pairs)
    del own, others  # a third of a gigabyte for ten million images
    embedded = embed_pairs(store, [train_pairs, dev_pairs], *towers)
    train, dev_examples, labels = examples_of(
        [train_pairs, dev_pairs], embedded, task=task, min_answer_count=min_answer_count, seed=seed,
        dev_is_spare=dev is None, dev_is_seen=seen, notes=notes,
    )  # fmt: skip
    doubts += misleading(notes)
    used = [*(image_encoder or encoder or store.encoders), *(text_encoder or encoder or store.encoders)]
    encoders = [name for name in dict.fromkeys(used) if name in names_of(store, [*towers[0], *towers[1]])]
    mistaken = [part for part in parts if mistaken_side(part.sides, part.extras)]
    doubts = list(
        dict.fromkeys([*(note for part in mistaken for note in one_side_note(part.sides, part.extras)), *doubts])
    )
    notes = list(dict.fromkeys([*doubts, *notes]))  # a note that applies to both files is given once
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
        doubts=tuple(doubts),
    )


def shared_units(train: Pairs, dev: Pairs, hashes: dict[str, str]) -> list[str]:
    """Return a note on development images (or texts) that are also in the training part, under any id."""
    both = [joined([part.units])[1] for part in (train, dev)]
    own, others = ((units, np.array([hashes[unit] for unit in units], np.bytes_)) for units in both)
    return _shared_contents(own, others, dev.sides[0])


def _shared_contents(
    train: tuple[Sequence[str], np.ndarray], dev: tuple[Sequence[str], np.ndarray], kind: str
) -> list[str]:
    units, hashes = dev
    shared = np.flatnonzero(among(hashes, train[1]))
    if not len(shared):
        return []
    return [
        f"Leak: {len(shared):,} of {len(units):,} development {kind}s have the same content as a training {kind} "
        f"(the first is '{units[int(shared[0])]:.80}'): the development metric is too optimistic."
    ]


def shared_groups(train: Pairs, dev: Pairs) -> list[str]:
    """Return a note on development pairs that share a group with training pairs."""
    (own, others), names = joined([train.clusters, dev.clusters])
    seen = np.zeros(len(names), bool)
    seen[own] = True
    shared = np.flatnonzero(seen[others]).tolist()
    if not shared:
        return []
    return [
        f"Leak: {len(shared):,} of {len(dev):,} development pairs belong to a group that training pairs belong to "
        f"as well (the first is {dev.places[shared[0]]}): the development metric is too optimistic."
    ]


def embed_pairs(
    store: Store, parts: Sequence[Pairs], image_towers: Sequence[Tower], text_towers: Sequence[Tower]
) -> list[EmbeddedPairs]:
    """Read every distinct item once, for all parts."""
    image_rows, images = joined([part.images for part in parts])
    text_rows, texts = joined([part.texts for part in parts])
    sides = parts[0].sides
    files = None
    if len(sides) == 2 and not fit_in_memory([(len(images), image_towers), (len(texts), text_towers)]):
        files = map_items(store, "image", images, image_towers), map_items(store, "text", texts, text_towers)
        items = files[0].values, files[0].mask, files[1].values, files[1].mask
    else:
        (a, b), (c, d) = (
            read_items(store, side, ids, towers) if side in sides else absent_side(len(ids))
            for side, ids, towers in zip(MODALITIES, (images, texts), (image_towers, text_towers), strict=True)
        )
        items = torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(c), torch.from_numpy(d)
    return [
        EmbeddedPairs(*items, torch.from_numpy(one), torch.from_numpy(other), files=files)
        for one, other in zip(image_rows, text_rows, strict=True)
    ]
