"""Probe an encoder: embed drawn images, and let small models read the truth from the embeddings.

The four probes, weaker ones first, are logistic regression on the pooled embedding, the fusion ``tiny`` on it, logistic
regression on all tokens by position, and ``tiny`` on the tokens. Linear probes are fitted per skill; ``tiny`` is fitted
once on all skills and has to read the question, as a fusion does. All choose among the skill's answers. Questions stay
pooled, so only the image differs between probes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.diagnosis.embeddings import probe_pictures
from frevl.diagnosis.embeddings.probe_pictures import SKILLS, draw_probe
from frevl.encoders.interface import Encoder, pool
from frevl.encoders.onnx_session import cache_folder
from frevl.encoders.registry import load_encoder
from frevl.errors import EncoderError, FrevlError, UsageError
from frevl.files import write_json
from frevl.models.baselines import Linear, fit_linear
from frevl.models.inputs import ZScore
from frevl.runs.batches import EmbeddedPairs, logits_of
from frevl.runs.targets import Answers
from frevl.terminal import ProgressLine
from frevl.training.examples import Examples
from frevl.training.fitting.fit_model import fit_model
from frevl.training.options import FusionOptions, Session

__all__ = ["WAYS", "Probed", "ProbesCutError", "Sizes", "probe_encoder"]

WAYS = ("linear, pooled", "tiny, pooled", "linear, tokens", "tiny, tokens")
GRID = "4x4"  # 7x7 costs three times as much

_SAME = 1e-3  # if pooled embeddings differ less than this from the mean of the tokens, they are not embedded separately
_PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the probe data; multiples of 240 test images balance all answers, except in one skill with 9.

    Attributes:
        train: Training images per skill.
        dev: Images for early stopping and penalties.
        test: Test images.
        epochs: Maximum epochs of ``tiny``.
    """

    train: int = 288
    dev: int = 72
    test: int = 240
    epochs: int = 12

    @property
    def all(self) -> int:
        """Return the total number of images per skill."""
        return self.train + self.dev + self.test


@dataclass(frozen=True)
class Probed:
    """What the probes read from an encoder's embeddings.

    Attributes:
        encoder: Name of the encoder.
        hits: For each probe (of `WAYS`) and skill: 1 for every test image answered right, else 0. Token probes are
            missing if the encoder has no tokens.
        seconds: Seconds per step: drawing and embedding, and every probe.
        sizes: Images per skill.
        cached: Whether the numbers come from the cache.
    """

    encoder: str
    hits: dict[str, dict[str, list[int]]]
    seconds: dict[str, float]
    sizes: Sizes
    cached: bool = False

    def accuracy(self, way: str, skill: str) -> float:
        """Return the accuracy on the test images, in [0, 1]."""
        return float(np.mean(self.hits[way][skill]))


class ProbesCutError(FrevlError):
    """The time limit is too short for the probes."""


def probe_encoder(
    name: str,
    *,
    seed: int = 0,
    sizes: Sizes | None = None,
    cache: Path | None = None,
    time_limit: float | None = None,
    progress: bool = False,
) -> Probed:
    """Measure what an encoder's embeddings contain.

    Args:
        name: Name for `load_encoder`.
        seed: Random seed for images and fits.
        sizes: Images per skill; None takes the defaults of `Sizes`.
        cache: Folder that caches results by the encoder's identity; None takes ``probes`` in the encoders' cache
            folder.
        time_limit: Time limit in seconds; cached results cost none. Probing stops as soon as the limit is clearly too
            short: a model stopped early would suggest that the embeddings contain less than they do.
        progress: Show progress.

    Raises:
        UsageError: The encoder does not exist, or has no image tower.
        MissingExtraError: The encoder's libraries are not installed.
        EncoderError: The encoder cannot be loaded.
        ProbesCutError: Probing would take longer than `time_limit`.
    """
    sizes = sizes or Sizes()
    encoder = load_encoder(name)
    if encoder.image is None:
        raise UsageError(f"The encoder '{name}' has no image tower, so there is nothing to probe.")
    with_tokens = _with_tokens(name)
    file = (cache or cache_folder() / "probes") / f"{_key(encoder, with_tokens, seed, sizes)}.json"
    known = _read(file, name, sizes)
    if known is not None:
        return known
    begun = started = time.monotonic()
    pooled, tokens = _embed(encoder, with_tokens, seed, sizes, time_limit, progress)
    questions = _questions(encoder)
    seconds = {"draw and embed": time.monotonic() - started}
    hits = {}
    for way in WAYS:
        images = tokens if way.endswith("tokens") else pooled
        if images is None:
            continue
        started = time.monotonic()
        if time_limit is not None and started - begun > time_limit:
            raise _cut(time_limit, started - begun)
        read = _read_linearly if way.startswith("linear") else _read_with_tiny
        hits[way] = read(images, questions, sizes, seed, progress)
        seconds[way] = time.monotonic() - started
    measured = Probed(name, hits, seconds, sizes)
    _write(file, measured)
    return measured


