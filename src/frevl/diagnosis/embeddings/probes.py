"""Findings on what the embeddings contain: skills probed with drawn images, tokens against pooled, the 15 % rule."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frevl.diagnosis.embeddings.probe_fits import GRID, WAYS, Probed, ProbesCutError, Sizes, probe_encoder
from frevl.diagnosis.embeddings.probe_pictures import SKILLS
from frevl.diagnosis.findings import Finding, chart, series
from frevl.errors import FrevlError
from frevl.evaluation.intervals import Interval, bootstrap_interval, hit_interval
from frevl.store.reader import Store

__all__ = ["RULE", "fine_grained_claim", "probe_findings", "shortfall", "skills_advice", "tokens_claim"]

RULE = 15.0
"""Points by which fine-grained skills may trail semantic ones before frozen embeddings are called the wrong tool
(arXiv 2508.04469 gives 15 %; our scores are corrected for chance, as the skills differ in their number of answers)."""

_LEAST = 50.0  # mean score of the semantic skills below which a shortfall is meaningless
_RESAMPLES = 2000
_REFERENCE = "tiny, pooled"  # the probe whose scores the claims quote


def probe_findings(
    encoders: Store | Sequence[str],
    *,
    seed: int = 0,
    sizes: Sizes | None = None,
    cache: str | Path | None = None,
    time_limit: float | None = None,
    progress: bool = False,
) -> list[Finding]:
    """Probe encoders with drawn images of known truth.

    Args:
        encoders: Names of encoders, or a store: all of its encoders.
        seed: Random seed for images and fits.
        sizes: Images per skill; None takes the defaults of `Sizes`.
        cache: Folder that caches results; None takes one in the encoders' cache folder.
        time_limit: Total seconds for encoders not yet measured; None sets no limit.
        progress: Show progress.

    Returns:
        Three findings per encoder: the skills, fine-grained against semantic ones, and tokens against pooled (missing
        if the encoder has no tokens). If an encoder cannot be used here, a single finding that gives the reason.
    """
    findings = []
    started = time.monotonic()
    for name in encoders.encoders if isinstance(encoders, Store) else encoders:
        left = None if time_limit is None else max(time_limit - (time.monotonic() - started), 0.0)
        try:
            probed = probe_encoder(
                name,
                seed=seed,
                sizes=sizes,
                cache=None if cache is None else Path(cache),
                time_limit=left,
                progress=progress,
            )
        except ProbesCutError as error:
            findings.append(_cut_short(name, error))
            continue
        except FrevlError as error:  # a diagnosis continues without probes
            findings.append(_not_probed(name, error))
            continue
        findings += [_skills(probed), _fine_grained(probed)]
        if "tiny, tokens" in probed.hits:
            findings.append(_tokens(probed))
    return findings


def shortfall(probed: Probed, way: str, *, seed: int = 0) -> Interval:
    """Return by how many points fine-grained skills lag behind semantic ones, with a 95 % interval.

    A skill's score is ``(accuracy - chance) / (1 - chance)``: 0 is guessing, 100 is perfect. The shortfall is the mean
    over the semantic skills minus that over the fine-grained ones; the bootstrap resamples test images within each
    skill.
    """
    return _bootstrapped(lambda scores: _mean(scores, semantic=True) - _mean(scores, semantic=False), probed, way, seed)


def _bootstrapped(
    statistic: Callable[[dict[str, Any]], Any], probed: Probed, way: str, seed: int, against: str | None = None
) -> Interval:
    """Bootstrap a statistic of the skills' scores, in points; ``against`` subtracts another probe's, paired."""
    random = np.random.default_rng(seed)
    whole, drawn = {}, {}
    for name, skill in SKILLS.items():
        hits = np.array(probed.hits[way][name], float)
        scored = (hits - skill.chance) / (1 - skill.chance)
        if against is not None:
            scored = (hits - np.array(probed.hits[against][name], float)) / (1 - skill.chance)
        whole[name] = 100 * scored.mean()
        drawn[name] = 100 * scored[random.integers(0, len(scored), (_RESAMPLES, len(scored)))].mean(axis=1)
    low, high = np.quantile(statistic(drawn), [0.025, 0.975])
    return Interval(float(statistic(whole)), float(low), float(high))


def _mean(scores: dict[str, Any], *, semantic: bool) -> Any:
    chosen = [scores[name] for name, skill in SKILLS.items() if skill.semantic == semantic]
    return sum(chosen) / len(chosen)


# ---- findings


def _skills(probed: Probed) -> Finding:
    """Return the finding on every skill with every probe."""
    intervals = {
        (way, name): hit_interval(np.array(hits[name])) for way, hits in probed.hits.items() for name in SKILLS
    }
    rows = [
        {
            "skill": name,
            "kind": "semantic" if skill.semantic else "fine-grained",
            "read by": way,
            "right %": 100 * intervals[way, name].value,
            "low": 100 * intervals[way, name].low,
            "high": 100 * intervals[way, name].high,
            "guessing %": 100 * skill.chance,
        }
        for name, skill in SKILLS.items()
        for way in probed.hits
    ]
    weakest = min(SKILLS, key=lambda name: _above_chance(probed, name))
    best = max(SKILLS, key=lambda name: _above_chance(probed, name))
    value = Interval(*(100 * number for number in intervals[_REFERENCE, weakest]))
    took = sum(probed.seconds.values())
    return Finding(
        name=f"probes-{probed.encoder}-skills",
        section="probes",
        claim=(
            f"The embeddings of {probed.encoder} hold {best} best and {weakest} worst: {value.value:.1f} % of "
            f"{probed.sizes.test:,} drawn images are answered right, guessing gives "
            f"{100 * SKILLS[weakest].chance:.1f} %."
        ),
        value=value.value,
        ci95=[value.low, value.high],
        how=(
            f"{len(SKILLS)} skills, each on {probed.sizes.train:,} training, {probed.sizes.dev:,} development and "
            f"{probed.sizes.test:,} test images drawn with exact truth; logistic regression per skill, and tiny "
            f"on all skills at once; tokens are a {GRID} grid. The value is the accuracy of {_REFERENCE} on the "
            "weakest skill in percent; 95 % bootstrap over images. "
            f"{'Measured before, in' if probed.cached else 'It took'} {took:.0f} s."
        ),
        advice=skills_advice(weakest, 100 * _above_chance(probed, weakest), value.low > 100 * SKILLS[weakest].chance),
        table=rows,
        plot=chart(
            "bars",
            "skill",
            "right answers, %",
            *[
                series(
                    way,
                    list(SKILLS),
                    [100 * intervals[way, name].value for name in SKILLS],
                    low=[100 * intervals[way, name].low for name in SKILLS],
                    high=[100 * intervals[way, name].high for name in SKILLS],
                )
                for way in WAYS
                if way in probed.hits
            ],
            series("guessing", list(SKILLS), [100 * skill.chance for skill in SKILLS.values()], dashed=True),
        ),
    )


def skills_advice(weakest: str, score: float, above_chance: bool) -> str:
    """Return advice on the weakest skill.

    Args:
        weakest: Name of the weakest skill.
        score: Score of the skill in percent, corrected for chance: 0 is guessing, 100 is perfect.
        above_chance: Whether the skill's accuracy is reliably above guessing.
    """
    cleaner = (
        " Drawn images are cleaner than photographs: what is missing here will be missing there, and what is "
        "present here may still be missing there."
    )
    if not above_chance:
        return (
            f"These embeddings contain nothing measurable about {weakest}: if your task needs it, use tokens or "
            f"another encoder; more data will not help.{cleaner}"
        )
    if score < _LEAST:
        return (
            f"If your task needs {weakest}, this encoder is the bottleneck: try tokens or another encoder before "
            f"more data.{cleaner}"
        )
    return f"All skills can be read from these embeddings, even {weakest}.{cleaner}"


def _above_chance(probed: Probed, name: str) -> float:
    chance = SKILLS[name].chance
    return (probed.accuracy(_REFERENCE, name) - chance) / (1 - chance)


def _fine_grained(probed: Probed) -> Finding:
    """Return the finding on the paper's 15 % rule."""
    found = {way: shortfall(probed, way) for way in probed.hits}
    gap = found[_REFERENCE]
    scores = {name: 100 * _above_chance(probed, name) for name in SKILLS}
    semantic, fine = _mean(scores, semantic=True), _mean(scores, semantic=False)
    compared, advice = fine_grained_claim(semantic, gap)
    return Finding(
        name=f"probes-{probed.encoder}-fine-grained",
        section="probes",
        claim=f"In the embeddings of {probed.encoder}, fine-grained skills {compared}.",
        value=gap.value,
        ci95=[gap.low, gap.high],
        how=(
            "Mean score of the semantic skills (colour, shape) minus that of the fine-grained ones, in points; a score "
            f"is (accuracy - chance) / (1 - chance), of {_REFERENCE}: {semantic:.1f} and {fine:.1f}. 95 % "
            "bootstrap over images. Rule of arXiv 2508.04469, with our correction for chance."
        ),
        advice=advice,
        table=[
            {"read by": way, "shortfall": one.value, "low": one.low, "high": one.high} for way, one in found.items()
        ],
    )


