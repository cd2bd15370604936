"""The diagnosis page in a browser: nothing leaves it, everything is there, and it fits."""

import json

import pytest

from diagnosed import written
from frevl.diagnosis.embeddings.probe_pictures import draw_probe
from frevl.diagnosis.findings import SECTIONS
from frevl.diagnosis.report.page import write_page
from frevl.files import write_json

LOOKS = [(size, scheme) for size in ("phone", "desktop") for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a page with thumbnails, and the JSON next to it."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "images/kitchen").mkdir(parents=True)
    draw_probe("size", 1).picture.save(folder / "images/kitchen/3.png")
    diagnosis = written()
    write_page(diagnosis, folder / "page.html", images=folder / "images")
    write_json(folder / "diagnosis.json", diagnosis.record())
    return folder / "page.html", json.loads((folder / "diagnosis.json").read_text())


def test_no_request_leaves_the_page(files, visit):
    seen = visit(files[0].as_uri())
    for link in seen.page.locator("nav a").all():
        link.click()
    for summary in seen.page.locator("summary").all():
        summary.click()
    assert seen.requests[0] == files[0].as_uri()
    assert seen.foreign(files[0].as_uri()) == []
    assert seen.complaints == []


def test_the_verdict_comes_first_and_is_that_of_the_json(files, visit):
    page = visit(files[0].as_uri()).page
    assert page.locator("h1").inner_text() == files[1]["verdict"]["sentence"]
    assert page.title() == "Diagnosis: " + files[1]["verdict"]["sentence"]
    heading, first = page.locator("h1").bounding_box(), page.locator("h2").first.bounding_box()
    assert heading["y"] + heading["height"] < first["y"]


def test_every_section_and_finding_is_there_and_can_be_reached(files, visit):
    page = visit(files[0].as_uri()).page
    assert page.locator("main h2").all_inner_texts() == [*SECTIONS.values(), "Example cases"]
    for id_, heading in SECTIONS.items():
        page.get_by_role("navigation").get_by_role("link", name=heading, exact=True).click()
        assert page.url.endswith(f"#{id_}")
        assert page.locator(f"#{id_} h2").is_visible()
    claims = page.locator("article h3").all_inner_texts()
    assert sorted(claims) == sorted(finding["claim"] for finding in files[1]["findings"])
    assert page.locator("#encoders").inner_text().endswith("Not measured in this diagnosis.")


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_it_fits_and_can_be_read(files, visit, tmp_path, size, scheme):
    seen = visit(files[0].as_uri(), size=size, scheme=scheme)
    seen.page.screenshot(path=tmp_path / f"{size}-{scheme}.png", full_page=True)
    assert seen.overflow() == 0
    for summary in seen.page.locator("summary").all():
        summary.click()
    seen.page.screenshot(path=tmp_path / f"{size}-{scheme}-open.png", full_page=True)
    assert seen.overflow() == 0
    paper, ink = (luminance(seen.page, name) for name in ("background-color", "color"))
    assert (paper > ink) == (scheme == "light")
    for where in ("body", ".kicker", ".how", "nav a", "thead th", ".label"):
        assert contrast(seen.page, where) >= 4.5, where
    wide, narrow = seen.page.locator("figure .wide").first, seen.page.locator("figure .narrow").first
    assert (wide.is_visible(), narrow.is_visible()) == (size == "desktop", size == "phone")
    drawn = seen.page.locator(f"figure .{'wide' if size == 'desktop' else 'narrow'} svg").first.bounding_box()
    assert drawn["width"] > 300
    assert drawn["height"] > 100


def test_every_plot_has_its_numbers_as_a_table(files, visit):
    page = visit(files[0].as_uri()).page
    plotted = [finding for finding in files[1]["findings"] if finding["plot"]]
    articles = page.locator("article:has(figure)")
    assert articles.count() == len(plotted) == 2
    for number, finding in enumerate(plotted):
        table = articles.nth(number).locator("table").all_text_contents()
        for one in finding["plot"]["series"]:
            assert one["name"] in " ".join(table)


def test_thumbnails_are_inside_the_page(files, visit):
    page = visit(files[0].as_uri()).page
    pictures = page.locator(".cases img")
    assert pictures.count() == 2  # of three cases: the image of one is gone
    assert pictures.first.evaluate("image => image.complete && image.naturalWidth") == 224


def test_print_shows_what_is_folded_away(files, visit):
    page = visit(files[0].as_uri()).page
    collapsed = page.locator("details:has(.how) .how").first
    assert not collapsed.is_visible()
    page.emulate_media(media="print")
    assert collapsed.bounding_box()["height"] > 10
    assert page.locator("nav").is_hidden()


def luminance(page, name, where="body"):
    """Return the relative luminance of a computed colour (WCAG 2.2)."""
    colour = page.evaluate("([where, name]) => getComputedStyle(document.querySelector(where))[name]", [where, name])
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(page, where):
    """Return the contrast of an element's text with the paper."""
    light, dark = sorted((luminance(page, "color", where), luminance(page, "background-color")), reverse=True)
    return (light + 0.05) / (dark + 0.05)
