"""Claims and advice on embeddings over all signs and sizes: none may contradict its own number."""

import pytest

from frevl.diagnosis.embeddings.embedding_findings import gap_advice, hub_claim, projection_advice, rank_advice
from frevl.diagnosis.embeddings.probes import fine_grained_claim, skills_advice, tokens_claim
from frevl.evaluation.intervals import Interval

NAN = float("nan")


# --------------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize(
    ("rank", "items", "width", "advice"),
    [
        (120.0, 131, 1280, "as many as possible"),
        (15.0, 2000, 1280, "look alike to this encoder"),
        (15.0, 100, 1280, "wider than it needs to be"),
        (265.0, 2000, 1280, "wider than it needs to be"),
        (300.0, 2000, 384, "as many as possible"),
    ],
)
def test_effective_ranks(rank, items, width, advice):
    assert advice in rank_advice(rank, items, width)


@pytest.mark.parametrize(
    ("skew", "word", "advice"),
    [(-0.2, "few hubs", "Nothing to do"), (1.9, "few hubs", "Nothing to do"), (2.0, "some hubs", "look at the first"),
     (4.9, "some hubs", "look at the first"), (5.0, "strong hubs", "rerank")],
)  # fmt: skip
def test_hubs(skew, word, advice):
    told, todo = hub_claim(skew)
    assert told == word
    assert advice in todo


@pytest.mark.parametrize(
    ("wins", "advice"),
    [
        (Interval(0.98, 0.95, 1.0), "harmless while the right text wins, as it does here"),
        (Interval(0.52, 0.48, 0.56), "train a matching model"),
        (Interval(0.5, NAN, NAN), "train a matching model"),
        (Interval(0.3, 0.25, 0.35), "The wrong text wins more often than not"),
    ],
)
def test_gaps_between_the_modalities(wins, advice):
    assert advice in gap_advice(wins)


@pytest.mark.parametrize(
    ("low", "high", "advice"),
    [
        (80.0, 90.0, "Most neighbours stay the same"),
        (45.0, 55.0, "about half of the neighbours differ"),
        (20.0, 30.0, "do not search or cluster with projected embeddings"),
        (6.0, 9.0, "do not search or cluster with projected embeddings"),
    ],
)
def test_projections(low, high, advice):
    assert advice in projection_advice(low, high, 7.7)


# -------------------------------------------------------------------------------------------- probes


@pytest.mark.parametrize(
    ("semantic", "gap", "claim", "advice"),
    [
        (
            40.0,
            Interval(30.0, 25.0, 35.0),
            "cannot be measured by the paper's rule",
            "captures little of what is drawn",
        ),
        (90.0, Interval(30.0, 25.0, 35.0), "are behind the semantic ones by 30.0 points", "are the wrong tool"),
        (90.0, Interval(16.0, 10.0, 22.0), "whether that is more than 15 is uncertain", "This is borderline"),
        (
            90.0,
            Interval(6.0, 2.0, 10.0),
            "by 6.0 points (2.0 to 10.0), less than the 15",
            "the fine detail is captured",
        ),
        (90.0, Interval(1.0, -2.0, 4.0), "are as good as the semantic ones as far as", "the fine detail is captured"),
        (90.0, Interval(-5.0, -8.0, -2.0), "are ahead of the semantic ones by 5.0 points (2.0 to 8.0)", "less so"),
    ],
)
def test_fine_grained_skills(semantic, gap, claim, advice):
    told, todo = fine_grained_claim(semantic, gap)
    assert claim in told
    assert advice in todo


@pytest.mark.parametrize(
    ("score", "above", "advice"),
    [
        (3.0, False, "contain nothing measurable about count"),
        (30.0, True, "this encoder is the bottleneck"),
        (80.0, True, "All skills can be read from these embeddings, even count."),
    ],
)
def test_the_weakest_skill(score, above, advice):
    assert advice in skills_advice("count", score, above)


@pytest.mark.parametrize(
    ("gain", "claim", "advice"),
    [
        (
            Interval(20.0, 15.0, 25.0),
            "Tokens hold more fine detail than pooled embeddings: +20.0",
            "extract with --tokens",
        ),
        (Interval(0.5, 0.1, 0.9), "Tokens hold more fine detail", "extract with --tokens"),
        (Interval(1.0, -2.0, 4.0), "Tokens add nothing measurable", "smaller and quicker"),
        (Interval(-9.0, -12.0, -6.0), "Tokens serve the fusion worse", "more to learn from the same images"),
    ],
)
def test_tokens(gain, claim, advice):
    told, todo = tokens_claim(gain)
    assert claim in told
    assert advice in todo
