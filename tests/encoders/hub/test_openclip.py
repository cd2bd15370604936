"""frevl's part of open_clip support: a stand-in plays the library, which does not import with every PyTorch."""

import sys
import types
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from frevl.encoders.registry import load_encoder
from frevl.errors import EncoderError, ImageError, MissingExtraError, UsageError
from frevl.store.towers import fingerprint_of

LENGTH = 7


class Model(torch.nn.Module):
    """A joint model of two linear maps."""

    prepared: ClassVar[dict] = {"size": [4, 4], "mean": [0.5]}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.visual = torch.nn.Linear(3 * 4 * 4, 5)
        self.visual.preprocess_cfg = self.prepared
        self.words = torch.nn.EmbeddingBag(300, 5, mode="sum")
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
        self.logit_bias = torch.nn.Parameter(torch.tensor(-3.0))

    def encode_image(self, pixels):
        return self.visual(pixels.flatten(1))

    def encode_text(self, ids):
        return self.words(ids)


def transform(picture):
    return torch.from_numpy(np.array(picture.resize((4, 4)))).permute(2, 0, 1) / 255 - 0.5


class Tokenizer:
    """Letters, then zeros."""

    def __call__(self, texts, context_length=LENGTH):
        rows = [[1 + ord(letter) % 250 for letter in text][:context_length] for text in texts]
        return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])


def create(architecture, pretrained):
    print("loading", architecture)  # noqa: T201 (the library talks too)
    model = Model()
    model.load_state_dict(torch.load(pretrained, weights_only=True))
    return model, None, transform


@pytest.fixture
def library(monkeypatch):
    fake = types.ModuleType("open_clip")
    fake.list_models = lambda: ["tiny", "ViT-B-32"]
    fake.list_pretrained_tags_by_model = lambda _: ["laion2b", "openai"]
    fake.get_pretrained_cfg = lambda _, tag: {"tag": tag}
    fake.get_model_config = lambda _: {"embed_dim": 5}
    fake.create_model_and_transforms = create
    fake.get_tokenizer = lambda _: Tokenizer()
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    return fake


@pytest.fixture
def weights(tmp_path):
    torch.save(Model().state_dict(), tmp_path / "own.pt")
    return tmp_path / "own.pt"


def test_both_towers_are_those_of_the_library(library, weights, capfd):
    encoder, model = load_encoder(f"openclip:tiny/{weights}#torch"), Model()
    pictures = [Image.new("RGB", size, colour) for size, colour in [((9, 5), "red"), ((1, 1), "blue")]]
    texts = ["a dog", "", "long text", "broken \ud83d"]
    with torch.no_grad():
        images = torch.nn.functional.normalize(model.encode_image(torch.stack([transform(one) for one in pictures])))
        words = torch.nn.functional.normalize(model.encode_text(Tokenizer()(["a dog", "long text"])))
    assert np.abs(encoder.embed_images(pictures) - images.numpy()).max() < 1e-6
    assert np.abs(encoder.embed_texts(texts)[[0, 2]] - words.numpy()).max() < 1e-6
    assert encoder.text.truncated(texts) == 2
    assert encoder.text.truncated([]) == 0
    assert encoder.embed_texts([]).shape == (0, 5)
    identity = encoder.image.identity
    assert (identity["logit_scale"], identity["logit_bias"]) == ("7.389056", "-3")
    assert identity["common_space"] == encoder.text.identity["common_space"] == identity["weights"]
    assert (encoder.image.name, encoder.text.name) == ("openclip-tiny-own-image", "openclip-tiny-own-text")
    assert capfd.readouterr().out == ""


def test_a_picture_like_a_thread_is_refused_before_it_fills_the_memory(library, weights, monkeypatch):
    thread = Image.new("RGB", (70_000, 1))
    monkeypatch.setattr(Model, "prepared", {"size": 40}, raising=False)
    with pytest.raises(ImageError, match="too long and narrow: at 40 pixels on its shorter side"):
        load_encoder(f"openclip:tiny/{weights}#torch").embed_images([thread])
    monkeypatch.setattr(Model, "prepared", {"size": (40, 60), "resize_mode": "squash"}, raising=False)
    assert load_encoder(f"openclip:tiny/{weights}#torch").embed_images([thread]).shape == (1, 5)


def test_other_weights_are_another_encoder(library, weights, tmp_path):
    before = load_encoder(f"openclip:tiny/{weights}#torch").image.identity
    other = Model().state_dict()
    other["visual.weight"][0, 0] += 1
    torch.save(other, tmp_path / "own.pt")
    assert fingerprint_of(load_encoder(f"openclip:tiny/{weights}#torch").image.identity) != fingerprint_of(before)


def test_a_tag_is_fetched_by_the_library_or_said_to_be_out_of_reach(library, weights, tmp_path):
    snapshot = tmp_path / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip.pt").write_bytes(weights.read_bytes())
    library.download_pretrained = lambda _: str(snapshot / "open_clip.pt")
    library.create_model_and_transforms = lambda architecture, **_: create(architecture, weights)
    identity = load_encoder("openclip:tiny/laion2b#torch").image.identity
    assert identity["revision"] == f"laion2b ({'a' * 40})"

    def unreachable(found):
        raise OSError("Name or service not known")

    library.download_pretrained = unreachable
    with pytest.raises(EncoderError, match="are not in the cache and cannot be downloaded .* openclip:tiny/FILE$"):
        load_encoder("openclip:tiny/laion2b")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny", "expected openclip:ARCHITECTURE/TAG or openclip:ARCHITECTURE/FILE"),
        ("tiny/laion2b#layers=-1", "there is no option '#layers=-1' here"),
        ("tini/laion2b", "open_clip has no architecture 'tini'. Did you mean 'tiny'?"),
        ("tiny/laion3b", "'laion3b' is neither a file nor weights .* Did you mean 'laion2b'?"),
    ],
)
def test_wrong_names(library, name, message):
    with pytest.raises(UsageError, match=message):
        load_encoder(f"openclip:{name}")


def test_tokens_are_refused_and_damaged_weights_named(library, tmp_path):
    with pytest.raises(UsageError, match="is pooled only and cannot keep the tokens '7x7'; use hf:MODEL for tokens"):
        load_encoder("openclip:tiny/laion2b", tokens="7x7")
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    with pytest.raises(EncoderError, match="does not hold the weights of open_clip's 'tiny'"):
        load_encoder(f"openclip:tiny/{tmp_path / 'bad.pt'}")


def test_without_the_library_its_extra_is_named(monkeypatch, frevl, draw, tmp_path):
    monkeypatch.setitem(sys.modules, "open_clip", None)

    def absent(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(MissingExtraError, match=r"'open_clip' is not installed.*pip install 'frevl\[openclip\]'"):
        load_encoder("openclip:ViT-B-32/openai")


def test_a_torchvision_that_does_not_fit_is_explained(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(EncoderError, match="cannot be imported .operator torchvision::nms .* install a torchvision"):
        load_encoder("openclip:ViT-B-32/openai")
