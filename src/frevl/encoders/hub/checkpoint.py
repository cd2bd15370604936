"""A pretrained model on disk, from a folder, the hub's cache or the hub, with its revision and weights hash.

The cache comes first: a downloaded model is reused without network access, so that a name keeps meaning the same
weights. Another revision must be requested by name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from frevl.errors import EncoderError, UsageError, library

__all__ = ["Checkpoint", "digest_of", "file_digest", "open_checkpoint", "slug"]

_MODEL_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# In order of preference; an index lists the parts of weights that are too large for one file.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SETTINGS = ["*.json", "*.txt", "*.model", "*.jinja"]
_OTHER_FORMS = ["*fp16*", "*bf16*", "onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]
# Fields of a configuration that record its origin and not what the network does.
_ORIGIN = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "_commit_hash"}


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained model on disk.

    Attributes:
        model: The requested id or folder.
        folder: Folder that holds its files.
        revision: Commit on the hub; ``"none (a folder)"`` for a folder that is not part of the hub's cache.
        weights: SHA-256 of the weights.
    """

    model: str
    folder: Path
    revision: str
    weights: str

    def settings(self, name: str) -> dict[str, Any]:
        """Read a JSON object of the model; empty if the file does not exist.

        Raises:
            EncoderError: The file is damaged.
        """
        content = self._json(name, {})
        if not isinstance(content, dict):
            raise EncoderError(f"{self.folder / name}: expected a JSON object; download the model again")
        return content

    def settings_list(self, name: str) -> list[dict[str, Any]]:
        """Read a JSON list of objects of the model; empty if the file does not exist.

        Raises:
            EncoderError: The file is damaged.
        """
        content = self._json(name, [])
        if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
            raise EncoderError(f"{self.folder / name}: expected a JSON list of objects; download the model again")
        return content

    def _json(self, name: str, absent: Any) -> Any:
        path = self.folder / name
        if not path.is_file():
            return absent
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EncoderError(
                f"{path}: expected JSON, found something else ({error}); download the model again"
            ) from None

    @property
    def configuration(self) -> str:
        """Hash the network's configuration without the fields that only record its origin."""
        return digest_of(_without_origin(self.settings("config.json")))

    def number(self, name: str) -> float | None:
        """Read one scalar from the weights without loading the rest; None if there is none with this name."""
        from safetensors import safe_open

        for path in _weight_files(self.folder):
            if path.suffix == ".safetensors":
                with safe_open(path, framework="numpy") as tensors:
                    if name in tensors.keys():  # noqa: SIM118 (it is no dict)
                        return float(np.asarray(tensors.get_tensor(name)).reshape(()))
            else:
                import torch

                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                if name in tensors:
                    return float(tensors[name])
        return None


def open_checkpoint(model: str, revision: str | None = None) -> Checkpoint:
    """Locate a model in a folder, or by its id in the hub's cache or on the hub.

    Args:
        model: Folder, or an id such as ``openai/clip-vit-base-patch32``.
        revision: Branch, tag or commit on the hub; None takes the cached ``main``, or else downloads ``main``.

    Raises:
        UsageError: ``model`` is neither a folder nor an id, or it is a folder and a revision is given.
        MissingExtraError: ``huggingface_hub`` is not installed.
        EncoderError: The hub has no such model or revision, cannot be reached, or the model has no weights.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"'{model}' is a folder, which has no revisions; leave '@{revision}' out")
        parts = folder.resolve().parts
        inside = len(parts) > 1 and parts[-2] == "snapshots" and _COMMIT.fullmatch(parts[-1])
        commit = parts[-1] if inside else "none (a folder)"
    elif _MODEL_ID.fullmatch(model) is None:
        raise UsageError(f"'{model}': expected a folder with a model, or a model id on the hub, found neither")
    else:
        folder = _snapshot(model, revision)
        commit = folder.name
    files = _weight_files(folder)
    if not files or not (folder / "config.json").is_file():
        raise EncoderError(
            f"'{model}': expected 'config.json' and weights ({', '.join(_WEIGHT_FILES[::2])}) in {folder}, found "
            f"{', '.join(sorted(path.name for path in folder.iterdir())[:8]) or 'nothing'}; it is not a complete model "
            "of the transformers library"
        )
    digests = [file_digest(path) for path in files]
    return Checkpoint(model, folder, commit, digests[0] if len(digests) == 1 else digest_of(digests))


def slug(model: str) -> str:
    """Turn an id or folder into a part of a column's name: letters, digits, ``-`` and ``_``."""
    folder = Path(model).expanduser()
    name = folder.resolve().name if folder.is_dir() else model
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "model"


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file; an unchanged file is read only once per process.

    Raises:
        EncoderError: The file cannot be read.
    """
    try:
        status = path.stat()
        return _file_digest(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise EncoderError(f"Cannot read '{path}' ({error.strerror or error}); download the model again.") from None


@cache
def _file_digest(path: Path, size: int, modified: int) -> str:  # noqa: ARG001
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _without_origin(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_origin(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if name not in _ORIGIN
    }


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files in the preferred format; empty if there are none."""
    for name in _WEIGHT_FILES:
        path = folder / name
        if not path.is_file():
            continue
        if path.suffix != ".json":
            return [path]
        try:
            parts = [folder / part for part in sorted(set(json.loads(path.read_text("utf-8"))["weight_map"].values()))]
        except (OSError, ValueError, KeyError, AttributeError):
            return []
        return parts if all(part.is_file() for part in parts) else []
    return []


def _snapshot(model: str, revision: str | None) -> Path:
    """Return the folder of a model in the hub's cache, downloading it first if necessary."""
    hub = library("huggingface_hub", "hf")
    named = model if revision is None else f"{model}@{revision}"
    wanted = {"allow_patterns": [*_SETTINGS, "*.safetensors"], "ignore_patterns": _OTHER_FORMS, "revision": revision}
    try:
        folder = Path(hub.snapshot_download(model, local_files_only=True, **wanted))
        if _weight_files(folder):
            return folder
    except hub.errors.LocalEntryNotFoundError:
        pass  # not in the cache, or incomplete: downloaded below
    try:
        folder = Path(hub.snapshot_download(model, **wanted))
        if not _weight_files(folder):
            hub.snapshot_download(model, revision=folder.name, allow_patterns=["pytorch_model*.bin*"])
        return folder
    except hub.errors.RevisionNotFoundError:
        raise EncoderError(f"The hub's model '{model}' has no revision '{revision}'; check the name") from None
    except hub.errors.GatedRepoError:
        raise EncoderError(
            f"The hub's model '{model}' requires an agreement; accept it on its page and log in with: hf auth login"
        ) from None
    except hub.errors.RepositoryNotFoundError:
        raise EncoderError(
            f"The hub has no model '{model}' (or it is private); check the id, or log in with: hf auth login"
        ) from None
    # Without a network, the hub's library raises its own exceptions, those of the HTTP library, and those of the
    # system.
    except Exception as error:
        settings = hub.try_to_load_from_cache(model, "config.json", revision=revision)
        if isinstance(settings, str) and _weight_files(Path(settings).parent):
            return Path(settings).parent  # downloaded by another program: perhaps incomplete, but with the weights
        reason = type(error.__cause__ or error).__name__
        raise EncoderError(
            f"The model '{named}' is not in the hub's cache and cannot be downloaded ({reason}). On a machine with "
            f"network, run: hf download {model}{'' if revision is None else f' --revision {revision}'} , then copy the "
            "cache folder (HF_HOME) here, or copy the model's folder and use hf:FOLDER"
        ) from None
