"""Pairs and a store -> a trained run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frevl.data.pairs import Pairs
from frevl.errors import UsageError, nearest
from frevl.models.fusion import PRESETS, Fusion
from frevl.provenance import provenance
from frevl.runs.calibration import fit_calibration
from frevl.runs.run import Run
from frevl.runs.targets import Answers
from frevl.store.reader import Store
from frevl.training.examples import dev_metric
from frevl.training.fit_model import MODELS, fit_model
from frevl.training.initialisation import Beginning, rows_of_same_classes
from frevl.training.options import Options
from frevl.training.prepare import Prepared, prepare
from frevl.training.retrieval.choose import choose_matching
from frevl.training.retrieval.fit import fit_matching, without_wide
from frevl.training.run_folder import _open_folder, _settings
from frevl.training.selection.choose import choose

__all__ = ["TASKS", "train"]

TASKS = ("matching", "classification")


def train(
    store: Store | str | Path,
    pairs: str | Path | Pairs,
    *,
    run: str | Path,
    task: str,
    model: str = "tiny",
    first_stage: str | None = None,
    start_from: str | Path | None = None,
    dev: str | Path | Pairs | None = None,
    encoder: Sequence[str] | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    final_learning_rate: float = 1e-6,
    weight_decay: float | None = None,
    warm_up: float | None = None,
    gradient_clip: float = 1.0,
    dropout: float | None = None,
    label_smoothing: float | None = None,
    contrastive_weight: float = 0.1,
    temperature: float = 0.07,
    regularisation_weight: float = 0.01,
    mixup_alpha: float = 0.2,
    mixup_share: float = 0.3,
    standardise: bool = False,
    input_dropout: float = 0.0,
    kernel_teacher: float = 0.0,
    negatives: int = 3,
    patience: int = 5,
    keep_last: bool = False,
    dev_share: float = 0.1,
    min_answer_count: int = 1,
    layers: int | None = None,
    cross_attention: bool = True,
    product: bool = True,
    difference: bool = True,
    device: str = "cpu",
    progress: bool = False,
) -> Run:
    """Train a fusion or a baseline on frozen embeddings and save it as a run.

    A call that was interrupted is taken up after its last complete epoch by the same call and ends with the
    identical result.

    Args:
        store: The store, or its path.
        pairs: Training pairs, or a pairs file.
        run: Folder to write; must not hold a finished run.
        task: ``matching`` or ``classification``.
        model: A preset of the fusion (``tiny``, ``small``, ``base``) or a baseline.
        first_stage: In matching, ``dual`` or ``cosine``: it finds candidates and the fusion reads them again, in one
            run whose score is their blend. None: the fusion stands alone, except with ``auto``.
        start_from: In classification, a run whose fusion this one begins with: captions or lessons first, then a task
            with few pairs. The last map is begun with too where the classes are the same. Same encoders, model and
            layers; its images count as seen by the new run. With ``auto`` such a fusion is one more candidate, and
            so is the former run as it is.
        dev: Development pairs: early stopping and calibration. None sets aside images of the training pairs.
        encoder: Encoders whose towers are concatenated; None takes all in the store.
        seed: Of initial weights, order, dropout and splits.
        time_limit: Most seconds of training; the learning-rate schedule shrinks to it.
        epochs: Most passes over the pairs. None, here and below, takes the model's own: for fusions and ``mlp`` the
            defaults of `frevl.training.loop.fit`, for ``dual`` those of
            `frevl.training.retrieval.two_tower.fit_members`.
        batch_size: Pairs a step.
        learning_rate: Of AdamW, after warm-up.
        final_learning_rate: At the end of the cosine.
        weight_decay: Of AdamW.
        warm_up: Share of the training in which the rate rises linearly (ours).
        gradient_clip: Largest norm of the gradient.
        dropout: Inside the network.
        label_smoothing: Of the task loss; not used with soft targets.
        contrastive_weight: Weight of the contrastive term.
        temperature: Of the contrastive term.
        regularisation_weight: Weight of the feature-norm term.
        mixup_alpha: Parameter of the Beta distribution of mixup.
        mixup_share: Share of the batches that are mixed (pooled embeddings only).
        standardise: A fusion learns from embeddings that are standardised a dimension with training statistics; the run
            takes plain embeddings all the same.
        input_dropout: Probability in [0, 1) of dropping a dimension of an embedding while a fusion trains.
        kernel_teacher: Share in [0, 1] of a fusion's targets that is what ``kernel``, fitted on the training pairs,
            says of each pair without its image; the rest is the truth. Classification of at most 20,000 pairs (ours).
        negatives: Wrong texts for every right pair in matching.
        patience: Stop after so many epochs without a better development metric.
        keep_last: Keep the weights of the last epoch, where the learning rate has ended, not those of the epoch with
            the best development metric: with a few hundred development pairs that epoch is chance.
        dev_share: Share of the images set aside if ``dev`` is None.
        min_answer_count: Answers named by fewer training pairs are not classes.
        layers: Blocks of the fusion, if not the preset's.
        cross_attention: Ablation: whether the blocks attend.
        product: Ablation: whether the fused feature holds ``v*t``.
        difference: Ablation: whether the fused feature holds ``|v-t|``.
        device: Where to train, as PyTorch names it.
        progress: Show a progress line.

    Returns:
        The saved run.

    Raises:
        UsageError: An unknown task, model or encoder.
        PairsError: The pairs cannot be used: unknown images, targets missing, one class only.
        StoreError: Embeddings are missing.
        TrainingError: The loss is not finite.
        RunError: The folder holds a finished run, or an interrupted one with other settings.
    """
    arguments = dict(locals())
    settings = _settings(arguments)
    _check_names(task, model)
    if first_stage is not None and task != "matching":
        raise UsageError(f"--first-stage belongs to --task matching, found --task {task}")
    if start_from is not None:
        _check_start(task, model)
    _check_numbers(arguments)
    folder = _open_folder(Path(run), settings)
    opened = store if isinstance(store, Store) else Store.open(store)
    data = prepare(
        opened, pairs, dev, task=task, encoder=encoder, seed=seed, dev_share=dev_share,
        min_answer_count=min_answer_count,
    )  # fmt: skip
    former, start = (None, None) if start_from is None else _former(Path(start_from), data)
    outputs = len(data.labels) if task == "classification" else 1
    options = Options(**{field.name: arguments[field.name] for field in fields(Options)})
    encoders = list(encoder) if encoder else opened.encoders
    selection: dict[str, Any] | None = None
    if task == "matching":
        data = without_wide(data)
        if model == "auto":
            fitted, selection = choose_matching(data, options)
        else:
            fitted, selection = fit_matching(model, data, options, first_stage=first_stage, folder=folder)
    elif model == "auto":
        chosen = choose(data, encoders, outputs, options, folder=folder, start=start)
        fitted, selection, data, encoders = chosen.fitted, chosen.record(), chosen.data, chosen.encoders.encoders
        if chosen.chance is not None and chosen.chance.is_chance:
            data.notes.append(chosen.chance.sentence)
    else:
        fitted, selection = (
            fit_model(
                model,
                data.train,
                data.dev,
                outputs,
                options,
                folder=folder,
                dev_is_spare=data.dev_is_spare,
                start=start,
            ),
            None,
        )
    network = fitted.network
    logits, truth = fitted.development(data.dev)
    if task == "matching":
        logits = logits[:, -1:]  # a reranker's second logit is what the probability comes from
    calibration = fit_calibration(logits, truth)
    judged = calibration["scale"] * logits + calibration["offset"] if task == "matching" else logits
    results = {
        "development": {"n": len(logits), "accuracy": 100 * dev_metric(judged, truth)},
        "train_pairs": len(data.train) if fitted.held_out is None else len(logits),
        "train_seconds": fitted.seconds,
        "soft_targets": isinstance(data.train.truth, Answers) and data.train.truth.soft,
        "notes": data.notes,
        "fit": vars(fitted.report) if fitted.report else None,
        "selection": selection,
    }
    seen = data.image_hashes if former is None else np.union1d(data.image_hashes, former.train_image_hashes)
    finished = Run(
        path=folder,
        model=model,
        task=task,
        network_name=network.key,
        network_settings=network.settings,
        labels=data.labels,
        encoders=encoders,
        towers={
            "image": {tower.name: tower.identity for tower in data.image_towers},
            "text": {tower.name: tower.identity for tower in data.text_towers},
        },
        calibration=calibration,
        settings=settings,
        results=results,
        provenance=provenance(run=str(folder), store_fingerprint=opened.fingerprint, seed=seed),
        train_image_hashes=seen,
        network=network,
    )
    finished.save()
    (folder / "state.safetensors").unlink(missing_ok=True)
    return finished


def _check_start(task: str, model: str) -> None:
    """Refuse ``--start-from`` where nothing would begin with it."""
    if task != "classification":
        raise UsageError(f"--start-from belongs to --task classification, found --task {task}")
    if model not in (*PRESETS, "auto"):
        raise UsageError(f"--start-from belongs to a fusion ({', '.join(PRESETS)}) or auto, found --model {model}")


def _former(path: Path, data: Prepared) -> tuple[Run, Beginning]:
    """Load the run to start from; say how many images of the new pairs it has seen."""
    former = Run.load(path)
    if not isinstance(former.network, Fusion):
        raise UsageError(f"--start-from: expected a run of a single fusion, found '{former.network_name}' in {path}")
    towers = {
        "image": {tower.name: tower.identity for tower in data.image_towers},
        "text": {tower.name: tower.identity for tower in data.text_towers},
    }
    for modality, own in towers.items():
        if own != former.towers[modality] or list(own) != list(former.towers[modality]):
            raise UsageError(
                f"--start-from: {path} reads the {modality} embeddings {', '.join(former.towers[modality])}, found "
                f"{', '.join(own)} (or other weights under this name); choose the same with --encoder"
            )
    seen = int(np.isin(data.image_hashes, former.train_image_hashes).sum())
    if seen:
        data.notes.append(
            f"The run of --start-from has seen {seen:,} of {len(data.image_hashes):,} images of these pairs: "
            "where they are development images, the metric may be too good."
        )
    return former, Beginning(former.network, rows_of_same_classes(data.labels, former.labels), seen)


def _check_names(task: str, model: str) -> None:
    if task not in TASKS:
        raise UsageError(f"There is no task '{task}'. {nearest(task, TASKS)}")
    if model not in (*MODELS, "auto"):
        raise UsageError(f"There is no model '{model}'. {nearest(model, (*MODELS, 'auto'))}")


def _check_numbers(arguments: dict[str, Any]) -> None:
    """Refuse what no training can work with, before anything is read."""
    positive = ("learning_rate", "gradient_clip", "temperature", "mixup_alpha", "epochs", "batch_size", "patience")
    others = ("final_learning_rate", "weight_decay", "contrastive_weight", "regularisation_weight")
    for name in (*positive, *others):
        value = arguments[name]
        if value is None:
            continue
        if not math.isfinite(value) or value < 0 or (value == 0 and name in positive):
            least = "above" if name in positive else "at least"
            raise UsageError(f"--{name.replace('_', '-')} must be a number {least} 0, found {value}")
    if arguments["mixup_alpha"] > 1:
        raise UsageError(f"--mixup-alpha must be at most 1, found {arguments['mixup_alpha']}")
    if not 0 <= arguments["kernel_teacher"] <= 1:
        raise UsageError(f"--kernel-teacher must be from 0 to 1, found {arguments['kernel_teacher']}")
    if arguments["kernel_teacher"] and arguments["task"] != "classification":
        raise UsageError(f"--kernel-teacher belongs to --task classification, found --task {arguments['task']}")
    if not 0 <= arguments["seed"] < 2**31:
        raise UsageError(f"--seed must be from 0 to 2,147,483,647, found {arguments['seed']}")
    try:
        torch.zeros(1, device=arguments["device"])
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UsageError(f"--device: '{arguments['device']}' cannot be used here ({reason})") from error
