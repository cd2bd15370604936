"""CLIP's image tower in every form that a hub encoder can take, compared with eager transformers."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from frevl.deployment.efficiency.profiles import counted_flops, onnx_profile, torch_profile
from frevl.deployment.efficiency.records import Record, Show
from frevl.deployment.efficiency.stages import photo
from frevl.deployment.efficiency.stand_ins import CLIPS, clip_config
from frevl.deployment.efficiency.timing import PRODUCT_SIDE, product, rate_record, ratio, take_turns
from frevl.encoders.hub.networks import quiet_transformers
from frevl.encoders.interface import ImageTower
from frevl.encoders.registry import load_encoder
from frevl.errors import EncoderError

__all__ = ["FORMS", "encoder_records"]

# Option in the encoder's name, minimum cosine to eager transformers, minimum speed-up that we promise.
FORMS: dict[str, tuple[str, float, float]] = {
    "ONNX Runtime": ("", 0.9999, 1.3),
    "ONNX Runtime, int8 weights": ("#int8", 0.99, 1.8),
}
_SETTLING_CALLS = 6  # the towers try out batch sizes on their first items
_PROFILED = 8  # images in a profiled run


def encoder_records(
    *,
    sizes: tuple[int, int, int, int, int, int, int] = CLIPS["CLIP ViT-B/32"],
    name: str = "CLIP ViT-B/32",
    images: int = 32,
    rounds: int = 5,
    show: Show = str,
) -> list[Record]:
    """Time the image tower of a CLIP with random weights on preprocessed images.

    Args:
        sizes: As in `frevl.deployment.efficiency.stand_ins.CLIPS`.
        name: Name of the CLIP, used in the records.
        images: Images per call.
        rounds: Number of rounds.
        show: Called with a sentence before the measurement.

    Raises:
        EncoderError: The embeddings of a form differ from those of transformers.
    """
    show(f"{name}, image tower: eager transformers, {', '.join(FORMS)}")
    torch.manual_seed(0)
    side = sizes[0]
    with tempfile.TemporaryDirectory() as folder, _cache_in(Path(folder)), quiet_transformers() as transformers:
        eager = transformers.CLIPVisionModelWithProjection(clip_config(sizes).vision_config).eval()
        saved = Path(folder) / "clip"
        eager.save_pretrained(saved)
        size = {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
        transformers.CLIPImageProcessorPil(**size).save_pretrained(saved)
        towers = {form: _tower(f"hf:{saved}{option}") for form, (option, _, _) in FORMS.items()}
        first = next(iter(towers.values()))
        prepared = [first.prepare(photo(side, side, seed)) for seed in range(images)]
        pixels = torch.from_numpy(np.stack(prepared))
        with torch.inference_mode():
            exact = nn.functional.normalize(_pooled(eager, pixels), dim=1).numpy()
            cosines = {form: _cosine(tower, prepared, exact, form) for form, tower in towers.items()}
            calls = {"product": product(), "eager": lambda: _pooled(eager, pixels)}
            found = take_turns(calls | {form: _bound(tower, prepared) for form, tower in towers.items()}, rounds=rounds)
            flops = counted_flops(eager.vision_model, pixels[:1])
        # Dividing by this ratio of operations turns a ratio of times into a share of the matrix-product limit.
        work = 2 * PRODUCT_SIDE**3 / (flops * images)
        reached = {form: ratio(found["product"], found[form]) / work for form in ("eager", *FORMS)}
        part = f"{name}, image tower"
        goals = []
        for form, (_, _, least) in FORMS.items():
            title = f"{part}, {form}: images/s; ratio to eager transformers"
            details = {"cosine": cosines[form], "flops": flops, "share_of_products": reached[form]}
            record = rate_record("goals", title, found[form], items=images, unit="images/s", **details)
            goals.append(replace(record, ratio=ratio(found["eager"], found[form]), limit=least))
        profiles = []
        if not all(goal.met for goal in goals):
            limit = "of the measured matrix-product rate, counting what eager transformers computes"
            words = {form: f"{part}, {form}, one core; reaches {share:.2f} {limit}" for form, share in reached.items()}
            profiles.append(torch_profile(words["eager"], calls["eager"], calls=2))
            files = {form: _exported_file(Path(folder), option) for form, (option, _, _) in FORMS.items()}
            some = {"input": np.stack(prepared[:_PROFILED])}
            profiles += [onnx_profile(words[form], files[form], some, calls=4) for form in FORMS]
    title = f"{part}, eager transformers"
    rate = rate_record(
        "encoders", title, found["eager"], items=images, unit="images/s", share_of_products=reached["eager"]
    )
    return [rate, *goals, *profiles]


def _exported_file(cache: Path, option: str) -> Path:
    """Return the file that a form runs."""
    (found,) = [file for file in cache.glob("encoders/*.onnx") if file.stem.endswith("-int8") == (option == "#int8")]
    return found


def _tower(name: str) -> ImageTower:
    tower = load_encoder(name).image
    if tower is None:
        raise EncoderError(f"'{name}' has no image tower")
    return tower


def _pooled(eager: Any, pixels: torch.Tensor) -> torch.Tensor:
    pooled: torch.Tensor = eager.vision_model(pixel_values=pixels).pooler_output
    return pooled


def _bound(tower: ImageTower, prepared: list[np.ndarray]) -> Any:
    return lambda: tower.embed(prepared)


def _cosine(tower: ImageTower, prepared: list[np.ndarray], exact: np.ndarray, form: str) -> float:
    """Return the lowest cosine to transformers; the calls also settle the tower's batch size."""
    for _ in range(_SETTLING_CALLS):
        found = tower.embed(prepared).values[:, 0]
    cosine = float(((found / np.linalg.norm(found, axis=1, keepdims=True)) * exact).sum(axis=1).min())
    least = FORMS[form][1]
    if not cosine >= least:  # also true for NaN
        raise EncoderError(f"The image tower in {form} has a cosine of {cosine:.5f} to transformers, expected {least}")
    return cosine


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Export to a temporary folder, as networks with random weights are not needed again."""
    before = os.environ.get("FREVL_CACHE")
    os.environ["FREVL_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["FREVL_CACHE"]
        else:
            os.environ["FREVL_CACHE"] = before
