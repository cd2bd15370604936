"""Choose a small part of a test set that preserves the order of runs and their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import as_list
from frevl.data.outputs import refuse_inputs
from frevl.data.packed.columns import rows_at
from frevl.data.pairs import Pairs, in_memory, read_pairs
from frevl.diagnosis.curation.core_set.choosing import choose_units, distance_change, kendall_tau, random_units
from frevl.diagnosis.curation.lines import write_lines
from frevl.errors import PairsError, UsageError
from frevl.evaluation.evaluation import Result, evaluate
from frevl.evaluation.intervals import hit_interval, paired_difference
from frevl.evaluation.seeds import open_seeds
from frevl.provenance import provenance
from frevl.store.reader import Store
from frevl.store.usable_pairs import content_of_units, usable_pairs
from frevl.terminal import print_progress

__all__ = ["FEWEST_RUNS", "CoreSet", "core_set"]

FEWEST_RUNS = 4
"""Minimum number of different runs."""

_NO_BENCHMARK = (
    "This core is for repeated looks at these runs, not a new benchmark: other runs keep their order on a core no "
    "better than on as many random lines (docs/curate.md)."
)
_DRAWS = 20  # random subsets for comparison
_REDRAWN = 200  # resampled test sets
_FAITHFUL = 0.9  # tau from which the order counts as preserved


@dataclass(frozen=True)
class CoreSet:
    """The chosen lines, and how well they preserve the comparison.

    Attributes:
        lines: The chosen lines, in file order.
        of: Number of lines in the whole test set.
        runs: A record per run: path, scores on the whole set and on the core in percent, with intervals.
        pairs: A record per pair of runs: difference on the whole set and on the core in points, with intervals.
        tau: Kendall's tau-b between the runs' scores on the core and on the whole set.
        tau_left_out: The same with every run ranked by a core chosen without it: what to expect for new runs. None if
            unknown.
        tau_random: Mean, smallest and largest tau of 20 random subsets of the same size, made of whole eligible images.
        distance: Mean over pairs of runs of the change in their difference from the whole set to the core, in points.
        distance_random: The same for the random subsets.
        tau_redrawn: Mean tau between the whole set and resamples of itself: no subset can be expected to do better.
        doubts: Reasons to doubt the result, shown before any number.
        notes: Other notes.
        out: Path of the written file, or None.
        provenance: Store fingerprint, seed, versions, command, hardware.
    """

    lines: list[dict[str, Any]] = field(repr=False)
    of: int
    runs: list[dict[str, Any]]
    pairs: list[dict[str, Any]] = field(repr=False)
    tau: float
    tau_left_out: float | None
    tau_random: tuple[float, float, float]
    tau_redrawn: float
    distance: float
    distance_random: float
    doubts: list[str]
    notes: list[str]
    out: Path | None
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    def sentence(self) -> str:
        """Describe the result, starting with reasons to doubt it."""
        where = "" if self.out is None else f" into {self.out}"
        mean, low, high = self.tau_random
        left_out = "" if self.tau_left_out is None else f" ({self.tau_left_out:.2f} for runs not used in the choice)"
        return " ".join(
            [
                *self.doubts,
                f"Chose {len(self.lines):,} of {self.of:,} test lines{where}. Kendall's tau of {len(self.runs)} "
                f"runs with the whole set: {self.tau:.2f}{left_out}; random subsets {mean:.2f} ({low:.2f} to "
                f"{high:.2f}), the whole set resampled {self.tau_redrawn:.2f}.",
                f"Differences between runs change by {self.distance:.2f} points ({self.distance_random:.2f} at "
                "random).",
                *self.notes,
            ]
        )

    def record(self) -> dict[str, Any]:
        """Return the record that ``--json`` writes."""
        mean, low, high = self.tau_random
        return {
            "lines": len(self.lines),
            "of": self.of,
            "tau": _number(self.tau),
            "tau_left_out": self.tau_left_out,
            "tau_random": {"mean": _number(mean), "smallest": _number(low), "largest": _number(high), "draws": _DRAWS},
            "tau_redrawn": _number(self.tau_redrawn),
            "distance": self.distance,
            "distance_random": self.distance_random,
            "runs": self.runs,
            "pairs": self.pairs,
            "doubts": self.doubts,
            "notes": self.notes,
            "out": None if self.out is None else str(self.out),
            "provenance": self.provenance,
        }


def core_set(
    store: Store | str | Path,
    test: str | Path | Pairs,
    run: Sequence[str] | Sequence[Path],
    out: str | Path | None = None,
    *,
    pairs: str | Path | Pairs | None = None,
    keep: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> CoreSet:
    """Choose a part of a classification test set that preserves the order of runs and their differences.

    Images stay whole: either all lines of an image and its copies are chosen, or none.

    Args:
        store: The store, or its path; it is not changed.
        test: Lines with targets, or a pairs file.
        run: At least four different runs, or folders of seeds.
        out: File for the chosen lines, in file order; None writes none.
        pairs: The runs' training pairs: test images that occur there are not chosen.
        keep: Maximum share of lines to keep, in (0, 1).
        seed: Random seed.
        progress: Show progress.

    Raises:
        UsageError: Fewer than four different runs, a share out of range, or an output that is also an input.
        PairsError: The pairs cannot be used.
        StoreError: There is no store, or embeddings are missing.
        RunError: A run is missing or was interrupted.
    """
    test, pairs = in_memory(test), in_memory(pairs)
    if not 0 < keep < 1:
        raise UsageError(f"--keep: expected a share of the test lines between 0 and 1, found {keep}")
    if not 0 <= seed < 2**31:
        raise UsageError(f"--seed must be between 0 and 2,147,483,647, found {seed}")
    given: list[str | Path] = as_list(run, "run")
    folders = [Path(folder) for folder in given]
    opened = store if isinstance(store, Store) else Store.open(store)
    sources = {
        name: one.source if isinstance(one, Pairs) else one for name, one in (("--test", test), ("--pairs", pairs))
    }
    refuse_inputs({"--out": out}, {**sources, "--store": opened.path, "--run": folders})
    read = test if isinstance(test, Pairs) else read_pairs(test)
    results = _evaluated(folders, opened, read, progress=progress)
    results, doubts = _different(results)
    hits = np.array([result.hits for result in results])
    evaluated = results[0].evaluated
    if evaluated is None or any(len(result.hits) != hits.shape[1] for result in results):
        raise UsageError("--run: the runs could not be evaluated on the same lines; give runs of the same kind")
    notes = list(dict.fromkeys(note for note in results[0].notes if not _of_one_run(note, results[0])))
    units, rows_of = _units(results[0].clusters)
    usable = _not_learned_from(opened, evaluated, pairs, units, notes)
    sums = np.array([np.bincount(units, one, minlength=len(rows_of)) for one in hits])
    counts = np.bincount(units, minlength=len(rows_of)).astype(np.float64)
    wanted = math.floor(keep * len(evaluated) + 1e-9)
    chosen = choose_units(sums, counts, wanted, allowed=usable, seed=seed)
    if len(chosen) < 2:
        raise UsageError(
            f"--keep {keep:g}: {wanted:,} of {len(evaluated):,} lines are fewer than two whole images; keep a "
            "larger share"
        )
    lines = np.sort(np.concatenate([rows_of[unit] for unit in chosen.tolist()]))
    drawn = [random_units(counts, wanted, allowed=usable, seed=seed + draw) for draw in range(1, _DRAWS + 1)]
    random = [one for one in drawn if len(one)] or [chosen]
    taus = np.array([_tau_of(sums, counts, one) for one in random])
    left_out = _left_out(sums, counts, wanted, usable, seed) if len(results) > FEWEST_RUNS else None
    redrawn = _redrawn(sums, counts, seed)
    tau = _tau_of(sums, counts, chosen)
    if not redrawn >= _FAITHFUL:
        doubts.append(
            f"The test set does not distinguish these runs: resampled, it ranks them with a tau of {redrawn:.2f}, "
            "and no part of it can be expected to do better."
        )
    elif left_out is not None and left_out < _FAITHFUL:
        doubts.append(f"Other runs may change places on this core (tau {left_out:.2f}).")
    doubts.append(_NO_BENCHMARK)
    kept = list(read.select(rows_at(read.places, evaluated.select(lines).places)).as_rows())
    if out is not None:
        write_lines(out, kept, "--out")
    return CoreSet(
        lines=kept,
        of=len(evaluated),
        runs=[_run_record(result, lines) for result in results],
        pairs=_pair_records(results, lines),
        tau=tau,
        tau_left_out=left_out,
        tau_random=(float(taus.mean()), float(taus.min()), float(taus.max())),
        tau_redrawn=redrawn,
        distance=100 * _distance_of(sums, counts, chosen),
        distance_random=100 * float(np.mean([_distance_of(sums, counts, one) for one in random])),
        doubts=doubts,
        notes=notes,
        out=None if out is None else Path(out),
        provenance=provenance(run="", store_fingerprint=opened.fingerprint, seed=seed),
    )


def _evaluated(folders: list[Path], store: Store, read: Pairs, *, progress: bool) -> list[Result]:
    results: list[Result] = []
    for folder in folders:
        for scorer in open_seeds(folder, store=store):
            if scorer.run.task != "classification":
                raise UsageError(
                    f"{scorer.run.path}: a core set needs lines that are right or wrong (task 'classification'), "
                    f"found a run for '{scorer.run.task}'; ranks depend on which images remain"
                )
            print_progress(f"evaluating {scorer.run.path}", enabled=progress)
            known = results[0].evaluated if results else None
            results.append(evaluate(scorer, read if known is None else known, find_groups=known is None))
    return results


def _different(results: list[Result]) -> tuple[list[Result], list[str]]:
    """Return the distinct runs, and a doubt about the others."""
    first: dict[bytes, Result] = {}
    same = []
    for result in results:
        known = first.setdefault(result.hits.tobytes(), result)
        if known is not result:
            same.append(f"{result.provenance['run']} as {known.provenance['run']}")
    doubts = []
    if same:
        doubts.append(f"{len(same)} of {len(results)} runs agree on every line and count once: {'; '.join(same)}.")
    if len(first) < FEWEST_RUNS:
        raise UsageError(
            " ".join([f"--run: expected at least {FEWEST_RUNS} different runs, found {len(first)};", *doubts])
            + " repeat --run, or give a folder of frevl train --seeds"
        )
    return list(first.values()), doubts


def _units(clusters: Sequence[str]) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Return every line's unit number, and the lines of every unit."""
    number_of: dict[str, int] = {}
    units = np.array([number_of.setdefault(name, len(number_of)) for name in clusters], np.int64)
    order = np.argsort(units, kind="stable")
    return units, np.split(order, np.cumsum(np.bincount(units))[:-1])


