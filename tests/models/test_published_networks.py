"""Published networks and runs, their model card, and what leaves the machine with them."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from frevl import Fusion, Scorer, evaluate, train
from frevl.errors import InputError, MissingExtraError, RunError, UsageError
from frevl.models.hub import run_folder
from frevl.runs.sharing.model_card import model_card
from frevl.runs.sharing.publishing import push_run, write_published_run


@pytest.fixture(scope="module")
def run(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "run"
    train(
        made.store.path, made.train_file, run=folder, task="classification", model="tiny", options={"epochs": 1}, seed=3
    )
    return folder


@pytest.fixture(scope="module")
def result(run, made, tmp_path_factory):
    record = evaluate(Scorer.open(run, store=made.store.path), made.test_file).record()
    path = tmp_path_factory.mktemp("result") / "result.json"
    path.write_text(json.dumps(record))
    return path


def scores(network):
    generator = torch.Generator().manual_seed(1)
    image, text = (torch.randn(5, dim, generator=generator) for dim in (64, 48))
    with torch.no_grad():
        return network.eval()(image, text).numpy()


def test_a_network_comes_back_from_its_folder(tmp_path):
    torch.manual_seed(0)
    network = Fusion(image_dim=64, text_dim=48, outputs=3, width=24, heads=4, layers=1, product=False, dropout=0.3)
    network.save_pretrained(tmp_path / "network", card="---\nlicense: mit\n---\n\n# Mine\n")
    assert sorted(path.name for path in (tmp_path / "network").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert (tmp_path / "network" / "README.md").read_text() == "---\nlicense: mit\n---\n\n# Mine\n"
    back = Fusion.from_pretrained(str(tmp_path / "network"))
    assert type(back) is Fusion  # not a subclass that a run could not be saved with
    assert not back.training
    assert back.settings == network.settings
    assert np.array_equal(scores(back), scores(network))


def test_without_a_card_one_is_written_that_claims_nothing(tmp_path):
    Fusion(image_dim=3, text_dim=2, width=8).save_pretrained(tmp_path / "n")
    assert "were not recorded here" in (tmp_path / "n" / "README.md").read_text()


def test_a_network_is_read_from_a_run(run, made):
    network = Fusion.from_pretrained(str(run))
    assert network.settings["outputs"] == 2
    weights = load_file(run / "weights.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_a_run_is_published_as_a_whole(run, result, made, tmp_path, frevl):
    said = frevl("publish", "--run", run, "--to", "somebody/squares", "--folder", tmp_path / "out", "--result", result)
    assert (said.code, said.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "posterior.safetensors",
        "run.json",
        "seen.safetensors",
        "weights.safetensors",
    ]
    pairs = [("0.png", "is the square red?"), ("1.png", "is the square blue?")]
    ours, theirs = (Scorer.open(folder, store=made.store.path).score(pairs) for folder in (run, tmp_path / "out"))
    assert np.array_equal(ours, theirs)


def test_the_result_of_another_run_is_refused(run, result, made, tmp_path):
    measured = json.loads(result.read_text())
    assert measured["provenance"]["weights"] == hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()
    train(made.store.path, made.train_file, run=tmp_path / "other", task="classification", model="majority")
    with pytest.raises(InputError, match=rf"result.json: expected a result of the run .*other, found one of {run},"):
        write_published_run(tmp_path / "other", tmp_path / "out", name="a/b", results=[result])
    assert not (tmp_path / "out").exists()
    del measured["provenance"]["weights"]  # as an earlier version wrote it
    (tmp_path / "old.json").write_text(json.dumps(measured))
    write_published_run(run, tmp_path / "out", name="a/b", results=[tmp_path / "old.json"])
    (tmp_path / "old.json").write_text(json.dumps({**measured, "task": "matching"}))
    with pytest.raises(InputError, match="expected a result of the run"):
        write_published_run(run, tmp_path / "out", name="a/b", results=[tmp_path / "old.json"])


def test_nothing_of_a_run_published_before_stays_in_the_folder(run, made, tmp_path):
    write_published_run(run, tmp_path / "out", name="a/b")
    assert (tmp_path / "out/posterior.safetensors").is_file()
    train(made.store.path, made.train_file, run=tmp_path / "other", task="classification", model="majority")
    write_published_run(tmp_path / "other", tmp_path / "out", name="a/b")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "run.json", "seen.safetensors", "weights.safetensors",
    ]  # fmt: skip


def test_what_makes_figures_misleading_stands_before_them_in_the_card(run, result):
    record, measured = json.loads((run / "run.json").read_text()), json.loads(result.read_text())
    leak = "Leak: 3 of 4 different images were in training."
    card = model_card(record, name="x", results=[{**measured, "notes": ["Another note.", leak]}])
    assert card.count(leak) == 1
    assert card.index(leak) < card.index("test pairs; 95 %") < card.index("- Another note.")


def test_folders_of_this_machine_stay_here(run, tmp_path):
    write_published_run(run, tmp_path / "out", name="a/b")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["settings"]["pairs"] == "train.jsonl"
    assert record["provenance"]["run"] == "run"
    own = json.loads((run / "run.json").read_text())
    assert record["towers"] == own["towers"]  # an identity is a fingerprint's source and never edited
    assert str(tmp_path.parent) not in (tmp_path / "out" / "run.json").read_text()
    assert str(tmp_path.parent) not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/b", "a/b/c", "a b", "ü", "-a", "a.", "a--b", "a/b..c", "b.git", "x" * 97]
)
def test_a_name_that_the_hub_refuses_is_refused_before_anything_is_written(run, tmp_path, name, frevl):
    said = frevl("publish", "--run", run, "--to", name, "--folder", tmp_path / "out")
    assert (said.code, list(tmp_path.iterdir())) == (2, [])
    assert "--to: expected the name of a repository, USER/NAME of letters, digits," in said.err


@pytest.mark.parametrize("name", ["a", "gpt2", "some-body/My_run-1.2", "_/_", "x" * 96])
def test_a_name_that_the_hub_takes_is_taken(run, tmp_path, name):
    write_published_run(run, tmp_path / "out", name=name)
    assert (tmp_path / "out" / "run.json").is_file()


def test_the_card_says_what_was_measured(run, result):
    record, measured = json.loads((run / "run.json").read_text()), json.loads(result.read_text())
    card = model_card(record, name="somebody/squares", results=[measured])
    head, _, body = card.removeprefix("---\n").partition("---\n")
    assert "library_name: frevl" in head
    accuracy, (low, high) = measured["metrics"]["accuracy"], measured["ci95"]["accuracy"]
    assert f"| accuracy | {accuracy:.2f} | {low:.2f} to {high:.2f} |" in body
    assert f"{measured['n']} test pairs" in body
    image = record["towers"]["image"]["toy-image"]
    assert f"| toy | image `toy-image` | weights | {image['weights']} |" in body
    assert f"- pairs: {record['results']['train_pairs']}, from `{record['settings']['pairs']}`" in body
    assert "- 2 labels: `no`, `yes`" in body
    assert "No diagnosis was made" in body
    worst = min(measured["slices"]["asked"].items(), key=lambda item: item[1]["accuracy"])
    assert f"- weakest slice of `asked`: `{worst[0]}` with {worst[1]['accuracy']:.2f} %" in body
    assert "--run hf:somebody/squares" in body
    assert "seed 3" in body


def test_the_card_without_a_test_set_says_so_and_a_diagnosis_gives_its_verdict(run):
    record = json.loads((run / "run.json").read_text())
    findings = [
        {"section": "skills", "claim": "Counting is 12.0 points worse."},
        {"section": "cost", "claim": "It costs 3 ms."},
    ]
    diagnosis = {"verdict": {"sentence": "The fusion is worth it: +3.1 points."}, "findings": findings}
    card = model_card(record, name="x", diagnosis=diagnosis)
    assert "No test set was evaluated for this card" in card
    assert f"- accuracy: {record['results']['development']['accuracy']:.2f}" in card
    assert "> **Verdict.** The fusion is worth it: +3.1 points." in card
    assert "- Counting is 12.0 points worse." in card
    assert "3 ms" not in card
    del record["results"]["development"]
    assert "accuracy:" not in model_card(record, name="x")


def test_the_card_of_a_choice_names_what_was_chosen_and_a_result_of_one_image_has_no_interval(run):
    record = json.loads((run / "run.json").read_text())
    assert f"A network of the kind `{record['model']}` with" in model_card(record, name="x")
    record["model"], record["results"]["selection"] = "auto", {"chosen": "kernel"}
    result = {"n": 3, "metrics": {"i2t_r1": 50.0, "i2t_median_rank": 2.5}, "ci95": {"i2t_r1": None}}
    card = model_card(record, name="x", results=[result])
    assert "A network of the kind `kernel`, chosen by `auto`, with" in card
    assert "| image to text, recall at 1 | 50.00 | not measured |" in card
    assert "| image to text, median rank from 1 (not %) | 2.50 | not measured |" in card


def test_labels_cannot_break_the_card(run):
    record = json.loads((run / "run.json").read_text())
    record["labels"] = ["a|b", "`c`\n# d", "<script>", *(str(i) for i in range(30))]
    card = model_card(record, name="x")
    assert "- 33 labels: `a\\|b`, `'c' # d`, `&lt;script>`, `0`" in card
    assert "\n# d" not in card


class Api:
    """Stands where the hub's client does; keeps what it is given."""

    sent: ClassVar[dict] = {}
    target: ClassVar[Path]

    def __init__(self, token=None):
        pass

    def create_repo(self, repo_id, **options):
        if repo_id == "nobody/refused":
            raise OSError("403 Forbidden")
        Api.sent = {"repo": repo_id, **options}
        return type("Address", (), {"repo_id": repo_id})

    def upload_folder(self, *, folder_path, **_):
        shutil.copytree(folder_path, Api.target)
        return type("Commit", (str,), {"commit_url": "https://hub/commit/1"})("https://hub/commit/1")


