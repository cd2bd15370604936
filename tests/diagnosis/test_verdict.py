"""The verdict: its rule by hand, every kind of sentence, and no claims where there is nothing."""

import itertools

import numpy as np
import pytest

from frevl.diagnosis.gaps import Gap, compare
from frevl.diagnosis.model_choice import ModelChoice, ModelResult
from frevl.diagnosis.verdict import KINDS, fusion_advice, reach_verdict

ROLES = {
    "majority": "majority", "text": "text", "text kernel": "text", "image": "image", "image kernel": "image",
    "kernel": "fusion", "tiny": "fusion",
}  # fmt: skip


def hits(right, n=100):
    """The first `right` of n pairs are right."""
    return (np.arange(n) < right).astype(float)


def models(**right):
    """Models of 100 pairs, each right on the first so many; development pairs say the same."""
    return [ModelResult(name, ROLES.get(name, "baseline"), hits(n), n / 100) for name, n in right.items()]


def crossed(name, test, cross_validated, dev=0.5):
    """A model with so many of 100 test pairs right, and of 100 held-out training pairs."""
    return ModelResult(name, ROLES.get(name, "baseline"), hits(test), dev, held_out=hits(cross_validated))


CLUSTERS = [f"{number}.png" for number in range(100)]
BLIND = {"image": hits(40), "text": hits(40)}


def reached(some, exchanged=BLIND, clusters=CLUSTERS, **options):
    """All models that see both lose the same with wrong images and texts."""
    of_models = {model.name: exchanged for model in some if model.role in ("baseline", "fusion")}
    return reach_verdict(ModelChoice(some, clusters, clusters, of_models), **options)


def verdict(exchanged=BLIND, clusters=CLUSTERS, **right):
    return reached(models(**right), exchanged, clusters)[0]


def test_a_gap_by_hand():
    # Four images, the first better on three of them and equal on one: +75 points; 2 of 8 sign patterns are as extreme.
    gap = compare(np.array([1.0, 1, 1, 1]), np.array([0.0, 0, 0, 1]), ["a", "b", "c", "d"])
    assert gap.value == 75
    assert gap.p == 0.25
    assert not gap.up  # three differing images can never reach p < 0.05


def test_interval_and_test_must_agree():
    assert Gap(5.0, 1.0, 9.0, 0.01).up
    assert not Gap(5.0, 1.0, 9.0, 0.06).up
    assert str(Gap(5.0, 1.0, 9.0, 0.06)) == "+5.0 points, 1.0 to 9.0, p = 0.06"
    assert not Gap(5.0, -1.0, 9.0, 0.01).up
    assert Gap(5.0, 1.0, 9.0, 0.009).better_at(0.01)
    assert not Gap(5.0, 1.0, 9.0, 0.01).better_at(0.01)  # the first claim needs more than the others
    assert not Gap(5.0, -1.0, 9.0, 0.009).better_at(0.01)
    assert Gap(-5.0, -9.0, -1.0, 0.01).down
    assert str(Gap(-5.0, -9.0, -1.0, 0.01)) == "-5.0 points, -9.0 to -1.0"


def test_a_gap_from_the_other_side():
    gap = Gap(-5.0, -9.0, -1.0, 0.01)
    assert -gap == Gap(5.0, 1.0, 9.0, 0.01)
    assert (gap.sign, (-gap).sign, Gap(-5.0, -9.0, 1.0, 0.2).sign) == (-1, 1, 0)
    assert gap.size() == (-gap).size() == "5.0 points (1.0 to 9.0)"
    assert gap.standard_error == pytest.approx(8 / 3.92)
    nan = float("nan")
    assert (Gap(5.0, nan, nan, 0.01).sign, Gap(5.0, nan, nan, 0.01).size()) == (0, "5.0 points (no interval)")


# -------------------------------------------------------------------------------------- which is best


def test_the_cross_validation_chooses_and_not_the_development_pairs():
    """On few development pairs the worst fusion was the best by luck."""
    some = [crossed("kernel", 80, 79, dev=0.6), crossed("tiny", 78, 76, dev=0.7)]
    assert ModelChoice(some, CLUSTERS, CLUSTERS).best("fusion").name == "kernel"


