"""Labels over HTTP: written at once, undone, renamed, exported, imported, refused with a message."""

import base64
import csv
import io
import json
import shutil

import pytest
from starlette.testclient import TestClient

from explored import copied, explored
from frevl.data.pairs import read_pairs
from frevl.deployment.service.app import Application
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.http.limits import Keys, Limits
from frevl.deployment.service.models import Service
from frevl.deployment.service.start import _bound, _is_local
from frevl.runs.scorer import Scorer
from frevl.store.labels.labels_file import LabelsFile
from frevl.store.reader import Store
from frevl.store.upkeep.removal import remove
from served import based, refused, runs

__all__ = ["runs"]


@pytest.fixture(scope="module")
def serving(made, runs, tmp_path_factory):
    """Serve a copy of the store of the made world; labels of a former test are gone."""
    folder = tmp_path_factory.mktemp("labelled") / "store"
    shutil.copytree(made.store.path, folder)
    store = Store.open(folder)
    scorers = {"ask": Scorer.open(runs / "ask", store=store)}

    def serve(*, writable=True, keys=(), limits=None):
        shutil.rmtree(folder / "labels", ignore_errors=True)
        service = Service(scorers, limits=limits or Limits())
        return TestClient(Application(service, keys=Keys(keys), explorer=Explorer(service, writable=writable)))

    serve.folder = folder
    return serve


@pytest.fixture
def http(serving):
    with serving() as client:
        yield client


def label(http, image, name, by="ada", **more):
    return http.post("/explore/label", json={"by": by, "labels": [{"image": image, "label": name}], **more})


def classes(http):
    return {one["name"]: one["labels"] for one in http.get("/explore/labels").json()["classes"]}


@pytest.mark.slow
def test_a_label_is_in_the_file_when_it_is_answered(http, serving):
    answer = label(http, "0.png", "cat").json()
    assert (answer["written"], answer["version"]) == (1, http.get("/explore/labels").json()["version"])
    assert LabelsFile(serving.folder).book().agreed() == {"0.png": "cat"}
    state = http.get("/explore/labels").json()
    assert state["classes"] == [{"name": "cat", "labels": 1}]
    assert (state["images"], state["labellers"], state["writable"], state["notes"]) == (1, {"ada": 1}, True, [])


@pytest.mark.slow
def test_undo_by_id_and_by_what_was_last(http):
    first = label(http, "0.png", "cat").json()["id"]
    label(http, "0.png", "dog")
    undone = http.post("/explore/labels/undo", json={"by": "ada"}).json()
    assert undone["images"] == {"0.png": {"ada": "cat"}}
    assert http.post("/explore/labels/undo", json={"by": "ada", "id": first}).json()["images"] == {"0.png": {}}
    refused(http.post("/explore/labels/undo", json={"by": "ada"}), 422, "invalid", "nothing that 'ada' could undo")


@pytest.mark.slow
def test_the_same_request_twice_writes_once(http):
    assert [label(http, "0.png", "cat", id="once").json()["written"] for _ in range(2)] == [1, 0]


@pytest.mark.slow
def test_an_id_of_something_else_is_refused_and_a_cut_batch_is_completed(http, serving):
    asked = {"by": "ada", "id": "mine", "labels": [{"image": f"{number}.png", "label": "cat"} for number in range(4)]}
    assert http.post("/explore/label", json=asked).json()["written"] == 4
    refused(http.post("/explore/label", json={**asked, "by": "bob"}), 422, "invalid", "The id 'mine' was already used")
    path = serving.folder / "labels" / "labels.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert http.post("/explore/label", json=asked).json()["written"] == 3
    assert classes(http) == {"cat": 4}


@pytest.mark.slow
def test_written_is_counted_though_the_file_was_replaced_by_a_longer_one(http, serving, tmp_path):
    label(http, "0.png", "cat")
    LabelsFile(tmp_path).label("bob", [(f"{number}.png", "dog") for number in range(9)])
    (tmp_path / "labels" / "labels.jsonl").rename(serving.folder / "labels" / "labels.jsonl")
    before = http.get("/explore/labels").json()["version"]
    answer = label(http, "1.png", "cat").json()
    assert (answer["written"], answer["version"] > before) == (1, True)


