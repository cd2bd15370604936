"""What the fingerprint of a hub model covers, how revisions are resolved, and use without a network."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from frevl.encoders.hub.checkpoint import open_checkpoint, slug
from frevl.encoders.registry import load_encoder
from frevl.errors import EncoderError, FingerprintError, UsageError
from frevl.store.canaries import tower_records
from frevl.store.towers import check_same, different_fields, fingerprint_of

COMMIT, OLD_COMMIT = "1" * 40, "2" * 40


def records(folder, options="#torch"):
    return tower_records(load_encoder(f"hf:{folder}{options}"), dtype="float32")


@pytest.fixture
def clip(pretrained, tmp_path):
    """A copy of the small CLIP that a test may damage."""
    return Path(shutil.copytree(pretrained / "clip", tmp_path / "clip"))


def change_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"][0, 0] += 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change(folder, name, **settings):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def processor(**settings):
    return lambda folder: change(folder, "preprocessor_config.json", **settings)


def configuration(**settings):
    return lambda folder: change(folder, "config.json", **settings)


def shorter_texts(folder):
    change(folder, "tokenizer_config.json", model_max_length=9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "image_fields", "text_fields"),
    [
        (change_weights, ["common_space", "weights"], ["common_space", "weights"]),
        (processor(image_mean=[0.5, 0.46, 0.41]), ["preprocessing"], []),
        (processor(image_std=[0.2, 0.26, 0.28]), ["preprocessing"], []),
        (processor(resample=2), ["preprocessing"], []),
        (shorter_texts, [], ["preprocessing"]),
        (configuration(layer_norm_eps=1e-3), ["configuration"], ["configuration"]),
        (configuration(transformers_version="9", _name_or_path="x"), [], []),
    ],
)
def test_whatever_changes_an_embedding_changes_the_fingerprint(clip, attack, image_fields, text_fields):
    before = records(clip)
    attack(clip)
    after = records(clip)
    for old, new, fields in zip(before, after, (image_fields, text_fields), strict=True):
        assert old.identity.keys() == new.identity.keys()
        assert sorted(name for name in old.identity if old.identity[name] != new.identity[name]) == fields
        assert all(f"'{name}' is " in different_fields(old.identity, new.identity) for name in fields)
        assert (fingerprint_of(old.identity) != fingerprint_of(new.identity)) == bool(fields)


@pytest.mark.slow
def test_options_are_part_of_identity_and_name(pretrained):
    plain = records(pretrained / "clip")
    chosen = records(pretrained / "clip", "#torch#layers=-1,-2")
    assert [tower.name for tower in plain] == ["clip-image", "clip-text"]
    assert [tower.name for tower in chosen] == ["clip-image_-1_-2", "clip-text_-1_-2"]
    for old, new in zip(plain, chosen, strict=True):
        assert old.fingerprint != new.fingerprint
    other = records(pretrained / "clip", "#torch#layers=-2,-1")
    assert other[0].fingerprint != chosen[0].fingerprint


@pytest.mark.slow
def test_canaries_notice_a_model_that_was_swapped_under_its_name(clip, tmp_path):
    from pretrained import save_clip

    stored = records(clip)[0]
    swapped = records(save_clip(tmp_path / "other", seed=9))[0]
    # Somebody who forges the identity still cannot forge the answers.
    forged = type(swapped)(stored.name, "image", stored.encoders, stored.identity, stored.dim, swapped.canaries)
    with pytest.raises(FingerprintError, match="embeds the canaries differently"):
        check_same(stored, forged, "STORE")
    check_same(stored, records(clip)[0], "STORE")


def test_names_of_columns():
    assert slug("openai/clip-vit-base-patch32") == "openai-clip-vit-base-patch32"
    assert slug("BAAI/bge-small-en-v1.5") == "BAAI-bge-small-en-v1-5"


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as a download needs: two revisions of one model."""

    folder: Path
    asked: list[str]

    def do_GET(self):
        self.answer(body=True)

    def do_HEAD(self):
        self.answer(body=False)

    def answer(self, body):
        Hub.asked.append(self.path)
        path = self.path.split("?")[0]
        revisions = {"main": COMMIT, COMMIT: COMMIT, "old": OLD_COMMIT, OLD_COMMIT: OLD_COMMIT}
        if path.startswith("/api/models/somebody/clip/revision/"):
            name = path.split("/revision/")[1]
            if name not in revisions:
                return self.refuse("RevisionNotFound")
            record = {"_id": "1", "id": "somebody/clip", "sha": revisions[name], "siblings": []}
            return self.send({"Content-Type": "application/json"}, json.dumps(record).encode(), body)
        if path.startswith("/api/models/somebody/clip/tree/"):
            files = [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name}
                     for file in sorted(self.folder.iterdir())]  # fmt: skip
            return self.send({"Content-Type": "application/json"}, json.dumps(files).encode(), body)
        if path.startswith("/somebody/clip/resolve/"):
            revision, _, name = path.removeprefix("/somebody/clip/resolve/").partition("/")
            file = self.folder / name
            if not file.is_file():
                return self.refuse("EntryNotFound")
            content = file.read_bytes()
            headers = {"X-Repo-Commit": revisions[revision], "ETag": f'"{revisions[revision][:8]}-{name}"'}
            return self.send(headers, content, body)
        return self.refuse("RepoNotFound")

    def send(self, headers, content, body):
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def refuse(self, code):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(pretrained, tmp_path, monkeypatch):
    """A hub on this machine, and an empty cache; ``hub.shutdown`` cuts the network."""
    Hub.folder, Hub.asked = pretrained / "clip", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    plain = huggingface_hub.snapshot_download

    def here(*arguments, **options):
        return plain(*arguments, **options, endpoint=address, cache_dir=tmp_path / "cache", token=False)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", here)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    server.stopped = lambda: (server.shutdown(), server.server_close())
    yield server
    if server.fileno() != -1:
        server.stopped()
    thread.join()


