"""Extraction: what is embedded, what is not embedded again, and that the result does not depend on the path."""

import hashlib
import json
import os
import shutil

import lance
import numpy as np
import pytest
from PIL import Image

import frevl.encoders.registry
from frevl.encoders.images import read_image
from frevl.encoders.interface import Embeddings, Encoder
from frevl.encoders.registry import load_encoder
from frevl.encoders.toy import ToyImageTower, ToyTextTower
from frevl.errors import EncoderError, FingerprintError, StoreError
from frevl.store.canaries import CANARY_TEXTS, canary_images, tower_records
from frevl.store.extraction.extract import extract
from frevl.store.reader import Store
from frevl.store.upkeep.verification import verify


@pytest.fixture
def embedded(monkeypatch):
    """Names of the towers that embedded something, one entry per item; canaries left out."""
    log = []

    def counting(original, canaries):
        def embed(self, prepared):
            if len(prepared) != canaries or not _are_canaries(prepared):
                log.extend([self.name] * len(prepared))
            return original(self, prepared)

        return embed

    monkeypatch.setattr(ToyImageTower, "embed", counting(ToyImageTower.embed, len(canary_images())))
    monkeypatch.setattr(ToyTextTower, "embed", counting(ToyTextTower.embed, len(CANARY_TEXTS)))
    return log


def _are_canaries(prepared):
    if isinstance(prepared[0], str):
        return tuple(prepared) == CANARY_TEXTS
    tower = load_encoder("toy").image
    return all(np.array_equal(a, tower.prepare(b)) for a, b in zip(prepared, canary_images(), strict=True))


@pytest.fixture
def images(tmp_path, draw):
    return draw(tmp_path / "images", range(7))


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"image": f"{n}.png", "text": f"picture {n % 5}"}) + "\n" for n in range(7)))
    return file


def content(path):
    """Everything that a store says of its items: hash and embeddings by tower, exact."""
    store = Store.open(path)
    said = {}
    for modality, ids in (("image", store.image_ids), ("text", store.texts)):
        for tower in store.select_towers(modality):
            values, mask = store.read(modality, ids, [tower])
            for row, id_ in enumerate(ids):
                said[modality, id_, tower.name] = values[row][mask[row]].tobytes()
    hashes = store.content_hashes(store.image_ids)
    return said, hashes, len(store.image_ids), len(store.texts)


def test_ids_hashes_and_embeddings_are_those_of_the_files(tmp_path, images, pairs):
    (images / "deep" / "er").mkdir(parents=True)
    shutil.copy(images / "3.png", images / "deep" / "er" / "ü 3.PNG")
    report = extract(tmp_path / "s", images=images, pairs=[pairs], encoder=["toy"])
    assert (report.images, report.texts, report.images_kept, report.texts_kept, report.rejects) == (8, 5, 0, 0, [])
    store = Store.open(tmp_path / "s")
    assert sorted(store.image_ids) == sorted([*(f"{n}.png" for n in range(7)), "deep/er/ü 3.PNG"])
    assert sorted(store.texts) == [f"picture {n}" for n in range(5)]
    digest = hashlib.sha256((images / "3.png").read_bytes()).hexdigest()[:32]
    assert store.content_hashes(["3.png", "deep/er/ü 3.PNG"]) == {"3.png": digest, "deep/er/ü 3.PNG": digest}
    encoder = load_encoder("toy")
    direct = encoder.embed_images([images / f"{n}.png" for n in range(7)]).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(store.read_images([f"{n}.png" for n in range(7)]), direct)
    direct = encoder.embed_texts(["picture 4", "picture 0"]).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(store.read_texts(["picture 4", "picture 0"]), direct)
    assert report.sentence().startswith("Embedded 8 images and 5 texts in ")


@pytest.mark.slow
def test_only_what_is_new_is_embedded(tmp_path, images, pairs, draw, embedded):
    extract(tmp_path / "s", images=images, pairs=[pairs], encoder=["toy"])
    assert sorted(embedded) == ["toy-image"] * 7 + ["toy-text"] * 5
    before = content(tmp_path / "s")[0]
    embedded.clear()
    report = extract(tmp_path / "s", images=images, pairs=[pairs], encoder=["toy"])
    assert embedded == []
    assert (report.images, report.texts, report.images_kept, report.texts_kept) == (0, 0, 7, 5)
    draw(images, range(7, 10))
    with pairs.open("a") as lines:
        lines.write('{"image": "8.png", "text": "a new one"}\n')
    report = extract(tmp_path / "s", images=images, pairs=[pairs], encoder=["toy"])
    assert sorted(embedded) == ["toy-image"] * 3 + ["toy-text"]
    assert (report.images, report.texts, report.images_kept, report.texts_kept) == (3, 1, 7, 5)
    after = content(tmp_path / "s")
    assert after[2:] == (10, 6)
    assert {key: after[0][key] for key in before} == before
    # Another folder adds to the store; nothing of the first is lost.
    other = draw(tmp_path / "other", range(20, 22))
    assert extract(tmp_path / "s", images=other, encoder=["toy"]).images == 2
    assert len(Store.open(tmp_path / "s").image_ids) == 12


