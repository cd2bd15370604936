"""A hub model from images to scores, its ONNX version, and how its runtime is chosen."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_huggingface import PICTURES

import frevl as package
from frevl.encoders import onnx_session as exported
from frevl.encoders import runtime
from frevl.encoders.onnx_session import Source, exported_path
from frevl.encoders.registry import KNOWN, load_encoder, with_layers
from frevl.encoders.runtime import BatchSizes, Network, open_in_torch, open_runtime
from frevl.errors import EncoderError, UsageError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FREVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoders"


@pytest.mark.slow
def test_extract_train_score(pretrained, made, frevl, tmp_path):
    name, store = f"hf:{pretrained / 'clip'}#torch", tmp_path / "store"
    said = frevl("extract", "--images", made.images, "--pairs", made.train_file, "--pairs", made.test_file, "--store",
                 store, "--encoder", name, "--quiet")  # fmt: skip
    assert (said.code, said.err) == (0, "")
    assert frevl("train", "--store", store, "--pairs", made.train_file, "--task", "classification", "--model", "linear",
                 "--run", tmp_path / "run").code == 0  # fmt: skip
    said = frevl("score", "--store", store, "--run", tmp_path / "run", "--pairs", made.test_file, "--out",
                 tmp_path / "scores.jsonl")  # fmt: skip
    assert said.code == 0
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows} <= {"yes", "no"}
    scorer = package.Scorer.open(tmp_path / "run", store=store)
    unseen = scorer.predict([(row["image"], row["text"]) for row in rows[:3]])
    assert [one.label for one in unseen] == [row["label"] for row in rows[:3]]
    # A text that the store lacks goes through the encoder on the way.
    assert scorer.predict([(rows[0]["image"], "is the square purple?")])[0].label in ("yes", "no")


@pytest.mark.slow
def test_cosine_of_a_joint_model_needs_no_training(pretrained, made, tmp_path):
    name, store = f"hf:{pretrained / 'siglip'}#torch", tmp_path / "store"
    package.extract(store, images=made.images, pairs=[made.captions_file], encoder=[name], dtype="float32")
    package.train(store, made.captions_file, run=tmp_path / "run", task="matching", model="cosine")
    scorer = package.Scorer.open(tmp_path / "run", store=store)
    pairs = [("0.png", "a red square"), ("7.png", "the blue thing")]
    encoder = package.load_encoder(name)
    cosines = (
        encoder.embed_images([made.images / image for image, _ in pairs]) * encoder.embed_texts([t for _, t in pairs])
    ).sum(axis=1)
    scale, bias = (float(encoder.image.identity[field]) for field in ("logit_scale", "logit_bias"))
    assert np.allclose(scorer.score(pairs), scale * cosines + bias, atol=1e-5)


@pytest.mark.slow
def test_layers_of_the_command_line_become_part_of_the_name(pretrained, made, frevl, tmp_path):
    name = f"hf:{pretrained / 'clip'}#torch"
    said = frevl("extract", "--images", made.images, "--store", tmp_path / "s", "--encoder", name, "--layers", "-1,-3",
                 "--quiet")  # fmt: skip
    assert said.code == 0
    tower = package.Store.open(tmp_path / "s").towers["clip-image_-1_-3"]
    assert (tower.encoders, tower.dim) == ((f"{name}#layers=-1,-3",), 48)
    assert tower.identity["output"].startswith("patch tokens of the hidden states -1, -3")
    said = frevl("extract", "--images", made.images, "--store", tmp_path / "s", "--encoder", name, "--layers", "last")
    assert (said.code, said.err) == (
        2,
        "frevl: --layers takes comma-separated whole numbers, such as -1,-4; found 'last'\n",
    )
    with pytest.raises(UsageError, match="--layers works with encoders from a model hub"):
        with_layers("toy", [-1])
    assert with_layers("toy", []) == "toy"


def test_the_list_of_encoders(frevl, tmp_path):
    said = frevl("encoders", "list", "--json", tmp_path / "list.json")
    assert said.code == 0
    assert "hf:openai/clip-vit-base-patch32" in said.out
    listed = json.loads((tmp_path / "list.json").read_text())["encoders"]
    assert len(listed) == len(KNOWN) == len({one["name"] for one in listed})
    clip = next(one for one in listed if one["name"] == "hf:openai/clip-vit-base-patch32")
    assert (clip["image_dim"], clip["text_dim"], clip["millions"], clip["common_space"]) == (512, 512, 151, True)
    toy = load_encoder("toy")
    listed_toy = next(one for one in listed if one["name"] == "toy")
    assert (toy.image.dim, toy.text.dim) == (listed_toy["image_dim"], listed_toy["text_dim"])


@pytest.mark.slow
def test_the_exported_network_says_the_same_and_int8_nearly(pretrained, cache, monkeypatch):
    name = f"hf:{pretrained / 'dinov2'}"
    with monkeypatch.context() as patch:
        patch.setattr(exported, "INT8_PARITY", 0.9999999)
        with pytest.raises(
            EncoderError, match=r"'dinov2-image' gives other embeddings: cosine 0\.9.* Leave '#int8' out"
        ):
            load_encoder(f"{name}#int8")
    assert not list(cache.glob("*int8*"))
    plain, fast, int8 = (load_encoder(f"{name}{options}") for options in ("#torch", "", "#int8"))
    assert [one.image.network.name for one in (plain, fast, int8)] == [
        "PyTorch on cpu",
        "ONNX Runtime",
        "ONNX Runtime, int8",
    ]
    expected = plain.embed_images(PICTURES)
    assert np.abs(fast.embed_images(PICTURES) - expected).max() < 1e-5
    rounded = int8.embed_images(PICTURES)
    assert (rounded * expected).sum(axis=1).min() > 0.99
    assert np.abs(rounded - expected).max() > 1e-5
    # One scale per item: rounding does not depend on the neighbours.
    assert np.array_equal(int8.embed_images(PICTURES[2:3]), rounded[2:3])
    assert fast.image.identity == plain.image.identity  # how it runs is not part of what an embedding is
    assert int8.image.name == "dinov2-image-int8"
    assert int8.image.identity["precision"] == "int8 weights"
    files = sorted(path.name for path in cache.glob("*.onnx"))
    assert [name.rpartition("-")[2] for name in files] == ["int8.onnx", "2.onnx"]
    stamps = [path.stat().st_mtime_ns for path in sorted(cache.glob("*.onnx"))]
    load_encoder(f"{name}#int8")
    assert [path.stat().st_mtime_ns for path in sorted(cache.glob("*.onnx"))] == stamps


def test_an_export_that_fails_is_said_and_pytorch_goes_on(pretrained, cache, caplog, monkeypatch):
    def fail(*arguments):
        raise ValueError("no such operator")

    monkeypatch.setattr(runtime, "open_network", fail)
    with caplog.at_level(logging.WARNING, logger="frevl"):
        encoder = load_encoder(f"hf:{pretrained / 'bert'}")
    assert encoder.text.network.name == "PyTorch on cpu"
    assert caplog.messages == [
        "frevl: 'bert-text' runs in PyTorch, slower, because its export to ONNX failed: no such operator"
    ]


def test_a_network_that_cannot_be_loaded_is_no_failed_export(pretrained, cache, tmp_path, caplog):
    folder = Path(shutil.copytree(pretrained / "bert", tmp_path / "bert"))
    (folder / "model.safetensors").write_bytes(b"\0" * 99)
    with pytest.raises(EncoderError, match="the weights cannot be loaded"):
        load_encoder(f"hf:{folder}")
    assert caplog.messages == []


def test_the_size_of_a_run_is_the_fastest_one_tried():
    sizes = BatchSizes((1, 4, 16))
    seconds = {1: [9.0, 3.0], 4: [5.0, 2.0], 16: [2.5, 2.5]}
    tried = []
    for _ in range(6):
        size = sizes.next()
        tried.append(size)
        sizes.took(size, seconds[size][tried.count(size) - 1])
    assert tried == [1, 1, 4, 4, 16, 16]
    assert sizes.next() == 4
    sizes.took(1, 0.001)  # late news change nothing
    assert sizes.next() == 4


def test_every_copy_gets_its_share_in_order():
    seen = []

    def copy(number):
        def embed(batch):
            seen.append((number, len(batch)))
            return batch * 10

        return embed

    network = Network([copy(0), copy(1), copy(2)], BatchSizes((2,)), "three devices")
    outputs = network([np.array([float(i)]) for i in range(11)])
    assert [float(output[0]) for output in outputs] == [10.0 * i for i in range(11)]
    assert sorted(seen) == [(0, 2), (0, 2), (1, 2), (1, 2), (2, 1), (2, 2)]
    assert network([]) == []


def test_several_devices_give_what_one_gives():
    import torch

    torch.manual_seed(0)
    source = Source(torch.nn.Linear(5, 3), {0: "items"}, [])
    items = [np.random.default_rng(i).normal(size=5).astype(np.float32) for i in range(37)]
    one, two = open_in_torch(source, ["cpu"])(items), open_in_torch(source, ["cpu", "cpu"])(items)
    assert np.abs(np.array(one) - np.array(two)).max() < 1e-6


def test_accelerators_are_used_where_there_are_some(monkeypatch):
    import torch

    built = []
    monkeypatch.setattr(runtime, "accelerators", lambda: ["meta"])
    network = open_runtime("x", "0" * 64, lambda: built.append(1) or Source(torch.nn.Linear(2, 2), {}, []), "auto")
    assert network.name == "PyTorch on meta"
    assert network.sizes.sizes == (16, 64, 256)
    assert built == [1]


def test_names_of_exported_files_tell_settings_apart(pretrained, cache):
    names = {exported_path("a", weights, kind).name for weights in ("0" * 64, "1" * 64) for kind in ("", "-int8")}
    assert len(names) == 4
