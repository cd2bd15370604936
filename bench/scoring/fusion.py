"""The speed of the fusion network, compared with ``nn.MultiheadAttention`` and the machine's matrix products.

    python bench/scoring/fusion.py [--preset base] [--batch 1024] [--rounds 9] [--threads 2]

Pooled embeddings. Three figures from one run: the fused forward over a direct implementation of the same network,
the fused forward and the training step over the measured float32 matrix-product rate. Only operations that the
result needs are counted: never W_q and W_k, and in the fused network W_o W_v as one matrix. Timings alternate, and a
ratio is the median over rounds, so that a drifting machine speed does not matter. On a shared machine, use
``--threads 1 --cpu-time`` to count CPU time instead of elapsed time.

Prints one JSON record per measurement, after asserting that all implementations give the same logits. ``limit`` is
the smallest ratio that we guarantee for ``base`` with 1,024 pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frevl.models.fusion import PRESETS, Fusion
from frevl.provenance import hardware

DIM, OUTPUTS, SQUARE = 768, 3129, 4096


class Side(nn.Module):
    """One modality's half of a block, written in the obvious way."""

    def __init__(self, width: int, heads: int, ffn_width: int) -> None:
        super().__init__()
        self.norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(width, ffn_width), nn.GELU(), nn.Dropout(0.1), nn.Linear(ffn_width, width))


