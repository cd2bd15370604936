"""The report of a curation."""

from dataclasses import replace

import pytest

import frevl
from frevl.diagnosis.report.curation_page import _said, curation_findings, write_curation_page


@pytest.fixture(scope="module")
def found(captioned):
    """Captions of which a fifth was exchanged."""
    return frevl.curate(captioned.store, captioned.exchanged, drop=["match"], below=0.2)


@pytest.mark.slow
def test_the_page_says_what_was_kept_and_shows_the_worst_lines_first(found, captioned, tmp_path):
    write_curation_page(found, tmp_path / "new" / "report.html")
    page = (tmp_path / "new" / "report.html").read_text()
    assert f"Kept {found.kept:,} of 520 lines." in page
    assert "<script" not in page
    assert "Dropped lines" in page
    assert "Side effects of the removal" in page
    assert "exchanged: True" in page
    assert "90 to 100 %" in page
    assert "a match with" in page
    gone = [line for line in found.lines if not line["curate"]["kept"]]
    worst = min(gone, key=lambda line: line["curate"]["match"])
    assert worst["text"] in page
    finding, removed = curation_findings(found)
    assert sum(row["lines"] for row in finding.table) == 520
    assert finding.value == pytest.approx(100 * (520 - found.kept) / 520)
    assert removed.claim == found.removed.sentence()
    assert {row["group"].split(":")[0] for row in removed.table} >= {"exchanged", "pictures like"}
    assert "vendi" in removed.how
    assert "Side effects of the removal" in page


def test_doubts_are_the_headline(captioned, tmp_path):
    few = frevl.data.pairs.read_pairs(captioned.exchanged).select(range(60))
    told = frevl.curate(captioned.store, few, drop=["match"])
    write_curation_page(told, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert '<h1 id="sentence">Matches were not checked: only 30 images' in page
    assert "Kept 60 of 60 lines." in page


@pytest.mark.slow
def test_markup_in_texts_stays_text(found, tmp_path):
    line = {**found.lines[0], "text": "<script>alert(1)</script>"}
    line["curate"] = {**line["curate"], "why": ["match"], "kept": False, "match": 0.0}
    write_curation_page(replace(found, lines=[*found.lines, line]), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["cat", "dog", 0.1], "dog is likelier (cat: 10.0 %)"),
        (["dog", "dog", 0.4], "dog: 40.0 %"),  # it goes for --keep or --below
        (["dog", None, None], "not judged"),
    ],
)
def test_what_is_said_of_a_label(value, said):
    assert _said("label", value) == said
