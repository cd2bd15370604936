"""The diagnosis page as a file: its numbers are those of the JSON, its text is escaped, nothing is fetched."""

import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diagnosed import SENTENCE, written
from frevl.diagnosis.findings import SECTIONS, chart, series
from frevl.diagnosis.report.page import check_page_libraries, figures, page_of, write_page
from frevl.diagnosis.report.plots import NARROW, WIDE, draw_plot, series_colours
from frevl.errors import InputError, MissingExtraError, UsageError
from frevl.files import plain

NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?")


@pytest.fixture(scope="module")
def page():
    return page_of(written())


def text_of(page):
    """Return what a reader sees: no style, no drawings, no tags."""
    body = re.sub(r"<style.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", body))


def numbers_in(text):
    return [found.replace(",", "").replace("−", "-") for found in NUMBER.findall(text)]


def values_in(record):
    """Return every number of a JSON record, those inside its strings and keys too."""
    if isinstance(record, dict):
        return [value for pair in record.items() for entry in pair for value in values_in(entry)]
    if isinstance(record, list):
        return [value for entry in record for value in values_in(entry)]
    if isinstance(record, str):
        return [float(number) for number in numbers_in(record)]
    return [float(record)] if isinstance(record, int | float) and not isinstance(record, bool) else []


@pytest.mark.slow
def test_every_number_of_the_page_stands_in_the_json(page):
    values = values_in(json.loads(json.dumps(plain(written().record()))))
    shown = numbers_in(text_of(page))
    assert len(shown) > 200
    for number in shown:
        half_a_digit = 0.5 * 10.0 ** -len(number.partition(".")[2]) * 1.000001
        assert any(abs(abs(float(number)) - abs(value)) <= half_a_digit for value in values), number


def test_a_changed_number_would_be_noticed():
    """The test above can fail: other values do not round to the same page."""
    values = values_in({"a": 13.24, "b": "of 1,000 pairs", "c": [None, True]})
    assert values == [13.24, 1000.0]
    assert numbers_in("13.2 points (−4.1 to +5), 1,000 of v2 at 0.0002") == ["13.2", "-4.1", "+5", "1000", "0.0002"]


def test_the_verdict_is_the_first_thing_said(page):
    assert f'<h1 id="sentence">{SENTENCE}</h1>' in page
    assert page.index(SENTENCE, page.index("<body")) < page.index("<h2")


def test_every_section_has_its_heading_and_its_place_in_the_contents(page):
    for id_, heading in SECTIONS.items():
        assert page.count(f'<section id="{id_}"') == 1
        assert f'<a href="#{id_}">{heading}</a>' in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_nothing_is_fetched_and_nothing_runs(page):
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    for word in ("http://", "https://", "<script", "@import", "url(//"):
        assert word not in page.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert "default-src 'none'" in page


def test_text_of_users_cannot_become_markup(page):
    assert "Counting &amp; &lt;b&gt;reading&lt;/b&gt; gain nothing" in page
    assert "is there a &lt;red&gt; shape?" in page
    assert "<b>" not in page


@pytest.mark.slow
def test_the_same_diagnosis_gives_the_same_page(page):
    assert page_of(written()) == page


def test_everything_plotted_is_in_a_table(page):
    """The law is only in the plot's data, so it gets rows of its own; the finding without a table too."""
    curve = page[page.index('id="finding-curve-tiny"') :]
    rows = [text_of(row).split() for row in re.findall(r"<tr>(.*?)</tr>", curve, flags=re.DOTALL)]
    assert ["law", "16,000", "93.5", "–", "–"] in rows
    assert ["linear", "1,600", "63.0", "–", "–"] in rows
    assert ["tiny", "100", "61.2", "59.5", "63.0"] in rows
    assert ["tiny", "1,600", "–", "–", "–"] in rows


