#!/usr/bin/env python3
"""Time the explorer on a synthetic store: first paint, labelling, scrolling, panning the map, memory.

    python bench/serving/explorer.py [--pictures 100000] [--dim 512] [--folder FOLDER]

Makes a store of random unit vectors in ten loose groups and as many small images (200 different ones under many
names), serves it with `frevl explore`, and drives a headless Chromium (``CHROMIUM`` names one) whose graphics are
computed by the processor, so frames are those of a machine without a graphics card. Prints a line of JSON for every
measurement. Needs the extras ``serve`` and ``browser``.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from frevl.store.importing.vectors import import_embeddings

CLASSES, DIFFERENT = 10, 200
FLAGS = ["--no-sandbox", "--no-first-run", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def make(folder: Path, count: int, dim: int) -> None:
    """Make a store and its images."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, dim)).astype(np.float32)
    vectors = centres[np.arange(count) % CLASSES] + 3 * rng.standard_normal((count, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (folder / "images").mkdir(parents=True)
    for number in range(DIFFERENT):
        noise = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((320, 240)).save(folder / f"{number}.jpg")
    ids = [f"{number:07d}.jpg" for number in range(count)]
    for number, id_ in enumerate(ids):
        os.link(folder / f"{number % DIFFERENT}.jpg", folder / "images" / id_)
    np.save(folder / "vectors.npy", vectors.astype(np.float16))
    (folder / "ids.txt").write_text("\n".join(ids))
    import_embeddings(
        folder / "vectors.npy", store=folder / "store", encoder="made", of="images", ids=folder / "ids.txt"
    )


def ask(url: str, body: object = None) -> dict:
    """Ask the service."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return json.load(answer)


def tell(what: str, **numbers: object) -> None:
    """Print a measurement."""
    print(json.dumps({"what": what, **numbers}), flush=True)


def resident(pid: int) -> tuple[int, int]:
    """Return the resident memory of a process in MiB: its own, and that of files that it has mapped."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return int(found["RssAnon"]) >> 10, int(found["RssFile"]) >> 10


def label(url: str, first: int, count: int) -> int:
    """Label images of all groups; return the version of the labels."""
    labels = [
        {"image": f"{number:07d}.jpg", "label": f"group {number % CLASSES}"} for number in range(first, first + count)
    ]
    return ask(f"{url}/explore/label", {"by": "bench", "labels": labels})["version"]


def settle(url: str) -> dict:
    """Wait until nothing is being learned."""
    while (state := ask(f"{url}/explore/teach"))["busy"]:
        time.sleep(0.05)
    return state


def teach(url: str) -> None:
    """Return the time from a label to an order of all images that reflects it."""
    label(url, 0, 200)
    settle(url)
    seconds = []
    for step in range(7):
        began = time.perf_counter()
        version = label(url, 200 + 5 * step, 5)
        while ask(f"{url}/explore/teach").get("version") != version:
            time.sleep(0.01)
        ask(f"{url}/explore/images?order=class&of=group%203&count=100")
        seconds.append(time.perf_counter() - began)
        state = settle(url)
    tell(
        "label to refreshed order", median_s=round(statistics.median(seconds), 2), longest_s=round(max(seconds), 2),
        accuracy=state["accuracy"], last=state["seconds"],
    )  # fmt: skip


FRAMES = """(milliseconds) => new Promise((done) => {
  const gaps = []; let last = performance.now(); const end = last + milliseconds;
  const step = (now) => {
    gaps.push(now - last); last = now;
    now < end ? requestAnimationFrame(step) : done(gaps.slice(2));
  };
  requestAnimationFrame(step);
})"""

DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"

HOLES = """() => [...document.querySelectorAll('[role=option].cell')].filter((cell) => {
  const { top, bottom } = cell.getBoundingClientRect(); const image = cell.querySelector('img');
  return bottom > 120 && top < innerHeight - 80 && !(image && image.complete && image.naturalWidth);
}).length"""


def look(url: str) -> None:
    """Time what a browser shows."""
    with sync_playwright() as playwright:
        found = os.environ.get("CHROMIUM") or shutil.which("chromium")
        chromium = playwright.chromium.launch(executable_path=found, args=FLAGS)
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        paints, pictures = [], []
        for _ in range(3):
            page.goto("about:blank")
            began = time.perf_counter()
            page.goto(f"{url}/explore/")
            page.locator("#picture-0 img").wait_for()
            pictures.append(time.perf_counter() - began)
            paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
            while (painted := page.evaluate(paint)) is None:
                page.wait_for_timeout(50)
            paints.append(painted / 1000)
        tell("first paint", median_s=round(statistics.median(paints), 2), first_s=round(paints[0], 2))
        tell("first picture", median_s=round(statistics.median(pictures), 2), first_s=round(pictures[0], 2))
        box = page.locator("[role=listbox]")
        blanks = []
        for place in (0.1, 0.35, 0.5, 0.77, 0.95):
            box.evaluate("(box, place) => { box.scrollTop = box.scrollHeight * place; }", place)
            began = time.perf_counter()
            page.evaluate(DRAWN)
            while page.evaluate(HOLES):
                page.wait_for_timeout(10)
            blanks.append(time.perf_counter() - began)
        tell("jump to another place, until all pictures are there", median_s=round(statistics.median(blanks), 2),
             longest_s=round(max(blanks), 2))  # fmt: skip
        page.mouse.move(600, 450)
        longest = 0.0
        for _ in range(40):
            page.mouse.wheel(0, 240)
            began = time.perf_counter()
            page.evaluate(DRAWN)
            while page.evaluate(HOLES):
                page.wait_for_timeout(5)
            longest = max(longest, time.perf_counter() - began)
            page.wait_for_timeout(50)
        tell("scroll by the wheel, longest blank", longest_s=round(longest, 2))
        began = time.perf_counter()
        page.goto(f"{url}/explore/#/map")
        page.locator("canvas").wait_for(timeout=120_000)
        tell("map", first_s=round(time.perf_counter() - began, 2),
             drawn_by=page.locator("canvas").get_attribute("data-drawn-by"))  # fmt: skip
        page.wait_for_timeout(2000)
        area = page.get_by_role("application").bounding_box()
        x, y = area["x"] + area["width"] / 2, area["y"] + area["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        gaps = page.evaluate_handle(f"() => {{ window.gaps = ({FRAMES})(3000); }}")
        gaps.dispose()
        for step in range(100):
            page.mouse.move(x + 3 * step % 200, y + 2 * step % 120)
            page.wait_for_timeout(25)
        page.mouse.up()
        gaps = page.evaluate("() => window.gaps")
        tell("pan 100,000 points", median_ms=round(statistics.median(gaps), 1),
             frames_per_s=round(1000 * len(gaps) / sum(gaps), 1))  # fmt: skip
        chromium.close()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--folder", type=Path, help="keep what is made here, and use it again")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name) / "made"
        if not (folder / "store").is_dir():
            make(folder, arguments.pictures, arguments.dim)
        shutil.rmtree(folder / "store" / "labels", ignore_errors=True)
        shutil.rmtree(folder / "store" / "explore", ignore_errors=True)
        ready = Path(name) / "ready.json"
        command = [sys.executable, "-m", "frevl", "explore", "--store", folder / "store", "--images", folder / "images"]
        with subprocess.Popen(
            [*command, "--port", "0", "--json", ready], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                process.stdout.readline()
                record = json.loads(ready.read_text())
                load = round(os.getloadavg()[0], 1)
                tell("start", seconds=record["seconds"], cores=os.cpu_count(), load_1min=load)
                began = time.perf_counter()
                ask(f"{record['url']}/explore/overview")
                tell("overview, the first time", seconds=round(time.perf_counter() - began, 2))
                teach(record["url"])
                look(record["url"])
                own, mapped = resident(process.pid)
                tell("memory", own_mib=own, mapped_files_mib=mapped)
            finally:
                process.terminate()
                process.wait(60)


if __name__ == "__main__":
    main()
