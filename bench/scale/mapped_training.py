"""Steps of `tiny` on embeddings in memory and in a mapped file, alternating, on synthetic data and with one thread.

    python bench/scale/mapped_training.py [--count 1000000] [--steps 40]

Both visit the rows in the order of a training: all at random, or blocks within blocks, reading ahead the pages of the
next ones. Reading ahead is timed separately, and divided among the steps of a group of blocks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import time

import torch

from frevl.models.fusion import Fusion
from frevl.provenance import hardware
from frevl.training.fitting.pairwise import fusion_loss
from frevl.training.mapped_items import deal_all, deal_in_blocks, shuffled_in_blocks
from frevl.training.options import FusionOptions
from scale import WIDTH, matching

GROUP = 65_536  # rows whose pages are read together
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    options, steps = FusionOptions(mixup_share=0.0), math.ceil(asked.count / BATCH)
    ways = {}
    for name in ("memory", "file"):
        examples = matching(asked.count, 0, in_file=name == "file")
        torch.manual_seed(0)
        network = Fusion.from_preset("tiny", image_dim=WIDTH, text_dim=WIDTH, outputs=1)
        loss_of = fusion_loss(network, examples, 1, options=options, device="cpu")
        deal = deal_in_blocks(examples.pairs) if name == "file" else deal_all
        random = torch.Generator().manual_seed(0)
        ways[name] = (examples, network, loss_of, deal(asked.count, steps, random), random, [])
    for _ in range(asked.steps):
        for _, network, loss_of, dealt, random, seconds in ways.values():
            rows = next(dealt)
            began = time.process_time()
            network.zero_grad(set_to_none=True)
            torch.autograd.backward(loss_of(rows, random)[0])
            seconds.append(time.process_time() - began)
    examples = ways["file"][0]
    order = shuffled_in_blocks(asked.count, torch.Generator().manual_seed(1))
    examples.pairs.release()
    began = time.process_time()
    examples.pairs.touch(order[:GROUP])
    ahead = (time.process_time() - began) / (GROUP / BATCH)
    of_step = {name: statistics.median(way[-1][2:]) for name, way in ways.items()}
    ratios = [b / a for a, b in itertools.islice(zip(ways["memory"][-1], ways["file"][-1], strict=True), 2, None)]
    print(
        json.dumps({
            "count": asked.count, "steps": asked.steps, "processor_seconds_a_step": of_step,
            "reading_ahead_a_step": ahead, "ratio_of_pairs_of_steps": statistics.median(ratios),
            "file_over_memory": (of_step["file"] + ahead) / of_step["memory"], "load": os.getloadavg()[0],
            "hardware": hardware(),
        })
    )  # fmt: skip


if __name__ == "__main__":
    main()
