"""PyTorch networks that run in ONNX Runtime: exported once, to a file in the user's cache folder.

On two CPU cores, ONNX Runtime processes five to ten times as many images as eager PyTorch, the more the busier the
machine (``bench/encoders/encoder.py``), and a program that only embeds need not import torch or transformers.

The exporter is ``torch.onnx.export(dynamo=True)``: the older TorchScript exporter is quicker (2 s instead of 5 s, once)
but deprecated. Both gave the same numbers to within 2e-5.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from frevl.errors import EncoderError, library
from frevl.files import user_cache

if TYPE_CHECKING:
    import torch

__all__ = [
    "INT8_PARITY",
    "Source",
    "cache_folder",
    "exported_path",
    "name_axes",
    "one_thread",
    "open_int8",
    "open_network",
    "quiet_export",
    "run",
]

PARITY = 0.9999  # smallest accepted cosine between PyTorch's tokens and ONNX Runtime's
INT8_PARITY = 0.99  # smallest accepted cosine between an item's float32 and int8 embeddings
_FORMAT = 2  # increased when the same weights must be exported differently


@dataclass(frozen=True)
class Source:
    """A network to export, with inputs to check it.

    Attributes:
        network: A module in evaluation mode with one input and one output, ``(..., dim)`` tokens.
        axes: Names of the input's axes whose length may vary, by position.
        examples: Inputs; the first is traced, and ONNX Runtime must agree with PyTorch on all of them.
    """

    network: torch.nn.Module
    axes: dict[int, str]
    examples: Sequence[np.ndarray]


def cache_folder() -> Path:
    """Return the folder of exported networks."""
    return user_cache() / "encoders"


def open_network(name: str, weights: str, build: Callable[[], Source]) -> Any:
    """Open an exported network, exporting it first if these weights have never been exported.

    Safe if several processes do it at once (the others wait) or one is killed half-way (the file appears atomically,
    once it is complete and checked). A file that cannot be read is exported again.

    Args:
        name: Name of the tower.
        weights: SHA-256 of the weight file.
        build: Loads the PyTorch network; called only if it has to be exported.

    Returns:
        An ``onnxruntime.InferenceSession``, shared by threads; each run uses one core.

    Raises:
        MissingExtraError: A library is missing.
        EncoderError: The cache folder cannot be used, or ONNX Runtime does not agree with PyTorch.
    """
    library("onnxruntime")  # before anything slow
    return _open_or_make(exported_path(name, weights), weights, lambda path: _export(build(), path, name, weights))


def open_int8(name: str, weights: str, build: Callable[[], Source]) -> Any:
    """Open an exported network with 8-bit weights in its matrix products, making it first if needed.

    Weights are quantised per column, activations at run time (ONNX Runtime's dynamic quantisation).

    Args:
        name: Name of the tower.
        weights: SHA-256 of the weight file.
        build: Loads the PyTorch network.

    Returns:
        An ``onnxruntime.InferenceSession``.

    Raises:
        MissingExtraError: A library is missing.
        EncoderError: As in `open_network`, or the int8 embeddings differ too much from those in float32.
    """
    path, mark = exported_path(name, weights, "-int8"), f"{weights}-int8"
    session = _open(path, mark)
    if session is not None:
        return session
    exact = open_network(name, weights, build)
    return _open_or_make(path, mark, lambda path: _quantise(exact, build(), path, name, weights))


def exported_path(name: str, weights: str, kind: str = "") -> Path:
    """Return the path of a network's exported file, which may not exist; ``kind`` separates variants of a network."""
    return cache_folder() / f"{name}-{weights[:16]}-{_FORMAT}{kind}.onnx"


def _open_or_make(path: Path, weights: str, make: Callable[[Path], None]) -> Any:
    """Open a file in the cache folder; if there is no valid one, create it while other processes wait."""
    session = _open(path, weights)
    if session is not None:
        return session
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / "export.lock"):
            session = _open(path, weights)  # another process may have been first
            if session is None:
                make(path)
                session = _open(path, weights)
    except OSError as error:
        raise EncoderError(
            f"Cannot write the exported encoder to '{path.parent}' ({error.strerror or error}). "
            "Free some space or fix the permissions, or set FREVL_CACHE to another folder."
        ) from error
    if session is None:
        raise EncoderError(f"ONNX Runtime cannot read '{path}', which was just exported; reinstall onnxruntime.")
    return session


def run(session: Any, value: np.ndarray) -> np.ndarray:
    """Run a network on its one input and return its one output."""
    output: np.ndarray = session.run(None, {"input": value})[0]
    return output


def _open(path: Path, weights: str) -> Any:
    """Open an exported file; None if it is missing, damaged or belongs to other weights."""
    if not path.is_file():
        return None
    status = path.stat()
    return _open_unchanged(path, status.st_size, status.st_mtime_ns, weights)


