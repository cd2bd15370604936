"""The paper's comparison: cost per pair end to end, with cached images, fully cached, and in a joint encoder.

All networks have random weights and their published sizes. Images are tensors in memory, so that decoding and resizing
are never included (`frevl.deployment.efficiency.stages` measures them). The fusion is the same everywhere.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from frevl.deployment.efficiency.profiles import counted_flops, fusion_flops
from frevl.deployment.efficiency.records import NOT_MEASURED, CardMeter, Meter, Record, Show, energy_record
from frevl.deployment.efficiency.stand_ins import (
    ClipTowers,
    drawn_run,
    drawn_towers,
    open_clip_towers,
    open_joint,
    write_drawn,
)
from frevl.deployment.efficiency.timing import Timing, rate_record, ratio, take_turns
from frevl.encoders.hub.torch_copy import fold_quick_gelu
from frevl.models.fusion import Fusion

if TYPE_CHECKING:  # measurements on a device need no store
    from frevl.runs.scorer import Scorer

__all__ = [
    "LIMITS",
    "DeviceWay",
    "Work",
    "break_even",
    "clip_records",
    "device_records",
    "device_ways",
    "joint_on_device",
    "joint_records",
    "saved",
]

# Minimum speed-up over end to end that we promise for ViT-L/14 with `base`.
LIMITS = {"fully cached": 100.0, "half cached": 2.3}
_CACHED_PAIRS = 1024
_STORED = 4096
_WORDS = {
    "end to end": "nothing is cached: both towers, then the fusion",
    "half cached": "images from the store, new texts through their tower, then the fusion",
    "fully cached": f"images and texts from the store, {_CACHED_PAIRS} pairs per batch, through Scorer.score",
}


@dataclass(frozen=True)
class Work:
    """One way to score pairs.

    Attributes:
        pairs: Pairs per call.
        timing: Timing of the call.
        flops: Operations per pair.
        joules: Energy of one call, or None.
    """

    pairs: int
    timing: Timing
    flops: float
    joules: float | None


def break_even(encode: float, write: float, read: float) -> int | None:
    """Return the number of uses of an item from which keeping its embedding is cheaper.

    Without a store, every use costs ``encode``; with one, ``encode + write`` is paid in advance, and ``read`` for each
    use. All costs are in the same unit.

    Returns:
        The smallest whole number ``n`` with ``encode + write + n * read < n * encode``; None if there is none.
    """
    if read >= encode:
        return None
    return math.floor((encode + write) / (encode - read)) + 1


def saved(before: float, after: float) -> float:
    """Return the percentage that ``after`` saves over ``before``."""
    return 100 * (1 - after / before)


def clip_records(
    name: str,
    meter: Meter,
    *,
    preset: str = "base",
    batch: int = 8,
    rounds: int = 3,
    held: bool = False,
    stage_seconds: dict[str, float] | None = None,
    show: Show = str,
) -> tuple[list[Record], dict[str, Work]]:
    """Time the three ways of scoring pairs with one CLIP.

    Args:
        name: Key of `frevl.deployment.efficiency.stand_ins.CLIPS`.
        meter: Measures the energy.
        preset: The fusion's size.
        batch: Pairs per call, end to end and half cached.
        rounds: Number of rounds.
        held: Compare the speed-ups with `LIMITS`.
        stage_seconds: ``decode``, ``write`` and ``read`` of an image in seconds, from
            `frevl.deployment.efficiency.stages`.
        show: Called with a sentence before the measurement.

    Returns:
        Records, and the measurements of each way by name.
    """
    from frevl.runs.scorer import Scorer

    show(f"{name} with {preset}: end to end, half cached, fully cached")
    towers = open_clip_towers(name)
    torch.manual_seed(0)
    network = Fusion.from_preset(preset, image_dim=towers.dim, text_dim=towers.dim, outputs=1)
    drawn = drawn_towers(towers.dim, towers.dim)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        store = write_drawn(Path(folder) / "store", drawn, images=_STORED, texts=_STORED)
        scorer = Scorer(drawn_run(network, drawn, model=preset), store)
        calls = _calls(towers, scorer, batch)
        found = take_turns(calls, rounds=rounds, warm_up=rounds > 1)
        joules = {way: meter.joules(call) for way, call in calls.items()}
        flops = _flops(towers, network)
    ways = {
        way: Work(_CACHED_PAIRS if way == "fully cached" else batch, found[way], flops[way], joules[way])
        for way in _WORDS
    }
    records = []
    for way, work in ways.items():
        title = f"{name}, {way} ({_WORDS[way]}), {preset}"
        record = rate_record(
            "comparison", title, work.timing, items=work.pairs, unit="pairs/s", flops=work.flops, model=name, road=way
        )
        records.append(record)
        records.append(_energy(f"{name}, {way}", work, meter))
    for way, limit in LIMITS.items():
        faster = ratio(found["end to end"], found[way]) * ways[way].pairs / batch
        records.append(
            Record(
                "goals" if held else "comparison",
                f"{name} with {preset}: {way} over end to end",
                faster,
                "times",
                None,
                faster,
                limit if held else None,
                details=_savings(ways["end to end"], ways[way]),
            )
        )
    records.append(_uses(name, found["images"], batch, stage_seconds or {}))
    return records, ways


def joint_records(
    name: str,
    meter: Meter,
    ways: dict[str, Work],
    versus: str,
    *,
    batch: int = 4,
    rounds: int = 3,
    show: Show = str,
) -> list[Record]:
    """Time a joint encoder on pairs and compare it with a CLIP.

    Args:
        name: Key of `frevl.deployment.efficiency.stand_ins.JOINT`.
        meter: Measures the energy.
        ways: From `clip_records`.
        versus: The name of that CLIP.
        batch: Pairs per call.
        rounds: Number of rounds.
        show: Called with a sentence before the measurement.
    """
    joint = open_joint(name)
    show(joint.name)
    one, inputs = joint.inputs(1), joint.inputs(batch)
    with torch.inference_mode():
        flops = counted_flops(joint.network, **one)
        timing = take_turns({"joint": lambda: joint.score(inputs)}, rounds=rounds, warm_up=rounds > 1)["joint"]
        work = Work(batch, timing, flops, meter.joules(lambda: joint.score(inputs)))
    title = f"{joint.name}: every pair runs the whole network"
    record = rate_record(
        "comparison", title, timing, items=batch, unit="pairs/s", flops=flops, model=name, road="joint"
    )
    records = [record, _energy(joint.name, work, meter)]
    each = timing.median / batch
    for way, other in ways.items():
        faster = each / (other.timing.median / other.pairs)
        details = _savings(work, other)
        records.append(
            Record("comparison", f"{versus}, {way}, over {joint.name}", faster, "times", None, faster, details=details)
        )
    return records


def _calls(towers: ClipTowers, scorer: Scorer, batch: int) -> dict[str, Callable[[], object]]:
    """Return the calls to time; ``images`` runs only the image tower."""
    pixels, ids = towers.draw(batch)
    store, fusion = scorer.store, scorer.network
    generator = np.random.default_rng(0)
    stored = [store.image_ids[i] for i in generator.integers(0, _STORED, _CACHED_PAIRS)]
    texts = [store.texts[i] for i in generator.integers(0, _STORED, _CACHED_PAIRS)]
    pairs = list(zip(stored, texts, strict=True))
    image_towers = store.select_towers("image")

    def half() -> Tensor:
        values, _ = store.read("image", stored[:batch], image_towers)
        scores: Tensor = fusion(torch.from_numpy(values).float(), towers.texts(ids))
        return scores

    return {
        "end to end": lambda: fusion(towers.images(pixels), towers.texts(ids)),
        "half cached": half,
        "fully cached": lambda: scorer.score(pairs),
        "images": lambda: towers.images(pixels),
    }


def _flops(towers: ClipTowers, network: Fusion) -> dict[str, float]:
    """Return the operations per pair for each way of scoring."""
    pixels, ids = towers.draw(1)
    image = counted_flops(towers.model.vision_model, pixel_values=pixels)
    text = counted_flops(towers.model.text_model, input_ids=ids)
    fusion = fusion_flops(network.settings)
    return {"end to end": image + text + fusion, "half cached": text + fusion, "fully cached": fusion}


def _energy(name: str, work: Work, meter: Meter) -> Record:
    seconds = work.timing.cpu_median / work.pairs
    return energy_record(name, work.joules, meter, pairs=work.pairs, cpu_seconds=seconds, flops=work.flops)


def _savings(before: Work, after: Work) -> dict[str, float]:
    """Return the percentages saved per pair, for every measured quantity."""
    savings = {
        "percent_less_cpu_seconds": saved(
            before.timing.cpu_median / before.pairs, after.timing.cpu_median / after.pairs
        ),
        "percent_less_flops": saved(before.flops, after.flops),
    }
    if before.joules is not None and after.joules is not None:
        savings["percent_less_energy"] = saved(before.joules / before.pairs, after.joules / after.pairs)
    return savings


def _uses(name: str, images: Timing, batch: int, stage_seconds: dict[str, float]) -> Record:
    """Return the number of uses from which keeping an image's embedding pays off."""
    parts = {
        "encode": images.median / batch + stage_seconds.get("decode", 0.0),
        "write": stage_seconds.get("write", 0.0),
        "read": stage_seconds.get("read", 0.0),
    }
    uses = break_even(**parts)
    value: float | str = "never" if uses is None else uses
    milliseconds = {f"{part}_ms": 1e3 * seconds for part, seconds in parts.items()}
    title = f"{name}: uses of an image from which keeping its embedding costs less"
    return Record("break-even", title, value, "uses", details=milliseconds)


