"""Compare encoders on the user's own task: accuracy, and the cost of embedding and storage."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from frevl.diagnosis.embeddings.probe_pictures import SKILLS, draw_probe
from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.gaps import HOW_COMPARED, Gap, compare
from frevl.diagnosis.model_comparison import ComparedModel, Predictions, fit, predict_all, seen_by
from frevl.diagnosis.model_specs import specs_for
from frevl.diagnosis.splits import Splits
from frevl.encoders.interface import Encoder
from frevl.encoders.registry import load_encoder
from frevl.errors import FrevlError, PairsError, StoreError, UsageError
from frevl.evaluation.intervals import hit_interval
from frevl.store.reader import Store
from frevl.store.towers import Modality
from frevl.terminal import print_progress

__all__ = [
    "EncoderCost",
    "encoder_advice",
    "encoder_claim",
    "encoder_cost",
    "encoder_findings",
    "together_advice",
]

_MODELS = ("linear", "mlp", "tiny")  # from `model_specs.MODEL_SPECS`, simplest first; all support both tasks
_ITEMS = 24  # items embedded to measure seconds per item
_READ = 200  # items read to measure bytes per item


@dataclass(frozen=True)
class EncoderCost:
    """The cost of an encoder; values are None if it cannot be loaded here, or lacks the tower.

    Attributes:
        image_bytes: Stored bytes of one image embedding, without table overhead.
        text_bytes: The same for a text.
        image_seconds: Wall time to embed one drawn 224 x 224 image, without decoding.
        text_seconds: The same for one of the store's texts.
    """

    image_bytes: float | None
    text_bytes: float | None
    image_seconds: float | None
    text_seconds: float | None


@dataclass(frozen=True)
class _ComparedEncoder:
    """One encoder, or all in the store together, with its models."""

    label: str
    predictions: dict[str, Predictions]
    dev: dict[str, float]
    cost: EncoderCost

    @property
    def best(self) -> str:
        """Return the best model on development pairs; the simplest in case of ties."""
        return max(self.dev, key=lambda model: self.dev[model])

    @property
    def hits(self) -> np.ndarray:
        """Return ``(n,)`` hits in [0, 1] of its best model on the test pairs."""
        return self.predictions[self.best].hits


def encoder_findings(
    splits: Splits,
    stores: Sequence[Store] = (),
    *,
    folder: Path,
    time_limit: float,
    models: Sequence[str] = _MODELS,
    together: ComparedModel | None = None,
    progress: bool = False,
) -> tuple[list[Finding], str]:
    """Train the same models on every encoder's embeddings, and compare accuracy and cost.

    Args:
        splits: The pairs, and the first store.
        stores: Further stores of the same items, whose encoders are also compared.
        folder: Folder for the runs.
        time_limit: Approximate total training seconds.
        models: Names from `frevl.diagnosis.model_specs.specs_for`; each encoder is represented by its best on
            development pairs.
        together: The recommended model on all encoders of `splits`, as a reference for single encoders.
        progress: Show progress.

    Returns:
        One finding with the table; without a second encoder it holds the costs and explains how to compare. A store
        that lacks items of the pairs is left out and named. Also the text for the verdict on which single encoder is
        measurably better than `together`; empty if none is.

    Raises:
        UsageError: An unknown model.
    """
    specs = {spec.name: spec for spec in specs_for(splits.train.sides)}
    for name in models:
        if name not in specs:
            raise UsageError(f"Encoders are compared by models of a diagnosis; '{name}' is not one of them.")
    used = {name for of in splits.train.sides for name in splits.encoders_of(of) or splits.store.encoders}
    own_encoders = [name for name in splits.encoder or splits.store.encoders if name in used]
    named = [(splits.store, encoder) for encoder in own_encoders]
    named += [(store, encoder) for store in stores for encoder in store.encoders]
    several = len(named) > 1
    compared: list[_ComparedEncoder] = []
    left_out: list[str] = []
    for number, (store, encoder) in enumerate(named):
        twice = [other for _, other in named].count(encoder) > 1
        label = f"{encoder} ({store.path.name})" if twice else encoder
        own = splits.with_encoder(encoder, store)
        if not all(store.select_towers(modality, [encoder]) for modality in splits.train.sides):
            continue
        predictions: dict[str, Predictions] = {}
        dev: dict[str, float] = {}
        try:
            for model in models if several else ():
                spec = specs[model]
                seconds = time_limit * spec.share / sum(specs[name].share for name in models) / len(named)
                scorer = fit(own, spec, folder=folder / str(number) / model, time_limit=seconds)
                predictions[model] = predict_all(scorer, seen_by(spec, own.test, own))
                dev[model] = float(predict_all(scorer, seen_by(spec, own.dev, own)).hits.mean())
                print_progress(f"  {label}, {model}: {100 * predictions[model].hits.mean():.2f} %", enabled=progress)
            cost = encoder_cost(store, encoder, splits)
        except (StoreError, PairsError) as error:
            # The page may be shared: it names the store, but not its folder on this machine.
            left_out.append(f"{label} ({str(error).replace(str(store.path), store.path.name)})")
            continue
        compared.append(_ComparedEncoder(label, predictions, dev, cost))
    if not compared:
        return [], ""
    if len(compared) == 1:
        return [_alone(compared[0], left_out)], ""
    finding = _compared(compared, splits, left_out)
    best = _best(compared, splits.test.clusters)
    if together is None or [best.label] == own_encoders:
        return [finding], ""
    gap = compare(together.test.hits, best.hits, splits.test.clusters)
    name = f"{together.name} on {'all encoders together' if len(own_encoders) > 1 else own_encoders[0]}"
    single = f"{best.best} on {best.label} alone"
    finding = replace(finding, advice=f"{finding.advice} {together_advice(name, single, gap)}")
    return [finding], f"better still is {single}, by {gap.size()}" if gap.down else ""


# ---- cost


def encoder_cost(store: Store, encoder: str, splits: Splits) -> EncoderCost:
    """Measure an encoder's cost: bytes from the store, seconds with the encoder itself."""
    images, texts = (
        list(dict.fromkeys(items)) if side in splits.test.sides else []
        for side, items in (("image", splits.test.images), ("text", splits.test.texts))
    )
    stored = (
        _stored_bytes(store, "image", images[:_READ], encoder),
        _stored_bytes(store, "text", texts[:_READ], encoder),
    )
    kind = next((tower.identity["tokens"] for tower in store.select_towers(splits.unit, [encoder])), "pooled")
    try:
        loaded = load_encoder(encoder, tokens=kind)
    except FrevlError:  # imported embeddings, or an encoder that is not installed here
        return EncoderCost(*stored, None, None)
    return EncoderCost(*stored, *_seconds(loaded, texts))