def test_a_changed_file_replaces_its_embedding(tmp_path, images, draw, embedded):
    extract(tmp_path / "s", images=images, encoder=["toy", "toy2"])
    before = content(tmp_path / "s")
    embedded.clear()
    draw(images, [2], seed=9)
    os.utime(images / "5.png", ns=(1, 1))  # touched, not changed
    report = extract(tmp_path / "s", images=images, encoder=["toy", "toy2"])
    assert sorted(embedded) == ["toy-image", "toy2-image"]
    assert (report.images, report.images_kept) == (1, 6)
    after = content(tmp_path / "s")
    assert after[2] == 7
    assert {key[1:] for key in before[0] if before[0][key] != after[0][key]} == {
        ("2.png", "toy-image"),
        ("2.png", "toy2-image"),
    }
    assert {id_ for id_ in before[1] if before[1][id_] != after[1][id_]} == {"2.png"}
    extract(tmp_path / "fresh", images=images, encoder=["toy", "toy2"])
    assert content(tmp_path / "fresh") == after


@pytest.mark.slow
def test_a_changed_file_empties_the_towers_of_other_encoders(tmp_path, images, draw, embedded):
    extract(tmp_path / "s", images=images, encoder=["toy", "toy2"])
    draw(images, [2], seed=9)
    extract(tmp_path / "s", images=images, encoder=["toy"])
    with pytest.raises(StoreError, match="1 of 7 images have no embedding by the tower 'toy2-image'"):
        Store.open(tmp_path / "s").read_images([f"{n}.png" for n in range(7)])
    embedded.clear()
    extract(tmp_path / "s", images=images, encoder=["toy2"])
    assert embedded == ["toy2-image"]
    extract(tmp_path / "fresh", images=images, encoder=["toy", "toy2"])
    assert content(tmp_path / "fresh") == content(tmp_path / "s")


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["pooled", "4x4"])
def test_two_encoders_at_once_or_one_after_the_other_give_the_same(tmp_path, images, pairs, embedded, tokens):
    settings = {"images": images, "pairs": [pairs], "tokens": tokens, "commit_rows": 3}
    extract(tmp_path / "once", encoder=["toy", "toy2", "toy"], **settings)
    assert sorted(embedded) == ["toy-image"] * 7 + ["toy-text"] * 5 + ["toy2-image"] * 7
    embedded.clear()
    extract(tmp_path / "twice", encoder=["toy"], **settings)
    report = extract(tmp_path / "twice", encoder=["toy2"], **settings)
    # The text tower that both share embedded every text once.
    assert sorted(embedded) == ["toy-image"] * 7 + ["toy-text"] * 5 + ["toy2-image"] * 7
    assert (report.images, report.texts_kept) == (7, 5)
    assert content(tmp_path / "once") == content(tmp_path / "twice")
    once, twice = Store.open(tmp_path / "once"), Store.open(tmp_path / "twice")
    assert once.fingerprint == twice.fingerprint
    assert once.encoders == twice.encoders == ["toy", "toy2"]
    assert [tower.encoders for tower in twice.towers.values()] == [("toy",), ("toy", "toy2"), ("toy2",)]
    assert once.read_images(["1.png"]).shape == (1, 96)
    assert once.read_images(["1.png"], encoders=["toy2"]).shape == (1, 32)
    assert verify(tmp_path / "twice") == []