def fine_grained_claim(semantic: float, gap: Interval) -> tuple[str, str]:
    """Return claim and advice on fine-grained skills.

    Args:
        semantic: Mean score of the semantic skills, in percent and corrected for chance.
        gap: Number of points by which the fine-grained skills lag behind.
    """
    behind = f"are behind the semantic ones by {gap.value:.1f} points ({gap.low:.1f} to {gap.high:.1f})"
    if semantic < _LEAST:
        return (
            f"cannot be measured by the paper's rule: even the semantic ones reach a score of only {semantic:.1f}",
            "This encoder captures little of what is drawn; compare it with others on your own pairs.",
        )
    if gap.low > RULE:
        return (
            f"{behind}, more than the {RULE:.0f} that the paper allows",
            "For number, place, size or letters these frozen embeddings are the wrong tool: use another encoder, "
            "tokens, or a model that sees the pixels. For objects and their properties they are adequate.",
        )
    if gap.high < 0:
        return (
            f"are ahead of the semantic ones by {-gap.value:.1f} points ({-gap.high:.1f} to {-gap.low:.1f})",
            "The fine detail of such simple images is captured, colours and shapes less so; check on your own pairs, "
            "skill by skill, above.",
        )
    if gap.high < RULE and gap.low <= 0:
        return (
            f"are as good as the semantic ones as far as can be measured ({gap.value:+.1f} points, {gap.low:.1f} to "
            f"{gap.high:.1f} behind)",
            "On such simple images the fine detail is captured; check on your own pairs, skill by skill, above.",
        )
    if gap.high < RULE:
        return (
            f"{behind}, less than the {RULE:.0f} that the paper allows",
            "On such simple images the fine detail is captured; check on your own pairs, skill by skill, above.",
        )
    return (
        f"{behind}; whether that is more than {RULE:.0f} is uncertain",
        "This is borderline under the paper's rule: decide by the skills on your own pairs.",
    )


