"""The page of the service as a person meets it: ask, search, errors in words, keyboard, phone, no other host."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from frevl.deployment.service.served_model import Found
from frevl.runs.search.searching import Hit
from frevl.training.training import train
from made import make

TIMEOUT = 60_000  # ms: Gradio takes seconds to load, more on a busy machine


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make(tmp_path_factory.mktemp("page"), ["toy"], count=60)


@pytest.fixture(scope="module")
def ask(world):
    train(
        world.store,
        world.train_file,
        run=world.folder / "ask",
        task="classification",
        options={"layers": 1, "epochs": 3},
    )
    return world.folder / "ask"


@pytest.fixture(scope="module")
def dual(world):
    train(
        world.store,
        world.captions_file,
        run=world.folder / "dual",
        task="matching",
        model="dual",
        options={"epochs": 3},
    )
    return world.folder / "dual"


def serve(world, *options) -> Iterator[str]:
    ready = world.folder / "ready.json"
    ready.unlink(missing_ok=True)
    command = [Path(sys.executable).parent / "frevl", "serve", "--store", world.store.path, "--port", "0"]
    command += ["--json", ready, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout.readline().startswith("Ready at ")
            yield json.loads(ready.read_text())["url"]
        finally:
            process.terminate()
            assert process.wait(60) == 0


@pytest.fixture(scope="module")
def url(world, ask, dual):
    report = world.folder / "report.html"
    report.write_text("<h1>The verdict</h1><script>document.title = 'it ran'</script>")
    yield from serve(world, "--run", ask, "--run", dual, "--images", world.images, "--report", report)


@pytest.fixture(scope="module")
def bare_url(world, dual):
    """A service with a searching run only, without pictures and without a report."""
    yield from serve(world, "--run", dual)


@pytest.fixture(scope="module")
def asking_url(world, ask):
    """A service with a run that answers questions only."""
    yield from serve(world, "--run", ask)


@pytest.fixture(scope="module")
def scoring_url(world):
    """A service with a run that scores pairs and cannot search."""
    train(world.store, world.captions_file, run=world.folder / "match", task="matching", options={"epochs": 1})
    yield from serve(world, "--run", world.folder / "match")


@pytest.fixture
def shots(tmp_path):
    """Keep screenshots in pytest's folder of the test, for people to look at."""
    return lambda seen, name: seen.page.screenshot(path=tmp_path / f"service-{name}.png", full_page=True)


def opened(visit, url, tab, **options):
    seen = visit(url, **options)
    seen.page.get_by_role("tab", name=tab).wait_for(timeout=TIMEOUT)
    seen.page.get_by_role("tab", name=tab).click()
    return seen


def clean(seen, url):
    assert seen.foreign(url) == []
    assert seen.complaints == []
    assert seen.overflow() == 0


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_ask(visit, url, world, size, shots):
    seen = opened(visit, url, "Ask", size=size)
    seen.page.locator("input[type=file]").last.set_input_files(world.images / "0.png")
    seen.page.get_by_alt_text("The chosen picture").wait_for(timeout=TIMEOUT)
    seen.page.get_by_label("Question").fill("is the square red?")
    seen.page.get_by_role("button", name="Ask", exact=True).click()
    answer = seen.page.locator("#answer")
    answer.locator("h3").wait_for(timeout=TIMEOUT)
    assert answer.locator("h3").inner_text().partition(" ")[0] in ("yes", "no")
    assert answer.locator("li").count() == 2
    shots(seen, f"ask-{size}")
    seen.page.get_by_label("Not sure below a probability of").first.fill("1")
    seen.page.get_by_label("Question").press("Enter")
    expect(answer.locator("h3")).to_have_text("Not sure", timeout=TIMEOUT)
    assert "below the threshold of 100%" in answer.inner_text()
    shots(seen, f"not-sure-{size}")
    clean(seen, url)


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_search(visit, url, world, size, shots):
    seen = opened(visit, url, "Search", size=size)
    seen.page.get_by_label("Text").fill("a red square")
    seen.page.get_by_role("button", name="Search", exact=True).click()
    found = seen.page.locator("#found")
    found.locator("img").first.wait_for(timeout=TIMEOUT)
    assert found.locator("li").count() == 12
    assert "match " in found.locator("small").first.inner_text()
    shots(seen, f"search-{size}")
    seen.page.get_by_label("Text").fill("")
    seen.page.locator("input[type=file]").first.set_input_files(world.images / "3.png")
    seen.page.get_by_alt_text("The chosen picture").wait_for(timeout=TIMEOUT)
    seen.page.get_by_role("button", name="Search", exact=True).click()
    expect(found.locator("small").first).to_contain_text("3.png", timeout=TIMEOUT)
    assert "similarity 1.00" in found.locator("small").first.inner_text()
    clean(seen, url)


