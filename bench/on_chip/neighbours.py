"""(f) Our reranker beside an EDJE-like joint encoder, and (g) exact search over the memory bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from frevl.models.fusion import Fusion
from frevl.runs.search.on_device import VectorsOnDevice
from on_chip.measure import Chip, Limits, Record, kernel_profile, quotient, rate, timed

EDJE_TOKENS, EDJE_WIDTH, EDJE_LAYERS, EDJE_TEXT = 64, 384, 12, 32
EDJE_PUBLISHED = 50_000.0  # pairs per second, as its authors state
DIM = 768


class Joint(nn.Module):
    """A small joint encoder that reads stored image tokens and a text together, of EDJE's published sizes.

    64 image tokens of 384 numbers from the store, 32 word pieces, 12 layers of 384 (the size of MiniLM).
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(30_522, EDJE_WIDTH)
        layer = nn.TransformerEncoderLayer(
            EDJE_WIDTH, 12, 4 * EDJE_WIDTH, 0.0, "gelu", batch_first=True, norm_first=False
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(EDJE_WIDTH, 1)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        """Score ``(n, 64, 384)`` image tokens with ``(n, 32)`` ids."""
        hidden = self.layers(torch.cat([self.words(ids), image], dim=1))
        scores: Tensor = self.head(hidden[:, 0])
        return scores


def rerank(chip: Chip) -> Iterator[Record]:
    """(f) Pairs a second and bytes per image, both with everything that can be kept on the device."""
    half = torch.float16 if chip.cuda else torch.float32
    torch.manual_seed(0)
    joint = Joint(1 if chip.quick else EDJE_LAYERS).eval().to(chip.device, half)
    batch = 2 if chip.quick else 4096
    tokens = chip.randn(batch, EDJE_TOKENS, EDJE_WIDTH, dtype=half)
    ids = torch.randint(30_522, (batch, EDJE_TEXT), device=chip.device)
    sizes: dict[str, Any] = {"tokens": EDJE_TOKENS, "bytes_an_image": 2 * EDJE_TOKENS * EDJE_WIDTH}
    calls: dict[str, Any] = {"joint": lambda: joint(tokens, ids)}
    many = 8 if chip.quick else 32_768
    image = chip.randn(many, DIM, dtype=half).mul_(DIM**-0.5)
    text = chip.randn(many, DIM, dtype=half, seed=1).mul_(DIM**-0.5)
    for preset in ("tiny",) if chip.quick else ("tiny", "base"):
        network = Fusion.from_preset(preset, image_dim=DIM, text_dim=DIM, outputs=1).for_inference()
        network = network.to(chip.device, half)
        calls[preset] = lambda network=network: network(image, text)  # type: ignore[misc]
    with torch.inference_mode():
        found = timed(chip, calls, rounds=3)
    yield rate(
        "f rerank", "EDJE-like joint encoder, 64 tokens x 384, 12 layers", found["joint"], batch, "pairs/s", **sizes
    )
    for preset, seconds in found.items():
        if preset == "joint":
            continue
        pairs = many / statistics.median(seconds)
        yield rate("f rerank", f"{preset}, pooled, batch {many:,}", seconds, many, "pairs/s", bytes_an_image=2 * DIM,
                   over_the_joint_encoder_here=quotient(found["joint"], seconds) * many / batch,
                   ratio=pairs / EDJE_PUBLISHED, goal=10.0)  # fmt: skip


def search(chip: Chip, limits: Limits) -> Iterator[Record]:
    """(g) Exact top 10 of 10 million vectors of 512 numbers in float16, one query and many at a time."""
    rows, dim = (2000, 16) if chip.quick else (10_000_000, 512)
    half = torch.float16
    vectors = torch.empty(rows, dim, device=chip.device, dtype=half)
    for start in range(0, rows, 1_000_000):
        part = chip.randn(min(1_000_000, rows - start), dim, seed=start // 1_000_000)
        vectors[start : start + 1_000_000] = nn.functional.normalize(part, dim=1).half()
    index = VectorsOnDevice(vectors)
    queries = nn.functional.normalize(chip.randn(256, dim, seed=99), dim=1)
    with torch.inference_mode():
        exact = torch.cat([part.float() @ queries[0] for part in vectors.split(1_000_000)]).topk(10).indices
        right = set(index.nearest(queries[:1], 10)[0][0].tolist()) == set(exact.tolist())
        numbers = iter(range(1 << 40))

        def ask(count: int) -> Any:
            start = (next(numbers) * count) % (257 - count)
            return index.nearest(queries[start : start + count], 10)

        calls: dict[str, Any] = {f"{count} at a time": lambda count=count: ask(count) for count in (1, 16, 64)}
        calls["pass"] = lambda: index.scores(queries[:1])
        found = timed(chip, calls, rounds=3)
        profile = kernel_profile(chip, calls["1 at a time"])
    for name in ("1 at a time", "16 at a time", "64 at a time"):
        count = int(name.split()[0])
        share = vectors.nbytes / statistics.median(found[name]) / limits.copied
        single = count == 1
        yield rate("g search", f"exact top 10 of {rows:,} x {dim}, {name}", found[name], count, "queries/s",
                   share_of_bandwidth=share, ratio=share if single else None, goal=0.7 if single else None,
                   found_the_exact_ten=right, profile=profile if single and share < 0.7 else {},
                   pass_alone_share=vectors.nbytes / statistics.median(found["pass"]) / limits.copied)  # fmt: skip
