"""Images from one encoder and texts from another: each modality has the towers that all its items have."""

import numpy as np
import pytest

from frevl.data.pairs import Pairs
from frevl.diagnosis.embeddings.embedding_findings import embedding_findings
from frevl.diagnosis.embeddings.encoder_comparison import encoder_findings
from frevl.diagnosis.splits import read_splits
from frevl.encoders.interface import Embeddings
from frevl.errors import UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store
from frevl.store.writer import StoreWriter
from frevl.training.ablation.variants import variants_of
from frevl.training.prepare import prepare
from frevl.training.seeds import train_seeds
from frevl.training.selection.encoder_sets import all_encoders, encoder_sets, narrow
from frevl.training.training import train
from handmade import item, tower

N = 48


def unit(random, n, dim):
    values = random.standard_normal((n, dim))
    return Embeddings((values / np.linalg.norm(values, axis=1, keepdims=True))[:, None], np.ones((n, 1), bool))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Images by 'clip', all but three also by 'dino'; texts by 'minilm' and 'mpnet'; no text by 'clip'."""
    random = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("sides") / "s"
    with StoreWriter(path) as writer:
        writer.register(
            [
                tower("eye", dim=3, encoders=("clip",)),
                tower("say", dim=3, encoders=("clip",), modality="text"),
                tower("grain", dim=2, encoders=("dino",)),
                tower("word", dim=5, encoders=("minilm",), modality="text"),
                tower("clause", dim=4, encoders=("mpnet",), modality="text"),
            ]
        )
        images, texts = ([item(f"{kind}{i}") for i in range(N)] for kind in ("image", "text"))
        writer.append("image", images[:-3], {"eye": unit(random, N - 3, 3), "grain": unit(random, N - 3, 2)})
        writer.append("image", images[-3:], {"eye": unit(random, 3, 3)})
        writer.append("text", texts, {"word": unit(random, N, 5), "clause": unit(random, N, 4)})
    return Store.open(path)


def pairs_of(rows):
    rows = list(rows)
    return Pairs(
        [f"image{i}" for i in rows],
        [f"text{i}" for i in rows],
        [["no", "yes"][i % 2] for i in rows],
        [{} for _ in rows],
        [f"made:{i}" for i in rows],
    )


def prepared(store, pairs, **asked):
    asked = {"encoder": None, **asked}
    return prepare(store, pairs, None, task="classification", seed=0, dev_share=0.2, min_answer_count=1, **asked)


def names(data):
    return [[one.name for one in towers] for towers in (data.image_towers, data.text_towers)]


def test_each_modality_has_the_towers_that_all_of_its_items_have(store):
    data = prepared(store, pairs_of(range(N)))
    assert names(data) == [["eye"], ["word", "clause"]]
    assert data.encoders == ["clip", "minilm", "mpnet"]
    assert data.train.pairs.images.shape[2] == 3
    assert data.train.pairs.texts.shape[2] == 9
    assert data.notes[:2] == [
        "The image embeddings of dino are not used, because 3 of 48 images have none; run frevl extract again with "
        "--encoder dino, or choose encoders with --image-encoder.",
        "The text embeddings of clip are not used, because 48 of 48 texts have none; run frevl extract again with "
        "--encoder clip, or choose encoders with --text-encoder.",
    ]
    fewer = prepared(store, pairs_of(range(N - 3)))
    assert names(fewer) == [["eye", "grain"], ["word", "clause"]]
    assert not any("dino" in note for note in fewer.notes)


def test_encoders_are_chosen_for_each_modality(store):
    pairs = pairs_of(range(N - 3))
    chosen = prepared(store, pairs, image_encoder=["dino"], text_encoder=["mpnet"])
    assert names(chosen) == [["grain"], ["clause"]]
    assert chosen.encoders == ["dino", "mpnet"]
    # An encoder that was asked for is left out only where it embedded nothing at all.
    assert names(prepared(store, pairs, encoder=["clip", "minilm"])) == [["eye"], ["word"]]
    one = prepared(store, pairs, encoder=["clip", "mpnet", "minilm"], image_encoder=["dino"])
    assert names(one) == [["grain"], ["word", "clause"]]
    assert one.encoders == ["dino", "mpnet", "minilm"]
    with pytest.raises(UsageError) as raised:
        prepared(store, pairs, encoder=["dino"])
    assert str(raised.value) == (
        f"{store.path}: the store has no text embeddings by dino; choose an encoder for the texts with "
        "--text-encoder: clip, minilm, mpnet"
    )
    with pytest.raises(UsageError, match="no embeddings by the encoder 'dina'. Did you mean 'dino'"):
        prepared(store, pairs, image_encoder=["dina"])


def test_what_was_asked_for_and_is_missing_is_an_error(store):
    with pytest.raises(UsageError, match="no image embeddings by minilm; .* --image-encoder: clip, dino"):
        prepared(store, pairs_of(range(N)), image_encoder=["minilm"])
    with pytest.raises(Exception, match="3 of 48 images have no embedding by the tower 'grain'; .*--image-encoder"):
        prepared(store, pairs_of(range(N)), image_encoder=["dino"])


def test_encoders_of_one_modality_are_compared_beside_all_of_the_other(store):
    data = prepared(store, pairs_of(range(N - 3)))
    assert encoder_sets(data, data.encoders) == [
        ["clip", "dino"],
        ["clip"],
        ["dino"],
        ["minilm"],
        ["mpnet"],
        ["clip", "minilm"],
        ["clip", "mpnet"],
        ["dino", "minilm"],
        ["dino", "mpnet"],
    ]
    whole = all_encoders(data, data.encoders)
    assert (whole.images, whole.texts) == (["clip", "dino"], ["minilm", "mpnet"])
    assert narrow(data, whole.images, whole.texts) is data


@pytest.mark.slow
@pytest.mark.parametrize("model", ["linear", "auto"])
def test_such_a_store_trains_and_its_runs_score_again(store, tmp_path, model):
    run = train(store, pairs_of(range(36)), run=tmp_path / "r", task="classification", model=model, time_limit=2)
    assert set(run.encoders) <= {"clip", "dino", "minilm", "mpnet"}
    assert set(run.towers["image"]) <= {"eye", "grain"}
    assert set(run.towers["text"]) <= {"word", "clause"}
    result = evaluate(Scorer(Run.load(tmp_path / "r"), store), pairs_of(range(36, N - 3)))
    assert result.n == 9
    if model == "auto":
        sets = run.results["selection"]["encoders"]["sets"]
        assert ["dino"] in [row["images"] for row in sets]
        assert ["minilm"] in [row["texts"] for row in sets]
        assert not {"minilm", "mpnet"} & {name for row in sets for name in row["images"]}


def test_several_seeds_and_the_file_that_repeats_them_know_the_encoders(store, tmp_path):
    asked = {"image_encoder": ["clip"], "text_encoder": ["minilm"]}
    done = train_seeds(
        store, pairs_of(range(N)), run=tmp_path / "r", seeds=1, task="classification", model="majority", **asked
    )
    assert done.encoders == ["clip", "minilm"]
    assert {**asked, "encoder": None}.items() <= done.settings.items()
    text = (tmp_path / "r" / "config.toml").read_text()
    assert 'image-encoder = ["clip"]\ntext-encoder = ["minilm"]\n' in text


def test_a_diagnosis_looks_at_the_towers_that_are_there(store, tmp_path):
    splits = read_splits(
        store, pairs_of(range(30)), pairs_of(range(30, N)), task="classification", dev=None, encoder=None, seed=0
    )
    assert (splits.encoders_of("image"), splits.encoders_of("text")) == (["clip"], ["minilm", "mpnet"])
    assert sum("are not used" in note for note in splits.notes) == 2
    used = {modality: splits.encoders_of(modality) for modality in ("image", "text")}
    ranks = [one.name for one in embedding_findings(store, splits.train, encoders=used) if one.name.startswith("rank-")]
    assert ranks == ["rank-clip", "rank-minilm", "rank-mpnet"]
    assert encoder_findings(splits, folder=tmp_path, time_limit=5, models=["majority"]) == ([], "")


def test_an_ablation_trains_on_single_encoders_only_if_they_have_both_halves(store):
    assert not [one.name for one in variants_of([store], [], 2) if one.name.endswith(" only") and "clip" in one.name]
    both = [one.arguments for one in variants_of([store], ["a", "b"], 2) if one.group == "encoders"]
    assert both == [{"encoder": [name], "image_encoder": None, "text_encoder": None} for name in ("a", "b")]
