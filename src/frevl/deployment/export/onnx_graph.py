"""A run's network as an ONNX graph: brought into a form that can be traced, traced, and inputs to try it with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from frevl.encoders.onnx_session import name_axes, quiet_export
from frevl.errors import RunError
from frevl.models.baselines import Linear, Majority, Mlp
from frevl.models.ensemble import Average
from frevl.models.fusion import Fusion
from frevl.models.inputs import masked_mean
from frevl.models.kernel_ridge import KernelFusion, kernel_matrix
from frevl.models.retrieval.reranker import Reranked, Standardised
from frevl.models.retrieval.two_tower import Cosine, Dual, Projection
from frevl.runs.batches import Inputs
from frevl.runs.calibration import calibrated
from frevl.runs.run import Run

__all__ = ["drawn_inputs", "exportable", "judged_one_by_one", "remembers", "traced"]


class _WholeKernel(nn.Module):
    """`KernelFusion.forward` without its loop over blocks of pairs, which a graph of any batch cannot hold."""

    def __init__(self, network: KernelFusion) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        net = self.network
        v = net.normal_image(image if image.dim() == 2 else masked_mean(image, image_mask))
        t = net.normal_text(text if text.dim() == 2 else masked_mean(text, text_mask))
        seen = net.blind_share + (1 - net.blind_share) * kernel_matrix(v, net.images, net.image_width)
        kernel = kernel_matrix(t, net.texts, net.text_width)[:, net.text_rows] * seen[:, net.image_rows]
        return kernel @ net.alphas + net.mean


class _FlatFusion(nn.Module):
    """A folded fusion whose graph has no axis of tokens where there are none.

    Linear maps of two axes become ``Gemm``, which takes the bias along; ``MatMul`` and ``Add`` took 3 % longer.
    """

    def __init__(self, network: Fusion) -> None:
        super().__init__()
        self.network = network.folded()

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        net = self.network
        logits: Tensor
        if image.dim() == 3 or text.dim() == 3:
            logits = net(image, text, image_mask, text_mask)
            return logits
        v, t = gelu(net.image_projection(image)), gelu(net.text_projection(text))
        for block in net.blocks:
            v, t = _flat_block(block, v, t)
        parts = [v, t] + ([v * t] if net.product else []) + ([(v - t).abs()] if net.difference else [])
        logits = net.head(torch.cat(parts, dim=1))
        return logits


def _flat_block(block: Any, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """`frevl.models.blocks.Block`, folded, on ``(n, d)``."""
    if block.cross is not None:
        v_seen, t_seen = block.cross.image_norm(v), block.cross.text_norm(t)
        v = v + block.cross.image_reads_text.output_value(t_seen)
        t = t + block.cross.text_reads_image.output_value(v_seen)
    return v + block.image_ffn(block.image_norm(v)), t + block.text_ffn(block.text_norm(t))


def _folded(network: nn.Module) -> nn.Module:
    return _FlatFusion(network) if isinstance(network, Fusion) else network


def _averaged(network: nn.Module) -> nn.Module:
    if not isinstance(network, Average):
        return network
    average = copy.deepcopy(network)
    average.members = nn.ModuleList(_EXPORTABLE[type(member)](member) for member in average.members)
    return average


def _unrolled(network: nn.Module) -> nn.Module:
    return _WholeKernel(network) if isinstance(network, KernelFusion) else network


def _inner_folded(network: nn.Module) -> nn.Module:
    if not isinstance(network, Reranked) or network.fusion is None:
        return network
    twin = copy.deepcopy(network)
    if twin.fusion is not None:
        twin.fusion.fusion = twin.fusion.fusion.folded()
    return twin


_EXPORTABLE: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
    Average: _averaged,
    Cosine: _folded,
    Dual: _folded,
    Fusion: _folded,
    KernelFusion: _unrolled,
    Linear: _folded,
    Majority: _folded,
    Mlp: _folded,
    Reranked: _inner_folded,
}


def exportable(network: nn.Module, place: Path, *, int8: bool) -> nn.Module:
    """Return the same function in a form that the exporter takes: folded, and without loops over pairs.

    Args:
        network: A run's network.
        place: The run, for the message.
        int8: Whether its products shall become integers.

    Raises:
        RunError: A network of this kind cannot be exported, or not in 8-bit integers.
    """
    if type(network) not in _EXPORTABLE:
        raise RunError(
            f"{place}: a network of the kind {type(network).__name__} cannot be exported as one graph; "
            f"expected one of {', '.join(sorted(kind.__name__ for kind in _EXPORTABLE))}"
        )
    if int8 and any(isinstance(module, KernelFusion) for module in network.modules()):
        raise RunError(
            f"{place}: a kernel fusion cannot be exported in int8, because its distances are small differences of "
            "large numbers; leave --int8 out"
        )
    return _EXPORTABLE[type(network)](network)


class _Answering(nn.Module):
    """A network that says logits and calibrated probabilities."""

    def __init__(self, network: nn.Module, calibration: dict[str, float], *, soft: bool) -> None:
        super().__init__()
        self.network, self.calibration, self.soft = network, calibration, soft

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        logits = self.network(image, text, image_mask, text_mask)
        # A reranker has a logit of its own for the probability, the last one.
        judged = logits[:, -1:] if isinstance(self.network, Reranked) else logits
        return logits, calibrated(judged, self.calibration, soft=self.soft)


def traced(network: nn.Module, run: Run) -> Any:
    """Trace a network.

    Args:
        network: What `exportable` returned, in evaluation mode.
        run: The run that it belongs to, for its calibration and towers.

    Returns:
        An ``onnx.ModelProto`` with inputs of any number of pairs and tokens (docs/export.md).

    Raises:
        RunError: The exporter gives up.
    """
    whole = _Answering(network, run.calibration, soft=judged_one_by_one(run)).eval()
    image, text, image_mask, text_mask = drawn_inputs(run, 5, text_tokens=7)
    axes: list[dict[int, str] | None] = []
    for name, values in (("image", image), ("text", text)):
        tokens = {1: f"{name}_tokens"} if values.dim() == 3 else {}
        # Majority and cosine do not know how wide embeddings are.
        width = {} if _width(run, name) else {values.dim() - 1: f"{name}_width"}
        axes.append({0: "batch", **tokens, **width})
    for name, mask in (("image", image_mask), ("text", text_mask)):
        axes.append(None if mask is None else {0: "batch", 1: f"{name}_tokens"})
    given = {"image": image, "text": text, "image_mask": image_mask, "text_mask": text_mask}
    with quiet_export(), torch.no_grad():
        program = torch.onnx.export(
            whole,
            (image, text, image_mask, text_mask),
            input_names=[name for name, value in given.items() if value is not None],
            output_names=["logits", "probabilities"],
            dynamic_shapes=tuple(axes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise RunError("PyTorch's ONNX exporter returned nothing; install the versions in constraints.txt")
    name_axes(program.model, {name: own for name, own in zip(given, axes, strict=True) if own is not None})
    return program.model_proto


def judged_one_by_one(run: Run) -> bool:
    """Tell whether every output has a probability of its own (sigmoid), or all sum to one (softmax)."""
    return run.task == "matching" or bool(run.results.get("soft_targets", False))


def drawn_inputs(run: Run, count: int, *, text_tokens: int) -> Inputs:
    """Draw embeddings at random for the towers of a run.

    They have the mean and deviation of the training embeddings where the network remembers them (see `remembers`),
    else unit length, as encoders give them.

    Args:
        run: The run that shall read them.
        count: Number of pairs.
        text_tokens: Most tokens of a text, if the run reads tokens; lengths from 2 on are drawn.

    Returns:
        What `Fusion.forward` takes.
    """
    generator = torch.Generator().manual_seed(0)
    values: dict[str, Tensor] = {}
    masks: dict[str, Tensor | None] = {}
    for modality, towers in run.towers.items():
        kinds = [identity["tokens"] for identity in towers.values()]
        pooled = all(kind == "pooled" for kind in kinds)
        tokens = 1 if pooled else _image_tokens(kinds) if modality == "image" else text_tokens
        drawn = torch.randn(count, tokens, _width(run, modality) or _least_width(run), generator=generator)
        known = _statistics(run.network, modality)
        if known is None:
            drawn *= len(kinds) ** 0.5 / drawn.norm(dim=2, keepdim=True)  # each tower's part has a length near 1
        else:
            mean, scale = known
            drawn = mean + drawn * scale.where(scale.isfinite(), 0.0)  # infinite: never varied in training
        values[modality] = drawn[:, 0] if pooled else drawn
        masks[modality] = None if pooled else torch.ones(count, tokens, dtype=torch.bool)
        if modality == "text" and not pooled:
            lengths = torch.randint(2, tokens + 1, (count, 1), generator=generator)
            masks[modality] = torch.arange(tokens) < lengths
    return values["image"], values["text"], masks["image"], masks["text"]


def remembers(run: Run) -> bool:
    """Tell whether the run's network holds mean and deviation of its training embeddings."""
    return _statistics(run.network, "image") is not None


