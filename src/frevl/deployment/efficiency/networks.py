"""The cost of the fusion: every preset, form, batch size and kind of embedding; scaling; goals."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from frevl.deployment.efficiency.profiles import fusion_bytes, fusion_flops, torch_profile
from frevl.deployment.efficiency.records import Record, Show
from frevl.deployment.efficiency.stand_ins import drawn_run, drawn_towers, write_drawn
from frevl.deployment.efficiency.timing import PRODUCT_SIDE, Limits, Timing, product, rate_record, ratio, take_turns
from frevl.deployment.export.exporting import TOLERANCE
from frevl.deployment.export.onnx_graph import drawn_inputs, exportable, traced
from frevl.deployment.export.quantisation import quantise_rows
from frevl.errors import RunError, library
from frevl.models.fusion import Fusion
from frevl.runs.batches import Inputs
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.runs.sharing.onnx_backend import ExportedNetwork

__all__ = ["FORMS", "fusion_records", "goal_records", "scaling_records"]

DIM = 768
FORMS = ("PyTorch", "fused", "ONNX", "int8")
_FLOAT32 = ("fused", "ONNX")
_TEXT_TOKENS = 16
_IMAGE_TOKENS = 49
_MOST_FLOPS_A_CALL = 4e12  # about half a minute on two cores; larger batches are left out, and the page says so
LEAST_OF_LIMIT = 0.70
LEAST_TINY_OVER_BASE = 20.0


def fusion_records(
    presets: Sequence[str],
    limits: Limits,
    *,
    batches: Sequence[int] = (1, 32, 1024),
    forms: Sequence[str] = FORMS,
    kinds: Sequence[str] = ("pooled", "tokens"),
    rounds: int = 5,
    show: Show = str,
) -> list[Record]:
    """Measure pairs per second for every preset, form, batch size and kind; matching, with embeddings of width ``DIM``.

    Args:
        presets: Keys of `frevl.models.fusion.PRESETS`.
        limits: Limits of this machine, to compute the attainable rate.
        batches: Batch sizes.
        forms: Some of `FORMS`.
        kinds: ``pooled``, and ``tokens``: 49 image and up to 16 text tokens.
        rounds: Rounds per measurement.
        show: Called before every preset.
    """
    records = []
    for preset in presets:
        for kind in kinds:
            show(f"Fusion {preset}, {kind}: {', '.join(forms)}, batches of {', '.join(map(str, batches))}")
            run = _run(preset, tokens=kind == "tokens")
            sides = _sides(run, forms)
            flops, differences = _flops(run), _differences(run, sides)
            for batch in batches:
                several = rounds if flops * batch < _MOST_FLOPS_A_CALL / 4 else 1
                if flops * batch > _MOST_FLOPS_A_CALL:
                    continue
                inputs = drawn_inputs(run, batch, text_tokens=_TEXT_TOKENS)
                with torch.inference_mode():
                    calls = {form: _bound(side, inputs) for form, side in sides.items()}
                    found = take_turns(calls, rounds=several, warm_up=several > 1)
                records += [
                    _record(run, preset, kind, form, batch, timing, limits, differences[form])
                    for form, timing in found.items()
                ]
    return records


def goal_records(*, batch: int = 1024, rounds: int = 9) -> list[Record]:
    """Compare ``tiny`` and ``base`` with matrix products in the same rounds, and with each other.

    Each is measured in its fastest float32 form. If a limit is missed, a ``profile`` record shows where the time goes.
    """
    runs = {preset: _run(preset, tokens=False) for preset in ("tiny", "base")}
    calls: dict[str, Callable[[], object]] = {"product": product()}
    for preset, run in runs.items():
        inputs = drawn_inputs(run, batch, text_tokens=_TEXT_TOKENS)
        for form, side in _sides(run, _FLOAT32).items():
            calls[f"{preset}, {form}"] = _bound(side, inputs)
    with torch.inference_mode():
        found = take_turns(calls, rounds=rounds)
    goals, fastest = [], {}
    for preset, run in runs.items():
        # Dividing by this ratio of operations turns a ratio of times into a share of the matrix-product limit.
        work = 2 * PRODUCT_SIDE**3 / (_flops(run) * batch)
        shares = {form: ratio(found["product"], found[f"{preset}, {form}"]) / work for form in _FLOAT32}
        form = max(shares, key=lambda name: shares[name])
        fastest[preset] = found[f"{preset}, {form}"]
        name = f"{preset}, {form}, batch {batch}: pairs/s; ratio to the matrix-product limit"
        details = {"flops": _flops(run), "share_of_products": shares}
        rate = rate_record("goals", name, fastest[preset], items=batch, unit="pairs/s", **details)
        goals.append(replace(rate, ratio=shares[form], limit=LEAST_OF_LIMIT))
    faster = ratio(fastest["base"], fastest["tiny"])
    name = f"tiny over base: pairs/s, batch {batch}, each in its fastest float32 form"
    goals.append(Record("goals", name, faster, "times", None, faster, LEAST_TINY_OVER_BASE))
    tiny, base, compared = (goal.met for goal in goals)
    missed = {"tiny": not (tiny and compared), "base": not base}
    return [*goals, *(_profile(preset, runs[preset], batch) for preset in runs if missed[preset])]


def scaling_records(
    *, pairs: Sequence[int], items: Sequence[int], tokens: Sequence[int], widths: Sequence[int], rounds: int = 5
) -> list[Record]:
    """Measure how the cost of ``tiny`` grows with pairs, items, tokens and width (fused PyTorch, one at a time)."""
    records = []
    run = _run("tiny", tokens=False)
    fused = _sides(run, ("fused",))["fused"]
    for count in pairs:
        inputs = drawn_inputs(run, count, text_tokens=1)
        records.append(_scaled("pairs", f"{count} pairs at once", fused, inputs, count, rounds, {"pairs": count}))
    for count in tokens:
        network = Fusion.from_preset("tiny", image_dim=DIM, text_dim=DIM, outputs=1).for_inference()
        image = torch.randn(32, count, DIM)
        text = torch.randn(32, _TEXT_TOKENS, DIM)
        flops = fusion_flops(network.settings, image_tokens=count, text_tokens=_TEXT_TOKENS)
        name = f"{count} image and {_TEXT_TOKENS} text tokens, 32 pairs at once"
        details = {"tokens": count, "flops": flops}
        records.append(_scaled("tokens", name, network, (image, text, None, None), 32, rounds, details))
    for width in widths:
        network = Fusion(
            image_dim=DIM, text_dim=DIM, outputs=1, width=width, ffn_width=2 * width, head_width=width
        ).for_inference()
        inputs = (torch.randn(256, DIM), torch.randn(256, DIM), None, None)
        details = {"width": width, "flops": fusion_flops(network.settings)}
        records.append(
            _scaled("width", f"width {width}, 2 layers, 256 pairs at once", network, inputs, 256, rounds, details)
        )
    if items:
        records += _grids(run, items, rounds)
    return records


def _run(preset: str, *, tokens: bool) -> Run:
    torch.manual_seed(0)
    network = Fusion.from_preset(preset, image_dim=DIM, text_dim=DIM, outputs=1)
    return drawn_run(network, drawn_towers(DIM, DIM, tokens=tokens), model=preset)


def _flops(run: Run) -> int:
    if all(identity["tokens"] == "pooled" for towers in run.towers.values() for identity in towers.values()):
        return fusion_flops(run.network_settings)
    return fusion_flops(run.network_settings, image_tokens=_IMAGE_TOKENS, text_tokens=_TEXT_TOKENS)


def _sides(run: Run, forms: Sequence[str]) -> dict[str, torch.nn.Module]:
    """Return the network of a run in several forms."""
    sides: dict[str, torch.nn.Module] = {}
    if "PyTorch" in forms:
        sides["PyTorch"] = run.network
    if "fused" in forms:
        sides["fused"] = run.network.for_inference()
    if "ONNX" not in forms and "int8" not in forms:
        return sides
    model = traced(exportable(run.network, run.path, int8=False), run)
    with tempfile.TemporaryDirectory() as folder:
        for form in ("ONNX", "int8"):
            if form in forms:
                if form == "int8":
                    quantise_rows(model)
                path = Path(folder) / f"{form}.onnx"
                library("onnx").save(model, str(path))
                sides[form] = ExportedNetwork(path)
    return sides


def _bound(side: Callable[..., object], inputs: Inputs) -> Callable[[], object]:
    return lambda: side(*inputs)


def _differences(run: Run, sides: Mapping[str, torch.nn.Module]) -> dict[str, float]:
    """Return the largest logit difference of every form from plain PyTorch, because timed code must be correct."""
    inputs = drawn_inputs(run, 16, text_tokens=_TEXT_TOKENS)
    with torch.inference_mode():
        exact = run.network(*inputs)
        found = {form: float((side(*inputs) - exact).abs().max()) for form, side in sides.items()}
    wrong = [form for form, difference in found.items() if form != "int8" and not difference <= TOLERANCE]
    if wrong:
        raise RunError(
            f"The logits of the {run.model} fusion as {wrong[0]} differ from PyTorch's by up to "
            f"{found[wrong[0]]:.2g}, expected at most {TOLERANCE:g}; install the versions in constraints.txt"
        )
    return found


def _record(
    run: Run, preset: str, kind: str, form: str, batch: int, timing: Timing, limits: Limits, difference: float
) -> Record:
    flops = _flops(run)
    reached = flops * batch / timing.median
    details = {"preset": preset, "kind": kind, "form": form, "batch": batch, "flops": flops, "reached": reached}
    details["largest_difference"] = difference
    if kind == "pooled" and form == "fused":
        moved = fusion_bytes(run.network, flops, run.network_settings, batch)
        attainable = limits.attainable(flops * batch, moved)
        details |= {"bytes": moved, "attainable": attainable, "share_of_attainable": reached / attainable}
    name = f"{preset}, {kind}, {form}, batch {batch}"
    return rate_record("fusion", name, timing, items=batch, unit="pairs/s", **details)


def _profile(preset: str, run: Run, batch: int) -> Record:
    """Profile one forward pass, operation by operation."""
    network, inputs = _sides(run, ("fused",))["fused"], drawn_inputs(run, batch, text_tokens=_TEXT_TOKENS)
    name = f"{preset}, fused PyTorch, batch {batch}, one core: share of the time, operation by operation"
    return torch_profile(name, _bound(network, inputs))


def _scaled(
    what: str,
    name: str,
    network: torch.nn.Module,
    inputs: Inputs,
    pairs: int,
    rounds: int,
    details: Mapping[str, object],
) -> Record:
    with torch.inference_mode():
        timing = take_turns({"all": _bound(network, inputs)}, rounds=rounds)["all"]
    return rate_record("scaling", f"{what}: {name}", timing, items=pairs, unit="pairs/s", **details)


def _grids(run: Run, items: Sequence[int], rounds: int) -> list[Record]:
    """Score every image with every text through `Scorer.grid`, which reads and projects each item only once."""
    records = []
    with tempfile.TemporaryDirectory() as folder:
        store = write_drawn(Path(folder) / "store", drawn_towers(DIM, DIM), images=max(items), texts=max(items))
        scorer = Scorer(run, store)
        for count in items:
            images, texts = store.image_ids[:count], store.texts[:count]
            timing = take_turns({"all": lambda i=images, t=texts: scorer.grid(i, t)}, rounds=rounds)["all"]  # type: ignore[misc]
            name = f"items: a grid of {count} x {count}, from the store"
            records.append(
                rate_record("scaling", name, timing, items=count**2, unit="pairs/s", items_of_each_kind=count)
            )
    return records