@pytest.mark.slow
def test_a_model_is_fetched_once_pinned_and_used_without_network(hub, pretrained):
    first = open_checkpoint("somebody/clip")
    assert first.revision == COMMIT
    assert first.weights == open_checkpoint(str(pretrained / "clip")).weights
    asked = len(Hub.asked)
    assert asked > 3
    assert open_checkpoint("somebody/clip") == first
    assert open_checkpoint("somebody/clip", COMMIT) == first
    assert len(Hub.asked) == asked  # from the cache
    old = open_checkpoint("somebody/clip", "old")
    assert (old.revision, old.weights) == (OLD_COMMIT, first.weights)
    hub.stopped()
    encoder, older = load_encoder("hf:somebody/clip#torch"), load_encoder("hf:somebody/clip@old#torch")
    assert encoder.image.identity["revision"] == COMMIT
    assert encoder.image.name == "somebody-clip-image"
    assert fingerprint_of(encoder.image.identity) != fingerprint_of(older.image.identity)
    local = load_encoder(f"hf:{first.folder}#torch")
    assert local.image.identity["revision"] == COMMIT  # the cache's own folder says what it is
    picture = Image.new("RGB", (50, 40), "green")
    assert np.array_equal(encoder.embed_images([picture]), local.embed_images([picture]))


def test_what_the_hub_refuses_is_one_clear_sentence(hub):
    with pytest.raises(EncoderError, match="^The hub has no model 'somebody/else' .* hf auth login$"):
        open_checkpoint("somebody/else")
    with pytest.raises(EncoderError, match="^The hub's model 'somebody/clip' has no revision 'v9'; check the name$"):
        open_checkpoint("somebody/clip", "v9")
    hub.stopped()
    with pytest.raises(EncoderError) as caught:
        open_checkpoint("somebody/clip", "old")
    assert str(caught.value).startswith(
        "The model 'somebody/clip@old' is not in the hub's cache and cannot be downloaded ("
    )
    assert "hf download somebody/clip --revision old" in str(caught.value)
    assert "hf:FOLDER" in str(caught.value)


