"""The explorer as a person meets it: look, search, label by click and keyboard, resume, links, errors in words."""

import os
import re
import signal

import pytest
from exploring import HOSTILE, TIMEOUT, add_class, agreed, choose, colour_of, exploring, pictures, searchable, serious
from playwright.sync_api import expect

from frevl.store.labels.labels_file import LabelsFile
from frevl.store.upkeep.removal import remove
from made import make


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return searchable(tmp_path_factory.mktemp("explored"), count=60)


@pytest.fixture(scope="module")
def url(world):
    with exploring(world, "--images", world.images, "--run", world.folder / "dual") as (address, _):
        yield address


@pytest.fixture
def fresh(world):
    (world.store.path / "labels" / "labels.jsonl").unlink(missing_ok=True)


def test_it_opens_on_the_pictures_and_asks_no_other_host(url, visit):
    seen = visit(url)
    expect(pictures(seen.page).first).to_be_visible(timeout=TIMEOUT)
    expect(seen.page.locator("#picture-3 img")).to_have_js_property("naturalWidth", 40)
    assert seen.page.url == f"{url}/explore/"
    assert seen.foreign(url) == []
    assert seen.complaints == []


@pytest.mark.usefixtures("fresh")
def test_label_by_keyboard_undo_and_resume_after_kill(world, visit):
    with exploring(world, "--images", world.images) as (url, process):
        page = visit(url).page
        add_class(page, "red")
        add_class(page, "blue")
        choose(page, 0)
        page.keyboard.press("1")  # and on to the next image
        expect(page.locator("#picture-0 b")).to_have_text("red")
        page.keyboard.press("2")
        expect(page.locator("#picture-1 b")).to_have_text("blue")
        page.keyboard.press("1")
        expect(page.locator("#picture-2 b")).to_have_text("red")
        page.keyboard.press("u")
        expect(page.locator("#picture-2 b")).to_have_count(0)
        expect(page.get_by_text("Undone.")).to_be_attached()
        os.kill(process.pid, signal.SIGKILL)
        page.keyboard.press("1")
        expect(page.get_by_role("alert")).to_contain_text("The service does not answer")
        expect(page.locator("#picture-2 b")).to_have_count(0)  # what was not confirmed is not shown
    ids = world.store.ids("image")
    assert agreed(world) == {ids[0]: "red", ids[1]: "blue"}
    with exploring(world, "--images", world.images) as (url, _):
        page = visit(url).page
        expect(page.locator("#picture-0 b")).to_have_text("red")
        expect(page.locator("#picture-1 b")).to_have_text("blue")


@pytest.mark.usefixtures("fresh")
def test_several_are_labelled_at_once_by_click(url, world, visit):
    page = visit(url).page
    choose(page, 0)
    page.locator("#picture-4").click(modifiers=["Shift"])
    page.get_by_label("Class", exact=True).fill("many")
    page.get_by_role("button", name="Label", exact=True).click()
    expect(page.get_by_text("many: 5 images")).to_be_attached()  # said once they are written
    expect(page.locator("#picture-4 b")).to_have_text("many")
    assert list(agreed(world).values()) == ["many"] * 5
    page.get_by_role("button", name="undo").click()
    expect(page.locator("#picture-4 b")).to_have_count(0)
    assert agreed(world) == {}


@pytest.mark.usefixtures("fresh")
def test_markup_in_a_class_name_is_text(url, world, visit):
    seen = visit(url)
    add_class(seen.page, HOSTILE)
    choose(seen.page, 0)
    seen.page.keyboard.press("1")
    expect(seen.page.get_by_text(f"{HOSTILE}: ")).to_be_attached()  # said once it is written
    expect(seen.page.locator("#picture-0 b")).to_have_text(HOSTILE)
    seen.page.get_by_role("link", name="Overview").click()
    expect(seen.page.get_by_role("heading", name="Labels")).to_be_visible()
    assert "ran" not in seen.page.title()
    assert seen.complaints == []
    assert list(agreed(world).values()) == [HOSTILE]


