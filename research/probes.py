"""Probe an encoder with drawn images from nothing, and say what it holds and how long that took.

Prints one JSON record, and the table of research/experiments/log.md on standard error.

    python -m research.probes [encoder]
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from frevl.diagnosis.embeddings.probe_fits import probe_encoder
from frevl.diagnosis.embeddings.probe_pictures import SKILLS
from frevl.diagnosis.embeddings.probes import shortfall
from frevl.encoders.registry import load_encoder
from frevl.evaluation.intervals import bootstrap_interval
from frevl.provenance import hardware

LIMIT = 180  # seconds, on two cores with the packaged encoder


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "packaged"
    load_encoder(name)  # its export to ONNX, once a machine, is not what is measured
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        probed = probe_encoder(name, cache=Path(cache), progress=True)
    seconds = time.perf_counter() - started
    ways = list(probed.hits)
    table = [["skill", "guessing", *ways], ["---"] * (2 + len(ways))]
    for skill, asked in SKILLS.items():
        intervals = [bootstrap_interval(np.array(probed.hits[way][skill])) for way in ways]
        cells = [f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]" for one in intervals]
        table.append([skill, f"{100 * asked.chance:.1f}", *cells])
    gaps = [shortfall(probed, way) for way in ways]
    table.append(["fine-grained behind semantic", "", *(f"{g.value:.1f} [{g.low:.1f}, {g.high:.1f}]" for g in gaps)])
    sys.stderr.write("".join(f"| {' | '.join(row)} |\n" for row in table))
    record = {
        "measurement": f"probes of {name}",
        "seconds": round(seconds, 1),
        "steps": {step: round(value, 1) for step, value in probed.seconds.items()},
        "ratio": round(seconds / LIMIT, 3),
        "limit": LIMIT,
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "hardware": hardware(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