@pytest.mark.slow
def test_each_tower_gets_the_pixels_of_its_own_target(tmp_path, monkeypatch):
    """A JPEG is decoded reduced, as far as a tower's target allows; which other towers are missing plays no role."""
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "images" / "a.jpg", quality=90)
    toy = load_encoder("toy")
    small = Encoder("small", ToyImageTower("small-image", 32, 2, "pooled", target=40), toy.text)
    table = {one.name: lambda _, one=one: (one.image, one.text) for one in (toy, small)}
    monkeypatch.setattr(frevl.encoders.registry, "ENCODERS", table)
    pixels = [np.asarray(read_image(tmp_path / "images" / "a.jpg", target=target)) for target in (336, 40)]
    assert pixels[0].shape != pixels[1].shape
    for name, calls in {"both": [["toy", "small"]], "one": [["toy"], ["small"]], "other": [["small"], ["toy"]]}.items():
        for encoders in calls:
            extract(tmp_path / name, images=tmp_path / "images", encoder=encoders)
    assert content(tmp_path / "both") == content(tmp_path / "one") == content(tmp_path / "other")
    direct = small.embed_images([tmp_path / "images" / "a.jpg"]).astype(np.float16)
    np.testing.assert_array_equal(Store.open(tmp_path / "both").read_images(["a.jpg"], encoders=["small"]), direct)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_the_size_of_commits_changes_nothing(tmp_path, images, pairs, rows):
    extract(tmp_path / "s", images=images, pairs=[pairs], encoder=["toy"], commit_rows=rows, workers=3)
    extract(tmp_path / "t", images=images, pairs=[pairs], encoder=["toy"], commit_rows=5, commit_seconds=0, workers=1)
    assert content(tmp_path / "s") == content(tmp_path / "t")
    commits = lance.dataset(str(tmp_path / "s" / "images.lance")).version
    assert commits == {1: 7, 3: 3, 1000: 1}[rows]


@pytest.mark.parametrize(("changed", "field"), [({"tokens": "7x7"}, "tokens"), ({"dtype": "float32"}, "dtype")])
def test_other_settings_are_refused_with_the_field(tmp_path, images, changed, field):
    extract(tmp_path / "s", images=images, encoder=["toy"])
    before = content(tmp_path / "s")
    with pytest.raises(FingerprintError, match=f"the tower 'toy-text' were made differently: '{field}' is"):
        extract(tmp_path / "s", images=images, encoder=["toy2", "toy"], **changed)
    assert content(tmp_path / "s") == before
    assert Store.open(tmp_path / "s").encoders == ["toy"]


def test_an_encoder_that_changed_under_its_name_is_refused(tmp_path, images, monkeypatch):
    extract(tmp_path / "s", images=images, encoder=["toy"])
    honest = ToyImageTower.embed
    monkeypatch.setattr(ToyImageTower, "embed", lambda self, prepared: honest(self, [255 - one for one in prepared]))
    with pytest.raises(
        FingerprintError, match="'toy-image' has the right identity but embeds the canaries differently"
    ):
        extract(tmp_path / "s", images=images, encoder=["toy"])


def test_canaries_are_pinned():
    """Other images or texts would refuse every store in the world."""
    digest = hashlib.sha256(b"".join(np.asarray(image).tobytes() for image in canary_images())).hexdigest()
    assert digest[:16] == "de87502543befc78"
    assert hashlib.sha256("\n".join(CANARY_TEXTS).encode()).hexdigest()[:16] == "4ffb7e4ed288d174"
    image, text = tower_records(load_encoder("toy"), dtype="float16")
    assert image.canaries.shape == (3, 64)
    assert text.canaries.shape == (3, 48)
    cosines = image.canaries @ image.canaries.T
    assert (cosines[~np.eye(3, dtype=bool)] < 0.99).all()  # three images that an encoder tells apart


def test_an_encoder_that_answers_with_no_number_is_refused(monkeypatch):
    nothing = Embeddings(np.full((3, 1, 64), np.nan, np.float32), np.ones((3, 1), bool))
    monkeypatch.setattr(ToyImageTower, "embed", lambda *_: nothing)
    with pytest.raises(EncoderError, match="The tower 'toy-image' returns non-finite values for its canaries"):
        tower_records(load_encoder("toy"), dtype="float16")


