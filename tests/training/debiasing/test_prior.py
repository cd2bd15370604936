"""``frevl debias --without``: what is subtracted, from which bank, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch

from frevl.data.benchmarks.load import load_benchmark
from frevl.data.benchmarks.reasoning import SUGARCREPE_PARTS
from frevl.deployment.export.exporting import export
from frevl.errors import FrevlError, PairsError, UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.runs.targets import encode_answers, hash_prefixes
from frevl.training.debiasing.debias import debias
from frevl.training.debiasing.prior import compare, flattened
from frevl.training.training import train
from served import client_of

pytestmark = pytest.mark.slow  # small trainings


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    options = {"epochs": 3, "hidden": 16}
    for model, own in (("mlp", options), ("linear", {}), ("kernel", {}), ("image", options)):
        train(made.store, made.train_file, run=folder / model, task="classification", model=model, options=own)
    rows = [json.loads(line) for line in made.captions_file.read_text().splitlines()]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:180]))
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[180:]))
    small = {"epochs": 2, "hidden": 16, "width": 8, "members": 1}
    train(made.store, folder / "captions.jsonl", run=folder / "dual", task="matching", model="dual", options=small)
    debias(folder / "mlp", out=folder / "less", without="image", strength=0.5)
    debias(folder / "dual", out=folder / "less-dual", without="image", strength=0.5)
    return folder


def both(pairs):
    return list(zip(pairs.images, pairs.texts, strict=True))


def test_the_bank_is_training_pictures_and_what_they_answer_is_subtracted(made, runs):
    before, after = (Scorer.open(runs / name, store=made.store) for name in ("mlp", "less"))
    bank = after.run.network.bank.detach().numpy()
    trained, judged = (made.store.read_images(list(dict.fromkeys(pairs.images))) for pairs in (made.train, made.test))

    def apart(embeddings):
        return np.abs(bank[:, None] - embeddings[None]).max(axis=2).min(axis=1)

    assert apart(trained).max() < 1e-3  # every row of the bank is a training image,
    assert apart(judged).min() > 1e-3  # and none of them is evaluated
    pictures = [
        list(dict.fromkeys(made.train.images))[row]
        for row in np.abs(bank[:, None] - trained[None]).max(axis=2).argmin(axis=1)
    ]
    pairs = both(made.test)
    for image, text in (pairs[0], pairs[7]):
        prior = before.score([(one, text) for one in pictures]).mean(axis=0)
        expected = before.score([(image, text)])[0] - 0.5 * prior
        np.testing.assert_allclose(after.score([(image, text)])[0], expected, atol=1e-4)  # alone,
        row = pairs.index((image, text))
        np.testing.assert_allclose(after.score(pairs)[row], expected, atol=1e-4)  # and among others
        np.testing.assert_allclose(after.prior([(image, text)])[0], prior, atol=1e-4)


def test_the_new_run_is_whole_and_says_what_it_is(made, runs):
    former, run = Run.load(runs / "mlp"), Run.load(runs / "less")
    assert run.results["debias"]["from"] == str((runs / "mlp").resolve())
    assert run.results["debias"]["without"] == "image"
    assert run.provenance["debiased"]["weights"] == run.results["debias"]["weights"]
    assert 'without = "image"' in (runs / "less" / "config.toml").read_text()
    assert run.results["prediction_sets"] != former.results["prediction_sets"]
    assert set(former.train_image_hashes) <= set(run.train_image_hashes)
    result = evaluate(Scorer.open(runs / "less", store=made.store), made.test)
    prior = Scorer.open(runs / "less", store=made.store).prior(both(made.test)).argmax(axis=1)
    hits = [run.labels[one] == target for one, target in zip(prior, made.test.targets, strict=True)]
    assert result.metrics["prior_accuracy"] == pytest.approx(100 * np.mean(hits))
    assert "prior_accuracy" not in evaluate(Scorer.open(runs / "mlp", store=made.store), made.test).metrics


def test_what_the_former_run_said_of_its_answers_is_measured_again(made, runs, tmp_path):
    shutil.copytree(runs / "mlp", tmp_path / "former")
    file = tmp_path / "former" / "run.json"
    record = json.loads(file.read_text())
    record["results"]["warnings"] = ["Chance: 1.00 % is what an old figure says.", "A leak, which stays one."]
    file.write_text(json.dumps(record))
    found = debias(tmp_path / "former", out=tmp_path / "new", without="image", strength=0.5).results
    assert found["warnings"][0] == "A leak, which stays one."
    assert not any("1.00 %" in one for one in [*found["warnings"], *found["notes"]])
    rows = [json.loads(line) for line in made.train_file.read_text().splitlines()]
    drawn = np.random.default_rng(0).permutation([row["target"] for row in rows]).tolist()
    pairs = tmp_path / "drawn.jsonl"
    pairs.write_text("".join(json.dumps({**row, "target": one}) + "\n" for row, one in zip(rows, drawn, strict=True)))
    train(made.store, pairs, run=tmp_path / "drawn", task="classification", model="linear")
    found = debias(tmp_path / "drawn", out=tmp_path / "of-drawn", without="image", strength=0.5).results
    said = [one for one in found["warnings"] if one.startswith("Chance: ")]
    assert len(said) == 1
    assert said[0].startswith(f"Chance: {found['development']['accuracy']:.2f} % is not measurably better than always ")


def test_development_pairs_that_show_nothing_are_said_first(made, runs, tmp_path):
    """The strength is chosen and the calibration measured on them, whatever the former run's own showed."""
    one = tmp_path / "one.jsonl"
    rows = [json.loads(line) for line in made.test_file.read_text().splitlines()]
    one.write_text("".join(json.dumps(row) + "\n" for row in rows if row["target"] == "no"))
    run = debias(runs / "mlp", out=tmp_path / "run", without="image", dev=one)
    assert any(note.startswith("One class: all ") for note in run.results["warnings"])
    assert run.results["notes"][: len(run.results["warnings"])] == run.results["warnings"]
    assert not any("--no-groups" in note for note in run.results["notes"])  # debias has no such flag


