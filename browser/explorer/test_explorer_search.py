"""Searching on the explorer's page: chips, why, images of the store that are dropped or pasted, growth."""

import json
import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exploring import TIMEOUT, choose, exploring, pictures, searchable, serious
from playwright.sync_api import expect

from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store

FILES = "<b>a</b> 'quoted'"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return searchable(tmp_path_factory.mktemp("searched"), count=40)


@pytest.fixture(scope="module")
def url(world):
    with exploring(world, "--images", world.images, "--run", world.folder / "dual") as (address, _):
        yield address


def test_chips_narrow_and_have_a_link_and_are_taken_away_again(url, visit):
    seen = visit(url)
    page = seen.page
    page.get_by_role("button", name="Filter", exact=True).click()
    page.get_by_label("Value").fill("1")
    page.get_by_role("button", name="Add filter").click()
    expect(page.get_by_text("11 images").first).to_be_attached(timeout=TIMEOUT)  # 1 and 10 to 19
    page.get_by_label("Column").select_option("bytes")
    page.get_by_label("Test").select_option("at most")
    page.get_by_label("Value").fill("1")
    page.get_by_role("button", name="Add filter").click()
    expect(page.get_by_text("No image matches.")).to_be_visible(timeout=TIMEOUT)
    other = visit(page.url).page
    expect(other.get_by_text("id begins with 1")).to_be_visible(timeout=TIMEOUT)
    expect(other.get_by_text("No image matches.")).to_be_visible(timeout=TIMEOUT)
    page.get_by_role("button", name="Remove the filter bytes at most 1").click()
    expect(page.get_by_text("11 images").first).to_be_attached(timeout=TIMEOUT)
    page.get_by_label("Text to search for").fill("a red square")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("for “a red square”")).to_be_visible(timeout=TIMEOUT)
    expect(pictures(page)).to_have_count(11, timeout=TIMEOUT)
    page.go_back()
    page.go_back()
    expect(page.get_by_text("No image matches.")).to_be_visible(timeout=TIMEOUT)
    assert serious(page) == []
    assert [one for one in seen.complaints if "422" not in one] == []


def test_numbers_of_a_filter_are_those_that_were_typed(url, visit):
    page = visit(url).page
    page.get_by_role("button", name="Filter", exact=True).click()
    page.get_by_label("Column").select_option("bytes", timeout=TIMEOUT)
    page.get_by_label("Test").select_option("is not")
    page.get_by_label("Value").fill(" ")
    expect(page.get_by_role("button", name="Add filter")).to_be_disabled()  # and not 0
    page.get_by_label("Value").fill("9007199254740993")  # JavaScript has no such number
    page.get_by_role("button", name="Add filter").click()
    expect(page.get_by_text("bytes is not 9007199254740993")).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_text("40 images").first).to_be_attached(timeout=TIMEOUT)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_dates_and_times_are_chosen_as_ranges_and_the_time_zone_is_said(tmp_path, visit):
    moments = [datetime(2026, 3, 29, 22, 30, tzinfo=UTC) + timedelta(hours=hour) for hour in range(4)]
    columns = {
        "day": pa.array([moment.date() for moment in moments], pa.date32()),
        "taken": pa.array(moments, pa.timestamp("us", "Europe/Berlin")),
    }
    vectors = pa.array(np.eye(4).tolist(), pa.list_(pa.float32(), 4))
    pq.write_table(pa.table({"name": list("abcd"), "vector": vectors, **columns}), tmp_path / "table.parquet")
    import_embeddings(
        tmp_path / "table.parquet", store=tmp_path / "store", encoder="own", of="images", id_column="name",
        vector_column="vector",
    )  # fmt: skip
    with exploring(SimpleNamespace(folder=tmp_path, store=Store.open(tmp_path / "store"))) as (url, _):
        page = visit(url).page
        page.get_by_role("button", name="Filter", exact=True).click()
        page.get_by_label("Column").select_option("taken", timeout=TIMEOUT)
        expect(page.get_by_text("2026-03-30 00:30:00 to 2026-03-30 03:30:00; times in Europe/Berlin")).to_be_visible()
        page.get_by_label("Value").fill("2026-03-30T01:00")
        page.get_by_role("button", name="Add filter").click()
        expect(page.get_by_text("3 images").first).to_be_attached(timeout=TIMEOUT)
        page.get_by_label("Test").select_option("before")
        page.get_by_label("Value").fill("2026-03-30T03:00")
        page.get_by_role("button", name="Add filter").click()
        expect(page.get_by_text("2 images").first).to_be_attached(timeout=TIMEOUT)
        expect(page.get_by_text("taken before 2026-03-30 03:00")).to_be_visible()
        page.get_by_label("Column").select_option("day")
        page.get_by_label("Test").select_option("on")
        page.get_by_label("Value").fill("2026-03-29")
        page.get_by_role("button", name="Add filter").click()
        expect(page.get_by_text("1 image", exact=False).first).to_be_attached(timeout=TIMEOUT)
        assert serious(page) == []