@cache  # towers that differ only in the tokens kept share one network in memory
def _open_unchanged(path: Path, size: int, modified: int, weights: str) -> Any:  # noqa: ARG001
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    # One core per run, and several runs at once: faster than one run on all cores, as measured. Waiting threads do not
    # spin, which would take cores away from the threads that decode images.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions have no common base below Exception; any of them means that this file is not a network.
    except Exception:
        return None
    return session if session.get_modelmeta().custom_metadata_map.get("frevl.weights") == weights else None


def _export(source: Source, path: Path, name: str, weights: str) -> None:
    """Export the network, check it and move it into place; the caller holds the lock."""
    for left_over in path.parent.glob(f"{path.stem}.*.part"):
        left_over.unlink()
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        _write(source, part, weights)
        _check(source, part, name, weights)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(source: Source, path: Path, weights: str) -> None:
    import torch

    library("onnx")
    library("onnxscript")  # torch's exporter needs both, and its own message is less clear
    example = torch.from_numpy(source.examples[0])
    with quiet_export():
        program = torch.onnx.export(
            source.network.eval(),
            (example,),
            input_names=["input"],
            output_names=["tokens"],
            dynamic_shapes=(source.axes or None,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise EncoderError("PyTorch's ONNX exporter returned nothing; install the versions in constraints.txt.")
        name_axes(program.model, {"input": source.axes})
        program.model.metadata_props["frevl.weights"] = weights
        program.save(path)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())  # otherwise a power cut could leave the final name with incomplete content


def name_axes(model: Any, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Name the variable axes of a traced model; the exporter calls them ``s27`` and the like.

    Args:
        model: The ``model`` of a ``torch.onnx.ONNXProgram``; modified in place.
        axes: Names of the variable axes by position, for every input that has any.
    """
    inputs = {one.name: one for one in model.graph.inputs}
    names = {str(inputs[name].shape[axis]): new for name, own in axes.items() for axis, new in own.items()}
    if not names:
        return
    found = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    made = [value for node in model.graph for value in node.outputs]
    for value in [*model.graph.inputs, *model.graph.outputs, *made]:
        if value.shape is not None:
            for axis, size in enumerate(value.shape):
                if not isinstance(size, int) and found.search(str(size)):
                    value.shape[axis] = found.sub(lambda match: names[match[0]], str(size))


def _check(source: Source, path: Path, name: str, weights: str) -> None:
    import torch

    session = _open_unchanged.__wrapped__(path, 0, 0, weights)
    if session is None:
        raise EncoderError(f"ONNX Runtime cannot read the exported encoder '{name}'; reinstall onnxruntime.")
    for example in source.examples:
        with one_thread(), torch.no_grad():
            expected = source.network(torch.from_numpy(example)).numpy()
        found = run(session, example)
        dots = (expected * found).sum(axis=-1)
        lengths = np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1)
        both_zero = ~(expected.any(axis=-1) | found.any(axis=-1))  # a zero token has no direction to compare
        cosine = float(np.where(both_zero, 1.0, dots / np.maximum(lengths, 1e-12)).min())
        if not cosine >= PARITY:  # also true for NaN
            raise EncoderError(
                f"The exported encoder '{name}' does not agree with PyTorch: cosine {cosine:.6f} for an input of "
                f"shape {example.shape}, expected at least {PARITY}. Install the versions in constraints.txt."
            )


def _quantise(exact: Any, source: Source, path: Path, name: str, weights: str) -> None:
    """Write the network of `exact` with 8-bit weights, check it and move it into place; the caller holds the lock."""
    onnx = library("onnx")
    quantization = library("onnxruntime.quantization")
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        model = onnx.load(exported_path(name, weights))
        # The exporter's inner shape annotations contradict ONNX's own inference at some nodes, and nothing needs them.
        del model.graph.value_info[:]
        quantization.quant_utils.add_pre_process_metadata(model)  # otherwise it advises to do what was just done
        with quiet_export():
            quantization.quantize_dynamic(
                model,
                part,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
            )
        model = onnx.load(part)
        onnx.helper.set_model_props(model, {"frevl.weights": f"{weights}-int8"})
        onnx.save(model, part)
        session = _open_unchanged.__wrapped__(part, 0, 0, f"{weights}-int8")
        if session is None:
            raise EncoderError(f"ONNX Runtime cannot read the int8 form of the encoder '{name}'; leave '#int8' out.")
        for example in source.examples:
            expected = run(exact, example).reshape(len(example), -1)
            found = run(session, example).reshape(len(example), -1)
            lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
            cosine = float(((expected * found).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
            if not cosine >= INT8_PARITY:  # also true for NaN
                raise EncoderError(
                    f"With 8-bit weights the encoder '{name}' gives other embeddings: cosine {cosine:.4f}, expected at "
                    f"least {INT8_PARITY}. Leave '#int8' out."
                )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep PyTorch on one core: on a busy machine its waiting threads made single images 20 times slower."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


@contextmanager
def quiet_export() -> Iterator[None]:
    """Hide the exporter's messages about its own internals: warnings, and log lines about absent torchvision."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
