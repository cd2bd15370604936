"""The speed of the service, its correctness under a mixed load, and its start-up time.

    python bench/serving/service.py [--rounds 3] [--seconds 5] [--mixed-seconds 60] [--store STORE --run RUN]
                            [--pairs 1 16 64 256] [--only throughput mixed cold] [--pinned]

Three parts, all over the loopback interface:

* throughput: 64 connections of ``wrk`` (Debian's package), fewer where one client may not have so many pairs waiting,
  post pairs of stored ids; the ratio compares pairs per second
  with those of ``Scorer`` in this process, called with the mean batch size of the service in the same round. Rounds
  alternate, and the ratio is their median. On two cores this is unfair to the service: ``Scorer`` has both cores,
  while the service shares them with the load generator. With ``--pinned`` the service has one core
  and PyTorch one thread, ``Scorer`` has the same, and ``wrk`` has another core (Linux). ``cpu_ratio`` compares
  CPU time per pair, which a busy machine disturbs less.
* mixed load: good requests of all kinds whose answers are compared with ``Scorer``'s, and parts of the page, among bad
  images, bodies that are too large, unknown ids and clients that hang up. ``--mixed-seconds 600`` for ten minutes.
  Memory growth is the resident memory at the end over that after a fifth of the time.
* cold start: from the start of the process until ``/readyz`` answers, with the packaged encoder and the page; beside
  it the CPU seconds that this took.

Without ``--store`` a small store with the packaged encoder is made. Prints one JSON record per measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from PIL import Image

import frevl
from frevl.deployment.service.http.limits import Limits
from frevl.provenance import hardware
from frevl.runs.scorer import Scorer
from processes import on_core, processor_seconds, resident

PARTS = ("throughput", "mixed", "cold")
CONNECTIONS, BODIES = 64, 64
SERVICE_CORE, LOAD_CORE = 0, 1
KINDS = ["good"] * 12 + ["new text", "upload", "bad image", "too large", "unknown", "hang up", "page"]
TOLERANCE = 1e-5
LIMITS = {"throughput": 0.6, "p99 over p50": 10.0, "memory growth": 1.05, "cold start": 5.0}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--mixed-seconds", type=float, default=60.0)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--store", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--pinned", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        store, run = arguments.store, arguments.run
        if store is None or run is None:
            store, run = made(Path(name))
        scorer = Scorer.open(run, store=store)
        if "throughput" in arguments.only:
            with served(store, run, Path(name), pinned=arguments.pinned) as (url, process):
                for pairs in arguments.pairs:
                    throughput(scorer, url, process.pid, pairs, arguments, Path(name))
        if "mixed" in arguments.only:
            with served(store, run, Path(name)) as (url, process):
                asyncio.run(mixed(scorer, url, process.pid, arguments.mixed_seconds))
        if "cold" in arguments.only:
            starts = [cold_start(store, run, Path(name)) for _ in range(arguments.rounds)]
            seconds, processor = (statistics.median(column) for column in zip(*starts, strict=True))
            met = seconds < LIMITS["cold start"]
            tell("cold start", value=seconds, unit="s", processor_s=processor, limit=LIMITS["cold start"], met=met)


def tell(name: str, **record: Any) -> None:
    print(json.dumps({"name": name, **record, "hardware": hardware()}), flush=True)


def made(folder: Path) -> tuple[Path, Path]:
    """Make a store of 400 noisy images with the packaged encoder, and a run."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    rows = []
    for number in range(400):
        colour = rng.integers(0, 256, 3)
        pixels = np.clip(colour + rng.normal(0, 20, (48, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        for channel, word in enumerate(("red", "green", "blue")):
            answer = "yes" if colour[channel] > 127 else "no"
            rows.append({"image": f"{number}.png", "text": f"is there much {word}?", "target": answer})
    pairs = folder / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    frevl.extract(folder / "store", images=folder / "images", pairs=[pairs], encoder=["packaged"])
    frevl.train(
        folder / "store", pairs, run=folder / "tiny", task="classification", model="tiny", options={"epochs": 2}
    )
    return folder / "store", folder / "tiny"


@contextlib.contextmanager
def served(
    store: Path, run: Path, folder: Path, *options: str, pinned: bool = False
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    command = [Path(sys.executable).parent / "frevl", "serve", "--store", store, "--run", run, "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if pinned else None
    with (folder / "log").open("wb") as log, on_core(SERVICE_CORE if pinned else None):
        process = subprocess.Popen(
            [*command, "--json", ready, *options], stdout=subprocess.DEVNULL, stderr=log, env=environment
        )
        try:
            while not ready.exists() or not ready.read_text():
                if process.poll() is not None:
                    sys.exit((folder / "log").read_text())
                time.sleep(0.01)
            yield json.loads(ready.read_text())["url"], process
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(60):
                sys.exit(f"the service ended with {process.returncode}")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310
        return response.read().decode()


# ---- throughput


def throughput(scorer: Scorer, url: str, pid: int, pairs: int, arguments: argparse.Namespace, folder: Path) -> None:
    pinned, seconds = arguments.pinned, arguments.seconds
    rng = random.Random(pairs)  # noqa: S311
    ids, texts = scorer.store.image_ids, scorer.store.texts
    some = [[(rng.choice(ids), rng.choice(texts)) for _ in range(pairs)] for _ in range(BODIES)]
    check(scorer, url, some[:4])
    script = folder / "post.lua"
    bodies = ",".join(f"[==[{body_of(chosen)}]==]" for chosen in some)
    script.write_text(
        f'local bodies = {{{bodies}}}\nlocal n = 0\nlocal headers = {{["Content-Type"] = "application/json"}}\n'
        'request = function() n = n % #bodies + 1; return wrk.format("POST", "/v1/score", headers, bodies[n]) end\n'
    )
    limits = Limits()
    connections = max(1, min(CONNECTIONS, int(limits.waiting_items * limits.client_share) // pairs))
    wrk(url, script, 1.0, connections, pinned)  # warm
    ratios, cpu_ratios, rates, tails, sizes = [], [], [], [], []
    for _ in range(arguments.rounds):
        before, spent = batches(url), processor_seconds(pid)
        requests, p50, p99 = wrk(url, script, seconds, connections, pinned)
        after, spent = batches(url), processor_seconds(pid) - spent
        answered = after[0] - before[0]
        size = max(1, round(answered / max(1, after[1] - before[1])))
        alone, alone_cpu = in_process(scorer, [pair for one in some for pair in one], size, seconds / 2, pinned)
        ratios.append(requests * pairs / alone)
        cpu_ratios.append(alone_cpu / (spent / answered))
        rates.append((requests * pairs, alone))
        tails.append(p99 / p50)
        sizes.append(size)
    ratio = statistics.median(ratios)
    tell(
        f"throughput, {pairs} pairs a request" + (", one core each" if pinned else ""),
        ratio=round(ratio, 3),
        cpu_ratio=round(statistics.median(cpu_ratios), 3),
        limit=LIMITS["throughput"],
        met=ratio >= LIMITS["throughput"],
        pairs_per_second=[[round(a), round(b)] for a, b in rates],
        batch=sizes,
        p99_over_p50=round(statistics.median(tails), 2),
        p99_limit=LIMITS["p99 over p50"],
    )


def body_of(pairs: list[tuple[str, str]]) -> str:
    return json.dumps({"pairs": [{"image": image, "text": text} for image, text in pairs]})


def check(scorer: Scorer, url: str, requests: list[list[tuple[str, str]]]) -> None:
    """A fast wrong answer is worth nothing."""
    for pairs in requests:
        response = httpx2.post(f"{url}/v1/score", content=body_of(pairs), headers={"content-type": "application/json"})
        expect(scorer, pairs, response.json()["scores"])


def expect(scorer: Scorer, pairs: list[tuple[str, str]], scores: list[dict[str, Any]]) -> None:
    for said, expected in zip(scores, scorer.predict(pairs), strict=True):
        assert said["label"] == expected.label
        assert abs(said["probability"] - expected.probability) < TOLERANCE


def wrk(url: str, script: Path, seconds: float, connections: int, pinned: bool = False) -> tuple[float, float, float]:
    """Return requests per second and the latencies p50 and p99 in milliseconds."""
    tool = shutil.which("wrk")
    if tool is None:
        sys.exit("this needs wrk: apt-get install wrk")
    length = f"{max(1, round(seconds))}s"
    command = [tool, "-t1", f"-c{connections}", f"-d{length}", "--timeout", "30s", "--latency", "-s", script, url]
    with on_core(LOAD_CORE if pinned else None):
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in said, said
    units = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    found = {p: float(v) * units[u] for p, v, u in re.findall(r"(50|99)%\s+([\d.]+)(us|ms|s)", said)}
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert rate is not None
    return float(rate[1]), found["50"], found["99"]


def batches(url: str) -> tuple[float, float]:
    """Return how many items were scored so far, and in how many batches."""
    text = get(f"{url}/metrics")
    found = {
        kind: re.search(rf'frevl_batch_items_{kind}\{{work="score"\}} ([\d.e+]+)', text) for kind in ("sum", "count")
    }
    return tuple(float(m[1]) if m else 0.0 for m in found.values())  # type: ignore[return-value]


def in_process(
    scorer: Scorer, pairs: list[tuple[str, str]], size: int, seconds: float, pinned: bool
) -> tuple[float, float]:
    """Return pairs per second of `Scorer` in batches of a size, labels included, and CPU seconds per pair."""
    pairs = pairs * (size // len(pairs) + 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if pinned else threads)
    with on_core(SERVICE_CORE if pinned else None):
        scorer.predict(pairs[:size])
        started, processor, done, start = time.perf_counter(), time.process_time(), 0, 0
        while time.perf_counter() - started < seconds:
            scorer.predict(pairs[start : start + size])
            done += size
            start = (start + size) % (len(pairs) - size)
        rate = done / (time.perf_counter() - started)
    torch.set_num_threads(threads)
    return rate, (time.process_time() - processor) / done


# ---- mixed load


async def mixed(scorer: Scorer, url: str, pid: int, seconds: float) -> None:
    counts: dict[str, int] = dict.fromkeys(("right", "refused", "overloaded", "hung up", "wrong", "lost"), 0)
    stop = time.monotonic() + seconds
    memory: list[tuple[float, int]] = []

    async def sample() -> None:
        while time.monotonic() < stop:
            memory.append((time.monotonic(), resident(pid)))
            await asyncio.sleep(0.5)

    async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
        while (await client.get("/config")).status_code != 200:  # the page loads after the service is ready
            await asyncio.sleep(0.2)
        stop = time.monotonic() + seconds
        workers = [mix(scorer, client, url, random.Random(seed), stop, counts) for seed in range(24)]  # noqa: S311
        await asyncio.gather(sample(), *workers)
    warm = [size for when, size in memory if when > stop - 0.8 * seconds]
    tenth = max(1, len(warm) // 10)
    growth = statistics.median(warm[-tenth:]) / statistics.median(warm[:tenth])
    met = growth < LIMITS["memory growth"] and not counts["wrong"] and not counts["lost"]
    tell("mixed load", seconds=seconds, **counts, growth=round(growth, 4), limit=LIMITS["memory growth"], met=met)


async def mix(
    scorer: Scorer, client: httpx2.AsyncClient, url: str, rng: random.Random, stop: float, counts: dict[str, int]
) -> None:
    ids, texts = scorer.store.image_ids, scorer.store.texts
    picture = noise(rng)
    while time.monotonic() < stop:
        kind = rng.choice(KINDS)
        pairs = [(rng.choice(ids), rng.choice(texts)) for _ in range(rng.randint(1, 40))]
        body = json.loads(body_of(pairs))
        if kind == "new text":
            pairs = [(image, f"is it {rng.randint(0, 10**6)}?") for image, _ in pairs[:4]]
            body = json.loads(body_of(pairs))
        if kind in ("upload", "bad image"):
            content = picture if kind == "upload" else picture[: rng.randint(0, 60)] or b"x"
            body["uploads"] = {"u": base64.b64encode(content).decode()}
            body["pairs"][0] = {"upload": "u", "text": pairs[0][1]}
        if kind == "too large":
            body["uploads"] = {"u": "A" * (17 << 20)}
        if kind == "unknown":
            body["pairs"][-1]["image"] = "no such image"
        if kind == "page":
            counts["right" if await page_is_there(client, rng) else "wrong"] += 1
            continue
        if kind == "hang up":
            await hang_up(url, json.dumps(body).encode(), rng)
            counts["hung up"] += 1
            continue
        try:
            response = await client.post("/v1/score", json=body)
        except httpx2.HTTPError as error:
            if kind != "too large":
                print(f"lost, {kind}: {error!r}", file=sys.stderr)
            counts["refused" if kind == "too large" else "lost"] += 1  # a large body may be cut off while it is sent
            continue
        if response.status_code == 503:
            counts["overloaded"] += 1
            await asyncio.sleep(int(response.headers["retry-after"]))
        elif kind in ("bad image", "too large", "unknown"):
            right = response.status_code in (404, 413, 422) and response.json()["error"]["message"]
            counts["refused" if right else "wrong"] += 1
        else:
            counts["right" if is_right(scorer, kind, pairs, response) else "wrong"] += 1


async def page_is_there(client: httpx2.AsyncClient, rng: random.Random) -> bool:
    response = await client.get(rng.choice(["/", "/config", "/theme.css"]))
    return response.status_code == 200 and len(response.content) > 100


def is_right(scorer: Scorer, kind: str, pairs: list[tuple[str, str]], response: httpx2.Response) -> bool:
    if response.status_code != 200:
        return False
    scores = response.json()["scores"]
    first = 1 if kind == "upload" else 0  # the image that was sent along is in no store
    try:
        expect(scorer, pairs[first:], scores[first:])
    except AssertionError:
        return False
    return len(scores) == len(pairs)


async def hang_up(url: str, body: bytes, rng: random.Random) -> None:
    """Disconnect in the head, in the body, or while the answer is computed."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    whole = head.encode() + body
    writer.write(whole[: rng.choice([20, len(head) + len(body) // 2, len(whole)])])
    with contextlib.suppress(OSError):
        await writer.drain()
        await asyncio.sleep(rng.random() / 100)
        writer.close()
        await writer.wait_closed()


def noise(rng: random.Random) -> bytes:
    import io

    stream = io.BytesIO()
    pixels = np.random.default_rng(rng.randint(0, 10**9)).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


# ---- cold start


def cold_start(store: Path, run: Path, folder: Path) -> tuple[float, float]:
    """Return seconds and CPU seconds until it is ready."""
    started = time.monotonic()
    with served(store, run, folder) as (url, process):
        spent = processor_seconds(process.pid)
        assert json.loads(get(f"{url}/readyz")) == {"status": "ready"}
        return time.monotonic() - started, spent


if __name__ == "__main__":
    main()