def test_markup_and_quotes_in_a_value_are_text(url, visit):
    filters = json.dumps([{"column": "id", "test": "is not", "value": FILES}])
    page = visit(f"{url}/explore/#/pictures?filters={filters}").page
    expect(page.get_by_text(f"id is not {FILES}")).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_text("40 images").first).to_be_attached(timeout=TIMEOUT)
    page = visit(f"{url}/explore/#/pictures?filters=nonsense").page
    expect(page.get_by_role("alert")).to_contain_text("filters: expected a list", timeout=TIMEOUT)


def test_a_hit_says_why(url, visit):
    page = visit(f"{url}/explore/#/pictures?text=a+red+square").page
    expect(page.locator("#picture-0")).to_be_visible(timeout=TIMEOUT)
    choose(page, 0)
    page.get_by_role("button", name="Why was it found?").click()
    expect(page.get_by_role("heading", name="What each word adds")).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_role("heading", name="Nearest captions")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="red")).to_contain_text(re.compile(r"[+−]\d"))
    assert serious(page) == []
    choose(page, 1)
    expect(page.get_by_role("button", name="Why was it found?")).to_be_visible()


def test_captions_that_are_too_many_to_look_among_are_not_said_to_be_missing(url, visit):
    page = visit(f"{url}/explore/#/pictures?picture=3.png").page
    note = "The nearest captions are shown only for stores of up to 200,000 texts."
    said = {"by": "encoder", "of": "toy", "captions": [], "words": [], "notes": [note]}
    page.route("**/explore/why", lambda route: route.fulfill(json=said))
    page.get_by_role("button", name="What does it look like?").click(timeout=TIMEOUT)
    expect(page.get_by_text(note)).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_text("The store has no texts")).to_have_count(0)


def test_the_picture_that_is_open_has_a_link_and_is_back_with_the_back_button(url, visit):
    page = visit(f"{url}/explore/#/pictures?shown=unlabelled").page
    expect(page.locator("#picture-3")).to_be_visible(timeout=TIMEOUT)
    choose(page, 3)
    opened = page.get_by_role("complementary", name="Selected image")
    expect(opened).to_be_visible()
    name = page.locator("#picture-3").get_attribute("data-image")
    page.wait_for_url(f"**picture={name}")
    other = visit(page.url).page
    shown = other.get_by_role("complementary", name="Selected image")
    expect(shown).to_contain_text(name, timeout=TIMEOUT)
    shown.get_by_role("button", name="Close").click()
    expect(shown).to_have_count(0)
    assert other.url.endswith("shown=unlabelled")
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_role("heading", name="What is in this store")).to_be_visible(timeout=TIMEOUT)
    page.go_back()
    expect(opened).to_contain_text(name, timeout=TIMEOUT)
    page = visit(f"{url}/explore/#/pictures?picture=none.png").page
    expect(page.get_by_role("alert")).to_contain_text("The image none.png is not in the store", timeout=TIMEOUT)


DROP = """([kind, text]) => {
  const data = new DataTransfer();
  data.setData(kind, text);
  const told = { dataTransfer: data, bubbles: true, cancelable: true };
  document.querySelector('.view').dispatchEvent(new DragEvent('drop', told));
}"""
PASTE = """(text) => {
  const data = new DataTransfer();
  data.setData('text/plain', text);
  window.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }));
}"""


def test_a_picture_of_the_store_is_dropped_or_pasted_by_its_address_and_no_other_address_is_fetched(url, visit):
    seen = visit(url)
    page = seen.page
    expect(page.locator("#picture-0")).to_be_visible(timeout=TIMEOUT)
    page.evaluate(DROP, ["text/uri-list", f"{url}/explore/thumbnail?image=7.png&side=320"])
    expect(page.get_by_text("like 7.png")).to_be_visible(timeout=TIMEOUT)
    page.evaluate(PASTE, f"{url}/explore/#/pictures?like=9.png")
    expect(page.get_by_text("like 9.png")).to_be_visible(timeout=TIMEOUT)
    page.evaluate(DROP, ["text/uri-list", "https://example.com/cat.png"])
    expect(page.get_by_role("alert")).to_contain_text("addresses are not fetched")
    page.evaluate(DROP, ["text/plain", "no address"])
    expect(page.get_by_role("alert")).to_contain_text("Only images can be dropped here")
    assert seen.foreign(url) == []


