"""`frevl.classify`: train a run that labels images, from class names, examples, or both."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frevl.data.class_files import TEMPLATE, TEMPLATE_OF_CAPTIONS, ClassList, check_templates, read_classes
from frevl.data.columns import columns_of
from frevl.data.label_doubts import look_alike_note, plain_label
from frevl.data.names import list_or_none
from frevl.data.pairs import Pairs, in_memory
from frevl.errors import UsageError, nearest, rejects_sentence
from frevl.models.hub import weights_digest
from frevl.models.inputs import mean_pool
from frevl.provenance import provenance
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.posterior import fit_posterior
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.runs.targets import hash_prefixes
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.reader import Store
from frevl.store.towers import Tower
from frevl.training.classification.candidates import METHODS, candidates_of
from frevl.training.classification.examples import classes_of, collect, of_one_class, read_examples
from frevl.training.classification.fit_network import EmbeddedExamples, FittedSpace, fit_network
from frevl.training.classification.names import (
    NameVectors,
    TextSpace,
    name_vectors,
    space_of_encoder,
    space_of_run,
    vectors_of_nameless,
)
from frevl.training.classification.unknown import unknown_threshold
from frevl.training.options import ModelOptions, Session
from frevl.training.run_folder import PLACES, claim_run, content_of, write_config
from frevl.version import __version__

__all__ = ["classify"]

_MOST_UNLABELLED = 20_000


def classify(
    store: Store | str | Path,
    classes: Any = None,
    *,
    run: str | Path,
    examples: str | Path | Pairs | None = None,
    dev: str | Path | Pairs | None = None,
    columns: str | Sequence[str] | Mapping[str, str] | None = None,
    space: str | Path | None = None,
    template: str | Sequence[str] | None = None,
    method: str = "auto",
    unlabelled: bool = False,
    unknown: float | None = None,
    encoder: Sequence[str] | None = None,
    group_by: str | None = None,
    find_groups: bool = True,
    seed: int = 0,
    time_limit: float | None = None,
    progress: bool = False,
) -> Run:
    """Build an image classifier from class names, examples, or both.

    Args:
        store: The store, or its path.
        classes: A file (``.txt``, ``.jsonl``, ``.json``; see `frevl.data.class_files`), names, or a mapping from class
            to texts. None uses the classes of the examples.
        run: Folder to write; must not contain a finished run.
        examples: Pairs ``{"image", "target"}``, or a file of them.
        dev: Further pairs of this form: methods are compared and calibrated on them instead of on held-out examples.
        columns: Columns of the files of examples, as in `frevl.data.pairs.read_pairs`.
        space: A matching run with a first stage (``dual``), whose space is used for names if the encoder has none.
        template: Sentences with one ``{}`` for the name; None uses "a photo of a {}.", or "a {}" in a space that was
            trained on captions (`frevl.data.class_files`).
        method: One of ``auto``, ``names``, ``means``, ``cache``, ``gaussian``, ``kernel``, ``probe``.
        unlabelled: Whether to train on images of the store without labels as well, at most 20,000, if it helps.
        unknown: Share, between 0 and 1, of held-out images that keep their label; less likely images are "unknown".
        encoder: Encoders whose image embeddings are concatenated; None uses all in the store.
        group_by: A key of the examples; those with the same value stay together in every split.
        find_groups: Whether to find copies, near copies and groups among the examples and keep them together.
        seed: Random seed of the splits.
        time_limit: Time limit for comparing methods, in seconds.
        progress: Show progress.

    Returns:
        The saved run, for the task classification with images alone. Repeating the call returns a finished run.

    Raises:
        UsageError: An unknown method or encoder, names without a common space, or neither names nor examples.
        InputError: The classes or examples cannot be used.
        StoreError: Embeddings are missing.
        RunError: The folder holds a run, or other files.
    """
    examples, dev = in_memory(examples), in_memory(dev)
    if classes is not None and not isinstance(classes, str | PathLike):
        classes = read_classes(classes)
    encoder = list_or_none(encoder, "encoder")
    arguments = {name: value for name, value in locals().items() if name != "progress"}
    _check(method, unknown)
    templates = [template] if isinstance(template, str) else list(template or ())
    check_templates(templates)
    opened = store if isinstance(store, Store) else Store.open(store)
    notes: list[str] = []
    doubts: list[str] = []
    given = _read(opened, classes, examples, dev, columns, notes)
    listed = given.classes
    doubts += look_alike_note(listed.labels)
    started = time.monotonic()
    folder, session = Path(run), Session(seed=seed, time_limit=time_limit, device="cpu", progress=progress)
    settings = _settings(arguments, listed)
    of_run = None if space is None else Scorer.open(space, store=opened)
    data = _identity(opened, given, space, looks=unlabelled or unknown is not None)
    settings_and_data = {**settings, "data": data}
    if _is_finished(folder, settings_and_data):
        return Run.load(folder)
    # An image on which the names' space was trained is not a new image for the classes either.
    learned = None if of_run is None or classes is None else of_run.run.train_image_hashes
    with claim_run(folder, settings_and_data):
        towers = opened.select_towers("image", encoder) if of_run is None else _towers_of(opened, of_run, encoder)
        own, held, hashes = collect(
            opened, listed, given.examples, given.development, towers, group_by=group_by, find_groups=find_groups,
            notes=notes, doubts=doubts, learned=learned,
        )  # fmt: skip
        names = None
        if classes is not None:
            found = space_of_run(opened, of_run) if of_run else space_of_encoder(opened, towers)
            has_examples = bool(len(own.labels))
            names = _names(listed, found, templates, doubts, has_examples=has_examples, trained=of_run is not None)
        _check_all_classes(given, names, own)
        _check_method(method, listed, names, own)
        of_names = None if names is None else _space_of(names, own)
        network, choice = fit_network(
            own, held, of_names, len(listed.entries), method=method, session=session,
            unlabelled=_others(opened, towers, hashes, seed) if unlabelled else None,
        )  # fmt: skip
        threshold, sentences = unknown_threshold(choice, network, opened, towers, share=unknown, seed=seed)
        results = choice.results(examples=len(own.labels), seconds=time.monotonic() - started, names=names is not None)
        results["warnings"] = [*doubts, *results["warnings"]]
        sentences = [*results["warnings"], *sentences, *results["notes"], *notes, *(names.notes if names else ())]
        results |= {"notes": list(dict.fromkeys(sentences)), "unknown": threshold}
        seen = hash_prefixes(hashes.values())
        finished = Run(
            path=folder,
            model="classify",
            task="classification",
            network_name=network.key,
            network_settings=network.settings,
            labels=listed.labels,
            encoders=[name for name in opened.encoders if any(name in tower.encoders for tower in towers)],
            towers={"image": {tower.name: tower.identity for tower in towers}, "text": {}},
            calibration={"scale": 1.0, "offset": 0.0},
            settings=settings,
            results=results,
            provenance=provenance(run=str(folder), store_fingerprint=opened.fingerprint, seed=seed),
            train_image_hashes=seen if learned is None else np.union1d(seen, learned),
            space_image_hashes=seen[:0] if learned is None else np.setdiff1d(learned, seen),
            network=network,
            posterior=fit_posterior(network, EmbeddedPairs.images_alone(own.images)),
        )
        write_config(folder, {**arguments, "store": opened}, ModelOptions(), command="classify")
        finished.save()
    return finished


@dataclass(frozen=True)
class _Given:
    """The classes, and the labelled images that are learned from or held out, as they were read."""

    classes: ClassList
    examples: Pairs | None
    development: Pairs | None


def _read(
    store: Store,
    classes: Any,
    examples: str | Path | Pairs | None,
    dev: str | Path | Pairs | None,
    columns: str | Sequence[str] | Mapping[str, str] | None,
    notes: list[str],
) -> _Given:
    """Read classes, examples and development images; unusable ones are counted in ``notes``."""
    read = read_examples(store, examples, columns, notes)
    if classes is None and read is not None:  # an image of several classes makes none of them a class
        (read,) = of_one_class(store, [read], notes)
    listed = classes_of(read) if classes is None else read_classes(classes)
    if listed.rejected:
        notes.append(rejects_sentence(listed.rejected))
    return _Given(listed, read, read_examples(store, dev, columns, notes))


def _others(store: Store, towers: Sequence[Tower], hashes: dict[str, str], seed: int) -> Tensor:
    """Embed images of the store that are neither examples nor development images, and record their content."""
    known = set(hashes.values())
    order = np.random.default_rng(seed).permutation(store.count("image"))[: _MOST_UNLABELLED + len(known)]
    content = store.content_hashes(store.ids("image", order))
    chosen = sorted(id_ for id_, hash_ in content.items() if hash_ not in known)[:_MOST_UNLABELLED]
    hashes.update((id_, content[id_]) for id_ in chosen)
    if not chosen:
        return torch.zeros(0, sum(tower.dim for tower in towers))
    values, mask = store.read("image", chosen, towers)
    return mean_pool(torch.from_numpy(values).float(), torch.from_numpy(mask))


def _check(method: str, unknown: float | None) -> None:
    if method not in METHODS:
        raise UsageError(f"There is no method '{method}'. {nearest(method, METHODS)}")
    if unknown is not None and not 0 < unknown < 1:
        raise UsageError(f"--unknown is the share of images that keep their label, between 0 and 1; found {unknown:g}")


def _is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Return whether the folder holds the run this call would make, so an interrupted labelling can continue."""
    try:
        kept = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / "run.json").is_file() and _without_places(kept) == _without_places(
        json.loads(json.dumps(settings))
    )


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in PLACES}