@pytest.mark.usefixtures("fresh")
def test_two_tabs_see_each_others_labels_and_lose_none(url, world, visit):
    one, other = visit(url).page, visit(url).page
    add_class(one, "red")
    other.get_by_label("Your name").fill("bob")
    other.get_by_label("Your name").press("Enter")
    expect(other.locator("button.class").filter(has_text="red")).to_be_visible()
    for page, number in ((one, 0), (other, 1), (one, 2), (other, 3)):
        choose(page, number)
        page.keyboard.press("1")
        expect(page.locator(f"#picture-{number} b")).to_have_text("red")
    for page, number in ((one, 3), (other, 2)):
        expect(page.locator(f"#picture-{number} b")).to_have_text("red")
    assert len(agreed(world)) == 4


def test_search_by_words_like_this_and_a_file_and_go_back(url, world, visit):
    page = visit(url).page
    page.get_by_label("Text to search for").fill("a red square")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("for “a red square”")).to_be_visible()
    expect(page.get_by_role("listbox", name="Images found")).to_be_visible(timeout=TIMEOUT)
    assert "text=a+red+square" in page.url
    choose(page, 0)
    page.get_by_role("link", name="More like this").click()
    expect(page.get_by_text("like ", exact=False).first).to_be_visible()
    assert "like=" in page.url
    page.go_back()
    expect(page.get_by_text("for “a red square”")).to_be_visible()
    page.locator("input[type=file]").set_input_files(world.images / "3.png")
    expect(page.get_by_text("like 3.png (this search has no link)")).to_be_visible()
    expect(page.locator("#picture-0 i")).to_have_text("1.00", timeout=TIMEOUT)


def test_a_file_that_is_no_picture_gets_a_sentence(url, visit, tmp_path):
    page = visit(url).page
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    page.locator("input[type=file]").set_input_files(bad)
    expect(page.get_by_role("alert")).to_contain_text("The image cannot be read")


@pytest.mark.usefixtures("fresh")
def test_every_state_has_a_link(url, visit):
    page = visit(f"{url}/explore/#/pictures?where=id+LIKE+%271%25%27").page
    expect(page.get_by_text("11 images").first).to_be_attached()
    page = visit(f"{url}/explore/#/pictures?shown=labelled").page
    expect(page.get_by_text("No image matches.")).to_be_visible()
    page = visit(f"{url}/explore/#/overview").page
    expect(page.get_by_role("heading", name="What is in this store")).to_be_visible()
    page = visit(f"{url}/explore/#/pictures?where=nonsense").page
    expect(page.get_by_role("alert")).to_contain_text("Columns of the images of STORE: id, bytes")


def test_pictures_that_vanished_are_said_to_be_gone(tmp_path, visit):
    world = make(tmp_path / "world", ["toy"], count=8)
    (world.images / "0.png").unlink()
    (world.images / "1.png").write_text("broken")
    with exploring(world, "--images", world.images) as (url, _):
        page = visit(url).page
        gone = page.get_by_text("Missing or unreadable")
        expect(gone).to_have_count(2)
        gone.first.click()
        expect(page.get_by_text("Its labels are kept.")).to_be_visible()


@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_nothing_is_wider_than_the_window(url, visit, size):
    for tab in ("pictures", "overview"):
        seen = visit(f"{url}/explore/#/{tab}", size=size)
        expect(seen.page.get_by_role("navigation")).to_be_visible()
        seen.page.wait_for_timeout(300)
        assert seen.overflow() == 0


def test_a_service_that_only_shows_has_no_way_to_label(world, visit):
    with exploring(world, "--no-labels") as (url, _):
        page = visit(url).page
        expect(page.get_by_text("Read-only: the service was started without", exact=False)).to_be_visible()
        expect(page.get_by_label("Your name")).to_have_count(0)


