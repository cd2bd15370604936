"""Ask and match, as a person meets it: two runs side by side, images of the store, dropped and pasted ones, links."""

import base64
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from exploring import HOSTILE, TIMEOUT, answers, press
from playwright.sync_api import expect

from frevl.data.pairs import read_pairs
from frevl.store.extraction.extract import extract
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.training.training import train
from made import make
from serving import serving


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Runs of questions (two), of images alone, and of texts alone; class names of the third have markup."""
    made = make(tmp_path_factory.mktemp("asked"), ["toy"], count=60)
    for name, model in (("ask", "tiny"), ("other", "linear")):
        train(
            made.store,
            made.train_file,
            run=made.folder / name,
            task="classification",
            model=model,
            options={"layers": 1, "epochs": 2} if model == "tiny" else {},
        )
    rows = [json.loads(line) for line in made.train_file.read_text().splitlines()]
    mixed = [
        {"image": row["image"], "target": HOSTILE if number % 2 else "plain"} for number, row in enumerate(rows[::2])
    ]
    (made.folder / "look.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    train(
        made.store,
        read_pairs(made.folder / "look.jsonl"),
        run=made.folder / "look",
        task="classification",
        model="linear",
    )
    train(made.store, made.train.only(("text",)), run=made.folder / "read", task="classification", model="linear")
    for name in ("dual", "dual2"):
        train(
            made.store,
            made.captions_file,
            run=made.folder / name,
            task="matching",
            model="dual",
            options={"epochs": 2 if name == "dual" else 1},
        )
    return made


@pytest.fixture(scope="module")
def url(world):
    runs = [
        part for name in ("ask", "other", "look", "read", "dual", "dual2") for part in ("--run", world.folder / name)
    ]
    with serving(world, *runs, "--images", world.images) as address:
        yield address


def of_run(page, name):
    return page.get_by_role("region", name=f"The run {name}", exact=True)


def test_two_runs_answer_side_by_side_and_the_link_says_so(url, visit):
    seen = visit(f"{url}/#/ask?do=ask&image=3.png&text=is+the+square+red%3F")
    page = seen.page
    expect(of_run(page, "ask").locator("li")).to_have_count(2, timeout=TIMEOUT)
    expect(of_run(page, "other")).to_have_count(0)
    page.get_by_label("Compare with").select_option("other")
    expect(of_run(page, "other").locator("li")).to_have_count(2, timeout=TIMEOUT)
    assert "with=other" in page.url
    left, right = of_run(page, "ask").bounding_box(), of_run(page, "other").bounding_box()
    assert left["x"] + left["width"] <= right["x"]
    assert abs(left["y"] - right["y"]) < 5
    # Each says what its own run says, over HTTP too, with the doubt where it has that.
    doubts = {one["name"]: one["doubt"] for one in page.request.get(f"{url}/v1/models").json()["models"]}
    assert doubts["other"]
    for name in ("ask", "other"):
        asked = {"model": name, "pairs": [{"image": "3.png", "text": "is the square red?"}]}
        (said,) = seen.page.request.post(f"{url}/v1/score", data=asked).json()["scores"]
        expect(of_run(page, name).locator(".n").first).to_have_text(f"{100 * said['probability']:.1f} %")
        expect(of_run(page, name).get_by_text("Doubt 0.")).to_have_count(int(doubts[name]))
    page.go_back()
    expect(of_run(page, "other")).to_have_count(0)
    expect(of_run(page, "ask").locator("li")).to_have_count(2, timeout=TIMEOUT)
    page.reload()
    expect(of_run(page, "ask").locator("li")).to_have_count(2, timeout=TIMEOUT)
    assert seen.complaints == []
    assert seen.foreign(url) == []


def test_two_searches_side_by_side_and_one_below_the_other_on_a_phone(url, visit):
    seen = visit(f"{url}/#/ask?do=search&run=dual2&with=dual&text=a+red+square&k=4", size="phone")
    page = seen.page
    for name in ("dual2", "dual"):
        expect(of_run(page, name).locator("li")).to_have_count(4, timeout=TIMEOUT)
        asked = {"model": name, "text": "a red square", "k": 4}
        hits = page.request.post(f"{url}/v1/search", data=asked).json()["hits"]
        assert of_run(page, name).locator("small a").all_inner_texts() == [hit["id"] for hit in hits]
    first, second = of_run(page, "dual2").bounding_box(), of_run(page, "dual").bounding_box()
    assert first["y"] + first["height"] <= second["y"]
    assert seen.overflow() == 0


def test_a_picture_is_labelled_with_its_set_and_doubt_and_markup_is_text(url, visit):
    seen = visit(f"{url}/#/ask?do=label&image=3.png")
    page = seen.page
    said = of_run(page, "look")
    expect(said.locator("li")).to_have_count(2, timeout=TIMEOUT)
    assert sorted(name.inner_text() for name in said.locator("li > :first-child").all()) == sorted([HOSTILE, "plain"])
    expect(said).to_contain_text("Cannot be ruled out (90 % of such sets contain the right answer)")
    expect(said).to_contain_text("Doubt 0.")
    page.get_by_label("Sets contain the right answer").select_option("80 % of the time")
    expect(said).to_contain_text("80 % of such sets")
    assert "level=0.8" in page.url
    assert "ran" not in page.title()
    assert seen.complaints == []
    assert seen.overflow() == 0


def test_a_text_alone_is_labelled(url, visit):
    page = visit(f"{url}/#/ask?do=read").page
    press(page, "Label")
    expect(answers(page).get_by_role("alert")).to_have_text("Type a text first.", timeout=TIMEOUT)
    page.get_by_label("Text", exact=True).fill(f"is the square red? {HOSTILE}")
    press(page, "Label")
    expect(of_run(page, "read").locator("li")).to_have_count(2, timeout=TIMEOUT)
    assert "ran" not in page.title()


TRANSFER = """([name, type, content]) => {
  const transfer = new DataTransfer();
  const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
  if (name) transfer.items.add(new File([bytes], name, { type }));
  else transfer.setData("text/plain", "only words");
  return transfer;
}"""


def test_pictures_are_dropped_and_pasted_and_what_is_none_gets_words(url, world, visit):
    seen = visit(f"{url}/#/ask?do=ask")
    page = seen.page
    form = page.get_by_role("form", name="Ask")
    expect(form).to_be_visible(timeout=TIMEOUT)
    content = base64.b64encode((world.images / "3.png").read_bytes()).decode()

    def drop(*what):
        form.dispatch_event("drop", {"dataTransfer": page.evaluate_handle(TRANSFER, list(what))})

    drop("", "", "")
    expect(form.get_by_role("alert")).to_have_text("Only files can be dropped here.")
    drop("tune.mp3", "audio/mpeg", content)
    expect(form.get_by_role("alert")).to_have_text("tune.mp3 is not an image (audio/mpeg).")
    drop(HOSTILE, "image/png", content)
    expect(form.get_by_text(HOSTILE)).to_be_visible()
    expect(form.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_alt_text("The image in question")).to_have_js_property("naturalWidth", 40)
    press(page, "Remove the image")
    expect(page.get_by_alt_text("The image in question")).to_have_count(0)
    page.evaluate(
        "(given) => { const pasted = new ClipboardEvent('paste', {clipboardData: given, bubbles: true});"
        " window.dispatchEvent(pasted); }",
        page.evaluate_handle(TRANSFER, ["mine.png", "image/png", content]),
    )
    expect(form.get_by_text("mine.png")).to_be_visible()
    page.get_by_label("Question").fill("is the square red?")
    page.get_by_label("Question").press("Enter")
    expect(of_run(page, "ask").locator("li")).to_have_count(2, timeout=TIMEOUT)
    # The same as of the image in the store.
    pair = {"image": "3.png", "text": "is the square red?"}
    (said,) = page.request.post(f"{url}/v1/score", data={"model": "ask", "pairs": [pair]}).json()["scores"]
    expect(of_run(page, "ask").locator(".n").first).to_have_text(f"{100 * said['probability']:.1f} %")
    assert "image=" not in page.url
    assert "ran" not in page.title()


def test_a_picture_of_the_store_is_chosen_and_from_the_pictures_it_leads_here(url, visit):
    page = visit(f"{url}/#/ask?do=ask").page
    page.get_by_label("Question").fill("is the square red?")
    page.get_by_text("or an image of the store").click()
    page.get_by_role("listbox", name="Images to choose from").get_by_role("option").nth(2).click()
    expect(of_run(page, "ask").locator("li")).to_have_count(2, timeout=TIMEOUT)
    chosen = page.get_by_role("listbox").get_by_role("option").nth(2).get_attribute("data-image")
    assert f"image={chosen}" in page.url
    page.get_by_role("link", name="Images", exact=True).click()
    page.locator("#picture-0").click()
    page.get_by_role("link", name="Ask about it").click()
    expect(page.get_by_alt_text("The image in question")).to_be_visible(timeout=TIMEOUT)


def test_another_choice_and_back_and_an_own_file_take_the_place_of_a_picture_of_the_store(url, world, visit):
    page = visit(f"{url}/#/ask?do=ask").page
    page.get_by_text("or an image of the store").click()
    options = page.get_by_role("listbox", name="Images to choose from").get_by_role("option")
    first, second = (options.nth(number).get_attribute("data-image") for number in (2, 3))
    asked_about = page.locator("figcaption")
    options.nth(2).click()
    expect(asked_about).to_have_text(f"{first} from the store", timeout=TIMEOUT)
    options.nth(3).click()
    expect(asked_about).to_have_text(f"{second} from the store")
    page.go_back()
    expect(asked_about).to_have_text(f"{first} from the store")
    expect(options.nth(2)).to_have_attribute("aria-selected", "true")
    page.wait_for_timeout(300)  # what is wrong here comes a moment later
    expect(asked_about).to_have_text(f"{first} from the store")
    page.locator("input[type=file]").set_input_files(world.images / "7.png")
    expect(asked_about).to_contain_text("7.png sent with the question")
    page.wait_for_timeout(300)
    expect(asked_about).to_contain_text("7.png sent with the question")
    assert "image=" not in page.url


def test_a_run_that_stops_answering_is_said_and_the_other_stays(url, visit):
    page = visit(f"{url}/#/ask?do=ask&image=3.png").page
    page.route("**/v1/score", lambda route: route.abort() if '"ask"' in route.request.post_data else route.continue_())
    page.get_by_label("Compare with").select_option("other")
    page.get_by_label("Question").fill("is the square red?")
    press(page, "Ask")
    expect(of_run(page, "ask").get_by_role("alert")).to_contain_text("The service does not answer.", timeout=TIMEOUT)
    expect(of_run(page, "other").locator("li")).to_have_count(2, timeout=TIMEOUT)


def test_a_store_of_texts_alone_has_its_page(tmp_path, visit):
    (tmp_path / "world").mkdir()
    file = tmp_path / "texts.jsonl"
    rows = [{"text": f"it is {number} {word}", "target": word} for number in range(20) for word in ("red", "blue")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    extract(tmp_path / "world" / "store", pairs=[file], encoder=["toy"])
    made = SimpleNamespace(store=Store.open(tmp_path / "world" / "store"), folder=tmp_path / "world")
    train(made.store, read_pairs(file), run=tmp_path / "run", task="classification", model="linear")
    with serving(made, "--run", tmp_path / "run") as address:
        seen = visit(address)
        seen.page.get_by_label("Text", exact=True).fill("it is 3 red")
        press(seen.page, "Label")
        expect(answers(seen.page).locator("h3")).to_contain_text("red", timeout=TIMEOUT)
        tabs = seen.page.get_by_role("navigation", name="Parts of the explorer").get_by_role("link").all_inner_texts()
        assert tabs == ["Ask and match", "Report"]
        seen.page.goto(f"{address}/#/pictures")
        expect(seen.page.get_by_text("This store has no images to show.")).to_be_visible(timeout=TIMEOUT)
        assert seen.complaints == []


def test_with_keys_the_page_asks_with_the_key_of_the_browser(world, browser, monkeypatch):
    monkeypatch.setenv("FREVL_API_KEYS", "k" * 16)
    with serving(world, "--run", world.folder / "ask", "--images", world.images) as address:
        context = browser.new_context(http_credentials={"username": "any", "password": "k" * 16})
        page = context.new_page()
        page.goto(f"{address}/#/ask?do=ask&image=3.png&text=is+the+square+red%3F")
        expect(answers(page).locator("li")).to_have_count(2, timeout=TIMEOUT)
        expect(page.get_by_label("Your name")).to_have_count(0)  # read-only without --labels
        context.close()


def test_a_store_of_imported_vectors_takes_its_own_pictures_and_texts_only(tmp_path, visit):
    (tmp_path / "clip").mkdir()
    vectors = np.random.default_rng(0).standard_normal((23, 8))
    for name in ("img_emb", "text_emb", "metadata"):
        (tmp_path / "clip" / name).mkdir()
        if name != "metadata":
            np.save(tmp_path / "clip" / name / f"{name}_0.npy", vectors.astype(np.float16))
    table = {"image_path": [f"{i}.jpg" for i in range(23)], "caption": [f"caption {i}" for i in range(23)]}
    pq.write_table(pa.table(table), tmp_path / "clip/metadata/metadata_0.parquet")
    import_embeddings(tmp_path / "clip", store=tmp_path / "store", encoder="ViT-B-32", common_space=True)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"image": "{i}.jpg", "text": "caption {i}"}}\n' for i in range(23)))
    made = SimpleNamespace(store=Store.open(tmp_path / "store"), folder=tmp_path)
    train(made.store, pairs, run=tmp_path / "cosine", task="matching", model="cosine")
    with serving(made, "--run", tmp_path / "cosine") as address:
        page = visit(address).page
        expect(page.get_by_text("only its own images can be used")).to_be_visible(timeout=TIMEOUT)
        expect(page.locator("input[type=file]")).to_be_disabled()
        page.get_by_label("Text, or an image above").fill("another text")
        press(page, "Search")
        expect(answers(page).get_by_role("alert")).to_contain_text("The text vectors were imported", timeout=TIMEOUT)
        page.get_by_label("Text, or an image above").fill("caption 7")
        press(page, "Search")
        expect(answers(page).locator("li small a").first).to_have_text("7.jpg", timeout=TIMEOUT)
