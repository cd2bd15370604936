"""The page ``docs/accelerator.md``, made from the records alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

TITLES = {
    "limits": "Measured limits of the card",
    "a scores": "(a) The same scores as on a processor",
    "b throughput": "(b) Pairs per second of the fusion",
    "c training": "(c) Training steps of `base`",
    "d images": "(d) Images per second of a frozen encoder",
    "e comparison": "(e) End to end, half cached, fully cached, joint encoders: time and joules",
    "f rerank": "(f) Reranking compared with a small joint encoder",
    "g search": "(g) Exact search",
    "p product": "(h) What the commands run on a device",
}

NOTES = {
    "a scores": """\
The network is a `base` trained briefly on synthetic pairs, on the device itself. In float16, the scorer keeps the sums
of the residual stream and the logits in float32. bf16 has three bits less, which is why scores are float16. The
differences from float64 show which side is farther from the truth; in float32 it is the device, probably because its
products sum in longer chains. Rounding alone sets a limit: *rounding the weights alone* is the difference if only the
weights are rounded to the type and everything else is float32. Where that exceeds the goal, no program that keeps its
weights in this type reaches it.""",
    "b throughput": """\
In brackets: operations relative to those of the large bf16 product in the same round. *Folded* is `for_inference`;
float16 is what `--device cuda` scores in; bf16 keeps its sums in bf16 too, which is faster but too inexact for scores
(see a). Embeddings are on the device.""",
    "c training": """\
The loss, the optimiser and the gathering of embeddings of `frevl train`, without mixup. Steps are timed in a row, as in
training. Only operations of the forward and backward pass are counted; *share of the network alone* leaves out the
products of the contrastive term, whose number grows with the square of the batch. `frevl train --device cuda` records
the bf16 step of a batch size as a CUDA graph when it occurs for the third time: the plain step takes as long for a
small batch as for a large one, because the processor cannot launch kernels as fast as the device finishes them.
`torch.compile` also merges kernels, but needs a compiler and about a minute before the first step, so the command does
not use it.""",
    "d images": """\
*The runtime of extract* starts with float32 pixels in the processor's memory and ends with embeddings there; decoding,
the stage before, is timed separately.""",
    "e comparison": """\
Everything in float16, all inputs on the device, three windows each. The joint encoders run as implemented in the
transformers library: where their share of the product and the watts are low, the device probably waited for the
processor, and a better implementation would be faster. No implementation can change the ratio of operations.""",
    "f rerank": """\
Both ours and the joint encoder keep everything possible on the device. The joint encoder has the published sizes (64
stored tokens of 384 dimensions per image, 32 word pieces, 12 layers of 384); the ratio compared with the goal is
relative to the 50,000 pairs/s that its authors state.""",
    "g search": """\
The share is the time of one pass over the vectors divided by the time of a batch of queries.""",
    "p product": """\
Scoring, grids, first stages, extraction and training by the functions behind `--device cuda`, compared with a
processor. *Where memory ends*, the process may use 256 MiB more than the network, so batches must be halved. Waits are
those that PyTorch's synchronisation check reports, for each step that a loop is longer.""",
}

INTRODUCTION = """\
`python bench/accelerator.py --page docs/accelerator.md` measured everything here in one process of {seconds:.0f}
seconds ({date}, PyTorch {torch}, {rounds} rounds, windows of {window} s for energy, next to {cores} cores of
{processor}) and wrote this page. Numbers are medians over rounds, with the lowest and the highest; compared
measurements alternate in the same round. Networks have random weights and their published sizes: speed does not depend
on them, and nothing here says how good an answer is. Energy is that of the whole card by NVML's counter, minus that of
the idle card; the processor is not included."""


def page(found: Mapping[str, Any]) -> str:
    """Return the page in Markdown; what misses its goal is named in its first sentence."""
    machine, records = found["machine"], found["records"]
    goals = [one for one in records if one["goal"] is not None and one["ratio"] is not None]
    missed = [one for one in goals if not one["met"]]
    lines = [
        "# Measured on an accelerator",
        "",
        f"On one {machine['device']}, {len(goals) - len(missed)} of {len(goals)} goals were reached"
        + (f" and {len(missed)} were missed: {'; '.join(one['name'] for one in missed)}." if missed else "."),
        "",
        INTRODUCTION.format(**{**machine, **found}),
        "",
        "## Goals",
        "",
        "| measured | reached | goal | |",
        "|---|---|---|---|",
        *(_goal(one) for one in goals),
    ]
    for part, title in TITLES.items():
        own = [one for one in records if one["part"] == part and one["value"] is not None]
        if not own:
            continue
        lines += ["", f"## {title}", ""] + ([NOTES[part], ""] if part in NOTES else [])
        if part == "b throughput":
            lines += _throughput(own)
        else:
            header = "| measured | median | lowest to highest | unit | details |"
            lines += [header, "|---|---|---|---|---|", *(_row(one, _beside(one, found)) for one in own)]
    lines += _profiles(missed)
    if found["failures"]:
        lines += ["", "## What could not be measured", ""]
        lines += [f"- {name}: {reason}" for name, reason in found["failures"].items()]
    return "\n".join(lines) + "\n"


