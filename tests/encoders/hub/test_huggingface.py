"""Encoders of the transformers library give the same embeddings as that library's own calls."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from frevl.encoders.hub.huggingface import parse
from frevl.encoders.registry import load_encoder
from frevl.errors import EncoderError, ImageError, UsageError
from pretrained import PIECES

JOINT = ["clip", "siglip", "siglip2", "chinese_clip"]
TEXTS = [
    "a dog on a beach",
    "",
    "   ",
    "WHERE is the Bus?",
    "word " * 500,
    "a 🐕‍🦺 at the café",
    "Zwölf Boxkämpfer",
    "猫は窓の上で眠っています。",
    "собака бежит",
    "broken \ud83d half",
]


def noise(number, size, mode="RGB"):
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


PICTURES = [
    noise(0, (61, 47)),
    noise(1, (1, 1)),
    noise(2, (3, 90)),  # three columns look like three channels
    noise(3, (700, 9)),
    noise(4, (40, 40), "L"),
    Image.new("RGB", (50, 50), "white"),
]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def own(pretrained):
    """The library's own model, image processor output and tokenizer output, for the odd images and texts."""

    def call(name, tokens=False, **options):
        folder = pretrained / name
        model = transformers.AutoModel.from_pretrained(folder).eval()
        found = {}
        with torch.no_grad():
            if (folder / "preprocessor_config.json").exists():
                processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
                inputs = processor([picture.convert("RGB") for picture in PICTURES], return_tensors="pt")
                found["pixels"] = inputs
                image = getattr(model, "get_image_features", model)
                if tokens:
                    image = getattr(model, "vision_model", model)
                found["image"] = image(**inputs, **options)
            if (folder / "tokenizer.json").exists():
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
                clean = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in TEXTS]
                inputs = tokenizer(clean, padding="max_length", max_length=PIECES, truncation=True, return_tensors="pt")
                found["mask"] = tokenizer(
                    clean, padding="max_length", max_length=PIECES, truncation=True, return_attention_mask=True
                )["attention_mask"]
                text = getattr(model, "get_text_features", model)
                if tokens:
                    text = getattr(model, "text_model", model)
                found["text"] = text(**inputs, **options)
        return found

    return call


@pytest.mark.slow
@pytest.mark.parametrize("name", JOINT)
def test_pooled_embeddings_are_those_of_the_library(pretrained, own, name):
    expected, encoder = own(name), load_encoder(f"hf:{pretrained / name}#torch")
    images, texts = encoder.embed_images(PICTURES), encoder.embed_texts(TEXTS)
    assert np.abs(images - unit(expected["image"].pooler_output.numpy())).max() < 1e-5
    assert np.abs(texts - unit(expected["text"].pooler_output.numpy())).max() < 1e-5
    assert images.shape == (6, encoder.image.dim)
    # Small networks with random weights still have to tell the images apart, or nothing would be tested.
    assert (images[0] @ images[5]) < 0.99
    assert (texts[0] @ texts[3]) < 0.999


@pytest.mark.slow
def test_dinov2_gives_its_class_token_and_has_no_text_tower(pretrained, own):
    expected, encoder = own("dinov2"), load_encoder(f"hf:{pretrained / 'dinov2'}#torch")
    assert encoder.text is None
    last = expected["image"].last_hidden_state.numpy()
    assert np.abs(encoder.embed_images(PICTURES) - unit(last[:, 0])).max() < 1e-5
    with pytest.raises(UsageError, match="has no text tower"):
        encoder.embed_texts(["a"])


def test_bert_gives_the_mean_of_its_tokens(pretrained, own):
    expected, encoder = own("bert"), load_encoder(f"hf:{pretrained / 'bert'}#torch")
    assert encoder.image is None
    last, mask = expected["text"].last_hidden_state.numpy(), np.array(expected["mask"])[..., None]
    means = (last * mask).sum(axis=1) / mask.sum(axis=1)
    assert np.abs(encoder.embed_texts(TEXTS) - unit(means)).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2", "dinov2", "bert"])