@pytest.mark.slow
def test_an_import_knows_a_picture_that_was_removed_a_moment_ago(made, tmp_path, monkeypatch):
    monkeypatch.setattr("frevl.deployment.service.store_refresh._SECONDS", 0.0)
    place = copied(made, tmp_path)
    with explored(place.store) as found:
        remove(place.store, ids=["0.png"])
        lines = b'{"image": "0.png", "target": "cat"}\n{"image": "1.png", "target": "cat"}\n'
        answer = found.http.post(
            "/explore/labels/import", json={"by": "ada", "uploads": {"file": base64.b64encode(lines).decode()}}
        ).json()
        assert (answer["written"], answer["left_out"]) == (1, 1)


@pytest.mark.slow
def test_classes_are_named_renamed_and_made_one(http):
    assert http.post("/explore/classes", json={"by": "ada", "names": ["cat", "dog"]}).json()["written"] == 2
    label(http, "0.png", "cat")
    rename = {"by": "ada", "name": "cat", "to": "dog"}
    refused(http.post("/explore/classes/rename", json=rename), 422, "invalid", "The class 'dog' already exists")
    assert http.post("/explore/classes/rename", json={**rename, "merge": True}).json()["written"] == 1
    assert classes(http) == {"dog": 1}
    refused(http.post("/explore/classes/rename", json=rename), 422, "invalid", "it is now called 'dog'")


@pytest.mark.slow
def test_two_labellers_and_how_far_they_agree(http):
    for by, names in (("ada", "cat cat dog dog"), ("bob", "cat dog dog dog")):
        for number, name in enumerate(names.split()):
            label(http, f"{number}.png", name, by)
    state = http.get("/explore/labels").json()
    assert state["agreement"] == [
        {"first": "ada", "second": "bob", "images": 4, "agreement": 0.75, "kappa": pytest.approx(0.5)}
    ]
    assert (state["disputed"], state["images"], state["labellers"]) == (1, 3, {"ada": 4, "bob": 4})


HOSTILE = ["<script>alert(1)</script>", 'a,"b"', "=SUM(1)", "猫", "true", "1", "a\u2028b"]


NESTED = ["{}", "[1]"]


@pytest.mark.slow
def test_a_class_that_looks_like_a_list_is_exported_as_json_lines_only(http):
    label(http, "0.png", "[1]")
    refused(http.get("/explore/labels/export?format=csv"), 422, "invalid", "'[1]' would be read as several answers")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_what_is_exported_is_a_pairs_file_and_can_be_imported_again(http, serving, tmp_path, form):
    names = HOSTILE + NESTED * (form == "jsonl")
    for number, name in enumerate(names):
        assert label(http, f"{number}.png", name).status_code == 200
    answer = http.get(f"/explore/labels/export?format={form}")
    assert answer.headers["content-disposition"] == f'attachment; filename="labels.{form}"'
    rows = (  # read without this package
        [tuple(json.loads(line).values()) for line in answer.text.split("\n")[:-1]]
        if form == "jsonl"
        else [tuple(row) for row in csv.reader(io.StringIO(answer.text))][1:]
    )
    assert rows == [(f"{number}.png", name) for number, name in enumerate(names)]
    path = tmp_path / f"labels.{form}"
    path.write_bytes(answer.content)
    read = read_pairs(path)
    assert read.targets == names
    with serving() as fresh:
        body = {"by": "bob", "format": form, "uploads": {"file": based(answer.content)}}
        taken = fresh.post("/explore/labels/import", json=body).json()
        assert (taken["written"], taken["left_out"]) == (len(names), 0)
        assert list(classes(fresh)) == names
        assert fresh.post("/explore/labels/undo", json={"by": "bob"}).status_code == 200
        assert fresh.get("/explore/labels").json()["images"] == 0


@pytest.mark.slow
def test_export_leaves_out_what_is_disputed_and_can_be_of_one_labeller(http):
    label(http, "0.png", "cat", "ada")
    label(http, "0.png", "dog", "bob")
    assert http.get("/explore/labels/export").text == ""
    assert http.get("/explore/labels/export?by=bob").text == '{"image": "0.png", "target": "dog"}\n'