@pytest.mark.usefixtures("fresh")
def test_teach_by_keyboard_and_see_accuracy_order_and_confusion(url, world, visit):
    seen = visit(f"{url}/explore/#/teach")
    page = seen.page
    expect(page.get_by_text("Label at least one image of each of two classes")).to_be_visible(timeout=TIMEOUT)
    colours = ["red", "green", "blue", "yellow"]
    for colour in colours:
        add_class(page, colour)
    ids = world.store.ids("image")
    choose(page, 0)
    for id_ in ids[:32]:  # each key leads to the next image, however fast they come
        page.keyboard.press(str(1 + colours.index(colour_of(world, id_))))
    expect(page.locator("#picture-31 b")).to_have_text(colour_of(world, ids[31]), timeout=TIMEOUT)
    expect(page.get_by_text("32 labelled images")).to_be_visible(timeout=2 * TIMEOUT)
    expect(page.get_by_role("heading", name="% right")).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_text("95 % interval")).to_be_visible()
    page.get_by_role("button", name="Label next").click()
    expect(page.locator("#picture-0 i")).to_contain_text("%", timeout=TIMEOUT)
    shown = [page.locator(f"#picture-{number}").get_attribute("data-image") for number in range(8)]
    assert not set(shown) & set(ids[:32])
    page.get_by_label("Most likely to be").select_option("red")
    expect(page.locator("#picture-0 i")).to_contain_text("red", timeout=TIMEOUT)
    best = [page.locator(f"#picture-{number}").get_attribute("data-image") for number in range(3)]
    assert {colour_of(world, id_) for id_ in best} == {"red"}
    assert "order=class&of=red" in page.url
    assert agreed(world) == {id_: colour_of(world, id_) for id_ in ids[:32]}
    assert seen.complaints == []


@pytest.mark.usefixtures("fresh")
def test_pictures_do_not_change_places_while_somebody_labels(url, world, visit):
    ids = world.store.ids("image")
    LabelsFile(world.store.path).label("bob", [(id_, colour_of(world, id_)) for id_ in ids[:24]])
    page = visit(f"{url}/explore/#/teach?order=doubt").page
    expect(page.get_by_role("heading", name="right")).to_be_visible(timeout=TIMEOUT)
    page.get_by_role("button", name="Most doubtful").click()
    expect(page.locator("#picture-0")).to_be_visible(timeout=TIMEOUT)

    expect(page.get_by_text("learning …")).to_have_count(0, timeout=TIMEOUT)

    def shown():
        return [page.locator(f"#picture-{number}").get_attribute("data-image") for number in range(1, 6)]

    before = shown()
    choose(page, 0)
    page.keyboard.press("1")
    button = page.get_by_role("button", name="Show the new order")
    expect(button).to_be_visible(timeout=TIMEOUT)
    assert shown() == before
    button.click()
    expect(button).to_have_count(0)
    expect(page.locator("#picture-0")).to_be_visible(timeout=TIMEOUT)


@pytest.mark.usefixtures("fresh")
def test_export_and_import_and_rename_in_the_page(url, visit, tmp_path):
    page = visit(f"{url}/explore/#/teach").page
    file = tmp_path / "labels.jsonl"
    file.write_text('{"image": "0.png", "target": "cat"}\n{"image": "away.png", "target": "dog"}\n')
    page.get_by_label("Import").set_input_files(file)
    expect(page.get_by_text("Imported 1 labels and skipped 1")).to_be_visible(timeout=TIMEOUT)
    page.locator(".rename select").select_option("cat")
    page.locator(".rename input").first.fill("kitten")
    page.get_by_role("button", name="Rename").click()
    expect(page.locator("button.class").filter(has_text="kitten")).to_be_visible()
    with page.expect_download() as found:
        page.get_by_role("link", name="JSON lines").click()
    assert found.value.path().read_text() == '{"image": "0.png", "target": "kitten"}\n'


@pytest.mark.usefixtures("fresh")
def test_a_lasso_on_the_map_chooses_pictures_that_can_be_labelled(url, world, visit):
    seen = visit(f"{url}/explore/#/map")
    page = seen.page
    surface = page.get_by_role("application")
    expect(surface).to_be_visible(timeout=TIMEOUT)
    add_class(page, "left")
    page.get_by_role("button", name="Lasso").click()
    area = surface.bounding_box()
    x, y, wide, high = area["x"], area["y"], area["width"], area["height"]
    page.mouse.move(x + 5, y + 5)
    page.mouse.down()
    for right, down in ((0.5, 0.01), (0.5, 0.99), (0.01, 0.99)):
        page.mouse.move(x + right * wide, y + down * high, steps=3)
    page.mouse.up()
    chosen = page.get_by_role("region", name="Images selected on the map")
    expect(chosen).to_be_visible(timeout=TIMEOUT)
    count = int(chosen.get_by_text(" selected").text_content().split()[0])
    assert 0 < count < 60
    page.keyboard.press("1")
    expect(page.get_by_text(f"left: {count} images")).to_be_attached()
    expect(chosen.locator("b", has_text="left").first).to_be_visible()
    assert list(agreed(world).values()) == ["left"] * count
    assert seen.complaints == []
    assert seen.foreign(url) == []


