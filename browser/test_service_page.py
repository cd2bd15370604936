"""The page of the service as a person meets it: ask, search, errors in words, keyboard, phone, no other host."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest
from exploring import TIMEOUT, answers, press, searchable, serious
from playwright.sync_api import expect

from frevl.training.training import train
from serving import serving


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = searchable(tmp_path_factory.mktemp("page"), count=60)
    once = {"layers": 1, "epochs": 3}
    train(made.store, made.train_file, run=made.folder / "ask", task="classification", options=once)
    return made


@pytest.fixture(scope="module")
def elsewhere():
    """Another site, which keeps what it is asked for."""
    asked = []

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    Thread(target=site.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{site.server_port}", asked=asked)
    site.shutdown()
    site.server_close()


@pytest.fixture(scope="module")
def url(world, elsewhere):
    report = world.folder / "report.html"
    report.write_text(
        "<h1>The verdict</h1><script>document.body.textContent = 'it ran'</script>"
        f"<a href='{elsewhere.url}/link'>away</a><a href='{elsewhere.url}/top' target='_top'>up</a>"
        f"<img src='{elsewhere.url}/x.png' onerror=\"document.body.textContent = 'it ran'\">"
        f"<iframe src='{elsewhere.url}/frame'></iframe><link rel='stylesheet' href='{elsewhere.url}/style.css'>"
        f"<style>body {{ background: url({elsewhere.url}/background) }}</style>"
        f"<form action='{elsewhere.url}/form'><button>send</button></form>"
        f"<meta http-equiv='refresh' content='0;url={elsewhere.url}/refresh'>"
    )
    runs = ("--run", world.folder / "ask", "--run", world.folder / "dual")
    with serving(world, *runs, "--images", world.images, "--report", report) as address:
        yield address


@pytest.fixture(scope="module")
def bare_url(world):
    """A service with a searching run only, without images and without a report."""
    with serving(world, "--run", world.folder / "dual") as address:
        yield address


@pytest.fixture(scope="module")
def scoring_url(world):
    """A service with a run that scores pairs and cannot search."""
    train(world.store, world.captions_file, run=world.folder / "match", task="matching", options={"epochs": 1})
    with serving(world, "--run", world.folder / "match") as address:
        yield address


@pytest.fixture
def shots(tmp_path):
    """Keep screenshots in pytest's folder of the test, for people to look at."""
    return lambda seen, name: seen.page.screenshot(path=tmp_path / f"service-{name}.png", full_page=True)


def clean(seen, url):
    assert seen.foreign(url) == []
    assert seen.complaints == []
    assert seen.overflow() == 0


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_ask(visit, url, world, size, shots):
    seen = visit(url, size=size)
    page = seen.page
    expect(page).to_have_title("Ask and match · store", timeout=TIMEOUT)
    page.locator("input[type=file]").set_input_files(world.images / "0.png")
    expect(page.get_by_alt_text("The image in question")).to_have_js_property("naturalWidth", 40)
    page.get_by_label("Question").fill("is the square red?")
    press(page, "Ask")
    said = answers(page)
    expect(said.locator("li").last).to_be_visible(timeout=TIMEOUT)
    assert said.locator("h3").inner_text().partition(" ")[0] in ("yes", "no", "Not")
    assert said.locator("li").count() == 2
    expect(said).to_contain_text("Cannot be ruled out (90 % of such sets contain the right answer)")
    shots(seen, f"ask-{size}")
    page.get_by_label("Not sure below").fill("1")
    expect(said.locator("h3")).to_have_text("Not sure")
    assert "below the threshold of 100 %" in said.inner_text()
    assert "least=1" in page.url
    shots(seen, f"not-sure-{size}")
    clean(seen, url)


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_search(visit, url, world, size, shots):
    seen = visit(f"{url}/#/ask?do=search", size=size)
    page = seen.page
    page.get_by_label("Text, or an image above").fill("a red square")
    press(page, "Search")
    found = answers(page)
    expect(found.locator("li")).to_have_count(12, timeout=TIMEOUT)
    expect(found.locator("img").first).to_have_js_property("naturalWidth", 40)
    assert "match " in found.locator("li small").first.inner_text()
    shots(seen, f"search-{size}")
    # An image takes the place of the words.
    page.locator("input[type=file]").set_input_files(world.images / "3.png")
    expect(found.locator("li")).to_have_count(0)
    press(page, "Search")
    expect(found.locator("li small").first).to_contain_text("3.png", timeout=TIMEOUT)
    assert "similarity 1.00" in found.locator("li small").first.inner_text()
    page.get_by_text("More", exact=True).click()
    page.get_by_label("For an image, find").select_option("texts of the store")
    press(page, "Search")
    expect(found.locator(".texts li")).to_have_count(12, timeout=TIMEOUT)
    clean(seen, url)


