"""Reconstruct the store, training pairs and development part of a finished run.

A run must be corrected with its training data, never with its evaluation data: pairs with content not seen in training
are refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frevl.data.pairs import Pairs
from frevl.errors import PairsError, RunError, UsageError
from frevl.models.baselines import Linear
from frevl.models.interface import PairNetwork
from frevl.models.kernel_ridge import KernelFusion
from frevl.runs.batches import list_logits
from frevl.runs.run import Run, settings_named
from frevl.runs.targets import Answers, row_prefixes
from frevl.store.grouping.contents import among
from frevl.store.grouping.groups import SWITCH_OFF
from frevl.store.reader import Store
from frevl.store.towers import Tower
from frevl.store.usable_pairs import stored_contents_of
from frevl.training.examples import Examples, Prepared
from frevl.training.fitting.linear_folds import FoldFits, fit_again_by_folds, is_folded
from frevl.training.options import LinearOptions
from frevl.training.prepare import prepare, read_file

__all__ = ["OwnData", "Sources", "own_data", "own_store", "sources_of"]


@dataclass(frozen=True)
class Sources:
    """The locations of a run's data, from its ``config.toml`` or as given.

    Attributes:
        store: Folder of the store.
        pairs: File of the training pairs.
        dev: File of the development pairs; None if the training set some aside.
        given_dev: Whether ``dev`` was given in this call, so that the training has not seen it.
        columns: Columns of the files.
    """

    store: Store | Path | None
    pairs: Pairs | Path | None
    dev: Pairs | Path | None
    given_dev: bool
    columns: Any = None


@dataclass(frozen=True)
class OwnData:
    """A run's own examples, with the embeddings that its network reads.

    Attributes:
        train: Pairs that it was trained on.
        dev: Pairs for choosing a strength and for calibration: not seen by the run, or by one of ``fits``.
        hashes: ``(n,)`` uint64: content hashes of the images (or texts, if there are only texts) of both.
        dev_is_seen: Whether the development pairs are also training pairs, so that a metric on them is meaningless.
        notes: Notes for the user.
        learned: The kind of model, in words, if it was also fitted on ``dev``, so that nothing can be measured there.
        fits: The fits of a linear probe without each fold, which measure what the run itself cannot.
    """

    train: Examples
    dev: Examples
    hashes: np.ndarray
    dev_is_seen: bool
    notes: list[str]
    learned: str = ""
    fits: FoldFits | None = None

    def logits(self, network: PairNetwork, change: Callable[[PairNetwork], PairNetwork]) -> torch.Tensor:
        """Return ``(n, outputs)`` logits of ``dev`` by the changed network of the run, or its changed fits."""
        if self.fits is not None:
            return self.fits.logits(change)
        return list_logits(change(network), self.dev.pairs, 1024)


def sources_of(run: Run, *, store: Any = None, pairs: Any = None, dev: Any = None, columns: Any = None) -> Sources:
    """Return the locations of a run's data; given values override the run's record."""
    kept: dict[str, Any] = {}
    with suppress(OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        # A run from elsewhere has no such file, so everything must be given.
        kept = tomllib.loads((run.path / "config.toml").read_text(encoding="utf-8"))

    def named(name: str) -> Path | None:
        return Path(kept[name]) if isinstance(kept.get(name), str) else None

    return Sources(
        named("store") if store is None else store,
        named("pairs") if pairs is None else pairs,
        (named("dev") if pairs is None else None) if dev is None else dev,
        dev is not None,
        (kept.get("columns") if pairs is None else None) if columns is None else columns,
    )


def own_store(run: Run, sources: Sources) -> Store:
    """Open the store of a run.

    Raises:
        UsageError: The run does not record where its store is.
        StoreError: The store does not exist there.
        FingerprintError: The store there is a different one.
    """
    if sources.store is None:
        raise UsageError(f"{run.path}: the run does not record its store; give it with --store")
    store = sources.store if isinstance(sources.store, Store) else Store.open(sources.store)
    run.check_store(store)
    return store


def own_data(run: Run, store: Store, sources: Sources, *, with_fits: bool = False) -> OwnData:
    """Read and split the pairs as in training.

    Args:
        run: The finished run.
        store: Its store.
        sources: Where its pairs are.
        with_fits: Whether to repeat the fits of a linear probe of few pairs, if it was also fitted on ``dev``.

    Raises:
        UsageError: The run does not record where its pairs are.
        PairsError: The pairs are not those that it was trained on.
    """
    if sources.pairs is None:
        raise UsageError(
            f"{run.path}: the run does not record its training pairs; give them with --pairs (and --dev, if it was "
            "trained with some)"
        )
    asked = run.settings
    pairs = read_file(sources.pairs, sources.columns)
    dev = None if sources.dev is None else read_file(sources.dev, sources.columns)
    _refuse_unseen(run, store, pairs, _place(sources.pairs))
    data = prepare(
        store, pairs, dev, task=run.task, encoder=asked.get("encoder"), image_encoder=asked.get("image_encoder"),
        text_encoder=asked.get("text_encoder"), seed=int(asked.get("seed", 0)),
        dev_share=float(asked.get("dev_share", 0.1)), min_answer_count=int(asked.get("min_answer_count", 1)),
        group_by=None if sources.given_dev else asked.get("group_by"),
        find_groups=bool(asked.get("find_groups", True)),
    )  # fmt: skip
    if not sources.given_dev:
        _refuse_parts(run, data, _place(sources.pairs))
    kinds = [run.network_name, *settings_named(run.network_settings, "network")]
    if sources.given_dev:
        units, hashes = ([], np.zeros(0, "S1")) if dev is None else stored_contents_of(store, dev)
        again = np.flatnonzero(among(hashes, stored_contents_of(store, pairs)[1]))
        if len(again):
            raise PairsError(
                f"{_place(sources.dev)}: expected development pairs that {run.path} was not trained on, found "
                f"{len(again):,} {pairs.sides[0]}s of its training pairs (the first is '{units[int(again[0])]:.80}'); "
                "give others with --dev"
            )
    learned = ""
    if not sources.given_dev and data.dev_is_spare:
        if KernelFusion.key in kinds:
            learned = "kernel model"
        elif _is_folded(run, kinds, data):
            learned = "linear probe of few pairs"
    data = _as_read_by(run, _in_classes(run, data, _place(sources.pairs), same=not sources.given_dev))
    notes = [note.removesuffix(SWITCH_OFF) for note in data.notes]  # the former run decides whether groups are found
    own = OwnData(data.train, _alone(data.dev), data.image_hashes, data.dev_is_seen, notes, learned)
    return _with_fits(own, run, data) if learned and with_fits else own


def _with_fits(own: OwnData, run: Run, data: Prepared) -> OwnData:
    """Add the fits without each fold, if the run is a single linear probe and these pairs lead to it."""
    if run.network_name != Linear.key:
        return own
    options = LinearOptions(class_weight=run.settings.get("class_weight"))
    try:
        fits = fit_again_by_folds(data.train, data.dev, run.network, options, int(run.settings.get("seed", 0)))
    except ValueError:  # a time limit, or another version, ended the training elsewhere
        return own
    return replace(own, dev=fits.examples, learned="", fits=fits)


def _is_folded(run: Run, kinds: list[str], data: Prepared) -> bool:
    """Return whether a run contains a linear probe that was also fitted to the development part."""
    if Linear.key not in kinds or run.results.get("train_pairs") == len(data.train):  # made by an earlier version
        return False
    return is_folded(data.train, data.dev, len(data.labels), dev_is_spare=True)


def _refuse_unseen(run: Run, store: Store, pairs: Pairs, place: str) -> None:
    """Refuse pairs that the run was not trained on, as they may be its evaluation pairs."""
    units, hashes = stored_contents_of(store, pairs)
    if not len(units):
        raise PairsError(f"{place}: expected the training pairs of {run.path}, found none that can be used")
    unseen = np.flatnonzero(~np.isin(row_prefixes(hashes), run.train_image_hashes))
    if len(unseen):
        kind = pairs.sides[0]
        raise PairsError(
            f"{place}: expected the training pairs of {run.path}, because what corrects a run must not be what it is "
            f"evaluated on; found {len(unseen):,} of {len(units):,} {kind}s that it has not seen (the first is "
            f"'{units[int(unseen[0])]:.80}')"
        )


def _refuse_parts(run: Run, data: Prepared, place: str) -> None:
    """Refuse a subset of what a run has seen, as a new split of it would set aside training data.

    A run that was initialised from another, or derived from one, has seen more than its own pairs; it cannot be
    checked.
    """
    if run.settings.get("initialise_from") is not None or "debias" in run.settings:
        return
    found, seen = np.unique(data.image_hashes), np.unique(run.train_image_hashes)
    counted = run.results.get("train_pairs")
    counts = (None, len(data.train), len(data.train) + len(data.dev))  # a closed-form model is fitted on both parts
    if not np.array_equal(found, seen) or counted not in counts:
        raise PairsError(
            f"{place}: expected all pairs that {run.path} was trained on, with its --dev pairs if it had some, found "
            f"{len(data.train):,} for training{'' if counted is None else f' instead of {counted:,}'} and "
            f"{len(found):,} of the {len(seen):,} items that it has seen; a subset would be split again, into "
            "a development part that the run was fitted on. Give all of them, or pairs of other images with --dev"
        )


def _as_read_by(run: Run, data: Prepared) -> Prepared:
    """Keep the columns of the towers that the network reads; `auto` may have dropped encoders.

    Raises:
        RunError: A tower of the run is not among those of the pairs.
    """
    train, dev = data.train.pairs, data.dev.pairs
    for side, towers in (("image", data.image_towers), ("text", data.text_towers)):
        own = list(run.towers[side])
        if own == [tower.name for tower in towers]:
            continue
        columns = _columns(run, own, towers)
        field = f"{side}s"
        chosen = getattr(train, field)[..., columns]
        train, dev = replace(train, **{field: chosen}), replace(dev, **{field: chosen})
    return replace(data, train=replace(data.train, pairs=train), dev=replace(data.dev, pairs=dev))


def _columns(run: Run, own: list[str], towers: list[Tower]) -> torch.Tensor:
    places, start = {}, 0
    for tower in towers:
        places[tower.name] = torch.arange(start, start + tower.dim)
        start += tower.dim
    missing = next((name for name in own if name not in places), None)
    if missing is not None:
        raise RunError(
            f"{run.path}: the run reads the tower '{missing}', which does not have every item of these pairs; extract "
            "them with the encoders of the run"
        )
    return torch.cat([places[name] for name in own]) if own else torch.zeros(0, dtype=torch.long)


def _in_classes(run: Run, data: Prepared, place: str, *, same: bool) -> Prepared:
    """Return the examples with the run's class order, which another split may have changed.

    Args:
        run: The run, which records its classes.
        data: The data, with the classes of its training pairs.
        place: Where the training pairs come from, for messages.
        same: Whether the split is that of the training, so that the order must be the same too.

    Raises:
        PairsError: The pairs have other classes.
    """
    if data.labels == run.labels:
        return data
    missing = [label for label in run.labels if label not in set(data.labels)]
    if missing or same:
        raise PairsError(
            f"{place}: expected the {len(run.labels):,} classes of {run.path} in its training pairs, found "
            f"{len(data.labels):,}{f' without {missing[0]!r:.60}' if missing else ' in another order'}; give the pairs "
            "that it was trained on with --pairs"
            + (
                ""
                if missing
                else "; if an earlier version of frevl set others aside, give pairs of other images with --dev"
            )
        )
    index = {label: number for number, label in enumerate(run.labels)}
    places = torch.tensor([index.get(label, -1) for label in data.labels] + [-1])

    def moved(examples: Examples) -> Examples:
        truth = examples.truth
        return (
            replace(examples, truth=replace(truth, classes=places[truth.classes]))
            if isinstance(truth, Answers)
            else examples
        )

    return replace(data, train=moved(data.train), dev=moved(data.dev), labels=run.labels)


def _alone(examples: Examples) -> Examples:
    """Drop the items of other parts, which networks that process items separately would process too."""
    pairs = examples.pairs
    images, image_rows = torch.unique(pairs.image_rows, return_inverse=True)
    texts, text_rows = torch.unique(pairs.text_rows, return_inverse=True)
    return replace(examples, pairs=pairs.items(images, texts).with_rows(image_rows, text_rows))


def _place(source: Any) -> str:
    return source.places[0] if isinstance(source, Pairs) else str(source)