def _stored_bytes(store: Store, modality: Modality, ids: list[str], encoder: str) -> float | None:
    towers = store.select_towers(modality, [encoder])
    if not towers or not ids:
        return None
    values, mask = store.read(modality, ids, towers)
    return float(mask.sum() / len(ids) * values.shape[2] * values.itemsize)


def _seconds(encoder: Encoder, texts: list[str]) -> tuple[float | None, float | None]:
    """Return the seconds per image and per text."""
    skills = list(SKILLS)
    pictures = [draw_probe(skills[number % len(skills)], number).picture for number in range(_ITEMS)]
    some = texts[:_ITEMS]
    return (
        None if encoder.image is None else _median(lambda: encoder.embed_images(pictures)) / len(pictures),
        None if encoder.text is None or not some else _median(lambda: encoder.embed_texts(some)) / len(some),
    )


def _median(call: Callable[[], object]) -> float:
    """Return the median seconds of three calls, after a warm-up."""
    took = []
    for _ in range(4):
        started = time.perf_counter()
        call()
        took.append(time.perf_counter() - started)
    return statistics.median(took[1:])


# ---- findings


def _cost_row(cost: EncoderCost) -> dict[str, Any]:
    def milliseconds(seconds: float | None) -> float | None:
        return None if seconds is None else 1000 * seconds

    return {
        "bytes an image": cost.image_bytes,
        "bytes a text": cost.text_bytes,
        "ms an image": milliseconds(cost.image_seconds),
        "ms a text": milliseconds(cost.text_seconds),
    }


_COST_HOW = (
    f"Bytes of a stored embedding; milliseconds per item measured here on {_ITEMS} drawn 224 x 224 images and "
    "texts of the pairs, median of three batches, without decoding files; empty if the encoder cannot be loaded."
)


def _alone(only: _ComparedEncoder, left_out: list[str]) -> Finding:
    return Finding(
        name="encoders",
        section="encoders",
        claim=f"There is only one encoder, {only.label}, so there is nothing to compare.",
        value=None,
        ci95=None,
        how=" ".join([_COST_HOW, *_named(left_out)]),
        advice=(
            "Compare encoders before anything else, because the encoder often matters more than the fusion: run "
            "frevl extract with a second --encoder into the same store, then diagnose again."
        ),
        table=[{"encoder": only.label, **_cost_row(only.cost)}],
    )


