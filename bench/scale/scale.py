"""How work grows with the number of pairs: CPU seconds, peak memory, and their exponents. Synthetic data.

    python bench/scale/scale.py pairs   [--counts 300000 3000000]    read a pairs file for the first time, and again
    python bench/scale/scale.py csv, parquet                         the same, in other formats
    python bench/scale/scale.py prepare [--counts 20000 200000]      a pairs file and a store -> what a training needs
    python bench/scale/scale.py linear  [--counts 20000 100000]      fit the linear probe, 3 wrong texts a pair
    python bench/scale/scale.py tiny    [--counts 20000]             one epoch of tiny, items in memory and in a file

Every measurement runs in a process of its own, whose CPU seconds and peak resident memory are reported by the
operating system; ``before_mib`` is the memory of libraries and synthetic data. An exponent of 1 means proportional
growth.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from frevl.provenance import hardware

WIDTH = 256
CAPTIONS = 5  # of an image, in a pairs file
AT_ONCE = 65_536


def write_pairs(folder: Path, count: int, captions: int) -> Path:
    path = folder / "pairs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, count, AT_ONCE):
            file.writelines(
                json.dumps(
                    {"image": f"img/{i // captions:08d}.jpg", "text": f"a caption of a picture, number {i}, a dog"}
                )
                + "\n"
                for i in range(start, min(start + AT_ONCE, count))
            )
    return path


def write_table(folder: Path, count: int, ending: str) -> Path:
    """Write the pairs of `write_pairs` as a text table with a quoted text, or as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"pairs.{ending}"
    starts = range(0, count, AT_ONCE)
    blocks = (range(start, min(start + AT_ONCE, count)) for start in starts)
    rows = (
        ([f"img/{i // CAPTIONS:08d}.jpg" for i in some], [f"a caption of a picture, number {i}, a dog" for i in some])
        for some in blocks
    )
    if ending == "csv":
        with path.open("w", encoding="utf-8") as file:
            file.write("image,text\n")
            for images, texts in rows:
                file.writelines(f'{image},"{text}"\n' for image, text in zip(images, texts, strict=True))
        return path
    with pq.ParquetWriter(path, pa.schema([("image", pa.string()), ("text", pa.string())])) as writer:
        for images, texts in rows:
            writer.write_table(pa.table({"image": images, "text": texts}))
    return path


