"""What a Ray cluster costs: CPU seconds of `frevl extract` with it over those without, on the same cores.

    python bench/scale/many_nodes.py --images DIR [--few 200] [--many 1200] [--turns 3] [--encoder packaged]

Every turn extracts few and many images both ways, one after the other, so that a machine whose speed drifts does not
decide. All processes count, those of Ray included. What a cluster costs to start is the difference of the few; the
ratio is of what the others take on top. Prints one JSON record.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from frevl.provenance import hardware

PR_SET_CHILD_SUBREAPER = 36


def below(process: int) -> dict[tuple[int, str], float]:
    """Return the CPU seconds of all processes below one, by number and start."""
    parents, used = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        number = int(folder.name)
        parents[number] = int(fields[1])
        used[number] = fields[19], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found, level = {}, {process}
    while level:
        level = {number for number, parent in parents.items() if parent in level}
        found |= {(number, used[number][0]): used[number][1] for number in level}
    return found


def run(images: Path, encoder: str, road: list[str]) -> dict[str, float]:
    """Extract a folder into a new store.

    Returns:
        CPU seconds and seconds by the clock.
    """
    spent: dict[tuple[int, str], float] = {}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-m", "frevl", "extract", "--images", str(images), "--encoder", encoder, "--quiet"]
        before = below(os.getpid())
        started = time.perf_counter()
        process = subprocess.Popen([*command, "--store", f"{folder}/store", *road], stderr=errors, stdout=errors)
        while process.poll() is None:
            # Not what they were when they ended: Ray does not wait for its workers, and nobody is told.
            spent |= below(os.getpid())
            time.sleep(0.05)
        clock = time.perf_counter() - started
        if process.returncode:
            errors.seek(0)
            sys.exit(errors.read().decode())
        for number in {number for number, _ in below(os.getpid())}:  # orphans are ours
            with contextlib.suppress(ChildProcessError):
                os.waitpid(number, os.WNOHANG)
        return {"processor": sum(used - before.get(process, 0.0) for process, used in spent.items()), "clock": clock}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--many", type=int, default=1200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--encoder", default="packaged")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    roads = {"here": [], "nodes": ["--ray"]}
    turns = []
    with tempfile.TemporaryDirectory() as folder:
        for name, count in {"few": options.few, "many": options.many}.items():
            (Path(folder) / name).mkdir()
            for number, file in enumerate(files[:count]):
                shutil.copy(file, Path(folder) / name / f"{number}{file.suffix}")
        for turn in range(options.turns):
            order = list(roads) if turn % 2 == 0 else list(roads)[::-1]
            found = {
                f"{road} {name}": run(Path(folder) / name, options.encoder, roads[road])
                for name in ("few", "many")
                for road in order
            }
            slopes = {
                road: {
                    unit: found[f"{road} many"][unit] - found[f"{road} few"][unit] for unit in ("processor", "clock")
                }
                for road in roads
            }
            turns.append(
                {**found, "ratio": {u: slopes["nodes"][u] / slopes["here"][u] for u in ("processor", "clock")}}
            )
            print(json.dumps(turns[-1]), file=sys.stderr, flush=True)
    start = [turn["nodes few"]["processor"] - turn["here few"]["processor"] for turn in turns]
    record = {
        "pictures": [options.few, options.many],
        "ratio of processor seconds": statistics.median(turn["ratio"]["processor"] for turn in turns),
        "processor seconds to start": statistics.median(start),
        "turns": turns,
        "hardware": hardware(),
    }
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
