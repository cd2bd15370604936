"""Training from the page of the explorer: watched over a reload, cancelled, continued, failed and deleted in words."""

import re
import shutil

import pytest
from exploring import TIMEOUT, colour_of, exploring, serious
from playwright.sync_api import expect

from frevl.store.labels.labels_file import LabelsFile
from made import make

LONG = 90_000  # ms: a training that shares two cores with others


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make(tmp_path_factory.mktemp("trained"), ["toy"], count=60)
    ids = made.store.ids("image")
    LabelsFile(made.store.path).label("bob", [(id_, colour_of(made, id_)) for id_ in ids[:40]])
    return made


@pytest.fixture(scope="module")
def url(world):
    with exploring(world, "--images", world.images) as (address, _):
        yield address


def run(page, name):
    return page.get_by_role("list", name="Runs").get_by_role("listitem").filter(has_text=name)


def test_a_run_is_trained_on_the_labels_over_a_reload_and_words_stand_where_it_is_deleted(url, world, visit):
    seen = visit(f"{url}/explore/#/teach")
    page = seen.page
    page.get_by_role("link", name="Train a run on them").click()
    expect(page.get_by_text("No runs yet.")).to_be_visible(timeout=TIMEOUT)
    page.get_by_label("Name", exact=True).fill("colours")
    page.get_by_label("Model").select_option("mlp")
    page.get_by_role("button", name="Train on the labels").click()
    expect(page.get_by_role("progressbar", name="Progress of colours")).to_be_visible(timeout=TIMEOUT)
    assert "runs?run=colours" in page.url
    page.reload()
    expect(run(page, "colours")).to_contain_text("done", timeout=LONG)
    expect(run(page, "colours")).to_contain_text(re.compile(r" % \([\d.]+ to [\d.]+\) of development images right"))
    chosen = page.get_by_role("region", name="Selected run")
    expect(chosen).to_contain_text("frevl explore --store STORE --run STORE/runs/colours", timeout=TIMEOUT)
    assert serious(page) == []
    page.get_by_role("button", name="Ask this run").click()
    expect(page.get_by_role("button", name="Label", exact=True)).to_be_visible(timeout=TIMEOUT)
    assert "do=label&run=colours" in page.url
    page.goto(f"{url}/explore/#/ask?do=label&run=colours&image={world.store.ids('image')[0]}")
    said = page.get_by_role("region", name="Answers of the runs")
    expect(said.locator("li").first).to_be_visible(timeout=TIMEOUT)
    assert said.locator("li").count() == len({colour_of(world, id_) for id_ in world.store.ids("image")[:40]})
    page.goto(f"{url}/explore/#/runs")
    page.get_by_role("link", name="colours").click()
    expect(chosen).to_contain_text("Ask this run", timeout=TIMEOUT)
    shutil.rmtree(world.store.path / "runs" / "colours")
    expect(chosen.get_by_text("The folder of this run was deleted")).to_be_visible(timeout=TIMEOUT)
    for file in (world.store.path / "runs").glob("colours.*"):
        file.unlink()
    expect(chosen.get_by_role("alert")).to_contain_text("There is no run 'colours' here", timeout=TIMEOUT)
    page.go_back()  # to the runs without a chosen one
    expect(page.get_by_text("No runs yet.")).to_be_visible(timeout=TIMEOUT)
    expect(chosen).to_have_count(0)
    assert [one for one in seen.complaints if "404" not in one] == []
    assert seen.foreign(url) == []


def test_own_pairs_are_trained_on_and_cancelled_and_continued(url, world, visit):
    page = visit(f"{url}/explore/#/runs").page
    page.locator("input[type=file]").set_input_files(world.train_file)
    page.get_by_label("Name", exact=True).fill("own")
    page.get_by_label("Model").select_option("tiny")
    page.get_by_role("button", name="Train on this file").click()
    expect(page.get_by_label("Model")).to_have_value("auto")  # labels alone cannot train a fusion
    page.get_by_role("button", name="Cancel").click(timeout=TIMEOUT)
    expect(run(page, "own")).to_contain_text("cancelled", timeout=TIMEOUT)
    page.get_by_role("button", name="Continue").click()
    expect(run(page, "own")).to_contain_text("done", timeout=LONG)