@pytest.mark.slow
def test_an_import_says_what_it_leaves_out(http):
    lines = [
        '{"image": "0.png", "target": "cat"}',
        '{"image": "away.png", "target": "cat"}',
        '{"image": "1.png"}',
        '{"image": "2.png", "target": ["a", "b"]}',
        "no json",
    ]
    files = {"file": ("x", "\n".join(lines))}
    taken = http.post("/explore/labels/import", data={"request": '{"by": "ada"}'}, files=files).json()
    assert (taken["written"], taken["left_out"]) == (1, 4)
    assert taken["notes"][0] == "1 of the lines name an image that is not in the store; the first is line 2."
    for body, sentence in (
        ("", "file"),
        ("no json", "file"),
        ('{"image": "away.png", "target": "x"}', "no usable label"),
    ):
        answer = http.post(
            "/explore/labels/import", data={"request": '{"by": "ada"}'}, files={"file": ("x", body + "\n")}
        )
        refused(answer, 422, "invalid", sentence)


@pytest.mark.slow
def test_what_cannot_be_is_refused_in_words(http, serving):
    refused(label(http, "away.png", "cat"), 404, "unknown_image", "no image 'away.png'")
    refused(label(http, "0.png", "  "), 422, "invalid", "the name of a class")
    refused(label(http, "0.png", "null"), 422, "invalid", "'null' marks a missing value in pairs files")
    refused(label(http, "0.png", "a\nb"), 422, "invalid", "control characters")
    refused(label(http, "0.png", "cat", by=" "), 422, "invalid", "the name of a labeller")
    refused(label(http, "0.png", "cat", id="a.b"), 422, "invalid", "Field 'id'")
    refused(http.get("/explore/labels/export?format=xml"), 422, "invalid", "Field 'format'")
    refused(http.post("/explore/labels/import", json={"by": "ada"}), 422, "invalid", "found 0")
    many = {"by": "ada", "labels": [{"image": "0.png", "label": "cat"}] * 1025}
    refused(http.post("/explore/label", json=many), 413, "too_many_items", "1024 items")
    (serving.folder / "labels").write_text("a file where the folder should be")
    answer = label(http, "0.png", "cat")
    (serving.folder / "labels").unlink()
    refused(answer, 503, "store", "STORE/labels/labels.jsonl: labels cannot be read (Not a directory)")


@pytest.mark.slow
def test_nothing_is_written_where_the_service_only_shows(serving):
    with serving(writable=False) as http:
        for path, body in (
            ("label", {"labels": [{"image": "0.png", "label": "cat"}]}),
            ("labels/undo", {}),
            ("labels/import", {"uploads": {"f": "aaaa"}}),
            ("classes", {"names": ["cat"]}),
            ("classes/rename", {"name": "cat", "to": "dog"}),
        ):
            refused(
                http.post(f"/explore/{path}", json={"by": "ada", **body}), 403, "read_only", "does not accept labels"
            )
        assert http.get("/explore/labels").json()["writable"] is False
    assert not (serving.folder / "labels").exists()


@pytest.mark.slow
def test_no_route_that_writes_takes_anything_from_another_site(http):
    paths = http.get("/openapi.json").json()["paths"]
    posts = {path for path, methods in paths.items() if path.startswith("/explore/") and "post" in methods}
    only_ask = {"/explore/find", "/explore/why", "/explore/map/images"}
    assert only_ask < posts
    assert len(posts) == 16
    for path in posts - only_ask:
        refused(http.post(path, json={}, headers={"Origin": "https://elsewhere.example"}), 403, "other_site", "page")


@pytest.mark.slow
def test_a_page_of_another_site_labels_nothing(http):
    body = {"request": json.dumps({"by": "ada", "labels": [{"image": "0.png", "label": "cat"}]})}
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        refused(http.post("/explore/label", data=body, files={"x": b""}, headers=headers), 403, "other_site", "page")
    own = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}
    json_body = json.loads(body["request"])
    assert http.post("/explore/label", json=json_body, headers=own).json()["written"] == 1


@pytest.mark.slow
def test_a_proxy_that_sends_its_own_host_passes_that_of_the_browser_on(http):
    body = {"by": "ada", "labels": [{"image": "0.png", "label": "cat"}]}
    headers = {"Host": "127.0.0.1:8000", "X-Forwarded-Host": "labels.example", "Origin": "https://labels.example"}
    assert http.post("/explore/label", json=body, headers=headers).json()["written"] == 1
    headers["Origin"] = "https://evil.example"
    refused(http.post("/explore/label", json=body, headers=headers), 403, "other_site", "page")


