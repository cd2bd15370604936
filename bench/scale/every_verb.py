"""Every command on a store of many synthetic rows, under a hard memory limit: CPU seconds and peaks.

    python bench/scale/every_verb.py make FOLDER --rows 1000000 [--width 512] [--texts 200000]
    python bench/scale/every_verb.py run FOLDER [--limit-mib 4096] [--seconds 900] -- info STORE

``make`` writes FOLDER/store with images and texts of one fictitious encoder whose towers share a space: a mixture of
clusters in 48 dimensions, mapped to the full width, with noise; ids, content hashes and checksums are right. Next to it
FOLDER/pairs.jsonl has a right pair for every image, FOLDER/labelled.jsonl a class for every image. ``run`` runs a
command of frevl in a process whose private writable memory cannot grow beyond the limit (RLIMIT_DATA: everything but
what is mapped from files), and prints one JSON record: CPU seconds, the peak of resident memory (including pages of
mapped files, which the system reclaims when it needs room), and the peak of the part that no file backs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

LATENT, NOISE_ROWS, AT_ONCE, CLASSES = 48, 16_384, 65_536, 10


class Mixture:
    """Unit vectors of images and their texts, by number; a text lies near the first image of its number."""

    def __init__(self, rows: int, width: int) -> None:
        random = np.random.default_rng(0)
        self.centres = random.standard_normal((max(50, rows // 100), LATENT)).astype(np.float32)
        self.map = (random.standard_normal((LATENT, width)) / LATENT**0.5).astype(np.float32)
        self.noise = 0.1 * random.standard_normal((NOISE_ROWS, width)).astype(np.float32)

    def draw(self, first: int, count: int, *, of_texts: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(count, width)`` float16 unit vectors, starting at a number, and the class of each."""
        random = np.random.default_rng((1, first))
        centres = random.integers(len(self.centres), size=count)
        latent = self.centres[centres] + 0.7 * random.standard_normal((count, LATENT)).astype(np.float32)
        if of_texts:
            latent += 0.2 * random.standard_normal((count, LATENT)).astype(np.float32)
        vectors = latent @ self.map
        vectors += self.noise[random.integers(NOISE_ROWS, size=count)]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float16), centres % CLASSES


def image_id(row: int) -> str:
    return f"img/{row:09d}.jpg"


def content_hash(row: int) -> str:
    """Return 32 digits of which the first 16 differ too: runs keep those of the images that they have seen."""
    return f"{row * 0x9E3779B97F4A7C15 % 2**64:016x}{row:016x}"


def text_id(row: int) -> str:
    return f"a caption of a picture, number {row}, a dog"


def make(folder: Path, rows: int, width: int, texts: int) -> None:
    """Write the store and its files."""
    import pyarrow as pa

    from frevl.store.importing.identity import declared_towers
    from frevl.store.towers import checksum
    from frevl.store.writer import StoreWriter

    folder.mkdir(parents=True, exist_ok=True)
    kept = {"revision": "made", "preprocessing": "none", "common_space": True, "dtype": "float16"}
    towers = declared_towers("made", {"image": width, "text": width}, **kept)
    made = Mixture(rows, width)
    with StoreWriter(folder / "store") as writer, (folder / "labelled.jsonl").open("w") as labelled:
        writer.register(list(towers.values()))
        for modality, count, name in (("text", texts, text_id), ("image", rows, image_id)):
            tower, schema = towers[modality], writer._rows(modality, [], {}).schema
            for start in range(0, count, AT_ONCE):
                numbers = range(start, min(start + AT_ONCE, count))
                vectors, classes = made.draw(start, len(numbers), of_texts=modality == "text")
                ids, hashes = [name(row) for row in numbers], [content_hash(row) for row in numbers]
                sums = [checksum(*row) for row in zip(ids, hashes, vectors, strict=True)]
                filled = [[{"tower": tower.name, "crc32": crc32}] for crc32 in sums]
                columns = [
                    pa.array(ids), pa.array(hashes), pa.array(np.full(len(ids), 99)), pa.array(np.full(len(ids), 7)),
                    pa.array(filled, schema.field("filled").type),
                    pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width),
                ]  # fmt: skip
                writer._tables.append(f"{modality}s", pa.Table.from_arrays(columns, schema=schema))
                if modality == "image":
                    lines = zip(ids, classes.tolist(), strict=True)
                    labelled.writelines(f'{{"image": "{id_}", "target": "class {one}"}}\n' for id_, one in lines)
    with (folder / "pairs.jsonl").open("w") as pairs:
        pairs.writelines(f'{{"image": "{image_id(i)}", "text": "{text_id(i % texts)}"}}\n' for i in range(rows))


def run(command: list[str], limit_mib: int, seconds: float) -> dict:
    """Run a command of frevl under the limit and return what it took."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_mib << 20, limit_mib << 20))

    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "frevl", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=limited,
    )  # fmt: skip
    anonymous = watched(process, started + seconds)
    out, errors = process.communicate()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "command": " ".join(command),
        "exit": process.returncode,
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "seconds": round(time.monotonic() - started, 1),
        "peak_mib": usage.ru_maxrss >> 10,
        "peak_without_files_mib": anonymous[0] >> 10,
        "limit_mib": limit_mib,
        "load": os.getloadavg()[0],
        "said": (out[-600:], errors[-600:]),
    }


def watched(process: subprocess.Popen, end: float) -> list[int]:
    """Sample the memory of a process ten times per second in a thread, and stop it when its time is up."""
    most = [0]

    def look() -> None:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            most[0] = max([most[0], *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
            if time.monotonic() > end:
                process.terminate()
                return
            time.sleep(0.1)

    threading.Thread(target=look, daemon=True).start()
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--limit-mib", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=900)
    asked = sys.argv[1:]
    end = asked.index("--") if "--" in asked else len(asked)
    given = parser.parse_args(asked[:end])
    if given.what == "make":
        make(given.folder, given.rows, given.width, given.texts)
        return
    os.chdir(given.folder)
    print(json.dumps(run(asked[end + 1 :], given.limit_mib, given.seconds), indent=1))


if __name__ == "__main__":
    main()
