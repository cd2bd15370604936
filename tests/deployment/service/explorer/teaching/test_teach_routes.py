"""Teaching over HTTP: labels change the order of the images, with held-out accuracy."""

import time

import numpy as np
import pytest
from PIL import Image

from explored import copied, explored
from frevl.deployment.service.explorer import browse_handlers
from frevl.store.extraction.extract import extract
from frevl.store.upkeep.removal import remove
from frevl.training.classification.teaching import teach
from made import COLOURS
from served import refused


@pytest.fixture
def place(made, tmp_path):
    return copied(made, tmp_path)


@pytest.fixture
def taught(place):
    with explored(place.store, place.images, fit=teach) as found:
        found.place = place
        yield found


def colour_of(place, name):
    picture = Image.open(place.images / name)
    return next(colour for colour, rgb in COLOURS.items() if picture.getpixel((20, 20)) == rgb)


def label(taught, *pairs, by="ada"):
    body = {"by": by, "labels": [{"image": image, "label": name} for image, name in pairs]}
    assert taught.http.post("/explore/label", json=body).status_code == 200


def settled(taught):
    """Wait until the newest labels are learned."""
    for _ in range(600):
        state = taught.http.get("/explore/teach").json()
        if not state["busy"]:
            return state
        time.sleep(0.05)
    raise AssertionError("it is busy for ever")


def listed(taught, **asked):
    return taught.http.get("/explore/images", params={"count": 500, **asked}).json()["images"]


def teach_colours(taught, count, by="ada"):
    ids = taught.explorer.service.store.ids("image")[:count]
    label(taught, *[(id_, colour_of(taught.place, id_)) for id_ in ids], by=by)
    return ids


@pytest.mark.slow
def test_nothing_is_taught_without_two_classes_and_words_say_so(taught):
    assert (
        settled(taught)["problem"]
        == "Label at least one image of each of two classes; then the classifier learns them."
    )
    label(taught, ("0.png", "red"), ("1.png", "red"))
    assert settled(taught)["ready"] is False
    refused(taught.http.get("/explore/images?order=doubt"), 409, "not_taught", "Label at least one image of each")


@pytest.mark.slow
def test_labels_bring_an_order_and_an_accuracy_with_its_interval(taught):
    ids = teach_colours(taught, 60)
    state = settled(taught)
    assert (state["ready"], state["pictures"], set(state["classes"])) == (True, 60, set(COLOURS))
    accuracy = state["accuracy"]
    assert accuracy["pictures"] == 60
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["value"] > 0.9
    assert sum(cell["pictures"] for cell in state["confusion"]) == 60
    found = listed(taught, order="class", of="red", shown="unlabelled")
    assert len(found) == 60
    assert not {one["id"] for one in found} & set(ids)
    probabilities = [one["guess"]["probability"] for one in found]
    assert probabilities == sorted(probabilities, reverse=True)
    truth = [colour_of(taught.place, one["id"]) == "red" for one in found]
    assert np.mean(truth[: sum(truth)]) > 0.9
    assert all(one["guess"]["label"] in COLOURS for one in listed(taught))


@pytest.mark.slow
def test_doubt_begins_with_the_smallest_margin_and_next_is_of_other_pictures_than_labelled(taught):
    ids = teach_colours(taught, 40)
    settled(taught)
    lesson = taught.explorer.teacher.lesson
    rows = taught.explorer.teacher._rows()
    found = [rows.positions[one["id"]] for one in listed(taught, order="doubt")]
    assert found == np.argsort(lesson.margin, kind="stable").tolist()
    following = [one["id"] for one in listed(taught, order="next")]
    assert len(following) == 60
    assert len(set(following)) == 60
    assert not set(following) & set(ids)


@pytest.mark.slow
def test_a_wrong_label_is_the_first_of_the_contradicted(taught):
    ids = teach_colours(taught, 60)
    other = next(colour for colour in COLOURS if colour != colour_of(taught.place, ids[7]))
    label(taught, (ids[7], other))
    state = settled(taught)
    assert state["wrong"] >= 1
    assert ids[7] in [one["id"] for one in listed(taught, order="wrong")][:3]


@pytest.mark.slow
def test_undo_and_a_renamed_class_are_learned_too(taught):
    teach_colours(taught, 30)
    settled(taught)
    taught.http.post("/explore/classes/rename", json={"by": "ada", "name": "red", "to": "rot"})
    assert "rot" in settled(taught)["classes"]
    taught.http.post("/explore/labels/undo", json={"by": "ada"})
    assert "red" in settled(taught)["classes"]
    taught.http.post("/explore/labels/undo", json={"by": "ada"})
    assert settled(taught)["ready"] is False


@pytest.mark.slow
def test_a_store_that_grows_is_learned_again(taught, monkeypatch):
    monkeypatch.setattr("frevl.deployment.service.store_refresh._SECONDS", 0.0)
    teach_colours(taught, 30)
    settled(taught)
    Image.new("RGB", (40, 40), "red").save(taught.place.images / "new.png")
    extract(taught.place.store, images=taught.place.images, encoder=["toy"])
    settled(taught)
    assert len(listed(taught, order="doubt")) == 121


