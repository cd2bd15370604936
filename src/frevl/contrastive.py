"""The training loop of the first stage: symmetric InfoNCE over large batches taken by index."""

from __future__ import annotations

import contextlib
import math
import time
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from frevl.batches import EmbeddedPairs
from frevl.dual import Dual
from frevl.errors import TrainingError
from frevl.fusion import masked_mean
from frevl.loop import FitReport, scheduled
from frevl.loss import batch_contrast
from frevl.progress import ProgressLine

__all__ = ["fit_dual", "fit_members", "low_precision", "pooled_items"]

_LARGE = 5000  # pairs; with fewer a wide network is slower and not better
_STATISTICS = 50_000  # items from which means and deviations are taken


def fit_members(
    pairs: EmbeddedPairs,
    *,
    members: int = 2,
    seed: int,
    time_limit: float | None = None,
    device: str = "cpu",
    progress: bool = False,
    title: str = "training dual",
    width: int | None = None,
    hidden: int | None = None,
    dropout: float = 0.5,
    input_dropout: float = 0.3,
    epochs: int = 6,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.2,
    warm_up: float = 0.1,
    label_smoothing: float = 0.1,
    gradient_clip: float = 1.0,
) -> tuple[Dual, FitReport]:
    """Train one dual encoder a member, each from another seed, and put them together.

    Args:
        pairs: Right pairs.
        members: How many; their mean cosine ranks better than any of them.
        seed: Of the first member.
        time_limit: Most seconds of all members together; the schedules shrink to it.
        device: Where to train.
        progress: Show a progress line.
        title: Of that line.
        width: Of a member's vectors. None takes 1,024, and 256 for fewer than 5,000 pairs.
        hidden: Width inside a projection. None takes twice the width.
        dropout: Inside a projection.
        input_dropout: On the embeddings.
        epochs: Passes over the pairs.
        batch_size: Pairs a step; all others of the batch are negatives, so large is good.
        learning_rate: Of AdamW, after warm-up; it falls to a thousandth by a cosine.
        weight_decay: Of AdamW.
        warm_up: Share of the training in which the rate rises.
        label_smoothing: Share of the target that is spread over the whole batch.
        gradient_clip: Largest norm of the gradient.

    Returns:
        The network on the CPU in evaluation mode, and how the training went.

    Raises:
        TrainingError: The loss is not finite.
    """
    started = time.monotonic()
    images, texts = pooled_items(pairs.images, pairs.image_mask), pooled_items(pairs.texts, pairs.text_mask)
    width = (1024 if len(pairs) >= _LARGE else 256) if width is None else width
    hidden = 2 * width if hidden is None else hidden
    networks = []
    report: FitReport | None = None
    for number in range(members):
        torch.manual_seed(seed + 1009 * number)
        network = Dual(
            image_dim=images.shape[1], text_dim=texts.shape[1], hidden=hidden, width=width,
            input_dropout=input_dropout, dropout=dropout,
        )  # fmt: skip
        left = None if time_limit is None else max(1.0, time_limit - (time.monotonic() - started)) / (members - number)
        report = fit_dual(
            network, images, texts, pairs.image_rows, pairs.text_rows, seed=seed + 1009 * number, epochs=epochs,
            batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay, warm_up=warm_up,
            label_smoothing=label_smoothing, gradient_clip=gradient_clip, time_limit=left, device=device,
            progress=progress, title=title if members == 1 else f"{title} {number + 1} of {members}",
        )  # fmt: skip
        networks.append(network)
    if report is None:
        raise TrainingError(f"A dual encoder needs at least one member, found {members}")
    seconds = time.monotonic() - started
    return Dual.of(networks), FitReport(report.epochs, report.epochs, report.metric, seconds, report.stopped)


