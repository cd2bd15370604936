"""`frevl.train`: train a run from pairs and a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from frevl.data.names import list_or_none
from frevl.data.pairs import Pairs, in_memory
from frevl.devices import check_device
from frevl.errors import PairsError, UsageError, nearest
from frevl.models.fusion import PRESETS, Fusion
from frevl.provenance import provenance
from frevl.runs.run import Run
from frevl.store.reader import Store
from frevl.training.examples import Prepared
from frevl.training.fitting.fit_model import MODELS, NEEDS, SOLVED, trainable
from frevl.training.fitting.initialisation import Pretrained, rows_of_same_classes
from frevl.training.options import ModelOptions, Session, make_options
from frevl.training.prepare import prepare, read_file
from frevl.training.run_folder import claim_run, data_identity, run_settings, write_config
from frevl.training.selection.fit_prepared import fit_prepared
from frevl.training.workers.joining import workers_asked, working_together

__all__ = ["TASKS", "train"]

TASKS = ("matching", "classification")


def train(
    store: Store | str | Path,
    pairs: str | Path | Pairs,
    *,
    run: str | Path,
    task: str,
    model: str = "tiny",
    options: ModelOptions | Mapping[str, Any] | None = None,
    first_stage: str | None = None,
    initialise_from: str | Path | None = None,
    dev: str | Path | Pairs | None = None,
    columns: str | Sequence[str] | Mapping[str, str] | None = None,
    encoder: Sequence[str] | None = None,
    image_encoder: Sequence[str] | None = None,
    text_encoder: Sequence[str] | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    dev_share: float = 0.1,
    group_by: str | None = None,
    find_groups: bool = True,
    min_answer_count: int = 1,
    device: str = "cpu",
    workers: int | None = None,
    ray: str | None = None,
    progress: bool = False,
) -> Run:
    """Train a fusion or a baseline on frozen embeddings and save it as a run.

    Repeating an interrupted call continues after its last complete epoch and gives the identical result.

    Args:
        store: The store, or its path.
        pairs: Training pairs, or a pairs file.
        run: Folder to write; must not contain a finished run.
        task: ``matching`` or ``classification``.
        model: A preset of the fusion (``tiny``, ``small``, ``base``), a baseline, or ``auto``.
        options: Hyperparameters: an object of the model's class in `frevl.training.options`, such as
            ``FusionOptions(dropout=0.3)``, or a mapping such as ``{"dropout": 0.3}``. Values not given keep their
            defaults.
        first_stage: In matching, ``dual`` or ``cosine``: it finds candidates and the fusion reranks them, in one run
            (with `frevl.training.options.RerankerOptions`). None: the fusion stands alone, except with ``auto``.
        initialise_from: In classification, a run whose fusion provides the initial weights: train on captions or
            synthetic data first, then fine-tune on a task with few pairs. The last layer is copied too if the classes
            are the same. Encoders, model and layers must be the same; its images count as seen by the new run. With
            ``auto``, this fusion is one more candidate, and the former run, unchanged (zero-shot), is another.
        dev: Development pairs, for early stopping and calibration. None sets aside images of the training pairs.
        columns: Columns of the pairs files, as in `frevl.data.pairs.read_pairs`.
        encoder: Encoders whose towers are concatenated; None uses, for images and for texts, all that embedded every
            item of the pairs.
        image_encoder: Encoders for images alone, instead of ``encoder``.
        text_encoder: Encoders for texts alone, instead of ``encoder``.
        seed: Seed of initial weights, order, dropout and splits.
        time_limit: Time limit of the training in seconds; the learning-rate schedule shrinks to it.
        dev_share: Share of the images set aside if ``dev`` is None; at most about 50,000 pairs.
        group_by: A key of the pairs; pairs with the same value stay together in every split.
        find_groups: Whether to find pairs that are not independent (copies, near copies, keys that look like a group,
            texts with one label) and keep them together; see `frevl.store.grouping.groups.group_pairs`.
        min_answer_count: Answers of fewer training pairs than this are not classes.
        device: Device for training, as named by PyTorch; with several workers, ``cuda`` gives each its own device.
        workers: Number of processes that train together, each with a share of every batch; the result is that of one
            process, except for rounding. None: as many as torchrun started (``WORLD_SIZE``), else one.
        ray: Run the workers on a Ray cluster: the address of its head node, ``auto``, or ``local`` to start one here.
            Store, pairs and run must be paths that are valid on all nodes.
        progress: Show progress.

    Returns:
        The saved run.

    Raises:
        UsageError: An unknown task, model, encoder or option, or a value outside its range.
        PairsError: The pairs cannot be used: unknown images, targets missing, one class only.
        StoreError: Embeddings are missing.
        TrainingError: The loss is not finite.
        RunError: The folder contains a finished run, or an interrupted one with other settings.
    """
    pairs, dev = in_memory(pairs), in_memory(dev)
    encoder = list_or_none(encoder, "encoder")
    image_encoder = list_or_none(image_encoder, "image_encoder")
    text_encoder = list_or_none(text_encoder, "text_encoder")
    arguments = dict(locals())
    _check_names(task, model)
    if first_stage is not None and task != "matching":
        raise UsageError(f"--first-stage requires --task matching, found --task {task}")
    if initialise_from is not None:
        _check_start(task, model)
    chosen_options = make_options(model, options, first_stage=first_stage)
    _check_session(seed, "cpu" if ray is not None else device)  # on a cluster, the workers know their devices
    _check_workers(model, workers_asked(workers))
    named = {**arguments, "store": store.path if isinstance(store, Store) else store, "ray": None}
    if ray is not None:
        from frevl.training.workers.on_ray import on_ray

        return cast("Run", on_ray(train, named, workers=workers, address=ray, device=device))
    with working_together(train, named, workers=workers, device=device) as team:
        session = Session(
            seed=seed, time_limit=time_limit, device=team.device(device), progress=progress and team.leads, team=team
        )
        folder, opened = Path(run), store if isinstance(store, Store) else Store.open(store)
        read, read_dev = read_file(pairs, columns), None if dev is None else read_file(dev, columns)
        _check_sides(task, model, read, read_dev, initialise_from)
        settings = run_settings(arguments, chosen_options)
        identity = data_identity(opened, read, read_dev, initialise_from)
        with claim_run(folder, {**settings, "data": identity}, team=team) as checkpoint:
            data = prepare(
                opened, read, read_dev, task=task, encoder=encoder, image_encoder=image_encoder,
                text_encoder=text_encoder, seed=seed, dev_share=dev_share, min_answer_count=min_answer_count,
                group_by=group_by, find_groups=find_groups,
            )  # fmt: skip
            former, start = (None, None) if initialise_from is None else _former(Path(initialise_from), data)
            fitted = fit_prepared(
                data, task=task, model=model, options=chosen_options, session=session, first_stage=first_stage,
                start=start, checkpoint=checkpoint, log_file=folder / "log.jsonl" if team.leads else None,
            )  # fmt: skip
            finished = Run(
                path=folder,
                model=model,
                task=task,
                network_name=fitted.network.key,
                network_settings=fitted.network.settings,
                labels=fitted.data.labels,
                encoders=fitted.encoders,
                towers=_identities(fitted.data),
                calibration=fitted.calibration,
                settings=settings,
                results={**fitted.results, "workers": team.size} if team.size > 1 else fitted.results,
                provenance=provenance(run=str(folder), store_fingerprint=opened.fingerprint, seed=seed),
                train_image_hashes=_seen_images(fitted.data, former),
                network=fitted.network,
                posterior=fitted.posterior,
            )
            if team.leads:
                write_config(folder, {**arguments, "store": opened}, chosen_options)
                finished.save()
        return finished


def _identities(data: Prepared) -> dict[str, dict[str, dict[str, str]]]:
    """Return the identities of the towers that the examples have, by modality and name."""
    return {
        "image": {tower.name: tower.identity for tower in data.image_towers},
        "text": {tower.name: tower.identity for tower in data.text_towers},
    }


def _seen_images(data: Prepared, former: Run | None) -> np.ndarray:
    """Return the sorted hashes of the images that the network has seen, in a former run too."""
    return data.image_hashes if former is None else np.union1d(data.image_hashes, former.train_image_hashes)


def _check_sides(task: str, model: str, pairs: Pairs, dev: Pairs | None, initialise_from: str | Path | None) -> None:
    """Refuse pairs with only one side if the model needs both."""
    if dev is not None and dev.sides != pairs.sides:
        raise PairsError(
            f"{dev.places[0]}: expected development pairs with {_both(pairs.sides)}, as the training pairs have, found "
            f"pairs with {_both(dev.sides)}"
        )
    if len(pairs.sides) == 2:
        return
    (side,) = pairs.sides
    missing = "text" if side == "image" else "image"
    place, alone = f"{pairs.places[0]}, field '{missing}'", f"the pairs are {side}s only"
    if task == "matching":
        raise PairsError(
            f"{place}: matching expects an image and a text in every pair, and {alone}; name the column that holds "
            f"the {missing}s with --columns {missing}=NAME, or use --task classification"
        )
    if side not in NEEDS.get(model, (side,)) or missing in NEEDS.get(model, ()):
        fitting = [name for name in (*MODELS, "auto") if NEEDS.get(name, (side,)) == (side,)]
        raise UsageError(
            f"The model '{model}' needs {_both(NEEDS[model])}, and {alone}; choose one of {', '.join(fitting)}, or "
            f"name the column of the {missing}s with --columns {missing}=NAME"
        )
    if initialise_from is not None:
        raise UsageError(f"--initialise-from needs a fusion of images and texts, and {alone}; leave it out")


def _both(sides: Sequence[str]) -> str:
    return " and ".join(f"{side}s" for side in sides)


def _check_start(task: str, model: str) -> None:
    """Refuse ``--initialise-from`` if no model would use it."""
    if task != "classification":
        raise UsageError(f"--initialise-from requires --task classification, found --task {task}")
    if model not in (*PRESETS, "auto"):
        raise UsageError(f"--initialise-from requires a fusion ({', '.join(PRESETS)}) or auto, found --model {model}")


def _former(path: Path, data: Prepared) -> tuple[Run, Pretrained]:
    """Load the run to start from, with a note on how many of the images it has seen."""
    former = Run.load(path)
    if former.network_name != Fusion.key:
        raise UsageError(
            f"--initialise-from: expected a run of a single fusion, found '{former.network_name}' in {path}"
        )
    for modality, own in _identities(data).items():
        if own != former.towers[modality] or list(own) != list(former.towers[modality]):
            raise UsageError(
                f"--initialise-from: {path} reads the {modality} embeddings {', '.join(former.towers[modality])}, "
                f"found {', '.join(own)} (or other weights under this name); choose the same with --encoder, "
                f"or --{modality}-encoder"
            )
    seen = int(np.isin(data.image_hashes, former.train_image_hashes).sum())
    if seen:
        data.notes.append(
            f"The run of --initialise-from has seen {seen:,} of {len(data.image_hashes):,} images of these pairs: "
            "for those among the development images, the metric may be too optimistic."
        )
    return former, Pretrained(cast("Fusion", former.network), rows_of_same_classes(data.labels, former.labels), seen)


def _check_names(task: str, model: str) -> None:
    if task not in TASKS:
        raise UsageError(f"There is no task '{task}'. {nearest(task, TASKS)}")
    known = (*trainable(), "auto")
    if model not in known:
        raise UsageError(f"There is no model '{model}'. {nearest(model, known)}")


def _check_session(seed: int, device: str) -> None:
    """Refuse invalid settings before anything is read."""
    if not 0 <= seed < 2**31:
        raise UsageError(f"--seed must be between 0 and 2,147,483,647, found {seed}")
    check_device(device)


def _check_workers(model: str, workers: int) -> None:
    """Refuse workers if there is nothing to share."""
    if workers > 1 and model in SOLVED:
        raise UsageError(
            f"--workers: workers share the steps of gradient descent, which the model '{model}' does not use "
            f"(found {workers}); leave out --workers (or choose {', '.join(m for m in MODELS if m not in SOLVED)})"
        )
