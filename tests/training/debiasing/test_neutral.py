"""``frevl debias --neutral``: the maps are in the weights, every network gives the same, and what is refused."""

import json

import numpy as np
import pytest
import torch

from frevl.errors import InputError, UsageError
from frevl.models.classification.class_network import ClassNetwork
from frevl.models.registry import build
from frevl.models.retrieval.adapted_cosine import AdaptedCosine
from frevl.models.retrieval.two_tower import Cosine, TwoTower
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.training.classification.classify import classify
from frevl.training.debiasing.debias import debias
from frevl.training.debiasing.neutral import read_biases
from frevl.training.training import train


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def networks():
    torch.manual_seed(0)
    dual = TwoTower(image_dim=7, text_dim=5, hidden=6, width=4, members=2).eval()
    spaces = [[0, 3, 0, 3], [3, 7, 3, 7]]
    cosine, adapted = Cosine(spaces=spaces), AdaptedCosine(spaces=spaces, rank=2, weight=0.5)
    for part in (adapted.image_map, adapted.text_map):
        part.data = torch.randn(part.shape)
    return dual, cosine, adapted


@pytest.mark.parametrize("number", [0, 1, 2], ids=["dual", "cosine", "adapted"])
def test_a_map_turns_every_part_of_the_text_vectors_and_no_image(number):
    network = networks()[number]
    texts, images = torch.randn(11, 5 if number == 0 else 7), torch.randn(11, 7)
    maps = [torch.randn(width, width) for width in network.text_blocks]
    turned = network.with_text_maps(maps)
    with torch.inference_mode():
        torch.testing.assert_close(turned.image_vectors(images), network.image_vectors(images))
        before = network.own_text_vectors(texts) if number < 2 else Cosine.own_text_vectors(network, texts)
        after = turned.own_text_vectors(texts) if number < 2 else Cosine.own_text_vectors(turned, texts)
        parts = torch.split(before, network.text_blocks, dim=1)
        expected = [torch.nn.functional.normalize(p @ m.T, dim=1) for p, m in zip(parts, maps, strict=True)]
        torch.testing.assert_close(after, torch.cat(expected, dim=1) / 2**0.5)
        twin = build(turned.key, turned.settings)
        twin.load_state_dict(turned.state_dict())
        torch.testing.assert_close(twin.eval()(images, texts), turned(images, texts), rtol=1e-2, atol=1e-2)
        # The identity changes nothing, twice is the product.
        same = network.with_text_maps([torch.eye(width) for width in network.text_blocks])
        torch.testing.assert_close(same(images, texts), network(images, texts))
        once_more = turned.with_text_maps(maps)
        direct = network.with_text_maps([one @ one for one in maps])
        torch.testing.assert_close(once_more(images, texts), direct(images, texts), rtol=1e-3, atol=1e-3)


def test_names_of_classes_are_turned():
    dual = networks()[0]
    network = ClassNetwork(image_dim=7, outputs=3, name_dim=8, names=10.0, space=dual)
    with torch.inference_mode():
        texts = torch.randn(3, 5)
        network.name_vectors.copy_(dual.text_vectors(texts))
        maps = [torch.randn(4, 4) for _ in range(2)]
        torch.testing.assert_close(
            network.with_text_maps(maps).name_vectors.data, dual.with_text_maps(maps).text_vectors(texts)
        )
    assert ClassNetwork(image_dim=7, outputs=3).transformable_texts is None


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("neutral")
    options = {"epochs": 3, "hidden": 16, "width": 16, "members": 2}
    train(made.store, made.captions_file, run=folder / "dual", task="matching", model="dual", options=options)
    train(made.store, made.captions_file, run=folder / "alone", task="matching", model="linear")
    train(made.store, made.train_file, run=folder / "asked", task="classification", model="linear")
    names = {"red": ["a red square"], "blue": ["a blue square"]}
    classify(made.store, names, run=folder / "names", space=folder / "dual", template="{}")
    return folder


