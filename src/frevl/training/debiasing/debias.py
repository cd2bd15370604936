"""`frevl.debias`: turn a finished run into another, without the prior of one side or with neutral texts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from frevl.data.pairs import Pairs, in_memory
from frevl.errors import RunError, UsageError, misleading
from frevl.evaluation.intervals import hit_record
from frevl.models.hub import weights_digest
from frevl.models.interface import PairNetwork, PriorSide
from frevl.provenance import provenance
from frevl.runs.calibration import calibration_notes, fit_calibration
from frevl.runs.posterior import carried_over
from frevl.runs.run import Run
from frevl.runs.targets import Answers
from frevl.store.reader import Store
from frevl.training.debiasing.neutral import make_neutral, read_biases
from frevl.training.debiasing.own_data import OwnData, Sources, own_data, own_store, sources_of
from frevl.training.debiasing.prior import check_both_sides, without_side
from frevl.training.examples import dev_hits
from frevl.training.options import ModelOptions
from frevl.training.prepare import read_file
from frevl.training.run_folder import claim_run, content_of, write_config
from frevl.training.selection.fit_prepared import at_chance, kept_scores
from frevl.version import __version__

__all__ = ["debias"]

_WEIGHT = 100.0

Change = Callable[[PairNetwork], PairNetwork]
"""Makes the new network from the former one, or from another fit of it."""


def debias(
    run: str | Path,
    *,
    out: str | Path,
    without: str | None = None,
    strength: float | None = None,
    neutral: str | Path | None = None,
    weight: float = _WEIGHT,
    whole_prompts: bool = False,
    store: Store | str | Path | None = None,
    pairs: str | Path | Pairs | None = None,
    dev: str | Path | Pairs | None = None,
    columns: str | Sequence[str] | Mapping[str, str] | None = None,
    seed: int = 0,
) -> Run:
    """Derive a run without the prior of one side, or one whose texts no longer differ in what should not matter.

    Args:
        run: The finished run; it is not modified.
        out: Folder for the new run.
        without: ``image`` subtracts the run's answer to the text alone, ``text`` its answer to the image alone.
        strength: Share to subtract, in [0, 1]; None chooses it on development data, with 0 among the options.
        neutral: A file of biases instead of ``without``: lines ``{"biased": text}``, whose directions are projected out
            of the text vectors, and ``{"same": [text, text]}``, whose texts are made equal
            (`frevl.training.debiasing.neutral`).
        weight: How strongly the texts of a ``same`` line are made equal.
        whole_prompts: Whether to project out biased prompts including what they have in common, as in the paper.
        store: The store with the embeddings; None uses the one that the run was trained on.
        pairs: The run's training pairs; None reads them from their recorded place. Other pairs are refused.
        dev: Development pairs with images that the run has not seen; None uses those of the training.
        columns: Columns of the pairs files, as in `frevl.data.pairs.read_pairs`.
        seed: Random seed for choosing the training items that are kept.

    Returns:
        The saved run. Scorers, exports and the service treat it like any other.

    Raises:
        UsageError: The run does not read both sides, or neither ``without`` nor ``neutral`` is given.
        PairsError: The pairs are not those that the run was trained on.
        RunError: The folder holds a run, or other files.
    """
    pairs, dev = in_memory(pairs), in_memory(dev)
    if (without is None) == (neutral is None):
        raise UsageError(
            "debias expects either --without image (or text) or --neutral FILE, found "
            + ("both; apply them one after the other" if without else "nothing to do")
        )
    if neutral is not None and strength is not None:
        raise UsageError("--strength applies to --without; for --neutral, use --weight")
    if without is not None and (whole_prompts or weight != _WEIGHT):
        raise UsageError(
            f"{'--whole-prompts' if whole_prompts else '--weight'} applies to --neutral; for --without, use --strength"
        )
    if not math.isfinite(weight) or weight < 0:
        raise UsageError(f"--weight must be at least 0, found {weight:g}")
    biases = None if neutral is None else read_biases(neutral)
    if without is not None and without not in get_args(PriorSide):
        raise UsageError(f"--without takes image or text, found '{without}'")
    if strength is not None and not 0 <= strength <= 1:
        raise UsageError(f"--strength must be between 0 and 1, found {strength:g}")
    former = Run.load(run)
    sources = sources_of(former, store=store, pairs=pairs, dev=dev, columns=columns)
    opened = own_store(former, sources)
    started = time.monotonic()
    if biases is not None:
        made = make_neutral(former, opened, biases, weight=weight, differences=not whole_prompts)
        named = {"neutral": str(neutral), "weight": weight, "whole_prompts": whole_prompts}
        held = None if former.model == "classify" else own_data(former, opened, sources)
        return _saved(
            former, made.network, lambda _: made.network, held, opened, sources, Path(out), {**named, **made.record},
            made.notes, time.monotonic() - started, seed,
            arguments={**named, "neutral": str(Path(str(neutral)).resolve())},
        )  # fmt: skip
    side: PriorSide = "image" if without == "image" else "text"
    check_both_sides(former, side)
    data = own_data(former, opened, sources, with_fits=True)
    lessened = without_side(former, data, side, strength=strength, seed=seed)
    done = {"without": side, "strength": lessened.strength, "tried": lessened.tried}
    return _saved(
        former, lessened.network, lessened.change, data, opened, sources, Path(out), done, lessened.notes,
        time.monotonic() - started, seed,
        arguments={"without": without, "strength": strength, "seed": seed},
    )  # fmt: skip


def _saved(
    former: Run,
    network: PairNetwork,
    change: Change,
    data: OwnData | None,
    store: Store,
    sources: Sources,
    out: Path,
    done: dict[str, Any],
    notes: list[str],
    seconds: float,
    seed: int,
    *,
    arguments: dict[str, Any],
) -> Run:
    """Recalibrate, and write a complete run that records its origin."""
    origin = {"from": str(former.path.resolve()), "weights": _digest(former.path), **done}
    settings = {**former.settings, "debias": {**arguments, "from": origin["from"]}}
    identity = {"frevl": __version__, "store": store.fingerprint, "weights": origin["weights"]}
    if data is not None:
        identity["pairs"] = _content(store, sources)
    with claim_run(out, {**settings, "data": identity}):
        if data is None:
            calibration, results = _as_before(former, notes, seconds, _BY_NAMES)
        elif data.learned:
            calibration, results = _as_before(former, notes, seconds, _ALL_LEARNED.format(data.learned))
        else:
            calibration, results = _calibrated(former, network, change, data, notes, seconds)
        results["debias"] = origin
        finished = replace(
            former,
            path=out,
            network_name=network.key,
            network_settings=network.settings,
            calibration=calibration,
            settings=settings,
            results=results,
            provenance={
                **provenance(
                    run=str(out), store_fingerprint=store.fingerprint, seed=former.provenance.get("seed", seed)
                ),
                "debiased": {name: origin[name] for name in ("from", "weights")},
            },
            train_image_hashes=former.train_image_hashes
            if data is None
            else np.union1d(former.train_image_hashes, data.hashes),
            network=network,
            posterior=carried_over(former.network, former.path, network, **_widths(former, store)),
        )
        files = {"pairs": sources.pairs, "dev": sources.dev, "columns": sources.columns}
        write_config(
            out, {"store": store, "run": former.path.resolve().as_posix(), **files, **arguments}, ModelOptions(),
            command="debias", output="out",
        )  # fmt: skip
        finished.save()
    return finished


def _widths(run: Run, store: Store) -> dict[str, int]:
    """Return the widths of the embeddings that a run reads."""
    return {f"{side}_dim": sum(store.towers[name].dim for name in own) for side, own in run.towers.items()}


def _calibrated(
    former: Run, network: PairNetwork, change: Change, data: OwnData, notes: list[str], seconds: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Refit calibration and prediction sets; anything specific to the former network is dropped."""
    logits, truth = data.logits(former.network, change), data.dev.truth
    decisive = network.probability_logits(logits)
    calibration = fit_calibration(decisive, truth) if not data.dev_is_seen else {"scale": 1.0, "offset": 0.0}
    scores = calibration["scale"] * decisive + calibration["offset"] if isinstance(truth, torch.Tensor) else decisive
    kept = former.results
    on = "development pairs" if data.fits is None else "training pairs, each by a fit without it"
    said = [*notes, f"Made from {former.path} by frevl debias; recalibrated on {len(logits):,} {on}."]
    if "unknown" in kept and kept["unknown"] is not None:
        said.append("The former run's threshold for unknown images was dropped.")
    # What the former run said of its own answers is measured again.
    warnings = [one for one in kept.get("warnings", []) if not one.startswith("Chance: ")]
    warnings += [one for one in misleading(data.notes) if one not in warnings]
    if not data.dev_is_seen and isinstance(data.train.truth, Answers):
        first = data.train.truth.classes[:, 0]
        majority = int(first[first >= 0].bincount().argmax())
        warnings += at_chance(scores, truth, data.dev.clusters, former.labels, majority=majority)
    results = {
        "development": hit_record(
            dev_hits(scores, truth).numpy(), None if data.dev_is_seen else data.dev.clusters.numpy()
        ),
        "train_pairs": kept.get("train_pairs", len(data.train)),
        "train_seconds": seconds,
        "soft_targets": bool(kept.get("soft_targets", False)),
        "warnings": warnings,
        "notes": list(dict.fromkeys([*warnings, *said, *data.notes, *calibration_notes(len(logits))])),
        "fit": None,
        "selection": kept.get("selection"),
    }
    if not data.dev_is_seen:
        results["prediction_sets"] = kept_scores(decisive, truth, data.dev.clusters, calibration)
    return calibration, results


