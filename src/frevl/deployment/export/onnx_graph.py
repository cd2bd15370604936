"""Trace a run's network as an ONNX graph, and draw random inputs to test it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frevl.encoders.onnx_session import name_axes, quiet_export
from frevl.errors import RunError
from frevl.models.interface import PairNetwork
from frevl.runs.batches import Inputs
from frevl.runs.calibration import calibrated
from frevl.runs.run import Run, settings_named

__all__ = ["drawn_inputs", "exportable", "has_input_statistics", "has_own_probabilities", "traced"]


def exportable(network: PairNetwork, place: Path, *, int8: bool) -> nn.Module:
    """Return the same network in a form that the exporter accepts (`PairNetwork.for_export`), in evaluation mode.

    Args:
        network: A run's network.
        place: The run, for the message.
        int8: Whether its matrix products will be quantised.

    Raises:
        RunError: The network cannot be quantised to 8-bit integers.
    """
    if int8 and network.no_int8:
        raise RunError(f"{place}: the run cannot be exported in int8, because {network.no_int8}; leave out --int8")
    return network.for_export().eval()


class _WithProbabilities(nn.Module):
    """A network with two outputs: logits and calibrated probabilities."""

    def __init__(
        self,
        network: nn.Module,
        select: Callable[[Tensor], Tensor],
        calibration: dict[str, float],
        *,
        soft: bool,
    ) -> None:
        super().__init__()
        self.network, self.select, self.calibration, self.soft = network, select, calibration, soft

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        logits = self.network(image, text, image_mask, text_mask)
        return logits, calibrated(self.select(logits), self.calibration, soft=self.soft)


class _OfOneSide(nn.Module):
    """A network for images only, or texts only, with one input."""

    def __init__(self, network: nn.Module, side: str) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, items: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        absent = items.new_zeros(items.shape[0], 0)
        inputs = (items, absent, mask, None) if self.side == "image" else (absent, items, None, mask)
        logits, probabilities = self.network(*inputs)
        return logits, probabilities


def traced(network: nn.Module, run: Run) -> Any:
    """Trace a network.

    Args:
        network: What `exportable` returned, in evaluation mode.
        run: The network's run, for its calibration and towers.

    Returns:
        An ``onnx.ModelProto`` with inputs of any number of pairs and tokens (docs/export.md); a run for images only, or
        texts only, has just that side's inputs.

    Raises:
        RunError: The network cannot be traced.
    """
    select = run.network.probability_logits
    whole: nn.Module = _WithProbabilities(network, select, run.calibration, soft=has_own_probabilities(run)).eval()
    image, text, image_mask, text_mask = drawn_inputs(run, 5, text_tokens=7)
    given = {"image": image, "text": text, "image_mask": image_mask, "text_mask": text_mask}
    if len(run.sides) == 1:
        (side,) = run.sides
        whole = _OfOneSide(whole, side).eval()
        given = {side: given[side], f"{side}_mask": given[f"{side}_mask"]}
    axes: list[dict[int, str] | None] = []
    for name in run.sides:
        values = image if name == "image" else text
        tokens = {1: f"{name}_tokens"} if values.dim() == 3 else {}
        # Majority and cosine have no embedding width of their own.
        width = {} if _width(run, name) else {values.dim() - 1: f"{name}_width"}
        axes.append({0: "batch", **tokens, **width})
    masked = {name: given[f"{name}_mask"] is not None for name in run.sides}
    axes += [{0: "batch", 1: f"{name}_tokens"} if has_mask else None for name, has_mask in masked.items()]
    try:
        with quiet_export(), torch.no_grad():
            program = torch.onnx.export(
                whole,
                tuple(given.values()),
                input_names=[name for name, value in given.items() if value is not None],
                output_names=["logits", "probabilities"],
                dynamic_shapes=tuple(axes),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    # Tracing runs the network symbolically, so any kind of error may occur.
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise RunError(
            f"{run.path}: a network of the kind '{run.network_name}' cannot be exported as one graph ({reason}); "
            "its `for_export` must return a form without value-dependent branches or loops over pairs"
        ) from error
    if program is None:
        raise RunError("PyTorch's ONNX exporter returned nothing; install the versions in constraints.txt")
    name_axes(program.model, {name: own for name, own in zip(given, axes, strict=True) if own is not None})
    return program.model_proto


def has_own_probabilities(run: Run) -> bool:
    """Return whether every output has its own probability (sigmoid) rather than all summing to one (softmax)."""
    return run.task == "matching" or bool(run.results.get("soft_targets", False))


def drawn_inputs(run: Run, count: int, *, text_tokens: int) -> Inputs:
    """Draw random embeddings for the towers of a run.

    They have the mean and standard deviation of the training embeddings if the network stores them
    (`has_input_statistics`), else unit length, as encoders return them.

    Args:
        run: The run that will read them.
        count: Number of pairs.
        text_tokens: Maximum tokens per text, if the run reads tokens; lengths are drawn from 2 upwards.

    Returns:
        The inputs of `PairNetwork.forward`; ``(count, 0)`` for a side that the run does not read.
    """
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Tensor] = {}
    masks: dict[str, Tensor | None] = {}
    for modality, towers in run.towers.items():
        if not towers:
            values[modality], masks[modality] = torch.zeros(count, 0), None
            continue
        kinds = [identity["tokens"] for identity in towers.values()]
        pooled = all(kind == "pooled" for kind in kinds)
        tokens = 1 if pooled else _image_tokens(kinds) if modality == "image" else text_tokens
        drawn = torch.randn(count, tokens, _width(run, modality) or _least_width(run), generator=generator)
        known = run.network.input_statistics()
        if known is None:
            drawn *= len(kinds) ** 0.5 / drawn.norm(dim=2, keepdim=True)  # each tower's part has a length near 1
        else:
            mean, scale = known[0] if modality == "image" else known[1]
            drawn = mean + drawn * scale.where(scale.isfinite(), 0.0)  # infinite: constant in training
        values[modality] = drawn[:, 0] if pooled else drawn
        masks[modality] = None if pooled else torch.ones(count, tokens, dtype=torch.bool)
        if modality == "text" and not pooled:
            lengths = torch.randint(2, tokens + 1, (count, 1), generator=generator)
            masks[modality] = torch.arange(tokens) < lengths
    return values["image"], values["text"], masks["image"], masks["text"]


def has_input_statistics(run: Run) -> bool:
    """Return whether the network stores the mean and standard deviation of its training embeddings."""
    return run.network.input_statistics() is not None


def _image_tokens(kinds: list[str]) -> int:
    rows, _, columns = kinds[0].partition("x")
    return int(rows) * int(columns) if rows.isdigit() and columns.isdigit() else 49


def _width(run: Run, modality: str) -> int:
    """Return the network's embedding width; 0 if it accepts any."""
    return next((int(width) for width in settings_named(run.network_settings, f"{modality}_dim")), 0)


def _least_width(run: Run) -> int:
    """Return the minimum width that a network without a fixed width needs."""
    spaces: list[list[int]] = next(settings_named(run.network_settings, "spaces"), [])
    return max((stop for space in spaces for stop in space), default=8)