def _goal(one: Mapping[str, Any]) -> str:
    sign, met = "at most" if one["at_most"] else "at least", "reached" if one["met"] else "**missed**"
    return f"| {one['name']} | {_number(one['ratio'], 4)} | {sign} {one['goal']:g} | {met} |"


def _row(one: Mapping[str, Any], beside: str) -> str:
    spread = f"{_number(one['low'])} to {_number(one['high'])}" if one["low"] is not None else ""
    return f"| {one['name']} | {_number(one['value'])} | {spread} | {one['unit']} | {beside} |"


def _beside(one: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    details = dict(one["details"])
    if one["part"] == "e comparison" and details.get("flops") and one["unit"] == "pairs/s":
        products = [r["value"] for r in found["records"] if r["part"] == "limits" and r["name"].endswith("fp16")]
        details["operations per pair"] = f"{details['flops'] / 1e9:.3g} G"
        if products:
            details["share of product"] = details["flops"] * one["value"] / (1e12 * products[0])
    shown = []
    for name, value in details.items():
        if name in ("profile", "flops", "same_class") or value in (None, ""):
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {_number(part)}" for key, part in value.items())
        if isinstance(value, list):
            value = f"{_number(value[0])} to {_number(value[1])}"
        shown.append(f"{_words(name)} {_number(value) if isinstance(value, int | float) else value}")
    return "; ".join(shown)


def _words(name: str) -> str:
    """Return the name of a detail as the page writes it: ``joules_a_pair`` is "joules per pair"."""
    return re.sub(r"_an?_", " per ", name).replace("_", " ")


_LARGE = 8192  # smaller batches wait for the processor, which varies more


def _throughput(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """A table for each preset and kind, forms down and batches across."""
    tables: dict[str, dict[str, dict[str, str]]] = {}
    batches: dict[str, list[str]] = {}
    spreads: dict[bool, float] = {}
    for one in records:
        match = re.fullmatch(r"(\w+, \w+), batch ([\d,]+), (.*)", one["name"])
        if match is None or one["unit"] != "pairs/s":
            continue
        title, batch, form = match.groups()
        large = int(batch.replace(",", "")) >= _LARGE
        spreads[large] = max(spreads.get(large, 0.0), (one["high"] - one["low"]) / one["value"])
        batches.setdefault(title, [])
        if batch not in batches[title]:
            batches[title].append(batch)
        share = one["details"]["share_of_product"]
        cell = f"{_number(one['value'])} ({share:.0%})" if share >= 0.005 else _number(one["value"])
        tables.setdefault(title, {}).setdefault(form, {})[batch] = cell
    lines = [
        f"The rounds of batches from {_LARGE:,} upwards spread by at most "
        f"{spreads.get(True, 0.0):.0%} of their median, those of smaller ones by at most {spreads.get(False, 0.0):.0%}."
    ]
    for title, forms in tables.items():
        columns = batches[title]
        lines += ["", f"`{title.split(',')[0]}`,{title.split(',')[1]}: pairs/s by batch", ""]
        lines += ["| form | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
        lines += [
            f"| {form} | " + " | ".join(cells.get(one, "") for one in columns) + " |" for form, cells in forms.items()
        ]
    return lines


def _profiles(missed: Iterable[Mapping[str, Any]]) -> list[str]:
    profiled = [one for one in missed if one["details"].get("profile")]
    lines = ["", "## Where the time goes if a goal was missed"] if profiled else []
    for one in profiled:
        shares = dict(one["details"]["profile"])
        busy = shares.pop("milliseconds a call", None)
        lines += ["", one["name"] + _of_which(one, busy), ""]
        lines += ["| share of the device's time | kernel |", "|---|---|"]
        lines += [f"| {share:.1%} | `{name}` |" for name, share in shares.items()]
    return lines


def _of_which(one: Mapping[str, Any], busy: float | None) -> str:
    """Say how a call's time is divided; the counted operations would take the rest at the rate of the product."""
    if not busy:
        return ":"
    whole = one["details"].get("milliseconds")
    if whole is None:
        return f" ({busy:.3g} ms of kernels a call):"
    return (
        f": a call takes {whole:.3g} ms, of which the device computes for {busy:.3g} ms. The operations counted would "
        f"take {whole * one['ratio']:.3g} ms at the rate of the large product, and the goal allows "
        f"{whole * one['ratio'] / one['goal']:.3g} ms:"
    )


def _number(value: float, digits: int = 3) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if size >= 0.001 or value == 0 else f"{value:.2g}"
