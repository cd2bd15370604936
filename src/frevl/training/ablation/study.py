"""Ablation study: compare the full fusion with variants in which one part is removed or changed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frevl.data.names import as_list
from frevl.data.pairs import Pairs, in_memory
from frevl.errors import MissingExtraError, Reject, RunError, UsageError, nearest, rejects_sentence
from frevl.evaluation.seeds import evaluate_seeds, open_seeds
from frevl.files import write_json
from frevl.models.fusion import PRESETS
from frevl.store.reader import Store
from frevl.store.usable_pairs import choose_towers, usable_pairs
from frevl.terminal import print_progress
from frevl.training.ablation.report import ablation_markdown, draw_ablation
from frevl.training.ablation.variants import Ablation, AblationRow, depth_of, notes_of, options_of, row_of, variants_of
from frevl.training.options import FusionOptions, make_options
from frevl.training.prepare import read_file
from frevl.training.run_folder import write_config
from frevl.training.seeds import train_seeds

__all__ = ["ablate"]


def ablate(
    store: Store | str | Path | Sequence[Store | str | Path],
    pairs: str | Path | Pairs,
    *,
    test: str | Path | Pairs,
    task: str,
    out: str | Path,
    dev: str | Path | Pairs | None = None,
    columns: str | Sequence[str] | Mapping[str, str] | None = None,
    encoder: Sequence[str] | None = None,
    image_encoder: Sequence[str] | None = None,
    text_encoder: Sequence[str] | None = None,
    group_by: str | None = None,
    find_groups: bool = True,
    model: str = "tiny",
    options: FusionOptions | Mapping[str, Any] | None = None,
    seeds: int = 3,
    seed: int = 0,
    time_limit: float | None = None,
    min_answer_count: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Ablation:
    """Train the full fusion, its variants and two baselines with several seeds, and compare them on test pairs.

    The variants (`frevl.training.ablation.variants`): without cross-attention, product, difference, or both; without
    each further loss term, mixup, and label smoothing; with other numbers of layers; on each encoder alone, if the
    store holds several; on further stores. The intervals are bootstraps over test images of hits averaged over seeds;
    differences are paired by image.

    Repeating the call reuses finished trainings in ``out/runs`` and continues an interrupted one; more seeds may be
    added later. Every training there is an ordinary run.

    Args:
        store: The store, or several: the full fusion is trained on each, everything else on the first.
        pairs: Training pairs, or a pairs file.
        test: Test pairs that training never sees.
        task: ``matching`` or ``classification``.
        out: Folder for ``ablation.json``, ``ablation.md``, ``ablation.svg``, ``config.toml`` and ``runs``.
        dev: As in `frevl.train`.
        columns: As in `frevl.train`, for every pairs file.
        encoder: Encoders of the first store, as in `frevl.train`.
        image_encoder: Encoders of the first store for images alone.
        text_encoder: Encoders of the first store for texts alone.
        group_by: As in `frevl.train` for the trainings, and as in `frevl.evaluate` for the intervals.
        find_groups: As for ``group_by``.
        model: Preset of the fusion: ``tiny``, ``small`` or ``base``.
        options: Options of the full fusion, as in `frevl.train`; the baselines take over those on training.
        seeds: Number of trainings of every variant.
        seed: The first seed.
        time_limit: Time limit of each training in seconds.
        min_answer_count: As in `frevl.train`.
        device: Device for training, as in `frevl.train`.
        progress: Show progress.

    Returns:
        The table, the full fusion first.

    Raises:
        MissingExtraError: Matplotlib is not installed (extra ``plots``); raised before anything is trained.
        UsageError: No store, fewer than one seed, ``model`` is not a preset, or the pairs have one side only.
        RunError: The folder cannot be written, or holds runs with other settings.
        PairsError: As in `frevl.train` and `frevl.evaluate`, which may also raise the other errors.
    """
    pairs, test, dev = in_memory(pairs), in_memory(test), in_memory(dev)
    given = dict(locals())
    _check(model, seeds)
    full_options = _fusion_options(model, options)
    stores = _opened(store)
    common, notes = _common_pairs(read_file(test, columns), stores)
    if len(common.sides) == 1:
        raise UsageError(
            f"An ablation removes parts of a fusion of images and texts, but the pairs are {common.sides[0]}s "
            "only; compare models of one side with frevl diagnose"
        )
    folder = Path(out)
    grouping: dict[str, Any] = {"group_by": group_by, "find_groups": find_groups}
    shared = {
        "task": task, "dev": dev, "columns": columns, "time_limit": time_limit, "min_answer_count": min_answer_count,
        "device": device, **grouping,
    }  # fmt: skip
    shared = {name: value for name, value in shared.items() if value is not None}
    encoders = {"encoder": encoder, "image_encoder": image_encoder, "text_encoder": text_encoder}
    towers = choose_towers(stores[0], [common], notes, encoders).values()
    whole = [name for name in stores[0].encoders if all(any(name in one.encoders for one in side) for side in towers)]
    named: list[str] = as_list(encoder or whole, "encoder")
    names = [name for name in named if name in whole]
    variants = variants_of(stores, names, depth_of(model, full_options))
    rows: list[AblationRow] = []
    for number, variant in enumerate(variants, start=1):
        print_progress(f"[{number} of {len(variants)}] {variant.name}", enabled=progress)
        of_the_store = {} if variant.store else encoders
        arguments = {**shared, "model": model, **of_the_store, **variant.arguments}
        path = folder / "runs" / variant.folder
        runs = train_seeds(
            stores[variant.store], pairs, run=path, seeds=seeds, seed=seed, progress=progress,
            options=options_of(variant, model, full_options), workers=1, **arguments,
        )  # fmt: skip
        result = evaluate_seeds(open_seeds(path, store=stores[variant.store]), common, **grouping)
        rows.append(row_of(variant, runs, result, rows[0] if rows else None))
    full = rows[0].result
    table = Ablation(
        model=model,
        task=task,
        metric=next(iter(full.metrics)),
        n=full.n,
        images=len(set(full.clusters)),
        seeds=rows[0].runs.seeds,
        rows=rows,
        notes=notes + notes_of(rows),
        provenance={**full.provenance, "stores": [one.fingerprint for one in stores]},
    )
    _write(table, folder)
    write_config(folder, {**given, "store": stores}, full_options, command="ablate", output="out")
    return table


def _write(table: Ablation, folder: Path) -> None:
    """Write the table as JSON, Markdown and plot."""
    try:
        write_json(folder / "ablation.json", table.record())
        (folder / "ablation.md").write_text(ablation_markdown(table), encoding="utf-8")
        draw_ablation(table, folder / "ablation.svg")
    except OSError as error:
        raise RunError(f"{folder}: the ablation cannot be written ({error.strerror or error})") from error


def _check(model: str, seeds: int) -> None:
    """Fail now rather than after hours of training."""
    if model not in PRESETS:
        raise UsageError(f"An ablation needs a fusion, which '{model}' is not. {nearest(model, PRESETS)}")
    if seeds < 1:
        raise UsageError(f"--seeds: expected at least 1 seed, found {seeds}")
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots") from error


def _opened(store: Store | str | Path | Sequence[Store | str | Path]) -> list[Store]:
    several = [store] if isinstance(store, Store | str | Path) else list(store)
    if not several:
        raise UsageError("An ablation needs a store; give one with --store")
    return [one if isinstance(one, Store) else Store.open(one) for one in several]


def _fusion_options(model: str, given: FusionOptions | Mapping[str, Any] | None) -> FusionOptions:
    options = make_options(model, given)
    if not isinstance(options, FusionOptions):
        raise TypeError(f"the fusion '{model}' has {type(options).__name__}")
    return options


def _common_pairs(common: Pairs, stores: list[Store]) -> tuple[Pairs, list[str]]:
    """Keep the test pairs available in every store, so that all variants are evaluated on the same pairs."""
    left_out: list[Reject] = [*common.rejected]
    for store in stores:
        common, rejected = usable_pairs(common, store)
        left_out += rejected
    sentence = rejects_sentence(left_out)
    return common, [sentence] if sentence else []