def test_a_link_takes_the_place_of_an_own_picture_and_chips_stay(url, world, visit):
    filters = json.dumps([{"column": "id", "test": "begins with", "value": "1"}], separators=(",", ":"))
    page = visit(f"{url}/explore/#/pictures?where=bytes+%3E+0&filters={filters}").page
    expect(pictures(page)).to_have_count(11, timeout=TIMEOUT)
    search = page.locator(".words").first

    def search_with_a_file():
        page.locator("input[type=file]").set_input_files(world.images / "3.png")
        expect(search).to_contain_text("like 3.png (this search has no link), where bytes > 0", timeout=TIMEOUT)
        expect(pictures(page)).to_have_count(11, timeout=TIMEOUT)

    search_with_a_file()
    choose(page, 1)
    name = page.locator("#picture-1").get_attribute("data-image")
    page.get_by_role("link", name="More like this").click()
    expect(search).to_contain_text(f"like {name}, where bytes > 0", timeout=TIMEOUT)
    expect(pictures(page)).to_have_count(10, timeout=TIMEOUT)  # the filters are kept
    search_with_a_file()
    page.locator(f"[data-image='{name}']").click()
    page.get_by_role("link", name="More like this").click()  # which is where the link led before
    expect(search).to_contain_text(f"like {name}, where bytes > 0", timeout=TIMEOUT)
    search_with_a_file()
    choose(page, 2)
    other = page.locator("#picture-2").get_attribute("data-image")
    page.keyboard.press("m")
    expect(search).to_contain_text(f"like {other}, where bytes > 0", timeout=TIMEOUT)
    search_with_a_file()
    page.get_by_role("button", name="Remove the filter").click()
    expect(pictures(page)).not_to_have_count(11, timeout=TIMEOUT)
    expect(search).to_contain_text("like 3.png (this search has no link)")
    before = page.url
    page.get_by_role("link", name="Overview").click()
    page.go_back()
    assert page.url == before
    expect(search).to_contain_text(f"like {other}", timeout=TIMEOUT)


def test_what_was_searched_for_is_shown_and_sql_stands_with_the_filters(url, visit):
    page = visit(f"{url}/explore/#/pictures?like=7.png").page
    expect(page.locator(".query img")).to_have_js_property("naturalWidth", 40, timeout=TIMEOUT)
    expect(page.get_by_label("Filter in SQL")).to_have_count(0)
    page.get_by_role("button", name="Filter", exact=True).click()
    expect(page.get_by_label("Filter in SQL")).to_be_visible()
    page.get_by_role("button", name="Show all").click()
    expect(page.get_by_text("40 images", exact=True).first).to_be_visible(timeout=TIMEOUT)


def test_back_leaves_the_search_with_an_own_picture(url, world, visit):
    page = visit(f"{url}/explore/#/pictures?text=a+red+square").page
    expect(page.locator("#picture-0")).to_be_visible(timeout=TIMEOUT)
    page.get_by_label("Text to search for").fill("a blue square")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("for “a blue square”")).to_be_visible(timeout=TIMEOUT)
    page.locator("input[type=file]").set_input_files(world.images / "3.png")
    expect(page.get_by_text("like 3.png")).to_be_visible(timeout=TIMEOUT)
    page.go_back()
    expect(page.get_by_text("for “a red square”")).to_be_visible(timeout=TIMEOUT)


def test_a_search_that_failed_is_asked_again_with_the_same_words(url, visit):
    page = visit(url).page
    page.route("**/explore/find", lambda route: route.abort(), times=1)
    page.get_by_label("Text to search for").fill("a red square")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("The search failed.")).to_be_visible(timeout=TIMEOUT)
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#picture-0")).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("size", ["phone", "wide"])
def test_growth_is_drawn_and_said(url, visit, size):
    seen = visit(f"{url}/explore/#/overview", size=size, scheme="dark")
    expect(seen.page.get_by_role("heading", name="Growth")).to_be_visible(timeout=TIMEOUT)
    expect(seen.page.get_by_text("Images: 40")).to_be_visible()
    assert seen.overflow() == 0
    assert serious(seen.page) == []
