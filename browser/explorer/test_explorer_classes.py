"""Classes that are renamed under an open page, and ten thousand of them."""

import pytest
from exploring import TIMEOUT, add_class, agreed, choose, exploring, serious
from playwright.sync_api import expect

from frevl.store.labels.labels_file import LabelsFile
from made import make

HOSTILE = "<i onclick=alert(1)>kitten</i>"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("classes"), ["toy"], count=20)


@pytest.fixture(scope="module")
def url(world):
    with exploring(world, "--images", world.images) as (address, _):
        yield address


@pytest.fixture(autouse=True)
def _fresh(world):
    (world.store.path / "labels" / "labels.jsonl").unlink(missing_ok=True)


def test_a_renamed_class_is_told_in_the_other_tab_and_old_labels_and_links_stay(url, world, visit):
    one, other = visit(f"{url}/explore/#/teach").page, visit(url).page
    add_class(other, "cat")
    choose(other, 0)
    other.keyboard.press("1")
    expect(other.locator("#picture-0 b")).to_have_text("cat")
    form = one.locator("form.rename")
    form.get_by_label("Rename").select_option("cat", timeout=TIMEOUT)
    form.get_by_label("to", exact=True).fill(HOSTILE)
    form.get_by_role("button", name="Rename").click()
    told = other.get_by_text(f"The class “cat” is now called “{HOSTILE}”.")
    expect(told).to_be_visible(timeout=TIMEOUT)
    expect(other.locator("#picture-0 b")).to_have_text(HOSTILE, timeout=TIMEOUT)
    assert serious(other) == []
    other.get_by_role("button", name="OK").click()
    expect(told).to_have_count(0)
    page = visit(f"{url}/explore/#/pictures?label=cat").page  # a link from before
    expect(page.locator("#picture-0 b")).to_have_text(HOSTILE, timeout=TIMEOUT)
    page = visit(f"{url}/explore/#/overview").page
    page.get_by_text("Renamed classes (1)").click(timeout=TIMEOUT)
    expect(page.get_by_text(f"cat, now {HOSTILE}")).to_be_visible()
    assert list(agreed(world).values()) == [HOSTILE]


def test_any_of_ten_thousand_classes_is_taught_renamed_and_looked_for(url, world, visit):
    ids = world.store.ids("image")
    labels = LabelsFile(world.store.path)
    labels.define("bob", [f"class {number}" for number in range(10_000)])
    labels.label("bob", [(id_, f"class {9_990 + row % 2}") for row, id_ in enumerate(ids)])
    page = visit(f"{url}/explore/#/teach").page
    expect(page.get_by_text("20 labelled images in 2 classes")).to_be_visible(timeout=2 * TIMEOUT)
    form = page.locator("form.rename")
    form.get_by_label("Rename").fill("class 9991")
    form.get_by_label("to", exact=True).fill("the last")
    form.get_by_role("button", name="Rename").click()
    expect(page.get_by_text("class 9991 is now called the last.")).to_be_attached(timeout=TIMEOUT)
    assert set(agreed(world).values()) == {"class 9990", "the last"}
