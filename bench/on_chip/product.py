"""(h) What the commands run on a device: the results of a processor, no waits in loops, smaller batches in need."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from frevl.encoders.onnx_session import Source
from frevl.encoders.runtime import open_in_torch
from frevl.models.fusion import Fusion
from frevl.models.retrieval.two_tower import TwoTower
from frevl.runs.batches import EmbeddedPairs, grid_scorer, list_logits, placed, vectors_of
from frevl.training.examples import Examples
from frevl.training.fitting import recorded_steps
from frevl.training.fitting.pairwise import fusion_loss
from frevl.training.loop import gradient_descent
from frevl.training.options import FusionOptions, Session
from on_chip.fusions import DIM, IMAGE_TOKENS, TEXT_TOKENS, made_examples
from on_chip.measure import Chip, Record

PART = "p product"
_STEPS = (24, 48)  # by the end of the fewer all kinds of batches are recorded; the loop looks at losses after 50
_ROOM = 256 << 20  # bytes that are left on the device where memory is to end


def roads(chip: Chip) -> Iterator[Record]:
    """Run scoring, grids, vectors, training and extraction as the commands do, beside the same on a processor."""
    torch.manual_seed(0)
    device = str(chip.device)
    for kind in ("pooled", "tokens"):
        pairs = made_pairs(chip, kind)
        dim = pairs.images.shape[2]
        preset = "tiny" if chip.quick else "base"
        network = Fusion.from_preset(preset, image_dim=dim, text_dim=dim, outputs=3).eval()
        exact = list_logits(network.for_inference(), pairs, 256)
        there = placed(network, device)
        for size in (len(pairs), -(-len(pairs) // 3)):
            found = list_logits(there, pairs, size, device)
            yield _near(f"scores of {kind} pairs, {size} at once", found, exact, 1e-2)
        with torch.inference_mode():
            grid = grid_scorer(there, pairs, 64, device)(pairs.image_rows, pairs.text_rows).cpu()
        yield _near(f"a grid of {kind} pairs", grid, exact, 1e-2)
        yield from _full(chip, there, pairs, exact, kind)
    towers = TwoTower(image_dim=dim, text_dim=dim, hidden=64, width=32).eval()
    items, mask = pairs.images.numpy(), pairs.image_mask.numpy()
    exact = torch.from_numpy(vectors_of(towers.image_vectors, items, mask, 64, "cpu"))
    found = torch.from_numpy(vectors_of(placed(towers, device).image_vectors, items, mask, 64, device))
    yield _near("vectors of a first stage", found, exact, 1e-5)
    yield from _recorded(chip)
    yield from _replicas(chip)
    yield from _waits(chip)


def made_pairs(chip: Chip, kind: str) -> EmbeddedPairs:
    """Draw pairs of a few items, whose images and texts are pooled or tokens of different number."""
    random, dim = torch.Generator().manual_seed(0), 32 if chip.quick else DIM
    count, items = (12, 4) if chip.quick else (1024, 64)
    sides = []
    for most in (IMAGE_TOKENS, TEXT_TOKENS) if kind == "tokens" else (1, 1):
        values = nn.functional.normalize(torch.randn(items, most, dim, generator=random), dim=-1).half()
        mask = torch.arange(most) < torch.randint(1, most + 1, (items, 1), generator=random)
        sides += [values, mask]
    rows = (torch.randint(items, (count,), generator=random) for _ in range(2))
    return EmbeddedPairs(*sides, *rows)


def _near(name: str, found: Tensor, exact: Tensor, goal: float, **details: Any) -> Record:
    worst = float((found.float() - exact).abs().max())
    name = f"{name}: largest difference from the processor's"
    return Record(PART, name, worst, "", ratio=worst, goal=goal, at_most=True, details=details)


def _full(chip: Chip, network: Any, pairs: EmbeddedPairs, exact: Tensor, kind: str) -> Iterator[Record]:
    """Score with so little memory left that a batch has to be halved; a processor is made to refuse large batches."""
    with _notes() as notes, _little_memory(chip, network):
        found = list_logits(network, pairs, len(pairs), str(chip.device))
    title = f"scores of {kind} pairs where memory ends"
    if notes or kind == "tokens":  # pooled pairs may fit even so
        yield _near(title, found, exact, 1e-2, notes=len(notes))
        halved = float(len(notes) > 0)
        yield Record(PART, f"{title}: a smaller batch was used", halved, "", ratio=halved, goal=1.0,
                     details={"last_note": notes[-1] if notes else ""})  # fmt: skip


@contextlib.contextmanager
def _little_memory(chip: Chip, network: nn.Module) -> Iterator[None]:
    if chip.cuda:
        torch.cuda.empty_cache()
        whole = torch.cuda.mem_get_info(chip.device)[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + _ROOM) / whole, chip.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, chip.device)
        return

    def refuse(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 4:
            raise torch.OutOfMemoryError("the memory ended, as was to be tried")

    hook = network.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def _notes() -> Iterator[list[str]]:
    """Collect what is logged about memory."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("frevl")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def _recorded(chip: Chip) -> Iterator[Record]:
    """Train with dropout and mixup, with and without recorded steps: the loss of every epoch, and how fast it was."""
    classes = made_examples(chip, pairs=64 if chip.quick else 16_384, classes=8)
    matches = Examples(classes.pairs, torch.ones(len(classes)), classes.clusters)
    session = Session(seed=0, time_limit=None, device=str(chip.device), progress=False)
    dim = classes.pairs.images.shape[2]
    for name, examples, outputs in (("classes", classes, 8), ("matching", matches, 1)):
        losses, speeds = [], []
        for most in (recorded_steps._MOST, 0):
            torch.manual_seed(0)
            network = Fusion.from_preset("tiny", image_dim=dim, text_dim=dim, outputs=outputs)
            options = FusionOptions(epochs=2 if chip.quick else 6, batch_size=32 if chip.quick else 256)
            loss = fusion_loss(network, examples.on(chip.device), outputs, options=options, device=session.device)
            with (
                TemporaryDirectory() as folder,
                _notes() as notes,
                mock.patch.object(recorded_steps, "_MOST", most),
            ):
                log = Path(folder) / "log"
                report = gradient_descent(
                    network,
                    loss,
                    len(examples),
                    options=options,
                    session=session,
                    title="made",
                    remedy="-",
                    log_file=log,
                )
                lines = [json.loads(line) for line in log.read_text().splitlines()]
            losses.append([sum(line["losses"].values()) for line in lines])
            speeds.append(report.epochs * len(examples) / report.seconds)
            if notes:
                yield Record(PART, f"training for {name}: {notes[-1]}", None, "")
        worst = max(abs(a - b) / b for a, b in zip(*losses, strict=True))
        yield Record(PART, f"training for {name}, steps recorded: largest difference of an epoch's loss from the same"
                     " training without, as a share of it", worst, "", ratio=worst, goal=0.02, at_most=True,
                     details={"losses": [one[-1] for one in losses]})  # fmt: skip
        yield Record(PART, f"tiny trained for {name}, batches of 256, steps recorded", speeds[0], "pairs/s",
                     details={"times_as_fast_as_without": speeds[0] / speeds[1]})  # fmt: skip