def test_a_training_that_cannot_be_says_why(url, visit, tmp_path):
    page = visit(f"{url}/explore/#/runs").page
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"image": "<b>no</b>.png", "text": "a", "target": "yes"}\n')
    page.locator("input[type=file]").set_input_files(odd)
    page.get_by_label("Name", exact=True).fill("odd")
    page.get_by_role("button", name="Train on this file").click()
    expect(run(page, "odd").locator(".problem")).to_contain_text("<b>no</b>.png", timeout=LONG)


DONE = {
    "state": "done", "seconds": 3.0, "by": "bob", "task": "classification", "pairs": 40, "of_labels": True,
    "chosen": None, "model": "mlp", "accuracy": None, "development": None, "labels": [], "folder": "runs/late",
    "problem": "", "notes": [], "commands": [], "said": [],
}  # fmt: skip


def test_the_bar_of_auto_shows_its_steps_and_the_time_that_is_left(url, visit):
    seen = visit(f"{url}/explore/#/overview")
    row = {
        **DONE, "name": "long", "state": "running", "model": "auto", "progress": 0.25, "step": "step 4 of 10: text",
        "left": 40.0, "at_most": 570.0, "started": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    seen.page.route("**/explore/trainings", lambda route: route.fulfill(json={"writable": True, "trainings": [row]}))
    seen.page.goto(f"{url}/explore/#/runs")
    expect(run(seen.page, "long").get_by_role("progressbar", name="Progress of long")).to_have_js_property(
        "value", 0.25, timeout=TIMEOUT
    )
    expect(run(seen.page, "long")).to_contain_text("step 4 of 10: text; about 40 s left, at most 10 min")
    row["left"] = None
    expect(run(seen.page, "long")).to_contain_text("step 4 of 10: text; at most 10 min left", timeout=TIMEOUT)
    assert seen.complaints == []


@pytest.mark.parametrize("what", ["train", "ask"])
def test_who_left_while_a_run_was_begun_or_loaded_is_not_led_back(url, visit, what):
    seen = visit(f"{url}/explore/#/overview")
    page, held = seen.page, []
    page.route("**/explore/training?name=late", lambda route: route.fulfill(json=DONE))
    page.route("**/explore/train", lambda route: held.append(route))
    page.route("**/explore/training/ask", lambda route: held.append(route))
    page.goto(f"{url}/explore/#/runs?run=late")
    page.get_by_role("button", name="Ask this run" if what == "ask" else "Train on the labels").click(timeout=TIMEOUT)
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_role("heading", name="What is in this store")).to_be_visible(timeout=TIMEOUT)
    with page.expect_response("**/explore/parts" if what == "ask" else "**/explore/train"):
        held[0].fulfill(json={"name": "late"})
    page.wait_for_timeout(300)
    assert page.url.endswith("#/overview")
    assert seen.complaints == []


@pytest.mark.parametrize("size", ["phone", "wide"])
def test_runs_fit_and_a_service_that_only_shows_has_no_way_to_train(world, visit, size):
    with exploring(world, "--no-labels") as (url, _):
        seen = visit(f"{url}/explore/#/runs?run=nothing", size=size, scheme="dark")
        expect(seen.page.get_by_text("This service is read-only")).to_be_visible(timeout=TIMEOUT)
        expect(seen.page.get_by_role("alert")).to_contain_text("There is no run 'nothing'")
        expect(seen.page.get_by_role("button")).to_have_count(0)
        assert seen.overflow() == 0
        assert serious(seen.page) == []