# ---- embedding


def _with_tokens(name: str) -> Encoder | None:
    """Load the encoder with tokens; None if it has none."""
    try:
        return load_encoder(name, tokens=GRID)
    except (UsageError, EncoderError):
        return None


def _embed(
    encoder: Encoder, with_tokens: Encoder | None, seed: int, sizes: Sizes, time_limit: float | None, progress: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """Return ``(images, 1, dim)`` and ``(images, tokens, dim)`` float16 for every skill."""
    pooled: dict[str, np.ndarray] = {}
    tokens: dict[str, np.ndarray] = {}
    twice = True
    with ProgressLine(f"probing {encoder.name}: drawn images", len(SKILLS) * sizes.all, enabled=progress) as line:
        started = time.monotonic()
        for done, skill in enumerate(SKILLS):
            expected = (time.monotonic() - started) / max(done, 1) * len(SKILLS)
            if time_limit is not None and expected > time_limit:
                raise _cut(time_limit, expected)
            pictures = [draw_probe(skill, number, seed=seed).picture for number in range(sizes.all)]
            if with_tokens is not None:
                found = with_tokens.embed_images(pictures, tokens=True)
                tokens[skill] = found.values.astype(np.float16)
                mean = _unit(pool(found.values, found.mask))
                if not pooled:  # the first few show whether the mean of the tokens is the pooled embedding
                    few = encoder.embed_images(pictures[:8])
                    twice = few.shape[1] != mean.shape[1] or bool(np.abs(_unit(few) - mean[:8]).max() > _SAME)
            whole = encoder.embed_images(pictures) if twice else mean
            pooled[skill] = _unit(whole).astype(np.float16)[:, None]
            line.advance(len(pictures))
    return pooled, tokens if with_tokens is not None else None


def _cut(time_limit: float, needed: float) -> ProbesCutError:
    return ProbesCutError(
        f"the probes need more than {needed:.0f} s, but the time limit leaves {time_limit:.0f}. They are measured "
        "once per encoder and cached: a diagnosis with a larger --time-limit measures them, and later ones read "
        "them."
    )


def _unit(values: np.ndarray) -> np.ndarray:
    """Scale rows to unit length, as a store does."""
    scaled: np.ndarray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return scaled


def _questions(encoder: Encoder) -> np.ndarray:
    """Return ``(skills, dim)`` float32 of the questions; one-hot numbers without a text tower."""
    if encoder.text is None:
        return np.eye(len(SKILLS), dtype=np.float32)
    return encoder.embed_texts([skill.question for skill in SKILLS.values()])


def _truth(skill: str, sizes: Sizes) -> np.ndarray:
    """Return ``(images,)`` numbers of the right answers, which take turns."""
    return np.arange(sizes.all) % len(SKILLS[skill].answers)


# ---- reading


def _read_linearly(
    images: dict[str, np.ndarray],
    questions: np.ndarray,  # noqa: ARG001 - the same for all images of a skill
    sizes: Sizes,
    seed: int,  # noqa: ARG001 - nothing is drawn
    progress: bool,  # noqa: ARG001 - seconds
) -> dict[str, list[int]]:
    return {skill: _linear_hits(values, _truth(skill, sizes), sizes) for skill, values in images.items()}


def _linear_hits(values: np.ndarray, truth: np.ndarray, sizes: Sizes) -> list[int]:
    """Fit logistic regression with its penalty chosen on development images, and return its test hits.

    The weights that minimise a penalised loss lie in the span of the training rows (representer theorem), so the
    features, standardised first, are rotated into it: the same answer with ``train`` instead of ``tokens * dim``
    features.
    """
    features = torch.from_numpy(values.reshape(len(values), -1)).float()
    train = features[: sizes.train]
    features = ZScore.of(train)(features)
    train = features[: sizes.train]
    sizes_squared, rotation = torch.linalg.eigh(train @ train.T)
    kept = sizes_squared > 1e-6 * sizes_squared.max()
    # Scaled independently of the width, so that one list of penalties suits all encoders.
    rotated = 10 / features.shape[1] ** 0.5 * (features @ (train.T @ (rotation[:, kept] / sizes_squared[kept].sqrt())))
    classes = int(truth.max()) + 1
    right = torch.from_numpy(truth)
    network = Linear(image_dim=rotated.shape[1], text_dim=0, outputs=classes)
    dev = slice(sizes.train, sizes.train + sizes.dev)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, right[: sizes.train])

    @torch.inference_mode()
    def development() -> float:
        return float((network.linear(rotated[dev]).argmax(dim=1) == right[dev]).float().mean())

    fit_linear(network, rotated[: sizes.train], loss, development, penalties=_PENALTIES)
    with torch.inference_mode():
        predicted = network.linear(rotated[dev.stop :]).argmax(dim=1)
    return [int(hit) for hit in predicted == right[dev.stop :]]