def test_what_is_judged_cannot_be_the_bank(made, runs, tmp_path):
    for name, other in (("mlp", made.test_file), ("dual", runs / "other.jsonl")):
        with pytest.raises(PairsError, match="what corrects a run must not be what it is evaluated on; found 30 of 30"):
            debias(runs / name, out=tmp_path / name, without="image", pairs=other)
        assert not (tmp_path / name).exists()


def test_a_part_of_what_a_run_has_seen_is_no_development_part(made, runs, tmp_path):
    lines = made.train_file.read_text().splitlines(keepends=True)
    images = list(dict.fromkeys(json.loads(line)["image"] for line in lines))
    first = set(images[: len(images) * 3 // 4])
    part, rest = tmp_path / "part.jsonl", tmp_path / "rest.jsonl"
    part.write_text("".join(line for line in lines if json.loads(line)["image"] in first))
    rest.write_text("".join(line for line in lines if json.loads(line)["image"] not in first))
    train(made.store, part, run=tmp_path / "run", task="classification", model="linear", dev=rest)
    for name, run, pairs in (("a", runs / "linear", part), ("b", tmp_path / "run", part)):
        with pytest.raises(PairsError, match="a subset would be split again"):
            debias(run, out=tmp_path / name, without="image", pairs=pairs)
    debias(tmp_path / "run", out=tmp_path / "own", without="image", strength=0.5)  # its own pairs and its own --dev


def test_strength_0_scores_as_before_and_linear_needs_one_picture(made, runs, tmp_path):
    debias(runs / "linear", out=tmp_path / "zero", without="image", strength=0)
    debias(runs / "linear", out=tmp_path / "one", without="image", strength=1)
    before, zero, one = (
        Scorer.open(path, store=made.store) for path in (runs / "linear", tmp_path / "zero", tmp_path / "one")
    )
    pairs = both(made.test)
    np.testing.assert_allclose(zero.score(pairs), before.score(pairs), atol=1e-5)
    data = Run.load(runs / "linear")
    assert one.run.network.bank.shape == (1, data.network.settings["image_dim"])
    # A linear probe has no product of both sides here, so without the prior the text is gone.
    image = pairs[0][0]
    scores = one.score([(image, text) for text in dict.fromkeys(made.test.texts)])
    assert np.abs(scores - scores[0]).max() < 1e-3 or data.network.multiply


def test_matching_takes_the_hubness_of_the_text_back_for_single_pairs_too(made, runs):
    before, after = (Scorer.open(runs / name, store=made.store) for name in ("dual", "less-dual"))
    network = after.run.network
    assert network.weights.text_hubness == -0.5
    with pytest.raises(UsageError, match="was already subtracted, with strength 0.5"):
        debias(runs / "less-dual", out=runs / "again", without="image", strength=0)
    images, texts = list(dict.fromkeys(made.captions.images))[:9], list(dict.fromkeys(made.captions.texts))[:4]
    prior = after.prior([(images[0], text) for text in texts])[:, 0]
    for row, text in enumerate(texts):
        alone = after.score([(images[1], text)])[0]
        assert alone == pytest.approx(before.score([(images[1], text)])[0] - 0.5 * prior[row], abs=2e-3)
    # The bank is training images: their logits with the text, averaged.
    trained = list(
        dict.fromkeys(json.loads(line)["image"] for line in (runs / "captions.jsonl").read_text().splitlines())
    )
    own = Run.load(runs / "dual").train_image_hashes
    assert len(network.bank_images) <= len(own)
    assert len(network.bank_images) < len(trained) + 1


def test_choice_sets_say_what_the_texts_give_away(made, runs, tmp_path):
    rows = []
    for number, (image, text) in enumerate(both(made.captions)[180:200:2]):
        wrong = next(one for one in made.captions.texts if one.split()[1] != text.split()[1] and one.startswith("a"))
        rows += [{"image": image, "text": text, "target": "true", "group": number},
                 {"image": image, "text": wrong, "target": "false", "group": number}]  # fmt: skip
    file = tmp_path / "choice.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate(Scorer.open(runs / "less-dual", store=made.store), file)
    assert {"choice_accuracy", "prior_accuracy"} <= result.metrics.keys()
    assert "prior_accuracy" not in evaluate(Scorer.open(runs / "dual", store=made.store), file).metrics


def test_published_choice_sets_are_judged_with_a_bank_of_training_items(made, runs, tmp_path):
    """Files in the form of Winoground and SugarCrepe, of images that no training saw; themselves they are no bank."""
    own = list(dict.fromkeys(made.captions.images))[-20:]
    text_of = dict(zip(made.captions.images, made.captions.texts, strict=True))
    for image in own:
        shutil.copy(made.images / image, tmp_path)
    pairs = [(one, next(two for two in own if text_of[two] != text_of[one])) for one in own]
    (tmp_path / "examples.jsonl").write_text(
        "".join(
            json.dumps({"id": n, "image_0": a, "image_1": b, "caption_0": text_of[a], "caption_1": text_of[b]}) + "\n"
            for n, (a, b) in enumerate(pairs)
        )
    )
    for part in SUGARCREPE_PARTS:
        rows = {str(n): {"filename": a, "caption": text_of[a], "negative_caption": text_of[b]}
                for n, (a, b) in enumerate(pairs)}  # fmt: skip
        (tmp_path / f"{part}.json").write_text(json.dumps(rows))
    choices = {"text_score", "image_score", "group_score"}
    for name, scores in (("winoground", choices), ("sugarcrepe", {"choice_accuracy"})):
        rows = load_benchmark(name, tmp_path, "test").rows
        assert len(rows) == {"winoground": 4, "sugarcrepe": 14}[name] * len(pairs)
        found = tmp_path / f"{name}.jsonl"
        found.write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = evaluate(Scorer.open(runs / "less-dual", store=made.store), found)
        assert scores | {"prior_accuracy"} <= result.metrics.keys()
        with pytest.raises(PairsError, match="what corrects a run must not be what it is evaluated on; found 20 of 20"):
            debias(runs / "dual", out=tmp_path / "judged", without="image", pairs=found)
    judged = hash_prefixes(made.store.content_hashes(own).values())
    assert not np.isin(judged, Run.load(runs / "less-dual").train_image_hashes).any()


def test_flattened_weights_and_the_choice_by_hand():
    truth = encode_answers(["a", "b", "c", "z"], ["a", "b", "c"])
    priors = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.99, 0.005, 0.005], [1.0, 0.0, 0.0]])
    assert flattened(priors, truth).tolist() == [2.0, 4.0, 50.0, 0.0]
    plain = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    prior = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    both_classes = encode_answers(["a", "b"], ["a", "b"])
    tried = compare(plain, prior, both_classes, torch.tensor([1.0, 3.0]), np.array([0, 1]), (0.0, 0.5))
    assert [(one["accuracy"], one["flattened"]) for one in tried] == [(50, 25), (100, 100)]


