"""The PyTorch originals of the packaged encoders, loaded from their packages and ready for export.

Each function returns a `Source`; torch and transformers are imported only when one is called, which happens only if
there is no exported file yet.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frevl.encoders.onnx_session import Source
from frevl.errors import EncoderError, library

if TYPE_CHECKING:
    import torch

__all__ = ["efficientnet", "efficientnet_deep", "efficientnet_early", "minilm", "minilm_deep"]

_COLUMNS = 3


def efficientnet(name: str, side: int, path: Path) -> Source:
    """Load EfficientNet-Lite as a map from ``(side, side, 3)`` uint8 to ``(cells, 1280)``.

    Raises:
        EncoderError: The file does not hold these weights.
    """
    import torch

    network = _load_efficientnet(name, path)

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            grid: torch.Tensor = self.network.extract_features(_planes(pixels))
            return grid[0].flatten(1).transpose(0, 1)

    return Source(Tokens().eval(), {}, _example_images(side))


def efficientnet_deep(name: str, side: int, path: Path) -> Source:
    """Load EfficientNet-Lite as a map from ``(side, side, 3)`` uint8 to ``(1, dim)`` statistics of three depths (ours).

    The parts are concatenated, each at unit length: for the whole width, then for the left, middle and right third of
    the columns (bounds as in adaptive average pooling, so that thirds may share a column), the mean and maximum of the
    last grid; mean, maximum and standard deviation of the input of the stride-16 stage, then of the input of the
    stride-32 stage. The result is divided by the square root of the number of parts. For Lite0 there are 32 parts, ``4
    * (2 * 1280 + 3 * 40 + 3 * 112)`` = 12,064 numbers.

    Raises:
        EncoderError: The file does not hold these weights.
    """
    import torch

    network = _load_efficientnet(name, path)
    # Blocks that halve the grid start the stages of stride 4, 8, 16 and 32.
    starts = [i for i, block in enumerate(network._blocks) if block._depthwise_conv.stride[0] == 2][2:]

    class Statistics(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            body = self.network
            x = body._swish(body._bn0(body._conv_stem(_planes(pixels))))
            entering = []
            for i, block in enumerate(body._blocks):
                if i in starts:
                    entering.append(x)
                x = block(x)
            last = body._swish(body._bn1(body._conv_head(x)))
            parts = []
            for first, stop in [(0, _COLUMNS), *((i, i + 1) for i in range(_COLUMNS))]:
                parts += [_columns(last, first, stop).mean((2, 3)), _columns(last, first, stop).amax((2, 3))]
                for grid in entering:
                    parts += _statistics(_columns(grid, first, stop))
            return _joined(parts)

    return Source(Statistics().eval(), {}, _example_images(side))


def efficientnet_early(name: str, side: int, path: Path) -> Source:
    """Load EfficientNet-Lite as a map from ``(side, side, 3)`` uint8 to ``(1, dim)`` statistics of early layers (ours).

    The parts are concatenated, each at unit length: mean, maximum and standard deviation over the image of the stem and
    of the inputs of the stages of stride 4, 8, 16 and 32; no later layer is run. The result is divided by the square
    root of the number of parts. For Lite0 there are 15 parts, ``3 * (32 + 16 + 24 + 40 + 112)`` = 672 numbers.

    Raises:
        EncoderError: The file does not hold these weights.
    """
    import torch

    network = _load_efficientnet(name, path)
    starts = [i for i, block in enumerate(network._blocks) if block._depthwise_conv.stride[0] == 2]

    class Early(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            body = self.network
            x = body._swish(body._bn0(body._conv_stem(_planes(pixels))))
            parts = _statistics(x)
            for i, block in enumerate(body._blocks[: starts[-1]]):
                if i in starts:
                    parts += _statistics(x)
                x = block(x)
            return _joined([*parts, *_statistics(x)])

    return Source(Early().eval(), {}, _example_images(side))


def minilm(folder: Path, path: Path, longest: int) -> Source:
    """Load MiniLM-L6 as a map from ``(texts, pieces)`` int64 to ``(texts, pieces, 384)``.

    Raises:
        EncoderError: The file does not hold these weights.
    """
    import torch

    network = _load_minilm(folder, path)

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.network(input_ids=ids).last_hidden_state
            return hidden

    return Source(Tokens().eval(), {0: "texts", 1: "pieces"}, _sentences(network.config.vocab_size, longest))


def minilm_deep(folder: Path, path: Path, longest: int) -> Source:
    """Load MiniLM-L6 as a map from ``(texts, pieces)`` int64 without padding to ``(texts, 1, 2688)`` (ours).

    The parts are the means over the pieces of the 7 hidden states, the embedding layer first, each at unit length; the
    result is divided by the square root of 7.

    Raises:
        EncoderError: The file does not hold these weights.
    """
    import torch

    network = _load_minilm(folder, path)

    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            states = self.network(input_ids=ids, output_hidden_states=True).hidden_states
            return _joined([state.mean(1) for state in states])[:, None]

    return Source(Layers().eval(), {0: "texts", 1: "pieces"}, _sentences(network.config.vocab_size, longest))


def _load_efficientnet(name: str, path: Path) -> Any:
    import torch

    network = library("efficientnet_lite_pytorch").EfficientNet.from_name(name)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # another kind of file causes errors in unpickling, in the archive or in the key names
        raise EncoderError(f"'{path.name}' does not hold the weights of {name}; reinstall its package.") from error
    return network


def _load_minilm(folder: Path, path: Path) -> Any:
    from safetensors.torch import load_file

    transformers = library("transformers")
    # "eager" attention is plain matrix products, which ONNX Runtime knows how to fuse.
    config = transformers.BertConfig.from_json_file(folder / "config.json")
    network = transformers.AutoModel.from_config(config, attn_implementation="eager")
    try:
        found = network.load_state_dict(load_file(path), strict=False)
    except Exception as error:  # safetensors and torch have no common exception for a mismatched file
        raise EncoderError(f"'{path.name}' does not hold the weights of MiniLM-L6; reinstall its package.") from error
    if found.missing_keys:
        raise EncoderError(f"'{path.name}' lacks the weights {found.missing_keys[0]}, and perhaps more, of MiniLM-L6.")
    return network


def _planes(pixels: torch.Tensor) -> torch.Tensor:
    # The weights were trained on (x - 127) / 128, not on ImageNet's mean and deviation, which later PyTorch code uses:
    # with the former the inputs of the batch normalisations have the variance stored there (0.86 of it in the stem,
    # on photos), with the latter 4.2 times as much.
    return (pixels.permute(2, 0, 1)[None].float() - 127) / 128


def _statistics(grid: torch.Tensor) -> list[torch.Tensor]:
    """Return mean, maximum and standard deviation over the cells of ``(n, channels, rows, columns)``."""
    mean = grid.mean((2, 3), keepdim=True)
    return [mean[:, :, 0, 0], grid.amax((2, 3)), (grid - mean).square().mean((2, 3)).sqrt()]


def _columns(grid: torch.Tensor, first: int, stop: int) -> torch.Tensor:
    """Return the columns from third ``first`` up to third ``stop`` of ``(n, channels, rows, columns)``."""
    width = grid.shape[3]
    return grid[:, :, :, first * width // _COLUMNS : -(-stop * width // _COLUMNS)]


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Concatenate ``(n, width)`` parts of any widths, each at unit length, so that the whole has unit length."""
    import torch

    return torch.cat([torch.nn.functional.normalize(part, dim=1) for part in parts], dim=1) / math.sqrt(len(parts))


def _example_images(side: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, side)
    images = [
        rng.integers(0, 256, (side, side, 3)),  # noise
        np.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], np.full((side, side), 90)], axis=2),  # colours
        np.kron(rng.integers(0, 256, (5, 5, 3)), np.ones((side // 5 + 1, side // 5 + 1, 1)))[:side, :side],  # blocks
        np.zeros((side, side, 3)),
    ]
    return [image.astype(np.uint8) for image in images]


def _sentences(vocabulary: int, longest: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocabulary, shape) for shape in [(2, 7), (1, 2), (3, 33), (1, longest)]]