@pytest.mark.slow
def test_red_and_blue_are_made_equal_and_the_rest_knows_nothing_of_it(made, runs, tmp_path, frevl):
    pairs = [{"same": ["a red square", "a blue square"]}, {"same": ["the red thing", "the blue thing"]}]
    same = lines(tmp_path / "b.jsonl", {"biased": "a red square"}, {"biased": "a blue square"}, *pairs)
    said = frevl("debias", "--run", runs / "dual", "--neutral", same, "--out", tmp_path / "new")
    assert said.code == 0, said.err
    assert "Bias: texts that should be equal (2 pairs) are" in said.out
    assert "recalibrated on" in said.out
    before, after = Run.load(runs / "dual"), Run.load(tmp_path / "new")
    assert (after.network_name, after.network_settings) == ("dual", before.network_settings)
    found = after.results["debias"]
    assert found["after"] < 0.2 * found["before"]
    old, new = (Scorer.open(path, store=made.store) for path in (runs / "dual", tmp_path / "new"))
    images = list(dict.fromkeys(made.captions.images))
    grids = [one.grid(images, ["a red square", "a blue square", "a yellow square"]) for one in (old, new)]
    apart = [np.abs(grid[:, 0] - grid[:, 1]).mean() / grid.std() for grid in grids]
    assert apart[1] < 0.3 * apart[0]
    np.testing.assert_allclose(old.image_vectors(images), new.image_vectors(images), atol=1e-6)
    assert frevl("search", "--store", made.store.path, "--run", tmp_path / "new", "a red square", "--quiet").code == 0


@pytest.mark.slow
def test_classes_by_names(made, runs, tmp_path):
    same = lines(tmp_path / "b.jsonl", {"same": ["a red square", "a blue square"]})
    run = debias(runs / "names", out=tmp_path / "new", neutral=same, weight=1000.0, store=made.store)
    vectors = run.network.name_vectors
    assert float((vectors[0] - vectors[1]).norm()) < 0.5 * float(
        (Run.load(runs / "names").network.name_vectors[0] - Run.load(runs / "names").network.name_vectors[1]).norm()
    )
    assert run.results["debias"]["after"] < 0.5 * run.results["debias"]["before"], "one pair is no measure of itself"
    assert "prediction_sets" not in run.results
    assert any("calibration is unchanged" in note for note in run.results["notes"])
    assert Scorer.open(tmp_path / "new", store=made.store).label([made.store.image_ids[0]])[0].label in ("red", "blue")


@pytest.mark.slow
def test_what_has_no_vectors_of_texts_is_refused(made, runs, tmp_path):
    same = lines(tmp_path / "b.jsonl", {"same": ["a red square", "a blue square"]})
    for name in ("alone", "asked"):
        with pytest.raises(UsageError, match="--neutral needs text vectors, as in --model dual and cosine"):
            debias(runs / name, out=tmp_path / name, neutral=same)
    with pytest.raises(UsageError, match="found both; apply them one after the other"):
        debias(runs / "dual", out=tmp_path / "x", neutral=same, without="image")
    for name, value in (("weight", 5.0), ("whole_prompts", True)):
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(UsageError, match=f"^{flag} applies to --neutral; for --without, use --strength$"):
            debias(runs / "dual", out=tmp_path / "x", without="image", **{name: value})
    with pytest.raises(UsageError, match="--weight must be at least 0, found nan"):
        debias(runs / "dual", out=tmp_path / "x", neutral=same, weight=float("nan"))
    many = lines(
        tmp_path / "many.jsonl",
        *({"biased": text} for text in dict.fromkeys([*made.captions.texts, *made.train.texts])),
    )
    with pytest.raises(UsageError, match="expected biased prompts that"):
        debias(runs / "dual", out=tmp_path / "x", neutral=many)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected lines such as"),
        ("not json", r"b.jsonl:1: expected a JSON object such as .* found 'not json'"),
        ('\n{"biased": 3}', "b.jsonl:2: expected a text, found 3"),
        ('{"biased": " "}', "expected a text"),
        ('{"same": ["one"]}', "field 'same': expected a list of at least two texts"),
        ('{"same": ["one", "one"]}', "field 'same': expected different texts, found 'one' twice"),
        ('{"biased": "a", "same": ["a", "b"]}', "b.jsonl:1: expected"),
        ('{"biassed": "a"}', "b.jsonl:1: expected"),
        ('{"biased": "a"}\n{"biased": "a"}', "b.jsonl:2: the biased prompt 'a' appears twice"),
        ("[" * 100_000, "b.jsonl:1: expected a JSON object"),
    ],
)
def test_what_is_no_bias_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "b.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        read_biases(tmp_path / "b.jsonl")


def test_texts_of_three_make_three_pairs(tmp_path):
    biases = read_biases(lines(tmp_path / "b.jsonl", {"same": ["a", "b", "c"]}, {"biased": "ä <b>"}))
    assert biases.pairs == [("a", "b"), ("a", "c"), ("b", "c")]
    assert biases.texts == ["ä <b>", "a", "b", "c"]
    with pytest.raises(InputError, match="the biases cannot be read"):
        read_biases(tmp_path / "none.jsonl")
