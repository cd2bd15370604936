"""Doubt: which runs have it, what it is, that scores stay the same, and that damage is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import frevl
from frevl.errors import RunError, UsageError
from frevl.models.baselines import Linear
from frevl.models.classification.heads import statistics_of, unit_features
from frevl.models.ensemble import Average
from frevl.runs.batches import EmbeddedPairs, placed
from frevl.runs.posterior import Posterior, fit_posterior
from frevl.runs.run import Run
from frevl.runs.score_files import score_file
from frevl.runs.sharing.publishing import write_published_run
from frevl.store.usable_pairs import choose_towers
from frevl.training.prepare import embed_pairs

WITH = ("dual", "linear", "linear-matching", "classes", "tiny", "mlp", "kernel", "average", "reranked")
WITHOUT = ("names",)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def runs(made, named, tmp_path_factory):
    """Runs with a posterior and runs without. Read only."""
    folder = tmp_path_factory.mktemp("doubt")
    for name, task, pairs in (
        ("dual", "matching", made.captions),
        ("linear-matching", "matching", made.captions),
        ("linear", "classification", made.train),
        ("tiny", "classification", made.train),
        ("mlp", "classification", made.train),
        ("kernel", "classification", made.train),
    ):
        options = {"epochs": 1} if name in ("dual", "tiny", "mlp") else None
        frevl.train(made.store, pairs, run=folder / name, task=task, model=name.split("-")[0], options=options)
    both = [Run.load(folder / name) for name in ("kernel", "mlp")]
    average = replace(both[0], path=folder / "average", network_name="average", posterior=None)
    average.network = Average.of([one.network for one in both], [one.calibration for one in both], soft=False)
    average.network_settings = average.network.settings
    towers = choose_towers(made.store, [made.train], [], {})
    pairs = embed_pairs(made.store, [made.train], towers["image"], towers["text"])[0]
    average.posterior = fit_posterior(average.network, pairs)
    average.save()
    frevl.train(
        made.store, made.captions, run=folder / "reranked", task="matching", model="tiny", first_stage="dual",
        options={"epochs": 1},
    )  # fmt: skip
    frevl.classify(named.store, run=folder / "classes", examples=named.examples)
    frevl.classify(named.store, named.classes, run=folder / "names")
    return folder


def opened(runs, name, made, named):
    return frevl.Scorer.open(runs / name, store=named.store if name in ("classes", "names") else made.store)


def pairs_of(name, made, named):
    if name in ("classes", "names"):
        return [(image, "") for image in named.store.ids("image")]
    part = made.captions if name in ("dual", "linear-matching", "reranked") else made.test
    return list(zip(part.images, part.texts, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WITH, *WITHOUT])
def test_a_network_that_scores_elsewhere_stays_where_it_is(name, runs, made, named):
    # One that is its own scoring form, or shares parts with it, was moved in part, and its doubt was called damaged.
    scorer = opened(runs, name, made, named)
    before = {key: value.clone() for key, value in scorer.run.network.state_dict().items()}
    twin = placed(scorer.run.network, "meta")
    assert {one.device.type for one in twin.parameters()} <= {"meta"}
    for key, value in scorer.run.network.state_dict().items():
        assert torch.equal(value, before[key])
    if name in WITH:
        assert scorer.doubt(pairs_of(name, made, named)[:3]).shape == (3,)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH)
def test_who_has_it(name, runs, made, named):
    scorer, pairs = opened(runs, name, made, named), pairs_of(name, made, named)
    doubt = scorer.doubt(pairs)
    assert doubt.dtype == np.float32
    assert doubt.shape == (len(pairs),)
    assert 0 <= doubt.min() < doubt.max() <= 1
    np.testing.assert_allclose(scorer.doubt(pairs[3:5]), doubt[3:5], atol=1e-6)  # whatever else is asked for
    assert scorer.doubt([]).shape == (0,)


@pytest.mark.parametrize("name", WITHOUT)
def test_who_has_none_says_so_and_writes_nothing(name, runs, made, named, tmp_path):
    assert not (runs / name / "posterior.safetensors").exists()
    scorer = opened(runs, name, made, named)
    with pytest.raises(UsageError, match="the run cannot measure doubt: that needs training examples"):
        score_file(scorer, as_file(tmp_path / "p.jsonl", name, made, named), tmp_path / "out.jsonl", doubt=True)
    assert not (tmp_path / "out.jsonl").exists()


def as_file(path, name, made, named):
    sides = ("image",) if name in ("classes", "names") else ("image", "text")
    rows = (dict(zip(sides, pair, strict=False)) for pair in pairs_of(name, made, named)[:9])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_it_is_that_of_the_examples(runs, made, named):
    """Against the plain formula, from the examples on."""
    scorer = opened(runs, "classes", made, named)
    ids = [row["image"] for row in lines_of(named.examples)]
    seen = torch.from_numpy(named.store.read_images(ids)).float()
    new = torch.from_numpy(named.store.read_images(named.store.ids("image"))).float()
    statistics = statistics_of(seen)
    known, asked = (unit_features(one, statistics).double() for one in (seen, new))
    covariance = torch.linalg.inv(known.T @ known + torch.eye(known.shape[1]))
    expected = (asked @ covariance * asked).sum(dim=1)
    np.testing.assert_allclose(scorer.doubt(named.store.ids("image")), expected, atol=1e-5)


def test_what_was_learned_from_is_doubted_less(runs, made, named):
    scorer = opened(runs, "classes", made, named)
    ids = [row["image"] for row in lines_of(named.examples)]
    own, strange = scorer.doubt(ids), np.random.default_rng(0).standard_normal((60, 1, 24)).astype(np.float32)
    images = {f"x{n}": one for n, one in enumerate(strange)}
    others = scorer.doubt(list(images), images=images)
    assert (own[:, None] < others).mean() > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH)
def test_scores_stay_as_they_are(name, runs, made, named, tmp_path):
    scorer, file = opened(runs, name, made, named), as_file(tmp_path / "p.jsonl", name, made, named)
    score_file(scorer, file, tmp_path / "without.jsonl")
    score_file(scorer, file, tmp_path / "with.jsonl", doubt=True)
    without, both = lines_of(tmp_path / "without.jsonl"), lines_of(tmp_path / "with.jsonl")
    doubts = scorer.doubt(pairs_of(name, made, named)[:9])
    assert [line.pop("doubt") for line in both] == pytest.approx(doubts.tolist(), abs=1e-6)
    assert both == without


def test_the_command_and_a_rejected_pair(runs, made, tmp_path, frevl):
    words = ["score", "--store", made.store.path, "--run", runs / "linear", "--pairs", made.test_file, "--doubt"]
    assert frevl(*words, "--out", tmp_path / "o.jsonl").code == 0
    assert all(0 <= line["doubt"] <= 1 for line in lines_of(tmp_path / "o.jsonl"))
    said = frevl(*words, "--out", tmp_path / "o.npz", "--grid")
    assert (said.code, "--doubt applies to pairs" in said.err) == (2, True)


def test_it_is_published_with_the_run(runs, made, tmp_path):
    write_published_run(runs / "linear", tmp_path / "public", name="me/linear")
    twin = frevl.Scorer.open(tmp_path / "public", store=made.store)
    pairs = [("0.png", "is the square red?")]
    assert twin.doubt(pairs) == frevl.Scorer.open(runs / "linear", store=made.store).doubt(pairs)
    write_published_run(runs / "mlp", tmp_path / "other", name="me/mlp")


def test_a_run_that_is_saved_again_keeps_it_and_other_weights_lose_it(runs, made, tmp_path):
    shutil.copytree(runs / "linear", tmp_path / "run")
    run = Run.load(tmp_path / "run")
    run.save()
    assert (tmp_path / "run" / "posterior.safetensors").exists()
    with torch.no_grad():
        run.network.linear.weight += 1
    run.save()
    assert not (tmp_path / "run" / "posterior.safetensors").exists()
    with pytest.raises(UsageError, match="the run cannot measure doubt"):
        frevl.Scorer.open(tmp_path / "run", store=made.store).doubt([("0.png", "x")])


def test_damage_is_refused_in_a_sentence(runs, made, tmp_path):
    shutil.copytree(runs / "linear", tmp_path / "run")
    file = tmp_path / "run" / "posterior.safetensors"
    tensors, whole = load_file(file), file.read_bytes()
    with safe_open(file, framework="pt") as kept:
        about = kept.metadata()

    def but(**changes):
        return {"posterior": json.dumps({**json.loads(about["posterior"]), **changes})}

    def refused():
        with pytest.raises(RunError) as caught:
            frevl.Scorer.open(tmp_path / "run", store=made.store).doubt([("0.png", "x")])
        sentence = str(caught.value)
        assert sentence.startswith(f"{tmp_path / 'run'}: the doubt of the run is damaged ('posterior.safetensors': ")
        assert "\n" not in sentence
        return sentence

    own = tensors["pair"]
    for content, metadata, said in (
        ({"pair": own[:, :-1].contiguous()}, about, f"expected rows of {own.shape[1]:,} float32 of the pair, found"),
        ({"pair": own.double()}, about, "torch.float64"),
        ({"image": own}, about, "expected pair, found image"),
        ({"pair": own * 9}, about, "the rows of the pair are not directions"),
        ({"pair": own.where(own != own[0, 0], torch.nan)}, about, "are not directions"),
        ({"pair": own}, but(format=2), "expected format 1, found 2"),
        ({"pair": own}, but(weights="0" * 64), "it belongs to other weights"),
        ({"pair": own}, None, "expected format 1, found None"),
        ({"pair": own}, {"posterior": "[]"}, "expected an object in 'posterior', found []"),
        ({"pair": own}, {"posterior": "{"}, "Expecting property name"),
    ):
        save_file(content, file, metadata=metadata)
        assert said in refused()
    for size in (0, 7, 40, len(whole) // 2):
        file.write_bytes(whole[:size])
        refused()
    file.write_bytes(whole)
    frevl.Scorer.open(tmp_path / "run", store=made.store).doubt([("0.png", "x")])


def test_the_posterior_repeats_bit_by_bit(runs, made, tmp_path):
    frevl.train(made.store, made.train, run=tmp_path / "again", task="classification", model="linear")
    names = ("weights.safetensors", "posterior.safetensors")
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (runs / "linear" / name).read_bytes()


def test_a_network_on_a_device_reads_there_and_the_posterior_stays_here(monkeypatch):
    network = Linear(image_dim=3, text_dim=0, outputs=2).to("meta")
    asked = []

    def inputs(image, text, image_mask, text_mask):
        asked.append(image.device.type)
        return {"pair": torch.eye(3)[: len(image)]}

    monkeypatch.setattr(network, "last_layer_inputs", inputs)
    found = Posterior({"pair": torch.zeros(1, 3)}).doubt(network, EmbeddedPairs.images_alone(torch.zeros(2, 3)))
    assert asked == ["meta"]
    assert found.tolist() == [1.0, 1.0]
