"""What an accelerator makes of the whole package: one command, at most 8 minutes, one JSON file and one page.

    python bench/accelerator.py [--json FILE] [--page FILE] [--quick] [--only a,b] [--minutes 8]

It needs PyTorch, numpy and transformers, and neither a store nor Pillow. Each part has its own share of the time and is
guarded: one that fails is named on the page and costs no other part; the JSON file is written after every part.
``--quick`` runs the same code with tiny sizes on a processor; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from frevl.deployment.efficiency.records import CardMeter
from frevl.provenance import hardware
from on_chip import encoders, fusions, neighbours, product
from on_chip.measure import Chip, Record, limits
from on_chip.page import page

Part = Callable[[], Iterator[Record]]


def main() -> None:
    """Measure, part by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("accelerator.json"))
    parser.add_argument("--page", type=Path, help="Write the page there.")
    parser.add_argument("--quick", action="store_true", help="Tiny sizes on a processor.")
    parser.add_argument("--only", default="", help="Letters of the parts, with commas.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="One of the three windows of energy.")
    parser.add_argument("--minutes", type=float, default=8.0, help="No part begins after so long.")
    given = parser.parse_args()
    if not given.quick and not torch.cuda.is_available():
        parser.error("there is no NVIDIA device here; --quick runs tiny sizes on a processor")
    device = torch.device("cpu" if given.quick else "cuda:0")
    chip = Chip(device, given.quick, 1 if given.quick else given.rounds, given.seconds)
    run(chip, given)


def run(chip: Chip, given: argparse.Namespace) -> None:
    """Measure every part that is asked for and write what was found."""
    started = time.monotonic()
    torch.backends.cuda.matmul.allow_tf32 = False
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {"device": chip.name(), "torch": torch.__version__, **hardware()},
        "quick": given.quick,
        "rounds": chip.rounds,
        "window": chip.seconds,
        "records": [],
        "failures": {},
        "seconds_by_part": {},
    }
    bounds, records = limits(chip)
    found["records"] += [record.json() for record in records]
    meter = CardMeter(str(chip.device))
    parts: dict[str, Part] = {
        "a": lambda: fusions.same_scores(chip),
        "p": lambda: product.roads(chip),
        "e": lambda: encoders.comparison(chip, meter),
        "d": lambda: encoders.images(chip),
        "g": lambda: neighbours.search(chip, bounds),
        "f": lambda: neighbours.rerank(chip),
        "b": lambda: fusions.throughput(chip, "pooled"),
        "c": lambda: fusions.training(chip),
        "t": lambda: fusions.throughput(chip, "tokens"),
    }
    only = set(given.only.split(",")) - {""} or set(parts)
    for letter, part in parts.items():
        if letter not in only:
            continue
        if time.monotonic() - started > 60 * given.minutes:
            found["failures"][letter] = "not begun: the time was up"
            continue
        began = time.monotonic()
        try:
            for record in part():
                found["records"].append(record.json())
                print(line(record), flush=True)
                found["seconds"] = time.monotonic() - started
                given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                if time.monotonic() - started > 60 * given.minutes:
                    found["failures"][letter] = "not finished: the time was up"
                    break
        except Exception as error:  # whatever it is, the other parts are measured
            traceback.print_exc()
            found["failures"][letter] = f"{type(error).__name__}: {str(error).strip()[:300]}"
        gc.collect()
        if chip.cuda:
            torch.cuda.empty_cache()
        found["seconds_by_part"][letter] = round(time.monotonic() - began, 1)
        found["seconds"] = time.monotonic() - started
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.page is not None:
        given.page.write_text(page(found), encoding="utf-8")
    print(json.dumps({"seconds": found.get("seconds"), **found["seconds_by_part"], "failures": found["failures"]}))


def line(record: Record) -> str:
    """One line of the log."""
    value = "not measured" if record.value is None else f"{record.value:.5g} {record.unit}"
    goal = (
        ""
        if record.met is None
        else f"  ratio {record.ratio:.4g} goal {record.goal:g} {'ok' if record.met else 'MISSED'}"
    )
    share = [f"{name} {value:.3f}" for name, value in record.details.items() if "share" in name and value is not None]
    return f"{record.part[0]} {record.name}: {value}{goal} {' '.join(share)}"


if __name__ == "__main__":
    main()
