"""The tab Curate as a person meets it: accept and overrule by click and key, undo, copies, links, words, two people."""

import json
import os
import signal

import pytest
from exploring import HOSTILE, TIMEOUT, exploring, serious
from playwright.sync_api import expect

from judged import classes, judged, write_result
from made import make


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("curated"), ["toy"], count=12)


@pytest.fixture(scope="module")
def result(world):
    return write_result(world.folder / "found")


@pytest.fixture(scope="module")
def url(world, result):
    with exploring(world, "--images", world.images, "--curation", result) as (address, _):
        yield address


@pytest.fixture
def fresh(result):
    (result.with_name("result.json.decisions") / "decisions.jsonl").unlink(missing_ok=True)


def rows(page, name="Checked lines"):
    return page.get_by_role("list", name=name).locator("> li")


def kept(page, count):
    expect(page.get_by_role("heading", name="lines are kept")).to_have_text(
        f"{count} of 9 lines are kept", timeout=TIMEOUT
    )


@pytest.mark.usefixtures("fresh")
def test_judgements_are_overruled_by_click_and_undone(url, visit, result):
    seen = visit(f"{url}/explore/")
    page = seen.page
    page.get_by_role("link", name="Curate").click()
    kept(page, 4)
    expect(rows(page).first).to_contain_text("describes the image: 2.0 %", timeout=TIMEOUT)
    expect(rows(page).first.locator("img")).to_have_js_property("naturalWidth", 40)
    expect(
        page.get_by_text("20.0 % describe their image no better than random captions (95 % interval 10.0 % to 30.0 %)")
    ).to_be_visible()
    rows(page).first.get_by_role("button", name="Keep").click()
    kept(page, 5)
    expect(rows(page).first).to_contain_text("kept – me: keep")
    decisions = result.with_name("result.json.decisions") / "decisions.jsonl"
    assert json.loads(decisions.read_text().splitlines()[1])["class"] == "keep"
    page.get_by_role("button", name="Undo").click()
    kept(page, 4)
    expect(rows(page).first).to_contain_text("dropped (match)")
    page.get_by_role("button", name="Keep all 2").click()
    kept(page, 5)  # of the two lines one is a copy, too
    expect(rows(page).nth(1)).to_contain_text("dropped (duplicate)")
    page.get_by_role("button", name="Undo").click()
    kept(page, 4)
    expect(rows(page).nth(1)).to_contain_text("dropped (match, duplicate)")
    assert seen.foreign(url) == []
    assert seen.complaints == []


@pytest.mark.usefixtures("fresh")
def test_by_keyboard_and_resume_after_kill(world, result, visit):
    options = ("--images", world.images, "--curation", result)
    with exploring(world, *options) as (url, process):
        page = visit(f"{url}/explore/#/curate?view=match&shown=all").page
        expect(rows(page)).to_have_count(8, timeout=TIMEOUT)
        page.keyboard.press("ArrowDown")
        page.keyboard.press("k")
        kept(page, 5)
        expect(rows(page).nth(1)).to_be_focused()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("d")  # nobody flagged it
        kept(page, 4)
        page.keyboard.press("u")
        kept(page, 5)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        rows(page).first.get_by_role("button", name="Drop").click()
        expect(page.get_by_role("alert")).to_contain_text("The service does not answer", timeout=TIMEOUT)
    with exploring(world, *options) as (url, _):
        page = visit(f"{url}/explore/#/curate?view=match&shown=decided").page
        kept(page, 5)
        expect(rows(page)).to_have_count(1)