@pytest.fixture
def api(monkeypatch, tmp_path):
    Api.target = tmp_path / "sent"
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    return Api


def test_pushing(run, api, made, frevl):
    said = frevl("publish", "--run", run, "--to", "somebody/squares", "--private")
    assert (said.code, said.out) == (0, "Uploaded: https://hub/commit/1\n")
    assert api.sent == {"repo": "somebody/squares", "private": True, "exist_ok": True}
    assert Scorer.open(api.target, store=made.store.path).run.labels == ["no", "yes"]


def test_pushing_a_network(api):
    network = Fusion(image_dim=3, text_dim=2, width=8)
    assert network.push_to_hub("somebody/small", private=True) == "https://hub/commit/1"
    assert api.sent == {"repo": "somebody/small", "private": True, "exist_ok": True}
    assert Fusion.from_pretrained(str(api.target)).settings == network.settings


def test_a_refusal_of_the_hub_is_one_sentence(run, api):
    message = "^Nothing was sent to 'nobody/refused' .OSError: 403 Forbidden.; .* hf auth login$"
    with pytest.raises(RunError, match=message):
        push_run(run, "nobody/refused")
    with pytest.raises(RunError, match=message):
        Fusion(image_dim=3, text_dim=2, width=8).push_to_hub("nobody/refused")


