"""Encoders side by side on the user's own task: what each reaches, and what each costs to embed and to keep."""

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
from frevl.diagnosis.model_comparison import ENTRANTS, Entrant, Marks, fit, mark
from frevl.diagnosis.splits import Splits
from frevl.diagnosis.verdict import HOW_COMPARED, Gap, compare, span
from frevl.encoders.interface import Encoder
from frevl.encoders.registry import load_encoder
from frevl.errors import FrevlError, PairsError, StoreError, UsageError
from frevl.evaluation.intervals import bootstrap_interval
from frevl.progress import say
from frevl.store.reader import Store
from frevl.store.towers import Modality

__all__ = ["EncoderCost", "encoder_cost", "encoder_findings"]

_MODELS = ("linear", "mlp", "tiny")  # of `ENTRANTS`, simplest first; they do both tasks
_ITEMS = 24  # embedded to measure seconds an item
_READ = 200  # items read to measure bytes an item


@dataclass(frozen=True)
class EncoderCost:
    """What an encoder costs; None where it cannot be loaded here, or has no such tower.

    Attributes:
        image_bytes: Stored bytes of one image embedding, without the table around it.
        text_bytes: The same for a text.
        image_seconds: Wall time to embed one drawn 224 x 224 picture, decoding left out.
        text_seconds: The same for one of the store's texts.
    """

    image_bytes: float | None
    text_bytes: float | None
    image_seconds: float | None
    text_seconds: float | None


@dataclass(frozen=True)
class _Candidate:
    label: str
    marks: dict[str, Marks]
    dev: dict[str, float]
    cost: EncoderCost

    @property
    def best(self) -> str:
        """The model that is best on development pairs; of equals the simplest."""
        return max(self.dev, key=lambda model: self.dev[model])


def encoder_findings(
    splits: Splits,
    stores: Sequence[Store] = (),
    *,
    folder: Path,
    time_limit: float,
    models: Sequence[str] = _MODELS,
    progress: bool = False,
) -> list[Finding]:
    """Train the same models on the embeddings of every encoder, and put accuracy and cost side by side.

    Args:
        splits: The pairs, and the first store.
        stores: Further stores of the same items; their encoders are compared too.
        folder: For the runs.
        time_limit: Seconds that all trainings together may take, roughly.
        models: Names of `contest.ENTRANTS`; each encoder is represented by its best on development pairs.
        progress: Show progress lines.

    Returns:
        One finding with the table; without a second encoder it holds the costs and says how to compare. A store that
        lacks items of the pairs is left out and named.

    Raises:
        UsageError: An unknown model.
    """
    entrants = {entrant.name: entrant for entrant in ENTRANTS}
    for name in models:
        if name not in entrants:
            raise UsageError(f"Encoders are compared by models of a diagnosis; there is no '{name}' among them.")
    own_encoders = splits.encoder or splits.store.encoders
    named = [(splits.store, encoder) for encoder in own_encoders]
    named += [(store, encoder) for store in stores for encoder in store.encoders]
    several = len(named) > 1
    candidates: list[_Candidate] = []
    left_out: list[str] = []
    for number, (store, encoder) in enumerate(named):
        twice = [other for _, other in named].count(encoder) > 1
        label = f"{encoder} ({store.path.name})" if twice else encoder
        own = replace(splits, store=store, encoder=[encoder])
        if not all(store.select_towers(modality, [encoder]) for modality in _MODALITIES):
            continue
        marks: dict[str, Marks] = {}
        dev: dict[str, float] = {}
        try:
            for model in models if several else ():
                entrant: Entrant = entrants[model]
                seconds = time_limit * entrant.share / sum(entrants[name].share for name in models) / len(named)
                scorer = fit(own, entrant, folder=folder / str(number) / model, time_limit=seconds)
                marks[model] = mark(scorer, own.test)
                dev[model] = float(mark(scorer, own.dev).hits.mean())
                say(f"  {label}, {model}: {100 * marks[model].hits.mean():.2f} %", enabled=progress)
            cost = encoder_cost(store, encoder, splits)
        except (StoreError, PairsError) as error:
            left_out.append(f"{label} ({error})")
            continue
        candidates.append(_Candidate(label, marks, dev, cost))
    if not candidates:
        return []
    return [_compared(candidates, splits, left_out) if len(candidates) > 1 else _alone(candidates[0], left_out)]


_MODALITIES: tuple[Modality, Modality] = ("image", "text")


# ---- cost