def _read_with_tiny(
    images: dict[str, np.ndarray], questions: np.ndarray, sizes: Sizes, seed: int, progress: bool
) -> dict[str, list[int]]:
    """Fit one fusion on all skills, and return its test hits on each, chosen among the skill's answers."""
    starts = np.cumsum([0, *(len(skill.answers) for skill in SKILLS.values())])
    n, values = sizes.all, torch.from_numpy(np.concatenate(list(images.values())))
    asked = torch.arange(len(SKILLS)).repeat_interleave(n)
    classes = np.concatenate([starts[i] + _truth(skill, sizes) for i, skill in enumerate(SKILLS)])
    everything = Examples(
        EmbeddedPairs(
            images=values,
            image_mask=torch.ones(values.shape[:2], dtype=torch.bool),
            texts=torch.from_numpy(questions)[:, None],
            text_mask=torch.ones(len(SKILLS), 1, dtype=torch.bool),
            image_rows=torch.arange(len(values)),
            text_rows=asked,
        ),
        Answers(torch.from_numpy(classes)[:, None], torch.ones(len(values), 1), soft=False),
        torch.arange(len(values)),
    )
    number = torch.arange(n).repeat(len(SKILLS))
    train, dev, test = (
        everything.select(torch.nonzero((number >= low) & (number < high))[:, 0])
        for low, high in ((0, sizes.train), (sizes.train, n - sizes.test), (n - sizes.test, n))
    )
    options = FusionOptions(batch_size=64, epochs=sizes.epochs)
    session = Session(seed=seed, time_limit=None, device="cpu", progress=progress)
    fitted = fit_model("tiny", train, dev, int(starts[-1]), options, session, dev_is_spare=False)
    logits = logits_of(fitted.network, test.pairs, 256).numpy()
    right = classes.reshape(len(SKILLS), n)[:, n - sizes.test :]
    hits = {}
    for i, (skill, scores) in enumerate(zip(SKILLS, np.split(logits, len(SKILLS)), strict=True)):
        predicted = starts[i] + scores[:, starts[i] : starts[i + 1]].argmax(axis=1)
        hits[skill] = [int(hit) for hit in predicted == right[i]]
    return hits


# ---- cache


def _key(encoder: Encoder, with_tokens: Encoder | None, seed: int, sizes: Sizes) -> str:
    """Hash everything that can change a number: tower identities, seed, sizes and the probes' code."""
    loaded = [encoder] if with_tokens is None else [encoder, with_tokens]
    towers = [tower.identity for one in loaded for tower in (one.image, one.text) if tower is not None]
    code = [Path(str(file)).read_bytes().hex() for file in (__file__, probe_pictures.__file__)]
    everything = {
        "towers": towers, "seed": seed, "sizes": asdict(sizes), "frevl": version("frevl"), "code": code,
        "pillow": version("pillow"),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:24]


def _read(file: Path, name: str, sizes: Sizes) -> Probed | None:
    """Read cached results; None if missing or damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        known = Probed(name, record["hits"], record["seconds"], sizes, cached=True)
        complete = all(len(known.hits[way][skill]) == sizes.test for way in known.hits for skill in SKILLS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return known if complete and known.hits else None


def _write(file: Path, measured: Probed) -> None:
    with contextlib.suppress(OSError):  # the numbers are available; without the file they are measured again next time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"hits": measured.hits, "seconds": measured.seconds})