def test_a_model_that_was_not_cross_validated_is_no_choice_unless_the_others_are_beaten():
    some = [crossed("kernel", 80, 70, dev=0.6), ModelResult("tiny", "fusion", hits(82), 0.75)]
    assert ModelChoice(some, CLUSTERS, CLUSTERS).best("fusion").name == "kernel"
    some[1] = ModelResult("tiny", "fusion", hits(95), 0.5)
    assert ModelChoice(some, CLUSTERS, CLUSTERS).best("fusion").name == "tiny"


def test_choices_are_made_on_development_data_unless_the_test_measurably_disagrees():
    some = models(majority=40, text=50, image=45, linear=60, kernel=80)
    some.append(ModelResult("tiny", "fusion", hits(83), 0.7))  # better on the test, by chance as far as can be told
    said, findings = reached(some)
    assert said["fusion"] == said["recommended"] == "kernel"
    assert (
        "best of all are the fusion (tiny) (83.0 % right) and the fusion (kernel) (80.0 % right), which"
        in (said["sentence"])
    )
    names = [finding.name for finding in findings]
    assert names[0] == "accuracy"
    assert "fusion-against-tiny" in names
    assert [row["model"] for row in findings[0].table] == ["majority", "text", "image", "linear", "kernel", "tiny"]
    other = next(finding for finding in findings if finding.name == "fusion-against-tiny")
    assert other.value == pytest.approx(-3)
    assert "is not measurably better than the fusion (tiny)" in other.claim
    some[-1] = ModelResult("tiny", "fusion", hits(95), 0.7)
    said, _ = reached(some)
    assert said["fusion"] == said["recommended"] == "tiny"


def test_leaders_are_beaten_neither_on_the_test_nor_on_all_pairs_together():
    some = [
        crossed("majority", 40, 40), crossed("text", 50, 50), crossed("image", 41, 42), crossed("image kernel", 58, 40),
        crossed("kernel", 62, 62),
    ]  # fmt: skip
    choice = ModelChoice(some, CLUSTERS, CLUSTERS)
    # On the test alone image kernel cannot be told from kernel (4 pairs); together with the training pairs it can.
    assert not choice.gap(some[4], some[3]).up
    assert [model.name for model in choice.leaders] == ["kernel"]
    assert choice.best("image").name == "image"  # no model of the image leads, so the cross-validation chooses of all
    without = ModelChoice([ModelResult(one.name, one.role, one.hits, one.dev) for one in some], CLUSTERS)
    assert [model.name for model in without.leaders] == ["kernel", "image kernel"]


def test_where_a_side_adds_nothing_the_other_one_alone_is_recommended():
    """kernel is surely a little better than text kernel on all pairs together, but not because of the image."""
    some = [crossed("majority", 40, 40), crossed("text kernel", 80, 80), crossed("image", 41, 40),
            crossed("linear", 70, 70), crossed("kernel", 84, 84)]  # fmt: skip
    exchanged = {"kernel": {"image": hits(84), "text": hits(40)}}
    choice = ModelChoice(some, CLUSTERS, CLUSTERS, exchanged)
    assert not choice.gap(some[4], some[1]).up
    assert choice.both.name == "kernel"
    assert (choice.adds("image"), choice.adds("text")) == (False, True)
    assert [model.name for model in choice.leaders] == ["kernel", "text kernel"]
    assert choice.recommended.name == "text kernel"


def test_where_the_test_and_all_pairs_disagree_the_test_decides():
    """mlp beats kernel on the test, and by far less than it loses on the training pairs."""
    some = [crossed("majority", 0, 0), crossed("text", 1, 1), crossed("image", 1, 1), crossed("mlp", 90, 10),
            crossed("kernel", 80, 60)]  # fmt: skip
    assert [model.name for model in ModelChoice(some, CLUSTERS, CLUSTERS).leaders] == ["mlp"]


def test_of_leaders_the_simplest_that_is_about_as_good_is_recommended():
    for linear, recommended in ((89, "linear"), (86, "kernel")):  # 86: two standard errors behind
        choice = ModelChoice(models(majority=40, text=50, image=45, linear=linear, kernel=90), CLUSTERS)
        assert [model.name for model in choice.leaders] == ["kernel", "linear"]
        assert choice.recommended.name == recommended


# ----------------------------------------------------------------------------------- every sentence


