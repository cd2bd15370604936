"""The training loop, in order: forward, loss, backward, step, development metric."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from frevl.devices import Shares
from frevl.errors import TrainingError
from frevl.terminal import ProgressLine
from frevl.training.losses import SeenLosses, looks_every
from frevl.training.mapped_items import Deal, deal_all
from frevl.training.options import DescentOptions, Session
from frevl.training.run_folder import NOWHERE, Checkpoint

__all__ = ["FitReport", "LossOf", "gradient_descent", "scheduled"]

LossOf = Callable[[Tensor, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
"""Maps ``(n,)`` row numbers of a batch and a random generator to the loss of that batch and its terms by name, for the
log and for messages."""


@dataclass(frozen=True)
class FitReport:
    """The report of a training.

    Attributes:
        epochs: Number of epochs trained; the time limit may have ended the last one early.
        passes: How often the examples were trained on: ``epochs``, less what is missing of the last one.
        best_epoch: The epoch (from 1) whose weights were kept.
        metric: Development metric of that epoch in [0, 1]; the last loss if there is no metric.
        seconds: Time spent in the loop, not counting interruptions.
        stopped: Why it ended: ``epochs``, ``patience``, ``time`` or ``perfect``.
    """

    epochs: int
    best_epoch: int
    metric: float
    seconds: float
    stopped: str
    passes: float


def gradient_descent(
    network: nn.Module,
    loss_of: LossOf,
    count: int,
    *,
    options: DescentOptions,
    session: Session,
    title: str,
    remedy: str,
    on_epoch: Callable[[], float] | None = None,
    patience: int | None = None,
    keep_last: bool = False,
    checkpoint: Checkpoint = NOWHERE,
    log_file: Path | None = None,
    deal: Deal = deal_all,
) -> FitReport:
    """Train a network with AdamW; afterwards it is on the CPU in evaluation mode.

    Every random choice is determined by seed and epoch, and the state is saved after each epoch: repeating an
    interrupted call with the same arguments continues after the last complete epoch and gives an identical result.

    Args:
        network: Network to train. Weight decay applies to its matrices only, not to biases or the gains of norms.
        loss_of: Computes the loss of a batch.
        count: Number of training rows. An epoch divides them into batches of nearly equal size.
        options: Epochs, batch size, learning rates, weight decay, gradient clipping.
        session: Its seed determines the order, dropout and all random choices of the loss. The schedule shrinks to its
            time limit, so that even a short training is annealed.
        title: Name of the training, for the progress line and messages.
        remedy: Advice if the loss is not finite.
        on_epoch: Called after each epoch to compute the development metric in [0, 1]; the weights of the best epoch are
            kept. None: there is no metric, and the last weights are kept.
        patience: Stop after this many epochs without a better metric.
        keep_last: Keep the weights of the last epoch instead of the best one.
        checkpoint: Where the state is saved after each epoch.
        log_file: Log file with one JSON line per epoch.
        deal: Determines the order of rows.

    Returns:
        The report of the training.

    Raises:
        TrainingError: The loss is not finite (names the batch), or the state cannot be read or written.
    """
    team = session.team
    team.same({"training": title, "rows": count, "options": options.record()})
    trained = [parameter for parameter in network.to(session.device).parameters() if parameter.requires_grad]
    matrices, vectors = ([p for p in trained if (p.dim() > 1) is decayed] for decayed in (True, False))
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=options.learning_rate, fused=True)
    state = _State.load(checkpoint, network, optimiser)
    team.aligned(network)
    if not state.stopped:
        _keep_lines(log_file, state.epoch)
    epochs, steps, time_limit = options.epochs, math.ceil(count / options.rows_per_step), session.time_limit
    started, shares = time.monotonic() - state.seconds, Shares(session.device, divisible=team.size == 1)
    with ProgressLine(title, epochs * steps, enabled=session.progress) as line:
        line.advance(state.epoch * steps)
        while not state.stopped:
            # Every random choice is determined by seed and epoch, so that a resumed training repeats it.
            torch.manual_seed(session.seed * 100_003 + state.epoch)  # dropout
            random = torch.Generator().manual_seed(session.seed * 100_003 + state.epoch)  # order, negatives, mixup
            losses = SeenLosses(f"epoch {state.epoch + 1}", title, remedy, steps, looks_every(session.device))
            out_of_time = False
            network.train()
            for batch, rows in enumerate(deal(count, steps, random)):
                done = (state.epoch + batch / steps) / epochs
                # The first step always runs. If the time suffices, the clock must not affect the result.
                if time_limit is not None and state.epoch + batch > 0:
                    done = max(done, team.agreed(time.monotonic() - started) / time_limit)
                    out_of_time = done >= 1
                    if out_of_time:
                        break
                for group in optimiser.param_groups:
                    group["lr"] = scheduled(done, options.learning_rate, options.final_learning_rate, options.warm_up)

                optimiser.zero_grad(set_to_none=True)
                losses.add(batch, *team.summed(trained, *shares.gradients(loss_of, rows, random, optimiser)))
                nn.utils.clip_grad_norm_(trained, options.gradient_clip)
                optimiser.step()

                shown = "" if on_epoch is None else f"dev {100 * state.metric:.2f} %  "
                line.advance(note=f"loss {losses.last:.3f}  {shown}{line.rate * count / steps:,.0f} pairs/s")

            losses.look()
            network.eval()
            metric = losses.last if on_epoch is None else on_epoch()
            metric, seconds = team.agreed((metric, time.monotonic() - started))
            state.end_epoch(network, metric, seconds, keep_last=on_epoch is None or keep_last)
            state.passes = None if state.passes is None else state.passes + losses.seen / steps
            if out_of_time:
                state.stopped = "time"
            elif on_epoch is not None and metric == 1.0:
                state.stopped = "perfect"
            elif patience is not None and state.epoch - state.best_epoch >= patience:
                state.stopped = "patience"
            elif state.epoch == epochs:
                state.stopped = "epochs"
            if state.stopped:
                state.settle(network)
                team.aligned(network)
            dev = {} if on_epoch is None else {"dev": metric}
            entry = {"epoch": state.epoch, **dev, "seconds": round(state.seconds, 2), "losses": losses.means}
            _append_line(log_file, json.dumps(entry))
            state.save(checkpoint, network, optimiser)
    network.to("cpu").eval()
    passes = float(state.epoch) if state.passes is None else state.passes
    return FitReport(state.epoch, state.best_epoch, state.best_metric, state.seconds, state.stopped, passes)


@dataclass
class _State:
    """The state that an interrupted training needs to continue, besides weights and optimiser."""

    epoch: int = 0
    metric: float = 0.0
    best_epoch: int = 0
    best_metric: float = -1.0
    seconds: float = 0.0
    stopped: str = ""
    passes: float | None = 0.0  # None if an earlier version saved the training
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def end_epoch(self, network: nn.Module, metric: float, seconds: float, *, keep_last: bool) -> None:
        """Count an epoch, and keep its weights if it is the best so far (unless the last one is wanted)."""
        self.epoch += 1
        self.metric, self.seconds = metric, seconds
        if metric > self.best_metric:
            self.best_epoch, self.best_metric = self.epoch, metric
            if not keep_last:
                self.best_weights = {name: value.cpu().clone() for name, value in _weights(network).items()}

    def settle(self, network: nn.Module) -> None:
        """Load the kept weights into the network."""
        if self.best_weights:
            _restore(network, self.best_weights)
        else:
            self.best_epoch, self.best_metric = self.epoch, self.metric

    def save(self, checkpoint: Checkpoint, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        """Save the whole state, or only the weights of a finished training."""
        tensors = {f"network.{name}": value for name, value in _weights(network).items()}
        if not self.stopped:
            tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
            for number, moments in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{number}.{name}": value for name, value in moments.items()}
        checkpoint.save(tensors, {name: value for name, value in vars(self).items() if name != "best_weights"})

    @classmethod
    def load(cls, checkpoint: Checkpoint, network: nn.Module, optimiser: torch.optim.Optimizer) -> _State:
        """Load the state of an interrupted training into network and optimiser; return a new state if there is none."""
        saved = checkpoint.load()
        if saved is None:
            return cls()
        tensors, record = saved
        try:
            _restore(network, _part(tensors, "network."))
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in _part(tensors, "optimiser.").items():
                number, _, moment = name.partition(".")
                moments.setdefault(int(number), {})[moment] = value
            optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
            return cls(**{"passes": None, **record}, best_weights=_part(tensors, "best."))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise checkpoint.damaged(error) from error


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Return all weights unchanged; the ``state_dict`` of some networks halves the precision."""
    return {name: value.detach() for name, value in (*network.named_parameters(), *network.named_buffers())}


