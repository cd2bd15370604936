"""A fusion initialised from another one: what is copied, what is not, and which pairs of models are allowed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from frevl.errors import UsageError
from frevl.models.fusion import Fusion
from frevl.runs.batches import EmbeddedPairs
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.training.fitting.initialisation import (
    Pretrained,
    absorb_statistics,
    initialise_from,
    release_statistics,
    rows_of_same_classes,
    statistics_of,
)
from frevl.training.selection.candidates import CANDIDATES, candidates
from frevl.training.training import train

SIZES = {"image_dim": 5, "text_dim": 3, "width": 8, "layers": 1, "heads": 2, "ffn_width": 16, "head_width": 7}
QUICK = {"batch_size": 32, "layers": 0, "negatives": 1, "patience": 100}


def test_the_last_map_is_copied_only_for_the_same_classes_and_in_their_order():
    torch.manual_seed(0)
    former, task, same = (Fusion(**SIZES, outputs=3) for _ in range(3))
    fresh = {name: value.clone() for name, value in task.state_dict().items()}
    initialise_from(task, Pretrained(former, None, 0))
    initialise_from(same, Pretrained(former, torch.tensor([2, 0, 1]), 0))
    for name, value in former.state_dict().items():
        if name.startswith("head.outer"):
            assert torch.equal(task.state_dict()[name], fresh[name])
            assert torch.equal(same.state_dict()[name], value[[2, 0, 1]])
        else:
            assert torch.equal(task.state_dict()[name], value)
            assert torch.equal(same.state_dict()[name], value)


def test_classes_are_found_by_name():
    assert rows_of_same_classes(["no", "yes", "maybe"], ["yes", "maybe", "no"]).tolist() == [2, 0, 1]
    assert rows_of_same_classes(["no", "yes"], ["yes", "maybe", "no"]) is None
    assert rows_of_same_classes(["no", "yes"], ["true", "false"]) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 2}, "expected a fusion whose layers is 1, found 2; train both with the same encoders, --model and"),
        ({"text_dim": 4}, "expected a fusion whose text_dim is 3, found 4"),
        ({"product": False}, "expected a fusion whose interactions is True|product is True, found False"),
    ],
)
def test_other_sizes_are_refused_by_name(changes, message):
    with pytest.raises(UsageError, match=message):
        initialise_from(Fusion(**SIZES, outputs=3), Pretrained(Fusion(**{**SIZES, **changes}, outputs=1), None, 0))


def test_unfolding_is_the_inverse_of_folding_and_a_constant_stays_a_constant():
    torch.manual_seed(0)
    images, texts = torch.randn(11, 1, 5) * torch.tensor([1, 10, 0.1, 3, 0]) + 4, torch.randn(7, 1, 3) * 20 - 9
    rows, every = torch.arange(13), torch.ones(11, 1, dtype=torch.bool)
    pairs = EmbeddedPairs(images, every, texts, every[:7], rows % 11, rows % 7)
    statistics = statistics_of(pairs)
    standard = statistics.applied(pairs)
    network = Fusion(**SIZES, outputs=2).eval()
    plain = network(*pairs.inputs(pairs.image_rows, pairs.text_rows))
    release_statistics(network, statistics)
    torch.testing.assert_close(
        network(*standard.inputs(standard.image_rows, standard.text_rows)), plain, atol=1e-4, rtol=1e-4
    )
    assert network.image_projection.weight[:, 4].abs().max() == 0
    absorb_statistics(network, statistics)
    torch.testing.assert_close(network(*pairs.inputs(pairs.image_rows, pairs.text_rows)), plain, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def captions(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    return train(made.store, made.captions, run=folder / "run", task="matching", options={"epochs": 3, **QUICK})


@pytest.mark.slow
def test_a_task_begins_where_captions_ended(made, captions, tmp_path):
    options = {"epochs": 1, "learning_rate": 1e-9, "final_learning_rate": 0, "standardise": True, **QUICK}
    arguments = {"task": "classification", "options": options}
    run = train(made.store, made.train, run=tmp_path / "run", initialise_from=captions.path, **arguments)
    former, now = (load_file(one.path / "weights.safetensors") for one in (captions, run))
    for name in ("image_projection.weight", "text_projection.bias", "head.inner.weight"):
        torch.testing.assert_close(now[name], former[name], atol=1e-4, rtol=1e-3)
    fresh = train(made.store, made.train, run=tmp_path / "fresh", **arguments)
    assert not torch.allclose(fresh.network.image_projection.weight, former["image_projection.weight"], atol=1e-2)
    assert run.settings["initialise_from"] == str(captions.path)
    assert fresh.settings["initialise_from"] is None
    # Images of the former run count as seen, and the user hears of it.
    assert set(run.train_image_hashes) == set(fresh.train_image_hashes) | set(captions.train_image_hashes)
    shared = len(np.intersect1d(fresh.train_image_hashes, captions.train_image_hashes))
    note = (
        f"The run of --initialise-from has seen {shared:,} of {len(fresh.train_image_hashes):,} images of these pairs"
    )
    assert any(note in one for one in run.results["notes"])
    assert isinstance(Run.load(run.path).network, Fusion)


@pytest.mark.slow
def test_who_cannot_begin_with_a_run_is_told_why(made, made_twice, captions, tmp_path, frevl):
    arguments = {"task": "classification", "run": tmp_path / "run", "initialise_from": captions.path, "options": QUICK}
    with pytest.raises(
        UsageError, match=r"--initialise-from requires a fusion \(tiny, small, base\) or auto, found --model mlp"
    ):
        train(made.store, made.train, model="mlp", **{**arguments, "options": None})
    with pytest.raises(UsageError, match="--initialise-from: expected a fusion whose layers is 1, found 0"):
        train(made.store, made.train, **{**arguments, "options": {**QUICK, "layers": 1}})
    with pytest.raises(UsageError, match=r"reads the image embeddings .*, found .*; choose the same with --encoder"):
        train(made_twice.store, made_twice.train, **arguments)
    probe = train(made.store, made.train, run=tmp_path / "linear", task="classification", model="linear")
    with pytest.raises(UsageError, match="--initialise-from: expected a run of a single fusion, found 'linear'"):
        train(made.store, made.train, **{**arguments, "initialise_from": probe.path})
    said = frevl("train", "--store", made.store.path, "--pairs", made.train_file, "--run", tmp_path / "none", "--task",
                 "classification", "--initialise-from", tmp_path / "missing")  # fmt: skip
    assert said.code == 1
    assert "missing" in said.err


@pytest.fixture(scope="module")
def half(made, tmp_path_factory):
    """A fusion that has learned the task from the first half of the images, and the pairs of the others."""
    folder = tmp_path_factory.mktemp("half")
    rows = [json.loads(line) for line in made.train_file.read_text().splitlines()]
    images = sorted({row["image"] for row in rows})
    first = set(images[: len(images) // 2])
    parts = {
        "first": [row for row in rows if row["image"] in first],
        "rest": [r for r in rows if r["image"] not in first],
    }
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    run = train(
        made.store, folder / "first.jsonl", run=folder / "run", task="classification",
        options={"standardise": True, "layers": 0, "epochs": 30, "batch_size": 32, "learning_rate": 1e-3,
                 "patience": 100},
    )  # fmt: skip
    return run, folder / "rest.jsonl"


@pytest.mark.slow
def test_auto_judges_what_a_former_run_knows_as_it_is_and_as_a_beginning(made, half, tmp_path):
    former, rest = half
    run = train(
        made.store, rest, run=tmp_path / "run", task="classification", model="auto", initialise_from=former.path,
        time_limit=3000, options={"epochs": 2},
    )  # fmt: skip
    rows = {row["name"]: row for row in run.results["selection"]["candidates"]}
    assert rows["zero-shot"]["seeds"] == 1
    # What it says of new images without having learned from them is what the scorer says of them.
    pairs = [json.loads(line) for line in rest.read_text().splitlines()]
    said = Scorer.open(former.path, store=made.store).score([(pair["image"], pair["text"]) for pair in pairs])
    truth = [former.labels.index(pair["target"]) for pair in pairs]
    assert rows["zero-shot"]["metric"] == pytest.approx(100 * np.mean(said.argmax(axis=1) == truth))
    assert rows["fine-tuned"]["metric"] > rows["majority"]["metric"]
    assert set(former.train_image_hashes) <= set(run.train_image_hashes)
    names = [row["name"] for row in run.results["selection"]["candidates"] if "metric" in row]
    assert names.index("kernel") < names.index("zero-shot") < names.index("mlp")  # simplest first


@pytest.mark.slow
def test_auto_does_not_judge_a_run_on_images_it_has_learnt_from(made, half, tmp_path):
    former, _ = half
    run = train(
        made.store, made.train_file, run=tmp_path / "run", task="classification", model="auto",
        initialise_from=former.path, time_limit=3000, options={"epochs": 1},
    )  # fmt: skip
    reasons = {row["name"]: row.get("reason", "") for row in run.results["selection"]["candidates"]}
    for name in ("zero-shot", "fine-tuned"):
        assert reasons[name].startswith("the run of --initialise-from was trained on ")


@pytest.mark.parametrize("model", ["tiny", "auto"])
def test_a_matching_begins_with_nothing(made, captions, tmp_path, model):
    with pytest.raises(UsageError, match="--initialise-from requires --task classification, found --task matching"):
        train(
            made.store, made.captions, run=tmp_path / "run", task="matching", model=model, initialise_from=captions.path
        )


def test_who_knows_the_classes_goes_on_gently():
    torch.manual_seed(0)
    former = Fusion.from_preset("tiny", image_dim=5, text_dim=3, outputs=2, layers=1)
    knows, other = (candidates(Pretrained(former, rows, 0)) for rows in (torch.tensor([1, 0]), None))
    assert [one.name for one in other] == [*(one.name for one in CANDIDATES), "fine-tuned"]
    assert [one.name for one in knows if one.begins] == ["zero-shot", "fine-tuned"]
    gentle, fresh = (found[-1] for found in (knows, other))
    assert (gentle.changes["learning_rate"], gentle.changes["epochs"]) == (1e-4, 3)
    assert (fresh.changes["learning_rate"], fresh.changes["epochs"]) == (1e-3, 8)
    assert gentle.model == fresh.model == "tiny"
    assert gentle.changes["layers"] == 1
    assert candidates(None) == CANDIDATES
