"""The explorer where something does not work: a service that is away, files that are gone, searches that come late."""

from types import SimpleNamespace

import numpy as np
import pytest
from exploring import TIMEOUT, choose, exploring, pictures, serious
from playwright.sync_api import expect

from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from made import make


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("faults"), ["toy"], count=30)


@pytest.fixture(scope="module")
def url(world):
    with exploring(world, "--images", world.images) as (address, _):
        yield address


@pytest.mark.parametrize("how", ["away", "busy"])
def test_a_picture_that_the_service_could_not_send_is_not_called_gone_and_comes_later(url, visit, how):
    seen = visit(f"{url}/explore/#/overview")
    page = seen.page
    expect(page.get_by_role("heading", name="What is in this store")).to_be_visible(timeout=TIMEOUT)
    page.route("**/explore/thumbnail*", lambda route: route.abort() if how == "away" else route.fulfill(status=503))
    page.get_by_role("link", name="Images").click()
    expect(pictures(page).first).to_be_visible(timeout=TIMEOUT)
    choose(page, 1)
    expect(page.get_by_role("complementary", name="Selected image")).to_be_visible()
    page.wait_for_timeout(1000)
    expect(page.get_by_text("Missing or unreadable")).to_have_count(0)
    expect(page.get_by_text("The file of this image is missing")).to_have_count(0)
    page.unroute("**/explore/thumbnail*")
    expect(page.locator("#picture-3 img")).to_have_js_property("naturalWidth", 40, timeout=TIMEOUT)
    expect(page.locator("aside img")).to_have_js_property("naturalWidth", 40, timeout=TIMEOUT)


def test_a_file_that_is_gone_is_told(url, world, visit):
    gone = world.images / "29.png"
    gone.rename(gone.with_suffix(".away"))
    try:
        page = visit(f"{url}/explore/#/pictures?picture=29.png").page
        expect(page.get_by_text("The file of this image is missing")).to_be_visible(timeout=TIMEOUT)
        page.get_by_role("listbox").focus()
        page.keyboard.press("End")
        expect(page.get_by_text("Missing or unreadable: 29.png")).to_be_visible(timeout=TIMEOUT)
    finally:
        gone.with_suffix(".away").rename(gone)


def test_a_search_that_fails_after_another_was_begun_says_nothing_about_that(url, world, visit, tmp_path):
    page = visit(url).page
    expect(pictures(page).first).to_be_visible(timeout=TIMEOUT)
    held = []
    page.route("**/explore/find", lambda route: route.continue_() if held else held.append(route))
    odd = tmp_path / "notes.txt"
    odd.write_text("no picture")
    page.locator("input[type=file]").set_input_files(odd)
    expect(page.get_by_text("like notes.txt")).to_be_visible()
    page.locator("input[type=file]").set_input_files(world.images / "0.png")
    expect(page.get_by_text("like 0.png")).to_be_visible()
    expect(page.locator("#picture-0")).to_have_attribute("data-image", "0.png", timeout=TIMEOUT)
    held[0].continue_()
    page.wait_for_timeout(800)
    expect(page.get_by_role("alert")).to_have_count(0)
    # Alone it says what is wrong.
    page.locator("input[type=file]").set_input_files(odd)
    expect(page.get_by_role("alert")).to_contain_text("The image cannot be read", timeout=TIMEOUT)


def test_where_words_find_nothing_there_is_no_field_for_them(url, visit):
    page = visit(url).page
    expect(page.get_by_text("This encoder cannot search by words.")).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_label("Text to search for")).to_have_count(0)
    page.get_by_role("listbox").focus()
    page.keyboard.press("/")
    expect(page.get_by_label("Filter in SQL")).to_be_focused()


@pytest.mark.parametrize("tab", ["pictures", "runs", "overview"])
def test_the_names_of_the_parts_take_two_lines_of_a_phone_at_most(url, visit, tab):
    seen = visit(f"{url}/explore/#/{tab}", size="phone", scheme="dark")
    expect(seen.page.get_by_label("Your name")).to_be_visible(timeout=TIMEOUT)
    assert seen.page.locator("header").evaluate("(head) => head.clientHeight") <= 110
    assert seen.overflow() == 0
    assert serious(seen.page) == []


def test_a_search_that_is_left_does_not_come_over_the_list(url, visit):
    page = visit(url).page
    expect(pictures(page).first).to_be_visible(timeout=TIMEOUT)
    held = []
    page.route("**/explore/find", lambda route: held.append(route))
    page.evaluate("location.hash = '#/pictures?like=0.png'")
    expect(page.get_by_text("Searching;")).to_be_visible(timeout=TIMEOUT)
    page.get_by_role("button", name="Show all").click()
    expect(page.get_by_role("listbox", name="Images of the store")).to_be_visible(timeout=TIMEOUT)
    held[0].continue_()
    page.wait_for_timeout(500)
    expect(page.get_by_role("listbox", name="Images of the store")).to_be_visible()


def test_the_link_of_another_order_does_not_name_the_picture_that_was_open_before(url, visit):
    page = visit(url).page
    expect(pictures(page).first).to_be_visible(timeout=TIMEOUT)
    choose(page, 1)
    assert "picture=" in page.url
    page.get_by_label("Show", exact=True).select_option("unlabelled")
    expect(page.get_by_role("complementary", name="Selected image")).to_have_count(0)
    assert page.url.endswith("#/pictures?shown=unlabelled")


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A store of 2,000 imported vectors, whose pictures nobody has."""
    folder = tmp_path_factory.mktemp("long")
    np.save(folder / "vectors.npy", np.random.default_rng(0).standard_normal((2000, 4)).astype(np.float16))
    (folder / "ids.txt").write_text("\n".join(f"{number:04}.jpg" for number in range(2000)))
    import_embeddings(
        folder / "vectors.npy", store=folder / "store", encoder="own", of="images", ids=folder / "ids.txt"
    )
    with exploring(SimpleNamespace(folder=folder, store=Store.open(folder / "store"))) as (address, _):
        yield address


def test_a_picture_that_is_opened_far_down_stays_in_sight(long, visit):
    """The columns become fewer when it opens beside them, and what was clicked had gone out of sight."""
    page = visit(long).page
    expect(pictures(page).first).to_be_visible(timeout=TIMEOUT)
    page.get_by_role("listbox").evaluate("(box) => (box.scrollTop = 20000)")
    clicked = page.locator("[data-image='0707.jpg']")
    expect(clicked).to_be_in_viewport(timeout=TIMEOUT)
    clicked.click()
    expect(page.get_by_role("complementary", name="Selected image")).to_be_visible()
    page.wait_for_timeout(500)
    expect(clicked).to_be_in_viewport()
    page.get_by_role("button", name="Close").click()
    page.wait_for_timeout(500)
    expect(clicked).to_be_in_viewport()


def test_a_jump_by_keyboard_to_what_is_not_there_yet_chooses_it(long, visit):
    page = visit(long).page
    expect(pictures(page).first).to_be_visible(timeout=TIMEOUT)
    page.get_by_role("listbox").focus()
    page.keyboard.press("End")
    last = page.locator("[data-image='1999.jpg']")
    expect(last).to_have_attribute("aria-selected", "true", timeout=TIMEOUT)
    expect(last).to_be_in_viewport()
