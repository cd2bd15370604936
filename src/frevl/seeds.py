"""One model trained with several seeds: how much of a number is luck.

A folder of seeds holds an ordinary run a seed (``seed0``, ``seed1``, ...) and ``seeds.json``, which is written last.
The deviation is the sample standard deviation over seeds; the intervals are those of the mean over seeds, by cluster
bootstrap over images, so the first tells of the training and the second of the test set (ours).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import frevl
from frevl.chance import against_majority
from frevl.errors import RunError, UsageError
from frevl.evaluation import Result, evaluate
from frevl.intervals import Interval, paired_difference, paired_test
from frevl.jsonfile import write_json
from frevl.measures import mean_measure
from frevl.pairs import Pairs, read_pairs
from frevl.progress import say
from frevl.provenance import provenance
from frevl.run import Run, refuse_other_files
from frevl.scorer import Scorer
from frevl.slices import slice_table
from frevl.store import Store
from frevl.training import train

__all__ = ["SeedRuns", "SeedsResult", "deviation", "evaluate_seeds", "is_seeds", "open_seeds", "points", "train_seeds"]


@dataclass(frozen=True)
class SeedRuns:
    """Runs that differ in their seed only.

    Attributes:
        path: Folder that holds them.
        model: What was trained.
        task: ``matching`` or ``classification``.
        parameters: Of one run.
        encoders: Whose towers were concatenated.
        seeds: Seed of every run.
        runs: Folder of every run, below ``path``.
        development: Development metric of every run in percent.
        development_pairs: Development pairs of the first run.
        train_seconds: Of every run.
        settings: What all have in common.
        provenance: Where they come from.
    """

    path: Path
    model: str
    task: str
    parameters: int
    encoders: list[str]
    seeds: list[int]
    runs: list[str]
    development: list[float]
    development_pairs: int
    train_seconds: list[float]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return what ``seeds.json`` and ``frevl train --seeds N --json`` hold."""
        return {
            "run": str(self.path),
            "model": self.model,
            "task": self.task,
            "parameters": self.parameters,
            "encoders": self.encoders,
            "seeds": self.seeds,
            "runs": self.runs,
            "development": {
                "n": self.development_pairs,
                "accuracy": float(np.mean(self.development)),
                "deviation": deviation(self.development),
                "values": self.development,
            },
            "train_seconds": self.train_seconds,
            "settings": self.settings,
            "provenance": self.provenance,
        }