class Direct(nn.Module):
    """The network with ``nn.MultiheadAttention`` and no further optimisation; takes the weights of a fusion."""

    def __init__(self, fusion: Fusion, *, width: int, layers: int, heads: int, ffn_width: int, head_width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList([nn.Linear(DIM, width), nn.Linear(DIM, width)])
        self.blocks = nn.ModuleList(
            nn.ModuleList([Side(width, heads, ffn_width), Side(width, heads, ffn_width)]) for _ in range(layers)
        )
        self.head = nn.Sequential(
            nn.Linear(4 * width, head_width), nn.GELU(), nn.Dropout(0.1), nn.Linear(head_width, OUTPUTS)
        )
        copy(fusion.image_projection, self.projections[0])
        copy(fusion.text_projection, self.projections[1])
        copy(fusion.head.inner, self.head[0])
        copy(fusion.head.outer, self.head[3])
        for ours, (image, text) in zip(fusion.blocks, self.blocks, strict=True):
            for side, norm, attention, ffn_norm, ffn in (
                (image, ours.cross.image_norm, ours.cross.image_reads_text, ours.image_norm, ours.image_ffn),
                (text, ours.cross.text_norm, ours.cross.text_reads_image, ours.text_norm, ours.text_ffn),
            ):
                copy(norm, side.norm)
                copy(ffn_norm, side.ffn_norm)
                copy(ffn.inner, side.ffn[0])
                copy(ffn.outer, side.ffn[3])
                copy(attention.output, side.attention.out_proj)
                maps = (attention.query, attention.key, attention.value)
                side.attention.in_proj_weight.data.copy_(torch.cat([linear.weight for linear in maps]))
                side.attention.in_proj_bias.data.copy_(torch.cat([linear.bias for linear in maps]))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Return ``(n, outputs)`` logits of ``(n, 768)`` images and texts."""
        v, t = F.gelu(self.projections[0](image))[:, None], F.gelu(self.projections[1](text))[:, None]
        for image_side, text_side in self.blocks:
            a, b = image_side.norm(v), text_side.norm(t)
            v, t = (
                v + image_side.attention(a, b, b, need_weights=False)[0],
                t + text_side.attention(b, a, a, need_weights=False)[0],
            )
            v, t = v + image_side.ffn(image_side.ffn_norm(v)), t + text_side.ffn(text_side.ffn_norm(t))
        v, t = v[:, 0], t[:, 0]
        return self.head(torch.cat([v, t, v * t, (v - t).abs()], dim=1))


def copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def useful_weights(*, width: int, layers: int, ffn_width: int, head_width: int) -> dict[str, int]:
    """Return the multiplications per pair, by part."""
    return {
        "projections": 2 * DIM * width,
        "fused blocks": layers * 2 * (width * width + 2 * width * ffn_width),
        "blocks": layers * 2 * (2 * width * width + 2 * width * ffn_width),
        "head": 4 * width * head_width + head_width * OUTPUTS,
    }


def train_step(network: nn.Module, optimiser: torch.optim.Optimizer, image: Tensor, text: Tensor, y: Tensor) -> None:
    loss = F.cross_entropy(network(image, text), y, label_smoothing=0.1)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="base", choices=list(PRESETS))
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true")
    given = parser.parse_args()
    if given.cpu_time and given.threads != 1:
        parser.error("--cpu-time adds up all threads and needs --threads 1")
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.cpu_time else time.perf_counter
    torch.manual_seed(0)

    sizes = PRESETS[given.preset]
    fusion = Fusion.from_preset(given.preset, image_dim=DIM, text_dim=DIM, outputs=OUTPUTS)
    direct = Direct(fusion, **sizes)
    image, text = F.normalize(torch.randn(given.batch, DIM), dim=1), F.normalize(torch.randn(given.batch, DIM), dim=1)
    y, square = torch.randint(OUTPUTS, (given.batch,)), torch.randn(SQUARE, SQUARE)
    fused, evaluated, direct_evaluated = fusion.for_inference(), fusion.eval(), direct.eval()
    with torch.inference_mode():
        expected = direct_evaluated(image, text)
        differences = {
            "fused": (fused(image, text) - expected).abs().max().item(),
            "fast path": (evaluated(image, text) - expected).abs().max().item(),
        }
    assert max(differences.values()) < 1e-5, differences

    optimiser = torch.optim.AdamW(fusion.parameters(), lr=5e-4, fused=True)
    direct_optimiser = torch.optim.AdamW(direct.parameters(), lr=5e-4, fused=True)
    with torch.inference_mode():
        inference = {
            "product": lambda: square @ square,
            "fused": lambda: fused(image, text),
            "fast path": lambda: evaluated(image, text),
            "direct": lambda: direct_evaluated(image, text),
        }
        seconds = timed(inference, given.rounds, clock)
    fusion.train()
    direct.train()
    training = {
        "product while training": lambda: square @ square,
        "training step": lambda: train_step(fusion, optimiser, image, text, y),
        "direct training step": lambda: train_step(direct, direct_optimiser, image, text, y),
    }
    seconds |= timed(training, given.rounds, clock)

    weights = useful_weights(**{name: size for name, size in sizes.items() if name != "heads"})
    forward = weights["projections"] + weights["fused blocks"] + weights["head"]
    # Forward, gradient of the weights, gradient of the inputs; the embeddings themselves need none.
    step = 3 * (weights["projections"] + weights["blocks"] + weights["head"]) - weights["projections"]
    product = 2 * SQUARE**3

    def over_limit(what: str, limit: str, multiplications: int) -> float:
        work = 2 * multiplications * given.batch
        return statistics.median(
            (work / own) / (product / full) for own, full in zip(seconds[what], seconds[limit], strict=True)
        )

    def times_faster(what: str, than: str) -> float:
        return statistics.median(slow / fast for fast, slow in zip(seconds[what], seconds[than], strict=True))

    common = {
        "preset": given.preset,
        "batch": given.batch,
        "threads": given.threads,
        "clock": "processor time" if given.cpu_time else "time",
        "product_gflops": product / statistics.median(seconds["product"]) / 1e9,
        "largest_difference": differences,
        "hardware": hardware(),
    }
    goals = {
        "fused forward over direct forward": (times_faster("fused", "direct"), 1.25),
        "fused forward over matrix products": (over_limit("fused", "product", forward), 0.75),
        "training step over matrix products": (over_limit("training step", "product while training", step), 0.50),
        "fast path over direct forward": (times_faster("fast path", "direct"), None),
        "training step over direct training step": (times_faster("training step", "direct training step"), None),
    }
    milliseconds = {what: round(1e3 * statistics.median(times), 2) for what, times in seconds.items()}
    for what, (ratio, goal) in goals.items():
        print(json.dumps({"what": what, "ratio": round(ratio, 3), "limit": goal, **common}))
    print(json.dumps({"what": "median milliseconds", **milliseconds, **common}))


def timed(calls: dict, rounds: int, clock) -> dict[str, list[float]]:
    """Return the seconds of every call, round by round, after a warm-up round."""
    seconds: dict[str, list[float]] = {what: [] for what in calls}
    for number in range(rounds + 1):
        for what, call in calls.items():
            started = clock()
            call()
            if number:
                seconds[what].append(clock() - started)
    return seconds


if __name__ == "__main__":
    main()
