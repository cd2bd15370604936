"""Images of coloured blobs, which resemble photos in their edges, and vectors that lie near no others."""

from __future__ import annotations

import numpy as np
from PIL import Image

from frevl.diagnosis.curation.copies.picture_match import SIDE


def picture(seed, size=(160, 120)):
    """Blobs of colour as a photo has them: broad ones and fine ones."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(random.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.blend(coarse, fine, 0.4)


def grey(image):
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def sphere(n, seed, width=61):
    random = np.random.default_rng(seed)
    values = random.standard_normal((n, 17)) @ random.standard_normal((17, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
