"""(d) Frozen encoders as ``frevl extract`` runs them, and (e) the paper's comparison: time and joules per pair."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frevl.deployment.efficiency.comparison import device_ways, joint_on_device
from frevl.deployment.efficiency.profiles import counted_flops
from frevl.deployment.efficiency.records import CardMeter
from frevl.deployment.efficiency.stand_ins import ClipTowers, clip_config, open_clip_towers
from frevl.encoders.onnx_session import Source
from frevl.encoders.runtime import open_in_torch
from frevl.machine import processors
from on_chip.fusions import HALF, big_product, product_flops
from on_chip.measure import Chip, Record, kernel_profile, quotient, rate, timed

NAME = "CLIP ViT-L/14"
_SMALL = (32, 16, 64, 2, 64, 2, 32)  # sizes of --quick, as in `frevl.deployment.efficiency.stand_ins.CLIPS`


class ImageTower(nn.Module):
    """Pixels to ``(n, 1, dim)``: what `frevl.encoders.hub.networks.image_source` makes of a CLIP."""

    def __init__(self, towers: ClipTowers) -> None:
        super().__init__()
        self.model = towers.model.vision_model
        self.projection = towers.model.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed ``(n, 3, side, side)`` pixels of any type."""
        pixels = pixels.to(self.projection.weight.dtype)
        embedded: Tensor = self.projection(self.model(pixel_values=pixels).pooler_output)[:, None]
        return embedded


def towers_of(chip: Chip) -> ClipTowers:
    """ViT-L/14 with random weights; with ``--quick`` a network of the same make in miniature."""
    torch.manual_seed(0)
    if not chip.quick:
        return open_clip_towers(NAME, device=str(chip.device))
    import transformers

    config = clip_config(_SMALL)
    return ClipTowers(transformers.CLIPModel(config).eval(), config.projection_dim, _SMALL[0], 77)