_DEVICE_PAIRS = {"end to end": 128, "half cached": 512, "fully cached": 65_536}
_DEVICE_STORED = 100_000
_DEVICE_SECONDS = 2.0  # seconds per window; a GPU's energy counter is updated in steps


@dataclass(frozen=True)
class DeviceWay:
    """One way to score pairs, with everything on a device.

    Attributes:
        name: Description.
        call: Scores the pairs.
        pairs: Pairs per call.
        flops: Operations per pair.
    """

    name: str
    call: Callable[[], object]
    pairs: int
    flops: float


def device_ways(
    device: str, name: str, towers: ClipTowers, *, preset: str = "base", pairs: Mapping[str, int] = _DEVICE_PAIRS
) -> list[DeviceWay]:
    """Return the three ways of scoring with one CLIP, in float16 on an accelerator, as in extraction and `Scorer`.

    Args:
        device: Device of the towers.
        name: Name of the CLIP.
        towers: The CLIP; its activation is fused (`frevl.encoders.hub.torch_copy`), and it becomes float16.
        preset: The fusion's size.
        pairs: Pairs per call, for each way.
    """
    half = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    network = Fusion.from_preset(preset, image_dim=towers.dim, text_dim=towers.dim, outputs=1)
    pixels, ids = towers.draw(pairs["end to end"])
    one = pixels[:1].to(device), ids[:1].to(device)
    image = counted_flops(towers.model.vision_model, pixel_values=one[0])
    text = counted_flops(towers.model.text_model, input_ids=one[1])
    own = fusion_flops(network.settings)
    fold_quick_gelu(towers.model).to(device, half)
    fusion = network.for_inference().to(device, half)
    pixels, ids = pixels.to(device, half), ids.to(device)
    more = ids[torch.arange(pairs["half cached"], device=device) % len(ids)]
    images, sentences = (torch.randn(_DEVICE_STORED, towers.dim, device=device, dtype=half) for _ in range(2))
    images, sentences = (torch.nn.functional.normalize(one, dim=1) for one in (images, sentences))
    rows, columns = (torch.randint(_DEVICE_STORED, (pairs["fully cached"],), device=device) for _ in range(2))
    few = rows[: pairs["half cached"]]
    calls: dict[str, tuple[Callable[[], object], float]] = {
        "end to end": (lambda: fusion(towers.images(pixels), towers.texts(ids)), image + text + own),
        "half cached": (lambda: fusion(images[few], towers.texts(more)), text + own),
        "fully cached": (lambda: fusion(images[rows], sentences[columns]), own),
    }
    return [DeviceWay(f"{name}, {way}", call, pairs[way], flops) for way, (call, flops) in calls.items()]


