"""Matching runs from training to scores: first stage, reranker, selection, the same score on every path."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from frevl.errors import PairsError, UsageError
from frevl.evaluation.evaluation import evaluate
from frevl.models.retrieval.first_stage import with_alignment
from frevl.models.retrieval.kernel_alignment import fit_alignment
from frevl.models.retrieval.reranker import Reranked, Standardised, TermWeights
from frevl.models.retrieval.two_tower import TwoTower
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store
from frevl.training.options import FusionOptions
from frevl.training.retrieval.fit import with_enough_steps
from frevl.training.retrieval.reranker import bank_of
from frevl.training.training import train

OPTIONS = FusionOptions()
WEIGHTS = TermWeights(alignment=2.0, image_hubness=-0.5, text_hubness=-0.25, fusion=1.5)


def random_reranker(image_dim, text_dim):
    """A reranker with every part at work; trained ones may have weights of 0."""
    torch.manual_seed(3)
    first = TwoTower.of([TwoTower(image_dim=image_dim, text_dim=text_dim, hidden=7, width=5) for _ in range(2)])
    fusion = Standardised(
        fusion={"image_dim": image_dim, "text_dim": text_dim, "outputs": 1, "width": 16, "heads": 2, "ffn_width": 8,
                "head_width": 8}, input_dropout=0.3,
    )  # fmt: skip
    torch.nn.init.normal_(fusion.fusion.head.outer.weight)
    fusion.standardise(torch.randn(31, image_dim), torch.randn(31, text_dim))
    images, texts = torch.randn(17, image_dim), torch.randn(34, text_dim)
    alignment = fit_alignment(images, texts, torch.arange(17).repeat(2), torch.arange(34), seed=0, rank=2)
    first = with_alignment(first, alignment, 3.0)
    banks = bank_of(first, images, texts, torch.arange(3), torch.arange(11), 99, 0)
    return Reranked.of(first, *banks, fusion, weights=WEIGHTS, depth=3)


@pytest.fixture(scope="module")
def reranked_run(made, tmp_path_factory):
    """A trained run whose network was swapped for one with every part at work."""
    folder = tmp_path_factory.mktemp("reranked")
    run = train(made.store, made.captions, run=folder / "trained", task="matching", model="tiny", first_stage="dual",
                options={"epochs": 1})  # fmt: skip
    widths = [sum(made.store.towers[name].dim for name in run.towers[side]) for side in ("image", "text")]
    run.network = random_reranker(*widths)
    run.network_settings, run.network_name, run.path = run.network.settings, "reranked", folder / "run"
    run.save()
    return folder / "run"


def test_the_score_of_a_pair_is_the_sum_of_its_terms():
    network = random_reranker(5, 3)
    image, text = torch.randn(13, 5), torch.randn(13, 3)
    own = TwoTower(**{**network.first.settings, "alignment": None, "alignment_weight": 0.0}).eval()
    own.load_state_dict(network.first.state_dict(), strict=False)
    alignment = network.first.alignment
    first = own(image, text)[:, 0]
    banks, width = (network.bank_texts, network.bank_images), 10
    hubs = []
    for bank, side in zip(banks, ("image_vectors", "text_vectors"), strict=True):
        vectors = [getattr(part, side)(image if side == "image_vectors" else text) for part in (own, alignment)]
        logits = own.scale * vectors[0] @ bank[:, :width].T + 2 * vectors[1] @ bank[:, width:].T
        hubs.append(logits.exp().mean(dim=1).log())
    image_hubness, text_hubness = hubs
    aligned = (alignment.image_vectors(image) * alignment.text_vectors(text)).sum(dim=1)
    inner = network.fusion
    fused = inner.fusion((image - inner.image_mean) / inner.image_scale, (text - inner.text_mean) / inner.text_scale)
    expected = first + 2 * aligned - 0.5 * image_hubness - 0.25 * text_hubness + 1.5 * fused[:, 0]
    torch.testing.assert_close(network(image, text)[:, 0], expected, rtol=1e-4, atol=1e-4)
    # The candidates are sought with another weight of the alignment, by unit vectors.
    vectors = network.first.image_vectors(image), network.first.text_vectors(text)
    torch.testing.assert_close(vectors[0].norm(dim=1), torch.ones(13))
    torch.testing.assert_close(network.first.scale * (vectors[0] * vectors[1]).sum(dim=1), first + 3 * aligned)


def test_a_fusion_that_weighs_nothing_is_left_out():
    network = random_reranker(5, 3)
    image, text = torch.randn(7, 5), torch.randn(7, 3)
    plain = network.weighed(TermWeights(alignment=3.0), 2)
    assert plain.fusion is None
    torch.testing.assert_close(plain(image, text), network.first(image, text).expand(7, 2))
    torch.testing.assert_close(network.weighed(WEIGHTS, 3)(image, text), network(image, text))


def test_probabilities_come_from_a_logit_without_hubness():
    network = random_reranker(5, 3)
    image, text = torch.randn(7, 5), torch.randn(7, 3)
    score, match = network(image, text).T
    first, image_hubness, text_hubness, fusion = network.terms(network.image_items(image), network.text_items(text)).T
    torch.testing.assert_close(match, first + WEIGHTS.fusion * fusion)
    hubs = WEIGHTS.image_hubness * image_hubness + WEIGHTS.text_hubness * text_hubness
    assert hubs.abs().min() > 1e-3
    torch.testing.assert_close(score - match, hubs)


def test_a_new_reranker_adds_nothing_to_the_first_stage():
    sizes = {"image_dim": 5, "text_dim": 3, "outputs": 1}
    fresh = Standardised(fusion=sizes, input_dropout=0.0).eval()
    assert fresh.fusion(torch.randn(7, 5), torch.randn(7, 3)).abs().max() == 0


@pytest.mark.slow
def test_the_same_pair_has_the_same_score_on_every_road(made, reranked_run):
    scorer = Scorer.open(reranked_run, store=made.store, batch_size=7)
    images, texts = made.store.image_ids[:11], [*made.store.texts[:5], "a text that is not in the store"]
    grid = scorer.grid(images, texts)
    pairs = [(image, text) for image in images for text in texts]
    np.testing.assert_allclose(scorer.score(pairs), grid.reshape(-1), atol=1e-4)
    np.testing.assert_allclose(scorer.score(pairs[::-1]), grid.reshape(-1)[::-1], atol=1e-4)
    np.testing.assert_allclose([scorer.score([pair])[0] for pair in pairs[:8]], grid.reshape(-1)[:8], atol=1e-4)
    between = scorer.between(images, texts)
    np.testing.assert_allclose(between(np.array([3, 9]), np.array([5, 0])), [grid[3, 5], grid[9, 0]], atol=1e-4)
    network = Run.load(reranked_run).network
    with torch.inference_mode():
        direct = network(torch.from_numpy(made.store.read_images(images[:2])),
                         torch.from_numpy(made.store.read_texts(texts[:2])))  # fmt: skip
    # Stored embeddings are half precision; reading makes them unit length again.
    np.testing.assert_allclose(direct[:, 0], [grid[0, 0], grid[1, 1]], atol=2e-2)


def test_vectors_of_the_first_stage(made, reranked_run):
    scorer = Scorer.open(reranked_run, store=made.store, batch_size=3)
    assert scorer.has_first_stage
    assert scorer.rerank_depth == 3
    vectors = scorer.image_vectors(made.store.image_ids[:7])
    assert vectors.shape == (7, 12)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert scorer.text_vectors(["a red square", "never seen before"]).shape == (2, 12)
    assert scorer.image_vectors([]).shape == (0, 12)


def test_a_run_without_a_first_stage_says_so(made, tmp_path):
    train(made.store, made.captions, run=tmp_path / "run", task="matching", model="linear")
    scorer = Scorer.open(tmp_path / "run", store=made.store)
    assert not scorer.has_first_stage
    with pytest.raises(
        UsageError, match="the run has no first stage, so it cannot search; train one with --task matching"
    ):
        scorer.image_vectors(made.store.image_ids[:1])


def test_evaluation_reranks_and_reports_the_first_stage(made, reranked_run):
    scorer = Scorer.open(reranked_run, store=made.store)
    result = evaluate(scorer, made.captions)
    assert {"i2t_r1", "t2i_r10", "i2t_median_rank", "first_i2t_r1", "first_t2i_r10"} <= set(result.metrics)
    assert any("the first stage's best 3 were reranked" in note for note in result.notes)
    images, texts = list(dict.fromkeys(made.captions.images)), list(dict.fromkeys(made.captions.texts))
    grid = scorer.grid(images, texts)
    first = scorer.image_vectors(images) @ scorer.text_vectors(texts).T
    right = {(i, t) for i, t in zip(made.captions.images, made.captions.texts, strict=True)}
    hits = []
    for row, image in enumerate(images):
        head = sorted(range(len(texts)), key=lambda t, row=row: -first[row, t])[:3]
        best = max(head, key=lambda t, row=row: grid[row, t])
        hits.append((image, texts[best]) in right)
    assert result.metrics["i2t_r1"] == pytest.approx(100 * np.mean(hits))
    assert 1 <= result.metrics["i2t_median_rank"] <= len(texts)


@pytest.mark.slow
def test_dual_learns_captions(made, tmp_path):
    run = train(made.store, made.captions, run=tmp_path / "run", task="matching", model="dual", options={"epochs": 20})
    assert run.network_name == "dual"
    assert run.results["development"]["accuracy"] > 80
    assert evaluate(Scorer.open(run.path, store=made.store), made.captions).metrics["i2t_r1"] > 60


@pytest.mark.slow
def test_auto_keeps_the_whole_table(made, tmp_path, frevl):
    said = frevl(
        "train", "--store", made.store.path, "--pairs", made.captions_file, "--task", "matching", "--model", "auto",
        "--run", tmp_path / "run", "--json", tmp_path / "run.json", "--time-limit", 30,
    )  # fmt: skip
    assert said.code == 0, said.err
    selection = Run.load(tmp_path / "run").results["selection"]
    names = [row["name"] for row in selection["candidates"]]
    assert names == [
        "dual", "dual with alignment", "dual with alignment and hubness", "dual with alignment, hubness and tiny",
        "linear", "mlp", "cosine",
    ]  # fmt: skip
    assert selection["candidates"][-1]["reason"] == "the encoders have no common space of image and text"
    assert selection["chosen"] in names
    blend = selection["blend"]
    for name in ("i2t_r1", "t2i_r1"):
        assert blend["with_fusion"]["metrics"][name] >= blend["first_stage"]["metrics"][name]
    json.loads((tmp_path / "run.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "tiny", "first_stage": "duel"}, "There is no first stage 'duel'. Did you mean 'dual'"),
        ({"model": "mlp", "first_stage": "dual"}, "--first-stage needs a fusion .*found --model mlp"),
        ({"model": "cosine"}, "needs an encoder whose images and texts share a space"),
        ({"model": "tiny", "first_stage": "cosine"}, "needs an encoder whose images and texts share a space"),
    ],
)
def test_what_does_not_fit_is_refused(made, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        train(made.store, made.captions, run=tmp_path / "run", task="matching", **changes)


@pytest.mark.parametrize("model", ["dual", "cosine"])
def test_a_first_stage_does_matching_only(made, tmp_path, model):
    with pytest.raises(UsageError, match=f"The model '{model}' is for matching only"):
        train(made.store, made.train, run=tmp_path / "run", task="classification", model=model)
    with pytest.raises(UsageError, match="--first-stage"):
        train(made.store, made.train, run=tmp_path / "run", task="classification", first_stage="dual")


@pytest.mark.slow
def test_too_few_images_to_rerank(made, tmp_path):
    few = made.captions.select(
        [i for i, image in enumerate(made.captions.images) if image in ("0.png", "1.png", "2.png")]
    )
    with pytest.raises(PairsError, match="at least 6 training images with right texts, found"):
        train(made.store, few, run=tmp_path / "run", task="matching", model="tiny", first_stage="dual")


@pytest.mark.slow
def test_token_stores_rerank_too(made_tokens, tmp_path):
    run = train(made_tokens.store, made_tokens.test.images and _captions(made_tokens), run=tmp_path / "run",
                task="matching", model="tiny", first_stage="dual", options={"epochs": 1, "layers": 1})  # fmt: skip
    scorer = Scorer.open(run.path, store=made_tokens.store)
    assert np.isfinite(scorer.grid(made_tokens.store.image_ids[:3], made_tokens.store.texts[:2])).all()


def _captions(world):
    """Questions as captions: the token store holds no captions."""
    pairs = world.train
    return type(pairs)(pairs.images, pairs.texts, [None] * len(pairs), pairs.extras, pairs.places)


@pytest.mark.slow
def test_wide_image_towers_are_left_out_with_a_note(made_twice, tmp_path, monkeypatch):
    import frevl.training.retrieval.fit

    monkeypatch.setattr(frevl.training.retrieval.fit, "_WIDEST", 32)
    run = train(
        made_twice.store,
        made_twice.captions,
        run=tmp_path / "run",
        task="matching",
        model="dual",
        options={"epochs": 1},
    )
    assert list(run.towers["image"]) == ["toy2-image"]
    assert run.network.settings["image_dim"] == Store.open(made_twice.store.path).towers["toy2-image"].dim
    assert any(
        "Left out as too wide for retrieval: the image tower toy-image (64 numbers)" in n for n in run.results["notes"]
    )
    scorer = Scorer.open(run.path, store=made_twice.store)
    assert np.isfinite(scorer.score([(made_twice.store.image_ids[0], "a new text")])).all()


@pytest.mark.slow
def test_auto_on_too_few_images_to_rerank_takes_what_is_left(made, tmp_path):
    few = made.captions.select(
        [i for i, image in enumerate(made.captions.images) if image in ("0.png", "1.png", "2.png")]
    )
    run = train(made.store, few, run=tmp_path / "run", task="matching", model="auto", dev=made.captions, time_limit=20)
    left_out = {row["name"]: row["reason"] for row in run.results["selection"]["candidates"] if "reason" in row}
    assert left_out["reranking"] == "needs at least 6 training images"


@pytest.mark.parametrize(("pairs", "size"), [(3, 32), (1_023, 32), (1_125, 35), (2_048, 64), (8_191, 255), (8_192, 256),
                                             (566_747, 256)])  # fmt: skip
def test_few_captions_are_trained_in_small_batches(pairs, size):
    assert with_enough_steps(OPTIONS, pairs).batch_size == size
    assert with_enough_steps(replace(OPTIONS, batch_size=256), pairs).batch_size == 256


@pytest.mark.slow
def test_a_fusion_alone_makes_enough_steps_and_a_given_batch_size_stands(made, tmp_path):
    """The same weights as with the size of the rule, other ones than with 256."""
    weights = {}
    for name, given in (("own", {}), ("rule", {"batch_size": 32}), ("large", {"batch_size": 256})):
        train(
            made.store,
            made.captions,
            run=tmp_path / name,
            task="matching",
            model="tiny",
            options={"layers": 0, "epochs": 1, **given},
        )
        weights[name] = Run.load(tmp_path / name).network.state_dict()
    assert all(torch.equal(value, weights["rule"][name]) for name, value in weights["own"].items())
    assert not all(torch.equal(value, weights["large"][name]) for name, value in weights["own"].items())