def test_tokens_are_the_last_hidden_state(pretrained, own, name):
    expected, encoder = own(name, tokens=True), load_encoder(f"hf:{pretrained / name}#torch", tokens="4x4")
    if encoder.image:
        found = encoder.embed_images(PICTURES, tokens=True)
        assert found.values.shape == (6, 16, 24)
        for i, state in enumerate(expected["image"].last_hidden_state):
            rows, columns = (5, 5)
            patches = state[-25:]
            if name == "siglip2":
                rows, columns = expected["pixels"]["spatial_shapes"][i].tolist()
                patches = state[: rows * columns]
            grid = patches.T.reshape(1, 24, rows, columns)
            cells = torch.nn.functional.adaptive_avg_pool2d(grid, 4)[0].flatten(1).T.numpy()
            assert np.abs(found.values[i] - cells / np.linalg.norm(patches.numpy().mean(0))).max() < 1e-5
    if encoder.text:
        found = encoder.embed_texts(TEXTS, tokens=True)
        for i, state in enumerate(expected["text"].last_hidden_state.numpy()):
            words = state[np.array(expected["mask"][i], bool)]
            assert found.items[i].shape == words.shape
            assert np.abs(found.items[i] - words / np.linalg.norm(words.mean(0))).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2", "dinov2", "bert"])
def test_chosen_layers_stand_side_by_side(pretrained, own, name):
    states = own(name, tokens=True, output_hidden_states=True)
    encoder = load_encoder(f"hf:{pretrained / name}#torch#layers=-1,-2")
    if encoder.image:
        found = encoder.embed_images(PICTURES)
        assert found.shape == (6, 48)
        for part, layer in zip(np.split(found, 2, axis=1), (-1, -2), strict=True):
            for i, state in enumerate(states["image"].hidden_states[layer].numpy()):
                count = 25
                if name == "siglip2":
                    count = int(states["pixels"]["spatial_shapes"][i].prod())
                patches = state[:count] if name == "siglip2" else state[-25:]
                assert np.abs(part[i] * np.sqrt(2) - unit(patches.mean(axis=0))).max() < 1e-5
    if encoder.text:
        found = encoder.embed_texts(TEXTS)
        for part, layer in zip(np.split(found, 2, axis=1), (-1, -2), strict=True):
            for i, state in enumerate(states["text"].hidden_states[layer].numpy()):
                words = state[np.array(states["mask"][i], bool)]
                assert np.abs(part[i] * np.sqrt(2) - unit(words.mean(axis=0))).max() < 1e-5