def test_a_run_on_the_hub_is_named_with_a_prefix(run, made, monkeypatch):
    asked = []

    def snapshot(model, **options):
        asked.append((model, options["revision"], options.get("local_files_only", False)))
        if options.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        if model == "somebody/gone":
            raise OSError("no route\nto host")
        return str(run)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert Scorer.open("hf:somebody/squares@v2", store=made.store.path).run.path == run
    assert asked == [("somebody/squares", "v2", True), ("somebody/squares", "v2", False)]
    assert run_folder(run) == run
    with pytest.raises(
        RunError, match="^'somebody/gone' is neither a folder nor in the hub's cache, and cannot be"
    ) as c:
        Scorer.open("hf:somebody/gone", store=made.store.path)
    assert "\n" not in str(c.value)


def garbage(folder):
    (folder / "model.safetensors").write_bytes(b"\0" * 50)


def other_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["image_projection.weight"] = weights["image_projection.weight"][:, :1].clone()
    save_file(weights, folder / "model.safetensors")


def other_setting(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "breadth": 3}))


@pytest.mark.parametrize("damage", [garbage, other_shape, other_setting])
def test_damaged_networks(tmp_path, damage):
    Fusion(image_dim=3, text_dim=2, width=8).save_pretrained(tmp_path / "n")
    damage(tmp_path / "n")
    with pytest.raises(RunError, match="the network is damaged or of another kind"):
        Fusion.from_pretrained(str(tmp_path / "n"))


