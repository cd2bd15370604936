"""`frevl diagnose`: whether frozen embeddings are enough for a task, which model to use, and which data are faulty.

Every finding has a claim, its number and interval, the method and advice; docs/diagnosis.md explains each.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

import numpy as np

from frevl.data.names import list_or_none
from frevl.data.pairs import Pairs, in_memory
from frevl.diagnosis.cross_validation import cross_validate_contenders
from frevl.diagnosis.data_quality.conflicting_labels import conflict_finding
from frevl.diagnosis.data_quality.image_leaks import leak_findings
from frevl.diagnosis.data_quality.label_errors import label_error_finding
from frevl.diagnosis.embeddings.embedding_findings import embedding_findings
from frevl.diagnosis.embeddings.encoder_comparison import encoder_findings
from frevl.diagnosis.embeddings.probes import probe_findings
from frevl.diagnosis.findings import Finding
from frevl.diagnosis.model_comparison import ComparedModel, ModelComparison, compare_models
from frevl.diagnosis.performance.class_balance import (
    balanced_findings,
    imbalance_finding,
    only_class,
    single_class_findings,
)
from frevl.diagnosis.performance.errors_explained import errors_explained_finding
from frevl.diagnosis.performance.learning_curve import learning_curve_findings
from frevl.diagnosis.performance.modality_use import exchanged_hits, image_findings, text_only_finding
from frevl.diagnosis.performance.ranking import ranking_findings
from frevl.diagnosis.performance.run_costs import cost_findings
from frevl.diagnosis.performance.selective_prediction import selective_prediction_findings
from frevl.diagnosis.performance.skills import skill_findings
from frevl.diagnosis.splits import Splits, read_splits
from frevl.diagnosis.verdict import reach_verdict
from frevl.errors import UsageError, nearest
from frevl.provenance import provenance
from frevl.runs.targets import match_truth
from frevl.store.reader import Store
from frevl.store.towers import MODALITIES
from frevl.terminal import print_progress
from frevl.training.training import TASKS

__all__ = ["Diagnosis", "diagnose"]

_CASES = 6  # illustrative pairs of each kind
_MOSTLY = 50.0  # percent of the test set in the training data above which no verdict is reliable


@dataclass(frozen=True)
class Diagnosis:
    """The result of a diagnosis.

    Attributes:
        task: ``matching`` or ``classification``.
        verdict: ``sentence``, ``kind``, ``detail`` and the numbers behind them (docs/diagnosis.md).
        findings: The findings in page order.
        cases: Illustrative test pairs: ``kind``, ``image``, ``text``, ``target``, ``answer``, ``confidence`` in
            percent.
        notes: Caveats for readers of the numbers.
        provenance: Store fingerprint, seed, versions, command, hardware, and ``seconds`` per step.
    """

    task: str
    verdict: dict[str, Any]
    findings: list[Finding]
    cases: list[dict[str, Any]]
    notes: list[str]
    provenance: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the diagnosis JSON (design, "Other JSON")."""
        return {**vars(self), "findings": [finding.record() for finding in self.findings]}


def diagnose(
    store: Store | str | Path | Sequence[Store | str | Path],
    pairs: str | Path | Pairs,
    test: str | Path | Pairs,
    *,
    task: str,
    dev: str | Path | Pairs | None = None,
    encoder: Sequence[str] | None = None,
    image_encoder: Sequence[str] | None = None,
    text_encoder: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    precision: float | None = None,
    probes: bool = True,
    group_by: str | None = None,
    find_groups: bool = True,
    seed: int = 0,
    time_limit: float = 600.0,
    progress: bool = False,
) -> Diagnosis:
    """Find out whether frozen embeddings and a fusion of them are enough for a task.

    Args:
        store: The store, or its path; further stores of the same items are compared with the first.
        pairs: Training pairs, or a pairs file.
        test: Labelled test pairs.
        task: ``matching`` or ``classification``.
        dev: Development pairs; None sets aside 15 % of the training images.
        encoder: Encoders whose towers are concatenated, as in `frevl.train`.
        image_encoder: Encoders for the images.
        text_encoder: Encoders for the texts.
        models: Names of the models to compare (`frevl.diagnosis.model_specs.MODEL_SPECS`); None takes all suited to
            task and size.
        precision: Target accuracy of given answers, in (0, 1), for the confidence threshold; None chooses one.
        probes: Whether to embed and probe drawn images too (needs the encoder, not just its store).
        group_by: A key of the pairs; pairs with the same value stay on the same side of every split.
        find_groups: Detect dependent pairs, as `frevl.train` does.
        seed: Random seed.
        time_limit: Approximate total training seconds; most need less, and a note names those cut short. Probes get the
            remaining time, at least half; if that is not enough, they are skipped.
        progress: Show progress.

    Returns:
        Verdict and findings.

    Raises:
        UsageError: An unknown task, model or encoder, or a number out of range.
        PairsError: The pairs cannot be used.
        StoreError: There is no store, or embeddings are missing.
    """
    _check(task, precision, time_limit)
    models = list_or_none(models, "models")
    stores = _opened(store)
    clock = _Clock(progress)
    splits = read_splits(
        stores[0], in_memory(pairs), in_memory(test), task=task, dev=in_memory(dev),
        encoder=list_or_none(encoder, "encoder"), image_encoder=list_or_none(image_encoder, "image_encoder"),
        text_encoder=list_or_none(text_encoder, "text_encoder"), seed=seed, group_by=group_by, find_groups=find_groups,
    )  # fmt: skip
    with TemporaryDirectory() as scratch:
        steps = _Steps(Path(scratch), time_limit, clock, progress)
        comparison, notes = _compared_models(splits, models, steps)
        verdict, findings = reach_verdict(comparison.choice, only=only_class(splits.test, task))
        print_progress(verdict["sentence"], enabled=progress)
        findings += _answer_findings(comparison, precision, steps)
        findings += _data_findings(comparison, verdict, steps)
        findings += _encoder_findings(comparison, stores[1:], verdict, steps)
    if probes and "image" in splits.train.sides:
        clock.step("probing the encoders with drawn images")
        # The trainings may have used up the limit; half of it is reserved for the probes, which are measured only once.
        left = max(time_limit - clock.total, 0.5 * time_limit)
        probed = splits.encoders_of("image") or splits.store
        findings += probe_findings(probed, seed=seed, time_limit=left, progress=progress)
    clock.step("")
    origin = provenance(run="", store_fingerprint=stores[0].fingerprint, seed=seed)
    return Diagnosis(
        task=task,
        verdict=verdict,
        findings=findings if splits.unit == "image" else [_of_texts(finding) for finding in findings],
        cases=_cases(comparison),
        notes=splits.notes + notes + _cut_short(comparison),
        provenance={**origin, "store": str(stores[0].path), "seconds": clock.seconds},
    )


