"""What each part of the fusion is worth: the full network against itself with one part taken away or changed."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from frevl.data.pairs import Pairs, in_memory, read_pairs
from frevl.errors import MissingExtraError, RunError, UsageError, nearest
from frevl.evaluation.intervals import paired_difference
from frevl.evaluation.seeds import SeedsResult, evaluate_seeds, open_seeds
from frevl.jsonfile import write_json
from frevl.models.fusion import PRESETS
from frevl.progress import print_progress
from frevl.rejects import Reject, rejects_sentence
from frevl.store.reader import Store
from frevl.store.usable_pairs import usable_pairs
from frevl.training.ablation.report import ablation_markdown, draw_ablation
from frevl.training.ablation.rows import _OF_ONE_ROW, BASELINES, DEPTHS, FULL, VARIANTS, Ablation, AblationRow, Variant
from frevl.training.options import FusionOptions, ModelOptions, PairwiseOptions, make_options, options_for
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
    encoder: Sequence[str] | None = None,
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

    Without cross-attention, product, difference, both (concatenation), each further loss term, mixup and label
    smoothing; with other numbers of layers; on every encoder alone, if the store holds several; on further stores.
    The intervals are bootstraps over test images of hits averaged over seeds; differences are paired by image.

    A second call with the same arguments uses the finished trainings below ``out/runs`` and takes up the
    interrupted one; more seeds may be asked for later. Every training there is an ordinary run.

    Args:
        store: The store, or several: the full fusion is trained on each, everything else on the first.
        pairs: Training pairs, or a pairs file.
        test: Test pairs that training never sees.
        task: ``matching`` or ``classification``.
        out: Folder for ``ablation.json``, ``ablation.md``, ``ablation.svg`` and ``runs``.
        dev: As in `frevl.train`.
        encoder: Encoders of the first store; None takes all in it.
        model: Preset of the fusion: ``tiny``, ``small`` or ``base``.
        options: Of the full fusion, as in `frevl.train`; the baselines take over how it is trained.
        seeds: Trainings a variant.
        seed: The first seed.
        time_limit: Most seconds of every single training.
        min_answer_count: Rarer answers are not classes.
        device: Where to train.
        progress: Show progress lines.

    Returns:
        The table, the full fusion first.

    Raises:
        MissingExtraError: Matplotlib is not installed (extra ``plots``); raised before anything is trained.
        UsageError: No store, fewer than one seed, or ``model`` is not a preset.
        RunError: The folder cannot be written, or holds runs with other settings.
        PairsError: As in `frevl.train` and `frevl.evaluate`; so are the other errors.
    """
    pairs, test, dev = in_memory(pairs), in_memory(test), in_memory(dev)
    _check(model, seeds)
    stores = _opened(store)
    common, notes = _common_pairs(test, stores)
    folder = Path(out)
    arguments: dict[str, Any] = {
        "task": task, "dev": dev, "time_limit": time_limit, "min_answer_count": min_answer_count, "device": device,
    }  # fmt: skip
    typed = {name: value for name, value in arguments.items() if value is not None}
    full_options = make_options(model, options)
    layers = full_options.record()["layers"]
    depth = PRESETS[model]["layers"] if layers is None else layers
    variants = _variants(stores, encoder, depth)
    rows: list[AblationRow] = []
    for number, variant in enumerate(variants, start=1):
        print_progress(f"[{number} of {len(variants)}] {variant.name}", enabled=progress)
        # A variant that changes nothing (the depth that the full fusion has) is the full fusion, not a new training.
        path = (
            folder
            / "runs"
            / _slug(FULL.name if variant == replace(FULL, name=variant.name, group=variant.group) else variant.name)
        )
        own = {"model": model, **({} if variant.store else {"encoder": encoder}), **variant.arguments}
        runs = train_seeds(
            stores[variant.store], pairs, run=path, seeds=seeds, seed=seed, progress=progress,
            **{**typed, **own}, options=_options_of(variant, own["model"], full_options, depth),
        )  # fmt: skip
        result = evaluate_seeds(open_seeds(path, store=stores[variant.store]), common)
        difference = _difference(result, rows[0].result, rows[0].runs.path) if rows else None
        rows.append(AblationRow(variant, runs, result, difference))
    full = rows[0].result
    table = Ablation(
        model=model,
        task=task,
        metric=next(iter(full.metrics)),
        n=full.n,
        images=len(set(full.clusters)),
        seeds=rows[0].runs.seeds,
        rows=rows,
        notes=notes + _notes(rows),
        provenance={**full.provenance, "stores": [one.fingerprint for one in stores]},
    )
    try:
        write_json(folder / "ablation.json", table.record())
        (folder / "ablation.md").write_text(ablation_markdown(table), encoding="utf-8")
        draw_ablation(table, folder / "ablation.svg")
    except OSError as error:
        raise RunError(f"{folder}: the ablation cannot be written ({error.strerror or error})") from error
    return table


