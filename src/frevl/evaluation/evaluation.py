"""Evaluate a scorer on labelled pairs: metrics with intervals, slices and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from frevl.data.label_doubts import contradiction_note, unseen_note
from frevl.data.names import as_list
from frevl.data.pairs import Pairs, read_pairs, with_targets
from frevl.errors import PairsError, Reject, UsageError, counted, rejects_sentence
from frevl.evaluation.benchmarks.choice_sets import choice_chance, choice_set_scores
from frevl.evaluation.benchmarks.wups import measure_wups
from frevl.evaluation.chance import Chance, against_majority, match_chance
from frevl.evaluation.consistency import evaluate_consistency, forms_of
from frevl.evaluation.fairness.groups import evaluate_groups, groups_of
from frevl.evaluation.intervals import paired_difference, paired_test
from frevl.evaluation.measures import (
    Measure,
    accepted_answers,
    calibration_measures,
    evaluate_sets,
    few_each_note,
    macro_f1_measure,
    single_answer,
    vqa_weights,
)
from frevl.evaluation.metrics import brier, correct
from frevl.evaluation.retrieval_metrics import evaluate_retrieval
from frevl.evaluation.slices import Rows, slice_rows, slice_table
from frevl.provenance import provenance
from frevl.runs.calibration import check_level
from frevl.runs.scorer import Scorer
from frevl.runs.sharing.onnx_backend import weights_hash_or_none
from frevl.runs.targets import encode_answers, match_truth, prefixes_of
from frevl.store.grouping.groups import group_pairs
from frevl.store.usable_pairs import content_of_units, contents_of, note_unread, usable_pairs

__all__ = ["Result", "difference_from", "evaluate", "leak_of_other", "refuse_itself"]

_PAIRS_AT_ONCE = 16_384


@dataclass
class Result:
    """The record behind the result JSON (design, "Result JSON"). Metrics are in percent.

    Attributes:
        task: ``matching`` or ``classification``.
        n: Number of evaluated pairs.
        metrics: Value of each metric, by name, in percent.
        ci95: 95 % interval of every metric, by bootstrap over images; None if undetermined.
        slices: By key of the pairs, then value: ``{"n", metric, "ci95"}`` for the task's main metric.
        provenance: Run and SHA-256 of its weights, store fingerprint, seed, versions, command, hardware.
        notes: Caveats for readers of the numbers.
        left_out: Pairs that were not evaluated, with the reason.
        difference: Comparison with another run, if given: points of the main metric, interval, p-value, path.
        sets: Results of prediction sets, if requested; see `frevl.evaluation.measures`.
        fairness: Results for each key in ``groups``; see `frevl.evaluation.fairness.groups`.
        consistency: Result for ``forms``; see `frevl.evaluation.consistency`.
        chance: For classification, the main metric compared with the majority answer of the training pairs;
            ``majority`` in the JSON.
        hits: Values per pair (or query) that the main metric averages; like all below, not part of the JSON.
        clusters: Image of each hit.
        measures: Every metric in a form that can be recomputed on resampled images.
        slice_rows: Rows of every group of ``slices``.
        evaluated: The pairs behind the metrics; intervals resample their ``clusters``.
    """

    task: str
    n: int
    metrics: dict[str, float]
    ci95: dict[str, list[float] | None]
    slices: dict[str, Any]
    provenance: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    left_out: list[Reject] = field(default_factory=list)
    difference: dict[str, Any] | None = None
    sets: dict[str, Any] | None = None
    fairness: dict[str, Any] | None = None
    consistency: dict[str, Any] | None = None
    chance: Chance | None = None
    hits: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    clusters: Sequence[str] = field(default_factory=list, repr=False)
    measures: dict[str, Measure] = field(default_factory=dict, repr=False)
    slice_rows: dict[str, dict[str, Rows]] = field(default_factory=dict, repr=False)
    evaluated: Pairs | None = field(default=None, repr=False)

    def record(self) -> dict[str, Any]:
        """Return the result JSON."""
        names = ("task", "n", "metrics", "ci95", "slices", "provenance", "notes")
        record = {name: getattr(self, name) for name in names}
        record["left_out"] = [{"pair": one.id, "reason": one.reason} for one in self.left_out]
        if self.difference is not None:
            record["difference"] = self.difference
        record |= {
            name: getattr(self, name) for name in ("sets", "fairness", "consistency") if getattr(self, name) is not None
        }
        if self.chance is not None:
            record["majority"] = self.chance.record()
        return record


def evaluate(
    scorer: Scorer,
    pairs: str | Path | Pairs,
    *,
    versus: Scorer | None = None,
    group_by: str | None = None,
    find_groups: bool = True,
    groups: str | Sequence[str] | None = None,
    sets: float | None = None,
    calibrate: str | Path | Pairs | None = None,
    forms: str | None = None,
) -> Result:
    """Evaluate a run on unseen pairs.

    Args:
        scorer: The run with its store.
        pairs: Pairs, or a pairs file. Classification needs targets; in matching without any targets, all pairs are
            right ones. If only some pairs lack a target, they are left out.
        versus: Another run, evaluated on the same pairs; the result holds the paired difference.
        group_by: A key whose equal values mark dependent pairs, as ``cluster`` does.
        find_groups: Detect copies and other dependent pairs, for the intervals (see
            `frevl.store.grouping.groups.group_pairs`). In rankings, images with the same content always count as one.
        groups: Keys of the pairs, such as a gender or a region: compare the groups they define.
        sets: Also evaluate prediction sets at this target coverage, between 0 and 1.
        calibrate: Pairs to calibrate the sets on instead of the run's held-out ones.
        forms: A key shared by rephrasings of a question: measure how often they get the same answer (classification).

    Returns:
        Metrics in percent with intervals. Classification: ``accuracy`` (``vqa_accuracy`` first for soft targets or
        ten answers), ``ece``, ``ece_debiased``, ``prior_accuracy`` (accuracy from one side alone, if the run keeps a
        bank), and for single answers ``brier`` and ``macro_f1``; if only some pairs have a single answer (DAQUAR),
        ``single_answer_accuracy`` is for those. Matching: ``i2t_r1`` ... ``t2i_r10`` and, if there are wrong pairs,
        ``accuracy``, ``ece``, ``ece_debiased`` and the scores of choice groups.

    Raises:
        UsageError: ``versus`` is the run itself or of another task, or an option does not apply.
        PairsError: The pairs cannot be used.
        StoreError: Embeddings are missing.
    """
    _check(scorer, versus, sets, calibrate)
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    runs = [scorer.run] if versus is None else [scorer.run, versus.run]
    not_read = [note for run in runs for note in run.check_pairs(read)]
    labelled, unlabelled = with_targets(read.only({side for run in runs for side in run.sides}))
    usable, left_out = usable_pairs(labelled, scorer.store)
    towers = [scorer.store.towers[name] for name in scorer.run.towers["image"]]
    keys: list[str] = [] if groups is None else as_list(groups, "groups")
    content = content_of_units(scorer.store, usable) if keys else {}
    compared = [groups_of(usable, key, content) for key in dict.fromkeys(keys)]
    (usable,), found = group_pairs(
        scorer.store, [usable], group_by=group_by, find=find_groups, towers=towers,
        purpose="Resampled together for the intervals",
    )  # fmt: skip
    if forms is not None and scorer.run.task == "matching":
        raise UsageError("--forms compares answers to questions, which a matching run does not give; leave it out")
    asked_forms = [] if forms is None else forms_of(usable, forms)
    evaluate_task = _evaluate_matching if scorer.run.task == "matching" else _evaluate_classes
    result = evaluate_task(scorer, usable)
    result.evaluated = usable
    result.left_out = [*read.rejected, *unlabelled, *left_out]
    unread: list[str] = []
    text_towers = [scorer.store.towers[name] for name in scorer.run.towers.get("text", [])]
    note_unread(scorer.store, usable.texts, text_towers, unread)
    own = _notes(scorer, usable, result.left_out)
    result.notes = [*read.notes, *not_read, *usable.notes, *own, *unread, *found, *result.notes]
    if result.chance is not None and result.chance.is_chance:
        result.notes.append(result.chance.sentence)
    if sets is not None:
        result.sets, said = evaluate_sets(scorer, usable, sets, calibrate, slice_rows(usable.extras))
        result.notes = [*said, *result.notes]
    if forms is not None:
        result.consistency, said = evaluate_consistency(scorer, usable, forms, asked_forms, result.hits)
        result.notes = [*said, *result.notes]
    for asked in compared:
        table, said = evaluate_groups(scorer, usable, asked, result.measures)
        result.fairness = {**(result.fairness or {}), asked.key: table}
        result.notes = [*said, *result.notes]
    if versus is not None:
        other = evaluate_task(versus, usable)
        result.notes = [*leak_of_other(versus, usable), *result.notes]
        result.difference = difference_from(other.hits, result, versus=str(versus.run.path))
    return result


def _check(scorer: Scorer, versus: Scorer | None, sets: float | None, calibrate: str | Path | Pairs | None) -> None:
    """Refuse runs that cannot be compared, and options that do not go together."""
    for one in (scorer, *([] if versus is None else [versus])):
        if isinstance(one, str | Path):
            raise UsageError(
                f"evaluate: expected a scorer, found '{one}'; open it with Scorer.open({str(one)!r}, store=...)"
            )
    if versus is not None:
        if type(scorer.network) is type(versus.network):  # an exported network is compared with that of its run
            refuse_itself(scorer.run.path, versus.run.path)
        if versus.run.task != scorer.run.task:
            raise UsageError(
                f"{versus.run.path}: expected a '{scorer.run.task}' run to compare with, found one for "
                f"'{versus.run.task}'"
            )
    if sets is not None:
        check_level(sets)
    elif calibrate is not None:
        raise UsageError("--calibrate is for prediction sets; request them with --sets, such as --sets 0.9")


def difference_from(hits: np.ndarray, result: Result, *, versus: str) -> dict[str, Any] | None:
    """Return the record of a result's difference from another run on the same pairs; None if the hits do not match.

    Args:
        hits: ``(n,)``, the main metric of the other run for every pair or query, as `Result.hits`.
        result: The result of this run.
        versus: Path of the other run.
    """
    if len(hits) != len(result.hits):
        return None
    gap = paired_difference(result.hits, hits, result.clusters)
    return {
        "versus": versus,
        "metric": next(iter(result.metrics)),
        "difference": 100 * gap.value,
        "ci95": gap.percent(),
        "p": paired_test(result.hits, hits, result.clusters),
    }


def refuse_itself(run: str | Path, versus: str | Path) -> None:
    """Refuse to compare a run, or the seeds in a folder, with itself.

    Raises:
        UsageError: Both are the same folder.
    """
    if Path(run).resolve() == Path(versus).resolve():
        raise UsageError(
            f"--versus {versus}: expected another run to compare with, found that of --run, from which it never differs"
        )


def _evaluate_classes(scorer: Scorer, pairs: Pairs) -> Result:
    missing = [place for place, target in zip(pairs.places, pairs.targets, strict=True) if target is None]
    if missing:
        raise PairsError(
            f"{missing[0]}, field 'target': expected the right answer, found none in {len(missing):,} of "
            f"{counted(len(pairs), 'pair')}; give the column that holds it with --columns target=NAME, or use frevl "
            "score for pairs without targets"
        )
    labels, clusters = scorer.run.labels, pairs.clusters
    truth = encode_answers(pairs.targets, labels).classes[:, 0].numpy()
    best = np.empty(len(pairs), np.int64)
    confidence, squares = np.empty(len(pairs)), np.empty(len(pairs))
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):  # scores for thousands of classes would fill memory
        part = slice(start, start + _PAIRS_AT_ONCE)
        scores = scorer.score(list(zip(pairs.images[part], pairs.texts[part], strict=True)))
        probabilities = scorer.probabilities(scores)
        best[part] = scores.argmax(axis=1)
        confidence[part] = np.take_along_axis(probabilities, best[part, None], axis=1)[:, 0]
        squares[part] = brier(probabilities, truth[part])
    predicted = [labels[i] for i in best]
    accepted = accepted_answers(pairs)
    hits = correct(predicted, accepted)
    measured: dict[str, Measure] = {}
    weights = vqa_weights(predicted, pairs)
    if weights is not None:
        measured["vqa_accuracy"] = Measure(clusters, weights)
    first = hits if weights is None else weights
    measured["accuracy"] = Measure(clusters, hits)
    measured |= calibration_measures(clusters, confidence, hits)
    asked = [] if scorer.network.prior is None else list(zip(pairs.images, pairs.texts, strict=True))
    prior = scorer.prior(asked)
    if prior is not None:
        measured["prior_accuracy"] = Measure(clusters, correct([labels[i] for i in prior.argmax(axis=1)], accepted))
    alone = [single_answer(target) for target in pairs.targets]
    lone = np.flatnonzero([answer is not None for answer in alone])
    if 0 < len(lone) < len(pairs):
        measured["single_answer_accuracy"] = Measure([clusters[i] for i in lone.tolist()], hits[lone])
    if len(lone) == len(pairs):
        measured["brier"] = Measure(clusters, squares)
        measured["macro_f1"] = macro_f1_measure(clusters, best, labels, alone)
    notes = [*unseen_note(accepted, labels), *contradiction_note(pairs), *few_each_note(alone)]
    notes += _single_answer([answers[0] for answers in accepted if len(answers) == 1], len(pairs))
    notes += measure_wups(measured, predicted, pairs)
    result = _result(scorer, len(pairs), measured, notes, first, clusters)
    always = _earned_by(labels[0], pairs, weighted=weights is not None)
    result.chance = against_majority(first, always, clusters, labels[0])
    result.slice_rows = slice_rows(pairs.extras)
    result.slices = slice_table(result.slice_rows, next(iter(measured)), first, clusters)
    return result


def _evaluate_matching(scorer: Scorer, pairs: Pairs) -> Result:
    truth = match_truth(pairs).numpy() > 0.5
    right = [i for i in range(len(pairs)) if truth[i]]
    measured: dict[str, Measure] = {}
    notes: list[str] = []
    hits, clusters = np.zeros(0), pairs.clusters
    hashes = scorer.store.content_hashes([pairs.images[i] for i in right])
    images = {hashes.get(pairs.images[i], pairs.images[i]) for i in right}
    if len(images) > 1:
        measured, said = evaluate_retrieval(scorer, pairs.select(right))
        first = measured["i2t_r1"]
        hits, clusters = np.zeros(0) if first.values is None else first.values, list(first.clusters)
        notes += said
    else:
        notes.append("No retrieval metrics: fewer than two images have right texts.")
    if not truth.all():
        if not truth.any():
            notes.append(f"All {len(truth):,} pairs are wrong pairs: always saying no would get them all right.")
        logits, probabilities = scorer.match_probabilities(list(zip(pairs.images, pairs.texts, strict=True)))
        decided = ((probabilities > 0.5) == truth).astype(float)
        measured["accuracy"] = Measure(pairs.clusters, decided)
        confidence = np.maximum(probabilities, 1 - probabilities)
        measured |= calibration_measures(pairs.clusters, confidence, decided)
        choices, said = choice_set_scores(logits, truth, pairs)
        measured |= choices
        notes += [*said, *choice_chance(choices)] if choices else [*said, *match_chance(logits, truth, pairs.clusters)]
        prior = scorer.prior(list(zip(pairs.images, pairs.texts, strict=True))) if choices else None
        if prior is not None:  # accuracy from the texts alone
            measured["prior_accuracy"] = next(iter(choice_set_scores(prior[:, 0], truth, pairs)[0].values()))
        if len(images) < 2:
            hits, clusters = decided, pairs.clusters
    if not measured:
        raise PairsError(
            f"{pairs.places[0]}: expected at least two images, or wrong pairs, to evaluate matching; found one"
        )
    return _result(scorer, len(pairs), measured, notes, hits, clusters)


def _result(
    scorer: Scorer,
    n: int,
    measured: dict[str, Measure],
    notes: list[str],
    hits: np.ndarray,
    clusters: Sequence[str],
) -> Result:
    intervals = {name: measure.interval() for name, measure in measured.items()}
    return Result(
        task=scorer.run.task,
        n=n,
        metrics={name: 100 * interval.value for name, interval in intervals.items()},
        ci95={name: interval.percent() for name, interval in intervals.items()},
        slices={},
        provenance=provenance(
            run=str(scorer.run.path),
            store_fingerprint=scorer.store.fingerprint,
            seed=scorer.run.provenance["seed"],
            weights=weights_hash_or_none(scorer.run),
        ),
        notes=notes,
        hits=hits,
        clusters=clusters,
        measures=measured,
    )


def _single_answer(answers: list[str], pairs: int) -> list[str]:
    """Return a note that pairs with a single right answer cannot tell a good run from a constant one."""
    if len(answers) < pairs or len(set(answers)) > 1:
        return []
    alike = f"all {pairs:,} pairs have the same right answer" if pairs > 1 else "there is one pair, with the answer"
    return [
        f"One class: {alike} ('{answers[0]:.60}'), so a constant answer would get everything right and these numbers "
        "reveal nothing about the run; evaluate on pairs of several classes."
    ]


def _earned_by(label: str, pairs: Pairs, *, weighted: bool) -> np.ndarray:
    """Return the credit of a constant answer for each pair, in the unit of the main metric."""
    predicted = [label] * len(pairs)
    weights = vqa_weights(predicted, pairs) if weighted else None
    return correct(predicted, accepted_answers(pairs)) if weights is None else weights


def _notes(scorer: Scorer, pairs: Pairs, rejects: list[Reject]) -> list[str]:
    sentence = rejects_sentence(rejects)
    return ([sentence] if sentence else []) + _leak(
        scorer, pairs, "training or development", "these numbers are too optimistic"
    )


def leak_of_other(scorer: Scorer, pairs: Pairs) -> list[str]:
    """Return a note if a run that another one is compared with learned from the test images."""
    what = "its result is too good, and the difference misleading"
    return _leak(scorer, pairs, f"training or development of {scorer.run.path}", what)


def _leak(scorer: Scorer, pairs: Pairs, where: str, what: str) -> list[str]:
    seen = np.isin(prefixes_of(contents_of(scorer.store, pairs)[1]), scorer.run.train_image_hashes)
    if not seen.any():
        return []
    return [
        f"Leak: {int(seen.sum()):,} of {len(seen):,} different {pairs.sides[0]}s were in {where} (same content): "
        f"{what}."
    ]
