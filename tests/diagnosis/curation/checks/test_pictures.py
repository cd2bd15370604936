"""``frevl curate --drop image``: images that show nothing, against independently written measures."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageStat

import frevl
from frevl.diagnosis.curation.checks.pictures import look_at
from frevl.diagnosis.curation.checks.sharpness import FEWEST, blurred, sharpness
from frevl.store.writer import Item, StoreWriter
from handmade import tower
from planted import hash_of, pooled, vectors

SIZE = (150, 120)


def picture(seed, size=SIZE):
    """A scene with detail at every scale: edges of boxes, and noise, of an amount of its own."""
    random = np.random.default_rng(seed)
    values = np.full((size[1], size[0], 3), random.integers(60, 200, 3), np.float32)
    for _ in range(25):
        x, y = random.integers(0, size[0]), random.integers(0, size[1])
        values[y : y + random.integers(3, 60), x : x + random.integers(3, 60)] = random.integers(0, 256, 3)
    values += random.uniform(1, 6) * random.standard_normal(values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


FAULTS = {
    "below 64 pixels": lambda image: image.resize((80, 63)),
    "flat": lambda image: Image.new("RGB", image.size, (200, 30, 90)),
    "strip": lambda image: image.resize((400, 100)),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
}


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    folder = tmp_path_factory.mktemp("album")
    images = folder / "images"
    images.mkdir()
    for seed in range(70):
        picture(seed).save(images / f"{seed}.png")
    for number, (kind, fault) in enumerate(FAULTS.items()):
        for seed in (2 * number, 2 * number + 1):
            fault(picture(100 + seed)).save(images / f"{kind} {seed}.png")
    picture(99).filter(ImageFilter.GaussianBlur(9)).save(images / "blurred 99.png")
    rows = [{"image": path.name, "text": f"of {path.stem}"} for path in sorted(images.iterdir())]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    frevl.extract(folder / "store", images=images, pairs=[folder / "pairs.jsonl"], encoder=["toy"])
    return folder


@pytest.fixture(scope="module")
def found(album):
    return frevl.curate(album / "store", album / "pairs.jsonl", drop=["image"], images=album / "images")


@pytest.mark.slow
def test_every_fault_is_named_and_no_other_picture(found):
    for line in found.lines:
        fault = line["image"].rsplit(" ", 1)[0] if " " in line["image"] else None
        assert line["curate"]["image"] == ([fault] if fault else []), line["image"]
        assert line["curate"]["kept"] == (fault is None)
    assert found.filters["image"]["reasons"] == {"below 64 pixels": 2, "blurred": 3, "flat": 2, "strip": 2}


def test_an_independent_measure_of_blur_agrees(album, found):
    """Pillow's own edge filter: what is called blurred has the weakest edges."""
    edges = {}
    for line in found.lines:
        if line["curate"]["image"] in ([], ["blurred"]):
            grey = Image.open(album / "images" / line["image"]).convert("L")
            inner = grey.filter(ImageFilter.FIND_EDGES).crop((1, 1, grey.width - 1, grey.height - 1))
            edges[line["image"]] = ImageStat.Stat(inner).stddev[0]
    weakest = sorted(edges, key=edges.__getitem__)[:3]
    assert all(name.startswith("blurred") for name in weakest)


def test_sharpness_does_not_go_by_contrast_or_by_how_much_is_sky():
    values = np.asarray(picture(1).convert("L"), np.float32)
    half = np.vstack([np.full_like(values, 128)[:60], values[:60]])
    soft = np.asarray(picture(1).convert("L").filter(ImageFilter.GaussianBlur(2)), np.float32)
    sharp, *others = (np.array(sharpness(one)) for one in (values, 128 + (values - 128) / 2, half, soft))
    assert np.abs(others[0] - sharp).max() < 0.1
    assert np.abs(others[1] - sharp).max() < 0.6
    assert (sharp - others[2]).min() > 1.5


def test_ordinary_sets_have_hardly_a_blurred_picture_and_small_ones_none():
    random = np.random.default_rng(0)
    shares = [blurred(random.standard_normal((997, 2)) * (0.5, 2) + 3).mean() for _ in range(20)]
    assert np.mean(shares) < 0.005
    few = np.zeros((FEWEST - 1, 2))
    few[0] = -100
    assert not blurred(few).any()
    assert blurred(np.vstack([few, few[:2]])).tolist() == [True, *[False] * (FEWEST - 2), True, False]


def test_without_a_folder_the_pictures_are_not_looked_at_and_that_is_said(album):
    found = frevl.curate(album / "store", album / "pairs.jsonl", drop=["image"])
    assert found.kept == len(found.lines)
    assert all(line["curate"]["image"] is None for line in found.lines)
    assert "Images were not checked: give --images DIR." in found.sentence()


def test_sizes_that_an_import_brought_are_looked_at_without_a_folder(tmp_path):
    import lance
    import pyarrow as pa

    names = [f"{n}.png" for n in range(5)]
    with StoreWriter(tmp_path / "store") as writer:
        writer.register([tower("eye", dim=5), tower("ear", modality="text", dim=3)])
        writer.append("image", [Item(name, f"{hash_of(name):032x}", 5, 7) for name in names],
                      {"eye": pooled(list(vectors(5, 0, dim=5)[0]))})  # fmt: skip
        writer.append("text", [Item("a thing", f"{7:032x}", 5, 7)], {"ear": pooled(list(vectors(1, 0, dim=3)[0]))})
    sizes = pa.table({"id": names, "width": [640, 63, 900, None, 0], "height": [480, 900, 200, 100, 10]})
    lance.dataset(str(tmp_path / "store" / "images.lance")).merge(sizes, "id")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"image": name, "text": "a thing"}) + "\n" for name in names))
    found = frevl.curate(tmp_path / "store", pairs, drop=["image"])
    reasons = [line["curate"]["image"] for line in found.lines]
    assert reasons == [[], ["below 64 pixels", "strip"], ["strip"], None, None]
    assert "Only the image sizes in the store" in found.sentence()


@pytest.mark.parametrize("name", ["../outside.png", "none.png", "text.png", "/etc/hostname"])
def test_what_is_no_picture_of_the_folder_is_not_looked_at(tmp_path, name):
    (tmp_path / "images").mkdir()
    picture(0).save(tmp_path / "outside.png")
    (tmp_path / "images" / "text.png").write_text("no picture")
    assert look_at(tmp_path / "images", name) is None


def test_pictures_of_one_pixel_and_of_one_row_are_looked_at(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    picture(0, (3000, 2)).save(tmp_path / "row.png")
    assert (look_at(tmp_path, "one.png").flat, look_at(tmp_path, "one.png").sharpness) == (True, None)
    assert (look_at(tmp_path, "row.png").width, look_at(tmp_path, "row.png").sharpness) == (3000, None)
