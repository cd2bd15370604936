"""The cost of every compared model, to weigh against its gain."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frevl.diagnosis.findings import Finding
from frevl.diagnosis.gaps import HOW_COMPARED, Gap, compare
from frevl.diagnosis.model_comparison import ModelComparison
from frevl.runs.scorer import Scorer

__all__ = ["RunCost", "cost_advice", "cost_findings", "run_cost"]

_BATCH = 256
_REPEATS = 5
_RUN_FILES = ("run.json", "weights.safetensors", "seen.safetensors")


@dataclass(frozen=True)
class RunCost:
    """The cost of a run.

    Attributes:
        parameters: Number of parameters of its network.
        bytes: Size of its files in bytes.
        pair_ms: Milliseconds per pair when scoring 256 at a time, including reading the embeddings.
        single_ms: Milliseconds for one pair scored alone, as in a service.
        train_seconds: Training time in seconds.
    """

    parameters: int
    bytes: int
    pair_ms: float
    single_ms: float
    train_seconds: float


def run_cost(scorer: Scorer, pairs: Sequence[tuple[str, str]]) -> RunCost:
    """Measure the cost of a run.

    Args:
        scorer: The run with its store.
        pairs: At least one ``(image id, text)`` of the store; up to 256 are scored.
    """
    some = list(pairs[:_BATCH])
    files = (scorer.run.path / name for name in _RUN_FILES)
    return RunCost(
        parameters=scorer.run.parameters,
        bytes=sum(file.stat().st_size for file in files),
        pair_ms=_milliseconds(scorer, some) / len(some),
        single_ms=_milliseconds(scorer, some[:1]),
        train_seconds=float(scorer.run.results["train_seconds"]),
    )


def cost_findings(comparison: ModelComparison) -> list[Finding]:
    """Compare the cost of every model with its accuracy.

    Args:
        comparison: Trained models; their runs must still be on disk.
    """
    test = comparison.splits.test
    pairs = list(zip(test.images, test.texts, strict=True))
    rows: list[dict[str, Any]] = []
    for model in comparison.models:
        cost = run_cost(model.scorer, pairs)
        rows.append(
            {
                "model": model.name,
                "accuracy %": 100 * float(model.test.hits.mean()),
                "parameters": cost.parameters,
                "kilobytes": cost.bytes / 1000,
                "ms a pair": cost.pair_ms,
                "ms alone": cost.single_ms,
                "training s": cost.train_seconds,
            }
        )
    if len(comparison.splits.train.sides) == 2:
        fusion, plain = comparison.best("fusion"), comparison.best("baseline")
        named = f"The fusion ({fusion.name})"
    else:
        fusion = comparison.recommended
        others = [model for model in comparison.models if model is not fusion]
        plain = max(others, key=lambda model: float(model.test.hits.mean()))
        named = f"The recommended model, {fusion.name},"
    by_name = {row["model"]: row for row in rows}
    own, other = by_name[fusion.name], by_name[plain.name]
    gain = compare(fusion.test.hits, plain.test.hits, comparison.clusters)
    return [
        Finding(
            name="cost",
            section="cost",
            claim=(
                f"{named} scores a pair in {own['ms a pair']:.3f} ms with {own['parameters']:,} "
                f"parameters, {plain.name} in {other['ms a pair']:.3f} ms with {other['parameters']:,}; the "
                f"difference in right answers is {gain}."
            ),
            value=own["ms a pair"],
            ci95=None,
            how=(
                "Parameters of the network; bytes of the run's files; milliseconds per pair through Scorer on this "
                f"machine, embeddings read from the store, median of {_REPEATS} repeats of {min(_BATCH, len(pairs)):,} "
                "pairs after a warm-up, and of one pair alone. Embedding new items comes on top: see the "
                "encoders. Difference in right answers: "
                f"{HOW_COMPARED}"
            ),
            advice=(
                f"{cost_advice(fusion.name, plain.name, gain, own['ms a pair'] / other['ms a pair'])} Compare with the "
                "milliseconds per image under the encoders: if those are many times more, the encoder decides what a "
                "service costs."
            ),
            table=rows,
        )
    ]


def cost_advice(fusion: str, plain: str, gain: Gap, times: float) -> str:
    """Return advice on the two costs; it recommends no model, as only the first sentence of the verdict does.

    Args:
        fusion: Name of the fusion.
        plain: Name of the best baseline.
        gain: Accuracy of the fusion minus that of the baseline.
        times: Time of the fusion for a pair divided by that of the baseline; below 1 it is faster.
    """
    quicker = times < 1
    price = f"{1 / times:.1f} times faster" if quicker else f"{times:.1f} times slower"
    if gain.up:
        joined = "and" if quicker else "but"
        return f"{fusion} is better than {plain} {joined} {price}: " + (
            "there is no reason to use the other." if quicker else "whether the gain is worth it is up to you."
        )
    if gain.down:
        joined = "but" if quicker else "and"
        return f"{fusion} is worse than {plain} {joined} {price}: " + (
            "consider it only if time is critical." if quicker else "there is no reason to use it."
        )
    return f"The two are indistinguishable in accuracy, and {fusion} is {price}: the faster of the two will do."


def _milliseconds(scorer: Scorer, pairs: list[tuple[str, str]]) -> float:
    took = []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        scorer.score(pairs)
        took.append(1000 * (time.perf_counter() - started))
    return statistics.median(took[1:])