def test_cases_show_truth_and_answer(page):
    seen = " ".join(text_of(page[page.index('<section id="cases"') :]).split())
    assert "is there a <red> shape? Truth: yes Answer: yes (98.8 % sure) kitchen/3.png" in seen
    assert "how many? Truth: two, 2 Answer: three (91.5 % sure) gone.png" in seen
    assert "Truth: cup (0.600), mug (0.300)" in seen
    assert "<img" not in page


@pytest.mark.slow
def test_thumbnails_are_small_and_lost_images_are_left_out(tmp_path):
    (tmp_path / "kitchen").mkdir()
    Image.new("RGB", (1700, 800), "red").save(tmp_path / "kitchen/3.png")
    shown = page_of(written(), images=tmp_path)
    pictures = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', shown)
    assert len(pictures) == 2
    assert len(pictures[0]) < 10_000


def test_a_diagnosis_without_cases_notes_and_findings_has_a_page():
    empty = replace(written(), findings=[], cases=[], notes=[], provenance={}, verdict={"sentence": "Too few pairs."})
    shown = page_of(empty)
    assert shown.count("Not measured in this diagnosis.") == len(SECTIONS)
    assert "Example cases" not in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (float("nan"), "–"), (0, "0"), (1234567, "1,234,567"), (0.0, "0.0"), (0.0421, "0.042"),
        (1.234, "1.23"), (13.25, "13.2"), (99.96, "100.0"), (-4.126, "-4.13"), (12345.6, "12,346"), ("a", "a"),
        (True, "True"),
    ],
)  # fmt: skip
def test_figures(value, shown):
    assert figures(value) == shown


def test_numbers_of_numpy_are_written_like_others():
    first = written().findings[0]
    rows = [{"model": "a", "pairs": np.int64(12345), "right %": np.float32(0.5), "none": float("nan")}]
    shown = page_of(replace(written(), findings=[replace(first, table=rows, plot={}, value=np.float64(2.5))]))
    assert '<td class="number">12,345</td><td class="number">0.500</td><td class="text">–</td>' in shown
    assert "Value: 2.50" in shown


@pytest.mark.slow
def test_plots_skip_what_is_missing_and_keep_names_as_they_are():
    names = ["price in $ and $", "another", "日本語"]
    plot = chart("bars", "name", "%", series("a", names, [1.0, None, float("nan")], low=[0.5, None, 1], high=[2, 3, 4]))
    for width in (WIDE, NARROW):
        drawn = draw_plot(plot, width=width, prefix="q")
        assert drawn.startswith("<svg viewBox=")
        assert drawn.count("fill: var(--series-0)") == 1  # one bar
        assert "#0" not in re.sub(r'href="#[^"]*"|url\(#[^)]*\)', "", drawn)
        assert all(id_.startswith("q-") for id_ in re.findall(r'id="([^"]+)"', drawn))
    assert draw_plot(plot, width=WIDE, prefix="q") == draw_plot(plot, width=WIDE, prefix="q")


def test_a_law_has_the_colour_of_its_series():
    lines = [
        series(name, [1], [1], dashed="law" in name or name == "perfect") for name in ("a", "a, law", "b", "perfect")
    ]
    assert series_colours(chart("lines", "n", "%", *lines)) == [0, 0, 1, None]


@pytest.mark.slow
def test_what_cannot_be_written_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"--images: expected a folder of images, found none at .*missing"):
        write_page(written(), tmp_path / "page.html", images=tmp_path / "missing")
    with pytest.raises(UsageError, match="--images"):
        check_page_libraries(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"page\.html: the page cannot be written \(File exists\)"):
        write_page(written(), tmp_path / "file/page.html")
    write_page(written(), tmp_path / "new/folder/page.html")
    assert (tmp_path / "new/folder/page.html").read_text(encoding="utf-8") == page_of(written())


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named_with_its_extra(library, monkeypatch):
    def without(name):
        if name == library:
            raise ModuleNotFoundError(name=name)

    monkeypatch.setattr("importlib.import_module", without)
    with pytest.raises(MissingExtraError, match=rf"'{library}' is not installed.*frevl\[diagnose\]"):
        check_page_libraries()
