"""The loop of gradient descent that a first stage and a reranker share: schedule, loss, backward, step, top to bottom.

`frevl.loop.fit` has one of its own, which also judges every epoch, keeps the best and goes on after an interruption.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from frevl.errors import TrainingError
from frevl.loop import FitReport, scheduled
from frevl.progress import ProgressLine

__all__ = ["descend"]


def descend(
    network: nn.Module,
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    count: int,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    warm_up: float,
    gradient_clip: float,
    time_limit: float | None,
    progress: bool,
    title: str,
    remedy: str,
    decay_vectors: bool = False,
) -> FitReport:
    """Train a network by AdamW; afterwards it is on the CPU in evaluation mode.

    Every random choice follows from seed and epoch. The learning rate rises, then falls to a thousandth by a cosine;
    with a time limit the schedule shrinks to it, so that a short training is annealed too.

    Args:
        network: On its device.
        loss_of: From ``(n,)`` numbers of training rows and the generator of random choices to the loss of this batch.
        count: Training rows.
        seed: Of order, dropout and whatever the loss draws.
        epochs: Passes over the rows.
        batch_size: Rows a step.
        learning_rate: Highest.
        weight_decay: Of AdamW.
        warm_up: Share of the training in which the rate rises.
        gradient_clip: Largest norm of the gradient.
        time_limit: Most seconds.
        progress: Show a progress line.
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
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)
    steps = max(1, round(count / batch_size))
    started, stopped, epoch, value = time.monotonic(), "epochs", 0, math.nan
    with ProgressLine(title, epochs * steps, enabled=progress) as line:
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
                    group["lr"] = scheduled(done, learning_rate, learning_rate / 1000, warm_up)
                loss = loss_of(rows, random)
                value = loss.item()
                if not math.isfinite(value):
                    raise TrainingError(
                        f"{title}: expected a finite loss, found {value} in epoch {epoch + 1}, batch {batch + 1} of "
                        f"{steps}; {remedy}"
                    )
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(trained, gradient_clip)
                optimiser.step()
                line.advance(note=f"epoch {epoch + 1}/{epochs}  loss {value:.3f}")
            if stopped == "time":
                break
    network.to("cpu").eval()
    return FitReport(epoch + 1, epoch + 1, value, time.monotonic() - started, stopped)