@pytest.mark.usefixtures("fresh")
def test_copies_are_chosen(url, visit):
    page = visit(f"{url}/explore/#/curate?view=duplicate").page
    group = rows(page, "Groups of copies").first
    expect(group).to_contain_text("1. 3.png", timeout=TIMEOUT)
    group.locator("figure").nth(1).get_by_role("button", name="Keep only this one").click()
    expect(group.locator("figure").nth(1)).to_contain_text("line, kept")
    expect(group.locator("figure").nth(0)).to_contain_text("line, dropped")
    kept(page, 4)
    page.keyboard.press("k")
    kept(page, 5)
    page.keyboard.press("u")
    kept(page, 4)
    page.keyboard.press("d")
    expect(group.locator("figure").nth(0)).to_contain_text("line, kept")
    page.get_by_label("Show").select_option("undecided")
    expect(page.get_by_text("Every group has been decided.")).to_be_visible()
    assert page.url.endswith("view=duplicate&shown=undecided")
    page.go_back()
    expect(group).to_be_visible()


@pytest.mark.usefixtures("fresh")
def test_two_people_see_each_other_and_the_result_is_a_file(url, visit):
    ada, bob = visit(f"{url}/explore/#/curate").page, visit(f"{url}/explore/#/curate").page
    for page, name in ((ada, "ada"), (bob, "bob")):
        page.get_by_label("Your name").fill(name)
        page.get_by_label("Your name").press("Tab")
        expect(rows(page)).to_have_count(2, timeout=TIMEOUT)
    rows(ada).first.get_by_role("button", name="Keep").click()
    kept(bob, 5)
    rows(bob).first.get_by_role("button", name="Drop").click()
    kept(ada, 4)
    expect(ada.get_by_text("Votes are tied on 1")).to_be_visible()
    with ada.expect_download() as download:
        ada.get_by_role("link", name="Download dropped lines, with reasons").click()
    lines = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert {line["text"]: line["curate"]["why"] for line in lines}["a wrong one"] == ["match"]


@pytest.mark.usefixtures("fresh")
def test_the_sheet_of_what_goes_knows_what_was_decided(url, visit):
    page = visit(f"{url}/explore/#/curate?view=removed").page
    expect(page.get_by_role("heading", name="Removed by frevl curate")).to_be_visible(timeout=TIMEOUT)
    other = visit(f"{url}/explore/#/curate?view=match").page
    rows(other).first.get_by_role("button", name="Keep").click()
    kept(other, 5)
    expect(page.get_by_role("heading", name="Removed after all decisions")).to_be_visible(timeout=TIMEOUT)
    expect(page.get_by_text("No group has the 20 lines")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("row").filter(has_text="winter")).to_contain_text("70.0 % to 80.0 %", timeout=TIMEOUT)


def test_what_outlives_a_killed_service_is_seen_while_it_runs_and_can_be_stopped(world, visit):
    options = ("--pairs", world.captions_file)
    with exploring(world, *options) as (url, process):
        page = visit(f"{url}/explore/#/curate").page
        page.get_by_role("button", name="Curate the lines of captions.jsonl").click(timeout=TIMEOUT)
        expect(page.get_by_text("Curating captions,")).to_be_visible(timeout=TIMEOUT)
        running = json.loads((world.store.path / "curation" / "captions" / "process.json").read_text())["process"]
        os.kill(running, signal.SIGSTOP)  # it takes as long as this test wants
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    with exploring(world, *options) as (url, _):
        page = visit(f"{url}/explore/#/curate").page
        expect(page.get_by_text("Curating captions,")).to_be_visible(timeout=TIMEOUT)
        expect(page.get_by_role("button", name="Curate the lines of captions.jsonl")).to_have_count(0)
        os.kill(running, signal.SIGCONT)
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_text("captions was stopped; start it again to continue")).to_be_visible(timeout=TIMEOUT)


def test_what_is_removed_is_a_sheet_and_every_wrong_link_has_words(url, visit):
    page = visit(f"{url}/explore/#/curate").page
    page.get_by_role("link", name="Losses by group").click()
    row = page.get_by_role("row").filter(has_text="winter")
    expect(row).to_contain_text("loses more than by chance", timeout=TIMEOUT)
    expect(page.get_by_text("The filters do not affect all groups equally.")).to_be_visible()
    page.goto(f"{url}/explore/#/curate?view=nonsense")
    expect(page.get_by_text("did not use the filter “nonsense”")).to_be_visible()
    page.goto(f"{url}/explore/#/curate?view=match&start=5000")
    expect(page.get_by_text("The list ends before this page.")).to_be_visible()
    page.goto(f"{url}/explore/#/curate?of=nothing")
    expect(page.get_by_role("alert")).to_contain_text("There is no curation 'nothing' here.")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("desktop", "light"), ("wide", "dark")])