def test_the_fusion_wins():
    said = verdict(majority=40, text=50, image=45, linear=60, mlp=70, kernel=90)
    assert said["kind"] == "fusion"
    own = "{:.1f} to {:.1f}".format(*said["scores"]["kernel"]["ci95"])
    mlp = "{:.1f} to {:.1f}".format(*said["differences"]["mlp"]["ci95"])
    linear = "{:.1f} to {:.1f}".format(*said["differences"]["linear"]["ci95"])
    assert said["sentence"] == (
        f"Image and text are both needed; best of all is the fusion (kernel) with 90.0 % right ({own}), 20.0 points "
        f"({mlp}) above the mlp model, and the fusion (kernel) beats the linear probe by 30.0 points ({linear}): worth "
        "it."
    )
    low, high = said["differences"]["linear"]["ci95"]
    assert 20 < low < 23
    assert 37 < high < 40  # 30 of 100: 1.96 * sqrt(0.3 * 0.7 / 100) is 9 points
    assert said["fusion"] == said["both"] == said["recommended"] == "kernel"
    assert said["best"] == ["kernel"]
    assert said["scores"]["kernel"]["value"] == 90
    assert said["detail"][0] == (
        f"The fusion (kernel) answers 90.0 % right ({own}); without the image 50.0 % can be answered (text), without "
        "the text 45.0 % (image), and 40.0 % by always giving the most frequent answer."
    )
    assert said["detail"][1] == f"The fusion (kernel) beats the linear probe: +30.0 points, {linear}."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "exchanged", "kind", "words", "recommended"),
    [
        ({"linear": 60, "mlp": 90, "kernel": 90}, BLIND, "mlp",
         "best of all are the mlp model (90.0 % right) and the fusion (kernel) (90.0 % right), which are "
         "indistinguishable: use the mlp model, the simplest of them.", "mlp"),
        ({"linear": 89, "mlp": 70, "kernel": 90}, BLIND, "simple",
         "best of all are the fusion (kernel) (90.0 % right) and the linear probe (89.0 % right), which are "
         "indistinguishable: use the linear probe, the simplest of them.", "linear"),
        ({"linear": 86, "mlp": 70, "kernel": 90}, BLIND, "simple",
         "use the fusion (kernel), but 100 pairs are too few to tell whether it is worth its cost.", "kernel"),
        ({"linear": 60, "mlp": 98, "kernel": 80}, BLIND, "baseline",
         "best of all is the mlp model with 98.0 % right", "mlp"),
        ({"linear": 60, "mlp": 98, "kernel": 80}, BLIND, "baseline", "above the fusion (kernel): use the mlp model",
         "mlp"),
        ({"linear": 96, "mlp": 97, "kernel": 80}, BLIND, "baseline",
         ", and the fusion (kernel) is worse than the linear probe by 16.0 points (", "linear"),
        ({"linear": 70, "mlp": 60, "kernel": 52}, BLIND, "baseline", "use the linear probe", "linear"),
        ({"text": 89, "linear": 70, "mlp": 70, "kernel": 90}, BLIND, "text",
         "The image adds nothing measurable on 100 pairs (kernel, which sees both, against text, which sees "
         "only the text: +1.0 points", "text"),
        ({"text": 95, "linear": 70, "mlp": 70, "kernel": 80}, BLIND, "text",
         "best of all is the text model with 95.0 % right", "text"),
        ({"text": 95, "linear": 70, "mlp": 70, "kernel": 80}, BLIND, "text",
         "use the text model, or try another image encoder.", "text"),
        ({"image": 89, "linear": 70, "mlp": 70, "kernel": 90}, BLIND, "image", "The text adds nothing", "image"),
        ({"image": 89, "linear": 96, "mlp": 70, "kernel": 90}, BLIND, "baseline", "use the linear probe", "linear"),
        ({"text": 89, "image": 89, "linear": 70, "mlp": 70, "kernel": 90}, BLIND, "either",
         "nothing measurable to each other", "text"),
        ({"text": 41, "image": 41, "linear": 41, "mlp": 42, "kernel": 42}, BLIND, "chance", "Everything is at chance",
         None),
        ({"text": 39, "image": 39, "linear": 46, "mlp": 40, "kernel": 40}, BLIND, "chance",
         "Nothing is reliably better than chance: the best model, linear, answers 46.0 % right and always giving the "
         "most frequent answer 40.0 % (+6.0 points", None),
        ({"text": 29, "image": 28, "linear": 30, "mlp": 29, "kernel": 30}, BLIND, "chance",
         "Nothing is as good as always giving the most frequent answer: the best model, linear", None),
        # The fusion is at chance; the best model of all is not.
        ({"linear": 41, "mlp": 80, "kernel": 42}, BLIND, "baseline", "best of all is the mlp model", "mlp"),
        # Better than the text alone, but just as good with wrong images: not the image earns it.
        ({"linear": 60, "mlp": 60, "kernel": 90}, {"image": hits(89), "text": hits(40)}, "text",
         "but with wrong images kernel loses nothing measurable (+1.0 points", "kernel"),
        ({"linear": 60, "mlp": 60, "kernel": 90}, {"image": hits(99), "text": hits(40)}, "text",
         "but with wrong images kernel is even better, by 9.0 points", "kernel"),
        # The image alone is worth something, though no model that sees both makes use of it.
        ({"image": 80, "linear": 60, "mlp": 60, "kernel": 60}, {"image": hits(60), "text": hits(60)}, "image",
         "best of all is the image model with 80.0 % right", "image"),
    ],
)  # fmt: skip
def test_every_kind_of_verdict(right, exchanged, kind, words, recommended):
    said = verdict(exchanged, **{"majority": 40, "text": 50, "image": 45, **right})
    assert said["kind"] == kind
    assert words in said["sentence"]
    assert said["recommended"] == recommended


