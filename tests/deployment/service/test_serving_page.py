"""What the page offers: a tab only where a run serves it, and the first of them is the one that is open."""

import json
import subprocess
import sys

import pytest

from frevl.runs.scorer import Scorer
from served import runs

pytestmark = pytest.mark.slow

__all__ = ["runs"]  # a fixture

CASES = [  # the runs, whether pictures can be embedded, whether there is a report; the tabs, and what is said
    (["ask", "match", "find"], True, True, ["Search", "Ask", "Report"], "Search pictures and ask about a picture with"),
    (["ask"], True, False, ["Ask"], "Ask about a picture with a trained run."),
    (["match", "find"], True, False, ["Search"], "Search pictures with a trained run."),
    (["match"], True, True, ["Report"], "# frevl"),
    (["match"], True, False, [], "The runs that are served here score pairs of a picture and a text"),
    (["look"], True, False, ["Label a picture"], "Label pictures with a trained run."),
    (["ask", "read"], True, False, ["Ask", "Label a text"], "Ask about a picture and label texts with a trained run."),
    (["look"], False, False, [], "to label pictures or texts, one trained on those alone"),
    (["ask"], False, False, [], "The runs that are served here score pairs of a picture and a text"),
]

# A process of its own: Gradio leaves event loops open.
CODE = """
import asyncio, json, sys
from frevl.deployment.service.http.limits import Limits
from frevl.deployment.service.models import Service
from frevl.deployment.service.page import _answer, _trust, build_page
from frevl.runs.scorer import Prediction, Scorer
from frevl.store.reader import Store

store, runs, cases = Store.open(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
for names, embeds, has_report, *_ in cases:
    service = Service({name: Scorer.open(f"{runs}/{name}", store=store) for name in names}, limits=Limits())
    for model in service.models.values():
        model.embeds["image"] = embeds
    page = build_page(service, has_report=has_report)
    (blocks,) = [route.app.blocks for route in page.routes if hasattr(getattr(route, "app", None), "blocks")]
    parts = blocks.get_config_file()
    # Gradio's script fails on a row of tabs that has none.
    assert any(part["type"] == "tabs" for part in parts["components"]) == any(
        part["type"] == "tabitem" for part in parts["components"]
    )
    tabs = [part["props"]["label"] for part in parts["components"] if part["type"] == "tabitem"]
    said = [part["props"]["value"] for part in parts["components"] if part["type"] in ("markdown", "html")]
    print(json.dumps({"tabs": tabs, "said": said, "heartbeat": parts["connect_heartbeat"]}))
    service.close()
service = Service({"look": Scorer.open(f"{runs}/look", store=store)}, limits=Limits())
trust = asyncio.run(_trust(service, service.models["look"], ("0.png", "")))
print(json.dumps(_answer(Prediction("yes", 0.9, [("yes", 0.9)]), 0.5, [], [*trust, "<b>"])))
service.close()
print(json.dumps(_answer(Prediction("yes", 0.9, [("yes", 0.9)]), 0.5, ["1 of 1 texts <is> unread"])))
print(json.dumps(_answer(Prediction("yes", 0.9, [("yes", 0.9)], unknown=True), 0.5, [])))
"""


@pytest.fixture(scope="module")
def pages(made, runs):
    command = [sys.executable, "-c", CODE, str(made.store.path), str(runs), json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_tab_is_there_only_where_a_run_serves_it(pages, number):
    *_, tabs, sentence = CASES[number]
    assert pages[number]["tabs"] == tabs
    assert any(sentence in str(value) for value in pages[number]["said"])


def test_an_answer_says_first_what_it_rests_on(pages):
    assert "<p>1 of 1 texts &lt;is&gt; unread</p><h3>yes" in pages[-2]
    assert "<h3>Unknown</h3><p>Probably none of the classes; the nearest is yes" in pages[-1]


def test_sets_and_doubt_stand_below_an_answer(pages, made, runs):
    assert "</ol><p>Cannot be ruled out, so that 90% of such sets hold the right answer: " in pages[-3]
    doubt = Scorer.open(runs / "look", store=made.store).doubt(["0.png"])[0]
    assert f"<p>Doubt {doubt:.2f}: 0 is like what the run has learned from" in pages[-3]
    assert "<p>&lt;b&gt;</p>" in pages[-3]


def test_the_page_needs_no_stream_that_stays_open(pages):
    assert not any(page["heartbeat"] for page in pages[:-3])  # nor is it served: see the guard