def images(chip: Chip) -> Iterator[Record]:
    """(d) Images a second: eager by type, and through the runtime of ``extract``, pixels in the processor's memory."""
    towers = towers_of(chip)
    pixels, _ = towers.draw(2 if chip.quick else 256)
    flops = counted_flops(towers.model.vision_model, pixel_values=pixels[:1].to(chip.device))
    tower = ImageTower(towers).eval().requires_grad_(False)
    source = Source(tower, {0: "batch"}, [])
    network = open_in_torch(source, [str(chip.device) if chip.cuda else "cpu"])
    waiting = [image.numpy() for image in pixels] * (1 if chip.quick else 8)
    network(waiting if chip.quick else waiting * 2)  # chooses its batch size
    on_chip = pixels.to(chip.device)
    calls: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for name, dtype in {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.items():
        if name == "fp16" and not chip.cuda:
            continue
        few = on_chip[:32] if name == "fp32" else on_chip
        calls[f"eager {name}"], counts[f"eager {name}"] = _eager(tower, chip, dtype, few), len(few)
    for name in ["fp32", *(HALF if chip.cuda else ("bf16",))]:
        calls[name] = big_product(chip, {"fp32": torch.float32, **HALF}[name])
    with torch.inference_mode():
        calls["extract"] = lambda: network(waiting)
        found = timed(chip, calls, rounds=3)
    work = product_flops(chip)
    for name, count in counts.items():
        share = quotient(found[name.split()[1]], found[name]) * flops * count / work
        yield rate("d images", f"{NAME}, {name}, batch {count}, pixels on the device", found[name], count,
                   "images/s", share_of_product=share)  # fmt: skip
    extract = found["extract"]
    share = quotient(found["fp16" if chip.cuda else "fp32"], extract) * flops * len(waiting) / work
    profile = {}
    if share < 0.5 and chip.cuda:
        profile = kernel_profile(chip, calls["extract"])
    yield rate("d images", f"{NAME}, the runtime of extract, pixels in the processor's memory, decoding left out",
               extract, len(waiting), "images/s", ratio=share, goal=0.5, share_of_product=share, flops_an_image=flops,
               images_a_run=network.sizes.next(), profile=profile)  # fmt: skip
    yield from decoding(chip)


def _eager(tower: nn.Module, chip: Chip, dtype: torch.dtype, pixels: Tensor) -> Any:
    import copy

    twin = copy.deepcopy(tower).to(chip.device, dtype)
    batch = pixels.to(dtype)
    return lambda: twin(batch)


def decoding(chip: Chip) -> Iterator[Record]:
    """The stage before: JPEG of 640 x 480 to 224 x 224 pixels, by Pillow where it is installed."""
    try:
        from PIL import Image

        from frevl.encoders.images import read_image
    except ModuleNotFoundError:
        yield Record("d images", "decode and resize: not measured, Pillow is not installed", None, "images/s")
        return
    coarse = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    data, count = buffer.getvalue(), 8 if chip.quick else 1024

    def prepare(_: int) -> np.ndarray:
        image = read_image(data, target=224).resize((298, 224), Image.Resampling.BICUBIC).crop((37, 0, 261, 224))
        return np.asarray(image, np.float32).transpose(2, 0, 1) / 255

    seconds = []
    with ThreadPoolExecutor(processors()) as pool:
        for _ in range(3):
            started = time.perf_counter()
            list(pool.map(prepare, range(count)))
            seconds.append(time.perf_counter() - started)
    yield rate("d images", f"decode and resize, {processors()} cores, JPEG of 640 x 480", seconds, count, "images/s")


def comparison(chip: Chip, meter: CardMeter) -> Iterator[Record]:
    """(e) Time and energy a pair of every way, and the ratios of the paper's headline."""
    idle = meter.rest(0.1 if chip.quick else 2.0)
    yield Record("e comparison", "power of the idle chip, subtracted below", idle if meter.reason == "" else None, "W",
                 details={"reason": meter.reason})  # fmt: skip
    device, towers = str(chip.device), towers_of(chip)
    few = {"pairs": {"end to end": 2, "half cached": 4, "fully cached": 8}, "preset": "tiny"} if chip.quick else {}
    ways = device_ways(device, NAME, towers, **few)
    joint = [] if chip.quick else [joint_on_device(device, name) for name in ("ViLT", "BLIP")]
    each: dict[str, tuple[list[float], list[float]]] = {}
    for way in (*ways, *joint):
        with torch.inference_mode():
            found = meter.measure(way.call, chip.seconds)
        each[way.name] = ([one / way.pairs for one in found.seconds], [one / way.pairs for one in found.joules])
        spent = each[way.name][1]
        yield rate("e comparison", way.name, found.seconds, way.pairs, "pairs/s", flops=way.flops,
                   joules_a_pair=statistics.median(spent) if spent else None,
                   joules_low_high=[min(spent), max(spent)] if spent else None,
                   watts=statistics.median(found.watts) if found.watts else None)  # fmt: skip
    whole, half, full = (each[way.name] for way in ways)
    yield _faster(f"{NAME}: fully cached over end to end", whole, full, 1000.0)
    yield _faster(f"{NAME}: half cached over end to end", whole, half, None)
    for way in joint:
        operations = {"ratio_of_operations": way.flops / ways[1].flops}
        yield _faster(f"half cached over {way.name}", each[way.name], half, 2.3, **operations)
        yield _less(f"half cached over {way.name}: percent fewer joules per pair", each[way.name], half, 52.0)
        yield _faster(f"fully cached over {way.name}", each[way.name], full, None)


def _faster(
    name: str, slow: tuple[list[float], ...], fast: tuple[list[float], ...], goal: float | None, **details: float
) -> Record:
    ratio = quotient(slow[0], fast[0])
    if fast[1]:
        details["joules_ratio"] = statistics.median(slow[1]) / max(1e-12, statistics.median(fast[1]))
    return Record("e comparison", name, ratio, "times", ratio=ratio, goal=goal, details=details)


def _less(name: str, before: tuple[list[float], ...], after: tuple[list[float], ...], goal: float) -> Record:
    if not before[1]:
        return Record("e comparison", name, None, "percent")
    saved = 100 * (1 - statistics.median(after[1]) / statistics.median(before[1]))
    return Record("e comparison", name, saved, "percent", ratio=saved, goal=goal)
