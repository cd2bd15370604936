"""The verdict: its rule by hand, every kind of sentence, and no claims where there is nothing."""

import numpy as np
import pytest

from frevl.diagnosis.verdict import Gap, Judged, compare, reach_verdict


def hits(right, n=100):
    """The first `right` of n pairs are right."""
    return (np.arange(n) < right).astype(float)


def models(**right):
    """Models of 100 pairs, each right on the first so many; development scores are the same."""
    roles = {"majority": "majority", "text": "text", "image": "image", "kernel": "fusion"}
    return [Judged(name, roles.get(name, "baseline"), hits(n), n / 100) for name, n in right.items()]


CLUSTERS = [f"{number}.png" for number in range(100)]
BLIND = {"image": hits(40), "text": hits(40)}


def verdict(exchanged=BLIND, clusters=CLUSTERS, **right):
    return reach_verdict(models(**right), exchanged, clusters)[0]


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
    assert Gap(5.0, 1.0, 9.0, 0.009).certain
    assert not Gap(5.0, 1.0, 9.0, 0.01).certain  # the first claim needs more than the others
    assert not Gap(5.0, -1.0, 9.0, 0.009).certain
    assert Gap(-5.0, -9.0, -1.0, 0.01).down
    assert str(Gap(-5.0, -9.0, -1.0, 0.01)) == "-5.0 points, -9.0 to -1.0"


def test_the_fusion_wins():
    said = verdict(majority=40, text=50, image=45, linear=60, mlp=70, kernel=90)
    assert said["kind"] == "fusion"
    low, high = said["differences"]["linear"]["ci95"]
    assert said["sentence"] == (
        f"The fusion (kernel) beats the linear probe by 30.0 points ({low:.1f} to {high:.1f}): worth it."
    )
    assert 20 < low < 23
    assert 37 < high < 40  # 30 of 100: 1.96 * sqrt(0.3 * 0.7 / 100) is 9 points
    assert said["fusion"] == "kernel"
    assert said["scores"]["kernel"]["value"] == 90
    low, high = said["scores"]["kernel"]["ci95"]
    assert said["detail"][0] == (
        f"The fusion (kernel) answers 90.0 % of the test pairs right ({low:.1f} to {high:.1f}); without the image "
        "50.0 % can be answered (text), without the text 45.0 % (image), and 40.0 % by always giving the most frequent "
        "answer."
    )
    assert said["detail"][1].startswith("The fusion (kernel) beats the linear model: +30.0 points, ")


@pytest.mark.parametrize(
    ("right", "exchanged", "kind", "words"),
    [
        ({"linear": 60, "mlp": 90, "kernel": 90}, BLIND, "mlp", "worth it, but a plain MLP is as good"),
        ({"linear": 89, "mlp": 70, "kernel": 90}, BLIND, "simple", "does not measurably beat the linear probe"),
        ({"linear": 60, "mlp": 98, "kernel": 80}, BLIND, "baseline", "is worse than the mlp model, by 18.0 points"),
        ({"linear": 55, "mlp": 60, "kernel": 52}, BLIND, "baseline", "is worse than the mlp model"),
        ({"text": 89, "linear": 70, "mlp": 70, "kernel": 90}, BLIND, "text", "The image adds nothing"),
        ({"image": 89, "linear": 70, "mlp": 70, "kernel": 90}, BLIND, "image", "The text adds nothing"),
        ({"text": 89, "image": 89, "linear": 70, "mlp": 70, "kernel": 90}, BLIND, "either", "nothing to each other"),
        ({"text": 41, "image": 41, "linear": 41, "mlp": 42, "kernel": 42}, BLIND, "chance", "Everything is at chance"),
        ({"linear": 41, "mlp": 80, "kernel": 42}, BLIND, "baseline", "at chance (+2.0"),
        # Better than the text alone, but just as good with wrong images: not the image earns it.
        (
            {"linear": 60, "mlp": 60, "kernel": 90},
            {"image": hits(89), "text": hits(40)},
            "text",
            "with its own against wrong images: +1.0",
        ),
    ],
)
def test_every_kind_of_verdict(right, exchanged, kind, words):
    said = verdict(exchanged, **{"majority": 40, "text": 50, "image": 45, **right})
    assert said["kind"] == kind
    assert words in said["sentence"]


def test_a_certain_but_tiny_gain_is_not_called_worth_it():
    n = 4000
    rights = {"majority": 1600, "text": 2000, "image": 1800, "linear": 3600, "mlp": 2400, "kernel": 3620}
    roles = {"majority": "majority", "text": "text", "image": "image", "kernel": "fusion"}
    some = [Judged(name, roles.get(name, "baseline"), hits(right, n), right / n) for name, right in rights.items()]
    exchanged = {"image": hits(1600, n), "text": hits(1600, n)}
    said = reach_verdict(some, exchanged, [str(number) for number in range(n)])[0]
    assert said["sentence"].startswith("The fusion (kernel) beats the linear probe by 0.5 points")
    assert said["sentence"].endswith("measurable, but hardly worth it.")


def test_a_single_class_is_no_evidence():
    some = models(majority=100, text=100, image=45, linear=60, kernel=90)
    said = reach_verdict(some, BLIND, CLUSTERS, only="yes")[0]
    assert said["kind"] == "single"
    assert said["sentence"].startswith(
        "Nothing can be told from test pairs of a single class: all 100 have the answer 'yes'"
    )
    assert said["detail"] == []


def test_few_images_are_no_evidence():
    few = [f"{number % 19}.png" for number in range(100)]
    said = verdict(clusters=few, majority=40, text=50, image=45, linear=60, kernel=90)
    assert said["kind"] == "few"
    assert said["sentence"].startswith("Too few pairs to tell: 100 test pairs on 19 images")


def test_choices_are_made_on_development_data_never_on_the_test():
    some = models(majority=40, text=50, image=45, linear=60, kernel=80)
    some.append(Judged("tiny", "fusion", hits(95), 0.7))  # better on the test, worse on development pairs
    said, findings = reach_verdict(some, BLIND, CLUSTERS)
    assert said["fusion"] == "kernel"
    names = [finding.name for finding in findings]
    assert names[0] == "accuracy"
    assert "fusion-against-tiny" in names
    assert [row["model"] for row in findings[0].table] == ["majority", "text", "image", "linear", "kernel", "tiny"]
    worse = next(finding for finding in findings if finding.name == "fusion-against-tiny")
    assert worse.value == pytest.approx(-15)
    assert "is worse than tiny" in worse.claim


def test_noise_is_seldom_called_a_gain():
    """On 60 sets where all models guess, the nested claims come out in less than the 5 % of a single test."""
    random = np.random.default_rng(3)
    kinds = []
    for _ in range(60):
        some = [
            Judged(name, role, random.integers(0, 2, 120).astype(float), float(random.random()))
            for name, role in [("majority", "majority"), ("text", "text"), ("image", "image"), ("linear", "baseline"),
                               ("kernel", "fusion")]
        ]  # fmt: skip
        exchanged = {side: random.integers(0, 2, 120).astype(float) for side in ("image", "text")}
        clusters = [f"{number % 60}" for number in range(120)]
        kinds.append(reach_verdict(some, exchanged, clusters)[0]["kind"])
    assert sum(kind != "chance" for kind in kinds) <= 3
    assert sum(kind in ("fusion", "mlp") for kind in kinds) <= 1