def test_axe_finds_nothing_serious(url, visit, size, scheme):
    for place in ("view=match&shown=all", "view=duplicate", "view=removed", "view=text", "of=nothing"):
        seen = visit(f"{url}/explore/#/curate?{place}", size=size, scheme=scheme)
        expect(
            seen.page.locator(".page").get_by_role("alert" if place == "of=nothing" else "heading").first
        ).to_be_visible(timeout=TIMEOUT)
        seen.page.wait_for_timeout(300)
        assert serious(seen.page) == []
        assert seen.overflow() == 0


def test_labels_are_corrected_and_markup_is_text(world, visit):
    lines = [*classes(), judged("3.png", HOSTILE, ["label"], target="cat", label=["cat", HOSTILE, 0.0001])]
    result = write_result(world.folder / "labels", lines, task="classification", doubts=[HOSTILE])
    with exploring(world, "--curation", result) as (url, _):  # without images
        page = visit(f"{url}/explore/#/curate").page
        expect(rows(page)).to_have_count(2, timeout=TIMEOUT)
        expect(rows(page).first).to_contain_text(f"“cat”: < 0.1 %; “{HOSTILE}” is more likely")
        assert page.title() == "Curate · store"
        rows(page).nth(1).get_by_role("button", name="Relabel as “dog”").click()
        expect(rows(page).nth(1)).to_contain_text("kept – me: relabel")


def test_only_looking_and_nothing_to_look_at(world, result, visit):
    with exploring(world, "--curation", result, "--no-labels") as (url, _):
        page = visit(f"{url}/explore/#/curate").page
        expect(rows(page).first).to_be_visible(timeout=TIMEOUT)
        expect(page.get_by_role("button")).to_have_count(0)
        page.keyboard.press("d")
        expect(page.get_by_role("alert")).to_have_count(0)
    with exploring(world, "--pairs", world.captions_file) as (url, _):
        page = visit(f"{url}/explore/#/curate").page
        expect(page.get_by_text("No curation yet.")).to_be_visible(timeout=TIMEOUT)
        page.get_by_role("button", name="Curate the lines of captions.jsonl").click()
        expect(page.get_by_role("heading", name="lines are kept")).to_have_text(
            "24 of 24 lines are kept", timeout=90_000
        )
        expect(page.locator("p.problem")).to_contain_text("Matches were not checked")


@pytest.mark.parametrize("tab", ["curate", "teach"])
def test_an_answer_that_comes_after_a_part_was_left_leads_nowhere_and_is_the_last(url, visit, tab):
    page = visit(f"{url}/explore/#/overview").page
    held = []
    page.route("**/explore/curations", lambda route: held.append(route))
    page.route("**/explore/teach", lambda route: held.append(route))
    page.get_by_role("link", name=tab.capitalize()).click()
    waits(page, held, 1)
    job = {"name": "result.json", "said": "", "seconds": 1.0}
    known = {"curations": [], "judges": [], "pairs": "", "writable": True}
    if tab == "curate":
        held[0].fulfill(json={**known, "job": {**job, "state": "running"}})
        expect(page.get_by_text("Curating result.json")).to_be_visible(timeout=TIMEOUT)
        waits(page, held, 2)
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_role("heading", name="What is in this store")).to_be_visible(timeout=TIMEOUT)
    asked = len(held)
    ended = {**known, "curations": ["result.json"], "job": {**job, "state": "done"}}
    held[-1].fulfill(json=ended if tab == "curate" else {"busy": True, "ready": False})
    page.wait_for_timeout(1000 if tab == "teach" else 5500)
    assert page.url.endswith("#/overview")
    assert len(held) == asked


def waits(page, held, count):
    for _ in range(200):
        if len(held) >= count:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{len(held)} requests, {count} expected")