def _settings(arguments: dict[str, Any], classes: ClassList) -> dict[str, Any]:
    left_out = ("store", "run", "classes", "examples", "dev", "space")
    kept = {name: value for name, value in arguments.items() if name not in left_out}
    kept["columns"] = columns_of(kept["columns"]) or None
    sources = {name: arguments[name] for name in ("examples", "dev", "space")}
    named = {
        name: None if value is None else (value.source or "in memory") if isinstance(value, Pairs) else str(value)
        for name, value in sources.items()
    }
    entries = repr([replace(entry, place="") for entry in classes.entries])
    digest = hashlib.sha256(entries.encode()).hexdigest()[:16]
    return {
        **kept,
        **named,
        "pairs": named["examples"],
        "classes": classes.source or "in memory",
        "classes_hash": digest,
    }


def _identity(store: Store, given: _Given, space: str | Path | None, *, looks: bool) -> dict[str, Any]:
    """Return the identity of a classifier's data, none of which may change unnoticed.

    Args:
        store: The store with the images.
        given: Classes (their file may list images as well), examples and development images.
        space: The run whose space the names live in.
        looks: Whether images that none of these list are used too.
    """
    images = store.positions("image")
    named = sorted({image for entry in given.classes.entries for image in entry.examples})
    listed = [image for image, row in zip(named, find_rows(images, named).tolist(), strict=True) if row >= 0]
    return {
        "frevl": __version__,
        "store": store.fingerprint,
        "pairs": None if given.examples is None else content_of(store, given.examples),
        "dev": None if given.development is None else content_of(store, given.development),
        "listed": sorted(store.content_hashes(listed).items()) if listed else [],
        "space": None if space is None else weights_digest(space)[:16],
        "pictures": store.version("image") if looks else None,
    }