def test_what_is_no_network(tmp_path, run, made):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="expected 'config.json' and 'model.safetensors', or a run; 'config.json' is"):
        Fusion.from_pretrained(str(tmp_path / "empty"))
    Fusion(image_dim=3, text_dim=2, width=8).save_pretrained(tmp_path / "n")
    (tmp_path / "n" / "model.safetensors").unlink()
    with pytest.raises(RunError, match="'model.safetensors' is missing"):
        Fusion.from_pretrained(str(tmp_path / "n"))
    linear = tmp_path / "linear"
    train(made.store.path, made.train_file, run=linear, task="classification", model="linear")
    with pytest.raises(RunError, match="expected a run of a fusion, found one of a linear; open it with Scorer.open"):
        Fusion.from_pretrained(str(linear))
    with pytest.raises(RunError, match="expected a folder or an id on the hub, found neither"):
        Fusion.from_pretrained("no such/folder at all")


def test_wrong_use(run, tmp_path, frevl):
    with pytest.raises(UsageError, match="expected a folder other than the run's own"):
        write_published_run(run, run, name="a/b")
    with pytest.raises(RunError, match=r"expected a run \(a folder with 'run.json'\), found a folder without one"):
        write_published_run(tmp_path, tmp_path / "out", name="a/b")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"the run cannot be published to .*file \(FileExistsError"):
        write_published_run(run, tmp_path / "file", name="a/b")
    for name, content in (("list.json", "[]"), ("deep.json", "[" * 100_000), ("empty.json", "{}")):
        (tmp_path / name).write_text(content)
    for file, message in (
        ("list.json", "cannot read it .*expected an object in 'list.json', found list"),
        ("deep.json", "cannot read it .*nested too deep"),
        ("empty.json", "found no 'n' in it"),
        ("absent.json", "cannot read it"),
    ):
        with pytest.raises(InputError, match=f"expected the JSON of frevl evaluate, .*{message}"):
            write_published_run(run, tmp_path / "out", name="a/b", results=[tmp_path / file])
    with pytest.raises(InputError, match="expected the JSON of frevl diagnose, found no 'verdict' in it"):
        write_published_run(run, tmp_path / "out", name="a/b", diagnosis=tmp_path / "empty.json")


def test_without_the_library_its_extra_is_named(monkeypatch):
    from frevl.models import hub

    hub._published.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'frevl\[hf\]'"):
        Fusion(image_dim=3, text_dim=2, width=8).save_pretrained("nowhere")


def test_the_card_of_one_side_speaks_of_that_side(one_side, tmp_path):
    arguments = {"task": "classification", "model": "linear", "run": tmp_path / "run"}
    train(one_side.store, one_side.train_file, dev=one_side.dev_file, **arguments)
    card = model_card(json.loads((tmp_path / "run" / "run.json").read_text()), name="somebody/leaves")
    side, other = one_side.side, one_side.other
    assert f"they embed {side}s first, and this network" in card
    assert f"the frozen encoders lose about {'an image' if side == 'image' else 'a text'} cannot" in card
    assert f"split by {side}" in card
    assert ("--images images" in card) == (side == "image")
    assert f"{other} `" not in card