def test_the_command_line(made, runs, tmp_path, frevl):
    said = frevl(
        "debias", "--run", runs / "mlp", "--without", "image", "--out", tmp_path / "new", "--json", tmp_path / "r.json"
    )
    assert said.code == 0, said.err
    assert "Saved in" in said.out
    assert json.loads((tmp_path / "r.json").read_text())["results"]["debias"]["tried"][0]["strength"] == 0
    for arguments, code, message in (
        (("--run", runs / "mlp", "--out", tmp_path / "x"), 2, "found nothing to do"),
        (("--run", runs / "mlp", "--without", "pictures", "--out", tmp_path / "x"), 2, "--without takes image or text"),
        (
            ("--run", runs / "mlp", "--without", "image", "--strength", 2, "--out", tmp_path / "x"),
            2,
            "--strength must be between 0 and 1, found 2",
        ),
        (("--run", runs / "mlp", "--without", "image", "--out", runs / "linear"), 1, "holds a finished run"),
        (("--run", runs / "mlp", "--without", "image", "--out", runs / "mlp"), 2, "writing would destroy it"),
        (
            ("--run", runs / "less", "--without", "image", "--out", tmp_path / "x"),
            2,
            "its prior was already subtracted",
        ),
        (("--run", tmp_path / "none", "--without", "image", "--out", tmp_path / "x"), 1, "expected a run"),
        (
            ("--run", runs / "kernel", "--without", "image", "--out", tmp_path / "x"),
            1,
            "give pairs of other images with --dev",
        ),
    ):
        said = frevl("debias", *arguments)
        assert (said.code, message in said.err) == (code, True), said.err
        assert "Traceback" not in said.err
    said = frevl(
        "debias", "--run", runs / "kernel", "--without", "image", "--dev", made.test_file, "--out", tmp_path / "k"
    )
    assert said.code == 0, said.err