def fit_dual(
    network: Dual,
    images: Tensor,
    texts: Tensor,
    image_rows: Tensor,
    text_rows: Tensor,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    warm_up: float,
    label_smoothing: float,
    gradient_clip: float,
    time_limit: float | None,
    device: str,
    progress: bool,
    title: str,
) -> FitReport:
    """Train a dual encoder of one member; the arguments are those of `fit_members`.

    Args:
        network: Its statistics are taken from the pairs, its weights are trained.
        images: ``(images, image_dim)`` pooled embeddings.
        texts: ``(texts, text_dim)``.
        image_rows: ``(n,)`` int64, the image of each right pair.
        text_rows: ``(n,)`` its text.
        seed: As there, like all that follow.
        epochs: See there.
        batch_size: See there.
        learning_rate: See there.
        weight_decay: See there.
        warm_up: See there.
        label_smoothing: See there.
        gradient_clip: See there.
        time_limit: Of this member.
        device: See there.
        progress: See there.
        title: See there.

    Raises:
        TrainingError: The loss is not finite.
    """
    for projections, values, rows in ((network.image, images, image_rows), (network.text, texts, text_rows)):
        for projection in projections:
            projection.standardise(values[torch.unique(rows)[:_STATISTICS]])  # type: ignore[operator]
    network.to(device).train()
    decayed = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in network.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    steps = max(1, round(len(image_rows) / batch_size))
    started, stopped, epoch, loss_value = time.monotonic(), "epochs", 0, math.nan
    with ProgressLine(title, epochs * steps, enabled=progress) as line:
        for epoch in range(epochs):
            torch.manual_seed(seed * 100_003 + epoch)  # dropout
            random = torch.Generator().manual_seed(seed * 100_003 + epoch)
            for batch, rows in enumerate(torch.randperm(len(image_rows), generator=random).tensor_split(steps)):
                done = (epoch + batch / steps) / epochs
                if time_limit is not None:
                    done = max(done, (time.monotonic() - started) / time_limit)
                    if done >= 1 and epoch + batch > 0:
                        stopped = "time"
                        break
                for group in optimiser.param_groups:
                    group["lr"] = scheduled(done, learning_rate, learning_rate / 1000, warm_up)
                image, text = image_rows[rows], text_rows[rows]
                # An image that stands in the batch with several captions is one column with several positives.
                columns, places = torch.unique(image, return_inverse=True)
                with low_precision(device):
                    image_vectors = network.image_vectors(images[columns].to(device).float())
                    text_vectors = network.text_vectors(texts[text].to(device).float())
                similarity = network.scale * text_vectors @ image_vectors.T
                loss = batch_contrast(similarity, places.to(device), text.to(device), label_smoothing=label_smoothing)
                loss_value = loss.item()
                if not math.isfinite(loss_value):
                    raise TrainingError(
                        f"The loss of the dual encoder must be finite, found {loss_value} in epoch {epoch + 1}, batch "
                        f"{batch + 1} of {steps}; lower --learning-rate, or look for broken embeddings with: "
                        "frevl store verify"
                    )
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(decayed + plain, gradient_clip)
                optimiser.step()
                line.advance(note=f"epoch {epoch + 1}/{epochs}  loss {loss_value:.3f}")
            if stopped == "time":
                break
    network.to("cpu").eval()
    return FitReport(epoch + 1, epoch + 1, loss_value, time.monotonic() - started, stopped)


def pooled_items(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens of all items, ``(n, dim)`` in the stored type."""
    if values.shape[1] == 1:
        return values[:, 0]
    parts = zip(values.split(512), mask.split(512), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([masked_mean(v.float(), m).to(values.dtype) for v, m in parts])


def low_precision(device: str) -> AbstractContextManager[object]:
    """Multiply in bfloat16 while training where the processor has matrix instructions for it (AMX).

    Matrix products are then seven times as fast (docs/experiments.md); emulated, they would be slower than float32.
    Scores are always computed in float32.
    """
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if torch.device(device).type == "cpu" and capabilities.get("amx_bf16", False):
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()