def encoder_cost(store: Store, encoder: str, splits: Splits) -> EncoderCost:
    """Measure what an encoder costs: bytes from the store, seconds with the encoder itself."""
    images, texts = list(dict.fromkeys(splits.test.images)), list(dict.fromkeys(splits.test.texts))
    stored = (
        _stored_bytes(store, "image", images[:_READ], encoder),
        _stored_bytes(store, "text", texts[:_READ], encoder),
    )
    kind = next((tower.identity["tokens"] for tower in store.select_towers("image", [encoder])), "pooled")
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
    """Return seconds an image and a text."""
    skills = list(SKILLS)
    pictures = [draw_probe(skills[number % len(skills)], number).picture for number in range(_ITEMS)]
    asked = texts[:_ITEMS]
    return (
        None if encoder.image is None else _median(lambda: encoder.embed_images(pictures)) / len(pictures),
        None if encoder.text is None else _median(lambda: encoder.embed_texts(asked)) / len(asked),
    )


def _median(call: Callable[[], object]) -> float:
    """Return the median seconds of three calls, after one to warm up."""
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
    f"Bytes of an embedding as stored; milliseconds an item measured here on {_ITEMS} drawn 224 x 224 pictures and "
    "texts of the pairs, median of three batches, decoding of files not counted; empty where the encoder cannot be "
    "loaded."
)


def _alone(only: _Candidate, left_out: list[str]) -> Finding:
    return Finding(
        name="encoders",
        section="encoders",
        claim=f"There is only one encoder to judge, {only.label}: nothing to compare it with.",
        value=None,
        ci95=None,
        how=" ".join([_COST_HOW, *_told(left_out)]),
        advice=(
            "Compare encoders before anything else, it often decides more than the fusion: frevl extract with a second "
            "--encoder into the same store, then diagnose again."
        ),
        table=[{"encoder": only.label, **_cost_row(only.cost)}],
    )


def _compared(candidates: list[_Candidate], splits: Splits, left_out: list[str]) -> Finding:
    best = max(candidates, key=lambda one: one.dev[one.best])
    first = candidates[0]
    clusters = splits.test.clusters
    rows, gaps = [], {}
    for one in candidates:
        gap = gaps[one.label] = compare(best.marks[best.best].hits, one.marks[one.best].hits, clusters)
        row: dict[str, Any] = {"encoder": one.label}
        for model, marks in one.marks.items():
            row[f"{model} %"] = 100 * float(marks.hits.mean())
        scored = bootstrap_interval(one.marks[one.best].hits, clusters)
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
    others = [one for one in candidates if one is not best]
    rival = first if first is not best else max(others, key=lambda one: one.dev[one.best])
    gap = gaps[rival.label]
    tied = [one.label for one in others if not gaps[one.label].up]
    return Finding(
        name="encoders",
        section="encoders",
        claim=_claim(best, rival, gap),
        value=gap.value,
        ci95=gap.ci95,
        how=(
            f"The same models on the embeddings of each encoder, each represented by its best on development pairs; "
            f"paired on {len(splits.test):,} test pairs, difference in points, {HOW_COMPARED} "
            + " ".join([_COST_HOW, *_told(left_out)])
        ),
        advice=(
            f"Not measurably worse than {best.label}: {', '.join(tied)}. Take the one that costs least."
            if tied
            else f"Take {best.label}, unless its cost an item rules it out."
        ),
        table=rows,
        plot=chart(
            "bars",
            "encoder",
            "right answers, %",
            *[
                _bars(model, [one.label for one in candidates], [one.marks[model] for one in candidates], clusters)
                for model in best.marks
            ],
        ),
    )


def _told(left_out: list[str]) -> list[str]:
    return [f"Left out: {', '.join(left_out)}."] if left_out else []


def _bars(model: str, labels: list[str], marks: list[Marks], clusters: list[str]) -> dict[str, Any]:
    scored = [bootstrap_interval(one.hits, clusters) for one in marks]
    return series(
        model,
        labels,
        [100 * one.value for one in scored],
        low=[_known(100 * one.low) for one in scored],
        high=[_known(100 * one.high) for one in scored],
    )


def _claim(best: _Candidate, rival: _Candidate, gap: Gap) -> str:
    word = "beats" if gap.up else "is worse than" if gap.down else "is not measurably better than"
    told = f"{gap.value:+.1f} points, {span(gap.ci95)}"
    price = ""
    if best.cost.image_seconds and rival.cost.image_seconds:
        price = f", at {best.cost.image_seconds / rival.cost.image_seconds:.1f} times its time an image"
    return f"With its {best.best} model, {best.label} {word} {rival.label}: {told}{price}."


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
