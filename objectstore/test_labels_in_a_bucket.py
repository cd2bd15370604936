"""Labels of a store in a bucket: several processes label, nothing is lost, and all see the same order."""

import json
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from test_stores_in_a_bucket import content, data, draw, run, store  # noqa: F401 - fixtures
from test_upkeep_in_a_bucket import until_it_comes_through

from conftest import new_bucket
from frevl.errors import StoreError, UsageError
from frevl.store.importing.vectors import import_embeddings
from frevl.store.labels import shared_labels
from frevl.store.labels.labels_file import LabelsFile
from frevl.store.labels.shared_labels import labels_of
from frevl.store.remote.address import place_of
from frevl.store.remote.copying import copy_store

LABELLER = """
import sys
from frevl.store.labels.shared_labels import labels_of
from frevl.store.remote.address import place_of
labels = labels_of(place_of(sys.argv[1]))
for number in range(12):
    said = [(f"{number}.png", "cat"), (f"{number + 100}.png", sys.argv[2])]
    labels.label(sys.argv[2], said, f"{sys.argv[2]}{number}")
"""


def test_labels_of_two_processes_are_all_kept_in_one_order(bucket):
    there = f"{bucket}/store"
    command = [sys.executable, "-W", "ignore", "-c", LABELLER, there]
    running = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in ("ann", "bob")]
    said = [one.communicate(timeout=150)[1] for one in running]
    assert [one.returncode for one in running] == [0, 0], said
    one, two = (labels_of(place_of(there)) for _ in range(2))
    assert one.book().labellers() == {"ann": 24, "bob": 24}
    assert one.book().version == two.book().version
    assert one.book().entries == two.book().entries
    assert [entry.request for entry in one.book().entries if entry.by == "ann"][::2] == [f"ann{k}" for k in range(12)]
    two.label("ann", [("0.png", "cat"), ("100.png", "ann")], "ann0")  # sent again without an answer
    assert len(two.book().entries) == 48
    with pytest.raises(UsageError, match="already used"):
        two.label("ann", [("0.png", "dog")], "ann0")
    two.rename("bob", "cat", "Katze")
    assert len(two.undo("bob", "bob3")) == 2
    with one._locked():  # looks again at once
        book = one.book()
    assert (book.of("0.png"), book.of("3.png")) == ({"ann": "Katze", "bob": "Katze"}, {"ann": "Katze"})
    assert one.notes == two.notes == []


def test_a_clock_that_is_wrong_changes_no_order(bucket, monkeypatch):
    there = place_of(f"{bucket}/store")
    ahead, behind = labels_of(there), labels_of(there)
    for labels, at, name in ((ahead, "2099-01-01T00:00:00.000Z", "cat"), (behind, "1999-01-01T00:00:00.000Z", "dog")):
        monkeypatch.setattr(shared_labels, "now", lambda at=at: at)
        labels.label("ann", [("0.png", name)])
    assert labels_of(there).book().of("0.png") == {"ann": "dog"}


def test_labels_are_copied_there_added_to_and_copied_back(store, bucket, tmp_path):  # noqa: F811
    there = f"{bucket}/store"
    LabelsFile(store).label("ann", [("0.png", "cat")])
    copy_store(store, there)
    labels = labels_of(place_of(there))
    assert labels.book().agreed() == {"0.png": "cat"}
    labels.label("bob", [("1.png", "dog"), ("2.png", "dog")])
    with pytest.raises(StoreError, match="holds labels that the source lacks"):
        copy_store(store, there)
    copy_store(there, tmp_path / "back")
    back = LabelsFile(tmp_path / "back")
    assert back.book().entries == labels.book().entries
    assert back.book().version == labels.book().version
    back.label("bob", [("3.png", "dog")])
    copy_store(tmp_path / "back", there)
    again = labels_of(place_of(there))
    assert again.book().entries == back.book().entries
    again.label("ann", [("4.png", "cat")])
    assert labels_of(place_of(there)).book().agreed()["4.png"] == "cat"


@pytest.mark.parametrize("faults", [(5, 0), (0, 5)])
def test_a_server_that_is_busy_or_cuts_doubles_no_label(flaky, monkeypatch, tmp_path, faults):
    there = place_of(f"{new_bucket(flaky(*faults), monkeypatch, tmp_path)}/store")
    for number in range(4):
        until_it_comes_through(
            lambda number=number: labels_of(there).label("ann", [(f"{number}.png", "cat")], f"r{number}")
        )
    book = until_it_comes_through(lambda: labels_of(there).book())
    assert [entry.image for entry in book.entries] == [f"{number}.png" for number in range(4)]


def test_a_store_in_a_bucket_is_explored_and_labelled_and_what_needs_a_folder_says_so(bucket, tmp_path):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).standard_normal((20, 4)).astype(np.float16))
    (tmp_path / "ids.txt").write_text("\n".join(f"{number}.jpg" for number in range(20)))
    there = f"{bucket}/store"
    import_embeddings(tmp_path / "v.npy", store=there, encoder="own", of="images", ids=tmp_path / "ids.txt")
    command = [sys.executable, "-m", "frevl", "explore", "--store", there, "--port", "0", "--json", tmp_path / "ready"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout.readline().startswith("Ready at ")
            url = json.loads((tmp_path / "ready").read_text())["url"]

            def ask(path, **body):
                given = (
                    {"data": json.dumps(body).encode(), "headers": {"Content-Type": "application/json"}} if body else {}
                )
                try:
                    with urllib.request.urlopen(urllib.request.Request(url + path, **given)) as answer:  # noqa: S310
                        return json.load(answer)
                except urllib.error.HTTPError as error:
                    return json.load(error)["error"]

            assert ask("/explore/overview")["images"] == 20
            assert ask("/explore/map")["count"] == 20
            assert len(ask("/explore/find", image="3.jpg", k=5)["images"]) == 5
            assert ask("/explore/label", by="ada", labels=[{"image": "3.jpg", "label": "cat"}])["written"] == 1
            assert ask("/explore/labels")["images"] == 1
            assert ask("/explore/trainings")["trainings"] == ask("/explore/curations")["judges"] == []
            for path, body in (("train", {"by": "ada"}), ("curation/start", {"judge": "labels"})):
                refused = ask(f"/explore/{path}", **body)
                assert (refused["code"], "requires a store in a local folder" in refused["message"]) == (
                    "store_in_bucket",
                    True,
                )
        finally:
            process.terminate()
            process.wait(60)
