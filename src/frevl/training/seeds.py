"""Train one model with several seeds, to show how much of a result is due to chance.

A folder of seeds contains one ordinary run per seed (``seed0``, ``seed1``, ...) and ``seeds.json``, which is written
last. The deviation is the sample standard deviation over seeds; the intervals are those of the mean over seeds, by
cluster bootstrap over images: the former reflects the training and the latter the test set (ours).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from frevl.data.pairs import Pairs, in_memory
from frevl.errors import RunError, UsageError
from frevl.evaluation.seeds import deviation
from frevl.files import write_json
from frevl.provenance import provenance
from frevl.runs.run import Run
from frevl.store.reader import Store
from frevl.terminal import print_progress
from frevl.training.options import ModelOptions, make_options
from frevl.training.prepare import read_file
from frevl.training.run_folder import claim_seeds, data_identity, write_config
from frevl.training.training import train
from frevl.training.workers.joining import working_together
from frevl.training.workers.team import Team

__all__ = ["SeedRuns", "train_seeds"]


@dataclass(frozen=True)
class SeedRuns:
    """Runs that differ only in their seed.

    Attributes:
        path: Folder that contains them.
        model: Name of the trained model.
        task: ``matching`` or ``classification``.
        parameters: Number of parameters of one run.
        encoders: Encoders whose towers were concatenated.
        seeds: Seed of every run.
        runs: Folder of every run, relative to ``path``.
        development: Development metric of every run in percent.
        development_pairs: Number of development pairs of the first run.
        train_seconds: Training time of every run in seconds.
        warnings: Warnings of the runs; those of some seeds name them.
        settings: Settings that all runs have in common.
        provenance: Store fingerprint, versions and the like.
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
    warnings: list[str]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return the record for ``seeds.json`` and ``frevl train --seeds N --json``."""
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
            "warnings": self.warnings,
            "settings": self.settings,
            "provenance": self.provenance,
        }


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

    Repeating the call reuses finished seeds, continues an interrupted one, and adds missing ones; more seeds may be
    added later. Finished seeds are reused only if pairs, images, embeddings and all settings match this call.

    Args:
        store: As in `frevl.train`.
        pairs: As in `frevl.train`.
        run: Folder to write; it contains one run per seed.
        seeds: Number of seeds.
        seed: The first seed; the others follow.
        progress: Show progress.
        **settings: Further arguments of `frevl.train`.

    Returns:
        The runs with their development metrics.

    Raises:
        UsageError: Fewer than one seed, or invalid arguments of `frevl.train`.
        RunError: The folder contains a single run, or seeds of another training.
        PairsError: As in `frevl.train`, which may also raise its other errors.
    """
    pairs, settings = in_memory(pairs), {**settings, "dev": in_memory(settings.get("dev"))}
    if seeds < 1:
        raise UsageError(f"--seeds: expected at least 1 seed, found {seeds}")
    folder = Path(run)
    device, workers, address = (settings.get(name) for name in ("device", "workers", "ray"))
    path = store.path if isinstance(store, Store) else store
    named = {"store": path, "pairs": pairs, "run": run, "seeds": seeds, "seed": seed, **settings, "ray": None}
    if address is not None:
        from frevl.training.workers.on_ray import on_ray

        return cast("SeedRuns", on_ray(train_seeds, named, workers=workers, address=address, device=device or "cpu"))
    with working_together(train_seeds, named, workers=workers, device=device or "cpu") as team:
        return _train_seeds(store, pairs, folder, seeds, seed, settings, team, progress=progress and team.leads)


def _train_seeds(
    store: Store | str | Path,
    pairs: Any,
    folder: Path,
    seeds: int,
    seed: int,
    settings: dict[str, Any],
    team: Team,
    *,
    progress: bool,
) -> SeedRuns:
    """Train all seeds as one of the workers, or alone; worker 0 writes the files."""
    opened = store if isinstance(store, Store) else Store.open(store)
    arguments = {**_defaults(), **settings, "pairs": pairs, "seed": seed}
    options = make_options(arguments["model"], arguments["options"], first_stage=arguments["first_stage"])
    kept = _settings(opened, arguments, options)
    with claim_seeds(folder, kept, team=team):
        trained: list[Run] = []
        numbers = list(range(seed, seed + seeds))
        for number in numbers:
            path = folder / f"seed{number}"
            if team.decided((path / "run.json").exists):
                print_progress(f"{path}: already finished, reused", enabled=progress)
                one = Run.load(path)
            else:
                one = train(opened, pairs, run=path, seed=number, progress=progress, **settings)
            # Only the metrics are needed from here on; the weights of many large networks need not stay in memory.
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
            warnings=_warnings(trained, numbers),
            settings=kept,
            provenance={
                **provenance(run=str(folder), store_fingerprint=opened.fingerprint, seed=seed),
                "seed": numbers,
            },
        )
        if team.leads:
            write_config(folder, {"store": opened, **arguments, "seeds": seeds}, options)
            try:
                write_json(folder / "seeds.json", done.record())
            except OSError as error:
                raise RunError(f"{folder}: the runs cannot be written ({error.strerror or error})") from error
    return done


def _warnings(runs: Sequence[Run], seeds: Sequence[int]) -> list[str]:
    """Return every warning of the runs once, those of some seeds with their numbers."""
    of: dict[str, list[int]] = {}
    for one, seed in zip(runs, seeds, strict=True):
        for warning in one.results.get("warnings", []):
            of.setdefault(warning, []).append(seed)
    named = {warning: f"Seed {' and seed '.join(map(str, some))}: " for warning, some in of.items()}
    return [("" if len(some) == len(runs) else named[warning]) + warning for warning, some in of.items()]


def _defaults() -> dict[str, Any]:
    """Return the defaults of `frevl.train`."""
    return {p.name: p.default for p in inspect.signature(train).parameters.values() if p.default is not p.empty}


def _settings(store: Store, arguments: Mapping[str, Any], options: ModelOptions) -> dict[str, Any]:
    """Return all settings that determine a seed's result, including the defaults of `frevl.train` and its options."""
    left_out = ("store", "pairs", "run", "dev", "seed", "device", "workers", "ray", "progress", "options")
    columns, dev = arguments["columns"], arguments["dev"]
    read = read_file(arguments["pairs"], columns), None if dev is None else read_file(dev, columns)
    kept = {
        **data_identity(store, *read, arguments["initialise_from"]),
        **{name: value for name, value in arguments.items() if name not in left_out},
        **options.record(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain
