"""A page can be shared: it names the store and the files, not the folders of the machine it was made on."""

from dataclasses import replace

import pytest

from diagnosed import written
from frevl.diagnosis.report.markdown import diagnosis_markdown
from frevl.diagnosis.report.page import page_of
from frevl.diagnosis.report.shareable import shareable

COMMAND = (
    "frevl diagnose --store /home/ada/projects/STORE --pairs=/home/ada/train.jsonl --test ~/data/test.jsonl "
    "--html page.html"
)


def kept(store="/home/ada/projects/STORE", command=COMMAND):
    made = written()
    first = replace(made.findings[0], how=f"Read from {store}/images.lance; 95 % bootstrap.")
    origin = {**made.provenance, "store": store, "command": command}
    return replace(made, findings=[first, *made.findings[1:]], notes=[f"{store}: 2 pairs left out."], provenance=origin)


@pytest.mark.slow
def test_the_page_and_the_markdown_print_no_full_path():
    made = kept()
    for text in (page_of(made), diagnosis_markdown(made)):
        assert "ada" not in text
        assert "STORE: 2 pairs left out." in text
        assert "Read from STORE/images.lance" in text
        assert "frevl diagnose --store STORE --pairs=train.jsonl --test test.jsonl --html page.html" in text


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("frevl diagnose --store A --pairs data/train.jsonl", "frevl diagnose --store A --pairs data/train.jsonl"),
        (r"frevl diagnose --store C:\data\STORE", "frevl diagnose --store STORE"),
        ("frevl diagnose --store /data/STORE/", "frevl diagnose --store STORE"),
        ("frevl diagnose --precision 0.9 --encoder hf:a/b", "frevl diagnose --precision 0.9 --encoder hf:a/b"),
        ("frevl diagnose --store /", "frevl diagnose --store /"),
    ],
)
def test_commands(command, shown):
    assert shareable({"provenance": {"command": command}})["provenance"]["command"] == shown


def test_what_has_no_path_stays_as_it_is():
    made = written().record()
    assert shareable(made) == made
    assert shareable({"findings": []}) == {"findings": [], "provenance": {}}
    assert made["provenance"]["store"] == "STORE"


def test_the_json_keeps_where_the_store_is():
    made = kept()
    assert made.record()["provenance"]["store"] == "/home/ada/projects/STORE"
    assert made.provenance["command"] == COMMAND