def test_errors_in_words(visit, url, tmp_path, shots):
    seen = opened(visit, url, "Ask")
    problem = seen.page.locator("#answer [role=alert]")
    seen.page.get_by_role("button", name="Ask", exact=True).click()
    expect(problem).to_have_text("Choose a picture first.", timeout=TIMEOUT)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    seen.page.locator("input[type=file]").last.set_input_files(tmp_path / "broken.png")
    # The preview says it already, before anything is asked.
    expect(seen.page.get_by_text("Cannot read the picture").first).to_be_visible(timeout=TIMEOUT)
    seen.page.get_by_role("button", name="Ask", exact=True).click()
    expect(problem).to_have_text("Type a question first.", timeout=TIMEOUT)
    seen.page.get_by_label("Question").fill("is the square red?")
    seen.page.get_by_role("button", name="Ask", exact=True).click()
    expect(problem).to_contain_text("The picture cannot be read", timeout=TIMEOUT)
    shots(seen, "error")
    assert str(tmp_path) not in seen.page.content()
    seen.page.get_by_role("tab", name="Search").click()
    seen.page.get_by_role("button", name="Search", exact=True).click()
    expect(seen.page.locator("#found [role=alert]")).to_have_text("Type a text or choose a picture.", timeout=TIMEOUT)
    clean(seen, url)


def test_no_path_of_a_client_reaches_a_file(visit, url, world):
    """Gradio itself would open the file: its own check works in pages started by its ``launch`` only."""
    seen = opened(visit, url, "Ask")
    file = {"path": str(world.images / "0.png"), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file], "fn_index": 0, "session_hash": "x", "trigger_id": 1}
    assert seen.page.request.post(f"{url}/gradio_api/queue/join", data=body).status == 400
    assert seen.page.request.get(f"{url}/gradio_api/file={world.images / '0.png'}").status == 404


def test_the_keyboard_is_enough(visit, url):
    seen = opened(visit, url, "Search")
    for _ in range(20):
        if seen.page.evaluate("document.activeElement.closest('#query') !== null"):
            break
        seen.page.keyboard.press("Tab")
    seen.page.keyboard.type("a blue square")
    seen.page.keyboard.press("Enter")
    seen.page.locator("#found img").first.wait_for(timeout=TIMEOUT)
    clean(seen, url)


def test_the_report_is_shown_and_runs_nothing_of_the_service(visit, url, shots):
    seen = opened(visit, url, "Report")
    expect(seen.page.frame_locator("iframe").get_by_text("The verdict")).to_be_visible(timeout=TIMEOUT)
    shots(seen, "report")
    clean(seen, url)


def test_only_tabs_that_work_are_shown_and_the_first_is_open(visit, url, bare_url, asking_url, shots):
    for place, tabs in ((url, ["Search", "Ask", "Report"]), (bare_url, ["Search"]), (asking_url, ["Ask"])):
        seen = visit(place, scheme="dark")
        seen.page.get_by_role("tab").first.wait_for(timeout=TIMEOUT)
        assert seen.page.get_by_role("tab").all_inner_texts() == tabs
        expect(seen.page.get_by_role("tab", name=tabs[0])).to_have_attribute("aria-selected", "true")
        # What it holds can be used without a click on the tab.
        expect(seen.page.get_by_role("button", name=tabs[0], exact=True)).to_be_visible(timeout=TIMEOUT)
        shots(seen, f"tabs-{tabs[0]}")
        clean(seen, place)


def test_without_the_pictures_their_ids_are_shown(visit, bare_url):
    seen = opened(visit, bare_url, "Search")
    seen.page.get_by_label("Text").fill("a red square")
    seen.page.get_by_label("Text").press("Enter")
    expect(seen.page.locator("#found .nothing").first).to_contain_text(".png", timeout=TIMEOUT)
    clean(seen, bare_url)


def test_a_page_with_nothing_to_show_says_why(visit, scoring_url, shots):
    seen = visit(scoring_url)
    expect(seen.page.get_by_text("score pairs of a picture and a text")).to_be_visible(timeout=TIMEOUT)
    assert seen.page.get_by_role("tab").count() == 0
    shots(seen, "nothing")
    clean(seen, scoring_url)


def test_the_documents_ask_no_other_host(visit, url, shots):
    seen = visit(f"{url}/docs")
    seen.page.get_by_text("/v1/score").first.wait_for(timeout=TIMEOUT)
    shots(seen, "docs")
    clean(seen, url)


def test_both_orders_stand_side_by_side(world):
    from frevl.deployment.service.page import _Gallery

    class Holder:
        limits = type("Limits", (), {"pixels": 10_000})()

    hits = [Hit(1, "<b>.png", 2.0, 0.9, 0.25), Hit(2, "0.png", 1.0, 0.7, 0.5)]
    html = _Gallery(Holder(), world.images).html(Found(hits, hits[::-1], 60, 60, True, []))
    first, second = html.split("<h3>Reranked</h3>")
    assert first.index("0.png") < first.index("&lt;b&gt;.png")
    assert second.index("&lt;b&gt;.png") < second.index("0.png")
    assert "match 90% · similarity 0.25" in html
    assert "<b>" not in html
    assert "data:image/jpeg;base64," in html
    outside = [Hit(1, "../../etc/passwd", 1.0, 0.5, 0.5), Hit(2, "/etc/passwd", 1.0, 0.5, 0.5)]
    assert "data:" not in _Gallery(Holder(), world.images).html(Found(outside, outside, 2, 0, True, []))
