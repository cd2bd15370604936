"""What tests of the explorer share: a service over a made world, and hands in a browser."""

from pathlib import Path

from PIL import Image
from playwright.sync_api import expect

from frevl.store.labels.labels_file import LabelsFile
from frevl.training.training import train
from made import COLOURS, make
from serving import running

TIMEOUT = 20_000  # ms: the machine may be busy
HOSTILE = "<img src=x onerror=document.title='ran'>"
AXE = Path(__file__).parents[1] / "web" / "node_modules" / "axe-core" / "axe.min.js"


def searchable(folder, count):
    """Make a world with a run that searches, in its folder ``dual``."""
    made = make(folder, ["toy"], count=count)
    train(
        made.store, made.captions_file, run=made.folder / "dual", task="matching", model="dual", options={"epochs": 3}
    )
    return made


def exploring(world, *options):
    """Explore a made world; yields the address and the process."""
    return running(world, "explore", *options)


def pictures(page):
    return page.get_by_role("listbox").get_by_role("option")


def choose(page, number):
    page.locator(f"#picture-{number}").click()


def answers(page):
    return page.get_by_role("region", name="Answers of the runs")


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


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
    """Return what axe-core finds moderate, serious or critical, in words."""
    assert AXE.is_file(), "axe-core is not there: run scripts/build_page"
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then((found) => found.violations)")
    return [
        f"{one['id']}: {one['help']}: {node['html'][:120]}"
        for one in found
        if one["impact"] in ("moderate", "serious", "critical")
        for node in one["nodes"]
    ]
