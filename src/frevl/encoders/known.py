"""Encoders that are known to work: what `frevl encoders list` shows.

Widths are those of pooled embeddings; sizes are millions of parameters of both towers, rounded, as their authors or
their configurations give them; licences are those that their publishers name. Any other model of the kinds works too.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KNOWN", "KnownEncoder"]


@dataclass(frozen=True)
class KnownEncoder:
    """One line of the list.

    Attributes:
        name: For `frevl.load_encoder`.
        image_dim: Width of an image embedding; None without an image tower.
        text_dim: Width of a text embedding; None without a text tower.
        millions: Parameters of all its towers, in millions.
        licence: Of the weights.
        common_space: Whether the cosine of image and text means something.
        note: What it is, in a few words.
    """

    name: str
    image_dim: int | None
    text_dim: int | None
    millions: int
    licence: str
    common_space: bool
    note: str


KNOWN = (
    KnownEncoder("packaged", 1280, 384, 26, "Apache-2.0", False, "EfficientNet-Lite0 and MiniLM-L6, nothing to fetch"),
    KnownEncoder("packaged-lite1", 1280, 384, 27, "Apache-2.0", False, "EfficientNet-Lite1 and MiniLM-L6"),
    KnownEncoder("packaged-lite2", 1280, 384, 28, "Apache-2.0", False, "EfficientNet-Lite2 and MiniLM-L6"),
    KnownEncoder("packaged-deep", 12064, 2688, 26, "Apache-2.0", False, "several depths of packaged; pooled only"),
    KnownEncoder("hf:openai/clip-vit-base-patch32", 512, 512, 151, "MIT (code)", True, "CLIP ViT-B/32"),
    KnownEncoder("hf:openai/clip-vit-base-patch16", 512, 512, 150, "MIT (code)", True, "CLIP ViT-B/16"),
    KnownEncoder("hf:openai/clip-vit-large-patch14", 768, 768, 428, "MIT (code)", True, "CLIP ViT-L/14"),
    KnownEncoder("hf:google/siglip-base-patch16-224", 768, 768, 203, "Apache-2.0", True, "SigLIP B/16"),
    KnownEncoder(
        "hf:google/siglip2-base-patch16-224", 768, 768, 375, "Apache-2.0", True, "SigLIP 2 B/16, many languages"
    ),
    KnownEncoder("hf:facebook/dinov2-small", 384, None, 22, "Apache-2.0", False, "DINOv2 S/14, images only"),
    KnownEncoder("hf:facebook/dinov2-base", 768, None, 87, "Apache-2.0", False, "DINOv2 B/14, images only"),
    KnownEncoder("hf:facebook/dinov2-large", 1024, None, 304, "Apache-2.0", False, "DINOv2 L/14, images only"),
    KnownEncoder(
        "hf:sentence-transformers/all-MiniLM-L6-v2", None, 384, 23, "Apache-2.0", False, "texts only, English"
    ),
    KnownEncoder(
        "hf:sentence-transformers/all-mpnet-base-v2", None, 768, 109, "Apache-2.0", False, "texts only, English"
    ),
    KnownEncoder("hf:BAAI/bge-small-en-v1.5", None, 384, 33, "MIT", False, "texts only, English"),
    KnownEncoder("hf:BAAI/bge-base-en-v1.5", None, 768, 109, "MIT", False, "texts only, English"),
    KnownEncoder("toy", 64, 48, 0, "MIT", False, "no weights; for tests"),
)
"""Known good encoders."""