def _check(task: str, precision: float | None, time_limit: float) -> None:
    if task not in TASKS:
        raise UsageError(f"There is no task '{task}'. {nearest(task, TASKS)}")
    if precision is not None and not 0 < precision < 1:
        raise UsageError(f"--precision must lie between 0 and 1, found {precision}")
    if not time_limit > 0:
        raise UsageError(f"--time-limit must be a number of seconds above 0, found {time_limit}")


def _opened(store: Store | str | Path | Sequence[Store | str | Path]) -> list[Store]:
    several = [store] if isinstance(store, Store | str | Path) else list(store)
    if not several:
        raise UsageError("A diagnosis needs a store; give one with --store")
    return [one if isinstance(one, Store) else Store.open(one) for one in several]


def _compared_models(splits: Splits, models: Sequence[str] | None, steps: _Steps) -> tuple[ModelComparison, list[str]]:
    """Train and compare the models, cross-validate the best of them; also return notes for the user."""
    steps.clock.step(f"training and comparing models on {len(splits.train):,} pairs")
    comparison = compare_models(splits, models=models, **steps.training("models", 0.55), progress=steps.progress)
    steps.clock.step("cross-validating the best of them")
    comparison, notes = cross_validate_contenders(comparison, **steps.training("parts", 0.3), progress=steps.progress)
    if _has_both_sides(splits):  # with only one side, nothing can be swapped
        steps.clock.step("swapping images and texts")
        comparison = replace(comparison, exchanged=exchanged_hits(comparison))
    return comparison, notes


def _has_both_sides(splits: Splits) -> bool:
    return len(splits.train.sides) == 2


def _answer_findings(comparison: ModelComparison, precision: float | None, steps: _Steps) -> list[Finding]:
    """Return findings about the answers of the models: what they rest on, where they fail, when to trust them."""
    findings = balanced_findings(comparison) + ranking_findings(comparison)
    if _has_both_sides(comparison.splits):
        findings += image_findings(comparison)
        steps.clock.step("measuring what can be answered without the image")
        findings.append(text_only_finding(comparison, **steps.training("text", 0.05)))
        findings += skill_findings(comparison)
    findings.append(errors_explained_finding(comparison))
    steps.clock.step("measuring learning curves")
    findings += learning_curve_findings(comparison, **steps.training("curve", 0.25), progress=steps.progress)
    return findings + selective_prediction_findings(comparison, precision=precision)


def _data_findings(comparison: ModelComparison, verdict: dict[str, Any], steps: _Steps) -> list[Finding]:
    """Return findings about leaks, classes and labels; what makes the verdict doubtful is added to it."""
    splits = comparison.splits
    steps.clock.step("searching for leaks and wrong labels")
    leaks = leak_findings(splits)
    # Readers of the verdict alone must know that it rests on leaked pairs.
    leaked = [one for one in leaks if one.name in ("same-image", "same-pair") and one.value]
    verdict["detail"] += [one.claim for one in leaked]
    if any(one.value is not None and one.value > _MOSTLY for one in leaked):
        verdict["sentence"] = (
            "Not reliable for new images, as most test images are among the training or development pairs: "
            + verdict["sentence"]
        )
    single = single_class_findings(splits)
    verdict["detail"] += [one.claim for one in single if one.name == "single-class-dev"]
    labels = label_error_finding(comparison, **steps.training("labels", 0.15))
    return [*single, *leaks, conflict_finding(splits), imbalance_finding(splits), labels]