def test_an_item_without_a_finite_embedding_is_a_reject(tmp_path, images, pairs, monkeypatch):
    honest = ToyImageTower.embed
    victims = [load_encoder("toy").image.prepare(read_image(images / f"{n}.png")).tobytes() for n in (1, 2, 4)]

    def embed(self, prepared):
        found = honest(self, prepared)
        for row, pixels in enumerate(prepared):
            if pixels.tobytes() in victims:
                found.values[row] = [np.nan, 0, 1e6][victims.index(pixels.tobytes())]  # 1e6 overflows in float16
        return found

    monkeypatch.setattr(ToyImageTower, "embed", embed)
    report = extract(tmp_path / "s", images=images, pairs=[pairs], encoder=["toy"])
    assert report.images == 4
    reason = "its embedding by the tower 'toy-image' is zero or not finite"
    assert [(r.kind, r.id, r.reason) for r in report.rejects] == [("image", f"{n}.png", reason) for n in (1, 2, 4)]
    assert sorted(Store.open(tmp_path / "s").image_ids) == ["0.png", "3.png", "5.png", "6.png"]
    monkeypatch.undo()
    assert extract(tmp_path / "s", images=images, encoder=["toy"]).images == 3
    assert Store.open(tmp_path / "s").rejects() == []


def test_rejects_come_once_and_leave_when_repaired(tmp_path, images, draw):
    broken = {"3.png": b"", "x.jpg": b"no picture", "y/z.png": (images / "0.png").read_bytes()[:-30]}
    (images / "y").mkdir()
    for name, raw in broken.items():
        (images / name).write_bytes(raw)
    for _ in range(2):
        report = extract(tmp_path / "s", images=images, encoder=["toy"], commit_rows=2)
        assert sorted(reject.id for reject in report.rejects) == sorted(broken)
    rejects = Store.open(tmp_path / "s").rejects()
    assert sorted((reject.id, reject.reason) for reject in rejects) == [
        ("3.png", "it is empty (0 bytes)"),
        ("x.jpg", "it is not an image in a format that Pillow can read"),
        ("y/z.png", "it is damaged or cut short (OSError: image file is truncated)"),
    ]
    draw(images, [3])
    extract(tmp_path / "s", images=images, encoder=["toy"])
    assert sorted(reject.id for reject in Store.open(tmp_path / "s").rejects()) == ["x.jpg", "y/z.png"]
    assert len(Store.open(tmp_path / "s").image_ids) == 7


def test_an_image_that_breaks_later_keeps_its_row_and_is_reported(tmp_path, images):
    extract(tmp_path / "s", images=images, encoder=["toy"])
    before = content(tmp_path / "s")
    (images / "3.png").write_bytes(b"")
    report = extract(tmp_path / "s", images=images, encoder=["toy"])
    assert [reject.reason for reject in report.rejects] == [
        "it is empty (0 bytes); the store keeps the embedding of its former content"
    ]
    assert content(tmp_path / "s") == before


def test_every_pair_without_image_is_a_reject_until_it_has_one(tmp_path, images, pairs, draw):
    with pairs.open("a") as lines:
        lines.write('{"image": "8.png", "text": "a"}\n{"image": "8.png", "text": "b"}\n{"text": "c"}\n')
    report = extract(tmp_path / "s", images=images, pairs=[pairs], encoder=["toy"])
    assert sorted((reject.id, reject.reason) for reject in report.rejects) == [
        (f"{pairs}:10", "field 'image': expected a string, found nothing"),
        (f"{pairs}:8", "field 'image': there is no image '8.png' in the folder or the store"),
        (f"{pairs}:9", "field 'image': there is no image '8.png' in the folder or the store"),
    ]
    assert len(report.sentence().split("Left out: 3 pairs (")) == 2
    assert sorted(Store.open(tmp_path / "s").rejects(), key=str) == sorted(report.rejects, key=str)
    # From another folder, without the first: what is in the store already is no reject.
    other = draw(tmp_path / "other", [8])
    report = extract(tmp_path / "s", images=other, pairs=[pairs], encoder=["toy"])
    assert [reject.id for reject in report.rejects] == [f"{pairs}:10"]
    assert [reject.id for reject in Store.open(tmp_path / "s").rejects()] == [f"{pairs}:10"]


def test_texts_alone_need_no_images(tmp_path, pairs):
    report = extract(tmp_path / "s", pairs=[pairs, str(pairs)], encoder=["toy"])
    assert (report.images, report.texts, report.rejects) == (0, 5, [])
    assert extract(tmp_path / "s", pairs=[pairs], encoder=["toy"]).texts_kept == 5


def test_long_texts_are_counted(tmp_path):
    file = tmp_path / "long.jsonl"
    rows = [{"image": "a", "text": f"{n} " + "word " * n} for n in (3, 255, 256, 300)]
    file.write_text("\n".join(map(json.dumps, rows)))
    report = extract(tmp_path / "s", pairs=[file], encoder=["toy"])
    assert "2 texts are longer than the encoder can read and were truncated." in report.sentence()