def _compared(encoders: list[_ComparedEncoder], splits: Splits, left_out: list[str]) -> Finding:
    clusters = splits.test.clusters
    best = _best(encoders, clusters)
    gaps = {one.label: compare(best.hits, one.hits, clusters) for one in encoders}
    rows = []
    for one in encoders:
        gap = gaps[one.label]
        row: dict[str, Any] = {"encoder": one.label}
        for model, predictions in one.predictions.items():
            row[f"{model} %"] = 100 * float(predictions.hits.mean())
        scored = hit_interval(one.hits, clusters)
        row |= {
            "best model": one.best,
            "accuracy %": 100 * scored.value,
            "low": _known(100 * scored.low),
            "high": _known(100 * scored.high),
            "behind, points": gap.value,
            "behind, low": None if gap.ci95 is None else gap.ci95[0],
            "behind, high": None if gap.ci95 is None else gap.ci95[1],
            **_cost_row(one.cost),
        }
        rows.append(row)
    first = encoders[0]
    others = [one for one in encoders if one is not best]
    rival = first if first is not best else max(others, key=lambda one: one.dev[one.best])
    gap = gaps[rival.label]
    dear, cheap = best.cost.image_seconds, rival.cost.image_seconds
    times = dear / cheap if dear and cheap else None
    as_good = [one for one in encoders if not _beating(one, encoders, clusters)]
    tied = [one.label for one in as_good if one is not best]
    return Finding(
        name="encoders",
        section="encoders",
        claim=encoder_claim(f"{best.label} with its {best.best} model", f"{rival.label} with {rival.best}", gap, times),
        value=gap.value,
        ci95=gap.ci95,
        how=(
            "The same models on the embeddings of each encoder, each represented by its best on development pairs; the "
            "best encoder by the same, unless another measurably beats it on the test pairs. Paired on "
            f"{len(splits.test):,} test pairs, difference in points, {HOW_COMPARED} "
            + " ".join([_COST_HOW, *_named(left_out)])
        ),
        advice=encoder_advice(best.label, tied, _quickest(as_good)),
        table=rows,
        plot=chart(
            "bars",
            "encoder",
            "right answers, %",
            *[
                _bars(model, [one.label for one in encoders], [one.predictions[model] for one in encoders], clusters)
                for model in best.predictions
            ],
        ),
    )


def _best(encoders: Sequence[_ComparedEncoder], clusters: Sequence[str]) -> _ComparedEncoder:
    """Return the best encoder by development pairs, or one that measurably beats it on the test pairs."""
    chosen = max(encoders, key=lambda one: one.dev[one.best])
    while better := _beating(chosen, encoders, clusters):
        chosen = max(better, key=lambda one: one.hits.mean())
    return chosen


def _beating(
    encoder: _ComparedEncoder, encoders: Sequence[_ComparedEncoder], clusters: Sequence[str]
) -> list[_ComparedEncoder]:
    """Return the encoders that measurably beat this one on the test pairs."""
    return [
        one
        for one in encoders
        if one.hits.mean() > encoder.hits.mean() and compare(one.hits, encoder.hits, clusters).up
    ]


def _quickest(encoders: Sequence[_ComparedEncoder]) -> str | None:
    """Return the encoder that embeds an image fastest; None if a time is unknown."""
    if any(one.cost.image_seconds is None for one in encoders):
        return None
    return min(encoders, key=lambda one: one.cost.image_seconds or 0.0).label


def encoder_claim(best: str, other: str, gap: Gap, times: float | None) -> str:
    """Return the claim on a comparison of two encoders.

    Args:
        best: The better encoder and its model, as the beginning of the sentence.
        other: The other encoder and its model.
        gap: Accuracy of the first minus that of the second.
        times: Time of the first per image divided by that of the second; None if unknown.
    """
    word = {1: "beats", 0: "is not measurably better than", -1: "is worse than"}[gap.sign]
    price = "" if times is None else f", at {times:.1f} times its time per image"
    return f"{best} {word} {other}: {gap}{price}."


def encoder_advice(best: str, tied: Sequence[str], quickest: str | None) -> str:
    """Return advice on which single encoder to use.

    Args:
        best: The best encoder, which no other measurably beats.
        tied: Other encoders that none measurably beats.
        quickest: The fastest of all these; None if unknown.
    """
    if not tied:
        return f"As a single encoder, use {best}, unless its cost per item rules it out."
    quick = "the cheapest one" if quickest is None else f"{quickest}, the fastest of them"
    return f"Not measurably worse than {best}: {', '.join(tied)}. As a single encoder, use {quick}."


def together_advice(together: str, single: str, gap: Gap) -> str:
    """Return advice on whether all encoders of a store are worth their cost.

    Args:
        together: The recommended model, and its inputs.
        single: The best model on a single encoder.
        gap: Accuracy of the first minus that of the second.
    """
    against = f"{together} against {single}: {gap}"
    return {
        1: f"The recommended model stays better ({against}).",
        0: f"The recommended model is not measurably better ({against}), so one encoder may be enough.",
        -1: f"The single encoder is better than the recommended model ({against}): use it.",
    }[gap.sign]


def _named(left_out: list[str]) -> list[str]:
    return [f"Left out: {', '.join(left_out)}."] if left_out else []


def _bars(model: str, labels: list[str], predictions: list[Predictions], clusters: Sequence[str]) -> dict[str, Any]:
    scored = [hit_interval(one.hits, clusters) for one in predictions]
    return series(
        model,
        labels,
        [100 * one.value for one in scored],
        low=[_known(100 * one.low) for one in scored],
        high=[_known(100 * one.high) for one in scored],
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
