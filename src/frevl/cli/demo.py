"""A complete example on real data: easy-VQA is embedded, and models are trained on it and evaluated.

Nothing is downloaded at run time; images, questions and encoders come with the packages of the extra `packaged`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frevl.data.pairs import read_pairs
from frevl.errors import InputError, MissingExtraError
from frevl.evaluation.evaluation import Result, evaluate
from frevl.runs.scorer import Scorer
from frevl.store.extraction.extract import extract
from frevl.store.reader import Store
from frevl.training.training import train

__all__ = ["DemoRow", "demo"]

MODELS = ("majority", "text", "image", "linear", "mlp", "tiny")
_EXAMPLES = 6


@dataclass
class DemoRow:
    """One line of the demo's table.

    Attributes:
        model: Name of the model.
        parameters: Number of its parameters.
        result: Its result on the official test questions.
        train_seconds: Training time in seconds.
    """

    model: str
    parameters: int
    result: Result
    train_seconds: float


@dataclass
class DemoReport:
    """Results of the demo.

    Attributes:
        folder: Where everything was saved.
        rows: One row per model.
        examples: Six test questions with the fusion's answers: image, text, target, label, probability.
        gain: Paired difference between the fusion and the linear probe, in points, with its interval.
        gain_over_best: The same for the best baseline.
    """

    folder: Path
    rows: list[DemoRow]
    examples: list[dict[str, Any]]
    gain: dict[str, Any]
    gain_over_best: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return the demo's JSON (design, "Other JSON")."""
        models = [
            {
                "model": row.model,
                "parameters": row.parameters,
                "metrics": row.result.metrics,
                "ci95": row.result.ci95,
                "train_seconds": row.train_seconds,
            }
            for row in self.rows
        ]
        provenance = self.rows[-1].result.provenance
        return {
            "models": models,
            "gain": self.gain,
            "gain_over_best": self.gain_over_best,
            "examples": self.examples,
            "provenance": provenance,
        }


def demo(
    folder: str | Path = "frevl-demo",
    *,
    seed: int = 0,
    progress: bool = False,
    say: Callable[[str], object] = str,
) -> DemoReport:
    """Embed easy-VQA, train baselines and the fusion, and evaluate them on the official test questions.

    Args:
        folder: Where to put images, pairs, store and runs. A second call reuses the store.
        seed: Random seed for training.
        progress: Show progress.
        say: Called with a sentence before every step; by default nothing is printed.

    Returns:
        The results.

    Raises:
        MissingExtraError: The extra `packaged` is not installed.
        InputError: The folder cannot be written.
    """
    folder = Path(folder)
    say(f"easy-VQA: 5,000 images and 48,248 questions, written to {folder}")
    files = _write_easy_vqa(folder)
    say("Embedding images and questions with EfficientNet-Lite0 and MiniLM-L6 (frozen)")
    report = extract(folder / "store", images=folder / "images", pairs=list(files.values()), progress=progress)
    say(report.sentence())
    store = Store.open(folder / "store")
    rows: list[DemoRow] = []
    scorers: dict[str, Scorer] = {}
    for model in MODELS:
        say(f"Training {model}")
        run_folder = folder / "runs" / model
        if run_folder.exists():
            shutil.rmtree(run_folder)
        run = train(
            store, files["train"], run=run_folder, task="classification", model=model, seed=seed, progress=progress,
            workers=1,
        )  # fmt: skip
        scorers[model] = Scorer(run, store)
        result = evaluate(scorers[model], files["test"])
        rows.append(DemoRow(model, run.parameters, result, float(run.results["train_seconds"])))
    best = max(rows[:-1], key=lambda row: row.result.metrics["accuracy"]).model
    gains = [
        evaluate(scorers["tiny"], files["test"], versus=scorers[other]).difference or {} for other in ("linear", best)
    ]
    return DemoReport(folder, rows, _examples(scorers["tiny"], files["test"]), *gains)


def _examples(scorer: Scorer, file: Path) -> list[dict[str, Any]]:
    """Answer questions of different kinds about different images."""
    pairs = read_pairs(file)
    step = len(pairs) // _EXAMPLES
    rows = [k * step + k for k in range(_EXAMPLES)]
    predicted = scorer.predict([(pairs.images[row], pairs.texts[row]) for row in rows])
    return [
        {**pairs.row(row), "label": one.label, "probability": one.probability}
        for row, one in zip(rows, predicted, strict=True)
    ]


def _write_easy_vqa(folder: Path) -> dict[str, Path]:
    """Copy images and questions of the installed package into the demo's folder."""
    try:
        import easy_vqa
    except ImportError as error:
        raise MissingExtraError("easy_vqa", "packaged") from error
    splits = {
        "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
        "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    }
    files = {}
    try:
        for split, (questions, pictures) in splits.items():
            images = folder / "images" / split
            images.mkdir(parents=True, exist_ok=True)
            for number, source in pictures().items():
                if not (images / f"{number}.png").exists():
                    shutil.copy2(source, images / f"{number}.png")
            files[split] = folder / f"{split}.jsonl"
            with files[split].open("w", encoding="utf-8") as lines:
                for text, answer, number in zip(*questions(), strict=True):
                    row = {"image": f"{split}/{number}.png", "text": text, "target": answer}
                    lines.write(json.dumps({**row, "question_type": _question_type(answer)}) + "\n")
    except OSError as error:
        raise InputError(f"{folder}: the demo cannot be written ({error.strerror or error})") from error
    return files


def _question_type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "colour"