def write_vectors(folder: Path, count: int) -> None:
    """Write a folder as clip-retrieval does: one image and one caption per row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for part, start in enumerate(range(0, count, AT_ONCE)):
        rows = range(start, min(start + AT_ONCE, count))
        for name in ("img", "text"):
            vectors = random.standard_normal((len(rows), WIDTH), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            np.save(folder / f"{name}_emb/{name}_emb_{part}.npy", vectors.astype(np.float16))
        table = {
            "image_path": [f"img/{i:08d}.jpg" for i in rows],
            "caption": [f"a caption of a picture, number {i}, a dog" for i in rows],
        }
        pq.write_table(pa.table(table), folder / f"metadata/metadata_{part}.parquet")


def matching(count: int, seed: int, *, in_file: bool = False):
    """Make right pairs that share a direction."""
    import torch

    from frevl.runs.batches import EmbeddedPairs
    from frevl.training.examples import Examples
    from frevl.training.mapped_items import Mapped

    random = np.random.default_rng(seed)
    shared = np.random.default_rng(99).standard_normal((16, WIDTH), dtype=np.float32)
    sides = [np.empty((count, 1, WIDTH), np.float16) for _ in range(2)]
    for start in range(0, count, AT_ONCE):
        rows = min(AT_ONCE, count - start)
        meaning = random.standard_normal((rows, 16), dtype=np.float32) @ shared
        for side in sides:
            side[start : start + rows, 0] = (meaning + 4 * random.standard_normal((rows, WIDTH), np.float32)) / 100
    mask, rows, files = torch.ones(count, 1, dtype=torch.bool), torch.arange(count), []
    if in_file:
        for number, side in enumerate(sides):
            with tempfile.TemporaryFile() as file:
                file.write(side.data)
                file.flush()
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            sides[number] = np.frombuffer(mapped, np.float16).reshape(side.shape)
            files.append(Mapped(torch.from_numpy(sides[number]), mask, mapped))
    images, texts = map(torch.from_numpy, sides)
    pairs = EmbeddedPairs(images, mask, texts, mask, rows, rows, files=tuple(files) or None)
    return Examples(pairs, torch.ones(count), rows)


# ---- what is measured: a function of a folder and a count prepares it and returns what is timed


def pairs(folder: Path, count: int) -> Callable[[], object]:
    import pyarrow.compute
    import pyarrow.json  # noqa: F401

    from frevl.data.pairs import read_pairs

    path = folder / "pairs.jsonl"
    if not path.exists():
        write_pairs(folder, count, CAPTIONS)
    return lambda: read_pairs(path)


def table(ending: str) -> Callable[[Path, int], Callable[[], object]]:
    def prepared(folder: Path, count: int) -> Callable[[], object]:
        import pyarrow.compute
        import pyarrow.csv  # noqa: F401

        from frevl.data.pairs import read_pairs

        path = folder / f"pairs.{ending}"
        if not path.exists():
            write_table(folder, count, ending)
        return lambda: read_pairs(path)

    return prepared


def prepare(folder: Path, count: int) -> Callable[[], object]:
    from frevl.store.reader import Store
    from frevl.training.prepare import prepare as prepared

    store, path = folder / "store", folder / "pairs.jsonl"
    if not path.exists():
        write_vectors(folder / "vectors", count)
        command = [sys.executable, "-m", "frevl", "import", str(folder / "vectors"), "--store", str(store), "--quiet"]
        subprocess.run([*command, "--encoder", "made"], check=True, stdout=subprocess.DEVNULL)
        write_pairs(folder, count, 1)
    settings = {"task": "matching", "encoder": None, "seed": 0, "dev_share": 0.1, "min_answer_count": 1}
    # Near copies are looked for up to 200,000 images, in time that grows with their square.
    return lambda: prepared(Store.open(store), path, None, **settings, find_groups=False)


def linear(_: Path, count: int) -> Callable[[], object]:
    from frevl.training.examples import with_wrong_texts
    from frevl.training.fitting.fit_model import fit_model
    from frevl.training.options import LinearOptions, Session

    train, dev = matching(count, 0), with_wrong_texts(matching(2_000, 1), 1, 0)
    session = Session(seed=0, time_limit=None, device="cpu", progress=False)
    return lambda: fit_model("linear", train, dev, 1, LinearOptions(), session, dev_is_spare=False)


def tiny(_: Path, count: int, *, in_file: bool = False) -> Callable[[], object]:
    from frevl.training.fitting.fit_model import fit_model
    from frevl.training.options import FusionOptions, Session

    train, dev = matching(count, 0, in_file=in_file), matching(200, 1)
    session = Session(seed=0, time_limit=None, device="cpu", progress=False)
    return lambda: fit_model("tiny", train, dev, 1, FusionOptions(epochs=1), session, dev_is_spare=False)


def tiny_in_file(folder: Path, count: int) -> Callable[[], object]:
    return tiny(folder, count, in_file=True)


MEASURED = {
    "pairs": pairs,
    "csv": table("csv"),
    "parquet": table("parquet"),
    "prepare": prepare,
    "linear": linear,
    "tiny": tiny,
    "tiny_in_file": tiny_in_file,
}


def child(name: str, folder: Path, count: int) -> None:
    """Prepare, measure, and print; peak memory is that of the process, so inputs in memory are part of it."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    timed = MEASURED[name](folder, count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    started, used = time.perf_counter(), time.process_time()
    kept = timed()
    seconds, used = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found = {"seconds": seconds, "processor_seconds": used, "peak_mib": peak / 2**20, "before_mib": before / 2**20}
    print(json.dumps({**found, "bytes_a_pair": (peak - before) / count}))
    del kept


def measured(name: str, folder: Path, count: int) -> dict:
    environment = {**os.environ, "FREVL_CACHE": str(folder / "cache")}
    command = [sys.executable, __file__, name, "--child", str(folder), str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def exponents(records: list[dict], key: str) -> list[float]:
    ordered = sorted(records, key=lambda one: one["count"])
    return [math.log(b[key] / a[key]) / math.log(b["count"] / a["count"]) for a, b in itertools.pairwise(ordered)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(MEASURED))
    parser.add_argument("--counts", type=int, nargs="+")
    parser.add_argument("--repetitions", type=int, default=3, help="of tiny, in turn")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.what, Path(given.child[0]), int(given.child[1]))
        return
    usual = {
        **{name: [300_000, 3_000_000] for name in ("pairs", "csv", "parquet")},
        "prepare": [20_000, 200_000],
        "linear": [20_000, 100_000],
    }
    records: list[dict] = []
    for count in given.counts or usual.get(given.what, [20_000]):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if given.what == "tiny":
                turns = ("tiny", "tiny_in_file") * given.repetitions
                records += [{"what": name, "count": count, **measured(name, folder, count)} for name in turns]
                continue
            files = ("pairs", "csv", "parquet")
            if given.what in (*files, "prepare"):
                MEASURED[given.what](folder, count)  # writes the files
            records.append({"what": given.what, "count": count, **measured(given.what, folder, count)})
            if given.what in files:
                records.append({"what": f"{given.what} again", "count": count, **measured(given.what, folder, count)})
        print(json.dumps(records[-1]), file=sys.stderr)
    first = [one for one in records if one["what"] == given.what]
    result: dict = {"what": "growth with the number of pairs", "records": records}
    if given.what == "tiny":
        both = [
            [one["processor_seconds"] for one in records if one["what"] == name] for name in ("tiny", "tiny_in_file")
        ]
        result["file_to_memory"] = statistics.median(both[1]) / statistics.median(both[0])
        result["limit"] = 1.05
    else:
        result["exponents"] = exponents(first, "processor_seconds")
    print(json.dumps({**result, "hardware": hardware()}, indent=2))


if __name__ == "__main__":
    main()
