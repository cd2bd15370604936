"""The speed of several workers compared with one: steps of the training loop on synthetic data.

    python bench/scale/workers.py [--workers 2] [--turns 3] [--networks tiny dual]

One process of one thread and N workers of one thread each take turns at the same steps; one JSON line per network. On a
machine with nothing else to do the seconds by the clock count. Beside other jobs these say more of the others, so
CPU seconds are given too: with a core for each, the workers take at least what the busiest of them takes of the
processor (waiting for each other is not in it).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import torch

from frevl.models.fusion import Fusion
from frevl.provenance import hardware
from frevl.runs.batches import EmbeddedPairs
from frevl.training.examples import Examples
from frevl.training.fitting.pairwise import fusion_loss
from frevl.training.loop import gradient_descent
from frevl.training.options import FusionOptions, Session, TwoTowerOptions
from frevl.training.retrieval.two_tower import fit_two_tower_ensemble
from frevl.training.workers.joining import working_together

WIDTH = 512
# Right pairs, and steps that they make: enough that the first ones, which are slower, do not count much.
NETWORKS = {
    "tiny": (12 * 256, 256),
    "tiny, 1,024 pairs a step": (4 * 1024, 1024),
    "dual": (16 * 1024, 1024),
    "small": (2 * 256, 256),
}


def matching(count: int) -> Examples:
    """Make right pairs, each with an image of its own."""
    random = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(count, 1, WIDTH, generator=random).half() for _ in range(2))
    there, rows = torch.ones(count, 1, dtype=torch.bool), torch.arange(count)
    return Examples(EmbeddedPairs(images, there, texts, there, rows, rows), torch.ones(count), rows)


def descend(network: str, workers: int = 1, progress: bool = False) -> list[tuple[float, float]]:
    """Train for one epoch; return the seconds of every worker, by the clock and of the processor."""
    torch.set_num_threads(1)
    with working_together(descend, {"network": network, "workers": workers}, workers=workers, device="cpu") as team:
        count, batch = NETWORKS[network]
        session = Session(seed=0, time_limit=None, device="cpu", progress=progress, team=team)
        for pairs in (2 * batch, count):  # the first is not counted: it loads and allocates
            examples = matching(pairs)
            team.same({})
            began = time.monotonic(), time.process_time()
            if network == "dual":
                options = TwoTowerOptions(epochs=1, batch_size=batch, members=1, width=512)
                fit_two_tower_ensemble(examples.pairs, options=options, session=session)
            else:
                fusion = Fusion.from_preset(network.split(",")[0], image_dim=WIDTH, text_dim=WIDTH, outputs=1)
                fusion_options = FusionOptions(epochs=1, batch_size=batch)
                loss = fusion_loss(fusion, examples, 1, options=fusion_options, device="cpu", team=team)
                gradient_descent(
                    fusion, loss, pairs, options=fusion_options, session=session, title="bench", remedy="none"
                )
            seconds = time.monotonic() - began[0], time.process_time() - began[1]
        every = [seconds]
        if workers > 1:
            every = [seconds] * workers
            torch.distributed.all_gather_object(every, seconds)
    return every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    asked = parser.parse_args()
    for network in asked.networks:
        clock, processor, load = [], [], []
        for _ in range(asked.turns):
            ((alone_clock, alone_processor),) = descend(network)
            together = descend(network, asked.workers)
            clock.append(alone_clock / max(one for one, _ in together))
            processor.append(alone_processor / max(own for _, own in together))
            load.append(os.getloadavg()[0])
        print(
            json.dumps({
                "network": network, "workers": asked.workers, "pairs_a_step": NETWORKS[network][1],
                "times_as_fast_by_the_clock": [round(one, 2) for one in clock],
                "times_as_fast_of_the_processor": [round(one, 2) for one in processor],
                "median_of_the_processor": round(statistics.median(processor), 2),
                "load": [round(one, 1) for one in load],
                "alone_processor_seconds": round(alone_processor, 2),
            }),
            flush=True,
        )  # fmt: skip
    print(json.dumps({"hardware": hardware()}))


if __name__ == "__main__":
    import workers  # by its name, under which the other processes find it

    workers.main()