def _replicas(chip: Chip) -> Iterator[Record]:
    """Extraction by one copy of a network for each device; where there is one device, by two copies on it."""
    count = torch.cuda.device_count() if chip.cuda else 1
    devices = [f"cuda:{n}" for n in range(count)] if count > 1 else [str(chip.device)] * 2
    network = _Mapped().eval().requires_grad_(False)
    items = list(np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32))
    found = np.stack(open_in_torch(Source(network, {0: "batch"}, []), devices)(items))
    with torch.inference_mode():
        exact: Tensor = network(torch.from_numpy(np.stack(items)))
    yield _near(f"embeddings by {len(devices)} copies of a network", torch.from_numpy(found), exact, 1e-2)


class _Mapped(nn.Module):
    """A network that takes inputs of any type, as those of encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(n, 64)`` to ``(n, 16)``."""
        found: Tensor = self.maps(x.to(next(self.parameters()).dtype))
        return found


def _waits(chip: Chip) -> Iterator[Record]:
    """How often the processor waits for the device in each further step of a loop, as PyTorch itself notices."""
    classes = made_examples(chip, pairs=_STEPS[1] * 3, classes=4)
    matches = Examples(classes.pairs, torch.ones(len(classes)), classes.clusters)
    session = Session(seed=0, time_limit=None, device=str(chip.device), progress=False)
    dim = classes.pairs.images.shape[2]
    for name, examples, outputs in (("classes", classes, 4), ("matching", matches, 1)):

        def train(steps: int, examples: Examples = examples, outputs: int = outputs) -> None:
            network = Fusion.from_preset("tiny", image_dim=dim, text_dim=dim, outputs=outputs)
            options = replace(FusionOptions(), epochs=1, batch_size=len(classes) // steps)
            loss = fusion_loss(network, examples.on(chip.device), outputs, options=options, device=session.device)
            gradient_descent(network, loss, len(classes), options=options, session=session, title="made", remedy="-")

        yield _further(chip, f"training for {name}", train)
    scorer = placed(Fusion.from_preset("tiny", image_dim=dim, text_dim=dim, outputs=4), session.device)
    yield _further(
        chip, "scoring", lambda steps: list_logits(scorer, classes.pairs, len(classes) // steps, session.device)
    )


def _further(chip: Chip, name: str, call: Callable[[int], object]) -> Record:
    few, many = _STEPS
    call(few)
    counts = [_synchronised(chip, call, steps) for steps in (few, many)] if chip.cuda else None
    if not chip.cuda:
        call(many)
    each = None if counts is None else (counts[1] - counts[0]) / (many - few)
    return Record(PART, f"{name}: waits for the device in a step", each, "", ratio=each, goal=0.0, at_most=True)


def _synchronised(chip: Chip, call: Callable[[int], object], steps: int) -> int:
    chip.sync()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in seen)