@pytest.mark.usefixtures("fresh")
def test_the_map_works_by_keyboard_and_shows_what_the_classifier_says(url, world, visit):
    ids = world.store.ids("image")
    LabelsFile(world.store.path).label("bob", [(id_, colour_of(world, id_)) for id_ in ids[:24]])
    page = visit(f"{url}/explore/#/teach").page
    expect(page.get_by_role("heading", name="right")).to_be_visible(timeout=TIMEOUT)
    page.get_by_role("link", name="Map").click()
    surface = page.get_by_role("application")
    expect(surface).to_be_visible(timeout=TIMEOUT)
    assert {"red", "green"} <= set(page.get_by_role("list", name="Colours").inner_text().split())
    surface.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("region").get_by_text("60 selected")).to_be_visible(timeout=TIMEOUT)
    page.locator(".tools select").first.select_option("probability")
    page.locator(".tools select").last.select_option("red")
    expect(page).to_have_url(re.compile("of=red"))
    assert "by=probability&of=red" in page.url
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.usefixtures("fresh")
def test_ten_thousand_classes_can_be_found_by_typing(url, world, visit):
    LabelsFile(world.store.path).define("bob", [f"class {number}" for number in range(10_000)])
    for tab in ("pictures", "teach", "map"):
        page = visit(f"{url}/explore/#/{tab}").page
        expect(page.get_by_text("9,970 more; type to find one.")).to_be_visible(timeout=TIMEOUT)
    page = visit(f"{url}/explore/#/pictures").page
    choose(page, 0)
    page.get_by_label("Class", exact=True).fill("class 7777")
    expect(page.locator("button.class")).to_have_count(1)
    page.locator("button.class").click()
    expect(page.get_by_text("class 7777: ")).to_be_attached(timeout=TIMEOUT)  # said once it is written
    expect(page.locator("#picture-0 b")).to_have_text("class 7777")
    assert list(agreed(world).values()) == ["class 7777"]


def test_pictures_that_are_pruned_or_added_while_the_page_is_open(tmp_path, visit):
    world = make(tmp_path / "world", ["toy"], count=12)
    with exploring(world, "--images", world.images) as (url, _):
        page = visit(url).page
        add_class(page, "red")
        choose(page, 0)
        gone = page.locator("#picture-0").get_attribute("data-image")
        remove(world.store.path, ids=[gone])
        page.wait_for_timeout(2500)  # the service looks for a newer store every two seconds
        page.keyboard.press("1")
        expect(page.get_by_role("alert")).to_contain_text(f"The store has no image '{gone}'", timeout=TIMEOUT)
        choose(page, 2)
        page.keyboard.press("1")
        expect(page.locator("#picture-2 b")).to_have_text("red")
        page.reload()
        expect(page.get_by_text("11 images").first).to_be_attached()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["phone", "desktop", "wide"])
def test_axe_finds_nothing_serious(url, world, visit, size, scheme):
    ids = world.store.ids("image")
    labels = LabelsFile(world.store.path)
    labels.label("bob", [(id_, colour_of(world, id_)) for id_ in ids[:24]])
    labels.label("ada", [(ids[0], "red"), (ids[1], "blue")])
    for tab in ("pictures", "teach", "map", "overview", "pictures?shown=disputed", "pictures?where=nonsense"):
        seen = visit(f"{url}/explore/#/{tab}", size=size, scheme=scheme)
        expect(seen.page.get_by_role("navigation")).to_be_visible(timeout=TIMEOUT)
        if tab == "teach":
            expect(seen.page.get_by_role("heading", name="right")).to_be_visible(timeout=TIMEOUT)
        if tab in ("pictures", "teach"):
            choose(seen.page, 0)
            expect(seen.page.get_by_role("complementary", name="Selected image")).to_be_visible()
        seen.page.wait_for_timeout(300)
        assert serious(seen.page) == []
        assert seen.overflow() == 0
