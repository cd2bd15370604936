"""How fast the service is, whether it loses answers under a mixed load, and how soon it is ready.

    python bench/service.py [--rounds 3] [--seconds 5] [--mixed-seconds 60] [--store STORE --run RUN]

Three parts, all on loopback:

* throughput: 64 connections of ``wrk`` (Debian's package) post pairs of stored ids; the ratio compares pairs a second
  with those of ``Scorer`` in this process, called with the mean batch size that the service formed in the same round.
  Rounds alternate, and the ratio is their median.
* mixed load: good requests of all kinds whose answers are compared with ``Scorer``'s, among bad images, bodies that are
  too large, unknown ids and clients that hang up. ``--mixed-seconds 600`` for ten minutes. Memory growth is the
  resident memory at the end over that after a fifth of the time.
* cold start: from the start of the process until ``/readyz`` answers, with the packaged encoder and the page.

Without ``--store`` a small store with the packaged encoder is made. Prints one JSON record a measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
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
from PIL import Image

import frevl
from frevl.provenance import hardware
from frevl.scorer import Scorer

CONNECTIONS, BODIES = 64, 64
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
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        store, run = arguments.store, arguments.run
        if store is None or run is None:
            store, run = made(Path(name))
        scorer = Scorer.open(run, store=store)
        with served(store, run, Path(name)) as (url, process):
            for pairs in arguments.pairs:
                throughput(scorer, url, pairs, arguments.rounds, arguments.seconds, Path(name))
            asyncio.run(mixed(scorer, url, process.pid, arguments.mixed_seconds))
        cold_starts = [cold_start(store, run, Path(name)) for _ in range(arguments.rounds)]
        seconds = statistics.median(cold_starts)
        tell("cold start", value=seconds, unit="s", limit=LIMITS["cold start"], met=seconds < LIMITS["cold start"])


def tell(name: str, **record: Any) -> None:
    print(json.dumps({"name": name, **record, "hardware": hardware()}), flush=True)


def made(folder: Path) -> tuple[Path, Path]:
    """Make a store of 400 noisy pictures with the packaged encoder, and a run."""
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
    frevl.train(folder / "store", pairs, run=folder / "tiny", task="classification", model="tiny", epochs=2)
    return folder / "store", folder / "tiny"


@contextlib.contextmanager
def served(store: Path, run: Path, folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    command = [Path(sys.executable).parent / "frevl", "serve", "--store", store, "--run", run, "--port", "0"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--json", ready, *options], stdout=subprocess.DEVNULL, stderr=log)
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


def throughput(scorer: Scorer, url: str, pairs: int, rounds: int, seconds: float, folder: Path) -> None:
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
    wrk(url, script, 1.0)  # warm
    ratios, rates, tails, sizes = [], [], [], []
    for _ in range(rounds):
        before = batches(url)
        requests, p50, p99 = wrk(url, script, seconds)
        after = batches(url)
        size = max(1, round((after[0] - before[0]) / max(1, after[1] - before[1])))
        alone = in_process(scorer, [pair for chosen in some for pair in chosen], size, seconds / 2)
        ratios.append(requests * pairs / alone)
        rates.append((requests * pairs, alone))
        tails.append(p99 / p50)
        sizes.append(size)
    ratio = statistics.median(ratios)
    tell(
        f"throughput, {pairs} pairs a request",
        ratio=round(ratio, 3),
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


def wrk(url: str, script: Path, seconds: float) -> tuple[float, float, float]:
    """Return requests a second and the latencies p50 and p99 in milliseconds."""
    tool = shutil.which("wrk")
    if tool is None:
        sys.exit("this needs wrk: apt-get install wrk")
    length = f"{max(1, round(seconds))}s"
    command = [tool, "-t1", f"-c{CONNECTIONS}", f"-d{length}", "--timeout", "30s", "--latency", "-s", script, url]
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


def in_process(scorer: Scorer, pairs: list[tuple[str, str]], size: int, seconds: float) -> float:
    """Return pairs a second of `Scorer` in batches of a size, with labels and probabilities as the service gives."""
    pairs = pairs * (size // len(pairs) + 2)
    scorer.predict(pairs[:size])
    started, done, start = time.perf_counter(), 0, 0
    while time.perf_counter() - started < seconds:
        scorer.predict(pairs[start : start + size])
        done += size
        start = (start + size) % (len(pairs) - size)
    return done / (time.perf_counter() - started)


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
        kind = rng.choice(["good"] * 12 + ["new text", "upload", "bad image", "too large", "unknown", "hang up"])
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
        if kind == "hang up":
            await hang_up(url, json.dumps(body).encode(), rng)
            counts["hung up"] += 1
            continue
        try:
            response = await client.post("/v1/score", json=body)
        except httpx2.HTTPError:
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


def is_right(scorer: Scorer, kind: str, pairs: list[tuple[str, str]], response: httpx2.Response) -> bool:
    if response.status_code != 200:
        return False
    scores = response.json()["scores"]
    first = 1 if kind == "upload" else 0  # the picture that was sent along is in no store
    try:
        expect(scorer, pairs[first:], scores[first:])
    except AssertionError:
        return False
    return len(scores) == len(pairs)


async def hang_up(url: str, body: bytes, rng: random.Random) -> None:
    """Leave in the head, in the body, or while the answer is made."""
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


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


# ---- cold start


def cold_start(store: Path, run: Path, folder: Path) -> float:
    started = time.monotonic()
    with served(store, run, folder) as (url, _):
        assert json.loads(get(f"{url}/readyz")) == {"status": "ready"}
        return time.monotonic() - started


if __name__ == "__main__":
    main()