def test_the_text_alone_is_best_although_a_poor_fusion_lost_to_a_baseline():
    """As on a part of SNLI-VE: the fusion that was chosen loses to mlp, but both lose to the text alone."""
    some = [
        crossed("majority", 40, 38), crossed("text", 61, 62, dev=0.62), crossed("text kernel", 70, 65, dev=0.64),
        crossed("image", 37, 38), crossed("linear", 58, 60, dev=0.61), crossed("mlp", 63, 63, dev=0.64),
        crossed("kernel", 64, 64, dev=0.63), crossed("tiny", 58, 60, dev=0.66),
    ]  # fmt: skip
    said, _ = reached(some, {"image": hits(62), "text": hits(40)})
    assert said["kind"] == "text"
    assert said["fusion"] == "kernel"  # the development pairs liked the other one
    assert said["sentence"].startswith(
        "The image adds nothing measurable on 100 pairs (kernel, which sees both, against text kernel, which "
        "sees only the text: -6.0 points"
    )
    assert "best of all is the text kernel model with 70.0 % right" in said["sentence"]
    assert said["sentence"].endswith(
        "above the fusion (kernel): use the text kernel model, or try another image encoder."
    )
    assert "mlp" not in said["sentence"]


GRID = list(itertools.product((41, 80), (42, 90), (42, 95), (43, 61, 96), (40, 62, 97), (30, 89)))


@pytest.mark.slow
@pytest.mark.parametrize(("text", "image", "linear", "mlp", "kernel", "wrong"), GRID)
def test_nothing_is_recommended_that_another_model_measurably_beats(text, image, linear, mlp, kernel, wrong):
    """Over all orders of the models: the recommendation, the sentence and the advice under every claim."""
    exchanged = {"image": hits(min(wrong, kernel)), "text": hits(40)}
    some = models(majority=40, text=text, image=image, linear=linear, mlp=mlp, kernel=kernel)
    said, findings = reached(some, exchanged)
    assert said["kind"] in KINDS
    assert said["sentence"].endswith(".")
    by_name = {model.name: model for model in some}
    if said["kind"] == "chance":
        assert said["recommended"] is None
        assert "use " not in said["sentence"]
    else:
        own = by_name[said["recommended"]]
        assert not any(compare(model.hits, own.hits, CLUSTERS).up for model in some)
        assert own.accuracy >= by_name[said["best"][0]].accuracy - 0.05
        if "use " in said["sentence"]:
            assert f"use {own.title}" in said["sentence"]
        else:
            assert own.role == "fusion"
            assert said["sentence"].endswith("worth it.")
    for finding in findings[1:]:
        sign = Gap(finding.value, *(finding.ci95 or (float("nan"),) * 2), p_of(finding)).sign
        name = finding.name.removeprefix("fusion-against-").replace("-", " ")
        assert finding.advice == fusion_advice(by_name[name], sign)
        assert {1: " beats ", 0: "not measurably", -1: "is worse than"}[sign] in finding.claim
        assert not any(word in finding.advice for word in ("use ", "take "))


def p_of(finding):
    return float(finding.how.rpartition("p = ")[2].rstrip("."))