_BY_NAMES = "The calibration is unchanged, measured with the former names; prediction sets"
_ALL_LEARNED = (
    "The calibration and the development figures are those of the former run, because a {} also trains on its "
    "development part: give pairs of other images with --dev to measure them again. Prediction sets"
)


def _as_before(former: Run, notes: list[str], seconds: float, why: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Keep the calibration where there is nothing to measure it on, with a note that begins with the reason."""
    said = [
        *notes,
        f"Made from {former.path} by frevl debias. {why} and the threshold for unknown images were dropped: calibrate "
        "sets with --calibrate.",
    ]
    gone = ("prediction_sets", "unknown")
    results = {name: value for name, value in former.results.items() if name not in gone}
    warnings = list(former.results.get("warnings", []))
    results |= {"notes": [*warnings, *said], "warnings": warnings, "train_seconds": seconds, "unknown": None}
    return former.calibration, results


def _digest(folder: Path) -> str:
    """Return a hash of the weights of a run."""
    try:
        return weights_digest(folder)[:16]
    except OSError as error:
        raise RunError(f"{folder}: the weights of the run cannot be read ({error.strerror or error})") from error


def _content(store: Store, sources: Sources) -> str:
    return "" if sources.pairs is None else content_of(store, read_file(sources.pairs, sources.columns))
