"""A run on disk: weights, settings, labels, fingerprints and results; refuses a store that does not fit.

``run.json`` is written last and atomically, so a run that exists is complete. Weights are safetensors; nothing
is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from frevl.errors import FingerprintError, RunError
from frevl.jsonfile import replace_file, write_json
from frevl.models.hub import run_folder
from frevl.models.interface import PairNetwork
from frevl.models.registry import build
from frevl.store.reader import Store
from frevl.store.towers import different_fields

__all__ = ["Run", "refuse_other_files"]

FORMAT = 1


def refuse_other_files(folder: Path, own: Sequence[str]) -> None:
    """Refuse a folder with files that no training wrote: weights do not belong among somebody's documents.

    Args:
        folder: Where a run is to be written; may be absent.
        own: Names, with ``*`` for anything, that an interrupted training may have left. Hidden files are passed over.

    Raises:
        RunError: Names the first other file.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise RunError(f"{folder}: the folder cannot be read ({error.strerror or error})") from error
    others = [name for name in names if not name.startswith(".") and not any(fnmatch(name, kind) for kind in own)]
    if others:
        raise RunError(
            f"{folder}: expected a new or empty folder for the run, found other files in it (the first is "
            f"'{others[0]}'); choose another --run"
        )


@dataclass
class Run:
    """A trained fusion or baseline.

    Attributes:
        path: Its folder.
        model: What was asked for: ``tiny``, ``linear``, ...
        task: ``matching`` or ``classification``.
        network_name: Key of `frevl.models.registry.NETWORKS`.
        network_settings: Arguments that build the network.
        labels: Class names in the order of the outputs; empty for matching.
        encoders: Encoders whose towers were concatenated.
        towers: Identity of every tower, by modality and name, in the order of concatenation.
        calibration: ``scale`` and ``offset``: calibrated logits are ``scale * logits + offset``.
        settings: What `train` was called with.
        results: Development metrics, training seconds and the like.
        provenance: Store fingerprint, seed, versions, command, hardware.
        train_image_hashes: ``(n,)`` uint64 of the content of the images seen in training or development.
        network: The network with its weights, on the CPU, in evaluation mode.
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

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def save(self) -> None:
        """Write the run; ``run.json`` comes last.

        Raises:
            RunError: The folder cannot be written.
        """
        record = {
            name: value for name, value in vars(self).items() if name not in ("path", "train_image_hashes", "network")
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            weights = {name: value.contiguous() for name, value in self.network.state_dict().items()}
            replace_file(self.path / "weights.safetensors", lambda path: save_file(weights, path))
            seen = {"images": self.train_image_hashes}
            replace_file(self.path / "seen.safetensors", lambda path: save_arrays(seen, path))
            write_json(self.path / "run.json", {"format": FORMAT, "parameters": self.parameters, **record})
        except (OSError, SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RunError(f"{self.path}: the run cannot be written ({reason or error})") from error

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Load a run from its folder, or from the model hub: ``hf:NAME[@REVISION]``.

        Raises:
            RunError: There is no complete run at this path, it is damaged, or a newer frevl wrote it.
        """
        path = run_folder(path)
        if not (path / "run.json").is_file():
            unfinished = (path / "state.safetensors").exists()
            found = (
                "one whose training was interrupted; run the same frevl train again to go on"
                if unfinished
                else ("a folder without one" if path.is_dir() else "no such folder")
            )
            raise RunError(f"{path}: expected a run (a folder with 'run.json'), found {found}")
        try:
            record = json.loads((path / "run.json").read_text(encoding="utf-8"))
            if record.pop("format") > FORMAT:
                raise RunError(f"{path}: a newer frevl wrote this run; upgrade with: pip install -U frevl")
            record.pop("parameters")
            network = build(record["network_name"], record["network_settings"])
            network.load_state_dict(load_file(path / "weights.safetensors"))
            seen = load_arrays(path / "seen.safetensors")["images"]
            return cls(path=path, network=network.eval(), train_image_hashes=seen, **record)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise RunError(f"{path}: the run is damaged ({' '.join(str(error).split())[:200]}); train again") from error

    def check_store(self, store: Store) -> None:
        """Refuse a store whose embeddings are not those of the training.

        Raises:
            FingerprintError: A tower is missing or differs; names the field.
        """
        for modality, towers in self.towers.items():
            for name, identity in towers.items():
                place = f"{self.path} and {store.path} do not fit"
                tower = store.towers.get(name)
                if tower is None:
                    raise FingerprintError(
                        f"{place}: the run needs the {modality} tower '{name}', the store has "
                        f"{sorted(store.towers)}; extract with: --encoder {self.encoders[0]}"
                    )
                fields = different_fields(identity, tower.identity)
                if fields:
                    raise FingerprintError(
                        f"{place}: the tower '{name}' differs ('there' is the run, 'here' the store): {fields}. "
                        "Use the store that the run was trained on, or train again"
                    )
