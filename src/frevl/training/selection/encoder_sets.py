"""Choose which encoders of a store to use for classification: single, several, or all concatenated.

More embeddings are not always better on a small set: a weak tower may drown out a strong one. The sets of encoders are
compared by the kernel fusion's exact leave-one-image-out scores, which need no development data (ours). Then images and
texts of the best set are tried separately, because the encoder with the best texts need not have the best images.
Models are compared on the winning set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frevl.terminal import print_progress
from frevl.training.examples import Examples, Prepared, join
from frevl.training.kernel.fit import fit_kernel_on
from frevl.training.options import KernelOptions, Session
from frevl.training.run_folder import NOWHERE, Checkpoint

if TYPE_CHECKING:
    from frevl.store.towers import Tower

__all__ = ["EncoderChoice", "all_encoders", "choose_encoders", "encoder_sets", "narrow"]

_MOST_PAIRS = 4_000  # if there are more, whole images are sampled; this many are enough for a comparison
_MOST_ENCODERS = 4  # with more encoders, only each alone and all together are compared


@dataclass(frozen=True)
class EncoderChoice:
    """The chosen encoders.

    Attributes:
        encoders: The chosen encoders of images or texts.
        images: The encoders whose image towers are used.
        texts: The encoders whose text towers are used.
        rows: For every set ``encoders``, ``images`` and ``texts`` likewise, ``metric`` in percent, ``behind_best`` and
            ``seconds``; ``reason`` if a set was not tried.
        pairs: Number of pairs in the comparison.
    """

    encoders: list[str]
    images: list[str]
    texts: list[str]
    rows: list[dict[str, Any]]
    pairs: int


def all_encoders(data: Prepared, encoders: Sequence[str]) -> EncoderChoice:
    """Return the choice that uses all encoders, with the towers available for the examples."""
    images, texts = (
        [name for name in encoders if _of(towers, [name])] for towers in (data.image_towers, data.text_towers)
    )
    return EncoderChoice(list(encoders), images, texts, [], 0)


def encoder_sets(data: Prepared, encoders: Sequence[str]) -> list[list[str]]:
    """Return the sets to compare: all encoders, then each alone, then the rest.

    With up to four encoders, these are all subsets; with more, each alone and all together. A set without an image
    tower or without a text tower is combined with all towers of the missing modality. Sets with the same towers are
    listed once.
    """
    between = range(2, len(encoders)) if len(encoders) <= _MOST_ENCODERS else ()
    sets: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for names in [list(names) for size in (len(encoders), 1, *between) for names in combinations(encoders, size)]:
        towers = tuple(
            tuple(tower.name for tower in _of(modality, names) or modality)
            for modality in (data.image_towers, data.text_towers)
        )
        if len(names) < len(sets.get(towers, [*names, ""])):
            sets[towers] = names
    return list(sets.values())


def narrow(data: Prepared, images: Sequence[str], texts: Sequence[str] | None = None) -> Prepared:
    """Return the same examples with only some encoders' embeddings.

    Args:
        data: Examples.
        images: Encoders whose image towers are kept.
        texts: Encoders whose text towers are kept; None means the same as ``images``.
    """
    kept = {}
    for modality, towers, encoders in (
        ("images", data.image_towers, images),
        ("texts", data.text_towers, images if texts is None else texts),
    ):
        starts = torch.tensor([0, *[tower.dim for tower in towers]]).cumsum(0).tolist()
        chosen = _of(towers, encoders)
        columns = [torch.arange(a, a + t.dim) for a, t in zip(starts, towers, strict=False) if t in chosen]
        kept[modality] = (torch.cat([torch.arange(0), *columns]), chosen)
    if all(len(kept[name][1]) == len(of) for name, of in (("images", data.image_towers), ("texts", data.text_towers))):
        return data
    of_images, of_texts = (getattr(data.train.pairs, name)[..., columns] for name, (columns, _) in kept.items())

    def narrowed(examples: Examples) -> Examples:
        # Both parts share their items, so the narrower copy is held in memory only once.
        return replace(examples, pairs=replace(examples.pairs, images=of_images, texts=of_texts))

    return replace(
        data,
        train=narrowed(data.train),
        dev=narrowed(data.dev),
        image_towers=kept["images"][1],
        text_towers=kept["texts"][1],
    )


def choose_encoders(
    data: Prepared,
    encoders: Sequence[str],
    outputs: int,
    session: Session,
    *,
    time_limit: float,
    balanced: bool = False,
    checkpoint: Checkpoint = NOWHERE,
) -> EncoderChoice:
    """Compare the sets of encoders on training and development examples.

    Args:
        data: Examples of a classification, with the towers of all encoders.
        encoders: Names of the encoders.
        outputs: Number of classes.
        session: Seed and progress.
        time_limit: Seconds; a set that would probably not fit is left out. All encoders together come first.
        balanced: Compare by the mean over classes, so that rare ones count equally, instead of over pairs.
        checkpoint: Where every compared set is saved.

    Returns:
        The set with the best metric; of several, the one with the narrowest embeddings.
    """
    sets = encoder_sets(data, encoders)
    if len(sets) < 2:
        return all_encoders(data, encoders)
    clock = checkpoint.clock
    ends = clock.seconds() + time_limit
    compared: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, Any]] = {}
    pairs = 0

    def compare(images: list[str], texts: list[str]) -> None:
        nonlocal pairs
        towers = _names(data.image_towers, images), _names(data.text_towers, texts)
        if towers in compared:
            return
        place = checkpoint.part(f"encoder set {len(compared)}")
        saved = place.load()
        if saved is not None:
            compared[towers], pairs = saved[1]["row"], saved[1]["pairs"]
            return
        row: dict[str, Any] = {
            "encoders": [name for name in encoders if name in images or name in texts],
            "images": images,
            "texts": texts,
        }
        compared[towers] = row
        started = clock.seconds()
        if any("metric" in one for one in compared.values()):
            longest = max(one.get("seconds", 0.0) for one in compared.values())
            if started + longest > ends:
                row["reason"] = "no time left"
                place.save({}, {"row": row, "pairs": pairs, "seconds": 0.0})
                return
        part = narrow(data, images, texts)
        # Development pairs given by the user stand for new data: nothing is trained on them here.
        examples = _sample(join(part.train, part.dev) if part.dev_is_spare else part.train, session.seed)
        pairs = len(examples)
        # All pairs are used for training and for scoring: each is scored by the solution that leaves out its own image.
        _, found = fit_kernel_on(examples, outputs, KernelOptions(class_weight="balanced" if balanced else None))
        # CPUs differ in the last bits, so workers that chose independently might train on different sets.
        row |= session.team.agreed({"metric": 100 * found.best_metric, "seconds": clock.seconds() - started})
        place.save({}, {"row": row, "pairs": pairs, "seconds": row["seconds"]})
        shown = " + ".join(images) + ("" if images == texts else f", texts {' + '.join(texts)}")
        print_progress(
            f"  encoders {shown:<40} {row['metric']:6.2f} %  {row['seconds']:6.1f} s", enabled=session.progress
        )

    def best() -> dict[str, Any]:
        towers = max(
            (key for key, row in compared.items() if "metric" in row),
            key=lambda key: (compared[key]["metric"], -_width(data, key)),
        )
        return compared[towers]

    whole = all_encoders(data, encoders)
    for names in sets:
        own = [[name for name in names if name in side] for side in (whole.images, whole.texts)]
        compare(own[0] or whole.images, own[1] or whole.texts)
    for names in sets:
        if any(name in whole.images for name in names):
            compare([name for name in names if name in whole.images], best()["texts"])
    for names in sets:
        if any(name in whole.texts for name in names):
            compare(best()["images"], [name for name in names if name in whole.texts])
    chosen = best()
    for row in compared.values():
        if "metric" in row:
            row["behind_best"] = chosen["metric"] - row["metric"]
    return EncoderChoice(chosen["encoders"], chosen["images"], chosen["texts"], list(compared.values()), pairs)


def _names(towers: Sequence[Tower], encoders: Sequence[str]) -> tuple[str, ...]:
    return tuple(tower.name for tower in _of(towers, encoders))


def _width(data: Prepared, names: tuple[tuple[str, ...], tuple[str, ...]]) -> int:
    return sum(tower.dim for tower in (*data.image_towers, *data.text_towers) if tower.name in (*names[0], *names[1]))


def _of(towers: Sequence[Tower], encoders: Sequence[str]) -> list[Tower]:
    return [tower for tower in towers if set(encoders).intersection(tower.encoders)]


def _sample(examples: Examples, seed: int) -> Examples:
    """Sample whole clusters until there are `_MOST_PAIRS` pairs; a cluster larger than that is truncated."""
    if len(examples) <= _MOST_PAIRS:
        return examples
    clusters = examples.clusters
    order = torch.randperm(int(clusters.max()) + 1, generator=torch.Generator().manual_seed(seed))
    rows: Tensor = order[clusters].argsort(stable=True)[:_MOST_PAIRS]
    return examples.select(rows)
