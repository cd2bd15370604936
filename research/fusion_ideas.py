"""Which settings of the fusion hold on a set: folds over images, several seeds, paired intervals, baselines beside.

Run: ``python -m research.fusion_ideas --store STORE --pairs PAIRS.jsonl --images packaged --texts packaged-deep
[--folds 5] [--seeds 5] [--only NAME ...] [--save FOLDER] [--captions CAPTIONS.jsonl --captions-store STORE]``. Prints a
row of a Markdown table per idea.
Every fit is one of `frevl.training.fitting.fit_model.fit_model`, with a tenth of the training images set aside for
calibration as in ``--model auto``; networks run their whole schedule and keep its end. Set ``OMP_NUM_THREADS=1`` to
read CPU time. ``--save`` keeps the probabilities of every idea as ``(seeds, pairs, classes)`` for averages
across ideas. Ideas that start from captions need image-caption pairs; those whose image is one of the task's (by
content) are left out.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frevl.evaluation.intervals import Interval, bootstrap_interval, paired_difference
from frevl.models.fusion import Fusion
from frevl.models.inputs import low_precision
from frevl.runs.batches import logits_of
from frevl.runs.calibration import calibrated, fit_calibration
from frevl.runs.targets import Answers
from frevl.store.reader import Store
from frevl.training.examples import Examples, Prepared, join
from frevl.training.fitting.fit_model import Fitted, fit_model
from frevl.training.fitting.initialisation import Pretrained
from frevl.training.options import ModelOptions, Session, make_options
from frevl.training.prepare import prepare
from frevl.training.selection.candidates import CANDIDATES
from frevl.training.selection.encoder_sets import narrow
from frevl.training.selection.held_out import whole_schedule
from research.captions_first import learn_captions
from research.kernel_teacher import teach

BASE = "tiny standardised"
# What the candidates are changed by: (name, candidate, options). ``start``: begins with captions; ``kernel``: share of
# the targets that comes from the kernel. The base comes first, the baselines last.
IDEAS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("base", BASE, {}),
    ("mixup 0.3 of the batches, alpha 0.2", BASE, {"mixup_share": 0.3}),
    ("mixup 0.5, alpha 0.4", BASE, {"mixup_share": 0.5, "mixup_alpha": 0.4}),
    ("mixup 1, alpha 1", BASE, {"mixup_share": 1.0, "mixup_alpha": 1.0}),
    ("contrastive 0.1", BASE, {"contrastive_weight": 0.1}),
    ("contrastive 0.3", BASE, {"contrastive_weight": 0.3}),
    ("feature norm 0.01", BASE, {"regularisation_weight": 0.01}),
    ("label smoothing 0", BASE, {"label_smoothing": 0.0}),
    ("label smoothing 0.05", BASE, {"label_smoothing": 0.05}),
    ("label smoothing 0.2", BASE, {"label_smoothing": 0.2}),
    ("input dropout 0", BASE, {"input_dropout": 0.0}),
    ("input dropout 0.5", BASE, {"input_dropout": 0.5}),
    ("dropout 0.6", BASE, {"dropout": 0.6}),
    ("weight decay 0.01", BASE, {"weight_decay": 0.01}),
    ("weight decay 0.5", BASE, {"weight_decay": 0.5}),
    ("4 epochs", BASE, {"epochs": 4}),
    ("12 epochs", BASE, {"epochs": 12}),
    ("1 block", BASE, {"layers": 1}),
    ("2 blocks", BASE, {"layers": 2}),
    ("no cross-attention, 2 blocks", BASE, {"layers": 2, "cross_attention": False}),
    ("no product", BASE, {"product": False}),
    ("concatenation only", BASE, {"product": False, "difference": False}),
    ("kernel teacher 0.5", BASE, {"kernel": 0.5}),
    ("from captions", BASE, {"start": True}),
    ("from captions, kernel teacher 0.5", BASE, {"start": True, "kernel": 0.5}),
    ("from captions, learning rate 3e-4", BASE, {"start": True, "learning_rate": 3e-4}),
    ("not standardised", BASE, {"standardise": False}),
    ("plain tiny", "tiny", {}),
    ("mlp", "mlp", {}),
    ("text", "text", {}),
    ("linear", "linear", {}),
    ("kernel", "kernel", {}),
)
ONCE = ("majority", "linear", "kernel")  # no seed decides anything


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    data = _data(asked.store, asked.pairs, asked.images, asked.texts)
    pairs = join(data.train, data.dev)
    splits = folds_by_cluster(pairs.clusters, asked.folds)
    print(f"{len(pairs):,} pairs, {len(torch.unique(pairs.clusters)):,} clusters, {asked.folds} folds\n")
    print("| idea | mean of seeds | deviation | seeds averaged | against the base | CPU s a fit |\n" + "|" + "---|" * 6)
    starts: list[Fusion | None] = [*_starts(asked, data)] if asked.captions else []
    base: Tensor | None = None
    for name, candidate, changes in IDEAS:
        left_out = asked.only and name != "base" and name not in asked.only
        if left_out or (changes.get("start") and not asked.captions):
            continue
        seeds = 1 if candidate in ONCE else asked.seeds
        began = time.process_time()
        own = {key: value for key, value in changes.items() if key != "start"}
        begun = starts if own != changes else [None] * seeds
        said = torch.stack(
            [judge(candidate, own, seed, pairs, splits, len(data.labels), begun[seed]) for seed in range(seeds)]
        )
        seconds = (time.process_time() - began) / (seeds * asked.folds)
        hits = torch.stack([_answers(pairs).hits(one.argmax(dim=1)) for one in said])
        averaged = _answers(pairs).hits(said.mean(dim=0).argmax(dim=1))
        base = hits.mean(dim=0) if base is None else base
        _print_row(name, hits, averaged, base, pairs.clusters, seconds)
        if asked.save:
            asked.save.mkdir(parents=True, exist_ok=True)
            torch.save(said, asked.save / f"{name}.pt")


def judge(
    candidate: str, changes: dict[str, Any], seed: int, pairs: Examples, splits: list[tuple[Tensor, ...]], outputs: int,
    start: Fusion | None,
) -> Tensor:  # fmt: skip
    """Return ``(pairs, outputs)`` calibrated probabilities, every pair by the model that has not seen its image."""
    model = next(one.model for one in CANDIDATES if one.name == candidate)
    options = whole_schedule_of(candidate, {name: value for name, value in changes.items() if name != "kernel"})
    said = torch.zeros(len(pairs), outputs)
    for inside, inner, held in splits:
        training, development = pairs.select(inside), pairs.select(inner)
        if changes.get("kernel"):
            training = teach(training, outputs, changes["kernel"])
        fitted = _fit(model, training, development, outputs, options, seed, start)
        calibration = fit_calibration(*fitted.development(development))
        said[held] = calibrated(logits_of(fitted.network, pairs.select(held).pairs, 1024), calibration, soft=False)
    return said


def folds_by_cluster(clusters: Tensor, folds: int, inner_share: float = 0.1) -> list[tuple[Tensor, ...]]:
    """Return rows to train on, rows of a tenth of the training clusters, and held-out rows, of every fold."""
    random = np.random.default_rng(0)
    names = random.permutation(torch.unique(clusters).numpy())
    splits = []
    for fold in range(folds):
        others = random.permutation(np.delete(names, np.s_[fold::folds]))
        inner, inside = np.split(others, [round(inner_share * len(others))])
        splits.append(tuple(_rows(clusters, chosen) for chosen in (inside, inner, names[fold::folds])))
    return splits


def _rows(clusters: Tensor, chosen: np.ndarray) -> Tensor:
    return torch.from_numpy(np.isin(clusters.numpy(), chosen)).nonzero()[:, 0]


def _fit(
    model: str, training: Examples, development: Examples, outputs: int, options: ModelOptions, seed: int,
    start: Fusion | None,
) -> Fitted:  # fmt: skip
    solved = model in ONCE
    with nullcontext() if solved else low_precision("cpu"):
        # The cache of autocast keeps rounded weights until its block ends, and a whole training is one block here.
        torch.set_autocast_cache_enabled(False)
        return fit_model(
            model,
            training,
            development,
            outputs,
            options,
            Session(seed=seed, time_limit=None, device="cpu", progress=False),
            dev_is_spare=model == "kernel",
            start=None if start is None else Pretrained(start, None, 0),
        )


def _starts(asked: argparse.Namespace, data: Prepared) -> list[Fusion]:
    """Train one fusion a seed on captions of other images."""
    return learn_captions(
        Store.open(asked.captions_store), asked.captions, asked.images, asked.texts, asked.seeds,
        options=whole_schedule_of(BASE, {}), without=data.image_hashes,
    )  # fmt: skip


def whole_schedule_of(candidate: str, changes: dict[str, Any]) -> ModelOptions:
    """Return the options of a candidate that runs its whole schedule."""
    own = next(one for one in CANDIDATES if one.name == candidate)
    return whole_schedule(make_options(own.model, {**own.changes, **changes}), 0)


def _print_row(name: str, hits: Tensor, averaged: Tensor, base: Tensor, clusters: Tensor, seconds: float) -> None:
    groups = clusters.numpy()
    by_seed = 100 * hits.mean(dim=1)
    mean = hits.mean(dim=0)
    whole = _percent(bootstrap_interval(mean.numpy(), groups))
    deviation = f"{by_seed.std().item():.2f}" if len(hits) > 1 else ""
    against = "" if torch.equal(mean, base) else _signed(paired_difference(mean.numpy(), base.numpy(), groups))
    print(f"| {name} | {whole} | {deviation} | {100 * averaged.mean():.2f} | {against} | {seconds:.1f} |", flush=True)


def _percent(found: Interval) -> str:
    return "{:.2f} [{:.1f}, {:.1f}]".format(*(100 * value for value in found))


def _signed(found: Interval) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * value for value in found))


def _data(store: Path, pairs: Path, images: list[str], texts: list[str]) -> Prepared:
    encoders = list(dict.fromkeys([*images, *texts]))
    data = prepare(
        Store.open(store), pairs, None, task="classification", encoder=encoders, seed=0, dev_share=0.1,
        min_answer_count=1,
    )  # fmt: skip
    return narrow(data, images, texts)


def _answers(pairs: Examples) -> Answers:
    if not isinstance(pairs.truth, Answers):
        raise TypeError("the ideas are judged on a classification")
    return pairs.truth


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--images", nargs="+", default=["packaged"], help="encoders whose image embeddings are used")
    parser.add_argument("--texts", nargs="+", default=["packaged"], help="encoders whose text embeddings are used")
    parser.add_argument("--captions", type=Path, help="image-caption pairs to start from")
    parser.add_argument("--captions-store", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="; ".join(name for name, *_ in IDEAS))
    parser.add_argument("--save", type=Path, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
