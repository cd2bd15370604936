"""Other kinds of transformers models: convolutional ones, and ones that frevl cannot handle."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from frevl.encoders.registry import load_encoder
from frevl.errors import EncoderError
from pretrained import save_processor


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A convolutional network with its own processor: saved by the library, random weights."""
    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(11)
    sizes = {"embedding_size": 5, "hidden_sizes": [7, 13], "depths": [1, 1], "layer_type": "basic"}
    transformers.utils.logging.disable_progress_bar()
    transformers.ResNetModel(transformers.ResNetConfig(**sizes)).eval().save_pretrained(folder)
    save_processor(folder, image_processor_type="ViTImageProcessor", size={"height": 32, "width": 48})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", ["#torch", ""])
def test_a_convolutional_network_gives_its_own_pooling(resnet, way, tmp_path, monkeypatch):
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path))
    pixels = np.random.default_rng(3).integers(0, 256, (2, 41, 29, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one) for one in pixels]
    processor = transformers.AutoImageProcessor.from_pretrained(resnet, backend="pil")
    model = transformers.ResNetModel.from_pretrained(resnet).eval()
    with torch.no_grad():
        expected = model(**processor(pictures, return_tensors="pt")).pooler_output.numpy().reshape(2, 13)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = load_encoder(f"hf:{resnet}{way}").embed_images(pictures)
    assert found.shape == (2, 13)
    assert np.abs(found - expected).max() < 1e-5


def test_tokens_of_a_convolutional_network_are_refused(resnet):
    with pytest.raises(
        EncoderError, match="expected one token per patch, which convolutional and window networks do not"
    ):
        load_encoder(f"hf:{resnet}#torch", tokens="2x2")


def test_a_joint_model_that_frevl_cannot_take_apart_is_named_at_once(pretrained, tmp_path):
    folder = Path(shutil.copytree(pretrained / "clip", tmp_path / "blip"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "blip"}))
    with pytest.raises(EncoderError, match="is of the type 'blip', which frevl cannot take apart; expected a model of"):
        load_encoder(f"hf:{folder}")


def test_a_prompt_that_is_not_pooled_is_refused_not_pooled_in_silence(pretrained, tmp_path):
    folder = Path(shutil.copytree(pretrained / "bert", tmp_path / "bert"))
    kinds = ["Transformer", "Pooling"]
    modules = [{"path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    load_encoder(f"hf:{folder}#torch")  # without a prompt there is nothing to leave out
    prompt = {"prompts": {"query": "find: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompt))
    with pytest.raises(EncoderError, match="leaves its prompt out of the pooling"):
        load_encoder(f"hf:{folder}#torch")
