"""Merging parts and removing rows in stores with many synthetic rows: seconds, peak memory, growth on disk.

    python bench/scale/many_rows.py 1000000 FOLDER

The rows have 64 float16 dimensions and valid checksums. Each step runs in a process of its own. Elapsed seconds
depend on the machine and its load; docs/many-machines.md gives CPU seconds, memory and bytes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from frevl.encoders.registry import load_encoder
from frevl.store.canaries import tower_records
from frevl.store.sharding.shares import Shard, Share, begin_part, finish_part
from frevl.store.towers import Tower, checksum
from frevl.store.writer import StoreWriter

SHARDS = 4
ROWS_A_COMMIT = 65_536

STEP = """
import json, resource, sys, time
from frevl.store.sharding.merging import merge
from frevl.store.upkeep.removal import remove
started, used = time.monotonic(), time.process_time()
done = {call}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({{"done": done, "wall_s": round(time.monotonic() - started, 1),
    "cpu_s": round(time.process_time() - used, 1), "peak_mb": round(peak)}}))
"""


def name_of(row: int) -> str:
    return f"folder{row // 10_000:05}/{row:09}.png"


def write_part(folder: Path, towers: list[Tower], shard: Shard, rows: int) -> None:
    tower = next(one for one in towers if one.modality == "image")
    mine = list(Share(shard).own(range(rows), name_of))
    with StoreWriter(folder) as writer:
        part = begin_part(folder, shard, empty=True)
        writer.register(towers)
        schema = writer._rows("image", [], {}).schema
        for start in range(0, len(mine), ROWS_A_COMMIT):
            some = mine[start : start + ROWS_A_COMMIT]
            ids, hashes = [name_of(row) for row in some], [f"{row:032x}" for row in some]
            vectors = np.random.default_rng(start).normal(size=(len(some), tower.dim)).astype(np.float16)
            sums = [checksum(id_, hash_, v) for id_, hash_, v in zip(ids, hashes, vectors, strict=True)]
            filled = [[{"tower": tower.name, "crc32": crc32}] for crc32 in sums]
            columns = [
                pa.array(ids), pa.array(hashes), pa.array(np.full(len(some), 99)), pa.array(np.full(len(some), 7)),
                pa.array(filled, schema.field("filled").type),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), tower.dim),
            ]  # fmt: skip
            writer._tables.append("images", pa.Table.from_arrays(columns, schema=schema))
        finish_part(folder, part, lists={}, pairs=[], rows=writer.rows())


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def step(call: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", STEP.format(call=call)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    rows, folder = int(sys.argv[1]), Path(sys.argv[2])
    towers = tower_records(load_encoder("toy"), dtype="float16")
    parts = [folder / str(number) for number in range(1, SHARDS + 1)]
    started = time.monotonic()
    for number, part in enumerate(parts, start=1):
        shutil.rmtree(part, ignore_errors=True)
        write_part(part, towers, Shard(number, SHARDS), rows)
    print(f"{rows:,} rows in {SHARDS} parts made in {time.monotonic() - started:.0f} s", flush=True)
    merged = folder / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merge = f"merge({[str(part) for part in parts]!r}, into={str(merged)!r}).images"
    first = step(merge)
    assert first["done"] == rows
    print("merge      ", first, f"{size(merged) / 1e6:,.0f} MB", flush=True)
    again = step(merge)
    assert again["done"] == 0
    print("merge again", again, flush=True)
    for share in (10_000, 100):
        gone = [
            name_of(row) for row in np.random.default_rng(share).choice(rows, rows // share, replace=False).tolist()
        ]
        (folder / "gone.txt").write_text("\n".join(gone))
        before, files = size(merged), {file.name for file in (merged / "images.lance" / "data").iterdir()}
        found = step(f"remove({str(merged)!r}, ids={str(folder / 'gone.txt')!r}).removed")
        assert {file.name for file in (merged / "images.lance" / "data").iterdir()} == files  # nothing is written again
        print(f"remove {rows // share:,}", found, f"grew by {(size(merged) - before) / 1e3:,.0f} kB", flush=True)


if __name__ == "__main__":
    main()
