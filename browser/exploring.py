"""What tests of the explorer share: a service over a made world, and hands in a browser."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from frevl.store.labels.labels_file import LabelsFile
from made import COLOURS

TIMEOUT = 20_000  # ms: the machine may be busy
AXE = Path(__file__).parents[1] / "web" / "node_modules" / "axe-core" / "axe.min.js"


@contextmanager
def exploring(world, *options) -> Iterator[str]:
    ready = world.folder / "ready.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "frevl", "explore", "--store", world.store.path, "--port", "0", "--json", ready]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout.readline().startswith("Ready at ")
            yield json.loads(ready.read_text())["url"], process
        finally:
            process.terminate()
            process.wait(60)


def pictures(page):
    return page.get_by_role("listbox").get_by_role("option")


def choose(page, number):
    page.locator(f"#picture-{number}").click()


def agreed(world):
    return LabelsFile(world.store.path).book().agreed()


def add_class(page, name):
    page.get_by_label("Class", exact=True).fill(name)
    page.get_by_role("button", name="Add class").click()
    expect(page.locator("button.class").filter(has_text=name)).to_be_visible()


def colour_of(world, name):
    with Image.open(world.images / name) as picture:
        return next(colour for colour, rgb in COLOURS.items() if picture.getpixel((20, 20)) == rgb)


def serious(page):
    """Return what axe-core finds serious or critical, in words."""
    assert AXE.is_file(), "axe-core is not there: run scripts/build_page"
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then((found) => found.violations)")
    return [
        f"{one['id']}: {one['help']}: {node['html'][:120]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
