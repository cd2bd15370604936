"""A second example: classify handwritten digits from examples, compared with scikit-learn's logistic regression.

The images come with scikit-learn (UCI "Optical recognition of handwritten digits", 1,797 of 8 x 8 pixels); nothing is
downloaded at run time.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frevl.data.pairs import read_pairs
from frevl.errors import InputError, MissingExtraError
from frevl.evaluation.intervals import bootstrap_interval, paired_difference
from frevl.runs.scorer import Scorer
from frevl.store.extraction.extract import extract
from frevl.store.reader import Store
from frevl.terminal import table
from frevl.training.classification.classify import classify

__all__ = ["ClassifyDemoReport", "demo_classify"]

_SIDE = 96  # pixels of a written image; 8 of them are one pixel of the scan
_PENALTIES = (1.0, 10.0, 100.0)  # scikit-learn's C
_FOLDS = 3


@dataclass(frozen=True)
class ClassifyDemoReport:
    """Results of the demo, in percent of the held-out digits.

    Attributes:
        folder: Folder of the images, store, run and labels.
        examples: Number of training digits.
        held_out: Number of held-out digits, written by other people.
        chosen: The method that `frevl classify` chose.
        accuracy: Its accuracy.
        interval: Its 95 % interval.
        logistic: Accuracy of scikit-learn's logistic regression on the same vectors, C chosen by cross-validation.
        difference: ``accuracy`` minus ``logistic``, in points.
        difference_interval: Its 95 % interval, in points.
        seconds: Wall time from images to labels, without the logistic regression.
    """

    folder: str
    examples: int
    held_out: int
    chosen: str
    accuracy: float
    interval: tuple[float, float]
    logistic: float
    difference: float
    difference_interval: tuple[float, float]
    seconds: float

    def record(self) -> dict[str, Any]:
        """Return what ``--json`` writes."""
        return asdict(self)

    def sentence(self) -> str:
        """Describe the result, and how to do the same with other images."""
        rows = [
            [
                f"frevl classify ({self.chosen})",
                f"{self.accuracy:.2f} ({self.interval[0]:.2f} to {self.interval[1]:.2f})",
            ],
            ["scikit-learn, logistic regression", f"{self.logistic:.2f}"],
        ]
        low, high = self.difference_interval
        return "\n".join(
            [
                "",
                table(["of digits written by other people", "right % (95 % interval)"], rows),
                "",
                f"Difference: {self.difference:+.2f} points ({low:.2f} to {high:.2f}). From images to labels: "
                f"{self.seconds:.0f} s.",
                "",
                f"Images, store, run and labels.jsonl are in {self.folder}. The same with your own files "
                "(examples.jsonl: one {'image', 'target'} object per line):",
                "  frevl extract --images DIR --store STORE",
                "  frevl classify --store STORE --examples examples.jsonl --run RUN --out labels.jsonl",
            ]
        )


def demo_classify(
    folder: str | Path = "frevl-demo",
    *,
    encoder: str = "packaged",
    seed: int = 0,
    progress: bool = False,
    say: Callable[[str], object] = str,
) -> ClassifyDemoReport:
    """Write digits as images, embed them, and classify one half with the other half as examples.

    Args:
        folder: Everything goes below its subfolder ``digits``. A second call reuses the store.
        encoder: Frozen encoder.
        seed: Random seed for splits.
        progress: Show progress.
        say: Called with a sentence before every step.

    Raises:
        MissingExtraError: scikit-learn, or the encoder, is not installed.
        InputError: The folder cannot be written.
    """
    folder = Path(folder) / "digits"
    say(f"Digits: 1,797 images, written to {folder}")
    files = _write_digits(folder)
    started = time.perf_counter()
    say(extract(folder / "store", images=folder / "images", encoder=[encoder], progress=progress).sentence())
    store = Store.open(folder / "store")
    shutil.rmtree(folder / "run", ignore_errors=True)
    run = classify(store, run=folder / "run", examples=files["examples"], seed=seed, progress=progress)
    held_out = read_pairs(files["held_out"])
    found = Scorer(run, store).label(held_out.images)
    hits = np.array([one.label == target for one, target in zip(found, held_out.targets, strict=True)])
    seconds = time.perf_counter() - started
    (folder / "labels.jsonl").write_text(
        "".join(
            json.dumps({"image": image, "label": one.label, "probability": one.probability}) + "\n"
            for image, one in zip(held_out.images, found, strict=True)
        ),
        encoding="utf-8",
    )
    say("Fitting scikit-learn's logistic regression on the same vectors")
    others = _logistic_hits(store, files["examples"], files["held_out"])
    right, difference = bootstrap_interval(100.0 * hits), paired_difference(100.0 * hits, 100.0 * others)
    return ClassifyDemoReport(
        folder=str(folder),
        examples=run.results["train_pairs"],
        held_out=len(hits),
        chosen=run.results["selection"]["chosen"],
        accuracy=100 * float(hits.mean()),
        interval=(right.low, right.high),
        logistic=100 * float(others.mean()),
        difference=100 * float(hits.mean() - others.mean()),
        difference_interval=(difference.low, difference.high),
        seconds=seconds,
    )


def _write_digits(folder: Path) -> dict[str, Path]:
    """Write the images and two pairs files: the first half of the writers, and the rest."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("sklearn", "diagnose") from error
    from PIL import Image

    digits = load_digits()
    files = {name: folder / f"{name}.jsonl" for name in ("examples", "held_out")}
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        rows = []
        for number, (points, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            place = folder / "images" / f"{number}.png"
            if not place.exists():
                grey = Image.fromarray((255 - points * (255 / 16)).astype(np.uint8))
                grey.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(place)
            rows.append(json.dumps({"image": place.name, "target": str(digit)}) + "\n")
        for name, some in (("examples", rows[: len(rows) // 2]), ("held_out", rows[len(rows) // 2 :])):
            files[name].write_text("".join(some), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: the demo cannot be written ({error.strerror or error})") from error
    return files


def _logistic_hits(store: Store, examples: Path, held_out: Path) -> np.ndarray:
    """Return which held-out digits scikit-learn's logistic regression gets right, C chosen by cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    def vectors(file: Path) -> tuple[np.ndarray, list[Any]]:
        pairs = read_pairs(file)
        read = store.read_images(pairs.images)
        return read / np.linalg.norm(read, axis=1, keepdims=True), list(pairs.targets)

    x, y = vectors(examples)
    vectors_of_held_out, truth = vectors(held_out)
    search = GridSearchCV(LogisticRegression(max_iter=1_000), {"C": list(_PENALTIES)}, cv=_FOLDS).fit(x, y)
    hits: np.ndarray = search.predict(vectors_of_held_out) == np.array(truth)
    return hits
