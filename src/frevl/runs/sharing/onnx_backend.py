"""Read an exported run's ONNX file, and use it in place of a network.

The file's metadata describe it, so it needs no run folder (docs/export.md).
`frevl.deployment.export.exporting` writes it.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frevl.errors import RunError, UsageError, library, nearest
from frevl.models.interface import PairNetwork
from frevl.runs.run import Run

__all__ = [
    "BACKENDS",
    "FILE_NAME",
    "FORMAT",
    "ExportedNetwork",
    "check_backend",
    "metadata_of",
    "open_exported",
    "weights_hash",
    "weights_hash_or_none",
]

BACKENDS = ("torch", "onnx")
FORMAT = "1"  # increased when current readers would misread the file
FILE_NAME = "model.onnx"
_LEAST_SHARE = 64  # pairs; smaller shares of a batch are not worth their own core
_MOST_ROWS = 512  # pairs per call on one core; more were slower, because they exceed the core's cache


@dataclass(frozen=True)
class _Input:
    name: str
    axes: int


class ExportedNetwork(PairNetwork):
    """An ONNX file as a network, on the CPU; never part of a saved run."""

    key = "exported"

    def __init__(self, path: Path) -> None:
        """Open a file.

        Args:
            path: A file written by `frevl.deployment.export.exporting`.

        Raises:
            RunError: The file does not exist, or ONNX Runtime cannot read it.
            MissingExtraError: onnxruntime is not installed.
        """
        super().__init__()
        self.settings = {}  # everything is in the file
        library("onnxruntime")
        if not path.is_file():
            raise RunError(
                f"{path}: expected an exported run, found no file; write it with: frevl export --onnx {path}"
            )
        threads = torch.get_num_threads()  # determined by OMP_NUM_THREADS
        try:
            self.session = _open(path, threads)
            # Large batches are split over cores (see `_parallel_parts`). Opened now, because the file may be replaced
            # later.
            self._one_core = self.session if threads == 1 else _open(path, 1)
            self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
            self._inputs = [_Input(one.name, len(one.shape)) for one in self.session.get_inputs()]
            names = [one.name for one in self.session.get_outputs()]
        # ONNX Runtime's exceptions have no common base below Exception, and each means that this is not a valid
        # network.
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise RunError(f"{path}: ONNX Runtime cannot read the file ({reason}); export the run again") from error
        known = {"image": (2, 3), "text": (2, 3), "image_mask": (2,), "text_mask": (2,)}
        if not self._inputs or "logits" not in names or any(a.axes not in known.get(a.name, ()) for a in self._inputs):
            raise RunError(
                f"{path}: expected an exported run with the inputs 'image' and 'text' and the output 'logits', found "
                "another ONNX network"
            )
        self._path = path

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, outputs)`` logits; the shapes are those of `PairNetwork.forward`."""
        given = {"image": (image, image_mask), "text": (text, text_mask)}
        feeds = {}
        for one in self._inputs:
            values, mask = given[one.name.removesuffix("_mask")]
            if one.name.endswith("_mask"):
                # A batch of one-token items comes without token axis and mask; the file always has both.
                tokens = mask if mask is not None else torch.ones(*_as_tokens(values).shape[:2], dtype=torch.bool)
                feeds[one.name] = tokens.cpu().numpy()
            else:
                feeds[one.name] = (_as_tokens(values) if one.axes == 3 else values).float().cpu().numpy()
        count = len(next(iter(feeds.values())))
        cores = max(1, min(torch.get_num_threads(), count // _LEAST_SHARE))
        if cores == 1 and count <= _MOST_ROWS:
            return torch.from_numpy(self._run(self.session, feeds))
        return torch.from_numpy(np.concatenate(self._parallel_parts(feeds, count, cores)))

    def _run(self, session: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
        try:
            logits: np.ndarray = session.run(["logits"], feeds)[0]
        # As when opening it: the graph may be untrusted.
        except Exception as error:
            reason = " ".join(str(error).split())[:160]
            raise RunError(f"{self._path}: the exported network fails ({reason}); export the run again") from error
        count = len(next(iter(feeds.values())))
        if getattr(logits, "ndim", 0) != 2 or len(logits) != count or logits.dtype != np.float32:
            raise RunError(f"{self._path}: expected one row of logits per pair; export the run again")
        return logits

    def _parallel_parts(self, feeds: dict[str, np.ndarray], count: int, cores: int) -> list[np.ndarray]:
        """Run the parts of a large batch, each on its own core, synchronising only at the end."""
        session, rows = self._one_core, min(_MOST_ROWS, -(-count // cores))

        def part(start: int) -> np.ndarray:
            feed = {name: values[start : start + rows] for name, values in feeds.items()}
            return self._run(session, feed)

        with ThreadPoolExecutor(cores) as pool:
            return list(pool.map(part, range(0, count, rows)))


def _open(path: Path, threads: int) -> Any:
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _as_tokens(values: Tensor) -> Tensor:
    return values[:, None] if values.dim() == 2 else values


def metadata_of(path: Path) -> dict[str, Any]:
    """Return the metadata of an exported file, parsed.

    Raises:
        RunError: The file was not written by `frevl export`, or by a newer version.
    """
    return _parsed(ExportedNetwork(path), path)


def check_backend(backend: str, onnx: str | Path | None, device: str) -> None:
    """Refuse backends that `frevl.runs.scorer.Scorer.open` cannot use; arguments as there.

    Raises:
        UsageError: There is no such backend, or it does not support the file or the device.
    """
    if backend not in BACKENDS:
        raise UsageError(f"There is no backend '{backend}'. {nearest(backend, BACKENDS)}")
    if onnx is not None and backend != "onnx":
        raise UsageError(f"The exported file {onnx} requires the backend 'onnx', found '{backend}'")
    if backend == "onnx" and device != "cpu":
        raise UsageError(f"--backend onnx runs on the CPU, found --device '{device}'; leave one of them out")


def open_exported(run: Run, path: str | Path | None = None) -> ExportedNetwork:
    """Open the exported file of a run.

    Args:
        run: The run that was exported.
        path: The file; by default ``model.onnx`` in the run's folder.

    Raises:
        RunError: The file is missing or damaged, or belongs to other weights than those of the run.
    """
    path = run.path / FILE_NAME if path is None else Path(path)
    if not path.is_file():
        raise RunError(
            f"{path}: expected the exported file of the run, found none; write it with: "
            f"frevl export --run {run.path} --onnx {path}"
        )
    network = ExportedNetwork(path)
    found, expected = str(_parsed(network, path).get("weights")), weights_hash(run)
    if found != expected:
        raise RunError(
            f"{path}: expected the weights {expected[:16]} of the run {run.path}, found an export of {found[:16]}; "
            f"export the run again with: frevl export --run {run.path} --onnx {path}"
        )
    return network


def weights_hash(run: Run) -> str:
    """Return the SHA-256 of the run's weights as stored in its folder.

    Raises:
        RunError: The weights cannot be read.
    """
    try:
        with (run.path / "weights.safetensors").open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise RunError(f"{run.path}: the weights cannot be read ({error.strerror or error})") from error


def weights_hash_or_none(run: Run) -> str | None:
    """Return `weights_hash`; None for a run in memory, without files."""
    return weights_hash(run) if (Path(run.path) / "weights.safetensors").is_file() else None


def _parsed(network: ExportedNetwork, path: Path) -> dict[str, Any]:
    texts = {name.removeprefix("frevl."): text for name, text in network.metadata.items() if name.startswith("frevl.")}
    if "format" not in texts:
        raise RunError(f"{path}: expected a file that frevl export wrote, found another ONNX network")
    if texts["format"] != FORMAT:
        raise RunError(
            f"{path}: a newer frevl wrote this file (format {texts['format']}); upgrade with: pip install -U frevl"
        )
    try:
        return {name: json.loads(text) if text[:1] in ("[", "{") else text for name, text in texts.items()}
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: the metadata are damaged ({error}); export the run again") from error