@pytest.mark.slow
def test_nothing_wrong_among_few_is_no_certainty(taught):
    teach_colours(taught, 30)
    accuracy = settled(taught)["accuracy"]
    assert (accuracy["value"], accuracy["high"]) == (1.0, 1.0)
    assert accuracy["low"] == pytest.approx(0.8865, abs=1e-4)


@pytest.mark.slow
def test_orders_that_cannot_be_are_refused_in_words(taught):
    teach_colours(taught, 30)
    settled(taught)
    refused(taught.http.get("/explore/images?order=class&of=away"), 409, "not_taught", "knows no class 'away'")
    refused(taught.http.get("/explore/images?order=class"), 409, "not_taught", "knows no class ''")
    refused(taught.http.get("/explore/images?order=best"), 422, "invalid", "Field 'order'")


@pytest.mark.slow
def test_a_fit_that_fails_is_said_in_words_and_the_labels_stay(place, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("secret")

    with explored(place.store, fit=failing) as taught:
        label(taught, ("0.png", "red"), ("1.png", "blue"))
        state = settled(taught)
        assert state["problem"] == "The classifier could not be fitted; see the log of the service."
        assert taught.http.get("/explore/labels").json()["images"] == 2


@pytest.mark.slow
def test_probabilities_of_many_classes_are_computed_when_asked_for(taught, monkeypatch):
    first = teach_colours(taught, 60)[0]
    settled(taught)
    before = listed(taught, order="class", of="blue")
    monkeypatch.setattr("frevl.deployment.service.explorer.teaching.lesson._MOST_KEPT", 10)
    label(taught, (first, None))
    label(taught, (first, colour_of(taught.place, first)))
    settled(taught)
    assert taught.explorer.teacher.lesson.kept is None
    assert [one["id"] for one in listed(taught, order="class", of="blue")] == [one["id"] for one in before]


@pytest.mark.slow
def test_an_order_is_that_of_the_newest_fit_though_objects_get_the_number_of_one_that_is_gone(taught, monkeypatch):
    monkeypatch.setattr(browse_handlers, "id", lambda _: 1, raising=False)
    numbers = set()
    for count in (30, 60):
        teach_colours(taught, count)
        settled(taught)
        lesson = taught.explorer.teacher.lesson
        rows = taught.explorer.teacher._rows()
        found = [rows.positions[one["id"]] for one in listed(taught, order="doubt")]
        assert found == np.argsort(lesson.margin, kind="stable").tolist()
        numbers.add(lesson.number)
    assert len(numbers) == 2


@pytest.mark.slow
def test_the_next_are_chosen_among_those_that_the_filters_leave(taught, monkeypatch):
    monkeypatch.setattr("frevl.deployment.service.explorer.teaching.lesson._NEXT", 5)
    ids = teach_colours(taught, 40)
    settled(taught)
    assert len(listed(taught, order="next")) == 5
    left = set(taught.explorer.service.store.ids("image")[90:])
    where = "id in (" + ", ".join(f"'{id_}'" for id_ in sorted(left)[:7] + ids[:3]) + ")"
    found = [one["id"] for one in listed(taught, order="next", where=where)]
    assert len(set(found)) == 5
    assert set(found) <= set(sorted(left)[:7])
    label(taught, *[(id_, "red") for id_ in found], by="bob")
    following = [one["id"] for one in listed(taught, order="next", where=where, shown="unlabelled")]
    assert set(following) == set(sorted(left)[:7]) - set(found)
    assert listed(taught, order="next", shown="labelled", by="ada", where=f"id = '{ids[0]}'") == []


@pytest.mark.slow
def test_a_quick_fit_after_the_store_has_changed_takes_over_no_rows_of_the_old_one(place, monkeypatch):
    monkeypatch.setattr("frevl.deployment.service.store_refresh._SECONDS", 0.0)
    fails = []

    def fit(*given, before=None, **told):
        if fails and before is None:
            raise RuntimeError("only the quick fit is made")
        return teach(*given, before=before, **told)

    with explored(place.store, place.images, fit=fit) as taught:
        taught.place = place
        ids = taught.explorer.service.store.ids("image")[60:]
        label(taught, *[(id_, colour_of(place, id_)) for id_ in ids])
        label(taught, (ids[-1], next(colour for colour in COLOURS if colour != colour_of(place, ids[-1]))))
        assert settled(taught)["wrong"] >= 1
        assert max(taught.explorer.teacher.lesson.wrong) >= 60
        fails.append(True)
        remove(place.store, ids=taught.explorer.service.store.ids("image")[:60])
        assert settled(taught)["wrong"] == 0
        answer = taught.http.get("/explore/images?order=wrong")
        assert (answer.status_code, answer.json()["images"]) == (200, [])
        fails.clear()
        label(taught, (ids[0], None))
        assert settled(taught)["wrong"] >= 1
        assert ids[-1] in [one["id"] for one in listed(taught, order="wrong")]