def _statistics(network: nn.Module, modality: str) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation ``(dim,)`` of a modality in training, from the first part that standardises by them."""
    for module in network.modules():
        if isinstance(module, KernelFusion | Standardised):
            return getattr(module, f"{modality}_mean").detach(), getattr(module, f"{modality}_scale").detach()
        if isinstance(module, Dual):
            side = (module.image if modality == "image" else module.text)[0]
            if isinstance(side, Projection):
                return side.mean.detach(), side.scale.detach()
        if isinstance(module, Linear):
            width, other = int(module.settings["image_dim"]), int(module.settings["text_dim"])
            part = slice(0, width) if modality == "image" else slice(width, width + other)
            return module.mean.detach()[part], module.scale.detach()[part]
    return None


def _image_tokens(kinds: list[str]) -> int:
    rows, _, columns = kinds[0].partition("x")
    return int(rows) * int(columns) if rows.isdigit() and columns.isdigit() else 49


def _width(run: Run, modality: str) -> int:
    """Width of the network's embeddings; 0 if it takes any."""
    return next((int(width) for width in _settings(run.network_settings, f"{modality}_dim")), 0)


def _least_width(run: Run) -> int:
    """Columns that a network without a width of its own reads at most."""
    spaces: list[list[int]] = next(_settings(run.network_settings, "spaces"), [])
    return max((stop for space in spaces for stop in space), default=8)


def _settings(settings: Any, name: str) -> Iterator[Any]:
    """Values of a setting of a network and of the networks inside it."""
    if isinstance(settings, dict):
        if name in settings:
            yield settings[name]
        settings = list(settings.values())
    if isinstance(settings, list):
        for inner in settings:
            yield from _settings(inner, name)
