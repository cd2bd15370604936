"""Evaluate runs that differ only in their seed: means and the variation between seeds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from frevl.data.pairs import Pairs, read_pairs
from frevl.errors import RunError, UsageError
from frevl.evaluation.chance import against_majority
from frevl.evaluation.evaluation import Result, difference_from, evaluate, leak_of_other, refuse_itself
from frevl.evaluation.measures import mean_measure
from frevl.evaluation.slices import slice_table
from frevl.files import read_record
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store

__all__ = ["SeedsResult", "deviation", "evaluate_seeds", "is_seeds", "open_seeds"]


@dataclass
class SeedsResult(Result):
    """A result over several seeds: metrics are means, and `hits` are averaged over seeds.

    Attributes:
        seeds: ``n``, ``seeds``, ``deviation`` of every metric in points (None for one seed) and ``values`` per seed.
        at_chance: Number of seeds at chance. Classification compares their mean: all of them are, or none.
    """

    seeds: dict[str, Any] = field(default_factory=dict)
    at_chance: int = 0

    def record(self) -> dict[str, Any]:
        """Return the result JSON with the additional key ``seeds``."""
        return {**super().record(), "seeds": self.seeds}


def is_seeds(path: str | Path) -> bool:
    """Return whether a folder holds several seeds, finished or not, rather than one run."""
    path = Path(path)
    return not (path / "run.json").exists() and (
        (path / "seeds.json").exists() or any(path.glob("seed*/settings.json"))
    )


def open_seeds(path: str | Path, *, store: Store, device: str = "cpu") -> Iterator[Scorer]:
    """Open the runs in a folder of seeds in turn, or the single run of an ordinary folder.

    Raises:
        RunError: The folder holds neither, or its training was interrupted.
        FingerprintError: Store and runs do not belong together.
    """
    path = Path(path)
    if not is_seeds(path):
        yield Scorer.open(path, store=store, device=device)
        return
    if not (path / "seeds.json").exists():
        raise RunError(
            f"{path}: expected finished seeds (a folder with 'seeds.json'), found an interrupted training; run the "
            "same frevl train --seeds again to continue, or evaluate one of its seeds"
        )
    try:
        names = read_record(path / "seeds.json")["runs"]
        folders = [path / name for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: 'seeds.json' is damaged ({error}); run the same frevl train --seeds again") from error
    for folder in folders:
        yield Scorer.open(folder, store=store, device=device)


def evaluate_seeds(
    scorers: Iterable[Scorer],
    pairs: str | Path | Pairs,
    *,
    versus: Iterable[Scorer] = (),
    group_by: str | None = None,
    find_groups: bool = True,
) -> SeedsResult:
    """Evaluate runs that differ only in their seed on the same pairs.

    Args:
        scorers: One scorer per seed, for example from `open_seeds`; only one is in memory at a time.
        pairs: As in `frevl.evaluate`.
        versus: Seeds of another model, to compare on the same pairs.
        group_by: As in `frevl.evaluate`.
        find_groups: As in `frevl.evaluate`.

    Returns:
        Means over seeds. Every interval, including those of slices and of the difference, draws images and averages the
        runs' results on each draw over seeds.

    Raises:
        UsageError: No scorer.
        PairsError: As in `frevl.evaluate`.
        StoreError: As in `frevl.evaluate`.
    """
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    results: list[Result] = []
    for scorer in scorers:  # dependent pairs are found only once
        known = results[0].evaluated if results else None
        results.append(
            evaluate(scorer, read, group_by=group_by, find_groups=find_groups)
            if known is None
            else evaluate(scorer, known, find_groups=False)
        )
    if not results:
        raise UsageError("evaluate_seeds: expected at least one scorer, found none")
    first = results[0]
    names = list(first.metrics)
    hits = np.mean([result.hits for result in results], axis=0)
    measures = {name: mean_measure([result.measures[name] for result in results]) for name in names}
    values = {name: [result.metrics[name] for result in results] for name in names}
    deviations = {name: deviation(values[name]) for name in names}
    numbers = [result.provenance["seed"] for result in results]
    own = [[note for note in result.notes if note.startswith("Chance: ")] for result in results]
    notes = list(dict.fromkeys(note for result in results for note in result.notes if not note.startswith("Chance: ")))
    if first.chance is None and any(own):
        notes += own[0] if len(own) == 1 else [_seeds_at_chance(sum(map(bool, own)), len(own), next(filter(None, own)))]
    # The majority answer comes from the training pairs and is the same for all seeds.
    chance = first.chance and against_majority(hits, first.chance.earned, first.clusters, first.chance.answer)
    if chance is not None and chance.is_chance:
        notes.append(chance.sentence)
    if len(results) > 1:
        shown = ", ".join(f"{name} {deviations[name]:.2f}" for name in names)
        notes.append(f"Means of {len(results)} seeds. Standard deviation over seeds in points: {shown}.")
    done = SeedsResult(
        task=first.task,
        n=first.n,
        metrics={name: float(np.mean(values[name])) for name in names},
        ci95={name: measure.interval().percent() for name, measure in measures.items()},
        slices=slice_table(first.slice_rows, names[0], hits, first.clusters),
        provenance={
            **first.provenance,
            "run": _folder_of(results),
            "seed": numbers,
            **({"weights": [one.provenance["weights"] for one in results]} if "weights" in first.provenance else {}),
        },
        notes=notes,
        left_out=first.left_out,
        hits=hits,
        clusters=first.clusters,
        measures=measures,
        slice_rows=first.slice_rows,
        chance=chance,
        seeds={"n": len(results), "seeds": numbers, "deviation": deviations, "values": values},
        at_chance=sum(map(bool, own)) if chance is None else len(results) * chance.is_chance,
    )
    others = []
    for scorer in versus:
        if len(results) == 1:
            refuse_itself(first.provenance["run"], scorer.run.path)
        others.append(evaluate(scorer, first.evaluated or read, find_groups=False))
        if len(others) == 1:  # all seeds learned from the same pairs
            done.notes[:0] = leak_of_other(scorer, first.evaluated or read)
    if others:
        mean = np.mean([other.hits for other in others], axis=0)
        done.difference = difference_from(mean, done, versus=_folder_of(others))
    return done


def _seeds_at_chance(seeds: int, of: int, said: list[str]) -> str:
    """Return the sentences of the first seed at chance, after the number of such seeds."""
    return f"Chance: {seeds} of {of} seeds are not measurably better than random scores; the first: " + " ".join(
        one.removeprefix("Chance: ") for one in said
    )


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (divisor ``n - 1``); None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _folder_of(results: Sequence[Result]) -> str:
    """Return the folder that holds all runs; for a single run, its own folder."""
    return os.path.commonpath([str(result.provenance["run"]) for result in results])
