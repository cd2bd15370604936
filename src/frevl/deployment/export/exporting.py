"""Export a run as one ONNX file that needs neither PyTorch nor this package (docs/export.md).

The graph is the network fused for inference; it takes any number of pairs and, for token embeddings, any number of
tokens. The file is written under a temporary name, compared with PyTorch, and only then renamed, so an existing file
agrees with its run.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frevl.data.outputs import refuse_inputs
from frevl.data.pairs import Pairs, read_pairs
from frevl.deployment.export.onnx_graph import (
    drawn_inputs,
    exportable,
    has_input_statistics,
    has_own_probabilities,
    traced,
)
from frevl.deployment.export.quantisation import quantise_rows
from frevl.errors import RunError, UsageError, library
from frevl.evaluation.evaluation import evaluate
from frevl.files import replace_file
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.runs.sharing.onnx_backend import FILE_NAME, FORMAT, ExportedNetwork, weights_hash
from frevl.store.reader import Store
from frevl.store.towers import fingerprint_of
from frevl.store.usable_pairs import usable_pairs

__all__ = ["TOLERANCE", "Exported", "export"]

TOLERANCE = 1e-4  # largest allowed difference of a float32 logit
INT8_POINTS = 0.3  # largest allowed loss from 8-bit integers, in points of the first metric
_MOST_PAIRS = 16_384  # pairs of a pairs file whose scores are compared one by one
_DRAWN_PAIRS = 256
_SPEED_BATCHES = (1, 32, 1024)
_SPEED_SECONDS = 0.4


@dataclass(frozen=True)
class Exported:
    """The exported file, and how it compares with PyTorch.

    Attributes:
        path: The file.
        run: Folder of the run.
        model: Model of the run.
        precision: ``float32`` or ``int8``.
        bytes: Size of the file.
        parity: ``pairs`` compared, ``on`` what, ``largest_difference`` of a logit; for int8 also ``metric``,
            ``float32`` and ``int8`` (percent), ``points`` and ``ci95`` of the difference.
        speed: For each batch size, the median milliseconds of both, and how many times as fast ONNX Runtime is.
    """

    path: Path
    run: Path
    model: str
    precision: str
    bytes: int
    parity: dict[str, Any]
    speed: list[dict[str, float]]

    def record(self) -> dict[str, Any]:
        """Return the record that `frevl export --json` writes."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    def sentence(self) -> str:
        """Return the text that the command prints."""
        on = f"{self.parity['pairs']:,} {self.parity['on']}"
        lines = [
            f"Exported {self.model} ({self.precision}, {self.bytes / 1e6:.2f} MB) to {self.path}.",
            f"Largest difference of a logit to PyTorch: {self.parity['largest_difference']:.2g}, on {on}.",
        ]
        if self.precision == "int8":
            lines.append(
                f"{self.parity['metric']}: {self.parity['int8']:.2f} % in int8, {self.parity['float32']:.2f} % in "
                f"float32, on {self.parity['labelled_pairs']:,} pairs."
            )
        lines += [
            f"Batch {row['batch']}: {row['onnx_ms']:.2f} ms, PyTorch {row['pytorch_ms']:.2f} ms "
            f"({row['ratio']:.2f} times as fast)."
            for row in self.speed
        ]
        return "\n".join(lines)


def export(
    run: str | Path,
    onnx: str | Path | None = None,
    *,
    int8: bool = False,
    store: str | Path | None = None,
    pairs: str | Path | Pairs | None = None,
) -> Exported:
    """Write a run as an ONNX file, checked against PyTorch.

    Args:
        run: Folder of the run.
        onnx: File to write; by default ``model.onnx`` in the run's folder. Written completely or not at all.
        int8: Quantise matrix products to 8-bit integers; needs labelled pairs to measure the cost.
        store: Store with the pairs' embeddings.
        pairs: Pairs to compare on; without them, random embeddings are drawn.

    Returns:
        Size, comparison and speed of the file.

    Raises:
        UsageError: Only one of ``store`` and ``pairs`` is given, or ``int8`` without them.
        RunError: The run cannot be exported, the file does not agree with PyTorch, or int8 costs too much.
        MissingExtraError: onnx, onnxscript or onnxruntime is missing.
    """
    refuse_inputs({"--onnx": onnx}, {"--run": run, "--store": store, "--pairs": pairs})
    if (store is None) != (pairs is None):
        raise UsageError(
            "--store and --pairs must be given together: the pairs to compare on, and the store with their embeddings"
        )
    if int8 and pairs is None:
        raise UsageError("--int8 needs labelled pairs to measure the loss in quality; add --store STORE --pairs FILE")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        library(name)  # before anything slow
    loaded = Run.load(run)
    network = exportable(loaded.network, loaded.path, int8=int8)
    scorer = None if store is None else Scorer(loaded, Store.open(store))
    compared = read_pairs(pairs) if isinstance(pairs, str | Path) else pairs
    path = loaded.path / FILE_NAME if onnx is None else Path(onnx)
    parity: dict[str, Any] = {}

    def write(part: Path) -> None:
        model = traced(network, loaded)
        if int8 and quantise_rows(model) == 0:
            raise RunError(f"{loaded.path}: a {loaded.model} has no matrix product to quantise; leave out --int8")
        _describe(model, loaded, "int8" if int8 else "float32")
        library("onnx").save(model, str(part))
        parity.update(_compare(loaded, ExportedNetwork(part), scorer, compared, int8=int8))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, write)
        size = path.stat().st_size
    except OSError as error:
        raise RunError(f"{path}: the export cannot be written ({error.strerror or error})") from error
    speed = _speed(loaded, ExportedNetwork(path))
    return Exported(path, loaded.path, loaded.model, "int8" if int8 else "float32", size, parity, speed)


