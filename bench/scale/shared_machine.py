"""The speed of a small training alone and alongside other jobs, by thread settings.

    python bench/scale/shared_machine.py [--repetitions 5] [--busy 2]

One process per setting, so that OpenMP reads it; they alternate, each fitting the same ``tiny`` (1,216 synthetic
pairs, 2 epochs), first alone and then alongside processes that compute all the time. A shared machine is never quite
idle: what counts are ratios of medians, and CPU seconds. It also reports whether the weights are bit-identical.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import frevl
from frevl.provenance import hardware

# What OpenMP and MKL read, without anything that the caller has set.
NAMES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS")
BY_HAND: dict[str, dict[str, str]] = {
    "OpenMP's default": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
OURS = "frevl"
PAIRS, EPOCHS, CLASSES, WIDTHS = 1216, 2, 6, (1280, 384)


def work() -> None:
    """Fit once per input line; reply with seconds, CPU seconds and a hash of the weights."""
    import torch

    from frevl.runs.batches import EmbeddedPairs
    from frevl.runs.targets import Answers
    from frevl.training.examples import Examples
    from frevl.training.fitting.fit_model import fit_model
    from frevl.training.options import FusionOptions, Session

    def made(count: int, seed: int) -> Examples:
        random = torch.Generator().manual_seed(seed)
        images, texts = (torch.randn(count, 1, width, generator=random).half() for width in WIDTHS)
        mask, rows = torch.ones(count, 1, dtype=torch.bool), torch.arange(count)
        classes = 3 * (images[:, 0, 0] > 0).long() + (texts[:, 0, 0] > 0).long()
        answers = Answers(classes[:, None], torch.ones(count, 1), soft=False)
        return Examples(EmbeddedPairs(images, mask, texts, mask, rows, rows), answers, rows)

    train, dev = made(PAIRS, 0), made(200, 1)
    options = FusionOptions(epochs=EPOCHS, patience=EPOCHS)
    session = Session(seed=0, time_limit=None, device="cpu", progress=False)
    for _ in sys.stdin:
        started, used = time.perf_counter(), time.process_time()
        network = fit_model("tiny", train, dev, CLASSES, options, session, dev_is_spare=False).network
        seconds, used = time.perf_counter() - started, time.process_time() - used
        weights = hashlib.sha256(b"".join(one.numpy().tobytes() for one in network.state_dict().values()))
        answer = {"seconds": seconds, "processor_seconds": used, "threads": torch.get_num_threads()}
        print(json.dumps({**answer, "weights": weights.hexdigest()[:12]}), flush=True)


def started(setting: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    first = "import frevl.estimators; " if setting == OURS else ""  # the entrance that chooses
    environment.update(BY_HAND.get(setting, {}))
    here = str(Path(__file__).parent)
    code = f"{first}import sys; sys.path.insert(0, {here!r}); import shared_machine; shared_machine.work()"
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def fitted(process: subprocess.Popen[str]) -> dict:
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--busy", type=int, default=2, help="processes that compute all the time")
    given = parser.parse_args()
    processes = {name: started(name) for name in (OURS, *BY_HAND)}
    for process in processes.values():
        fitted(process)  # the first fit of a process makes threads and loads kernels
    records = {}
    for where, count in (("alone", 0), (f"beside {given.busy} busy processes", given.busy)):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        found: dict[str, list[dict]] = {name: [] for name in processes}
        load = os.getloadavg()[0]
        for _ in range(given.repetitions):
            for name, process in processes.items():
                found[name].append(fitted(process))
        for process in busy:
            process.kill()
            process.wait()
        seconds = {name: statistics.median(one["seconds"] for one in runs) for name, runs in found.items()}
        used = {name: statistics.median(one["processor_seconds"] for one in runs) for name, runs in found.items()}
        best = min((name for name in seconds if name != OURS), key=lambda name: seconds[name])
        paired = [one["seconds"] / other["seconds"] for one, other in zip(found[OURS], found[best], strict=True)]
        records[where] = {
            "load_before": load,
            "median_seconds": seconds,
            "median_processor_seconds": used,
            "threads": {name: runs[0]["threads"] for name, runs in found.items()},
            "weights": {name: sorted({one["weights"] for one in runs}) for name, runs in found.items()},
            "best_by_hand": best,
            "ratio": seconds[OURS] / seconds[best],
            "ratio_in_turn": statistics.median(paired),
            "limit": 1.3 if count else 1.03,
        }
    for process in processes.values():
        process.stdin.close()
        process.wait()
    record = {"what": "a small training on a shared machine", "version": frevl.__version__, "records": records}
    print(json.dumps({**record, "hardware": hardware()}, indent=2))


if __name__ == "__main__":
    main()