def _check(model: str, seeds: int) -> None:
    """Refuse now what would fail after hours of training."""
    if model not in PRESETS:
        raise UsageError(f"An ablation takes a fusion apart, and '{model}' is none. {nearest(model, PRESETS)}")
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


def _options_of(variant: Variant, model: str, full: ModelOptions, depth: int) -> ModelOptions:
    """Return the options of a variant; a baseline takes over how the full fusion is trained, where it can."""
    given = {**full.changes(), "layers": depth, **variant.changes}
    if model in BASELINES:
        shared = PairwiseOptions.__dataclass_fields__.keys() & options_for(model).__dataclass_fields__.keys()
        given = {name: value for name, value in given.items() if name in shared}
    return make_options(model, given)


def _variants(stores: list[Store], encoder: Sequence[str] | None, depth: int) -> list[Variant]:
    """Return all variants, the full fusion first."""
    parts, training = ([one for one in VARIANTS if one.group == group] for group in ("parts", "training"))
    depths = [
        Variant(f"{n} layer{'s' if n > 1 else ''}", "layers", {} if n == depth else {"layers": n}) for n in DEPTHS
    ]
    names = list(encoder) if encoder else stores[0].encoders
    alone = (
        [Variant(f"{name} only", "encoders", arguments={"encoder": [name]}) for name in names] if len(names) > 1 else []
    )
    further = [
        Variant(f"store {number + 1} ({Path(one.path).name}: {' + '.join(one.encoders)})", "encoders", store=number)
        for number, one in enumerate(stores)
        if number > 0
    ]
    baselines = [Variant(name, "baselines", arguments={"model": name}) for name in BASELINES]
    return [FULL, *parts, *depths, *training, *alone, *further, *baselines]


def _common_pairs(test: str | Path | Pairs, stores: list[Store]) -> tuple[Pairs, list[str]]:
    """Keep the test pairs that every store can judge, so that all variants answer the same questions."""
    common = test if isinstance(test, Pairs) else read_pairs(test)
    left_out: list[Reject] = [*common.rejected]
    for store in stores:
        common, rejected = usable_pairs(common, store)
        left_out += rejected
    sentence = rejects_sentence(left_out)
    return common, [sentence] if sentence else []


def _slug(name: str) -> str:
    """Return a variant's name as the name of a folder."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def _difference(result: SeedsResult, full: SeedsResult, versus: Path) -> dict[str, Any]:
    gap = paired_difference(result.hits, full.hits, full.clusters)
    metric = next(iter(full.metrics))
    spreads = [one.seeds["deviation"][metric] for one in (result, full)]
    error = None if None in spreads else math.hypot(*spreads) / math.sqrt(full.seeds["n"])
    return {
        "versus": str(versus),
        "metric": metric,
        "difference": 100 * gap.value,
        "ci95": gap.percent(),
        "standard_error_over_seeds": error,
    }


def _notes(rows: list[AblationRow]) -> list[str]:
    """Say what the runs said, each sentence once, and which changes changed nothing."""
    notes = list(dict.fromkeys(note for row in rows for note in row.result.notes if not note.startswith(_OF_ONE_ROW)))
    chance = [row.variant.name for row in rows if row.result.chance is not None and row.result.chance.is_chance]
    if chance:
        notes.append(f"At chance, not measurably better than always giving the majority answer: {', '.join(chance)}.")
    full = rows[0]
    same = [
        row.variant.name
        for row in rows[1:]
        if row.runs.path != full.runs.path and row.result.seeds["values"] == full.result.seeds["values"]
    ]
    if same:
        notes.append(f"Exactly as the full fusion, with every seed and in every metric: {', '.join(same)}.")
    return notes
