"""``class_weight=balanced``: every class counts equally, in the loss, the penalty and the best epoch."""

import numpy as np
import pytest
import torch

from frevl.data.pairs import Pairs
from frevl.errors import UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.models.baselines import Linear
from frevl.runs.scorer import Scorer
from frevl.runs.targets import balanced_weights, encode_answers
from frevl.store.reader import Store
from frevl.store.writer import StoreWriter
from frevl.training.examples import dev_metric
from frevl.training.losses import class_loss, task_loss
from frevl.training.training import train
from handmade import item, pooled, tower

N = 400


def test_weights_by_hand():
    # 8 pairs: 6 of a, 2 of b, none of c
    weights = balanced_weights(torch.tensor([6.0, 2.0, 0.0]))
    assert weights.tolist() == pytest.approx([8 / 12, 8 / 4, 0])
    assert (6 * weights[0] + 2 * weights[1]).item() == pytest.approx(8)


def test_the_loss_counts_a_rare_class_by_its_weight():
    logits = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 1.0]])
    weights = torch.tensor([0.75, 1.5])
    each = [class_loss(logits[i : i + 1], torch.tensor([c])).item() for i, c in enumerate((0, 0, 1))]
    expected = (0.75 * each[0] + 0.75 * each[1] + 1.5 * each[2]) / 3
    assert class_loss(logits, torch.tensor([0, 0, 1]), class_weights=weights).item() == pytest.approx(expected)
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert class_loss(logits, rows, class_weights=weights).item() == pytest.approx(expected)
    smooth = [
        class_loss(logits[i : i + 1], torch.tensor([c]), label_smoothing=0.1).item() for i, c in enumerate((0, 0, 1))
    ]
    found = class_loss(logits, torch.tensor([0, 0, 1]), label_smoothing=0.1, class_weights=weights).item()
    assert found == pytest.approx((0.75 * smooth[0] + 0.75 * smooth[1] + 1.5 * smooth[2]) / 3)
    found = task_loss(logits, 2 * rows, kind="class", smoothing=0.0, class_weights=weights)
    assert found.item() == pytest.approx(expected)


def test_the_development_metric_is_the_balanced_one():
    truth = encode_answers(["a", "a", "a", "b"], ["a", "b"])
    logits = torch.tensor([[1.0, 0.0]] * 4)
    assert dev_metric(logits, truth) == pytest.approx(3 / 4)
    assert dev_metric(logits, truth, balanced_weights(torch.tensor([3.0, 1.0]))) == pytest.approx(1 / 2)


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """One pair in twenty is of class 'rare'; the classes overlap, so that always saying 'usual' is right in 95 %."""
    random = np.random.default_rng(8)
    is_rare = np.arange(N) % 20 == 0
    images = random.normal(size=(N, 3)) + np.where(is_rare, 2.0, 0.0)[:, None] * np.array([1, 0, 0])
    path = tmp_path_factory.mktemp("rare") / "s"
    with StoreWriter(path) as writer:
        writer.register([tower("eye", dim=3), tower("word", dim=3, modality="text")])
        writer.append("image", [item(f"i{n}") for n in range(N)], {"eye": pooled(*images)})
        writer.append("text", [item("what is it?")], {"word": pooled([1, 0, 0])})
    targets = ["rare" if one else "usual" for one in is_rare]
    pairs = Pairs(
        [f"i{n}" for n in range(N)],
        ["what is it?"] * N,
        targets,
        [{} for _ in range(N)],
        [f"made:{n}" for n in range(N)],
    )
    return Store.open(path), pairs.select(range(N // 2)), pairs.select(range(N // 2, N))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("linear", {}),
        ("kernel", {}),
        ("image", {"epochs": 15, "batch_size": 40, "learning_rate": 2e-3}),
        ("tiny", {"epochs": 12, "batch_size": 40, "layers": 0}),
    ],
)
def test_rare_classes_are_found(rare, tmp_path, model, options):
    store, pairs, test = rare
    recall = {}
    for weight in ("balanced", None):
        run = train(
            store, pairs, run=tmp_path / str(weight), task="classification", model=model, find_groups=False, dev=pairs,
            options={**options, "class_weight": weight},
        )  # fmt: skip
        scorer = Scorer(run, store)
        labels = [one.label for one in scorer.predict(list(zip(test.images, test.texts, strict=True)))]
        recall[weight] = {
            name: np.mean([a == name for a, b in zip(labels, test.targets, strict=True) if b == name])
            for name in ("rare", "usual")
        }
        said = [note for note in run.results["notes"] if note.startswith("class_weight=balanced: probabilities")]
        assert len(said) == (weight == "balanced")
    assert recall[None]["rare"] < 0.5
    assert recall["balanced"]["rare"] >= recall[None]["rare"] + 0.3
    assert recall["balanced"]["usual"] > 0.5
    assert evaluate(scorer, test).n == N // 2


def test_linear_equals_a_weighted_logistic_regression(rare, tmp_path):
    from sklearn.linear_model import LogisticRegression

    store, pairs, _ = rare
    run = train(
        store, pairs, run=tmp_path / "r", task="classification", model="linear", find_groups=False, dev=pairs,
        options={"class_weight": "balanced"},
    )  # fmt: skip
    network = run.network
    assert isinstance(network, Linear)
    values, _ = store.read("image", pairs.images, [store.towers["eye"]])
    texts, _ = store.read("text", pairs.texts, [store.towers["word"]])
    with torch.no_grad():
        features = network.statistics(
            network.features(*(torch.from_numpy(one).float() for one in (values, texts)), None, None)
        ).numpy()
        logits = network(torch.from_numpy(values).float(), torch.from_numpy(texts).float()).numpy()
    index = {label: number for number, label in enumerate(run.labels)}
    reference = LogisticRegression(C=1e3, class_weight="balanced", max_iter=2000).fit(
        features, [index[one] for one in pairs.targets]
    )
    agree = (logits.argmax(axis=1) == reference.predict(features)).mean()
    assert agree > 0.97  # the penalty is chosen; the boundary is that of equal classes all the same


def test_what_has_no_classes_is_refused(made_twice, tmp_path):
    weighted = {"class_weight": "balanced"}
    for model in ("linear", "mlp", "tiny"):
        with pytest.raises(UsageError, match="class_weight=balanced needs .* found a matching"):
            train(
                made_twice.store, made_twice.captions, run=tmp_path / model, task="matching", model=model,
                options=weighted,
            )  # fmt: skip
    pairs = made_twice.train
    soft = Pairs(pairs.images, pairs.texts, [{one: 0.6} for one in pairs.targets], pairs.extras, pairs.places)
    with pytest.raises(UsageError, match="found weights of answers"):
        train(made_twice.store, soft, run=tmp_path / "s", task="classification", model="linear", options=weighted)
    with pytest.raises(UsageError, match="The model 'majority' has no option 'class_weight'; these have it: auto"):
        train(made_twice.store, pairs, run=tmp_path / "k", task="classification", model="majority", options=weighted)