ADVICE = {
    ("majority", 1): "has learned something",
    ("majority", 0): "has learned nothing measurable",
    ("majority", -1): "worse than no model at all",
    ("text", 1): "is better than x, which sees only the text",
    ("text", 0): "The image is not worth its cost in this model",
    ("text", -1): "Adding the image makes this model worse",
    ("image", 1): "the text is worth its cost",
    ("image", 0): "The text is not worth its cost in this model",
    ("image", -1): "Adding the text makes this model worse",
    ("baseline", 1): "better than this simpler model",
    ("baseline", 0): "does about as well",
    ("baseline", -1): "This simpler model is better",
    ("fusion", 1): "The better of the two fusions was chosen",
    ("fusion", 0): "The two fusions are indistinguishable",
    ("fusion", -1): "x is the better of the two fusions",
}


@pytest.mark.parametrize(("role", "sign"), ADVICE)
def test_advice_follows_the_sign_of_its_claim(role, sign):
    assert ADVICE[role, sign] in fusion_advice(ModelResult("x", role, hits(1), 0.5), sign)


@pytest.mark.slow
def test_a_certain_but_tiny_gain_is_not_called_worth_it():
    n = 4000
    rights = {"majority": 1600, "text": 2000, "image": 1800, "linear": 3600, "mlp": 2400, "kernel": 3620}
    some = [ModelResult(name, ROLES.get(name, "baseline"), hits(right, n), right / n) for name, right in rights.items()]
    exchanged = {"image": hits(1600, n), "text": hits(1600, n)}
    said = reached(some, exchanged, [str(number) for number in range(n)])[0]
    assert "best of all is the fusion (kernel) with 90.5 % right" in said["sentence"]
    assert "0.5 points (0.3 to 0.7) above the linear probe" in said["sentence"]
    assert said["sentence"].endswith("measurable, but hardly worth it.")


def test_a_lead_that_cannot_be_told_from_few_pairs_is_said_to_be_so():
    """Four points on 100 pairs, won and lost on different pairs: more than a standard error, less than is certain."""
    random = np.random.default_rng(0)
    order = random.permutation(100)
    kernel, linear = hits(90), hits(90)
    kernel[order[:10]], linear[order[:10]] = 1, 0
    kernel[order[10:15]], linear[order[10:15]] = 0, 1
    some = models(majority=40, text=50, image=45, mlp=60)
    some += [
        ModelResult("linear", "baseline", linear, 0.8), ModelResult("kernel", "fusion", kernel, 0.9),
    ]  # fmt: skip
    said, _ = reached(some, {"image": hits(20), "text": hits(20)})
    assert said["kind"] == "simple"
    assert said["recommended"] == "kernel"
    assert "best of all are the fusion (kernel) (" in said["sentence"]
    assert "and the linear probe (83.0 % right), which are indistinguishable" in said["sentence"]
    assert said["sentence"].endswith(
        "use the fusion (kernel), but 100 pairs are too few to tell whether it is worth its cost."
    )


def test_a_single_class_is_no_evidence():
    said = reached(models(majority=100, text=100, image=45, linear=60, kernel=90), only="yes")[0]
    assert said["kind"] == "single"
    assert said["sentence"].startswith("Test pairs of a single class show nothing: all 100 have the answer 'yes'")
    assert said["detail"] == []
    assert said["recommended"] is None


def test_few_images_are_no_evidence():
    few = [f"{number % 19}.png" for number in range(100)]
    said = verdict(clusters=few, majority=40, text=50, image=45, linear=60, kernel=90)
    assert said["kind"] == "few"
    assert said["sentence"].startswith("Too few pairs to tell: 100 test pairs on 19 images")
    assert said["recommended"] is None


@pytest.mark.slow
def test_noise_is_seldom_called_a_gain():
    """On 60 sets where all models guess, the nested claims come out in less than the 5 % of a single test."""
    random = np.random.default_rng(3)
    kinds = []
    for _ in range(60):
        some = [
            ModelResult(name, role, random.integers(0, 2, 120).astype(float), float(random.random()))
            for name, role in [("majority", "majority"), ("text", "text"), ("image", "image"), ("linear", "baseline"),
                               ("kernel", "fusion")]
        ]  # fmt: skip
        exchanged = {side: random.integers(0, 2, 120).astype(float) for side in ("image", "text")}
        kinds.append(reached(some, exchanged, [f"{number % 60}" for number in range(120)])[0]["kind"])
    assert sum(kind != "chance" for kind in kinds) <= 3
    assert sum(kind in ("fusion", "mlp") for kind in kinds) <= 1