def _towers_of(store: Store, of_run: Scorer, encoder: Sequence[str] | None) -> list[Tower]:
    """Return the image towers of the run of ``--space``; its network reads exactly these."""
    towers = [store.towers[name] for name in of_run.run.towers["image"]]
    if encoder is not None and {tower.name for tower in store.select_towers("image", encoder)} != {
        tower.name for tower in towers
    }:
        raise UsageError(
            f"--space {of_run.run.path} reads the image embeddings {', '.join(tower.name for tower in towers)}; "
            "leave out --encoder, or give a run trained on these encoders"
        )
    return towers


def _names(
    classes: ClassList,
    space: TextSpace | None,
    templates: Sequence[str],
    doubts: list[str],
    *,
    has_examples: bool,
    trained: bool,
) -> NameVectors | None:
    """Embed the names; without a common space of images and texts, only examples can be used."""
    if space is None:
        remedy = (
            "the image embeddings of this store have no common space with texts, so class names cannot be used; "
            "train one with frevl train --task matching --model dual on captions and give it with --space, or "
            "extract with an encoder such as CLIP"
        )
        if not has_examples:
            raise UsageError(f"--classes gives names but no examples, and {remedy}")
        doubts.append(f"Class names were not used, only examples: {remedy}.")
        return None
    names = name_vectors(classes, space, templates or [TEMPLATE_OF_CAPTIONS if trained else TEMPLATE])
    doubts += names.doubts
    return names


