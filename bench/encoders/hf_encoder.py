"""Measure encoders of the transformers library: ONNX Runtime, with and without int8, against its own call.

CLIP ViT-B/32's image network with random weights: speed does not depend on the weights. The cosine of int8 does, and
may be higher or lower with trained weights. Nothing is downloaded. Rounds of all variants alternate, and the best of
each counts. Prints one JSON record per measurement.

    python bench/encoders/hf_encoder.py [seconds a round]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from encoder import photo, rates
from frevl.encoders.hub.checkpoint import open_checkpoint
from frevl.encoders.hub.image_tower import HuggingFaceImageTower, image_tower
from frevl.provenance import hardware

PICTURES = 32
SIDES = {"onnx": "auto", "int8": "int8"}


def save_clip(folder: Path) -> torch.nn.Module:
    """Save CLIP ViT-B/32 with random weights as the hub has it, and return it."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig()).eval()  # the defaults of the configuration are ViT-B/32
    model.save_pretrained(folder)
    settings = {"image_processor_type": "CLIPImageProcessor"}  # its defaults are CLIP's 224 pixels
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


def records(
    model: torch.nn.Module, towers: dict[str, HuggingFaceImageTower], pictures: list[Image.Image], seconds: float
) -> None:
    prepared = [towers["onnx"].prepare(picture) for picture in pictures]
    pixels = torch.from_numpy(np.stack(prepared))

    def eager() -> torch.Tensor:
        with torch.inference_mode():
            return model.get_image_features(pixel_values=pixels).pooler_output

    expected = torch.nn.functional.normalize(eager()).numpy()
    for tower in towers.values():
        for _ in range(4):  # the size of a run is measured on the first items
            tower.embed(prepared)
    sides = {name: lambda tower=tower: len(tower.embed(prepared).values) for name, tower in towers.items()}
    sides["eager"] = lambda: len(eager())
    best = rates(sides, seconds)
    others = (expected @ expected.T)[~np.eye(len(expected), dtype=bool)]
    for name, limit, cosine_limit in (("onnx", 1.3, 0.9999), ("int8", 1.8, 0.99)):
        cosine = float((expected * towers[name].embed(prepared).values[:, 0]).sum(axis=1).min())
        record = {
            "name": f"images/s of CLIP ViT-B/32 (random weights) on ready tensors, {name} against transformers",
            "value": round(best[name], 2),
            "baseline": round(best["eager"], 2),
            "ratio": round(best[name] / best["eager"], 2),
            "limit": limit,
            "least_cosine": round(cosine, 6),
            "cosine_limit": cosine_limit,
            "mean_cosine_of_different_pictures": round(float(others.mean()), 4),
            "items_a_run": {side: tower.network.sizes.next() for side, tower in towers.items()},
            "hardware": hardware(),
        }
        print(json.dumps(record))


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FREVL_CACHE"] = f"{scratch}/cache"
        folder = Path(scratch) / "clip"
        model = save_clip(folder)
        checkpoint = open_checkpoint(str(folder))
        towers = {name: image_tower(checkpoint, "pooled", (), choice) for name, choice in SIDES.items()}
        records(model, towers, [photo(640, 480, seed) for seed in range(PICTURES)], seconds)


if __name__ == "__main__":
    main()
