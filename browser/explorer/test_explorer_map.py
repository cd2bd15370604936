"""The map of the explorer with neighbours together and clusters; PaCMAP itself, an extra, is stood in for."""

import io
import re
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from exploring import TIMEOUT, colour_of, exploring, serious
from PIL import Image
from playwright.sync_api import expect

from frevl.store.importing.vectors import import_embeddings
from frevl.store.labels.labels_file import LabelsFile
from frevl.store.reader import Store
from made import make

_LIBRARY = """
import numpy as np
class PaCMAP:
    def __init__(self, n_components, random_state): pass
    def fit_transform(self, vectors, init): return vectors[:, :2].astype(np.float32)
"""


def test_neighbours_and_clusters_have_a_link_and_words_while_they_are_computed(tmp_path, visit, monkeypatch):
    world = make(tmp_path / "world", ["toy"], count=30)
    (tmp_path / "pacmap.py").write_text(_LIBRARY)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(tmp_path), *sys.path]))
    with exploring(world, "--images", world.images) as (url, _):
        seen = visit(f"{url}/explore/#/map?by=cluster")
        page = seen.page
        expect(page.get_by_role("application")).to_be_visible(timeout=TIMEOUT)
        expect(page.get_by_role("list", name="Colours")).to_contain_text("cluster 1:", timeout=TIMEOUT)
        page.get_by_label("Layout").select_option("neighbours")
        expect(page.get_by_text("it takes about a minute")).to_be_visible(timeout=TIMEOUT)
        expect(page.get_by_text("neighbours are meaningful, distances between groups are not")).to_be_visible(
            timeout=TIMEOUT
        )
        assert "method=neighbours" in page.url
        assert "by=cluster" in page.url
        expect(page.get_by_role("list", name="Colours")).to_contain_text("cluster 1:")
        page.get_by_role("button", name="Select what is visible").click()
        expect(page.get_by_role("region", name="Images selected on the map")).to_be_visible(timeout=TIMEOUT)
        assert serious(page) == []
        page.go_back()
        expect(page.get_by_text("two principal")).to_be_visible(timeout=TIMEOUT)
        assert seen.complaints == []


def test_a_link_to_what_the_classifier_says_waits_until_it_knows(tmp_path, visit):
    world = make(tmp_path / "world", ["toy"], count=30)
    ids = world.store.ids("image")
    LabelsFile(world.store.path).label("ada", [(id_, colour_of(world, id_)) for id_ in ids[:16]])
    with exploring(world, "--images", world.images) as (url, _):
        seen = visit(f"{url}/explore/#/map?by=probability")
        page = seen.page
        expect(page.get_by_text("unlikely")).to_be_visible(timeout=TIMEOUT)  # of the first class
        expect(page.get_by_role("alert")).to_have_count(0)
        page.locator(".tools select").first.select_option("label")
        expect(page.get_by_role("list", name="Colours")).to_contain_text("no label", timeout=TIMEOUT)
        assert [line for line in seen.complaints if "409" not in line] == []


def test_where_nothing_was_taught_the_map_is_there_with_words(tmp_path, visit):
    world = make(tmp_path / "world", ["toy"], count=12)
    with exploring(world, "--images", world.images) as (url, _):
        page = visit(f"{url}/explore/#/map?by=doubt").page
        expect(page.get_by_role("alert")).to_contain_text("requires a classifier", timeout=TIMEOUT)
        surface = page.get_by_role("application")
        expect(surface).to_be_visible()
        page.wait_for_timeout(500)
        with Image.open(io.BytesIO(surface.screenshot())) as shot:
            lowest, highest = shot.convert("L").crop((20, 20, shot.width - 20, shot.height - 20)).getextrema()
        assert highest - lowest >= 30


def test_without_the_library_words_say_how_to_get_it(tmp_path, visit):
    world = make(tmp_path / "world", ["toy"], count=12)
    with exploring(world, "--images", world.images) as (url, _):
        page = visit(f"{url}/explore/#/map?method=neighbours", size="phone").page
        expect(page.get_by_role("alert")).to_contain_text("pip install 'frevl[map]'", timeout=TIMEOUT)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_without_a_label_can_be_seen(tmp_path, visit, scheme):
    """Their pale points were white on white: the alpha of a point was squared on the way to the screen."""
    world = make(tmp_path / "world", ["toy"], count=30)
    with exploring(world, "--images", world.images) as (url, _):
        page = visit(f"{url}/explore/#/map", scheme=scheme).page
        surface = page.get_by_role("application")
        expect(surface).to_be_visible(timeout=TIMEOUT)

        def spread():
            with Image.open(io.BytesIO(surface.screenshot())) as shot:
                inner = shot.convert("L").crop((20, 20, shot.width - 20, shot.height - 20))
            lowest, highest = inner.getextrema()
            return highest - lowest

        deadline = time.monotonic() + TIMEOUT / 1000
        while spread() < 30 and time.monotonic() < deadline:  # of 255 greys
            page.wait_for_timeout(200)
        assert spread() >= 30


def test_many_points_are_moved_as_they_are_drawn_and_drawn_again_at_rest(tmp_path, visit):
    count = 20_001
    vectors = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float16)
    np.save(tmp_path / "vectors.npy", vectors)
    (tmp_path / "ids.txt").write_text("\n".join(f"{number}.jpg" for number in range(count)))
    store = tmp_path / "store"
    import_embeddings(tmp_path / "vectors.npy", store=store, encoder="own", of="images", ids=tmp_path / "ids.txt")
    with exploring(SimpleNamespace(folder=tmp_path, store=Store.open(store))) as (url, _):
        seen = visit(f"{url}/explore/#/map")
        page = seen.page
        surface, canvas = page.get_by_role("application"), page.locator("canvas")
        expect(surface).to_be_visible(timeout=TIMEOUT)
        page.wait_for_timeout(1500)

        def look():
            with Image.open(io.BytesIO(surface.screenshot())) as shot:
                return np.asarray(shot.convert("L"), np.float32)

        before, area = look(), surface.bounding_box()
        assert before.max() - before.min() > 30
        page.evaluate(  # what the map shows before it is drawn again
            "() => { const canvas = document.querySelector('canvas'); window.moves = [];"
            "new MutationObserver(() => window.moves.push(canvas.style.transform))"
            ".observe(canvas, { attributeFilter: ['style'] }); }"
        )
        x, y = area["x"] + area["width"] / 2, area["y"] + area["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        for step in range(1, 13):
            page.mouse.move(x + 5 * step, y + 3 * step)
        page.mouse.up()
        expect(canvas).not_to_have_attribute("style", re.compile("transform"), timeout=TIMEOUT)
        moves = page.evaluate("() => window.moves")
        assert any("translate(60px, 36px)" in move for move in moves)
        page.wait_for_timeout(300)
        after = look()
        # Drawn again it is what was shown while it moved: the map, 60 pixels to the right and 36 down.
        was, now = before[60:-96, 60:-120], after[96:-60, 120:-60]
        assert np.abs(was - now).mean() < 0.2 * np.abs(was - was.mean()).mean()
        page.mouse.wheel(0, -300)
        expect(canvas).not_to_have_attribute("style", re.compile("transform"), timeout=TIMEOUT)
        assert seen.complaints == []