def _tokens(probed: Probed) -> Finding:
    """Return the finding on what a token grid adds to the pooled embedding."""
    rows: list[dict[str, Any]] = []
    for name, skill in SKILLS.items():
        tokens, pooled = (np.array(probed.hits[way][name], float) for way in ("tiny, tokens", "tiny, pooled"))
        gain = bootstrap_interval(tokens - pooled)
        rows.append(
            {
                "skill": name,
                "kind": "semantic" if skill.semantic else "fine-grained",
                "pooled %": 100 * float(pooled.mean()),
                "tokens %": 100 * float(tokens.mean()),
                "gain": 100 * gain.value,
                "low": 100 * gain.low,
                "high": 100 * gain.high,
            }
        )
    mean = _bootstrapped(
        lambda scores: _mean(scores, semantic=False), probed, "tiny, tokens", 0, against="tiny, pooled"
    )
    claim, advice = tokens_claim(mean)
    return Finding(
        name=f"probes-{probed.encoder}-tokens",
        section="probes",
        claim=claim,
        value=mean.value,
        ci95=[mean.low, mean.high],
        how=(
            f"tiny on a {GRID} grid of tokens minus tiny on the pooled embeddings of {probed.encoder}, the same "
            "images; mean over the fine-grained skills, of scores corrected for chance; the table has plain "
            "accuracies. 95 % bootstrap over images, paired."
        ),
        advice=advice,
        table=rows,
        plot=chart(
            "bars",
            "skill",
            "tokens against pooled, points",
            series(
                "gain",
                [row["skill"] for row in rows],
                [row["gain"] for row in rows],
                low=[row["low"] for row in rows],
                high=[row["high"] for row in rows],
            ),
        ),
    )


def tokens_claim(gain: Interval) -> tuple[str, str]:
    """Return claim and advice on what tokens gain over pooled embeddings, in points."""
    measured = f"{gain.value:+.1f} points ({gain.low:+.1f} to {gain.high:+.1f})"
    if gain.low > 0:
        return (
            f"Tokens hold more fine detail than pooled embeddings: {measured}.",
            "If your task is fine-grained, extract with --tokens and compare on your own pairs; the store grows with "
            "the number of tokens.",
        )
    if gain.high < 0:
        return (
            f"Tokens serve the fusion worse than pooled embeddings: {measured}.",
            "Stay with pooled embeddings; a fusion on tokens has more to learn from the same images.",
        )
    return (
        f"Tokens add nothing measurable to pooled embeddings: {measured}.",
        "Stay with pooled embeddings: they are smaller and quicker.",
    )


def _not_probed(name: str, error: FrevlError) -> Finding:
    return Finding(
        name=f"probes-{name}-not-run",
        section="probes",
        claim=f"The encoder {name} was not probed: it cannot embed drawn images here.",
        value=None,
        ci95=None,
        how=f"Probes embed drawn images with the encoder itself. Its message: {error}",
        advice=(
            "Imported embeddings cannot be probed; run the probes where the encoder is installed, or use the "
            "skills on your own pairs."
        ),
    )


def _cut_short(name: str, error: FrevlError) -> Finding:
    return Finding(
        name=f"probes-{name}-not-run",
        section="probes",
        claim=f"The encoder {name} was not probed: the time limit is too short for it.",
        value=None,
        ci95=None,
        how=f"Probes embed drawn images with the encoder itself; {error}",
        advice="Repeat the diagnosis with a larger --time-limit, or use the skills on your own pairs.",
    )
