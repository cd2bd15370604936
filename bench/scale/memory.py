"""Peak memory of ``frevl extract`` on many small images: must not grow with their number.

    python bench/scale/memory.py [--counts 10000 100000] [--encoder packaged]

Every extraction runs in a process of its own, whose peak resident memory the operating system reports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from frevl.provenance import hardware


def draw(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        part = folder / f"{number // 1000:04d}"
        part.mkdir(parents=True, exist_ok=True)
        if not (part / f"{number}.png").exists():
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(part / f"{number}.png")


def measure(images: Path, store: Path, encoder: str) -> dict:
    started = time.perf_counter()
    command = [sys.executable, "-m", "frevl", "extract", "--images", str(images), "--store", str(store)]
    process = subprocess.Popen([*command, "--encoder", encoder, "--quiet"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, "the extraction failed"
    return {"peak_memory_mib": usage.ru_maxrss / 1024, "seconds": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--encoder", default="packaged")
    arguments = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.counts:
            images = Path(folder) / f"images{count}"
            draw(images, count)
            records.append({"images": count, **measure(images, Path(folder) / f"store{count}", arguments.encoder)})
    record = {
        "what": "peak memory of extract",
        "records": records,
        "ratio": records[-1]["peak_memory_mib"] / records[0]["peak_memory_mib"],
        "limit": "1,536 MiB",
        "hardware": hardware(),
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
