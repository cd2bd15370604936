"""The training loop: forward, loss, backward, step, development metric, top to bottom."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frevl.errors import TrainingError
from frevl.models.baselines import Mlp
from frevl.models.blocks import dropped
from frevl.models.fusion import Fusion
from frevl.models.inputs import mean_pool
from frevl.progress import ProgressLine
from frevl.runs.batches import logits_of
from frevl.runs.targets import Answers
from frevl.training.examples import Examples, dev_metric, kind_of, sample_negatives
from frevl.training.losses import binary_loss, class_loss, contrastive_loss, feature_norm_loss, mixup, soft_target_loss
from frevl.training.options import DescentOptions, FusionOptions, MlpOptions, Session

__all__ = ["FitReport", "descend", "fit", "scheduled", "task_loss"]


@dataclass(frozen=True)
class FitReport:
    """How a training went.

    Attributes:
        epochs: Epochs trained.
        best_epoch: The epoch (from 1) whose weights were kept.
        metric: Its development metric in [0, 1].
        seconds: Time spent in the loop, interruptions left out.
        stopped: Why it ended: ``epochs``, ``patience``, ``time`` or ``perfect``.
    """

    epochs: int
    best_epoch: int
    metric: float
    seconds: float
    stopped: str


def task_loss(logits: Tensor, truth: Tensor, *, kind: str, smoothing: float) -> Tensor:
    """Return the loss of the task.

    Args:
        logits: ``(n, outputs)``.
        truth: ``(n,)`` in [0, 1] for ``match``; ``(n, outputs)`` weights for ``class`` and ``soft``.
        kind: ``match``, ``class`` (weights are shares of one answer) or ``soft`` (every class by itself).
        smoothing: Label smoothing in [0, 1).
    """
    if kind == "match":
        return binary_loss(logits, truth, label_smoothing=smoothing)
    if kind == "soft":
        return soft_target_loss(logits, truth)
    return class_loss(logits, truth / truth.sum(dim=1, keepdim=True).clamp(min=1e-9), label_smoothing=smoothing)


def fit(
    network: Fusion | Mlp,
    train: Examples,
    dev: Examples,
    *,
    options: FusionOptions | MlpOptions,
    session: Session,
    state_file: Path,
    log_file: Path,
    title: str,
) -> FitReport:
    """Train a network by gradient descent; afterwards it holds the weights of its best epoch, or of the last one.

    State is saved after every epoch: a call with the same arguments after an interruption goes on and ends with the
    identical result, because every random choice follows from seed and epoch.

    Raises:
        TrainingError: The loss is not finite; names the batch.
    """
    seed, time_limit, device = session.seed, session.time_limit, session.device
    epochs, batch_size = options.epochs, options.rows_per_step
    fusion = options if isinstance(options, FusionOptions) else None
    trained = [parameter for parameter in network.to(device).parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=options.weight_decay, fused=True)
    state = _State.load(state_file, network, optimiser)
    kind = kind_of(train.truth)
    outputs = int(network.settings["outputs"])
    steps = math.ceil(len(train) / batch_size)
    started = time.monotonic() - state.seconds
    if state.epoch == 0:
        log_file.write_text("", encoding="utf-8")
    with ProgressLine(title, epochs * steps, enabled=session.progress) as line:
        line.advance(state.epoch * steps)
        while not state.stopped:
            # Every random choice follows from seed and epoch, so that a resumed training repeats it.
            torch.manual_seed(seed * 100_003 + state.epoch)  # dropout
            random = torch.Generator().manual_seed(seed * 100_003 + state.epoch)  # order, negatives, mixup
            losses = {"task": 0.0, "contrastive": 0.0, "regularisation": 0.0}
            out_of_time = False
            network.train()
            for batch, rows in enumerate(_chunks(torch.randperm(len(train), generator=random), batch_size)):
                done = (state.epoch + batch / steps) / epochs
                if time_limit is not None:
                    # The schedule shrinks to the time that is left, so that a short training is annealed too.
                    done = max(done, (time.monotonic() - started) / time_limit)
                    out_of_time = done >= 1 and state.epoch + batch > 0
                    if out_of_time:
                        break
                for group in optimiser.param_groups:
                    group["lr"] = scheduled(done, options.learning_rate, options.final_learning_rate, options.warm_up)

                image_rows, text_rows, truth = _with_truth(train, rows, options.negatives, random, outputs)
                image, text, image_mask, text_mask = train.pairs.inputs(image_rows, text_rows, device)
                truth = truth.to(device)
                contrastive = regularisation = torch.zeros((), device=device)
                if isinstance(network, Fusion) and fusion is not None:
                    if fusion.input_dropout > 0:
                        image, text = dropped(image, fusion.input_dropout), dropped(text, fusion.input_dropout)
                    image, text = network.project(image, text)
                    contrastive = contrastive_loss(
                        mean_pool(image, image_mask),
                        mean_pool(text, text_mask),
                        image_rows.to(device),
                        text_rows.to(device),
                        temperature=fusion.temperature,
                        matching=truth > 0.5 if kind == "match" else None,
                    )
                    pooled = image_mask is None and text_mask is None
                    if pooled and torch.rand((), generator=random).item() < fusion.mixup_share:
                        image, text, truth = mixup(image, text, truth, alpha=fusion.mixup_alpha, generator=random)
                    fused = network.fuse(image, text, image_mask, text_mask)
                    regularisation = feature_norm_loss(fused)
                    logits = network.head(fused)
                else:
                    logits = network(image, text, image_mask, text_mask)
                task = task_loss(logits, truth, kind=kind, smoothing=options.label_smoothing)
                loss = task
                if fusion is not None:
                    loss = loss + fusion.contrastive_weight * contrastive
                    loss = loss + fusion.regularisation_weight * regularisation
                terms = {
                    "task": task.item(),
                    "contrastive": contrastive.item(),
                    "regularisation": regularisation.item(),
                }
                if not math.isfinite(loss.item()):
                    parts = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
                    raise TrainingError(
                        f"{title}: expected a finite loss, found {loss.item()} in epoch {state.epoch + 1}, batch "
                        f"{batch + 1} of {steps} ({parts}); "
                        "check the embeddings with frevl store verify, or lower learning_rate "
                        f"({options.learning_rate:g})"
                    )
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(trained, options.gradient_clip)
                optimiser.step()

                losses = {name: losses[name] + value / steps for name, value in terms.items()}
                figures = (
                    f"loss {loss.item():.3f}  dev {100 * state.metric:.2f} %  {line.rate * batch_size:,.0f} pairs/s"
                )
                line.advance(note=figures)

            metric = dev_metric(logits_of(network, dev.pairs, 1024, device), dev.truth)
            state.end_epoch(network, metric, time.monotonic() - started)
            if out_of_time:
                state.stopped = "time"
            elif metric == 1.0:
                state.stopped = "perfect"
            elif state.epoch - state.best_epoch >= options.patience:
                state.stopped = "patience"
            elif state.epoch == epochs:
                state.stopped = "epochs"
            entry = {"epoch": state.epoch, "dev": metric, "seconds": round(state.seconds, 2), "losses": losses}
            with log_file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            state.save(state_file, network, optimiser)
    if options.keep_last:
        state.best_epoch, state.best_metric = state.epoch, state.metric
    else:
        network.load_state_dict(state.best_weights)
    network.to("cpu").eval()
    return FitReport(state.epoch, state.best_epoch, state.best_metric, state.seconds, state.stopped)


def _with_truth(
    train: Examples, rows: Tensor, negatives: int, random: torch.Generator, outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return image rows, text rows and truth of a batch; matching gets wrong texts beside the right ones."""
    pairs = train.pairs
    image_rows, text_rows = pairs.image_rows[rows], pairs.text_rows[rows]
    if isinstance(train.truth, Answers):
        return image_rows, text_rows, train.truth.dense(rows, outputs)
    truth = train.truth[rows]
    wrong_images, wrong_texts = sample_negatives(pairs, rows[truth > 0.5], negatives, random)
    return (
        torch.cat([image_rows, wrong_images]),
        torch.cat([text_rows, wrong_texts]),
        torch.cat([truth, torch.zeros(len(wrong_images))]),
    )