def joint_on_device(device: str, name: str, *, pairs: int = 64) -> DeviceWay:
    """Return a joint encoder of `frevl.deployment.efficiency.stand_ins.JOINT`, in float16 on an accelerator."""
    half = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    joint = open_joint(name, device=device)
    flops = counted_flops(joint.network, **joint.inputs(1))
    joint.network.to(device, half)
    inputs = {
        key: value.to(device, half) if value.is_floating_point() else value.to(device)
        for key, value in joint.inputs(pairs).items()
    }
    return DeviceWay(joint.name, lambda: joint.score(inputs), pairs, flops)


def device_records(
    meter: CardMeter, ways: Sequence[DeviceWay], *, seconds: float = _DEVICE_SECONDS, show: Show = str
) -> list[Record]:
    """Time ways of scoring pairs on the meter's device, and measure their energy if it has a counter.

    Args:
        meter: Meter of the device.
        ways: From `device_ways` and `joint_on_device`.
        seconds: Length of each of the three windows.
        show: Called with a sentence before the measurement.
    """
    show(f"Time and energy per pair on {meter.device}")
    idle = meter.rest(seconds)
    records = []
    for way in ways:
        with torch.inference_mode():
            found = meter.measure(way.call, seconds)
        rates = [way.pairs / one for one in found.seconds]
        joules = [one / way.pairs for one in found.joules]
        records.append(_of_windows(way.name, rates, "pairs/s", flops=way.flops, watts=found.watts))
        if joules:
            records.append(_of_windows(f"{way.name}, minus the idle GPU's {idle:.0f} W", joules, "joules per pair"))
        else:
            details = {"reason": meter.reason}
            records.append(Record("accelerator", way.name, NOT_MEASURED, "joules per pair", details=details))
    return records


def _of_windows(name: str, values: list[float], unit: str, **details: object) -> Record:
    spread = {"low": min(values), "high": max(values), "rounds": len(values)}
    return Record("accelerator", name, statistics.median(values), unit, spread, details=details)