def test_errors_in_words(visit, url, tmp_path, shots):
    seen = visit(f"{url}/#/ask?do=ask")
    page = seen.page
    problem = answers(page).get_by_role("alert")
    press(page, "Ask")
    expect(problem).to_have_text("Choose an image first.", timeout=TIMEOUT)
    (tmp_path / "words.txt").write_text("no picture")
    page.locator("input[type=file]").set_input_files(tmp_path / "words.txt")
    expect(page.get_by_text("words.txt is not an image (text/plain).")).to_be_visible()
    (tmp_path / "empty.png").write_bytes(b"")
    page.locator("input[type=file]").set_input_files(tmp_path / "empty.png")
    expect(page.get_by_text("empty.png is empty.")).to_be_visible()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    page.locator("input[type=file]").set_input_files(tmp_path / "broken.png")
    # The preview says it already, before anything is asked.
    expect(page.get_by_text("The browser cannot show this file.")).to_be_visible()
    press(page, "Ask")
    expect(problem).to_have_text("Type a question first.")
    page.get_by_label("Question").fill("is the square red?")
    press(page, "Ask")
    expect(problem).to_contain_text("The image cannot be read", timeout=TIMEOUT)
    shots(seen, "error")
    assert str(tmp_path) not in page.content()
    page.get_by_label("Question").fill("red " * 501)
    press(page, "Ask")
    expect(problem).to_have_text("A text can have at most 2000 characters; this one has 2003.")
    page.get_by_role("link", name="Search", exact=True).click()
    expect(problem).to_contain_text("The image cannot be read", timeout=TIMEOUT)  # it goes along
    page.get_by_role("button", name="Remove the image").click()
    press(page, "Search")
    expect(problem).to_have_text("Type a text or choose an image.")
    page.goto(f"{url}/#/ask?do=search&text=red&where=nonsense")
    expect(problem).to_contain_text("Columns of the images of STORE: id, bytes", timeout=TIMEOUT)
    page.goto(f"{url}/#/ask?do=ask&image=away.png&text=red")
    expect(problem).to_contain_text("The store has no image 'away.png'", timeout=TIMEOUT)
    page.goto(f"{url}/#/ask?do=ask&run=%3Cb%3Eaway")
    expect(problem).to_contain_text("No run named <b>away can do this; asking ask instead.")
    assert [line for line in seen.complaints if "Failed to load resource" not in line] == []
    assert seen.overflow() == 0


def test_no_path_of_a_client_reaches_a_file(visit, url, world):
    """Images are named by ids of the store, reports by names that the service made."""
    seen = visit(url)
    for path in ("/explore/report?of=", "/explore/thumbnail?image=", "/explore/page/", "/gradio_api/file="):
        assert seen.page.request.get(f"{url}{path}{world.images / '0.png'}").status == 404


def test_the_keyboard_is_enough(visit, url):
    seen = visit(f"{url}/#/ask?do=search")
    page = seen.page
    expect(page.get_by_label("Text, or an image above")).to_be_visible(timeout=TIMEOUT)
    for _ in range(20):
        if page.evaluate("document.activeElement.placeholder") == "a red square":
            break
        page.keyboard.press("Tab")
    page.keyboard.type("a blue square")
    page.keyboard.press("Enter")
    expect(answers(page).locator("li")).to_have_count(12, timeout=TIMEOUT)
    clean(seen, url)