def _not_learned_from(
    store: Store, test: Pairs, pairs: str | Path | Pairs | None, units: NDArray[np.int64], notes: list[str]
) -> NDArray[np.bool_]:
    """Return for each unit whether none of its images (texts) is in the runs' training pairs, ``(units,)`` bool."""
    free = np.ones(int(units.max()) + 1, bool)
    if pairs is None:
        return free
    learned, _ = usable_pairs(pairs if isinstance(pairs, Pairs) else read_pairs(pairs), store)
    known = set(content_of_units(store, learned).values())
    own = content_of_units(store, test)
    seen = np.array([own.get(unit, unit) in known for unit in test.units])
    free[units[seen]] = False
    if seen.any():
        notes.append(f"{int(seen.sum()):,} test lines have images that are also in --pairs; they were not chosen.")
    if not free.any():
        raise PairsError("--pairs: every test image is in it; give the pairs that the runs were trained on")
    return free


def _tau_of(sums: NDArray[np.float64], counts: NDArray[np.float64], units: NDArray[np.int64]) -> float:
    if not len(units):
        return float("nan")
    return kendall_tau(sums.sum(axis=1) / counts.sum(), sums[:, units].sum(axis=1) / counts[units].sum())


def _distance_of(sums: NDArray[np.float64], counts: NDArray[np.float64], units: NDArray[np.int64]) -> float:
    return distance_change(sums.sum(axis=1) / counts.sum(), sums[:, units].sum(axis=1) / counts[units].sum())