@pytest.fixture
def local(serving):
    """Serve as `serve` does where only this machine reaches the service."""
    shutil.rmtree(serving.folder / "labels", ignore_errors=True)

    def serve(keys=()):
        service = Service({}, store=Store.open(serving.folder), limits=Limits())
        explorer = Explorer(service)
        return TestClient(
            Application(service, keys=Keys(keys), explorer=explorer, opens_explorer=True, is_local=True),
            headers={"Authorization": f"Bearer {keys[0]}"} if keys else {},
        )

    return serve


ROUTES = ("/explore/", "/explore/overview", "/explore/labels", "/explore/images", "/explore/map", "/explore/teach")


@pytest.mark.slow
def test_a_name_that_leads_to_this_machine_by_dns_is_refused_on_every_route(local):
    body = {"by": "ada", "labels": [{"image": "0.png", "label": "cat"}]}
    with local() as http:
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:80", "[x]"):
            headers = {"Host": host, "Origin": f"http://{host}", "X-Forwarded-Host": "localhost"}
            for route in ROUTES:
                refused(
                    http.get(route, headers=headers), 403, "other_host", "answers only to localhost and IP addresses"
                )
            refused(
                http.get("/report", headers=headers), 403, "other_host", "answers only to localhost and IP addresses"
            )
            for route in ("label", "find", "map/images", "labels/undo"):
                refused(
                    http.post(f"/explore/{route}", json=body, headers=headers), 403, "other_host", "not to the host"
                )
        assert http.get("/healthz", headers={"Host": "evil.example"}).status_code == 200
        for host in (
            "localhost",
            "LocalHost:8000",
            "127.0.0.1:8000",
            "127.0.0.1",
            "[::1]:8000",
            "[::1]",
            "192.168.1.2",
        ):
            for route in ROUTES:
                assert http.get(route, headers={"Host": host}).status_code == 200, (route, host)
            refused(http.get("/report", headers={"Host": host}), 404, "unknown_report", "There is no report")
            headers = {"Host": host, "Origin": f"http://{host}"}
            assert http.post("/explore/label", json=body, headers=headers).json()["written"] == 1


@pytest.mark.slow
def test_with_keys_or_where_others_reach_it_any_host_is_answered(local, http):
    with local(["k" * 16]) as keyed:
        assert keyed.get("/explore/labels", headers={"Host": "labels.example"}).status_code == 200
    assert http.get("/explore/labels", headers={"Host": "labels.example"}).status_code == 200


@pytest.mark.parametrize(("address", "local"), [("127.0.0.1", True), ("127.0.0.9", True), ("0.0.0.0", False)])  # noqa: S104
def test_only_a_loopback_address_is_local(address, local):
    with _bound(address, 0) as bound:
        assert _is_local(bound) is local


@pytest.mark.slow
def test_keys_are_asked_for(serving):
    with serving(keys=["k" * 16]) as http:
        refused(http.get("/explore/labels"), 401, "no_key", "needs an API key")
        refused(label(http, "0.png", "cat"), 401, "no_key", "needs an API key")


@pytest.mark.slow
def test_ten_thousand_classes(http):
    names = [f"class {number}" for number in range(10_000)]
    for start in range(0, len(names), 1000):
        http.post("/explore/classes", json={"by": "ada", "names": names[start : start + 1000]})
    assert list(classes(http)) == names


@pytest.mark.slow
def test_a_former_name_of_a_class_still_takes_labels(http):
    label(http, "0.png", "cat")
    http.post("/explore/classes/rename", json={"by": "ada", "name": "cat", "to": "kitten"})
    written = label(http, "1.png", "cat", by="bob").json()  # their page was opened before
    assert written["renamed"] == {"cat": "kitten"}
    assert http.get("/explore/labels").json()["renamed"] == {"cat": "kitten"}
    assert label(http, "2.png", "kitten").json()["renamed"] == {}
    assert {one["id"] for one in http.get("/explore/images?label=cat").json()["images"]} == {"0.png", "1.png", "2.png"}
    assert classes(http) == {"kitten": 3}