def test_the_command_line_says_it_in_one_line_without_network(hub, frevl, draw, tmp_path):
    hub.stopped()
    said = frevl("extract", "--images", draw(tmp_path / "images", [0]), "--store", tmp_path / "s", "--encoder",
                 "hf:somebody/clip", "--quiet")  # fmt: skip
    assert said.code == 1
    assert said.err.count("\n") == 1
    assert said.err.startswith("frevl: The model 'somebody/clip' is not in the hub's cache and cannot be downloaded")
    assert "Traceback" not in said.err


@pytest.mark.slow
def test_weights_in_torchs_own_format_are_read_without_running_them(clip):
    expected = records(clip)[0]
    torch.save(load_file(clip / "model.safetensors"), clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()
    found = records(clip)[0]
    assert np.abs(found.canaries - expected.canaries).max() < 1e-6
    assert found.identity["logit_scale"] == expected.identity["logit_scale"]
    assert found.fingerprint != expected.fingerprint


@pytest.mark.slow
def test_weights_in_several_files(clip):
    whole = load_file(clip / "model.safetensors")
    names = sorted(whole)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, clip / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (clip / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = records(clip)[0]
    (clip / "model.safetensors").unlink()
    found = records(clip)[0]
    assert np.abs(found.canaries - expected.canaries).max() < 1e-6
    assert found.identity["weights"] != expected.identity["weights"]
    (clip / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(EncoderError, match="it is not a complete model"):
        load_encoder(f"hf:{clip}#torch")


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def garbage_weights(folder):
    (folder / "model.safetensors").write_bytes(b"\0" * 99)


def other_shapes(folder):
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"] = weights["text_projection.weight"][:5].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lacking_weights(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["vision_model.post_layernorm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_weights, "expected 'config.json' and weights .* it is not a complete model"),
        (garbage_weights, "the weights cannot be loaded"),
        (other_shapes, "the weights "),
        (lacking_weights, "'vision_model.post_layernorm.weight' is missing or has another shape"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "expected an image processor in"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "expected a tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), "expected JSON, found something else"),
        (lambda folder: (folder / "config.json").write_text("[]"), "expected a JSON object"),
        (configuration(model_type="clap2"), "is not a model that transformers .* knows"),
        (configuration(auto_map={"AutoModel": "x.Y"}), "frevl runs no code from a hub"),
        (processor(size={"shortest_edge": 48}, do_center_crop=False), "gives images of different sizes"),
        (processor(crop_size={"height": 16, "width": 24}), "the network cannot process the output of its image"),
    ],
)  # fmt: skip
def test_damaged_models_are_one_clear_sentence(clip, damage, message):
    damage(clip)
    with pytest.raises(EncoderError, match=message) as caught:
        load_encoder(f"hf:{clip}#torch")
    assert "\n" not in str(caught.value)


def test_a_folder_has_no_revision_and_parts_that_frevl_cannot_run_are_named(pretrained, tmp_path):
    with pytest.raises(UsageError, match="is a folder, which has no revisions; leave '@main' out"):
        load_encoder(f"hf:{pretrained / 'clip'}@main")
    bert = Path(shutil.copytree(pretrained / "bert", tmp_path / "bert"))
    kinds = ["Transformer", "Pooling", "Dense"]
    modules = [{"idx": i, "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
               for i, kind in enumerate(kinds)]  # fmt: skip
    (bert / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match="has a part 'sentence_transformers.models.Dense' after its network"):
        load_encoder(f"hf:{bert}#torch")
    (bert / "modules.json").write_text(json.dumps(modules[:2]))
    (bert / "1_Pooling").mkdir()
    (bert / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(EncoderError, match="pools its tokens by .*; frevl supports one of mean, cls, lasttoken"):
        load_encoder(f"hf:{bert}#torch")