def _left_out(
    sums: NDArray[np.float64], counts: NDArray[np.float64], wanted: int, usable: NDArray[np.bool_], seed: int
) -> float | None:
    """Return tau over all pairs of a run and the others, on cores chosen without that run."""
    whole = sums.sum(axis=1) / counts.sum()
    agree = compared = 0.0
    for run in range(len(sums)):
        others = np.arange(len(sums)) != run
        units = choose_units(sums[others], counts, wanted, allowed=usable, seed=seed)
        part = sums[:, units].sum(axis=1) / counts[units].sum()
        a = np.sign(np.round(whole[run] - whole[others], 12))
        agree += float((a * np.sign(np.round(part[run] - part[others], 12))).sum())
        compared += float(np.abs(a).sum())
    return agree / compared if compared else None


def _redrawn(sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int) -> float:
    random = np.random.default_rng(seed)
    whole = sums.sum(axis=1) / counts.sum()
    taus = []
    for _ in range(_REDRAWN):
        drawn = random.integers(0, len(counts), len(counts))
        taus.append(kendall_tau(whole, sums[:, drawn].sum(axis=1) / counts[drawn].sum()))
    return float(np.nanmean(taus))


def _run_record(result: Result, lines: NDArray[np.int64]) -> dict[str, Any]:
    clusters = np.asarray(result.clusters)
    whole = hit_interval(result.hits, result.clusters)
    core = hit_interval(result.hits[lines], clusters[lines])
    return {
        "run": str(result.provenance["run"]),
        "metric": next(iter(result.metrics)),
        "whole": 100 * whole.value,
        "whole_ci95": whole.percent(),
        "core": 100 * core.value,
        "core_ci95": core.percent(),
    }


def _pair_records(results: list[Result], lines: NDArray[np.int64]) -> list[dict[str, Any]]:
    clusters = np.asarray(results[0].clusters)
    records = []
    for number, one in enumerate(results):
        for other in results[number + 1 :]:
            whole = paired_difference(one.hits, other.hits, results[0].clusters)
            core = paired_difference(one.hits[lines], other.hits[lines], clusters[lines])
            records.append(
                {
                    "run": str(one.provenance["run"]),
                    "versus": str(other.provenance["run"]),
                    "whole": 100 * whole.value,
                    "whole_ci95": whole.percent(),
                    "core": 100 * core.value,
                    "core_ci95": core.percent(),
                }
            )
    return records


def _of_one_run(note: str, result: Result) -> bool:
    """Return whether an evaluation's note is about its run rather than the test set."""
    return result.chance is not None and note == result.chance.sentence


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