def _encoder_findings(
    comparison: ModelComparison, others: Sequence[Store], verdict: dict[str, Any], steps: _Steps
) -> list[Finding]:
    """Return findings about the embeddings, further encoders and costs; a better encoder is added to the verdict."""
    splits = comparison.splits
    steps.clock.step("examining the embeddings")
    fusions = [model.scorer for model in comparison.models if model.spec.role == "fusion"]
    used = {modality: splits.encoders_of(modality) for modality in MODALITIES}
    findings = embedding_findings(splits.store, splits.train, encoders=used, scorers=fusions, seed=splits.seed)
    steps.clock.step("comparing encoders and costs")
    plain = [model.name for model in comparison.models if model.name in ("linear", "mlp")]
    plain += [comparison.best("fusion").name] if _has_both_sides(splits) else []
    compared, better = encoder_findings(
        splits,
        others,
        models=list(dict.fromkeys([*plain, comparison.recommended.name])),
        together=comparison.recommended,
        **steps.training("encoders", 0.2),
        progress=steps.progress,
    )
    if better and verdict["recommended"] is not None:
        verdict["sentence"] = f"{verdict['sentence'].removesuffix('.')}; {better}."
    return [*findings, *compared, *cost_findings(comparison)]


def _of_texts(finding: Finding) -> Finding:
    """Reword a finding about images for texts, which are the units if there are only texts."""

    def words(sentence: str) -> str:
        return re.sub(r"\bimage(s?)\b", r"text\1", sentence)

    return replace(finding, claim=words(finding.claim), how=words(finding.how), advice=words(finding.advice))


class _Clock:
    """Reports the current step, and how long each step took."""

    def __init__(self, progress: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._name, self._started = "", time.monotonic()

    @property
    def total(self) -> float:
        """Return the seconds of all finished steps."""
        return sum(self.seconds.values())

    def step(self, name: str) -> None:
        """Start a step; an empty name ends the last one."""
        if self._name:
            self.seconds[self._name] = round(time.monotonic() - self._started, 1)
        self._name, self._started = name, time.monotonic()
        if name:
            print_progress(name, enabled=self._progress)


class _Allotment(TypedDict):
    folder: Path
    time_limit: float


@dataclass(frozen=True)
class _Steps:
    """What all steps of a diagnosis share: a scratch folder, the limit of all trainings in seconds, and the clock."""

    folder: Path
    time_limit: float
    clock: _Clock
    progress: bool

    def training(self, name: str, share: float) -> _Allotment:
        """Return the folder of a step that trains, and its share of the time limit."""
        return {"folder": self.folder / name, "time_limit": share * self.time_limit}


def _cut_short(comparison: ModelComparison) -> list[str]:
    """Name the models stopped by the time limit, which may do better than shown."""
    names = [
        model.name
        for model in comparison.models
        if any(
            (scorer.run.results.get("fit") or {}).get("stopped") == "time"
            for scorer in [model.scorer, *(scorer for _, scorer in (model.crossed.parts if model.crossed else []))]
        )
    ]
    if not names:
        return []
    return [
        f"The time limit cut the training of {', '.join(names)} short: the comparison may be unfair to them; repeat it "
        "with a larger --time-limit."
    ]


def _cases(comparison: ModelComparison) -> list[dict[str, Any]]:
    """Return pairs that the best two-sided model answers right only with the image, and pairs that it gets wrong.

    The most confident come first. If the pairs have only one side, there are only pairs of the second kind.
    """
    model = comparison.both
    sure = np.argsort(-model.test.confidence, kind="stable")
    kinds = {"confident and wrong": model.test.hits == 0}
    if len(comparison.splits.train.sides) == 2:
        wrong_image = (comparison.exchanged or exchanged_hits(comparison))[model.name]["image"]
        seen = (model.test.hits >= 1) & (comparison.best("text").test.hits == 0) & (wrong_image < 0.5)
        kinds = {"right only with the image": seen, **kinds}
    return [
        _case(kind, model, comparison.splits, row)
        for kind, rows in kinds.items()
        for row in _different(comparison.splits.test, [int(row) for row in sure if rows[row]])[:_CASES]
    ]


def _different(pairs: Pairs, rows: list[int]) -> list[int]:
    """Return the first row of every distinct pair; drawn wrong pairs may repeat."""
    first: dict[tuple[str, str], int] = {}
    for row in rows:
        first.setdefault((pairs.images[row], pairs.texts[row]), row)
    return list(first.values())


def _case(kind: str, model: ComparedModel, splits: Splits, row: int) -> dict[str, Any]:
    predictions, pairs = model.test, splits.test
    # In matching, truth and answer use the same words.
    truth = int(match_truth(pairs.select([row]))[0] > 0.5) if splits.task == "matching" else None
    return {
        "kind": kind,
        "image": pairs.images[row],
        "text": pairs.texts[row],
        "target": pairs.targets[row] if truth is None else predictions.labels[truth],
        "answer": predictions.labels[int(predictions.predicted[row])],
        "confidence": 100 * float(predictions.confidence[row]),
    }
