"""Names that look equal match; for others, the message shows the nearest and the difference."""

import json
import shutil
import unicodedata

import pytest

from frevl.data.names import same_names, text_content, why_unknown
from frevl.errors import PairsError, UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.runs.score_files import score_file
from frevl.runs.scorer import Scorer
from frevl.runs.search.searching import search
from frevl.store.extraction.extract import extract
from frevl.store.reader import Store
from frevl.training.training import train

NFC, NFD = (unicodedata.normalize(form, "dépôt/café Ünï.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("name", "id_"),
    [
        (NFC, NFD),
        (NFD, NFC),
        ("./a/b.png", "a/b.png"),
        ("a\\b.png", "a/b.png"),
        (".\\a//b.png", "a/b.png"),
        ("a/b.png", "./a/b.png"),
    ],
)
def test_spellings_of_one_name(name, id_):
    assert same_names([name, id_, "other"], {id_, "c.png"}) == {name: id_}


def test_a_name_that_could_be_two_is_neither():
    assert same_names(["a\\b"], {"a/b", "./a/b"}) == {}
    assert same_names(["A.png", "a.jpg", "x/a.png", "a.pn"], {"a.png"}) == {}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "images/3.png",
            "the nearest is '3.png', without the folder 'images/' (ids are paths below the folder of images)",
        ),
        (
            "/data/x/3.png",
            "the nearest is '3.png', without the folder 'data/x/' (ids are paths below the folder of images)",
        ),
        ("7.png", "the nearest is 'train/7.png', in the folder 'train/' (ids are paths below the folder of images)"),
        ("3.PNG", "the nearest is '3.png', which differs in capital letters"),
        ("3.jpeg", "the nearest is '3.png', which has another file extension"),
        ("my%20dog.png", "the nearest is 'my dog.png', which is not percent-encoded (%20 for a space)"),
        ("val/7.png", "the nearest is 'train/7.png', in another folder"),
        ("my dgo.png", "the nearest is 'my dog.png'"),
        ("8.png", ""),
        ("33.png", ""),
    ],
)
def test_the_nearest_name_and_why_it_differs(name, sentence):
    beside = ["7.txt", "33.json", "x/images/3.txt", "my dgo.csv", "8.xml"]  # captions and lists, which a store rejected
    assert why_unknown(name, [*beside, "3.png", "train/7.png", "my dog.png", "zebra 9.png", *beside]) == sentence


def test_texts_in_two_compositions_are_one():
    assert text_content(" un  café\n") == text_content(unicodedata.normalize("NFD", "un café"))
    assert text_content("a b") != text_content("ab")


@pytest.fixture
def world(made, tmp_path, monkeypatch):
    """Images in a folder `images`, some of them below `more` or with decomposed letters, their pairs, and a run."""
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    rows = [made.train.row(i) for i in range(40)]
    names = {image: image for image in dict.fromkeys(row["image"] for row in rows)}
    for number, image in enumerate(names):
        names[image] = f"more/{image}" if number % 3 == 0 else unicodedata.normalize("NFD", f"é{image}")
        shutil.copy(made.images / image, images / names[image])
    rows = [{**row, "image": names[row["image"]]} for row in rows]
    write(tmp_path / "p.jsonl", rows)
    extract("S", images="images", pairs=["p.jsonl"], encoder=["toy"])
    train("S", "p.jsonl", run="R", task="classification", model="linear")
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


SPELLINGS = {
    "composed": lambda name: unicodedata.normalize("NFC", name),
    "dot": lambda name: "./" + name,
    "backslash": lambda name: name.replace("/", "\\"),
    "folder": lambda name: "images/" + name,
    "folder and backslash": lambda name: "images\\" + name.replace("/", "\\"),
}


@pytest.mark.slow
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_command_finds_the_images_under_another_spelling(world, tmp_path, spelling):
    other = [{**row, "image": SPELLINGS[spelling](row["image"])} for row in world]
    write(tmp_path / "q.jsonl", other)
    report = extract("S", images="images", pairs=["q.jsonl"], encoder=["toy"])
    assert report.rejects == []
    scorer = Scorer.open("R", store="S")
    result = evaluate(scorer, "q.jsonl")
    plain = evaluate(scorer, "p.jsonl")
    assert result.metrics == plain.metrics
    assert result.ci95 == plain.ci95
    changed = len({row["image"] for row in other} - {row["image"] for row in world})
    assert any(f"{changed} image ids were found under a different spelling ('" in note for note in result.notes)
    scored, _ = score_file(scorer, "q.jsonl", "s.jsonl")
    assert scored == len(world)
    said = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [row["image"] for row in said] == [row["image"] for row in other], "a pair is copied as it is"
    score_file(scorer, "p.jsonl", "t.jsonl")
    same = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [row["probability"] for row in said] == [row["probability"] for row in same]
    train("S", "q.jsonl", run=f"R {spelling}", task="classification", model="majority")


@pytest.mark.slow
def test_a_folder_before_the_ids_counts_only_if_the_files_say_so(world, tmp_path):
    """Pairs of another folder with the same names are not those of the store."""
    shutil.copytree(tmp_path / "images", tmp_path / "val")
    write(tmp_path / "q.jsonl", [{**row, "image": "val/" + row["image"]} for row in world])
    scorer = Scorer.open("R", store="S")
    assert evaluate(scorer, "q.jsonl").n == len(world), "copies of the same files"
    first = tmp_path / "val" / world[0]["image"]
    first.write_bytes(next(p for p in (tmp_path / "val").rglob("*.png") if p != first).read_bytes())
    with pytest.raises(PairsError) as caught:
        evaluate(scorer, "q.jsonl")
    assert str(caught.value) == (
        f"q.jsonl:1, field 'image': the store has no image 'val/{world[0]['image']}' (40 of 40 pairs name unknown "
        f"images); the nearest is '{world[0]['image']}', without the folder 'val/' (ids are paths below the folder of "
        "images); extract the folder that holds them, or correct the ids"
    )


@pytest.mark.slow
def test_a_search_by_the_id_of_an_image(made, world, tmp_path):
    captions = [{"image": row["image"], "text": f"{row['text']} {i}"} for i, row in enumerate(world)]
    write(tmp_path / "c.jsonl", captions)
    extract("S", pairs=["c.jsonl"], encoder=["toy"])
    train("S", "c.jsonl", run="M", task="matching", model="dual", options={"epochs": 1})
    scorer = Scorer(Scorer.open("M", store="S").run, Store.open("S"))
    id_ = next(row["image"] for row in world if row["image"].startswith("more/"))
    wanted = [hit.id for hit in search(scorer, image=id_, k=3).hits]
    assert [hit.id for hit in search(scorer, image="./" + id_, k=3).hits] == wanted
    assert [hit.id for hit in search(scorer, image=id_.replace("/", "\\"), k=3).hits] == wanted
    with pytest.raises(UsageError, match=r"found none; the nearest is 'more/.*', which differs in capital letters"):
        search(scorer, image=id_.upper(), k=3)
