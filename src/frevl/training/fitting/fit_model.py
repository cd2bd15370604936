"""Fit one model to training and development examples; the closed table of trainable models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from frevl.data.pairs import Side
from frevl.devices import default_batch
from frevl.errors import UsageError
from frevl.models.baselines import Linear, Majority, Mlp
from frevl.models.fusion import PRESETS, Fusion
from frevl.models.interface import PairNetwork
from frevl.models.kernel_ridge import MOST_PAIRS
from frevl.models.registry import NETWORKS
from frevl.runs.batches import list_logits, logits_of
from frevl.runs.targets import Answers, class_weights_of
from frevl.training.examples import Examples, dev_metric, join
from frevl.training.fitting.initialisation import (
    Pretrained,
    absorb_statistics,
    initialise_from,
    release_statistics,
    statistics_of,
)
from frevl.training.fitting.linear_folds import fit_linear_by_folds, is_folded
from frevl.training.fitting.linear_probe import fit_linear_on
from frevl.training.fitting.pairwise import fusion_loss, pair_loss
from frevl.training.kernel.approximate import fit_kernel_approximately
from frevl.training.kernel.fit import fit_kernel_on
from frevl.training.loop import FitReport, LossOf, gradient_descent
from frevl.training.mapped_items import deal_all, deal_in_blocks
from frevl.training.options import (
    FusionOptions,
    KernelOptions,
    LinearOptions,
    MlpOptions,
    ModelOptions,
    PairwiseOptions,
    Session,
)
from frevl.training.run_folder import NOWHERE, Checkpoint, Clock

__all__ = ["MODELS", "NEEDS", "SOLVED", "Fitted", "as_it_is", "fit_model", "trainable"]

# In order of complexity, simplest first; ties in a selection go to the simpler one.
MODELS = ("majority", "text", "image", "cosine", "linear", "kernel", "mlp", "dual", *PRESETS)
# Models without gradient descent, which have no steps for workers to share.
SOLVED = ("majority", "cosine", "linear", "kernel")
# The sides that a classification model requires; all others accept images and texts, or one of them alone.
NEEDS: dict[str, tuple[Side, ...]] = {
    "text": ("text",),
    "image": ("image",),
    **dict.fromkeys(("cosine", "dual", *PRESETS), ("image", "text")),
}
# Networks with their own way of fitting, under these names, or composed of others.
_FITTED = (
    "adapted-cosine",
    *("average", "classes", "cosine", "dual", "fusion", "kernel", "linear", "majority", "mlp", "reranked"),
    "without-prior",
)


def trainable() -> tuple[str, ...]:
    """Return the names of models: `MODELS`, plus any other registered network, trained pair by pair."""
    return (*MODELS, *(key for key in NETWORKS if key not in _FITTED))


N_co = TypeVar("N_co", bound=PairNetwork, covariant=True)


@dataclass(frozen=True)
class Fitted(Generic[N_co]):
    """A fitted network.

    Attributes:
        network: The network on the CPU, in evaluation mode.
        seconds: Time spent, in seconds.
        report: Report of gradient descent; None for closed forms, counts and averages.
        held_out: Scores and truth of all training pairs, each without its own cluster, if the solution provides them.
        held_out_clusters: ``(n,)`` int64 clusters of these pairs.
        pairs: Number of pairs it was fitted to, if that is neither the training part nor all of `held_out`.
        notes: Notes for the user.
        approximation: How the solution was approximated; None if it is exact, or there is none.
        members: Reports of gradient descent by name for the members of an average; otherwise empty.
    """

    network: N_co
    seconds: float
    report: FitReport | None = None
    held_out: tuple[Tensor, Answers | Tensor] | None = None
    held_out_clusters: Tensor | None = None
    pairs: int | None = None
    notes: list[str] = field(default_factory=list)
    approximation: dict[str, Any] | None = None
    members: dict[str, FitReport] = field(default_factory=dict)

    def development(self, dev: Examples) -> tuple[Tensor, Answers | Tensor]:
        """Return logits and truth of pairs on which the network was not fitted: held out or development."""
        if self.held_out is not None:
            return self.held_out
        return list_logits(self.network, dev.pairs, 1024), dev.truth

    def unseen_warning(self) -> list[str]:
        """Return a warning if the time limit ended a training before every pair was seen once."""
        if self.report is not None and self.report.passes < 1:
            ended = f"the training when {_seen(self.report)}"
        elif few := {name: report for name, report in self.members.items() if report.passes < 1}:
            ended = " and ".join(f"that of {name} when {_seen(report)}" for name, report in few.items())
            ended = f"the training{ended.removeprefix('that')}"
        else:
            return []
        return [f"The time limit ended {ended} of the training pairs had been seen; raise it, or train on fewer pairs."]

    def cut_short_note(self) -> list[str]:
        """Return a note on the members of an average whose training the time limit ended later than that."""
        names = [name for name, one in self.members.items() if one.stopped == "time" and one.passes >= 1]
        return (
            [f"The time limit cut short the training of {' and '.join(names)}; a longer one may help."] if names else []
        )


def _seen(report: FitReport) -> str:
    return f"{100 * report.passes:.2g} %"


def fit_model(
    model: str,
    train: Examples,
    dev: Examples,
    outputs: int,
    options: ModelOptions,
    session: Session,
    *,
    dev_is_spare: bool,
    start: Pretrained | None = None,
    checkpoint: Checkpoint = NOWHERE,
    log_file: Path | None = None,
) -> Fitted[PairNetwork]:
    """Fit one model.

    Args:
        model: Name of the model, one of `trainable`.
        train: Training examples.
        dev: Development examples, for early stopping and penalties.
        outputs: Number of classes; 1 for matching.
        options: Options of this model (`frevl.training.options.options_for`).
        session: Seed, time limit, device and progress.
        dev_is_spare: Whether the development part was set aside from the training pairs: a model that does not need it
            may also train on it.
        start: A trained fusion of the same sizes, from which a fusion is initialised.
        checkpoint: Where the state of gradient descent, or a fitted linear probe, is saved.
        log_file: Log file of gradient descent, or None.

    Raises:
        UsageError: The model does not fit the task.
        TrainingError: The loss is not finite.
    """
    clock = checkpoint.clock
    started = clock.seconds()
    torch.manual_seed(session.seed)
    sizes: dict[str, Any] = {
        "image_dim": train.pairs.images.shape[2],
        "text_dim": train.pairs.texts.shape[2],
        "outputs": outputs,
    }
    if model == "majority":
        return Fitted(_fit_majority(train, outputs), clock.seconds() - started)
    if isinstance(options, KernelOptions):
        return _fit_kernel(train, dev, outputs, options, clock, dev_is_spare=dev_is_spare)
    if model in ("cosine", "dual"):
        raise UsageError(f"The model '{model}' is for matching only; for classification choose a fusion, mlp or linear")
    if isinstance(options, LinearOptions):
        linear = Linear(**sizes)
        if is_folded(train, dev, outputs, dev_is_spare=dev_is_spare):
            logits, truth, clusters = fit_linear_by_folds(linear, train, dev, options, session, checkpoint)
            return Fitted(linear, clock.seconds() - started, held_out=(logits, truth), held_out_clusters=clusters,
                          pairs=len(train) + len(dev))  # fmt: skip
        notes = fit_linear_on(linear, train, dev, options, session, checkpoint)
        return Fitted(linear, clock.seconds() - started, notes=notes)
    if not isinstance(options, PairwiseOptions):
        raise TypeError(f"the model '{model}' is not fitted with {type(options).__name__}")
    if isinstance(options, FusionOptions):
        fusion = Fusion.from_preset(
            model,
            **sizes,
            layers=options.layers,
            dropout=options.dropout,
            cross_attention=options.cross_attention,
            product=options.product,
            difference=options.difference,
        )
        if start is not None:
            initialise_from(fusion, start)
        statistics = statistics_of(train.pairs) if options.standardise else None
        if statistics is not None:
            train, dev = (replace(part, pairs=statistics.applied(part.pairs)) for part in (train, dev))
            if start is not None:
                release_statistics(fusion, statistics)
        weights = class_weights_of(train.truth, outputs, options.class_weight)
        loss_of = fusion_loss(
            fusion, train, outputs, options=options, device=session.device, class_weights=weights, team=session.team
        )
        report = _descend(fusion, loss_of, train, dev, model, options, session, checkpoint, log_file, weights)
        if statistics is not None:
            absorb_statistics(fusion, statistics)
        return Fitted(fusion, report.seconds, report)
    if isinstance(options, MlpOptions):
        network: PairNetwork = Mlp(
            **sizes,
            use_image=model != "text",
            use_text=model != "image",
            hidden=options.hidden,
            dropout=options.dropout,
        )
    else:
        network = NETWORKS[model].for_data(**sizes)
    weights = class_weights_of(train.truth, outputs, options.class_weight)
    loss_of = pair_loss(
        network, train, outputs, options=options, device=session.device, class_weights=weights, team=session.team
    )
    report = _descend(network, loss_of, train, dev, model, options, session, checkpoint, log_file, weights)
    return Fitted(network, report.seconds, report)


def _fit_kernel(
    train: Examples, dev: Examples, outputs: int, options: KernelOptions, clock: Clock, *, dev_is_spare: bool
) -> Fitted[PairNetwork]:
    """Fit the kernel fusion, including on the development part if we set it aside."""
    started = clock.seconds()
    examples = join(train, dev) if dev_is_spare else train
    fit = fit_kernel_on if len(examples) <= MOST_PAIRS else fit_kernel_approximately
    network, solved = fit(examples, outputs, options)
    held_out, clusters = None, None
    if dev_is_spare and isinstance(examples.truth, Answers):
        # Exact leave-one-image-out scores serve as development results if the model was trained on that part.
        known = solved.known if solved.rows is None else solved.rows[solved.known]
        held_out = solved.held_out[solved.known], examples.truth.select(known)
        clusters = examples.clusters[known]
    return Fitted(
        network,
        clock.seconds() - started,
        held_out=held_out,
        held_out_clusters=clusters,
        notes=list(solved.notes),
        approximation=solved.approximation,
    )


def _descend(
    network: PairNetwork,
    loss_of: LossOf,
    train: Examples,
    dev: Examples,
    model: str,
    options: PairwiseOptions,
    session: Session,
    checkpoint: Checkpoint,
    log_file: Path | None,
    class_weights: Tensor | None,
) -> FitReport:
    """Train a network by gradient descent, measured on development pairs after each epoch."""
    own = session.team.share(len(dev))

    def metric() -> float:
        pairs = dev.pairs if session.team.size == 1 else dev.pairs.select(own.of(torch.arange(len(dev))))
        logits = own.gathered(logits_of(network, pairs, default_batch(session.device), session.device))
        return dev_metric(logits, dev.truth, class_weights)

    return gradient_descent(
        network,
        loss_of,
        len(train),
        options=options,
        session=session,
        title=f"training {model}",
        remedy=f"check the embeddings with frevl store verify, or lower learning_rate ({options.learning_rate:g})",
        on_epoch=metric,
        patience=options.patience,
        keep_last=options.keep_last,
        checkpoint=checkpoint,
        log_file=log_file,
        deal=deal_all if train.pairs.files is None else deal_in_blocks(train.pairs),
    )


def as_it_is(start: Pretrained, outputs: int) -> Fitted[PairNetwork]:
    """Return another run's fusion for this run's classes, without training."""
    settings: dict[str, Any] = {**start.network.settings, "outputs": outputs}
    network = Fusion(**settings)
    initialise_from(network, start)
    return Fitted(network.eval(), 0.0)


def _fit_majority(train: Examples, outputs: int) -> Majority:
    """Fit the majority answer. In matching, half of the pairs are right by construction (one wrong text each)."""
    network = Majority(outputs=outputs)
    if isinstance(train.truth, Answers):
        shares = torch.zeros(outputs)
        for start in range(0, len(train), 65_536):
            rows = torch.arange(start, min(start + 65_536, len(train)))
            shares += train.truth.dense(rows, outputs).sum(dim=0)
        network.logits.copy_((shares / len(train)).clamp(min=1e-9).log())
    return network