def test_a_run_from_elsewhere_has_to_be_told_where_its_data_are(made, runs, tmp_path):
    import shutil

    shutil.copytree(runs / "mlp", tmp_path / "mlp")
    (tmp_path / "mlp" / "config.toml").unlink()
    with pytest.raises(UsageError, match="does not record its store; give it with --store"):
        debias(tmp_path / "mlp", out=tmp_path / "x", without="image")
    with pytest.raises(UsageError, match="does not record its training pairs; give them with --pairs"):
        debias(tmp_path / "mlp", out=tmp_path / "x", without="image", store=made.store)
    debias(tmp_path / "mlp", out=tmp_path / "x", without="image", store=made.store, pairs=made.train_file)
    with pytest.raises(FrevlError, match="found 90 images of its training pairs"):
        debias(tmp_path / "mlp", out=tmp_path / "y", without="image", store=made.store, pairs=made.train_file,
               dev=made.train_file)  # fmt: skip


def test_one_side_is_refused(made, runs, tmp_path):
    alone = tmp_path / "images.jsonl"
    rows = [{"image": image, "target": "ab"[n % 2]} for n, image in enumerate(made.store.image_ids)]
    alone.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(made.store, alone, run=tmp_path / "alone", task="classification", model="linear")
    with pytest.raises(UsageError, match="expects a run that reads images and texts, found one of images alone"):
        debias(tmp_path / "alone", out=tmp_path / "x", without="image")


def test_http_and_export_say_what_the_scorer_says(made, runs):
    pairs = both(made.test)[:5]
    scorer = Scorer.open(runs / "less", store=made.store)
    expected = scorer.predict(pairs)
    asked = [{"image": image, "text": text} for image, text in pairs]
    with client_of(made, runs, names=("less",)) as client:
        answers = client.http.post("/v1/answer", json={"pairs": asked, "top": 1}).json()["answers"]
    assert [one["answer"] for one in answers] == [one.label for one in expected]
    export(runs / "less", store=made.store.path, pairs=made.test_file)
    exported = Scorer.open(runs / "less", store=made.store, backend="onnx")
    np.testing.assert_allclose(exported.score(pairs), scorer.score(pairs), atol=1e-4)


def test_a_given_strength_needs_no_development_part(made, runs, tmp_path):
    before = Run.load(runs / "kernel")
    less = debias(runs / "kernel", out=tmp_path / "less", without="image", strength=0.5)
    assert less.results["debias"]["strength"] == 0.5
    assert less.results["debias"]["tried"] == []
    assert less.calibration == before.calibration
    assert "prediction_sets" in before.results
    assert "prediction_sets" not in less.results
    notes = " ".join(less.results["notes"])
    assert "Without image, strength 0.5, as given: what this changes was not measured." in notes
    assert "because a kernel model also trains on its development part" in notes
    pairs = both(made.test)
    scored, plain = (Scorer.open(path, store=made.store) for path in (tmp_path / "less", runs / "kernel"))
    np.testing.assert_allclose(scored.score(pairs), plain.score(pairs) - 0.5 * scored.prior(pairs), atol=1e-3)
    measured = debias(runs / "kernel", out=tmp_path / "dev", without="image", strength=0.5, dev=made.test_file)
    assert "prediction_sets" in measured.results
    assert measured.results["debias"]["tried"]
