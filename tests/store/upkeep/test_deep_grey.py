"""Grey images of more than 8 bits, which an earlier version embedded as nearly black, are found by ``verify``."""

import numpy as np
from PIL import Image

import frevl.encoders.images
from frevl.encoders.images import is_deep_grey
from frevl.store.extraction.extract import extract
from frevl.store.upkeep.verification import verify


def test_the_kind_of_grey_is_told_by_the_header(tmp_path):
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8)
    for name, values in (("deep.png", grey), ("deep.tif", grey), ("float.tif", grey.astype(np.float32))):
        Image.fromarray(values).save(tmp_path / name)
        assert is_deep_grey((tmp_path / name).read_bytes()), name
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "bytes.png")
    assert not is_deep_grey((tmp_path / "bytes.png").read_bytes())
    assert not is_deep_grey(b"no picture")


def test_embeddings_of_dark_readings_are_found(tmp_path, draw, monkeypatch):
    images = draw(tmp_path / "images", range(3))
    random = np.random.default_rng(1)
    for number in range(4):
        values = random.integers(0, 1024, (16, 16)).astype(np.uint16)  # 10 bits
        Image.fromarray(values).save(images / f"deep{number}.png")
    with monkeypatch.context() as before:
        before.setattr(frevl.encoders.images, "_black_and_white", lambda *_: (0, 65535, None))
        extract(tmp_path / "old", images=images, encoder="toy")
    extract(tmp_path / "new", images=images, encoder="toy")
    assert verify(tmp_path / "new", images=images) == []
    assert verify(tmp_path / "old") == []
    (problem,) = verify(tmp_path / "old", images=images)
    assert problem == (
        f"4 images of {images}: grey of more than 8 bits, which an earlier version of frevl read as nearly black, so "
        "that the embedding would now be different (the first is 'deep0.png'): extract into a new store."
    )
    monkeypatch.setattr("frevl.store.upkeep.image_files._LOOKED_AT", 2)
    assert verify(tmp_path / "old", images=images)[0].startswith("2 images of ")
