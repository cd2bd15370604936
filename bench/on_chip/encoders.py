"""(d) Frozen encoders as ``frevl extract`` runs them, and (e) the paper's comparison: time and joules a pair."""

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

from frevl.deployment.efficiency.profiles import counted_flops, fusion_flops
from frevl.deployment.efficiency.stand_ins import ClipTowers, clip_config, open_clip_towers, open_joint
from frevl.encoders.hub.torch_copy import fold_quick_gelu
from frevl.encoders.interface import processors
from frevl.encoders.onnx_session import Source
from frevl.encoders.runtime import open_in_torch
from frevl.models.fusion import Fusion
from on_chip.fusions import HALF, big_product, product_flops
from on_chip.measure import Chip, Joules, Record, kernel_profile, quotient, rate, timed

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


class Ways:
    """A pair scored end to end, half cached and fully cached: one CLIP, one ``base``, all on the device."""

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.half = torch.float16 if chip.cuda else torch.float32
        towers = towers_of(chip)
        pixels, ids = towers.draw(2 if chip.quick else 128)
        meta = fusion_flops(Fusion.from_preset("base", image_dim=towers.dim, text_dim=towers.dim, outputs=1).settings)
        image = counted_flops(towers.model.vision_model, pixel_values=pixels[:1].to(chip.device))
        text = counted_flops(towers.model.text_model, input_ids=ids[:1].to(chip.device))
        self.flops = {"end to end": image + text + meta, "half cached": text + meta, "fully cached": meta}
        fold_quick_gelu(towers.model).to(chip.device, self.half)  # as extract runs it
        preset = "tiny" if chip.quick else "base"
        network = Fusion.from_preset(preset, image_dim=towers.dim, text_dim=towers.dim, outputs=1)
        fusion = network.for_inference().to(chip.device, self.half)
        few, texts, many = len(pixels), 4 if chip.quick else 512, 8 if chip.quick else 65_536
        pixels, ids = pixels.to(chip.device, self.half), ids.to(chip.device)
        more = ids[torch.arange(texts, device=chip.device) % few]
        stored = 64 if chip.quick else 100_000
        images = nn.functional.normalize(chip.randn(stored, towers.dim, dtype=self.half), dim=1)
        sentences = nn.functional.normalize(chip.randn(stored, towers.dim, dtype=self.half, seed=1), dim=1)
        rows = torch.randint(stored, (many,), device=chip.device)
        columns = torch.randint(stored, (many,), device=chip.device)
        self.pairs = {"end to end": few, "half cached": texts, "fully cached": many}
        self.calls: dict[str, Any] = {
            "end to end": lambda: fusion(towers.images(pixels), towers.texts(ids)),
            "half cached": lambda: fusion(images[rows[:texts]], towers.texts(more)),
            "fully cached": lambda: fusion(images[rows], sentences[columns]),
        }


def joint_call(chip: Chip, name: str) -> tuple[str, Any, int, int]:
    """A joint encoder in half precision: its name, a call, pairs a call and operations a pair."""
    torch.manual_seed(0)
    joint = open_joint(name, device=str(chip.device))
    pairs = 1 if chip.quick else 64
    flops = counted_flops(joint.network, **joint.inputs(1))
    half = torch.float16 if chip.cuda else torch.float32
    joint.network.to(chip.device, half)
    inputs = {
        key: value.to(chip.device, half) if value.is_floating_point() else value.to(chip.device)
        for key, value in joint.inputs(pairs).items()
    }
    return joint.name, lambda: joint.score(inputs), pairs, flops


def comparison(chip: Chip, joules: Joules) -> Iterator[Record]:
    """(e) Time and energy a pair of every way, and the ratios of the paper's headline."""
    idle = joules.rest(0.1 if chip.quick else 2.0)
    yield Record("e comparison", "power of the idle chip, subtracted below", idle if joules.reason == "" else None, "W",
                 details={"reason": joules.reason})  # fmt: skip
    ways = Ways(chip)
    each: dict[str, tuple[list[float], list[float]]] = {}
    joint: list[str] = []
    work: list[tuple[str, Any, int, int]] = [
        (f"{NAME}, {way}", call, ways.pairs[way], ways.flops[way]) for way, call in ways.calls.items()
    ]
    work += [] if chip.quick else [joint_call(chip, "ViLT"), joint_call(chip, "BLIP")]
    for name, call, pairs, flops in work:
        with torch.inference_mode():
            seconds, spent, watts = joules.of(call)
        each[name] = ([one / pairs for one in seconds], [one / pairs for one in spent])
        yield rate("e comparison", name, seconds, pairs, "pairs/s", flops=flops,
                   joules_a_pair=statistics.median(each[name][1]) if spent else None,
                   joules_low_high=[min(each[name][1]), max(each[name][1])] if spent else None,
                   watts=statistics.median(watts) if watts else None)  # fmt: skip
        if not name.startswith(NAME):
            joint.append(name)
    whole, half, full = (each[f"{NAME}, {way}"] for way in ("end to end", "half cached", "fully cached"))
    yield _faster(f"{NAME}: fully cached over end to end", whole, full, 1000.0)
    yield _faster(f"{NAME}: half cached over end to end", whole, half, None)
    flops = {name: count for name, _, _, count in work}
    for name in joint:
        operations = {"ratio_of_operations": flops[name] / flops[f"{NAME}, half cached"]}
        yield _faster(f"half cached over {name}", each[name], half, 2.3, **operations)
        yield _less(f"half cached over {name}: percent fewer joules a pair", each[name], half, 52.0)
        yield _faster(f"fully cached over {name}", each[name], full, None)


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