def _restore(network: nn.Module, weights: dict[str, Tensor]) -> None:
    own = _weights(network)
    if own.keys() != weights.keys():
        raise KeyError(f"weights of {sorted(own.keys() ^ weights.keys())[0]}")
    for name, value in own.items():
        value.copy_(weights[name])


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _keep_lines(log_file: Path | None, count: int) -> None:
    """Truncate the log to the saved epochs: the process may have been killed between writing log and state."""
    if log_file is not None:
        with _writing(log_file):
            lines = log_file.read_text(encoding="utf-8").splitlines(keepends=True) if log_file.exists() else []
            log_file.write_text("".join(lines[:count]), encoding="utf-8")


def _append_line(log_file: Path | None, line: str) -> None:
    if log_file is not None:
        with _writing(log_file), log_file.open("a", encoding="utf-8") as log:
            log.write(line + "\n")


@contextmanager
def _writing(log_file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{log_file}: the log of the training cannot be written ({error.strerror or error}); free some space, and "
            "run the same command again to continue"
        ) from error


def scheduled(done: float, peak: float, final: float, warm_up: float) -> float:
    """Return the learning rate: linear warm-up, then a cosine to the final rate. ``done`` is the progress in [0, 1]."""
    if done < warm_up:
        return peak * (done + 1e-3) / (warm_up + 1e-3)
    share = min(1.0, (done - warm_up) / max(1e-9, 1 - warm_up))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * share))