@dataclass
class _State:
    """What an interrupted training needs to go on, beside weights and optimiser."""

    epoch: int = 0
    metric: float = 0.0
    best_epoch: int = 0
    best_metric: float = -1.0
    seconds: float = 0.0
    stopped: str = ""
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def end_epoch(self, network: nn.Module, metric: float, seconds: float) -> None:
        self.epoch += 1
        self.metric, self.seconds = metric, seconds
        if metric > self.best_metric:
            self.best_epoch, self.best_metric = self.epoch, metric
            self.best_weights = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

    def save(self, path: Path, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Write everything in one file, then rename: a kill leaves the former epoch."""
        tensors = {f"network.{name}": value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        tensors |= {f"best.{name}": value.contiguous() for name, value in self.best_weights.items()}
        for number, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value.cpu().contiguous() for name, value in moments.items()}
        counters = {name: value for name, value in vars(self).items() if name != "best_weights"}
        temporary = path.with_suffix(".part")
        try:
            save_file(tensors, temporary, metadata={"counters": json.dumps(counters)})
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{path}: the state of the training cannot be written ({error}); make room, and run the same command "
                "again to go on after the last complete epoch"
            ) from error

    @classmethod
    def load(cls, path: Path, network: nn.Module, optimiser: torch.optim.Optimizer) -> _State:
        """Read the state of an interrupted training into network and optimiser; a fresh one if there is none."""
        if not path.exists():
            return cls()
        try:
            tensors = load_file(path)
            with safe_open(path, "pt") as file:
                counters = json.loads(file.metadata()["counters"])
            network.load_state_dict(_part(tensors, "network."))
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in _part(tensors, "optimiser.").items():
                number, _, moment = name.partition(".")
                moments.setdefault(int(number), {})[moment] = value
            optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
            return cls(**counters, best_weights=_part(tensors, "best."))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"{path}: the state of an interrupted training is damaged ({str(error).splitlines()[0][:120]}); delete "
                f"{path.parent} and train again"
            ) from error


def _chunks(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def scheduled(done: float, peak: float, final: float, warm_up: float) -> float:
    """Return the learning rate: linear warm-up, then cosine to the final rate. ``done`` is in [0, 1]."""
    if done < warm_up:
        return peak * (done + 1e-3) / (warm_up + 1e-3)
    share = min(1.0, (done - warm_up) / max(1e-9, 1 - warm_up))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * share))


def descend(
    network: nn.Module,
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    count: int,
    *,
    options: DescentOptions,
    session: Session,
    title: str,
    remedy: str,
    decay_vectors: bool = False,
) -> FitReport:
    """Train a network by AdamW; afterwards it is on the CPU in evaluation mode.

    Every random choice follows from seed and epoch. The learning rate rises, then falls by a cosine; with a time limit
    the schedule shrinks to it, so that a short training is annealed too.

    Args:
        network: On its device.
        loss_of: From ``(n,)`` numbers of training rows and the generator of random choices to the loss of this batch.
        count: Training rows.
        options: How.
        session: Seed of order, dropout and whatever the loss draws; time limit; progress.
        title: Of that line, and of the training in messages.
        remedy: What to do if the loss is not finite.
        decay_vectors: Weight decay of biases and the like too, not of matrices only.

    Returns:
        How it went; the metric is the last loss.

    Raises:
        TrainingError: The loss is not finite.
    """
    trained = [parameter for parameter in network.train().parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if decay_vectors or parameter.dim() > 1]
    plain = [parameter for parameter in trained if not decay_vectors and parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=options.learning_rate, fused=True)
    seed, time_limit, epochs = session.seed, session.time_limit, options.epochs
    steps = max(1, round(count / options.rows_per_step))
    started, stopped, epoch, value = time.monotonic(), "epochs", 0, math.nan
    with ProgressLine(title, epochs * steps, enabled=session.progress) as line:
        for epoch in range(epochs):
            torch.manual_seed(seed * 100_003 + epoch)  # dropout
            random = torch.Generator().manual_seed(seed * 100_003 + epoch)
            for batch, rows in enumerate(torch.randperm(count, generator=random).tensor_split(steps)):
                done = (epoch + batch / steps) / epochs
                if time_limit is not None:
                    done = max(done, (time.monotonic() - started) / time_limit)
                    if done >= 1 and epoch + batch > 0:
                        stopped = "time"
                        break
                for group in optimiser.param_groups:
                    group["lr"] = scheduled(done, options.learning_rate, options.final_learning_rate, options.warm_up)
                loss = loss_of(rows, random)
                value = loss.item()
                if not math.isfinite(value):
                    raise TrainingError(
                        f"{title}: expected a finite loss, found {value} in epoch {epoch + 1}, batch {batch + 1} of "
                        f"{steps}; {remedy}"
                    )
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(trained, options.gradient_clip)
                optimiser.step()
                line.advance(note=f"epoch {epoch + 1}/{epochs}  loss {value:.3f}")
            if stopped == "time":
                break
    network.to("cpu").eval()
    return FitReport(epoch + 1, epoch + 1, value, time.monotonic() - started, stopped)