def test_layers_of_tokens(pretrained):
    encoder = load_encoder(f"hf:{pretrained / 'clip'}#torch#layers=0,1,-1", tokens="2x2")
    assert encoder.embed_images(PICTURES, tokens=True).values.shape == (6, 4, 72)
    assert encoder.embed_texts(TEXTS[:1], tokens=True).values.shape[2] == 48
    assert np.allclose(np.linalg.norm(encoder.embed_texts(TEXTS), axis=1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip2"])
def test_an_embedding_does_not_depend_on_its_batch(pretrained, name):
    encoder = load_encoder(f"hf:{pretrained / name}#torch")
    pictures = [noise(number, (37 + number, 53)) for number in range(37)]
    at_once = encoder.embed_images(pictures)
    assert np.abs(encoder.embed_images(pictures[::-1])[::-1] - at_once).max() < 1e-5
    assert np.abs(encoder.embed_images(pictures[36:]) - at_once[36:]).max() < 1e-5
    texts = [text * (1 + i % 3) for i, text in enumerate(TEXTS * 4)]
    at_once = encoder.embed_texts(texts)
    assert np.abs(np.concatenate([encoder.embed_texts([text]) for text in texts]) - at_once).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2", "chinese_clip", "dinov2"])
def test_pictures_go_through_the_models_own_processor(pretrained, own, name):
    tower = load_encoder(f"hf:{pretrained / name}#torch").image
    expected = own(name)["pixels"]
    for i, picture in enumerate(PICTURES):
        found = tower.prepare(picture.convert("RGB"))
        if name == "siglip2":
            assert found[-1, :2].tolist() == expected["spatial_shapes"][i].tolist()
            found = found[:-1]
        assert np.array_equal(found, expected["pixel_values"][i].numpy())


@pytest.mark.slow
def test_large_jpegs_are_not_reduced_on_the_way(pretrained, tmp_path):
    noise(9, (2000, 1500)).resize((1000, 750)).resize((2000, 1500)).save(tmp_path / "large.jpg", quality=90)
    encoder = load_encoder(f"hf:{pretrained / 'clip'}#torch")
    decoded = Image.open(tmp_path / "large.jpg").convert("RGB")
    expected = encoder.image.embed([encoder.image.prepare(decoded)]).values[:, 0]
    assert np.array_equal(encoder.embed_images([tmp_path / "large.jpg"]), expected)


def test_a_picture_like_a_thread_is_refused_before_it_fills_the_memory(pretrained):
    encoder = load_encoder(f"hf:{pretrained / 'clip'}#torch")
    with pytest.raises(ImageError, match="too long and narrow: at 40 pixels"):
        encoder.embed_images([Image.new("RGB", (70_000, 1))])


@pytest.mark.slow
def test_vision_of_one_model_and_text_of_another(pretrained):
    name = f"hf:{pretrained / 'dinov2'}+{pretrained / 'clip'}#torch"
    pair, clip = load_encoder(name), load_encoder(f"hf:{pretrained / 'clip'}#torch")
    assert (pair.image.name, pair.text.name) == ("dinov2-image", "clip-text")
    assert pair.text.identity == clip.text.identity
    assert np.array_equal(pair.embed_texts(TEXTS), clip.embed_texts(TEXTS))
    with pytest.raises(EncoderError, match="'.*dinov2' has no text tower; expected hf:VISION.TEXT, in this order"):
        load_encoder(f"hf:{pretrained / 'clip'}+{pretrained / 'dinov2'}#torch")
    with pytest.raises(EncoderError, match="'.*bert' has no image tower"):
        load_encoder(f"hf:{pretrained / 'bert'}+{pretrained / 'clip'}#torch")


@pytest.mark.slow
def test_joint_models_name_their_common_space_and_scale(pretrained):
    clip, siglip = (load_encoder(f"hf:{pretrained / name}#torch") for name in ("clip", "siglip"))
    parameters = {name: transformers.AutoModel.from_pretrained(pretrained / name) for name in ("clip", "siglip")}
    assert clip.image.identity["common_space"] == clip.text.identity["common_space"] == clip.image.identity["weights"]
    assert float(clip.image.identity["logit_scale"]) == pytest.approx(parameters["clip"].logit_scale.exp().item())
    assert "logit_bias" not in clip.image.identity
    assert float(siglip.image.identity["logit_scale"]) == pytest.approx(parameters["siglip"].logit_scale.exp().item())
    assert float(siglip.image.identity["logit_bias"]) == pytest.approx(parameters["siglip"].logit_bias.item())
    assert siglip.image.identity["common_space"] != clip.image.identity["common_space"]
    for other in (
        load_encoder(f"hf:{pretrained / 'clip'}#torch#layers=-1"),
        load_encoder(f"hf:{pretrained / 'clip'}#torch", tokens="2x2"),
        load_encoder(f"hf:{pretrained / 'dinov2'}#torch"),
    ):
        assert "common_space" not in other.image.identity


@pytest.mark.slow
def test_siglip_reads_all_of_its_padding_unless_its_tokenizer_gives_a_mask(tmp_path, pretrained):
    from pretrained import save_siglip

    masked = load_encoder(f"hf:{save_siglip(tmp_path / 'masked', masks=True)}#torch")
    plain = load_encoder(f"hf:{pretrained / 'siglip'}#torch")
    assert "padded to 20 with a mask" in masked.text.identity["preprocessing"]
    assert "padded to 20 without a mask" in plain.text.identity["preprocessing"]
    assert np.abs(masked.embed_texts(["a dog"]) - plain.embed_texts(["a dog"])).max() > 1e-3
    assert np.array_equal(plain.text.inputs(["ab"])[0][0, :5], [2, 4, 48, 3, 0])
    assert plain.text.inputs(["ab"])[0].shape == (2, 20)


@pytest.mark.slow
def test_the_tokenizer_of_gemma_gets_lower_case_for_siglip(tmp_path, pretrained):
    shutil.copytree(pretrained / "siglip", tmp_path / "siglip")
    stored = tmp_path / "siglip" / "tokenizer_config.json"
    content = (tmp_path / "siglip" / "tokenizer.json").read_text()
    assert '"type": "Lowercase"' in content
    (tmp_path / "siglip" / "tokenizer.json").write_text(
        json.dumps({**json.loads(content), "normalizer": None})  # as Gemma's, which keeps capitals
    )
    capitals = load_encoder(f"hf:{tmp_path / 'siglip'}#torch")
    assert np.abs(capitals.embed_texts(["A Dog"]) - capitals.embed_texts(["a dog"])).max() > 1e-3
    stored.write_text(json.dumps({**json.loads(stored.read_text()), "tokenizer_class": "GemmaTokenizerFast"}))
    try:
        lower = load_encoder(f"hf:{tmp_path / 'siglip'}#torch")
    except EncoderError:
        pytest.fail("the tokenizer's class decided how its file is read")
    assert "lower case" in lower.text.identity["preprocessing"]
    assert np.array_equal(lower.embed_texts(["A Dog"]), lower.embed_texts(["a dog"]))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
def test_sentence_transformers_pool_as_they_say(pretrained, tmp_path, mode):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    shutil.copytree(pretrained / "bert", tmp_path / "bert")
    words = Transformer(str(tmp_path / "bert"), max_seq_length=11)
    reference = SentenceTransformer(modules=[words, Pooling(16, mode)], device="cpu")
    reference.save(str(tmp_path / "sentences"))
    encoder = load_encoder(f"hf:{tmp_path / 'sentences'}#torch")
    expected = reference.encode(TEXTS[:-1], normalize_embeddings=True, show_progress_bar=False)
    assert np.abs(encoder.embed_texts(TEXTS[:-1]) - expected).max() < 1e-5
    assert encoder.text.truncated(["a" * 9, "a" * 10, "", "b " * 500]) == 2


def test_long_texts_are_counted(pretrained):
    text = load_encoder(f"hf:{pretrained / 'clip'}#torch").text
    assert text.truncated(["a" * 18, "a" * 19, "", "b " * 500]) == 2
    assert text.truncated([]) == 0
    assert text.embed([]).values.shape == (0, 1, 12)


@pytest.mark.parametrize(
    ("name", "models", "choice", "layers"),
    [
        ("openai/clip-vit-base-patch32", (("openai/clip-vit-base-patch32", None),), "auto", ()),
        ("a/b@v1.0#int8", (("a/b", "v1.0"),), "int8", ()),
        ("a/b@main+c@0123#torch#layers=-1,-4", (("a/b", "main"), ("c", "0123")), "torch", (-1, -4)),
    ],
)
def test_names(name, models, choice, layers):
    request = parse(name)
    assert (request.models, request.choice, request.layers) == (models, choice, layers)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "expected hf:MODEL or hf:VISION.TEXT"),
        ("a+b+c", "expected hf:MODEL or hf:VISION.TEXT"),
        ("a@", "expected MODEL@REVISION"),
        ("a#int4", "no option '#int4' here. Did you mean 'int8'?"),
        ("a#int8#torch", "no option '#torch' here"),
        ("a#layers=-1;2", "integers separated by commas, such as -1,-4; found '-1;2'"),
        ("a#layers=2,2", "a layer occurs twice"),
        ("a#layers=2#layers=1", "no option '#layers=1' here"),
        ("no/such/folder", "expected a folder with a model, or a model id on the hub, found neither"),
    ],
)
def test_wrong_names(name, message):
    with pytest.raises(UsageError, match=message):
        load_encoder(f"hf:{name}")


def test_what_a_network_does_not_have_is_wrong_use(pretrained):
    with pytest.raises(UsageError, match="has 3 layers, so its hidden states are 0 .* to 3, or -1 to -4 .* found 4"):
        load_encoder(f"hf:{pretrained / 'dinov2'}#torch#layers=4")
    with pytest.raises(UsageError, match="has a grid of 5x5 patches, which is coarser than 7x7; .* at most 5x5"):
        load_encoder(f"hf:{pretrained / 'clip'}#torch", tokens="7x7")
    with pytest.raises(UsageError, match="images of any side lengths and cannot be exported; leave '#int8' out"):
        load_encoder(f"hf:{pretrained / 'siglip2'}#int8")
    with pytest.raises(UsageError, match="A model on a hub is written 'hf:openai/clip'"):
        load_encoder("openai/clip")
