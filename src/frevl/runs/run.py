"""A run on disk: weights, settings, labels, fingerprints and results; refuses stores that do not match.

``run.json`` is written last and atomically, so a run that exists is complete. Weights are safetensors; nothing
is ever unpickled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from frevl.data.formats.pair_rows import WITH_ARTICLE
from frevl.data.pairs import Pairs, Side
from frevl.errors import FingerprintError, PairsError, RunError, UsageError
from frevl.files import read_record, replace_file, write_json
from frevl.models.hub import not_finite, restored, run_folder
from frevl.models.interface import PairNetwork
from frevl.models.registry import NETWORKS, build
from frevl.runs.posterior import Posterior, save_posterior

if TYPE_CHECKING:  # networks also run where no store can be read
    from frevl.store.reader import Store
    from frevl.store.towers import Modality, Tower

__all__ = ["UNFINISHED", "Run", "refuse_other_files", "settings_named"]

FORMAT = 1
UNFINISHED = ".unfinished"
"""Hidden folder inside a run's: its training is in progress or was interrupted."""

_TASKS = ("matching", "classification")


def refuse_other_files(folder: Path, own: Sequence[str]) -> None:
    """Refuse a folder with files not written by a training: weights must not land among someone's documents.

    Args:
        folder: Folder for the run; may not exist yet.
        own: Names, with ``*`` as a wildcard, that an interrupted training may have left. Hidden files are ignored.

    Raises:
        RunError: There is another file; names the first.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise RunError(f"{folder}: the folder cannot be read ({error.strerror or error})") from error
    others = [name for name in names if not name.startswith(".") and not any(fnmatch(name, kind) for kind in own)]
    if others:
        raise RunError(
            f"{folder}: expected a new or empty folder for the run, found other files in it (the first is "
            f"'{others[0]}'); choose another folder"
        )


@dataclass
class Run:
    """A trained fusion or baseline.

    Attributes:
        path: Folder of the run.
        model: The requested model: ``tiny``, ``linear``, ...
        task: ``matching`` or ``classification``.
        network_name: Key of `frevl.models.registry.NETWORKS`.
        network_settings: Arguments that build the network.
        labels: Class names in the order of the outputs; empty for matching.
        encoders: Encoders whose towers were concatenated.
        towers: Identity of every tower, by modality and name, in order of concatenation; empty for a modality that the
            run does not read (if it reads only images, or only texts).
        calibration: ``scale`` and ``offset``: calibrated logits are ``scale * logits + offset``.
        settings: The arguments of `train`.
        results: Development metrics, training time in seconds and the like.
        provenance: Store fingerprint, seed, versions, command, hardware.
        train_image_hashes: ``(n,)`` uint64 hashes of the content of images seen in training or development; of texts if
            the run reads only texts.
        network: The network with its weights, on the CPU, in evaluation mode.
        space_image_hashes: The part of ``train_image_hashes`` on which only the run of ``--space`` was trained, so that
            these images have no class.
        posterior: Posterior of the last layer of a network just trained; that of a saved run is read only when doubt is
            requested (`frevl.runs.posterior.load_posterior`).
    """

    path: Path
    model: str
    task: str
    network_name: str
    network_settings: dict[str, Any]
    labels: list[str]
    encoders: list[str]
    towers: dict[str, dict[str, dict[str, str]]]
    calibration: dict[str, float]
    settings: dict[str, Any]
    results: dict[str, Any]
    provenance: dict[str, Any]
    train_image_hashes: np.ndarray = field(repr=False)
    network: PairNetwork = field(repr=False)
    space_image_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)
    posterior: Posterior | None = field(default=None, repr=False)

    @functools.cached_property  # cached, because the service needs it on every request
    def sides(self) -> tuple[Side, ...]:
        """The sides of a pair that it reads: ``image``, ``text``, or both."""
        sides: tuple[Side, ...] = get_args(Side)
        return tuple(side for side in sides if self.towers.get(side))

    def check_pairs(self, pairs: Pairs) -> list[str]:
        """Refuse pairs that lack a side the run reads.

        Returns:
            A note if the pairs have more sides than the run reads; empty otherwise.

        Raises:
            PairsError: The pairs have no text, or no image, and the run reads it.
        """
        missing = [side for side in self.sides if side not in pairs.sides]
        if missing:
            a = WITH_ARTICLE[missing[0]]
            alone = len(self.sides) == 1
            raise PairsError(
                f"{pairs.places[0]}, field '{missing[0]}': expected {a}, because {self.path} was trained on "
                f"{f'{missing[0]}s only' if alone else 'images and texts'}; found none in any pair. Name its key "
                f"with --columns {missing[0]}=NAME, or train a run on {pairs.sides[0]}s only"
            )
        more = [side for side in pairs.sides if side not in self.sides]
        return (
            [f"The run was trained on {self.sides[0]}s only: the {more[0]}s of the pairs are ignored."] if more else []
        )

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def save(self) -> None:
        """Write the run; ``run.json`` comes last.

        Raises:
            RunError: The folder cannot be written, or weights or calibration are not finite.
        """
        record = {
            name: value
            for name, value in vars(self).items()
            if name not in ("path", "train_image_hashes", "space_image_hashes", "network", "posterior")
        }
        weights = {name: value.contiguous() for name, value in self.network.state_dict().items()}
        problem = not_finite(weights) or _not_finite_calibration(self.calibration)
        if problem:
            raise RunError(
                f"{self.path}: the run was not written, because {problem}; check the embeddings with frevl store "
                "verify, or train with a smaller learning rate"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            replace_file(self.path / "weights.safetensors", lambda path: save_file(weights, path))
            save_posterior(self.posterior, self.path)
            seen = {"images": self.train_image_hashes, "space_images": self.space_image_hashes}
            seen = {name: hashes for name, hashes in seen.items() if name == "images" or len(hashes)}
            replace_file(self.path / "seen.safetensors", lambda path: save_arrays(seen, path))
            write_json(self.path / "run.json", {"format": FORMAT, "parameters": self.parameters, **record})
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RunError(f"{self.path}: the run cannot be written ({reason or error})") from error

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Load a run from its folder, or from the model hub: ``hf:NAME[@REVISION]``.

        Raises:
            RunError: There is no complete run at this path, it is damaged, or it was written by a newer frevl.
        """
        path = run_folder(path)
        if not (path / "run.json").is_file():
            unfinished = (path / UNFINISHED).is_dir()
            other = "a file, and not a run" if path.is_file() else "no such folder"
            found = (
                "one whose training was interrupted; run the same frevl train again to continue"
                if unfinished
                else ("a folder without one" if path.is_dir() else other)
            )
            raise RunError(f"{path}: expected a run (a folder with 'run.json'), found {found}")
        try:
            record = _checked(read_record(path / "run.json"))
            if record.pop("format") > FORMAT:
                raise RunError(f"{path}: a newer frevl wrote this run; upgrade with: pip install -U frevl")
            record.pop("parameters")
            name, settings = record["network_name"], record["network_settings"]
            network = restored(lambda: build(name, settings), path / "weights.safetensors")
            hashes = load_arrays(path / "seen.safetensors")
            seen, of_space = hashes["images"], hashes.get("space_images", np.zeros(0, np.uint64))
            for one in (seen, of_space):
                if one.dtype != np.uint64 or one.ndim != 1:
                    raise ValueError(f"expected one row of hashes in 'seen.safetensors', found {one.dtype} {one.shape}")
            return cls(path=path, network=network, train_image_hashes=seen, space_image_hashes=of_space, **record)
        except (OSError, ValueError, KeyError, TypeError, UsageError, SafetensorError) as error:
            reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else error
            raise RunError(
                f"{path}: the run is damaged ({' '.join(str(reason).split())[:200]}); train again"
            ) from error

    def towers_in(self, store: Store) -> dict[Modality, list[Tower]]:
        """Return the store's towers that the run reads, by modality; empty for a side that it does not read."""
        both: tuple[Modality, Modality] = ("image", "text")
        return {side: [store.towers[name] for name in self.towers.get(side, ())] for side in both}

    def check_store(self, store: Store) -> None:
        """Refuse a store whose embeddings differ from those in training.

        Raises:
            FingerprintError: A tower is missing or differs; names the field.
        """
        from frevl.store.towers import IMPORTED, different_fields

        for modality, towers in self.towers.items():
            for name, identity in towers.items():
                place = f"{self.path} and {store.path} do not match"
                flags = " ".join(f"--encoder {encoder}" for encoder in self.encoders)
                tower = store.towers.get(name)
                if tower is None:
                    verb = "import its vectors" if identity.get("weights") == IMPORTED else "extract"
                    raise FingerprintError(
                        f"{place}: the run needs the {modality} tower '{name}', the store has "
                        f"{sorted(store.towers)}; {verb} with: {flags}"
                    )
                fields = different_fields(identity, tower.identity)
                if fields:
                    raise FingerprintError(
                        f"{place}: the tower '{name}' differs ('there' is the run, 'here' the store): {fields}. "
                        "Use the store that the run was trained on, or train again"
                    )

    def check_network(self, network: PairNetwork, store: Store, *, device: str) -> None:
        """Refuse a network that does not match the embeddings or the run's stated outputs.

        Args:
            network: The run's own network, or a form of it.
            store: The store with the embeddings, accepted by `check_store`.
            device: Device of the network.

        Raises:
            RunError: The network does not match.
        """
        image_dim, text_dim = (
            sum(store.towers[name].dim for name in self.towers[modality]) for modality in ("image", "text")
        )
        expected = len(self.labels) or 1 + network.probability_apart
        try:
            with torch.inference_mode():
                logits = network(torch.zeros(1, image_dim, device=device), torch.zeros(1, text_dim, device=device))
        # Untrusted settings and weights can make a network fail in any way.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"{self.path}: the run is damaged: its network fails on embeddings of {image_dim} numbers per image "
                f"and {text_dim} per text ({reason}); train again"
            ) from error
        if logits.shape != (1, expected):
            raise RunError(
                f"{self.path}: the run is damaged: expected {expected} outputs of its network, found "
                f"{'x'.join(map(str, logits.shape[1:]))}; train again"
            )


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a run if every entry is valid.

    Raises:
        KeyError: An entry is missing.
        ValueError: An entry has another type, or is unknown.
    """
    for name, (check, expected) in _ENTRIES.items():
        if not check(record[name]):
            raise ValueError(f"expected '{name}' to be {expected}, found {repr(record[name])[:60]}")
    unknown = record.keys() - _ENTRIES
    if unknown:
        raise ValueError(f"there is an unknown entry '{min(unknown)[:60]}'")
    problem = _not_finite_calibration(record["calibration"])
    if problem:
        raise ValueError(problem)
    if (record["task"] == "classification") != bool(record["labels"]):
        raise ValueError(f"a run of {record['task']} has {len(record['labels']):,} class names")
    for side, own in record["towers"].items():
        # Use the first one found: a network that reads only images may contain one that also knows texts.
        width = next(settings_named(record["network_settings"], f"{side}_dim"), 0)
        if not own and (record["task"] == "matching" or width):
            raise ValueError(f"there is no tower of the {side}s that its network reads")
    return record


def settings_named(settings: Any, name: str) -> Iterator[Any]:
    """Return the values of a setting in a network and in the networks nested in it."""
    if isinstance(settings, dict):
        if name in settings:
            yield settings[name]
        settings = list(settings.values())
    if isinstance(settings, list):
        for inner in settings:
            yield from settings_named(inner, name)


def _not_finite_calibration(calibration: Mapping[str, Any]) -> str:
    """Return which number of a calibration is not finite; an empty string if all are."""
    for name in ("scale", "offset"):
        value = calibration.get(name)
        if not _is_number(value) or not math.isfinite(value):  # type: ignore[arg-type]
            return f"expected the {name} of the calibration to be a finite number, found {value!r}"
    return ""


def _is_number(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63  # larger values fit no float
    return whole or isinstance(value, float)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _are_labels(value: Any) -> bool:
    return _are_texts(value) and len(set(value)) == len(value)


def _are_towers(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"image", "text"}
        and all(isinstance(own, dict) for own in value.values())
        and any(value.values())
        and all(
            isinstance(identity, dict) and all(map(_is_text, identity.values()))
            for own in value.values()
            for identity in own.values()
        )
    )


_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a number"),
    "parameters": (_is_number, "a number"),
    "model": (_is_text, "a text"),
    "task": (lambda value: value in _TASKS, " or ".join(f"'{task}'" for task in _TASKS)),
    "network_name": (
        lambda value: isinstance(value, str) and value in NETWORKS,
        "one of " + ", ".join(f"'{name}'" for name in NETWORKS),
    ),
    "network_settings": (_is_object, "an object"),
    "labels": (_are_labels, "a list of different texts"),
    "encoders": (_are_texts, "a list of texts"),
    "towers": (_are_towers, "an object with the identities of the image towers, the text towers, or both"),
    "calibration": (_is_object, "an object with a scale and an offset"),
    "settings": (_is_object, "an object"),
    "results": (_is_object, "an object"),
    "provenance": (_is_object, "an object"),
}