def test_the_report_is_shown_and_runs_nothing_of_the_service(visit, url, elsewhere, shots):
    seen = visit(url)
    page = seen.page
    page.get_by_role("link", name="Report").click()
    frame = page.frame_locator("iframe")
    expect(frame.get_by_text("The verdict")).to_be_visible(timeout=TIMEOUT)
    assert frame.get_by_text("it ran").count() == 0
    assert page.title() == "Report · store"
    shots(seen, "report")
    assert seen.overflow() == 0
    for leads in ("send", "up", "away"):  # nor does anything in it lead out of it
        frame.get_by_text(leads, exact=True).click()
        page.wait_for_timeout(200)
    assert elsewhere.asked == []
    assert page.url == f"{url}/#/report"
    page.goto(f"{url}/#/report?of=gone.html")
    expect(page.get_by_role("alert")).to_contain_text("There is no report gone.html.")


def test_only_tabs_that_work_are_shown_and_the_first_is_open(visit, world, url, bare_url, shots):
    looks = ["Images", "Ask and match", "Teach", "Map", "Overview", "Report"]
    for place, button in ((url, "Ask"), (bare_url, "Search")):
        seen = visit(place, scheme="dark")
        tabs = seen.page.get_by_role("navigation", name="Parts of the explorer").get_by_role("link")
        expect(tabs.filter(has_text="Ask and match")).to_have_attribute("aria-current", "page", timeout=TIMEOUT)
        assert set(looks) <= set(tabs.all_inner_texts())
        # What it holds can be used without a click on the tab.
        expect(seen.page.get_by_role("button", name=button, exact=True)).to_be_visible()
        shots(seen, f"tabs-{button}")
        clean(seen, place)
    with serving(world, command="explore") as place:
        seen = visit(place)
        expect(seen.page.get_by_role("listbox")).to_be_visible(timeout=TIMEOUT)
        tabs = seen.page.get_by_role("navigation", name="Parts of the explorer").get_by_role("link").all_inner_texts()
        assert not {"Ask and match", "Report"} & set(tabs)
        seen.page.goto(f"{place}/#/ask")
        expect(seen.page.get_by_text("There is no run to ask")).to_be_visible(timeout=TIMEOUT)
        seen.page.goto(f"{place}/explore/#/report")
        expect(seen.page.get_by_text("No reports yet.")).to_be_visible()


def test_without_the_pictures_their_ids_are_shown(visit, bare_url):
    seen = visit(bare_url)
    seen.page.get_by_label("Text, or an image above").fill("a red square")
    seen.page.get_by_label("Text, or an image above").press("Enter")
    expect(answers(seen.page).locator(".nothing").first).to_contain_text(".png", timeout=TIMEOUT)
    expect(answers(seen.page).locator("img")).to_have_count(0)
    clean(seen, bare_url)


def test_a_page_with_nothing_to_show_says_why(visit, scoring_url, shots):
    """A run that only scores pairs had nothing to show; now it matches an image with what may be true of it."""
    seen = visit(scoring_url)
    page = seen.page
    expect(answers(page)).to_contain_text("type what may be true of it, and press Match", timeout=TIMEOUT)
    shots(seen, "nothing")
    page.goto(f"{scoring_url}/#/ask?do=match&image=0.png&text=a+red+square%0Aa+blue+square%0Aa+green+square")
    expect(answers(page).locator("li")).to_have_count(3, timeout=TIMEOUT)
    expect(answers(page)).to_contain_text("can be ruled out")
    shots(seen, "match")
    clean(seen, scoring_url)


def test_the_documents_ask_no_other_host(visit, url, shots):
    seen = visit(f"{url}/docs")
    seen.page.get_by_text("/v1/score").first.wait_for(timeout=TIMEOUT)
    shots(seen, "docs")
    clean(seen, url)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["phone", "desktop", "wide"])
def test_axe_finds_nothing_serious(visit, url, size, scheme, shots):
    for number, place in enumerate(
        (
            "ask?do=ask&image=0.png&text=is+the+square+red",
            "ask?do=search&text=a+red+square&k=5",
            "ask?do=match&image=0.png&text=a+red+square%0Aa+blue+square",
            "ask?do=ask&run=away",
            "report",
        )
    ):
        seen = visit(f"{url}/#/{place}", size=size, scheme=scheme)
        wait_for = seen.page.locator("iframe") if place == "report" else answers(seen.page).locator("li, .empty").last
        expect(wait_for).to_be_visible(timeout=TIMEOUT)
        shots(seen, f"axe-{number}-{size}-{scheme}")
        assert serious(seen.page) == []
        assert seen.overflow() == 0
