"""Sets and doubt over HTTP: the same as in score files, for pairs of the store and for uploaded images."""

import base64
import json
import shutil

import pytest

from frevl.deployment.service.served_model import ServedModel
from frevl.runs.score_files import score_file
from frevl.runs.scorer import Scorer
from served import runs, served

__all__ = ["runs", "served"]  # fixtures


def ask(served, route, model, pairs, **asked):
    return served.http.post(f"/v1/{route}", json={"model": model, "pairs": pairs, **asked})


def of_file(scorer, pairs, folder, **asked):
    (folder / "p.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    score_file(scorer, folder / "p.jsonl", folder / "s.jsonl", **asked)
    return [json.loads(line) for line in (folder / "s.jsonl").read_text().splitlines()]


QUESTIONS = [{"image": f"{n}.png", "text": f"is the square {colour}?"} for n in range(5) for colour in ("red", "blue")]
CAPTIONS = [{"image": f"{n}.png", "text": f"a {colour} square"} for n in range(5) for colour in ("red", "blue")]


@pytest.mark.slow
@pytest.mark.parametrize("route", ["score", "answer"])
def test_sets_of_classes_are_those_of_the_file(served, route, tmp_path):
    said = ask(served, route, "ask", QUESTIONS, sets=0.6).json()
    expected = of_file(served.scorers["ask"], QUESTIONS, tmp_path, sets=0.6)
    assert [one["set"] for one in said["scores" if route == "score" else "answers"]] == [one["set"] for one in expected]
    assert said["notes"] == [
        "Sets of 60 % rest on 9 held-out images: the right class may be in 30 to 86 % of them; "
        "train with more held-out images."
    ]


def test_matches_are_those_of_the_file(served, tmp_path):
    said = ask(served, "score", "match", CAPTIONS, sets=0.7).json()["scores"]
    expected = of_file(served.scorers["match"], CAPTIONS, tmp_path, sets=0.7)
    assert [one["matches"] for one in said] == [one["matches"] for one in expected]
    assert {one["matches"] for one in said} & {None, True}


def test_too_few_held_out_is_said(served):
    said = ask(served, "score", "ask", QUESTIONS[:1], sets=0.999).json()
    assert sorted(said["scores"][0]["set"]) == sorted(served.scorers["ask"].run.labels)
    (note,) = said["notes"]
    assert note.startswith("Sets of 99.9 % contain every class")
    assert "--" not in note


def test_doubt_is_that_of_the_scorer(served, made):
    pairs = [(pair["image"], pair["text"]) for pair in CAPTIONS]
    said = ask(served, "score", "find", CAPTIONS, doubt=True).json()["scores"]
    assert [one["doubt"] for one in said] == pytest.approx(served.scorers["find"].doubt(pairs).tolist(), abs=1e-6)
    picture = base64.b64encode((made.images / "3.png").read_bytes()).decode()
    pair = {"upload": "mine", "text": "a red square"}
    (sent,) = ask(served, "score", "find", [pair], doubt=True, uploads={"mine": picture}).json()["scores"]
    stored = served.scorers["find"].doubt([("3.png", "a red square")])[0]
    assert sent["doubt"] == pytest.approx(stored, abs=1e-5)


def test_nothing_is_added_unasked(served):
    (said,) = ask(served, "score", "find", CAPTIONS[:1]).json()["scores"]
    assert set(said) == {"score", "probability"}


def test_who_has_none_says_so(served):
    listed = {one["name"]: one for one in served.http.get("/v1/models").json()["models"]}
    assert {name: one["doubt"] for name, one in listed.items()} == {"ask": False, "match": True, "find": True}
    assert all(one["sets"] for one in listed.values())
    refused = ask(served, "answer", "ask", QUESTIONS[:1], doubt=True)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_doubt")
    assert "'ask' cannot measure doubt" in refused.json()["error"]["message"]


@pytest.mark.parametrize("level", [0, 1, -1, 2, "0.9", True, [], float("1e400")])
def test_levels_that_are_none(served, level):
    body = json.dumps({"model": "ask", "pairs": QUESTIONS[:1], "sets": level})
    said = served.http.post("/v1/score", content=body, headers={"Content-Type": "application/json"})
    assert said.status_code in (400, 422)
    assert "sets" in said.json()["error"]["message"] or said.status_code == 400


def test_a_run_that_keeps_nothing_has_no_sets(made, runs, tmp_path):
    shutil.copytree(runs / "look", tmp_path / "look")
    record = json.loads((tmp_path / "look" / "run.json").read_text())
    del record["results"]["prediction_sets"]
    (tmp_path / "look" / "run.json").write_text(json.dumps(record))
    model = ServedModel("look", Scorer.open(tmp_path / "look", store=made.store))
    assert (model.has_sets, model.has_doubt) == (False, True)
    assert (model.record()["sets"], model.record()["doubt"]) == (False, True)
