"""`frevl bench`: measure the cost of embeddings, fusion and joint encoders on this machine, and when caching pays."""

from __future__ import annotations

import datetime
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frevl.deployment.efficiency.comparison import (
    clip_records,
    device_records,
    device_ways,
    joint_on_device,
    joint_records,
)
from frevl.deployment.efficiency.encoder_forms import encoder_records
from frevl.deployment.efficiency.networks import fusion_records, goal_records, scaling_records
from frevl.deployment.efficiency.records import CardMeter, Record, Show, open_meter
from frevl.deployment.efficiency.stages import stage_records
from frevl.deployment.efficiency.stand_ins import open_clip_towers
from frevl.deployment.efficiency.timing import Limits, measure_limits
from frevl.errors import InputError, library
from frevl.provenance import hardware, provenance

__all__ = ["Benchmark", "bench"]


@dataclass(frozen=True)
class Benchmark:
    """All measurements of one run of `bench`.

    Attributes:
        records: One record per measurement.
        quick: Whether this was the short benchmark.
        date: Date of the benchmark, in UTC.
        seconds: How long it took.
        hardware: Processor, cores, memory, threads.
        versions: Versions of Python and the libraries.
    """

    records: list[Record]
    quick: bool
    date: str
    seconds: float
    hardware: dict[str, Any]
    versions: dict[str, str]

    def record(self) -> dict[str, Any]:
        """Return what `frevl bench --json` writes."""
        named = {name: value for name, value in vars(self).items() if name != "records"}
        return {**named, "records": [one.json(self.hardware) for one in self.records]}


def bench(*, quick: bool = False, out: str | Path | None = None, show: Show = str) -> Benchmark:
    """Measure stages, fusion, the paper's comparison and its goals, all with random weights.

    Args:
        quick: Take less than a minute, with fewer rounds, presets, sizes and encoders.
        out: Write the results as a Markdown page with a roofline plot next to it.
        show: Called with a sentence before every part.

    Returns:
        The measurements.

    Raises:
        MissingExtraError: transformers, onnx or onnxruntime is missing, or matplotlib with ``out``.
        InputError: The page cannot be written.
    """
    library("transformers", "hf")  # check before anything slow
    for name in ("onnx", "onnxscript", "onnxruntime"):
        library(name)
    if out is not None:
        library("matplotlib", "plots")
        _make_folder(Path(out))
    started = time.monotonic()
    records = measure_limits(rounds=3 if quick else 9)
    limits = Limits(*(float(record.value) for record in records))
    records += _quick(limits, show) if quick else _full(limits, show)
    done = Benchmark(
        records=records,
        quick=quick,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        seconds=time.monotonic() - started,
        hardware={**hardware(), "threads": _threads()},
        versions=_versions(),
    )
    if out is not None:
        from frevl.deployment.efficiency.page import write_page

        write_page(done.record(), Path(out))
    return done


def _quick(limits: Limits, show: Show) -> list[Record]:
    records, seconds = stage_records(_encoder(), items=16, rows=4096, rounds=2, show=show)
    records += fusion_records(["tiny"], limits, batches=(1, 1024), kinds=("pooled",), rounds=3, show=show)
    show("Goals: tiny and base against the limit of matrix products")
    records += goal_records(rounds=3)
    meter = open_meter()
    clip, ways = clip_records("CLIP ViT-L/14", meter, batch=1, rounds=1, held=True, stage_seconds=seconds, show=show)
    return [
        *records,
        *clip,
        *joint_records("ViLT", meter, ways, "CLIP ViT-L/14", batch=1, rounds=1, show=show),
        *_on_accelerator(show, seconds=0.5),
    ]


def _full(limits: Limits, show: Show) -> list[Record]:
    records, seconds = stage_records(_encoder(), show=show)
    records += fusion_records(["tiny", "small", "base"], limits, show=show)
    show("Goals: tiny and base against the limit of matrix products")
    records += goal_records()
    show("Scaling with pairs, items, tokens and width")
    records += scaling_records(
        pairs=(1, 4, 16, 64, 256, 1024, 4096),
        items=(8, 32, 128),
        tokens=(1, 4, 16, 49, 196),
        widths=(128, 256, 512, 1024),
    )
    meter = open_meter()
    ways = {}
    for name, batch in (("CLIP ViT-B/32", 16), ("CLIP ViT-L/14", 4)):
        held = name == "CLIP ViT-L/14"
        clip, ways[name] = clip_records(name, meter, batch=batch, held=held, stage_seconds=seconds, show=show)
        records += clip
    for name in ("ViLT", "BLIP"):
        records += joint_records(name, meter, ways["CLIP ViT-B/32"], "CLIP ViT-B/32", show=show)
    return [*records, *_on_accelerator(show), *encoder_records(show=show)]


def _on_accelerator(show: Show, *, seconds: float = 2.0) -> list[Record]:
    """Measure time and energy per pair on the first NVIDIA GPU, if any; bench/accelerator.py measures more."""
    import torch

    if not torch.cuda.is_available():
        return []
    device, name = "cuda:0", "CLIP ViT-L/14"
    ways = device_ways(device, name, open_clip_towers(name, device=device))
    joint = [joint_on_device(device, one) for one in ("ViLT", "BLIP")]
    return device_records(CardMeter(device), [*ways, *joint], seconds=seconds, show=show)


def _make_folder(page: Path) -> None:
    """Create the page's folder first, before spending minutes on a page that could not be written."""
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{page}: the page cannot be written ({error.strerror or error})") from error
    if page.is_dir():
        raise InputError(f"{page}: expected a file for the page, found a folder; give the path of a file in it")


def _encoder() -> str:
    return "packaged" if importlib.util.find_spec("efficientnet_lite_pytorch") else "toy"


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _versions() -> dict[str, str]:
    found = provenance(run="", store_fingerprint="", seed=0)["versions"]
    versions = dict(found) if isinstance(found, dict) else {}
    return {**versions, "transformers": importlib.metadata.version("transformers")}