def _describe(model: Any, run: Run, precision: str) -> None:
    """Describe in the file's metadata how to run it and which embeddings it expects."""
    towers = {
        modality: [
            {"name": name, "fingerprint": fingerprint_of(identity), "identity": identity}
            for name, identity in towers.items()
        ]
        for modality, towers in run.towers.items()
    }
    made_with = {name: run.provenance.get(name) for name in ("store_fingerprint", "seed", "versions")}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "model": run.model,
        "task": run.task,
        "precision": precision,
        "weights": weights_hash(run),
        "labels": run.labels,
        "calibration": {**run.calibration, "of_probabilities": "sigmoid" if has_own_probabilities(run) else "softmax"},
        "encoders": run.encoders,
        "towers": towers,
        "provenance": made_with,
    }
    del model.metadata_props[:]
    for name, fact in facts.items():
        text = fact if isinstance(fact, str) else json.dumps(fact, ensure_ascii=False)
        model.metadata_props.add(key=f"frevl.{name}", value=text)


def _compare(
    run: Run, exported: ExportedNetwork, scorer: Scorer | None, pairs: Pairs | None, *, int8: bool
) -> dict[str, Any]:
    """Compare with PyTorch, and reject a file that does not agree."""
    if scorer is None or pairs is None:
        inputs = drawn_inputs(run, _DRAWN_PAIRS, text_tokens=11)
        with torch.inference_mode():
            gap = (exported(*inputs) - run.network(*inputs)).abs().max().item()
        kind = (
            "with the mean and standard deviation of the training data"
            if has_input_statistics(run)
            else "of unit length"
        )
        parity: dict[str, Any] = {"pairs": _DRAWN_PAIRS, "on": f"pairs of random embeddings {kind}"}
    else:
        run.check_pairs(pairs)
        usable, _ = usable_pairs(pairs.only(run.sides), scorer.store)
        some = list(zip(usable.images[:_MOST_PAIRS], usable.texts[:_MOST_PAIRS], strict=True))
        other = Scorer(run, scorer.store)
        other.network = exported
        gap = float(np.abs(other.score(some) - scorer.score(some)).max())
        parity = {"pairs": len(some), "on": "real pairs"}
        if int8:
            parity |= _cost(evaluate(other, pairs, versus=scorer), run.path)
    parity["largest_difference"] = gap
    if not int8 and not gap <= TOLERANCE:  # also true for NaN
        raise RunError(
            f"{run.path}: the exported file does not agree with PyTorch: a logit differs by {gap:.2g} on "
            f"{parity['pairs']:,} {parity['on']}, expected at most {TOLERANCE:g}; install the versions in "
            "constraints.txt"
        )
    return parity


def _cost(result: Any, place: Path) -> dict[str, Any]:
    """Measure the loss from int8 on labelled pairs; reject more than `INT8_POINTS`."""
    metric, found = next(iter(result.metrics.items()))
    difference = result.difference or {"difference": 0.0, "ci95": None}
    points = difference["difference"]
    if points < -INT8_POINTS:
        raise RunError(
            f"{place}: int8 costs {-points:.2f} points of {metric} on {result.n:,} pairs ({found - points:.2f} to "
            f"{found:.2f} %), expected at most {INT8_POINTS}; export without --int8"
        )
    return {
        "labelled_pairs": result.n,
        "metric": metric,
        "float32": found - points,
        "int8": found,
        "points": points,
        "ci95": difference["ci95"],
    }


def _speed(run: Run, exported: ExportedNetwork) -> list[dict[str, float]]:
    """Time ONNX Runtime and PyTorch in turns, in milliseconds per batch."""
    network = run.network.for_inference()
    rows = []
    for batch in _SPEED_BATCHES:
        inputs = drawn_inputs(run, batch, text_tokens=16)
        if max(inputs[0].dim(), inputs[1].dim()) == 3 and batch > 32:
            continue  # 50 times the work per pair
        seconds: dict[str, list[float]] = {"onnx": [], "pytorch": []}
        stop = time.perf_counter() + _SPEED_SECONDS
        with torch.inference_mode():
            while time.perf_counter() < stop or len(seconds["onnx"]) < 4:
                for name, side in (("onnx", exported), ("pytorch", network)):
                    started = time.perf_counter()
                    side(*inputs)
                    seconds[name].append(time.perf_counter() - started)
        onnx, pytorch = (1e3 * statistics.median(times[1:]) for times in seconds.values())
        rows.append({"batch": batch, "onnx_ms": onnx, "pytorch_ms": pytorch, "ratio": pytorch / onnx})
    return rows