def _check_all_classes(given: _Given, names: NameVectors | None, own: EmbeddedExamples) -> None:
    """Refuse a class with neither names nor examples."""
    classes = given.classes
    targets = [] if given.examples is None else given.examples.targets  # as they are written
    counts = torch.bincount(own.labels, minlength=len(classes.entries))
    for number, entry in enumerate(classes.entries):
        if not counts[number] and (names is None or not names.named[number]):
            alike = {
                str(one) for one in targets if one is not None and plain_label(str(one)) == plain_label(entry.label)
            }
            if entry.label in alike:
                raise UsageError(
                    f"{entry.place or 'classes'}: no example is left of the class '{entry.label}', because its images "
                    "also occur with other classes; correct them, or leave the class out"
                )
            written = sorted(alike - set(classes.labels))
            raise UsageError(
                f"{entry.place or 'classes'}: the class '{entry.label}' has no example"
                + ("" if names is None else " and no name")
                + (f", but examples are of the class '{written[0]:.60}'; write both alike, or" if written else "; give")
                + (" give" if written else "")
                + " one with --examples, or leave the class out"
            )
    if names is not None and int(names.named.sum()) < 2 and not bool(names.named.all()):
        raise UsageError("expected names for at least two classes, or for none; found one")


def _check_method(method: str, classes: ClassList, names: NameVectors | None, own: EmbeddedExamples) -> None:
    """Refuse a method that has nothing to learn from, or would lose classes with only a name."""
    if names is None and method == "names":
        raise UsageError("--method names needs class names; give them with --classes")
    if not len(own.labels) and method not in ("auto", "names"):
        raise UsageError(
            f"--method {method} needs examples; give them with --examples, or leave out --method, which then takes the "
            "names alone"
        )
    missing = len(classes.entries) - len(set(own.labels.tolist()))
    if missing and len(own.labels) and any(one.every_class for one in candidates_of(method, has_names=True)[:1]):
        raise UsageError(
            f"--method {method} needs examples of every class, found none of {missing:,} of "
            f"{len(classes.entries):,}; choose probe, kernel or auto, which keep classes with only a name"
        )


def _space_of(names: NameVectors, own: EmbeddedExamples) -> FittedSpace:
    """Return the vectors of all names, with stand-ins for classes without one."""
    network = names.space.network
    with torch.no_grad():
        of_images = network.image_vectors(own.images) if len(own.images) else torch.zeros(0)
    return FittedSpace(vectors_of_nameless(names, of_images, own.labels).clone(), network, names.space.scale)