@dataclass
class SeedsResult(Result):
    """A result of several seeds: metrics are means, `hits` are averaged over seeds.

    Attributes:
        seeds: ``n``, ``seeds``, ``deviation`` of every metric in points (None for one seed) and ``values`` a seed.
    """

    seeds: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the result JSON with the further key ``seeds``."""
        return {**super().record(), "seeds": self.seeds}


def train_seeds(
    store: Store | str | Path,
    pairs: str | Path | Pairs,
    *,
    run: str | Path,
    seeds: int,
    seed: int = 0,
    progress: bool = False,
    **settings: Any,
) -> SeedRuns:
    """Train the same model with several seeds.

    A second call with the same arguments uses the finished seeds, takes up the interrupted one, and adds what is
    missing; more seeds may be asked for later. Finished seeds are used only if pairs, pictures, embeddings and every
    setting are those of this call.

    Args:
        store: As in `frevl.train`.
        pairs: As in `frevl.train`.
        run: Folder to write; every seed is a run of its own in it.
        seeds: How many.
        seed: The first; the others follow.
        progress: Show progress lines.
        **settings: Further arguments of `frevl.train`.

    Returns:
        The runs with their development metric.

    Raises:
        UsageError: Fewer than one seed, or what `frevl.train` refuses.
        RunError: The folder holds one run, or seeds of another training.
        PairsError: As in `frevl.train`; so are the other errors.
    """
    if seeds < 1:
        raise UsageError(f"--seeds: expected at least 1 seed, found {seeds}")
    folder = Path(run)
    opened = store if isinstance(store, Store) else Store.open(store)
    kept = _settings(opened, pairs, settings)
    _claim(folder, kept)
    trained: list[Run] = []
    numbers = list(range(seed, seed + seeds))
    for number in numbers:
        path = folder / f"seed{number}"
        if (path / "run.json").exists():
            say(f"{path}: finished before, used again", enabled=progress)
            one = Run.load(path)
        else:
            one = train(opened, pairs, run=path, seed=number, progress=progress, **settings)
        # Only the figures are needed from here on; the weights of many large networks need not stay in memory.
        one.network = one.network.to("meta")
        trained.append(one)
    first = trained[0]
    done = SeedRuns(
        path=folder,
        model=first.model,
        task=first.task,
        parameters=first.parameters,
        encoders=first.encoders,
        seeds=numbers,
        runs=[one.path.name for one in trained],
        development=[float(one.results["development"]["accuracy"]) for one in trained],
        development_pairs=int(first.results["development"]["n"]),
        train_seconds=[float(one.results["train_seconds"]) for one in trained],
        settings=kept,
        provenance={**provenance(run=str(folder), store_fingerprint=opened.fingerprint, seed=seed), "seed": numbers},
    )
    try:
        write_json(folder / "seeds.json", done.record())
    except OSError as error:
        raise RunError(f"{folder}: the runs cannot be written ({error.strerror or error})") from error
    return done


def is_seeds(path: str | Path) -> bool:
    """Say whether a folder holds seeds, finished or not, and not one run."""
    path = Path(path)
    return not (path / "run.json").exists() and (
        (path / "seeds.json").exists() or any(path.glob("seed*/settings.json"))
    )


def open_seeds(path: str | Path, *, store: Store) -> Iterator[Scorer]:
    """Open the runs of a folder of seeds one after the other, or the one run of an ordinary folder.

    Raises:
        RunError: The folder holds neither, or its training was interrupted.
        FingerprintError: Store and runs do not belong together.
    """
    path = Path(path)
    if not is_seeds(path):
        yield Scorer.open(path, store=store)
        return
    if not (path / "seeds.json").exists():
        raise RunError(
            f"{path}: expected finished seeds (a folder with 'seeds.json'), found a training that was interrupted; "
            "run the same frevl train --seeds again to go on, or judge one seed of it"
        )
    try:
        names = json.loads((path / "seeds.json").read_text(encoding="utf-8"))["runs"]
        folders = [path / name for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: 'seeds.json' is damaged ({error}); run the same frevl train --seeds again") from error
    for folder in folders:
        yield Scorer.open(folder, store=store)


def evaluate_seeds(
    scorers: Iterable[Scorer], pairs: str | Path | Pairs, *, versus: Iterable[Scorer] = ()
) -> SeedsResult:
    """Judge runs that differ in their seed on the same pairs.

    Args:
        scorers: One a seed, for example from `open_seeds`; one is in memory at a time.
        pairs: As in `frevl.evaluate`.
        versus: Seeds of another model, to compare on the same pairs.

    Returns:
        Means over seeds. Every interval, those of slices and of the difference too, draws images and averages over
        seeds what each run earns on the draw.

    Raises:
        UsageError: No scorer.
        PairsError: As in `frevl.evaluate`.
        StoreError: As in `frevl.evaluate`.
    """
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    results = [evaluate(scorer, read) for scorer in scorers]
    if not results:
        raise UsageError("evaluate_seeds: expected at least one scorer, found none")
    first = results[0]
    names = list(first.metrics)
    hits = np.mean([result.hits for result in results], axis=0)
    measures = {name: mean_measure([result.measures[name] for result in results]) for name in names}
    values = {name: [result.metrics[name] for result in results] for name in names}
    deviations = {name: deviation(values[name]) for name in names}
    numbers = [result.provenance["seed"] for result in results]
    own = [result.chance.sentence for result in results if result.chance is not None]
    notes = list(dict.fromkeys(note for result in results for note in result.notes if note not in own))
    # The majority answer is that of the training pairs, the same for all seeds.
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
        ci95={name: points(measure.interval()) for name, measure in measures.items()},
        slices=slice_table(first.slice_rows, names[0], hits, first.clusters),
        provenance={**first.provenance, "run": _folder_of(results), "seed": numbers},
        notes=notes,
        left_out=first.left_out,
        hits=hits,
        clusters=first.clusters,
        measures=measures,
        slice_rows=first.slice_rows,
        chance=chance,
        seeds={"n": len(results), "seeds": numbers, "deviation": deviations, "values": values},
    )
    others = [evaluate(scorer, read) for scorer in versus]
    if others and len(others[0].hits) == len(hits):
        other_hits = np.mean([other.hits for other in others], axis=0)
        gap = paired_difference(hits, other_hits, first.clusters)
        done.difference = {
            "versus": _folder_of(others),
            "metric": names[0],
            "difference": 100 * gap.value,
            "ci95": points(gap),
            "p": paired_test(hits, other_hits, first.clusters),
        }
    return done


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (divisor ``n - 1``), None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def points(interval: Interval) -> list[float] | None:
    """Return the bounds in percent, None where one image tells nothing."""
    return None if np.isnan(interval.low) else [100 * interval.low, 100 * interval.high]


def _folder_of(results: Sequence[Result]) -> str:
    """Return the folder that holds all runs; of one run its own."""
    return os.path.commonpath([str(result.provenance["run"]) for result in results])


def _settings(store: Store, pairs: str | Path | Pairs, settings: dict[str, Any]) -> dict[str, Any]:
    """Return everything that decides what a seed becomes, the defaults of `frevl.train` included."""
    left_out = ("store", "pairs", "run", "dev", "seed", "device", "progress")
    signature = inspect.signature(train).parameters.values()
    defaults = {p.name: p.default for p in signature if p.default is not p.empty and p.name not in left_out}
    typed = {name: value for name, value in settings.items() if name not in left_out}
    dev = settings.get("dev")
    kept = {
        "frevl": frevl.__version__,
        "store": store.fingerprint,
        "pairs": _fingerprint(store, pairs),
        "dev": None if dev is None else _fingerprint(store, dev),
        **defaults,
        **typed,
    }
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def _fingerprint(store: Store, pairs: str | Path | Pairs) -> str:
    """Hash pairs and the pictures they name, so that neither can change unseen under finished runs."""
    read = pairs if isinstance(pairs, Pairs) else read_pairs(pairs)
    digest = hashlib.sha256()
    for row in range(len(read)):
        digest.update(json.dumps(read.row(row), sort_keys=True, default=str).encode())
    for pair in sorted(store.content_hashes(read.images).items()):
        digest.update(json.dumps(pair).encode())
    return digest.hexdigest()[:16]


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or refuse one that holds something else."""
    if (folder / "run.json").exists() or (folder / "state.safetensors").exists():
        raise RunError(f"{folder}: this folder holds a run of one seed; choose another folder, or delete it first")
    refuse_other_files(folder, ("settings.json", "seeds.json", "seed*", "*.part"))
    file = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        begun = any(any(folder.glob(f"seed*/{name}")) for name in ("run.json", "state.safetensors"))
        if begun and file.exists():
            former = json.loads(file.read_text(encoding="utf-8"))
            for name in {**former, **settings}:
                if former.get(name) != settings.get(name):
                    raise RunError(
                        f"{folder}: seeds of another training stand here, and its '{name}' was "
                        f"{former.get(name)!r}, not {settings.get(name)!r}; use the same settings to go on, choose "
                        "another folder, or delete it"
                    )
        write_json(file, settings)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: the runs cannot be written or gone on with ({error})") from error
